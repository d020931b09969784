"""RagTokenizer (questions to one tokenizer, targets to the other) and AutoTokenizer.

Re-exports Tokenizer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rag_core.arguments import as_list
from rag_core.checks import warn
from rag_core.config import prepared_texts, read_config
from rag_core.hub import (
    Pushable,
    Saving,
    atomic_folder,
    checked_name,
    resolve_file,
    split_hub_kwargs,
)
from rag_core.tokenization.batch import BatchEncoding
from rag_core.tokenization.tokenizer import Tokenizer
from rag_core.tokenization.vocabulary import clean_up_tokenization, encoded_within
from rag_core.tokenization.writing import TOKENIZER_FILES, write_settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from rag_core.tokenization.keywords import CallKeywords, TokenizerKeywords

__all__ = ["AutoTokenizer", "BatchEncoding", "RagTokenizer", "Tokenizer", "clean_up_tokenization"]

QUESTION_FOLDER = "question_encoder_tokenizer"
GENERATOR_FOLDER = "generator_tokenizer"
# What a question goes through before its ids: of the model's config and, for a folder without one,
# of the question tokenizer's settings.
_QUESTION_SETTINGS = ("query_prompt", "query_lower_case", "query_max_length")
# Two tokenizers in one folder would be read as a mixture of both.
TOKENIZER_PATTERNS = tuple(
    f"{part}/{name}" for part in (QUESTION_FOLDER, GENERATOR_FOLDER) for name in TOKENIZER_FILES
)


class RagTokenizer(Pushable):
    """Both tokenizers of a RAG model.

    Questions go to the question encoder's tokenizer; targets go to the generator's, whose ids the
    loss is about (transformers 4.37.2 sends them to the question encoder's). Ids are decoded with
    the generator's.

    Args:
        question_encoder: tokenizer of questions.
        generator: tokenizer of targets and answers.
        config: the model's `RagConfig`, or its question encoder's. Sentence encoders may want a
            prompt in front of a question, lower case, or a length (`query_prompt`,
            `query_lower_case` and `query_max_length` of `BertConfig`). `from_pretrained` reads it,
            or what `save_pretrained` wrote of it, `RagRetriever.tokenizer` has it.
        tables: ids that the model's tables hold, of questions and of targets; special tokens beyond
            that a text spells become the unknown token. None hands on every id.

    Attributes:
        question_encoder: tokenizer of questions, ours or one of transformers.
        generator: tokenizer of targets and answers, ours or one of transformers.
        current_tokenizer: the one that plain `text` goes to; `question_encoder` unless switched to
            target mode.
    """

    def __init__(
        self,
        question_encoder: Any,
        generator: Any,
        config: Any = None,
        *,
        tables: tuple[int | None, int | None] = (None, None),
    ) -> None:
        for name, value in (("question_encoder", question_encoder), ("generator", generator)):
            if not callable(value) or not hasattr(value, "batch_decode"):
                raise TypeError(f"{name} must be a tokenizer, got {type(value).__name__}")
        self.question_encoder: Tokenizer = question_encoder
        self.generator: Tokenizer = generator
        # Code of transformers' examples switches between the two.
        self.current_tokenizer: Tokenizer = question_encoder
        self.tables = tables
        encoder_config = getattr(config, "question_encoder", config)
        self.query_prompt: str = getattr(encoder_config, "query_prompt", None) or ""
        self.query_lower_case: bool = bool(getattr(encoder_config, "query_lower_case", False))
        self.query_max_length: int | None = getattr(encoder_config, "query_max_length", None)

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        **kwargs: Unpack[CallKeywords],
    ) -> BatchEncoding:
        """Encodes questions, targets, or both.

        Args:
            text: a question or a list of them.
            text_pair: second texts of the questions.
            text_target: a target or a list of them, for the generator's tokenizer.
            **kwargs: as of `Tokenizer.__call__`.

        Returns:
            A BatchEncoding: input_ids and attention_mask (and token_type_ids) of the questions with
            the targets' ids as `labels`; of the targets alone if no text is given.
        """
        if text is None:
            if text_target is None:
                raise TypeError(
                    "text must be a str or a list of str, got None (and text_target is None too)"
                )
            return self.encode_targets(text_target, **kwargs)
        if self.current_tokenizer is self.question_encoder:
            encoded = self.encode_questions(text, text_pair=text_pair, **kwargs)
        else:
            encoded = self.current_tokenizer(text, text_pair, **kwargs)
        if text_target is not None:
            encoded["labels"] = self.encode_targets(text_target, **kwargs)["input_ids"]
        return encoded

    def encode_questions(
        self, questions: str | Iterable[str], **kwargs: Unpack[TokenizerKeywords]
    ) -> BatchEncoding:
        """Ids of questions in the question encoder's vocabulary, with its prompt in front if it
        has one.
        """
        questions = as_list(questions)
        if self.query_prompt or self.query_lower_case:
            texts = [questions] if isinstance(questions, str) else questions
            prepared = prepared_texts(texts, self.query_prompt, self.query_lower_case)
            questions = prepared[0] if isinstance(questions, str) else prepared
        if self.query_max_length and kwargs.get("truncation") and kwargs.get("max_length") is None:
            kwargs["max_length"] = self.query_max_length
        encoded = self.question_encoder(questions, **kwargs)
        return encoded_within(
            encoded, self.tables[0], self.question_encoder, kwargs.get("return_tensors")
        )

    def encode_targets(
        self, targets: str | Iterable[str], **kwargs: Unpack[TokenizerKeywords]
    ) -> BatchEncoding:
        """Ids of targets in the generator's vocabulary.

        Its `input_ids` are what a model takes as `labels`.
        """
        encoded = self.generator(text_target=as_list(targets), **kwargs)
        return encoded_within(encoded, self.tables[1], self.generator, kwargs.get("return_tensors"))

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        **kwargs: Any,
    ) -> str:
        """The text of one row of generated ids.

        Args:
            token_ids: a list, array or tensor of shape (L,).
            skip_special_tokens: leave special tokens out.
            **kwargs: as of the generator's tokenizer, see `Tokenizer.decode`.
        """
        return self.generator.decode(token_ids, skip_special_tokens, **kwargs)

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """The texts of B rows of generated ids: what `generate` returned, of shape (B, L).

        Arguments as of `decode`.
        """
        return self.generator.batch_decode(sequences, skip_special_tokens, **kwargs)

    def _switch_to_input_mode(self) -> None:
        self.current_tokenizer = self.question_encoder

    def _switch_to_target_mode(self) -> None:
        self.current_tokenizer = self.generator

    def prepare_seq2seq_batch(
        self,
        src_texts: str | Sequence[str],
        tgt_texts: str | Sequence[str] | None = None,
        max_length: int | None = None,
        max_target_length: int | None = None,
        padding: bool | str = "longest",
        return_tensors: str | None = None,
        truncation: bool | str = True,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Deprecated: call the tokenizer with `text_target=` instead."""
        warn(
            "prepare_seq2seq_batch is deprecated; write tokenizer(questions, text_target=targets, "
            "...)",
            DeprecationWarning,
        )
        common = {
            "padding": padding,
            "return_tensors": return_tensors,
            "truncation": truncation,
            **kwargs,
        }
        encoded = self.encode_questions(src_texts, max_length=max_length, **common)
        if tgt_texts is not None:
            targets = self.encode_targets(tgt_texts, max_length=max_target_length, **common)
            encoded["labels"] = targets["input_ids"]
        return encoded

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> RagTokenizer:
        """Reads both tokenizers from the sub-folders `question_encoder_tokenizer` and
        `generator_tokenizer`, and what questions go through from config.json; where that describes
        no question encoder, from the tokenizer's settings.

        Args:
            pretrained_model_name_or_path: a RAG folder, or a repository id on the hub.
            **kwargs: handed to `Tokenizer.from_pretrained` for both (cache_dir, revision, token,
                ...).
        """
        hub, _ = split_hub_kwargs(kwargs)
        name_or_path = checked_name(pretrained_model_name_or_path)
        config = None
        if resolve_file(name_or_path, "config.json", required=False, **hub) is not None:
            values = read_config(name_or_path, **hub)[0].get("question_encoder")
            if isinstance(values, dict):
                config = SimpleNamespace(**values)
        above = kwargs.pop("subfolder", "") or ""

        def read(part: str) -> Tokenizer:
            folder = f"{above}/{part}".strip("/")
            return Tokenizer.from_pretrained(name_or_path, subfolder=folder, **kwargs)

        question_encoder = read(QUESTION_FOLDER)
        if config is None:
            settings = question_encoder.init_kwargs
            config = SimpleNamespace(**{name: settings.get(name) for name in _QUESTION_SETTINGS})
        return cls(question_encoder, read(GENERATOR_FOLDER), config)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Writes both tokenizers to their sub-folders, both or neither, and what questions go
        through; files of earlier ones there go.

        Args:
            save_directory: the folder, made if missing.
            **kwargs: as of `Tokenizer.save_pretrained`.
        """
        saving = Saving.of(**kwargs)
        if not saving.here:
            return
        folder = Path(save_directory)
        if folder.is_file():
            raise ValueError(
                f"save_directory must be a folder, got the file {folder}. Name a folder"
            )
        # Tokenizers of two saves would not fit one model.
        with atomic_folder(folder, stale=TOKENIZER_PATTERNS) as draft:
            self.question_encoder.save_pretrained(draft / QUESTION_FOLDER)
            settings = {name: getattr(self, name) or None for name in _QUESTION_SETTINGS}
            write_settings(draft / QUESTION_FOLDER, settings)
            self.generator.save_pretrained(draft / GENERATOR_FOLDER)
        saving.finish(folder, self)

    def __repr__(self) -> str:
        return (
            f"RagTokenizer(question_encoder={self.question_encoder!r}, "
            f"generator={self.generator!r})"
        )


class AutoTokenizer:
    """Picks the class: a RagTokenizer for a RAG folder, a Tokenizer for any other."""

    def __init__(self) -> None:
        raise TypeError(
            "AutoTokenizer is not made by calling it; use AutoTokenizer.from_pretrained(name)"
        )

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Tokenizer | RagTokenizer:
        """Reads the tokenizer(s) of a folder or repository.

        Args:
            pretrained_model_name_or_path: a folder, or a repository id on the hub.
            **kwargs: as of `Tokenizer.from_pretrained`.
        """
        if _is_rag(pretrained_model_name_or_path, **kwargs):
            return RagTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return Tokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)


def _is_rag(name_or_path: str | os.PathLike[str], **kwargs: Any) -> bool:
    hub, _ = split_hub_kwargs(kwargs, "tokenizer")
    name_or_path = checked_name(name_or_path)
    if resolve_file(name_or_path, "config.json", required=False, **hub) is not None:
        return read_config(name_or_path, **hub)[0].get("model_type") == "rag"
    return all(
        resolve_file(name_or_path, f"{folder}/tokenizer_config.json", required=False, **hub)
        for folder in (QUESTION_FOLDER, GENERATOR_FOLDER)
    )
