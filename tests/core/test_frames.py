"""Tables in memory, Arrow files and data sets as the text of knowledge bases."""

import json
import warnings
import zlib
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from rag_core import KnowledgeBase, build_knowledge_base
from rag_core.knowledge import PassedByWarning, read_documents
from rag_core.knowledge.frames import as_frame

DIMENSION = 8
FRAME = pd.DataFrame(
    {
        "id": ["a", "b", "c"],
        "title": ["One", None, "Three"],
        "text": ["the first text", "the second", "the third"],
        "metadata": [{"by": "Ada", "page": 3}, {"by": "Bob"}, None],
        "year": pd.Categorical(["1999", "2001", "1999"]),
    }
)


def encode(titles: list[str], texts: list[str]) -> np.ndarray:
    rows = [f"{title}|{text}".encode() for title, text in zip(titles, texts, strict=True)]
    generators = [np.random.default_rng(zlib.crc32(row)) for row in rows]
    return np.stack([each.standard_normal(DIMENSION) for each in generators]).astype(np.float32)


def ones(titles: list[str], texts: list[str]) -> np.ndarray:
    return np.ones((len(texts), DIMENSION), np.float32)


def build(table, out: Path, **options) -> KnowledgeBase:
    return build_knowledge_base(table, out, encode, progress=False, **options)


def test_a_frame_is_read_like_a_file(tmp_path) -> None:
    kb = build(FRAME, tmp_path / "kb")
    passages = kb.dataset()[:]
    assert passages["title"] == ["One", "", "Three"]
    assert passages["text"] == list(FRAME["text"])
    assert [json.loads(text) for text in passages["metadata_json"]] == [
        {"id": "a", "by": "Ada", "page": 3, "year": "1999"},
        {"id": "b", "by": "Bob", "year": "2001", "row": 2},
        {"id": "c", "year": "1999", "row": 3},
    ]
    [source] = set(passages["source"])
    assert source.startswith("DataFrame-")
    assert np.array_equal(passages["embeddings"], encode(passages["title"], passages["text"]))
    # asked again for what is there, it is found done
    assert build(FRAME.copy(), tmp_path / "kb").manifest == kb.manifest
    with pytest.raises(FileExistsError, match="files are others"):
        build(FRAME[:2], tmp_path / "kb")


def test_all_libraries_give_the_same_passages(tmp_path) -> None:
    plain = FRAME.assign(year=FRAME["year"].astype(str))
    table = pa.Table.from_pandas(plain)
    chunked = pa.concat_tables([table.slice(1, 2), table.slice(0, 1)]).take([2, 0, 1])
    shuffled = datasets.Dataset.from_pandas(plain[::-1].reset_index(drop=True)).select([2, 1, 0])
    parquet = tmp_path / "f.parquet"
    plain.to_parquet(parquet)
    want = build(FRAME, tmp_path / "kb").dataset().remove_columns("source")[:]
    others = {"pandas": plain, "arrow": chunked, "datasets": shuffled, "parquet": parquet}
    for name, other in others.items():
        kb = build(other, tmp_path / name)
        rows = kb.dataset().remove_columns("source")[:]
        assert rows == want, name


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"text": ["a"]}, TypeError, "got dict. Make a frame"),
        (FRAME["text"], TypeError, r"to_frame\('text'\)"),
        (datasets.DatasetDict(), TypeError, "one of its splits"),
        (pd.DataFrame({"body": ["a"]}), ValueError, "needs a column 'text'.*'body'"),
        (pd.DataFrame({"text": [1]}), ValueError, "must hold strings, got int64"),
        (pd.DataFrame({"text": ["a", 1]}), ValueError, "hold one type each.*Convert"),
        (pd.DataFrame({"text": [" "]}), ValueError, "holds no text"),
    ],
)
def test_other_things_are_refused(given, error, match, tmp_path) -> None:
    with pytest.raises(error, match=match):
        build(given, tmp_path / "kb")
    assert not any(tmp_path.iterdir())


def test_a_knowledge_base_goes_out_and_comes_back(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("A line.\nAnother one.\n")
    kb = build(tmp_path / "notes.txt", tmp_path / "kb")
    kb.add(FRAME, encode, progress=False)
    dataset = kb.to_dataset()
    assert dataset.column_names == ["id", "title", "text", "source", "metadata", "embeddings"]
    assert dataset["id"][:] == ["0", "a", "b", "c"]
    assert "embeddings" not in kb.to_dataset(embeddings=False).column_names

    def only_the_probe(titles: list[str], texts: list[str]) -> np.ndarray:
        assert len(texts) == 1
        return encode(titles, texts)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = KnowledgeBase.from_dataset(
            dataset, tmp_path / "back", only_the_probe, progress=False
        )
    again = back.to_dataset()
    assert again.remove_columns("metadata")[:] == dataset.remove_columns("metadata")[:]
    for before, after in zip(dataset["metadata"], again["metadata"], strict=True):
        metadata = json.loads(after)
        assert metadata.pop("file").startswith("Dataset-")
        assert metadata == json.loads(before)
    # rows of other texts or another encoder do not keep their vectors
    rolled = dataset.select([1, 0, 2, 3]).remove_columns("embeddings")
    rolled = rolled.add_column("embeddings", dataset["embeddings"][:])
    for table, encoder in ((rolled, encode), (dataset, lambda *texts: -encode(*texts))):
        with pytest.raises(ValueError, match="row 1: embeddings must hold vectors of the encoder"):
            KnowledgeBase.from_dataset(table, tmp_path / "no", encoder, progress=False)
    for hole in (None, float("nan")):
        vectors = [[1.0] * DIMENSION, [hole] * DIMENSION]
        table = pd.DataFrame({"text": ["a", "b"], "embeddings": vectors})
        with pytest.raises(ValueError, match=r"row 2: embeddings must hold finite numbers"):
            build_knowledge_base(table, tmp_path / "hole", ones, embeddings="embeddings")
    with pytest.raises(ValueError, match="embeddings must be one of the table's columns"):
        build(FRAME, tmp_path / "no", embeddings="vectors")


def test_a_base_of_a_table_says_what_can_be_done(tmp_path) -> None:
    kb = build(FRAME, tmp_path / "kb")
    with pytest.raises(ValueError, match="built of a table in memory"):
        kb.update()
    with pytest.raises(ValueError, match="which it holds already"):
        kb.add(FRAME, encode, progress=False)
    assert kb.add(FRAME.assign(year="2020"), encode, progress=False) == 3
    # beside files, tables stay what they are
    (tmp_path / "notes.txt").write_text("A line.")
    kb.add(tmp_path / "notes.txt", encode, progress=False)
    (tmp_path / "notes.txt").write_text("Another one.")
    assert kb.update(encode=encode, progress=False).changed == ["notes.txt"]
    assert len(kb) == 7
    # what was removed of a table may be added again, there is no update for it
    kb.remove(where=f"file={as_frame(FRAME).name}")
    assert kb.add(FRAME, encode, progress=False) == 3
    assert kb.update(encode=encode, progress=False).unchanged == 3


def test_arrow_files_are_read_where_they_are_named(tmp_path) -> None:
    FRAME.to_feather(tmp_path / "f.feather")
    dataset = datasets.Dataset.from_dict({"text": ["a", "b"], "title": ["A", "B"]})
    dataset.save_to_disk(tmp_path / "saved")
    documents = [*read_documents([tmp_path / "f.feather", tmp_path / "saved"])]
    assert [document.title for document in documents] == ["One", "", "Three", "A", "B"]
    assert documents[-1].source == "saved/data-00000-of-00001.arrow"
    (tmp_path / "f.feather").write_bytes((tmp_path / "f.feather").read_bytes()[:400])
    with pytest.raises(ValueError, match=r"f\.feather"):
        list(read_documents(tmp_path / "f.feather"))
    # a folder may hold knowledge bases and half-done work
    (tmp_path / "notes.txt").write_text("A line.")
    with pytest.warns(PassedByWarning, match=r"\.arrow"):
        names = [document.source for document in read_documents(tmp_path)]
    assert names == [f"{tmp_path.name}/notes.txt"]


@pytest.mark.beyond
def test_a_polars_frame_is_read_like_a_file(tmp_path) -> None:
    import polars as pl

    frame = pl.DataFrame(pa.Table.from_pandas(FRAME.assign(year=FRAME["year"].astype(str))))
    want = build(FRAME, tmp_path / "kb").dataset().remove_columns("source")[:]
    for name, table in {"plain": frame, "enum": frame.cast({"year": pl.Categorical})}.items():
        got = build(table, tmp_path / name).dataset().remove_columns("source")[:]
        assert got == want, name
    with pytest.raises(TypeError, match=r"got LazyFrame. Call its collect"):
        build(frame.lazy(), tmp_path / "lazy")
    back = KnowledgeBase.open(tmp_path / "plain").to_dataset().to_polars()
    assert back["id"].to_list() == ["a", "b", "c"]
