"""Further columns of tables: where rows come from, and metadata that is JSON."""

import json
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_core.knowledge.columns import TAKEN, Columns, as_json
from rag_core.knowledge.documents import PassedByWarning, read_documents
from rag_core.retrieval import decode_metadata, encode_metadata


def read(path) -> list[tuple[str | None, dict]]:
    return [(document.source, dict(document.metadata)) for document in read_documents(path)]


def test_rows_of_csv_say_where_they_come_from(tmp_path) -> None:
    (tmp_path / "a.csv").write_text(
        'id,text,title,line, Year,Year,,Source\n1,x,T,9,1999,a,b,\n\n2,"y\nz",T,,,,,http://e.org\n'
    )
    assert read(tmp_path / "a.csv") == [
        (
            "a.csv",
            {
                **{"id": "1", "column_line": "9", "Year": "1999", "column_Year": "a"},
                **{"column_7": "b", "row": 1, "line": 2},
            },
        ),
        (
            "http://e.org",
            {
                **{"id": "2", "column_line": "", "Year": "", "column_Year": "", "column_7": ""},
                **{"row": 2, "line": 4, "end_line": 5, "file": "a.csv"},
            },
        ),
    ]


def test_rows_of_jsonl_say_where_they_come_from(tmp_path) -> None:
    rows = [
        {"url": "http://e.org/a", "text": "a", "n": 1.5, "tags": ["x", 2, None]},
        {"text": "b", "source": "s", "url": "u", "file": "f", "ok": True, "none": None},
        {"text": "c", "source": 7, "row": 3},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(tmp_path / "a.jsonl") == [
        (
            "http://e.org/a",
            {"n": 1.5, "tags": ["x", 2, None], "row": 1, "line": 1, "file": "a.jsonl"},
        ),
        (
            "s",
            {
                **{"url": "u", "column_file": "f", "ok": True, "none": None},
                **{"row": 2, "line": 2, "file": "a.jsonl"},
            },
        ),
        ("a.jsonl", {"column_source": 7, "column_row": 3, "row": 3, "line": 3}),
    ]


def test_columns_of_parquet_are_read_by_type(tmp_path) -> None:
    day = datetime(2020, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    table = pa.table(
        {
            "text": ["a", "b"],
            "url": ["http://e.org/a", None],
            "year": [1999, None],
            "share": [1.5, float("nan")],
            "price": [Decimal("1.50"), Decimal("2.25")],
            "day": [date(2020, 1, 2)] * 2,
            "at": pa.array([day] * 2, pa.timestamp("us", tz="UTC")),
            "tags": [["a", "b"], None],
            "a.b": ["dot", "dot"],
            "a": [{"b": 1}] * 2,
            "image": [b"x", b"y"],
            "vector": [[1.0], [2.0]],
            "span": [timedelta(1)] * 2,
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    says = r"passed by: 4 column\(s\) .* \(a\.parquet: a, struct.* image, binary, .* vector, list<"
    with pytest.warns(PassedByWarning, match=says):
        [first, second] = read(tmp_path / "a.parquet")
    assert first == (
        "http://e.org/a",
        {
            **{"year": 1999, "share": 1.5, "price": 1.5, "day": "2020-01-02", "tags": ["a", "b"]},
            **{"at": "2020-01-02T03:04:05+00:00", "a.b": "dot", "row": 1, "file": "a.parquet"},
        },
    )
    source, metadata = second
    assert source == "a.parquet" and metadata["share"] is metadata["year"] is None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("x" * 1001, "longer than 1,000 characters"),
        ({"a": 1}, "objects"),
        (10**40, "more than 38 digits"),
        (["x" * 600] * 2, "long lists"),
        (list(range(2000)), "long lists"),
        ("a\ud800", "half of a surrogate pair"),
        ("a\0", "a NUL"),
    ],
)
def test_cells_that_are_no_metadata_are_passed_by(tmp_path, value, reason) -> None:
    rows = [{"text": "a", "k": 1}, {"text": "b", "k": value}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(PassedByWarning, match=rf"passed by: 1 column.*: k, {reason}"):
        assert [metadata.get("k") for _, metadata in read(tmp_path / "a.jsonl")] == [1, None]


NAMES = st.sampled_from(["a", "b", "", " a", "column_a", "column_line", "url", *TAKEN])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=10,
)


@settings(max_examples=30)
@given(st.lists(NAMES, max_size=70), st.data())
def test_every_further_column_has_a_name_of_its_own(names, data) -> None:
    left_out: dict[str, str] = {}
    source, metadata = Columns(names, (), left_out).read(list(range(len(names))))
    assert source is None and not metadata.keys() & set(TAKEN)
    assert len(metadata) == min(64, len(names)) and sorted(metadata.values()) == list(
        metadata.values()
    )
    row = {name: data.draw(JSON) for name in metadata}
    source, again = Columns(list(metadata), (), left_out).read(list(row.values()))
    assert decode_metadata(encode_metadata(again, "x"), "x") == again


def test_tables_that_python_cannot_hold_are_bad_files(tmp_path) -> None:
    days = pa.array([0, 10**7, 0], pa.int32()).cast(pa.date32())
    table = pa.table({"text": ["a", "b", "c"], "day": days})
    pq.write_table(table, tmp_path / "days.parquet")
    (tmp_path / "long.csv").write_text('text,"' + "x" * 200_000 + '"\na,b\n')
    (tmp_path / "broken.csv").write_text('text,"' + "x" * 200_000)
    with pytest.raises(ValueError, match=r"days\.parquet row 2: must hold values that Python has"):
        list(read_documents(tmp_path / "days.parquet"))
    with pytest.raises(ValueError, match=r"broken\.csv:1: unexpected end of data"):
        list(read_documents(tmp_path / "broken.csv"))
    with pytest.warns(PassedByWarning, match=r"(?s)broken\.csv.*days\.parquet"):
        found = list(read_documents(tmp_path, skip_bad=True))
    assert [document.text for document in found] == ["a"]


def test_numbers_that_are_none_are_null() -> None:
    assert [as_json(float(name)) for name in ("nan", "inf", "-inf")] == [None] * 3
