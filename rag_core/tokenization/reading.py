"""Reads a tokenizer folder as transformers 4.x or 5.x wrote it.

Its family, special tokens and vocabulary.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_core.checks import as_list
from rag_core.hub import AGAIN, DamagedFileError, read_json, reading, resolve_file
from rag_core.tokenization.pipelines import (
    BART,
    BERT,
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


@dataclass
class _Parts:
    """What was read of files, to make a tokenizer of.

    Attributes:
        config: the settings of tokenizer_config.json, foreign keys kept.
        family: of the tokenizer.
        backend: the pipeline of tokenizer.json; None: it is to be built of `sources`.
        sources: bytes of the vocabulary's files by name.
        where: the files of the vocabulary, for errors.
        added: added tokens by id, with or without their settings.
        flags: settings of special tokens, by token.
    """

    config: dict[str, Any]
    family: Family
    backend: tokenizers.Tokenizer | None
    sources: dict[str, bytes]
    where: str
    added: Mapping[int, Any] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)


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

    def place_of(name: str) -> Path | None:
        return resolve_file(name_or_path, name, required=False, **hub)

    config = _settings(place_of("tokenizer_config.json"))
    model_config = {}
    if place := place_of("config.json"):
        model_config = read_json(place)
    special = _settings(place_of("special_tokens_map.json"))
    # From 4.34 on tokenizer_config.json is complete; before, the map was the later word.
    is_complete = "added_tokens_decoder" in config
    for key, value in special.items():
        if not is_complete or not config.get(key):
            config[key] = value
    decoder = config.get("added_tokens_decoder") or {}
    added = {int(index): token for index, token in decoder.items()}
    for token, index in _legacy_tokens(place_of("added_tokens.json")).items():
        added.setdefault(index, {"content": token})
    config.update(overrides)

    backend = None
    if serialized := place_of("tokenizer.json"):
        backend = _deserialize(serialized)
    family = _declared_family(config, model_config) or wanted
    sources: dict[str, bytes] = {}
    where = f"the tokenizer of {name_or_path}"
    for kind in FAMILIES:
        # T5's pipeline alone does not say what its vocabulary file does.
        is_possible = family is None and (backend is None or kind is T5)
        if kind is family or is_possible:
            places = {name: place_of(name) for name in kind.vocabulary_files}
            if all(places.values()):
                family = kind
                sources = {name: place.read_bytes() for name, place in places.items() if place}
                where = " with ".join(map(str, places.values()))
                break
    family = family or _recognized_family(backend)
    if backend is not None:
        where = str(serialized)
    elif not sources:
        kinds = FAMILIES if family is OTHER else (family,)
        names = [name for kind in kinds for name in kind.vocabulary_files]
        folder = "/".join(filter(None, (str(name_or_path), hub.get("subfolder"))))
        raise OSError(
            f"{folder}: no tokenizer found; looked for tokenizer.json and {', '.join(names)}"
        )
    flags = {token["content"]: token for token in _flat(special.values()) if _is_object(token)}
    return _assembled(_Parts(config, family, backend, sources, where, added, flags))


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
    places = {name: path for name, path in paths.items() if path is not None}
    for name, path in (*places.items(), ("tokenizer.json", tokenizer_file)):
        if not isinstance(path, str | os.PathLike | None):
            raise TypeError(
                f"the path of {name} must be a str or Path, got {path!r}. Give settings by their "
                "names"
            )
    if tokenizer_file is None and len(places) < len(paths):
        raise TypeError(
            f"files must be {' and '.join(paths)}, or tokenizer.json, got {list(places) or 'none'}"
        )
    backend = None
    if tokenizer_file is not None:
        backend = _deserialize(Path(tokenizer_file))
    sources = {name: Path(path).read_bytes() for name, path in places.items()}
    where = str(tokenizer_file or " with ".join(map(str, places.values())))
    return _assembled(_Parts(dict(settings), family, backend, sources, where))


def _assembled(parts: _Parts) -> TokenizerFiles:
    # Whatever the library raises or panics at is about these files.
    with reading(parts.where, "and the settings beside it make no tokenizer"):
        files = _built(parts)
        _try(files.backend)
        return files


def _try(backend: tokenizers.Tokenizer) -> None:
    """Encodes and decodes two words.

    What a pipeline panics at, it panics at here, where it is an error.
    """
    try:
        backend.decode(backend.encode("A b.").ids)
    except Exception:  # a vocabulary without these letters, and without an unknown token, can't
        return


def _built(parts: _Parts) -> TokenizerFiles:
    config, family = parts.config, parts.family
    _settle_special_tokens(parts)
    backend = parts.backend
    if backend is None:
        backend = BUILDERS[family.name](parts.sources, config)
    follow_config(backend, config)
    _check_sides(config, parts.where)
    named = [config[name] for name in SPECIAL_NAMES if config[name]]
    missing = [token for token in named if backend.token_to_id(token) is None]
    _add_tokens(backend, parts)
    if parts.backend is None:
        if missing:
            logger.warning(
                "%s: the vocabulary lacks special tokens; they go to its end, as %s",
                parts.where,
                {token: backend.token_to_id(token) for token in missing},
            )
        frame_texts(backend, family, config)
    # The library can't write T5's file; it writes those of the other families itself.
    sources = {name: source for name, source in parts.sources.items() if name == "spiece.model"}
    return TokenizerFiles(backend, config, family, sources)


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


def _is_object(value: Any) -> bool:
    """Whether a token is written with its settings."""
    return isinstance(value, dict) and isinstance(value.get("content"), str)


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or _is_object(value)


def _is_tokens(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list) and all(map(_is_token, value))


def _is_numbered(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    are_ids = all(key.isdecimal() and len(key) < 10 for key in value)
    return are_ids and all(map(_is_object, value.values()))


def _is_length(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


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
    # of RagTokenizer, about its questions
    "query_prompt": (lambda value: isinstance(value, str), "a text"),
    "query_lower_case": _FLAG,
    "query_max_length": (_is_whole, "a whole number"),
}


def _deserialize(path: Path) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer

    advice = "It is cut short, or too new for the library: fetch it again."
    with reading(path, "can't be read by the tokenizers library", advice):
        return Tokenizer.from_file(str(path))


def _declared_family(config: Mapping[str, Any], model_config: Mapping[str, Any]) -> Family | None:
    name = str(config.get("tokenizer_class") or "")
    name = name.removesuffix("Fast").removesuffix("Tokenizer").lower()
    return FAMILY_OF.get(name) or FAMILY_OF.get(str(model_config.get("model_type")))


def _recognized_family(backend: tokenizers.Tokenizer | None) -> Family:
    if backend is None:
        return OTHER
    model = type(backend.model).__name__
    for kind, family, witness in (
        ("WordPiece", BERT, "[CLS]"),
        ("BPE", BART, "<s>"),
        ("Unigram", T5, "<extra_id_0>"),
    ):
        if model == kind and backend.token_to_id(witness) is not None:
            return family
    return OTHER


def _check_sides(config: Mapping[str, Any], where: str) -> None:
    for name in ("padding_side", "truncation_side"):
        if config.get(name, "right") not in ("right", "left"):
            raise ValueError(f"{where}: {name} must be 'right' or 'left', got {config[name]!r}")


def _content(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else str(token)


def _flat(values: Iterable[Any]) -> list[Any]:
    """The values, and those of lists among them, in a row."""
    return list(chain.from_iterable(map(as_list, values)))


def _settle_special_tokens(parts: _Parts) -> None:
    """Leaves each special token in the settings as plain text, from the files or else the family's
    habit.
    """
    config, family, backend = parts.config, parts.family, parts.backend
    for name in SPECIAL_NAMES:
        default = family.special_tokens.get(name)
        if default and backend is not None and backend.token_to_id(default) is None:
            default = None
        config[name] = config.get(name, default)
        if config[name] is not None:
            config[name] = _content(config[name])
    extra = config.get(EXTRA) or config.pop("extra_special_tokens", None) or []
    if isinstance(extra, dict):
        extra = list(extra.values())
    extra = [_content(token) for token in extra]
    if family is T5 and not any("<extra_id_" in token for token in extra):
        extra += [f"<extra_id_{i}>" for i in range(int(config.get("extra_ids", 100)))]
    config[EXTRA] = extra


def _add_tokens(backend: tokenizers.Tokenizer, parts: _Parts) -> None:
    """Declares the added and special tokens that the pipeline does not have yet, in the order of
    their ids.
    """
    from tokenizers import AddedToken

    config = parts.config
    named = [config[name] for name in SPECIAL_NAMES if config[name]]
    special = list(dict.fromkeys([*named, *config[EXTRA]]))
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    declared: dict[str, tuple[int | None, Any]] = {}
    for number, token in sorted(parts.added.items()):
        declared[_content(token)] = number, token
    for token in sorted(special, key=lambda token: backend.token_to_id(token) or 0):
        declared.setdefault(token, (None, parts.flags.get(token, {})))
    for text, (index, settings) in declared.items():
        if text in known:
            continue
        is_special = bool(settings.get("special")) or text in special
        options = {
            # BART's mask stands for a word with the blank before it.
            "lstrip": parts.family is BART and text == config["mask_token"],
            # Special tokens are looked for in the text as it is written.
            "normalized": not is_special,
            "rstrip": False,
            "single_word": False,
        }
        options = {name: bool(settings.get(name, default)) for name, default in options.items()}
        token = AddedToken(text, special=is_special, **options)
        if is_special:
            backend.add_special_tokens([token])
        else:
            backend.add_tokens([token])
        if index is not None and backend.token_to_id(text) != index:
            raise ValueError(
                f"added token {text!r} must have the id {index}, got {backend.token_to_id(text)} "
                "of the vocabulary. They belong to different tokenizers: fetch both again"
            )
