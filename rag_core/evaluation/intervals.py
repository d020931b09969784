"""Percentile intervals by the bootstrap (Efron & Tibshirani 1993): questions drawn anew, with
replacement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from rag_core.evaluation.scores import corpus_bleu

RESAMPLES = 1000
LEVEL = 0.95
# Of numbers drawn at once: 32 MB, however many questions there are.
_CHUNK = 1 << 22


def figure(name: str, values: Sequence[Any], seed: int) -> dict[str, float | int]:
    """A score over n questions with its 95 % interval: "mean", "low", "high", "n".

    Args:
        name: of the score; "bleu" is BLEU of the whole corpus, all others are means.
        values: one a question, at least one.
        seed: of the draws.
    """
    columns = _columns(values)
    statistic = _statistic(name)
    drawn = [statistic(sums, len(columns)) for sums in _resampled(columns, seed)]
    return {
        "mean": statistic(columns.sum(axis=0), len(columns)),
        **bounds(drawn),
        "n": len(columns),
    }


def paired(
    name: str, values: Sequence[Any], others: Sequence[Any], seed: int
) -> dict[str, float | int]:
    """How much higher the first of two systems scores on the same n questions.

    Args:
        name: as of `figure`.
        values: of the first system, one a question.
        others: of the second, in the same order.
        seed: of the draws.

    Returns:
        "first", "second", "difference" with "low" and "high", "n", and "p": how often chance alone
        would make a difference as far from 0 (two-sided, by the share of draws beyond 0), and at
        least how often it puts all n questions on one side, of which few draws know nothing.
    """
    both = np.stack([_columns(values), _columns(others)], axis=1)  # (n, 2, S)
    statistic = _statistic(name)
    count = len(both)

    def difference(sums: np.ndarray) -> float:
        return statistic(sums[0], count) - statistic(sums[1], count)

    sums = both.sum(axis=0)
    drawn = np.array([difference(each) for each in _resampled(both, seed)])
    beyond = min(float(np.mean(drawn <= 0)), float(np.mean(drawn >= 0)))
    return {
        "first": statistic(sums[0], count),
        "second": statistic(sums[1], count),
        "difference": difference(sums),
        **bounds(drawn),
        "p": min(1.0, max(2 * beyond, 2.0 ** (1 - count))),
        "n": count,
    }


def _columns(values: Sequence[Any]) -> np.ndarray:
    """(n, S): the numbers that a statistic adds up."""
    array = np.asarray(values, np.float64)
    return array.reshape(len(array), -1)


def _statistic(name: str) -> Callable[[np.ndarray, int], float]:
    if name == "bleu":
        return lambda sums, count: corpus_bleu(sums.tolist())
    return lambda sums, count: float(sums[0] / count)


def _resampled(columns: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """The sums over the rows, drawn anew `RESAMPLES` times."""
    rng = np.random.default_rng(seed)
    count = len(columns)
    at_once = max(1, _CHUNK // columns.size)
    for start in range(0, RESAMPLES, at_once):
        rows = rng.integers(count, size=(min(at_once, RESAMPLES - start), count))
        yield from columns[rows].sum(axis=1)


def bounds(drawn: Sequence[float] | np.ndarray) -> dict[str, float]:
    """The interval that draws of a figure span: "low" and "high"."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return {"low": float(low), "high": float(high)}
