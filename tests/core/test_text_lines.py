"""The reader of text lines: encodings, line ends and numbers; JSON lines.

The three readers built on it.
"""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_core.hub.text_lines import read_lines, scan_lines
from rag_core.knowledge.documents import read_documents
from rag_core.parity.command import read_questions
from rag_core.training.data import Example, read_examples

TEXT = "na\u00efve \u6f22\u5b57\r\nsecond \U0001f600\rthird\n\nlast"
LINES = [
    (1, "na\u00efve \u6f22\u5b57\r\n"),
    (2, "second \U0001f600\r"),
    (3, "third\n"),
    (4, "\n"),
    (5, "last"),
]


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
    ],
)
def test_encodings_and_line_ends_give_the_same_lines(tmp_path, data) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    assert list(read_lines(tmp_path / "a.txt")) == LINES
    assert [tuple(line)[:2] for line in scan_lines(io.BytesIO(data), "a")] == LINES


def test_marks_of_joined_files_go_and_no_character_else() -> None:
    data = "\ufeffa\n\ufeffb\ufeffc\x0b\u2028d\x85\n".encode()
    assert [line.text for line in scan_lines(io.BytesIO(data), "a")] == [
        "a\n",
        "b\ufeffc\x0b\u2028d\x85\n",
    ]


@given(st.binary(max_size=60))
def test_any_bytes_give_lines_or_faults_and_none_is_lost(data: bytes) -> None:
    lines = list(scan_lines(io.BytesIO(data), "x"))
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))
    assert all(line.fault.startswith(f"x:{line.number}: ") for line in lines if line.fault)
    if not data.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")) and not any(
        line.fault for line in lines
    ):
        assert "".join(line.text for line in lines) == data.decode().lstrip("\ufeff").replace(
            "\n\ufeff", "\n"
        ).replace("\r\ufeff", "\r")


@pytest.mark.parametrize(
    ("data", "number", "says"),
    [
        (
            b"a\n" * 3000 + b"b\nx\xe9y\n",
            3002,
            "text must be UTF-8, but byte 0xe9 at column 2 is not.*WINDOWS-1252",
        ),
        # half a surrogate pair, written as UTF-8
        (b"a\r\xed\xa0\x80\r", 2, "byte 0xed at column 1"),
        (b"a\nb\xc3", 2, "byte 0xc3 at column 2"),
        (b"ab\ncd\0e\n", 2, "a NUL byte, so this is no text file"),
        ("hello\n".encode("utf-16-le"), 1, "looks like UTF-16.*iconv -f UTF-16LE -t UTF-8 q.jsonl"),
        ("hello\n".encode("utf-16-be"), 1, "looks like UTF-16.*iconv -f UTF-16BE"),
        (
            "\u0434\u0430, \u0434\u0430 \u0434\u0430\n".encode("utf-16-le"),
            1,
            "looks like UTF-16.*iconv -f UTF-16LE",
        ),  # NUL in blanks alone
        (
            "\u0434\u0430, \u0434\u0430 \u0434\u0430\n".encode("utf-16-be"),
            1,
            "looks like UTF-16.*iconv -f UTF-16BE",
        ),
        ("a\nb".encode("utf-16") + b"\0", 2, "not UTF-16 as its first bytes say"),
        (
            "\ufeffa\nb\ud800c".encode("utf-16-le", "surrogatepass"),
            2,
            r"half of a surrogate pair \(\\ud800\) at column 2",
        ),
    ],
)
def test_what_is_no_text_is_named_with_its_line_by_every_reader(
    tmp_path, data, number, says
) -> None:
    path = tmp_path / "q.jsonl"
    for read in (
        lambda path: list(read_documents(path.rename(path.with_suffix(".txt")))),
        read_questions,
        read_lines,
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=says.replace("q.jsonl", "q")) as error:
            list(read(path))
        assert f":{number}: " in str(error.value)
    path.write_bytes(b'{"question": "q", "answer": "a"}\n' + data)
    if not data.startswith(b"\xff\xfe") and b"\0" not in data.partition(b"\n")[0]:
        with pytest.raises(ValueError, match=r"q\.jsonl:2: every line must be one JSON object"):
            read_examples(path)


JSON_FAULTS = [
    (
        r'{"text": "broken \ud83d", "question": "broken \ud83d", "answer": "a"}',
        r"half of a surrogate pair \(\\ud83d\)",
    ),
    (r'{"text": "a\u0000b", "question": "a\u0000b", "answer": "a"}', "a NUL at character 2"),
    ('{"text": NaN, "question": NaN, "answer": "a"}', "got nan|'text' nan"),
    ('{"text": "a", "text": "b", "question": "a"}', "the key 'text' comes twice"),
    ('{"text": ' + "9" * 5000 + "}", "every line must be one JSON object: Exceeds the limit"),
    ('{"text": ' + "[" * 100_000 + "}", "every line must be one JSON object"),
    ('["text"]', "got a JSON list"),
]


@pytest.mark.parametrize(("line", "says"), JSON_FAULTS)
def test_json_that_holds_no_text_is_refused_where_it_stands(tmp_path, line, says) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "t", "question": "q", "answer": "a"}\n\n' + line + "\n")
    for read in (read_documents, read_questions, read_examples):
        if read is read_questions and line.startswith("["):
            continue  # a question of its own
        with pytest.raises(ValueError, match=says) as error:
            list(read(path))
        assert str(error.value).startswith(f"{path}:3: ")


@pytest.mark.parametrize(
    "field",
    ['"answer": ["ok", "\\ud83d"]', '"answer": "a", "passage": {"title": "\\u0000", "text": ""}'],
)
def test_answers_and_passages_are_looked_at_too(tmp_path, field) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"question": "q", "answer": "a", "passage": {"title": NaN, "text": "t"}}\n'
    )
    with pytest.raises(
        ValueError, match=r'a\.jsonl:1: "title" of "passage" must be a text, got nan'
    ):
        read_examples(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text('{"question": "q", ' + field + "}\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:1: .* must be text, but holds"):
        read_examples(tmp_path / "a.jsonl")


def test_files_of_other_layouts_get_their_own_advice(tmp_path) -> None:
    rows = [{"question": "q", "answer": "a", "text": "t"}]
    for indent, says in (
        (2, r"a\.jsonl:1: .*The file is a JSON array.*jq -c '\.\[\]'"),
        (None, "The file is a JSON array"),
    ):
        (tmp_path / "a.jsonl").write_text(json.dumps(rows, indent=indent))
        for read in (read_documents, read_examples, read_questions):
            with pytest.raises(ValueError, match=says):
                list(read(tmp_path / "a.jsonl"))
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0], indent=2))
    with pytest.raises(ValueError, match=r"If the objects are written over several lines.*jq -c"):
        read_examples(tmp_path / "a.jsonl")


def test_marked_and_wide_files_are_read_by_all(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    line = '{"question": "\u00e9?", "answer": "x", "text": "\u00e9?", "title": null}'
    for data in (f"\ufeff{line}\n", line.replace("}", "}\r"), f"\n\n{line}"):
        for encoding in ("utf-8", "utf-16"):
            path.write_bytes(data.encode(encoding))
            assert read_examples(path) == [Example("\u00e9?", ("x",))]
            assert read_questions(path) == ["\u00e9?"]
            assert [(d.title, d.text) for d in read_documents(path)] == [("a", "\u00e9?")]
