"""Does the probability of an answer say how often such an answer is right?

Letters: n answers, M bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rag_core.evaluation.intervals import RESAMPLES, bounds

BINS = 10
_NAMES = ("expected_calibration_error", "brier_score", "risk_coverage_area")


def calibration(
    probabilities: Sequence[float], right: Sequence[float], seed: int
) -> dict[str, Any]:
    """How far probabilities can be trusted, with 95 % intervals by the bootstrap.

    - expected calibration error: in bins of equally many answers, how far the mean probability is
      from the share that is right, weighted by size (Naeini et al. 2015; Nguyen & O'Connor 2015
      for bins of equal mass).
    - Brier score: mean squared difference of probability and 1 (right) or 0.
    - area under the risk-coverage curve: share of wrong answers among the k most probable ones,
      averaged over k = 1 ... n (Geifman & El-Yaniv 2017). It asks for the order alone.

    Answers of equal probability count as their mean, so that their order does not matter.

    Args:
        probabilities: (n,), of the answers that were given.
        right: (n,), 1 = exact match.
        seed: of the intervals.

    Returns:
        "expected_calibration_error", "brier_score" and "risk_coverage_area", each with "mean",
        "low", "high" and "n"; and "bins", the most probable first: "n", "low", "high" and "mean"
        of the probability, "right", and "coverage" and "right_above", the share of answers and of
        right ones among them if only these and the bins before are given.
    """
    order = np.argsort(-np.asarray(probabilities, np.float64), kind="stable")
    sure = np.asarray(probabilities, np.float64)[order]
    hits = np.asarray(right, np.float64)[order]
    group = np.unique(-sure, return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    drawn = np.empty((RESAMPLES, len(_NAMES)))
    for number in range(RESAMPLES):
        rows = np.sort(rng.integers(len(sure), size=len(sure)))
        drawn[number] = _figures(sure[rows], hits[rows], group[rows])
    found: dict[str, Any] = {
        name: {"mean": value, **bounds(column), "n": len(sure)}
        for name, value, column in zip(_NAMES, _figures(sure, hits, group), drawn.T, strict=True)
    }
    found["bins"] = _bins(sure, _tied(hits, group))
    return found


def calibration_of(
    rows: Sequence[Mapping[str, Any]],
    answerable: Sequence[bool] | None,
    seed: int,
    of_confidence: bool = False,
) -> dict[str, Any]:
    """`calibration` of all questions and, where that is known, of the answerable ones; those
    without a right answer to compare with are left out.

    Args:
        rows: with "log_probability" (None = no answer), "confidence" and "scores", one a question;
            `answerable` likewise.
        answerable: whether the knowledge base has an answer.
        seed: of the intervals.
        of_confidence: take the confidence in place of the probability; nothing where the model has
            none.
    """
    chosen = {"all": list(rows)}
    if answerable is not None:
        chosen["answerable"] = [row for row, has in zip(rows, answerable, strict=True) if has]
    found = {}
    for of, some in chosen.items():
        judged = [row for row in some if "exact_match" in row["scores"]]
        probabilities = [probability(row) for row in judged]
        if of_confidence:
            judged = [row for row in judged if row.get("confidence") is not None]
            probabilities = [_known(row["confidence"]) for row in judged]
        if judged:
            hits = [row["scores"]["exact_match"] for row in judged]
            found[of] = calibration(probabilities, hits, seed)
    return found


def probability(row: Mapping[str, Any]) -> float:
    """p(y|x) of a row's answer; 0 where there is none, or no number that says it."""
    log_probability = row["log_probability"]
    if log_probability is None or math.isnan(log_probability):
        return 0.0
    return math.exp(min(0.0, log_probability))


def _known(confidence: float) -> float:
    """The confidence of an answer whose probability is no number is 0, as that counts."""
    if math.isnan(confidence):
        return 0.0
    return confidence


def _tied(hits: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Each answer's share of right ones among those of equal probability."""
    total = np.bincount(group, hits)
    size = np.maximum(np.bincount(group), 1)
    return (total / size)[group]


def _figures(sure: np.ndarray, hits: np.ndarray, group: np.ndarray) -> list[float]:
    """The three figures of probabilities (n,) in falling order."""
    brier = np.mean((sure - hits) ** 2)
    hits = _tied(hits, group)
    starts = _starts(len(sure))
    gaps = np.abs(np.add.reduceat(sure - hits, starts))
    risks = np.cumsum(1 - hits) / np.arange(1, len(hits) + 1)
    return [float(gaps.sum() / len(sure)), float(brier), float(risks.mean())]


def _starts(count: int) -> np.ndarray:
    """Where the bins begin: `BINS` of equal size, give or take one, none of them empty."""
    bins = min(BINS, count)
    return np.arange(bins) * count // bins


def _bins(sure: np.ndarray, hits: np.ndarray) -> list[dict[str, Any]]:
    starts = _starts(len(sure))
    ends = [*starts[1:].tolist(), len(sure)]
    return [
        {
            "n": end - start,
            "low": float(sure[end - 1]),
            "high": float(sure[start]),
            "mean": float(sure[start:end].mean()),
            "right": float(hits[start:end].mean()),
            "coverage": end / len(sure),
            "right_above": float(hits[:end].mean()),
        }
        for start, end in zip(starts.tolist(), ends, strict=True)
    ]
