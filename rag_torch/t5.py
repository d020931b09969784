"""T5 v1.0 (ReLU, tied head) and v1.1 (gated, untied head): encoder, decoder with cache,
language-model head.

Raffel et al. 2019, arXiv 1910.10683. Attribute names are the weights' names in public checkpoints.
Letters: R rows (contexts), K beams of a row, T target positions now, L key positions, S context
length, d width, H heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rag_core.config import T5Config
from rag_core.generation import check_one_of
from rag_core.modeling import Steps, T5Generator, traced_output
from rag_core.outputs import EncoderOutput
from rag_core.positions import t5_buckets
from rag_torch.attention import AttentionMask, KeysValues, key_mask, merge_heads, split_heads
from rag_torch.decode_state import DecodeState, GrowingCache, noted
from rag_torch.layers import Trace, activation, checkpointed, cross_without_layers, outside_graph
from rag_torch.marginalize import widen
from rag_torch.packing import Packing
from rag_torch.seq2seq import Decoder, Generator


def _bucket_tensor(*args: Any) -> Tensor:
    return torch.from_numpy(t5_buckets(*args))


class T5LayerNorm(nn.Module):
    """Root-mean-square norm: no mean, no bias."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        wide = widen(x)
        mean_square = wide.pow(2).mean(-1, keepdim=True)  # (..., 1)
        wide = wide * torch.rsqrt(mean_square + self.epsilon)
        # In a model in float16 this is the way back from float32.
        return self.weight * wide.to(self.weight.dtype)


class T5Attention(nn.Module):
    """Multi-head attention without biases and without a scale on the scores."""

    def __init__(self, config: T5Config, has_bias: bool = False) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.heads = config.num_heads
        self.dropout = config.dropout_rate
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if has_bias:
            self.relative_attention_bias = nn.Embedding(
                config.relative_attention_num_buckets, config.num_heads
            )

    def keys_values(self, x: Tensor) -> KeysValues:
        """(R, L, d) -> keys and values (R, H, L, h)."""
        keys = split_heads(self.k(x), self.heads)
        values = split_heads(self.v(x), self.heads)
        return keys, values

    def forward(
        self, x: Tensor, keys_values: KeysValues, mask: AttentionMask, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(R, T, d) attending to keys and values -> (R, T, d) and the weights if wanted."""
        query = split_heads(self.q(x), self.heads)  # (R, H, T, h)
        keys, values = keys_values
        dropout = 0.0
        if self.training:
            dropout = self.dropout
        out, weights = mask.attend(
            query,
            keys,
            values,
            dropout=dropout,
            scale=1.0,
            need_weights=need_weights,
        )
        return self.o(merge_heads(out)), weights


class T5FeedForward(nn.Module):
    """Two projections, or three with a gate.

    The sums of the last one pass float16's range in public models. So its weights stay float32 in a
    model in float16, and it computes in float32 where the others compute in float16.
    """

    wi: nn.Linear
    wi_0: nn.Linear
    wi_1: nn.Linear

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.gated = bool(config.is_gated_act)
        if self.gated:
            self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
            self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        else:
            self.wi = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.act = activation(str(config.dense_act_fn))
        self.dropout = config.dropout_rate

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> T5FeedForward:
        """What `half()`, `to(...)` and their like do to all tensors."""

        def unless_halved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            if new.dtype == torch.float16 and tensor.dtype != torch.float16:
                return tensor.to(new.device, torch.float32)
            return new

        for child in self.children():
            if child is self.wo:
                child._apply(unless_halved)
            else:
                child._apply(fn)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(R, T, d) -> (R, T, d), in float32 of float16."""
        if self.gated:
            hidden = self.act(self.wi_0(x))
        else:
            hidden = self.act(self.wi(x))
        half = hidden.dtype == torch.float16  # also under autocast
        if half:
            hidden = hidden.float()
        if self.gated:
            hidden = hidden * self.wi_1(x)
        hidden = F.dropout(hidden, self.dropout, self.training)
        if not half:
            return self.wo(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            weight = getattr(self.wo, "weight", None)
            # FSDP's mixed precision hands in all weights in float16.
            if weight is not None and weight.dtype == torch.float16:
                return F.linear(hidden, weight.float())
            return self.wo(hidden)


class T5SubLayer(nn.Module):
    """A norm, one of the parts above under its name, and a residual connection around both."""

    def __init__(self, config: T5Config, name: str, part: nn.Module) -> None:
        super().__init__()
        self.add_module(name, part)
        self.layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = config.dropout_rate

    def add(self, x: Tensor, update: Tensor) -> Tensor:
        """x plus the (dropped-out) update."""
        return x + F.dropout(update, self.dropout, self.training)


class T5Block(nn.Module):
    """Self-attention, cross-attention in a decoder, and feed-forward."""

    layer: Any

    def __init__(self, config: T5Config, decoder: bool, first: bool) -> None:
        super().__init__()
        layers = [T5SubLayer(config, "SelfAttention", T5Attention(config, first))]
        if decoder:
            layers.append(T5SubLayer(config, "EncDecAttention", T5Attention(config)))
        layers.append(T5SubLayer(config, "DenseReluDense", T5FeedForward(config)))
        self.layer = nn.ModuleList(layers)

    def forward(
        self,
        x: Tensor,
        mask: AttentionMask,
        need_weights: bool = False,
        cache: DecodeState | GrowingCache | None = None,
        index: int = 0,
        cross: KeysValues | None = None,
        cross_mask: AttentionMask | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(R*K, T, d) or (R, K*T, d) -> the same shape, self- and cross-attention weights if
        wanted.
        """
        first = self.layer[0]
        normed = first.layer_norm(x)
        keys_values = first.SelfAttention.keys_values(normed)
        if cache is not None:
            keys, values = keys_values
            keys_values = cache.extend(index, keys, values)
        update, weights = first.SelfAttention(normed, keys_values, mask, need_weights)
        x = first.add(x, update)
        cross_weights = None
        if cross is not None and cross_mask is not None:
            second = self.layer[1]
            # The beams of a context are folded into the query axis, so its keys and values are
            # never repeated.
            rows = cross[0].shape[0]
            folded = second.layer_norm(x).reshape(rows, -1, x.shape[-1])  # (R, K*T, d)
            update, cross_weights = second.EncDecAttention(folded, cross, cross_mask, need_weights)
            x = second.add(x, update.reshape(x.shape))
        last = self.layer[-1]
        update = last.DenseReluDense(last.layer_norm(x))
        return last.add(x, update), weights, cross_weights


class T5Stack(nn.Module):
    """Token embeddings, blocks and a final norm; the encoder or the decoder."""

    block: Any
    checkpointing: dict[str, Any] | None = None

    def __init__(self, config: T5Config, decoder: bool) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        count = config.num_layers
        if decoder:
            count = config.num_decoder_layers or 0
        self.block = nn.ModuleList()
        for index in range(count):
            self.block.append(T5Block(config, decoder, first=index == 0))
        self.final_layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = config.dropout_rate
        self.decoder = decoder
        self.buckets = (
            config.relative_attention_num_buckets,
            config.relative_attention_max_distance,
        )

    def position_bias(self, length: int, keys: int, first: int = 0) -> Tensor | None:
        """The first block's learned bias on every block's scores, (1, H, T, L), for queries from
        position `first`.

        None where there are no blocks.
        """
        if not self.block:
            return None
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias
        buckets = outside_graph(
            _bucket_tensor, length, keys, *self.buckets, not self.decoder, first
        )
        buckets = buckets.to(table.weight.device)  # (T, L)
        return table(buckets).permute(2, 0, 1)[None]

    def _finish(self, x: Tensor) -> Tensor:
        x = self.final_layer_norm(x)
        return F.dropout(x, self.dropout, self.training)

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None = None) -> Tensor:
        x = inputs_embeds
        if x is None:
            x = self.embed_tokens(input_ids)
        # All that the layers add up is float32 in a model in float16, whose range it passes.
        if x.dtype == torch.float16:
            x = x.float()
        return F.dropout(x, self.dropout, self.training)


class T5Encoder(T5Stack):
    """The encoder."""

    def __init__(self, config: T5Config) -> None:
        super().__init__(config, False)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        inputs_embeds: Tensor | None = None,
        return_dict: bool | None = None,
        skip_padding: bool = False,
    ) -> EncoderOutput | tuple[Any, ...]:
        """(R, S) ids, or embeddings (R, S, d), and mask -> `EncoderOutput` with `last_hidden_state`
        (R, S, d).

        `return_dict=False` asks for a plain tuple.
        With `skip_padding`, which goes without traces, the states of padding may be zeros.
        """
        check_one_of("input_ids", input_ids, "inputs_embeds", inputs_embeds)
        x = self._embed(input_ids, inputs_embeds)
        bias = self.position_bias(x.shape[1], x.shape[1])
        packing = None
        if skip_padding:
            packing = Packing.of(attention_mask, x.shape[2])
        mask: AttentionMask
        if packing is None:
            mask = key_mask(attention_mask, bias)
        else:
            mask = packing.mask(bias)
            x = packing.pack(x)
        trace = Trace(output_hidden_states, output_attentions)
        options = None
        if self.training:
            options = self.checkpointing
        for block in self.block:
            trace.hidden(x)
            run = partial(block, need_weights=output_attentions)
            x, weights, _ = checkpointed(options, run, x, mask)
            trace.attentions(weights)
        x = self._finish(x)
        if packing is not None:
            x = packing.padded(x)
        trace.hidden(x)
        return traced_output(x, trace, return_dict)


class T5Decoder(Decoder, T5Stack):
    """The decoder over a cache."""

    def __init__(self, config: T5Config) -> None:
        super().__init__(config, True)

    def cross(self, encoder_hidden: Tensor) -> list[KeysValues]:
        if not len(self.block):
            return cross_without_layers(encoder_hidden)
        return [self.cross_of(index, encoder_hidden) for index in range(len(self.block))]

    def cross_of(self, index: int, encoder_hidden: Tensor) -> KeysValues:
        second = self.block[index].layer[1]
        return second.EncDecAttention.keys_values(encoder_hidden)

    def _bias(self, cache: DecodeState | GrowingCache, length: int) -> Tensor | None:
        past = cache.position
        if isinstance(cache, GrowingCache):
            return self.position_bias(length, past + length, past)
        if cache.tree is not None:
            positions = cache.tree.positions  # (T,)
            longest = int(positions[-1]) + 1
            bias = self.position_bias(longest, longest)
            if bias is None:
                return None
            return bias[:, :, positions[:, None], positions]  # (1, H, T, T)
        if cache.position_bias is None:
            return self.position_bias(length, length)
        end = past + length
        bias = cache.position_bias[:, :, past:end, :end]  # (1, H, T, L)
        return cache.biased(bias)

    def advance(
        self,
        input_ids: Tensor | None,
        steps: Steps,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        cache = steps.cache
        cross = steps.cross
        cross_mask = steps.cross_mask
        trace = steps.trace or Trace(False, False)
        options = None
        if self.training:
            options = self.checkpointing
        x = self._embed(input_ids, inputs_embeds)
        shape = x.shape
        allowed = cache.allowed(shape[1], x.device, attention_mask)
        bias = self._bias(cache, shape[1])
        mask = AttentionMask(allowed, bias, includes_self=attention_mask is None)
        x = cache.fold(x)

        def run(
            index: int, x: Tensor, mask: AttentionMask, cross_mask: AttentionMask
        ) -> tuple[Tensor, Tensor | None, Tensor | None]:
            return self.block[index](
                x, mask, trace.want_attentions, cache, index, cross[index], cross_mask
            )

        for index in range(len(self.block)):
            x = noted(trace, x, shape)
            x, weights, cross_weights = checkpointed(
                options, partial(run, index), x, mask, cross_mask
            )
            trace.attentions(cache.unfold_weights(weights), cross_weights)
        x = self._finish(x).reshape(shape)
        trace.hidden(x)
        return x


class T5ForConditionalGeneration(T5Generator[Tensor], Generator):
    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Encoder(config)
        self.decoder = T5Decoder(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def init_weights(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, 0.0, self._initial_std(name))

    def _logits(self, hidden: Tensor) -> Tensor:
        if self.config.tie_word_embeddings:
            # A tied table is as large as embeddings are, too large for a head.
            hidden = hidden * self.config.d_model**-0.5
        return self.lm_head(hidden)

    def start(
        self,
        encoder_hidden: Tensor,
        encoder_mask: Tensor | None,
        beams: int = 1,
        max_length: int | None = None,
    ) -> DecodeState:
        state = super().start(encoder_hidden, encoder_mask, beams, max_length)
        if max_length is not None:
            state.position_bias = self.decoder.position_bias(max_length, max_length)
        return state
