"""What a comparison found, as text, JSON and Markdown, and as an exit status for CI."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rag_core.hub import atomic_folder
from rag_core.parity.compare import MAX_FLIPPED, Comparison

AGREE, DIFFER, REFUSED = 0, 1, 2
# One cause shows in hundreds of cases; the first ones say which.
_SHOWN = 20
# of these stages the numbers that differ are counted
_EXACT = ("tokens", "doc_ids", "context_ids", "context_mask")

Headers = tuple[Mapping[str, Any], Mapping[str, Any]]


def verdict(result: Comparison) -> str:
    """The result in one sentence."""
    if result.first:
        return f"They differ at {result.differences} stages. The first in each case: see below."
    if not result.agrees:
        return (
            f"Rounding turned {len(result.flipped)} of {result.generations} generations, more than "
            f"{100 * MAX_FLIPPED:g} % of them."
        )
    return (
        f"They agree: every stage of {result.cases} case(s), the tokens of {result.generations} "
        "generation(s)."
    )


def as_dict(result: Comparison, headers: Headers) -> dict[str, Any]:
    """The whole result, JSON types only; infinite differences are null."""
    expected, actual = headers
    weights = _weights(expected)
    if len(weights) != 1:
        weights = [f"{len(weights)} sets"]
    return {
        "agrees": result.agrees,
        "verdict": verdict(result),
        "expected": expected["run"],
        "actual": actual["run"],
        **{name: expected[name] for name in ("format", "version", "dtype", "seed", "about")},
        "weights": weights[0],
        "cases": result.cases,
        "generations": result.generations,
        "generations_turned_by_rounding": list(result.flipped),
        "stages": {kind: _finite(asdict(worst)) for kind, worst in result.stages.items()},
        "differing_stages": result.differences,
        "first_differences": [_finite(asdict(difference)) for difference in result.first],
    }


def _weights(header: Mapping[str, Any]) -> list[str]:
    """Fingerprints of the weights that a trace is of."""
    return sorted({case["weights"] for case in header["cases"].values()})


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    finite = dict(values)
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            finite[name] = None
    return finite


def as_text(result: Comparison, headers: Headers) -> str:
    """The result for a terminal."""
    lines = [*_heading(headers), "", *_table(result, " ", "", ""), "", verdict(result)]
    lines += [f"  {difference}" for difference in result.first[:_SHOWN]]
    if len(result.first) > _SHOWN:
        lines.append(f"  and {len(result.first) - _SHOWN} more cases")
    return "\n".join([*lines, *_flipped(result)])


def as_markdown(result: Comparison, headers: Headers) -> str:
    """The result as a page."""
    lines = ["# Parity report", "", f"**{verdict(result)}**", ""]
    lines += [f"- {line}" for line in _heading(headers)]
    lines += ["", *_table(result, " | ", "| ", " |"), ""]
    lines += [f"- {difference}" for difference in result.first[:_SHOWN]]
    return "\n".join([*lines, *_flipped(result)]).rstrip() + "\n"


def _heading(headers: Headers) -> list[str]:
    lines = []
    for name, header in zip(("expected", "actual"), headers, strict=True):
        run = header["run"]
        software = f"numpy {run['numpy']}, Python {run['python']}, {run['machine']}"
        lines.append(f"{name}: {run['backend']} {run['framework']}, {software}")
    first = headers[0]
    weights = _weights(first)
    known = f"{len(weights)} sets of weights"
    if len(weights) == 1:
        known = f"weights sha256 {weights[0][:16]}"
    lines.append(f"dualrag {first['version']}, {first['dtype']}, seed {first['seed']}, {known}")
    return [*lines, *(f"{key}: {value}" for key, value in first["about"].items())]


def _table(result: Comparison, between: str, before: str, after: str) -> list[str]:
    rows = [["stage", "arrays", "largest relative", "absolute", "tolerance", "where"]]
    for kind, worst in result.stages.items():
        figures = (f"{worst.relative:.2g}", f"{worst.absolute:.2g}", f"{worst.tolerance:.2g}")
        if kind in _EXACT:
            figures = (f"{worst.absolute:.0f} differ", "", "equal")
        place = ""
        if worst.relative:
            place = f"{worst.case}: {worst.stage}"
        rows.append([kind, str(worst.arrays), *figures, place])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if before:
        rows.insert(1, ["-" * width for width in widths])
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(f"{before}{between.join(cells)}{after}".rstrip())
    return lines


def _flipped(result: Comparison) -> list[str]:
    if not result.flipped:
        return []
    heading = f"{len(result.flipped)} generation(s) turned by rounding:"
    return [heading, *(f"  {generation}" for generation in result.flipped[:_SHOWN])]


def report_base(out: str | Path) -> Path:
    """The path of a report without the ending of either of its files."""
    out = Path(out)
    if out.suffix in (".json", ".md"):
        return out.with_suffix("")
    return out


def write_reports(result: Comparison, headers: Headers, out: str | Path) -> tuple[Path, Path]:
    """Writes `out`.json and `out`.md (an ending of either kind is dropped first) and returns
    their paths.
    """
    base = report_base(out)
    as_json = base.with_name(base.name + ".json")
    as_page = base.with_name(base.name + ".md")
    with atomic_folder(base.parent) as draft:
        values = json.dumps(as_dict(result, headers), indent=2)
        (draft / as_json.name).write_text(values + "\n", "utf-8")
        (draft / as_page.name).write_text(as_markdown(result, headers), "utf-8")
    return as_json, as_page
