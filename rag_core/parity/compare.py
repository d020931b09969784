"""Two traces held against each other: the first stage that parts, how far, and where."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from rag_core.parity.trace import places
from rag_core.parity.trace_files import TraceFile, refusals

TOLERANCES = Path(__file__).parent / "tolerances.json"
# The share of generations that rounding may flip in float32.
MAX_FLIPPED = 0.005
# Below this, a number is held to an absolute error: log p of an only document is 0.
_FLOOR = 1e-3
# A gradient is held to the largest of its case: that of a key's bias is 0 but for rounding.
_GRADIENT_FLOOR = 1e-2
_SHOWN = 20  # reasons that an error lists


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
        text = f"{self.case}: {self.stage}"
        if self.place is not None:
            text += f" at {list(self.place)}"
        text += f": {self.reason}"
        if self.values is not None:
            text += f" ({self.values[0]:.9g} and {self.values[1]:.9g})"
        return text


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
        flipped: generations whose tokens differ where the choice was nearer than float32 can tell.
    """

    first: list[Difference] = field(default_factory=list)
    differences: int = 0
    stages: dict[str, Worst] = field(default_factory=dict)
    cases: int = 0
    generations: int = 0
    flipped: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether the traces are those of the same function."""
        return not self.first and len(self.flipped) <= MAX_FLIPPED * self.generations


def load_tolerances(dtype: str, path: Path = TOLERANCES) -> dict[str, float]:
    """Kind of stage -> what the relative error may be; `""` is for kinds not named."""
    tables = json.loads(path.read_text("utf-8"))
    table = tables[dtype]
    bounds = {kind: entry["bound"] for kind, entry in table.get("stages", {}).items()}
    # of a hundred steps one after the other, which is another matter than one pass
    return {"": table["otherwise"], **bounds, **tables["training"].get(dtype, {})}


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
    if len(reasons) > _SHOWN:
        reasons[_SHOWN:] = [f"and {len(reasons) - _SHOWN} more"]
    if reasons:
        raise ValueError(
            f"{expected.path} and {actual.path} are not traces of the same thing:\n  "
            + "\n  ".join(reasons)
        )
    if tolerances is None:
        tolerances = load_tolerances(expected.header["dtype"])
    result = Comparison()
    for case in expected.cases:
        stages = expected.stages(case)
        shapes = {stage: expected.shape(case, stage) for stage in stages}
        compare_case(case, stages, actual.stages(case), shapes, tolerances, result)
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
    gradients = [
        array for stage, array in expected.items() if stage.startswith("gradient") and array.size
    ]
    max_gradient = max((float(np.abs(array).max()) for array in gradients), default=0.0)
    flipped = set(_flipped(case, expected, actual, tolerances, result))
    differences = []
    for stage in [*expected, *(stage for stage in actual if stage not in expected)]:
        kind, _, rest = stage.partition(".")
        if kind == "margin" or (kind in ("tokens", "scores", "choices") and rest in flipped):
            continue
        bound = tolerances.get(kind, tolerances[""])
        floor = _FLOOR
        if kind.startswith("gradient"):
            floor = max(_GRADIENT_FLOOR * max_gradient, 1e-300)
        if stage not in expected or stage not in actual:
            reason = "recorded by one of them only"
            differences.append(Difference(case, stage, reason, tolerance=bound))
            continue
        difference = _difference(case, stage, expected[stage], actual[stage], bound, floor)
        if difference.reason:
            differences.append(difference)
        _count(result.stages.setdefault(kind, Worst()), difference)
    result.differences += len(differences)
    result.first += [_located(difference, shapes) for difference in differences[:1]]


def _flipped(
    case: str,
    expected: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    tolerances: Mapping[str, float],
    result: Comparison,
) -> Iterator[str]:
    """The modes whose tokens rounding flipped; counts the generations on the way."""
    for stage in expected:
        kind, _, mode = stage.partition(".")
        if kind != "tokens":
            continue
        result.generations += 1
        name = f"margin.{mode}"
        margins = [float(stages[name]) for stages in (expected, actual) if name in stages]
        margin = min(margins, default=float("inf"))
        near = margin <= tolerances.get("choices", 0.0)
        if near and stage in actual and not np.array_equal(expected[stage], actual[stage]):
            result.flipped.append(f"{case}: {mode}, nearest choice {margin:.3g}")
            yield mode


def _difference(
    case: str, stage: str, expected: np.ndarray, actual: np.ndarray, bound: float, floor: float
) -> Difference:
    """How far two arrays are apart; `reason` is empty where they agree."""
    if expected.shape != actual.shape:
        reason = f"shape {actual.shape}, expected {expected.shape}"
        return Difference(case, stage, reason, tolerance=bound)
    kind = _kind(expected)
    if kind != _kind(actual):
        reason = f"{_kind(actual)} numbers, expected {kind}"
        return Difference(case, stage, reason, tolerance=bound)
    if not expected.size:
        return Difference(case, stage, "", 0.0, 0.0, bound)
    if kind == "integer":
        gaps = (expected != actual).astype(np.float64)
        absolute = relative = float(gaps.sum())
        bound = 0.0
        reason = f"{int(absolute)} of {gaps.size} values differ"
    else:
        gaps = _gaps(expected.astype(np.float64), actual.astype(np.float64))
        absolute = float(gaps.max())
        scale = np.abs(expected[np.isfinite(expected)].astype(np.float64)).max(initial=floor)
        relative = absolute / float(scale)
        reason = f"relative difference {relative:.3g} (absolute {absolute:.3g}) above {bound:.3g}"
    # "<=" for agreement rather than ">" for the rest: a NaN bound must not let anything through
    if relative <= bound:
        reason = ""
    place = np.unravel_index(int(np.argmax(gaps)), gaps.shape)
    values = float(expected[place]), float(actual[place])
    where = tuple(int(axis) for axis in place)
    return Difference(case, stage, reason, absolute, relative, bound, where, values)


def _kind(array: np.ndarray) -> str:
    if array.dtype.kind in "iub":
        return "integer"
    return "float"


def _gaps(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Absolute differences; equal infinities are none apart, NaN is infinitely far from all."""
    with np.errstate(invalid="ignore"):
        gaps = np.where(expected == actual, 0.0, np.abs(expected - actual))
    return np.where(np.isnan(gaps), np.inf, gaps)


def _located(difference: Difference, shapes: Mapping[str, tuple[int, ...]]) -> Difference:
    """The difference with its place in the whole array, where a sample was compared."""
    if difference.stage not in shapes or difference.place is None:
        return difference
    shape = shapes[difference.stage]
    sample = places(difference.stage, shape)
    if sample is None:
        return difference
    place = np.unravel_index(int(sample[difference.place[0]]), shape)
    return replace(difference, place=tuple(int(axis) for axis in place))


def _count(worst: Worst, difference: Difference) -> None:
    worst.arrays += 1
    worst.tolerance = max(worst.tolerance, difference.tolerance)
    worst.absolute = max(worst.absolute, difference.absolute)
    if difference.relative > worst.relative or not worst.case:
        worst.relative = difference.relative
        worst.case = difference.case
        worst.stage = difference.stage
