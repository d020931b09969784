"""BERT as an encoder of questions and passages: DPR's two encoders and pooled sentence encoders.

BERT: Devlin et al. 2018, arXiv 1810.04805; DPR: Karpukhin et al. 2020, arXiv 2004.04906.
Attribute names are the weights' names in public checkpoints. Letters: B texts, S tokens, D vector
size, d width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rag_core.config import BertConfig, DPRConfig
from rag_core.modeling import (
    BertBase,
    DPRContextBase,
    DPRQuestionBase,
    EncoderCall,
    PooledEncoderBase,
)
from rag_core.outputs import EncoderOutput
from rag_torch.bert_layers import BertBody, BertEmbeddings, BertPooler, BertStack
from rag_torch.contexts import CHECKS, used_length
from rag_torch.layers import activation, init_normal
from rag_torch.pretrained import PretrainedModel


class PooledEncoder(PooledEncoderBase[Tensor], PretrainedModel, ABC):
    """What DPR's encoders and the sentence encoders share.

    Ids in, one vector a text out (element 0 of the output).
    """

    inputs = CHECKS

    def init_weights(self) -> None:
        init_normal(self, self.config.initializer_range)

    @abstractmethod
    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor: ...

    def _compute(self, call: EncoderCall) -> tuple[Tensor, EncoderOutput]:
        mask = call.attention_mask
        x = self._body.embeddings(call.input_ids, call.token_type_ids, call.inputs_embeds)
        # those are handed back with all columns
        traced = call.output_attentions or call.output_hidden_states
        if mask is not None and not traced:
            length = used_length(mask)
            x = x[:, :length].contiguous()
            mask = mask[:, :length]
        states = self._body.encoder(x, mask, call.output_attentions, call.output_hidden_states)
        return self._pool(states.last_hidden_state, mask), states


class DPREncoder(nn.Module):
    """BERT and an optional projection of its first state."""

    def __init__(self, config: DPRConfig) -> None:
        super().__init__()
        self.bert_model = BertBody(config)
        if config.projection_dim > 0:
            self.encode_proj = nn.Linear(config.hidden_size, config.projection_dim)


class _DPR(PooledEncoder):
    network: ClassVar[Any] = DPREncoder

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        first = x[:, 0]  # (B, d)
        if self.config.projection_dim > 0:
            return self.base_model.encode_proj(first)
        return first


class DPRQuestionEncoder(DPRQuestionBase[Tensor], _DPR):
    question_encoder: DPREncoder


class DPRContextEncoder(DPRContextBase[Tensor], _DPR):
    ctx_encoder: DPREncoder


class BertEncoder(BertBase[Tensor], PooledEncoder):
    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertStack(config)
        if config.pooling == "pooler":
            self.pooler = BertPooler(config)
        if config.projection_dim > 0:
            self.encode_proj = nn.Linear(config.hidden_size, config.projection_dim)
        self.projection_activation = activation(config.projection_activation or "linear")
        self.post_init()

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        pooling = self.config.pooling
        if pooling == "pooler":
            vector = self.pooler(x)
        elif pooling == "cls":
            vector = x[:, 0]
        elif pooling == "mean" and mask is None:
            vector = x.mean(1)
        else:
            vector = _pooled(x, mask, pooling)
        if self.config.projection_dim > 0:
            vector = self.projection_activation(self.encode_proj(vector))
        if self.config.normalize:
            vector = F.normalize(vector, dim=-1)
        return vector * self.config.scale


def _pooled(x: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """(B, S, d) and mask (B, S) -> (B, d), by a kind that looks at all real tokens."""
    real = x.new_ones(x.shape[:2])
    if mask is not None:
        real = mask.to(x.dtype)  # (B, S)
    if pooling == "max":
        low = torch.finfo(x.dtype).min
        return x.masked_fill(real[:, :, None] == 0, low).amax(1)
    if pooling == "lasttoken":
        places = torch.arange(x.shape[1], device=x.device)
        last = (real.long() * places).argmax(1)  # (B,)
        return x[torch.arange(len(x), device=x.device), last] * real.amax(1)[:, None]
    if pooling == "weightedmean":
        real = real * torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)
    total = (x * real[:, :, None]).sum(1)
    count = real.sum(1, keepdim=True).clamp(min=1)
    if pooling == "mean_sqrt_len_tokens":
        count = count.sqrt()
    return total / count
