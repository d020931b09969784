"""A new vocabulary for a tokenizer.

The same pipeline and special tokens, learned from other texts.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rag_core.tokenization.pipelines import frame_texts
from rag_core.tokenization.reading import EXTRA, SPECIAL_NAMES, TokenizerFiles

if TYPE_CHECKING:
    import tokenizers

_TRAINERS = {
    "BPE": "BpeTrainer",
    "WordPiece": "WordPieceTrainer",
    "Unigram": "UnigramTrainer",
    "WordLevel": "WordLevelTrainer",
}


def trained_files(
    files: TokenizerFiles,
    texts: Iterable[Any],
    vocab_size: int,
    length: int | None,
    new_special_tokens: Iterable[Any],
    renamed: Mapping[str, str],
    options: Mapping[str, Any],
) -> TokenizerFiles:
    """Learn a vocabulary; arguments as of `Tokenizer.train_new_from_iterator`.

    Raises:
        ValueError: the pipeline's model is of a kind that cannot be trained, or its special tokens
            stand elsewhere than around texts.
    """
    from tokenizers import AddedToken, Tokenizer, pre_tokenizers, trainers

    content = json.loads(files.backend.to_str())
    kind = content["model"]["type"]
    if kind not in _TRAINERS:
        raise ValueError(
            f"a tokenizer must be one of {sorted(_TRAINERS)} to be trained anew, got {kind}"
        )
    special = [
        AddedToken(
            renamed.get(token.content, token.content),
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized,
            special=True,
        )
        for _, token in sorted(files.backend.get_added_tokens_decoder().items())
        if token.special
    ]
    known = {token.content for token in special}
    more = [token for token in new_special_tokens if str(token) not in known]
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "special_tokens": [*special, *more],
        "show_progress": False,
        **_emptied(content["model"], renamed),
    }
    if isinstance(files.backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        # Bytes that no text holds are in the vocabulary, too: else some texts would have no ids.
        settings["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    settings.update(options)
    # The special tokens' step names ids of the old vocabulary: it is made again at the end.
    content.update(added_tokens=[], post_processor=None)
    backend = Tokenizer.from_str(json.dumps(content))
    trainer = getattr(trainers, _TRAINERS[kind])(**settings)
    backend.train_from_iterator(texts, trainer=trainer, length=length)
    config = copy.deepcopy(files.config)
    for name in SPECIAL_NAMES:
        config[name] = renamed.get(config[name], config[name])
    config[EXTRA] = [renamed.get(token, token) for token in config[EXTRA]]
    config[EXTRA] += map(str, more)
    config.pop("added_tokens_decoder", None)
    if files.backend.post_processor is not None:
        _frame_again(backend, files, config, renamed)
    return TokenizerFiles(backend, config, files.family)


def _emptied(model: dict[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Takes the vocabulary out of a model; returns what a trainer is to know of the old one."""
    kind = model["type"]
    if kind == "Unigram":
        # Its unknown token is named by its place, and a model without it can't be read.
        unknown = model["vocab"][model.get("unk_id") or 0][0]
        unknown = renamed.get(unknown, unknown)
        model.update(vocab=[[unknown, 0.0]], unk_id=0)
        return {"unk_token": unknown}
    model["vocab"] = {}
    if kind == "BPE":
        model["merges"] = []
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    if kind == "WordLevel":
        return {}
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    return {affix: model[affix] for affix in affixes if model.get(affix) is not None}


def _frame_again(
    backend: tokenizers.Tokenizer,
    files: TokenizerFiles,
    config: Mapping[str, Any],
    renamed: Mapping[str, str],
) -> None:
    if files.family.vocabulary_files:
        frame_texts(backend, files.family, config)
        return
    # A template of another family: the same tokens at their new ids.
    from tokenizers import Tokenizer

    content = json.loads(backend.to_str())
    processor = json.loads(files.backend.to_str())["post_processor"]
    if processor["type"] != "TemplateProcessing":
        raise ValueError(
            "a tokenizer must put special tokens around texts by a template to be trained anew, "
            f"got {processor['type']}"
        )
    for token in processor["special_tokens"].values():
        token["tokens"] = [renamed.get(name, name) for name in token["tokens"]]
        token["ids"] = [backend.token_to_id(name) for name in token["tokens"]]
    content["post_processor"] = processor
    backend.post_processor = Tokenizer.from_str(json.dumps(content)).post_processor
