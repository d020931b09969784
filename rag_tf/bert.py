"""BERT as an encoder of questions and passages: DPR's two encoders and pooled sentence encoders.

BERT: Devlin et al. 2018, arXiv 1810.04805; DPR: Karpukhin et al. 2020, arXiv 2004.04906.
Attribute names are the weights' names in public checkpoints. Letters: B texts, S tokens, D vector
size, d width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import tensorflow as tf
from tensorflow import Tensor

from rag_core.config import BertConfig, DPRConfig
from rag_core.modeling import (
    BertBase,
    DPRContextBase,
    DPRQuestionBase,
    EncoderCall,
    PooledEncoderBase,
)
from rag_core.outputs import EncoderOutput, PooledEncoderOutput
from rag_tf.bert_layers import BertBody, BertEmbeddings, BertPooler, BertStack
from rag_tf.call_arguments import Called
from rag_tf.contexts import CHECKS, checked_ids, checked_tensor
from rag_tf.layers import activation, init_normal
from rag_tf.modules import Linear, Module, widen
from rag_tf.pretrained import PretrainedModel

# A list of arguments holds these, as Keras' models take one.
_IN_A_LIST = ("input_ids", "attention_mask", "token_type_ids")


class PooledEncoder(
    Called[PooledEncoderOutput[Tensor]],
    PooledEncoderBase[Tensor],
    PretrainedModel,
    Module,
    ABC,
):
    """What DPR's encoders and the sentence encoders share.

    Ids in, one vector a text out (element 0 of the output).
    """

    inputs = CHECKS

    def init_weights(self) -> None:
        init_normal(self, self.config.initializer_range)

    def _ids(self, name: str, ids: Any, rows: int) -> Tensor:
        # One type of integer, or there would be a graph for each.
        return tf.cast(checked_ids(name, ids, rows), tf.int64)

    @abstractmethod
    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor: ...

    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> PooledEncoderOutput[Tensor] | tuple[Any, ...]:
        """See `PooledEncoderBase.forward`.

        Args:
            input_ids: also a dictionary of this and others of these arguments, as a tokenizer
                returns it.
            training: whether dropout acts; None = as `train()` and `eval()` say.
        """
        call = EncoderCall(
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds,
            output_attentions,
            output_hidden_states,
            return_dict,
            training,
        )
        arguments: Any = input_ids
        if isinstance(input_ids, list | tuple):
            if any(hasattr(argument, "shape") for argument in input_ids):
                arguments = dict(zip(_IN_A_LIST, input_ids, strict=False))
        if isinstance(arguments, Mapping):
            return self.call(**{**vars(call), "input_ids": None, **arguments})
        return self._answer(call)

    if not TYPE_CHECKING:  # see `Called`
        forward = __call__ = call

    def _compute(self, call: EncoderCall) -> tuple[Tensor, EncoderOutput]:
        mask = call.attention_mask
        if mask is not None:
            mask = tf.cast(checked_tensor("attention_mask", mask), tf.bool)
        body: Any = self._encode
        # States are asked for to see what comes of them: a tape finds no way to them through a
        # graph.
        if not (call.output_attentions or call.output_hidden_states):
            body = self.graph("body", self._encode)
        with self.on_device():
            states = body(
                call.input_ids,
                mask,
                call.token_type_ids,
                call.inputs_embeds,
                call.output_attentions,
                call.output_hidden_states,
                self.in_training(call.training),
            )
            # In a graph of its own: where the projection alone learns, a tape hears nothing of the
            # body.
            pool = self.graph("pool", self._pool)
            return pool(states.last_hidden_state, mask), states

    def _encode(
        self,
        input_ids: Tensor | None,
        mask: Tensor | None,
        token_type_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attentions: bool,
        hidden: bool,
        training: bool,
    ) -> EncoderOutput:
        x = self._body.embeddings(input_ids, token_type_ids, inputs_embeds, training)
        return self._body.encoder(x, mask, attentions, hidden, training)


class DPREncoder(Module):
    """BERT and an optional projection of its first state."""

    def __init__(self, config: DPRConfig) -> None:
        super().__init__()
        self.bert_model = BertBody(config)
        if config.projection_dim > 0:
            self.encode_proj = Linear(config.hidden_size, config.projection_dim)


class _DPR(PooledEncoder):
    network: ClassVar[Any] = DPREncoder

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        vector = x[:, 0]  # (B, d)
        if self.config.projection_dim > 0:
            vector = self.base_model.encode_proj(vector)
        return vector


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
            self.encode_proj = Linear(config.hidden_size, config.projection_dim)
        self.projection_activation = activation(config.projection_activation or "linear")
        self.post_init()

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        pooling = self.config.pooling
        if pooling == "pooler":
            vector = self.pooler(x)
        elif pooling == "cls":
            vector = x[:, 0]
        elif pooling == "mean" and mask is None:
            vector = tf.reduce_mean(x, 1)
        else:
            vector = _pooled(x, mask, pooling)
        if self.config.projection_dim > 0:
            vector = self.projection_activation(self.encode_proj(vector))
        if self.config.normalize:
            wide = widen(vector)
            # The floor stands under the root: there a zero vector has a gradient, and it is zero.
            square = tf.reduce_sum(wide * wide, -1, keepdims=True)
            length = tf.sqrt(tf.maximum(square, 1e-24))
            vector = tf.cast(wide / length, vector.dtype)
        return vector * self.config.scale


def _pooled(x: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """(B, S, d) and mask (B, S) -> (B, d), by a kind that looks at all real tokens."""
    real = tf.ones(tf.shape(x)[:2], x.dtype)
    if mask is not None:
        real = tf.cast(mask, x.dtype)  # (B, S)
    if pooling == "max":
        return tf.reduce_max(tf.where(real[:, :, None] > 0, x, x.dtype.min), 1)
    if pooling == "lasttoken":
        places = tf.range(tf.shape(x)[1])
        last = tf.argmax(tf.cast(real, tf.int32) * places, 1)  # (B,)
        return tf.gather(x, last, batch_dims=1) * tf.reduce_max(real, 1)[:, None]
    if pooling == "weightedmean":
        real *= tf.cast(tf.range(1, tf.shape(x)[1] + 1), x.dtype)
    total = tf.reduce_sum(x * real[:, :, None], 1)
    # a text of pads alone has the vector 0
    count = tf.maximum(tf.reduce_sum(real, 1, keepdims=True), 1)
    if pooling == "mean_sqrt_len_tokens":
        count = tf.sqrt(count)
    return total / count
