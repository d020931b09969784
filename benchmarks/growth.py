"""How fast a curve grows: the slope of its upper half in log-log, against what an operation count
lets expect.

Letters: n what is varied, t seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# What caches, threads and small matrices add to a slope at these sizes; a further power of n adds
# 1.
SLACK = 0.2


def growth(values: Sequence[float], measured: Sequence[float]) -> float:
    """The p of t ~ n^p by least squares in log-log over the upper half of a curve, at least three
    points of it.

    The lower half is left out: constant costs make every curve flat there, and hide what comes.

    Args:
        values: n, rising.
        measured: t.

    Raises:
        ValueError: fewer than two points, or one that has no logarithm.
    """
    if len(values) != len(measured) or len(values) < 2 or min(*values, *measured) <= 0:
        raise ValueError(
            f"a growth needs two points or more, all above 0; got {list(values)} and "
            f"{list(measured)}"
        )
    count = min(len(values), max(3, math.ceil(len(values) / 2)))
    x, y = ([math.log(v) for v in some[-count:]] for some in (values, measured))
    x_mean, y_mean = sum(x) / count, sum(y) / count
    spread = sum((a - x_mean) ** 2 for a in x)
    return sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / spread


def growth_beyond(values: Sequence[float], measured: Sequence[float]) -> float | None:
    """The growth of what comes on top of the first point: constant costs hide less of it.

    Args:
        values: n, rising.
        measured: t.

    Returns:
        The power, or None where t rises too little for one: by less than a quarter over the lower
        half.
    """
    first, rest = measured[0], [t - measured[0] for t in measured[1:]]
    count = min(len(rest), max(3, math.ceil(len(values) / 2)))
    if count < 2 or min(rest[-count:]) < first / 4:
        return None
    return growth(values[-count:], rest[-count:])


def too_fast(found: float, expected: float, slack: float = SLACK) -> bool:
    """Whether a curve grows by a noticeably higher power than expected."""
    return found > expected + slack
