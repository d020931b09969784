"""Titles, texts and other columns of passages by row number, read out of the (memory-mapped) Arrow
table itself.

`datasets` answers such a question with a copied table and a formatter, ten times the work for the
few rows of a search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.hub import reading
from rag_core.retrieval.passage_metadata import METADATA_COLUMN, decode_metadata
from rag_core.retrieval.passage_table import PassageTable
from rag_core.retrieval.vectors import filled_chunks, is_plain, is_text, shuffled_rows

if TYPE_CHECKING:
    from rag_core.retrieval.where import Where


class PassageTexts:
    """Random access to all columns of a `datasets.Dataset` but the vectors.

    What a knowledge base keeps as JSON is read as "metadata", dictionaries.

    Args:
        dataset: the data set; its row order is kept.
        leave_out: the column of vectors.
    """

    def __init__(self, dataset: Any, leave_out: str) -> None:
        self._dataset = dataset
        self._leave_out = leave_out
        self._rows = shuffled_rows(dataset)
        self._place = getattr(dataset, "path", "the passages")
        self._length = len(dataset)
        names = [name for name in dataset.column_names if name != leave_out]
        table = dataset.data
        plain = [name for name in names if is_plain(table.schema.field(name).type)]
        # Images, audio and the like are decoded by `datasets`.
        others = [name for name in names if name not in plain]
        self._others = None
        if others:
            self._others = dataset.with_format(None).select_columns(others)
        self._names = names
        self._columns = {name: filled_chunks(dataset, name) for name in plain}
        # A data set of somebody's own may have a column "metadata", which is whatever it is.
        self._has_metadata = (
            METADATA_COLUMN in plain
            and "metadata" not in names
            and is_text(table.schema.field(METADATA_COLUMN).type)
        )

    def __len__(self) -> int:
        return self._length

    @property
    def dataset(self) -> Any:
        """The `datasets.Dataset`."""
        if isinstance(self._dataset, PassageTable):
            return self._dataset.dataset()
        return self._dataset

    def matching(self, where: Where) -> np.ndarray:
        """The sorted row numbers of the passages that conditions hold for; see
        `FaissIndex.where`.
        """
        from rag_core.retrieval.where import matching_rows

        return matching_rows(self._dataset, where, self._leave_out)

    def get_doc_dicts(self, doc_ids: np.ndarray) -> list[dict[str, Any]]:
        """Return B dictionaries of lists of the rows (B, N)."""
        doc_ids = np.asarray(doc_ids)
        columns = self.read(doc_ids.reshape(-1))
        n_docs = doc_ids.shape[1]
        docs = []
        for row in range(len(doc_ids)):
            start, stop = row * n_docs, (row + 1) * n_docs
            docs.append({name: values[start:stop] for name, values in columns.items()})
        return docs

    def read(self, rows: np.ndarray) -> dict[str, list[Any]]:
        """Return for each column a list of the values of `rows`, (n,) int64.

        Raises:
            IndexError: a row that is not there.
            DamagedFileError: a value that leads out of its file, or is no text; the error names the
                column.
        """
        if rows.size and not 0 <= rows.min() <= rows.max() < self._length:
            raise IndexError(
                f"rows must be 0 to {self._length - 1}, got {rows.min()} to {rows.max()}."
            )
        values: dict[str, list[Any]] = {}
        if self._others is not None:
            values.update(self._others[rows.tolist()])
        if self._rows is not None:
            rows = self._rows[rows].astype(np.int64)
        for name, (starts, chunks) in self._columns.items():
            chunk_of = np.searchsorted(starts, rows, side="right") - 1
            inside = rows - starts[chunk_of]
            places = zip(chunk_of.tolist(), inside.tolist(), strict=True)
            with reading(f"column {name!r} of {self._place}"):
                values[name] = [_value(chunks[number], row) for number, row in places]
        columns = {name: values[name] for name in self._names}
        if self._has_metadata:
            texts = columns.pop(METADATA_COLUMN)
            columns["metadata"] = [decode_metadata(text, str(self._place)) for text in texts]
        return columns


def _value(chunk: Any, row: int) -> Any:
    """One value; its offsets are in a file, so they are checked before they are followed."""
    value = chunk.slice(row, 1)
    value.validate(full=True)
    return value[0].as_py()
