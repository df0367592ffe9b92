"""A run of ``bin/fit-head`` in; its linear head as the final layer that LP-FT starts from, checked to fit, out."""

from __future__ import annotations

from pathlib import Path

from featcache.cache.cache_file import Cache
from featcache.common.errors import UserError
from featcache.models.stages import StagedModel
from finetune.new_head import FinalLayer, folded
from heads.rows import Rows
from heads.runs import read_run
from heads.saved import load_head


def linear_start(folder: Path, *, cache: Cache, rows: Rows, staged: StagedModel) -> FinalLayer:
    """The head of a run as a final layer of the backbone whose features it was fitted on.

    Args:
        folder: the run's.
        cache, rows: what is to be trained on.
        staged: the backbone.

    Raises:
        UserError: the run is no linear head on these features, saw other rows, or saw the validation rows.
    """
    run = read_run(folder)
    told = run.record
    if told["kind"] != "head":
        raise UserError(f"--init-head {folder}: a run of the kind {told['kind']}, expected a head's")
    if told.get("encoder_fingerprint") != cache.encoder_fingerprint:
        raise UserError(
            f"--init-head {folder}: its features are another encoder's than those of {cache.path.name}: give its cache "
            "by --cache, or fit a head on this one"
        )
    if told["dataset"]["fingerprint"] != rows.fingerprint:
        raise UserError(
            f"--init-head {folder}: it was fitted on other rows: give both commands the same --seed, subset and "
            "--val-fraction"
        )
    if told["selection"].get("refit") is not False:
        raise UserError(
            f"--init-head {folder}: the head was refitted on the validation rows too, which must not have been seen: "
            "fit it with --no-refit"
        )
    head, _ = load_head(run.head)
    if head.n_features != staged.feature_dim:
        raise UserError(
            f"--init-head {folder}: it takes {head.n_features} features, {cache.encoder['backbone']} ends in "
            f"{staged.feature_dim}"
        )
    return folded(head)
