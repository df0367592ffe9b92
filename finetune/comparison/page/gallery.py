"""Images of a cache's data set in, as a network sees them; thumbnails with words for those who do not see them, out."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from featcache.cache.cache_file import Cache
from featcache.cache.file_format import OK
from featcache.maintenance.image_provenance import OriginalImages
from featcache.sources.decoding import Pixels
from featcache.sources.preprocessing import Preprocessing
from finetune.comparison.page.words import short
from heads.evidence.metrics import softmax
from heads.runs import Run

#: The side of a thumbnail in pixels, twice that in which the page shows it.
_SIDE = 192
_QUALITY = 82


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """An image as the page shows it: a JPEG, what it shows, and what is said below it."""

    jpeg: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Thumbnails of one class."""

    class_name: str
    thumbnails: tuple[Thumbnail, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class TestImages:
    """The test images of a cache, read when they are asked for.

    Attributes:
        originals: all of the cache.
        content: digests by id, as they were embedded.
        preprocessing: how a network sees them.
    """

    originals: OriginalImages
    content: Mapping[str, bytes]
    preprocessing: Preprocessing

    @classmethod
    def of(cls, cache: Cache) -> TestImages:
        """Find the data set of a cache again. Raises UserError where it is not there."""
        held = cache.splits["test"]
        return cls(
            originals=OriginalImages.of(cache),
            content={held.ids[row]: held.content[row].tobytes() for row in np.flatnonzero(held.status == OK).tolist()},
            preprocessing=Preprocessing.from_json(cache.encoder["preprocessing"]),
        )

    def jpegs(self, ids: Sequence[str]) -> dict[str, bytes]:
        """JPEGs after resizing and cropping, by id; images that changed since or can't be decoded are left out."""
        wanted = [("test", name, self.content[name]) for name in dict.fromkeys(ids) if name in self.content]
        return {wanted[position][1]: self._jpeg(pixels) for position, pixels in self.originals.pixels(wanted)}

    def _jpeg(self, pixels: Pixels) -> bytes:
        fitted = self.preprocessing.fit([pixels])[0].numpy()  # (1 or 3, S, S) uint8
        image = Image.fromarray(fitted[0] if len(fitted) == 1 else np.moveaxis(fitted, 0, -1))
        if image.width > _SIDE:
            image = image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_QUALITY)
        return buffer.getvalue()


def samples(images: TestImages, run: Run, *, n_classes: int = 20, each: int = 4, seed: int = 0) -> list[Sampled]:
    """Some test images of each class, drawn with the seed.

    Args:
        images: to draw from.
        run: whose test rows they are.
        n_classes: of the classes, the first so many.
        each: images of a class.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    labels, ids = run.predictions["test_labels"], run.predictions["test_ids"]
    drawn = []
    for label, class_name in enumerate(run.record["dataset"]["class_names"][:n_classes]):
        mine = rng.permutation(ids[labels == label])[:each].tolist()
        found = images.jpegs(mine)
        thumbnails = tuple(
            Thumbnail(jpeg=found[name], alt=f"test image {name} of class {class_name}")
            for name in mine
            if name in found
        )
        if thumbnails:
            drawn.append(Sampled(class_name=class_name, thumbnails=thumbnails))
    return drawn


def confident_mistakes(images: TestImages, run: Run, *, limit: int = 8) -> list[Thumbnail]:
    """The mistakes that a model was surest of, the surest first.

    Args:
        images: to show.
        run: its predictions.
        limit: of the images.
    """
    names = run.record["dataset"]["class_names"]
    rows = list(_surest_mistakes(run, limit))
    found = images.jpegs([name for name, *_ in rows])
    return [
        Thumbnail(
            jpeg=found[name],
            alt=f"test image {name}: {names[true]}, taken for {names[predicted]}",
            caption=f"{short(names[true])}, taken for {short(names[predicted])}{sure}",
        )
        for name, true, predicted, sure in rows
        if name in found
    ]


def _surest_mistakes(run: Run, limit: int) -> Iterator[tuple[str, int, int, str]]:
    """Ids, true and predicted class, and how sure: a probability where the model has them, in words."""
    scores, labels = run.predictions["test_scores"].astype(np.float64), run.predictions["test_labels"]
    predicted = scores.argmax(axis=1)
    top = np.sort(scores, axis=1)
    lead = top[:, -1] - top[:, -2]
    wrong = np.flatnonzero(predicted != labels)
    probable = run.record["metrics"]["test"]["log_loss"] is not None
    for row in wrong[np.argsort(-lead[wrong], kind="stable")][:limit].tolist():
        sure = f" ({softmax(scores[row : row + 1]).max():.0%})" if probable else ""
        yield str(run.predictions["test_ids"][row]), int(labels[row]), int(predicted[row]), sure
