"""An audit in; one self-contained HTML page with thumbnails out. Needs jinja2 (extra ``report``) and Pillow."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from featcache.common.errors import missing_extra
from featcache.common.printable import printable
from featcache.sources.decoding import Pixels
from heads.audit.audit import Audit
from heads.audit.findings import KINDS, Finding

SIDE = 192  # pixels, of the longer side of a thumbnail

#: What a person can do about each kind.
ADVICE = {
    "label-conflict": "The same picture with one label here and another there; the less likely one comes first.",
    "exact-duplicate": "Files of the same bytes. An image of test that is in train as well is no test.",
    "near-duplicate": "The same picture in other bytes: resaved, resized or mirrored. It leaks as exact copies do.",
    "wrong-label": "Heads that never saw these images contradict their labels, and may be wrong themselves. Mend "
    "labels in the data set, or write yes in the column exclude.",
    "outlier": "Images unlike all others: another thing than the classes, a broken picture, or a rare but right one.",
    "look-alike": "As close as copies in features, but not in pixels: parts of one photograph, frames of one film, or "
    "merely alike.",
    "damaged": "Rows without features, which heads leave out. Mend or remove the files, then run bin/embed again.",
    "nearly-one": "Heads hardly tell these two apart. Merge them, mend their labels, or take another backbone.",
    "few-rows": "Less than a tenth of the largest class's training rows. Add images, or try --class-weight balanced.",
}


@dataclass(frozen=True, kw_only=True)
class Card:
    """A finding as the page shows it, with thumbnails as data URLs; empty where there is no image to show."""

    finding: Finding
    rank: int
    picture: str
    other_picture: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """All findings of a kind, of which the first ones are shown."""

    kind: str
    title: str
    advice: str
    total: int
    cards: Sequence[Card]


def audit_page(audit: Audit, *, title: str, facts: Sequence[tuple[str, str]], top: int) -> str:
    """The page.

    Args:
        audit: what was found.
        title: its heading.
        facts: what was looked at: a name and a value each.
        top: findings that are shown of each kind; all are in ``findings.csv``.

    Raises:
        UserError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise missing_extra("jinja2", "report") from error
    ranks: dict[str, list[tuple[int, Finding]]] = {kind: [] for kind in KINDS}
    for rank, finding in enumerate(audit.findings, 1):
        ranks[finding.kind].append((rank, finding))
    pictures = _thumbnails(audit, [finding for each in ranks.values() for _, finding in each[:top]])
    sections = [
        Section(
            kind=kind,
            title=f"{KINDS[kind][0].upper()}{KINDS[kind][1:]}",
            advice=ADVICE[kind],
            total=len(each),
            cards=[
                Card(
                    finding=finding,
                    rank=rank,
                    picture=pictures.get((finding.split, finding.id), ""),
                    other_picture=pictures.get((finding.other_split, finding.other_id), ""),
                )
                for rank, finding in each[:top]
            ],
        )
        for kind, each in ranks.items()
        if each
    ]
    template = (files("heads.audit") / "page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["printable"] = printable
    clean = [KINDS[kind] for kind, each in ranks.items() if not each]
    return environment.from_string(template).render(
        title=title, facts=facts, sections=sections, clean=clean, notes=audit.notes, counts=audit.counts()
    )


def _thumbnails(audit: Audit, findings: Sequence[Finding]) -> dict[tuple[str, str], str]:
    """By split and id, the images of findings as data URLs, as far as they are at hand."""
    if audit.images is None:
        return {}
    wanted = {(f.split, f.id) for f in findings} | {(f.other_split, f.other_id) for f in findings}
    rows = [row for row in range(len(audit.rows)) if (audit.rows.split_of(row), audit.rows.ids[row]) in wanted]
    return {
        (audit.rows.split_of(row), audit.rows.ids[row]): _data_url(pixels) for row, pixels in audit.images.pixels(rows)
    }


def _data_url(pixels: Pixels) -> str:
    from PIL import Image

    image = Image.fromarray(pixels).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    if max(image.size) < SIDE // 2:  # small ones are enlarged without blur, so that their pixels can be seen
        factor = SIDE // max(image.size)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
