"""What is trained on: examples read, their order, the learning rate of each step."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_core.training.batch_passages import passage_rows
from rag_core.training.config import TrainingConfig, learning_rate_factor
from rag_core.training.data import DataOrder, Example, read_examples
from rag_core.training.state import fingerprint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", r"qa.jsonl:2: every line must be one JSON object: Expecting value"),
        ('["q", "a"]', r"qa.jsonl:2: every line must be one JSON object, got a JSON list"),
        (
            '{"question": " ", "answer": "a"}',
            r'qa.jsonl:2: "question" must be a text that is not empty',
        ),
        (
            '{"question": "q", "answer": "a", "x": ' + "[" * 100000 + "]" * 100000 + "}",
            r"qa.jsonl:2: every line must be one JSON object: it is nested more than 64 deep",
        ),
        (
            '{"question": "q"}',
            r'qa.jsonl:2: "answer" must be a text or a list.*got an object with the keys .\'question',
        ),
        (
            '{"q": "q", "a": "a"}',
            r'qa.jsonl:2: "question" must be .* keys .\'a\', \'q\'.*Rename one',
        ),
        (
            '{"question": "q", "answer": "a"},',
            r"qa.jsonl:2: every line .* Extra data at column 33\. Mend the line",
        ),
        ('{"question": "q", "answer": ["a", 3]}', r'qa.jsonl:2: "answer" must be a text or a list'),
        (
            '{"question": "q", "answer": "a", "passage": "p"}',
            r'qa.jsonl:2: "passage" must be an object',
        ),
        (
            '{"question": "q", "answer": "a", "answerable": false}',
            r'qa.jsonl:2: "answerable" must be true, or false',
        ),
        (
            '{"question": "q", "answer": "a", "positive": "p"}',
            r'qa.jsonl:2: "positive" must be an object with title and text.* got .p.',
        ),
        (
            '{"question": "q", "answer": "a", "positive": {"title": "t", "text": " "}}',
            r'qa.jsonl:2: "positive" must be an object',
        ),
        (
            '{"question": "q", "answer": "a", "negatives": {"id": 3}}',
            r'qa.jsonl:2: "negatives" must be a list of passages',
        ),
        (
            '{"question": "q", "answer": "a", "negatives": [{"id": 3}, {"id": true}]}',
            r'qa.jsonl:2: each of "negatives" must be an object',
        ),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "qa.jsonl"
    path.write_text('{"question": "q", "answers": ["a", "b"]}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_examples(path)


def test_examples_are_read(tmp_path):
    path = tmp_path / "qa.jsonl"
    path.write_text(
        '{"question": "q ", "answers": ["a", "b"]}\n\n{"question": "é", "answer": "x", "id": 7}\n',
        "utf-8",
    )
    assert read_examples(path) == [Example("q", ("a", "b")), Example("é", ("x",))]
    path.write_text("\n")
    with pytest.raises(ValueError, match="no question in it"):
        read_examples(path)
    path.write_text('{"question": ' + "[" * 100000)  # the first line tells whose the file is
    with pytest.raises(ValueError, match=r"qa.jsonl:1: .* nested more than 64 deep"):
        read_examples(path)


def test_passages_of_contrastive_training_are_read_from_our_files_and_from_dprs(tmp_path):
    named = Example("q", ("a",), positive=("T", "x"), negatives=(3, "d4", ("", "y")))
    path = tmp_path / "qa.jsonl"
    negatives = [{"id": 3}, {"id": "d4"}, {"text": "y"}]
    line = {"question": "q", "answer": "a", "positive": {"title": "T", "text": "x"}}
    path.write_text(json.dumps({**line, "negatives": negatives}))
    assert read_examples(path) == [named]
    contexts = {
        "positive_ctxs": [{"title": "T", "text": "x"}, {"title": "T", "text": "z"}],
        "negative_ctxs": [{"title": "", "text": "easy"}],
        "hard_negative_ctxs": [{"title": "", "text": "hard", "psg_id": 7}],
    }
    path = tmp_path / "dpr.json"
    path.write_text(json.dumps([{"question": "q", "answers": ["a"], **contexts}]))
    [example] = read_examples(path)
    assert example == Example("q", ("a",), None, True, ("T", "x"), (("", "hard"), ("", "easy")))
    path = tmp_path / "nq.tsv"
    path.write_text("q\t['a', 'b']\n")
    assert read_examples(path) == [Example("q", ("a", "b"))]
    path = tmp_path / "patterns.jsonl"
    path.write_text(json.dumps({"question": "q", "golden_answers": []}))
    with pytest.raises(ValueError, match=r"golden_answers|answers must be texts"):
        read_examples(path)


def test_what_a_run_is_known_by_changes_with_named_passages_alone():
    plain = Example("q", ("a",))
    assert repr(plain) == "Example(question='q', answers=('a',), passage=None, answerable=True)"
    marks = [
        fingerprint([example], TrainingConfig())["examples_sha256"]
        for example in (plain, replace(plain, positive=3), replace(plain, negatives=(3,)))
    ]
    assert len(set(marks)) == 3
    assert marks[0] == hashlib.sha256(repr(plain).encode()).hexdigest()


@given(
    size=st.integers(1, 40),
    seed=st.integers(0, 5),
    start=st.integers(0, 100),
    count=st.integers(0, 60),
)
@settings(max_examples=60, deadline=None)
def test_data_order_is_known_at_any_position_and_covers_every_epoch(size, seed, start, count):
    whole = DataOrder(size, seed).rows(0, start + count)
    assert DataOrder(size, seed).rows(start, count) == whole[start:]
    for epoch in range(len(whole) // size):
        assert sorted(whole[epoch * size : (epoch + 1) * size]) == list(range(size))


@given(warmup=st.integers(0, 20), total=st.integers(1, 60))
def test_learning_rate_rises_then_falls_and_is_never_zero_before_the_end(warmup, total):
    factors = [learning_rate_factor(step, warmup, total) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    top = factors.index(max(factors))
    assert factors == sorted(factors[: top + 1]) + sorted(factors[top + 1 :], reverse=True)
    assert learning_rate_factor(total, min(warmup, total), total) == 0.0


def test_passages_of_a_batch_count_once_and_are_told_from_those_that_answer_something_else():
    questions = np.array([[5, 6], [7, 0], [5, 6]])
    ids = np.array([[[1, 2], [3, 4]], [[3, 4], [9, 0]], [[8, 8], [0, 0]]])
    mask = (ids > 0).astype(np.int64)
    rows = passage_rows(questions, ids, mask)
    assert sorted(map(tuple, rows.ids.tolist())) == [(1, 2), (3, 4), (8, 8), (9, 0)]
    assert rows.ids[rows.positive].tolist() == [[1, 2], [3, 4], [8, 8]]
    masked = [rows.ids[row].tolist() for row in rows.masked]
    assert masked == [[[8, 8]], [], [[1, 2]]]  # the first and the last question are the same
    assert passage_rows(questions, ids, None).ids.shape == (5, 2)  # the row of zeros is one, too
    for faulty, message in (
        ((questions, ids[:2], mask[:2]), r"shape \(questions, passages, tokens\), for 3 questions"),
        ((questions, ids, mask * (ids != 8)), "none for question 2"),
        ((questions[:1], ids[:1, :1], None), "one passage alone for 1 questions"),
    ):
        with pytest.raises(ValueError, match=message):
            passage_rows(*faulty)
