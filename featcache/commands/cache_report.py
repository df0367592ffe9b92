"""Print what ``bin/cache`` found, as lines and tables on a console."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featcache.commands.console import Console
from featcache.common.hashing import Fields
from featcache.maintenance.differences import Differences, SplitDifferences
from featcache.maintenance.inventory import Entry

#: So many examples or classes are shown; ``--json`` has all.
_FEW = 5
_MANY = 40


def tell_inventory(console: Console, folder: Path, entries: Sequence[Entry]) -> None:
    """The table of ``ls``."""
    if not entries:
        console.note(f"{folder}: no caches; bin/embed makes one")
        return
    columns = ("file", "data set", "backbone", "rows", "size", "age", "sealed")
    lines = [
        (
            each.path.name,
            each.dataset or "–",
            each.backbone or "–",
            f"{each.rows:,}" if each.rows else "–",
            size(each.n_bytes),
            age(time.time() - each.time) if each.time else "–",
            _state(each),
        )
        for each in entries
    ]
    console.table(f"{folder}: {size(sum(each.n_bytes for each in entries))}", columns, lines)
    for each in entries:
        if each.reason:
            console.note(f"{each.path.name}: {each.reason}")


def _state(entry: Entry) -> str:
    if entry.state == "sealed":
        return "yes"
    share = "unreadable" if entry.state == "unreadable" else f"{100 * entry.rows_done // max(1, entry.rows)} %"
    return f"{share}, at work now" if entry.in_use else share


def tell_description(console: Console, told: Mapping[str, Any]) -> None:
    """What ``info`` says; ``told`` as ``describe`` gives it."""
    provenance = told["provenance"]
    console.note(f"{told['file']}: {told['bytes']:,} bytes, {'sealed' if told['sealed'] else 'in the making'}")
    shown = ("fingerprint", "root_digest", "sealed", "reused", "resumed_on", "command")
    facts = {name: value for name, value in provenance.items() if name not in shown}
    for title, fields in (("encoder", told["encoder"]), ("provenance", facts)):
        console.note(f"{title}:")
        for name, value in _flat(fields).items():
            console.note(f"  {name}: {_told(value)}")
    console.note(f"  command: {shlex.join(map(str, provenance['command'])) or 'not recorded'}")
    for name in ("reused", "resumed_on"):
        for value in provenance.get(name) or ():
            console.note(f"  {name}: {_told(value)}")
    for name in ("fingerprint", "encoder_fingerprint", "root_digest"):
        console.note(f"{name}: {told[name]}")
    for name, split in told["splits"].items():
        _tell_split(console, name, split)
    if told["sealed"]:
        _tell_classes(console, told)


def _tell_split(console: Console, name: str, split: Mapping[str, Any]) -> None:
    shape = " x ".join(map(str, split["row_shape"]))
    missing = split["rows"] - split["rows_done"]
    of_rows = f", {split['rows_done']:,} of them done" if missing else ""
    console.note(f"{name}: {split['rows']:,} rows of {shape}{of_rows} ({split['features_bytes']:,} bytes of features)")
    for each in split.get("origin", ()):
        if each["file"] is not None:
            console.note(f"  {each['rows']:,} rows copied from {each['file']}")
    if split.get("unlabelled"):
        console.note(f"  {split['unlabelled']:,} rows without a label")
    damaged = split.get("damaged", ())
    if damaged:
        console.note(f"  {len(damaged):,} rows without features:")
    for each in damaged[:_MANY]:
        console.note(f"    {each['id']}: {each['reason']}")
    _and_more(console, len(damaged) - _MANY, "    ")


def _tell_classes(console: Console, told: Mapping[str, Any]) -> None:
    splits = told["splits"]
    lines = [
        (name, *(f"{split['classes'][label]['rows']:,}" for split in splits.values()))
        for label, name in enumerate(told["class_names"])
    ]
    console.table(f"rows of {len(lines):,} classes", ("class", *splits), lines[:_MANY])
    _and_more(console, len(lines) - _MANY, "")


def _and_more(console: Console, count: int, indent: str) -> None:
    if count > 0:
        console.note(f"{indent}and {count:,} more (--json has all)")


def tell_differences(console: Console, a: Path, b: Path, found: Differences) -> None:
    """What ``diff`` says."""
    for title, fields in (("encoder", found.encoder), ("data", found.data)):
        _tell_fields(console, title, fields)
    for name, split in found.splits.items():
        _tell_split_differences(console, name, split, (a.name, b.name))
    if found.none:
        console.note("same encoder and rows")


def _tell_fields(console: Console, title: str, fields: Fields) -> None:
    for name, (one, other) in fields.items():
        console.note(f"{title}: {name} is {_told(one)} in A, {_told(other)} in B")


def _tell_split_differences(console: Console, name: str, split: SplitDifferences, names: tuple[str, str]) -> None:
    if split.largest is None:
        agreement = "no features to compare"
    elif split.largest == 0:
        agreement = f"the features of {split.compared:,} agree to the bit"
    else:
        agreement = f"the features of {split.compared:,} differ by at most {split.largest:.2g} of their norm"
    console.note(f"{name}: {split.common:,} common rows (same id and content); {agreement}")
    for words, ids in (
        (f"only in A ({names[0]})", split.only_a),
        (f"only in B ({names[1]})", split.only_b),
        ("of other content", split.other_content),
        ("of another class", split.other_label),
    ):
        if ids:
            more = f" and {len(ids) - _FEW:,} more" if len(ids) > _FEW else ""
            console.note(f"  {len(ids):,} rows {words}: {', '.join(ids[:_FEW])}{more}")


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return flat


def _told(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 400 else f"{text[:400]}… ({len(text):,} letters)"


def size(n_bytes: int) -> str:
    """Bytes in the unit that fits, of 1,000 each."""
    value, units = float(n_bytes), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:,.0f} {units[0]}" if units[0] == "bytes" else f"{value:,.1f} {units[0]}"


def age(seconds: float) -> str:
    """Time gone by in the unit that fits."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
