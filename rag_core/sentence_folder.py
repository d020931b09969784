"""What the files of a sentence-transformers folder say about an encoder: pooling, normalisation, text length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rag_core.hub import resolve_file
from rag_core.json_files import read_json

_POOLING = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


def sentence_settings(name_or_path: str | Path, **hub: Any) -> dict[str, Any] | None:
    """The settings of a sentence-transformers folder or repository; None for any other.

    Args:
        name_or_path: folder or repository id.
        **hub: hub options.

    Returns:
        `pooling` ("cls" or "mean") and `normalize`, fields of `BertConfig`, and `max_length` in tokens, None if unsaid.

    Raises:
        OSError: a file that modules.json names is missing or unreadable.
        ValueError: a module or a way of pooling that nothing here computes.
    """
    path = resolve_file(name_or_path, "modules.json", required=False, **hub)
    if path is None:
        return None
    settings: dict[str, Any] = {"pooling": None, "normalize": False, "max_length": None}
    for module in read_json(path, list):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            place = resolve_file(name_or_path, f"{module['path']}/config.json", **hub)
            settings["pooling"] = _pooling(read_json(place))
        elif kind == "Normalize":
            settings["normalize"] = True
        elif kind != "Transformer" or module.get("path"):
            raise ValueError(
                f"{name_or_path} is a sentence encoder with a {kind} module in {module.get('path')!r}; only a "
                "Transformer at the top of the folder, Pooling and Normalize are known"
            )
    if settings["pooling"] is None:
        raise ValueError(f"{name_or_path}/modules.json names no Pooling module")
    lengths = resolve_file(name_or_path, "sentence_bert_config.json", required=False, **hub)
    if lengths is not None:
        settings["max_length"] = read_json(lengths).get("max_seq_length")
    return settings


def _pooling(values: dict[str, Any]) -> str:
    modes = [name for name, value in values.items() if name.startswith("pooling_mode_") and value is True]
    named = values.get("pooling_mode")
    if named in ("cls", "mean") and not modes:
        return str(named)
    if len(modes) == 1 and modes[0] in _POOLING:
        return _POOLING[modes[0]]
    raise ValueError(f"pooling must be one of {', '.join(_POOLING)} alone, got {', '.join(modes) or named}")
