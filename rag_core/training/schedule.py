"""When passages are embedded anew: known from the settings alone, so that a run that goes on after a
kill is the run that was never killed.

Embedding starts with the weights of each `every`-th step, in a process of its own, and what it made
is taken into use `every` steps later, when the next one starts. The index in use is therefore
between `every` and 2 * `every` steps old; at the last step one is made of the weights as they are.
"""

from __future__ import annotations


def in_use(step: int, every: int, total: int) -> int:
    """The step whose weights made the index that is in use after `step` steps; 0 is the one that the
    run began with.

    Args:
        step: steps done.
        every: steps between starts, 0 = never.
        total: steps of the whole run.
    """
    if step == total:
        return total
    if not every:
        return 0
    return max(0, step // every - 1) * every


def in_the_making(step: int, every: int, total: int) -> int | None:
    """The step whose weights passages are being embedded with after `step` steps; None where none
    are, as what would be made could not be taken into use before the end.
    """
    if not every or step == total:
        return None
    start = step // every * every
    if not start or start + every >= total:
        return None
    return start
