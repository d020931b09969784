"""Files -> documents -> passages: nothing lost, nothing cut, and one clear error a fault."""

import csv
import json
import os
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_core.knowledge import documents
from rag_core.knowledge.files import BadFilesError, PassedByWarning, find_files
from rag_core.knowledge.passages import Document, read_documents, split_passages, split_text


@given(
    st.text(alphabet=st.sampled_from("ab.!? \n\t\u3042\u6f22\u3002é"), max_size=600),
    st.integers(1, 20),
)
def test_passages_hold_every_word_once_and_in_order(text: str, words: int) -> None:
    passages = list(split_text(text, words))
    assert "".join("".join(passages).split()) == "".join(text.split())
    latin = [p for p in passages if p.isascii()]
    assert all(1 <= len(p.split()) <= words + words // 5 for p in latin)
    if text.isascii():
        assert " ".join(passages).split() == text.split()


THAI = "\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e"
LAO = "\u0e9e\u0eb2\u0eaa\u0eb2\u0ea5\u0eb2\u0ea7"
KHMER = "\u1797\u17b6\u179f\u17b6\u1781\u17d2\u1798\u17c2\u179a"
BURMESE = "\u1015\u102f\u1002\u1039\u1002\u102d\u102f\u101c\u103a"
TIBETAN = "\u0f56\u0f7c\u0f51\u0f0b\u0f66\u0f90\u0f51\u0f0b"
KANA = "\uff76\uff9e\uff85\uff61"
MIXED = f"ab. \u200b{THAI}{LAO}{KHMER}{BURMESE}{TIBETAN}{KANA}\u6f22\U00020000"


@pytest.mark.parametrize(
    ("unit", "times", "least", "most"),
    [
        (THAI, 200, 150, 700),
        (LAO, 200, 150, 700),
        (KHMER, 200, 150, 1200),
        ("\ua9a7\ua9b1\ua997\ua9ae", 300, 300, 500),  # Javanese
        ("\u1b29\u1b2e\u1b36\u1b29\u1b32", 300, 300, 600),  # Balinese
        ("\u3105\u3106\u3107\u3108", 300, 100, 120),  # Bopomofo
        (BURMESE, 200, 150, 1200),
        (TIBETAN, 200, 150, 700),
        (KANA, 150, 50, 480),
        ("\U00020000\U0002a6d7", 200, 50, 120),
        ("QUJDREVG", 6250, 1000, 2400),  # base64
        ("https://e.org/a%20b/", 300, 1000, 2400),
        ("e\u0301\u0302", 2000, 1000, 2400),
    ],
)
def test_text_without_blanks_is_cut_between_letters_and_stays_whole(
    unit, times, least, most
) -> None:
    text = unit * times
    passages = list(split_text(text))
    assert "".join(passages) == text
    assert all(least <= len(passage) <= most for passage in passages[:-1]) and len(passages) > 1
    marks = tuple("\u0301\u0302\u0e38\u0f90\u1039\u103a\u17b6\u17c2\u17d2\uff9e")
    for one, other in pairwise(passages):
        assert not other.startswith(marks) and not one.endswith(("\u1039", "\u17d2", "\u0e40"))


def test_scripts_without_blanks_are_cut_at_the_blanks_they_have() -> None:
    phrase = THAI * 6
    assert {word for passage in split_text(f"{phrase} " * 30) for word in passage.split()} == {
        phrase
    }
    marked = "\u200b".join([THAI] * 100)  # zero-width spaces between words
    assert all(
        passage.strip("\u200b").count(THAI) * len(THAI) >= 50 for passage in split_text(marked, 40)
    )
    assert all(passage.endswith("\u17d4") for passage in split_text(f"{KHMER * 5}\u17d4" * 30))


def test_a_long_word_leaves_those_around_it_whole() -> None:
    text = "word " * 60 + "x" * 5000 + " word" * 60
    passages = list(split_text(text))
    assert passages[0] == ("word " * 60).strip() and [len(p) for p in passages[1:3]] == [2000, 2000]
    assert passages[3] == "x" * 1000 + " word" * 60
    assert list(split_text("y" * 400 + " z", 1)) == ["y" * 400, "z"]
    assert list(split_text("x" * 5000, None)) == ["x" * 5000]


@given(st.text(st.sampled_from(MIXED), max_size=300), st.integers(1, 20))
def test_no_letter_is_lost_in_mixed_scripts(text: str, words: int) -> None:
    assert "".join("".join(split_text(text, words)).split()) == "".join(text.split())


def test_cuts_follow_sentences_then_words() -> None:
    text = "One two three. Four five six seven. " + "w " * 12 + "Mr. X said no."
    assert list(split_text(text, 8)) == [text[:35], "w w w w w w w w", "w w w w Mr. X said no."]
    assert list(split_text("a b c d e f", 5)) == ["a b c d e f"]  # a rest of a fifth joins
    assert list(split_text("a  b\nc", None)) == ["a b c"]
    assert list(split_text("\u6f22" * 25, 10)) == ["\u6f22" * 10, "\u6f22" * 10, "\u6f22" * 5]
    with pytest.raises(ValueError, match="words must be a whole number of at least 1"):
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
        csv.writer(stream).writerows(
            [["Title", "text"], ["Q", 'said "hi",\nthen left'], ["blank", " "]]
        )
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
        ("notes.odt", b"x", r"cannot read \.odt; use \.txt.* save it as \.docx"),
        (
            "latin.txt",
            b"ok\nna\xefve\n",
            r"latin\.txt:2: text must be UTF-8, but byte 0xef at column 3",
        ),
        ("wide.txt", "x".encode("utf-16-le"), r"wide\.txt:1: NUL bytes, and no byte order mark"),
        (
            "one.csv",
            b"words\nhello\n",
            r"one\.csv: a table needs .* 'text' .*; it has one column, 'words'",
        ),
        (
            "wrong.tsv",
            b"text;title\na;b\n",
            r"wrong\.tsv: .* check that the suffix fits the separator",
        ),
        ("names.csv", b"a,b\n1,2\n", r"names\.csv: .*its columns are \['a', 'b'\]"),
        (
            "ragged.csv",
            b"text,title\na,b\nc,d,e\n",
            r"ragged\.csv:3: .*names 2 columns, this row has 3",
        ),
        (
            "quote.tsv",
            b'text\ttitle\n"Hi" he said\tT\n',
            r"quote\.tsv:2: .*must stand in double quotes",
        ),
        (
            "bad.jsonl",
            b'{"text": "a"}\n{"text": \n',
            r"bad\.jsonl:2: every line must be one JSON object",
        ),
        ("keys.jsonl", b'{"body": "a"}\n', r"keys\.jsonl:1: .*string 'text', got keys \['body'\]"),
        (
            "title.jsonl",
            b'{"text": "a", "title": 3}\n',
            r"title\.jsonl:1: 'title' must be a string, got 3",
        ),
        ("cut.parquet", b"PAR1 not really", r"cut\.parquet: not a readable parquet file"),
    ],
)
def test_bad_files_give_one_clear_error(
    tmp_path, name: str, content: bytes | None, says: str
) -> None:
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
    for name in ("c.log", "d.log", "e.log", "f.LOG", "g.xls", "Makefile", ".hidden"):
        (tmp_path / name).write_text("x")
    (tmp_path / "gone.md").symlink_to("nowhere")
    here = tmp_path.name
    with pytest.warns(PassedByWarning) as warned:
        assert [d.text for d in read_documents([tmp_path])] == ["b"]
    assert [str(each.message) for each in warned] == [
        f"passed by: 4 .log ({here}/c.log, {here}/d.log, {here}/e.log, ...), 1 .xls "
        f"({here}/g.xls), 1 empty ({here}/a.txt), 1 links to nothing ({here}/gone.md), 1 without "
        f"suffix ({here}/Makefile), 1 hidden ({here}/.hidden). "
        "A .xls file is read if you save its sheets as .csv."
    ]


def test_links_are_followed_and_nothing_is_read_twice(tmp_path) -> None:
    for name in ("base/own.txt", "elsewhere/deep/far.md", "blobs/0123"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    base = tmp_path / "base"
    (base / "folder").symlink_to(tmp_path / "elsewhere")
    (base / "again.txt").symlink_to("own.txt")
    (base / "z.txt").hardlink_to(base / "own.txt")
    (base / "loop").symlink_to(base)
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path)
    (base / "linked.txt").symlink_to(tmp_path / "blobs" / "0123")  # as a hub cache has them
    names = [name for _, name in find_files([base, base / "own.txt", base / "again.txt"])]
    assert names == ["base/again.txt", "base/folder/deep/far.md", "base/linked.txt"]
    found = [(d.title, d.text) for d in read_documents([base / "linked.txt", base])]
    assert found == [
        ("linked", "blobs/0123"),
        ("again", "base/own.txt"),
        ("far", "elsewhere/deep/far.md"),
    ]


def test_a_folder_that_cannot_be_opened_is_an_error(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.txt").write_text("a")

    def walk(root, onerror, followlinks):
        onerror(PermissionError(13, "Permission denied", f"{root}/private"))

    monkeypatch.setattr("os.walk", walk)
    with pytest.raises(
        OSError, match=r"private: the folder cannot be opened \(Permission denied\)"
    ):
        find_files(tmp_path)


def test_bad_files_are_named_together(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.csv").write_text("words\nx\n")
    (tmp_path / "c.jsonl").write_text("[1]\n")
    (tmp_path / "d.txt").write_text("fine")
    (tmp_path / "e.parquet").write_text("no")
    with pytest.raises(BadFilesError) as error:
        list(read_documents(tmp_path))
    assert [fault.split(":")[0].rpartition("/")[2] for fault in error.value.faults] == [
        "b.csv",
        "c.jsonl",
        "e.parquet",
    ]
    assert str(error.value).startswith("3 files cannot be read:\n")
    with pytest.raises(BadFilesError, match="2 files cannot be read"):
        find_files([tmp_path / "none.txt", tmp_path / "a.txt", tmp_path / "x.docx"])


MERGED = '1\t"To be\tHamlet\n2\tor not"\tHamlet\n'


def test_rows_that_quotes_may_have_merged_are_not_merged_in_silence(tmp_path) -> None:
    head = "id\ttext\ttitle\n0\tfine\tF\n"
    (tmp_path / "a.tsv").write_text(head + MERGED)
    with pytest.raises(
        ValueError, match=r"a\.tsv:3 to 4: quotes make one row of 2 lines.*tsv_quotes=False"
    ):
        list(read_documents(tmp_path / "a.tsv"))
    found = [
        (d.title, d.text, d.place[-2:])
        for d in read_documents(tmp_path / "a.tsv", tsv_quotes=False)
    ]
    assert found == [("F", "fine", ":2"), ("Hamlet", '"To be', ":3"), ("Hamlet", 'or not"', ":4")]
    (tmp_path / "a.tsv").write_text(head + '1\t"two\nlines"\tT\n')  # meant so
    assert [(d.text, d.place[-2:]) for d in read_documents(tmp_path / "a.tsv")][1] == (
        "two\nlines",
        ":3",
    )
    (tmp_path / "a.csv").write_text((head + MERGED).replace("\t", ","))
    with pytest.warns(
        UserWarning,
        match=r"a\.csv:3 to 4: quotes make one row of 2 lines, each of which looks like a row",
    ):
        list(read_documents(tmp_path / "a.csv"))
    (tmp_path / "a.csv").write_text('text,title\n"Prose, with commas,\nand lines",T\n')
    assert len(list(read_documents(tmp_path / "a.csv"))) == 1
    (tmp_path / "a.csv").write_text('title;text;office\n"A;B";one, and two;3\n')
    [row] = read_documents(tmp_path / "a.csv")
    assert (row.title, row.text, row.metadata["office"]) == ("A;B", "one, and two", "3")
    (tmp_path / "a.csv").write_text('text,title\n"never\nclosed,T\n')
    with pytest.raises(ValueError, match=r"a\.csv:2 to 3: unexpected end of data"):
        list(read_documents(tmp_path / "a.csv"))


def test_tables_of_old_machines_and_null_cells(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.csv").write_bytes(b'text,title\r"one\rtwo",A\rthree,B\r')
    assert [(d.text, d.title) for d in read_documents(tmp_path / "a.csv")] == [
        ("one\rtwo", "A"),
        ("three", "B"),
    ]
    (tmp_path / "b.jsonl").write_text('{"text": "a", "title": null}\n{"text": null}\n')
    with pytest.warns(PassedByWarning, match=r"passed by: 1 row\(s\) without text \(b\.jsonl:2\)"):
        assert [d.title for d in read_documents(tmp_path / "b.jsonl")] == ["b"]
    (tmp_path / "c.csv").write_text("text,Text\na,b\n")
    with pytest.raises(ValueError, match="got 'text' twice"):
        list(read_documents(tmp_path / "c.csv"))
    table = pa.table({"text": pa.array(["x", "x", "y"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "d.parquet")
    assert [d.text for d in read_documents(tmp_path / "d.parquet")] == ["x", "x", "y"]
    raw = pa.array([b"ok", b"\xff"], pa.binary())
    pq.write_table(pa.table({"text": raw.view(pa.string())}), tmp_path / "e.parquet")
    with pytest.raises(ValueError, match=r"e\.parquet row 2: text must be UTF-8"):
        list(read_documents(tmp_path / "e.parquet"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
def test_a_file_name_that_is_no_text_still_makes_a_title(tmp_path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    path.write_text("x")
    assert [d.title for d in read_documents(tmp_path)] == ["caf\ufffd"]
    assert [name for _, name in find_files(tmp_path)] == [f"{tmp_path.name}/caf\\xe9.txt"]


def test_parquet_columns_must_hold_strings(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "n.parquet")
    with pytest.raises(ValueError, match=r"column 'text' must hold strings, got int64"):
        list(read_documents(tmp_path / "n.parquet"))
