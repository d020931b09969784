"""Tables in memory, a row a document: pandas and polars frames, Arrow tables, `datasets.Dataset`.

Whoever has such a table has its library loaded; nothing here imports one of them.

Letters: B rows, D vector size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.knowledge.documents import Document, PassedBy, ReadingOptions, read_file
from rag_core.knowledge.embedding import call_encoder, passage_schema, same_probe, text_row
from rag_core.knowledge.passages import split_passages
from rag_core.knowledge.tables import arrow_documents
from rag_core.retrieval import copied_batch

if TYPE_CHECKING:
    import pyarrow as pa

    from rag_core.knowledge.embedding import Encode

BATCH_ROWS = 1000
_WHAT = (
    "files, folders or one table in memory (a pandas or polars DataFrame, an Arrow table, a "
    "datasets.Dataset)"
)
_ADVICE = {
    "LazyFrame": "Call its collect().",
    "DatasetDict": "Give one of its splits.",
    "IterableDatasetDict": "Give one of its splits, loaded without streaming.",
    "IterableDataset": "Load it without streaming.",
    "Series": "Give a frame with a column 'text': its to_frame('text').",
}


class Frame:
    """A table in memory, which is read like a file.

    Args:
        table: a frame of pandas or polars, whatever else offers Arrow's C stream, or a
            `datasets.Dataset`.

    Attributes:
        name: what its passages name as their source, told from others by what it holds.
        suffix: that of a file which holds the same.

    Raises:
        TypeError: another kind of table.
        ValueError: columns that Arrow does not take.
    """

    suffix = ".arrow"

    def __init__(self, table: Any) -> None:
        kind = type(table).__name__
        if kind in _ADVICE:
            raise TypeError(f"paths must be {_WHAT}, got {kind}. {_ADVICE[kind]}")
        self._table = table
        self._hidden: str | None = None  # a column that is read by other means
        if _library(table) == "pandas":
            self._table = _of_pandas(table)
        self._schema = next(self._tables()).schema
        digest = hashlib.sha256(self._schema.serialize())
        size = 0
        for batch in self.batches():
            block = batch.serialize()
            size += block.size
            digest.update(block)
        self._described = {"bytes": size, "sha256": digest.hexdigest()}
        self.name = f"{kind}-{digest.hexdigest()[:8]}"

    def __str__(self) -> str:
        return self.name

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self._schema.names)

    def describe(self) -> dict[str, Any]:
        """Size and sha256 of what it holds."""
        return dict(self._described)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, so many at a time that their sha256 does not depend on how they lie."""
        for table in self._tables():
            yield from map(copied_batch, table.combine_chunks().to_batches())

    def documents(self, options: ReadingOptions) -> Iterator[Any]:
        """A document a row, as `rag_core.knowledge.tables` reads them of files."""
        schema = self._schema
        batches = self.batches()
        if self._hidden is not None:
            schema = schema.remove(schema.get_field_index(self._hidden))
            batches = (batch.select(schema.names) for batch in batches)
        # no name of a file could be a title
        yield from arrow_documents(self.name, "", schema, batches, options)

    def passages_with(
        self, column: str, encode: Encode, options: ReadingOptions
    ) -> Iterator[pa.RecordBatch]:
        """Each row as one passage, with the vector that a column holds.

        Args:
            column: of lists of D numbers.
            encode: the encoder that made them; it is asked for that of the first row.
            options: how rows are read.

        Raises:
            ValueError: vectors of several sizes, NaN, those of another encoder, or rows without
                text.
        """
        import pyarrow as pa

        passed_by = PassedBy()
        hidden = copy(self)
        hidden._hidden = column
        read = read_file(hidden, self.name, options, passed_by, blank=True)
        dimension = None
        for batch in self.batches():
            vectors = self._vectors(batch.column(column), column)  # (B, D)
            rows = [next(read) for _ in range(len(batch))]
            if not np.isfinite(vectors).all():
                row = int(np.argwhere(~np.isfinite(vectors))[0, 0])
                raise ValueError(
                    f"{rows[row].place}: {column} must hold finite numbers, got NaN, null or "
                    "infinity. Mend the table, or leave the column out: it is embedded then."
                )
            if dimension is None:
                dimension = _checked_size(rows[0], vectors[0], encode, column)
            if vectors.shape[1] != dimension:
                raise ValueError(
                    f"{self.name}: {column} must hold vectors of one size, got D={vectors.shape[1]} "
                    f"after D={dimension}. Mend the table."
                )
            texts = [_only_passage(document) for document in rows]
            offsets = pa.array(np.arange(0, vectors.size + 1, dimension, dtype=np.int32))
            lists = pa.ListArray.from_arrays(offsets, pa.array(vectors.reshape(-1)))
            columns = [pa.array(values, pa.string()) for values in zip(*texts, strict=True)]
            yield pa.record_batch([*columns, lists], schema=passage_schema())
        for _ in read:  # what was left out is told at the end
            pass
        passed_by.warn()

    def _tables(self) -> Iterator[pa.Table]:
        """The rows, `BATCH_ROWS` a table; an empty one where there are none."""
        import pyarrow as pa

        if _library(self._table) == "datasets":
            rows = self._table.with_format("arrow")
            for start in range(0, max(1, len(rows)), BATCH_ROWS):
                table = rows[start : start + BATCH_ROWS]
                yield table.replace_schema_metadata(None)
            return
        whole = pa.table(self._table).replace_schema_metadata(None)
        for start in range(0, max(1, len(whole)), BATCH_ROWS):
            yield whole.slice(start, BATCH_ROWS)

    def _vectors(self, cells: Any, column: str) -> np.ndarray:
        try:
            rows = [np.asarray(cell.values, np.float32) for cell in cells]
            return np.stack(rows)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.name}: {column} must hold a list of numbers a row, all of one length, got "
                f"{cells.type} ({error!s:.80}). Mend the table, or leave the column out: it is "
                "embedded then."
            ) from None


def as_frame(paths: Any) -> Frame | None:
    """The table in memory that is given in place of paths; None for paths.

    Raises:
        TypeError, ValueError: see `Frame`.
    """
    kind = type(paths).__name__
    if _library(paths) in ("pandas", "datasets") or hasattr(paths, "__arrow_c_stream__"):
        return Frame(paths)
    if kind in _ADVICE or isinstance(paths, dict):
        raise TypeError(
            f"paths must be {_WHAT}, got {kind}. {_ADVICE.get(kind, 'Make a frame of it.')}"
        )
    return None


def _library(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _of_pandas(frame: Any) -> pa.Table:
    import pyarrow as pa

    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = " ".join(map(str, error.args))
        raise ValueError(
            f"paths must be a frame whose columns hold one type each, got one that Arrow does not "
            f"take ({reason:.200}). Convert the column, e.g. frame[NAME].astype(str)."
        ) from None


def _checked_size(document: Document, vector: np.ndarray, encode: Encode, column: str) -> int:
    """D, once the encoder has given the same vector."""
    [again] = call_encoder(encode, [document.title], [document.text])
    if len(again) != len(vector) or not same_probe(again, vector):
        raise ValueError(
            f"{document.place}: {column} must hold vectors of the encoder, which gives another one "
            f"(D={len(again)}) than the table has (D={len(vector)}). Name the encoder that made "
            "them, or leave the column out: it is embedded then."
        )
    return len(vector)


def _only_passage(document: Document) -> tuple[str | None, ...]:
    if not document.text.strip():
        raise ValueError(
            f"{document.place}: text must not be empty where a row has its vector. Remove the row."
        )
    [passage] = split_passages(document, None)
    return text_row(passage)
