"""What a BERT is made of: embeddings, self-attention, feed-forward, pooler.

Attribute names are the weights' names in public checkpoints.
Letters: R rows, L length, d width, H heads.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rag_core.modeling import traced_output
from rag_core.outputs import EncoderOutput
from rag_core.positions import MPNET_DISTANCE, t5_buckets
from rag_torch.attention import AttentionMask, key_mask, merge_heads, split_heads
from rag_torch.layers import Trace, activation, checkpointed, outside_graph
from rag_torch.packing import Packing


class BertEmbeddings(nn.Module):
    """Word, position and token-type embeddings, summed and normalised."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(
            config.vocab_size, config.hidden_size, config.pad_token_id
        )
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob

    def forward(
        self, input_ids: Tensor | None, token_type_ids: Tensor | None, inputs_embeds: Tensor | None
    ) -> Tensor:
        """(B, S) ids -> (B, S, d)."""
        x = inputs_embeds
        if x is None:
            x = self.word_embeddings(input_ids)
        if token_type_ids is None:
            x = x + self.token_type_embeddings.weight[0]
        else:
            x = x + self.token_type_embeddings(token_type_ids)
        x = x + self.position_embeddings.weight[: x.shape[1]]
        x = self.LayerNorm(x)
        return F.dropout(x, self.dropout, self.training)


class BertSelfAttention(nn.Module):
    """Multi-head self-attention, before its output projection."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = config.attention_probs_dropout_prob

    def forward(
        self, x: Tensor, mask: AttentionMask, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(B, S, d) -> (B, S, d) and the attention weights if wanted."""
        query = split_heads(self.query(x), self.heads)  # (B, H, S, h)
        key = split_heads(self.key(x), self.heads)
        value = split_heads(self.value(x), self.heads)
        dropout = 0.0
        if self.training:
            dropout = self.dropout
        out, weights = mask.attend(query, key, value, dropout=dropout, need_weights=need_weights)
        return merge_heads(out), weights


class BertAddNorm(nn.Module):
    """A projection, added to what came before and normalised."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        """norm(x + dense(hidden))."""
        hidden = self.dense(hidden)
        hidden = F.dropout(hidden, self.dropout, self.training)
        hidden = hidden + x
        return self.LayerNorm(hidden)


class BertAttention(nn.Module):
    """Self-attention with its output projection."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertAddNorm(config, config.hidden_size)


class BertIntermediate(nn.Module):
    """The first half of the feed-forward part."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, d) -> (B, S, intermediate_size)."""
        return self.act(self.dense(x))


class BertLayer(nn.Module):
    """Self-attention and feed-forward, each followed by a norm."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertAddNorm(config, config.intermediate_size)

    def forward(
        self, x: Tensor, mask: AttentionMask, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(B, S, d) -> (B, S, d) and the attention weights if wanted."""
        hidden, weights = self.attention.self(x, mask, need_weights)
        x = self.attention.output(hidden, x)
        hidden = self.intermediate(x)
        return self.output(hidden, x), weights


class BertStack(nn.Module):
    """The layers."""

    layer: Any
    checkpointing: dict[str, Any] | None = None

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))
        self.buckets = getattr(config, "relative_attention_num_buckets", 0)
        if self.buckets:
            self.relative_attention_bias = nn.Embedding(self.buckets, config.num_attention_heads)

    def position_bias(self, length: int) -> Tensor | None:
        """What MPNet adds to every layer's scores, (1, H, S, S); None of a BERT."""
        if not self.buckets:
            return None
        table = self.relative_attention_bias
        buckets = outside_graph(_mpnet_buckets, length, self.buckets)  # (S, S)
        return table(buckets.to(table.weight.device)).permute(2, 0, 1)[None]

    def forward(
        self, x: Tensor, mask: Tensor | None, output_attentions: bool, output_hidden_states: bool
    ) -> EncoderOutput:
        """(B, S, d) and mask (B, S) -> `EncoderOutput` with `last_hidden_state` (B, S, d).

        Without traces the states of padding may be zeros.
        """
        packing = None
        if not (output_attentions or output_hidden_states):
            packing = Packing.of(mask, x.shape[2])
        bias = self.position_bias(x.shape[1])
        attention_mask: AttentionMask
        if packing is None:
            attention_mask = key_mask(mask, bias)
        else:
            attention_mask = packing.mask(bias)
            x = packing.pack(x)
        trace = Trace(output_hidden_states, output_attentions)
        options = None
        if self.training:
            options = self.checkpointing
        for layer in self.layer:
            trace.hidden(x)
            run = partial(layer, need_weights=output_attentions)
            x, weights = checkpointed(options, run, x, attention_mask)
            trace.attentions(weights)
        if packing is not None:
            x = packing.padded(x)
        trace.hidden(x)
        return traced_output(x, trace)


def _mpnet_buckets(length: int, buckets: int) -> Tensor:
    return torch.from_numpy(t5_buckets(length, length, buckets, MPNET_DISTANCE, True))


class BertPooler(nn.Module):
    """tanh of a projection of the first state."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, d) -> (B, d)."""
        return torch.tanh(self.dense(x[:, 0]))


class BertBody(nn.Module):
    """Embeddings and layers without a pooler; DPR's `bert_model`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertStack(config)
