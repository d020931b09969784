"""What a single value must be: small rules, put into tables by those who take options, and one
wording of the errors.

Rules are plain Python: validation libraries take longer to import than `dualrag ask` may take to
start.
"""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

# Whose frames a warning is not about: this library's, and what wraps its methods.
_OURS = ("rag_core", "rag_torch", "rag_tf", "torch", "tensorflow", "keras")
# From here on no framework takes a whole number for a factor.
_WHOLE_END = 2**63
# Ids and counts of tokens are 32 bits wide in places.
MOST_TOKENS = 2**31 - 1
_TOKEN_ID = f"a token id (a whole number from 0 to {MOST_TOKENS})"


def plain(value: Any) -> Any:
    """Numbers, arrays and tensors of any framework as Python's own numbers and lists.

    All else as it is.
    """
    # most values are plain, and asked for with each call
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    if isinstance(value, list | tuple):  # one with names, say: as it is
        return value
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        array = value
        if not hasattr(value, "tolist") and hasattr(value, "numpy"):  # TensorFlow's
            array = value.numpy()
        if hasattr(array, "tolist"):
            return array.tolist()
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    return value


@dataclass(frozen=True)
class Rule:
    """What a value must be.

    Attributes:
        what: the words after "must be" (or "must", where `verb` is empty).
        convert: returns the value as it is to be kept, or raises a TypeError or ValueError without
            words.
        optional: whether None is a value, too.
        verb: between "must" and `what`.
    """

    what: str
    convert: Callable[[Any], Any]
    optional: bool = False
    verb: str = "be "

    def __call__(self, name: str, value: Any, hint: str = "") -> Any:
        """The value as it is to be kept.

        Args:
            name: of the argument, for the error.
            value: what came.
            hint: a sentence that says what to do.

        Raises:
            TypeError: it is of another kind.
            ValueError: it is out of range.
        """
        if value is None and self.optional:
            return None
        try:
            return self.convert(plain(value))
        except TypeError:
            kind: type[Exception] = TypeError
        except (ValueError, OverflowError):
            kind = ValueError
        message = f"{name} must {self.verb}{self.what}, got {value!r:.200}"
        if hint:
            message += f". {hint}"
        raise kind(message)


def _range(low: float, high: float, above: bool = False, below: bool = False) -> str:
    if low == -math.inf and high == math.inf:
        return ""
    if high < math.inf and not (above or below):
        return f" from {low} to {high}"
    words = f" of at least {low}"
    if above:
        words = f" above {low}"
    if high == math.inf:
        return words
    if below:
        return f"{words} and below {high}"
    return f"{words} and at most {high}"


def whole(low: float = -math.inf, high: float = math.inf, optional: bool = False) -> Rule:
    """A whole number within bounds; 2.0 counts as one, True does not."""

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError
        if not low <= value <= high or int(value) != value:
            raise ValueError
        return int(value)

    return Rule("a whole number" + _range(low, high), convert, optional)


def number(
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
    optional: bool = False,
) -> Rule:
    """A finite number within bounds; with `above` and `below` the bounds themselves are out."""

    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError
        if not low <= value <= high or not math.isfinite(value):
            raise ValueError
        if (above and value == low) or (below and value == high):
            raise ValueError
        if abs(value) >= _WHOLE_END:
            value = float(value)
        return value

    kind = "a number"
    if high == math.inf:
        kind = "a finite number"
    return Rule(kind + _range(low, high, above, below), convert, optional)


def switch(*words: str, optional: bool = False) -> Rule:
    """True or False, as which 1 and 0 count, or one of some words."""

    def convert(value: Any) -> Any:
        if isinstance(value, bool) or (isinstance(value, str) and value in words):
            return value
        if words:
            raise ValueError
        if isinstance(value, int) and value in (0, 1):
            return bool(value)
        raise TypeError

    names = ["True", "False", *(repr(word) for word in words)]
    return Rule(f"{', '.join(names[:-1])} or {names[-1]}", convert, optional)


def one_of(choices: Iterable[str | None]) -> Rule:
    """One of some words (and None, where it is among them)."""
    allowed = tuple(choices)

    def convert(value: Any) -> Any:
        if value is not None and not isinstance(value, str):
            raise TypeError
        if value not in allowed:
            raise ValueError
        return value

    return Rule(f"one of {allowed}", convert)


def _id(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    if not 0 <= value <= MOST_TOKENS:
        raise ValueError
    return value


def _ids(value: Any) -> list[int]:
    if not isinstance(value, list | tuple):
        raise TypeError
    return [_id(item) for item in value]


def token_id(optional: bool = True) -> Rule:
    """One token id."""
    return Rule(_TOKEN_ID, _id, optional)


def token_ids(optional: bool = True) -> Rule:
    """One token id or a list of some."""

    def convert(value: Any) -> int | list[int]:
        if isinstance(value, list | tuple):
            return _ids(value)
        return _id(value)

    return Rule(f"{_TOKEN_ID} or a list of token ids", convert, optional)


def id_list(optional: bool = True) -> Rule:
    """A list of token ids; one id is a list of one."""
    rule = token_ids()
    return Rule(rule.what, lambda value: as_list(rule.convert(value)), optional)


def as_list(value: Any) -> list[Any]:
    """A list as it is, anything else as a list of one."""
    if isinstance(value, list):
        return value
    return [value]


def sequences(optional: bool = True) -> Rule:
    """A list of sequences of token ids, none of them empty."""

    def convert(value: Any) -> list[list[int]]:
        if not isinstance(value, list | tuple):
            raise TypeError
        rows = [_ids(row) for row in value]
        if not all(rows):
            raise ValueError
        return rows

    return Rule("non-empty sequences of token ids, as in [[4, 5], [6]]", convert, optional, "hold ")


def option(rule: Rule, name: str, value: Any, default: Any, hint: str = "") -> Any:
    """An option's value as it is to be kept; None is its default. `hint` as of a rule."""
    if value is None:
        return copy.copy(default)
    return rule(name, value, hint)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one stands for; None where none is near."""
    # 0.8: one letter of five may be wrong
    return next(iter(get_close_matches(name, list(known), n=1, cutoff=0.8)), None)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns of the line of the caller's code that led here, however deep in the library this is."""
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in _OURS:
            break
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)
