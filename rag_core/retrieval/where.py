"""Conditions on passages, and the rows that they hold for.

A condition is `key=glob`, `key!=glob` or `key>=number` (also >, <, <=). A key is title, text, source,
file, another column, or a key of the passages' metadata (page, headings, a table's column ...).
"""

from __future__ import annotations

import fnmatch
import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from typing import Any

import numpy as np

from rag_core.hub import DamagedFileError, reading
from rag_core.retrieval.passage_metadata import METADATA_CHARS, METADATA_COLUMN
from rag_core.retrieval.vectors import is_plain, shuffled_rows

Where = str | Sequence[str] | Callable[[dict[str, Any]], Any]

FORMS = (
    "Write key=glob, key!=glob or key>=number (also >, <, <=), e.g. 'source=handbook/*' or "
    "'page>=3'"
)
# Rows of a column that become Python values at a time.
BLOCK_ROWS = 10_000
# Of values that errors and descriptions name, and of their letters.
EXAMPLES = 5
EXAMPLE_CHARS = 60
_CONDITION = re.compile(r"([^=!<>]*)(!=|>=|<=|==|=|>|<)(.*)", re.DOTALL)
_ORDERS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Condition:
    """One condition.

    Attributes:
        text: as it was written.
        key: what of a passage it asks for.
        holds_for: whether a value of a passage fulfils it. None, an unknown value, fulfils only
            `!=`; of a list one element has to equal the pattern.
    """

    text: str
    key: str
    holds_for: Callable[[Any], bool]


def parse_conditions(where: str | Sequence[str]) -> list[Condition]:
    """The conditions, all of which must hold.

    Raises:
        TypeError, ValueError: no condition, with the forms there are.
    """
    texts = [where] if isinstance(where, str) else where
    if not isinstance(texts, list | tuple) or not texts:
        raise TypeError(
            "where must be a condition, a list of conditions or a function of a passage, got "
            f"{where!r:.80}. {FORMS}."
        )
    return [_parsed(text) for text in texts]


def _parsed(text: Any) -> Condition:
    match = None
    if isinstance(text, str):
        match = _CONDITION.fullmatch(text)
    if match is None or not match[1].strip():
        raise ValueError(f"where must be a key, a sign and a value, got {text!r:.80}. {FORMS}.")
    key, sign, value = (part.strip() for part in match.groups())
    if sign not in _ORDERS:
        is_like = re.compile(fnmatch.translate(value)).match

        def equals(found: Any) -> bool:
            return any(is_like(_as_text(each)) for each in _elements(found))

        if sign == "!=":
            return Condition(text, key, lambda found: not equals(found))
        return Condition(text, key, equals)
    limit = _as_number(value)
    if limit is None:
        raise ValueError(f"where must compare with a number, got {value!r:.60} in {text!r:.80}.")
    compare = _ORDERS[sign]

    def is_in_order(found: Any) -> bool:
        numbers = (_as_number(each) for each in _elements(found))
        return any(number is not None and compare(number, limit) for number in numbers)

    return Condition(text, key, is_in_order)


def _elements(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    if isinstance(value, list | tuple):
        return value
    return (value,)


def _as_text(value: Any) -> str:
    """A value as JSON has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _as_number(value: Any) -> float | int | None:
    """A number, also one that a table holds as text; None for anything else.

    Whole ones stay whole: as floats, the ids of many services would not differ.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            try:
                value = float(value)
            except ValueError:
                return None
    # "inf" and "nan" are words of a text.
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def matching_rows(passages: Any, where: Where, vectors: str = "embeddings") -> np.ndarray:
    """The rows of passages that conditions hold for.

    Columns that no condition asks for are not read; the others are streamed.

    Args:
        passages: a `datasets.Dataset` or `PassageTable`.
        where: a condition, a list of which all must hold, or a function of a dictionary {title,
            text, source, file, and the passage's metadata and further columns}.
        vectors: the column of vectors, which is no key.

    Returns:
        Sorted row numbers, int64; at least one.

    Raises:
        TypeError, ValueError: no condition; a key that no passage has, with the keys there are; or
            nothing matches.
    """
    columns = _Columns(passages, vectors)
    if callable(where):
        masks = [np.array([bool(where(row)) for row in block.rows()]) for block in columns.blocks()]
        nothing = "where must be true for a passage, got a function that is true for none"
    else:
        conditions = parse_conditions(where)
        masks = _masks(columns, conditions)
        texts = " and ".join(repr(condition.text) for condition in conditions)
        nothing = f"where must match a passage, got {texts}, which matches none"
    mask = np.concatenate(masks)
    order = shuffled_rows(passages)
    if order is not None:
        mask = mask[order]
    rows = np.flatnonzero(mask)
    if not len(rows):
        raise ValueError(f"{nothing} of the {len(passages):,}.{columns.examples_told()}")
    return rows


def known_keys(passages: Any, rows: int = 100_000) -> dict[str, list[str]]:
    """The keys that conditions can name, each with a few values.

    Args:
        passages: as of `matching_rows`.
        rows: how many of the first passages are looked at.
    """
    columns = _Columns(passages, "embeddings")
    for block in islice(columns.blocks(), -(-rows // BLOCK_ROWS)):
        for key in sorted(columns.keys):
            columns.note_examples(key, block.values(key))
    return {key: values for key, values in columns.examples.items() if values}


def _masks(columns: _Columns, conditions: list[Condition]) -> list[np.ndarray]:
    """Which rows of each block all conditions hold for."""
    keys = [condition.key for condition in conditions]
    masks = []
    for block in columns.blocks(keys):
        mask = np.ones(len(block), bool)
        for condition in conditions:
            values = block.values(condition.key)
            columns.note_examples(condition.key, values)
            mask &= [condition.holds_for(value) for value in values]
        masks.append(mask)
    columns.check_keys(conditions)
    return masks


@dataclass
class _Block:
    """Some rows: their columns, and their metadata where it is wanted."""

    columns: Mapping[str, list[Any]]
    metadata: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.metadata)

    def values(self, key: str) -> list[Any]:
        if key == "file":
            return self._files()
        if key in self.columns:
            return self.columns[key]
        return [entries.get(key) for entries in self.metadata]

    def _files(self) -> list[Any]:
        """The files that the passages came from: sources, unless a table names others."""
        sources = self.columns.get("source") or [None] * len(self)
        pairs = zip(self.metadata, sources, strict=True)
        return [entries.get("file", source) for entries, source in pairs]

    def rows(self) -> Iterator[dict[str, Any]]:
        names = list(self.columns)
        files = self._files()
        for number, entries in enumerate(self.metadata):
            row = {**entries, "source": None, "file": files[number]}
            row.update((name, self.columns[name][number]) for name in names)
            yield row


@dataclass
class _Columns:
    """The columns of passages, read in blocks, and the keys that they turned out to have."""

    passages: Any
    vectors: str
    examples: dict[str, list[str]] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._table = self.passages.data
        self._place = str(getattr(self.passages, "path", "the passages"))
        self._names = []
        for name in self._table.column_names:
            if name != self.vectors and is_plain(self._table.schema.field(name).type):
                self._names.append(name)
        self.keys = {
            name
            for name in self._names
            if name != METADATA_COLUMN
            and self._table.column(name).null_count < self._table.num_rows
        }
        if "source" in self.keys:
            self.keys.add("file")

    def blocks(self, keys: Sequence[str] | None = None) -> Iterator[_Block]:
        """All rows; of the columns those that `keys` ask for, or all."""
        names = [name for name in self._names if name != METADATA_COLUMN]
        with_metadata = METADATA_COLUMN in self._names
        if keys is not None:
            with_metadata &= any(key == "file" or key not in names for key in keys)
            wanted = {*keys, "source"} if "file" in keys else {*keys}
            names = [name for name in names if name in wanted]
        for start in range(0, self._table.num_rows, BLOCK_ROWS):
            count = min(BLOCK_ROWS, self._table.num_rows - start)
            columns = {name: self._read(name, start, count) for name in names}
            metadata: list[dict[str, Any]] = [{}] * count
            if with_metadata:
                metadata = self._parsed(self._read(METADATA_COLUMN, start, count))
                self.keys.update(*metadata)
            yield _Block(columns, metadata)

    def _read(self, name: str, start: int, count: int) -> list[Any]:
        with reading(f"column {name!r} of {self._place}"):
            column = self._table.column(name).slice(start, count)
            # Offsets are in a file, so they are checked before they are followed.
            column.validate(full=True)
            return column.to_pylist()

    def _parsed(self, texts: list[str | None]) -> list[dict[str, Any]]:
        """The metadata of rows, read as one JSON array: a row at a time takes ten times as long."""
        try:
            if any(text and len(text) > METADATA_CHARS for text in texts):
                raise ValueError("it is too long")
            rows = json.loads(f"[{','.join(text or '{}' for text in texts)}]")
        except (ValueError, RecursionError) as error:
            fault = f"it is no JSON ({error!s:.80})"
        else:
            if len(rows) == len(texts) and all(isinstance(row, dict) for row in rows):
                return rows
            fault = "it must hold a JSON object a row"
        raise DamagedFileError(
            f"column {METADATA_COLUMN!r} of {self._place} is damaged: {fault}. Index the text anew."
        )

    def note_examples(self, key: str, values: list[Any]) -> None:
        """Keeps a few values of a key, for an error that may have to name some."""
        examples = self.examples.setdefault(key, [])
        if len(examples) == EXAMPLES:
            return
        for value in values:
            for element in map(_as_text, _elements(value)):
                if element[:EXAMPLE_CHARS] not in examples:
                    examples.append(element[:EXAMPLE_CHARS])
                if len(examples) == EXAMPLES:
                    return

    def examples_told(self) -> str:
        """A sentence of values that the keys asked for have."""
        told = []
        for key, values in self.examples.items():
            if values:
                told.append(f"{key} is, e.g., {', '.join(map(repr, values))}")
        if not told:
            return ""
        return f" Here {'; '.join(told)}."

    def check_keys(self, conditions: list[Condition]) -> None:
        """Refuses keys that no passage has."""
        for condition in conditions:
            if condition.key in self.keys:
                continue
            hint = ""
            if close := get_close_matches(condition.key, self.keys, 1):
                hint = f" Did you mean {close[0]!r}?"
            elif condition.key in ("source", "file"):
                hint = " Index the text anew, and its passages say where they come from."
            raise ValueError(
                f"where must name a key that the passages have, got {condition.key!r} in "
                f"{condition.text!r:.80}. Keys there are: {', '.join(sorted(self.keys))}.{hint}"
            )
