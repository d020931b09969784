"""Faiss index files: build, read (in memory or memory-mapped) and write, with clear errors.

Letters: R rows, D vector size.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

INDEX_KINDS = ("flat", "hnsw", "ivfpq")
MAPPED_BYTES = 1 << 30
MIN_PQ_ROWS = 256  # faiss trains 8-bit codes on no fewer
PICKLE_SUFFIXES = (".pkl", ".pickle", ".dpr", ".p", ".pck")

PICKLE_HELP = (
    "The 'legacy' index of the paper is a pickle, and reading a pickle runs any code it holds (CVE-2023-6730), so it "
    "is never opened here. Use index_name='compressed' or 'exact' (the same Wikipedia passages and vectors as data "
    "files, dataset='wiki_dpr'), or your own: index_name='custom' with passages_path= (a datasets folder) and "
    "index_path= (a faiss file)."
)


def refuse_pickle(path: str | Path, argument: str) -> None:
    """Raise ValueError if `path` names a pickle or the parts of a legacy DPR index; nothing is opened.

    Args:
        path: a file or folder name a configuration gives.
        argument: the name of the configuration field, for the message.
    """
    name = Path(path)
    suffixes = {suffix.lower() for suffix in name.suffixes}
    parts = {entry.suffix.lower() for entry in name.iterdir()} if name.is_dir() else set()
    if (suffixes | parts) & set(PICKLE_SUFFIXES):
        raise ValueError(f"{argument}={str(path)!r} names a pickle (or a folder with one). {PICKLE_HELP}")


def read_faiss(path: str | Path, *, memory_map: bool | None = False) -> Any:
    """Read a faiss index file.

    Args:
        path: the file, as ``faiss.write_index`` or ``Dataset.save_faiss_index`` wrote it.
        memory_map: map the file instead of copying it into memory; None maps files of more than 1 GB. A mapped index
            is for searching: inverted lists in a file can't grow.

    Returns:
        The faiss index.

    Raises:
        OSError: there is no such file, or it is truncated, corrupted or no faiss index.
    """
    import faiss

    refuse_pickle(path, "index_path")
    if not Path(path).is_file():
        raise OSError(f"index_path={str(path)!r}: there is no such file; give the faiss file of the passages.")
    if memory_map is None:
        memory_map = Path(path).stat().st_size > MAPPED_BYTES
    try:
        return faiss.read_index(str(path), _mapping(path) if memory_map else 0)
    except (RuntimeError, MemoryError) as error:
        raise OSError(
            f"index_path={str(path)!r} ({Path(path).stat().st_size:,} bytes) can't be read as a faiss index: it is "
            f"truncated, corrupted or another kind of file. Build or download it again. (faiss: {_last_line(error)})"
        ) from error


def _mapping(path: str | Path) -> int:
    """The flag that maps a file: faiss has one for inverted lists and, since 1.10, one for all other codes."""
    import faiss

    with Path(path).open("rb") as stream:
        lists = b"Iw" in stream.read(256)  # the kind, perhaps within an IndexPreTransform or IndexIDMap
    return int(faiss.IO_FLAG_MMAP if lists else getattr(faiss, "IO_FLAG_MMAP_IFC", 0))


def write_faiss(faiss_index: Any, path: str | Path) -> None:
    """Write a faiss index to one file.

    Raises:
        OSError: the file can't be written.
    """
    import faiss

    try:
        faiss.write_index(faiss_index, str(path))
    except RuntimeError as error:
        raise OSError(f"the faiss index can't be written to {str(path)!r}: {_last_line(error)}") from error


def build_faiss(
    blocks: Iterable[np.ndarray],
    rows: int,
    vector_size: int,
    kind: str = "flat",
    *,
    metric: str = "inner_product",
    hnsw_neighbors: int = 32,
    ef_construction: int = 200,
    ef_search: int = 128,
    n_lists: int | None = None,
    n_probe: int | None = None,
    pq_bytes: int | None = None,
    train_rows: int | None = None,
    sample: np.ndarray | None = None,
) -> Any:
    """Build a faiss index from blocks of vectors, in row order.

    Args:
        blocks: float arrays (r, D) that together hold the R vectors; they are read once.
        rows: R.
        vector_size: D.
        kind: "flat" (exact), "hnsw" (graph over full vectors) or "ivfpq" (inverted lists, product-quantised codes).
        metric: "inner_product" or "l2".
        hnsw_neighbors: links a node of the HNSW graph.
        ef_construction: breadth of the search while the graph is built.
        ef_search: breadth of the search at query time (stored in the file).
        n_lists: inverted lists; by default about 2 sqrt(R), each of 39 vectors or more.
        n_probe: lists visited at query time (stored in the file); by default a 64th of them, at least 16.
        pq_bytes: bytes a vector; by default the largest divisor of D up to D / 8, to be ranked again exactly.
        train_rows: rows the quantisers are trained on, taken from the front; by default `training_rows`.
        sample: other rows (r, D) to train on: where the first ones are not like the rest.

    Returns:
        The faiss index, holding all R vectors.

    Raises:
        ValueError: unknown kind or metric, too few rows to train on, or blocks of another size.
    """
    import faiss

    if kind not in INDEX_KINDS:
        raise ValueError(f"index kind must be one of {INDEX_KINDS}, got {kind!r}.")
    metrics = {"inner_product": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
    if metric not in metrics:
        raise ValueError(f"metric must be one of {sorted(metrics)}, got {metric!r}.")
    index: Any
    if kind == "flat":
        index = faiss.IndexFlat(vector_size, metrics[metric])
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(vector_size, hnsw_neighbors, metrics[metric])
        index.hnsw.efConstruction, index.hnsw.efSearch = ef_construction, ef_search
    else:
        if rows < MIN_PQ_ROWS or rows < (n_lists or 1):
            raise ValueError(
                f"kind='ivfpq' needs at least {max(MIN_PQ_ROWS, n_lists or 1)} vectors to train its codes, there are "
                f"{rows}; use kind='flat' or 'hnsw'."
            )
        lists = n_lists or default_lists(rows)
        size = pq_bytes or max(d for d in range(1, max(1, vector_size // 8) + 1) if vector_size % d == 0)
        if vector_size % size:
            raise ValueError(f"m (pq_bytes) must divide the vector size {vector_size}, got {size}.")
        # "np": no polysemous training, an hour-long annealing that only Hamming filters profit from.
        index = faiss.index_factory(vector_size, f"IVF{lists},PQ{size}np", metrics[metric])
        index.nprobe = min(lists, n_probe or max(16, lists // 64))
        index.pq.cp.niter = 10  # of 25: the codes change no more
        if sample is not None:
            index.train(np.ascontiguousarray(sample, dtype=np.float32))
    wanted = min(rows, train_rows or training_rows(rows, n_lists))
    waiting: list[np.ndarray] = []
    for block in blocks:
        block = np.ascontiguousarray(block, dtype=np.float32)
        if block.ndim != 2 or block.shape[1] != vector_size:
            raise ValueError(f"every block must have shape (rows, {vector_size}), got {block.shape}.")
        waiting.append(block)
        if index.is_trained or sum(map(len, waiting)) >= wanted:
            _train_and_add(index, waiting)
            waiting = []
    if waiting:
        _train_and_add(index, waiting)
    if index.ntotal != rows:
        raise ValueError(f"rows={rows} were announced, the blocks held {index.ntotal}.")
    return index


def default_lists(rows: int) -> int:
    """Inverted lists for R rows: twice the square root balances the search for lists with the search in them."""
    return max(1, min(round(2 * rows**0.5), rows // 39))


def training_rows(rows: int, n_lists: int | None = None) -> int:
    """Rows to train on: 39 a list, the least that faiss finds enough, and 65,536, all that codes make use of."""
    return min(rows, max(65_536, 39 * (n_lists or default_lists(rows))))


def _train_and_add(index: Any, blocks: list[np.ndarray]) -> None:
    vectors = np.concatenate(blocks)
    if not index.is_trained:
        index.train(vectors)
    index.add(vectors)


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__
