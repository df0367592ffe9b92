"""Images and what is asked of a run in; all of them labelled, in a stream or in a file that is gone on with, out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from heads.serving.inputs import Inputs
from heads.serving.predicting import Predicting, mark_of
from heads.serving.predictions import Prediction, Writer
from heads.serving.resumable_file import check_unchanged, resumed

Progress = Callable[[int], None]
_CLASS = "class "


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What labelling came to.

    Attributes:
        classes: images by class.
        abstained: images whose class was left open.
        damaged: images without features.
        done_before: of all these, the ones that an earlier try had done.
    """

    classes: Mapping[str, int]
    abstained: int
    damaged: int
    done_before: int = 0

    @property
    def images(self) -> int:
        """All of them."""
        return sum(self.classes.values()) + self.abstained + self.damaged


def label_to_stream(asked: Predicting, inputs: Inputs, writer: Writer, stream: BinaryIO, on_done: Progress) -> Labelled:
    """Write a line an image as they come; ``on_done`` is called with how many are done."""
    counts: Counter[str] = Counter()
    stream.write(writer.header().encode())
    for batch in asked.batches(inputs.paths()):
        text = "".join(map(writer.line, batch.predictions))
        stream.write(text.encode(errors="backslashreplace"))
        stream.flush()
        _count(counts, batch.predictions)
        on_done(counts.total())
    return _labelled(asked, counts)


def label_to_file(
    asked: Predicting,
    inputs: Inputs,
    writer: Writer,
    path: Path,
    *,
    format_name: str,
    anew: bool,
    on_done: Progress,
    on_note: Callable[[str], None],
) -> Labelled:
    """Write a file, or go on with it where it was broken off.

    Args:
        asked, inputs: which run, what of it, and the images.
        writer, format_name: how a line is written.
        path: of the file; it appears when it is whole.
        anew: whether to begin anew, over what is there.
        on_done: called with how many images are done.
        on_note: called with sentences for the user.

    Raises:
        UserError: as `resumed` and `check_unchanged` do.
    """
    job = {
        "run": asked.run.fingerprint,
        "--format": format_name,
        "--top": asked.top,
        "--abstain": asked.abstain,
        "--neighbors": asked.neighbors,
    }
    with resumed(path, job, header=writer.header(), anew=anew) as made:
        paths, before = inputs.paths(), made.progress.items
        if before:
            check_unchanged(made, map(mark_of, paths))
            on_note(f"{path}: going on after {before:,} images")
        counts = Counter(made.progress.counts)
        on_done(before)
        for batch in asked.batches(paths):
            _count(counts, batch.predictions)
            made.append("".join(map(writer.line, batch.predictions)), batch.marks, counts)
            on_done(made.progress.items)
        made.publish()
    return _labelled(asked, counts, done_before=before)


def _count(counts: Counter[str], predictions: Sequence[Prediction]) -> None:
    for each in predictions:
        state = "damaged" if each.error else "abstained" if each.abstained else f"{_CLASS}{each.class_name}"
        counts[state] += 1


def _labelled(asked: Predicting, counts: Mapping[str, int], done_before: int = 0) -> Labelled:
    return Labelled(
        classes={name: counts.get(f"{_CLASS}{name}", 0) for name in asked.run.class_names},
        abstained=counts.get("abstained", 0),
        damaged=counts.get("damaged", 0),
        done_before=done_before,
    )
