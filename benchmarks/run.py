"""Runs the jobs: every contestant in a process of its own, in turns.

First each one loads and computes the job once, in a fresh process: that gives its peak memory and
what it computed, which is compared before anything is timed. Then they are timed in turns, one run
(or one handful of runs) each. Those whose processes do not fit into memory together are started
anew for each turn.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import agreement, floor
from benchmarks.jobs import REFERENCES, Contestant, Job, must_agree
from benchmarks.workload import CACHE, Size

ROOT = Path(__file__).resolve().parent.parent
FAISS = ["faiss-cpu", "faiss-gpu", "faiss"]  # the names it is distributed under
PACKAGES = [
    "torch",
    "tensorflow",
    "transformers",
    "ctranslate2",
    "numpy",
    *FAISS,
    "tokenizers",
    "datasets",
]
# After a turn the threads of a library may wait busily for more work, for 200 ms at most by
# default.
REST = 0.3
MEMORY_SHARE = 0.8


class Failed(Exception):
    """A contestant could not do what it was asked."""


class Worker:
    """A contestant's process."""

    def __init__(self, python: str, contestant: Contestant, env: dict[str, str]) -> None:
        root = contestant.checkout or ROOT
        # of one peer's two frameworks only one is to be in memory
        env = {
            **env,
            "PYTHONPATH": str(root),
            "USE_TORCH": str(int(contestant.framework != "tf")),
            "USE_TF": str(int(contestant.framework == "tf")),
        }
        self.log = CACHE / "logs" / f"{contestant.name}.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [python, "-m", "benchmarks.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=root,
                env=env,
            )
        self.described = {
            name: getattr(contestant, name) for name in ("name", "library", "framework", "dtype")
        }
        self.versions: dict[str, str] = {}

    def check(self, job: dict[str, Any]) -> dict[str, Any]:
        """Load what a job needs and run it once."""
        self.versions = self.ask("load", contestant=self.described, job=job, packages=PACKAGES)[
            "versions"
        ]
        return self.ask("check")

    def ask(self, what: str, **values: Any) -> dict[str, Any]:
        """An answer to a request.

        Raises:
            Failed: with the contestant's own message.
        """
        assert self.process.stdin and self.process.stdout  # noqa: S101 (pipes were asked for)
        try:
            self.process.stdin.write(json.dumps({"do": what, **values}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Failed(f"its process ended with status {self.process.wait()}; see {self.log}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(f"{answer['error']}; see {self.log}")
        return answer

    def close(self) -> None:
        """End the process and wait for it."""
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def environment(device: str) -> dict[str, str]:
    """What every contestant finds in its environment."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0)))
    fixed = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": threads,
        "TF_NUM_INTRAOP_THREADS": os.environ.get("TF_NUM_INTRAOP_THREADS") or threads,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
    }
    if device == "cpu":
        fixed["CUDA_VISIBLE_DEVICES"] = ""
    return {**os.environ, **fixed}


def run_job(
    job: Job,
    contestants: list[Contestant],
    pythons: dict[str | None, str],
    folder: Path,
    *,
    quick: bool,
    device: str,
    repeats: int | None,
    say: Callable[[str], None],
    pool: dict[str, Worker] | None = None,
) -> dict[str, Any]:
    """One row of the table.

    Args:
        job: what to do.
        contestants: who does it.
        pythons: interpreter by environment.
        folder: the workload.
        quick: tiny sizes, one turn less of what there is.
        device: cpu or cuda.
        repeats: turns, instead of the job's own number.
        say: told what happens.
        pool: processes kept from job to job, for quick runs; peak memory is then that of all jobs
            so far.

    Returns:
        For the results file: `contestants` with seconds, peak memory and whether they agree; the
        floor's operations.
    """
    size, env = job.workload(quick), environment(device)
    asked = {
        "name": job.name,
        "kind": job.kind,
        "folder": str(folder),
        "head": job.head,
        "docs": size.docs if isinstance(size, Size) else 5,
        "options": job.generate_options(size),
        "device": device,
    }
    entries: dict[str, dict[str, Any]] = {}
    workers: dict[str, Worker] = {}
    found: dict[str, Any] = {}
    turns = repeats or (1 if quick else job.repeats)

    def start(one: Contestant) -> tuple[Worker, dict[str, Any]]:
        worker = None if pool is None else pool.get(one.name)
        worker = worker or Worker(pythons[one.environment], one, env)
        try:
            answer = worker.check(asked)
        except Failed:
            worker.close()
            raise
        if pool is not None:
            pool[one.name] = worker
        return worker, answer

    try:
        held = 0.0
        for one in contestants:
            try:
                worker, answer = start(one)
            except Failed as error:
                entries[one.name] = {"error": str(error), "agrees": False}
                if pool is not None:
                    pool.pop(one.name, None)
                say(f"{job.name}: {one.name} FAILED: {error}")
                continue
            found[one.name] = answer["found"]
            peaks = {
                name: answer[name] for name in ("peak_bytes", "device_peak_bytes") if name in answer
            }
            entries[one.name] = {**peaks, "versions": worker.versions}
            held += answer["peak_bytes"]
            if pool is not None or held < MEMORY_SHARE * (available() + _held_now(workers)):
                workers[one.name] = worker
            else:
                worker.close()
        judge(job, contestants, found, entries, say)
        time_in_turns(job, contestants, workers, entries, start, turns)
    finally:
        for worker in workers.values() if pool is None else ():
            worker.close()
    for entry in entries.values():
        summarize(entry, tokens_of(job, found))
    return {
        "title": job.title,
        "workload": size if isinstance(size, str) else size.name,
        "operations": operations(job, size, folder),
        "contestants": entries,
    }


def judge(
    job: Job,
    contestants: list[Contestant],
    found: dict[str, Any],
    entries: dict[str, dict[str, Any]],
    say: Callable[[str], None],
) -> None:
    """Write into the entries whether each contestant computed what the reference did."""
    order = [*REFERENCES, *found]
    reference = min(found, key=order.index, default=None)
    if reference is None:
        return
    group = job.options.get("num_return_sequences", 1) if job.distinct else 1
    for one in contestants:
        if one.name not in found:
            continue
        entry = entries[one.name]
        reason = agreement.difference(found[reference], found[one.name], group)
        if not reason and job.distinct:
            reason = agreement.repeated(found[one.name]["tokens"], group)
        entry["reference"], entry["agrees"] = reference, not reason
        if reason:
            entry["difference"] = f"{reason} (compared with {reference})"
            if one.name in job.differs:
                entry["difference"] += f": {job.differs[one.name]}"
            entry["equal_rows"] = agreement.equal_share(found[reference], found[one.name])
            say(
                f"{job.name}: {one.name} {'DISAGREES' if must_agree(one, job) else 'differs'}: "
                f"{entry['difference']}"
            )


def time_in_turns(
    job: Job,
    contestants: list[Contestant],
    workers: dict[str, Worker],
    entries: dict[str, dict[str, Any]],
    start: Callable[[Contestant], tuple[Worker, Any]],
    turns: int,
) -> None:
    """Time those that agree, or need not, one after another, forwards and backwards by turns."""

    def able(one: Contestant) -> bool:
        entry = entries[one.name]
        return "error" not in entry and (entry["agrees"] or not must_agree(one, job))

    for turn in range(turns):
        for one in filter(able, contestants if turn % 2 == 0 else contestants[::-1]):
            kept = workers.get(one.name)
            try:
                worker = kept or start(one)[0]
                time.sleep(REST)
                if job.times > 1:
                    worker.ask("run", times=1)  # caches are cold after the others' turns
                answer = worker.ask("run", times=job.times)
            except Failed as error:
                entries[one.name]["error"] = str(error)
                continue
            entries[one.name].setdefault("seconds", []).extend(answer["seconds"])
            entries[one.name].setdefault("beside", []).extend(answer["beside"])
            if kept is None:
                worker.close()


def summarize(entry: dict[str, Any], tokens: int) -> None:
    """Medians of what was timed, and tokens a second."""
    for name in ("seconds", "beside"):
        if entry.get(name):
            entry[f"{name}_each"] = [round(value, 6) for value in entry[name]]
            entry[name] = statistics.median(entry[name])
        else:
            entry.pop(name, None)
    if tokens and "seconds" in entry:
        entry["tokens_per_second"] = tokens / entry["seconds"]


def tokens_of(job: Job, found: dict[str, Any]) -> int:
    """New tokens of the answers given.

    One answer a question, however many candidates were weighed.
    """
    if job.kind not in ("generate", "plain") or not found:
        return 0
    rows = next(iter(found.values()))["tokens"]
    group = job.options.get("num_return_sequences", 1) if job.distinct else 1
    return sum(len(agreement.stripped(row)) - 1 for row in rows[::group])


def operations(job: Job, size: Size | str, folder: Path) -> float | None:
    """Operations that a job cannot do without, where the floor is asked for."""
    if isinstance(size, str) or job.kind not in ("generate", "plain"):
        return None
    lengths = np.load(folder / "inputs.npz")["context_attention_mask"].sum(1)
    layers = size.generator_layers
    shape = floor.Shape(size.width, 4 * size.width, layers, layers, size.vocab)
    beams = job.options.get("num_beams", 1)
    if job.head == "sequence":
        return floor.thorough(shape, lengths, beams, size.tokens, size.questions)
    return floor.search(shape, lengths, beams, size.tokens)


def available() -> float:
    """Bytes of memory that are free for more."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def _held_now(workers: dict[str, Worker]) -> float:
    """Bytes that the waiting processes hold, which are missing from what is free."""
    total = 0.0
    for worker in workers.values():
        status = Path(f"/proc/{worker.process.pid}/status")
        if status.is_file():
            total += next(
                float(x.split()[1]) * 1024
                for x in status.read_text().splitlines()
                if x.startswith("VmRSS")
            )
    return total


def prepare(size: Size | str, env: dict[str, str]) -> Path:
    """A workload's folder, made in a process of its own if there is none."""
    module = (
        ["benchmarks.demo_workload"]
        if size == "demo"
        else ["benchmarks.workload", getattr(size, "name", "")]
    )
    done = subprocess.run(
        [sys.executable, "-m", *module],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=env,
        check=False,
    )
    if done.returncode:
        raise Failed(f"the workload {module[-1]} could not be made")
    return Path(done.stdout.strip().splitlines()[-1])
