"""The machine: what it is, and how fast it multiplies float32 matrices.

python -m benchmarks.machine      # {"gflops": ...} as JSON
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# rows x inner x columns: a square one, and what an encoder multiplies
SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (2500, 768, 3072))


def describe() -> dict[str, Any]:
    """Processor, cores, memory, system."""
    lines = (
        Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    )
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def gflops(repeats: int = 7) -> dict[str, float]:
    """The best median rate of a matrix product, by library; measured in this process."""
    import numpy as np
    import torch

    rates: dict[str, float] = {}
    for m, k, n in SHAPES:
        a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
        ta, tb = torch.from_numpy(a), torch.from_numpy(b)
        products = {"torch": lambda ta=ta, tb=tb: torch.mm(ta, tb), "numpy": lambda a=a, b=b: a @ b}
        for name, product in products.items():
            product()
            taken = []
            for _ in range(repeats):
                started = time.perf_counter()
                product()
                taken.append(time.perf_counter() - started)
            rate = 2.0 * m * k * n / sorted(taken)[repeats // 2] / 1e9
            rates[name] = max(rates.get(name, 0.0), rate)
    return {name: round(rate, 1) for name, rate in rates.items()}


def measured(env: dict[str, str]) -> dict[str, float]:
    """`gflops` in a process of its own, so that nothing of it stays."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.machine"],
        capture_output=True,
        text=True,
        env=env,
        check=True,
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    print(json.dumps(gflops()))
