"""Passages of a batch as rows of tokens: each once, and which of them a question is told from.

Letters: B questions, Q question length, P passages a question, L passage length, C passages of a
batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class PassageRows:
    """The passages of a batch, each once.

    Attributes:
        ids, mask: (C, L) tokens and 1 = a real one.
        positive: (B,), the row of each question's own passage.
        masked: (B, C) bool, True = nothing for that question to be told from, as it answers the
            same question asked elsewhere in the batch.
    """

    ids: np.ndarray
    mask: np.ndarray
    positive: np.ndarray
    masked: np.ndarray


def passage_rows(questions: np.ndarray, ids: np.ndarray, mask: np.ndarray | None) -> PassageRows:
    """What each question of a batch is to find, and among what.

    Args:
        questions: (B, Q) tokens, padded alike for equal questions.
        ids: (B, P, L) tokens: of each question first the passage that answers it, then such as do
            not. A row without a real token is no passage.
        mask: (B, P, L), 1 = a real token; None = all are.

    Raises:
        ValueError: other shapes, a question without a passage, or nothing to tell it from.
    """
    if mask is None:
        mask = np.ones_like(ids)
    if ids.ndim != 3 or ids.shape != mask.shape or len(ids) != len(questions):
        raise ValueError(
            "passage_input_ids and passage_attention_mask must have shape (questions, passages, "
            f"tokens), for {len(questions)} questions, got {ids.shape} and {mask.shape}"
        )
    is_passage = np.asarray(mask.any(2))  # (B, P)
    if not is_passage[:, 0].all():
        row = int(np.argmin(is_passage[:, 0]))
        raise ValueError(
            "passage_attention_mask must have real tokens in the first passage of each question, "
            f"which answers it, got none for question {row}"
        )
    rows = np.where(mask > 0, ids, -1)[is_passage]  # (sum of passages, L)
    _, first, columns = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    column_of = np.full(is_passage.shape, -1)
    column_of[is_passage] = columns.reshape(-1)
    positive = column_of[:, 0]  # (B,)
    alike = (questions[:, None] == questions[None]).all(2)  # (B, B)
    masked = np.zeros((len(questions), len(first)), bool)
    for row, same in enumerate(alike):
        masked[row, positive[same]] = True
        masked[row, positive[row]] = False
    check_comparable(
        masked,
        f"{len(questions)} questions",
        "Make batches larger, or give negatives: further passages of each question",
    )
    return PassageRows(ids[is_passage][first], mask[is_passage][first], positive, masked)


def check_comparable(masked: np.ndarray, questions: str, advice: str) -> None:
    """Refuse a batch in which no question has a passage to tell its own from.

    Args:
        masked: see `PassageRows`.
        questions: what is said of them.
        advice: what to do.

    Raises:
        ValueError: there is none.
    """
    if masked.sum(1).min() >= masked.shape[1] - 1:
        raise ValueError(
            "a batch must hold passages to tell the right one from, got one passage alone for "
            f"{questions}. {advice}"
        )
