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
    more = [
        token for token in new_special_tokens if str(token) not in {old.content for old in special}
    ]
    chosen: dict[str, Any] = {
        "vocab_size": vocab_size,
        "special_tokens": [*special, *more],
        "show_progress": False,
    }
    unknown = content["model"].get("unk_token")
    content.update(added_tokens=[], post_processor=None)
    if kind == "Unigram":
        index = content["model"].get("unk_id")
        unknown = content["model"]["vocab"][0 if index is None else index][0]
        content["model"].update(vocab=[[renamed.get(unknown, unknown), 0.0]], unk_id=0)
        chosen["unk_token"] = renamed.get(unknown, unknown)
    else:
        content["model"]["vocab"] = {}
    if kind == "BPE":
        content["model"]["merges"] = []
    if unknown in renamed and kind != "Unigram":
        content["model"]["unk_token"] = renamed[unknown]
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if kind in ("BPE", "WordPiece") and content["model"].get(option) is not None:
            chosen[option] = content["model"][option]
    if isinstance(files.backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        chosen["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer.from_str(json.dumps(content))
    backend.train_from_iterator(
        texts, trainer=getattr(trainers, _TRAINERS[kind])(**{**chosen, **options}), length=length
    )
    config = copy.deepcopy(files.config)
    for name in SPECIAL_NAMES:
        config[name] = renamed.get(config[name], config[name])
    config[EXTRA] = [renamed.get(token, token) for token in config[EXTRA]] + [
        str(token) for token in more
    ]
    config.pop("added_tokens_decoder", None)
    if files.backend.post_processor is not None:
        _frame_again(backend, files, config, renamed)
    return TokenizerFiles(backend, config, files.family)


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
