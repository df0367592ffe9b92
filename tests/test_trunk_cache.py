"""Frozen stages that run once: the same weights as from images, and when the maps serve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trained import timeless
from trunks import CPU, SGD, chosen, headed, rows_of
from tuning import plan_for

from featcache.cache.cache_file import Cache, find_caches
from featcache.embedding.job import Embedding
from featcache.models.backbones import Backbone
from featcache.models.stages import StagedModel
from finetune.cached_rows import TuningRows, tuning_rows
from finetune.forward import Forward, scores_of
from finetune.image_source import ImageSource, Pictures
from finetune.map_source import MapSource
from finetune.plans import Plan
from finetune.settings import Settings
from finetune.trunk_cache import TrunkCached, with_trunk_cache
from finetune.tuned_run import TunedRun, fine_tune


def cached(cache: Cache, backbone: Backbone, plan: Plan, **given: Any) -> TrunkCached:
    option = chosen(cache, backbone, plan, **given).option
    assert option is not None
    return with_trunk_cache(
        option,
        cache=cache,
        folder=cache.path.parent,
        backbone=backbone,
        rows=tuning_rows(cache, given.get("rows") or rows_of(cache), device=CPU),
        settings=Settings(**SGD),
        device=CPU,
        command=("finetune", "--trunk-cache", "on"),
    )


def tuned(
    cache: Cache, rows: TuningRows | None, seed: int = 0, *, refit: bool = False, **flags: Any
) -> tuple[TunedRun, dict[str, Tensor], StagedModel]:
    """Trained from some rows, or from the images."""
    staged = headed(cache).staged
    plan = plan_for(staged, **{"unfreeze": "layer4", "epochs": 2, **flags})
    rows = rows or tuning_rows(cache, rows_of(cache), device=CPU)
    done = fine_tune(staged, plan, rows, settings=Settings(**SGD, seed=seed), device=CPU, refit=refit)
    return done, {name: tensor.clone() for name, tensor in staged.model.state_dict().items()}, staged


@pytest.fixture
def no_images(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called, an image that is read fails the test."""

    def read(*_given: Any, **_more: Any) -> Iterator[Tensor]:
        raise AssertionError("an image was read")

    return lambda: monkeypatch.setattr(Pictures, "read", read)


@pytest.mark.parametrize(("unfreeze", "stage"), [("layer4", "layer3"), (None, "layer4")])
def test_float32_maps_give_the_weights_that_images_give(
    cache: Cache, no_images: Callable[[], None], unfreeze: str | None, stage: str
) -> None:
    """To the bit, through both trainings; once the maps are there, no image of any split is read."""
    expected, weights, _ = tuned(cache, None, refit=True, unfreeze=unfreeze)
    backbone = headed(cache)
    trunk = cached(cache, backbone, plan_for(backbone.staged, unfreeze=unfreeze, epochs=2))
    assert (trunk.cache.encoder["cut"], trunk.cache.encoder["storage"]) == (stage, "float32")
    assert trunk.seconds > 0
    no_images()
    found, others, _ = tuned(cache, trunk.rows, refit=True, unfreeze=unfreeze)
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []
    assert timeless(found.history) == timeless(expected.history)
    assert found.metrics["val"] == expected.metrics["val"]
    np.testing.assert_allclose(
        found.predictions["test_scores"], expected.predictions["test_scores"], rtol=1e-4, atol=1e-5
    )


def test_float16_maps_stay_within_the_noise_of_the_seed(cache: Cache) -> None:
    """Rounding moves the logits by under 0.1 %, and the trained weights by less than half of what another seed does."""
    backbone = headed(cache)
    trunk = cached(cache, backbone, plan_for(backbone.staged, unfreeze="layer4"), storage="float16")
    assert trunk.cache.splits["train"].features.dtype == np.float16
    scores = []
    for source in (trunk.rows.test, trunk.rows.test.serving(4)):
        forward = Forward(backbone.staged, cut=4, source_cut=source.cut, settings=Settings(), device=CPU)
        scores.append(scores_of(forward, source, batch_size=8))
    np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=1e-3 * np.abs(scores[0]).max())
    exact, rounded, other = (
        tuned(cache, rows, seed, epochs=3)[1] for rows, seed in ((None, 0), (trunk.rows, 0), (None, 1))
    )

    def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
        names = [name for name in first if name.startswith("layer4") and first[name].is_floating_point()]
        return float(sum((first[name] - second[name]).square().sum() for name in names)) ** 0.5

    assert 0 < distance(rounded, exact) < 0.5 * distance(exact, other)


def test_progressive_plans_use_it_until_the_first_thaw_below_the_cut(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"unfreeze": "last:3", "progressive": True, "epochs": 4}
    expected, weights, _ = tuned(cache, None, **flags)
    backbone = headed(cache)
    trunk = cached(cache, backbone, plan_for(backbone.staged, unfreeze="layer4"))  # up to layer3
    served: list[str] = []
    for kind in (ImageSource, MapSource):
        right = kind.batches

        def batches(self: Any, rows: Any, *, augment: bool, right: Any = right, **more: Any) -> Iterator[Tensor]:
            served.append(type(self).__name__ if augment else "")
            return right(self, rows, augment=augment, **more)

        monkeypatch.setattr(kind, "batches", batches)
    found, others, _ = tuned(cache, trunk.rows, **flags)
    phases = [entry["phase"] for entry in found.history]
    assert phases == ["head", "layer4+head", "layer3 to head", "layer2 to head"]
    assert [name for name in served if name] == [
        "MapSource" if phase in ("head", "layer4+head") else "ImageSource" for phase in phases
    ]
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []
    assert timeless(found.history) == timeless(expected.history)
    np.testing.assert_array_equal(found.predictions["test_scores"], expected.predictions["test_scores"])


def test_a_second_run_finds_it(cache: Cache, no_images: Callable[[], None]) -> None:
    """Also with other validation rows, and for a plan that thaws less; not with other weights, rows or storage."""
    backbone = headed(cache)
    plan = plan_for(backbone.staged, unfreeze="layer4")
    first = cached(cache, backbone, plan)
    no_images()
    for more in ({}, {"rows": rows_of(cache, seed=5)}, {"storage": None}):
        again = cached(cache, backbone, plan, **more)
        assert (again.cache.path, again.seconds) == (first.cache.path, 0.0)
    assert chosen(cache, backbone, plan, storage="float16").option.found is None
    lower = plan_for(backbone.staged, unfreeze="layer3,layer4")
    assert chosen(cache, backbone, lower).option.found is None
    other = replace(backbone, weights={**backbone.weights, "sha256": "0" * 64})
    assert chosen(cache, other, plan).option.found is None
    head = plan_for(backbone.staged, epochs=50)
    assert chosen(cache, backbone, head, storage=None).option.found.path == cache.path  # the vectors, which are there


def test_what_fine_tuning_made_for_itself_is_not_begun_with(
    cache: Cache, run: Callable[..., tuple[int, str, str]]
) -> None:
    backbone = headed(cache)
    trunk = cached(cache, backbone, plan_for(backbone.staged, epochs=1), storage="float32")
    assert find_caches(cache.path.parent)[0].path == trunk.cache.path  # the newest, and of vectors
    for command, *flags in (("finetune", "--dry-run", "--trunk-cache", "off"), ("fit-head", "--clf", "centroid")):
        status, out, err = run(command, *flags, "--val-fraction", "0.2")
        assert status == 0, err
        assert cache.path.name in out
    status, _, err = run("finetune", "--cache", trunk.cache.path)
    assert (status, "name the cache that it began with" in err) == (1, True)


def test_cached_views_stand_for_augmentation(folder: Path, embed: Callable[..., Embedding]) -> None:
    """Training draws among them by the caller's seed; what is scored is the plain view; other caches' views serve."""
    cache = embed(folder).run().cache
    backbone = headed(cache)
    plan = plan_for(backbone.staged, unfreeze="layer4", epochs=3)
    trunk = cached(cache, backbone, plan, augment="crop", views=2)
    assert trunk.cache.encoder["views"]["views"] == 2
    assert trunk.augment(Settings(augment="crop"), plan) == "2 cached views"
    assert trunk.told(plan).endswith("; 2 cached views stand for augmentation")
    source = trunk.rows.train.serving(4)
    views = trunk.cache.splits["train"].load(source.parts[0].rows)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        (maps,) = source.batches([np.arange(32)], augment=True)
        drawn.append(maps.numpy())
        number = [int(np.flatnonzero((views[row] == drawn[-1][row]).all((1, 2, 3)))[0]) for row in range(32)]
        assert set(number) == {0, 1, 2}
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    (plain,) = source.batches([np.arange(32)], augment=False)
    np.testing.assert_array_equal(plain.numpy(), views[:, 0])
    found = chosen(cache, backbone, plan, augment="crop", storage=None).option  # without --views: those there are
    assert (found.found.path, found.n_views) == (trunk.cache.path, 3)
    choice = chosen(cache, backbone, plan, "auto", augment="crop", storage=None)  # but not unasked
    assert (choice.option, "--views K" in choice.why) == (None, True)
    assert chosen(cache, backbone, plan, views=1).option.n_views == 2
    assert chosen(cache, backbone, plan, views=3).option.found is None
    done, weights, _ = tuned(cache, trunk.rows, epochs=8, lr=0.1)
    assert done.metrics["train"].accuracy > 0.5
    assert not torch.equal(
        weights["layer4.0.conv1.weight"], tuned(cache, None, epochs=8, lr=0.1)[1]["layer4.0.conv1.weight"]
    )
