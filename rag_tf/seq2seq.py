"""What the two sequence-to-sequence networks share: the forward pass around encoder and decoder,
and stepwise decoding.

Each of the entries `call`, `encode`, `start` and `decode` runs as a graph that is traced once for
all lengths; within another graph it becomes part of that one.
Letters: R rows (contexts), K beams of a row, T target positions now, S context length, d width, V
vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow import Tensor

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
from rag_core.outputs import DecoderOutput, Seq2SeqLMOutput
from rag_tf.attention import AttentionMask, key_mask
from rag_tf.contexts import check_text, checked_ids, checked_mask, facts
from rag_tf.decode_state import DecodeState, GrowingCache
from rag_tf.engine import ENGINE
from rag_tf.keras_fit import spread
from rag_tf.layers import Trace, as_encoder_output, shift_tokens_right
from rag_tf.marginalize import target_log_probs
from rag_tf.modules import Linear, Module, dim, leading_dims
from rag_tf.packing import Packing, pays
from rag_tf.pretrained import PretrainedModel


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


class Anew:
    """Cross-attention keys and values that each layer computes for itself, when it is asked for,
    and keeps nowhere.

    Args:
        hidden: the encoder's states, (R, S, d), or (P, d) packed.
        packing: where those belong.
    """

    def __init__(self, hidden: Tensor, packing: Packing | None) -> None:
        self.hidden, self.packing = hidden, packing
        self.rows = dim(hidden if packing is None else packing.mask, 0)


class Decoder(ABC):
    """A decoder as its users call it, around `advance`."""

    checkpointing: dict[str, Any] | None = None

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
        training: bool,
    ) -> Tensor:
        """(R*K, T) ids, or embeddings (R*K, T, d) -> (R*K, T, d).

        New keys and values go into the cache.
        """

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
            training: whether dropout acts.

        Returns:
            `DecoderOutput`.

        Raises:
            ValueError: ids and embeddings both or neither, or no states of the encoder.
        """
        if steps is not None:
            return self.advance(input_ids, steps, attention_mask, inputs_embeds, training)
        check_one_of("input_ids", input_ids, "inputs_embeds", inputs_embeds)
        check_context(encoder_hidden_states, past_key_values)
        if past_key_values is not None:
            cross = [(layer[2], layer[3]) for layer in past_key_values]
        else:
            cross = self.cross(encoder_hidden_states)
        cache, trace = (
            GrowingCache(past_key_values),
            Trace(bool(output_hidden_states), bool(output_attentions)),
        )
        steps = Steps(cache, cross, key_mask(encoder_attention_mask), trace)
        x = self.advance(input_ids, steps, attention_mask, inputs_embeds, training)
        hidden, attentions, cross_attentions = trace.result()
        past = cache.past_with(cross) if use_cache else None
        output = DecoderOutput(x, past, hidden, attentions, cross_attentions)
        return output.to_tuple() if return_dict is False else output


class Generator(PretrainedModel, Module, ABC):
    """An encoder, a decoder with cross-attention and a language-model head, as RAG decodes with
    them.

    Attributes:
        native: that generation may rely on what these networks do beyond the four methods it asks
            of every generator: steps and searches in graphs, shared beginnings.
    """

    native = True
    lm_head: Linear

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

    def check_length(self, length: int | None) -> None:
        """Refuses more positions than the network has, where that is known before the graph
        runs.
        """

    def get_output_embeddings(self) -> Linear:
        """The language-model head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Put another language-model head in place; see `PretrainedModel.set_output_embeddings`."""
        self.lm_head = check_table("new_embeddings", new_embeddings, self.lm_head)
        self.reset_graphs()

    def tie_weights(self) -> None:
        """Make the encoder's, the decoder's and (if the config ties them) the head's table one
        variable.
        """
        shared = self.get_input_embeddings().weight
        for part in (self.get_encoder(), self.get_decoder()):
            part.embed_tokens.weight = shared
        if self.config.tie_word_embeddings:
            self.lm_head.weight = shared

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
            output_attentions: whether to return attentions; None = the config's. A call that
                returns them or the hidden states is run operation by operation, so that a tape has
                the gradients of the logits by them.
            output_hidden_states: whether to return hidden states; None = the config's.
            return_dict: False for a plain tuple; None = the config's.
            training: whether dropout acts; None = what `train()` and `eval()` set.

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
        table = self.get_input_embeddings().num_embeddings
        encoded = None if encoder_outputs is None else as_encoder_output(encoder_outputs)
        if labels is not None:
            labels = _ids("labels", labels, None)
            _ids("labels (but for -100)", _scored(labels), table)
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self._decoder_inputs(input_ids, labels)
        check_one_of(
            "decoder_input_ids", decoder_input_ids, "decoder_inputs_embeds", decoder_inputs_embeds
        )
        decoder_input_ids, decoder_inputs_embeds, target = self._fed(
            "decoder_input", decoder_input_ids, decoder_inputs_embeds
        )
        if labels is not None:
            check_label_shape(labels.shape, target.shape)
        context: Any = None
        if encoded is None:
            check_one_of("input_ids", input_ids, "inputs_embeds", inputs_embeds)
            context, inputs_embeds, given = self._fed("input", input_ids, inputs_embeds)
            check_text(context, inputs_embeds, attention_mask)
            self.check_length(given.shape[1])
        else:
            given = tf.convert_to_tensor(encoded.last_hidden_state)
            checked_mask(
                "attention_mask", attention_mask, tuple(given.shape[:2]), "encoder_outputs, (R, S)"
            )
        check_rows(facts("the decoder's input", target), facts("the context", given))
        past = _check_past(past_key_values, target, decoder_attention_mask)
        attention_mask, decoder_attention_mask = (
            _mask(attention_mask),
            _mask(decoder_attention_mask),
        )
        self.check_length(_sum(past, target.shape[1]))
        if past_key_values is not None:
            past_key_values = tuple(tuple(layer) for layer in past_key_values)
        # States are asked for to see what comes of them: a tape finds no way to them through a
        # graph.
        run = self._eagerly if attentions or hidden else self._run
        logits, cache, seen, fresh = run(
            "call",
            self._call,
            context,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            inputs_embeds if encoded is None else None,
            decoder_inputs_embeds,
            None if encoded is None else tf.convert_to_tensor(encoded.last_hidden_state),
            past_key_values,
            use_cache,
            attentions,
            hidden,
            self.in_training(training),
            # What is handed back, and what came from an earlier call, has all columns.
            encoded is past_key_values is inputs_embeds is None
            and not (use_cache or attentions or hidden)
            and pays(attention_mask),
        )
        decoder_hidden, decoder_attentions, cross_attentions = seen
        states = (
            fresh
            if encoded is None
            else (encoded.last_hidden_state, encoded.hidden_states, encoded.attentions)
        )
        output = Seq2SeqLMOutput(
            loss=None if labels is None else self._run("loss", label_loss, logits, labels),
            logits=logits,
            past_key_values=cache,
            decoder_hidden_states=decoder_hidden,
            decoder_attentions=decoder_attentions,
            cross_attentions=cross_attentions,
            encoder_last_hidden_state=states[0],
            encoder_hidden_states=states[1],
            encoder_attentions=states[2],
        )
        return output if return_dict else output.to_tuple()

    forward = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `call`; a dictionary of its arguments may stand in front, or be `inputs`."""
        args, kwargs = spread(args, kwargs)
        return self.call(*args, **kwargs)

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
        packing = Packing(attention_mask) if packs and attention_mask is not None else None
        if packing is not None:
            states = self.get_encoder().packed(input_ids, packing, training)
            fresh, attention_mask = (packing.padded(states), None, None), packing.mask
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
            cross = Anew(states, packing)
        else:
            cross = decoder.cross(states, packing)
        cache, trace = GrowingCache(past), Trace(hidden, attentions)
        steps = Steps(cache, cross, key_mask(attention_mask), trace)
        mask, embeds = decoder_attention_mask, decoder_inputs_embeds
        # (R, T, d)
        x = decoder(decoder_input_ids, mask, inputs_embeds=embeds, steps=steps, training=training)
        flat = self._logits(tf.reshape(x, (-1, x.shape[-1])))  # (R*T, V)
        logits = tf.reshape(flat, (*leading_dims(x), flat.shape[1]))  # (R, T, V)
        return logits, cache.past_with(cross) if use_cache else None, trace.result(), fresh

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

    def _fed(self, name: str, ids: Any, embeds: Any) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Ids and embeddings as tensors, checked, and the one of them that is given."""
        table = self.get_input_embeddings()
        if embeds is None:
            ids = _ids(f"{name}_ids", ids, table.num_embeddings)
            check_fed(facts(f"{name}_ids", ids))
            return ids, None, ids
        embeds = tf.convert_to_tensor(embeds)
        check_fed(facts(f"{name}s_embeds", embeds))
        check_embeds(f"{name}s_embeds", embeds.shape, table.embedding_dim)
        return None, embeds, embeds

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Labels (R, T) -> decoder inputs: the start token in front, the last column gone, pads for
        -100.

        Raises:
            ValueError: the config has no start token or no pad token.
        """
        start, pad = start_and_pad(self.config)
        return shift_tokens_right(tf.convert_to_tensor(labels), pad, start)

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

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, training: bool | None = None
    ) -> Tensor:
        """Contexts (R, S) -> encoder states (R, S, d).

        Those of padding are zeros where leaving it out saves work.
        """
        input_ids, mask = tf.cast(input_ids, tf.int64), _mask(attention_mask)
        self.check_length(input_ids.shape[1])
        return self._run(
            "encode", self._encode, input_ids, mask, self.in_training(training), pays(mask)
        )

    def _encode(
        self, input_ids: Tensor, attention_mask: Tensor | None, training: bool, packs: bool
    ) -> Tensor:
        if packs and attention_mask is not None:
            packing = Packing(attention_mask)
            return packing.padded(self.get_encoder().packed(input_ids, packing, training))
        return self.get_encoder()(input_ids, attention_mask, training=training).last_hidden_state

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
        mask = _mask(encoder_mask)
        cross, mask = self._run(
            "start", self._start, tf.convert_to_tensor(encoder_hidden), mask, pays(mask)
        )
        return DecodeState.allocate(cross, key_mask(mask), beams, max_length)

    def _start(self, encoder_hidden: Tensor, mask: Tensor | None, packs: bool) -> Any:
        if not packs or mask is None:
            return tuple(self.get_decoder().cross(encoder_hidden)), mask
        packing = Packing(mask)
        return tuple(self.get_decoder().cross(packing.pick(encoder_hidden), packing)), packing.mask

    def decode(self, tokens: Tensor, state: DecodeState, trace: Trace | None = None) -> Tensor:
        """Tokens (R, K, T) -> logits (R, K, T, V).

        With a cache the positions continue at `state.position`, which advances by T; without, the
        tokens are whole prefixes. `trace` is given what it asks for: attentions (R*K, H, T, .) and
        hidden states (R*K, T, d).

        Within a graph of the caller's, nothing checks that there is room: call `reserve` before it
        runs.
        """
        tokens = tf.cast(tokens, tf.int64)
        if tf.executing_eagerly():
            self.reserve(state, tokens.shape[2])
        hidden, attentions = (
            (False, False) if trace is None else (trace.want_hidden, trace.want_attentions)
        )
        args = (tokens, state, hidden, attentions, self.in_training(None))
        logits, cache, seen = self._run("decode", self._decode, *args)
        if trace is not None:
            trace.note(seen)
        state.finish(cache, dim(tokens, 2))
        return logits

    def _decode(
        self, tokens: Tensor, state: DecodeState, hidden: bool, attentions: bool, training: bool
    ) -> tuple[Any, ...]:
        state, trace = state.opened(), Trace(hidden, attentions)
        logits = self._logits(self._decoded(tokens, state, trace, training))
        trace.unfold_beams(dim(tokens, 1))
        # (R, K, T, V)
        logits = tf.reshape(logits, (*(dim(tokens, axis) for axis in range(3)), logits.shape[-1]))
        return logits, None if state.cache is None else tuple(state.cache), trace.result()

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
        with self.placed():
            return function(*args)

    def _run(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        graph = self.graph(name, function)
        if not tf.executing_eagerly():
            return graph(*args)
        with self.placed():
            return graph(*args)


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of -log p(label) over the labels (R, T) other than -100, given logits (R, T, V).

    Float32 or wider.
    """
    log_probs = target_log_probs(logits[:, None], _scored(labels))[:, 0]  # (R, T)
    scored = tf.cast(labels != -100, log_probs.dtype)
    return -tf.reduce_sum(log_probs * scored) / tf.reduce_sum(scored)


def _scored(labels: Tensor) -> Tensor:
    """Labels with some token for -100."""
    return tf.where(labels == -100, tf.zeros_like(labels), labels)


def _ids(name: str, ids: Any, table: int | None) -> Tensor:
    """Checked ids, int64 always: another type would be another graph."""
    ids = None if ids is None else tf.convert_to_tensor(ids)
    return tf.cast(checked_ids(name, ids, table), tf.int64)


def _mask(mask: Any) -> Tensor | None:
    return None if mask is None else tf.cast(mask, tf.bool)


def _sum(*numbers: int | None) -> int | None:
    """None where one is not known yet."""
    return None if None in numbers else sum(number for number in numbers if number is not None)


def _check_past(past: Any, ids: Tensor, mask: Tensor | None) -> int | None:
    """Refuses a cache that an earlier call with as many rows did not return, or a mask that does
    not cover it.

    Returns:
        The number of positions in it, where that is known.
    """
    length: int | None = 0
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
        rows = shapes[0][0][0], ids.shape[0]
        if None not in rows and rows[0] != rows[1]:
            raise ValueError(
                f"past_key_values must have as many rows as the decoder's input, {rows[1]}, got "
                f"{rows[0]}"
            )
        length = shapes[0][0][2]
    wanted = (ids.shape[0], _sum(length, ids.shape[1]))
    known = mask is not None and None not in (*wanted, *mask.shape)
    if mask is not None and known and tuple(mask.shape) != wanted:
        raise ValueError(
            f"decoder_attention_mask must be (rows, length of past_key_values + T) = {wanted}, "
            f"got {tuple(mask.shape)}"
        )
    checked_mask("decoder_attention_mask", mask, wanted, "the decoder's input")
    return length
