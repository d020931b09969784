"""Shards brought onto a Ray cluster under a name, exchanged for others of a newer build, and taken
away.
"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rag_core.cluster.holder import ShardHolder, Table
from rag_core.knowledge import ShardSet
from rag_core.retrieval import (
    NAMESPACE,
    actors_of,
    checked_name,
    join,
    named_actor,
    newest_serial,
    table_name,
)

# Seconds for all shards to open their files.
LOADING = 600.0
# Seconds that the shards of the build before stay, for calls that have begun.
GRACE = 30.0


def start_shards(
    folder: str | Path,
    name: str,
    address: str = "auto",
    *,
    grace: float = GRACE,
) -> int:
    """Bring shards onto a cluster, an actor each; where there are some of that name, take their
    place, all at once.

    The actors stay when this process ends (`stop_shards` takes them away). One that is lost is
    started again by Ray, on any node that has the folder at the same path.

    Args:
        folder: as `cut_shards` wrote it; on all nodes, at the same path.
        name: what they are called there: ``RagRetriever(..., index="ray://ADDRESS/NAME")``.
        address: the cluster's.
        grace: seconds after an exchange until the shards of the build before are taken away: calls
            that have begun end with them.

    Returns:
        The number of the build: 1, and after each exchange 1 more.

    Raises:
        ImportError: Ray isn't installed.
        OSError, ValueError: no cluster; shards that are missing or damaged on the node where an
            actor was started; another exchange of that name came first. What was there before
            stays in use.
    """
    name = checked_name(name)
    shards = ShardSet.open(Path(folder).resolve())
    ray = join(address)
    old_actors = actors_of(ray, name)
    serial = newest_serial(old_actors) + 1
    actors = _started(ray, shards, f"{name}/{secrets.token_hex(4)}")
    try:
        _check_ready(ray, shards, actors)
        _publish(ray, shards, [*actors], name, serial)
    except BaseException:
        _remove(ray, [*actors])
        raise
    if old_actors:
        try:
            time.sleep(grace)
        finally:
            _remove(ray, old_actors)
    return serial


def stop_shards(name: str, address: str = "auto") -> int:
    """Take the shards of a name away; searches that run then fail.

    Returns:
        How many actors ended.

    Raises:
        ImportError, OSError: as `start_shards`.
    """
    ray = join(address)
    names = actors_of(ray, checked_name(name))
    _remove(ray, names)
    return len(names)


def _started(ray: Any, shards: ShardSet, prefix: str) -> dict[str, Any]:
    """Actors by name, which load."""
    holder = ray.remote(ShardHolder)
    actors = {}
    for number, shard in enumerate(shards.shards):
        # No processor is kept for it: during an exchange there are twice as many.
        name = f"{prefix}/{number}"
        options = {
            "name": name,
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "num_cpus": 0,
            "max_restarts": -1,
            "scheduling_strategy": "SPREAD",
        }
        place = str(shards.folder / shard["folder"])
        actors[name] = holder.options(**options).remote(place, shard["start"], shard["sha256"])
    return actors


def _check_ready(ray: Any, shards: ShardSet, actors: dict[str, Any]) -> None:
    try:
        sizes = ray.get([actor.rows.remote() for actor in actors.values()], timeout=LOADING)
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())
        raise OSError(
            f"{shards.folder} could not be loaded by all shards ({type(error).__name__}: "
            f"{reason[-300:]}). Every node needs the folder at that path."
        ) from error
    expected = [shard["stop"] - shard["start"] for shard in shards.shards]
    if sizes != expected:
        raise ValueError(
            f"{shards.folder} must hold shards of {expected} rows, got {sizes}. Cut them again."
        )


def _publish(ray: Any, shards: ShardSet, actors: list[str], name: str, serial: int) -> None:
    """Make the table, from which moment on the new shards count."""
    entries = [
        {"actor": actor, "start": shard["start"], "stop": shard["stop"]}
        for actor, shard in zip(actors, shards.shards, strict=True)
    ]
    manifest = {key: value for key, value in shards.manifest.items() if key != "files"}
    content = {
        "rows": shards.rows,
        "dimension": shards.manifest["dimension"],
        "kind": shards.kind,
        "manifest": manifest,
        "shards": entries,
    }
    options = {
        "name": table_name(name, serial),
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": -1,
    }
    try:
        ray.remote(Table).options(**options).remote(content)
    except ValueError as error:
        raise OSError(
            f"{name} was exchanged by another process at the same time. Look what it brought, and "
            "try again."
        ) from error


def _remove(ray: Any, names: list[str]) -> None:
    """End actors; tables first, as without one nobody begins to search."""
    for name in sorted(names, key=lambda each: "#" not in each):
        actor = named_actor(ray, name)
        if actor is not None:
            with suppress(ray.exceptions.RayError):
                ray.kill(actor, no_restart=True)
