"""The RAG models in PyTorch; the mathematics of the two heads that marginalise over documents.

Letters: B questions, N documents a question, T target length, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rag_core.modeling import RagHead, RagSequenceHead, RagTokenHead
from rag_torch.components import RagPretrained
from rag_torch.marginalize import (
    doc_log_probs,
    sequence_nll,
    split_docs,
    token_log_probs,
    token_nll,
)
from rag_torch.rag_model import RagModel

if TYPE_CHECKING:
    from rag_torch.bert import PooledEncoder
    from rag_torch.seq2seq import Generator

__all__ = ["RagModel", "RagSequenceForGeneration", "RagTokenForGeneration"]


class _Head(RagHead[Tensor], RagPretrained):
    """What both heads add to those of `rag_core.modeling`."""

    rag: RagModel
    _rag_class = RagModel

    if TYPE_CHECKING:

        @property
        def generator(self) -> Generator: ...

        @property
        def question_encoder(self) -> PooledEncoder: ...


class RagSequenceForGeneration(RagSequenceHead[Tensor], _Head):
    def _nll(
        self, logits: Tensor, scores: Tensor, target: Tensor, n_docs: int, **options: Any
    ) -> Tensor:
        logits = split_docs(logits, n_docs)
        return sequence_nll(logits, scores, target, self._pad_token_id, **options)


class RagTokenForGeneration(RagTokenHead[Tensor], _Head):
    def _nll(
        self, logits: Tensor, scores: Tensor, target: Tensor, n_docs: int, **options: Any
    ) -> Tensor:
        logits = split_docs(logits, n_docs)
        return token_nll(logits, scores, target, self._pad_token_id, **options)

    def _marginal(self, logits: Tensor, scores: Tensor, n_docs: int) -> Tensor:
        return token_log_probs(split_docs(logits, n_docs), doc_log_probs(scores))

    def _shifted(self, input_ids: Tensor, start: int) -> Tensor:
        first = input_ids.new_full((input_ids.shape[0], 1), start)
        return torch.cat([first, input_ids[:, :-1]], dim=1)
