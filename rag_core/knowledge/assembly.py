"""The work behind a knowledge base.

Shards in a work folder, then the finished folder, renamed into place.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.checks import warn, whole
from rag_core.hub import DamagedFileError, atomic_write, clear, install, name_full_disk, read_json
from rag_core.knowledge.documents import ReadingOptions
from rag_core.knowledge.embedding import (
    Encode,
    batch_vectors,
    embed_shards,
    passage_schema,
    read_batches,
    same_probe,
    text_row,
    text_rows,
)
from rag_core.knowledge.manifest import FILE, INDEX_FILE, PASSAGES, Manifest, describe
from rag_core.knowledge.passages import PassageRow, stream_passages
from rag_core.retrieval import BM25_FOLDER, INDEX_KINDS, MIN_PQ_ROWS, RERANK

if TYPE_CHECKING:
    import pyarrow as pa

    from rag_core.knowledge.frames import Frame
    from rag_core.retrieval import Blocks

# Up to here exact search answers within milliseconds.
FLAT_ROWS = 50_000
# Up to here a graph over whole vectors; beyond, it would fill the memory.
HNSW_ROWS = 500_000
# Of an Arrow file: as `datasets` splits its own.
FILE_BYTES = 500 << 20
# Of an Arrow record batch: each one costs a question pages of its own.
BATCH_BYTES = 64 << 20
# Ways to search that are no kind of faiss index: one of vectors is made beside them.
WAYS = ("bm25", "hybrid")
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
            # Under the lock: whoever takes it next may have shards there.
            shutil.rmtree(work, ignore_errors=True)
            # Last of all: a kill before leaves the note, and after it nothing.
            note_path(out).unlink(missing_ok=True)
    except Timeout:
        raise OSError(
            f"{out} is being written by another process ({work} is locked). Wait for it to end."
        ) from None


def embed(
    files: Sequence[tuple[Path | Frame, str]],
    work: Path,
    encode: Encode,
    plan: Manifest,
    progress: bool = True,
) -> list[Path]:
    """Embeds the passages of `files`, as `find_files` gives them or a table in memory, into shards in `work`, keeping
    those of an earlier run of the same plan.
    """
    from tqdm.auto import tqdm

    request = plan.request
    keep_shards_of(plan, work)
    paths = [path for path, _ in files]
    stamps = [_stamp(path) for path in paths]
    hide = not progress or None  # None: at a terminal alone

    # Read twice: a progress bar wants to know how many there are, and reading takes little beside
    # embedding.
    first_pass = tqdm(
        passages_of(files, plan), "reading", unit=" passages", disable=hide, leave=False
    )
    rows = sum(1 for _ in first_pass)
    if request.get("index") == "ivfpq" and plan.rows + rows < MIN_PQ_ROWS:
        raise ValueError(
            f"index='ivfpq' needs at least {MIN_PQ_ROWS} passages to train its codes, there are "
            f"{plan.rows + rows}; use 'flat' or 'hnsw'."
        )
    with tqdm(total=rows, desc="embedding", unit=" passages", disable=hide) as bar:

        def advance(count: int, found: bool) -> None:
            # Passages of an earlier run do not count into the speed.
            if found and progress:
                bar.initial += count
            bar.update(count)

        shards = embed_shards(
            map(text_row, passages_of(files, plan)),
            work,
            encode,
            batch_size=request["batch_size"],
            shard_rows=request["shard_rows"],
            dimension=plan.dimension,
            advance=advance,
        )
    pairs = zip(paths, stamps, strict=True)
    changed = [str(path) for path, stamp in pairs if _stamp(path) != stamp]
    if changed:
        raise ValueError(f"{', '.join(changed)} changed while being read. Run the command again.")
    return shards


def passages_of(files: Sequence[tuple[Path | Frame, str]], plan: Manifest) -> Iterator[PassageRow]:
    """The passages of files, read as the request says."""
    return stream_passages(files, plan.words, ReadingOptions.of(plan.request))


def keep_shards_of(plan: Manifest, work: Path) -> None:
    """Removes the shards of an earlier run that did not work on the same plan, and notes this one."""
    note = work / "plan.json"
    probe = plan.encoder["probe"]
    keys = {
        "name": plan.encoder["name"],
        "fingerprint": plan.encoder.get("fingerprint"),
        "dimension": plan.dimension,
        **plan.request,
        "words": plan.words,
    }
    # Of the index: the vectors do not depend on them.
    keys.pop("settings", None)
    before = _earlier_plan(note)
    if before.get("keys") == keys and same_probe(before["probe"], probe):
        return
    for stale in work.glob("shard-*"):
        stale.unlink()
    with atomic_write(note) as draft:
        draft.write_text(json.dumps({"keys": keys, "probe": probe}), encoding="utf-8")


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


def _stamp(path: Path | Frame) -> tuple[int, int]:
    if not isinstance(path, Path):
        return path.describe()["bytes"], 0
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def without(batches: Iterable[pa.RecordBatch], drop: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The batches less the rows that the boolean array `drop` marks."""
    import pyarrow as pa

    start = 0
    for batch in batches:
        rest = batch.filter(pa.array(~drop[start : start + len(batch)]))
        start += len(batch)
        if len(rest):
            yield rest


def merged(batches: Iterable[pa.RecordBatch], size: int = BATCH_BYTES) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of about `size` bytes."""
    import pyarrow as pa

    from rag_core.retrieval import copied_batch

    def joined() -> Iterator[pa.RecordBatch]:
        if waiting:
            # Copied also where one is a slice: the same rows are the same bytes.
            table = pa.Table.from_batches(waiting).combine_chunks()
            yield from map(copied_batch, table.to_batches())

    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        if sum(part.nbytes for part in waiting) + batch.nbytes > size:
            yield from joined()
            waiting = []
        waiting.append(batch)
    yield from joined()


def assemble(
    work: Path,
    out: Path,
    batches: Iterable[pa.RecordBatch],
    plan: Manifest,
    kept: Any = None,
    request: Mapping[str, Any] | None = None,
    outcome: Any = None,
) -> Manifest:
    """Writes the whole knowledge base into the work folder, then puts it in the place of `out`.

    Args:
        work: folder that `workplace` gave.
        out: the finished folder.
        batches: all passages with their embeddings, in the order of their rows.
        plan: the manifest but for what is known only at the end (`rows`, `index`, `files`).
        kept: a faiss index of the first rows, to be grown; None builds it anew.
        request: what was asked for (JSON), noted for `done_before`.
        outcome: what is to be answered (JSON); by default how many rows more or less there are.

    Returns:
        The manifest as written.
    """
    from rag_core.retrieval import (
        LOW_RECALL,
        build_bm25,
        default_nlist,
        low_recall,
        tune_recall,
        write_bm25,
        write_faiss,
    )

    final = work / "final"
    shutil.rmtree(final, ignore_errors=True)
    files, rows = _write_passages(final / PASSAGES, batches)

    def blocks() -> Iterator[np.ndarray]:
        return map(batch_vectors, read_batches(files))

    kind = _kind(plan.request.get("index", "auto"), rows)
    asked = plan.request.get("settings", {})
    earlier = plan.index.get("settings", {})
    # Lists made for a quarter of the passages would be four times too long.
    is_outgrown = "nlist" not in asked and 2 * earlier.get("nlist", rows) < default_nlist(rows)
    if kept is not None and plan.index.get("kind") == kind and not is_outgrown:
        index = kept
        _grow(index, blocks)
    else:
        index = _built(blocks, rows, plan.dimension, kind, asked)
    rerank = 1
    if kind == "ivfpq":
        rerank = asked.get("rerank", RERANK)
    recall, search_settings = tune_recall(index, blocks, rows, rerank=rerank, fixed=asked)
    settings = {**index_settings(index), **search_settings}
    if recall < LOW_RECALL:
        warn(low_recall(kind, recall, settings))
    write_faiss(index, final / INDEX_FILE)
    described: dict[str, Any] = {
        "kind": kind,
        "settings": settings,
        "recall_at_5": round(recall, 4),
    }
    if plan.request.get("index") in WAYS:
        described["search"] = plan.request["index"]
        write_bm25(build_bm25(_texts(files)), final / BM25_FOLDER)
    replace(plan, rows=rows, index=described).write(final)
    manifest = Manifest.read(final)
    if request is not None:
        if outcome is None:
            outcome = abs(rows - plan.rows)
        result = {
            "request": request,
            "changed": outcome,
            "manifest": describe(final / FILE),
        }
        with atomic_write(note_path(out)) as draft:
            draft.write_text(json.dumps(result), encoding="utf-8")
    install(final, out, stale=(INDEX_FILE, f"{PASSAGES}/*", f"{BM25_FOLDER}/*"))
    return manifest


def done_before(out: Path, request: Mapping[str, Any]) -> Any:
    """The outcome of a run that was killed after the change and before it could say so; None if
    there is none.

    Without its note a change that is asked for again would be made twice.
    """
    try:
        note = read_json(note_path(out))
        if note["request"] != request or note["manifest"] != describe(out / FILE):
            return None
        return note["changed"]
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
    known = SETTINGS.get(kind or "auto", ())
    checked = {}
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
    if rows <= FLAT_ROWS:
        return "flat"
    if rows <= HNSW_ROWS:
        return "hnsw"
    return "ivfpq"


def _texts(files: list[Path]) -> Iterator[str]:
    """What BM25 reads of the passages in Arrow files."""
    from rag_core.retrieval import passage_text

    for title, text, *_ in text_rows(read_batches(files)):
        yield passage_text(title, text)


def _grow(index: Any, blocks: Blocks) -> None:
    """Adds the vectors that an index of the first rows does not hold yet."""
    start = 0
    for block in blocks():
        start += len(block)
        if start > index.ntotal:
            index.add(np.ascontiguousarray(block[len(block) - (start - index.ntotal) :]))


def _built(blocks: Blocks, rows: int, size: int, kind: str, settings: Mapping[str, int]) -> Any:
    from rag_core.retrieval import build_faiss, gather_rows, training_rows

    options: dict[str, Any] = {}
    if "efSearch" in settings:
        options["ef_search"] = settings["efSearch"]
    if kind == "ivfpq":
        nlist = settings.get("nlist")
        options = {"nlist": nlist, "nprobe": settings.get("nprobe"), "pq_bytes": settings.get("m")}
        if rows >= MIN_PQ_ROWS:
            # Evenly from all passages: the first files may be about something else than the rest.
            spread = np.linspace(0, rows - 1, training_rows(rows, nlist)).astype(np.int64)
            options["sample"] = gather_rows(blocks, np.unique(spread))
    return build_faiss(blocks(), rows, size, kind, **options)


def index_settings(index: Any) -> dict[str, int]:
    """What a faiss index was built with, in faiss' own names."""
    import faiss

    inverted: Any = faiss.try_extract_index_ivf(index)
    if inverted is not None:
        inverted = faiss.downcast_index(inverted)
        settings = {"nlist": inverted.nlist, "nprobe": inverted.nprobe}
        if hasattr(inverted, "pq"):
            settings.update(m=inverted.pq.M, bits=inverted.pq.nbits)
        return settings
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
