"""BERT as an encoder of questions and passages: DPR's two encoders and pooled sentence encoders.

BERT: Devlin et al. 2018, arXiv 1810.04805; DPR: Karpukhin et al. 2020, arXiv 2004.04906.
Attribute names are the weights' names in public checkpoints. Letters: B texts, S tokens, D vector
size, d width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rag_core.config import BertConfig, DPRConfig, sentence_settings
from rag_core.generation import check_embeds, check_one_of
from rag_core.modeling import check_table
from rag_core.outputs import PooledEncoderOutput
from rag_torch.bert_layers import BertBody, BertEmbeddings, BertPooler, BertStack
from rag_torch.contexts import check_text, used_length
from rag_torch.layers import init_normal
from rag_torch.pretrained import PretrainedModel


class PooledEncoder(PretrainedModel, ABC):
    """What DPR's encoders and the sentence encoders share.

    Ids in, one vector a text out (element 0 of the output).
    """

    def init_weights(self) -> None:
        """Fresh weights: normal with the config's `initializer_range`."""
        init_normal(self, self.config.initializer_range)

    @property
    def dimension(self) -> int:
        """D, the size of the vectors."""
        return self.config.projection_dim or self.config.hidden_size

    @property
    def _body(self) -> Any:
        """The module holding `embeddings` and `encoder`."""
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table."""
        return self._body.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        """Put another token table in place, of the same size.

        See `PretrainedModel.set_input_embeddings`.
        """
        embeddings = self._body.embeddings
        embeddings.word_embeddings = check_table("value", value, embeddings.word_embeddings)

    @abstractmethod
    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor: ...

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> PooledEncoderOutput | tuple[Any, ...]:
        """One vector for each text.

        Args:
            input_ids: (B, S).
            attention_mask: (B, S), 1 = a real token; None = every token that is not the pad token.
            token_type_ids: (B, S); None = zeros.
            inputs_embeds: (B, S, d) in place of `input_ids`.
            output_attentions: whether to return attentions; None = the config's.
            output_hidden_states: whether to return hidden states; None = the config's.
            return_dict: False for a plain tuple; None = the config's.

        Returns:
            `PooledEncoderOutput`; its element 0, `pooler_output`, is the vector (B, D).
        """
        check_one_of("input_ids", input_ids, "inputs_embeds", inputs_embeds)
        _, attentions, hidden, return_dict = self.switches(
            False, output_attentions, output_hidden_states, return_dict
        )
        check_text(input_ids, inputs_embeds, attention_mask, token_type_ids)
        if inputs_embeds is not None:
            check_embeds("inputs_embeds", inputs_embeds.shape, self.config.hidden_size)
        if (
            attention_mask is None
            and input_ids is not None
            and self.config.pad_token_id is not None
        ):
            attention_mask = input_ids != self.config.pad_token_id
        x = self._body.embeddings(input_ids, token_type_ids, inputs_embeds)
        # those are handed back with all columns
        if attention_mask is not None and not (attentions or hidden):
            length = used_length(attention_mask)
            x, attention_mask = x[:, :length].contiguous(), attention_mask[:, :length]
        states = self._body.encoder(x, attention_mask, attentions, hidden)
        output = PooledEncoderOutput(
            pooler_output=self._pool(states.last_hidden_state, attention_mask),
            hidden_states=states.hidden_states,
            attentions=states.attentions,
        )
        return output if return_dict else output.to_tuple()


class DPREncoder(nn.Module):
    """BERT and an optional projection of its first state."""

    def __init__(self, config: DPRConfig) -> None:
        super().__init__()
        self.bert_model = BertBody(config)
        if config.projection_dim > 0:
            self.encode_proj = nn.Linear(config.hidden_size, config.projection_dim)


class _DPR(PooledEncoder):
    config_class = DPRConfig

    @property
    @abstractmethod
    def _encoder(self) -> DPREncoder: ...

    @property
    def _body(self) -> BertBody:
        return self._encoder.bert_model

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        first = x[:, 0]
        return self._encoder.encode_proj(first) if self.config.projection_dim > 0 else first


class DPRQuestionEncoder(_DPR):
    """DPR's question encoder.

    Args:
        config: a `DPRConfig`.
    """

    head = "question"
    base_model_prefix = "question_encoder"

    def __init__(self, config: DPRConfig) -> None:
        super().__init__(config)
        self.question_encoder = DPREncoder(config)
        self.post_init()

    @property
    def _encoder(self) -> DPREncoder:
        return self.question_encoder


class DPRContextEncoder(_DPR):
    """DPR's passage encoder.

    Args:
        config: a `DPRConfig`.
    """

    head = "context"
    base_model_prefix = "ctx_encoder"

    def __init__(self, config: DPRConfig) -> None:
        super().__init__(config)
        self.ctx_encoder = DPREncoder(config)
        self.post_init()

    @property
    def _encoder(self) -> DPREncoder:
        return self.ctx_encoder


class BertEncoder(PooledEncoder):
    """A pooled BERT: sentence encoders, and any BERT as question or passage encoder.

    The vector is pool -> `encode_proj` (if `projection_dim` > 0) -> L2 normalisation (if
    `normalize`) -> times `scale`.

    Args:
        config: a `BertConfig` with `pooling` "cls", "mean" or "pooler".
    """

    config_class = BertConfig
    architecture = "BertModel"
    base_model_prefix = "bert"

    @classmethod
    def read_config(
        cls, name_or_path: str | Path, hub: dict[str, Any], overrides: dict[str, Any]
    ) -> BertConfig:
        """The config; of a sentence-transformers folder with all that changes its vectors."""
        found = sentence_settings(name_or_path, **hub)
        settings = {} if found is None else found.config_fields()
        return super().read_config(name_or_path, hub, {**settings, **overrides})

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertStack(config)
        if config.pooling == "pooler":
            self.pooler = BertPooler(config)
        if config.projection_dim > 0:
            self.encode_proj = nn.Linear(config.hidden_size, config.projection_dim)
        self.post_init()

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.config.pooling == "pooler":
            vector = self.pooler(x)
        elif self.config.pooling == "cls" or mask is None:
            vector = x[:, 0] if self.config.pooling == "cls" else x.mean(1)
        else:
            real = mask.to(x.dtype)[:, :, None]  # (B, S, 1)
            vector = (x * real).sum(1) / real.sum(1).clamp(min=1)
        if self.config.projection_dim > 0:
            vector = self.encode_proj(vector)
        if self.config.normalize:
            vector = F.normalize(vector, dim=-1)
        return vector * self.config.scale
