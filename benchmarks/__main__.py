"""Measure dualrag against its peers on the same work.

python -m benchmarks                                       everything; make bench
python -m benchmarks --quick                               tiny sizes, minutes; make bench-quick
python -m benchmarks --jobs token_beam4 --contestants dualrag-torch,transformers4-torch
python -m benchmarks --peer transformers4=FOLDER           an environment that exists already
python -m benchmarks --before FOLDER --contestants dualrag-torch,before-torch
                                                           another checkout, beside this one
python -m benchmarks --device cuda --contestants
dualrag-torch,dualrag-torch@bf16,transformers5-torch

The results are written to --out. By default that is benchmarks/results/machine.json for full sizes
and all contestants, and from there they go into docs/performance.md, README.md and the chart; for
anything less it is a file in build/benchmarks. Exit status 0 means that all contestants computed
the same.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine, peers, report
from benchmarks.jobs import (
    CONTESTANTS,
    JOBS,
    ON_GPU,
    Contestant,
    contestant,
    contestants_of,
    must_agree,
    selected,
    takes_part,
)
from benchmarks.run import ROOT, Failed, Worker, environment, prepare, run_job

RESULTS = ROOT / "benchmarks" / "results" / "machine.json"
UNPUBLISHED = ROOT / "build" / "benchmarks"


def arguments(given: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--jobs", help=f"some of {', '.join(job.name for job in JOBS)}; others keep their results"
    )
    parser.add_argument(
        "--contestants",
        help=f"some of {', '.join(one.name for one in CONTESTANTS)}; NAME@dtype, too",
    )
    parser.add_argument("--repeats", type=int, help="turns, instead of each job's own number")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: do they run and agree?")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=FOLDER", help="an existing environment"
    )
    parser.add_argument(
        "--before",
        type=Path,
        metavar="FOLDER",
        help="checkout of another commit: before-torch, before-tf",
    )
    parser.add_argument("--out", type=Path, help="results file, .json")
    parser.add_argument(
        "--publish", action="store_true", help="only write pages and chart anew from the results"
    )
    return parser.parse_args(given)


def environments(
    wanted: list[Contestant], given: list[str]
) -> tuple[dict[str | None, str], dict[str, str]]:
    """Interpreters by environment, and why some are missing."""
    pointed = {name: Path(folder) for name, _, folder in (text.partition("=") for text in given)}
    pythons: dict[str | None, str] = {None: sys.executable}
    absent: dict[str, str] = {}
    for name in dict.fromkeys(one.environment for one in wanted if one.environment):
        python, reason = peers.python_of(name, pointed)
        if python is None:
            absent[name] = reason
            say(f"absent: {name}: {reason}")
        else:
            pythons[name] = str(python)
    return pythons, absent


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def main(given: list[str] | None = None) -> int:
    """Run what was asked for; 0 if everybody agrees."""
    asked = arguments(given)
    whole = not (asked.quick or asked.contestants or asked.before or asked.device != "cpu")
    out = asked.out or (
        RESULTS if whole or asked.publish else UNPUBLISHED / ("quick" if asked.quick else "some")
    ).with_suffix(".json")
    kept = json.loads(out.read_text()) if out.is_file() else {"jobs": {}}
    if asked.publish:
        report.publish(kept, ROOT)
        return 0
    every = ON_GPU if asked.device == "cuda" else [one.name for one in CONTESTANTS]
    if asked.before:
        every = ("dualrag-torch", "before-torch", "dualrag-tf", "before-tf")
    earlier = contestants_of(asked.before.resolve()) if asked.before else ()
    names = asked.contestants.split(",") if asked.contestants else every
    wanted = [contestant(name, earlier) for name in names]
    jobs = selected(asked.jobs)
    wanted = [one for one in wanted if any(takes_part(one, job) for job in jobs)]
    pythons, absent = environments(wanted, asked.peer)
    present = [one for one in wanted if one.environment in pythons]
    env = environment(asked.device)
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "device": asked.device,
        "quick": asked.quick,
        "machine": {
            **machine.describe(),
            "gflops": machine.measured(env),
            "threads": env["OMP_NUM_THREADS"],
        },
        "absent": absent,
        "jobs": kept["jobs"] if asked.jobs else {},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    failed = False
    pool: dict[str, Worker] | None = {} if asked.quick else None
    for job in jobs:
        able = [one for one in present if takes_part(one, job)]
        if not able:
            continue
        say(f"{job.name}: {', '.join(one.name for one in able)}")
        try:
            folder = prepare(job.workload(asked.quick), env)
            found = run_job(
                job,
                able,
                pythons,
                folder,
                quick=asked.quick,
                device=asked.device,
                repeats=asked.repeats,
                say=say,
                pool=pool,
            )
        except Failed as error:
            say(f"{job.name} FAILED: {error}")
            failed = True
            continue
        found["gflops"] = max(results["machine"]["gflops"].values())
        entries = found["contestants"]
        failed |= any(not entries[one.name].get("agrees") for one in able if must_agree(one, job))
        failed |= any("error" in entry for entry in entries.values())
        results["jobs"][job.name] = found
        say(report.lines(job.name, found))
        out.write_text(json.dumps(results, indent=1) + "\n")
    for worker in (pool or {}).values():
        worker.close()
    results["jobs"] = {
        job.name: results["jobs"][job.name] for job in JOBS if job.name in results["jobs"]
    }
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(report.markdown(results))
    if out == RESULTS:
        report.publish(results, ROOT)
    say(f"written: {out}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
