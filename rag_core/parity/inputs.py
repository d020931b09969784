"""Inputs for any RAG model, drawn by a key: questions, contexts, targets, and an index of passages
that are ids only.

No tokenizer and no knowledge base is needed, and every framework gets the same numbers.
Letters: B questions, N documents a question, Q question length, S context length, T target length,
D vector size, P passages.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from rag_core.backends import to_tensor
from rag_core.config import RagConfig
from rag_core.parity.seeded import seeded_noise

TARGETS = (
    "plain",
    "padded",
    "length_one",
    "length_two",
    "pad_second",
    "bos_first",
    "bos_in_one_row",
    "ignored",
)


def integers(key: str, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
    """Integers in [low, high), by key."""
    stream = np.random.Philox(
        key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
    )
    return (stream.random_raw(int(np.prod(shape))) % np.uint64(high - low)).astype(
        np.int64
    ).reshape(shape) + low


def _ordinary(part: Any) -> np.ndarray:
    """The ids of a vocabulary that are not special."""
    special = {
        getattr(part, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "decoder_start")
    }
    return np.array([token for token in range(part.vocab_size) if token not in special])


def _ragged(key: str, rows: int, length: int, part: Any) -> tuple[np.ndarray, np.ndarray]:
    """Token rows (rows, length) of different lengths, right-padded, and their masks.

    The first row is full.
    """
    lengths = integers(f"{key}:lengths", max(1, length // 2), length + 1, (rows,))
    lengths[0] = length
    mask = np.arange(length) < lengths[:, None]
    tokens = _ordinary(part)
    drawn = tokens[integers(f"{key}:ids", 0, len(tokens), (rows, length))]
    return np.where(mask, drawn, part.pad_token_id or 0), mask.astype(np.int64)


def questions(config: RagConfig, key: str, batch: int, length: int = 7) -> dict[str, np.ndarray]:
    """`input_ids` (B, Q) and `attention_mask`."""
    ids, mask = _ragged(f"question:{key}", batch, length, config.question_encoder)
    return {"input_ids": ids, "attention_mask": mask}


def contexts(
    config: RagConfig, key: str, batch: int, n_docs: int, length: int = 18
) -> dict[str, np.ndarray]:
    """What a retriever would hand over.

    `context_input_ids` and mask (B*N, S), `doc_scores` (B, N).
    """
    ids, mask = _ragged(f"context:{key}", batch * n_docs, length, config.generator)
    scores = 2.0 * seeded_noise(f"scores:{key}", (batch, n_docs))
    return {"context_input_ids": ids, "context_attention_mask": mask, "doc_scores": scores}


def targets(config: RagConfig, key: str, kind: str, batch: int, length: int = 6) -> np.ndarray:
    """Labels (B, T) of one of `TARGETS`; each meets another corner of the losses."""
    generator = config.generator
    tokens, pad, eos = _ordinary(generator), generator.pad_token_id, generator.eos_token_id
    bos = config.bos_token_id or generator.bos_token_id
    ids = tokens[integers(f"target:{key}", 0, len(tokens), (batch, length))]
    ids[:, -1] = eos
    if kind == "padded":
        ids[-1, 3:] = [eos, *[pad] * (length - 4)]
    elif kind == "ignored":
        ids[-1, 3:] = [eos, *[-100] * (length - 4)]
    elif kind in ("length_one", "length_two"):
        ids = ids[:, : 1 if kind == "length_one" else 2]
    elif kind == "pad_second":
        ids[-1, 2:] = pad
    elif kind in ("bos_first", "bos_in_one_row") and bos is not None:
        ids[: None if kind == "bos_first" else 1, 1] = bos
    return ids


class DrawnRetriever:
    """A retriever over P drawn passages: exact inner-product search, framework-free, the same for
    every backend.

    Args:
        config: of the model.
        key: the passages and vectors are drawn by.
        passages: P.
        length: most tokens of a passage.
        missing: how many of a question's documents, from the last, count as not found.
    """

    def __init__(
        self, config: RagConfig, key: str, passages: int = 60, length: int = 14, missing: int = 0
    ) -> None:
        encoder, self.generator = config.question_encoder, config.generator
        width = getattr(encoder, "projection_dim", 0) or encoder.hidden_size
        # float32, as an index stores them
        self.vectors = (0.35 * seeded_noise(f"bank:{key}", (passages, width))).astype(np.float32)
        self.ids, self.mask = _ragged(f"bank:{key}", passages, length, self.generator)
        self.tokens, self.missing = _ordinary(self.generator), missing

    def __call__(
        self,
        question_input_ids: Any,
        question_hidden_states: np.ndarray,
        prefix: str | None = None,
        n_docs: int | None = None,
        return_tensors: str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Passages with four question tokens after them, (B*N, S), and what `RagRetriever`
        returns beside them.
        """
        questions, n_docs = np.asarray(question_input_ids), n_docs or 1
        scores = np.asarray(question_hidden_states, np.float64) @ self.vectors.T.astype(np.float64)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :n_docs]  # (B, N)
        rows = order.reshape(-1)
        asked = self.tokens[questions[:, :4] % len(self.tokens)].repeat(n_docs, axis=0)  # (B*N, 4)
        lengths = self.mask[rows].sum(1)
        width = self.ids.shape[1] + asked.shape[1]
        # (B*N, S)
        ids = np.full((len(rows), width), self.generator.pad_token_id or 0, dtype=np.int64)
        for row, (passage, length) in enumerate(zip(rows, lengths, strict=True)):
            ids[row, : length + asked.shape[1]] = np.concatenate(
                [self.ids[passage, :length], asked[row]]
            )
        mask = np.arange(width) < (lengths + asked.shape[1])[:, None]
        found = {
            "context_input_ids": ids,
            "context_attention_mask": mask.astype(np.int64),
            "retrieved_doc_embeds": self.vectors[order],
            "doc_ids": order,
        }
        if self.missing:
            found["doc_mask"] = np.broadcast_to(
                np.arange(n_docs) < n_docs - self.missing, order.shape
            ).copy()
        return {name: to_tensor(array, return_tensors) for name, array in found.items()}
