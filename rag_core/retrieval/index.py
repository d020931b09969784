"""The `Index` protocol and the faiss index over a `datasets` data set.

Letters: B questions, N documents a question, D vector size, R rows of the index.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from rag_core.arguments import checked_n_docs
from rag_core.checks import warn
from rag_core.hub import atomic_folder, locating
from rag_core.retrieval.faiss_files import (
    by_row,
    last_line,
    lists_in_row_order,
    measures_inner_products,
    misplaced,
    other_ids,
    read_faiss,
    refuse_pickle,
    write_faiss,
)
from rag_core.retrieval.passage_files import VECTORS_COLUMN, write_passages
from rag_core.retrieval.passage_table import PassageTable, map_passages
from rag_core.retrieval.passage_texts import PassageTexts
from rag_core.retrieval.recall import LOW_RECALL, low_recall
from rag_core.retrieval.rerank import checked_factor, notes_path, read_notes, reranked, write_notes
from rag_core.retrieval.vectors import ArrowVectors, FaissVectors, VectorSource

if TYPE_CHECKING:
    from datasets import Dataset

    from rag_core.retrieval.filtered import FilteredIndex
    from rag_core.retrieval.where import Where

Parts = tuple[Any, Any, str | VectorSource | None]  # passages, faiss index, vectors

INDEX_FILE = "hf_dataset_index.faiss"
PASSAGES_FOLDER = "hf_dataset"
BM25_FOLDER = "bm25"
# What an earlier index leaves in a folder: rows of one and passages of another would be answers
# without sense.
INDEX_PATTERNS = (
    INDEX_FILE,
    str(notes_path(INDEX_FILE)),
    f"{PASSAGES_FOLDER}/*",
    f"{BM25_FOLDER}/*",
)


@runtime_checkable
class Index(Protocol):
    """What a retriever needs of an index; any class with these four methods will do.

    Method names are those of transformers' `Index`, so an index written for it works here. A class
    of one's own needs neither faiss nor datasets. Missing hits are row number -1; `get_doc_dicts`
    is never asked for them.
    """

    def get_top_docs(
        self, question_hidden_states: np.ndarray, n_docs: int = 5
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search.

        Args:
            question_hidden_states: (B, D) float32.
            n_docs: N.

        Returns:
            Row numbers (B, N) int64, best first, and the documents' vectors (B, N, D) float32.
        """
        ...

    def get_doc_dicts(self, doc_ids: np.ndarray) -> list[dict[str, Any]]:
        """Return B dictionaries of lists of length N.

        "title" and "text", perhaps "id" and others.
        """
        ...

    def is_initialized(self) -> bool:
        """Whether the index is loaded."""
        ...

    def init_index(self) -> None:
        """Load the index; called once, before the first search."""
        ...


class FaissIndex:
    """A faiss index with the passages it belongs to: row i of the index is row i of the data set.

    Args:
        passages: a `datasets.Dataset` with columns "title", "text" and, unless `vectors` says
            otherwise, "embeddings".
        faiss_index: the faiss index; by default the one on `passages`
            (``dataset.add_faiss_index("embeddings")``).
        vectors: where `get_top_docs` takes document vectors from: "stored" (the embeddings column),
            "index" (the faiss index gives them back, decoded), a `VectorSource`, or None: stored if
            the column is there.
        column: the name of the embeddings column.
        rerank: for an approximate index: candidates for each document wanted, ranked again by their
            stored vectors (see `rag_core.retrieval.rerank`); 1 takes the faiss index's own order.

    Raises:
        ValueError: a column or the faiss index is missing, or the two do not fit each other.
    """

    _notes: Mapping[str, Any] = MappingProxyType({})  # what `rerank.read_notes` found

    def __init__(
        self,
        passages: Any,
        faiss_index: Any = None,
        *,
        vectors: str | VectorSource | None = None,
        column: str = VECTORS_COLUMN,
        rerank: int = 1,
    ) -> None:
        self._column = column
        self._rerank = checked_factor(rerank)
        self._attach(passages, faiss_index, vectors)
        self._warn()

    @staticmethod
    def from_files(
        passages_path: str | Path,
        index_path: str | Path,
        *,
        memory_map: bool | None = False,
        vectors: str | None = None,
        rerank: int | None = None,
    ) -> FaissIndex:
        """Open (at the first use) the files of a custom index.

        Args:
            passages_path: folder written by ``dataset.save_to_disk``.
            index_path: file written by ``dataset.get_index("embeddings").save`` or
                ``faiss.write_index``.
            memory_map: map the faiss file instead of reading it, None if it has more than 1 GB;
                passages are always mapped.
            vectors: "stored", "index" or None, as in the constructor.
            rerank: as in the constructor; None as the index was built (see
                `rag_core.retrieval.rerank.read_notes`).

        Raises:
            ValueError: one of the paths names a pickle. Missing or damaged files raise OSError when
                they are opened.
        """
        refuse_pickle(passages_path, "passages_path")
        refuse_pickle(index_path, "index_path")
        notes = read_notes(index_path)
        if rerank is None:
            rerank = notes.get("settings", {}).get("rerank", 1)

        def load() -> Parts:
            passages = map_passages(passages_path)
            return passages, read_faiss(index_path, memory_map=memory_map), vectors

        place = f"passages_path={str(passages_path)!r} with index_path={str(index_path)!r}"
        return LazyIndex(load, rerank=rerank, place=place, notes=notes)

    def _attach(self, passages: Any, faiss_index: Any, vectors: str | VectorSource | None) -> None:
        """Takes passages, faiss index and vectors that fit each other."""
        if not hasattr(passages, "column_names"):
            raise TypeError(f"passages must be a datasets.Dataset, got {type(passages).__name__}.")
        columns = passages.column_names
        missing = [name for name in ("title", "text") if name not in columns]
        if missing:
            raise ValueError(
                f"the passages need columns 'title' and 'text'; missing: {missing}, found: "
                f"{columns}."
            )
        if faiss_index is None:
            if self._column not in passages.list_indexes():
                raise ValueError(
                    f"the data set has no faiss index on {self._column!r} (indexes: "
                    f"{passages.list_indexes()}); call dataset.add_faiss_index({self._column!r}) "
                    "first."
                )
            faiss_index = passages.get_index(self._column).faiss_index
        faiss_index = by_row(faiss_index)
        if faiss_index.ntotal != len(passages):
            raise ValueError(
                f"the faiss index holds {faiss_index.ntotal} vectors, the passages are "
                f"{len(passages)} rows; index_path and passages_path must come from the same "
                "build."
            )
        source = self._source(vectors, passages, faiss_index)
        if self._rerank > 1 and isinstance(source, FaissVectors):
            raise ValueError(
                f"rerank must be 1 without stored vectors, got {self._rerank}. It ranks candidates "
                "by them: it needs vectors='stored'."
            )
        # Without a row nothing tells the size of its vectors.
        if not len(passages):
            source.vector_size = int(faiss_index.d)
        if source.vector_size != faiss_index.d:
            raise ValueError(
                f"column {self._column!r} holds vectors of size {source.vector_size}, the faiss "
                f"index is of size {faiss_index.d}; build the index from this data set."
            )
        self._dataset = passages
        self._faiss = faiss_index
        self._vectors = source
        self._is_own_source = not isinstance(vectors, str | None)
        # Now rather than at the first question.
        if len(passages) and isinstance(source, FaissVectors):
            self._check_reconstruction()
        self._check_order()
        self._texts = PassageTexts(passages, self._column)

    def _source(
        self, vectors: str | VectorSource | None, passages: Any, faiss_index: Any
    ) -> VectorSource:
        has_column = self._column in passages.column_names
        if vectors is None:
            vectors = "stored" if has_column else "index"
        if not isinstance(vectors, str):
            return vectors
        if vectors == "index":
            return FaissVectors(faiss_index)
        if vectors != "stored":
            raise ValueError(
                f"vectors must be 'stored', 'index' or a VectorSource, got {vectors!r}."
            )
        if not has_column:
            raise ValueError(
                f"vectors must be 'index' for passages without a column {self._column!r}, got "
                f"'stored'. Their columns are {passages.column_names}."
            )
        return ArrowVectors(passages, self._column)

    def _check_reconstruction(self) -> None:
        try:
            self._faiss.search_and_reconstruct(np.zeros((1, self._faiss.d), np.float32), 1)
        except (RuntimeError, AttributeError) as error:
            raise ValueError(
                f"the faiss index ({type(self._faiss).__name__}) can't give its vectors back, and "
                f"documents are weighed by them: add a column {self._column!r} with the passages' "
                "vectors (vectors='stored'), or build another kind of index. (faiss: "
                f"{last_line(error)})"
            ) from error

    def _check_order(self) -> None:
        """Looks whether ids that did not come in the order of the rows are theirs, by the
        vectors that are stored.
        """
        if not len(self._dataset) or lists_in_row_order(self._faiss):
            return
        if isinstance(self._vectors, FaissVectors):
            warn(
                f"the faiss index ({type(self._faiss).__name__}) was given its ids "
                "(add_with_ids), in another order than 0, 1, 2, ...: they must be the rows of the "
                "passages. Without a column of vectors this can't be told. Build it with "
                "index.add(vectors) in the order of the passages."
            )
        elif misplaced(self._faiss, self._vectors.gather) > 0.5:
            fault = (
                "the stored vectors of the rows belong into other inverted lists than those that "
                "hold their ids"
            )
            raise ValueError(other_ids(len(self._dataset), fault))

    def _warn(self) -> None:
        """Says so where documents are found by another measure, or with a low recall.

        Nothing else would tell.
        """
        if not measures_inner_products(self._faiss) and not self._one_length():
            warn(
                f"the faiss index ({type(self._faiss).__name__}) finds passages by another "
                "measure than the inner product by which RAG weighs them (faiss's default is L2; "
                "L2norm makes cosines), so the best ones may be missed. Build it with the metric "
                "faiss.METRIC_INNER_PRODUCT, e.g. dataset.add_faiss_index('embeddings', "
                "metric_type=faiss.METRIC_INNER_PRODUCT)."
            )
        recall = self._notes.get("recall_at_5", 1.0)
        if recall < LOW_RECALL:
            kind = str(self._notes.get("kind"))
            warn(low_recall(kind, recall, self._notes.get("settings", {})))

    def _one_length(self) -> bool:
        """Whether all vectors (of a sample) are of one length.

        Then every measure has the same order.
        """
        if not len(self._dataset):
            return True
        if isinstance(self._vectors, FaissVectors):
            return False
        rows = np.unique(np.linspace(0, len(self._dataset) - 1, 200).astype(np.int64))
        lengths = np.linalg.norm(self._vectors.gather(rows), axis=1)
        return bool(np.ptp(lengths) <= 1e-3 * lengths.max())

    @property
    def rerank(self) -> int:
        """Candidates for each document that are ranked exactly.

        1 takes the faiss index's own order.
        """
        return self._rerank

    @property
    def dataset(self) -> Dataset:
        """The passages (`datasets.Dataset`)."""
        self.init_index()
        # Searches did without the `datasets` library, which takes long to import.
        if isinstance(self._dataset, PassageTable):
            self._dataset = self._dataset.dataset()
        return self._dataset

    @property
    def faiss_index(self) -> Any:
        """The raw faiss index (set ``nprobe`` or ``hnsw.efSearch`` here)."""
        self.init_index()
        return self._faiss

    @property
    def vector_size(self) -> int:
        """D."""
        return int(self.faiss_index.d)

    def __len__(self) -> int:
        self.init_index()
        return len(self._dataset)

    def __repr__(self) -> str:
        parts = [
            f"{len(self._dataset):,} passages",
            f"D={self._faiss.d}",
            type(self._faiss).__name__,
        ]
        if self._rerank > 1:
            parts.append(f"rerank={self._rerank}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def is_initialized(self) -> bool:
        """Whether the files are open."""
        return True

    def init_index(self) -> None:
        """Open the files, if they are not open yet.

        Raises:
            OSError: missing or damaged files.
            ValueError: files that do not fit each other.
        """

    def get_top_docs(
        self, question_hidden_states: np.ndarray, n_docs: int = 5
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search; see `Index.get_top_docs`.

        Fewer than N hits are filled up with row -1 and zero vectors.
        """
        queries = self.checked_queries(question_hidden_states)
        n_docs = checked_n_docs(n_docs, 5)
        try:
            return self._search(queries, n_docs)
        except (RuntimeError, IndexError, MemoryError) as error:
            raise OSError(
                f"the faiss index ({type(self._faiss).__name__}, {self._faiss.ntotal} vectors) "
                "can't be searched: its file is damaged, or its settings are out of reach. Build "
                f"it again. ({last_line(error)})"
            ) from error

    def checked_queries(self, question_hidden_states: np.ndarray) -> np.ndarray:
        """Questions as (B, D) float32 that lie one after another.

        Raises:
            ValueError: another shape.
        """
        queries = np.ascontiguousarray(question_hidden_states, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.vector_size:
            raise ValueError(
                f"question_hidden_states must have shape (batch, {self.vector_size}) for this "
                f"index, got {queries.shape}; the question encoder and the encoder of the index "
                "must belong together."
            )
        return queries

    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of rows, (*rows.shape, D) float32; zeros for row -1."""
        self.init_index()
        return self._vectors.gather(rows)

    def where(self, where: Where) -> FilteredIndex:
        """The passages that conditions hold for, as an index of its own, searched exactly.

        Args:
            where: a condition, "key=glob" (case counts; of a list one element has to match),
                "key!=glob" or "key>=number" (also >, <, <=); a list of conditions, all of which
                must hold; or a function of a dictionary with a passage's title, text, source, file
                and metadata. What a passage does not know fulfils no condition but `!=`.

        Returns:
            A `FilteredIndex`, for a retriever as the whole index is: ``retriever.index =
            kb.index().where("source=handbook/*")``. Row numbers stay those of the whole index.

        Raises:
            TypeError, ValueError: no condition, a key that no passage has, or nothing matches.
        """
        from rag_core.retrieval.filtered import FilteredIndex

        return FilteredIndex(self, self.matching(where))

    def matching(self, where: Where) -> np.ndarray:
        """The sorted row numbers of the passages that conditions hold for; see `where`."""
        from rag_core.retrieval.where import matching_rows

        self.init_index()
        return matching_rows(self._dataset, where, self._column)

    def _search(self, queries: np.ndarray, n_docs: int) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(self._vectors, FaissVectors):
            _, doc_ids, vectors = self._faiss.search_and_reconstruct(queries, n_docs)
            # Faiss fills the vectors of missing hits with NaN.
            vectors = np.where(doc_ids[..., None] < 0, np.float32(0), vectors)
            return self._rows(doc_ids), vectors  # (B, N), (B, N, D)
        if self._rerank > 1:
            return reranked(self._faiss, self._vectors, queries, n_docs, self._rerank)
        _, doc_ids = self._faiss.search(queries, n_docs)
        return doc_ids, self._vectors.gather(self._rows(doc_ids))  # (B, N), (B, N, D)

    def _rows(self, doc_ids: np.ndarray) -> np.ndarray:
        if doc_ids.size and doc_ids.max() >= len(self._dataset):
            raise IndexError(f"it names row {doc_ids.max()} of {len(self._dataset)}")
        return doc_ids

    def get_doc_dicts(self, doc_ids: np.ndarray) -> list[dict[str, Any]]:
        """Return B dictionaries of lists.

        Every column of the passages but the embeddings, read in one go. Those of a knowledge base
        say where each passage comes from: "source" (a file or an address, None where unknown) and
        "metadata" (dictionaries, see `rag_core.outputs.Passage`).
        """
        self.init_index()
        return self._texts.get_doc_dicts(doc_ids)

    def save(self, folder: str | Path) -> dict[str, str]:
        """Write passages and faiss file, as transformers' custom index is laid out, all or nothing.

        Opened again, documents have the vectors that they have here. So the column "embeddings" of
        the folder holds those that `vectors` and `column` name, also of a `VectorSource`; it is left
        out with ``vectors="index"``, whose vectors the faiss file gives back.

        Args:
            folder: made if missing.

        Returns:
            The config entries that open them again, relative to `folder`: index_path and
            passages_path.
        """
        with atomic_folder(folder, stale=INDEX_PATTERNS) as draft:
            self._write_passages(draft / PASSAGES_FOLDER)
            write_faiss(self.faiss_index, draft / INDEX_FILE)
            if self._notes or self._rerank > 1:
                settings = {**self._notes.get("settings", {}), "rerank": self._rerank}
                write_notes(draft / INDEX_FILE, {**self._notes, "settings": settings})
        return {"index_path": INDEX_FILE, "passages_path": PASSAGES_FOLDER}

    def _write_passages(self, folder: Path) -> None:
        """Passages, with the vectors of documents where whoever opens the folder looks for them."""
        dataset = self.dataset
        vectors = None
        if self._is_own_source:
            vectors = self._vectors
        is_stored = vectors is None and isinstance(self._vectors, ArrowVectors)
        # Columns by these names would be taken for the vectors, or for a text.
        left_out = {self._column, VECTORS_COLUMN} & set(dataset.column_names)
        if is_stored:
            left_out -= {self._column}
        if left_out:
            dataset = dataset.remove_columns(sorted(left_out))
        if is_stored and self._column != VECTORS_COLUMN:
            dataset = dataset.rename_column(self._column, VECTORS_COLUMN)
        write_passages(dataset, folder, vectors=vectors)


class LazyIndex(FaissIndex):
    """A `FaissIndex` whose passages and faiss index are opened when they are first needed.

    Args:
        load: opens them: passages, faiss index and vectors, as `FaissIndex` takes them.
        rerank: as of `FaissIndex`.
        place: where they are opened from, for errors.
        notes: what is known about the faiss index (see `rag_core.retrieval.rerank.read_notes`).
    """

    def __init__(
        self,
        load: Callable[[], Parts],
        *,
        rerank: int = 1,
        place: str = "the index",
        notes: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._load: Callable[[], Parts] | None = load
        self._column = VECTORS_COLUMN
        self._rerank = checked_factor(rerank)
        self._place = place
        self._notes = notes

    def __repr__(self) -> str:
        if self._load is None:
            return super().__repr__()
        return f"{type(self).__name__}({self._place}, not loaded)"

    def is_initialized(self) -> bool:
        return self._load is None

    def init_index(self) -> None:
        if self._load is None:
            return
        with locating(self._place):
            self._attach(*self._load())
            self._load = None
            self._warn()
