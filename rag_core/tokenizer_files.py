"""Reads a tokenizer folder as transformers 4.x or 5.x wrote it: its family, special tokens and vocabulary."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_core.hub import resolve_file
from rag_core.tokenizer_build import BART, BUILDERS, FAMILIES, FAMILY_OF, OTHER, T5, Family, follow_config, frame_texts

if TYPE_CHECKING:
    import tokenizers

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA = "additional_special_tokens"

logger = logging.getLogger(__name__)


@dataclass
class TokenizerFiles:
    """A tokenizer's parts: the `tokenizers` pipeline, its settings (foreign keys kept) and its family."""

    backend: tokenizers.Tokenizer
    config: dict[str, Any]
    family: Family
    sources: dict[str, bytes] = field(default_factory=dict)


def read_tokenizer(
    name_or_path: str | Path, overrides: Mapping[str, Any], wanted: Family | None = None, **hub: Any
) -> TokenizerFiles:
    """Reads a tokenizer from a folder or a hub repository.

    Args:
        name_or_path: folder or repository id.
        overrides: settings that replace those of tokenizer_config.json.
        wanted: the family where the files do not say.
        **hub: keyword arguments of `rag_core.hub.resolve_file` (subfolder, revision, token, ...).

    Raises:
        OSError: no vocabulary was found.
        ValueError: a file is not what its name says.
        ImportError: a `spiece.model` without the packages that read it.
    """
    config = _read_json(resolve_file(name_or_path, "tokenizer_config.json", required=False, **hub))
    model_config = _read_json(resolve_file(name_or_path, "config.json", required=False, **hub))
    special = _read_json(resolve_file(name_or_path, "special_tokens_map.json", required=False, **hub))
    flags = {_content(value): value for value in _flat(special.values()) if isinstance(value, dict)}
    for key, value in special.items():
        # from 4.34 on tokenizer_config.json is complete; before, the map was the later word
        if not config.get(key) or "added_tokens_decoder" not in config:
            config[key] = value
    added = {int(index): token for index, token in (config.get("added_tokens_decoder") or {}).items()}
    legacy = _read_json(resolve_file(name_or_path, "added_tokens.json", required=False, **hub))
    for token, index in legacy.items():
        added.setdefault(index, {"content": token})
    config.update(overrides)

    serialized = resolve_file(name_or_path, "tokenizer.json", required=False, **hub)
    backend = _deserialize(serialized) if serialized else None
    family = _declared_family(config, model_config) or wanted
    sources: dict[str, bytes] = {}
    for kind in FAMILIES:
        if kind is family or (family is None and (backend is None or kind is T5)):
            found = {name: resolve_file(name_or_path, name, required=False, **hub) for name in kind.vocabulary_files}
            if all(found.values()):
                family = kind
                sources = {name: path.read_bytes() for name, path in found.items() if path}
                break
    family = family or _recognized_family(backend)
    if backend is None and not sources:
        names = [name for kind in FAMILIES if family in (kind, OTHER) for name in kind.vocabulary_files]
        place = f"{name_or_path}/{hub['subfolder']}" if hub.get("subfolder") else str(name_or_path)
        raise OSError(f"{place}: no tokenizer found; looked for tokenizer.json and {', '.join(names)}")
    return _assembled(config, family, backend, sources, added, flags, str(name_or_path))


def read_vocabulary(
    family: Family, paths: Mapping[str, Any], tokenizer_file: Any, settings: Mapping[str, Any]
) -> TokenizerFiles:
    """Makes a tokenizer of single files.

    Args:
        family: whose vocabulary it is.
        paths: paths by the names that the files have in a folder; None for all with a `tokenizer_file`.
        tokenizer_file: path of a tokenizer.json, or None.
        settings: as in tokenizer_config.json.

    Raises:
        TypeError: no path, or some are missing.
        OSError: a file can't be read.
    """
    given = {name: path for name, path in paths.items() if path is not None}
    for name, path in (*given.items(), ("tokenizer.json", tokenizer_file)):
        if not isinstance(path, str | os.PathLike | None):
            raise TypeError(f"the path of {name} must be a str or Path, got {path!r}. Give settings by their names")
    if tokenizer_file is None and len(given) < len(paths):
        raise TypeError(f"files must be {' and '.join(paths)}, or tokenizer.json, got {list(given) or 'none'}")
    sources = {name: Path(path).read_bytes() for name, path in given.items()}
    backend = None if tokenizer_file is None else _deserialize(Path(tokenizer_file))
    where = str(tokenizer_file or next(iter(given.values())))
    return _assembled(dict(settings), family, backend, sources, {}, {}, where)


def _assembled(
    config: dict[str, Any],
    family: Family,
    backend: tokenizers.Tokenizer | None,
    sources: dict[str, bytes],
    added: Mapping[int, Any],
    flags: Mapping[str, Any],
    where: str,
) -> TokenizerFiles:
    built = backend is None
    _settle_special_tokens(config, family, backend)
    if backend is None:
        backend = BUILDERS[family.name](sources, config)
    follow_config(backend, config)
    _check_sides(config, where)
    lacking = [config[name] for name in SPECIAL_NAMES if built and config[name] and not _holds(backend, config[name])]
    _add_tokens(backend, config, added, flags, family)
    if lacking:
        places = {token: backend.token_to_id(token) for token in lacking}
        logger.warning("%s: the vocabulary lacks special tokens; they go to its end, as %s", where, places)
    if built:
        frame_texts(backend, family, config)
    keep = {"spiece.model": sources["spiece.model"]} if "spiece.model" in sources else {}
    return TokenizerFiles(backend, config, family, keep)


def _read_json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Fetch the folder again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, it holds a {type(content).__name__}. Fetch the folder again")
    return content


def _deserialize(path: Path) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} can't be read by the tokenizers library (cut short or too new?): {error}") from error


def _declared_family(config: Mapping[str, Any], model_config: Mapping[str, Any]) -> Family | None:
    name = str(config.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer").lower()
    return FAMILY_OF.get(name) or FAMILY_OF.get(str(model_config.get("model_type")))


def _recognized_family(backend: tokenizers.Tokenizer | None) -> Family:
    model = type(backend.model).__name__ if backend is not None else None
    if backend is None:
        return OTHER
    for family, kind, witness in (
        (FAMILIES[0], "WordPiece", "[CLS]"),
        (FAMILIES[1], "BPE", "<s>"),
        (FAMILIES[2], "Unigram", "<extra_id_0>"),
    ):
        if model == kind and backend.token_to_id(witness) is not None:
            return family
    return OTHER


def _holds(backend: tokenizers.Tokenizer, token: str) -> bool:
    return backend.token_to_id(token) is not None


def _check_sides(config: Mapping[str, Any], where: str) -> None:
    for name in ("padding_side", "truncation_side"):
        if config.get(name, "right") not in ("right", "left"):
            raise ValueError(f"{where}: {name} must be 'right' or 'left', got {config[name]!r}")


def _content(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else str(token)


def _flat(values: Any) -> list[Any]:
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def _settle_special_tokens(config: dict[str, Any], family: Family, backend: tokenizers.Tokenizer | None) -> None:
    """Leaves each special token in `config` as plain text, from the files or else the family's habit."""
    for name in SPECIAL_NAMES:
        default = family.special_tokens.get(name)
        if default and backend is not None and backend.token_to_id(default) is None:
            default = None
        value = config.get(name, default)
        config[name] = None if value is None else _content(value)
    extra = config.get(EXTRA) or config.pop("extra_special_tokens", None) or []
    if isinstance(extra, dict):
        extra = list(extra.values())
    extra = [_content(token) for token in extra]
    if family is T5 and not any("<extra_id_" in token for token in extra):
        extra += [f"<extra_id_{i}>" for i in range(int(config.get("extra_ids", 100)))]
    config[EXTRA] = extra


def _add_tokens(
    backend: tokenizers.Tokenizer,
    config: Mapping[str, Any],
    added: Mapping[int, Any],
    flags: Mapping[str, Any],
    family: Family,
) -> None:
    """Declares the added and special tokens that the pipeline does not have yet, in the order of their ids."""
    from tokenizers import AddedToken

    special = list(dict.fromkeys([*(config[name] for name in SPECIAL_NAMES if config[name]), *config[EXTRA]]))
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    wanted: dict[str, tuple[int | None, Any]] = {
        _content(added[index]): (index, added[index]) for index in sorted(added)
    }
    for token in sorted(special, key=lambda token: backend.token_to_id(token) or 0):
        wanted.setdefault(token, (None, flags.get(token, {})))
    for text, (index, settings) in wanted.items():
        if text in known:
            continue
        is_special = bool(settings.get("special")) or text in special
        defaults = {"normalized": not is_special, "lstrip": family is BART and text == config["mask_token"]}
        options = {
            key: bool(settings.get(key, defaults.get(key, False)))
            for key in ("single_word", "lstrip", "rstrip", "normalized")
        }
        token = AddedToken(text, special=is_special, **options)
        (backend.add_special_tokens if is_special else backend.add_tokens)([token])
        if index is not None and backend.token_to_id(text) != index:
            raise ValueError(
                f"added token {text!r} should have id {index}, the vocabulary gives it {backend.token_to_id(text)}; "
                "vocabulary and added_tokens belong to different tokenizers"
            )
