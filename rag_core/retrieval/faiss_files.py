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
# Larger files are mapped, so that a first question need not wait for all of one.
MAPPED_BYTES = 1 << 30
# Bytes that any file may announce: kinds that compute parts of themselves are smaller.
LEAST_ROOM = 1 << 20
# Candidates of one search in a graph: more would be allocated before anything is searched.
MOST_EF_SEARCH = 1 << 24
# Faiss trains 8-bit codes on no fewer.
MIN_PQ_ROWS = 256
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
    if name.is_dir():
        suffixes.update(entry.suffix.lower() for entry in name.iterdir())
    if not suffixes.isdisjoint(PICKLE_SUFFIXES):
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
    size = Path(path).stat().st_size
    if memory_map is None:
        memory_map = size > MAPPED_BYTES
    # The table is no part of the file, but is counted against its size.
    flags = faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE
    if memory_map:
        flags |= _mapping(path)
    try:
        with _limited(size):
            index = faiss.read_index(str(path), flags)
        if fault := _inconsistency(index, links=not memory_map):
            raise RuntimeError(fault)
        inverted = faiss.try_extract_index_ivf(index)
        if place := _lists_elsewhere(inverted):
            raise RuntimeError(f"its inverted lists are in another file, {place!r:.100}")
        if isinstance(inverted, faiss.IndexIVFPQ) and inverted.metric_type == faiss.METRIC_L2:
            inverted.precompute_table()
        return index
    except (RuntimeError, MemoryError, LookupError, ArithmeticError) as error:
        raise DamagedFileError(
            f"index_path={str(path)!r} ({size:,} bytes) can't be read as a faiss index: it is "
            "truncated, corrupted or another kind of file. Build or download it again. (faiss: "
            f"{last_line(error)})"
        ) from error


def _lists_elsewhere(inverted: Any) -> str:
    """The file that an index says its inverted lists are in, "" where they are in its own: a file
    from elsewhere must not make a program open what lies anywhere.
    """
    import faiss

    if inverted is None:
        return ""
    lists = faiss.downcast_InvertedLists(inverted.invlists)
    if isinstance(lists, faiss.OnDiskInvertedLists):
        return lists.filename
    return ""


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
    size = int(index.d)
    rows = int(index.ntotal)
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
        parts["base_index"] = index.base_index, size, rows
        parts["refine_index"] = index.refine_index, size, rows
    elif isinstance(index, faiss.IndexHNSW):
        parts["storage"] = index.storage, size, rows
        if not 1 <= index.hnsw.efSearch <= MOST_EF_SEARCH:
            return f"efSearch={index.hnsw.efSearch}"
        if rows and (fault := _graph_fault(index.hnsw, rows, links)):
            return f"hnsw: {fault}"
    elif isinstance(index, faiss.IndexIVF):
        parts["quantizer"] = index.quantizer, size, index.nlist
        listed = 0
        if index.invlists:
            listed = sum(index.invlists.list_size(number) for number in range(index.nlist))
        if index.nprobe < 1 or index.nlist < 1 or listed != rows:
            return f"nprobe={index.nprobe}, {listed} vectors in {index.nlist} lists"
    if hasattr(index, "pq") and (index.pq.d != size or index.pq.M * index.pq.dsub != size):
        return f"pq: d={index.pq.d}, M={index.pq.M}, dsub={index.pq.dsub}"
    for name, (part, *needed) in parts.items():
        shape = part and (int(part.d), int(part.ntotal))
        if shape != tuple(needed):
            return f"{name}: (d, ntotal) is {shape}, not {tuple(needed)}"
        if fault := _inconsistency(part, links):
            return f"{name}: {fault}"
    return ""


def _graph_fault(graph: Any, rows: int, links: bool) -> str:
    """What in a graph of R nodes leads out of it, "" where nothing does."""
    import faiss

    levels = faiss.vector_to_array(graph.levels)  # (R,) how many levels a node is on
    # Where the links of each level end among a node's.
    ends = faiss.vector_to_array(graph.cum_nneighbor_per_level).astype(np.int64)
    starts = faiss.vector_to_array(graph.offsets)  # (R + 1,) of each node's links
    count = int(graph.neighbors.size())
    entry = int(graph.entry_point)
    top = int(graph.max_level)
    are_sized = len(levels) == rows and len(starts) == rows + 1
    if not are_sized or not 1 <= levels.min() <= levels.max() < len(ends):
        return f"{len(levels)} levels and {len(starts)} offsets of {rows} nodes, {len(ends)} sizes"
    is_covered = starts[0] == 0 and starts[-1] == count
    do_follow = (np.diff(starts) == ends[levels]).all() and (np.diff(ends) >= 0).all()
    if not is_covered or not do_follow:
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
        # The letters of a kind with lists stand here, behind those of an IndexPreTransform or
        # IndexIDMap around it.
        if b"Iw" in stream.read(256):
            return int(faiss.IO_FLAG_MMAP)
    return int(getattr(faiss, "IO_FLAG_MMAP_IFC", 0))


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
        kind = type(faiss_index).__name__
        if hasattr(faiss_index, "faiss_index"):
            kind += ", but its .faiss_index may be one"
        raise TypeError(
            f"faiss_index must be a faiss.Index of float vectors, got {kind}. Build or read one."
        )
    outer = faiss_index
    if type(outer) is faiss.Index:
        outer = faiss.downcast_index(outer)
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
    lists = list(_listed(inverted))
    per_list = -(-sample // len(lists))
    rows: list[int] = []
    held_by: list[int] = []
    for number, ids in lists:
        step = max(1, len(ids) // per_list)
        some = ids[::step][:per_list].tolist()
        rows += some
        held_by += [number] * len(some)
    queries = np.ascontiguousarray(vectors(np.array(rows[:sample])), np.float32)
    for transform in _transforms(faiss_index):
        queries = transform.apply(queries)
    nearest = inverted.quantizer.assign(queries, 1)[:, 0]
    share = np.mean(nearest != np.array(held_by[:sample]))
    sizes = np.array([len(ids) for _, ids in lists]) / int(inverted.ntotal)
    by_chance = 1 - np.square(sizes).sum()
    # One list holds everything: nothing can be misplaced.
    if by_chance == 0:
        return 0.0
    return float(share / by_chance)


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
            with _lists_in_memory(faiss_index):
                faiss.write_index(faiss_index, str(draft))
        except RuntimeError as error:
            raise OSError(
                f"the faiss index can't be written to {str(path)!r}: {last_line(error)}"
            ) from error


@contextmanager
def _lists_in_memory(faiss_index: Any) -> Iterator[None]:
    """Within it the inverted lists of a mapped file are a copy: faiss would write their place
    instead of them.
    """
    import faiss

    inverted: Any = faiss.try_extract_index_ivf(faiss_index)
    mapped: Any = None
    if inverted is not None:
        mapped = faiss.downcast_InvertedLists(inverted.invlists)
    if not isinstance(mapped, faiss.OnDiskInvertedLists):
        yield
        return
    held = faiss.ArrayInvertedLists(mapped.nlist, mapped.code_size)
    for number in range(mapped.nlist):
        size = mapped.list_size(number)
        if size:
            held.add_entries(number, size, mapped.get_ids(number), mapped.get_codes(number))
    is_owner = inverted.own_invlists
    inverted.own_invlists = False  # else the next line would free what is put back
    inverted.replace_invlists(held, False)
    try:
        yield
    finally:
        inverted.replace_invlists(mapped, is_owner)


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
    nlist: int | None = None,
    nprobe: int | None = None,
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
        ef_construction: candidates of the search for a node's links while the graph is built.
        ef_search: candidates of a search at query time (stored in the file).
        nlist: inverted lists; by default about 2 sqrt(R), each of 39 vectors or more.
        nprobe: lists visited at query time (stored in the file); by default a 64th of them, at
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
    positive = whole(1)
    optional = whole(1, optional=True)
    rows = whole(0)("rows", rows)
    vector_size = positive("vector_size", vector_size)
    hnsw_neighbors = positive("hnsw_neighbors", hnsw_neighbors)
    ef_search = positive("ef_search", ef_search)
    ef_construction = positive("ef_construction", ef_construction)
    nlist = optional("nlist", nlist)
    nprobe = optional("nprobe", nprobe)
    pq_bytes = optional("pq_bytes", pq_bytes)
    train_rows = optional("train_rows", train_rows)
    metrics = {"inner_product": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
    if metric not in metrics:
        raise ValueError(f"metric must be one of {sorted(metrics)}, got {metric!r}.")
    index: Any
    if kind == "flat":
        index = faiss.IndexFlat(vector_size, metrics[metric])
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(vector_size, hnsw_neighbors, metrics[metric])
        index.hnsw.efConstruction = ef_construction
        index.hnsw.efSearch = ef_search
    else:
        least = max(MIN_PQ_ROWS, nlist or 1)
        if rows < least:
            raise ValueError(
                f"rows must be at least {least} vectors to train the codes of kind='ivfpq', got "
                f"{rows}. Use kind='flat' or 'hnsw'."
            )
        index = _untrained_codes(rows, vector_size, metrics[metric], nlist, nprobe, pq_bytes)
        if sample is not None:
            index.train(np.ascontiguousarray(sample, dtype=np.float32))
    _fill(index, blocks, min(rows, train_rows or training_rows(rows, nlist)))
    if index.ntotal != rows:
        raise ValueError(f"blocks must hold rows={rows} vectors together, got {index.ntotal}.")
    return index


def _untrained_codes(
    rows: int,
    vector_size: int,
    metric: int,
    nlist: int | None,
    nprobe: int | None,
    pq_bytes: int | None,
) -> Any:
    import faiss

    if nlist is None:
        nlist = default_nlist(rows)
    if pq_bytes is None:
        sizes = range(1, max(1, vector_size // 8) + 1)
        pq_bytes = max(size for size in sizes if vector_size % size == 0)
    if vector_size % pq_bytes:
        raise ValueError(f"m (pq_bytes) must divide the vector size {vector_size}, got {pq_bytes}.")
    # "np": no polysemous training, an hour-long annealing that only Hamming filters profit from.
    index: Any = faiss.index_factory(vector_size, f"IVF{nlist},PQ{pq_bytes}np", metric)
    index.nprobe = min(nlist, nprobe or max(16, nlist // 64))
    # Of 25: the codes change no more.
    index.pq.cp.niter = 10
    return index


def default_nlist(rows: int) -> int:
    """Inverted lists for R rows.

    Twice the square root balances the search for lists with the search in them.
    """
    return max(1, min(round(2 * rows**0.5), rows // 39))


def training_rows(rows: int, nlist: int | None = None) -> int:
    """Rows to train on: 39 a list, the least that faiss finds enough, and 65,536, all that codes
    make use of.
    """
    return min(rows, max(65_536, 39 * (nlist or default_nlist(rows))))


def _fill(index: Any, blocks: Iterable[np.ndarray], train_rows: int) -> None:
    waiting: list[np.ndarray] = []
    for block in blocks:
        block = np.ascontiguousarray(block, dtype=np.float32)
        if block.ndim != 2 or block.shape[1] != index.d:
            raise ValueError(f"every block must have shape (rows, {index.d}), got {block.shape}.")
        waiting.append(block)
        if index.is_trained or sum(map(len, waiting)) >= train_rows:
            _train_and_add(index, waiting)
            waiting = []
    if waiting:
        _train_and_add(index, waiting)


def _train_and_add(index: Any, blocks: list[np.ndarray]) -> None:
    vectors = np.concatenate(blocks)
    if not index.is_trained:
        index.train(vectors)
    index.add(vectors)


def last_line(error: BaseException) -> str:
    """What an error of faiss says, in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1][:200]
