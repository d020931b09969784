"""Files -> documents -> passages: nothing lost, nothing cut, and one clear error a fault."""

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_core import documents
from rag_core.passages import Document, read_documents, split_passages, split_text


@given(st.text(alphabet=st.sampled_from("ab.!? \n\t\u3042\u6f22\u3002é"), max_size=600), st.integers(1, 20))
def test_passages_hold_every_word_once_and_in_order(text: str, words: int) -> None:
    passages = list(split_text(text, words))
    assert "".join("".join(passages).split()) == "".join(text.split())
    latin = [p for p in passages if p.isascii()]
    assert all(1 <= len(p.split()) <= words + words // 5 for p in latin)
    if text.isascii():
        assert " ".join(passages).split() == text.split()


def test_cuts_follow_sentences_then_words() -> None:
    text = "One two three. Four five six seven. " + "w " * 12 + "Mr. X said no."
    assert list(split_text(text, 8)) == [text[:35], "w w w w w w w w", "w w w w Mr. X said no."]
    assert list(split_text("a b c d e f", 5)) == ["a b c d e f"]  # a rest of a fifth joins
    assert list(split_text("a  b\nc", None)) == ["a b c"]
    assert list(split_text("\u6f22" * 25, 10)) == ["\u6f22" * 10, "\u6f22" * 10, "\u6f22" * 5]
    with pytest.raises(ValueError, match="words must be at least 1"):
        list(split_text("a", 0))


def test_dpr_sized_passages_of_a_long_text_are_disjoint() -> None:
    rows = list(split_passages(Document("T", " ".join(map(str, range(1000))), "x")))
    assert [len(row["text"].split()) for row in rows] == [100] * 10
    assert {row["title"] for row in rows} == {"T"}


def test_every_kind_of_file_and_a_folder_of_them(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.txt").write_text("no")
    (folder / "a.txt").write_text("\ufeffplain text", encoding="utf-8")
    (folder / "b.md").write_text(
        "---\ntitle: x\n---\nIntro [link](http://x.y).\n# Guide\nTop.\n\n"
        "## Install ##\n```sh\n# no heading\n```\nDone.\n"
    )
    with (folder / "c.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["Title", "text"], ["Q", 'said "hi",\nthen left'], ["blank", " "]])
    (folder / "d.tsv").write_text('id\ttext\ttitle\n1\t"Aaron ""the"" prophet"\tAaron\n')
    (folder / "sub" / "e.jsonl").write_text('{"text": "j", "title": "J"}\n\n{"text": "k"}\n')
    pq.write_table(pa.table({"title": ["P"], "text": ["parquet"]}), folder / "sub" / "f.parquet")
    (folder / "sub" / "ignored.bin").write_bytes(b"\0")
    found = [(d.title, " ".join(d.text.split())) for d in read_documents(folder)]
    assert found == [
        ("a", "plain text"),
        ("b", "Intro link."),
        ("Guide", "Top."),
        ("Guide — Install", "```sh # no heading ``` Done."),
        ("Q", 'said "hi", then left'),
        ("Aaron", 'Aaron "the" prophet'),
        ("J", "j"),
        ("e", "k"),
        ("P", "parquet"),
    ]


def test_a_field_and_a_file_larger_than_the_limits_stream_through(tmp_path, monkeypatch) -> None:
    limit = csv.field_size_limit()
    (tmp_path / "big.csv").write_text("text,title\n" + "word " * 60_000 + ",Big\n")
    assert len(next(iter(read_documents(tmp_path / "big.csv"))).text.split()) == 60_000
    assert csv.field_size_limit() == limit
    monkeypatch.setattr(documents, "BLOCK_CHARS", 1000)
    (tmp_path / "big.txt").write_text("line of words\n" * 500)
    blocks = list(read_documents(tmp_path / "big.txt"))
    assert len(blocks) > 5 and "".join(block.text for block in blocks) == "line of words\n" * 500


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.txt", None, r"none\.txt: no such file"),
        ("empty.txt", b"", r"empty\.txt: the file is empty"),
        ("blank.txt", b" \n ", r"blank\.txt: the file holds no text"),
        ("notes.docx", b"x", r"cannot read \.docx; use \.txt"),
        ("latin.txt", b"ok\nna\xefve\n", r"latin\.txt:2: text must be UTF-8, but byte 0xef at column 3"),
        ("wide.txt", "x".encode("utf-16-le"), r"wide\.txt:1: a NUL byte"),
        ("one.csv", b"words\nhello\n", r"one\.csv: a table needs .* 'text' .*; it has one column, 'words'"),
        ("wrong.tsv", b"text;title\na;b\n", r"wrong\.tsv: .* check that the suffix fits the separator"),
        ("names.csv", b"a,b\n1,2\n", r"names\.csv: .*its columns are \['a', 'b'\]"),
        ("ragged.csv", b"text,title\na,b\nc,d,e\n", r"ragged\.csv:3: .*names 2 columns, this row has 3"),
        ("quote.tsv", b'text\ttitle\n"Hi" he said\tT\n', r"quote\.tsv:2: .*must stand in double quotes"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', r"bad\.jsonl:2: every line must be one JSON object"),
        ("keys.jsonl", b'{"body": "a"}\n', r"keys\.jsonl:1: .*string 'text', got keys \['body'\]"),
        ("title.jsonl", b'{"text": "a", "title": 3}\n', r"title\.jsonl:1: 'title' must be a string, got 3"),
        ("cut.parquet", b"PAR1 not really", r"cut\.parquet: not a readable parquet file"),
    ],
)
def test_bad_files_give_one_clear_error(tmp_path, name: str, content: bytes | None, says: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        list(read_documents(path))


def test_a_folder_passes_by_empty_files_with_a_warning_and_refuses_to_be_bare(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"holds none of \.txt, \.md"):
        list(read_documents(tmp_path))
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "b"}))
    with pytest.warns(UserWarning, match=r"a\.txt is empty"):
        assert [d.text for d in read_documents([tmp_path])] == ["b"]


def test_parquet_columns_must_hold_strings(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "n.parquet")
    with pytest.raises(ValueError, match=r"column 'text' must hold strings, got int64"):
        list(read_documents(tmp_path / "n.parquet"))
