"""Commands that need each other's files, run side by side; what is done is not done again."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import runpy
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from rag_core.hub import atomic_write

ROOT = Path(__file__).parents[2]
DUALRAG = "rag_core.cli"
# What a server loads before it forks; no thread is started by it.
LOADED = ("rag_core.cli.commands", "rag_core.evaluation.run", "rag_core.training", "faiss")
OF_BACKEND = {
    "torch": ("rag_torch", "rag_torch.training", "torch._dynamo"),
    "tf": ("rag_tf", "rag_tf.training"),
}
# Measured with the demo's model on a core of its own: what every command does once, a passage that
# is read for an answer (with the gold answers' probability), one that is trained on.
START_SECONDS = 6.0
# What TensorFlow's graphs take more, of answers and of a training run.
GRAPH_SECONDS = 10.0
TRACE_SECONDS = 40.0
# All passages of the demo.
EMBED_SECONDS = 350.0
READ_SECONDS = 0.02
LEARN_SECONDS = 0.035


@dataclass(frozen=True)
class Job:
    """A command that makes a folder.

    Attributes:
        name: of the job.
        folder: where its log and the note of its end go, relative to the repository.
        words: a module and its arguments, `--out` among them.
        needs: names of jobs that come before.
        read: passages that are read for an answer.
        learned: passages that are trained on.
        seconds: what takes other time.
    """

    name: str
    folder: Path
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()
    read: int = 0
    learned: int = 0
    seconds: float = 0.0

    @property
    def command(self) -> str:
        """As people would type it."""
        module, *arguments = self.words
        start = f"python -m {module}"
        if module == DUALRAG:
            start = "dualrag"
        return " ".join([start, *arguments])

    @property
    def log(self) -> Path:
        """What it says."""
        return ROOT / self.folder / f"{self.name}.log"

    @property
    def out(self) -> Path:
        """What it makes."""
        return ROOT / self.words[self.words.index("--out") + 1]

    @property
    def note(self) -> Path:
        """What it took, once it has ended well."""
        return self.log.with_suffix(".json")

    @property
    def estimate(self) -> float:
        """Seconds on a core of its own."""
        work = self.read * READ_SECONDS + self.learned * LEARN_SECONDS
        return START_SECONDS + self.seconds + work

    def outcome(self) -> dict[str, Any] | None:
        """What was noted at its end: "command", "seconds", "processor_seconds" and "peak_bytes";
        None before.
        """
        if not self.note.is_file() or not self.out.exists():
            return None
        noted = json.loads(self.note.read_text("utf-8"))
        if noted["command"] != self.command:
            return None
        return noted


Say = Callable[[str], None]


class Used(NamedTuple):
    """What a job took: seconds by the clock and by the processor, and bytes of memory at most."""

    seconds: float
    processor_seconds: float
    peak_bytes: int


class Process:
    """A job that runs in a process of its own.

    Args:
        job: what is run.
        child: started already.
        usage: where it leaves its peak memory and the processor's seconds.
    """

    def __init__(self, job: Job, child: BaseProcess, usage: Any) -> None:
        self.job = job
        self.child = child
        self._usage = usage
        self._began = time.monotonic()

    def ended(self) -> tuple[int, Used] | None:
        """Exit status and what it took, once it has ended."""
        if self.child.exitcode is None:
            return None
        peak, processor = self._usage
        seconds = time.monotonic() - self._began
        return self.child.exitcode, Used(round(seconds, 1), round(processor, 1), int(peak))

    def stop(self) -> None:
        """End it early."""
        self.child.terminate()
        self.child.join()


class Starter:
    """Starts processes that have the framework loaded: a server imports it once and forks.

    Args:
        backend: "torch" or "tf".
        threads: that a job may use.
    """

    def __init__(self, backend: str, threads: int) -> None:
        limits = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
        os.environ.update(dict.fromkeys(limits, str(threads)))
        # Before the server starts: its children have its environment.
        os.environ.update({"OMP_WAIT_POLICY": "PASSIVE", "TF_CPP_MIN_LOG_LEVEL": "3"})
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, *LOADED, *OF_BACKEND[backend]])

    def __call__(self, job: Job) -> Process:
        """Start a job."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        usage = self._context.Array("d", 2)
        child = self._context.Process(target=_carry_out, args=(job.words, job.log, usage))
        child.start()
        return Process(job, child, usage)


def _carry_out(words: tuple[str, ...], log: Path, usage: Any) -> None:
    """Run a module as `python -m` does, in this process; what it says goes to a file."""
    with log.open("ab") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    os.chdir(ROOT)
    sys.argv = list(words)
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    finally:
        unit = 1024
        if sys.platform == "darwin":
            unit = 1
        # Embedding anew is a process of a training run's own.
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        usage[0] = max(each.ru_maxrss for each in used) * unit
        usage[1] = sum(each.ru_utime + each.ru_stime for each in used)


def run(jobs: Sequence[Job], start: Callable[[Job], Process], at_once: int, say: Say) -> list[str]:
    """Run all jobs whose needs are met, some at once.

    Args:
        jobs: those that are needed before those that need them.
        start: begins one: a `Starter`.
        at_once: how many.
        say: told what begins and ends.

    Returns:
        The names of those that failed, or that could not be begun therefore.
    """
    done = {job.name for job in jobs if job.outcome()}
    waiting = [job for job in jobs if job.name not in done]
    failed: list[str] = []
    running: list[Process] = []
    began = time.monotonic()
    try:
        while waiting or running:
            for job in [job for job in waiting if {*job.needs} & {*failed}]:
                waiting.remove(job)
                failed.append(job.name)
            ready = [job for job in waiting if done.issuperset(job.needs)]
            for job in ready[: at_once - len(running)]:
                waiting.remove(job)
                running.append(start(job))
            for process in list(running):
                ended = process.ended()
                if ended is None:
                    continue
                running.remove(process)
                name = process.job.name
                if _noted(process.job, *ended, say):
                    done.add(name)
                else:
                    failed.append(name)
                left = sum(job.estimate for job in waiting) / at_once
                say(
                    f"{len(done)} of {len(jobs)} done after {(time.monotonic() - began) / 60:.0f} "
                    f"min, {left / 60:.0f} min left by the estimate"
                )
            if running:
                time.sleep(0.2)
    finally:
        for process in running:
            process.stop()
    return failed


def _noted(job: Job, status: int, used: Used, say: Say) -> bool:
    """Whether a job that ended went well, which is noted."""
    if status:
        log = job.log.read_text("utf-8", errors="replace")
        say(f"FAILED with exit status {status}: {job.command}\n{log[-2000:]}")
        return False
    entry = {"command": job.command, **used._asdict()}
    with atomic_write(job.note) as draft:
        draft.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
    say(
        f"{job.name}: {used.seconds:.0f} s, {used.processor_seconds:.0f} s of a processor, "
        f"{used.peak_bytes / 1e9:.2f} GB at most"
    )
    return True


def minutes(jobs: Iterable[Job], at_once: int) -> float:
    """Estimate of what is left to do."""
    return sum(job.estimate for job in jobs if not job.outcome()) / at_once / 60
