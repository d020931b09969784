"""Json files of models: one reader, one error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: Path, kind: type = dict) -> Any:
    """What a json file holds.

    Args:
        path: the file.
        kind: `dict` for an object, `list` for an array.

    Raises:
        OSError: it is no json, or holds something else; damaged files are to be fetched again.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"{path} is not valid json: {error}. Fetch or write the file again.") from error
    if not isinstance(values, kind):
        wanted = "object" if kind is dict else "array"
        raise OSError(f"{path} must hold a json {wanted}, got {type(values).__name__}. Fetch or write the file again.")
    return values
