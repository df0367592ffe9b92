"""Cached features of test rows in; a map of them in two dimensions, coloured by class, out."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from featcache.cache.cache_file import Cache
from featcache.common.errors import UserError, one_of
from finetune.comparison.page.style import MARKERS, Mark, Picture, Theme, legend_below, picture
from finetune.comparison.page.words import short
from heads.runs import Run

Projection = Literal["pca", "tsne", "umap"]
#: More rows than this are thinned out at random; more classes than this are drawn in one grey.
_MAX_ROWS, _MAX_CLASSES = 2000, 10
_TITLES = {"pca": "principal components", "tsne": "t-SNE", "umap": "UMAP"}


def check_projection(projection: Projection) -> None:
    """Refuse a projection that can't be made.

    Raises:
        UsageError: it is unknown.
        UserError: it is ``umap``, and umap-learn is not installed.
    """
    if projection not in get_args(Projection):
        raise one_of("projection", projection, list(get_args(Projection)))
    if projection == "umap" and find_spec("umap") is None:
        raise UserError("umap-learn is not installed: pip install umap-learn, or take pca or tsne")


def map_picture(cache: Cache, run: Run, *, projection: Projection = "pca", suffix: str = "") -> Picture | None:
    """Draw the features of the run's test rows in two dimensions; None of fewer than three rows.

    Args:
        cache: of vectors, that the run's rows come from; of views the plain one is taken.
        run: its test ids and labels.
        projection: principal components, t-SNE (van der Maaten and Hinton 2008, JMLR 9), or UMAP (McInnes et al. 2018,
            arXiv:1802.03426) where umap-learn is installed.
        suffix: of the picture's name.

    Raises:
        CacheError: a block of the cache is damaged.
    """
    names = run.record["dataset"]["class_names"]
    features, labels = _test_features(cache, run)
    if len(labels) < 3:
        return None
    flat, share = _projected(features, projection)
    counts = np.bincount(labels, minlength=len(names))
    shown = np.argsort(-counts, kind="stable")[:_MAX_CLASSES]
    shown = np.sort(shown[counts[shown] > 0])

    def draw(axes: Axes, theme: Theme) -> None:
        rest = ~np.isin(labels, shown)
        dots: dict[str, Any] = {"s": 15 if len(labels) < 600 else 7, "linewidths": 0, "alpha": 0.75}
        if rest.any():
            axes.scatter(*flat[rest].T, color=theme.muted, label="other classes", **{**dots, "alpha": 0.25})
        for number, label in enumerate(shown.tolist()):
            color, marker = Mark(number).color(theme), MARKERS[number % len(MARKERS)]
            axes.scatter(*flat[labels == label].T, color=color, marker=marker, label=short(names[label], 16), **dots)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set(xlabel=f"{_TITLES[projection]}, first axis", ylabel="second axis")
        legend_below(axes, theme)

    spread = f" The two components hold {share:.0%} of the variance." if share is not None else ""
    thinned = f" {len(labels):,} rows drawn at random." if len(labels) < len(run.predictions["test_ids"]) else ""
    caption = "Each mark is a test image, placed by its features alone and coloured by its class."
    return picture(
        f"map{suffix}",
        draw,
        title=f"Map of the embedding ({_TITLES[projection]})",
        caption=f"{caption}{spread}{thinned}",
        alt=f"Scatter plot of {len(labels):,} test images by the first two axes of {_TITLES[projection]} of their "
        f"features, coloured by class.{spread} Share of images whose nearest neighbour on the map is of their class: "
        f"{_purity(flat, labels):.0%}.",
        height=4.3,
    )


def _test_features(cache: Cache, run: Run) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(N, D) and (N,) of the run's test rows."""
    split = cache.splits["test"]
    at = {name: row for row, name in enumerate(split.ids)}
    rows, labels = [], []
    for name, label in zip(run.predictions["test_ids"].tolist(), run.predictions["test_labels"].tolist(), strict=True):
        if name in at:
            rows.append(at[name])
            labels.append(label)
    taken = np.arange(len(rows))
    if len(rows) > _MAX_ROWS:
        taken = np.sort(np.random.default_rng(0).permutation(len(rows))[:_MAX_ROWS])
    features = split.load(np.array(rows, np.int64)[taken])
    return features[:, 0] if cache.encoder["views"] else features, np.array(labels, np.int64)[taken]


def _projected(features: NDArray[np.float32], projection: Projection) -> tuple[NDArray[np.floating[Any]], float | None]:
    """(N, 2), and the share of the variance that they hold where that can be said."""
    from sklearn.decomposition import PCA

    if projection == "pca":
        pca = PCA(n_components=2, svd_solver="full").fit(features)
        return pca.transform(features), float(pca.explained_variance_ratio_.sum())
    few = PCA(n_components=min(50, *features.shape), svd_solver="full").fit_transform(features)
    if projection == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(few) - 1) / 3)
        return TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=0).fit_transform(few), None
    from umap import UMAP

    return UMAP(n_components=2, random_state=0, n_jobs=1).fit_transform(few), None


def _purity(flat: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float:
    """The share of rows whose nearest neighbour has their label."""
    from scipy.spatial import KDTree

    _, neighbors = KDTree(flat).query(flat, k=2)
    return float(np.mean(labels[neighbors[:, 1]] == labels))
