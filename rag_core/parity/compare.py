"""Two traces held against each other: the first stage that parts, how far, and where."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rag_core.parity.trace import places
from rag_core.parity.trace_files import TraceFile, refusals

TOLERANCES = Path(__file__).parent / "tolerances.json"
# The share of generations that rounding may turn in float32.
MOST_TURNED = 0.005
# Below this, a number is held to an absolute error: log p of an only document is 0.
_LEAST = 1e-3
# A gradient is held to the largest of its case: that of a key's bias is 0 but for rounding.
_LEAST_GRADIENT = 1e-2


@dataclass(frozen=True)
class Difference:
    """A stage at which two traces part.

    Attributes:
        case, stage: where.
        reason: in words.
        absolute, relative: the largest differences; infinite for other shapes, NaN and misplaced
            infinities.
        tolerance: what `relative` may be.
        place: index of the largest difference, None where there is none.
        values: expected and actual number there.
    """

    case: str
    stage: str
    reason: str
    absolute: float = float("inf")
    relative: float = float("inf")
    tolerance: float = 0.0
    place: tuple[int, ...] | None = None
    values: tuple[float, float] | None = None

    def __str__(self) -> str:
        """One line for a person."""
        at = "" if self.place is None else f" at {list(self.place)}"
        pair = "" if self.values is None else f" ({self.values[0]:.9g} and {self.values[1]:.9g})"
        return f"{self.case}: {self.stage}{at}: {self.reason}{pair}"


@dataclass
class Worst:
    """The largest difference of one kind of stage."""

    arrays: int = 0
    relative: float = 0.0
    absolute: float = 0.0
    tolerance: float = 0.0
    case: str = ""
    stage: str = ""


@dataclass
class Comparison:
    """What came of it.

    Attributes:
        first: the first stage that parts in each case that differs.
        differences: how many stages part in all.
        stages: kind of stage -> its largest difference.
        cases, generations: how many were compared.
        turned: generations whose tokens differ where the choice was nearer than float32 can tell.
    """

    first: list[Difference] = field(default_factory=list)
    differences: int = 0
    stages: dict[str, Worst] = field(default_factory=dict)
    cases: int = 0
    generations: int = 0
    turned: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether the traces are those of the same function."""
        return not self.first and len(self.turned) <= MOST_TURNED * self.generations


def load_tolerances(dtype: str, path: Path = TOLERANCES) -> dict[str, float]:
    """Kind of stage -> what the relative error may be; `""` is for kinds not named."""
    table = json.loads(path.read_text("utf-8"))[dtype]
    return {
        "": table["otherwise"],
        **{kind: entry["bound"] for kind, entry in table.get("stages", {}).items()},
    }


def compare_files(
    expected: TraceFile, actual: TraceFile, tolerances: Mapping[str, float] | None = None
) -> Comparison:
    """Holds two trace files against each other.

    Args:
        expected: the trace to be met.
        actual: the trace that came out.
        tolerances: kind of stage -> bound, as `load_tolerances` returns them; None = those of the
            dtype.

    Raises:
        ValueError: the files are not of the same weights, inputs, seed, cases, dtype or version;
            the message lists all.
    """
    reasons = refusals(expected.header, actual.header)
    if reasons:
        shown = "\n  ".join(reasons[:20]) + (
            f"\n  and {len(reasons) - 20} more" if len(reasons) > 20 else ""
        )
        raise ValueError(
            f"{expected.path} and {actual.path} are not traces of the same thing:\n  {shown}"
        )
    tolerances = load_tolerances(expected.header["dtype"]) if tolerances is None else tolerances
    result = Comparison()
    for case in expected.cases:
        mine, theirs = expected.stages(case), actual.stages(case)
        shapes = {stage: expected.shape(case, stage) for stage in mine}
        compare_case(case, mine, theirs, shapes, tolerances, result)
    return result


def compare_case(
    case: str,
    expected: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    tolerances: Mapping[str, float],
    result: Comparison,
) -> None:
    """Compares the stages of one case, in order, and adds what it finds to `result`."""
    result.cases += 1
    slopes = [
        array for stage, array in expected.items() if stage.startswith("gradient") and array.size
    ]
    steepest = max((float(np.abs(array).max()) for array in slopes), default=0.0)
    turned = set(_turned(case, expected, actual, tolerances, result))
    found = []
    for stage in [*expected, *(stage for stage in actual if stage not in expected)]:
        kind, _, rest = stage.partition(".")
        if kind == "margin" or (kind in ("tokens", "scores", "choices") and rest in turned):
            continue
        bound = tolerances.get(kind, tolerances[""])
        least = _LEAST_GRADIENT * steepest if kind.startswith("gradient") else _LEAST
        if stage not in expected or stage not in actual:
            found.append(Difference(case, stage, "recorded by one of them only", tolerance=bound))
            continue
        difference = _difference(
            case, stage, expected[stage], actual[stage], bound, max(least, 1e-300)
        )
        if difference.reason:
            found.append(difference)
        _count(result.stages.setdefault(kind, Worst()), difference)
    result.differences += len(found)
    result.first += [_located(each, shapes) for each in found[:1]]


def _turned(
    case: str,
    expected: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    tolerances: Mapping[str, float],
    result: Comparison,
) -> Iterable[str]:
    for stage in expected:
        kind, _, mode = stage.partition(".")
        if kind != "tokens":
            continue
        result.generations += 1
        margins = [
            float(each[f"margin.{mode}"]) for each in (expected, actual) if f"margin.{mode}" in each
        ]
        near = bool(margins) and min(margins) <= tolerances.get("choices", 0.0)
        if near and stage in actual and not np.array_equal(expected[stage], actual[stage]):
            result.turned.append(f"{case}: {mode}, nearest choice {min(margins):.3g}")
            yield mode


def _difference(
    case: str, stage: str, expected: np.ndarray, actual: np.ndarray, bound: float, least: float
) -> Difference:
    """How far two arrays are apart; `reason` is empty where they agree."""

    def failed(reason: str) -> Difference:
        return Difference(case, stage, reason, tolerance=bound)

    if expected.shape != actual.shape:
        return failed(f"shape {actual.shape}, expected {expected.shape}")
    kinds = ["integer" if array.dtype.kind in "iub" else "float" for array in (expected, actual)]
    if kinds[0] != kinds[1]:
        return failed(f"{kinds[1]} numbers, expected {kinds[0]}")
    if not expected.size:
        return Difference(case, stage, "", 0.0, 0.0, bound)
    if kinds[0] == "integer":
        apart = expected != actual
        count = int(apart.sum())
        place = np.unravel_index(int(np.argmax(apart)), apart.shape)
        reason = f"{count} of {apart.size} values differ" if count else ""
        return Difference(
            case, stage, reason, float(count), float(count), 0.0, *_at(expected, actual, place)
        )
    mine, theirs = expected.astype(np.float64), actual.astype(np.float64)
    same = np.isinf(mine) & (mine == theirs)
    with np.errstate(invalid="ignore"):
        gaps = np.where(same, 0.0, np.abs(mine - theirs))
    gaps = np.where(np.isnan(gaps), np.inf, gaps)
    place = np.unravel_index(int(np.argmax(gaps)), gaps.shape)
    finite = np.abs(mine[np.isfinite(mine)])
    absolute = float(gaps[place])
    relative = absolute / max(float(finite.max()) if finite.size else 0.0, least)
    # "not <=" rather than ">": a NaN bound must not let anything through
    reason = (
        ""
        if relative <= bound
        else f"relative difference {relative:.3g} (absolute {absolute:.3g}) above {bound:.3g}"
    )
    return Difference(case, stage, reason, absolute, relative, bound, *_at(expected, actual, place))


def _at(
    expected: np.ndarray, actual: np.ndarray, place: Any
) -> tuple[tuple[int, ...], tuple[float, float]]:
    return tuple(int(axis) for axis in place), (float(expected[place]), float(actual[place]))


def _located(difference: Difference, shapes: Mapping[str, tuple[int, ...]]) -> Difference:
    """The difference with its place in the whole array, where a sample was compared."""
    shape = shapes.get(difference.stage)
    chosen = None if shape is None else places(difference.stage, shape)
    if chosen is None or shape is None or difference.place is None:
        return difference
    place = tuple(int(axis) for axis in np.unravel_index(int(chosen[difference.place[0]]), shape))
    return Difference(**{**asdict(difference), "place": place})


def _count(worst: Worst, difference: Difference) -> None:
    worst.arrays += 1
    worst.tolerance = max(worst.tolerance, difference.tolerance)
    if difference.relative > worst.relative or not worst.case:
        worst.relative, worst.case, worst.stage = (
            difference.relative,
            difference.case,
            difference.stage,
        )
    worst.absolute = max(worst.absolute, difference.absolute)
