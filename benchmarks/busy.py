"""What waiting threads cost beside other work: `python -m benchmarks.busy`.

OpenMP's threads wait for each other by spinning, unless OMP_WAIT_POLICY=PASSIVE has them sleep, as
the `dualrag` command has it on a busy machine. Here the demo's model answers and its encoder
embeds, each way of waiting in processes of its own that take turns, on an idle machine and beside
loops that keep as many processors busy as there are. Medians of the turns.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from benchmarks.scaling_report import inserted

RESULTS, PAGE = Path("benchmarks") / "results", Path("docs") / "performance.md"
FRAMEWORKS = {"torch": "torch", "tf": "tensorflow"}
WAYS = {
    "the libraries' own": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"},
}
JOBS = ("passages a second", "seconds an answer")
BUSY_LOOP = [sys.executable, "-c", "while True: pass"]
PASSAGES = 96
ANSWERS = 4


def work(backend: str) -> dict[str, float]:
    """The figures of this process: passages embedded a second, seconds an answer."""
    from rag_core.backends import load_backend
    from rag_core.cli.demo import DEMO_QUESTIONS
    from rag_core.cli.models import open_encoder, open_model

    engine = load_backend(backend)
    encoder, _, _ = open_encoder(engine, "sentence-transformers/all-MiniLM-L6-v2", print)
    model, base = open_model(engine, None, None, None, print)
    texts = base.dataset()[:PASSAGES]["text"]
    encoder.embed_texts(texts[:32])
    start = time.perf_counter()
    encoder.embed_texts(texts)
    embedding = time.perf_counter() - start
    seconds = []
    for _ in range(ANSWERS):
        start = time.perf_counter()
        model.answer(DEMO_QUESTIONS[0])
        seconds.append(time.perf_counter() - start)
    return dict(zip(JOBS, (PASSAGES / embedding, statistics.median(seconds)), strict=True))


@contextmanager
def other_work(loops: int) -> Iterator[None]:
    """Within it so many endless loops run beside."""
    started = [subprocess.Popen(BUSY_LOOP) for _ in range(loops)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def turn(backend: str, settings: dict[str, str]) -> dict[str, float]:
    """The figures of a fresh process with these settings.

    Raises:
        RuntimeError: it failed.
    """
    ours = {"OMP_WAIT_POLICY", *WAYS["one thread"]}
    env = {name: value for name, value in os.environ.items() if name not in ours}
    env |= {"PYTHONPATH": ".", "TF_CPP_MIN_LOG_LEVEL": "3", **settings}
    command = [sys.executable, "-m", "benchmarks.busy", "--work", backend]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(turns: int, loops: int) -> list[dict[str, object]]:
    """A row for each backend, amount of other work and way: the medians of its turns."""
    rows: list[dict[str, object]] = []
    for backend in (name for name, framework in FRAMEWORKS.items() if find_spec(framework)):
        for beside in (0, loops):
            taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            with other_work(beside):
                for _ in range(turns):
                    for way, settings in WAYS.items():
                        taken[way].append(turn(backend, settings))
            for way, results in taken.items():
                medians = {job: statistics.median(one[job] for one in results) for job in JOBS}
                rows.append({"backend": backend, "loops": beside, "way": way, **medians})
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """The rows in Markdown."""
    lines = [f"| backend | busy loops beside | threads wait | {' | '.join(JOBS)} |"]
    lines.append("|---|---|---|---|---|")
    for row in rows:
        speed, seconds = (row[job] for job in JOBS)
        place = f"{row['backend']} | {row['loops']} | {row['way']}"
        lines.append(f"| {place} | {speed:.1f} | {seconds:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write busy.json, and from full runs the table of docs/performance.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy", description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--loops", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", metavar="BACKEND", help="what a turn runs: figures as JSON")
    given = parser.parse_args()
    if given.work:
        print(json.dumps(work(given.work)))
        return
    rows = measure(given.turns, given.loops)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "busy.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows), end="")
    if given.out == RESULTS:
        body = f"{table(rows)}\nMedians of {given.turns} turns, {datetime.date.today()}.\n"
        page = inserted(PAGE.read_text(encoding="utf-8"), "busy", body)
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
