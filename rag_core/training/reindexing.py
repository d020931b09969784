"""The index of a training whose passage encoder learns along: embedded anew by processes of their
own, taken into use between steps (Siriwardhana et al. 2022, arXiv 2210.02627, section 3.2).

    out/reindexing/00000020/             of the weights after 20 steps:
        encoder/                         the encoder, as it was then
        request.json                     what the process is to do; there when the encoder is whole
        knowledge_base/                  what it made; knowledge_base.work/ while it makes it

`schedule` says which of these are needed when. What a checkpoint needs stays as long as it does, so
a run that was killed finds everything that it had: encoders, finished indexes, and shards of the one
in the making.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from rag_core.checkpoint import weight_files
from rag_core.hub import atomic_write, read_json
from rag_core.knowledge import FILE as MANIFEST
from rag_core.knowledge import KnowledgeBase, PassageEncoderBase, describe
from rag_core.retrieval import Index
from rag_core.training.processes import ALONE, Processes
from rag_core.training.schedule import in_the_making, in_use
from rag_core.training.state import REINDEXING, STEP_FOLDERS, check_same_base

# In the folder of a finished run.
BASE, ENCODER = "knowledge_base", "context_encoder"
_SNAPSHOT, _REQUEST = "encoder", "request.json"
# A process that something killed is started again so often; its shards are there.
_STARTS = 3
# Seconds between looks at the other process's file: no time beside a step's.
_LOOK = 0.05


class Process(Protocol):
    """What is asked of a process: `subprocess.Popen` has it."""

    stdin: Any
    stdout: Any

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        ...


def start_process(request: Path) -> Process:
    """A process that carries out a request, see `reindex_process`; it ends when this one does."""
    environment = {
        # two processes share what a GPU has
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "rag_core.training.reindex_process", str(request)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )


class Reindexing:
    """The indexes of one run, one after the other.

    Args:
        base: the passages, with the vectors that the run begins with.
        encoder: the encoder that learns; what is embedded with is a copy of it.
        out: the run's folder.
        every: steps between starts; 0 = none before the end.
        total: steps of the run.
        backend: whose encoder it is.
        device: where to compute; None leaves it to the backend.
        say: told what a person should know.
        processes: those that make the run together. The first one embeds; the others see in `out`
            what it made, and no collective operation is open meanwhile: they ask it time and again.

    Attributes:
        base: the one in use.
        total: steps of the run; a run that leaves questions out may come to fewer before its first.
        made_at: the step whose weights made its vectors.
        waited: seconds that the run has waited for an index.
    """

    def __init__(
        self,
        base: KnowledgeBase,
        encoder: PassageEncoderBase,
        out: Path,
        *,
        every: int,
        total: int,
        backend: str,
        device: str | None = None,
        say: Callable[[str], None],
        processes: Processes = ALONE,
    ) -> None:
        self.base = base
        self.made_at = 0
        self.waited = 0.0
        self._origin = base
        self._origin_sha256 = describe(base.path / MANIFEST)["sha256"]
        self._encoder = encoder
        self._out = out
        self._every, self.total = every, total
        self._backend, self._device = backend, device
        self._say = say
        self._processes = processes
        # the step whose index is in the making, and the first process' task that makes it
        self._making: int | None = None
        self._task: _Task | None = None

    def resume(self, step: int) -> Index | None:
        """Come to where a run was after `step` steps.

        Returns:
            The index that was in use then; None where it is the one that the run began with.

        Raises:
            OSError: what it needs for that is gone.
        """
        start = in_the_making(step, self._every, self.total)
        if start is not None:
            if not (self._folder(start) / _REQUEST).is_file():
                raise self._lost(start)
            self._begin(start, self._embed)
        made_at = in_use(step, self._every, self.total)
        if not made_at:
            return None
        if not (self._folder(made_at) / BASE / MANIFEST).is_file():
            raise self._lost(made_at)
        return self._use(made_at)

    def after(self, step: int) -> Index | None:
        """Do what is due after a step: take an index into use, start on the next one.

        At the last step the index of the weights as they are is made, and waited for.

        Returns:
            The index to search from now on; None where it is the same as before.

        Raises:
            OSError, ValueError: passages could not be embedded.
        """
        if step == self.total:
            return self.made_now(step)
        if self._making is not None and not self._is_due(step):
            self._processes.lead(self._is_made)
        if not self._is_due(step):
            return None
        fresh = None
        if self._making is not None:
            fresh = self._made(self._making)
            self._say(
                f"Step {step:,}: the index of the weights after step {self.made_at:,} is in use."
            )
        if in_the_making(step, self._every, self.total) == step:
            self._begin(step, self._embed_with_weights_of_now)
        return fresh

    def made_now(self, step: int) -> Index | None:
        """The index of the weights as they are, after `step` steps; waits for it.

        Raises:
            OSError, ValueError: passages could not be embedded.
        """
        self.close()
        self._say(f"Embedding {len(self._origin):,} passages with the weights after step {step:,}.")
        self._begin(step, self._embed_with_weights_of_now)
        return self._made(step)

    def age(self, step: int) -> int:
        """How many steps ago the weights were those that made the index in use."""
        return step - self.made_at

    def keep(self, step: int) -> None:
        """Remove all that a run that goes on from `step` has no use for."""
        needed = {in_use(step, self._every, self.total)}
        start = in_the_making(step, self._every, self.total)
        if start is not None:
            needed.add(start)
        names = {self._folder(number).name for number in needed}
        for folder in (self._out / REINDEXING).glob(STEP_FOLDERS):
            if folder.name not in names:
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """End what runs; its shards stay."""
        if self._task is not None:
            self._task.stop()
            self._task = None
        self._making = None

    def place_into(self, draft: Path) -> KnowledgeBase:
        """Put the knowledge base in use and its encoder into a draft of the finished folder.

        Returns:
            The knowledge base there.
        """
        folder = self._folder(self.made_at)
        _link_all(folder / BASE, draft / BASE)
        _link_all(folder / _SNAPSHOT, draft / ENCODER)
        return KnowledgeBase(draft / BASE, self.base.manifest)

    def _is_due(self, step: int) -> bool:
        return self._every > 0 and step % self._every == 0

    def _folder(self, step: int) -> Path:
        return self._out / REINDEXING / f"{step:08d}"

    def _lost(self, step: int) -> OSError:
        return FileNotFoundError(
            f"{self._folder(step)} is not there or not whole, and the run cannot go on from its "
            f"checkpoint without it. Remove {self._out}, and start again."
        )

    def _use(self, step: int) -> Index:
        self.base = KnowledgeBase.open(self._folder(step) / BASE)
        self.made_at = step
        return self.base.index()

    def _begin(self, step: int, embed: Callable[[int], None]) -> None:
        self._processes.lead(lambda: embed(step))
        self._making = step

    def _embed_with_weights_of_now(self, step: int) -> None:
        check_same_base(self._origin.path, self._origin_sha256)
        self._encoder.save_pretrained(self._folder(step) / _SNAPSHOT)
        self._embed(step)

    def _embed(self, step: int) -> None:
        """Begin embedding with a snapshot; of what was made with another one nothing is left."""
        folder = self._folder(step)
        sums = [describe(file)["sha256"] for file in weight_files(folder / _SNAPSHOT)]
        request = {
            "base": str(self._origin.path.resolve()),
            "manifest_sha256": self._origin_sha256,
            "encoder": str((folder / _SNAPSHOT).resolve()),
            "encoder_name": f"{self._out.resolve().name}-context-encoder-{sums[0][:8]}",
            "encoder_fingerprint": "sha256:" + "+".join(sums),
            "encoder_path": f"../{ENCODER}",
            "out": str((folder / BASE).resolve()),
            "place": str(self._out.resolve() / BASE),
            "backend": self._backend,
            "device": self._device,
        }
        place = folder / _REQUEST
        if not _holds(place, request):
            shutil.rmtree(folder / BASE, ignore_errors=True)
            with atomic_write(place) as draft:
                draft.write_text(json.dumps(request, indent=1) + "\n", encoding="utf-8")
        self._task = _Task(folder, step)

    def _is_made(self) -> bool:
        return self._task is not None and self._task.is_done()

    def _made(self, step: int) -> Index:
        """Wait for the index of the weights after a step, and take it into use."""
        start = time.monotonic()
        try:
            while not self._processes.lead(self._is_made):
                time.sleep(_LOOK)
        except BaseException:
            self.close()
            raise
        self.waited += time.monotonic() - start
        self._making = self._task = None
        return self._use(step)


class _Task:
    """One embedding of all passages, from a request that lies in a folder; begins at once."""

    def __init__(self, folder: Path, step: int) -> None:
        self.step = step
        self._request = folder / _REQUEST
        self._starts = 1
        self._done = False
        self._process = start_process(self._request)

    def is_done(self) -> bool:
        """Whether it has ended well; one that was killed begins again.

        Raises:
            OSError, ValueError: it ended otherwise.
        """
        if self._done:
            return True
        status = self._process.poll()
        if status is None:
            return False
        answer = _last_words(self._process)
        self._done = status == 0
        if self._done:
            return True
        if answer:
            kind: type[Exception] = ValueError
            if answer["kind"] == "OSError":
                kind = OSError
            raise kind(
                f"embedding the passages with the weights after step {self.step:,} failed: "
                f"{answer['error']} The same command goes on from the last checkpoint."
            )
        if self._starts == _STARTS:
            raise OSError(
                f"the process that embeds the passages was ended {_STARTS} times, the last time "
                f"with status {status} (-9: out of memory?). The same command goes on from the "
                "last checkpoint."
            )
        self._starts += 1
        self._process = start_process(self._request)
        return False

    def stop(self) -> None:
        """End it at once."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            _last_words(self._process)


def _last_words(process: Process) -> dict[str, str]:
    """What a process that has ended said of a failure, nothing of one that was killed; closes its
    pipes.
    """
    text = process.stdout.read()
    process.stdout.close()
    process.stdin.close()
    try:
        return json.loads(text)
    except ValueError:
        return {}


def _holds(place: Path, request: dict[str, Any]) -> bool:
    """Whether a request is there already, and what was made of it may be gone on from."""
    try:
        return read_json(place) == request
    except (OSError, ValueError):
        return False


def _link_all(source: Path, target: Path) -> None:
    """The files of a folder in another one, without a copy where the disk can do so."""
    for file in sorted(source.rglob("*")):
        place = target / file.relative_to(source)
        if file.is_dir():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, place)
        except OSError:
            shutil.copy2(file, place)
