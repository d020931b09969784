"""How answers look: on narrow, wide, plain and colourless terminals."""

import io
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rag_core.cli.show import show_answer
from rag_core.display import answer_spans
from rag_core.outputs import Answer, Passage

FIRE = Passage(
    5,
    "Fire — Wardens",
    "Rules for all floors come first and are long. " * 8
    + "The fire warden of the third floor is MRS. ADA BYRON: ask her. "
    + "More rules follow. " * 8,
    1.0,
    0.842,
    0.95,
    "handbook/safety.md",
    {"line": 12, "end_line": 20, "headings": ["Fire", "Wardens"]},
)
PEOPLE = Passage(
    6, "People", "Ada Byron\n    third floor", 1.0, 0.1, 0.04, "people.csv", {"row": 7}
)
OLD = Passage(812, "War and Peace", "A novel. " * 40, 1.0, 0.06, 0.01)
ANSWER = Answer(
    "Who is the fire warden of the third floor?", "Mrs Ada Byron", -4.5, [FIRE, PEOPLE, OLD]
)


def shown(width: int = 80, answer: Answer = ANSWER, full: bool = False, **console) -> str:
    stream = io.StringIO()
    show_answer(answer, Console(width=width, file=stream, **console), full=full)
    return stream.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_an_answer_is_short_and_as_wide_as_the_terminal(width: int) -> None:
    lines = shown(width).splitlines()
    assert max(map(len, lines)) <= width and len(lines) < {40: 30, 80: 16, 120: 14}[width]
    text = " ".join(" ".join(lines).replace("│", " ").split())
    for part in (
        "Who is the fire warden of the third floor?",
        "this exact wording: p = 1.1 %",
        "handbook/safety.md:12-20 · Fire › Wardens",
        "People people.csv row 7",
        "War and Peace row 812",
        "84.2 %",
        "95.0 %",
    ):
        assert part in text


def test_a_snippet_is_cut_around_the_answer_and_its_words_are_marked() -> None:
    colours = shown(120, force_terminal=True, color_system="standard")
    assert " … " in colours and "third floor is \x1b[1;7mMRS. ADA BYRON\x1b[0m:" in colours
    assert colours.count("\x1b[1;7m") == 1  # in the passage that the answer owes most to
    assert "\x1b" not in shown(120) and "MRS. ADA BYRON: ask her." in shown(120)
    assert "novel. A …" in shown()


def test_whole_passages_keep_their_lines() -> None:
    text = shown(200, full=True)
    assert " ".join(text.split()).count("A novel.") == 40 and "     Ada Byron" in text
    assert "\n         third floor" in text and "…" not in text


def test_a_plain_terminal_gets_ascii_alone() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    show_answer(ANSWER, Console(width=80, file=stream))
    stream.flush()
    text = stream.buffer.getvalue().decode("ascii")
    assert (
        "########--" in text
        and "12-20 - Fire > Wardens" in " ".join(text.split())
        and "..." in text
    )


def test_words_of_an_answer_are_found_whatever_their_case_and_punctuation() -> None:
    found = [
        text[start:end]
        for text in ["In 1869, war & PEACE."]
        for start, end in answer_spans(text, "war peace")
    ]
    assert found == ["war & PEACE"]
    text = "The peace of 1869 and the war"
    assert [text[a:b] for a, b in answer_spans(text, "the Peace of 25, 1869")] == ["peace", "1869"]
    assert answer_spans(text, "") == answer_spans(text, "?!") == answer_spans("", "war") == []


@given(
    st.lists(st.sampled_from(["Ada", "BYRON", "of", "x", "1869", "émile"]), max_size=30), st.data()
)
def test_a_run_of_words_is_marked_wherever_it_is_taken_from(words: list[str], data) -> None:
    text = textwrap.fill(", ".join(words), 20)
    start = data.draw(st.integers(0, len(words)))
    run = words[start : start + 3]
    spans = answer_spans(text, " ".join(run).upper())
    assert bool(spans) == bool(run)
    for begin, end in spans:
        assert [word.strip(",") for word in text[begin:end].split()] == run
