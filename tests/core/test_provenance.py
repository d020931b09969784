"""Passages say where they come from: in files, knowledge bases, searches and answers."""

import json
import shutil
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from rag_core.hub import DamagedFileError, read_lines
from rag_core.knowledge import KnowledgeBase, build_knowledge_base
from rag_core.knowledge.documents import Document, read_documents
from rag_core.knowledge.embedding import PROBE, read_batches
from rag_core.knowledge.files import find_files, find_roots
from rag_core.knowledge.passages import (
    _ABBREVIATION,
    _SENTENCE_END,
    WORD_CHARS,
    split_passages,
    split_text,
)
from rag_core.outputs import Answer, Passage, origin_of
from rag_core.retrieval import FaissIndex, read_docs
from rag_core.retrieval.passage_files import write_passages
from rag_core.tokenization import LONGEST_WORD, words_of
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
    write(tmp_path, "q/a/docs/x.txt")
    named = find_files([tmp_path / name for name in ("a/docs", "b/docs", "q/a")])
    assert len({name for _, name in named}) == len(named) == 3
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
    kb.add([here / "other" / "docs"], hashed, progress=False)
    with pytest.raises(ValueError, match=r"must be new to .*, got docs/x\.txt"):
        kb.add(here / "docs", hashed, progress=False)
    assert str(tmp_path) not in (kb.path / "manifest.json").read_text()
    there = here.rename(tmp_path / "there")
    roots = KnowledgeBase.open(there / "kb").manifest.root_paths(there / "kb")
    assert roots == {
        there / "docs": "docs",
        there / "z.txt": "z.txt",
        there / "other" / "docs": "other/docs",
    }
    names = [source["path"] for source in kb.manifest.sources]
    assert names == ["docs/x.txt", "z.txt", "other/docs/y.txt"]
    assert [name for _, name in find_files(roots, roots)] == names


@pytest.mark.parametrize("root", ["docs", {"path": "docs"}, {"path": "/etc", "name": "etc"}])
def test_roots_of_a_damaged_manifest(tmp_path, root) -> None:
    path = build(tmp_path, rows=8).path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"roots": [root]}))
    with pytest.raises(ValueError, match=r"damaged \(roots"):
        KnowledgeBase.open(tmp_path / "kb")


def old_rule(text: str, words: int) -> list[str]:
    """Passages as they were cut before they knew their places."""
    limit = max(LONGEST_WORD, WORD_CHARS * words)
    spans = words_of(text, limit)
    parts = [text[span.start : span.end] for span in spans]
    passages = []
    while parts:
        sizes = list(accumulate((len(part) + 1 for part in parts), initial=0))
        end = min(words, bisect_right(sizes, limit + 1) - 1, len(parts))
        last = end = max(1, end)
        while end >= max(1, last // 2) and not is_end_of_sentence(parts[end - 1]):
            end -= 1
        if end < max(1, last // 2):
            end = last
            while spans[last - 1].splits and end >= max(1, last // 2) and spans[end - 1].splits:
                end -= 1
            if end < max(1, last // 2):
                end = last
        if len(parts) <= words + words // 5 and sizes[-1] <= limit + limit // 5 + 1:
            end = len(parts)
        passages.append(" ".join(text[spans[0].start : spans[end - 1].end].split()))
        parts, spans = parts[end:], spans[end:]
    return passages


def is_end_of_sentence(word: str) -> bool:
    return bool(_SENTENCE_END.search(word)) and not _ABBREVIATION.match(word)


TEXTS = st.text(st.sampled_from("ab.! \n\t\u00a0\u3042\u6f22\u3002\u0e01é"), max_size=400)


@given(TEXTS, st.integers(1, 9))
def test_texts_are_cut_as_before_wherever_they_come_from(text: str, words: int) -> None:
    expected = old_rule(text, words)
    assert list(split_text(text, words)) == expected
    marks = [(0, {"line": 1}), (len(text) // 2, {"line": 2})]
    rows = split_passages(Document("T", text, "x", marks=marks), words)
    assert [row["text"] for row in rows] == expected


LINES = st.lists(
    st.tuples(st.text(" abc.\u6f22\t", max_size=12), st.sampled_from("\n \r\n \r".split(" ")))
)


@given(LINES, st.integers(1, 9))
def test_the_lines_of_a_plain_text_hold_a_passages_words(lines, words: int) -> None:
    text = "".join(f"{line}{end}" for line, end in lines)
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.txt")
        path.write_bytes(text.encode() or b"\n")
        numbered = ["", *(line for _, line in read_lines(path))]
        rows = []
        if text.strip():
            rows = [row for doc in read_documents(path) for row in split_passages(doc, words)]
    for row in rows:
        assert row["source"] == "a.txt" and row["metadata"].keys() <= {"line", "end_line"}
        first = row["metadata"]["line"]
        last = row["metadata"].get("end_line", first)
        held = "".join(numbered[first : last + 1])
        assert "".join(row["text"].split()) in "".join(held.split())
        assert row["text"][0] in numbered[first] and row["text"][-1] in numbered[last]


MARKDOWN = """# Guide

Read the lines
of this paragraph.

## Code

Run it so:

```python
def double(x):
    return 2 * x
```

| name | floor |
|------|------:|
| Ann  |     1 |

And that is all
there `is to
it`, really.
"""


def test_code_and_tables_keep_their_lines(tmp_path) -> None:
    path = tmp_path / "guide.md"
    path.write_text(MARKDOWN)
    rows = [row for doc in read_documents(path) for row in split_passages(doc)]
    assert [(row["text"], row["metadata"]) for row in rows] == [
        ("Read the lines of this paragraph.", {"headings": ["Guide"], "line": 3, "end_line": 4}),
        (
            "Run it so:\n```python\ndef double(x):\n    return 2 * x\n```\n"
            "| name | floor |\n|------|------:|\n| Ann  |     1 |\n"
            "And that is all there `is to it`, really.",
            {"headings": ["Guide", "Code"], "line": 8, "end_line": 21},
        ),
    ]
    cut = [row for doc in read_documents(path) for row in split_passages(doc, 6)]
    assert [(row["text"], row["metadata"]["line"]) for row in cut[1:5]] == [
        ("Run it so:\n```python\ndef double(x):", 8),
        ("    return 2 * x\n```", 12),
        ("| name | floor |\n|------|------:|", 15),
        ("| Ann  |     1 |", 17),
    ]
    assert "end_line" not in cut[4]["metadata"]


@given(TEXTS, st.integers(1, 9), st.lists(st.integers(0, 400), max_size=6, unique=True))
def test_what_is_kept_changes_no_word(text: str, words: int, places) -> None:
    edges = sorted(text.rfind("\n", 0, place) + 1 for place in places)
    kept = [
        (start, end) for start, end in zip(edges[::2], edges[1::2], strict=False) if start < end
    ]
    rows = split_passages(Document("T", text, "x", kept=kept), words)
    joined = "".join("".join(row["text"].split()) for row in rows)
    assert joined == "".join(text.split())
    [whole] = split_passages(Document("T", f".{text}.", "x", kept=[(0, len(text) + 2)]), None)
    assert whole["text"] == f".{text}."


def test_metadata_must_be_json() -> None:
    for value in (float("nan"), b"x", {1}, "\ud800"):
        with pytest.raises(ValueError, match=r"a\.x:7: metadata must be JSON, got .*key"):
            list(split_passages(Document("T", "x", "a.x:7", metadata={"key": value})))
    many = {str(number): "y" * 1000 for number in range(70)}
    with pytest.raises(ValueError, match=r"a\.x:7: metadata must have at most 65,536 characters"):
        list(split_passages(Document("T", "x", "a.x:7", metadata=many)))
    long = {"headings": ["y" * 70_000], "n": 1}
    [row] = split_passages(Document("T", "x", "a.x:7", metadata=long))
    assert row["metadata"] == {"headings": ["y" * 1000], "n": 1}


STORED = Path(__file__).parents[1] / "data" / "stored" / "knowledge"


def told(kb: KnowledgeBase, rows: list[int]) -> list[tuple[str | None, dict, str]]:
    """Source, metadata and origin of passages, as a search gives them."""
    [docs] = read_docs(kb.index(), np.array([rows]), np.zeros((1, len(rows), 1)))
    pairs = zip(docs["source"], docs["metadata"], strict=True)
    return [(source, metadata, origin_of(source, metadata)) for source, metadata in pairs]


def test_a_base_of_before_is_asked_and_changed(tmp_path) -> None:
    kb = KnowledgeBase.open(shutil.copytree(STORED, tmp_path / "kb"))
    assert kb.dataset().column_names == ["title", "text", "embeddings"]
    assert kb.index().get_doc_dicts(np.array([[0]]))[0].keys() == {"title", "text"}
    probe = np.array(kb.manifest.encoder["probe"], np.float32)
    (tmp_path / "new.txt").write_text("one\ntwo\n")

    def encode(titles: list[str], texts: list[str]) -> np.ndarray:
        return np.tile(probe, (len(texts), 1))

    before = list(kb.dataset()["text"])
    assert kb.add(tmp_path / "new.txt", encode, progress=False) == 1
    assert kb.remove([0]) == 1
    kb = KnowledgeBase.open(tmp_path / "kb")
    assert list(kb.dataset()["text"]) == [*before[1:], "one two"]
    assert kb.dataset()["metadata_json"][0] is None
    unknown = (None, {}, "source unknown")
    known = ("new.txt", {"line": 1, "end_line": 2}, "new.txt:1-2")
    assert told(kb, [0, len(kb) - 1, -1]) == [unknown, known, unknown]


def as_before(kb: KnowledgeBase) -> None:
    """Makes a knowledge base what an earlier release wrote."""
    passages = Dataset.from_dict(kb.dataset().to_dict(), kb.dataset().features)
    shutil.rmtree(kb.path / "passages")
    write_passages(passages.remove_columns(["source", "metadata_json"]), kb.path / "passages")
    kb.manifest.roots = []
    kb.manifest.write(kb.path)


def test_asking_again_finds_a_base_of_before_done(tmp_path) -> None:
    as_before(build(tmp_path))
    stamp = (tmp_path / "kb" / "manifest.json").stat().st_mtime_ns
    kb = build(tmp_path)
    assert (kb.path / "manifest.json").stat().st_mtime_ns == stamp
    assert kb.dataset().column_names == ["title", "text", "embeddings"]


def test_shards_of_before_keep_their_vectors(tmp_path, monkeypatch) -> None:
    def stop(*_: object) -> None:
        raise OSError("stopped")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="stopped"):
        patch.setattr("rag_core.retrieval.write_faiss", stop)
        build(tmp_path)
    shards = sorted((tmp_path / "kb.work").glob("shard-*.arrow"))
    for path in shards:
        [batch] = read_batches([path])
        old = batch.select(["title", "text", "embeddings"])
        path.unlink()
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, old.schema) as writer:
            writer.write_batch(old)
    encoded: list[str] = []

    def counting(titles: list[str], texts: list[str]) -> np.ndarray:
        encoded.extend(texts)
        return hashed(titles, texts)

    options = {"encoder_name": "hashed", "progress": False, "shard_rows": 16, "batch_size": 4}
    kb = build_knowledge_base(tmp_path / "corpus.jsonl", tmp_path / "kb", counting, **options)
    assert len(shards) == 4 and encoded == [PROBE[1]]
    vectors = np.array(kb.dataset()["embeddings"], np.float32)
    rows = kb.dataset()
    np.testing.assert_array_equal(vectors, hashed(list(rows["title"]), list(rows["text"])))
    assert told(kb, [16])[0][2] == "corpus.jsonl row 17"


@pytest.mark.parametrize("value", ["{", "[1]", '{"a": NaN}', "x" * 70_000, "[" * 10_000])
def test_damaged_metadata_of_others_is_one_error(tmp_path, value: str) -> None:
    kb = build(tmp_path, rows=2)
    rows = kb.dataset().to_dict() | {"metadata_json": ['{"row": 1}', value]}
    write_passages(Dataset.from_dict(rows), tmp_path / "passages")
    index = FaissIndex.from_files(tmp_path / "passages", kb.path / "index.faiss")
    assert index.get_doc_dicts(np.array([[0]]))[0]["metadata"] == [{"row": 1}]
    with pytest.raises(DamagedFileError, match=r"column 'metadata_json' of .*passages must hold"):
        index.get_doc_dicts(np.array([[1]]))


def test_columns_of_a_data_set_of_ones_own_are_what_they_are(tmp_path) -> None:
    kb = build(tmp_path, rows=2)
    rows = {name: kb.dataset()[name][:] for name in ("title", "text", "embeddings")}
    own = {"source": [7, 8], "metadata": ["{no json", ""], "metadata_json": ["[", "["]}
    write_passages(Dataset.from_dict(rows | own), tmp_path / "passages")
    index = FaissIndex.from_files(tmp_path / "passages", kb.path / "index.faiss")
    [docs] = index.get_doc_dicts(np.array([[0, 1]]))
    assert {name: docs[name] for name in own} == own
