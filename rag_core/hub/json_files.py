"""The one reader of JSON that others wrote: bounded in size, depth and numbers, with one error.

What passes can be copied, written, compared and handed to other libraries without a second look: no
text that is no Unicode, no nesting that ends Python's stack, no whole number that no float holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rag_core.hub.damaged import AGAIN, DamagedFileError

# Far above any config or tokenizer, far below what fills a machine's memory.
MAX_BYTES = 1 << 29
# Deeper than any config or tokenizer goes, and well within Python's stack.
MAX_DEPTH = 64
# transformers writes "no limit" as 1e30, in full
MAX_DIGITS = 40
_KINDS: dict[type, str] = {dict: "object", list: "array"}


def read_json(path: Path, kind: type = dict, *, advice: str = AGAIN) -> Any:
    """What a JSON file holds.

    Args:
        path: the file.
        kind: `dict` for an object, `list` for an array.
        advice: what the error tells people to do.

    Raises:
        DamagedFileError: it is no JSON, holds something else or more than a file of its kind does.
        OSError: it can't be read.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DamagedFileError(
            f"{path} must be JSON of at most {MAX_BYTES:,} bytes, got {size:,}. {advice}"
        )
    return parse_json(path.read_bytes(), path, kind, advice=advice)


def parse_json(
    data: bytes | str, place: str | Path, kind: type = dict, *, advice: str = AGAIN
) -> Any:
    """What a piece of JSON holds.

    Args:
        data: the JSON, as UTF-8 where it is bytes.
        place: the file it is of, for errors.
        kind: as in `read_json`.
        advice: as in `read_json`.

    Raises:
        DamagedFileError: as `read_json`.
    """
    try:
        if isinstance(data, bytes):
            data = data.decode("utf-8-sig")
        values = bounded_json(data)
    except ValueError as error:
        raise DamagedFileError(f"{place} is not valid json: {error}. {advice}") from error
    if not isinstance(values, kind):
        got = type(values).__name__
        raise DamagedFileError(f"{place} must hold a json {_KINDS[kind]}, got {got}. {advice}")
    return values


def bounded_json(
    text: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None, *, strict: bool = True
) -> Any:
    """As `json.loads`, within the bounds of this module.

    Args:
        text: the JSON.
        pairs: makes an object of its pairs; it may raise ValueError.
        strict: whether texts must be Unicode and whole numbers short; False leaves both to who
            takes the values.

    Raises:
        ValueError: no JSON, or beyond a bound.
    """
    parse_int = None
    if strict:
        parse_int = _whole
    try:
        values = json.loads(text, parse_int=parse_int, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    except MemoryError:
        raise ValueError("it does not fit into memory") from None
    _check(values, strict)
    return values


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(
            f"a whole number of {len(digits)} digits, where at most {MAX_DIGITS} are read"
        )
    return int(digits)


def _check(values: Any, texts: bool) -> None:
    """Refuses nesting beyond `MAX_DEPTH`, and texts that are no Unicode; without recursion of its
    own.

    Raises:
        ValueError: it says why.
    """
    level = [values]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for value in level:
            if texts and isinstance(value, str):
                _check_text(value)
            elif isinstance(value, dict):
                if texts:
                    for key in value:
                        _check_text(key)
                deeper += value.values()
            elif isinstance(value, list):
                deeper += value
        level = deeper
        if not level:
            return
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = ord(text[error.start])
            raise ValueError(
                f"half of a surrogate pair (\\u{half:04x}) in {text[:60]!a}, no Unicode"
            ) from None
