"""What is trained on: examples read, their order, the learning rate of each step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_core.training.config import learning_rate_factor
from rag_core.training.data import DataOrder, Example, read_examples


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
