"""Questions with their answers as arrays.

Letters: B questions, N documents a question, Q question length, T target length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rag_core.tokenization import RagTokenizer
from rag_core.training.config import TrainingConfig
from rag_core.training.data import Example, batches

# Ids of so many answers are in memory at a time.
_CHECKED_AT_ONCE = 1024


@dataclass
class Batch:
    """Questions with their answers, as arrays.

    Attributes:
        examples: B of them.
        input_ids: (B, Q), questions in the question encoder's vocabulary.
        attention_mask: (B, Q), 1 = a real token.
        labels: (B, T), answers in the generator's vocabulary, as they are fed to it.
        target: (B, T), what is to be predicted, one to the left.
        tokens: how many tokens are predicted.
        tokens_a_question: the same of the whole step that it is a part of, for each of its
            questions.
        of_all: the questions of the forward pass, of all processes; `examples` without others.
        first: which of them is the first of `examples`.
        ends_step: whether it is the last forward pass of its step.
    """

    examples: Sequence[Example]
    input_ids: np.ndarray
    attention_mask: np.ndarray
    labels: np.ndarray
    target: np.ndarray
    tokens: int
    tokens_a_question: float = 1.0
    of_all: Sequence[Example] = ()
    first: int = 0
    ends_step: bool = True


def make_batch(
    examples: Sequence[Example], tokenizer: RagTokenizer, config: TrainingConfig, generator: Any
) -> Batch:
    """Questions and answers in tokens.

    Args:
        examples: B of them.
        tokenizer: of both vocabularies.
        config: says how long they may be.
        generator: the generator's configuration.

    Raises:
        ValueError: an answer is to be left unsaid, and there is no mask token for that.
    """
    common: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "np"}
    questions = tokenizer.encode_questions(
        [example.question for example in examples],
        max_length=config.max_question_length,
        **common,
    )
    labels = tokenizer.encode_targets(
        [example.answers[0] for example in examples],
        max_length=config.max_target_length,
        **common,
    )["input_ids"]
    if tokenizer.generator.bos_token_id is None:
        # T5's tokenizer puts nothing in front, and the first label is fed but never predicted.
        start = np.full_like(labels[:, :1], generator.decoder_start_token_id)
        labels = np.concatenate([start, labels], axis=1)
    is_token = labels != generator.pad_token_id
    return Batch(
        examples,
        questions["input_ids"],
        questions["attention_mask"],
        labels,
        _target(examples, labels, is_token, tokenizer.generator.mask_token_id),
        int(is_token[:, 1:].sum()),
    )


def check_answers(examples: Sequence[Example], tokenizer: RagTokenizer) -> None:
    """Refuse answers of which nothing is left in the generator's vocabulary.

    Raises:
        ValueError: naming the first of them.
    """
    questions = {example.answers[0]: example.question for example in examples}
    for texts in batches(list(questions), _CHECKED_AT_ONCE):
        rows = tokenizer.generator(list(texts), add_special_tokens=False)["input_ids"]
        for text, row in zip(texts, rows, strict=True):
            if not row:
                raise ValueError(
                    "answers must have a token in the generator's vocabulary, got "
                    f"{text!r:.80} for {questions[text]!r:.80}. Mend it, or leave the question out"
                )


def _target(
    examples: Sequence[Example], labels: np.ndarray, is_token: np.ndarray, mask: int | None
) -> np.ndarray:
    """Labels (B, T), where a passage does not hold the answer the mask token all along."""
    silent = np.array([not example.answerable for example in examples])
    if not silent.any():
        return labels
    if mask is None:
        raise ValueError(
            "examples with answerable=False need a generator tokenizer with a mask token"
        )
    return np.where(silent[:, None] & is_token, mask, labels)
