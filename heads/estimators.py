"""The classifiers of `bin/fit-head` as scikit-learn estimators: features and labels in, fitted classifiers out.

Each does what `--clf` does at one point of its grid, so that scikit-learn's searches may choose. `heads.logistic` has
those of logistic regression, which alone does not standardise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from heads.classifiers import CLASSIFIERS
from heads.features import ArrayFeatures
from heads.fitting import Fitted, Params, Task
from heads.head_classifier import HeadClassifier, LinearHeadClassifier, Probabilities, positive
from heads.margins import EXACT_ROWS, N_LANDMARKS
from heads.predictors import LinearHead
from heads.ridge import RidgePath


class RidgePathClassifier(LinearHeadClassifier):
    """Ridge on targets of -1 and 1, with the penalty of least squared error when each row is left out, exactly.

    As scikit-learn's RidgeClassifierCV behind a StandardScaler (Cook and Weisberg 1982, section 2.2).

    Parameters:
        alphas: penalties, above 0.
        class_weight: None, "balanced", or a dict of weights by class.

    Attributes: those of `LinearHeadClassifier`; alpha_, the one that was chosen; loo_mse_ and loo_accuracy_
    (n_alphas,), the error against the targets and the accuracy of the rows left out.
    """

    CLF = "ridge"

    def __init__(
        self, *, alphas: Sequence[float] = (1e4, 1e3, 100.0, 10.0, 1.0, 0.1), class_weight: Any = None
    ) -> None:
        self.alphas, self.class_weight = alphas, class_weight

    def _chosen(self, n_samples: int, n_features: int) -> Params:
        if not len(self.alphas) or not min(self.alphas) > 0:
            raise ValueError(f"alphas is {self.alphas!r}; expected numbers above 0")
        return {"alphas": [float(alpha) for alpha in self.alphas]}

    def _fitted(self, params: Params, task: Task) -> Fitted:
        path = RidgePath(alphas=params["alphas"]).fit(ArrayFeatures(task.Z), task.y, task.weights)
        self.alpha_, self.loo_mse_, self.loo_accuracy_ = path.alpha_, path.loo_mse_, path.loo_accuracy_
        mean, scale = task.statistics
        best = params["alphas"].index(path.alpha_)
        weight, bias = path.coefs_[best].astype(np.float32), path.intercepts_[best].astype(np.float32)
        return Fitted(head=LinearHead(mean=mean, scale=scale, weight=weight, bias=bias, probabilistic=False))


class LinearSVMClassifier(LinearHeadClassifier):
    """Linear support vector machine with squared hinge loss, one class against the rest.

    As scikit-learn's LinearSVC behind a StandardScaler, but that the intercept is not penalised.

    Parameters:
        C: what the sum of losses counts against the penalty, above 0.
        class_weight: None, "balanced", or a dict of weights by class, which multiply the losses of its rows.
    """

    CLF = "svm"

    def __init__(self, *, C: float = 0.001, class_weight: Any = None) -> None:
        self.C, self.class_weight = C, class_weight

    def _chosen(self, n_samples: int, n_features: int) -> Params:
        positive(C=self.C)
        return {"C": self.C}


class RBFSVMClassifier(HeadClassifier):
    """Support vector machine with the kernel exp(-gamma / n_features * squared distance), one class against one.

    As scikit-learn's SVC behind a StandardScaler. Of more than `EXACT_ROWS` rows the kernel is approximated by
    Nystroem's method, and a linear one is fitted on top, one class against the rest.

    Parameters:
        C, gamma: above 0.
        class_weight: None, "balanced", or a dict of weights by class.
        random_state: an int, the seed of Nystroem's landmarks.
    """

    CLF = "svm-rbf"

    def __init__(self, *, C: float = 1.0, gamma: float = 1.0, class_weight: Any = None, random_state: int = 0) -> None:
        self.C, self.gamma, self.class_weight, self.random_state = C, gamma, class_weight, random_state

    def _chosen(self, n_samples: int, n_features: int) -> Params:
        positive(C=self.C, gamma=self.gamma)
        kernel: Params = {"kernel": "exact"}
        if n_samples > EXACT_ROWS:
            kernel = {"kernel": "nystroem", "n_landmarks": N_LANDMARKS}
        return {"C": self.C, "gamma": self.gamma / n_features, **kernel}


class CosineNeighborsClassifier(Probabilities, HeadClassifier):
    """The nearest training rows by cosine vote with weight exp(similarity / temperature); see `neighbor_votes`.

    Features are not standardised (Wu et al. 2018, arXiv:1805.01978, section 3.4).

    Parameters:
        n_neighbors: that vote; more than there are rows means all of them.
        temperature: above 0.
        class_weight: None, "balanced", or a dict of weights by class, which multiply the votes of its rows.
    """

    CLF = "knn"

    def __init__(self, *, n_neighbors: int = 20, temperature: float = 0.07, class_weight: Any = None) -> None:
        self.n_neighbors, self.temperature, self.class_weight = n_neighbors, temperature, class_weight

    def _chosen(self, n_samples: int, n_features: int) -> Params:
        positive(n_neighbors=self.n_neighbors, temperature=self.temperature)
        return {"k": self.n_neighbors, "temperature": self.temperature}


class ShrunkLDAClassifier(Probabilities, LinearHeadClassifier):
    """Linear discriminants whose pooled covariance S is shrunk to (1 - s) S + s mu I, mu the mean variance.

    As scikit-learn's LinearDiscriminantAnalysis(solver="lsqr") behind a StandardScaler.

    Parameters:
        shrinkage: s, from 0 to 1.
        class_weight: None, "balanced" (equal priors), or a dict of weights by class.
    """

    CLF = "lda"

    def __init__(self, *, shrinkage: float = 0.1, class_weight: Any = None) -> None:
        self.shrinkage, self.class_weight = shrinkage, class_weight

    def _chosen(self, n_samples: int, n_features: int) -> Params:
        if not 0 <= self.shrinkage <= 1:
            raise ValueError(f"shrinkage is {self.shrinkage!r}; expected a number from 0 to 1")
        return {"shrinkage": self.shrinkage}


class CentroidClassifier(LinearHeadClassifier):
    """The nearest class mean, Euclidean in standardised features: NearestCentroid behind a StandardScaler."""

    CLF = "centroid"

    def _chosen(self, n_samples: int, n_features: int) -> Params:
        return {}


class LinearProbeClassifier(Probabilities, LinearHeadClassifier):
    """Softmax regression that torch trains by epochs, with a rate that falls along half a cosine.

    Parameters:
        optimizer: "adamw" or "sgd" (Nesterov, momentum 0.9).
        lr, weight_decay: of the weights; biases do not decay.
        epochs, batch_size: None takes what `bin/fit-head` takes for so many rows.
        class_weight: None, "balanced", or a dict of weights by class.
        random_state: an int, the seed of the order of rows.
        device: "auto", "cuda", "mps" or "cpu".
    """

    CLF = "linear"

    def __init__(
        self,
        *,
        optimizer: str = "adamw",
        lr: float = 0.01,
        weight_decay: float = 0.0,
        epochs: int | None = None,
        batch_size: int | None = None,
        class_weight: Any = None,
        random_state: int = 0,
        device: str = "cpu",
    ) -> None:
        self.optimizer, self.lr, self.weight_decay = optimizer, lr, weight_decay
        self.epochs, self.batch_size = epochs, batch_size
        self.class_weight, self.random_state, self.device = class_weight, random_state, device

    def _chosen(self, n_samples: int, n_features: int) -> Params:
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"optimizer is {self.optimizer!r}; expected adamw or sgd")
        return _training(self, self.optimizer, n_samples, n_features)


class MLPProbeClassifier(Probabilities, HeadClassifier):
    """One hidden layer with ReLU, trained by torch with AdamW; parameters as those of `LinearProbeClassifier`.

    Parameters:
        hidden: units, at least 1.
    """

    CLF = "mlp"

    def __init__(
        self,
        *,
        hidden: int = 256,
        lr: float = 0.001,
        weight_decay: float = 0.1,
        epochs: int | None = None,
        batch_size: int | None = None,
        class_weight: Any = None,
        random_state: int = 0,
        device: str = "cpu",
    ) -> None:
        self.hidden, self.lr, self.weight_decay = hidden, lr, weight_decay
        self.epochs, self.batch_size = epochs, batch_size
        self.class_weight, self.random_state, self.device = class_weight, random_state, device

    def _chosen(self, n_samples: int, n_features: int) -> Params:
        positive(hidden=self.hidden)
        return {**_training(self, "adamw", n_samples, n_features), "hidden": self.hidden}


def _training(probe: Any, optimizer: str, n_samples: int, n_features: int) -> Params:
    """The parameters of a probe that torch trains. Raises ValueError where one makes no sense."""
    positive(
        lr=probe.lr, **{name: value for name in ("epochs", "batch_size") if (value := getattr(probe, name)) is not None}
    )
    usual = CLASSIFIERS[probe.CLF].chains(n_samples, n_features, n_samples)[0][0]
    epochs = probe.epochs or usual["schedule_epochs"]
    return {
        "optimizer": optimizer,
        "lr": probe.lr,
        "weight_decay": probe.weight_decay,
        "batch_size": probe.batch_size or usual["batch_size"],
        "schedule_epochs": epochs,
        "epochs": epochs,
    }
