"""What every fitted head promises, on small heads of each kind made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC

from featcache.common.errors import UserError
from heads import nearest as nearest_module
from heads import predictors
from heads.kernel_heads import LandmarkHead, SupportVectorHead, rbf
from heads.nearest import nearest
from heads.neighbors import NeighborHead, normalized
from heads.predictors import ABSENT, Head, LinearHead, MLPHead
from heads.saved import KINDS

D, C = 7, 3


def make_heads() -> dict[str, Head]:
    rng = np.random.default_rng(0)

    def f32(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    scaling = {"mean": f32(D), "scale": np.abs(f32(D)) + 0.5}
    labels = rng.integers(0, C, 40)
    made: list[Head] = [
        LinearHead(**scaling, weight=f32(C, D), bias=f32(C), probabilistic=True),
        MLPHead(**scaling, hidden_weight=f32(5, D), hidden_bias=f32(5), weight=f32(C, 5), bias=f32(C)),
        NeighborHead(
            bank=normalized(f32(40, D)),
            labels=labels,
            weights=rng.uniform(0.5, 2.0, 40),
            k=5,
            temperature=0.1,
            n_classes=C,
        ),
        LandmarkHead(
            **scaling, landmarks=f32(9, D), weight=rng.normal(size=(C, 9)), bias=rng.normal(size=C), gamma=0.1
        ),
        SupportVectorHead(
            **scaling,
            vectors=f32(9, D),
            dual_coef=rng.normal(size=(C - 1, 9)),
            intercept=rng.normal(size=3),
            counts=np.array([2, 3, 4]),
            present=np.arange(C),
            gamma=0.1,
            n_classes=C,
        ),
    ]
    return {head.KIND: head for head in made}


@pytest.fixture(params=sorted(KINDS))
def head(request: pytest.FixtureRequest) -> Head:
    return make_heads()[request.param]


def features(n: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, D)).astype(np.float32)


def test_scores_are_finite_numbers_a_class(head: Head) -> None:
    scores = head.scores(features(11))
    assert scores.shape == (11, C) == (11, head.n_classes)
    assert np.isfinite(scores).all()
    assert (head.predict(features(11)) == scores.argmax(axis=1)).all()
    assert head.scores(features(0)).shape == (0, C)
    assert head.n_features == D


def test_rows_do_not_look_at_each_other(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = head.scores(features(50))
    monkeypatch.setattr(predictors, "_BLOCK", 8)
    monkeypatch.setattr(nearest_module, "_QUERIES", 3)
    monkeypatch.setattr(nearest_module, "_BANK", 6)
    np.testing.assert_allclose(head.scores(features(50)), whole, rtol=1e-4, atol=1e-5)


def test_arrays_rebuild_the_same_head(head: Head) -> None:
    again = type(head).from_arrays(head.arrays())
    assert (again.scores(features(20)) == head.scores(features(20))).all()
    assert again.n_parameters == head.n_parameters


def test_features_of_another_width_are_refused(head: Head) -> None:
    with pytest.raises(UserError, match=rf"\(4, {D + 1}\), the head was fitted on \(N, {D}\)"):
        head.scores(np.zeros((4, D + 1), np.float32))


def test_each_array_is_checked(head: Head) -> None:
    for name, array in head.arrays().items():
        others = {**head.arrays()}
        with pytest.raises(UserError, match=name):
            type(head).from_arrays({**others, name: array.astype(np.complex64)})
        with pytest.raises(UserError, match=name):
            type(head).from_arrays({**others, name: array[None]})
        if array.dtype.kind == "f":
            with pytest.raises(UserError, match=f"{name} holds values that are not finite"):
                type(head).from_arrays({**others, name: array * np.float32(np.nan)})
        del others[name]
        with pytest.raises(UserError, match="holds"):
            type(head).from_arrays(others)


def test_rbf_is_the_formula() -> None:
    x, v = features(20), features(33)[20:]
    np.testing.assert_allclose(rbf(x, v, 0.3), np.exp(-0.3 * cdist(x, v, "sqeuclidean")), atol=1e-6)


def test_support_vectors_decide_as_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    for n_classes in (2, 4):
        x = rng.normal(size=(80, D)).astype(np.float32)
        y = (np.abs(x[:, 0]) * 2).astype(np.int64) % n_classes
        svc = SVC(gamma=0.2).fit(x, y)
        sign = -1 if n_classes == 2 else 1
        head = SupportVectorHead(
            mean=np.zeros(D, np.float32),
            scale=np.ones(D, np.float32),
            vectors=svc.support_vectors_.astype(np.float32),
            dual_coef=sign * svc.dual_coef_,
            intercept=sign * svc.intercept_,
            counts=svc.n_support_.astype(np.int64),
            present=np.arange(n_classes),
            gamma=0.2,
            n_classes=n_classes,
        )
        new = features(200)
        if n_classes > 2:
            np.testing.assert_allclose(head.scores(new), svc.decision_function(new), atol=1e-4)
            svc.set_params(break_ties=True)
        assert (head.predict(new) == svc.predict(new)).all()


def test_neighbors_are_scikit_learns_and_vote_by_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    head = make_heads()["neighbors"]
    assert isinstance(head, NeighborHead)
    monkeypatch.setattr(nearest_module, "_BANK", 16)
    distance, rows = NearestNeighbors(n_neighbors=5, metric="cosine").fit(head.bank).kneighbors(features(30))
    similarities, found = nearest(normalized(features(30)), head.bank, 5)
    np.testing.assert_allclose(similarities, 1 - distance, atol=1e-5)
    assert (found == rows).all()
    votes = np.exp((1 - distance) / head.temperature) * head.weights[rows]
    shares = np.stack([(votes * (head.labels[rows] == c)).sum(axis=1) for c in range(C)], axis=1)
    np.testing.assert_allclose(np.exp(head.scores(features(30))), shares / shares.sum(axis=1, keepdims=True), atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_temperature_divides_the_scores(kind: str) -> None:
    head = make_heads()[kind]
    bias = head.arrays()["bias"].copy()
    bias[1] = ABSENT
    head = type(head).from_arrays({**head.arrays(), "bias": bias})
    cool = head.scaled(2.5)
    assert type(cool) is type(head)
    assert cool.probabilistic
    before, after = head.scores(features(30)), cool.scores(features(30))
    np.testing.assert_allclose(after[:, [0, 2]], before[:, [0, 2]] / 2.5, rtol=1e-5, atol=1e-5)
    assert cool.arrays()["bias"][1] == np.float32(ABSENT)
    assert (cool.predict(features(30)) == head.predict(features(30))).all()
    again = type(cool).from_arrays(cool.arrays())
    assert (again.scores(features(30)) == after).all()
    for wrong in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(UserError, match="expected a positive number"):
            head.scaled(wrong)


def test_scores_that_were_no_log_probabilities_are_after_a_temperature() -> None:
    head = make_heads()["linear"]
    ridge = type(head).from_arrays({**head.arrays(), "probabilistic": np.array(False)})
    assert not ridge.probabilistic
    assert ridge.scaled(1.0).probabilistic


@pytest.mark.parametrize("kind", ["neighbors", "landmarks", "support_vectors"])
def test_other_heads_are_not_calibrated(kind: str) -> None:
    with pytest.raises(UserError, match="not calibrated") as caught:
        make_heads()[kind].scaled(2.0)
    assert "\n" not in str(caught.value)


def test_weights_of_votes_are_positive() -> None:
    head = make_heads()["neighbors"]
    with pytest.raises(UserError, match="weights holds values that are not positive"):
        type(head).from_arrays({**head.arrays(), "weights": np.zeros(40)})
