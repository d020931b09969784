"""What only a program of its own may do to its process: threads, stderr, garbage collection."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from rag_core import backends

# OpenMP and BLAS; TensorFlow has two pools of its own.
_THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
# Load a processor, over the last minute, from which on a machine is busy.
_BUSY = 0.5
# What was freed meanwhile is all that a server grows by.
_SECONDS_OF_FREED_MEMORY = 1.0
logger = logging.getLogger(__name__)


def load_backend_for_command(name: str | None = None) -> ModuleType:
    """As `load_backend`, for a program of its own: TensorFlow's native code then writes nothing to
    the terminal.

    It reports processors and compilers at import and at its first work, past every setting of its
    log. A library has no business with that; a command keeps stderr to Python. DUALRAG_DEBUG=1
    leaves all as it is.
    """
    share_processors()
    chosen = name or next(iter(backends.available_backends()), None)
    if chosen == "tf" and not os.environ.get("DUALRAG_DEBUG"):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        _keep_stderr_to_python()
    return backends.load_backend(name)


def share_processors() -> None:
    """Has the numeric libraries, which read the environment when they load, get along with whatever
    else runs here.

    OpenMP's threads (PyTorch's and faiss') wait for each other by spinning. On an idle machine that
    is fastest; beside other work it takes the very processor that is waited for, so they sleep
    where the machine is busy at the start. Frameworks start a thread a processor, however few of
    these a container may use. What the environment says already stands.
    """
    if not hasattr(os, "sched_getaffinity"):
        return  # no Linux: neither a load nor a quota of a container
    processors = len(os.sched_getaffinity(0))
    if os.getloadavg()[0] >= _BUSY * processors and "GOMP_SPINCOUNT" not in os.environ:
        _set_default("OMP_WAIT_POLICY", "PASSIVE")
    from loky import cpu_count

    allowed = cpu_count()
    if allowed < processors:
        for name in _THREADS:
            _set_default(name, str(allowed))


def _set_default(name: str, value: str) -> None:
    if name not in os.environ:
        os.environ[name] = value
        logger.info("%s=%s is set, see docs/performance.md", name, value)


@contextmanager
def uncollected() -> Iterator[None]:
    """Within it nothing is searched for garbage, and what it has made is not searched later: for a
    command's start.

    Importing a framework makes a million objects that stay. Python would search them time and again
    meanwhile, which takes a fifth of TensorFlow's import.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def give_memory_back() -> None:
    """Has a process that runs for long return what it has freed to the system, every few seconds.

    glibc keeps freed blocks for later. Tensors of a new size in each batch never fit into them
    exactly, and a server grew by 80 MB a minute.
    """
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is None:
        return

    def go_on() -> None:
        while True:
            time.sleep(_SECONDS_OF_FREED_MEMORY)
            trim(0)

    threading.Thread(target=go_on, name="memory", daemon=True).start()


def _keep_stderr_to_python() -> None:
    try:
        if sys.stderr.fileno() != 2:
            return  # done before, or somebody else's stream
        python_stderr = os.fdopen(
            os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace"
        )
    except (AttributeError, OSError):
        return  # no stderr, or one without a file
    sys.stderr.flush()
    sys.stderr = python_stderr
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
