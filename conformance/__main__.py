"""Run the cases on a backend, and hold two recordings against each other (docs/conformance.md).

python -m conformance run --backend torch --out a.npz        # in a process of its own
python -m conformance run --backend tf --out b.npz           # perhaps on another machine
python -m conformance compare a.npz b.npz                    # numpy only
python -m conformance tolerances a.npz b.npz                 # float32, --cases seeds: writes the
table
"""

import argparse
import json
import os
import sys
from pathlib import Path

from rag_core.backends import BACKENDS
from rag_core.parity.compare import TOLERANCES, compare_files
from rag_core.parity.report import AGREE, DIFFER, REFUSED, as_text, write_reports
from rag_core.parity.trace_files import TraceFile

# Below what was measured times this lies the bound.
FACTOR = 4.0


def run(options: argparse.Namespace) -> int:
    """Record the cases."""
    # TensorFlow's optimizer writes a line for each of hundreds of graphs in float64
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from conformance.parity_cases import select
    from conformance.parity_run import record

    record(
        options.backend,
        select(options.cases),
        options.out,
        options.dtype,
        lambda line: print(line, flush=True),
    )
    return AGREE


def compare(options: argparse.Namespace) -> int:
    """Compare two recordings; 0 they agree, 1 they differ, 2 they are not of the same thing."""
    files = TraceFile(options.expected), TraceFile(options.actual)
    headers = files[0].header, files[1].header
    result = compare_files(*files)
    print(as_text(result, headers))
    if options.report:
        print("written:", *write_reports(result, headers, options.report))
    if result.agrees:
        return AGREE
    return DIFFER


def tolerances(options: argparse.Namespace) -> int:
    """Measure how far two float32 recordings are apart, stage by stage, and write the table of
    tolerances.
    """
    files = TraceFile(options.expected), TraceFile(options.actual)
    result = compare_files(*files, {"": float("inf")})
    table = json.loads(TOLERANCES.read_text("utf-8"))
    stages = {}
    for kind, worst in result.stages.items():
        if worst.tolerance:  # numbers that must be equal have none
            stages[kind] = {
                "measured": worst.relative,
                "bound": FACTOR * worst.relative,
                "arrays": worst.arrays,
                "at": f"{worst.case}: {worst.stage}",
            }
    runs = [f"{file.header['run']['backend']} {file.header['run']['framework']}" for file in files]
    table["float32"] = {
        "otherwise": 0.0,
        "basis": (
            f"{runs[0]} and {runs[1]}, {result.cases} cases; bound = {FACTOR:g} x the largest "
            "measured"
        ),
        "stages": stages,
    }
    TOLERANCES.write_text(json.dumps(table, indent=2) + "\n", "utf-8")
    print(as_text(result, (files[0].header, files[1].header)))
    return AGREE


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m conformance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run", help="record the cases on one backend")
    one.add_argument("--backend", choices=tuple(BACKENDS), required=True)
    one.add_argument("--out", type=Path, required=True, help="the .npz to write")
    one.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    one.add_argument(
        "--cases",
        nargs="+",
        default=["quick"],
        metavar="NAME",
        help="quick, more, generations, training, all, seeds, or names",
    )
    one.set_defaults(do=run)
    for action, help_text in (
        (compare, "hold two recordings against each other"),
        (tolerances, "write the table"),
    ):
        two = commands.add_parser(action.__name__, help=help_text)
        two.add_argument("expected", type=Path)
        two.add_argument("actual", type=Path)
        two.add_argument("--report", type=Path, help="write NAME.json and NAME.md, too")
        two.set_defaults(do=action)
    options = parser.parse_args()
    try:
        return options.do(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"conformance: error: {error}", file=sys.stderr)
        return REFUSED


if __name__ == "__main__":
    sys.exit(main())
