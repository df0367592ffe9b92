"""Checkpoints: a training that is gone on with ends with the bits of one that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import Stop
from trained import ALL_RANDOM, assert_same, stop_at, timeless
from tuning import plan_for, quick, tiny, weights_of

from featcache.common.errors import UserError

pytestmark = pytest.mark.usefixtures("a_checkpoint_each_epoch")


@pytest.mark.parametrize("given", [ALL_RANDOM, {"optimizer": "sgd"}], ids=["adamw", "sgd"])
def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, given: dict[str, Any]) -> None:
    """Before, at and after every thaw: weights, statistics, history and choice are those of a training in one go."""
    flags = {"progressive": True, "phase_epochs": [2, 1, 1, 1, 2], "epochs": None, "batch_norm": "train"}
    whole = tiny()
    plan = plan_for(whole, **flags)
    expected = quick(whole, plan, **given)
    for epoch in range(1, plan.epochs + 1):
        first, second = tiny(), tiny()
        where = {"checkpoint": tmp_path / f"{epoch}.pt", "fingerprint": "this"}
        with pytest.raises(Stop):
            quick(first, plan, on_epoch=stop_at(epoch), **where, **given)
        done = quick(second, plan, resume=True, **where, **given)
        assert_same(weights_of(second), weights_of(whole))
        assert timeless(done.history) == timeless(expected.history)
        assert done.best_epoch == expected.best_epoch
        np.testing.assert_array_equal(done.val_scores, expected.val_scores)


def test_several_interruptions_and_none_at_all(tmp_path: Path) -> None:
    whole, torn = tiny(), tiny()
    plan = plan_for(whole, progressive=True, epochs=6)
    quick(whole, plan)
    for epoch in (1, 2, 4):
        torn = tiny()
        with pytest.raises(Stop):
            quick(torn, plan, on_epoch=stop_at(epoch), checkpoint=tmp_path / "c.pt", resume=True)
    torn = tiny()
    quick(torn, plan, checkpoint=tmp_path / "c.pt", resume=True)
    assert_same(weights_of(torn), weights_of(whole))
    again = tiny()
    done = quick(again, plan, checkpoint=tmp_path / "c.pt", resume=True)  # nothing is left to do
    assert_same(weights_of(again), weights_of(whole))
    assert len(done.history) == 6


def test_checkpoints_of_other_trainings_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    staged, path = tiny(), tmp_path / "c.pt"
    plan = plan_for(staged)
    quick(staged, plan, checkpoint=path, fingerprint="one")
    assert [each.name for each in tmp_path.iterdir()] == ["c.pt"]
    with pytest.raises(UserError, match="of other settings"):
        quick(tiny(), plan, checkpoint=path, fingerprint="two", resume=True)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged checkpoint"):
        quick(tiny(), plan, checkpoint=path, fingerprint="one", resume=True)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="damaged checkpoint"):
        quick(tiny(), plan, checkpoint=path, fingerprint="one", resume=True)
