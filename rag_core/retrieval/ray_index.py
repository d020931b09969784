"""An index whose shards lie on a Ray cluster, searched all at once.

Letters: B questions, N documents a question, D vector size, K shards.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from rag_core.arguments import checked_n_docs
from rag_core.checks import one_of, warn
from rag_core.retrieval.merging import merged
from rag_core.retrieval.ray_cluster import (
    RayPlace,
    actors_of,
    join,
    named_actor,
    newest_serial,
    ray_place,
    table_name,
)
from rag_core.retrieval.where import parse_conditions

WHEN_LOST = ("wait", "fail", "partial")
WHEN_EXCHANGED = ("follow", "fail")
TIMEOUT = 60.0
# Passages a thread remembers of its searches; read again, they need no call.
REMEMBERED = 4096
# Seconds before a lost shard is asked again.
PAUSE = 0.1


class ShardLostError(OSError):
    """A shard does not answer, and the others alone may not."""


class ShardsExchangedError(OSError):
    """Another build has taken the shards' place, and a search may not go on with that."""


class _Replaced(Exception):
    """The shards that were asked are gone, as a newer build has taken their place."""


class _Build:
    """One thread's view of the shards of one build, and what it has read of them.

    Args:
        ray: the library.
        name: of the set of shards.
        serial: the number of the exchange that brought the build.
        timeout: seconds to wait for its table.

    Raises:
        LookupError: it is gone.
    """

    def __init__(self, ray: Any, name: str, serial: int, timeout: float) -> None:
        self.serial = serial
        self.table = _present(ray, table_name(name, serial))
        self.content: dict[str, Any] = ray.get(self.table.content.remote(), timeout=timeout)
        shards = self.content["shards"]
        self.starts = np.array([shard["start"] for shard in shards])
        self.handles = [_present(ray, shard["actor"]) for shard in shards]
        self.texts: dict[int, dict[str, Any]] = {}
        self.missing: tuple[int, ...] = ()
        self.rows: np.ndarray | None = None

    def by_shard(self, rows: np.ndarray) -> dict[int, np.ndarray]:
        """Rows (n,) by the shard that holds them."""
        shard_of = np.searchsorted(self.starts, rows, side="right") - 1
        return {int(shard): rows[shard_of == shard] for shard in np.unique(shard_of)}

    def remember(self, rows: np.ndarray, columns: dict[str, list[Any]]) -> None:
        """Keep the texts of rows (n,)."""
        if len(self.texts) + len(rows) > REMEMBERED:
            self.texts = {}
        for place, row in enumerate(rows.tolist()):
            self.texts[row] = {name: values[place] for name, values in columns.items()}


class RayIndex:
    """The index of a knowledge base whose shards `dualrag shards` brought onto a Ray cluster.

    A search asks all shards at once and merges what they find: of exact ("flat") shards the very
    documents, vectors and order of the whole knowledge base's own index. A thread searches one build
    and reads its passages from the same one; when shards were exchanged, it takes the new build with
    the next call of a retriever, never within one.

    Args:
        place: "ray://ADDRESS/NAME"; `when_lost`, `when_exchanged` and `timeout` may stand in it,
            too, as in "ray://auto/wiki?when_lost=partial&timeout=5".
        when_lost: what becomes of a search while a shard is lost, until Ray has restarted it: "wait"
            for it (the default), "fail" with a `ShardLostError`, or answer "partial"ly, from the
            others, with a warning that says how many passages are missing; `missing_shards` lists
            them.
        when_exchanged: whether a search goes on with another build that has taken the shards'
            place: "follow" (the default), or "fail" with a `ShardsExchangedError`, for what must
            see the same passages from its start to its end.
        timeout: seconds after which a search that waits fails, too; 60.
        where: conditions on passages, as the method `where` takes them.

    Raises:
        TypeError, ValueError: an option or a condition that is none.
        ImportError: Ray isn't installed.
        OSError: no such cluster, or no shards of that name.
    """

    def __init__(
        self,
        place: str,
        *,
        when_lost: str | None = None,
        when_exchanged: str | None = None,
        timeout: float | None = None,
        where: Any = None,
    ) -> None:
        self._place: RayPlace = ray_place(str(place))
        options: dict[str, Any] = {
            "when_lost": "wait",
            "when_exchanged": "follow",
            "timeout": TIMEOUT,
        }
        if further := sorted({*self._place.options} - {*options}):
            raise ValueError(f"index may name {[*options]}, got {further} in {place!r}")
        options.update(self._place.options)
        asked = {"when_lost": when_lost, "when_exchanged": when_exchanged, "timeout": timeout}
        options.update((name, value) for name, value in asked.items() if value is not None)
        self._when_lost = one_of(WHEN_LOST)("when_lost", options["when_lost"])
        self._when_exchanged = one_of(WHEN_EXCHANGED)("when_exchanged", options["when_exchanged"])
        self._timeout = _seconds(options["timeout"])
        self._where: list[str] | None = None
        if where is not None:
            self._where = _conditions(where)
        # of the manifest of the build that was searched first; all threads' where one must do
        self._sha256: str | None = None
        self._own = threading.local()

    def __reduce__(self) -> Any:
        return _reopened, self._parts(self._where)

    def __repr__(self) -> str:
        build = getattr(self._own, "build", None)
        if build is None:
            return f"{type(self).__name__}({str(self._place)!r}, not loaded)"
        shards = build.content["shards"]
        return (
            f"{type(self).__name__}({str(self._place)!r}, {build.content['rows']:,} passages in "
            f"{len(shards)} shards)"
        )

    @property
    def place(self) -> str:
        """Where the shards are: "ray://ADDRESS/NAME"."""
        return str(self._place)

    def __len__(self) -> int:
        return int(self._build.content["rows"])

    @property
    def vector_size(self) -> int:
        """D."""
        return int(self._build.content["dimension"])

    @property
    def manifest(self) -> dict[str, Any]:
        """What the manifest of the whole knowledge base holds, and "sha256", the file's own."""
        return dict(self._build.content["manifest"])

    @property
    def serial(self) -> int:
        """The number of the build that this thread searches: 1 and, after each exchange, 1 more."""
        return self._build.serial

    @property
    def rows(self) -> np.ndarray | None:
        """The rows (M,) that conditions leave, in order; None where all are searched.

        Raises:
            ShardLostError: as `get_doc_dicts`.
        """
        if self._where is None:
            return None
        build = self._build
        if build.rows is None:
            everyone = dict.fromkeys(range(len(build.handles)), self._where)
            found = self._read(build, everyone, lambda handle, where: handle.matching.remote(where))
            build.rows = np.concatenate([found[shard] for shard in sorted(found)])
        return build.rows

    @property
    def missing_shards(self) -> tuple[int, ...]:
        """Which shards had no part in this thread's latest search."""
        return self._build.missing

    def where(self, where: Any) -> RayIndex:
        """The passages that conditions hold for, as an index of its own.

        Each shard searches those it has exactly. Of a part those that its own conditions hold for,
        too.

        Args:
            where: as of `FaissIndex.where`, but no function: nobody's code is sent to a cluster.

        Raises:
            TypeError, ValueError: a function, or no condition.
        """
        return _reopened(*self._parts([*(self._where or ()), *_conditions(where)]))

    def is_initialized(self) -> bool:
        """Whether this thread searches the latest build."""
        build = getattr(self._own, "build", None)
        if build is None:
            return False
        ray = join(self._place.address)
        own, later = (table_name(self._place.name, build.serial + more) for more in (0, 1))
        return named_actor(ray, later) is None and named_actor(ray, own) == build.table

    def init_index(self) -> None:
        """Take the latest build for this thread's searches.

        Raises:
            OSError: there is none.
            ShardsExchangedError: it is another than before, and `when_exchanged` is "fail".
        """
        ray = join(self._place.address)
        until = time.monotonic() + self._timeout
        while True:
            serial = newest_serial(actors_of(ray, self._place.name))
            if not serial:
                raise OSError(
                    f"{self._place}: there are no shards of this name on the cluster. Bring some: "
                    f"dualrag shards FOLDER --name {self._place.name} --ray {self._place.address}"
                )
            try:
                build = _Build(ray, self._place.name, serial, self._timeout)
                break
            # LookupError: an exchange took it away between the list and the look
            except (ray.exceptions.RayError, LookupError) as error:
                self._pause(until, "the table or a shard", error)
        self._check_build(build)
        self._own.build = build

    def get_top_docs(
        self, question_hidden_states: np.ndarray, n_docs: int = 5
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search; see `Index.get_top_docs`.

        Fewer than N hits are filled up with row -1 and zero vectors.

        Raises:
            ShardLostError: a shard is lost, and `when_lost` is "fail" or it did not come back.
            ValueError: wrong shape; conditions that cannot be read, or match nothing.
        """
        queries = np.ascontiguousarray(question_hidden_states, dtype=np.float32)
        size = self.vector_size
        if queries.ndim != 2 or queries.shape[1] != size:
            raise ValueError(
                f"question_hidden_states must have shape (batch, {size}) for this index, got "
                f"{queries.shape}; the question encoder and the encoder of the index must belong "
                "together."
            )
        n_docs = checked_n_docs(n_docs, 5)
        return self._of_one_build(lambda build: self._search(build, queries, n_docs))

    def get_doc_dicts(self, doc_ids: np.ndarray) -> list[dict[str, Any]]:
        """Return B dictionaries of lists, as `FaissIndex.get_doc_dicts` does, of the build that this
        thread searched last.

        Raises:
            IndexError: a row that is not there.
            ShardLostError: as `get_top_docs`; with "partial", too, where it is the shard that holds
                a passage.
        """
        doc_ids = np.asarray(doc_ids)
        build = self._build
        rows = np.unique(doc_ids)
        self._check_rows(rows)
        texts = {row: build.texts[row] for row in rows.tolist() if row in build.texts}
        unknown = np.array([row for row in rows.tolist() if row not in texts], np.int64)
        if unknown.size:
            parts = build.by_shard(unknown)
            found = self._read(build, parts, lambda handle, rows: handle.read.remote(rows))
            for shard, columns in found.items():
                build.remember(parts[shard], columns)
                for place, row in enumerate(parts[shard].tolist()):
                    texts[row] = {name: values[place] for name, values in columns.items()}
        docs = []
        for row_numbers in doc_ids.tolist():
            passages = [texts[row] for row in row_numbers]
            names = [*passages[0]] if passages else []
            docs.append({name: [passage[name] for passage in passages] for name in names})
        return docs

    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        """The vectors (n, D) of rows (n,), of the same build.

        Raises:
            IndexError, ShardLostError: as `get_doc_dicts`.
        """
        rows = np.asarray(rows)
        build = self._build
        self._check_rows(rows)
        vectors = np.empty((len(rows), self.vector_size), np.float32)
        parts = build.by_shard(np.unique(rows))
        found = self._read(build, parts, lambda handle, rows: handle.vectors.remote(rows))
        for shard, part in parts.items():
            here = np.isin(rows, part)
            vectors[here] = found[shard][np.searchsorted(part, rows[here])]
        return vectors

    def _parts(self, where: Any) -> tuple[Any, ...]:
        """What `_reopened` makes an index of, of the same build but for conditions."""
        options = self._when_lost, self._when_exchanged, self._timeout
        return str(self._place), *options, self._sha256, where

    def _check_build(self, build: _Build) -> None:
        sha256 = build.content["manifest"]["sha256"]
        if self._when_exchanged == "follow" or self._sha256 in (None, sha256):
            self._sha256 = sha256
            return
        raise ShardsExchangedError(
            f"{self._place}: another build, number {build.serial}, has taken the place of the shards "
            "that this was begun with; its rows are other passages. Bring the build from before back "
            "and start again, or begin anew with this one."
        )

    def _check_rows(self, rows: np.ndarray) -> None:
        """Refuses rows that are not there; to a shard they would be others."""
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(
                f"rows must be 0 to {len(self) - 1}, got {rows.min()} to {rows.max()}."
            )

    def _read(
        self, build: _Build, parts: dict[int, Any], ask: Callable[[Any, Any], Any]
    ) -> dict[int, Any]:
        """What shards hold, by shard."""
        try:
            found = self._asked(build, parts, ask)
        except _Replaced as error:
            raise ShardLostError(
                f"{self._place}: the passages of build {build.serial} are gone, as a newer one has "
                "taken their place. Ask again."
            ) from error
        if lost := sorted({*parts} - {*found}):
            raise ShardLostError(f"{self._place}: shards {lost} are lost, which hold passages.")
        for each in found.values():
            if isinstance(each, ValueError):
                raise each
        return found

    @property
    def _build(self) -> _Build:
        if getattr(self._own, "build", None) is None:
            self.init_index()
        build: _Build = self._own.build
        return build

    def _of_one_build(self, search: Callable[[_Build], Any]) -> Any:
        """A search, done again as a whole where an exchange took its shards away."""
        while True:
            try:
                return search(self._build)
            except _Replaced:
                self.init_index()

    def _search(self, build: _Build, queries: np.ndarray, n_docs: int) -> Any:
        everyone: dict[int, None] = dict.fromkeys(range(len(build.handles)))
        found = self._asked(
            build, everyone, lambda handle, _: handle.search.remote(queries, n_docs, self._where)
        )
        build.missing = tuple(sorted({*everyone} - {*found}))
        if build.missing:
            self._warn_of(build)
        faults = [each for each in found.values() if isinstance(each, ValueError)]
        hits = [each for _, each in sorted(found.items()) if not isinstance(each, ValueError)]
        # Conditions may match nothing in a shard, or name what no passage there has.
        if faults and (self._where is None or not hits):
            raise faults[0]
        if not hits:
            raise ShardLostError(f"{self._place}: all shards are lost.")
        for each in hits:
            build.remember(each.read, each.texts)
        as_faiss = self._where is None and build.content["kind"] == "flat"
        return merged(hits, len(queries), n_docs, queries.shape[1], as_faiss)

    def _asked(
        self, build: _Build, parts: dict[int, Any], ask: Callable[[Any, Any], Any]
    ) -> dict[int, Any]:
        """What shards answer, by shard: a ValueError where they refuse; lost ones are missing where
        that is allowed.

        Args:
            build: whose shards they are.
            parts: shard -> what it is asked for.
            ask: sends the question to a handle.
        """
        ray = join(self._place.address)
        until = time.monotonic() + self._timeout
        found: dict[int, Any] = {}
        waiting = {ask(build.handles[shard], part): shard for shard, part in parts.items()}
        while waiting:
            ready, _ = ray.wait([*waiting], timeout=max(0.0, until - time.monotonic()))
            if not ready:
                if self._when_lost == "partial":
                    break
                shards = sorted(waiting.values())
                raise ShardLostError(
                    f"{self._place}: shards {shards} did not answer within {self._timeout:g} s."
                )
            reference = ready[0]
            shard = waiting.pop(reference)
            try:
                found[shard] = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                if not isinstance(error.cause, ValueError):
                    raise error.cause from None
                found[shard] = error.cause
            except ray.exceptions.RayError as error:
                if self._is_replaced(ray, build):
                    raise _Replaced from error
                if self._when_lost == "partial":
                    continue
                if self._when_lost == "fail":
                    raise self._lost(f"shard {shard}", error) from error
                self._pause(until, f"shard {shard}", error)
                waiting[ask(build.handles[shard], parts[shard])] = shard
        return found

    def _is_replaced(self, ray: Any, build: _Build) -> bool:
        name = self._place.name
        serial = newest_serial(actors_of(ray, name))
        # Of shards that were stopped, and others started, the number may be the same.
        return serial != build.serial or named_actor(ray, table_name(name, serial)) != build.table

    def _pause(self, until: float, what: str, error: Exception) -> None:
        """Wait a little for what Ray restarts.

        Raises:
            ShardLostError: it has taken too long.
        """
        if time.monotonic() > until:
            raise self._lost(what, error) from error
        time.sleep(PAUSE)

    def _lost(self, what: str, error: Exception) -> ShardLostError:
        reason = " ".join(str(error).split())
        return ShardLostError(
            f"{self._place}: {what} is lost ({type(error).__name__}: {reason:.200}). Ray restarts "
            "it where its files are; when_lost='wait' waits for that, 'partial' goes on without."
        )

    def _warn_of(self, build: _Build) -> None:
        shards = build.content["shards"]
        rows = sum(shards[number]["stop"] - shards[number]["start"] for number in build.missing)
        warn(
            f"{self._place}: {len(build.missing)} of {len(shards)} shards are lost; what was found "
            f"is without {rows:,} of {build.content['rows']:,} passages."
        )


def _conditions(where: Any) -> list[str]:
    """Conditions as a list, all of which must hold.

    Raises:
        TypeError, ValueError: a function, or no condition.
    """
    if callable(where):
        raise TypeError(
            "where must be conditions in text for shards on a cluster, got a function. Write "
            "'key=glob', or filter what comes back."
        )
    return [condition.text for condition in parse_conditions(where)]


def _seconds(timeout: Any) -> float:
    try:
        seconds = float(timeout)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"timeout must be seconds above 0, got {timeout!r}")
    return seconds


def _present(ray: Any, name: str) -> Any:
    actor = named_actor(ray, name)
    if actor is None:
        raise LookupError(f"there is no actor {name}")
    return actor


def _reopened(
    place: str, when_lost: str, when_exchanged: str, timeout: float, sha256: str | None, where: Any
) -> RayIndex:
    index = RayIndex(
        place, when_lost=when_lost, when_exchanged=when_exchanged, timeout=timeout, where=where
    )
    index._sha256 = sha256
    return index
