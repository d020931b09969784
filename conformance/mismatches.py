"""Two mappings of arrays held against each other, every mismatch named; numpy only."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_KINDS = {"f": "float", "i": "integer", "u": "integer", "b": "boolean"}


@dataclass(frozen=True)
class Mismatch:
    """One array in which two mappings differ."""

    name: str
    error: float
    tolerance: float
    reason: str

    def __str__(self) -> str:
        """One line for a person."""
        return f"{self.name}: {self.reason}"


def relative_error(expected: np.ndarray, actual: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute finite value of `expected`.

    Infinities count as equal where both have the same one. NaN equals nothing, itself included: the
    error is then infinite, as it is for infinities in different places.

    Raises:
        ValueError: the shapes differ.
    """
    expected, actual = np.asarray(expected), np.asarray(actual)
    if expected.shape != actual.shape:
        raise ValueError(f"cannot compare shape {actual.shape} with the expected {expected.shape}")
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    if np.isnan(expected).any() or np.isnan(actual).any():
        return float("inf")
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(actual)):
        return float("inf")
    if not np.array_equal(expected[~finite], actual[~finite]):
        return float("inf")
    if not finite.any():
        return 0.0
    worst = float(np.abs(expected[finite] - actual[finite]).max())
    return worst / max(float(np.abs(expected[finite]).max()), np.finfo(np.float64).tiny)


def compare(
    expected: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    tolerance: float | Mapping[str, float],
) -> list[Mismatch]:
    """Hold two mappings (name to array) against each other.

    Floats are compared by `relative_error`; integers, booleans and text must be equal. Names
    missing on either side, other shapes and other kinds of number are mismatches.

    Args:
        expected: what is to be met.
        actual: what came out.
        tolerance: one bound on the relative error, or one a name (0 for a name that is not there).

    Returns:
        Every mismatch, sorted by name; empty if they agree.
    """
    mismatches = []
    for name in sorted(set(expected) | set(actual)):
        bound = tolerance
        if isinstance(tolerance, Mapping):
            bound = tolerance.get(name, 0.0)
        error, reason = _difference(expected.get(name), actual.get(name))
        # "not <=" rather than ">": a NaN bound must not let anything through.
        if not error <= bound:
            reason = reason or f"relative error {error:.3g} above {bound:.3g}"
            mismatches.append(Mismatch(name, error, bound, reason))
    return mismatches


def _difference(expected: np.ndarray | None, actual: np.ndarray | None) -> tuple[float, str]:
    """By how much two stages differ, and why where it is not for a relative error."""
    if expected is None:
        return float("inf"), "not expected"
    if actual is None:
        return float("inf"), "missing"
    expected, actual = np.asarray(expected), np.asarray(actual)
    if expected.shape != actual.shape:
        return float("inf"), f"shape {actual.shape}, expected {expected.shape}"
    kind, other = (_KINDS.get(array.dtype.kind, array.dtype.kind) for array in (expected, actual))
    if kind != other:
        return float("inf"), f"kind {other}, expected {kind}"
    if kind == "float":
        return relative_error(expected, actual), ""
    if np.array_equal(expected, actual):
        return 0.0, ""
    return float("inf"), f"{int((expected != actual).sum())} of {expected.size} values differ"
