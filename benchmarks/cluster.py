"""A knowledge base on a Ray cluster of this machine: how fast it is made and searched, whether it is
right, and whether losses hurt it.

python -m benchmarks.cluster --kb KB --encoder FOLDER [--quick]

Every part says what it found into one JSON file (`--out`), and the table of docs/scaling.md is
written from that. The plan for Wikipedia is arithmetic on the same figures.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pickle
import random
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from benchmarks.scaling_report import duration, inserted
from rag_core.cluster import RayEncoder, load_embed, start_shards, stop_shards
from rag_core.knowledge import KnowledgeBase, cut_shards
from rag_core.knowledge.base import build_knowledge_base
from rag_core.retrieval import RayIndex, join

RESULTS = Path("benchmarks") / "results" / "cluster.json"
PAGE = Path("docs") / "scaling.md"
N_DOCS = 5
# Of the paper's knowledge base: its passages, and the size of DPR's vectors.
WIKIPEDIA_ROWS, WIKIPEDIA_SIZE = 21_015_300, 768
SHARDS = 4


def embedding(
    base: KnowledgeBase, backend: str, encoder: str, passages: int, folder: Path
) -> dict[str, Any]:
    """Rows a second of whole builds with 1 and 2 workers, and bytes that a passage moves."""
    data = base.dataset().select(range(min(passages, len(base))))
    corpus = folder / "corpus.jsonl"
    with corpus.open("w", encoding="utf-8") as stream:
        for title, text in zip(data["title"], data["text"], strict=True):
            stream.write(json.dumps({"title": title, "text": text}) + "\n")
    found: dict[str, Any] = {"passages": len(data), "workers": {}}
    load = functools.partial(load_embed, backend, encoder, 32)
    reference = None
    for workers in (1, 2):
        with RayEncoder(load, workers, "auto") as encode:
            encode(["warm"] * 32, ["up"] * 32)  # processes and encoders are loaded
            encode.pids()
            began = time.perf_counter()
            made = build_knowledge_base(
                corpus,
                folder / f"kb-{workers}",
                encode,
                encoder_name=encoder,
                words=None,
                shard_rows=256,
                index="flat",
                progress=False,
            )
            seconds = time.perf_counter() - began
        found["workers"][workers] = {"seconds": seconds, "rows_per_second": len(data) / seconds}
        vectors = np.asarray(made.index().vectors_of(np.arange(len(made))))
        if reference is None:
            reference = vectors
        found["workers"][workers]["equal"] = bool((vectors == reference).all())
    there = pickle.dumps(
        (list(data["title"]), list(data["text"]))
    )  # not as columns that lie on a disk
    back = pickle.dumps(reference)
    found["bytes_per_passage"] = (len(there) + len(back)) / len(data)
    found["text_bytes_per_passage"] = len(there) / len(data)
    return found


def questions_like(base: KnowledgeBase, count: int, seed: int = 0) -> np.ndarray:
    """Vectors (count, D) near those of passages."""
    drawn = np.random.default_rng(seed)
    index = base.index()
    vectors = index.vectors_of(drawn.integers(0, len(index), count))
    scale = np.abs(vectors).mean()
    return (vectors + drawn.normal(0, scale, vectors.shape)).astype(np.float32)


def searching(
    base: KnowledgeBase, folder: Path, questions: int, single: int
) -> dict[str, dict[str, Any]]:
    """Equality with the whole index, latency of one question and throughput of batches, for 1, 2
    and 4 shards and for the whole index in this process ("local").
    """
    asked = questions_like(base, questions)
    local = base.index()
    expected = _in_batches(local, asked)
    found = {"local": _speed(local, asked, single)}
    for shards in (1, 2, 4):
        cut = cut_shards(base, folder / f"shards-{shards}", shards)
        start_shards(cut.folder, "benchmark")
        index = RayIndex("ray://auto/benchmark")
        ids, vectors = _in_batches(index, asked)
        entry = _speed(index, asked, single)
        entry["questions"] = questions
        entry["equal"] = int((ids == expected[0]).all(axis=1).sum())
        entry["equal_vectors"] = bool((vectors == expected[1]).all())
        found[str(shards)] = entry
        stop_shards("benchmark")
    return found


def _in_batches(index: Any, asked: np.ndarray, size: int = 50) -> tuple[np.ndarray, np.ndarray]:
    parts = [
        index.get_top_docs(asked[start : start + size], N_DOCS)
        for start in range(0, len(asked), size)
    ]
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([each for _, each in parts])


def _speed(index: Any, asked: np.ndarray, single: int) -> dict[str, Any]:
    index.get_top_docs(asked[:1], N_DOCS)
    seconds = []
    for number in range(single):
        began = time.perf_counter()
        index.get_top_docs(asked[number : number + 1], N_DOCS)
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    _in_batches(index, asked[: 10 * single])
    batched = time.perf_counter() - began
    return {
        "median": float(np.median(seconds)),
        "p95": float(np.quantile(seconds, 0.95)),
        "questions_per_second": min(len(asked), 10 * single) / batched,
    }


def killing(base: KnowledgeBase, folder: Path, kills: int, pause: float) -> dict[str, Any]:
    """Shards killed one after another while two threads ask: wrong answers, errors, longest wait."""
    import ray

    asked = questions_like(base, 256, seed=1)
    expected = base.index().get_top_docs(asked[:, :], N_DOCS)[0]
    start_shards(cut_shards(base, folder / "shards-kill", 2).folder, "killed")
    found = {"kills": 0, "answers": 0, "wrong": 0, "errors": 0, "longest": 0.0}
    lock, ended = threading.Lock(), threading.Event()

    def ask(start: int) -> None:
        index = RayIndex("ray://auto/killed")
        number = start
        while not ended.is_set():
            place = number % (len(asked) - 32)
            began = time.perf_counter()
            try:
                # as many at once as above: few questions are multiplied in another way
                ids, _ = index.get_top_docs(asked[place : place + 32], N_DOCS)
                right = int((ids == expected[place : place + 32]).all(axis=1).sum())
            except OSError:
                right = None
            waited = time.perf_counter() - began
            with lock:
                found["answers"] += 32 if right is not None else 0
                found["wrong"] += 0 if right is None else 32 - right
                found["errors"] += right is None
                found["longest"] = max(found["longest"], waited)
            number += 7

    threads = [threading.Thread(target=ask, args=(start,)) for start in (0, 100)]
    for thread in threads:
        thread.start()
    watcher = RayIndex("ray://auto/killed")
    watcher.init_index()
    draw = random.Random(0)
    while found["kills"] < kills:
        handle = draw.choice(watcher._build.handles)
        try:
            victim = ray.get(handle.pid.remote(), timeout=120)
            os.kill(victim, signal.SIGKILL)
            found["kills"] += 1
        except (ray.exceptions.RayError, ProcessLookupError):
            pass  # it is being started again
        time.sleep(pause)
    ended.set()
    for thread in threads:
        thread.join(timeout=120)
    found["hung"] = sum(thread.is_alive() for thread in threads)
    stop_shards("killed")
    return found


def plan(results: dict[str, Any]) -> dict[str, float]:
    """What the paper's knowledge base would take, by the figures of this machine."""
    made = results["embedding"]
    rate = made["workers"]["1"]["rows_per_second"]
    vectors = WIKIPEDIA_ROWS * WIKIPEDIA_SIZE * 4
    texts = WIKIPEDIA_ROWS * made["text_bytes_per_passage"]
    return {
        "worker_hours": WIKIPEDIA_ROWS / rate / 3600,
        "moved_gb": (texts + vectors) / 1e9,
        "vectors_gb": vectors / 1e9,
        "texts_gb": texts / 1e9,
        "disk_gb": (2 * vectors + texts) / 1e9,
        "gb_a_shard": (vectors + texts) / SHARDS / 1e9,
    }


def table(results: dict[str, Any]) -> str:
    """The figures, for docs/scaling.md."""
    made, found, lost = results["embedding"], results["searching"], results["killing"]
    machine = results["machine"]
    rows = [
        f"Measured on {machine['processor']}, {machine['cores']} cores, by "
        f"`python -m benchmarks.cluster`; {results['passages']:,} passages of "
        f"D={results['dimension']}, {N_DOCS} a question.",
        "",
        "| | |",
        "|---|---|",
    ]
    for workers, entry in made["workers"].items():
        rows.append(
            f"| passages embedded with {workers} worker(s) | "
            f"{entry['rows_per_second']:.0f} a second |"
        )
    rows += [
        f"| bytes moved for a passage, there and back | {made['bytes_per_passage']:,.0f} |",
        "",
    ]
    rows += [
        "| search | equal to the whole index | one question, median | 95 % | questions a second, "
        "50 at a time |",
        "|---|---|---|---|---|",
    ]
    for name, entry in found.items():
        label = "the whole index, no cluster" if name == "local" else f"{name} shard(s)"
        equal = "" if name == "local" else f"{entry['equal']:,} of {entry['questions']:,}"
        rows.append(
            f"| {label} | {equal} | {duration(entry['median'])} | {duration(entry['p95'])} | "
            f"{entry['questions_per_second']:,.0f} |"
        )
    rows += [
        "",
        f"{lost['kills']} kills of shards under load: {lost['answers']:,} answers, {lost['wrong']} of "
        f"them wrong, {lost['errors']} errors, {lost['hung']} hung; the longest call took "
        f"{duration(lost['longest'])}.",
        "",
        *_planned(results["plan"]),
    ]
    return "\n".join(rows)


def _planned(wiki: dict[str, float]) -> list[str]:
    """What the paper's knowledge base would take."""
    return [
        f"By these figures the paper's {WIKIPEDIA_ROWS:,} passages, of D={WIKIPEDIA_SIZE}, would take:",
        "",
        "| | |",
        "|---|---|",
        f"| workers' hours, with the encoder above | {wiki['worker_hours']:,.0f} |",
        f"| moved | {wiki['moved_gb']:,.0f} GB |",
        f"| vectors; texts | {wiki['vectors_gb']:,.0f} GB; {wiki['texts_gb']:,.0f} GB |",
        f"| disk, while it is built | {wiki['disk_gb']:,.0f} GB |",
        f"| memory for each of {SHARDS} shards, all of it in use | {wiki['gb_a_shard']:,.0f} GB |",
    ]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kb", type=Path, required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--passages", type=int, default=2000, help="that are embedded")
    parser.add_argument("--questions", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--ray", default="local", help="a cluster's address; local starts one")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does all of it run?")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    if options.quick:
        options.passages, options.questions, options.kills = 64, 200, 2
    base = KnowledgeBase.open(options.kb)
    results: dict[str, Any] = {
        "machine": describe(),
        "passages": len(base),
        "dimension": base.manifest.dimension,
    }
    processors = {}
    if options.ray == "local":
        processors["num_cpus"] = 2
    join(options.ray, **processors)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        parts = {
            "searching": lambda: searching(
                base, folder, options.questions, 20 if options.quick else 300
            ),
            "killing": lambda: killing(base, folder, options.kills, 1.0),
            "embedding": lambda: embedding(
                base, options.backend, options.encoder, options.passages, folder
            ),
        }
        for name, measure in parts.items():
            results[name] = measure()
            print(name, json.dumps(results[name]), flush=True)
    results = json.loads(json.dumps(results))  # numbers of workers are texts, as in the file
    results["plan"] = plan(results)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    if not options.quick and options.page.is_file():
        text = options.page.read_text(encoding="utf-8")
        options.page.write_text(inserted(text, "cluster", table(results)), encoding="utf-8")


if __name__ == "__main__":
    main()
