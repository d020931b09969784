"""Where document vectors come from: the Arrow column of a data set, or the search index itself.

Letters: B questions, N documents a question, D vector size.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

CHECKED_ROWS = 1_000_000  # up to here every row's length is checked at opening


class VectorSource(Protocol):
    """Random access to document vectors by row number."""

    vector_size: int

    def __len__(self) -> int:
        """Number of vectors."""
        ...

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return float32 vectors, shape ``rows.shape + (D,)``; rows of -1 give zeros."""
        ...


class ArrowVectors:
    """Vectors of one list column of a `datasets.Dataset`, read through views of the (memory-mapped)
    Arrow buffers.

    Args:
        dataset: the data set; its row order (also after ``select`` or ``shuffle``) is kept.
        column: a column of equally long lists of numbers.

    Raises:
        ValueError: rows of different length, or missing vectors. Beyond a million rows each part of
            the file is checked when it is first read, since checking alone would pull gigabytes
            through memory.
    """

    def __init__(self, dataset: Any, column: str = "embeddings") -> None:
        self._column = column
        self._rows = shuffled_rows(dataset)
        self._length = len(dataset)
        self._arrow = [chunk for chunk in dataset.data.column(column).chunks if len(chunk)]
        self._starts = np.cumsum([0] + [len(chunk) for chunk in self._arrow])
        self._chunks: list[np.ndarray | None] = [None] * len(self._arrow)
        self.vector_size = self._matrix(0).shape[1] if self._arrow else 0
        if self._starts[-1] <= CHECKED_ROWS:
            for number in range(len(self._arrow)):
                self._matrix(number)

    def __len__(self) -> int:
        return self._length

    def _matrix(self, number: int) -> np.ndarray:
        """Chunk `number` as a matrix (r, D)."""
        matrix = self._chunks[number]
        if matrix is None:
            matrix = self._chunks[number] = as_matrix(self._arrow[number], self._column)
            if number and matrix.shape[1] != self.vector_size:
                sizes = sorted({self.vector_size, matrix.shape[1]})
                raise ValueError(
                    f"column {self._column!r} holds vectors of different sizes: {sizes}; every "
                    "row needs the same."
                )
        return matrix

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return float32 vectors, shape ``rows.shape + (D,)``; rows of -1 give zeros."""
        rows = np.asarray(rows)
        flat = rows.reshape(-1)
        shape = (*rows.shape, self.vector_size)
        found = np.flatnonzero(flat >= 0)
        wanted = flat[found] if self._rows is None else self._rows[flat[found]].astype(np.int64)
        # one copy: out of the file, into the result
        if len(self._arrow) == 1 and found.size == flat.size:
            return self._matrix(0)[wanted].astype(np.float32, copy=False).reshape(shape)
        out = np.zeros((flat.size, self.vector_size), dtype=np.float32)
        chunk_of = np.searchsorted(self._starts, wanted, side="right") - 1
        inside = wanted - self._starts[chunk_of]
        if flat.size <= 8 * len(self._arrow):  # few rows here and there: no sorting by chunk
            for target, number, row in zip(
                found.tolist(), chunk_of.tolist(), inside.tolist(), strict=True
            ):
                out[target] = self._matrix(number)[row]
        else:
            for number in np.unique(chunk_of):
                here = chunk_of == number
                out[found[here]] = self._matrix(number)[inside[here]]
        return out.reshape(shape)

    def blocks(self, size: int = 65536) -> Any:
        """Yield all vectors in row order as float32 arrays of at most `size` rows."""
        for start in range(0, self._length, size):
            yield self.gather(np.arange(start, min(start + size, self._length)))


def shuffled_rows(dataset: Any) -> np.ndarray | None:
    """Row numbers of the table for each row of the data set, or None where they are the same.

    `select`, `shuffle` and `filter` leave the table alone and keep a list of row numbers beside it.
    """
    indices = getattr(dataset, "_indices", None)
    return None if indices is None else indices.column(0).to_numpy()


class FaissVectors:
    """Vectors given back by a faiss index (decoded, so approximate for quantised kinds).

    Args:
        faiss_index: a faiss index that supports ``reconstruct_batch``; inverted-file indices get a
            direct map.
    """

    def __init__(self, faiss_index: Any) -> None:
        self._index = faiss_index
        self.vector_size = int(faiss_index.d)
        self._mapped = False

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return float32 vectors, shape ``rows.shape + (D,)``; rows of -1 give zeros."""
        import faiss

        if not self._mapped:
            inverted = faiss.try_extract_index_ivf(self._index)
            if inverted is not None:
                inverted.make_direct_map()
            self._mapped = True
        rows = np.asarray(rows)
        flat = rows.reshape(-1).astype(np.int64)
        out = np.zeros((flat.size, self.vector_size), dtype=np.float32)
        found = np.flatnonzero(flat >= 0)
        if found.size:
            out[found] = self._index.reconstruct_batch(np.ascontiguousarray(flat[found]))
        return out.reshape(*rows.shape, self.vector_size)


def as_matrix(chunk: Any, column: str) -> np.ndarray:
    """View one Arrow list array as a (rows, D) matrix; copies nothing for float32."""
    import pyarrow as pa

    if isinstance(chunk, pa.ExtensionArray):
        chunk = chunk.storage
    kind = chunk.type
    if not (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    ):
        raise ValueError(
            f"column {column!r} must hold one list of numbers a row, its Arrow type is {kind}."
        )
    if chunk.null_count:
        raise ValueError(
            f"column {column!r} has {chunk.null_count} rows without a vector; remove or embed them."
        )
    if pa.types.is_fixed_size_list(kind):
        values, equal = (
            chunk.values.slice(chunk.offset * kind.list_size, len(chunk) * kind.list_size),
            True,
        )
    else:  # not flatten: it imports pyarrow.compute first, for longer than all else here takes
        starts = np.frombuffer(
            chunk.buffers()[1], np.int64 if pa.types.is_large_list(kind) else np.int32
        )
        starts = starts[chunk.offset : chunk.offset + len(chunk) + 1]
        values = chunk.values.slice(int(starts[0]), int(starts[-1] - starts[0]))
        equal = not np.diff(starts, 2).any()
    if not equal or len(values) % len(chunk):
        raise ValueError(
            f"column {column!r} holds vectors of different sizes; every row needs the same."
        )
    if values.null_count:
        raise ValueError(
            f"column {column!r} has missing numbers inside its vectors; embed those rows again."
        )
    if pa.types.is_floating(values.type) or pa.types.is_integer(values.type):
        # The very buffer: Arrow's own to_numpy imports pandas first, for longer than a search
        # takes.
        view = np.frombuffer(values.buffers()[1], values.type.to_pandas_dtype())
        return view[values.offset : values.offset + len(values)].reshape(len(chunk), -1)
    return values.to_numpy(zero_copy_only=False).reshape(len(chunk), -1)
