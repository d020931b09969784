"""T5 v1.0 (ReLU, tied head) and v1.1 (gated, untied head): encoder, decoder with cache,
language-model head.

Raffel et al. 2019, arXiv 1910.10683. Attribute names are the weights' names in public checkpoints.
Letters: R rows (contexts), K beams of a row, T target positions now, L key positions, S context
length, d width, H heads, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from rag_core.config import T5Config
from rag_core.generation import check_one_of
from rag_core.modeling import Steps, T5Generator, traced_output
from rag_core.outputs import EncoderOutput
from rag_core.positions import t5_distance_buckets
from rag_tf.attention import AttentionMask, cross_attention, key_mask, merge_heads, split_heads
from rag_tf.decode_state import DecodeState, GrowingCache
from rag_tf.layers import Trace, activation, checkpointed, cross_without_layers
from rag_tf.modules import Embedding, Linear, Module, compute_dtype, dim, dropout, parameter, widen
from rag_tf.packing import Packing
from rag_tf.seq2seq import CrossOnDemand, Decoder, Generator

KeysValues = tuple[Tensor, Tensor]


def _out_of_half(x: Tensor) -> Tensor:
    if x.dtype == tf.float16:
        return tf.cast(x, tf.float32)
    return x


class T5LayerNorm(Module):
    """Root-mean-square norm: no mean, no bias."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = parameter((width,))
        self.epsilon = float(epsilon)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        wide = widen(x)
        mean_square = tf.reduce_mean(tf.square(wide), -1, keepdims=True)
        wide = wide * tf.math.rsqrt(mean_square + self.epsilon)
        dtype = x.dtype
        if (compute_dtype() or self.weight.dtype) == tf.float16:
            # The layers' sum is float32; what the projections compute from it is float16 again.
            dtype = tf.float16
        return tf.cast(self.weight, dtype) * tf.cast(wide, dtype)


class T5Attention(Module):
    """Multi-head attention without biases and without a scale on the scores."""

    def __init__(self, config: T5Config, has_bias: bool = False) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.heads = config.num_heads
        self.dropout = config.dropout_rate
        self.q = Linear(config.d_model, inner, bias=False)
        self.k = Linear(config.d_model, inner, bias=False)
        self.v = Linear(config.d_model, inner, bias=False)
        self.o = Linear(inner, config.d_model, bias=False)
        if has_bias:
            self.relative_attention_bias = Embedding(
                config.relative_attention_num_buckets, config.num_heads
            )

    def _rate(self, training: bool) -> float:
        if not training:
            return 0.0
        return self.dropout

    def keys_values(self, x: Tensor, packing: Packing | None = None) -> KeysValues:
        """(R, L, d), or (P, d) packed -> keys and values (R, H, L, h)."""
        key = self.k(x)
        value = self.v(x)
        if packing is not None:
            key = packing.spread(key)
            value = packing.spread(value)
        return split_heads(key, self.heads), split_heads(value, self.heads)

    def __call__(
        self,
        x: Tensor,
        keys_values: KeysValues,
        mask: AttentionMask,
        need_weights: bool = False,
        training: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(R, T, d) attending to keys and values -> (R, T, d) and the weights if wanted."""
        query = split_heads(self.q(x), self.heads)
        rate = self._rate(training)
        out, weights = mask.attend(
            query, *keys_values, dropout=rate, scale=1.0, need_weights=need_weights
        )
        return self.o(merge_heads(out)), weights

    def packed(self, x: Tensor, packing: Packing, mask: AttentionMask, training: bool) -> Tensor:
        """Real tokens (P, d) attending to those of their row -> (P, d)."""
        query = packing.spread(self.q(x))
        query = split_heads(query, self.heads)
        keys_values = self.keys_values(x, packing)
        out, _ = mask.attend(query, *keys_values, dropout=self._rate(training), scale=1.0)
        out = packing.pack(merge_heads(out))
        return self.o(out)


class T5FeedForward(Module):
    """Two projections, or three with a gate.

    The sums of the last one pass float16's range in public models. So its weights stay float32 in a
    model in float16, and it computes in float32 where the others compute in float16.
    """

    wi: Linear
    wi_0: Linear
    wi_1: Linear

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.gated = bool(config.is_gated_act)
        if self.gated:
            self.wi_0 = Linear(config.d_model, config.d_ff, bias=False)
            self.wi_1 = Linear(config.d_model, config.d_ff, bias=False)
        else:
            self.wi = Linear(config.d_model, config.d_ff, bias=False)
        self.wo = Linear(config.d_ff, config.d_model, bias=False)
        self.act = activation(str(config.dense_act_fn))
        self.dropout = config.dropout_rate

    def __call__(self, x: Tensor, training: bool = False) -> Tensor:
        """(R, T, d) -> (R, T, d), in float32 of float16."""
        if self.gated:
            gate = _out_of_half(self.act(self.wi_0(x)))
            hidden = gate * tf.cast(self.wi_1(x), gate.dtype)
        else:
            hidden = _out_of_half(self.act(self.wi(x)))
        hidden = dropout(hidden, self.dropout, training)
        return self.wo(hidden)


class T5SubLayer(Module):
    """A norm, one of the parts above under its name, and a residual connection around both."""

    def __init__(self, config: T5Config, name: str, part: Module) -> None:
        super().__init__()
        setattr(self, name, part)
        self.layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = config.dropout_rate

    def add(self, x: Tensor, update: Tensor, training: bool) -> Tensor:
        """x plus the (dropped-out) update."""
        update = dropout(update, self.dropout, training)
        return x + tf.cast(update, x.dtype)


class T5Block(Module):
    """Self-attention, cross-attention in a decoder, and feed-forward."""

    layer: Any

    def __init__(self, config: T5Config, decoder: bool, first: bool) -> None:
        super().__init__()
        layers = [T5SubLayer(config, "SelfAttention", T5Attention(config, first))]
        if decoder:
            layers.append(T5SubLayer(config, "EncDecAttention", T5Attention(config)))
        layers.append(T5SubLayer(config, "DenseReluDense", T5FeedForward(config)))
        self.layer = layers

    def __call__(
        self,
        x: Tensor,
        mask: AttentionMask,
        need_weights: bool = False,
        cache: DecodeState | GrowingCache | None = None,
        index: int = 0,
        cross: KeysValues | None = None,
        cross_mask: AttentionMask | None = None,
        folded: tuple[Any, Any] | None = None,
        training: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(R*K, T, d) -> (R*K, T, d), self- and cross-attention weights if wanted.

        `folded` is (R, K*T).
        """
        first = self.layer[0]
        normed = first.layer_norm(x)
        keys_values = first.SelfAttention.keys_values(normed)
        if cache is not None:
            keys_values = cache.extend(index, *keys_values)
        update, weights = first.SelfAttention(normed, keys_values, mask, need_weights, training)
        x = first.add(x, update, training)
        cross_weights = None
        if cross is not None and cross_mask is not None:
            second = self.layer[1]
            normed = second.layer_norm(x)
            update, cross_weights = cross_attention(
                second.EncDecAttention, normed, folded, cross, cross_mask, need_weights, training
            )
            x = second.add(x, update, training)
        return self._feed_forward(x, training), weights, cross_weights

    def packed(self, x: Tensor, packing: Packing, mask: AttentionMask, training: bool) -> Tensor:
        """An encoder's block on real tokens, (P, d) -> (P, d)."""
        first = self.layer[0]
        normed = first.layer_norm(x)
        update = first.SelfAttention.packed(normed, packing, mask, training)
        x = first.add(x, update, training)
        return self._feed_forward(x, training)

    def _feed_forward(self, x: Tensor, training: bool) -> Tensor:
        last = self.layer[-1]
        normed = last.layer_norm(x)
        update = last.DenseReluDense(normed, training)
        return last.add(x, update, training)


class T5Stack(Module):
    """Token embeddings, blocks and a final norm; the encoder or the decoder."""

    block: Any
    checkpointing: dict[str, Any] | None = None

    def __init__(self, config: T5Config, decoder: bool) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.d_model)
        count = config.num_decoder_layers if decoder else config.num_layers
        self.block = [T5Block(config, decoder, number == 0) for number in range(count or 0)]
        self.final_layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = config.dropout_rate
        self.decoder = decoder
        # From this distance on there is one bucket only, so that one table serves all lengths.
        self.farthest = config.relative_attention_max_distance
        self._buckets = t5_distance_buckets(
            self.farthest + 1,
            config.relative_attention_num_buckets,
            self.farthest,
            not decoder,
        )

    def position_bias(self, length: Any, keys: Any, first: Any = 0) -> Tensor | None:
        """The first block's learned bias on every block's scores, (1, H, T, L), for queries from
        position `first`.

        None where there are no blocks.
        """
        if not self.block:
            return None
        queries = tf.range(first, first + length)
        distance = tf.range(keys) - queries[:, None]  # (T, L)
        distance = tf.clip_by_value(distance, -self.farthest, self.farthest)
        buckets = tf.gather(tf.constant(self._buckets), distance + self.farthest)
        attention = self.block[0].layer[0].SelfAttention
        bias = attention.relative_attention_bias(buckets)  # (T, L, H)
        return tf.transpose(bias, (2, 0, 1))[None]  # (1, H, T, L)

    def _checkpointing(self, training: bool) -> dict[str, Any] | None:
        if not training:
            return None
        return self.checkpointing

    def _finish(self, x: Tensor, training: bool) -> Tensor:
        x = self.final_layer_norm(x)
        return dropout(x, self.dropout, training)

    def _embed(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, training: bool
    ) -> Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        # All that the layers add up is float32 in a model in float16, whose range it passes.
        x = _out_of_half(inputs_embeds)
        return dropout(x, self.dropout, training)


class T5Encoder(T5Stack):
    """The encoder."""

    def __init__(self, config: T5Config) -> None:
        super().__init__(config, False)

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
        x = self._embed(input_ids, inputs_embeds, training)
        length = dim(x, 1)
        bias = self.position_bias(length, length)
        mask = key_mask(attention_mask, bias)
        trace = Trace(output_hidden_states, output_attentions)
        options = self._checkpointing(training)
        for block in self.block:
            trace.hidden(x)
            run = partial(block, need_weights=output_attentions, training=training)
            x, weights, _ = checkpointed(options, run, x, mask)
            trace.attentions(weights)
        x = self._finish(x, training)
        trace.hidden(x)
        return traced_output(x, trace, return_dict)

    def packed(self, input_ids: Tensor, packing: Packing, training: bool = False) -> Tensor:
        """(R, S) ids -> the last states of the real tokens, (P, d)."""
        tokens = packing.pick(input_ids)  # (P,)
        x = self._embed(tokens, None, training)
        length = dim(packing.mask, 1)
        bias = self.position_bias(length, length)
        mask = key_mask(packing.mask, bias)
        options = self._checkpointing(training)

        def run(block: T5Block, x: Tensor, mask: AttentionMask) -> tuple[Tensor]:
            return (block.packed(x, packing, mask, training),)

        for block in self.block:
            (x,) = checkpointed(options, partial(run, block), x, mask)
        return self._finish(x, training)


class T5Decoder(Decoder, T5Stack):
    """The decoder over a cache."""

    def __init__(self, config: T5Config) -> None:
        super().__init__(config, True)

    def cross(self, encoder_hidden: Tensor, packing: Packing | None = None) -> list[KeysValues]:
        if not self.block:
            if packing is not None:
                encoder_hidden = packing.spread(encoder_hidden)
            return cross_without_layers(encoder_hidden)
        return [self.cross_of(index, encoder_hidden, packing) for index in range(len(self.block))]

    def cross_of(
        self, index: int, encoder_hidden: Tensor, packing: Packing | None = None
    ) -> KeysValues:
        return self.block[index].layer[1].EncDecAttention.keys_values(encoder_hidden, packing)

    def _bias(self, cache: DecodeState | GrowingCache, length: Tensor) -> Tensor | None:
        if not self.block:
            return None
        if cache.tree is None:
            return self.position_bias(length, cache.position + length, cache.position)
        positions = cache.tree.positions
        longest = positions[-1] + 1
        bias = self.position_bias(longest, longest)
        of_queries = tf.gather(bias, positions, axis=2)
        return tf.gather(of_queries, positions, axis=3)  # (1, H, T, T)

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
        x = self._embed(input_ids, inputs_embeds, training)
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
        bias = self._bias(cache, length)
        allowed = cache.allowed(length, attention_mask)
        mask = AttentionMask(allowed, bias, includes_self=attention_mask is None)

        def run(
            index: int,
            x: Tensor,
            hidden: Tensor | None,
            mask: AttentionMask,
            cross_mask: AttentionMask,
        ) -> tuple[Tensor, Tensor | None, Tensor | None]:
            contexts = self._layers_cross(index, cross, hidden)
            return self.block[index](
                x,
                mask,
                trace.want_attentions,
                cache,
                index,
                contexts,
                cross_mask,
                folded,
                training,
            )

        for index in range(len(self.block)):
            trace.hidden(x)
            x, weights, cross_weights = checkpointed(
                options, partial(run, index), x, hidden, mask, steps.cross_mask
            )
            trace.attentions(weights, cross_weights)
        x = self._finish(x, training)
        trace.hidden(x)
        return x


class T5ForConditionalGeneration(T5Generator[Tensor], Generator):
    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        self.shared = Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Encoder(config)
        self.decoder = T5Decoder(config)
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def init_weights(self) -> None:
        for name, variable in self.named_parameters():
            if variable.shape.rank == 2:
                std = self._initial_std(name)
                variable.assign(tf.random.normal(variable.shape, 0.0, std, variable.dtype))
            else:
                variable.assign(tf.ones_like(variable))

    def _logits(self, hidden: Tensor) -> Tensor:
        if self.config.tie_word_embeddings:
            # A tied table is as large as embeddings are, too large for a head.
            hidden = hidden * self.config.d_model**-0.5
        return self.lm_head(hidden)
