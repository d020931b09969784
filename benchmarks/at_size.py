"""A knowledge base of millions of passages: how fast it opens, what memory it takes, how long a
question searches.

    python -m benchmarks.at_size

Passages are drawn (100 words each; vectors lie in clusters, as real ones do), everything else is
what `dualrag index --index ivfpq` does. Building takes minutes and about 4 KB of disk a passage at
D = 768; the folder is kept for the next run. Opening and searching are measured in a process of
their own, once with the files dropped from the page cache.

Letters: R passages, D vector size.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scaling_report import inserted
from benchmarks.workload import CACHE
from rag_core.knowledge.assembly import assemble, workplace
from rag_core.knowledge.base import KnowledgeBase
from rag_core.knowledge.manifest import Manifest
from rag_core.retrieval.recall import gather_rows, tune_recall

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = RESULTS.parent.parent / "docs" / "performance.md"
WIKIPEDIA = 21_015_300
SMALL = 20_000  # a second size: what grows with the passages is told from what does not
CENTRES, BLOCK, QUERIES = 4096, 20_000, 40


def centres(size: int) -> np.ndarray:
    """Where the vectors lie, (4096, D)."""
    return np.random.default_rng(7).standard_normal((CENTRES, size), dtype=np.float32)


def drawn(rows: int, size: int) -> Iterator[Any]:
    """R passages as record batches of title, text, embeddings."""
    import pyarrow as pa

    from rag_core.knowledge.embedding import passage_schema

    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfw"))
    words = ["".join(rng.choice(letters, 1 + rng.integers(9))) for _ in range(20_000)]
    phrases = [" ".join(words[i] for i in rng.integers(len(words), size=10)) for _ in range(20_000)]
    middle = centres(size)
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        vectors = rng.standard_normal((count, size), dtype=np.float32)
        vectors *= 0.7
        vectors += middle[rng.integers(CENTRES, size=count)]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        texts = [
            " ".join(phrases[i] for i in row)
            for row in rng.integers(len(phrases), size=(count, 10)).tolist()
        ]
        offsets = pa.array(np.arange(0, vectors.size + 1, size, dtype=np.int32))
        columns = [
            pa.array([f"Passage {start + i}" for i in range(count)]),
            pa.array(texts),
            pa.nulls(count, pa.string()),
            pa.nulls(count, pa.string()),
            pa.ListArray.from_arrays(offsets, pa.array(vectors.reshape(-1))),
        ]
        yield pa.record_batch(columns, schema=passage_schema())


def build(folder: Path, rows: int, size: int) -> dict[str, Any]:
    """The knowledge base, unless it is there.

    The processor's seconds it took are kept beside it.
    """
    note = folder.with_name(folder.name + ".build.json")
    if (folder / "manifest.json").is_file() and note.is_file():
        return json.loads(note.read_text())
    probe = [0.0] * min(32, size)
    plan = Manifest(
        {"name": "drawn", "probe": probe}, size, 0, 100, {}, [], request={"index": "ivfpq"}
    )
    # of all threads: what stands in the way of others' measurements may be paused
    start = time.process_time()
    with workplace(folder) as work:
        assemble(work, folder, drawn(rows, size), plan)
    built = {"cpu_seconds": round(time.process_time() - start, 1)}
    note.write_text(json.dumps(built))
    return built


def memory() -> dict[str, float]:
    """This process's memory in MB.

    All of it, its own, and pages of mapped files, which the system may take back.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {
        line.split(":")[0]: int(line.split()[1]) / 1024
        for line in lines
        if line.startswith(("VmRSS", "Rss"))
    }
    return {name: round(found[name], 1) for name in ("VmRSS", "RssAnon", "RssFile")}


def drop_from_cache(folder: Path) -> None:
    """Asks the system to forget the pages of the files, as after a restart."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def opened(folder: Path) -> dict[str, Any]:
    """Opens and searches, in this process; see `measure`."""
    import faiss
    import pyarrow  # noqa: F401  the libraries' own memory is not the knowledge base's

    size = json.loads((folder / "manifest.json").read_text())["dimension"]
    rng = np.random.default_rng(5)
    queries = centres(size)[rng.integers(CENTRES, size=QUERIES)]
    queries = queries + 0.7 * rng.standard_normal(queries.shape, dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    before = memory()
    start = time.perf_counter()
    base = KnowledgeBase.open(folder)
    index = base.index()
    result: dict[str, Any] = {
        "open_s": time.perf_counter() - start,
        "before": before,
        "after_open": memory(),
    }

    def asked(query: np.ndarray) -> float:
        start = time.perf_counter()
        ids, _ = index.get_top_docs(query[None], 5)
        index.get_doc_dicts(ids)
        return time.perf_counter() - start

    seconds, again = [[asked(query) for query in queries] for _ in range(2)]
    alone = []
    for query in queries:
        start = time.perf_counter()
        index.faiss_index.search(query[None], 5 * index.rerank)
        alone.append(time.perf_counter() - start)
    milliseconds = {
        "first": seconds[0],
        "fresh": np.median(seconds),
        "again": np.median(again),
        "faiss": np.median(alone),
    }
    result["query_ms"] = {
        name: round(float(value) * 1e3, 2) for name, value in milliseconds.items()
    }
    return result | {"after_queries": memory(), "faiss": faiss.__version__}


def measure(folder: Path) -> dict[str, Any]:
    """Each in a new process: with the files out of the page cache, then with them in it."""
    found = {}
    for name in ("cold", "warm"):
        if name == "cold":
            drop_from_cache(folder)
        command = [sys.executable, "-m", "benchmarks.at_size", "--opened", str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


def preset() -> dict[str, Any] | None:
    """Recall@5 of the ivfpq preset on the demo's 10,033 real vectors, with and without
    re-ranking.
    """
    import faiss

    from rag_core.demo import material as demo
    from rag_core.knowledge.assembly import _built
    from rag_core.knowledge.embedding import batch_vectors, read_batches
    from rag_core.retrieval.rerank import RERANK

    folder = demo.home() / "demo-kb"
    if not (folder / "manifest.json").is_file():
        return None
    base = KnowledgeBase.open(folder)
    files = [folder / name for name in sorted(base.manifest.files) if name.endswith(".arrow")]
    vectors = gather_rows(lambda: map(batch_vectors, read_batches(files)), np.arange(len(base)))

    def blocks() -> Iterator[np.ndarray]:
        return iter([vectors])

    index = _built(blocks, len(vectors), vectors.shape[1], "ivfpq", {})
    inverted = faiss.downcast_index(index)
    rows: dict[str, Any] = {
        "rows": len(vectors),
        "size": vectors.shape[1],
        "nlist": inverted.nlist,
        "m": inverted.pq.M,
    }
    rows["nprobe"] = inverted.nprobe
    every = ("nprobe", "rerank")
    rows["recall_without"] = tune_recall(index, blocks, len(vectors), fixed=every)[0]
    rows["recall_preset"], settings = tune_recall(index, blocks, len(vectors), rerank=RERANK)
    return rows | {"settings": settings}


def report(found: dict[str, Any]) -> str:
    """The results as Markdown, with the extrapolation to Wikipedia."""
    cold, warm, small = found["measured"]["cold"], found["measured"]["warm"], found["small"]["warm"]
    factor = (WIKIPEDIA - SMALL) / (found["rows"] - SMALL)

    def at_wikipedia(few: float, many: float) -> float:
        return max(many, few + (many - few) * factor)

    def grown(run: dict[str, Any], stage: str, kind: str) -> float:
        return run[stage][kind] - run["before"][kind]

    opening = at_wikipedia(small["open_s"], warm["open_s"])
    lines = [
        f"{found['rows']:,} passages of 100 drawn words, D = {found['size']}, "
        f"{found['disk_gb']:.1f} GB on disk (index {found['index_gb']:.2f} GB), built in "
        f"{found['build']['cpu_seconds'] / 60:.0f} minutes of processor time. Index: "
        f"{json.dumps(found['index'])}.",
        "",
        f"| | cold | warm | warm, extrapolated to {WIKIPEDIA:,} |",
        "|---|---|---|---|",
        f"| open, s | {cold['open_s']:.2f} | {warm['open_s']:.2f} | {opening:.1f} |",
    ]
    for stage, words in (
        ("after_open", "open"),
        ("after_queries", f"after {3 * QUERIES} searches"),
    ):
        for kind, what in (("RssAnon", "memory of its own"), ("RssFile", "mapped pages in memory")):
            values = [grown(run, stage, kind) for run in (cold, warm)]
            there = at_wikipedia(grown(small, stage, kind), values[1])
            lines.append(
                f"| {words}: {what}, MB | {values[0]:.0f} | {values[1]:.0f} | {there:.0f} |"
            )
    names = {
        "first": "first question",
        "fresh": "a new question, median",
        "again": "the same once more",
        "faiss": "of which faiss",
    }
    for name, words in names.items():
        values = [run["query_ms"][name] for run in (cold, warm)]
        there = at_wikipedia(small["query_ms"][name], values[1])
        lines.append(f"| {words}, ms | {values[0]:.1f} | {values[1]:.1f} | {there:.0f} |")
    lines += [
        "",
        "Questions are answered with five passages: vectors, titles and texts. Extrapolated along "
        f"the line through this size and {SMALL:,} passages: batches on disk, and codes searched "
        "a question, grow with the passages. Mapped pages are the system's to take back.",
    ]
    if real := found.get("preset"):
        lines += [
            "",
            f"The same preset on {real['rows']:,} real vectors (D = {real['size']}; "
            f"{real['nlist']} lists, {real['m']} bytes a vector, {json.dumps(real['settings'])}): "
            f"recall@5 {real['recall_preset']:.3f} against exact search, "
            f"{real['recall_without']:.3f} without re-ranking.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Builds, measures, writes benchmarks/results/at-size.json and .md, and the table of
    docs/performance.md.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.at_size", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--size", type=int, default=768)
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument(
        "--remove", action="store_true", help="remove the knowledge base afterwards"
    )
    parser.add_argument("--opened", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.opened:
        print(json.dumps(opened(options.opened)))
        return
    folder = CACHE / f"at-size-{options.rows}-{options.size}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    built = build(folder, options.rows, options.size)
    build(folder.with_name(f"at-size-{SMALL}-{options.size}"), SMALL, options.size)
    if options.build_only:
        return
    found: dict[str, Any] = {"rows": options.rows, "size": options.size, "build": built}
    found["disk_gb"] = (
        sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9
    )
    found["index_gb"] = (folder / "index.faiss").stat().st_size / 1e9
    found["index"] = json.loads((folder / "manifest.json").read_text())["index"]
    tiny = folder.with_name(f"at-size-{SMALL}-{options.size}")
    found["measured"], found["small"], found["preset"] = measure(folder), measure(tiny), preset()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "at-size.json").write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / "at-size.md").write_text(report(found))
    PAGE.write_text(
        inserted(PAGE.read_text(encoding="utf-8"), "at-size", report(found)), encoding="utf-8"
    )
    print(report(found))
    if options.remove:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
