"""BART: encoder, decoder with cache, language-model head (Lewis et al. 2019, arXiv 1910.13461).

Attribute names are the weights' names in public checkpoints.
Letters: R rows (contexts), K beams of a row, T target positions now, S context length, d width, V
vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rag_core.config import BartConfig
from rag_core.generation import check_one_of
from rag_core.modeling import BartGenerator, Steps, check_positions, traced_output
from rag_core.outputs import EncoderOutput
from rag_torch.attention import AttentionMask, KeysValues, key_mask, merge_heads, split_heads
from rag_torch.decode_state import noted
from rag_torch.layers import (
    Trace,
    activation,
    checkpointed,
    cross_without_layers,
    embedding_scale,
    init_normal,
)
from rag_torch.packing import Packing
from rag_torch.seq2seq import Decoder, Generator

# BART's position table starts with two rows that no position uses.
POSITION_OFFSET = 2


class BartAttention(nn.Module):
    """Multi-head attention with biases on all four projections."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.scaling = (width // heads) ** -0.5
        self.dropout = dropout
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def keys_values(self, x: Tensor) -> KeysValues:
        """(R, L, d) -> keys and values (R, H, L, h)."""
        keys = split_heads(self.k_proj(x), self.heads)
        values = split_heads(self.v_proj(x), self.heads)
        return keys, values

    def forward(
        self,
        x: Tensor,
        keys_values: KeysValues,
        mask: AttentionMask,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(R, T, d) attending to keys and values -> (R, T, d) and the weights if wanted."""
        query = split_heads(self.q_proj(x), self.heads)  # (R, H, T, h)
        keys, values = keys_values
        dropout = 0.0
        if self.training:
            dropout = self.dropout
        out, weights = mask.attend(
            query,
            keys,
            values,
            dropout=dropout,
            scale=self.scaling,
            need_weights=need_weights,
        )
        return self.out_proj(merge_heads(out)), weights


class _BartLayer(nn.Module):
    """What encoder and decoder layers share: self-attention and the feed-forward part."""

    def __init__(self, config: BartConfig, heads: int, ffn: int) -> None:
        super().__init__()
        self.self_attn = BartAttention(config.d_model, heads, config.attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, ffn)
        self.fc2 = nn.Linear(ffn, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.act = activation(config.activation_function)
        self.dropout = config.dropout
        self.activation_dropout = config.activation_dropout

    def _add(self, x: Tensor, update: Tensor, norm: nn.LayerNorm) -> Tensor:
        if self.training:
            update = F.dropout(update, self.dropout)
        return norm(x + update)

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.fc1(x))
        if self.training:
            hidden = F.dropout(hidden, self.activation_dropout)
        return self._add(x, self.fc2(hidden), self.final_layer_norm)


class BartEncoderLayer(_BartLayer):
    """Self-attention and feed-forward, each followed by a norm."""

    def __init__(self, config: BartConfig) -> None:
        super().__init__(config, config.encoder_attention_heads, config.encoder_ffn_dim)

    def forward(
        self, x: Tensor, mask: AttentionMask, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(R, S, d) -> (R, S, d) and the attention weights if wanted."""
        update, weights = self.self_attn(x, self.self_attn.keys_values(x), mask, need_weights)
        x = self._add(x, update, self.self_attn_layer_norm)
        x = self._feed_forward(x)
        # The largest number of float16 is 65504: what passes it would be infinite.
        if x.dtype == torch.float16:
            x = x.clamp(-65000, 65000)
        return x, weights


class BartDecoderLayer(_BartLayer):
    """Causal self-attention, cross-attention and feed-forward, each followed by a norm."""

    def __init__(self, config: BartConfig) -> None:
        super().__init__(config, config.decoder_attention_heads, config.decoder_ffn_dim)
        self.encoder_attn = BartAttention(
            config.d_model, config.decoder_attention_heads, config.attention_dropout
        )
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)

    def forward(
        self,
        x: Tensor,
        keys_values: KeysValues,
        mask: AttentionMask,
        cross: KeysValues,
        cross_mask: AttentionMask,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(R*K, T, d) or (R, K*T, d) -> the same shape, self- and cross-attention weights if
        wanted.
        """
        update, weights = self.self_attn(x, keys_values, mask, need_weights)
        x = self._add(x, update, self.self_attn_layer_norm)
        # The beams of a context are folded into the query axis, so its keys and values are never
        # repeated.
        rows = cross[0].shape[0]
        folded = x.reshape(rows, -1, x.shape[-1])  # (R, K*T, d)
        update, cross_weights = self.encoder_attn(folded, cross, cross_mask, need_weights)
        update = update.reshape(x.shape)
        x = self._add(x, update, self.encoder_attn_layer_norm)
        return self._feed_forward(x), weights, cross_weights


class _BartStack(nn.Module):
    """Embeddings and bookkeeping that encoder and decoder share."""

    layers: Any
    checkpointing: dict[str, Any] | None = None

    def __init__(self, config: BartConfig, layers: nn.ModuleList, layerdrop: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.embed_positions = nn.Embedding(
            config.max_position_embeddings + POSITION_OFFSET, config.d_model
        )
        self.layers = layers
        self.layernorm_embedding = nn.LayerNorm(config.d_model)
        self.scale = embedding_scale(config)
        self.dropout = config.dropout
        self.layerdrop = layerdrop

    def _embed(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        start: int,
        positions: Tensor | None = None,
    ) -> Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids) * self.scale
        first = start + POSITION_OFFSET
        table_rows: slice | Tensor
        if positions is None:
            length = inputs_embeds.shape[1]
            table_rows = slice(first, first + length)
        else:
            length = int(positions[-1]) + 1
            table_rows = first + positions
        limit = self.embed_positions.num_embeddings - POSITION_OFFSET
        check_positions("BART", limit, start + length)
        x = inputs_embeds + self.embed_positions.weight[table_rows]
        x = self.layernorm_embedding(x)
        return F.dropout(x, self.dropout, self.training)

    def _dropped(self) -> bool:
        """Whether a layer is left out this time, which is LayerDrop's way of regularising."""
        if not self.training or self.layerdrop <= 0:
            return False
        return bool(torch.rand(()) < self.layerdrop)


class BartEncoder(_BartStack):
    """Token and position embeddings, then the layers."""

    def __init__(self, config: BartConfig) -> None:
        layers = nn.ModuleList(BartEncoderLayer(config) for _ in range(config.encoder_layers))
        super().__init__(config, layers, config.encoder_layerdrop)

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
        x = self._embed(input_ids, inputs_embeds, 0)
        packing = None
        if skip_padding:
            packing = Packing.of(attention_mask, x.shape[2])
        mask: AttentionMask
        if packing is None:
            mask = key_mask(attention_mask)
        else:
            mask = packing.mask()
            x = packing.pack(x)
        trace = Trace(output_hidden_states, output_attentions)
        options = None
        if self.training:
            options = self.checkpointing
        for layer in self.layers:
            trace.hidden(x)
            if self._dropped():
                continue
            run = partial(layer, need_weights=output_attentions)
            x, weights = checkpointed(options, run, x, mask)
            trace.attentions(weights)
        if packing is not None:
            x = packing.padded(x)
        trace.hidden(x)
        return traced_output(x, trace, return_dict)


class BartDecoder(Decoder, _BartStack):
    """Token and position embeddings, then the layers over a cache."""

    def __init__(self, config: BartConfig) -> None:
        layers = nn.ModuleList(BartDecoderLayer(config) for _ in range(config.decoder_layers))
        super().__init__(config, layers, config.decoder_layerdrop)

    def cross(self, encoder_hidden: Tensor) -> list[KeysValues]:
        if not len(self.layers):
            return cross_without_layers(encoder_hidden)
        return [self.cross_of(index, encoder_hidden) for index in range(len(self.layers))]

    def cross_of(self, index: int, encoder_hidden: Tensor) -> KeysValues:
        return self.layers[index].encoder_attn.keys_values(encoder_hidden)

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
        positions = None
        tree = getattr(cache, "tree", None)
        if tree is not None:
            positions = tree.positions
        x = self._embed(input_ids, inputs_embeds, cache.position, positions)
        shape = x.shape
        allowed = cache.allowed(shape[1], x.device, attention_mask)
        mask = AttentionMask(allowed, includes_self=attention_mask is None)
        x = cache.fold(x)

        def run(
            index: int, x: Tensor, mask: AttentionMask, cross_mask: AttentionMask
        ) -> tuple[Tensor, Tensor | None, Tensor | None]:
            layer = self.layers[index]
            keys, values = layer.self_attn.keys_values(x)
            keys_values = cache.extend(index, keys, values)
            return layer(x, keys_values, mask, cross[index], cross_mask, trace.want_attentions)

        for index in range(len(self.layers)):
            x = noted(trace, x, shape)
            if self._dropped():
                continue
            x, weights, cross_weights = checkpointed(
                options, partial(run, index), x, mask, cross_mask
            )
            trace.attentions(cache.unfold_weights(weights), cross_weights)
        x = x.reshape(shape)
        trace.hidden(x)
        return x


class BartModel(nn.Module):
    """Shared embedding, encoder and decoder."""

    def __init__(self, config: BartConfig) -> None:
        super().__init__()
        self.shared = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.encoder = BartEncoder(config)
        self.decoder = BartDecoder(config)


class BartForConditionalGeneration(BartGenerator[Tensor], Generator):
    def __init__(self, config: BartConfig) -> None:
        super().__init__(config)
        self.model = BartModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.register_buffer("final_logits_bias", torch.zeros(1, config.vocab_size))
        self.post_init()

    def init_weights(self) -> None:
        init_normal(self, self.config.init_std)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.lm_head(hidden)
        bias = self.final_logits_bias
        # In place where nobody asks for a gradient: the logits are the largest of all tensors.
        if logits.dtype == bias.dtype and not torch.is_grad_enabled():
            return logits.add_(bias)
        return logits + bias
