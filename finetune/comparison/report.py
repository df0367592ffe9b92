"""A comparison in; a self-contained page of its verdict, tables and pictures, and the pictures beside it, out.

Needs the ``report`` extra. Whatever comes from a data set or a run (names, ids, messages) is text on the page, never
markup; the page loads nothing and its policy lets no other script or style run than its own.
"""

from __future__ import annotations

import base64
import hashlib
import os
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.common.disk import explained, sync_folder
from featcache.common.errors import missing_extra
from finetune.comparison.page.sections import Shown, facts_of, sections_of
from finetune.comparison.results import Comparison

if TYPE_CHECKING:
    from finetune.comparison.page.embedding_map import Projection

FILE_NAME = "report.html"


def write_report(
    comparison: Comparison, folder: Path, *, cache_dir: Path | None = None, projection: Projection = "pca"
) -> Path:
    """Write ``report.html`` and its pictures as PNGs into a folder, each file whole or not at all, the page last.

    The same comparison gives the same page.

    Args:
        comparison: whose runs are read where they still are; what can't be read is named on the page.
        folder: where the files go; it is made where there is none.
        cache_dir: where the caches lie that the runs come from; without them the page has no images and no map of
            the embedding.
        projection: how the map of the embedding is made.

    Returns:
        The path of the page.

    Raises:
        UserError: jinja2 is not installed, the folder can't be written, or ``umap`` was asked for and is not there.
    """
    if find_spec("jinja2") is None:
        raise missing_extra("jinja2", "report")
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if find_spec("matplotlib") is None:
        why = "matplotlib is not installed: pip install 'featcache[report]'"
        shown = Shown(lacking=(("Pictures", why),))
    else:
        from finetune.comparison.page.pictures import draw_all

        shown = draw_all(comparison, cache_dir=cache_dir, projection=projection)
    page = _rendered(comparison, shown)
    with explained(folder):
        for picture in shown.pictures:
            _publish(folder / f"{picture.name}.png", picture.light)
        _publish(folder / FILE_NAME, page.encode())
        sync_folder(folder)
    return folder / FILE_NAME


def _rendered(comparison: Comparison, shown: Shown) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    source = files("finetune.comparison.page")
    style, script = ((source / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["png"] = lambda data: _data_uri("png", data)
    environment.filters["jpeg"] = lambda data: _data_uri("jpeg", data)
    template = environment.from_string((source / "report.html.jinja").read_text(encoding="utf-8"))
    dataset = str(comparison.dataset.get("name", comparison.name))
    return template.render(
        title=f"{comparison.name}: is fine-tuning worth it on {dataset}?",
        kicker=f"A comparison by featcache: {comparison.name}",
        dataset=dataset,
        sentences=comparison.verdict.sentences,
        facts=facts_of(comparison),
        sections=sections_of(comparison, shown),
        footer="Intervals are of 95 %. Times are of the machine that ran it. Pictures lie beside this page as PNGs.",
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash_of(style),
        script_hash=_hash_of(script),
    )


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _hash_of(text: str) -> str:
    """As a Content-Security-Policy names what it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _publish(path: Path, data: bytes) -> None:
    """Write a file under another name, sync it, and rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
