"""Metadata of passages on disk: a JSON object a passage, in a column of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rag_core.hub import AGAIN, DamagedFileError, bounded_json

METADATA_COLUMN = "metadata_json"
# Every passage of a document holds it again.
METADATA_CHARS = 1 << 16
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def encode_metadata(metadata: Mapping[str, Any], place: str) -> str:
    """The JSON of a passage's metadata.

    Args:
        metadata: JSON values by name.
        place: where the passage comes from, for errors.

    Raises:
        ValueError: a value that JSON does not have, or too many of them.
    """
    try:
        text = _ENCODER.encode(metadata)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{place}: metadata must be JSON, got {metadata!r:.100} ({error!s:.100}). Give texts, "
            "finite numbers, true, false, null and lists of them."
        ) from None
    if len(text) > METADATA_CHARS:
        raise ValueError(
            f"{place}: metadata must have at most {METADATA_CHARS:,} characters as JSON, got "
            f"{len(text):,}. Every passage holds it: leave the longest columns out."
        )
    return text


def decode_metadata(text: str | None, place: str) -> dict[str, Any]:
    """The metadata that a file holds, {} where nothing is known.

    Args:
        text: the JSON; None is unknown.
        place: the file, for errors.

    Raises:
        DamagedFileError: it is no JSON object, or beyond what is ever written.
    """
    if text is None:
        return {}
    try:
        if len(text) > METADATA_CHARS:
            raise ValueError(f"it has {len(text):,} characters")
        metadata = bounded_json(text)
        if not isinstance(metadata, dict):
            raise ValueError(f"it is a {type(metadata).__name__}")
        # Python's reader takes NaN and Infinity, JSON does not have them.
        if "NaN" in text or "Infinity" in text:
            json.dumps(metadata, allow_nan=False)
    except ValueError as error:
        raise DamagedFileError(
            f"column {METADATA_COLUMN!r} of {place} must hold JSON objects of at most "
            f"{METADATA_CHARS:,} characters, got {text!r:.60} ({error!s:.100}). {AGAIN}"
        ) from None
    return metadata
