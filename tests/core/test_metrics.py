"""Metrics against hand-counted values and their bounds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_core import metrics


def test_answers_match_after_normalisation() -> None:
    assert metrics.normalize_answer(" The  War, and\nPeace! ") == "war and peace"
    assert metrics.exact_match("the Beatles.", ["Queen", "Beatles"]) == 1.0
    assert metrics.exact_match("Beatles band", "Beatles") == 0.0
    assert metrics.f1_score("Beatles band", "The Beatles") == pytest.approx(2 / 3)
    assert metrics.f1_score("a b b", "b b c") == pytest.approx(4 / 5)  # the article "a" is dropped
    assert metrics.f1_score("the", "a") == 1.0 and metrics.f1_score("", "x") == 0.0
    assert metrics.mean_scores(["x", "y"], ["x", ["z", "q"]]) == {"exact_match": 0.5, "f1": 0.5}
    with pytest.raises(ValueError, match="equally many, got 1 and 2"):
        metrics.mean_scores(["x"], ["x", "y"])
    with pytest.raises(ValueError, match="at least one reference"):
        metrics.exact_match("x", [])


@given(st.text(max_size=30), st.text(max_size=30))
def test_f1_is_symmetric_and_no_less_than_exact_match(left: str, right: str) -> None:
    assert metrics.exact_match(left, right) <= metrics.f1_score(left, right) <= 1.0
    assert metrics.f1_score(left, right) == pytest.approx(metrics.f1_score(right, left))
    assert metrics.exact_match(left, left) == 1.0


def test_retrieval_recall_and_precision() -> None:
    retrieved = np.array([[3, 1, 2], [5, -1, -1]])
    assert metrics.recall_at_k(retrieved, [[1, 9], [5]], 2) == pytest.approx(0.75)
    assert metrics.recall_at_k(retrieved, [[1, 9], [5]], 1) == pytest.approx(0.5)
    assert metrics.precision_at_k(retrieved, [[1, 9], [5]], 2) == pytest.approx(0.5)
    assert metrics.recall_at_k([["A", "B"]], [["B"]], 2) == 1.0
    passages = [["A", "A", "B"]]  # two of document A: two places, one document
    assert metrics.precision_at_k(passages, [["A"]], 3) == pytest.approx(2 / 3)
    assert metrics.recall_at_k(passages, [["A", "C"]], 3) == 0.5
    assert metrics.precision_at_k([[-1, 4]], [[-1]], 2) == 0.0  # a missing hit is no document
    with pytest.raises(ValueError, match="at least one document"):
        metrics.recall_at_k([[1]], [[]], 1)
    with pytest.raises(ValueError, match="k >= 1"):
        metrics.precision_at_k([[1]], [[1]], 0)


def test_collapse_shows() -> None:
    assert metrics.distinct_document_ratio([[1, 2], [3, 4]]) == 1.0
    assert metrics.distinct_document_ratio([[1, 2], [1, 2], [1, 2], [1, 2]]) == 0.25
    assert metrics.distinct_document_ratio([[7, -1], [7, -1]]) == 0.5
    assert metrics.distinct_document_ratio([[-1, -1]]) == 0.0
    assert metrics.mean_posterior_entropy(np.zeros((3, 4))) == pytest.approx(math.log(4))
    assert metrics.mean_posterior_entropy(np.array([[0.0, -np.inf], [5.0, 5.0]])) == pytest.approx(
        math.log(2) / 2
    )
    with pytest.raises(ValueError, match="finite value in every row"):
        metrics.mean_posterior_entropy(np.full((1, 2), -np.inf))
