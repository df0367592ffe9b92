"""A loaded run in; whether today's stack still makes the features that its head was fitted on out."""

from __future__ import annotations

from pathlib import Path

from featcache.cache.cache_file import Cache
from featcache.cache.canary import Canary, compare, stored_canary
from featcache.common.errors import CacheError, UserError
from featcache.common.files import one_line
from featcache.common.machine import versions
from heads.run_canary import read_canary
from heads.serving.loaded_run import LoadedRun


def refuse_drift(run: LoadedRun, *, cache_dir: Path) -> str:
    """Embed the shipped pictures and compare with what the run keeps of them, or else with what its caches hold.

    Args:
        run: as loaded; its engines are set up.
        cache_dir: where the caches may still be.

    Returns:
        A sentence on what was compared, or why nothing could be.

    Raises:
        UserError: the features are further apart than the precision allows.
    """
    then, why = read_canary(run.folder, n_encoders=len(run.embeddings)), ""
    try:
        then = then or _of_caches(run, cache_dir)
    except CacheError as error:
        why = f" ({error})"
    if then is None:
        missing = f"the run keeps none, and its cache is not at hand{why}"
        return f"CANARY NOT CHECKED: {missing}; features may have drifted unseen"
    told = []
    recorded = _engines(run)
    for embedding, before, engine in zip(run.embeddings, then, recorded, strict=True):
        across = embedding.engine != engine
        drift = compare(before, embedding.canary(), precision=embedding.precision, across_engines=across)
        if drift.is_drift:
            raise UserError(
                f"{run.folder}: today's stack makes other features than its head was fitted on: {drift}"
                f"{_changed(run)}; go back to what made it, or embed and fit anew"
            )
        told.append(f"{drift.relative:.2g}")
    return f"canary agrees: features differ by {', '.join(told)} of their norm at most"


def _engines(run: LoadedRun) -> list[str]:
    """By which each encoder's features were made; a fine-tuned model's always by eager."""
    if run.record["kind"] == "finetune":
        return ["eager"]
    encoder = run.record["encoder"]
    return [str(each["engine"]) for each in encoder.get("parts", [encoder])]


def _of_caches(run: LoadedRun, cache_dir: Path) -> tuple[Canary, ...] | None:
    if run.record["kind"] == "finetune":
        return None
    return tuple(stored_canary(cache) for cache in caches_of_run(run, cache_dir))


def caches_of_run(run: LoadedRun, cache_dir: Path) -> tuple[Cache, ...]:
    """The caches that a head was fitted on.

    Raises:
        CacheError: one is gone from the folder, damaged, or another than it was.
    """
    told = run.record["cache"]
    caches = []
    for part in told.get("parts") or [told]:
        name, fingerprint = str(part["file"]), part["fingerprint"]
        if Path(name).name != name:  # a run may come from a stranger
            raise CacheError(f"{run.folder}: run.json names a cache {one_line(name)}, which is no file's name")
        cache = Cache.open(cache_dir / name)
        if cache.fingerprint != fingerprint:
            raise CacheError(f"{cache.path}: it is not the cache that {run.folder} was fitted on; embed that one again")
        caches.append(cache)
    return tuple(caches)


def _changed(run: LoadedRun) -> str:
    before, now = run.record["environment"], versions()
    changed = [
        f"{name} {one_line(before.get(name))} then, {now[name]} now" for name in now if before.get(name) != now[name]
    ]
    return f" ({'; '.join(changed)})" if changed else ""
