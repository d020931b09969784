"""What the two sequence-to-sequence networks share: the forward pass around encoder and decoder,
and stepwise decoding; see `rag_core.modeling.GeneratorBase`.

Each of the entries `call`, `encode`, `start` and `decode` runs as a graph that is traced once for
all lengths; within another graph it becomes part of that one.
Letters: R rows (contexts), K beams of a row, T target positions now, S context length, d width, V
vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import tensorflow as tf
from tensorflow import Tensor

from rag_core.modeling import DecoderBase, GeneratorBase, GeneratorCall, Steps
from rag_core.outputs import EncoderOutput, Seq2SeqLMOutput
from rag_tf.attention import key_mask
from rag_tf.call_arguments import Called, spread
from rag_tf.contexts import CHECKS, checked_ids
from rag_tf.decode_state import DecodeState, GrowingCache
from rag_tf.engine import ENGINE
from rag_tf.layers import Trace, shift_tokens_right
from rag_tf.marginalize import target_log_probs
from rag_tf.modules import Linear, Module, dim, leading_dims
from rag_tf.packing import Packing, worth_packing
from rag_tf.pretrained import PretrainedModel


class CrossOnDemand:
    """Cross-attention keys and values that each layer computes for itself, when it is asked for,
    and keeps nowhere.

    Args:
        hidden: the encoder's states, (R, S, d), or (P, d) packed.
        packing: where those belong.
    """

    def __init__(self, hidden: Tensor, packing: Packing | None) -> None:
        self.hidden = hidden
        self.packing = packing
        if packing is None:
            self.rows = dim(hidden, 0)
        else:
            self.rows = dim(packing.mask, 0)


class Decoder(DecoderBase[Tensor]):
    """A decoder as its users call it, around `advance`."""

    @abstractmethod
    def cross_of(
        self, index: int, encoder_hidden: Tensor, packing: Packing | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `cross`, of one layer."""

    @abstractmethod
    def cross(
        self, encoder_hidden: Tensor, packing: Packing | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """(R, S, d), or (P, d) packed -> each layer's cross-attention keys and values, (R, H, S,
        h) or (R, H, L, h).
        """

    @abstractmethod
    def advance(
        self,
        input_ids: Tensor | None,
        steps: Steps,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        training: bool = False,
    ) -> Tensor: ...

    def _layers_cross(
        self,
        index: int,
        cross: Sequence[tuple[Tensor, Tensor]] | CrossOnDemand,
        encoder_hidden: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One layer's keys and values: those at hand, or computed now from `encoder_hidden`."""
        if not isinstance(cross, CrossOnDemand):
            return cross[index]
        return self.cross_of(index, encoder_hidden, cross.packing)

    @staticmethod
    def _first_steps(past: Any, mask: Tensor | None, hidden: bool, attentions: bool) -> Steps:
        return Steps(GrowingCache(past), None, key_mask(mask), Trace(hidden, attentions))

    def __call__(
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
        training: bool = False,
    ) -> Any:
        """See `DecoderBase.forward`; `training`: whether dropout acts."""
        if steps is not None:
            return self.advance(input_ids, steps, attention_mask, inputs_embeds, training)
        return self._alone(
            partial(self.advance, training=training),
            input_ids,
            attention_mask,
            encoder_hidden_states,
            encoder_attention_mask,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            return_dict,
        )

    forward = __call__


class Generator(
    Called[Seq2SeqLMOutput[Tensor]],
    GeneratorBase[Tensor],
    PretrainedModel,
    Module,
    ABC,
):
    """An encoder, a decoder with cross-attention and a language-model head, as RAG decodes with
    them.
    """

    engine = ENGINE
    inputs = CHECKS
    lm_head: Linear
    _shifted = staticmethod(shift_tokens_right)
    _tensor = staticmethod(tf.convert_to_tensor)

    @abstractmethod
    def _logits(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., V)."""

    def _ids(self, name: str, ids: Any, rows: int | None = None) -> Tensor:
        if ids is not None:
            ids = tf.convert_to_tensor(ids)
        # int64 always: another type would be another graph
        return tf.cast(checked_ids(name, ids, rows), tf.int64)

    @staticmethod
    def _put_weight(module: Any, weight: Any) -> None:
        module.weight = weight

    def call(
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
        training: bool | None = None,
    ) -> Seq2SeqLMOutput[Tensor] | tuple[Any, ...]:
        """See `GeneratorBase.forward`. A call that returns attentions or hidden states is run
        operation by operation, so that a tape has the gradients of the logits by them.

        Args:
            training: whether dropout acts; None = what `train()` and `eval()` set.
        """
        return self._answer(
            GeneratorCall(
                input_ids,
                attention_mask,
                decoder_input_ids,
                decoder_attention_mask,
                head_mask,
                decoder_head_mask,
                cross_attn_head_mask,
                encoder_outputs,
                past_key_values,
                inputs_embeds,
                decoder_inputs_embeds,
                labels,
                use_cache,
                output_attentions,
                output_hidden_states,
                return_dict,
                training,
            )
        )

    if not TYPE_CHECKING:  # see `Called`
        forward = call

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """See `call`; a dictionary of its arguments may stand in front, or be `inputs`."""
            args, kwargs = spread(args, kwargs)
            return self.call(*args, **kwargs)

    def _compute(self, call: GeneratorCall) -> tuple[Tensor, Any, Any, EncoderOutput]:
        encoded = call.encoder_outputs
        past = call.past_key_values
        if past is not None:
            past = tuple(tuple(layer) for layer in past)
        mask = _mask(call.attention_mask)
        traced = call.output_attentions or call.output_hidden_states
        states = None
        if encoded is not None:
            states = tf.convert_to_tensor(encoded.last_hidden_state)
        # What is handed back, and what came from an earlier call, has all columns.
        may_pack = encoded is past is call.inputs_embeds is None and not (call.use_cache or traced)
        run: Callable[..., Any] = self._run
        if traced:
            # States are asked for to see what comes of them: a tape finds no way to them through a
            # graph.
            run = self._eagerly
        logits, cache, gathered, fresh = run(
            "call",
            self._call,
            call.input_ids,
            mask,
            call.decoder_input_ids,
            _mask(call.decoder_attention_mask),
            call.inputs_embeds,
            call.decoder_inputs_embeds,
            states,
            past,
            call.use_cache,
            call.output_attentions,
            call.output_hidden_states,
            self.in_training(call.training),
            may_pack and worth_packing(mask),
        )
        if encoded is None:
            encoded = EncoderOutput(*fresh)
        return logits, cache, gathered, encoded

    def _call(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        decoder_input_ids: Tensor | None,
        decoder_attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        decoder_inputs_embeds: Tensor | None,
        states: Tensor | None,
        past: Any,
        use_cache: bool,
        attentions: bool,
        hidden: bool,
        training: bool,
        packs: bool,
    ) -> tuple[Any, ...]:
        fresh: Any = None
        packing: Packing | None = None
        if packs and attention_mask is not None:
            packing = Packing(attention_mask)
            states = self.get_encoder().packed(input_ids, packing, training)
            fresh = (packing.padded(states), None, None)
            attention_mask = packing.mask
        elif states is None:
            encoded = self.get_encoder()(
                input_ids, attention_mask, attentions, hidden, inputs_embeds, training=training
            )
            states = encoded.last_hidden_state
            fresh = (states, encoded.hidden_states, encoded.attentions)
        decoder = self.get_decoder()
        cross: Any
        if past is not None:
            cross = [(layer[2], layer[3]) for layer in past]
        elif decoder.checkpointing is not None and training and not use_cache:
            cross = CrossOnDemand(states, packing)
        else:
            cross = decoder.cross(states, packing)
        cache = GrowingCache(past)
        trace = Trace(hidden, attentions)
        steps = Steps(cache, cross, key_mask(attention_mask), trace)
        x = decoder(
            decoder_input_ids,
            decoder_attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            steps=steps,
            training=training,
        )  # (R, T, d)
        # A product of rank 2, for its own sake and so that a bias is joined to it.
        rows = tf.reshape(x, (-1, x.shape[-1]))  # (R*T, d)
        flat = self._logits(rows)  # (R*T, V)
        logits = tf.reshape(flat, (*leading_dims(x), flat.shape[1]))  # (R, T, V)
        new_past = None
        if use_cache:
            new_past = cache.past_with(cross)
        return logits, new_past, trace.result(), fresh

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self._run("loss", label_loss, logits, labels)

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, training: bool | None = None
    ) -> Tensor:
        input_ids = tf.cast(input_ids, tf.int64)
        mask = _mask(attention_mask)
        self.check_length(input_ids.shape[1])
        return self._run(
            "encode", self._encode, input_ids, mask, self.in_training(training), worth_packing(mask)
        )

    def _encode(
        self, input_ids: Tensor, attention_mask: Tensor | None, training: bool, packs: bool
    ) -> Tensor:
        if packs and attention_mask is not None:
            packing = Packing(attention_mask)
            states = self.get_encoder().packed(input_ids, packing, training)  # (P, d)
            return packing.padded(states)
        encoded = self.get_encoder()(input_ids, attention_mask, training=training)
        return encoded.last_hidden_state

    def start(
        self,
        encoder_hidden: Tensor,
        encoder_mask: Tensor | None,
        beams: int = 1,
        max_length: int | None = None,
    ) -> DecodeState:
        mask = _mask(encoder_mask)
        cross, mask = self._run(
            "start", self._start, tf.convert_to_tensor(encoder_hidden), mask, worth_packing(mask)
        )
        return DecodeState.allocate(cross, key_mask(mask), beams, max_length)

    def _start(self, encoder_hidden: Tensor, mask: Tensor | None, packs: bool) -> Any:
        decoder = self.get_decoder()
        if not packs or mask is None:
            return tuple(decoder.cross(encoder_hidden)), mask
        packing = Packing(mask)
        states = packing.pick(encoder_hidden)  # (P, d)
        return tuple(decoder.cross(states, packing)), packing.mask

    def decode(self, tokens: Tensor, state: DecodeState, trace: Trace | None = None) -> Tensor:
        tokens = tf.cast(tokens, tf.int64)
        if tf.executing_eagerly():
            self.reserve(state, tokens.shape[2])
        hidden = trace is not None and trace.want_hidden
        attentions = trace is not None and trace.want_attentions
        training = self.in_training(None)
        logits, cache, seen = self._run(
            "decode", self._decode, tokens, state, hidden, attentions, training
        )
        if trace is not None:
            trace.note(seen)
        state.finish(cache, dim(tokens, 2))
        return logits

    def _decode(
        self, tokens: Tensor, state: DecodeState, hidden: bool, attentions: bool, training: bool
    ) -> tuple[Any, ...]:
        state = state.opened()
        trace = Trace(hidden, attentions)
        hidden_states = self._decoded(tokens, state, trace, training)  # (R*K, T, d)
        logits = self._logits(hidden_states)
        rows, beams, length = (dim(tokens, axis) for axis in range(3))
        trace.unfold_beams(beams)
        logits = tf.reshape(logits, (rows, beams, length, logits.shape[-1]))
        cache = None
        if state.cache is not None:
            cache = tuple(state.cache)
        return logits, cache, trace.result()

    def _decoded(
        self, tokens: Tensor, state: DecodeState, trace: Trace | None = None, training: bool = False
    ) -> Tensor:
        """What `decode` makes logits of: tokens (R, K, T) -> (R*K, T, d)."""
        flat = tf.reshape(tokens, (-1, dim(tokens, 2)))  # (R*K, T)
        steps = Steps(state, state.cross, state.cross_mask, trace)
        return self.get_decoder()(flat, steps=steps, training=training)

    def reserve(self, state: DecodeState, length: int) -> None:
        """Check that a state has room for `length` more positions: before a graph of one's own that
        decodes is run.

        Raises:
            ValueError: the network, or the cache that `start` was asked for, has fewer positions.
        """
        self.check_length(int(state.position) + length)
        state.reserve(length)

    def _eagerly(self, _: str, function: Callable[..., Any], *args: Any) -> Any:
        with self.on_device():
            return function(*args)

    def _run(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        graph = self.graph(name, function)
        if not tf.executing_eagerly():
            return graph(*args)
        with self.on_device():
            return graph(*args)


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of -log p(label) over the labels (R, T) other than -100, given logits (R, T, V).

    Float32 or wider.
    """
    targets = _scored(labels)
    log_probs = target_log_probs(logits[:, None], targets)[:, 0]  # (R, T)
    scored = tf.cast(labels != -100, log_probs.dtype)
    return -tf.reduce_sum(log_probs * scored) / tf.reduce_sum(scored)


def _scored(labels: Tensor) -> Tensor:
    """Labels with some token for -100."""
    return tf.where(labels == -100, tf.zeros_like(labels), labels)


def _mask(mask: Any) -> Tensor | None:
    if mask is None:
        return None
    return tf.cast(mask, tf.bool)
