"""Ray, where it is used: joining a cluster, and the names that shards have there.

A named set of shards is exchanged by a new *table*: an actor called NAME#1, NAME#2, ..., that
knows the shards of one build for good. The latest table counts, from the moment that its name is
there; so an exchange happens at once for everybody, and nobody has to be told.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import socket
from contextlib import suppress
from importlib.util import find_spec
from threading import Lock
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

NAMESPACE = "dualrag"
SCHEME = "ray://"
# Vectors and passages that are on their way; Ray's own default is a third of the memory.
OBJECT_STORE_BYTES = 100 << 20
# A server's threads ask at the same time.
_JOINING = Lock()
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class RayPlace(NamedTuple):
    """Where a named set of shards is: "ray://ADDRESS/NAME" in parts, and what stands behind a "?"."""

    address: str
    name: str
    options: dict[str, str]

    def __str__(self) -> str:
        return f"{SCHEME}{self.address}/{self.name}"


def ray_place(text: str) -> RayPlace:
    """The parts of "ray://ADDRESS/NAME?OPTION=VALUE&...".

    Raises:
        ValueError: it is something else.
    """
    path, _, query = text.removeprefix(SCHEME).partition("?")
    address, _, name = path.rpartition("/")
    if not text.startswith(SCHEME) or not address or not _NAME.fullmatch(name):
        raise ValueError(
            f"index must be ray://ADDRESS/NAME, got {text!r}. ADDRESS is a Ray cluster's, such as "
            "10.0.0.1:6379, or auto for the one that this machine is part of; NAME is that of "
            "`dualrag shards --name`."
        )
    return RayPlace(address, name, dict(parse_qsl(query, keep_blank_values=True)))


def checked_name(name: str) -> str:
    """A name for a set of shards.

    Raises:
        ValueError: it has other characters than letters, digits, "_", "." and "-".
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"name must be letters, digits, '_', '.' and '-', got {name!r}")
    return name


def load_ray() -> Any:
    """The library.

    Raises:
        ImportError: it isn't installed; the message has the pip line.
    """
    if find_spec("ray") is None:
        raise ImportError("A cluster needs ray. Run  pip install 'dualrag[ray]'.")
    # Ray's handler of SIGTERM aborts a process after 3 s: a server has answers to finish.
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    import ray

    return ray


def join(address: str = "auto", **options: Any) -> Any:
    """The library, as part of a cluster; nothing is done where this process is in one already.

    Args:
        address: "auto", a cluster's address, or "local", which starts one of this process's own.
        **options: of `ray.init`.

    Raises:
        ImportError: Ray isn't installed.
        OSError: there is no cluster at that address, or this process is in another one.
    """
    ray = load_ray()
    with _JOINING:
        if ray.is_initialized():
            here = ray.get_runtime_context().gcs_address
            if address not in ("auto", "local", here) and not _is_same(ray, address, here):
                raise OSError(
                    f"address must be that of the cluster which this process has joined, {here}, "
                    f"got {address!r}. Ray joins one a process: ask others in processes of their own."
                )
            return ray
        if address == "local":
            own = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
            options = own | options
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # what times out there is nothing more special
            if address == "local":
                raise OSError(f"Ray could not start on this machine ({error!s:.160})") from error
            raise OSError(
                f"address must be that of a Ray cluster, got {address!r} ({error!s:.160}). Start "
                "one: ray start --head. If it asks for a token, set RAY_AUTH_MODE=token."
            ) from error
    return ray


@functools.lru_cache
def _is_same(ray: Any, one: str, other: str) -> bool:
    """Whether two addresses, HOST:PORT, are one, by name or number."""

    def numbers(address: str) -> tuple[str, str]:
        host, _, port = address.rpartition(":")
        with suppress(OSError):
            host = socket.gethostbyname(host)
        # Ray calls this machine by the address that others see.
        if host.startswith("127."):
            host = ray.util.get_node_ip_address()
        return host, port

    return numbers(one) == numbers(other)


def table_name(name: str, serial: int) -> str:
    """What the table of an exchange is called."""
    return f"{name}#{serial}"


def actors_of(ray: Any, name: str) -> list[str]:
    """The names of all actors of a set of shards: tables, and shards of any build."""
    named = ray.util.list_named_actors(all_namespaces=True)
    names = [entry["name"] for entry in named if entry["namespace"] == NAMESPACE]
    return [each for each in names if each.startswith((f"{name}#", f"{name}/"))]


def newest_serial(names: list[str]) -> int:
    """The number of the latest table among the actors of a set of shards, 0 where there is none."""
    return max((int(each.rpartition("#")[2]) for each in names if "#" in each), default=0)


def named_actor(ray: Any, name: str) -> Any:
    """An actor's handle, None where there is none of that name."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None
