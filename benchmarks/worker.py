"""One contestant in a process of its own: JSON lines in, JSON lines out. Runs in the peers'
environments, too.

{"do": "load", "contestant": ..., "job": {...}}   the model and the inputs, and what must be known
before: versions {"do": "check"}                                   one run, with what came out and
the peak memory so far {"do": "run", "times": n}                         n runs, each timed
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import warnings
from typing import Any

MODULES = {
    "torch": "benchmarks.use_torch",
    "tf": "benchmarks.use_tf",
    "ct2": "benchmarks.use_ctranslate2",
}


def peak_bytes() -> int:
    """The most memory that this process held at any time."""
    with open("/proc/self/status") as status:  # noqa: PTH123 (read on Linux only)
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def versions(names: list[str]) -> dict[str, str]:
    """Installed versions of packages."""
    from importlib import metadata

    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class Session:
    """The answers to what is asked."""

    contender: Any = None

    def load(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Load a model and its inputs."""
        contestant, job = asked["contestant"], asked["job"]
        started = time.perf_counter()
        if job["kind"].startswith("retrie"):
            module = importlib.import_module("benchmarks.use_retriever")
        else:
            module = importlib.import_module(MODULES[contestant["framework"]])
        self.contender = module.load(contestant, job)
        return {"seconds": time.perf_counter() - started, "versions": versions(asked["packages"])}

    def check(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Run once and tell what came out; the first run warms up, too."""
        found = self.contender.check()
        return {"found": found, "peak_bytes": peak_bytes(), **self._device_peak()}

    def run(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Time runs; what came out is dropped."""
        seconds, beside = [], []
        for _ in range(asked["times"]):
            started = time.perf_counter()
            self.contender.run()
            seconds.append(time.perf_counter() - started)
            # the part of the work that is another library's, by itself
            if hasattr(self.contender, "beside"):
                beside.append(self.contender.beside())
        return {"seconds": seconds, "beside": beside}

    @staticmethod
    def _device_peak() -> dict[str, Any]:
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return {}
        return {"device_peak_bytes": torch.cuda.max_memory_allocated()}


def main() -> None:
    """Answer line by line until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    warnings.simplefilter("ignore")
    session = Session()
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = getattr(session, asked["do"])(asked)
        except Exception as error:
            import traceback

            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:600]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
