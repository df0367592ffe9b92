"""A TOML file, or the name of a recipe that ships, in; what is to be compared, checked key by key, out."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from featcache.common.errors import UsageError, UserError, one_of
from featcache.common.files import one_line, open_regular, size_of
from finetune.comparison.methods import TRAINING_KEYS, Method, method_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MAX_BYTES = 1 << 20
_NUMBER = (int, float)
_TOP: dict[str, type | tuple[type, ...]] = {
    "about": str, "dataset": str, "backbone": str, "backbones": list, "methods": list, "seeds": int,
    "fractions": list, "val-fraction": _NUMBER, "image-size": int, "resize": str, "rows": dict, "training": dict,
    "method": list,
}  # fmt: skip
_ROWS: dict[str, type | tuple[type, ...]] = {
    "classes": list, "per-class": int, "fraction": _NUMBER, "take": str, "limit": dict,
}  # fmt: skip


#: A method as it is asked for: its name in tables, what it is, and settings of its own.
Named = tuple[str, str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe asks for; what it leaves open is None or empty.

    Attributes:
        name: its own, or the file's.
        about: what it is, in a sentence.
        dataset, backbones, seeds, fractions, val_fraction, image_size, resize: as the flags of ``bin/compare``.
        methods: what is to be fitted, each as (name, what, its own settings).
        training: settings of all fine-tuning methods, by the names of ``bin/finetune``'s flags.
        rows: keyword arguments of `featcache.tables.subset.Subset`.
    """

    name: str
    about: str = ""
    dataset: str | None = None
    backbones: tuple[str, ...] = ()
    seeds: int | None = None
    fractions: tuple[float, ...] = ()
    val_fraction: float | None = None
    image_size: int | None = None
    resize: str | None = None
    methods: tuple[Named, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, Any] = field(default_factory=dict)


def shipped() -> list[str]:
    """The names of the recipes that ship."""
    folder = resources.files("finetune.comparison") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_recipe(asked: str) -> Recipe:
    """A recipe that ships, by name, or that a file holds.

    Raises:
        UsageError: neither, or a key that is unknown, or a value of another type.
        UserError: the file can't be read, or is no TOML.
    """
    if asked in shipped():
        text = (resources.files("finetune.comparison") / "recipes" / f"{asked}.toml").read_text("utf-8")
        return recipe_of(text, name=asked)
    path = Path(asked)
    if not asked.endswith(".toml") and "/" not in asked and not path.exists():
        raise one_of("recipe (nor is it a .toml file)", asked, shipped())
    try:
        with open_regular(path) as file:
            if size_of(file) > _MAX_BYTES:
                raise UserError(f"--recipe {path}: {size_of(file):,} bytes, expected {_MAX_BYTES:,} at most")
            text = file.read(_MAX_BYTES).decode()
    except OSError as error:
        raise UserError(f"--recipe {path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--recipe {path}: is no text in UTF-8") from error
    return recipe_of(text, name=path.stem)


def recipe_of(text: str, *, name: str) -> Recipe:
    """The recipe that TOML text tells. Raises as `read_recipe` does."""
    where = f"recipe {name}"
    try:
        told = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{where}: no TOML ({one_line(error)})") from error
    _check(where, told, _TOP)
    rows, training = told.get("rows", {}), told.get("training", {})
    _check(f"{where}, [rows]", rows, _ROWS)
    _check(f"{where}, [training]", training, TRAINING_KEYS)
    for key, kind in (("methods", str), ("backbones", str), ("fractions", _NUMBER)):
        _check_all(where, key, told.get(key, []), kind)
    _check_all(f"{where}, [rows]", "classes", rows.get("classes", []), str)
    _check_all(f"{where}, [rows]", "limit", list(rows.get("limit", {}).values()), int)
    if "backbone" in told and "backbones" in told:
        raise UsageError(f"{where}: backbone and backbones exclude one another: give one of them")
    methods: list[Named] = [(each, each, {}) for each in told.get("methods", [])]
    for number, table in enumerate(told.get("method", []), start=1):
        if not isinstance(table, dict) or not isinstance(table.get("what"), str):
            raise UsageError(f"{where}, [[method]] {number}: expected a table with what, such as what = 'full'")
        given = {key: value for key, value in table.items() if key not in ("name", "what")}
        label = table.get("name", table["what"])
        if not isinstance(label, str) or not label.strip():
            raise UsageError(f"{where}, [[method]] {number}: name = {label!r}, expected a text")
        methods.append((label, table["what"], given))
    recipe = Recipe(
        name=name,
        about=told.get("about", ""),
        dataset=told.get("dataset"),
        backbones=tuple(told.get("backbones", [told["backbone"]] if "backbone" in told else [])),
        seeds=told.get("seeds"),
        fractions=tuple(told.get("fractions", ())),
        val_fraction=told.get("val-fraction"),
        image_size=told.get("image-size"),
        resize=told.get("resize"),
        methods=tuple(methods),
        training=training,
        rows={key.replace("-", "_"): tuple(v) if key == "classes" else v for key, v in rows.items()},
    )
    methods_of(recipe.methods, recipe.training)  # so that what is wrong in it is told before anything is done
    return recipe


def methods_of(
    asked: Sequence[Named], training: Mapping[str, Any], override: Mapping[str, Any] = {}
) -> tuple[Method, ...]:
    """Methods with what is said of all fine-tuning, of each, and on the command line; the later goes before.

    Raises:
        UsageError: as `method_of` does, or two methods of one name.
    """
    found = []
    for name, what, own in asked:
        shared = {} if method_of(what).kind == "head" else training
        late = {} if method_of(what).kind == "head" else override
        if "epochs" in late:
            own = {key: value for key, value in own.items() if key != "phase-epochs"}
        found.append(method_of(what, name=name, given={**shared, **own, **late}))
    names = [method.name for method in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two methods are called {name!r}: give each a name of its own")
    return tuple(found)


def _check(where: str, told: Mapping[str, Any], known: Mapping[str, type | tuple[type, ...]]) -> None:
    for key, value in told.items():
        if key not in known:
            raise one_of(f"key in {where}:", key, list(known))
        _check_type(where, key, value, known[key])


def _check_all(where: str, key: str, values: Sequence[Any], kind: type | tuple[type, ...]) -> None:
    for value in values:
        _check_type(where, f"each of {key}", value, kind)


def _check_type(where: str, key: str, value: Any, kind: type | tuple[type, ...]) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        names = {str: "a text", int: "a whole number", list: "a list", dict: "a table"}
        expected = names[kind] if isinstance(kind, type) else "a number"
        raise UsageError(f"{where}: {key} is {one_line(repr(value))}, expected {expected}")
