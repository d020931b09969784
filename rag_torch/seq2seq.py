"""What the two sequence-to-sequence networks share: the forward pass around encoder and decoder,
and stepwise decoding; see `rag_core.modeling.GeneratorBase`.

Letters: R rows (contexts), K beams of a row, T target positions now, S context length, d width, V
vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rag_core.modeling import (
    DecoderBase,
    GeneratorBase,
    GeneratorCall,
    Steps,
    batches_by_length,
)
from rag_core.outputs import EncoderOutput
from rag_torch.attention import key_mask, merge_heads, split_heads
from rag_torch.contexts import CHECKS, used_length
from rag_torch.decode_state import DecodeState, GrowingCache
from rag_torch.engine import ENGINE
from rag_torch.layers import Trace, shift_tokens_right
from rag_torch.marginalize import target_log_probs
from rag_torch.packing import Packing
from rag_torch.pretrained import PretrainedModel

# Tokens that a call of the encoder should hold at least: without padding a CPU gains by more,
_BUCKET_CPU = 2**12
# and a GPU wants to be filled.
_BUCKET = 2**14


class Decoder(DecoderBase[Tensor]):
    """A decoder as its users call it, around `advance`."""

    training: bool

    @staticmethod
    def _first_steps(past: Any, mask: Tensor | None, hidden: bool, attentions: bool) -> Steps:
        cache = GrowingCache(past)
        trace = Trace(hidden, attentions)
        return Steps(cache, None, key_mask(mask), trace)


class _CrossOnDemand:
    """Cross-attention keys and values of states (R, S, d), computed whenever a layer asks for
    its own, and not kept.
    """

    def __init__(self, decoder: Decoder, hidden: Tensor) -> None:
        self._decoder = decoder
        self._hidden = hidden

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._decoder.cross_of(index, self._hidden)


class Generator(GeneratorBase[Tensor], PretrainedModel, ABC):
    """An encoder, a decoder with cross-attention and a language-model head, as RAG decodes with
    them.
    """

    engine = ENGINE
    inputs = CHECKS
    lm_head: nn.Linear
    _shifted = staticmethod(shift_tokens_right)

    @abstractmethod
    def _logits(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., V)."""

    @staticmethod
    def _tensor(value: Tensor) -> Tensor:
        return value

    @staticmethod
    def _put_weight(module: Any, weight: Tensor) -> None:
        # Past PyTorch's setter: accelerate's init_empty_weights makes another parameter of what is
        # set.
        module._parameters["weight"] = weight

    def _compute(self, call: GeneratorCall) -> tuple[Tensor, Any, Any, EncoderOutput]:
        encoded = call.encoder_outputs
        if encoded is None:
            encoded = self._encoded(call)
        decoder = self.get_decoder()
        states = encoded.last_hidden_state
        mask = call.attention_mask
        use_cache = bool(call.use_cache)
        # What is handed back has all columns.
        whole = use_cache or call.output_attentions or mask is None
        if call.past_key_values is None and not whole:
            width = used_length(mask)
            states = states[:, :width]
            mask = mask[:, :width]
        cross: Any
        if call.past_key_values is not None:
            cross = [(layer[2], layer[3]) for layer in call.past_key_values]
        elif decoder.checkpointing is not None and decoder.training and not use_cache:
            cross = _CrossOnDemand(decoder, states)
        elif whole:
            cross = decoder.cross(states)
        else:
            cross = self._cross(states, mask)
        cache = GrowingCache(call.past_key_values, use_cache)
        trace = Trace(bool(call.output_hidden_states), bool(call.output_attentions))
        steps = Steps(cache, cross, key_mask(mask), trace)
        x = decoder(
            call.decoder_input_ids,
            call.decoder_attention_mask,
            inputs_embeds=call.decoder_inputs_embeds,
            steps=steps,
        )
        past = None
        if use_cache:
            past = cache.past_with(cross)
        return self._logits(x), past, trace.result(), encoded

    def _encoded(self, call: GeneratorCall) -> EncoderOutput:
        traced = call.output_attentions or call.output_hidden_states
        if not traced and call.inputs_embeds is None:
            states = self.encode(call.input_ids, call.attention_mask)
            return EncoderOutput(last_hidden_state=states)
        return self.get_encoder()(
            call.input_ids,
            call.attention_mask,
            call.output_attentions,
            call.output_hidden_states,
            inputs_embeds=call.inputs_embeds,
        )

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return label_loss(logits, labels)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        encoder = self.get_encoder()
        size = _BUCKET
        if input_ids.device.type == "cpu":
            size = _BUCKET_CPU

        def encoded(ids: Tensor, mask: Tensor | None) -> Tensor:
            return encoder(ids, mask, skip_padding=True).last_hidden_state

        return by_length(encoded, input_ids, attention_mask, size)

    def start(
        self,
        encoder_hidden: Tensor,
        encoder_mask: Tensor | None,
        beams: int = 1,
        max_length: int | None = None,
    ) -> DecodeState:
        cross = self._cross(encoder_hidden, encoder_mask)
        return DecodeState.allocate(cross, key_mask(encoder_mask), beams, max_length)

    def _cross(self, hidden: Tensor, mask: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """The decoder's cross-attention keys and values of states (R, S, d), zeros where the
        mask (R, S) is.
        """
        project = self.get_decoder().cross
        if mask is None or mask.is_meta or torch.compiler.is_compiling():
            return project(hidden)
        # So little padding costs less than taking it out.
        if mask.count_nonzero() > 0.9 * mask.numel():
            return project(hidden)
        packing = Packing(mask.bool())

        def spread(x: Tensor) -> Tensor:
            """(1, H, P, h) -> (R, H, S, h)."""
            heads = x.shape[1]
            x = packing.padded(merge_heads(x))  # (R, S, H*h)
            return split_heads(x, heads)

        packed = project(packing.pack(hidden))
        return [(spread(key), spread(value)) for key, value in packed]

    def decode(self, tokens: Tensor, state: DecodeState, trace: Trace | None = None) -> Tensor:
        logits = self._logits(self._decoded(tokens, state, trace))  # (R*K, T, V)
        return logits.unflatten(0, tokens.shape[:2])

    def _decoded(self, tokens: Tensor, state: DecodeState, trace: Trace | None = None) -> Tensor:
        """What `decode` makes logits of, (R*K, T, d)."""
        state.folded = tokens.shape[1]
        steps = Steps(state, state.cross, state.cross_mask, trace)
        x = self.get_decoder()(tokens.flatten(0, 1), steps=steps)
        if trace is not None:
            trace.unfold_beams(tokens.shape[1])
        state.advance(tokens.shape[2])
        return x


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of -log p(label) over the labels (R, T) other than -100, given logits (R, T, V).

    Float32 or wider.
    """
    scored = labels != -100
    log_probs = target_log_probs(logits[:, None], _scored(labels))  # (R, 1, T)
    log_probs = log_probs[:, 0]
    return -(log_probs * scored).sum() / scored.sum()


def _scored(labels: Tensor) -> Tensor:
    """Labels with some token for -100."""
    return labels.masked_fill(labels == -100, 0)


def by_length(
    function: Callable[[Tensor, Tensor | None], Tensor],
    input_ids: Tensor,
    mask: Tensor | None,
    tokens: int,
) -> Tensor:
    """`function(input_ids, mask)`, (R, S) -> (R, S, d), of rows of like length at a time, trimmed
    to them each time.

    Args:
        function: computes each row by itself, and what the mask leaves out does not count.
        input_ids: (R, S).
        mask: (R, S), 1 = a real token; None = all are.
        tokens: how many a call should hold at least.

    Returns:
        (R, S, d), with zeros for padding on the right where there is more than one call's worth.
    """
    rows, width = input_ids.shape
    if mask is None or rows * width <= tokens or mask.is_meta or torch.compiler.is_compiling():
        return function(input_ids, mask)
    place = torch.arange(1, width + 1, device=mask.device)
    last_real = (mask.bool() * place).amax(dim=1)  # (R,)
    lengths = last_real.clamp(min=1).cpu().numpy()
    batches = batches_by_length(lengths, tokens)
    parts = []
    for batch in batches:
        rows_now = torch.as_tensor(batch, device=mask.device)
        length = int(lengths[batch[-1]])
        part = function(input_ids[rows_now, :length], mask[rows_now, :length])  # (r, length, d)
        parts.append(F.pad(part, (0, 0, 0, width - length)))
    places = np.argsort(np.concatenate(batches))
    in_order = torch.as_tensor(places, device=mask.device)
    return torch.cat(parts)[in_order]
