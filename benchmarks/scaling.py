"""How time grows: `python -m benchmarks.scaling`, a few minutes on two cores.

Time against documents, beams, batch, context length, new tokens, passages embedded at a time and
index size, each point the median of interleaved runs. Each curve's growth is stated beside the
growth of its operation count. Written: benchmarks/results/scaling.json, docs/charts/scaling.svg,
and the table to docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from statistics import median
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

from benchmarks.growth import growth, growth_beyond
from benchmarks.scaling_curves import CURVES, MODEL, Curve
from benchmarks.scaling_report import flagged, stated
from benchmarks.worker import versions
from benchmarks.workload import CACHE, prepared

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "scaling.json"
_LONG = 0.4  # seconds beyond which three runs do; shorter points get five


class Worker:
    """A contestant's process, which waits while others compute.

    Args:
        name: of the contestant.
        python: its interpreter.
    """

    def __init__(self, name: str, python: str) -> None:
        env = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONPATH": str(ROOT),
        }
        command = [python, "-m", "benchmarks.scaling_worker", name, str(prepared(MODEL))]
        self.process = Popen(
            command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True, env=env, cwd=ROOT
        )

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Do a job."""
        into: Any = self.process.stdin
        out: Any = self.process.stdout
        try:
            into.write(json.dumps(job) + "\n")
            into.flush()
            line = out.readline()
        except OSError as error:
            return {"error": str(error)}
        return (
            json.loads(line) if line else {"error": f"the process ended with {self.process.wait()}"}
        )

    def close(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(timeout=30)


def measured(curve: Curve, workers: dict[str, Any], rounds: int = 5) -> dict[str, Any]:
    """Runs a curve's points, contestants one after another, after a warm-up of each.

    Returns:
        For the results file: values, and for each contestant seconds, peak memory and growth.
    """
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    broken: dict[str, str] = {}
    for turn in range(rounds + 1):
        for n in curve.values:
            for name in (
                name for name in curve.contestants if name in workers and name not in broken
            ):
                past = runs.setdefault((name, n), [])
                if n > curve.slowest.get(name, n) or (turn > 3 and past[-1]["seconds"] > _LONG):
                    continue
                reply = workers[name].run(curve.job(n))
                if "error" in reply:
                    broken[name] = reply["error"]
                    print(f"{curve.name}, {name}: {reply['error']}", file=sys.stderr)
                    continue
                past.append(reply)
    found: dict[str, Any] = {"values": list(curve.values), "contestants": {}}
    for name in curve.contestants:
        points = [runs.get((name, n), []) for n in curve.values]
        # what is larger comes later: only in the first turn has an allocator kept nothing of it
        peaks = [point[0].get("peak_mb") for point in points if len(point) > 1]
        points = [point[1:] for point in points if len(point) > 1]  # without the warm-up
        if name in broken or len(points) < 2:
            continue
        seconds = [median(run["seconds"] for run in point) for point in points]
        values = curve.values[: len(points)]
        counted = [curve.operations(curve.job(n)) for n in values]
        entry = {
            "seconds": [float(f"{s:.4g}") for s in seconds],
            "growth": round(growth(values, seconds), 2),
        }
        beyond = growth_beyond(values, seconds)
        if beyond is not None:
            entry |= {
                "beyond": round(beyond, 2),
                "expected_beyond": round(growth_beyond(values, counted) or 0.0, 2),
            }
        expected = growth(values, counted)
        entry |= {"expected": round(expected, 2), "said": [point[-1]["tokens"] for point in points]}
        if None not in peaks:
            entry["peak_mb"] = peaks
        found["contestants"][name] = entry
    return found


def faster_than_expected(results: dict[str, Any]) -> list[str]:
    """The curves that grow by a higher power than their operation count."""
    return [
        f"{curve}, {name}: {stated(entry)} where {stated(entry, 'expected')} is expected"
        for curve, found in results["curves"].items()
        for name, entry in found["contestants"].items()
        if flagged(entry)
    ]


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    names = ["torch", "tensorflow", "faiss-cpu", "faiss-gpu", "faiss", "numpy"]
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")),
        platform.processor(),
    )
    return {"processor": model, "cores": os.cpu_count(), "versions": versions(names)}


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.is_file() else []


def _store(results: dict[str, Any]) -> None:
    results["curves"] = {
        c.name: results["curves"][c.name] for c in CURVES if c.name in results["curves"]
    }
    results["machine"] = machine()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Measure the curves asked for; curves measured earlier stay in the results."""
    from benchmarks import scaling_report
    from benchmarks.scaling_index import Searches

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--curves", nargs="*", choices=[c.name for c in CURVES], default=[c.name for c in CURVES]
    )
    parser.add_argument("--contestants", nargs="*", help="by default all that are there")
    parser.add_argument(
        "--reference", help="a Python with transformers 4; without it that contestant stays away"
    )
    parser.add_argument(
        "--report", action="store_true", help="measure nothing, write chart and table anew"
    )
    options = parser.parse_args(arguments)
    results: dict[str, Any] = (
        json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"curves": {}}
    )
    if not options.report:
        chosen = [curve for curve in CURVES if curve.name in options.curves]
        wanted = {name for curve in chosen for name in curve.contestants}
        wanted &= set(options.contestants or wanted)
        pythons = {
            "dualrag-torch": sys.executable,
            "dualrag-tf": sys.executable,
            "transformers4-torch": options.reference,
        }
        workers: dict[str, Any] = {
            name: Worker(name, p) for name, p in pythons.items() if p and name in wanted
        }
        searches = Searches(CACHE / "indexes")
        try:
            for curve in chosen:
                found = measured(curve, workers | {"faiss": searches})
                kept = results["curves"].get(curve.name, {"contestants": {}})
                same = kept.get("values") == found["values"]
                found["contestants"] = (kept["contestants"] if same else {}) | found["contestants"]
                results["curves"][curve.name] = found
                print(scaling_report.lines(curve, found), flush=True)
                _store(results)
        finally:
            for worker in workers.values():
                worker.close()
    scaling_report.write(results, ROOT)
    print(
        "\n".join(faster_than_expected(results))
        or "No curve grows faster than its operation count."
    )


if __name__ == "__main__":
    main()
