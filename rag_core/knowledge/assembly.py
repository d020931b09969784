"""The work behind a knowledge base.

Shards in a work folder, then the finished folder, renamed into place.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.checks import warn, whole
from rag_core.hub import DamagedFileError, atomic_write, clear, install, name_full_disk, read_json
from rag_core.knowledge.embedding import (
    Encode,
    batch_vectors,
    embed_shards,
    passage_schema,
    read_batches,
    same_probe,
)
from rag_core.knowledge.manifest import FILE, INDEX_FILE, PASSAGES, Manifest, describe
from rag_core.knowledge.passages import stream_passages
from rag_core.retrieval import INDEX_KINDS, MIN_PQ_ROWS, RERANK

if TYPE_CHECKING:
    import pyarrow as pa

    from rag_core.retrieval import Blocks

FLAT_ROWS = 50_000  # up to here exact search answers within milliseconds
FILE_BYTES = 500 << 20
HNSW_ROWS = 500_000  # up to here a graph over whole vectors; beyond, it would fill the memory
BATCH_BYTES = 64 << 20  # of an Arrow record batch: each one costs a question pages of its own
SETTINGS = {"hnsw": ("efSearch",), "ivfpq": ("nlist", "nprobe", "m", "rerank")}


def note_path(out: Path) -> Path:
    """The file that says, until a change has been answered for, what was asked for and which
    manifest came of it.
    """
    return out.with_name(out.name + ".done")


def work_path(out: Path) -> Path:
    """The folder where shards wait while `out` is built."""
    return out.with_name(out.name + ".work")


@contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """The folder of shards beside `out`, locked.

    It is removed on success and stays, to go on from, after an error.
    """
    from filelock import FileLock, Timeout

    work = work_path(out)
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            clear(out)
            try:
                yield work
            except BaseException as error:
                shutil.rmtree(work / "final", ignore_errors=True)
                if not any(work.glob("shard-*.arrow")):
                    shutil.rmtree(work, ignore_errors=True)
                if isinstance(error, OSError):
                    name_full_disk(error, out)
                raise
    except Timeout:
        raise OSError(
            f"{out} is being written by another process ({work} is locked). Wait for it to end."
        ) from None
    shutil.rmtree(work, ignore_errors=True)
    # last of all: a kill before leaves the note, and after it nothing
    note_path(out).unlink(missing_ok=True)


def embed(
    files: list[Path], work: Path, encode: Encode, plan: Manifest, progress: bool = True
) -> list[Path]:
    """Embeds the passages of `files` into shards in `work`, keeping those of an earlier run of
    the same plan.
    """
    from tqdm.auto import tqdm

    request = plan.request
    note = work / "plan.json"
    keys = {
        "name": plan.encoder["name"],
        "dimension": plan.dimension,
        **request,
        "words": plan.words,
    }
    keys.pop("settings", None)  # of the index: the vectors do not depend on them
    before = _earlier_plan(note)
    if before.get("keys") != keys or not same_probe(before["probe"], plan.encoder["probe"]):
        for stale in work.glob("shard-*"):
            stale.unlink()
        with atomic_write(note) as draft:
            draft.write_text(
                json.dumps({"keys": keys, "probe": plan.encoder["probe"]}), encoding="utf-8"
            )
    stamps = [_stamp(path) for path in files]
    hide = not progress
    passages = functools.partial(
        stream_passages, files, plan.words, tsv_quotes=request.get("tsv_quotes", True)
    )
    first_pass = tqdm(passages(), "reading", unit=" passages", disable=hide, leave=False)
    rows = sum(1 for _ in first_pass)
    if request.get("index") == "ivfpq" and plan.rows + rows < MIN_PQ_ROWS:
        raise ValueError(
            f"index='ivfpq' needs at least {MIN_PQ_ROWS} passages to train its codes, there are "
            f"{plan.rows + rows}; use 'flat' or 'hnsw'."
        )
    with tqdm(total=rows, desc="embedding", unit=" passages", disable=hide) as bar:

        def advance(count: int, found: bool) -> None:
            if found and progress:
                bar.initial += count  # passages of an earlier run do not count into the speed
            bar.update(count)

        shards = embed_shards(
            passages(),
            work,
            encode,
            batch_size=request["batch_size"],
            shard_rows=request["shard_rows"],
            dimension=plan.dimension,
            advance=advance,
        )
    changed = [
        str(path) for path, stamp in zip(files, stamps, strict=True) if _stamp(path) != stamp
    ]
    if changed:
        raise ValueError(f"{', '.join(changed)} changed while being read. Run the command again.")
    return shards


def _earlier_plan(note: Path) -> dict[str, Any]:
    """What an earlier run noted, {} if there was none.

    Raises:
        DamagedFileError: it is damaged.
    """
    if not note.is_file():
        return {}
    advice = f"Remove {note.parent}; its passages are embedded again."
    plan: dict[str, Any] = read_json(note, advice=advice)
    probe = plan.get("probe")
    if not isinstance(probe, list) or not all(type(value) in (int, float) for value in probe):
        raise DamagedFileError(
            f"{note} is damaged (probe must be a list of numbers, got {probe!r:.60}). {advice}"
        )
    return plan


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def without(batches: Iterable[pa.RecordBatch], drop: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The batches less the rows that the boolean array `drop` marks."""
    import pyarrow as pa

    start = 0
    for batch in batches:
        kept = batch.filter(pa.array(~drop[start : start + len(batch)]))
        start += len(batch)
        if len(kept):
            yield kept


def merged(batches: Iterable[pa.RecordBatch], size: int = BATCH_BYTES) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of about `size` bytes."""
    import pyarrow as pa

    waiting: list[pa.RecordBatch] = []
    for batch in chain(batches, [None]):
        if waiting and (batch is None or sum(one.nbytes for one in waiting) + batch.nbytes > size):
            yield from pa.Table.from_batches(waiting).combine_chunks().to_batches()
            waiting = []
        if batch is not None:
            waiting.append(batch)


def assemble(
    work: Path,
    out: Path,
    batches: Iterable[pa.RecordBatch],
    plan: Manifest,
    kept: Any = None,
    request: Mapping[str, Any] | None = None,
) -> Manifest:
    """Writes the whole knowledge base into the work folder, then puts it in the place of `out`.

    Args:
        work: folder that `workplace` gave.
        out: the finished folder.
        batches: all passages with their embeddings, in the order of their rows.
        plan: the manifest but for what is known only at the end (`rows`, `index`, `files`).
        kept: a faiss index of the first rows, to be grown; None builds it anew.
        request: what was asked for (JSON), noted for `done_before`.

    Returns:
        The manifest as written.
    """
    from rag_core.retrieval import LOW_RECALL, default_nlist, low_recall, tune_recall, write_faiss

    final = work / "final"
    shutil.rmtree(final, ignore_errors=True)
    files, rows = _write_passages(final / PASSAGES, batches)

    def blocks() -> Iterator[np.ndarray]:
        return map(batch_vectors, read_batches(files))

    kind, given = _kind(plan.request.get("index", "auto"), rows), plan.request.get("settings", {})
    earlier = plan.index.get("settings", {})
    # lists made for a quarter of the passages would be four times too long
    outgrown = "nlist" not in given and 2 * earlier.get("nlist", rows) < default_nlist(rows)
    if kept is not None and plan.index.get("kind") == kind and not outgrown:
        index, start = kept, 0
        for block in blocks():
            start += len(block)
            if start > index.ntotal:
                index.add(np.ascontiguousarray(block[len(block) - (start - index.ntotal) :]))
    else:
        index = _built(blocks, rows, plan.dimension, kind, given)
    rerank = given.get("rerank", RERANK) if kind == "ivfpq" else 1
    recall, breadth = tune_recall(index, blocks, rows, rerank=rerank, fixed=given)
    settings = {**index_settings(index), **breadth}
    if recall < LOW_RECALL:
        warn(low_recall(kind, recall, settings))
    write_faiss(index, final / INDEX_FILE)
    described = {"kind": kind, "settings": settings, "recall_at_5": round(recall, 4)}
    manifest = replace(plan, rows=rows, index=described)
    manifest.write(final)
    if request is not None:
        result = {
            "request": request,
            "changed": abs(rows - plan.rows),
            "manifest": describe(final / FILE),
        }
        with atomic_write(note_path(out)) as draft:
            draft.write_text(json.dumps(result), encoding="utf-8")
    install(final, out, stale=(INDEX_FILE, f"{PASSAGES}/*"))
    return manifest


def done_before(out: Path, request: Mapping[str, Any]) -> int | None:
    """How many rows a run changed that was killed after the change and before it could say so; None
    if there is none.

    Without its note a change that is asked for again would be made twice.
    """
    try:
        note = read_json(note_path(out))
        is_it = note["request"] == request and note["manifest"] == describe(out / FILE)
        return note["changed"] if is_it and type(note["changed"]) is int else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def discard_work(out: Path) -> None:
    """Removes the work folder that a killed run left beside `out`; a living one's stays."""
    from filelock import FileLock, Timeout

    work = work_path(out)
    if work.is_dir():
        with suppress(Timeout, OSError), FileLock(work / "lock", timeout=0):
            shutil.rmtree(work, ignore_errors=True)
    note_path(out).unlink(missing_ok=True)


def check_settings(kind: str | None, settings: Mapping[str, int] | None) -> dict[str, int]:
    """The settings asked for, checked.

    Raises:
        TypeError, ValueError: a name that the kind of index does not have, or a value that is no
            whole number above 0.
    """
    known, checked = SETTINGS.get(kind or "auto", ()), {}
    for name, value in (settings or {}).items():
        if name not in known:
            have = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in SETTINGS.items())
            raise ValueError(
                f"index={kind or 'auto'!r} has no setting {name!r}. Settings are, {have}."
            )
        checked[name] = whole(1)(name, value)
    return checked


def _kind(asked: str, rows: int) -> str:
    if asked in INDEX_KINDS:
        return asked
    return "flat" if rows <= FLAT_ROWS else "hnsw" if rows <= HNSW_ROWS else "ivfpq"


def _built(blocks: Blocks, rows: int, size: int, kind: str, given: Mapping[str, int]) -> Any:
    from rag_core.retrieval import build_faiss, gather_rows, training_rows

    options: dict[str, Any] = {"ef_search": given["efSearch"]} if "efSearch" in given else {}
    if kind == "ivfpq":
        lists = given.get("nlist")
        # evenly from all passages: the first files may be about something else than the rest
        some = np.unique(np.linspace(0, rows - 1, training_rows(rows, lists)).astype(np.int64))
        options = {"nlist": lists, "nprobe": given.get("nprobe"), "pq_bytes": given.get("m")}
        options["sample"] = gather_rows(blocks, some) if rows >= MIN_PQ_ROWS else None
    return build_faiss(blocks(), rows, size, kind, **options)


def index_settings(index: Any) -> dict[str, int]:
    """What a faiss index was built with, in faiss' own names."""
    import faiss

    if (found := faiss.try_extract_index_ivf(index)) is not None:
        inverted: Any = faiss.downcast_index(found)
        coarse = {"nlist": inverted.nlist, "nprobe": inverted.nprobe}
        return coarse | (
            {"m": inverted.pq.M, "bits": inverted.pq.nbits} if hasattr(inverted, "pq") else {}
        )
    if hasattr(index, "hnsw"):
        return {"M": index.hnsw.nb_neighbors(1), "efConstruction": index.hnsw.efConstruction}
    return {}


def _write_passages(folder: Path, batches: Iterable[pa.RecordBatch]) -> tuple[list[Path], int]:
    """The files of a new folder of passages, and how many passages there are."""
    from rag_core.retrieval import PassageWriter

    folder.mkdir(parents=True)
    rows = 0
    file_bytes = FILE_BYTES
    content = hashlib.blake2b(digest_size=8)  # the same passages, built again, are the same bytes
    with PassageWriter(folder, passage_schema()) as writer:
        for batch in merged(batches):
            if file_bytes >= FILE_BYTES:
                writer.start_file()
                file_bytes = 0
            writer.write(batch)
            content.update(batch.serialize())
            file_bytes += batch.nbytes
            rows += len(batch)
        # Without a features entry, every release of `datasets` reads it.
        info = {"citation": "", "description": "", "features": None, "homepage": "", "license": ""}
        return writer.finish(content.hexdigest(), info), rows
