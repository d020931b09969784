"""Reads a tokenizer folder as transformers 4.x or 5.x wrote it.

Its family, special tokens and vocabulary.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_core.hub import AGAIN, DamagedFileError, read_json, reading, resolve_file
from rag_core.tokenization.pipelines import (
    BART,
    BUILDERS,
    FAMILIES,
    FAMILY_OF,
    OTHER,
    T5,
    Family,
    follow_config,
    frame_texts,
)

if TYPE_CHECKING:
    import tokenizers

SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
EXTRA = "additional_special_tokens"

logger = logging.getLogger(__name__)


@dataclass
class TokenizerFiles:
    """A tokenizer's parts.

    The `tokenizers` pipeline, its settings (foreign keys kept) and its family.
    """

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
    config = _settings(resolve_file(name_or_path, "tokenizer_config.json", required=False, **hub))
    place = resolve_file(name_or_path, "config.json", required=False, **hub)
    model_config = {} if place is None else read_json(place)
    special = _settings(
        resolve_file(name_or_path, "special_tokens_map.json", required=False, **hub)
    )
    flags = {
        _content(value): value
        for value in _flat(special.values())
        if isinstance(value, dict) and _is_token(value)
    }
    for key, value in special.items():
        # from 4.34 on tokenizer_config.json is complete; before, the map was the later word
        if not config.get(key) or "added_tokens_decoder" not in config:
            config[key] = value
    added = {
        int(index): token for index, token in (config.get("added_tokens_decoder") or {}).items()
    }
    legacy = _legacy_tokens(resolve_file(name_or_path, "added_tokens.json", required=False, **hub))
    for token, index in legacy.items():
        added.setdefault(index, {"content": token})
    config.update(overrides)

    serialized = resolve_file(name_or_path, "tokenizer.json", required=False, **hub)
    backend = _deserialize(serialized) if serialized else None
    family = _declared_family(config, model_config) or wanted
    sources: dict[str, bytes] = {}
    vocabulary = f"the tokenizer of {name_or_path}"
    for kind in FAMILIES:
        if kind is family or (family is None and (backend is None or kind is T5)):
            found = {
                name: resolve_file(name_or_path, name, required=False, **hub)
                for name in kind.vocabulary_files
            }
            if all(found.values()):
                family = kind
                sources = {name: path.read_bytes() for name, path in found.items() if path}
                vocabulary = " with ".join(str(path) for path in found.values())
                break
    family = family or _recognized_family(backend)
    if backend is None and not sources:
        names = [
            name for kind in FAMILIES if family in (kind, OTHER) for name in kind.vocabulary_files
        ]
        folder = f"{name_or_path}/{hub['subfolder']}" if hub.get("subfolder") else str(name_or_path)
        raise OSError(
            f"{folder}: no tokenizer found; looked for tokenizer.json and {', '.join(names)}"
        )
    where = str(serialized) if backend is not None else vocabulary
    return _assembled(config, family, backend, sources, added, flags, where)


def read_vocabulary(
    family: Family, paths: Mapping[str, Any], tokenizer_file: Any, settings: Mapping[str, Any]
) -> TokenizerFiles:
    """Makes a tokenizer of single files.

    Args:
        family: whose vocabulary it is.
        paths: paths by the names that the files have in a folder; None for all with a
            `tokenizer_file`.
        tokenizer_file: path of a tokenizer.json, or None.
        settings: as in tokenizer_config.json.

    Raises:
        TypeError: no path, or some are missing.
        OSError: a file can't be read.
    """
    given = {name: path for name, path in paths.items() if path is not None}
    for name, path in (*given.items(), ("tokenizer.json", tokenizer_file)):
        if not isinstance(path, str | os.PathLike | None):
            raise TypeError(
                f"the path of {name} must be a str or Path, got {path!r}. Give settings by their "
                "names"
            )
    if tokenizer_file is None and len(given) < len(paths):
        raise TypeError(
            f"files must be {' and '.join(paths)}, or tokenizer.json, got {list(given) or 'none'}"
        )
    sources = {name: Path(path).read_bytes() for name, path in given.items()}
    backend = None if tokenizer_file is None else _deserialize(Path(tokenizer_file))
    where = str(tokenizer_file or " with ".join(str(path) for path in given.values()))
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
    """The tokenizer of what was read of files; `where` names those of its vocabulary."""
    with reading(where, "and the settings beside it make no tokenizer"):
        found = _built(config, family, backend, sources, added, flags, where)
        _try(found.backend)
        return found


def _try(backend: tokenizers.Tokenizer) -> None:
    """Encodes and decodes two words.

    What a pipeline panics at, it panics at here, where it is an error.
    """
    try:
        backend.decode(backend.encode("A b.").ids)
    except Exception:  # a vocabulary without these letters, and without an unknown token, can't
        return


def _built(
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
    lacking = [
        config[name]
        for name in SPECIAL_NAMES
        if built and config[name] and not _holds(backend, config[name])
    ]
    _add_tokens(backend, config, added, flags, family)
    if lacking:
        places = {token: backend.token_to_id(token) for token in lacking}
        logger.warning(
            "%s: the vocabulary lacks special tokens; they go to its end, as %s", where, places
        )
    if built:
        frame_texts(backend, family, config)
    keep = {"spiece.model": sources["spiece.model"]} if "spiece.model" in sources else {}
    return TokenizerFiles(backend, config, family, keep)


def _settings(path: Path | None) -> dict[str, Any]:
    """The settings of tokenizer_config.json or special_tokens_map.json.

    Those that are acted on are of their kind.
    """
    if path is None:
        return {}
    values: dict[str, Any] = read_json(path)
    for name, (fits, wanted) in _KINDS.items():
        value = values.get(name)
        if value is not None and not fits(value):
            raise DamagedFileError(f"{path}: {name} must be {wanted}, got {value!r:.100}. {AGAIN}")
    return values


def _legacy_tokens(path: Path | None) -> dict[str, int]:
    if path is None:
        return {}
    values: dict[str, int] = read_json(path)
    for token, index in values.items():
        if not _is_whole(index):
            raise DamagedFileError(
                f"{path}: the id of {token!r:.60} must be a whole number, got {index!r:.60}. "
                f"{AGAIN}"
            )
    return values


def _is_whole(value: Any, most: int = 2**31) -> bool:
    return type(value) is int and 0 <= value < most


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, dict) and isinstance(value.get("content"), str)
    )


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list | dict) and all(
        map(_is_token, value.values() if isinstance(value, dict) else value)
    )


def _is_numbered(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return all(
        key.isdecimal() and len(key) < 10 and isinstance(each, dict) and _is_token(each)
        for key, each in value.items()
    )


def _is_length(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


_TOKEN = (_is_token, "a token: a text, or an object with its content")
_TOKENS = (_is_tokens, "a list of tokens: texts, or objects with their content")
_FLAG = (_is_flag, "true, false or null")
_LENGTH = (_is_length, "a number of tokens")
# What a setting must be to be acted on; null leaves it unsaid.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(SPECIAL_NAMES, _TOKEN),
    EXTRA: _TOKENS,
    "extra_special_tokens": _TOKENS,
    "added_tokens_decoder": (
        _is_numbered,
        "an object of ids, each with an object that has its content",
    ),
    "extra_ids": (functools.partial(_is_whole, most=100_000), "a whole number below 100,000"),
    "pad_token_type_id": (_is_whole, "a whole number"),
    "model_max_length": _LENGTH,
    "max_len": _LENGTH,
    "model_input_names": (_is_names, "a list of names"),
    **dict.fromkeys(
        ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space"), _FLAG
    ),
    **dict.fromkeys(("clean_up_tokenization_spaces", "split_special_tokens"), _FLAG),
}


def _deserialize(path: Path) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer

    advice = "It is cut short, or too new for the library: fetch it again."
    with reading(path, "can't be read by the tokenizers library", advice):
        return Tokenizer.from_file(str(path))


def _declared_family(config: Mapping[str, Any], model_config: Mapping[str, Any]) -> Family | None:
    name = (
        str(config.get("tokenizer_class") or "")
        .removesuffix("Fast")
        .removesuffix("Tokenizer")
        .lower()
    )
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


def _settle_special_tokens(
    config: dict[str, Any], family: Family, backend: tokenizers.Tokenizer | None
) -> None:
    """Leaves each special token in `config` as plain text, from the files or else the family's
    habit.
    """
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
    """Declares the added and special tokens that the pipeline does not have yet, in the order of
    their ids.
    """
    from tokenizers import AddedToken

    special = list(
        dict.fromkeys([*(config[name] for name in SPECIAL_NAMES if config[name]), *config[EXTRA]])
    )
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
        defaults = {
            "normalized": not is_special,
            "lstrip": family is BART and text == config["mask_token"],
        }
        options = {
            key: bool(settings.get(key, defaults.get(key, False)))
            for key in ("single_word", "lstrip", "rstrip", "normalized")
        }
        token = AddedToken(text, special=is_special, **options)
        (backend.add_special_tokens if is_special else backend.add_tokens)([token])
        if index is not None and backend.token_to_id(text) != index:
            raise ValueError(
                f"added token {text!r} should have id {index}, the vocabulary gives it "
                f"{backend.token_to_id(text)}; vocabulary and added_tokens belong to different "
                "tokenizers"
            )
