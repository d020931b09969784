"""Sequence-to-sequence networks but for their arithmetic: what a call may say, and stepwise decoding.

Letters: R rows (contexts), K beams of a row, T target positions now, S context length, d width, V
vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, overload

import numpy as np

from rag_core.arguments import check_fed, check_rows
from rag_core.config import BartConfig, T5Config
from rag_core.generation import (
    Engine,
    GenerationConfig,
    check_context,
    check_embeds,
    check_head_masks,
    check_label_shape,
    check_one_of,
    next_inputs,
    plain_generate,
    start_and_pad,
    with_options,
)
from rag_core.modeling.inputs import InputChecks
from rag_core.modeling.pretrained import PretrainedBase, check_table
from rag_core.outputs import (
    DecoderOutput,
    EncoderOutput,
    GenerateOutput,
    Seq2SeqLMOutput,
    Tensor,
    as_encoder_output,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from rag_core.generation import PlainKeywords

Size = int | None  # None: not known yet, in a graph


@dataclass
class Steps:
    """Where a generator stands in its decoding.

    Attributes:
        cache: keys and values of the tokens so far.
        cross: for each layer the keys and values of the contexts, (R, H, S, h) each.
        cross_mask: which context positions are real.
        trace: what notes attentions and hidden states.
    """

    cache: Any
    cross: Any
    cross_mask: Any
    trace: Any = None


@dataclass
class GeneratorCall:
    """What a call of a generator says; once it is checked, what its network reads.

    Attributes:
        encoder_outputs: an `EncoderOutput` once checked.
        past_length: positions of `past_key_values`, where that is known.
        training: in rag_tf, whether dropout acts.

    The others are the arguments of `GeneratorBase.forward`.
    """

    input_ids: Any
    attention_mask: Any
    decoder_input_ids: Any
    decoder_attention_mask: Any
    head_mask: None
    decoder_head_mask: None
    cross_attn_head_mask: None
    encoder_outputs: Any
    past_key_values: Any
    inputs_embeds: Any
    decoder_inputs_embeds: Any
    labels: Any
    use_cache: Any
    output_attentions: Any
    output_hidden_states: Any
    return_dict: Any
    training: bool | None = None
    past_length: Size = 0


class DecoderBase(ABC, Generic[Tensor]):
    """A decoder as its users call it, around `advance`.

    Attributes:
        checkpointing: options of gradient checkpointing; None = off.
    """

    checkpointing: dict[str, Any] | None = None

    @abstractmethod
    def cross(self, encoder_hidden: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(R, S, d) -> each layer's cross-attention keys and values, (R, H, S, h)."""

    @abstractmethod
    def cross_of(self, index: int, encoder_hidden: Tensor) -> tuple[Tensor, Tensor]:
        """As `cross`, of one layer."""

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

    @staticmethod
    @abstractmethod
    def _first_steps(past: Any, mask: Tensor | None, hidden: bool, attentions: bool) -> Steps:
        """`Steps` from an earlier call's cache, but for `cross`."""

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
            `DecoderOutput`. rag_tf takes `training`, too: whether dropout acts.

        Raises:
            ValueError: ids and embeddings both or neither, or no states of the encoder.
        """
        if steps is not None:
            return self.advance(input_ids, steps, attention_mask, inputs_embeds)
        return self._alone(
            self.advance,
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

    def _alone(
        self,
        advance: Callable[..., Tensor],
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        encoder_hidden_states: Any,
        encoder_attention_mask: Tensor | None,
        past_key_values: Any,
        inputs_embeds: Tensor | None,
        use_cache: bool | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
    ) -> Any:
        """A call without a generator around it."""
        check_one_of("input_ids", input_ids, "inputs_embeds", inputs_embeds)
        check_context(encoder_hidden_states, past_key_values)
        steps = self._first_steps(
            past_key_values,
            encoder_attention_mask,
            bool(output_hidden_states),
            bool(output_attentions),
        )
        if past_key_values is None:
            steps.cross = self.cross(encoder_hidden_states)
        else:
            steps.cross = [(layer[2], layer[3]) for layer in past_key_values]
        states = advance(input_ids, steps, attention_mask, inputs_embeds)
        hidden, attentions, cross_attentions = steps.trace.result()
        output = DecoderOutput(states, None, hidden, attentions, cross_attentions)
        if use_cache:
            output.past_key_values = steps.cache.past_with(steps.cross)
        return output.to_tuple() if return_dict is False else output


class GeneratorBase(PretrainedBase[Tensor]):
    """An encoder, a decoder with cross-attention and a language-model head, as RAG decodes with
    them.

    A backend's `Generator` adds the network's run and the decoding contract: `encode`, `start`,
    `decode`.

    Attributes:
        engine: the backend's tensor operations.
        inputs: the backend's checks of arguments.
        native: that generation may rely on what these networks do beyond the contract: the engine's
            `tree_log_probs` over beginnings that candidates share, logits in new memory, and where
            the engine `shares_first_step` equal beams decoded as one; in rag_tf steps and searches
            in graphs. A class that sets it to False needs none of this.
    """

    engine: ClassVar[Engine]
    inputs: ClassVar[InputChecks]
    native = True
    lm_head: Any

    # what a backend writes

    @staticmethod
    def _tensor(value: Any) -> Any:
        """The value as a tensor, where the framework takes others too."""
        raise NotImplementedError

    def _ids(self, name: str, ids: Any, rows: int | None = None) -> Any:
        """Ids as a tensor, refused if a table of `rows` rows can't look them up."""
        return self.inputs.checked_ids(name, ids, rows)

    @staticmethod
    def _shifted(input_ids: Any, pad_token_id: int, decoder_start_token_id: int) -> Any:
        """A start token in front, the last column gone, -100 as pad."""
        raise NotImplementedError

    @staticmethod
    def _put_weight(module: Any, weight: Any) -> None:
        """Make a weight that of a module."""
        raise NotImplementedError

    def _compute(self, call: GeneratorCall) -> tuple[Tensor, Any, Any, EncoderOutput]:
        """Logits (R, T, V), `past_key_values`, what the decoder's trace gathered, and the encoder's
        output.
        """
        raise NotImplementedError

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean of -log p(label) over the labels (R, T) other than -100, in float32 or wider."""
        raise NotImplementedError

    def check_length(self, length: Size) -> None:
        """Refuse more positions than the network has, where that is known before it runs."""

    # parts

    def get_encoder(self) -> Any:
        """The encoder."""
        return self.base_model.encoder

    def get_decoder(self) -> Any:
        """The decoder."""
        return self.base_model.decoder

    def get_input_embeddings(self) -> Any:
        """The token table."""
        return self.base_model.shared

    def set_input_embeddings(self, value: Any) -> None:
        """Put another token table in place, of the same size.

        See `PretrainedBase.set_input_embeddings`.
        """
        network = self.base_model
        network.shared = check_table("value", value, network.shared)
        self.tie_weights()
        self._weights_replaced()

    def get_output_embeddings(self) -> Any:
        """The language-model head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Put another language-model head in place; see `PretrainedBase.set_output_embeddings`."""
        self.lm_head = check_table("new_embeddings", new_embeddings, self.lm_head)
        self._weights_replaced()

    def tie_weights(self) -> None:
        """Make the encoder's, the decoder's and (if the config ties them) the head's table one
        weight.
        """
        shared = self.get_input_embeddings().weight
        for part in (self.get_encoder(), self.get_decoder()):
            self._put_weight(part.embed_tokens, shared)
        if self.config.tie_word_embeddings:
            self._put_weight(self.lm_head, shared)

    def decoder_inputs(self, input_ids: Tensor) -> Tensor:
        """Decoder inputs (R, T) where only the context (R, S) is given."""
        raise NotImplementedError

    # a call

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
    ) -> Seq2SeqLMOutput[Tensor] | tuple[Any, ...]:
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
            )
        )

    if TYPE_CHECKING:

        def __call__(
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
            return_dict: Literal[True] | None = None,
        ) -> Seq2SeqLMOutput[Tensor]:
            """See `forward`. For a tuple, which `return_dict=False` gives, write `.to_tuple()`."""
            ...

    def _answer(self, call: GeneratorCall) -> Any:
        self._check(call)
        logits, past, traced, encoded = self._compute(call)
        hidden, attentions, cross_attentions = traced
        loss = None
        if call.labels is not None:
            loss = self._loss(logits, call.labels)
        output = Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=past,
            decoder_hidden_states=hidden,
            decoder_attentions=attentions,
            cross_attentions=cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )
        return output if call.return_dict else output.to_tuple()

    def _check(self, call: GeneratorCall) -> None:
        """Refuse what the network can't read, and fill in what a call may leave out."""
        check_head_masks(
            head_mask=call.head_mask,
            decoder_head_mask=call.decoder_head_mask,
            cross_attn_head_mask=call.cross_attn_head_mask,
        )
        if call.use_cache is None and call.labels is not None:
            call.use_cache = False
        (call.use_cache, call.output_attentions, call.output_hidden_states, call.return_dict) = (
            self.switches(
                call.use_cache, call.output_attentions, call.output_hidden_states, call.return_dict
            )
        )
        if call.encoder_outputs is not None:
            call.encoder_outputs = as_encoder_output(call.encoder_outputs)
        target = self._checked_target(call)
        context = self._checked_context(call)
        facts = self.inputs.facts
        check_rows(facts("the decoder's input", target), facts("the context", context))
        mask = call.decoder_attention_mask
        call.past_length = past_length_of(call.past_key_values, target.shape)
        fed = (target.shape[0], total(call.past_length, target.shape[1]))
        if mask is not None:
            check_target_mask(mask, fed)
        self.inputs.checked_mask("decoder_attention_mask", mask, fed, "the decoder's input")
        self.check_length(fed[1])

    def _checked_target(self, call: GeneratorCall) -> Any:
        """What the decoder is fed, ids or embeddings."""
        if call.labels is not None:
            call.labels = self._ids("labels", call.labels)
            scored = self.inputs.masked_fill(call.labels, call.labels == -100, 0)
            self._ids("labels (but for -100)", scored, self.get_input_embeddings().weight.shape[0])
        if call.decoder_input_ids is None and call.decoder_inputs_embeds is None:
            call.decoder_input_ids = self._decoder_inputs(call.input_ids, call.labels)
        ids, embeds = self._fed("decoder_input", call.decoder_input_ids, call.decoder_inputs_embeds)
        call.decoder_input_ids = ids
        call.decoder_inputs_embeds = embeds
        target = ids if embeds is None else embeds
        if call.labels is not None:
            check_label_shape(call.labels.shape, target.shape)
        return target

    def _checked_context(self, call: GeneratorCall) -> Any:
        """What the encoder is fed, ids or embeddings, or what it returned in an earlier call."""
        mask = call.attention_mask
        if call.encoder_outputs is not None:
            states = self._tensor(call.encoder_outputs.last_hidden_state)
            of = "encoder_outputs, (R, S)"
            self.inputs.checked_mask("attention_mask", mask, tuple(states.shape[:2]), of)
            call.input_ids = None
            call.inputs_embeds = None
            return states
        ids, embeds = self._fed("input", call.input_ids, call.inputs_embeds)
        call.input_ids = ids
        call.inputs_embeds = embeds
        self.inputs.check_text(ids, embeds, mask)
        context = ids if embeds is None else embeds
        self.check_length(context.shape[1])
        return context

    def _fed(self, name: str, ids: Any, embeds: Any) -> tuple[Any, Any]:
        """Ids and embeddings, of which one is given, checked."""
        check_one_of(f"{name}_ids", ids, f"{name}s_embeds", embeds)
        table = self.get_input_embeddings().weight
        if embeds is None:
            ids = self._ids(f"{name}_ids", ids, table.shape[0])
            check_fed(self.inputs.facts(f"{name}_ids", ids))
            return ids, None
        embeds = self._tensor(embeds)
        check_fed(self.inputs.facts(f"{name}s_embeds", embeds))
        check_embeds(f"{name}s_embeds", embeds.shape, table.shape[1])
        return None, embeds

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

    # generation

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Labels (R, T) -> decoder inputs: the start token in front, the last column gone, pads for
        -100.

        Raises:
            ValueError: the config has no start token or no pad token.
        """
        start, pad = start_and_pad(self.config)
        return self._shifted(self._tensor(labels), pad, start)

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

    @overload
    def generate(
        self,
        inputs: Tensor | None = None,
        *,
        return_dict_in_generate: Literal[False] | None = None,
        **options: Unpack[PlainKeywords],
    ) -> Tensor: ...

    @overload
    def generate(
        self,
        inputs: Tensor | None = None,
        *,
        return_dict_in_generate: Literal[True],
        **options: Unpack[PlainKeywords],
    ) -> GenerateOutput[Tensor]: ...

    @with_options
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | Mapping[str, Any] | None = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: Any = None,
        synced_gpus: bool | None = None,
        assistant_model: Any = None,
        streamer: Any = None,
        negative_prompt_ids: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor | GenerateOutput[Tensor]:
        """Generate texts from contexts alone, without documents.

        Args:
            inputs: (B, S) context ids; `input_ids` is another name of it.
            generation_config: options of this call; keywords go before it, the generator's own
                options after it.
            logits_processor: callables (input_ids, scores) -> scores, after the built-in rules.
            stopping_criteria: callables (input_ids, scores) -> True to stop, or (rows,) bools.
            prefix_allowed_tokens_fn: (row, (t,) ids) -> ids allowed next.
            synced_gpus, assistant_model: refused where they ask for something.
            streamer: has `put(ids)` and `end()`, for one context without beams.
            negative_prompt_ids: (B, S'), what `guidance_scale` leads away from; by default the
                empty text.
            negative_prompt_attention_mask: (B, S'), 1 = a real token.
            **kwargs: any option below, and
                `attention_mask` (B, S): 1 = a real token; None = every token that is not the pad
                token;
                `inputs_embeds` (B, S, d) in place of ids;
                `encoder_outputs`: an earlier call's encoder output of these contexts, to spare the
                encoder;
                `seed`, `decoder_input_ids`, `graph`: as of RAG-Token's `generate`; `labels` of a
                batch are not read.

        Returns:
            (B * num_return_sequences, T) token ids with the start token, right-padded; or with
            `return_dict_in_generate=True` a `GenerateOutput`, whose `sequences` they are.

        Raises:
            TypeError: an unknown option.
            ValueError: an option that cannot be had, or inputs that do not fit.
        """
        return plain_generate(
            self.engine,
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

    # the decoding contract

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Contexts (R, S) -> encoder states (R, S, d).

        Those of padding are zeros where leaving it out saves work.
        """
        raise NotImplementedError

    def start(
        self,
        encoder_hidden: Tensor,
        encoder_mask: Tensor | None,
        beams: int = 1,
        max_length: int | None = None,
    ) -> Any:
        """Prepare decoding: cross-attention keys and values, computed once for each context.

        Args:
            encoder_hidden: (R, S, d).
            encoder_mask: (R, S) bool, True = a real token.
            beams: K, sequences that share a context.
            max_length: number of positions to allocate a self-attention cache for; None = no cache.

        Returns:
            The state that `decode` advances. `state.reorder(source)` (R, K) lets beam k of row r
            continue beam `source[r, k]` of the row, in place; without a cache it does nothing. If
            it has `state.select(rows)`, that is a state of these contexts alone, and the old one
            still serves all of them when candidates are weighed.
        """
        raise NotImplementedError

    def decode(self, tokens: Tensor, state: Any, trace: Any = None) -> Tensor:
        """Tokens (R, K, T) -> logits (R, K, T, V).

        With a cache the positions continue at `state.position`, which advances by T; without, the
        tokens are whole prefixes, of K sequences or fewer. `trace` is given what it asks for:
        attentions (R*K, H, T, .) and hidden states (R*K, T, d); a network that has none to give
        leaves the argument out. In rag_torch the first call may give tokens (R, 1, T), which all
        beams begin with; in rag_tf nothing checks within a graph of the caller's that there is
        room: call `reserve` before it runs.
        """
        raise NotImplementedError


class BartGenerator(GeneratorBase[Tensor]):
    """BART with its language-model head.

    Args:
        config: a `BartConfig`.
    """

    config: BartConfig
    config_class = BartConfig
    base_model_prefix = "model"

    def decoder_inputs(self, input_ids: Tensor) -> Tensor:
        """The context shifted right: BART reconstructs its input unless told otherwise."""
        return self.prepare_decoder_input_ids_from_labels(input_ids)


class T5Generator(GeneratorBase[Tensor]):
    """T5 with its language-model head.

    Args:
        config: a `T5Config`.
    """

    config: T5Config
    config_class = T5Config
    base_model_prefix = "transformer"

    def decoder_inputs(self, input_ids: Tensor) -> Tensor:
        """T5 makes no target of its own out of a context: always an error."""
        raise ValueError("decoder_input_ids (or labels) must be given to T5, got None")

    def _initial_std(self, name: str) -> float:
        """How far a fresh matrix of this name spreads: scaled by fan-in, as T5 was trained."""
        config = self.config
        wide = config.d_model**-0.5
        spreads = {
            "q": wide * config.d_kv**-0.5,
            "o": (config.num_heads * config.d_kv) ** -0.5,
            "wo": config.d_ff**-0.5,
            "shared": 1.0,
            "lm_head": 1.0,
        }
        return config.initializer_factor * spreads.get(name.split(".")[-2], wide)


def traced_output(states: Any, trace: Any, return_dict: bool | None = None) -> Any:
    """An encoder's last states with what a trace gathered on the way; a plain tuple where
    `return_dict` is False.
    """
    hidden_states, attentions, _ = trace.result()
    output = EncoderOutput(
        last_hidden_state=states, hidden_states=hidden_states, attentions=attentions
    )
    return output.to_tuple() if return_dict is False else output


def check_positions(kind: str, limit: int, length: Size, advice: str = "") -> None:
    """Refuse more positions than a table has; a length not known yet is taken on trust.

    Args:
        kind: of the network.
        limit: rows of its table of positions.
        length: wanted.
        advice: what to do.

    Raises:
        ValueError: naming both.
    """
    if length is not None and length > limit:
        raise ValueError(
            f"this {kind} has {limit} positions (max_position_embeddings), got {length} tokens"
            f"{advice}"
        )


def total(*sizes: Size) -> Size:
    """The sum; None where one is not known yet."""
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return None
    return sum(known)


def past_length_of(past: Any, target_shape: Sequence[Size]) -> Size:
    """The number of positions in a cache, where that is known; 0 without one.

    Raises:
        TypeError: no earlier call returned this.
        ValueError: another number of rows than the decoder's input has.
    """
    if past is None:
        return 0
    shapes: list[list[tuple[Size, ...]]] = []
    if isinstance(past, Iterable) and not isinstance(past, str) and not hasattr(past, "shape"):
        layers = [layer if isinstance(layer, Iterable) else () for layer in past]
        shapes = [[tuple(getattr(part, "shape", ())) for part in layer] for layer in layers]
    fits = [len(layer) == 4 and all(len(shape) == 4 for shape in layer) for layer in shapes]
    if not fits or not all(fits):
        raise TypeError(
            "past_key_values must be what an earlier call returned, four tensors (R, H, length, h) "
            f"for each layer, got {type(past).__name__}"
        )
    rows, _, length, _ = shapes[0][0]
    if None not in (rows, target_shape[0]) and rows != target_shape[0]:
        raise ValueError(
            "past_key_values must have as many rows as the decoder's input, "
            f"{target_shape[0]}, got {rows}"
        )
    return length


def check_target_mask(mask: Any, shape: tuple[Size, ...]) -> None:
    """Refuse a mask that does not cover the cache and the decoder's input.

    Raises:
        ValueError: naming both shapes.
    """
    if None in (*shape, *mask.shape) or tuple(mask.shape) == shape:
        return
    raise ValueError(
        f"decoder_attention_mask must be (rows, length of past_key_values + T) = {shape}, got "
        f"{tuple(mask.shape)}"
    )


def batches_by_length(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Rows of like length together, the short ones first.

    Args:
        lengths: (R,) real tokens of each row.
        tokens: how many a batch should hold at least.

    Returns:
        Row numbers of each batch, sorted by length.
    """
    order = np.argsort(lengths, kind="stable")
    tokens_of_batch = lengths.sum() / max(1, lengths.sum() // tokens)
    middles = np.cumsum(lengths[order]) - lengths[order] / 2
    batch_of_row = (middles // tokens_of_batch).astype(np.int64)
    return np.split(order, np.flatnonzero(np.diff(batch_of_row)) + 1)
