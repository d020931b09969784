"""Make the figures of docs/results.md: `python -m experiments.results`, or `make results`.

Trains and measures every system of experiments/results/plan.py with `dualrag train` and `dualrag
eval`, some commands side by side, each in a folder of its own. Stopped or killed, the same command
goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.results import report
from experiments.results.collect import collected
from experiments.results.jobs import ROOT, Starter, minutes, run
from experiments.results.plan import FULL, QUICK, SYSTEMS, Asked, Plan

WORK = Path("build") / "results"
# The demo's model before it saw a real question; the shipped one has learned from the dev files.
START = Path(__file__).parent / "start"


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.results", description=__doc__)
    parser.add_argument("--backend", choices=("torch", "tf"), default="torch")
    parser.add_argument(
        "--quick", action="store_true", help="few questions and steps: does it run?"
    )
    parser.add_argument(
        "--model",
        help="RAG folder to start from; by default the parts in experiments/results/start",
    )
    parser.add_argument("--kb", type=Path, help="its knowledge base; by default the demo's")
    parser.add_argument("--wheel", type=Path, help="pyserini's; by default pip fetches it")
    parser.add_argument(
        "--systems", help=f"some of {','.join(system.name for system in SYSTEMS)}; by default all"
    )
    parser.add_argument("--at-once", type=int, default=cores(), help="commands side by side")
    parser.add_argument("--dry", action="store_true", help="only say what would be run")
    parser.add_argument(
        "--publish", action="store_true", help="only write the page anew from kept figures"
    )
    return parser.parse_args(given)


def asked_for(options: argparse.Namespace) -> Asked:
    """What is to be made; model and knowledge base are built if they are not there."""
    from rag_core.backends import load_backend
    from rag_core.demo import assemble_model, demo_knowledge_base, encoder_folder, home

    model, kb = options.model, options.kb
    if model is None:
        model = str(assemble_model(encoder_folder(say), home() / "results-start", START))
    if kb is None:
        engine = load_backend(options.backend)
        kb = demo_knowledge_base(lambda folder: engine.load_encoder(str(folder)).embed, say).path
    kind = "full"
    sizes = FULL
    if options.quick:
        kind, sizes = "quick", QUICK
    systems = tuple(system.name for system in SYSTEMS)
    if options.systems:
        systems = tuple(options.systems.split(","))
        unknown = sorted(set(systems) - {system.name for system in SYSTEMS})
        if unknown:
            raise ValueError(f"--systems must be some of those that --help lists, got {unknown}")
    return Asked(WORK / kind, options.backend, model, kb, options.wheel, sizes, systems)


def main(given: Sequence[str] | None = None) -> int:
    """Run what was asked for; 0 if all went well."""
    options = arguments(given)
    if options.publish:
        report.publish(ROOT)
        return 0
    asked = asked_for(options)
    plan = Plan(asked)
    jobs = plan.jobs()
    for job in jobs if options.dry else ():
        print(f"{job.estimate / 60:5.1f} min  {job.command}")
    say(
        f"{len(jobs)} commands, {minutes(jobs, options.at_once):.0f} minutes by the estimate with "
        f"{options.at_once} at once on idle cores of their own; everything is in {asked.work}."
    )
    if options.dry:
        return 0
    # As Ctrl-C: what runs is ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    threads = max(1, cores() // options.at_once)
    failed = run(jobs, Starter(asked.backend, threads), options.at_once, say)
    figures = collected(plan)
    say(report.keep(figures, ROOT, asked, quick=options.quick))
    if failed:
        say(f"not made: {', '.join(failed)}. The same command tries them again.")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
