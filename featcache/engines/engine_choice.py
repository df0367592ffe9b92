"""Choose the engine, precision and batch size that an embedding leaves open, and say why.

What is there decides first: a finished cache, or one in the making. Else a probe does: the seconds that images still to
be embedded take by eager, against those that a faster engine takes with its set-up. How long a set-up takes and what
it gains is remembered; the first time it is guessed, and a wrong guess costs one set-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from featcache.build.reuse import count_known
from featcache.cache.cache_file import Cache
from featcache.common import hashing, user_cache
from featcache.common.errors import CacheError, UserError
from featcache.common.locks import partial_path
from featcache.common.machine import device_name, fast_precision, versions
from featcache.engines.backends import ENGINES, INT8, unavailable
from featcache.engines.fidelity_gate import Gate, Prepared

if TYPE_CHECKING:
    from featcache.embedding.job import Embedding

#: Until this machine has measured its own: seconds of set-up, and the rate as a multiple of eager's.
GUESSES = {"eager": (0.0, 1.0), "openvino": (8.0, 2.0), "compile": (30.0, 1.3)}


def settle(embedding: Embedding, *, on_note: Callable[[str], None] = lambda note: None) -> Embedding:
    """Decide what is left open.

    Args:
        embedding: its ``engine``, ``precision`` and ``batch_size`` may each be open (``auto``, ``auto``, None).
        on_note: called with sentences on the choice and what decided it.

    Returns:
        The same with all three settled, and with the engine set up unless the cache is finished.

    Raises:
        UserError: what was asked for can't be had here, or is not faithful enough to fp32 eager.
    """
    left_open = tuple(name for name in ("engine", "precision") if getattr(embedding, name) == "auto")
    settled = replace(embedding, left_open=left_open)
    asked = [replace(settled, engine=e, precision=p) for p in _precisions(embedding) for e in _engines(embedding, p)]
    refused = [unavailable(c.engine, c.precision, c.device) for c in asked]
    if (reason := refused[0]) is not None and all(refused):
        raise reason
    unreadable: CacheError | None = None
    for candidate in asked:
        try:
            if candidate.finished() is not None:
                return _with_batch(candidate)
        except CacheError as error:  # that of another engine may be whole
            unreadable = unreadable or error
    if unreadable is not None:
        raise unreadable
    here = [candidate for candidate, reason in zip(asked, refused, strict=True) if reason is None]
    gate = Gate(_with_batch(embedding))
    for candidate in here:
        if batch := _batch_in_the_making(candidate):
            on_note(f"going on with {candidate.engine} in {candidate.precision}, as the build was begun")
            try:
                return _tried([_with_batch(candidate, batch)], gate, on_note)
            except UserError as error:
                if embedding.engine != "auto":
                    raise
                on_note(f"beginning anew: {error}")
    for precision in dict.fromkeys(candidate.precision for candidate in here):
        try:
            return _tried([_with_batch(c) for c in here if c.precision == precision], gate, on_note)
        except UserError as error:
            if embedding.precision != "auto" or precision == "fp32":
                raise
            on_note(str(error))
    raise AssertionError(here)


def settle_together(embedding: Embedding, *, on_note: Callable[[str], None]) -> Embedding:
    """As ``settle``, by the first of several ranks for all; the others set up what it chose."""
    if embedding.ranks.is_first:
        embedding = settle(embedding, on_note=on_note)
    names = ("engine", "precision", "batch_size")
    told = embedding.ranks.share([getattr(embedding, name) for name in names])
    settled = embedding if embedding.ranks.is_first else replace(embedding, **dict(zip(names, told, strict=True)))
    embedding.ranks.require_same(settled.plan.fingerprint, "weights or settings")
    return settled


def default_batch(device: torch.device) -> int:
    """Images a forward pass: on a CPU few, since what larger batches need falls out of its caches."""
    return 256 if device.type == "cuda" else 16


def _precisions(embedding: Embedding) -> list[str]:
    if embedding.precision != "auto":
        return [embedding.precision]
    return list(dict.fromkeys([fast_precision(embedding.device), "fp32"]))


def _engines(embedding: Embedding, precision: str) -> Sequence[str]:
    if embedding.engine != "auto":
        return [embedding.engine]
    return ["openvino"] if precision == INT8 else ENGINES


def _with_batch(candidate: Embedding, batch: int | None = None) -> Embedding:
    return replace(candidate, batch_size=candidate.batch_size or batch or default_batch(candidate.device))


def _batch_in_the_making(candidate: Embedding) -> int | None:
    """The batch size of the interrupted build of this very cache; None if there is none that can be resumed.

    Raises:
        CacheError: there is one that may be sound, but can't be opened; another batch size would begin it anew.
    """
    try:
        cache = Cache.open_unsealed(partial_path(candidate.path))
    except CacheError as error:
        if error.may_be_sound:
            raise
        return None
    batch = int(cache.provenance["batch"])
    is_same = cache.fingerprint == candidate.plan.fingerprint and candidate.batch_size in (None, batch)
    return batch if is_same else None


def _tried(candidates: Sequence[Embedding], gate: Gate, on_note: Callable[[str], None]) -> Embedding:
    """The candidate by which the set is done first, set up; engines are tried while they promise to be faster.

    Raises:
        UserError: none of them is faithful.
    """
    fingerprints = [candidate.plan.encoder_fingerprint for candidate in candidates]
    known = count_known(candidates[0].cache_dir, candidates[0].plan.content, fingerprints)
    images = {c.engine: (len(c.dataset) - n) * c.views_per_image for c, n in zip(candidates, known, strict=True)}
    left = {candidate.engine: candidate for candidate in candidates}
    expected = {engine: _expected(candidate) for engine, candidate in left.items()}
    tried: dict[str, Prepared] = {}
    refused: UserError | None = None
    while left:
        engine = "eager" if "eager" in left else min(left, key=lambda e: _seconds(e, images, expected, tried))
        best = min((images[e] / _rate(prepared) for e, prepared in tried.items()), default=None)
        if best is not None and _seconds(engine, images, expected, tried) >= best:
            break
        candidate = left.pop(engine)
        try:
            tried[engine] = gate.passed(candidate, timed=len(candidates) > 1)
        except UserError as error:
            if engine == "eager":  # all engines round the same weights
                raise
            refused = error
            if left or tried:
                on_note(str(error))
                _remember(candidate, 0.0, 0.0)
        else:
            if (eager := tried.get("eager")) and engine != "eager":
                _remember(candidate, tried[engine].setup_s, _rate(tried[engine]) / _rate(eager))
    if not tried:
        raise refused or AssertionError(candidates)
    best_engine = min(tried, key=lambda e: images[e] / _rate(tried[e]))
    chosen = next(candidate for candidate in candidates if candidate.engine == best_engine)
    on_note(_told(chosen, tried))
    return replace(chosen, prepared=tried[best_engine])


def _seconds(
    engine: str, images: dict[str, int], expected: dict[str, tuple[float, float]], tried: dict[str, Prepared]
) -> float:
    """What an engine that was not tried yet would take for the images that it has to embed, its set-up included."""
    setup_s, gain = expected[engine]
    if "eager" not in tried:
        return 0.0
    return setup_s + images[engine] / (_rate(tried["eager"]) * gain) if gain > 0 else math.inf


def _rate(prepared: Prepared) -> float:
    """Images/s in the probe; any number serves where there was none, for want of others to compare with."""
    return prepared.images_per_s or 1.0


def _memory_name(candidate: Embedding) -> str:
    """What set-up and gain depend on."""
    told = [candidate.plan.encoder_fingerprint, candidate.pass_images, versions(), device_name(candidate.device)]
    return f"engine-{hashing.fingerprint([*told, torch.get_num_threads()])}"


def _expected(candidate: Embedding) -> tuple[float, float]:
    known = user_cache.recall(_memory_name(candidate))
    guess = GUESSES[candidate.engine]
    try:
        return float(known["setup_s"]), float(known["gain"])
    except (KeyError, TypeError, ValueError):
        return guess


def _remember(candidate: Embedding, setup_s: float, gain: float) -> None:
    """For the next probe; a gain of 0 is that of an engine that was refused."""
    user_cache.remember(_memory_name(candidate), {"setup_s": round(setup_s, 3), "gain": round(gain, 3)})


def _told(chosen: Embedding, tried: dict[str, Prepared]) -> str:
    """The choice in one line."""
    rates = ", ".join(f"{engine} {each.images_per_s:,.0f}" for engine, each in tried.items() if each.images_per_s)
    probe = f" (a probe of the forward pass alone, images/s: {rates})" if rates else ""
    fidelity = tried[chosen.engine].fidelity
    faith = f"; {fidelity}" if fidelity else ""
    return f"engine {chosen.engine}, precision {chosen.precision}, {chosen.pass_images} images a pass{probe}{faith}"
