"""Passages and their vectors in a store of another library: LanceDB, Qdrant.

A passage is a row of a table or a point of a collection, under its row number; the inner product is
the measure, and vectors come back as they were written.

Letters: B questions, N documents a question, R passages, D vector size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from rag_core.arguments import checked_n_docs
from rag_core.retrieval.own_scores import check_whole
from rag_core.retrieval.passage_metadata import METADATA_COLUMN, decode_metadata, encode_metadata

_BLOCK = 1024  # passages written at a time
_TEXTS = ("title", "text", "source", METADATA_COLUMN)
_COLUMNS = ("title", "text", "source", "metadata")


class StoreIndex(ABC):
    """An `Index` over a store: what a subclass adds is one search and the reading of rows.

    Args:
        length: R; the rows are 0 to R - 1.
        vector_size: D.
    """

    def __init__(self, length: int, vector_size: int) -> None:
        self._length = length
        self.vector_size = vector_size

    @abstractmethod
    def _search(self, queries: np.ndarray, n_docs: int) -> list[tuple[list[int], Any]]:
        """For each query at most N rows and their vectors (n, D)."""

    @abstractmethod
    def _read(self, rows: list[int]) -> dict[int, dict[str, Any]]:
        """Title, text, source and metadata of rows."""

    def __len__(self) -> int:
        return self._length

    def is_initialized(self) -> bool:
        """True: the store is open."""
        return True

    def init_index(self) -> None:  # noqa: B027
        """Nothing is left to open."""

    def get_top_docs(
        self, question_hidden_states: np.ndarray, n_docs: int = 5
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search; see `Index.get_top_docs`. Of those found, equal scores go by row number."""
        queries = np.asarray(question_hidden_states, np.float32)
        n_docs = checked_n_docs(n_docs, 5)
        ids = np.full((len(queries), n_docs), -1, np.int64)
        vectors = np.zeros((len(queries), n_docs, self.vector_size), np.float32)
        for number, (rows, of_rows) in enumerate(self._search(queries, n_docs)):
            found = np.array(of_rows, np.float32).reshape(len(rows), self.vector_size)
            order = np.lexsort((rows, -(found @ queries[number])))
            ids[number, : len(rows)] = np.array(rows, np.int64)[order]
            vectors[number, : len(rows)] = found[order]
        return ids, vectors  # (B, N), (B, N, D)

    def get_doc_dicts(self, doc_ids: np.ndarray) -> list[dict[str, Any]]:
        """Return B dictionaries of lists: "title", "text", "source" and "metadata".

        Raises:
            LookupError: a row that is not in the store.
        """
        passages = self._read(np.unique(doc_ids).tolist())
        missing = sorted({*np.ravel(doc_ids).tolist()} - passages.keys())
        if missing:
            raise LookupError(f"{self!r} has no rows {missing[:5]}: it was changed. Open it again.")
        docs = []
        for rows in np.asarray(doc_ids).tolist():
            found = [passages[row] for row in rows]
            docs.append({name: [passage[name] for passage in found] for name in _COLUMNS})
        return docs


class LanceIndex(StoreIndex):
    """Passages in a table of LanceDB; searched exactly, also where the table has an index.

    Args:
        table: an open table of `lancedb`, with the columns that `create` writes.
        exact: False lets the table's own index of vectors search, which may miss passages.

    Raises:
        ValueError: columns are missing, or vectors are of less than float32.
    """

    def __init__(self, table: Any, *, exact: bool = True) -> None:
        import pyarrow as pa

        missing = [name for name in ("row", "vector", *_TEXTS) if name not in table.schema.names]
        if missing:
            raise ValueError(
                f"table must have the columns that LanceIndex.create writes, {missing} are "
                "missing. Write the passages anew."
            )
        kind = table.schema.field("vector").type
        if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
            raise ValueError(
                "table must hold float32 vectors of one size, as LanceIndex.create writes them, got "
                f"{kind}. Write the passages anew."
            )
        super().__init__(table.count_rows(), kind.list_size)
        self.table = table
        self.exact = exact

    @classmethod
    def create(cls, index: Any, database: Any, name: str = "passages") -> LanceIndex:
        """Write the passages of an index into a new table.

        Args:
            index: a `FaissIndex`, as `KnowledgeBase.index()` gives, or any with a length,
                `vector_size` and `vectors_of`.
            database: what ``lancedb.connect(folder)`` returned.
            name: of the table; one that exists is an error of LanceDB's.

        Raises:
            ValueError: an index without one of these.
        """
        _check_source(index)
        import pyarrow as pa
        from lancedb.index import BTree

        vector = pa.list_(pa.float32(), index.vector_size)
        columns = [(column, pa.string()) for column in _TEXTS]
        schema = pa.schema([("row", pa.int64()), *columns, ("vector", vector)])

        def batches() -> Iterator[pa.RecordBatch]:
            for rows, passages, vectors in _blocks(index):
                texts = [pa.array([each[column] for each in passages]) for column in _TEXTS]
                texts = [array.cast(pa.string()) for array in texts]
                flat = pa.array(vectors.reshape(-1), pa.float32())
                arrays = pa.FixedSizeListArray.from_arrays(flat, index.vector_size)
                yield pa.record_batch([pa.array(rows), *texts, arrays], schema=schema)

        table = database.create_table(name, data=batches(), schema=schema)
        table.create_index("row", config=BTree())  # texts are read by row
        return cls(table)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.table.name!r}, {len(self):,} passages)"

    def _search(self, queries: np.ndarray, n_docs: int) -> list[tuple[list[int], Any]]:
        answers = []
        for query in queries:
            search = self.table.search(query, vector_column_name="vector").distance_type("dot")
            if self.exact:
                search = search.bypass_vector_index()
            found = search.limit(n_docs).select(["row", "vector", "_distance"]).to_arrow()
            vectors = found["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            answers.append((found["row"].to_pylist(), vectors))
        return answers

    def _read(self, rows: list[int]) -> dict[int, dict[str, Any]]:
        condition = f"row IN ({', '.join(map(str, rows))})"
        search = self.table.search().where(condition).select(["row", *_TEXTS]).limit(len(rows))
        passages = {}
        for values in search.to_list():
            row = values.pop("row")
            values["metadata"] = decode_metadata(values.pop(METADATA_COLUMN), repr(self))
            passages[row] = values
        return passages


class QdrantIndex(StoreIndex):
    """Passages in a collection of Qdrant, under their row numbers.

    Args:
        client: a `QdrantClient`, of a folder (``path=``) or a server (``url=``).
        collection: its name, as `create` wrote it.
        exact: True has a server compare a question with every vector; None leaves the search to
            its settings, which may miss passages. A folder is always searched exactly.

    Raises:
        ValueError: a measure or a precision by which vectors do not come back as they were.
    """

    def __init__(self, client: Any, collection: str, *, exact: bool | None = None) -> None:
        vectors = client.get_collection(collection).config.params.vectors
        kind = getattr(vectors, "distance", None)
        precision = getattr(vectors, "datatype", None) or "float32"
        if kind != "Dot" or precision != "float32":
            raise ValueError(
                f"collection {collection!r} must have one float32 vector a point and the distance "
                f"Dot, got {vectors!r:.120}. Write it with QdrantIndex.create."
            )
        super().__init__(client.count(collection, exact=True).count, vectors.size)
        self.client = client
        self.collection = collection
        self.exact = exact

    @classmethod
    def create(
        cls, index: Any, client: Any, collection: str, *, exact: bool | None = None
    ) -> QdrantIndex:
        """Write the passages of an index into a new collection.

        Args:
            index: as of `LanceIndex.create`.
            client: a `QdrantClient`.
            collection: its name; one that exists is an error of Qdrant's.
            exact: as of the class.

        Raises:
            ValueError: as of `LanceIndex.create`.
        """
        _check_source(index)
        from qdrant_client import models

        parameters = models.VectorParams(size=index.vector_size, distance=models.Distance.DOT)
        client.create_collection(collection, vectors_config=parameters)
        try:
            for rows, passages, vectors in _blocks(index):
                payloads = []
                for passage in passages:
                    metadata = decode_metadata(passage.pop(METADATA_COLUMN), collection)
                    payloads.append({**passage, "metadata": metadata})
                points = models.Batch(ids=rows, vectors=vectors.tolist(), payloads=payloads)
                client.upsert(collection, points=points, wait=True)
        except BaseException:
            client.delete_collection(collection)  # nothing would tell the part from the whole
            raise
        return cls(client, collection, exact=exact)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.collection!r}, {len(self):,} passages)"

    def _search(self, queries: np.ndarray, n_docs: int) -> list[tuple[list[int], Any]]:
        from qdrant_client import models

        options: dict[str, Any] = {}
        if self.exact is not None:
            options["params"] = models.SearchParams(exact=self.exact)
        requests = [
            models.QueryRequest(query=query.tolist(), limit=n_docs, with_vector=True, **options)
            for query in queries
        ]
        answers = []
        for found in self.client.query_batch_points(self.collection, requests=requests):
            points = found.points
            answers.append(([point.id for point in points], [point.vector for point in points]))
        return answers

    def _read(self, rows: list[int]) -> dict[int, dict[str, Any]]:
        blank: dict[str, Any] = {"title": "", "text": "", "source": None, "metadata": {}}
        points = self.client.retrieve(self.collection, ids=rows, with_payload=True)
        return {point.id: {**blank, **(point.payload or {})} for point in points}


def _check_source(index: Any) -> None:
    check_whole("index", index, "vector_size", "vectors_of")


def _blocks(index: Any) -> Iterator[tuple[list[Any], list[dict[str, Any]], np.ndarray]]:
    """Rows, their passages (values of `_TEXTS`) and vectors (n, D), block by block."""
    for start in range(0, len(index), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(index)))
        (doc,) = index.get_doc_dicts(rows[None])
        unknown = [None] * len(rows)
        metadata = doc.get("metadata", [{}] * len(rows))
        columns = zip(
            doc["title"],
            doc["text"],
            doc.get("source", unknown),
            [
                encode_metadata(values, f"row {row}")
                for row, values in zip(rows.tolist(), metadata, strict=True)
            ],
            strict=True,
        )
        passages = [dict(zip(_TEXTS, values, strict=True)) for values in columns]
        yield rows.tolist(), passages, index.vectors_of(rows)
