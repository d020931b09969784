import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_core.generation.beam import (
    BeamSearch,
    RowSearch,
    SearchResult,
    _BeamHypotheses,
    order_candidates,
)
from rag_core.generation.candidates import collect_candidates

# Random score tables and what transformers 4.37.2's BeamSearchScorer made of them.
CASES = json.loads((Path(__file__).parents[1] / "data" / "beam_search.json").read_text())
EOS, PAD = 2, 1


def advance(search: BeamSearch, log_probs: np.ndarray) -> np.ndarray:
    """One step over log-probabilities (Q, K, V); returns the beams continued."""
    vocab_size = log_probs.shape[2]
    total = (log_probs + search.scores[..., None]).reshape(len(log_probs), -1)
    places = np.broadcast_to(np.arange(total.shape[1]), total.shape)
    scores, flat = order_candidates(total, places, search.candidates)
    return search.step(scores, flat % vocab_size, flat // vocab_size)[1]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_equal_to_the_reference(case):
    questions, beams = case["Q"], case["K"]
    search = BeamSearch(
        searches=questions,
        beams=beams,
        start_token_id=EOS if case["eos"] else 0,
        max_length=case["L"],
        eos_token_ids=tuple(case["eos"]),
        pad_token_id=PAD,
        length_penalty=case["lp"],
        early_stopping=case["es"],
        num_return_sequences=case["n"],
    )
    for table in case["tables"]:
        assert not search.done
        advance(
            search, (np.array(table, np.float32) / np.float32(1000)).reshape(questions, beams, -1)
        )
    assert search.done
    finished = search.finish()
    assert finished.sequences.tolist() == case["sequences"]
    assert finished.beam_indices.tolist() == case["beam_indices"]
    np.testing.assert_allclose(finished.scores, case["scores"], atol=1e-5)


def every_sequence(
    table: np.ndarray, max_length: int, length_penalty: float
) -> list[tuple[float, list[int]]]:
    """All sequences a chain of log-probabilities (steps, V, V) can write, best first."""
    found = []
    size = table.shape[1]
    for length in range(1, max_length):
        for tail in product([t for t in range(size) if t != EOS], repeat=length - 1):
            for last in range(size) if length == max_length - 1 else [EOS]:
                tokens = [0, *tail, last]
                total = sum(table[i, tokens[i], tokens[i + 1]] for i in range(length))
                found.append((total / length**length_penalty, tokens))
    return sorted(found, reverse=True)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.7, 1.0, 2.0]), st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_beams_wide_enough_find_what_enumeration_finds(seed, length_penalty, max_length):
    table = np.random.default_rng(seed).normal(size=(3, 4, 4))
    table -= np.log(np.exp(table).sum(axis=2, keepdims=True))
    search = BeamSearch(
        searches=1,
        beams=27,
        start_token_id=0,
        max_length=max_length,
        eos_token_ids=(EOS,),
        pad_token_id=PAD,
        length_penalty=length_penalty,
        num_return_sequences=3,
    )
    while not search.done:
        advance(search, table[search.length - 1][search.tokens[:, :, -1]])
    finished = search.finish()
    best = every_sequence(table, max_length, length_penalty)[:3]
    np.testing.assert_allclose(finished.scores, [score for score, _ in best], atol=1e-9)
    written = [
        row[:n].tolist() for row, n in zip(finished.sequences, finished.lengths, strict=True)
    ]
    assert written == [tokens for _, tokens in best]


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([(), (2,), (2, 3)]),
    st.sampled_from([True, False, "never"]),
)
@settings(max_examples=60, deadline=None)
def test_what_holds_of_every_search(seed, searches, beams, eos, early_stopping):
    rng = np.random.default_rng(seed)
    search = BeamSearch(
        searches=searches,
        beams=beams,
        start_token_id=0,
        max_length=6,
        eos_token_ids=eos,
        pad_token_id=PAD,
        early_stopping=early_stopping,
        num_return_sequences=beams,
    )
    tables = []
    while not search.done:
        scores = rng.normal(size=(searches, beams, 7))
        tables.append(scores - np.log(np.exp(scores).sum(axis=2, keepdims=True)))
        before, ended = search.tokens.copy(), search.finished.copy()
        sources = advance(search, tables[-1])
        for q in np.flatnonzero(~ended):
            assert (search.tokens[q, :, :-1] == before[q, sources[q]]).all()
            assert not np.isin(search.tokens[q, :, -1], eos).any()
            assert (np.diff(search.scores[q]) <= 0).all()
        assert (search.finished | ~ended).all()
    finished = search.finish()
    assert (np.diff(finished.scores.reshape(searches, beams), axis=1) <= 0).all()
    for row, length, score, path in zip(
        finished.sequences, finished.lengths, finished.scores, finished.beam_indices, strict=True
    ):
        assert 2 <= length <= 6 and (row[length:] == PAD).all()
        steps = path[path >= 0]
        assert len(steps) == length - 1
        at = [tables[i][k // beams, k % beams, row[i + 1]] for i, k in enumerate(steps)]
        # with several end tokens 4.37.2 writes the first, whichever it was
        if score > -1e8 and len(eos) < 2:
            np.testing.assert_allclose(sum(at) / (length - 1), score, rtol=1e-4)


@pytest.mark.parametrize("length_penalty", [32, -32, 32.0, -32.0])
def test_the_longest_sequence_and_the_furthest_length_penalty_make_a_number(length_penalty):
    # a prompt may make a sequence longer than `max_length` can be asked to be
    search = _BeamHypotheses(2, length_penalty, lambda better, worse: None)
    search.add(np.zeros(3), -1e4, np.zeros(3), 2**17)
    (best,) = search.best(1)
    assert np.isfinite(best.score) and best.score < 0


def test_of_equals_the_lowest_index_goes_first():
    scores, flat = order_candidates(np.array([[1.0, 3.0, 1.0, 3.0]]), np.array([[9, 7, 2, 4]]), 3)
    assert flat.tolist() == [[4, 7, 2]] and scores.tolist() == [[3.0, 3.0, 1.0]]


def test_too_few_candidates_that_go_on_are_an_error():
    search = BeamSearch(
        searches=1, beams=2, start_token_id=0, max_length=5, eos_token_ids=(EOS,), pad_token_id=PAD
    )
    with pytest.raises(ValueError, match="for 2 beams"):
        search.step(np.zeros((1, 4)), np.array([[2, 2, 2, 5]]), np.zeros((1, 4), int))


def test_rows_end_one_by_one():
    rows = RowSearch(
        rows=3, start_token_id=0, max_length=4, eos_token_ids=(EOS, 3), pad_token_id=PAD
    )
    rows.step(np.array([2, 5, 6]), np.array([-1.0, -2.0, -3.0]))
    assert rows.step(np.array([7, 3, 6]), np.array([-1.0, -2.0, -3.0])).tolist() == [PAD, 3, 6]
    assert rows.finished.tolist() == [True, True, False] and not rows.done
    rows.stop(np.array([False, False, True]))
    finished = rows.finish()
    assert rows.done and finished.lengths.tolist() == [2, 3, 3]
    assert finished.sum_log_probs.tolist() == [-1.0, -4.0, -6.0]


def found(rows: list[list[int]], lengths: list[int]) -> SearchResult:
    return SearchResult(np.array(rows), np.array(lengths), np.zeros(len(rows)))


def test_candidates_are_distinct_and_keep_the_first_place():
    rows = [[0, 5, 2, 1], [0, 6, 2, 1], [0, 5, 2, 1], [0, 7, 7, 2], [0, 7, 7, 2], [0, 7, 7, 2]]
    finished = found(rows, [3, 3, 3, 4, 4, 4])
    c = collect_candidates(finished, 3, pad_token_id=9, do_deduplication=True)
    assert c.tokens.tolist() == [[[0, 5, 2, 9], [0, 6, 2, 9]], [[0, 7, 7, 2], [9, 9, 9, 9]]]
    assert c.exists.tolist() == [[True, True], [True, False]]
    np.testing.assert_allclose(
        np.exp(c.pooled(np.log([[0.1, 0.3, 0.2], [0.1, 0.1, 0.4]])))[:, 0], [0.3, 0.6]
    )
    tokens, scores = c.best(np.array([[-2.0, -1.0], [-5.0, 0.0]]), 2)
    assert tokens.tolist() == [[0, 6, 2, 9], [0, 5, 2, 9], [0, 7, 7, 2], [9, 9, 9, 9]]
    assert scores.tolist() == [-1.0, -2.0, -5.0, -np.inf]
    every = collect_candidates(finished, 3, pad_token_id=9, do_deduplication=False)
    assert every.tokens.shape == (2, 3, 4) and every.exists.all()
    assert every.best(np.zeros((2, 3)), 1)[0].tolist() == [[0, 5, 2, 9], [0, 7, 7, 2]]
