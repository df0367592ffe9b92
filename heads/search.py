"""A classifier and the ways to validate it in; every candidate with its validation score, strongest first, out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from heads.fitting import Classifier, Fitted, Params, Trial, averaged_scores
from heads.folds import Validation
from heads.judging import Judgement, judge
from heads.predictors import Head, Scores

PATIENCE = 2  # candidates in a row worse than the chain's best by more than one standard error end the chain
ROUNDS = 3  # times that a grid is continued beyond its end

Report = Callable[[dict[str, Any]], None]


@dataclass(eq=False, kw_only=True)
class Candidate:
    """A point of the grid. Without a judgement it was not tried, or its scores are not finite.

    `fitted` is kept as long as the candidate may be chosen, one a fold; leave-one-out has none.
    """

    params: Params
    tried: bool = False
    extended: bool = False
    saturated: bool = False
    judgement: Judgement | None = None
    converged: bool | None = None
    seconds: float | None = None
    fitted: tuple[Fitted, ...] = ()

    def to_json(self) -> dict[str, Any]:
        judged = self.judgement
        return {
            "params": self.params,
            "tried": self.tried,
            "val_accuracy": judged and judged.accuracy,
            "val_balanced_accuracy": judged and judged.balanced_accuracy,
            "val_log_loss": judged and judged.log_loss,
            "val_error": judged and judged.error,
            "converged": self.converged,
            "seconds": self.seconds,
        } | {name: True for name in ("extended", "saturated") if getattr(self, name)}


@dataclass(eq=False, kw_only=True)
class Search:
    """The search of one classifier. `candidates` go from strong to weak regularisation, as far as there is an order.

    `vet` may refuse each fitted head, `report` is told of each candidate.
    """

    classifier: Classifier
    validation: Validation
    balanced: bool = False
    one_se: bool = False
    vet: Callable[[Head], None] | None = None
    report: Report | None = None

    def __post_init__(self) -> None:
        self.candidates: list[Candidate] = []
        self.tried: list[Candidate] = []  # in the order of trying: what lies beyond the grid comes last
        self.along: set[str] = set()  # the parameters that differ within a chain
        self.labels = [self.validation.folds.y[rows] for rows in self.validation.scored]

    def run(self, *, n_total: int) -> None:
        """Try all chains, and what lies beyond an end of the grid where the best candidate is at that end."""
        folds = self.validation.folds
        for chain in self.classifier.chains(self.validation.smallest, folds.X.shape[1], n_total):
            self.along |= {key for key in chain[0] if len({str(params[key]) for params in chain}) > 1}
            self.candidates += self._chain(chain)
        for _ in range(ROUNDS):
            best = self.best()
            more = self._beyond(best) if best else []
            for is_strong_end, chains in more:
                found = [candidate for chain in chains for candidate in self._chain(chain, extended=True)]
                self.candidates = [*found, *self.candidates] if is_strong_end else [*self.candidates, *found]
            if not more:
                return

    def best(self) -> Candidate | None:
        """The highest score, of equals that with the lowest log-loss, of equals the most strongly regularised.

        What lies beyond the grid wins only where it is better, not where it is as good.
        """
        best = max(self.tried, key=_rank, default=None)
        return best if best and best.judgement else None

    def chosen(self) -> Candidate | None:
        """The candidate that the rule chooses, its heads fitted."""
        chosen = best = self.best()
        if best is None or chosen is None:
            return None
        if self.one_se:
            alike = [c for c in self.candidates if _names(c.params) == _names(best.params)]
            chosen = next(c for c in alike if _within(c, best))
        if not chosen.fitted and self.validation.kind != "loo":  # it was given up for one that did better then
            chosen.fitted = next(self.classifier.search([chosen.params], self.validation.folds)).fitted
        return chosen

    def scores(self, chosen: Candidate, *, temperature: float | None = None) -> tuple[Scores, ...]:
        """The scores of the validation rows by heads that never saw them, part by part, as `Validation.scored`."""
        folds = self.validation.folds
        if self.validation.kind == "loo":
            ((_, scores),) = self._left_out([chosen.params])
            return (scores,)
        heads = [each.head if temperature is None else each.head.scaled(temperature) for each in chosen.fitted]
        return tuple(averaged_scores(head, folds.X.take(val)) for head, val in zip(heads, folds.val, strict=True))

    def edges(self, of: Candidate) -> dict[str, list[float]]:
        """The grid of each number that is at an end of it, among candidates with the same optimizer or kernel."""
        names = _names(of.params)
        alike = [c.params for c in self.candidates if _names(c.params) == names]
        edges = {}
        for key, value in of.params.items():
            if isinstance(value, str) or key == "epochs":
                continue
            values = sorted({params[key] for params in alike if key in params})
            at_end = len(values) > 1 and value in (values[0], values[-1])
            is_natural = value in self.classifier.natural_ends.get(key, ())
            if at_end and not is_natural and not (of.saturated and value == alike[-1].get(key)):
                edges[key] = values
        return edges

    def _beyond(self, best: Candidate) -> list[tuple[bool, list[list[Params]]]]:
        """Chains that go on beyond the ends that the best candidate is at, and whether that is the strong end."""
        more = []
        known = [_plain(c.params) for c in self.candidates]
        for key, values in self.edges(best).items():
            up = best.params[key] == values[-1]
            order = [c.params[key] for c in self.candidates if c.params.get(key) in (values[0], values[-1])]
            chain = [p for p in self.classifier.beyond(best.params, key, up) if _plain(p) not in known]
            if chain:
                more.append((order[0] == best.params[key], [chain] if key in self.along else [[p] for p in chain]))
        return more

    def _chain(self, chain: list[Params], *, extended: bool = False) -> list[Candidate]:
        """Try a chain, and leave it once it only gets worse where the classifier says so, or is saturated."""
        candidates = [Candidate(params=params, extended=extended) for params in chain]
        top, noise, worse = -1.0, 0.0, 0
        clock = time.perf_counter()
        for candidate, trial in zip(candidates, self._trials(chain), strict=False):
            candidate.params, candidate.tried, candidate.fitted = trial.params, True, trial.fitted
            candidate.saturated = trial.saturated
            if self.vet is not None and trial.fitted:
                self.vet(trial.fitted[0].head)
            candidate.converged = all(fitted.converged for fitted in trial.fitted)
            probabilistic = _is_probabilistic(self.classifier, trial)
            judged = judge(
                trial.scores,
                self.labels,
                probabilistic=probabilistic,
                balanced=self.balanced,
                cautious="temperature" in trial.params,
            )
            candidate.judgement, candidate.seconds = judged, time.perf_counter() - clock
            if self.report:
                self.report(candidate.to_json())
            self.tried.append(candidate)
            self._forget()
            clock = time.perf_counter()
            if trial.saturated:
                break
            if judged is None:
                continue
            if judged.score >= top:
                top, noise = judged.score, judged.noise
            worse = worse + 1 if judged.score < top - noise else 0
            if self.classifier.stops_early and worse == PATIENCE:
                break
        return candidates

    def _trials(self, chain: list[Params]) -> Iterator[Trial]:
        if self.validation.kind != "loo":
            yield from self.classifier.search(chain, self.validation.folds)
            return
        for params, scores in self._left_out(chain):
            yield Trial(params=params, fitted=(), scores=(scores,))

    def _left_out(self, chain: list[Params]) -> Iterator[tuple[Params, Scores]]:
        yield from self.classifier.leave_one_out(chain, self.validation.whole())  # type: ignore[attr-defined]

    def _forget(self) -> None:
        """Drop the heads of those that can no longer be chosen."""
        best = self.best()
        for candidate in self.tried:
            if not (_within(candidate, best) if self.one_se else candidate is best):
                candidate.fitted = ()


def _rank(candidate: Candidate | None) -> tuple[float, float]:
    return candidate.judgement.rank if candidate and candidate.judgement else (-1.0, 0.0)


def _within(candidate: Candidate, best: Candidate | None) -> bool:
    """Whether a candidate's score is within one standard error of the best's."""
    if best is None or candidate.judgement is None or best.judgement is None:
        return False
    return candidate.judgement.score >= best.judgement.score - best.judgement.error


def _is_probabilistic(classifier: Classifier, trial: Trial) -> bool:
    if trial.fitted:
        return trial.fitted[0].head.probabilistic
    return bool(getattr(classifier, "probabilistic", False))


def _names(params: Params) -> dict[str, str]:
    return {key: value for key, value in params.items() if isinstance(value, str)}


def _plain(params: Params) -> dict[str, Any]:
    """The candidate's own parameters, without what the search found."""
    return {key: value for key, value in params.items() if key != "epochs"}
