"""Frozen stages that run once: the same weights as from images, when they serve, and when they are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from making import flip
from test_training import timeless
from torch import Tensor, nn
from tuning import plan_for, torchvision_model

from featcache.backbones import Backbone
from featcache.cache import Cache, find_caches
from featcache.embedding import Embedding
from featcache.errors import CacheError, UsageError
from featcache.stages import StagedModel
from finetune import map_source, trunk_choice
from finetune.cached_rows import TuningRows, backbone_of, tuning_rows
from finetune.forward import Forward, scores_of
from finetune.image_source import ImageSource, Pictures
from finetune.map_source import CachedMaps, MapSource
from finetune.new_head import replace_head
from finetune.plans import Plan
from finetune.settings import Settings
from finetune.sources import Labels
from finetune.trunk_cache import TrunkCached, with_trunk_cache
from finetune.trunk_choice import TrunkChoice, choose_trunk
from finetune.trunk_cost import TrunkCost, trunk_costs
from finetune.tuned_run import TunedRun, fine_tune
from heads.rows import Rows, load_rows

CPU = torch.device("cpu")
SGD = {"optimizer": "sgd", "batch_size": 8}


def rows_of(cache: Cache, seed: int = 0) -> Rows:
    """32 for training, 8 for validation, 12 for the test: batches of 8 are all whole."""
    return load_rows(cache, val_fraction=0.2, seed=seed, pool_maps=True, views="plain", rows_only=True)


def headed(cache: Cache, seed: int = 0) -> Backbone:
    backbone = backbone_of(cache)
    replace_head(backbone.staged, 2, seed=seed)
    return backbone


def chosen(cache: Cache, backbone: Backbone, plan: Plan, asked: Any = "on", **given: Any) -> TrunkChoice:
    ours = {"views": 0, "storage": "float32", "refit": True, "began": lambda option: False, "rows": rows_of(cache)}
    settings = Settings(**{**SGD, **{key: value for key, value in given.items() if key not in ours}})
    values = {key: given.get(key, value) for key, value in ours.items()}
    return choose_trunk(
        asked, cache=cache, folder=cache.path.parent, backbone=backbone, plan=plan, settings=settings, device=CPU,
        **values,
    )  # fmt: skip


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

        def batches(self: Any, rows: Sequence[Labels], *, augment: bool, right: Any = right) -> Iterator[Tensor]:
            served.append(type(self).__name__ if augment else "")
            return right(self, rows, augment=augment)

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


class Doubtful(nn.Module):
    """Which way it goes depends on the images: it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        values = self.conv(images)
        return self.fc((values if values.sum() > 0 else -values).mean((2, 3)))


def test_on_is_refused_where_it_cannot_be(cache: Cache) -> None:
    backbone = headed(cache)
    partial, full = (plan_for(backbone.staged, unfreeze=stages) for stages in ("layer4", "all"))
    for plan, given, message in (
        (full, {}, "--trunk-cache on: the first stage .stem. trains from the start"),
        (plan_for(backbone.staged, freeze="early"), {}, "the first stage .stem. trains"),
        (partial, {"augment": "crop"}, "--augment crop changes pixels anew in every epoch: --views K"),
        (partial, {"mix": "mixup"}, "--mix mixup changes pixels"),
        (partial, {"mix": "cutmix", "views": 2}, "--mix cutmix changes pixels"),
    ):
        with pytest.raises(UsageError, match=message):
            chosen(cache, backbone, plan, **given)
        if not given.get("views"):
            choice = chosen(cache, backbone, plan, "auto", **given)
            assert choice.option is None
            assert choice.why.startswith("trunk cache off: ")
    with pytest.raises(UsageError, match="--views 3 and --trunk-cache off exclude one another"):
        chosen(cache, backbone, partial, "off", views=3)
    with pytest.raises(UsageError, match="--views 3: the first stage"):
        chosen(cache, backbone, full, "auto", views=3)
    doubtful = replace(backbone, name="odd", staged=StagedModel(Doubtful().eval(), torch.zeros(1, 3, 32, 32)))
    with pytest.raises(UsageError, match="odd offers no inner cut"):
        chosen(cache, doubtful, plan_for(doubtful.staged, unfreeze="all"))


def test_auto_weighs_seconds_and_bytes(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 1.0

    def costs(staged: StagedModel, cuts: Sequence[int], **_given: Any) -> dict[int, TrunkCost]:
        return {cut: TrunkCost(seconds=seconds * cut / 5, order=(0, 1, 2, 3)[: 4 if cut < 5 else 2]) for cut in cuts}

    monkeypatch.setattr(trunk_choice, "trunk_costs", costs)
    backbone = headed(cache)
    plan = plan_for(backbone.staged, unfreeze="layer4", epochs=3)
    choice = chosen(cache, backbone, plan, "auto")
    assert choice.option.n_bytes == 52 * 256 * 2 * 2 * 4
    assert choice.option.saved_s == pytest.approx((3 * 40 * 2 + 52 - 52) * 0.8 - 7)
    assert choice.why.startswith("trunk cache on: the maps of layer3 would take 212,992 bytes (")
    assert choice.why.endswith("; over 3 of 3 epochs they save about 185 s")
    assert chosen(cache, backbone, plan, "auto", refit=False).option.saved_s == pytest.approx(
        (3 * 40 + 44 - 52) * 0.8 - 7
    )
    thawing = plan_for(backbone.staged, progressive=True, phase_epochs=[1, 1, 1, 9, 1, 1], epochs=None)
    assert chosen(cache, backbone, thawing, "auto").option.stage == "layer1"  # which serves 12 of 14 epochs
    seconds = 0.1
    once = plan_for(backbone.staged, unfreeze="layer4", epochs=1)
    choice = chosen(cache, backbone, once, "auto", refit=False)
    assert (choice.option, choice.why.split(" epochs ")[1]) == (None, "they cost about 4 s more")
    assert chosen(cache, backbone, once, "on", refit=False).option is not None
    began = chosen(cache, backbone, once, "auto", refit=False, began=lambda option: option is not None)
    assert began.option is not None
    assert "as the training was begun" in began.why
    seconds = 1.0
    monkeypatch.setattr(trunk_choice, "MAX_BYTES", 212_991)
    choice = chosen(cache, backbone, plan, "auto")
    assert choice.option is None
    assert "more than half of it or than 20 GB" in choice.why


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
    done, weights, _ = tuned(cache, trunk.rows)
    assert done.metrics["train"].accuracy > 0.5
    assert not torch.equal(weights["layer4.0.conv1.weight"], tuned(cache, None)[1]["layer4.0.conv1.weight"])


@pytest.mark.parametrize("kept_bytes", [map_source.KEPT_BYTES, 0])
def test_maps_are_checked_and_come_in_order(cache: Cache, monkeypatch: pytest.MonkeyPatch, kept_bytes: int) -> None:
    """Kept or mapped, of one part or of two joined; a damaged block is an error."""
    monkeypatch.setattr(map_source, "KEPT_BYTES", kept_bytes)
    split = cache.splits["train"]
    numbers = np.random.default_rng(0).permutation(40)
    first, second = (
        MapSource(
            parts=(CachedMaps(split=split, rows=rows, has_views=False),),
            labels=split.labels[rows],
            cut=5,
            n_views=1,
            order=(0, 1),
            device=CPU,
        )
        for rows in (numbers[:25], numbers[25:])
    )
    both = first.joined(second)
    np.testing.assert_array_equal(both.labels, split.labels[numbers])
    groups = np.array_split(np.random.default_rng(1).permutation(40), 3)
    for group, maps in zip(groups, both.batches(groups, augment=True), strict=True):
        assert maps.dtype == torch.float32
        np.testing.assert_array_equal(maps.numpy(), split.load(numbers[group]))
    flip(cache, "train", "features", 3)
    (part,) = first.parts
    anew = replace(part, split=Cache.open(cache.path).splits["train"])
    damaged = replace(first, parts=(replace(anew, rows=numbers),), labels=split.labels[numbers])
    with pytest.raises(CacheError, match="do not match their checksum"):
        next(damaged.batches([np.array([0])], augment=False))


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny"])
def test_maps_keep_the_memory_order_of_the_stages(name: str) -> None:
    """Without it the stages after the cut would round differently."""
    staged = torchvision_model(name, 32)
    settings = Settings()
    cuts = [1, 2, len(staged.stages)]
    costs = trunk_costs(staged, cuts, side=32, settings=settings, device=CPU)
    assert 0 < costs[1].seconds < costs[2].seconds
    images = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for cut in cuts:
            maps = staged.part(0, cut)(images)
            source = MapSource(
                parts=(), labels=np.zeros(0, np.int64), cut=cut, n_views=1, order=costs[cut].order, device=CPU
            )
            back = source._in_order(torch.from_numpy(np.ascontiguousarray(maps.numpy())))
            assert back.stride() == maps.stride()
            assert torch.equal(staged.part(cut, None)(back), staged.model(images))
