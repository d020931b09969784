"""Where document vectors come from: the Arrow column of a data set, or the search index itself.

Letters: B questions, N documents a question, D vector size.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

# Up to here every row's length is checked at opening; beyond, that alone would read gigabytes.
CHECKED_ROWS = 1_000_000


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
        self._starts, self._arrow = filled_chunks(dataset, column)
        self._chunks: list[np.ndarray | None] = [None] * len(self._arrow)
        self.vector_size = 0
        if self._arrow:
            self.vector_size = self._matrix(0).shape[1]
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
                    f"column {self._column!r} must hold vectors of one size, got different sizes: "
                    f"{sizes}. Embed all rows with one encoder."
                )
        return matrix

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return float32 vectors, shape ``rows.shape + (D,)``; rows of -1 give zeros."""
        rows = np.asarray(rows)
        flat = rows.reshape(-1)
        shape = (*rows.shape, self.vector_size)
        targets = np.flatnonzero(flat >= 0)
        table_rows = flat[targets]
        if self._rows is not None:
            table_rows = self._rows[table_rows].astype(np.int64)
        # One copy: out of the file, into the result.
        if len(self._arrow) == 1 and targets.size == flat.size:
            return self._matrix(0)[table_rows].astype(np.float32, copy=False).reshape(shape)
        vectors = np.zeros((flat.size, self.vector_size), dtype=np.float32)
        chunk_of = np.searchsorted(self._starts, table_rows, side="right") - 1
        inside = table_rows - self._starts[chunk_of]
        # Few rows here and there: sorting them by chunk would take longer than reading them.
        if flat.size <= 8 * len(self._arrow):
            places = zip(targets.tolist(), chunk_of.tolist(), inside.tolist(), strict=True)
            for target, number, row in places:
                vectors[target] = self._matrix(number)[row]
            return vectors.reshape(shape)
        for number in np.unique(chunk_of):
            is_here = chunk_of == number
            vectors[targets[is_here]] = self._matrix(number)[inside[is_here]]
        return vectors.reshape(shape)

    def blocks(self, size: int = 65536) -> Any:
        """Yield all vectors in row order as float32 arrays of at most `size` rows."""
        for start in range(0, self._length, size):
            yield self.gather(np.arange(start, min(start + size, self._length)))


def shuffled_rows(dataset: Any) -> np.ndarray | None:
    """Row numbers of the table for each row of the data set, or None where they are the same.

    `select`, `shuffle` and `filter` leave the table alone and keep a list of row numbers beside it.
    """
    indices = getattr(dataset, "_indices", None)
    if indices is None:
        return None
    return indices.column(0).to_numpy()


def filled_chunks(dataset: Any, column: str) -> tuple[np.ndarray, list[Any]]:
    """The chunks of a column's table that hold rows, and at which row each begins and the last
    ends.
    """
    chunks = [chunk for chunk in dataset.data.column(column).chunks if len(chunk)]
    return np.cumsum([0] + [len(chunk) for chunk in chunks]), chunks


def is_list(kind: Any) -> bool:
    """Whether an Arrow type is one of lists."""
    import pyarrow.types as types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is one of texts."""
    import pyarrow.types as types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def is_plain(kind: Any) -> bool:
    """Whether Python's value of an Arrow type is what `datasets` gives.

    No structs, no extension types inside.
    """
    import pyarrow.types as types

    if is_list(kind):
        return is_plain(kind.value_type)
    return is_text(kind) or bool(types.is_primitive(kind))


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

        # Where each row lies in inverted lists is told by a map, which takes memory: it is made when
        # first needed.
        if not self._mapped:
            inverted = faiss.try_extract_index_ivf(self._index)
            if inverted is not None:
                inverted.make_direct_map()
            self._mapped = True
        rows = np.asarray(rows)
        flat = rows.reshape(-1).astype(np.int64)
        vectors = np.zeros((flat.size, self.vector_size), dtype=np.float32)
        targets = np.flatnonzero(flat >= 0)
        if targets.size:
            vectors[targets] = self._index.reconstruct_batch(np.ascontiguousarray(flat[targets]))
        return vectors.reshape(*rows.shape, self.vector_size)


def as_matrix(chunk: Any, column: str) -> np.ndarray:
    """View one Arrow list array as a (rows, D) matrix; copies nothing for float32."""
    import pyarrow as pa

    if isinstance(chunk, pa.ExtensionArray):
        chunk = chunk.storage
    kind = chunk.type
    if not is_list(kind):
        raise ValueError(
            f"column {column!r} must hold one list of numbers a row, its Arrow type is {kind}."
        )
    if chunk.null_count:
        raise ValueError(
            f"column {column!r} must hold a vector in every row, got {chunk.null_count} rows "
            "without one. Remove or embed them."
        )
    are_equal = True
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        values = chunk.values.slice(chunk.offset * size, len(chunk) * size)
    else:
        # Not flatten: it imports pyarrow.compute first, for longer than all else here takes.
        offset_type = np.int64 if pa.types.is_large_list(kind) else np.int32
        starts = np.frombuffer(chunk.buffers()[1], offset_type)
        starts = starts[chunk.offset : chunk.offset + len(chunk) + 1]
        values = chunk.values.slice(int(starts[0]), int(starts[-1] - starts[0]))
        are_equal = not np.diff(starts, 2).any()
    if not are_equal or len(values) % len(chunk):
        raise ValueError(
            f"column {column!r} must hold vectors of one size, got different sizes. Embed all rows "
            "with one encoder."
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
