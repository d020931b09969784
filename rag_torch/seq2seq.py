"""What the two sequence-to-sequence networks share: the forward pass around encoder and decoder,
and stepwise decoding.

Letters: R rows (contexts), K beams of a row, T target positions now, S context length, d width, V
vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rag_core.arguments import check_fed, check_rows
from rag_core.generation import (
    check_context,
    check_embeds,
    check_head_masks,
    check_label_shape,
    check_one_of,
    next_inputs,
    start_and_pad,
)
from rag_core.modeling import check_table
from rag_core.outputs import DecoderOutput, EncoderOutput, Seq2SeqLMOutput
from rag_torch.attention import AttentionMask, key_mask
from rag_torch.contexts import check_text, checked_ids, checked_mask, facts, used_length
from rag_torch.decode_state import DecodeState, GrowingCache
from rag_torch.engine import ENGINE
from rag_torch.layers import Trace, as_encoder_output, shift_tokens_right
from rag_torch.marginalize import target_log_probs
from rag_torch.packing import Packing
from rag_torch.pretrained import PretrainedModel

# tokens that a call of the encoder should hold at least: without padding a CPU gains by more, a GPU
# wants to be filled
_BUCKET_CPU, _BUCKET = 2**12, 2**14


@dataclass
class Steps:
    """Where a generator stands in its decoding.

    Attributes:
        cache: keys and values of the tokens so far.
        cross: for each layer the keys and values of the contexts, (R, H, S, h) each.
        cross_mask: which context positions are real.
        trace: what notes attentions and hidden states.
    """

    cache: DecodeState | GrowingCache
    cross: Any
    cross_mask: AttentionMask
    trace: Trace | None = None


class Decoder(ABC):
    """A decoder as its users call it, around `advance`."""

    checkpointing: dict[str, Any] | None = None
    training: bool

    @abstractmethod
    def cross(self, encoder_hidden: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(R, S, d) -> each layer's cross-attention keys and values, (R, H, S, h)."""

    @abstractmethod
    def cross_of(self, index: int, encoder_hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(R, S, d) -> one layer's cross-attention keys and values, (R, H, S, h)."""

    @abstractmethod
    def advance(
        self,
        input_ids: Tensor | None,
        steps: Steps,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        """(R*K, T) ids, or embeddings (R*K, T, d) -> (R*K, T, d).

        New keys and values go into the cache.
        """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Sequence[Sequence[Tensor]] | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        steps: Steps | None = None,
    ) -> Any:
        """States of a target given the encoder's: what a decoder is to its users; generators come
        in by `steps`.

        Args:
            input_ids: (R, T) target ids.
            attention_mask: (R, past + T), 1 = a real token.
            encoder_hidden_states: (R, S, d).
            encoder_attention_mask: (R, S), 1 = a real token.
            past_key_values: an earlier call's, to continue from it.
            inputs_embeds: (R, T, d) in place of `input_ids`.
            use_cache: whether to return `past_key_values`.
            output_attentions: whether to return attentions.
            output_hidden_states: whether to return hidden states.
            return_dict: False for a plain tuple.
            steps: where a generator stands in its decoding, in place of the encoder's states and
                the cache; then the states alone come back, (R*K, T, d).

        Returns:
            `DecoderOutput`.

        Raises:
            ValueError: ids and embeddings both or neither, or no states of the encoder.
        """
        if steps is not None:
            return self.advance(input_ids, steps, attention_mask, inputs_embeds)
        check_one_of("input_ids", input_ids, "inputs_embeds", inputs_embeds)
        check_context(encoder_hidden_states, past_key_values)
        if past_key_values is not None:
            cross = [(layer[2], layer[3]) for layer in past_key_values]
        else:
            cross = self.cross(encoder_hidden_states)  # type: ignore[arg-type]
        cache, trace = (
            GrowingCache(past_key_values),
            Trace(bool(output_hidden_states), bool(output_attentions)),
        )
        steps = Steps(cache, cross, key_mask(encoder_attention_mask), trace)
        x = self.advance(input_ids, steps, attention_mask, inputs_embeds)
        hidden, attentions, cross_attentions = trace.result()
        past = cache.past_with(cross) if use_cache else None
        output = DecoderOutput(x, past, hidden, attentions, cross_attentions)
        return output.to_tuple() if return_dict is False else output


class _Anew:
    """Cross-attention keys and values of states (R, S, d), computed whenever a layer asks for
    its own, and not kept.
    """

    def __init__(self, decoder: Decoder, hidden: Tensor) -> None:
        self._decoder, self._hidden = decoder, hidden

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._decoder.cross_of(index, self._hidden)


class Generator(PretrainedModel, ABC):
    """An encoder, a decoder with cross-attention and a language-model head, as RAG decodes with
    them.

    Attributes:
        native: that generation may rely on what these networks do beyond the four methods it asks
            of every generator: scores in new memory, equal beams decoded as one, shared beginnings.
    """

    native = True
    lm_head: nn.Linear

    @abstractmethod
    def get_encoder(self) -> Any:
        """The encoder."""

    @abstractmethod
    def get_decoder(self) -> Any:
        """The decoder."""

    @abstractmethod
    def decoder_inputs(self, input_ids: Tensor) -> Tensor:
        """Decoder inputs (R, T) where only the context (R, S) is given."""

    @abstractmethod
    def _logits(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., V)."""

    def get_output_embeddings(self) -> nn.Linear:
        """The language-model head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Put another language-model head in place; see `PretrainedModel.set_output_embeddings`."""
        self.lm_head = check_table("new_embeddings", new_embeddings, self.lm_head)

    def tie_weights(self) -> None:
        """Make the encoder's, the decoder's and (if the config ties them) the head's table one
        parameter.
        """
        shared = self.get_input_embeddings().weight
        # Past PyTorch's setter: accelerate's init_empty_weights makes another parameter of what is
        # set.
        for part in (self.get_encoder(), self.get_decoder()):
            part.embed_tokens._parameters["weight"] = shared
        if self.config.tie_word_embeddings:
            self.lm_head._parameters["weight"] = shared

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        head_mask: None = None,
        decoder_head_mask: None = None,
        cross_attn_head_mask: None = None,
        encoder_outputs: Any = None,
        past_key_values: Sequence[Sequence[Tensor]] | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Logits of a target given a context, and with labels the loss.

        Args:
            input_ids: (R, S) context ids.
            attention_mask: (R, S), 1 = a real token; None = all are.
            decoder_input_ids: (R, T) target ids; None = the labels shifted right, or without labels
                what `decoder_inputs` makes of `input_ids` (BART only).
            decoder_attention_mask: (R, past + T), 1 = a real token.
            head_mask, decoder_head_mask, cross_attn_head_mask: must be None: heads cannot be
                masked.
            encoder_outputs: an earlier call's encoder output (element 0 = (R, S, d)), to spare the
                encoder.
            past_key_values: an earlier call's, to continue from it.
            inputs_embeds: (R, S, d) in place of `input_ids`, as they enter the encoder (already
                scaled).
            decoder_inputs_embeds: (R, T, d) in place of `decoder_input_ids`.
            labels: (R, T) what each position should predict; -100 is not scored, everything else
                is, pads too.
            use_cache: whether to return `past_key_values`; None = the config's, and without labels
                only.
            output_attentions: whether to return attentions; None = the config's.
            output_hidden_states: whether to return hidden states; None = the config's.
            return_dict: False for a plain tuple; None = the config's.

        Returns:
            `Seq2SeqLMOutput` with `logits` (R, T, V), and with labels `loss`: the mean of -log p
            over the labels scored (NaN where none is), in float32 or wider.

        Raises:
            TypeError: ids that are no integers.
            ValueError: ids or embeddings that are missing, given twice, or do not fit.
        """
        check_head_masks(
            head_mask=head_mask,
            decoder_head_mask=decoder_head_mask,
            cross_attn_head_mask=cross_attn_head_mask,
        )
        use_cache = False if use_cache is None and labels is not None else use_cache
        use_cache, attentions, hidden, return_dict = self.switches(
            use_cache, output_attentions, output_hidden_states, return_dict
        )
        table = self.get_input_embeddings().weight.shape[0]
        if labels is not None:
            checked_ids("labels (but for -100)", _scored(checked_ids("labels", labels)), table)
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self._decoder_inputs(input_ids, labels)
        check_one_of(
            "decoder_input_ids", decoder_input_ids, "decoder_inputs_embeds", decoder_inputs_embeds
        )
        target = self._fed("decoder_input", decoder_input_ids, decoder_inputs_embeds)
        if labels is not None:
            check_label_shape(labels.shape, target.shape)
        context_given = encoder_outputs is not None
        if encoder_outputs is None:
            check_one_of("input_ids", input_ids, "inputs_embeds", inputs_embeds)
            given = self._fed("input", input_ids, inputs_embeds)
            check_text(input_ids, inputs_embeds, attention_mask)
            if attentions or hidden or inputs_embeds is not None:
                encoder_outputs = self.get_encoder()(
                    input_ids, attention_mask, attentions, hidden, inputs_embeds=inputs_embeds
                )
            else:
                encoder_outputs = EncoderOutput(
                    last_hidden_state=self.encode(given, attention_mask)
                )
        encoder_outputs = as_encoder_output(encoder_outputs)
        decoder = self.get_decoder()
        if context_given:
            of = "encoder_outputs, (R, S)"
            checked_mask(
                "attention_mask", attention_mask, encoder_outputs.last_hidden_state.shape[:2], of
            )
        check_rows(
            facts("the decoder's input", target),
            facts("the context", encoder_outputs.last_hidden_state),
        )
        _check_past(past_key_values, target, decoder_attention_mask)
        cross: Any
        if past_key_values is None:
            states = encoder_outputs.last_hidden_state
            anew = decoder.checkpointing is not None and decoder.training and not use_cache
            # what is handed back has all columns
            if use_cache or attentions or attention_mask is None:
                cross = _Anew(decoder, states) if anew else decoder.cross(states)
            else:
                width = used_length(attention_mask)
                states, attention_mask = states[:, :width], attention_mask[:, :width]
                cross = _Anew(decoder, states) if anew else self._cross(states, attention_mask)
        else:
            cross = [(layer[2], layer[3]) for layer in past_key_values]
        cache, trace = GrowingCache(past_key_values, bool(use_cache)), Trace(hidden, attentions)
        steps = Steps(cache, cross, key_mask(attention_mask), trace)
        x = decoder(
            decoder_input_ids,
            decoder_attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            steps=steps,
        )
        decoder_hidden, decoder_attentions, cross_attentions = trace.result()
        logits = self._logits(x)
        output = Seq2SeqLMOutput(
            loss=None if labels is None else label_loss(logits, labels),
            logits=logits,
            past_key_values=cache.past_with(cross) if use_cache else None,
            decoder_hidden_states=decoder_hidden,
            decoder_attentions=decoder_attentions,
            cross_attentions=cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )
        return output if return_dict else output.to_tuple()

    def _decoder_inputs(self, input_ids: Tensor | None, labels: Tensor | None) -> Tensor:
        """What the decoder is fed where the caller gave nothing for it."""
        if labels is not None:
            return self.prepare_decoder_input_ids_from_labels(labels)
        if input_ids is None:
            raise ValueError(
                "decoder_input_ids must be given when input_ids is None: pass one of the two, or "
                "labels, or decoder_inputs_embeds"
            )
        return self.decoder_inputs(input_ids)

    def _fed(self, name: str, ids: Tensor | None, embeds: Tensor | None) -> Tensor:
        """The one of ids and embeddings that is given, checked."""
        table = self.get_input_embeddings()
        if embeds is None:
            ids = checked_ids(f"{name}_ids", ids, table.weight.shape[0])
            check_fed(facts(f"{name}_ids", ids))
            return ids
        check_fed(facts(f"{name}s_embeds", embeds))
        check_embeds(f"{name}s_embeds", embeds.shape, table.weight.shape[1])
        return embeds

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Labels (R, T) -> decoder inputs: the start token in front, the last column gone, pads for
        -100.

        Raises:
            ValueError: the config has no start token or no pad token.
        """
        start, pad = start_and_pad(self.config)
        return shift_tokens_right(labels, pad, start)

    def prepare_inputs_for_generation(
        self,
        decoder_input_ids: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        encoder_outputs: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Arguments of the forward pass that scores the token after `decoder_input_ids` (R, t).

        For loops of other libraries: `generate` here keeps its own state (see `start` and
        `decode`).
        """
        return next_inputs(
            decoder_input_ids,
            past_key_values,
            attention_mask=attention_mask,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            use_cache=use_cache,
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: Any = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: Any = None,
        synced_gpus: bool | None = None,
        assistant_model: Any = None,
        streamer: Any = None,
        negative_prompt_ids: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate texts from contexts alone, without documents.

        See `rag_core.generation.plain_generate`.
        """
        from rag_core.generation import plain_generate

        return plain_generate(
            ENGINE,
            self,
            inputs,
            generation_config,
            logits_processor,
            stopping_criteria,
            prefix_allowed_tokens_fn,
            synced_gpus=synced_gpus,
            assistant_model=assistant_model,
            streamer=streamer,
            negative_prompt_ids=negative_prompt_ids,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            **kwargs,
        )

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Contexts (R, S) -> encoder states (R, S, d), the long ones apart from the short ones
        where that saves work.

        Then the states of padding on the right are zeros.
        """
        encoder = self.get_encoder()
        size = _BUCKET_CPU if input_ids.device.type == "cpu" else _BUCKET

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
        """Prepare decoding: cross-attention keys and values, computed once for each context.

        Args:
            encoder_hidden: (R, S, d).
            encoder_mask: (R, S) bool, True = a real token.
            beams: K, sequences of a context.
            max_length: number of positions to allocate a self-attention cache for; None = no cache.

        Returns:
            The state that `decode` advances.
        """
        cross = self._cross(encoder_hidden, encoder_mask)
        return DecodeState.allocate(cross, key_mask(encoder_mask), beams, max_length)

    def _cross(self, hidden: Tensor, mask: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """The decoder's cross-attention keys and values of states (R, S, d), zeros where the
        mask (R, S) is.
        """
        project = self.get_decoder().cross
        if mask is None or mask.is_meta or torch.compiler.is_compiling():
            return project(hidden)
        if mask.count_nonzero() > 0.9 * mask.numel():
            return project(hidden)
        packing = Packing(mask.bool())

        def spread(x: Tensor) -> Tensor:
            """(1, H, P, h) -> (R, H, S, h)."""
            return (
                packing.padded(x.transpose(1, 2).flatten(2))
                .unflatten(2, (x.shape[1], -1))
                .transpose(1, 2)
            )

        return [(spread(key), spread(value)) for key, value in project(packing.pack(hidden))]

    def decode(self, tokens: Tensor, state: DecodeState, trace: Trace | None = None) -> Tensor:
        """Tokens (R, K, T) -> logits (R, K, T, V).

        With a cache the positions continue at `state.position`, which advances by T; without, the
        tokens are whole prefixes. The first call may give tokens (R, 1, T), which all beams begin
        with. `trace` is given what it asks for: attentions (R*K, H, T, .) and hidden states (R*K,
        T, d).
        """
        return self._logits(self._decoded(tokens, state, trace)).unflatten(0, tokens.shape[:2])

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
    log_probs = target_log_probs(logits[:, None], _scored(labels))[:, 0]  # (R, T)
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
    # (R,), up to the last real token
    lengths = (mask.bool() * place).amax(dim=1).clamp(min=1).cpu().numpy()
    order = np.argsort(lengths, kind="stable")
    each = lengths.sum() / max(1, lengths.sum() // tokens)  # tokens of a call
    # (R,), the call of each row
    number = ((np.cumsum(lengths[order]) - lengths[order] / 2) // each).astype(np.int64)
    parts = []
    for rows_of in np.split(order, np.flatnonzero(np.diff(number)) + 1):
        chosen, length = torch.as_tensor(rows_of, device=mask.device), int(lengths[rows_of[-1]])
        part = function(input_ids[chosen, :length], mask[chosen, :length])  # (r, length, d)
        parts.append(F.pad(part, (0, 0, 0, width - length)))
    return torch.cat(parts)[torch.as_tensor(np.argsort(order), device=mask.device)]


def _check_past(past: Any, ids: Tensor, mask: Tensor | None) -> None:
    """Refuses a cache that an earlier call with as many rows did not return, or a mask that does
    not cover it.
    """
    length = 0
    if past is not None:
        shapes: list[list[tuple[int, ...]]] = []
        if isinstance(past, Iterable) and not isinstance(past, str) and not hasattr(past, "shape"):
            layers = [layer if isinstance(layer, Iterable) else () for layer in past]
            shapes = [[tuple(getattr(part, "shape", ())) for part in layer] for layer in layers]
        if not shapes or any(
            len(layer) != 4 or any(len(shape) != 4 for shape in layer) for layer in shapes
        ):
            raise TypeError(
                "past_key_values must be what an earlier call returned, four tensors (R, H, "
                f"length, h) for each layer, got {type(past).__name__}"
            )
        if shapes[0][0][0] != ids.shape[0]:
            raise ValueError(
                f"past_key_values must have as many rows as the decoder's input, {ids.shape[0]}, "
                f"got {shapes[0][0][0]}"
            )
        length = shapes[0][0][2]
    wanted = (ids.shape[0], length + ids.shape[1])
    if mask is not None and tuple(mask.shape) != wanted:
        raise ValueError(
            f"decoder_attention_mask must be (rows, length of past_key_values + T) = {wanted}, "
            f"got {tuple(mask.shape)}"
        )
    checked_mask("decoder_attention_mask", mask, wanted, "the decoder's input")
