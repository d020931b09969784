"""Passages embedded by a pool of Ray actors, whole shards of a knowledge base at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.checks import warn, whole
from rag_core.knowledge import Block, Encode, block_vectors
from rag_core.retrieval import join

if TYPE_CHECKING:
    from typing import Self

# Times that a shard is embedded again whose worker was lost: on the next one it is the shard's fault.
RETRIES = 3
# Seconds without an answer after which a person is told what is waited for.
PATIENCE = 300.0


def load_embed(
    backend: str, source: str, batch_size: int, prompts: Mapping[str, str] | None = None
) -> Encode:
    """An encoder's `embed`, for `RayEncoder`.

    Args:
        backend: "torch" or "tf".
        source: its folder, at the same path on all nodes, or hub name.
        batch_size: passages at a time.
        prompts: as `load_encoder` takes them.
    """
    from rag_core.backends import load_backend

    encoder = load_backend(backend).load_encoder(source, prompts=prompts)
    return functools.partial(encoder.embed, batch_size=batch_size)


class PassageWorker:
    """What an actor of the pool holds: an encoder.

    Args:
        load: returns it.
    """

    def __init__(self, load: Callable[[], Encode]) -> None:
        self._encode = load()

    def embed(self, titles: list[str], texts: list[str]) -> np.ndarray:
        """The vectors (n, D) of passages."""
        return self._encode(titles, texts)

    def embed_block(
        self, titles: list[str], texts: list[str], batch_size: int, dimension: int
    ) -> np.ndarray:
        """The vectors of a shard's passages."""
        return block_vectors(self._encode, titles, texts, batch_size, dimension)

    def pid(self) -> int:
        """Its process."""
        import os

        return os.getpid()


class RayEncoder:
    """An encoder for `build_knowledge_base` that a pool of Ray actors carries out.

    Each embeds a shard at a time, in the batches of a build without a cluster, and this process
    writes it. An actor that is lost is started again by Ray, and embeds its shard again; if this
    process is killed, the shards under way are lost, one an actor, and the same build goes on.

    Args:
        load: called in each actor, returns an encoder: titles and texts to vectors (n, D).
        workers: how many actors; each takes a GPU if the cluster has as many.
        address: the cluster's; "local" starts one for this process.

    Raises:
        ImportError: Ray isn't installed.
        OSError: no cluster.
    """

    def __init__(
        self, load: Callable[[], Encode], workers: int = 2, address: str = "local"
    ) -> None:
        workers = whole(1)("workers", workers)
        options: dict[str, Any] = {}
        if address == "local":
            options["num_cpus"] = workers
        self._ray = join(address, **options)
        gpus = int(self._ray.cluster_resources().get("GPU", 0) >= workers)
        worker = self._ray.remote(PassageWorker).options(
            num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=RETRIES
        )
        self._workers = [worker.remote(load) for _ in range(workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, titles: list[str], texts: list[str]) -> np.ndarray:
        """The vectors (n, D) of passages, by the first of the actors that is there."""
        starting = self._starting()
        worker = starting[self._ready([*starting])]
        return self._got(worker.embed.remote(titles, texts))

    def embed_blocks(
        self,
        blocks: Iterable[Block],
        batch_size: int,
        dimension: int,
        advance: Callable[[int, bool], None],
    ) -> Iterator[tuple[Block, np.ndarray]]:
        """Each block with its vectors (n, D), in the order in which they are ready."""
        # A worker gets blocks once it is there: the cluster may have no room for all of them.
        starting = self._starting()
        running: dict[Any, tuple[Any, Block]] = {}
        idle: list[Any] = []

        def next_done() -> Iterator[tuple[Block, np.ndarray]]:
            """Wait until a worker is idle; what it has made, if it has."""
            ready = self._ready([*running, *starting])
            if ready in starting:
                self._got(ready)
                idle.append(starting.pop(ready))
                return
            worker, block = running.pop(ready)
            vectors = self._got(ready)
            idle.append(worker)
            advance(len(block.rows), False)
            yield block, vectors

        for block in blocks:
            while not idle:
                yield from next_done()
            worker = idle.pop()
            request = worker.embed_block.remote(block.titles, block.texts, batch_size, dimension)
            running[request] = worker, block
        while running:
            yield from next_done()

    def pids(self) -> list[int]:
        """The processes of the actors."""
        return self._ray.get([worker.pid.remote() for worker in self._workers])

    def close(self) -> None:
        """End the actors."""
        for worker in self._workers:
            self._ray.kill(worker)
        self._workers = []

    def _starting(self) -> dict[Any, Any]:
        """Worker by what is ready as soon as it is there."""
        return {worker.pid.remote(): worker for worker in self._workers}

    def _ready(self, references: list[Any]) -> Any:
        """The first that is."""
        ready, _ = self._ray.wait(references, timeout=PATIENCE)
        if not ready:
            warn(
                f"no worker has answered for {PATIENCE:g} s: it loads the encoder or embeds a long "
                "shard, or the cluster has no processor free for one. This waits on."
            )
            ready, _ = self._ray.wait(references)
        return ready[0]

    def _got(self, reference: Any) -> np.ndarray:
        """What an actor answers; its error as it was raised there."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())
            raise OSError(
                f"workers must load the encoder and keep alive, got {type(error).__name__}: "
                f"{reason[-300:]}. The same command goes on from the finished shards."
            ) from error
