"""Writes a tokenizer folder that transformers 4.x, 5.x and this package read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_core.tokenization.pipelines import VOCABULARY_FILES, portable_json, vocabulary_files
from rag_core.tokenization.reading import EXTRA, SPECIAL_NAMES

if TYPE_CHECKING:
    from rag_core.tokenization.tokenizer import Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    *VOCABULARY_FILES,
)
# written by transformers 5 about where a folder came from; untrue of the copy
_STALE = (
    "is_local",
    "local_files_only",
    "name_or_path",
    "special_tokens_map_file",
    "tokenizer_file",
    "backend",
)


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Writes tokenizer.json, the vocabulary files, tokenizer_config.json and
    special_tokens_map.json.

    Args:
        tokenizer: what to write.
        folder: an existing folder.

    Returns:
        The names of the files written.
    """
    files = tokenizer._files
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(portable_json(files.backend), "utf-8")
    names = ["tokenizer.json", *(path.name for path in vocabulary_files(files.backend, folder))]
    for name, source in files.sources.items():
        (folder / name).write_bytes(source)
        names.append(name)
    special = tokenizer.special_tokens_map
    config: dict[str, Any] = {
        key: value for key, value in files.config.items() if key not in _STALE
    }
    # null where there is none
    config.update({name: getattr(tokenizer, name) for name in (*SPECIAL_NAMES, EXTRA)})
    if tokenizer.split_special_tokens or "split_special_tokens" in config:
        config["split_special_tokens"] = tokenizer.split_special_tokens
    config.update(
        special,
        added_tokens_decoder={
            str(index): {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for index, token in sorted(files.backend.get_added_tokens_decoder().items())
        },
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        tokenizer_class=_class_name(config.get("tokenizer_class"), files.family.tokenizer_class),
    )
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
        _write_json(folder / name, content)
        names.append(name)
    return names


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Adds settings to the tokenizer_config.json of a folder that a tokenizer wrote, of whatever
    library; None takes one out.
    """
    path = folder / "tokenizer_config.json"
    config = {}
    if path.exists():
        config = json.loads(path.read_text("utf-8"))
    kept = {name: value for name, value in config.items() if name not in settings}
    added = {name: value for name, value in settings.items() if value is not None}
    if kept | added != config:
        _write_json(path, kept | added)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", "utf-8")


def _class_name(declared: str | None, family: str) -> str:
    # transformers 5 names BART's tokenizer RobertaTokenizer, and unknown ones TokenizersBackend,
    # which 4.x lacks
    name = str(declared)
    if name.startswith("DPR") or name.removesuffix("Fast") in ("RobertaTokenizer", family):
        return name
    return family
