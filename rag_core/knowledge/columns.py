"""The further columns of a table: where its rows come from, and what else is known of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any

from rag_core.hub import text_fault

# A passage has these of its own.
TAKEN = (
    *("title", "text", "source", "file"),
    *("line", "end_line", "page", "end_page", "row", "headings", "slide", "cell"),
)
# What is longer is no label of a text but another text, and each of its passages would hold it.
CELL_CHARS = 1_000
MOST_COLUMNS = 64
MOST_DIGITS = 38


class Columns:
    """The columns of a table beside title and text.

    `source`, or else `url`, says where a row comes from; all others are metadata.

    Args:
        names: of all columns, in order.
        used: numbers of those that are title and text.
        left_out: takes the columns that are no metadata, with the reason.
    """

    def __init__(
        self, names: Sequence[str], used: Collection[int | None], left_out: dict[str, str]
    ) -> None:
        self._left_out = left_out
        lowered = [name.strip().lower() for name in names]
        sources = [lowered.index(name) for name in ("source", "url") if name in lowered]
        self._source = next((number for number in sources if number not in used), None)
        self._names: dict[int, str] = {}
        for number, name in enumerate(names):
            if number in used:
                continue
            name = name.strip() or f"column_{number + 1}"
            if name in TAKEN:
                name = f"column_{name}"
            while name in self._names.values():
                name = f"column_{name}"
            if len(name) > CELL_CHARS or text_fault(name):
                left_out[f"{name[:40]!a} ..."] = "a name of no use"
            elif len(self._names) == MOST_COLUMNS:
                left_out[name] = f"beyond {MOST_COLUMNS} columns"
            else:
                self._names[number] = name

    def read(self, cells: Sequence[Any]) -> tuple[str | None, dict[str, Any]]:
        """Where a row comes from, if it says so, and its metadata.

        Args:
            cells: of all columns.
        """
        source = None
        metadata = {}
        for number, name in self._names.items():
            value = cells[number]
            try:
                value = as_json(value)
            except ValueError as error:
                self._left_out.setdefault(name, str(error))
                continue
            if number != self._source:
                metadata[name] = value
            elif isinstance(value, str):
                source = value.strip() or None
            elif value is not None:
                metadata[name] = value
        return source, metadata


def as_json(value: Any) -> Any:
    """A cell as JSON has it: dates as ISO texts, numbers that are none as null.

    Raises:
        ValueError: it is no label of a text: too long, bytes, an object; says which.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        if abs(value) >= 10**MOST_DIGITS:
            raise ValueError(f"more than {MOST_DIGITS} digits")
        return value
    if isinstance(value, list):
        items = [as_json(item) for item in value[:CELL_CHARS]]
        if len(value) > CELL_CHARS or sum(len(str(item)) for item in items) > CELL_CHARS:
            raise ValueError("long lists")
        return items
    if isinstance(value, dict):
        raise ValueError("objects")
    if not isinstance(value, str):
        raise ValueError(type(value).__name__)
    if len(value) > CELL_CHARS:
        raise ValueError(f"longer than {CELL_CHARS:,} characters")
    if fault := text_fault(value):
        raise ValueError(fault)
    return value


def is_label(kind: Any) -> bool:
    """Whether a column of an Arrow type can be metadata."""
    import pyarrow.types as types

    is_list = types.is_list(kind) or types.is_large_list(kind)
    if is_list or types.is_dictionary(kind):
        kind = kind.value_type
    # Lists of fractions are vectors.
    if is_list and types.is_floating(kind):
        return False
    fits = (
        *(types.is_string, types.is_large_string, types.is_boolean, types.is_integer),
        *(types.is_floating, types.is_decimal, types.is_date, types.is_timestamp, types.is_time),
        types.is_null,
    )
    return any(fit(kind) for fit in fits)
