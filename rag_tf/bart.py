"""BART: encoder, decoder with cache, language-model head (Lewis et al. 2019, arXiv 1910.13461).

Attribute names are the weights' names in public checkpoints.
Letters: R rows (contexts), K beams of a row, T target positions now, S context length, d width, V
vocabulary, P real tokens and L their longest row (see packing.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from rag_core.config import BartConfig
from rag_core.generation import check_one_of
from rag_core.modeling import BartGenerator, Steps, check_positions, traced_output
from rag_core.outputs import EncoderOutput
from rag_tf.attention import AttentionMask, cross_attention, key_mask, merge_heads, split_heads
from rag_tf.layers import (
    Trace,
    activation,
    checkpointed,
    cross_without_layers,
    embedding_scale,
    init_normal,
)
from rag_tf.modules import (
    Embedding,
    LayerNorm,
    Linear,
    Module,
    by_rows,
    dim,
    dropout,
    parameter,
    uniform,
)
from rag_tf.packing import Packing
from rag_tf.seq2seq import CrossOnDemand, Decoder, Generator

# BART's position table starts with two rows that no position uses.
POSITION_OFFSET = 2


class BartAttention(Module):
    """Multi-head attention with biases on all four projections."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.scaling = (width // heads) ** -0.5
        self.dropout = dropout
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.q_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def _rate(self, training: bool) -> float:
        if not training:
            return 0.0
        return self.dropout

    def keys_values(self, x: Tensor, packing: Packing | None = None) -> tuple[Tensor, Tensor]:
        """(R, L, d), or (P, d) packed -> keys and values (R, H, L, h)."""
        key = self.k_proj(x)
        value = self.v_proj(x)
        if packing is not None:
            key = packing.spread(key)
            value = packing.spread(value)
        return split_heads(key, self.heads), split_heads(value, self.heads)

    def __call__(
        self,
        x: Tensor,
        keys_values: tuple[Tensor, Tensor],
        mask: AttentionMask,
        need_weights: bool = False,
        training: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(R, T, d) attending to keys and values -> (R, T, d) and the weights if wanted."""
        query = split_heads(self.q_proj(x), self.heads)
        rate = self._rate(training)
        out, weights = mask.attend(
            query, *keys_values, dropout=rate, scale=self.scaling, need_weights=need_weights
        )
        return self.out_proj(merge_heads(out)), weights

    def packed(self, x: Tensor, packing: Packing, mask: AttentionMask, training: bool) -> Tensor:
        """Real tokens (P, d) attending to those of their row -> (P, d)."""
        query = packing.spread(self.q_proj(x))
        query = split_heads(query, self.heads)
        keys_values = self.keys_values(x, packing)
        rate = self._rate(training)
        out, _ = mask.attend(query, *keys_values, dropout=rate, scale=self.scaling)
        out = packing.pack(merge_heads(out))
        return self.out_proj(out)


class _BartLayer(Module):
    """What encoder and decoder layers share: self-attention and the feed-forward part."""

    def __init__(self, config: BartConfig, heads: int, ffn: int) -> None:
        super().__init__()
        self.self_attn = BartAttention(config.d_model, heads, config.attention_dropout)
        self.self_attn_layer_norm = LayerNorm(config.d_model)
        self.fc1 = Linear(config.d_model, ffn)
        self.fc2 = Linear(ffn, config.d_model)
        self.final_layer_norm = LayerNorm(config.d_model)
        self.act = activation(config.activation_function)
        self.dropout = config.dropout
        self.activation_dropout = config.activation_dropout

    def _add(self, x: Tensor, update: Tensor, norm: LayerNorm, training: bool) -> Tensor:
        update = dropout(update, self.dropout, training)
        return norm(x + update)

    def _feed_forward(self, x: Tensor, training: bool) -> Tensor:
        def both(x: Tensor) -> Tensor:
            inner = self.act(self.fc1(x))
            inner = dropout(inner, self.activation_dropout, training)
            return self.fc2(inner)

        update = by_rows(both, self.fc1, x)
        return self._add(x, update, self.final_layer_norm, training)


class BartEncoderLayer(_BartLayer):
    """Self-attention and feed-forward, each followed by a norm."""

    def __init__(self, config: BartConfig) -> None:
        super().__init__(config, config.encoder_attention_heads, config.encoder_ffn_dim)

    def __call__(
        self,
        x: Tensor,
        mask: AttentionMask,
        need_weights: bool = False,
        training: bool = False,
        packing: Packing | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(R, S, d), or (P, d) packed -> the same and the attention weights if wanted (never of
        what is packed).
        """
        if packing is None:
            keys_values = self.self_attn.keys_values(x)
            update, weights = self.self_attn(x, keys_values, mask, need_weights, training)
        else:
            update = self.self_attn.packed(x, packing, mask, training)
            weights = None
        x = self._add(x, update, self.self_attn_layer_norm, training)
        x = self._feed_forward(x, training)
        if x.dtype == tf.float16:
            # float16 ends at 65504, and an infinite state would make the next norm NaN.
            limit = tf.cast(65000, x.dtype)
            x = tf.clip_by_value(x, -limit, limit)
        return x, weights


class BartDecoderLayer(_BartLayer):
    """Causal self-attention, cross-attention and feed-forward, each followed by a norm."""

    def __init__(self, config: BartConfig) -> None:
        super().__init__(config, config.decoder_attention_heads, config.decoder_ffn_dim)
        self.encoder_attn = BartAttention(
            config.d_model, config.decoder_attention_heads, config.attention_dropout
        )
        self.encoder_attn_layer_norm = LayerNorm(config.d_model)

    def __call__(
        self,
        x: Tensor,
        keys_values: tuple[Tensor, Tensor],
        mask: AttentionMask,
        cross: tuple[Tensor, Tensor],
        cross_mask: AttentionMask,
        folded: tuple[Any, Any] | None = None,
        need_weights: bool = False,
        training: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(R*K, T, d) -> (R*K, T, d), self- and cross-attention weights if wanted.

        `folded` is (R, K*T).
        """
        update, weights = self.self_attn(x, keys_values, mask, need_weights, training)
        x = self._add(x, update, self.self_attn_layer_norm, training)
        update, cross_weights = cross_attention(
            self.encoder_attn, x, folded, cross, cross_mask, need_weights, training
        )
        x = self._add(x, update, self.encoder_attn_layer_norm, training)
        return self._feed_forward(x, training), weights, cross_weights


class _BartStack(Module):
    """Embeddings and bookkeeping that encoder and decoder share."""

    layers: Any
    checkpointing: dict[str, Any] | None = None

    def __init__(self, config: BartConfig, layers: list[Any], layerdrop: float) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.embed_positions = Embedding(
            config.max_position_embeddings + POSITION_OFFSET, config.d_model
        )
        self.layers = layers
        self.layernorm_embedding = LayerNorm(config.d_model)
        self.scale = embedding_scale(config)
        self.dropout = config.dropout
        self.layerdrop = layerdrop

    def check_length(self, length: int | None) -> None:
        """Refuses more positions than there are; `None`, a length of a graph, is taken on trust."""
        limit = self.embed_positions.num_embeddings - POSITION_OFFSET
        check_positions("BART", limit, length)

    def _embed(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        start: Any,
        training: bool,
        positions: Tensor | None = None,
    ) -> Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
            if self.scale != 1:
                inputs_embeds = inputs_embeds * self.scale
        if positions is None:
            if tf.executing_eagerly():
                self.check_length(int(start) + inputs_embeds.shape[1])
            positions = start + tf.range(dim(inputs_embeds, 1))  # so many, whatever the start
        return self._placed(inputs_embeds, positions, training)

    def _placed(self, inputs_embeds: Tensor, positions: Tensor, training: bool) -> Tensor:
        """(..., T, d) at positions (T,) -> the first layer's input."""
        places = self.embed_positions(positions + POSITION_OFFSET)  # (T, d)
        x = self.layernorm_embedding(inputs_embeds + places)
        return dropout(x, self.dropout, training)

    def _checkpointing(self, training: bool) -> dict[str, Any] | None:
        if not training:
            return None
        return self.checkpointing

    def _kept(self, before: Tensor, after: Tensor, training: bool) -> Tensor:
        """The layer's result, or with probability `layerdrop` what came in, while training."""
        if not training or not self.layerdrop:
            return after
        return tf.where(uniform(()) < self.layerdrop, before, after)


class BartEncoder(_BartStack):
    """Token and position embeddings, then the layers."""

    def __init__(self, config: BartConfig) -> None:
        layers = [BartEncoderLayer(config) for _ in range(config.encoder_layers)]
        super().__init__(config, layers, config.encoder_layerdrop)

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        inputs_embeds: Tensor | None = None,
        return_dict: bool | None = None,
        training: bool = False,
    ) -> EncoderOutput | tuple[Any, ...]:
        """(R, S) ids, or embeddings (R, S, d), and mask -> `EncoderOutput` with `last_hidden_state`
        (R, S, d).

        `return_dict=False` asks for a plain tuple.
        """
        check_one_of("input_ids", input_ids, "inputs_embeds", inputs_embeds)
        x = self._embed(input_ids, inputs_embeds, 0, training)
        mask = key_mask(attention_mask)
        trace = Trace(output_hidden_states, output_attentions)
        options = self._checkpointing(training)
        for layer in self.layers:
            trace.hidden(x)
            run = partial(layer, need_weights=output_attentions, training=training)
            after, weights = checkpointed(options, run, x, mask)
            x = self._kept(x, after, training)
            trace.attentions(weights)
        trace.hidden(x)
        return traced_output(x, trace, return_dict)

    def packed(self, input_ids: Tensor, packing: Packing, training: bool = False) -> Tensor:
        """(R, S) ids -> the last states of the real tokens, (P, d)."""
        tokens = packing.pick(input_ids)  # (P,)
        x = self.embed_tokens(tokens)  # (P, d)
        if self.scale != 1:
            x = x * self.scale
        x = self._placed(x, packing.positions, training)
        mask = key_mask(packing.mask)
        options = self._checkpointing(training)
        for layer in self.layers:
            run = partial(layer, training=training, packing=packing)
            after, _ = checkpointed(options, run, x, mask)
            x = self._kept(x, after, training)
        return x


class BartDecoder(Decoder, _BartStack):
    """Token and position embeddings, then the layers over a cache."""

    def __init__(self, config: BartConfig) -> None:
        layers = [BartDecoderLayer(config) for _ in range(config.decoder_layers)]
        super().__init__(config, layers, config.decoder_layerdrop)

    def cross(
        self, encoder_hidden: Tensor, packing: Packing | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        if not self.layers:
            if packing is not None:
                encoder_hidden = packing.spread(encoder_hidden)
            return cross_without_layers(encoder_hidden)
        return [self.cross_of(index, encoder_hidden, packing) for index in range(len(self.layers))]

    def cross_of(
        self, index: int, encoder_hidden: Tensor, packing: Packing | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.layers[index].encoder_attn.keys_values(encoder_hidden, packing)

    def advance(
        self,
        input_ids: Tensor | None,
        steps: Steps,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        training: bool = False,
    ) -> Tensor:
        cache = steps.cache
        cross = steps.cross
        trace = steps.trace or Trace(False, False)
        positions = None
        if cache.tree is not None:
            positions = cache.tree.positions
        x = self._embed(input_ids, inputs_embeds, cache.position, training, positions)
        length = dim(x, 1)
        options = None
        hidden = None
        if isinstance(cross, CrossOnDemand):
            options = self.checkpointing
            hidden = cross.hidden
            rows = cross.rows
        else:
            rows = dim(cross[0][0], 0)
        folded = cache.folded(length, rows)
        allowed = cache.allowed(length, attention_mask)
        mask = AttentionMask(allowed, includes_self=attention_mask is None)

        def run(
            index: int,
            x: Tensor,
            hidden: Tensor | None,
            mask: AttentionMask,
            cross_mask: AttentionMask,
        ) -> tuple[Tensor, Tensor | None, Tensor | None]:
            layer = self.layers[index]
            contexts = self._layers_cross(index, cross, hidden)
            keys_values = cache.extend(index, *layer.self_attn.keys_values(x))
            return layer(
                x, keys_values, mask, contexts, cross_mask, folded, trace.want_attentions, training
            )

        for index in range(len(self.layers)):
            trace.hidden(x)
            after, weights, cross_weights = checkpointed(
                options, partial(run, index), x, hidden, mask, steps.cross_mask
            )
            x = self._kept(x, after, training)
            trace.attentions(weights, cross_weights)
        trace.hidden(x)
        return x


class BartModel(Module):
    """Shared embedding, encoder and decoder."""

    def __init__(self, config: BartConfig) -> None:
        super().__init__()
        self.shared = Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.encoder = BartEncoder(config)
        self.decoder = BartDecoder(config)


class BartForConditionalGeneration(BartGenerator[Tensor], Generator):
    def __init__(self, config: BartConfig) -> None:
        super().__init__(config)
        self.model = BartModel(config)
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        self.final_logits_bias = parameter((1, config.vocab_size), trainable=False)
        self.post_init()

    def init_weights(self) -> None:
        init_normal(self, self.config.init_std)

    def check_length(self, length: int | None) -> None:
        self.model.decoder.check_length(length)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.lm_head(hidden)
        bias = tf.cast(self.final_logits_bias[0], hidden.dtype)
        if logits.shape.rank == 2:
            # TensorFlow joins this form of the sum to the product: it costs nothing.
            return tf.nn.bias_add(logits, bias)
        return logits + bias
