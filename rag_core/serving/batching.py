"""Requests gathered into batches, which one thread runs.

Letters: B jobs of a batch.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from rag_core.generation import SearchCancelledError

Cancelled = Callable[[], Sequence[bool]]  # (B,): whom nobody waits for any longer
Run = Callable[[list[str], Any, Cancelled], Sequence[Any]]

_SHORT = 64  # characters: shorter texts are of one length
# Of a new measurement of a batch's seconds, so much goes into the mean.
_NEWEST = 0.2


class QueueFullError(Exception):
    """As many jobs wait as may.

    Attributes:
        retry_after: whole seconds until it is likely to be otherwise.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


def as_fault(error: BaseException) -> Exception:
    """An error of a model's, so that a future takes it and no task ends with it.

    What a library in Rust raises when it panics is no Exception, and StopIteration would end a
    coroutine.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    fault = RuntimeError(f"{type(error).__name__}: {error}")
    fault.__cause__ = error
    return fault


async def in_thread(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of work of a model's, done in some thread.

    Raises:
        Exception: what the work raised, as `as_fault` makes it.
    """

    def run() -> Any:
        try:
            return work(*arguments)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            fault = as_fault(error)
            if fault is error:
                raise
            raise fault from error

    return await asyncio.get_running_loop().run_in_executor(None, run)


@dataclass(eq=False)
class _Job:
    text: str
    options: Any
    key: Hashable  # what jobs of a batch have in common
    result: asyncio.Future[Any]
    is_gone: bool = False


@dataclass
class BatchCounts:
    """What a batcher has done.

    Attributes:
        batches, jobs, cancelled, refused: counts.
        seconds: of a batch, the mean of the latest.
    """

    batches: int = 0
    jobs: int = 0
    cancelled: int = 0
    refused: int = 0
    seconds: float = field(default=0.0)


class Batcher:
    """Runs jobs together whose options are equal and whose texts are of like length: the longest of
    a batch has less than twice the characters of the shortest.

    A job waits `wait` seconds at most for others to join it while the thread is idle. The batch of
    the job that has waited longest goes first.

    Args:
        run: (texts, options, cancelled) -> B results, in a thread of its own.
            `cancelled()` says at any time which of the jobs nobody waits for any longer; it may
            raise SearchCancelledError once that is all of them.
        size: jobs of a batch, at most.
        wait: seconds.
        queue: jobs that may wait.
        name: of the thread.
        observe: told the size of each batch and the seconds it took.
    """

    def __init__(
        self,
        run: Run,
        *,
        size: int,
        wait: float,
        queue: int,
        name: str,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        self.counts = BatchCounts()
        self._run = run
        self._size = size
        self._wait = wait
        self._most = queue
        self._observe = observe
        self._waiting: list[_Job] = []
        self._running: list[_Job] = []
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs of the batch that is run."""
        return len(self._running)

    def start(self) -> None:
        """Begin to run jobs, in the running event loop."""
        self._worker = asyncio.create_task(self._work())

    def stop(self, error: Exception) -> None:
        """End the jobs that are there with an error."""
        for job in [*self._waiting, *self._running]:
            job.is_gone = True
            if not job.result.done():
                job.result.set_exception(error)

    async def close(self) -> None:
        """Run no further jobs; those that are left are cancelled."""
        for job in [*self._waiting, *self._running]:
            job.is_gone = True
            job.result.cancel()
        if self._worker is not None:
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    async def __call__(
        self, text: str, options: Any, *, key: Hashable, timeout: float | None = None
    ) -> Any:
        """The result of one job.

        Whoever stops waiting for it, by a cancelled task or at the deadline, has it taken out of
        the queue or out of the batch.

        Args:
            text: of the job.
            options: equal for equal keys.
            key: what may go together; None goes alone.
            timeout: seconds; None waits for as long as it takes.

        Raises:
            QueueFullError: too many wait already.
            asyncio.TimeoutError: it took longer.
        """
        self.check_room(1)
        if key is None:
            key = object()
        length = max(len(text), _SHORT).bit_length()
        future = asyncio.get_running_loop().create_future()
        job = _Job(text, options, (key, length), future)
        self._waiting.append(job)
        self._arrived.set()
        try:
            return await asyncio.wait_for(future, timeout)
        finally:
            if not future.done() or future.cancelled():
                self.counts.cancelled += 1
            job.is_gone = True
            with suppress(ValueError):
                self._waiting.remove(job)

    def check_room(self, jobs: int) -> None:
        """See that so many more jobs may wait.

        Raises:
            QueueFullError: they may not.
        """
        if self.waiting + jobs > self._most:
            self.counts.refused += jobs
            raise QueueFullError(self.retry_after())

    def retry_after(self) -> int:
        """Whole seconds after which what waits now is likely to be done."""
        batches = 1 + self.waiting / self._size
        return max(1, math.ceil(batches * self.counts.seconds))

    async def _work(self) -> None:
        while True:
            self._arrived.clear()
            if not self._waiting:
                await self._arrived.wait()
                continue
            await self._gather()
            if not self._waiting:  # they left
                continue
            first = self._waiting[0]
            batch = [job for job in self._waiting if job.key == first.key][: self._size]
            self._waiting = [job for job in self._waiting if job not in batch]
            self._running = batch
            await self._run_batch(batch)
            self._running = []

    async def _gather(self) -> None:
        """Wait for others to join the first job, if there is still room in its batch."""
        until = time.monotonic() + self._wait
        while self._waiting:
            key = self._waiting[0].key
            left = until - time.monotonic()
            if left <= 0 or sum(job.key == key for job in self._waiting) >= self._size:
                return
            self._arrived.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)

    async def _run_batch(self, batch: list[_Job]) -> None:
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        outcomes: Sequence[Any]
        try:
            outcomes = await loop.run_in_executor(self._thread, self._outcomes, batch)
        except Exception as error:  # there is no thread to be had, say
            outcomes = [error] * len(batch)
        seconds = time.monotonic() - started
        self._count(len(batch), seconds)
        for job, outcome in zip(batch, outcomes, strict=True):
            if job.result.done():
                continue
            if isinstance(outcome, Exception):
                job.result.set_exception(outcome)
            else:
                job.result.set_result(outcome)

    def _count(self, jobs: int, seconds: float) -> None:
        counts = self.counts
        counts.batches += 1
        counts.jobs += jobs
        mean = counts.seconds or seconds
        counts.seconds = mean + _NEWEST * (seconds - mean)
        if self._observe is not None:
            self._observe(jobs, seconds)

    def _outcomes(self, batch: list[_Job]) -> Sequence[Any]:
        """Results or errors of a batch, in the thread; one by one where it is refused, as one job's
        fault is not the others'.
        """
        try:
            results = self._run(
                [job.text for job in batch],
                batch[0].options,
                lambda: [job.is_gone for job in batch],
            )
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results of {len(batch)} jobs")
            return results
        except SearchCancelledError as error:
            return [error] * len(batch)
        except BaseException as error:
            if len(batch) == 1:
                return [as_fault(error)]
        return [outcome for job in batch for outcome in self._outcomes([job])]
