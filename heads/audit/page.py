"""An audit in; one self-contained HTML page with thumbnails out. Needs jinja2 (extra ``report``) and Pillow."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from featcache.errors import missing_extra
from featcache.images import Pixels
from featcache.printable import printable
from heads.audit.audit import Audit
from heads.audit.findings import KINDS, Finding

SIDE = 192  # pixels, of the longer side of a thumbnail

#: What a person can do about each kind.
ADVICE = {
    "label-conflict": "One of the two labels is wrong, or the image shows both.",
    "exact-duplicate": "A copy in train of an image in test makes the test accuracy too high.",
    "near-duplicate": "Resaved, resized or mirrored copies do the same as exact ones.",
    "wrong-label": "Look at each: heads are wrong, too. Mend it in the data set, or say yes in the column exclude.",
    "outlier": "Another thing than the classes show, a broken picture, or a rare but right one.",
    "look-alike": "Parts of one photograph, frames of one film, or merely alike; none is left out unless you say so.",
    "damaged": "Heads leave these rows out. Mend or remove the files, then run bin/embed again.",
    "nearly-one": "Merge the two, mend their labels, or get a backbone that tells them apart.",
    "few-rows": "Heads see little of these classes: add images, or try --class-weight balanced.",
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
