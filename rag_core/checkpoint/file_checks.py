"""Files that a C library could crash on are looked at in a process of their own first, where a
crash is an error.

HDF5 and Arrow trust numbers inside of files, and a hostile or damaged one can end the process that
opens it. Here a short-lived child (`python -I`, no shell, no framework, a limit on its memory and
time) opens them, once for each file, and reports what it found.

A file that this process wrote itself, or whose sha256 is that of a manifest, is not looked at: see
`vouch`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rag_core.checks import warn
from rag_core.hub import AGAIN, DamagedFileError, reading

# Arrow files of up to this much in all are read in full; of others the structure is
FULL_BYTES = 256 << 20
# What the child may have beside the files: enough for its libraries, far from a machine's all.
MEMORY = 4 << 30
# For a file, and for each 16 MB of it one more: slow disks end in time, a loop does not.
SECONDS = 120

_READY = "ready"
_ARROW_FILE = b"ARROW1"  # how files that are no streams begin
_AT_ONCE = 1000  # command lines have an end

_vouched: set[tuple[Any, ...]] = set()

_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from rag_core.checkpoint.file_checks import serve
serve(sys.argv[2:])
"""


def vouch(paths: Iterable[str | Path]) -> None:
    """Notes that files are sound as they are now.

    Just written by this process, or compared with a manifest.
    """
    _vouched.update(_state(path) for path in paths)


def check_arrow(paths: Iterable[str | Path], *, full: bool | None = None) -> None:
    """Has Arrow files opened and validated in a child, unless that was done before.

    Args:
        paths: the files.
        full: every offset and text is read, whoever vouches for the files; None does so up to 256
            MB in all. False: the structure alone.

    Raises:
        DamagedFileError: one is damaged, or opening it crashes; it is named.
        OSError: one can't be read.
    """
    waiting = [Path(path) for path in paths]
    if not full:
        waiting = [path for path in waiting if _state(path) not in _vouched]
    if full is None:
        full = sum(path.stat().st_size for path in waiting) <= FULL_BYTES
    kind = "arrow"
    if full:
        kind = "arrow-full"
    for outcome in outcomes(kind, waiting):
        if isinstance(outcome, Exception):
            raise outcome
    vouch(waiting)


def open_arrow(path: str | Path) -> Any:
    """The `pyarrow.Table` of a memory-mapped Arrow stream, the format of `datasets`, or file."""
    import pyarrow as pa

    source = pa.memory_map(str(path))
    opened = pa.ipc.open_stream
    if source.read(len(_ARROW_FILE)) == _ARROW_FILE:
        opened = pa.ipc.open_file
    source.seek(0)
    return opened(source).read_all()


def h5_structure(path: str | Path) -> dict[str, tuple[int, tuple[int, ...], str]]:
    """Name -> (offset, shape, dtype) of the arrays of an HDF5 file, as a child finds them.

    Raises:
        DamagedFileError: the file is damaged or refused, or opening it crashes.
    """
    [outcome] = outcomes("h5", [path])
    if isinstance(outcome, Exception):
        raise outcome
    return {name: (offset, tuple(shape), dtype) for name, (offset, shape, dtype) in outcome.items()}


def outcomes(kind: str, paths: Iterable[str | Path]) -> list[Any]:
    """What children say of files, one child for all of them as long as none crashes.

    Args:
        kind: a name of `_READERS`.
        paths: the files.

    Returns:
        For each file what its reader returns, or a `DamagedFileError`.
    """
    names = [str(path) for path in paths]
    results: list[Any] = []
    while len(results) < len(names):
        batch = names[len(results) : len(results) + _AT_ONCE]
        answer = None
        if _can_start():
            answer = _ask(kind, batch)
        if answer is None:
            return results + [_read(kind, name) for name in names[len(results) :]]
        lines, end = answer
        for fault, value in map(json.loads, lines):
            if fault is not None:
                value = DamagedFileError(fault)
            results.append(value)
        if len(lines) < len(batch):
            fault = (
                f"{batch[len(lines)]} can't be read: the library that reads such files {end}. "
                f"{AGAIN}"
            )
            results.append(DamagedFileError(fault))
    return results


def serve(arguments: list[str]) -> None:
    """What the child does: one line of JSON for each file."""
    kind, *paths = arguments
    print(_READY, flush=True)
    _limit(sum(Path(path).stat().st_size for path in paths))
    for path in paths:
        value = _read(kind, path)
        fault = None
        if isinstance(value, Exception):
            fault, value = str(value), None
        print(json.dumps([fault, value]), flush=True)


def _read(kind: str, path: str) -> Any:
    try:
        with reading(path):
            return _READERS[kind](path)
    except Exception as error:
        return error


def _ask(kind: str, names: list[str]) -> tuple[list[str], str] | None:
    """The lines of one child, and how it ended where they are too few.

    None, with a warning, where none starts.
    """
    import rag_core

    # Without what a folder that someone happens to stand in could hold.
    folders = [folder for folder in sys.path if folder]
    folders.insert(0, str(Path(rag_core.__file__).resolve().parents[1]))
    command = [sys.executable, "-I", "-c", _CHILD, json.dumps(folders), kind, *names]
    seconds = sum(SECONDS + Path(name).stat().st_size / (16 << 20) for name in names)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            close_fds=False,
            check=False,
        )
        output = done.stdout
        end = f"crashed at it (exit status {done.returncode})"
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        end = f"did not come to an end within {seconds:.0f} s"
    lines = output.decode("utf-8", "replace").replace("\r\n", "\n").splitlines(keepends=True)
    if _READY + "\n" not in lines:
        warn(
            f"no process could be started to look at {names[0]} first ({end}): it is read here, "
            "where a crash of a library would end this process."
        )
        return None
    # the last line of a child that crashed may be half of one
    return [line for line in lines if line.startswith("[") and line.endswith("\n")], end


def _can_start() -> bool:
    """Whether this interpreter can be started again.

    An application frozen into one file can not.
    """
    return bool(sys.executable) and not getattr(sys, "frozen", False)


def _limit(size: int) -> None:
    """Bounds this process's memory and keeps a crash from leaving a file, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, limit in ((resource.RLIMIT_AS, MEMORY + 2 * size), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(kind, (limit, hard))


def _state(path: str | Path) -> tuple[Any, ...]:
    stat = Path(path).stat()
    # renamed, it is the same file
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _arrow(path: str, full: bool = False) -> int:
    table = open_arrow(path)
    table.validate(full=full)
    return int(table.num_rows)


def _arrow_full(path: str) -> int:
    return _arrow(path, full=True)


def _h5(path: str) -> Mapping[str, Any]:
    from rag_core.checkpoint.h5_structure import structure

    return structure(path)


_READERS: dict[str, Callable[[str], Any]] = {"arrow": _arrow, "arrow-full": _arrow_full, "h5": _h5}
