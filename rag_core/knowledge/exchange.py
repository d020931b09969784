"""The passages of a knowledge base as other libraries take them: one `datasets.Dataset`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rag_core.retrieval import METADATA_COLUMN, decode_metadata, encode_metadata

if TYPE_CHECKING:
    from datasets import Dataset

_ID = "id"
_KEPT = ("title", "text", "source")


def as_dataset(passages: Dataset, embeddings: bool) -> Dataset:
    """The data set of `KnowledgeBase.to_dataset`.

    Args:
        passages: those of the knowledge base.
        embeddings: whether the vectors are among its columns.
    """
    import datasets
    import pyarrow as pa

    table = passages.data.table
    ids = []
    rests: list[str | None] = []
    for row, text in enumerate(_texts(table)):
        metadata = decode_metadata(text, "the passages")
        own = metadata.pop(_ID, None)
        ids.append(_as_text(own) if own is not None else str(row))
        rests.append(encode_metadata(metadata, f"passage {row}") if metadata else None)
    columns: dict[str, Any] = {_ID: pa.array(ids, pa.string())}
    for name in _KEPT:
        columns[name] = pa.nulls(len(table), pa.string())
        if name in table.column_names:
            columns[name] = table.column(name)
    columns["metadata"] = pa.array(rests, pa.string())
    if embeddings:
        columns["embeddings"] = table.column("embeddings")
    return datasets.Dataset(pa.table(columns))


def _texts(table: Any) -> list[str | None]:
    """The JSON of each row's metadata; knowledge bases of before have none."""
    if METADATA_COLUMN not in table.column_names:
        return [None] * len(table)
    return table.column(METADATA_COLUMN).to_pylist()


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return str(value)
