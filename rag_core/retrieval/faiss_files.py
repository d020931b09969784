"""Faiss index files: build, read (in memory or memory-mapped) and write, with clear errors.

Letters: R rows, D vector size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from rag_core.checks import whole
from rag_core.hub import DamagedFileError, atomic_write, recover

INDEX_KINDS = ("flat", "hnsw", "ivfpq")
MAPPED_BYTES = 1 << 30
# bytes that any file may announce: kinds that compute parts of themselves are smaller
LEAST_ROOM = 1 << 20
MOST_BREADTH = 1 << 24  # candidates of one search in a graph
MIN_PQ_ROWS = 256  # faiss trains 8-bit codes on no fewer
PICKLE_SUFFIXES = (".pkl", ".pickle", ".dpr", ".p", ".pck")

_READING = Lock()

PICKLE_HELP = (
    "The 'legacy' index of the paper is a pickle, and reading a pickle runs any code it holds "
    "(CVE-2023-6730), so it is never opened here. Use index_name='compressed' or 'exact' (the "
    "same Wikipedia passages and vectors as data files, dataset='wiki_dpr'), or your own: "
    "index_name='custom' with passages_path= (a datasets folder) and index_path= (a faiss file)."
)


def refuse_pickle(path: str | Path, argument: str) -> None:
    """Raise ValueError if `path` names a pickle or the parts of a legacy DPR index; nothing is
    opened.

    Args:
        path: a file or folder name a configuration gives.
        argument: the name of the configuration field, for the message.
    """
    name = Path(path)
    suffixes = {suffix.lower() for suffix in name.suffixes}
    parts = {entry.suffix.lower() for entry in name.iterdir()} if name.is_dir() else set()
    if (suffixes | parts) & set(PICKLE_SUFFIXES):
        raise ValueError(
            f"{argument}={str(path)!r} names a pickle (or a folder with one). {PICKLE_HELP}"
        )


def read_faiss(path: str | Path, *, memory_map: bool | None = False) -> Any:
    """Read a faiss index file.

    Args:
        path: the file, as ``faiss.write_index`` or ``Dataset.save_faiss_index`` wrote it.
        memory_map: map the file instead of copying it into memory; None maps files of more than 1
            GB. A mapped index is for searching: inverted lists in a file can't grow.

    Returns:
        The faiss index.

    Raises:
        OSError: there is no such file, or it is truncated, corrupted or no faiss index.
    """
    import faiss

    refuse_pickle(path, "index_path")
    if not Path(path).is_file():
        raise OSError(
            f"index_path={str(path)!r}: there is no such file; give the faiss file of the passages."
        )
    recover(Path(path).parent)
    if memory_map is None:
        memory_map = Path(path).stat().st_size > MAPPED_BYTES
    size = Path(path).stat().st_size
    try:
        with _limited(size):
            # The table is no part of the file, but is counted against its size.
            flags = faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE | (_mapping(path) if memory_map else 0)
            index = faiss.read_index(str(path), flags)
        if fault := _inconsistency(index, links=not memory_map):
            raise RuntimeError(fault)
        inverted = faiss.try_extract_index_ivf(index)
        if isinstance(inverted, faiss.IndexIVFPQ) and inverted.metric_type == faiss.METRIC_L2:
            inverted.precompute_table()
        return index
    except (RuntimeError, MemoryError, LookupError, ArithmeticError) as error:
        raise DamagedFileError(
            f"index_path={str(path)!r} ({size:,} bytes) can't be read as a faiss index: it is "
            "truncated, corrupted or another kind of file. Build or download it again. (faiss: "
            f"{last_line(error)})"
        ) from error


def _inconsistency(index: Any, links: bool) -> str:
    """What in an index would lead a search out of its memory, "" where nothing does: faiss trusts
    these numbers.

    Args:
        index: any faiss index.
        links: whether all links of a graph are read, too: not those of a mapped file, of which a
            search reads a few.
    """
    import faiss

    index = faiss.downcast_index(index)
    size, rows = int(index.d), int(index.ntotal)
    if size < 1 or rows < 0:
        return f"d={size}, ntotal={rows}"
    if rows and not index.is_trained:
        return f"{rows} vectors before training"
    parts: dict[str, tuple[Any, int, int]] = {}  # name: the index inside, its d, its ntotal
    if isinstance(index, faiss.IndexIDMap):
        parts["index"] = index.index, size, rows
    elif isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain  # a vector of C++
        for number in range(chain.size()):
            step = chain.at(number)
            if step.d_in != size or step.d_out < 1:
                return f"transform {number}: d_in={step.d_in}, d_out={step.d_out} after {size}"
            size = step.d_out
        parts["index"] = index.index, size, rows
    elif isinstance(index, faiss.IndexRefine):
        parts |= {
            "base_index": (index.base_index, size, rows),
            "refine_index": (index.refine_index, size, rows),
        }
    elif isinstance(index, faiss.IndexHNSW):
        parts["storage"] = index.storage, size, rows
        if not 1 <= index.hnsw.efSearch <= MOST_BREADTH:
            return f"efSearch={index.hnsw.efSearch}"
        if rows and (fault := _graph_fault(index.hnsw, rows, links)):
            return f"hnsw: {fault}"
    elif isinstance(index, faiss.IndexIVF):
        parts["quantizer"] = index.quantizer, size, index.nlist
        listed = (
            sum(index.invlists.list_size(number) for number in range(index.nlist))
            if index.invlists
            else 0
        )
        if index.nprobe < 1 or index.nlist < 1 or listed != rows:
            return f"nprobe={index.nprobe}, {listed} vectors in {index.nlist} lists"
    if hasattr(index, "pq") and (index.pq.d != size or index.pq.M * index.pq.dsub != size):
        return f"pq: d={index.pq.d}, M={index.pq.M}, dsub={index.pq.dsub}"
    for name, (part, wanted_size, wanted_rows) in parts.items():
        if part is None or (int(part.d), int(part.ntotal)) != (wanted_size, wanted_rows):
            found = part and (part.d, part.ntotal)
            return f"{name}: (d, ntotal) is {found}, not {(wanted_size, wanted_rows)}"
        if fault := _inconsistency(part, links):
            return f"{name}: {fault}"
    return ""


def _graph_fault(graph: Any, rows: int, links: bool) -> str:
    """What in a graph of R nodes leads out of it, "" where nothing does."""
    import faiss

    levels = faiss.vector_to_array(graph.levels)  # (R,) how many levels a node is on
    # of each level in a node's links
    ends = faiss.vector_to_array(graph.cum_nneighbor_per_level).astype(np.int64)
    starts = faiss.vector_to_array(graph.offsets)  # (R + 1,) of each node's links
    count, entry, top = int(graph.neighbors.size()), int(graph.entry_point), int(graph.max_level)
    if (
        len(levels) != rows
        or len(starts) != rows + 1
        or not 1 <= levels.min() <= levels.max() < len(ends)
    ):
        return f"{len(levels)} levels and {len(starts)} offsets of {rows} nodes, {len(ends)} sizes"
    if (
        starts[0]
        or starts[-1] != count
        or (np.diff(ends) < 0).any()
        or (np.diff(starts) != ends[levels]).any()
    ):
        return f"offsets do not follow from levels, or end beside {count} links"
    if not 0 <= entry < rows or levels[entry] != top + 1 or levels.max() != top + 1:
        return f"entry_point={entry}, max_level={top}"
    if not links or not count:
        return ""
    near = faiss.rev_swig_ptr(graph.neighbors.data(), count)
    if near.min() < -1 or near.max() >= rows:
        return f"links from {near.min()} to {near.max()}"
    for level in range(1, top + 1):
        nodes = np.flatnonzero(levels > level)
        places = starts[nodes].astype(np.int64)[:, None] + np.arange(ends[level], ends[level + 1])
        there = near[places]
        if (levels[there[there >= 0]] <= level).any():
            return f"a link of level {level} to a node below it"
    return ""


@contextmanager
def _limited(size: int) -> Iterator[None]:
    """Within it faiss refuses a file that announces more than its `size` bytes hold, before it
    takes the memory.

    The limits are faiss's, of the whole process, and there since release 1.14; so one file is read
    at a time.
    """
    import faiss

    names = [f"deserialization_{name}_limit" for name in ("vector_byte", "loop")]
    names = [name for name in names if hasattr(faiss, f"set_{name}")]
    with _READING:
        before = {name: getattr(faiss, f"get_{name}")() for name in names}
        try:
            for name in names:
                getattr(faiss, f"set_{name}")(max(size, LEAST_ROOM))
            yield
        finally:
            for name, value in before.items():
                getattr(faiss, f"set_{name}")(value)


def _mapping(path: str | Path) -> int:
    """The flag that maps a file.

    Faiss has one for inverted lists and, since 1.10, one for all other codes.
    """
    import faiss

    with Path(path).open("rb") as stream:
        # the kind, perhaps within an IndexPreTransform or IndexIDMap
        lists = b"Iw" in stream.read(256)
    return int(faiss.IO_FLAG_MMAP if lists else getattr(faiss, "IO_FLAG_MMAP_IFC", 0))


def by_row(faiss_index: Any) -> Any:
    """The index as it numbers vectors by row: what is inside of an `IndexIDMap`, if its ids are the
    row numbers.

    Args:
        faiss_index: any faiss index of R vectors.

    Returns:
        The index to search. Inverted lists may hold the ids 0 to R - 1 in any order.

    Raises:
        TypeError: it is no index of float vectors.
        ValueError: its vectors have other ids than 0 to R - 1 (``add_with_ids``).
    """
    import faiss

    if not isinstance(faiss_index, faiss.Index):
        hint = ", but its .faiss_index may be one" if hasattr(faiss_index, "faiss_index") else ""
        kind = type(faiss_index).__name__
        raise TypeError(
            f"faiss_index must be a faiss.Index of float vectors, got {kind}{hint}. Build or read "
            "one."
        )
    outer = faiss.downcast_index(faiss_index) if type(faiss_index) is faiss.Index else faiss_index
    rows = int(outer.ntotal)
    if isinstance(outer, faiss.IndexIDMap):  # IndexIDMap2, too
        ids = faiss.vector_to_array(outer.id_map)
        other = np.flatnonzero(ids != np.arange(rows))
        if other.size:
            raise ValueError(other_ids(rows, f"row {other[0]} has the id {ids[other[0]]}"))
        inner: Any = faiss.downcast_index(outer.index)
        inner.referenced_objects = [outer]  # which owns it
        return inner
    if isinstance(outer, faiss.IndexPreTransform):
        by_row(faiss.downcast_index(outer.index))
        return outer
    inverted = faiss.try_extract_index_ivf(outer)
    if inverted is not None and rows:
        _check_list_ids(inverted, rows)
    return outer


def measures_inner_products(faiss_index: Any) -> bool:
    """Whether an index finds the vectors of the largest inner products: not where it measures
    otherwise or first divides vectors by their lengths.
    """
    import faiss

    if any(isinstance(step, faiss.NormalizationTransform) for step in _transforms(faiss_index)):
        return False
    return bool(faiss_index.metric_type == faiss.METRIC_INNER_PRODUCT)


def _transforms(faiss_index: Any) -> list[Any]:
    """What is done to vectors before they are searched for, in order."""
    import faiss

    index = faiss.downcast_index(faiss_index)
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    chain: Any = index.chain  # a vector of C++
    return [faiss.downcast_VectorTransform(chain.at(number)) for number in range(chain.size())]


def lists_in_row_order(faiss_index: Any) -> bool:
    """Whether the ids in each inverted list rise, as ``index.add`` numbers them.

    True without such lists.
    """
    import faiss

    inverted = faiss.try_extract_index_ivf(faiss_index)
    if inverted is None:
        return True
    return all((np.diff(ids) > 0).all() for _, ids in _listed(inverted))


def misplaced(
    faiss_index: Any, vectors: Callable[[np.ndarray], np.ndarray], sample: int = 64
) -> float:
    """How often the vectors of rows belong into other inverted lists than those that hold their
    ids, in a sample.

    Args:
        faiss_index: an index with inverted lists.
        vectors: gives the vectors (r, D) of rows (r,).
        sample: how many rows are looked at.

    Returns:
        0 = never, 1 = as often as if the ids had been dealt out by chance.
    """
    import faiss

    inverted: Any = faiss.try_extract_index_ivf(faiss_index)
    filled = [(number, ids) for number, ids in _listed(inverted)]
    each = -(-sample // len(filled))
    chosen = [
        (number, row) for number, ids in filled for row in ids[:: max(1, len(ids) // each)][:each]
    ][:sample]
    rows = np.array([row for _, row in chosen])
    found = np.ascontiguousarray(vectors(rows), np.float32)
    for step in _transforms(faiss_index):
        found = step.apply(found)
    lists = inverted.quantizer.assign(found, 1)[:, 0]
    share = np.mean(lists != np.array([number for number, _ in chosen]))
    sizes = np.array([len(ids) for _, ids in filled]) / int(inverted.ntotal)
    by_chance = 1 - np.square(sizes).sum()
    return float(share / by_chance) if by_chance else 0.0


def _listed(inverted: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Number and ids of each inverted list that holds any."""
    import faiss

    lists = inverted.invlists
    for number in range(inverted.nlist):
        size = lists.list_size(number)
        if size:
            yield number, faiss.rev_swig_ptr(lists.get_ids(number), size)


def _check_list_ids(inverted: Any, rows: int) -> None:
    seen = np.zeros(rows, bool)
    for number, ids in _listed(inverted):
        if ids.min() < 0 or ids.max() >= rows:
            raise ValueError(
                other_ids(rows, f"list {number} holds ids from {ids.min()} to {ids.max()}")
            )
        seen[ids] = True
    if not seen.all():
        raise ValueError(other_ids(rows, f"no vector has the id {np.flatnonzero(~seen)[0]}"))


def other_ids(rows: int, fault: str) -> str:
    """What is wrong with an index of R vectors whose ids are not the rows' numbers, and what to
    do.
    """
    return (
        f"faiss_index must number its vectors as the passages' rows are, 0 to {rows - 1}, but "
        f"{fault}: each document found would be another row's. Build it with index.add(vectors) "
        "in the order of the passages, not with add_with_ids."
    )


def write_faiss(faiss_index: Any, path: str | Path) -> None:
    """Write a faiss index to one file, whole or not at all.

    Raises:
        OSError: the file can't be written.
    """
    import faiss

    with atomic_write(path) as draft:
        try:
            faiss.write_index(faiss_index, str(draft))
        except RuntimeError as error:
            raise OSError(
                f"the faiss index can't be written to {str(path)!r}: {last_line(error)}"
            ) from error


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
        kind: "flat" (exact), "hnsw" (graph over full vectors) or "ivfpq" (inverted lists,
            product-quantised codes).
        metric: "inner_product", by which RAG weighs documents, or "l2", which orders them otherwise
            unless all vectors are of one length; `FaissIndex` warns of it.
        hnsw_neighbors: links a node of the HNSW graph.
        ef_construction: breadth of the search while the graph is built.
        ef_search: breadth of the search at query time (stored in the file).
        n_lists: inverted lists; by default about 2 sqrt(R), each of 39 vectors or more.
        n_probe: lists visited at query time (stored in the file); by default a 64th of them, at
            least 16.
        pq_bytes: bytes a vector; by default the largest divisor of D up to D / 8, to be ranked
            again exactly.
        train_rows: rows the quantisers are trained on, taken from the front; by default
            `training_rows`.
        sample: other rows (r, D) to train on: where the first ones are not like the rest.

    Returns:
        The faiss index, holding all R vectors.

    Raises:
        ValueError: unknown kind or metric, too few rows to train on, or blocks of another size.
    """
    import faiss

    if kind not in INDEX_KINDS:
        raise ValueError(f"index kind must be one of {INDEX_KINDS}, got {kind!r}.")
    rows, vector_size = whole(0)("rows", rows), whole(1)("vector_size", vector_size)
    hnsw_neighbors, ef_search = (
        whole(1)("hnsw_neighbors", hnsw_neighbors),
        whole(1)("ef_search", ef_search),
    )
    ef_construction, optional = (
        whole(1)("ef_construction", ef_construction),
        whole(1, optional=True),
    )
    n_lists, n_probe = optional("n_lists", n_lists), optional("n_probe", n_probe)
    pq_bytes, train_rows = optional("pq_bytes", pq_bytes), optional("train_rows", train_rows)
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
                f"kind='ivfpq' needs at least {max(MIN_PQ_ROWS, n_lists or 1)} vectors to train "
                f"its codes, there are {rows}; use kind='flat' or 'hnsw'."
            )
        lists = n_lists or default_lists(rows)
        size = pq_bytes or max(
            d for d in range(1, max(1, vector_size // 8) + 1) if vector_size % d == 0
        )
        if vector_size % size:
            raise ValueError(f"m (pq_bytes) must divide the vector size {vector_size}, got {size}.")
        # "np": no polysemous training, an hour-long annealing that only Hamming filters profit
        # from.
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
            raise ValueError(
                f"every block must have shape (rows, {vector_size}), got {block.shape}."
            )
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
    """Inverted lists for R rows.

    Twice the square root balances the search for lists with the search in them.
    """
    return max(1, min(round(2 * rows**0.5), rows // 39))


def training_rows(rows: int, n_lists: int | None = None) -> int:
    """Rows to train on: 39 a list, the least that faiss finds enough, and 65,536, all that codes
    make use of.
    """
    return min(rows, max(65_536, 39 * (n_lists or default_lists(rows))))


def _train_and_add(index: Any, blocks: list[np.ndarray]) -> None:
    vectors = np.concatenate(blocks)
    if not index.is_trained:
        index.train(vectors)
    index.add(vectors)


def last_line(error: BaseException) -> str:
    """What an error of faiss says, in one line."""
    return str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__
