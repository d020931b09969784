"""Several processes that make one run: which questions each takes, what the first does for all, and
what they tell each other.

All run the same program on the same questions and settings. Of every forward pass each learns from
its own part; gradients are added up by the backend. What is counted is told to all, so that every
process decides the same from the same numbers; what is written or said, the first one does alone.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
_LETTERS = 300


class ProcessLost(ConnectionError):
    """Another process of the run has ended, or can't be reached any longer."""


class FirstFailed(OSError):
    """What the first process does for all has failed; it raises the error itself."""


class Processes(ABC):
    """The processes of a run, as one of them sees it.

    Every method but `dealt`, `own` and `equally` is called by all of them, in the same order, and
    waits for all.

    Attributes:
        rank: which of them this one is, from 0.
        count: how many there are.
    """

    rank: int
    count: int

    @abstractmethod
    def exchange_bytes(self, data: bytes) -> list[bytes]:
        """What each process gives, by rank.

        Raises:
            ProcessLost: one of them has ended.
        """

    @property
    def is_first(self) -> bool:
        """Whether this one writes and speaks for all."""
        return self.rank == 0

    def exchange(self, value: Any) -> list[Any]:
        """What each process gives, by rank; what JSON can hold.

        Raises:
            ProcessLost: one of them has ended.
        """
        return [json.loads(data) for data in self.exchange_bytes(json.dumps(value).encode())]

    def lead(self, function: Callable[[], Any]) -> Any:
        """Have the first process do something for all.

        Args:
            function: called by the first process alone.

        Returns:
            What it returned, on every process; what JSON can hold.

        Raises:
            Exception: what `function` raised, on the first process.
            FirstFailed: the same on the others.
            ProcessLost: one of them has ended.
        """
        if not self.is_first:
            answer = self.exchange(None)[0]
            if "failed" in answer:
                raise FirstFailed(f"process 0 of {self.count} failed: {answer['failed']}")
            return answer["result"]
        try:
            result = function()
        except Exception as error:
            self.exchange({"failed": f"{str(error) or type(error).__name__:.{_LETTERS}}"})
            raise
        self.exchange({"result": result})
        return result

    def check_alike(self, facts: Mapping[str, Any]) -> None:
        """Refuse processes that were not given the same.

        Args:
            facts: by name; what JSON can hold.

        Raises:
            ValueError: some fact differs; raised on every process.
            ProcessLost: one of them has ended.
        """
        everyone = self.exchange(dict(facts))
        for rank, theirs in enumerate(everyone):
            names = sorted({*theirs, *everyone[0]})
            other = [name for name in names if theirs.get(name) != everyone[0].get(name)]
            if other:
                raise ValueError(
                    f"all processes must be given the same, got another {', '.join(other)} in "
                    f"process {rank} than in process 0. Start all with the same settings and files"
                )

    def own(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process' part of a forward pass's questions: consecutive ones, equally many for
        each.
        """
        size = len(items) // self.count
        return items[self.rank * size : (self.rank + 1) * size]

    def equally(self, items: Sequence[Item]) -> list[Item]:
        """This process' part of some items, of the same length for each: consecutive ones, where
        those of the last processes are filled up with the last item. All parts in a row begin with
        the items.
        """
        size = -(-len(items) // self.count)
        filled = [*items, *[items[-1]] * (size * self.count - len(items))]
        return filled[self.rank * size : (self.rank + 1) * size]

    def dealt(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process' share of a piece of work, every `count`-th item; `collect` puts what was
        made of them together.
        """
        return items[self.rank :: self.count]

    def collect(self, results: Sequence[Any]) -> list[Any]:
        """What all processes made of the items that `dealt` gave them, in the items' order; what
        JSON can hold.

        Raises:
            ProcessLost: one of them has ended.
        """
        shares = self.exchange(list(results))
        total = sum(map(len, shares))
        return [shares[place % self.count][place // self.count] for place in range(total)]

    def seed(self, seed: int) -> int:
        """A seed of this process' own, for dropout: the first has the run's."""
        if self.is_first:
            return seed
        import numpy as np

        return int(np.random.SeedSequence((seed, self.rank)).generate_state(1, np.uint64)[0] >> 1)


class Alone(Processes):
    """A process by itself."""

    rank, count = 0, 1

    def exchange_bytes(self, data: bytes) -> list[bytes]:
        return [data]

    def exchange(self, value: Any) -> list[Any]:
        return [value]


ALONE = Alone()


def started_processes(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Rank and number of the processes that a launcher has started, as its environment says:
    torchrun's and accelerate's `RANK` and `WORLD_SIZE`, TensorFlow's `TF_CONFIG`; (0, 1) without
    one.

    Raises:
        ValueError: a launcher's variable is no number, or `TF_CONFIG` is no such JSON.
    """
    if environment.get("TF_CONFIG"):
        return _of_tf_config(environment["TF_CONFIG"])
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return 0, 1
    try:
        return int(environment["RANK"]), int(environment["WORLD_SIZE"])
    except ValueError:
        raise ValueError(
            f"RANK and WORLD_SIZE must be whole numbers, got {environment['RANK']!r} and "
            f"{environment['WORLD_SIZE']!r}. torchrun sets them; remove them where it did not"
        ) from None


def _of_tf_config(text: str) -> tuple[int, int]:
    try:
        setup = json.loads(text)
        cluster, task = setup["cluster"], setup["task"]
        chiefs = len(cluster.get("chief", []))
        index = int(task["index"])
        if task["type"] != "chief":
            index += chiefs
        return index, chiefs + len(cluster.get("worker", []))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(
            'TF_CONFIG must be JSON like {"cluster": {"worker": ["host:port", ...]}, "task": '
            f'{{"type": "worker", "index": 0}}}}, got {text!r:.120}. Mend it, or remove it'
        ) from None
