"""Weights between the start and the tuned ones: the ends to the byte, the middle by hand, the choice on validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from featcache.cache.cache_file import Cache
from featcache.common.errors import UsageError
from finetune.cached_rows import TuningRows, backbone_of, tuning_rows
from finetune.interpolation import between, interpolate
from finetune.new_head import replace_head
from finetune.planning import make_plan
from finetune.settings import ALL_SHARES, Settings
from finetune.tuned_run import TunedRun, fine_tune
from heads.rows import load_rows

CPU = torch.device("cpu")


def two_states() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    start, tuned = (
        {
            "weight": torch.randn(5, 3, generator=generator),
            "bn.running_var": torch.rand(3, generator=generator),
            "bn.num_batches_tracked": torch.tensor(count),
        }
        for count in (7, 90)
    )
    start["weight"][0, 0], tuned["weight"][0, 1] = -0.0, -0.0
    return start, tuned


def as_bytes(state: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


def test_the_ends_to_the_byte_and_the_middle_by_hand() -> None:
    start, tuned = two_states()
    assert as_bytes(between(start, tuned, 0.0)) == as_bytes(start)
    assert as_bytes(between(start, tuned, 1.0)) == as_bytes(tuned)
    middle = between(start, tuned, 0.3)
    for name in ("weight", "bn.running_var"):
        expected = 0.7 * start[name].double() + 0.3 * tuned[name].double()
        torch.testing.assert_close(middle[name].double(), expected, rtol=1e-6, atol=1e-7)
    assert int(middle["bn.num_batches_tracked"]) == 90
    kept = between(start, tuned, 0.0, as_tuned=("weight",))
    assert torch.equal(kept["weight"], tuned["weight"])
    assert torch.equal(kept["bn.running_var"], start["bn.running_var"])


def test_the_best_by_validation_then_by_loss_then_the_nearest_to_the_start() -> None:
    """Scores that are a function of the weight alone; accuracy is 1 from 0.4 to 0.8, the loss is least at 0.6."""
    moving = {"w": torch.ones(1)}

    def scores() -> np.ndarray:
        share = float(moving["w"])
        right = 2.0 - abs(share - 0.6) if 0.35 < share < 0.85 else -1.0
        return np.array([[right, 0.0]], np.float32)

    given = {"scores": scores, "labels": np.zeros(1, np.int64)}
    found = interpolate({"w": torch.zeros(1)}, moving, ALL_SHARES, **given)
    assert (found.share, float(moving["w"])) == pytest.approx((0.6, 0.6))
    assert [c["share"] for c in found.candidates] == list(ALL_SHARES)
    assert [c["val_accuracy"] for c in found.candidates] == [0.0] * 4 + [1.0] * 5 + [0.0] * 2
    moving = {"w": torch.ones(1)}
    assert interpolate({"w": torch.zeros(1)}, moving, (1.0, 0.9, 0.0), **given).share == 0.0
    moving = {"w": torch.ones(1)}
    single = interpolate({"w": torch.zeros(1)}, moving, (0.9,), **given)
    assert (single.share, single.to_json()["how"]) == (0.9, "as given")


def tuned(
    cache: Cache,
    shares: tuple[float, ...],
    *,
    refit: bool = True,
    init_head: str | None = None,
    change: Callable[[TuningRows], TuningRows] = lambda rows: rows,
) -> tuple[TunedRun, dict[str, Tensor], dict[str, Tensor]]:
    """The run, the weights at its start, and its weights."""
    staged = backbone_of(cache).staged
    replace_head(staged, len(cache.class_names), seed=0)
    start = {name: tensor.clone() for name, tensor in staged.model.state_dict().items()}
    stages = [stage.name for stage in staged.stages]
    plan = make_plan(stages, staged.head_name, lr=1e-3, epochs=1, unfreeze="layer4", batch_norm="train")
    rows = tuning_rows(cache, load_rows(cache, val_fraction=0.2, rows_only=True), device=CPU)
    found = fine_tune(
        staged,
        replace(plan, init_head=init_head),
        change(rows),
        settings=Settings(wise_ft=shares),
        device=CPU,
        refit=refit,
    )
    return found, start, dict(staged.model.state_dict())


def test_a_run_ends_with_the_start_or_as_tuned(cache: Cache) -> None:
    """BatchNorm's statistics with the weights; a head that began at random stays as tuned, here in the refit."""
    plain, _, as_tuned = tuned(cache, ())
    found, start, at_start = tuned(cache, (0.0,))
    _, _, at_tuned = tuned(cache, (1.0,))
    assert as_bytes(at_tuned) == as_bytes(as_tuned)
    for name, tensor in at_start.items():
        assert torch.equal(tensor, (as_tuned if name.startswith("fc.") else start)[name]), name
    assert plain.chosen.history[-1]["val_loss"] == found.chosen.history[-1]["val_loss"]
    assert found.metrics["val"] != plain.metrics["val"]  # told of the weights that are kept
    np.testing.assert_array_equal(found.predictions["val_scores"], found.interpolated.val_scores)


def test_a_head_that_began_fitted_is_averaged_too(cache: Cache) -> None:
    found, start, weights = tuned(cache, (0.0,), init_head="a run", refit=False)
    assert as_bytes(weights) == as_bytes(start)
    assert found.interpolated.to_json()["head"] == "averaged, as the rest"


def test_test_labels_do_not_decide_the_share(cache: Cache) -> None:
    def permuted(rows: TuningRows) -> TuningRows:
        return replace(rows, test=replace(rows.test, labels=1 - rows.test.labels))

    grid = (0.0, 0.5, 1.0)
    (first, _, weights), (second, _, others) = tuned(cache, grid), tuned(cache, grid, change=permuted)
    assert first.interpolated.candidates == second.interpolated.candidates
    assert as_bytes(weights) == as_bytes(others)


def test_numbers_out_of_range_are_refused() -> None:
    for given, message in (
        ({"wise_ft": (0.5, 1.1)}, "--wise-ft 1.1"),
        ({"l2_sp": 0.0}, "--l2-sp 0"),
        ({"l2_sp": float("nan")}, "--l2-sp nan"),
        ({"ewc": -1.0}, "--ewc -1"),
        ({"ewc": float("inf")}, "--ewc inf"),
    ):
        with pytest.raises(UsageError, match=message):
            Settings(**given)
