"""What a BERT is made of: embeddings, self-attention, feed-forward, pooler.

Attribute names are the weights' names in public checkpoints.
Letters: R rows, L length, d width, H heads.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from rag_core.modeling import traced_output
from rag_core.outputs import EncoderOutput
from rag_core.positions import MPNET_DISTANCE, t5_distance_buckets
from rag_tf.attention import AttentionMask, key_mask, merge_heads, split_heads
from rag_tf.layers import Trace, activation, checkpointed
from rag_tf.modules import (
    Embedding,
    LayerNorm,
    Linear,
    Module,
    by_rows,
    compute_dtype,
    dim,
    dropout,
)


class BertEmbeddings(Module):
    """Word, position and token-type embeddings, summed and normalised."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.position_embeddings = Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob

    def __call__(
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        training: bool,
    ) -> Tensor:
        """(B, S) ids -> (B, S, d)."""
        if inputs_embeds is None:
            x = self.word_embeddings(input_ids)
        else:
            x = tf.cast(inputs_embeds, compute_dtype() or self.LayerNorm.weight.dtype)
        if token_type_ids is None:
            x = x + tf.cast(self.token_type_embeddings.weight[0], x.dtype)
        else:
            x = x + self.token_type_embeddings(token_type_ids)
        x = x + tf.cast(self.position_embeddings.weight[: dim(x, 1)], x.dtype)
        return dropout(self.LayerNorm(x), self.dropout, training)


class BertSelfAttention(Module):
    """Multi-head self-attention, before its output projection."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = Linear(config.hidden_size, config.hidden_size)
        self.key = Linear(config.hidden_size, config.hidden_size)
        self.value = Linear(config.hidden_size, config.hidden_size)
        self.dropout = config.attention_probs_dropout_prob

    def __call__(
        self, x: Tensor, mask: AttentionMask, need_weights: bool, training: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(B, S, d) -> (B, S, d) and the attention weights if wanted."""
        query = split_heads(self.query(x), self.heads)
        key = split_heads(self.key(x), self.heads)
        value = split_heads(self.value(x), self.heads)
        rate = 0.0
        if training:
            rate = self.dropout
        out, weights = mask.attend(query, key, value, dropout=rate, need_weights=need_weights)
        return merge_heads(out), weights


class BertAddNorm(Module):
    """A projection, added to what came before and normalised."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.dense = Linear(width, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob

    def __call__(self, hidden: Tensor, x: Tensor, training: bool) -> Tensor:
        """norm(x + dense(hidden))."""
        update = dropout(self.dense(hidden), self.dropout, training)
        return self.LayerNorm(update + x)


class BertAttention(Module):
    """Self-attention with its output projection."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertAddNorm(config, config.hidden_size)


class BertIntermediate(Module):
    """The first half of the feed-forward part."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.intermediate_size)
        self.act = activation(config.hidden_act)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, S, d) -> (B, S, intermediate_size)."""
        return by_rows(lambda x: self.act(self.dense(x)), self.dense, x)


class BertLayer(Module):
    """Self-attention and feed-forward, each followed by a norm."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertAddNorm(config, config.intermediate_size)

    def __call__(
        self, x: Tensor, mask: AttentionMask, need_weights: bool, training: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(B, S, d) -> (B, S, d) and the attention weights if wanted."""
        hidden, weights = self.attention.self(x, mask, need_weights, training)
        x = self.attention.output(hidden, x, training)
        return self.output(self.intermediate(x), x, training), weights


class BertStack(Module):
    """The layers."""

    checkpointing: dict[str, Any] | None = None

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = [BertLayer(config) for _ in range(config.num_hidden_layers)]
        buckets = getattr(config, "relative_attention_num_buckets", 0)
        self._buckets = None
        if buckets:
            self.relative_attention_bias = Embedding(buckets, config.num_attention_heads)
            self._buckets = t5_distance_buckets(MPNET_DISTANCE + 1, buckets, MPNET_DISTANCE, True)

    def position_bias(self, length: Any) -> Tensor | None:
        """What MPNet adds to every layer's scores, (1, H, S, S); None of a BERT."""
        if self._buckets is None:
            return None
        distance = tf.range(length) - tf.range(length)[:, None]  # (S, S)
        distance = tf.clip_by_value(distance, -MPNET_DISTANCE, MPNET_DISTANCE)
        buckets = tf.gather(tf.constant(self._buckets), distance + MPNET_DISTANCE)
        bias = self.relative_attention_bias(buckets)  # (S, S, H)
        return tf.transpose(bias, (2, 0, 1))[None]

    def __call__(
        self,
        x: Tensor,
        mask: Tensor | None,
        output_attentions: bool,
        output_hidden_states: bool,
        training: bool,
    ) -> EncoderOutput:
        """(B, S, d) and mask (B, S) -> `EncoderOutput` with `last_hidden_state` (B, S, d)."""
        attention_mask = key_mask(mask, self.position_bias(dim(x, 1)))
        trace = Trace(output_hidden_states, output_attentions)
        options = None
        if training:
            options = self.checkpointing
        for layer in self.layer:
            trace.hidden(x)
            run = partial(layer, need_weights=output_attentions, training=training)
            x, weights = checkpointed(options, run, x, attention_mask)
            trace.attentions(weights)
        trace.hidden(x)
        return traced_output(x, trace)


class BertPooler(Module):
    """tanh of a projection of the first state."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, S, d) -> (B, d)."""
        return tf.tanh(self.dense(x[:, 0]))


class BertBody(Module):
    """Embeddings and layers without a pooler; DPR's `bert_model`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertStack(config)
