"""Whether two contestants computed the same: tokens equal, losses equal within a tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TOLERANCE = 1e-4
# Of the loss after a training step: Adam's first step follows the gradient's signs, also where it
# is 0 but for rounding (at BART-base's size 0.03 % of the signs differ between the frameworks).
AFTER_STEP = 1e-3
# Share of a question's candidates that two must have in common: all but those of one of 5
# documents' searches.
COMMON = 0.8
PAD = 1


def stripped(row: Sequence[int]) -> list[int]:
    """A row of tokens without the padding at its end."""
    end = len(row)
    while end and row[end - 1] == PAD:
        end -= 1
    return list(row[:end])


def difference(expected: dict[str, Any], found: dict[str, Any], group: int = 1) -> str:
    """Why two results differ; "" if they agree.

    Args:
        expected: {"tokens": rows of ids}, {"numbers": a loss, and one after a step}, and texts if
            any.
        found: the same of another contestant.
        group: rows that are candidates of one question, best first. The first one must be the same;
            of all of them `COMMON`, in any order, since which of two near-equal beams goes on is
            decided by rounding.
    """
    for kind in sorted(expected.keys() | found.keys()):
        if kind not in expected or kind not in found:
            return f"{kind} came from one only"
        if kind == "numbers":
            reason = _numbers(expected[kind], found[kind])
        elif kind == "tokens":
            reason = _tokens(expected[kind], found[kind], group)
        else:
            reason = "" if expected[kind] == found[kind] else f"other {kind}"
        if reason:
            return reason
    return ""


def _numbers(expected: Sequence[float], found: Sequence[float]) -> str:
    if len(expected) != len(found):
        return f"{len(found)} numbers, expected {len(expected)}"
    for at, (one, other) in enumerate(zip(expected, found, strict=True)):
        # a NaN is within no tolerance
        if not abs(one - other) <= (AFTER_STEP if at else TOLERANCE) * max(abs(one), 1e-12):
            return f"number {at} is {other:.7g}, expected {one:.7g}"
    return ""


def _tokens(expected: Sequence[Sequence[int]], found: Sequence[Sequence[int]], group: int) -> str:
    if len(expected) != len(found):
        return f"{len(found)} rows, expected {len(expected)}"
    ours, theirs = [stripped(row) for row in found], [stripped(row) for row in expected]
    for first in range(0, len(theirs), group):
        if ours[first] != theirs[first]:
            at = next(
                (
                    i
                    for i, (a, b) in enumerate(zip(ours[first], theirs[first], strict=False))
                    if a != b
                ),
                None,
            )
            return (
                f"row {first} parts at token "
                f"{at if at is not None else min(len(ours[first]), len(theirs[first]))}"
            )
        sets = [{tuple(row) for row in rows[first : first + group]} for rows in (ours, theirs)]
        if (common := len(sets[0] & sets[1])) < COMMON * len(sets[1]):
            return (
                f"{common} of {len(sets[1])} candidates in common among rows {first} to "
                f"{first + group - 1}"
            )
    return ""


def repeated(rows: Sequence[Sequence[int]], group: int) -> str:
    """Which candidates of one question come twice; "" if none does."""
    for first in range(0, len(rows), group):
        some = {tuple(stripped(row)) for row in rows[first : first + group]}
        if len(some) < len(rows[first : first + group]):
            return f"only {len(some)} distinct candidates among rows {first} to {first + group - 1}"
    return ""


def equal_share(expected: dict[str, Any], found: dict[str, Any]) -> float | None:
    """Share of rows whose tokens are equal, for contestants that need not agree.

    None where there are no tokens.
    """
    if "tokens" not in expected or "tokens" not in found or not expected["tokens"]:
        return None
    pairs = zip(expected["tokens"], found["tokens"], strict=False)
    return sum(stripped(one) == stripped(other) for one, other in pairs) / len(expected["tokens"])
