"""How long a command takes to start: `python -m benchmarks.startup`.

Medians of runs that take turns: bare import of a framework, `dualrag ask` of the demo's question
with it (model and knowledge base in the cache), `dualrag --help`. What counts is the time of an
answer beyond the import. The first turn of each is not counted: it would measure the disk.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.scaling_report import inserted
from rag_core.cli.demo import DEMO_QUESTIONS

RESULTS, PAGE = Path("benchmarks") / "results", Path("docs") / "performance.md"
FRAMEWORKS = {"torch": "torch", "tf": "tensorflow"}
GOALS = {"ask": 1.5, "help": 0.4}  # seconds: beyond the import, and in all
COMMAND = [sys.executable, "-c", "from rag_core.cli.commands import main; main()"]


def commands() -> dict[str, list[str]]:
    """Name -> command line, for the frameworks that are installed."""
    found: dict[str, list[str]] = {"help": [*COMMAND, "--help"]}
    for backend, framework in FRAMEWORKS.items():
        if find_spec(framework):
            found[f"import {framework}"] = [sys.executable, "-c", f"import {framework}"]
            found[f"ask {backend}"] = [
                *COMMAND,
                "ask",
                DEMO_QUESTIONS[0],
                "--backend",
                backend,
                "--json",
            ]
    return found


def seconds(command: list[str]) -> float:
    """Wall time of a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    env = os.environ | {"PYTHONPATH": "."}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installation has its bytecode
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    taken = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[3:]) or command[-1]} failed:\n{done.stderr[-2000:]}")
    return taken


def measure(runs: int) -> dict[str, Any]:
    """Name -> median, and all runs."""
    found: dict[str, list[float]] = {name: [] for name in commands()}
    for turn in range(runs + 1):
        for name, command in commands().items():
            taken = seconds(command)
            if turn:
                found[name].append(taken)
    return {name: {"median": statistics.median(each), "runs": each} for name, each in found.items()}


def rows(results: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """(what, seconds, seconds that count, goal) of each command."""
    medians = {name: each["median"] for name, each in results.items()}
    found = [("`dualrag --help`", medians["help"], medians["help"], GOALS["help"])]
    for backend, framework in FRAMEWORKS.items():
        if f"ask {backend}" in medians:
            whole = medians[f"ask {backend}"]
            beyond = whole - medians[f"import {framework}"]
            found.append(
                (f"`dualrag ask`, beyond `import {framework}`", whole, beyond, GOALS["ask"])
            )
    return found


def table(results: dict[str, Any]) -> str:
    """The rows in Markdown."""
    lines = ["| command | in all | counted | goal |", "|---|---|---|---|"]
    lines += [
        f"| {what} | {whole:.2f} s | {own:.2f} s | {goal} s |"
        for what, whole, own, goal in rows(results)
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints, writes startup.json and startup.md, and from full runs the table of
    docs/performance.md.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    results = measure(given.runs)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "startup.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (given.out / "startup.md").write_text(table(results), encoding="utf-8")
    print(table(results), end="")
    if given.out == RESULTS:
        body = f"{table(results)}\nMedians of {given.runs} runs, {datetime.date.today()}.\n"
        PAGE.write_text(
            inserted(PAGE.read_text(encoding="utf-8"), "startup", body), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
