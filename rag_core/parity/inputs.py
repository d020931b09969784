"""Inputs for any RAG model, drawn by a key: questions, contexts, targets, and an index of passages
that are ids only.

No tokenizer and no knowledge base is needed, and every framework gets the same numbers.
Letters: B questions, N documents a question, Q question length, S context length, T target length,
D vector size, P passages.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.backends import to_tensor

if TYPE_CHECKING:
    from rag_core.config import RagConfig

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


def random_words(key: str, count: int) -> np.ndarray:
    """Raw words (`count`,) of a stream that a text names: the same on every platform and numpy."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
    return np.random.Philox(key=seed).random_raw(count)


def integers(key: str, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
    """Integers in [low, high), by key."""
    words = random_words(key, int(np.prod(shape))) % np.uint64(high - low)
    return words.astype(np.int64).reshape(shape) + low


def seeded_noise(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Noise of mean 0, variance 1 and range (-3, 3), by key: sums of three uniform numbers."""
    count = int(np.prod(shape, dtype=np.int64))
    words = random_words(key, 3 * count).reshape(3, count) >> np.uint64(11)
    uniform = words.astype(np.float64) * 2.0**-52 - 1.0
    return (uniform[0] + uniform[1] + uniform[2]).reshape(shape)


def _ordinary(part: Any) -> np.ndarray:
    """The ids of a vocabulary that are not special."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    special = {getattr(part, name, None) for name in names}
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
    pad = generator.pad_token_id
    eos = generator.eos_token_id
    bos = config.bos_token_id or generator.bos_token_id
    tokens = _ordinary(generator)
    ids = tokens[integers(f"target:{key}", 0, len(tokens), (batch, length))]
    ids[:, -1] = eos
    if kind == "padded":
        ids[-1, 3:] = [eos, *[pad] * (length - 4)]
    elif kind == "ignored":
        ids[-1, 3:] = [eos, *[-100] * (length - 4)]
    elif kind == "length_one":
        ids = ids[:, :1]
    elif kind == "length_two":
        ids = ids[:, :2]
    elif kind == "pad_second":
        ids[-1, 2:] = pad
    elif kind == "bos_first" and bos is not None:
        ids[:, 1] = bos
    elif kind == "bos_in_one_row" and bos is not None:
        ids[0, 1] = bos
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
        encoder = config.question_encoder
        self.generator = config.generator
        width = getattr(encoder, "projection_dim", 0) or encoder.hidden_size
        # float32, as an index stores them
        self.vectors = (0.35 * seeded_noise(f"bank:{key}", (passages, width))).astype(np.float32)
        self.ids, self.mask = _ragged(f"bank:{key}", passages, length, self.generator)
        self.tokens = _ordinary(self.generator)
        self.missing = missing

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
        n_docs = n_docs or 1
        questions = np.asarray(question_input_ids)
        scores = np.asarray(question_hidden_states, np.float64) @ self.vectors.T.astype(np.float64)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :n_docs]  # (B, N)
        starts = self.tokens[questions[:, :4] % len(self.tokens)].repeat(n_docs, axis=0)  # (B*N, 4)
        rows = order.reshape(-1)
        lengths = self.mask[rows].sum(1)
        width = self.ids.shape[1] + starts.shape[1]
        # (B*N, S)
        ids = np.full((len(rows), width), self.generator.pad_token_id or 0, dtype=np.int64)
        for row, length in enumerate(lengths):
            ids[row, :length] = self.ids[rows[row], :length]
            ids[row, length : length + starts.shape[1]] = starts[row]
        mask = np.arange(width) < (lengths + starts.shape[1])[:, None]
        docs = {
            "context_input_ids": ids,
            "context_attention_mask": mask.astype(np.int64),
            "retrieved_doc_embeds": self.vectors[order],
            "doc_ids": order,
        }
        if self.missing:
            is_found = np.arange(n_docs) < n_docs - self.missing
            docs["doc_mask"] = np.broadcast_to(is_found, order.shape).copy()
        return {name: to_tensor(array, return_tensors) for name, array in docs.items()}
