"""Passages say where they come from: in files, knowledge bases, searches and answers."""

import numpy as np
import pytest

from rag_core.outputs import Answer, Passage, origin_of
from tests.support.knowledge_bases import build

FIRE = {"line": 12, "end_line": 20, "headings": ["Fire", "Wardens"]}


@pytest.mark.parametrize(
    ("source", "metadata", "origin"),
    [
        ("handbook/safety.md", FIRE, "handbook/safety.md:12-20 · Fire › Wardens"),
        ("notes.txt", {"line": 3, "end_line": 3}, "notes.txt:3"),
        ("report.pdf", {"page": 3, "end_page": 4}, "report.pdf p. 3-4"),
        ("people.csv", {"row": 7, "line": 9}, "people.csv row 7"),
        ("https://e.org/a", {"row": 3, "file": "pages.jsonl"}, "https://e.org/a row 3"),
        ("https://e.org/a", {"line": 3}, "https://e.org/a line 3"),
        ("talk.pptx", {"slide": 2}, "talk.pptx slide 2"),
        ("a.txt", {"line": "7", "headings": "no list"}, "a.txt"),
        (None, {}, "source unknown"),
        ("", {"line": 1}, "source unknown"),
    ],
)
def test_origins_are_for_people(source, metadata, origin) -> None:
    assert origin_of(source, metadata) == origin
    assert Passage(0, "T", "x", 1.0, 1.0, 1.0, source, metadata).origin == origin


def test_origins_in_ascii_and_in_json() -> None:
    assert origin_of("a.md", FIRE, encoding_ascii=True) == "a.md:12-20 - Fire > Wardens"
    passages = [Passage(3, "T", "x", 1.0, 0.5, 0.5, "a.md", FIRE), Passage(4, "U", "y", 1, 0, 0)]
    told = Answer("q", "a", -1.0, passages).to_dict()["passages"]
    assert [(p["source"], p["metadata"], p["origin"]) for p in told] == [
        ("a.md", FIRE, "a.md:12-20 · Fire › Wardens"),
        (None, {}, "source unknown"),
    ]


def test_a_search_tells_sources_and_rows(tmp_path) -> None:
    kb = build(tmp_path)
    [docs] = kb.index().get_doc_dicts(np.array([[4, 0]]))
    assert docs["source"] == ["corpus.jsonl"] * 2
    assert docs["metadata"] == [{"row": 5, "line": 5}, {"row": 1, "line": 1}]
