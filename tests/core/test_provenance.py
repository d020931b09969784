"""Passages say where they come from: in files, knowledge bases, searches and answers."""

import json
from pathlib import Path

import numpy as np
import pytest

from rag_core.knowledge import KnowledgeBase, build_knowledge_base
from rag_core.knowledge.documents import find_files, find_roots
from rag_core.outputs import Answer, Passage, origin_of
from tests.support.knowledge_bases import build, hashed

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


def write(root, *names: str) -> list[Path]:
    paths = [root / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"words of {path.name}")
    return paths


def test_sources_tell_files_of_several_folders_apart(tmp_path, monkeypatch) -> None:
    write(tmp_path, "a/docs/x.txt", "b/docs/x.txt", "c/x.txt", "d/x.txt")
    names = [name for _, name in find_files([tmp_path / name for name in ("a/docs", "b/docs")])]
    assert names == ["a/docs/x.txt", "b/docs/x.txt"]
    names = [name for _, name in find_files([tmp_path / name for name in ("c/x.txt", "d/x.txt")])]
    assert names == ["c/x.txt", "d/x.txt"]
    (tmp_path / "link").symlink_to(tmp_path / "a" / "docs")
    monkeypatch.chdir(tmp_path / "a" / "docs")
    for root in (".", "../docs", tmp_path / "link"):
        assert [name for _, name in find_files(root)] == ["docs/x.txt"]
    assert find_roots([".", tmp_path / "link", "x.txt"]) == [
        (Path(), "docs"),
        (Path("x.txt"), "x.txt"),
    ]
    known = {tmp_path / "a" / "docs": "docs"}
    assert find_roots([".", "../../b/docs"], known) == [
        (Path(), "docs"),
        (Path("../../b/docs"), "b/docs"),
    ]


def test_a_base_finds_its_folders_again_wherever_all_of_it_goes(tmp_path) -> None:
    write(tmp_path, "here/docs/x.txt", "here/other/docs/y.txt", "here/z.txt")
    here = tmp_path / "here"
    options = {"encoder_name": "hashed", "progress": False}
    kb = build_knowledge_base([here / "docs", here / "z.txt"], here / "kb", hashed, **options)
    kb.add([here / "other" / "docs", here / "docs"], hashed, progress=False)
    assert str(tmp_path) not in (kb.path / "manifest.json").read_text()
    there = here.rename(tmp_path / "there")
    roots = KnowledgeBase.open(there / "kb").manifest.root_paths(there / "kb")
    assert roots == {
        there / "docs": "docs",
        there / "z.txt": "z.txt",
        there / "other" / "docs": "other/docs",
    }
    names = [source["path"] for source in kb.manifest.sources]
    assert names == ["docs/x.txt", "z.txt", "other/docs/y.txt", "docs/x.txt"]
    assert [name for _, name in find_files(roots, roots)] == names[:3]


@pytest.mark.parametrize("root", ["docs", {"path": "docs"}, {"path": "/etc", "name": "etc"}])
def test_roots_of_a_damaged_manifest(tmp_path, root) -> None:
    path = build(tmp_path, rows=8).path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"roots": [root]}))
    with pytest.raises(ValueError, match=r"damaged \(roots"):
        KnowledgeBase.open(tmp_path / "kb")
