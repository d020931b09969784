"""What a comparison found, as text, JSON and Markdown, and as an exit status for CI."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rag_core.hub import atomic_folder
from rag_core.parity.compare import MOST_TURNED, Comparison

AGREE, DIFFER, REFUSED = 0, 1, 2
_SHOWN = 20


def verdict(found: Comparison) -> str:
    """The result in one sentence."""
    if found.first:
        return f"They differ at {found.differences} stages. The first in each case: see below."
    if not found.agrees:
        return (
            f"Rounding turned {len(found.turned)} of {found.generations} generations, more than "
            f"{100 * MOST_TURNED:g} % of them."
        )
    return (
        f"They agree: every stage of {found.cases} case(s), the tokens of {found.generations} "
        "generation(s)."
    )


def as_dict(
    found: Comparison, headers: tuple[Mapping[str, Any], Mapping[str, Any]]
) -> dict[str, Any]:
    """The whole result, JSON types only; infinite differences are null."""
    expected, actual = headers
    weights = {case["weights"] for case in expected["cases"].values()}
    return {
        "agrees": found.agrees,
        "verdict": verdict(found),
        "expected": expected["run"],
        "actual": actual["run"],
        **{name: expected[name] for name in ("format", "version", "dtype", "seed", "about")},
        "weights": sorted(weights)[0] if len(weights) == 1 else f"{len(weights)} sets",
        "cases": found.cases,
        "generations": found.generations,
        "generations_turned_by_rounding": list(found.turned),
        "stages": {kind: _finite(asdict(worst)) for kind, worst in found.stages.items()},
        "differing_stages": found.differences,
        "first_differences": [_finite(asdict(each)) for each in found.first],
    }


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(v, float) and not math.isfinite(v) else v
        for key, v in values.items()
    }


def as_text(found: Comparison, headers: tuple[Mapping[str, Any], Mapping[str, Any]]) -> str:
    """The result for a terminal."""
    lines = [*_heading(headers), "", *_table(found, " ", "", ""), "", verdict(found)]
    lines += [f"  {each}" for each in found.first[:_SHOWN]]
    lines += [f"  and {len(found.first) - _SHOWN} more cases"] if len(found.first) > _SHOWN else []
    return "\n".join([*lines, *_turned(found)])


def as_markdown(found: Comparison, headers: tuple[Mapping[str, Any], Mapping[str, Any]]) -> str:
    """The result as a page."""
    lines = ["# Parity report", "", f"**{verdict(found)}**", ""]
    lines += [f"- {line}" for line in _heading(headers)]
    lines += ["", *_table(found, " | ", "| ", " |"), ""]
    lines += [f"- {each}" for each in found.first[:_SHOWN]]
    return "\n".join([*lines, *_turned(found)]).rstrip() + "\n"


def _heading(headers: tuple[Mapping[str, Any], Mapping[str, Any]]) -> list[str]:
    lines = []
    for name, header in zip(("expected", "actual"), headers, strict=True):
        run = header["run"]
        with_what = f"numpy {run['numpy']}, Python {run['python']}, {run['machine']}"
        lines.append(f"{name}: {run['backend']} {run['framework']}, {with_what}")
    first = headers[0]
    weights = {case["weights"] for case in first["cases"].values()}
    known = (
        f"weights sha256 {sorted(weights)[0][:16]}"
        if len(weights) == 1
        else f"{len(weights)} sets of weights"
    )
    lines.append(f"dualrag {first['version']}, {first['dtype']}, seed {first['seed']}, {known}")
    return [*lines, *(f"{key}: {value}" for key, value in first["about"].items())]


def _table(found: Comparison, between: str, before: str, after: str) -> list[str]:
    rows = [("stage", "arrays", "largest relative", "absolute", "tolerance", "where")]
    for kind, worst in found.stages.items():
        exact = kind in ("tokens", "doc_ids", "context_ids", "context_mask")
        relative = f"{worst.absolute:.0f} differ" if exact else f"{worst.relative:.2g}"
        bounds = ("", "equal") if exact else (f"{worst.absolute:.2g}", f"{worst.tolerance:.2g}")
        place = f"{worst.case}: {worst.stage}" if worst.relative else ""
        rows.append((kind, str(worst.arrays), relative, *bounds, place))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        before
        + between.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        + after
        for row in rows
    ]
    if before:
        lines.insert(1, before + between.join("-" * width for width in widths) + after)
    return [line.rstrip() for line in lines]


def _turned(found: Comparison) -> list[str]:
    if not found.turned:
        return []
    return [
        f"{len(found.turned)} generation(s) turned by rounding:",
        *(f"  {each}" for each in found.turned[:_SHOWN]),
    ]


def write_reports(
    found: Comparison, headers: tuple[Mapping[str, Any], Mapping[str, Any]], out: str | Path
) -> tuple[Path, Path]:
    """Writes `out`.json and `out`.md (an ending of either kind is dropped first) and returns
    their paths.
    """
    out = Path(out)
    base = out.with_suffix("") if out.suffix in (".json", ".md") else out
    paths = base.with_name(base.name + ".json"), base.with_name(base.name + ".md")
    with atomic_folder(base.parent) as draft:
        (draft / paths[0].name).write_text(
            json.dumps(as_dict(found, headers), indent=2) + "\n", "utf-8"
        )
        (draft / paths[1].name).write_text(as_markdown(found, headers), "utf-8")
    return paths
