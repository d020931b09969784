"""Processes of a run over torch.distributed: started by torchrun or accelerate, connected here."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rag_core.training import ALONE, Processes, ProcessLost

# A process that died is noticed at once; this long the others wait for one that is at work.
_PATIENCE = timedelta(hours=2)
# By what the errors of gloo and NCCL are told from those of a forward pass.
_NETWORKS = ("gloo", "nccl", "connection", "timed out")


class Group(Processes):
    """The processes of torch.distributed's group.

    What they tell each other goes over gloo, whatever carries the gradients.
    """

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self._messages = dist.new_group(backend="gloo", timeout=_PATIENCE)

    def exchange_bytes(self, data: bytes) -> list[bytes]:
        with self.reachable(always=True):
            sizes = self._all(torch.tensor([len(data)]))
            row = torch.zeros(max(map(int, sizes)), dtype=torch.uint8)
            row[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            rows = self._all(row)
        return [
            row[:size].numpy().tobytes() for row, size in zip(rows, map(int, sizes), strict=True)
        ]

    def _all(self, row: Tensor) -> list[Tensor]:
        rows = [torch.empty_like(row) for _ in range(self.count)]
        dist.all_gather(rows, row, group=self._messages)
        return rows

    @contextlib.contextmanager
    def reachable(self, always: bool = False) -> Iterator[None]:
        """Within it an error of the connections, or with `always` any, is told as what it is."""
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            if always or any(word in text.lower() for word in _NETWORKS):
                raise ProcessLost(
                    f"process {self.rank} of {self.count} can't reach another one, which has "
                    f"ended or hangs ({text:.160}). Look at what that one said; the same command "
                    "goes on from the last checkpoint."
                ) from error
            raise

    def close(self) -> None:
        """End the connections that it has made."""
        dist.destroy_process_group(self._messages)


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """Within it the processes of torchrun or accelerate are connected; a group that is there
    already is used, and one that is made stays until the process ends.

    Raises:
        ProcessLost: the others can't be reached.
    """
    if not dist.is_available():
        yield ALONE
        return
    if not dist.is_initialized() and "RANK" in os.environ:
        _connect(int(os.environ.get("WORLD_SIZE", 1)))
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield ALONE
        return
    group = Group()
    try:
        yield group
    finally:
        group.close()


def _connect(count: int) -> None:
    if count == 1:
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise ProcessLost(
            f"the {count} processes of the run can't be connected: {error}. Let torchrun or "
            "accelerate start them, or see that MASTER_ADDR and MASTER_PORT are right"
        ) from error
    atexit.register(dist.destroy_process_group)


class Gathered(torch.autograd.Function):
    """The rows (n, D) of all W processes as (W*n, D); each gets the gradients that all have of its
    own.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.size = rows.shape[0]
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        start = dist.get_rank() * ctx.size
        return gradient[start : start + ctx.size]
