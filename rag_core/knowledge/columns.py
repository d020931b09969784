"""The further columns of a table: where its rows come from, and what else is known of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any

from rag_core.hub import bounded_json, text_fault

# Where a passage stands in its source.
POSITIONS = ("line", "end_line", "page", "end_page", "row", "headings", "slide", "cell")
# A passage has these of its own.
TAKEN = ("title", "text", "source", "file", *POSITIONS)
# Holds an object, or its JSON, whose entries are metadata each: what `KnowledgeBase.to_dataset`
# writes.
OBJECT = "metadata"
# What is longer is no label of a text but another text, and each of its passages would hold it.
CELL_CHARS = 1_000
MOST_COLUMNS = 64
# What a decimal number of Arrow holds.
MOST_DIGITS = 38


class Columns:
    """The columns of a table beside title and text.

    `source`, or else `url`, says where a row comes from; all others are metadata, and so are the
    entries of an object in the column `metadata`.

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
        metadata: dict[str, Any] = {}
        for number, name in self._names.items():
            value = cells[number]
            if name.lower() == OBJECT and (entries := _object(value)) is not None:
                metadata |= self._entries(entries)
                continue
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

    def _entries(self, entries: dict[Any, Any]) -> dict[str, Any]:
        """Metadata of an object; of Arrow's, entries that a row does not have are null."""
        metadata: dict[str, Any] = {}
        for name, value in entries.items():
            key = str(name)
            # the file is told by who reads it
            if value is None or key == "file":
                continue
            if len(metadata) == MOST_COLUMNS or len(key) > CELL_CHARS or text_fault(key):
                self._left_out.setdefault(f"{OBJECT}: {key[:40]!a}", "a name of no use")
                continue
            try:
                value = as_json(value)
            except ValueError as error:
                self._left_out.setdefault(f"{OBJECT}: {key}", str(error))
                continue
            if key in TAKEN and not _is_position(key, value):
                key = f"column_{key}"
            metadata[key] = value
        return metadata


def _object(value: Any) -> dict[Any, Any] | None:
    """A cell as an object: of Arrow's structs, or of JSON; None where it is none."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = bounded_json(value)
        except ValueError:
            return None
    if isinstance(value, dict | None):
        return value or {}
    return None


def _is_position(name: str, value: Any) -> bool:
    """Whether an entry says, as a reader of files would, where a passage stands."""
    if name == "headings":
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    return name in POSITIONS and type(value) is int


def placed(metadata: dict[str, Any], position: dict[str, int]) -> dict[str, Any]:
    """Metadata of a row with its place in the table, unless it says where its text stands."""
    if metadata.keys() & POSITIONS:
        return metadata
    return metadata | position


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
        *(*text_types(), types.is_boolean, types.is_integer, types.is_null),
        *(types.is_floating, types.is_decimal, types.is_date, types.is_timestamp, types.is_time),
    )
    return any(fit(kind) for fit in fits)


def text_types() -> list[Any]:
    """The predicates of Arrow's types of texts; older releases have fewer."""
    import pyarrow.types as types

    names = ("is_string", "is_large_string", "is_string_view")
    return [getattr(types, name) for name in names if hasattr(types, name)]


def is_object(column: Any) -> bool:
    """Whether a field of an Arrow schema holds objects whose entries are metadata."""
    import pyarrow.types as types

    return column.name.strip().lower() == OBJECT and types.is_struct(column.type)
