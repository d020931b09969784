"""Modules that are not ours as question encoder or generator; see `rag_core.modeling.foreign`.

A module is a keras.Model, a tf.Module or any callable; its weights are found in `weights` or
`variables`. It runs as it is, not in a graph of ours, as it may do anything; it is faster where its
own call is a `tf.function`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from rag_core.modeling import (
    ForeignEncoderBase,
    ForeignGeneratorBase,
    ForeignStateBase,
    accepted,
    checked_vectors,
    offers_decoding,
)
from rag_tf.modules import Module
from rag_tf.pretrained import PretrainedModel
from rag_tf.weights import named_variables


def encode_questions(
    module: Any,
    input_ids: tf.Tensor,
    attention_mask: tf.Tensor | None,
    output_attentions: bool = False,
    output_hidden_states: bool = False,
    token_type_ids: tf.Tensor | None = None,
    training: bool | None = None,
) -> Any:
    """Run a question or document encoder; see `checked_vectors`."""
    kwargs = {
        "attention_mask": attention_mask,
        "output_attentions": output_attentions,
        "output_hidden_states": output_hidden_states,
        "return_dict": True,
        "training": training,
    }
    if token_type_ids is not None:
        kwargs["token_type_ids"] = token_type_ids
    if not isinstance(module, PretrainedModel):
        kwargs = accepted(module, {**kwargs, "training": bool(training)})
    return checked_vectors(module, module(input_ids, **kwargs))


class ForeignEncoder(ForeignEncoderBase, Module):
    __call__ = ForeignEncoderBase.forward

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """The module's weights."""
        return named_variables(self.module, f"{prefix}module.")

    @staticmethod
    def _real_tokens(input_ids: tf.Tensor, pad: int | None) -> tf.Tensor:
        if pad is None:
            return tf.ones_like(input_ids)
        return tf.cast(input_ids != pad, input_ids.dtype)

    @staticmethod
    def _mean(states: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        real = tf.cast(mask, states.dtype)[:, :, None]  # (B, S, 1)
        total = tf.reduce_sum(states * real, 1)
        count = tf.maximum(tf.reduce_sum(real, 1), 1)
        return total / count


class ForeignState(ForeignStateBase):
    @staticmethod
    def _continued(prefix: tf.Tensor, source: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        source = tf.convert_to_tensor(source)
        contexts = tf.range(tf.shape(source)[0])
        first = contexts[:, None] * prefix.shape[1]  # (R, 1)
        rows = tf.cast(first, source.dtype) + source  # (R, K)
        rows = tf.reshape(rows, (-1,))
        return tf.gather(prefix, source, batch_dims=1), rows

    @staticmethod
    def _take(x: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        return tf.gather(x, rows)


class ForeignGenerator(ForeignGeneratorBase):
    without_attentions = (
        ", which some of transformers' models do only when made with output_attentions=True in "
        "their config"
    )
    state_class = ForeignState
    __call__ = ForeignGeneratorBase.forward

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """The module's weights."""
        return named_variables(self.module, prefix)

    @staticmethod
    def _start_tokens(input_ids: tf.Tensor, token: int) -> tf.Tensor:
        return tf.fill((tf.shape(input_ids)[0], 1), tf.cast(token, input_ids.dtype))

    @staticmethod
    def _no_tokens(hidden: tf.Tensor, beams: int) -> tf.Tensor:
        return tf.zeros((hidden.shape[0], beams, 0), tf.int64)

    @staticmethod
    def _as_ids(x: tf.Tensor) -> tf.Tensor:
        return tf.cast(x, tf.int64)

    @staticmethod
    def _joined(prefix: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
        return tf.concat([prefix, tokens], 2)

    @staticmethod
    def _repeated(x: tf.Tensor, beams: int) -> tf.Tensor:
        return tf.repeat(x, beams, 0)

    @staticmethod
    def _folded(tokens: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tokens, (tokens.shape[0] * tokens.shape[1], -1))

    @staticmethod
    def _unfolded(logits: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
        return tf.reshape(logits, (*tokens.shape, -1))


def as_generator(module: Any) -> Any:
    """The module itself if it offers the decoding contract, else a `ForeignGenerator` around it."""
    if offers_decoding(module):
        return module
    return ForeignGenerator(module)
