"""Reciprocal rank fusion of two indexes, by its formula."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_core.retrieval.bm25 import Bm25Index
from rag_core.retrieval.hybrid import HybridIndex
from rag_core.retrieval.reranked import RerankedIndex
from rag_core.retrieval.search import search
from tests.support.evaluations import Countable
from tests.support.knowledge_bases import build, hashed

ROWS = 12
LISTS = st.lists(st.integers(0, ROWS - 1), unique=True, max_size=ROWS)


class Fixed:
    """Finds the same rows whatever is asked."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return ROWS

    def get_top_docs(self, question_hidden_states, n_docs=5):
        rows = [*self.rows[:n_docs], *[-1] * (n_docs - len(self.rows))]
        shape = len(question_hidden_states), n_docs
        vectors = np.ones((*shape, question_hidden_states.shape[1]), np.float32)
        return np.tile(rows, (shape[0], 1)), vectors


def by_formula(lists, k):
    """Row -> log of the sum of 1 / (k + rank); Cormack, Clarke and Buettcher 2009."""
    scores = {}
    for row in {row for rows in lists for row in rows}:
        scores[row] = np.log(sum(1 / (k + 1 + rows.index(row)) for rows in lists if row in rows))
    return scores


@settings(max_examples=40, deadline=None)
@given(LISTS, LISTS, st.integers(1, ROWS + 2), st.integers(1, ROWS), st.sampled_from([0, 1, 60]))
def test_scores_and_order_are_the_formulas(first, second, n_docs, depth, k) -> None:
    index = HybridIndex(Fixed(first), Fixed(second), k=k, depth=depth)
    queries = np.array([[0.5, -2.0]], np.float32)
    ids, vectors = index.get_top_docs(queries, n_docs)
    depth = max(depth, n_docs)
    expected = by_formula([first[:depth], second[:depth]], k)
    best = sorted(expected, key=lambda row: (-expected[row], row))[:n_docs]
    assert ids[0].tolist() == best + [-1] * (n_docs - len(best))
    scores = vectors[0, : len(best)] @ queries[0]
    np.testing.assert_allclose(scores, [expected[row] for row in best], rtol=1e-5, atol=1e-6)
    assert not vectors[0, len(best) :].any()


def test_p_of_a_passage_is_its_share() -> None:
    ids, vectors = HybridIndex(Fixed([3, 1]), Fixed([1, 7])).get_top_docs(np.ones((1, 4)), 3)
    shares = np.exp(vectors[0].sum(axis=1))
    assert ids.tolist() == [[1, 3, 7]]
    np.testing.assert_allclose(shares, [1 / 62 + 1 / 61, 1 / 61, 1 / 62], rtol=1e-5)


def test_vectors_and_words_of_a_knowledge_base(tmp_path) -> None:
    kb = build(tmp_path, index="hybrid")
    data = kb.dataset()
    title, text = data[7]["title"], data[7]["text"]
    hits = kb.search(f"{title} {text}", k=3, encoder=lambda texts: hashed([""] * len(texts), texts))
    assert hits[0].id == 7 and hits[0].score == pytest.approx(np.log(2 / 61))
    index = kb.index()
    assert index.needs_text and index.needs_vectors and index.vector_size == 16
    queries = hashed([""], [text])
    found, _ = search(index.where("title!=" + title), queries, 3, 8, [text])
    assert 7 not in found
    unknown, _ = search(index, queries, 2, 8, ["nothing known"])  # BM25 has no rank for any
    assert unknown.tolist() == search(kb.index(search="vectors"), queries, 2, 8)[0].tolist()


def test_a_score_of_zero_is_a_rank_where_it_does_not_mean_that_no_word_is_shared() -> None:
    dense = Countable(["ab", "cd"], ["ef", "gh"], np.eye(2, dtype=np.float32))
    distances = RerankedIndex(
        dense, lambda _, passages: [-float("ab" in text) for text in passages]
    )
    both = HybridIndex(distances, Bm25Index(dense))
    assert search(both, np.ones((1, 2)), 2, 8, ["nothing"])[0].tolist() == [[1, 0]]


def test_what_cannot_be_joined_is_told() -> None:
    short = Bm25Index(Countable(["ab"], ["cd"], np.ones((1, 2), np.float32)))
    with pytest.raises(ValueError, match=r"of the same passages, got 12 and 1 of them"):
        HybridIndex(Fixed([]), short)
    with pytest.raises(ValueError, match=r"k must be"):
        HybridIndex(short, short, k=-1)
