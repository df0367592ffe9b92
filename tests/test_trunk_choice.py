"""Whether frozen stages run once: refused where they cannot, weighed where nothing was said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trunks import chosen, headed
from tuning import plan_for

from featcache.cache.cache_file import Cache
from featcache.common.errors import UsageError
from featcache.models.stages import StagedModel
from finetune import trunk_choice
from finetune.trunk_cost import TrunkCost


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
    assert choice.option.n_bytes == 52 * 192 * 2 * 2 * 4
    assert choice.option.saved_s == pytest.approx((3 * 40 * 2 + 52 - 52) * 0.8 - 7)
    assert choice.why.startswith("trunk cache on: the maps of layer3 would take 159,744 bytes (")
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
    monkeypatch.setattr(trunk_choice, "MAX_BYTES", 159_743)
    choice = chosen(cache, backbone, plan, "auto")
    assert choice.option is None
    assert "more than half of it or than 20 GB" in choice.why
