"""Linear discriminants for every shrinkage at once, with exact leave-one-out scores: rows in, weights out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from heads.fitting import Params
from heads.predictors import Doubles, Scores
from heads.standardization import Labels
from heads.summaries import Summary

_SINGULAR = 1e-7  # what is left of 1 where a row alone holds a direction


def lda_solver(rows: Summary) -> Callable[[Params], tuple[Doubles, Doubles]]:
    """Linear discriminants; the pooled covariance S is shrunk to (1 - s) S + s mu I, mu the mean variance.

    As LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s) of scikit-learn. With row weights the priors are the
    classes' shares of the weight, and S is the weighted mean of the classes' covariances: of balanced classes, what
    scikit-learn makes of equal priors. Where no class has any scatter (one row each), S is taken to be I.
    """
    values, vectors = rows.within
    means, weights = rows.means, rows.weights
    variances = values / weights.sum()
    mu = variances.sum() / means.shape[1]
    inside = means @ vectors
    outside = means - inside @ vectors.T

    def solve(params: Params) -> tuple[Doubles, Doubles]:
        s = params["shrinkage"]
        if mu == 0.0:
            weight = means
        else:
            weight = (inside / ((1 - s) * variances + s * mu)) @ vectors.T
            if s > 0:
                weight = weight + outside / (s * mu)
        return weight, np.log(weights / weights.sum()) - 0.5 * np.einsum("ij,ij->i", means, weight)

    return solve


def lda_left_out(rows: Summary) -> Callable[[list[Params], Scores, Labels, Doubles], Scores]:
    """What scores each training row as if it had been left out: (A, n, P), of A candidates and a block of n rows.

    The block is Z (n, D), its rows' codes are (n,) in 0..P-1, and what they count is (n,). Without a row x of weight w
    in a class of mean m and weight W the class mean is m - t (x - m) and the scatter S - t W (x - m)(x - m)', where t =
    w / (W - w); mu follows from the trace. All but the rank-one term is diagonal in the eigenbasis of S, and that term
    Sherman and Morrison's formula inverts, or Meyer's (1973, theorem 6) where the row alone holds a direction. A row
    alone in its class has no meaningful score there.
    """
    values, vectors = rows.within
    total, n_features = rows.weights.sum(), rows.means.shape[1]
    inside = rows.means @ vectors
    outside = rows.means - inside @ vectors.T
    gram = outside @ outside.T  # (P, P)

    def leave(chain: list[Params], Z: Scores, codes: Labels, weights: Doubles) -> Scores:
        own, n = np.arange(len(Z)), len(Z)
        R = Z.astype(np.float64) @ vectors
        d = R - inside[codes]
        others = rows.weights[codes] - weights
        alone = others <= 1e-9 * weights
        t = np.where(alone, 0.0, weights / np.where(alone, 1.0, others))
        drop = t * rows.weights[codes]
        rest = total - weights
        trace = values.sum() - drop * np.einsum("ij,ij->i", d, d)
        flat = trace <= 1e-9 * values.sum()  # nothing is left: S is I
        mu = np.where(flat, 1.0, trace / (rest * n_features))
        left = np.where(np.arange(len(rows.weights)) == codes[:, None], others[:, None], rows.weights)
        with np.errstate(divide="ignore"):
            prior = np.log(np.maximum(left, 0.0) / rest[:, None])
        prior[own[alone], codes[alone]] = 0.0
        found = np.empty((len(chain), n, len(rows.weights)))
        for number, params in enumerate(chain):
            s = np.where(flat, 1.0, params["shrinkage"])
            inverse = 1.0 / (((1 - s) / rest)[:, None] * values + (s * mu)[:, None])  # (n, r)
            beyond = np.where(s > 0, 1.0 / np.where(s > 0, s * mu, 1.0), 0.0)[:, None]  # outside the eigenbasis
            nd = d * inverse
            kd = nd @ inside.T  # of each mean and d, (n, P)
            kx = (R * inverse) @ inside.T + beyond * gram[codes]
            kk = inverse @ np.square(inside).T + beyond * np.diagonal(gram)
            dd, dx = np.einsum("ij,ij->i", nd, d), np.einsum("ij,ij->i", nd, R)
            gain = (1 - s) * drop / rest
            room = 1.0 - gain * dd
            singular = (room < _SINGULAR) & (s == 0)
            f = np.where(singular, 0.0, gain / np.where(singular, 1.0, room))
            # products in the inverse of S without the row; the row's own class mean moves by -t d
            mx = kx + (f * dx)[:, None] * kd
            mm = kk + f[:, None] * np.square(kd)
            dx, md, dd = dx * (1 + f * dd), kd * (1 + f * dd)[:, None], dd * (1 + f * dd)
            for i in np.flatnonzero(singular):
                none = nd[i] / np.linalg.norm(nd[i])  # the direction that is no more
                left_in = np.vstack([inside, R[i], d[i]])
                left_in -= np.outer(left_in @ none, none)
                products = (left_in * inverse[i]) @ left_in[-2:].T
                mx[i], md[i] = products[:-2].T
                dx[i], dd[i] = products[-1]
                mm[i] = np.square(left_in[:-2]) @ inverse[i]
            mx[own, codes] -= t * dx
            mm[own, codes] += t * (t * dd - 2 * md[own, codes])
            found[number] = mx - 0.5 * mm + prior
        return found

    return leave
