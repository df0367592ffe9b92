"""Methods and recipes: what ships can be read, what is not known is refused by name, flags go before recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from featcache.common.errors import UsageError, UserError
from finetune.comparison.asked_command import Asked, asked, duration, embed_words, new_compare_parser
from finetune.comparison.methods import method_of
from finetune.comparison.recipe import methods_of, read_recipe, recipe_of, shipped
from finetune.planning import make_plan

STAGES = ["stem", "layer1", "layer2", "layer3", "layer4"]


def settled(*flags: str) -> Asked:
    return asked(new_compare_parser().parse_args(list(flags)))


@pytest.mark.parametrize(
    ("what", "method"),
    [
        ("head", "head"),
        ("partial:layer4", "partial:layer4"),
        ("partial:layer3+layer4", "partial:layer3,layer4"),
        ("partial:last:2", "partial:layer3,layer4"),
        ("freeze:early", "freeze:early"),
        ("full", "full"),
        ("progressive", "progressive"),
        ("discriminative", "discriminative"),
        ("scratch", "scratch"),
    ],
)
def test_a_method_is_a_plan(what: str, method: str) -> None:
    assert make_plan(STAGES, "fc", lr=1e-3, **method_of(what).plan).method == method


def test_what_is_not_known_is_refused() -> None:
    for what, given, told in (
        ("logrge", {}, "did you mean logreg"),
        ("partial:", {}, "unknown method"),
        ("full", {"epocs": 3}, "did you mean epochs"),
        ("full", {"epochs": "3"}, "expected a value of the type int"),
        ("full", {"epochs": True}, "expected a value of the type int"),
        ("full", {"optimizer": "adamm"}, "did you mean adam"),
        ("full", {"lr": "fast"}, "range test"),
        ("full", {"trials": 0}, "from 1 to 9"),
        ("full", {"unfreeze": "all"}, "its name tells what trains"),
        ("logreg", {"epochs": 3}, "not trained by epochs"),
        ("logreg", {"fraction": 2.0}, "at most 1"),
    ):
        with pytest.raises(UsageError, match=told):
            method_of(what, given=given)


@pytest.mark.parametrize("name", shipped())
def test_recipes_that_ship(name: str) -> None:
    recipe = read_recipe(name)
    methods = methods_of(recipe.methods, recipe.training)
    assert recipe.about
    assert recipe.dataset
    assert methods[0].name == "logreg"
    for method in methods:
        if method.kind == "finetune":
            make_plan(STAGES, "fc", lr=1e-3, epochs=method.epochs, **method.plan)


def test_the_labs_settings_are_in_the_recipes() -> None:
    ways = {method.name: method for method in settled("--recipe", "fashion-three-ways").methods}
    assert [(ways[n].lr, ways[n].epochs) for n in ("feature extraction", "last stage + head", "full")] == [
        (1e-4, 2), (1e-5, 2), (1e-6, 2),
    ]  # fmt: skip
    assert {m.settings["optimizer"] for m in ways.values() if m.kind == "finetune"} == {"adam"}
    hybrid = make_plan(STAGES, "fc", lr=1e-4, **ways["hybrid"].plan)
    assert [(phase.epochs, pytest.approx(phase.factor)) for phase in hybrid.phases] == [(2, 1), (2, 0.1), (2, 0.01)]
    three = {method.name: method for method in settled("--recipe", "three-classes").methods}
    plan = make_plan(STAGES, "fc", lr=1e-3, epochs=15, **three["last stage at 1e-5"].plan)
    assert dict(plan.rates) == pytest.approx({"layer4": 1e-5, "fc": 1e-3})
    assert settled("--recipe", "three-classes").rows == {"classes": ("cat", "dog", "horse"), "per_class": 500}
    cifar = settled("--recipe", "cifar-fractions")
    assert cifar.fractions == (0.1, 0.2, 0.5)
    assert [m.name for m in cifar.methods_for("alexnet")] == ["logreg", "nothing frozen", "scratch"]
    assert len(cifar.methods_for("resnet18")) == 5


def test_flags_go_before_a_recipe() -> None:
    found = settled(
        "--recipe", "three-classes", "--dataset", "digits", "--backbone", "efficientnet_lite0", "--classes", "0,1",
        "--fraction", "0.5", "--epochs", "2", "--trials", "2", "--seeds", "2", "--seed", "4",
    )  # fmt: skip
    assert (found.dataset, found.backbones, found.seeds) == ("digits", ("efficientnet_lite0",), (4, 5))
    assert found.rows == {"classes": ("0", "1"), "fraction": 0.5}
    assert {(m.epochs, m.trials) for m in found.methods if m.kind == "finetune"} == {(2, 2)}
    assert settled("--recipe", "cifar-fractions", "--backbone", "resnet18").methods_for("resnet18")[2].name == "scratch"
    assert settled("--recipe", "fashion-three-ways", "--epochs", "3").methods[-1].plan.get("phase_epochs") is None
    arguments = new_compare_parser().parse_args([])
    words = embed_words(found, arguments, backbone="resnet18", preprocessing={"image_size": 64})
    assert {"--dataset=digits", "--backbone=resnet18", "--classes=0,1", "--fraction=0.5", "--image-size=64"} < set(
        words
    )


def test_broken_recipes_are_one_line(tmp_path: Path) -> None:
    for text, told in (
        ("methods = [", "no TOML"),
        ("metods = ['full']", "did you mean methods"),
        ("methods = 'full'", "expected a list"),
        ("seeds = 'three'", "expected a whole number"),
        ("[rows]\nper_class = 3", "did you mean per-class"),
        ("[training]\nrate = 1", "unknown key in recipe x, \\[training\\]"),
        ("[[method]]\nname = 'a'", "expected a table with what"),
        ("[[method]]\nwhat = 'ful'", "unknown method 'ful'"),
        ("[[method]]\nwhat = 'full'\n[[method]]\nwhat = 'full'", "two methods are called 'full'"),
        ("backbone = 'a'\nbackbones = ['b']", "exclude one another"),
    ):
        with pytest.raises(UserError, match=told):
            recipe_of(text, name="x")
    with pytest.raises(UsageError, match="did you mean three-classes"):
        read_recipe("three-clases")
    with pytest.raises(UserError, match="cannot be read"):
        read_recipe(str(tmp_path / "none.toml"))
    (tmp_path / "own.toml").write_text("methods = ['logreg', 'full']\n[training]\nepochs = 3\n")
    own = read_recipe(str(tmp_path / "own.toml"))
    assert [method.epochs for method in methods_of(own.methods, own.training)] == [None, 3]


def test_budgets() -> None:
    assert [duration(text) for text in ("90s", "30m", "1h30m", "2h")] == [90, 1800, 5400, 7200]
    for flags, told in (
        (["--methods", "full,full"], "two methods"),
        (["--seeds", "0"], "--seeds 0"),
        (["--fractions", "0.5,2"], "--fractions 2"),
        (["--backbone", "a", "--backbones", "b"], "exclude one another"),
        (["--backbones", "a,a"], "named twice"),
    ):
        with pytest.raises(UsageError, match=told):
            settled(*flags)
