"""Kills a writer at each thing it does to the disk.

A forked child that ends within the n-th of them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_WRITES = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.chmod",
    "os.link",
    "os.symlink",
    "os.truncate",
)
KILLED = 9


def _dies(left: int) -> Callable[[str, tuple], None]:
    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        writes = event in _WRITES
        if event == "open":
            flags = arguments[2]
            writes = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes:
            left -= 1
            if left < 0:
                os._exit(KILLED)

    return hook


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Runs `work` in a child that dies, handlers and all, as it begins write number `step`; False
    if it has fewer.

    Errors of `work` itself fail the test.
    """
    child = os.fork()
    if child == 0:
        try:
            sys.addaudithook(_dies(step))
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, KILLED), f"the writer ended with status {status}"
    return status == KILLED


def kills(
    prepare: Callable[[], None], work: Callable[[], object], *, every: int = 1
) -> Iterator[int]:
    """Prepares and kills at every write (or every so many).

    Yields after each, until the writer comes through.
    """
    step = 0
    while True:
        prepare()
        if not killed_at(step, work):
            return
        yield step
        step += every


@contextmanager
def quick_folder() -> Iterator[Path]:
    """A folder in memory where the system has one: hundreds of killed writers rename a lot."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file's bytes; folders as None."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
