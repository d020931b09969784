"""Modules that are not ours as question encoder or generator: the protocol, and the adapters.

**Question or document encoder**: `module(input_ids, attention_mask=...)` returns the vectors (B,
D), or something whose element 0 they are. A module that returns token states (B, S, d) is wrapped
in `ForeignEncoder(module, pooling)`.

**Generator**: `module.config` names `pad_token_id`, `eos_token_id` and `decoder_start_token_id`,
and `module(input_ids=, attention_mask=, encoder_outputs=, decoder_input_ids=, ...)` returns a
record with `logits` (R, T, V) and `encoder_last_hidden_state` (R, S, d), accepting the latter back
as `encoder_outputs=(states,)`. transformers' TensorFlow sequence-to-sequence models are such
modules. A module that offers `encode`, `start` and `decode` as `BartForConditionalGeneration` does
is used as it is, which is faster: `ForeignGenerator` decodes each prefix anew unless the module's
cache can be reordered.

A module is a keras.Model, a tf.Module or any callable; its weights are found in `weights` or
`variables`. It runs as it is, not in a graph of ours, as it may do anything; it is faster where its
own call is a `tf.function`.

Letters: B texts, R contexts, K beams of a context, S context length, T target positions now, V
vocabulary, D vector size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from rag_core.config import PretrainedConfig
from rag_core.outputs import EncoderOutput, Seq2SeqLMOutput
from rag_tf.layers import Trace, as_encoder_output
from rag_tf.modules import Module
from rag_tf.pretrained import PretrainedModel
from rag_tf.weights import named_variables

_CONTRACT = ("encode", "start", "decode")


def accepted(function: Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments that `function` (or a Keras model's `call`) takes."""
    parameters = inspect.signature(getattr(function, "call", function)).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return kwargs
    return {name: value for name, value in kwargs.items() if name in parameters}


def encode_questions(
    module: Any,
    input_ids: tf.Tensor,
    attention_mask: tf.Tensor | None,
    output_attentions: bool = False,
    output_hidden_states: bool = False,
    training: bool | None = None,
) -> Any:
    """Run a question or document encoder.

    Returns:
        A record or tuple whose element 0 is the vectors (B, D).

    Raises:
        ValueError: the encoder does not return vectors.
    """
    kwargs = {
        "attention_mask": attention_mask,
        "output_attentions": output_attentions,
        "output_hidden_states": output_hidden_states,
        "return_dict": True,
        "training": training,
    }
    if not isinstance(module, PretrainedModel):
        kwargs = accepted(module, {**kwargs, "training": bool(training)})
    outputs = module(input_ids, **kwargs)
    outputs = (outputs,) if isinstance(outputs, tf.Tensor) else outputs
    shape = tuple(outputs[0].shape)
    if len(shape) != 2:
        raise ValueError(
            f"{type(module).__name__} must return one vector for each text, (B, D), as element 0, "
            f"got shape {shape}: wrap it in rag_tf.foreign.ForeignEncoder(module, pooling='mean') "
            "(or 'cls')"
        )
    return outputs


class ForeignEncoder(Module):
    """Pools another module's token states into one vector a text.

    Args:
        module: returns (B, S, d) as element 0.
        pooling: "cls" for the first state, "mean" for the mean over real tokens.
    """

    def __init__(self, module: Any, pooling: str = "mean") -> None:
        super().__init__()
        if pooling not in ("cls", "mean"):
            raise ValueError(f"pooling must be 'cls' or 'mean', got {pooling!r}")
        self.module = module
        self.pooling = pooling
        object.__setattr__(self, "config", module_config(module))

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """The module's weights."""
        return named_variables(self.module, f"{prefix}module.")

    def __call__(
        self, input_ids: tf.Tensor, attention_mask: tf.Tensor | None = None, **kwargs: Any
    ) -> EncoderOutput:
        """(B, S) ids -> a record whose element 0 is (B, D)."""
        if attention_mask is None:
            pad = getattr(self.config, "pad_token_id", None)
            real = tf.ones_like(input_ids, tf.bool) if pad is None else input_ids != pad
            attention_mask = tf.cast(real, input_ids.dtype)
        kwargs = {"attention_mask": attention_mask, "return_dict": True, **kwargs}
        outputs = self.module(input_ids, **accepted(self.module, kwargs))
        states = outputs if isinstance(outputs, tf.Tensor) else outputs[0]
        if self.pooling == "cls":
            vectors = states[:, 0]
        else:
            weight = tf.cast(attention_mask, states.dtype)[:, :, None]  # (B, S, 1)
            vectors = tf.reduce_sum(states * weight, 1) / tf.maximum(tf.reduce_sum(weight, 1), 1)
        return EncoderOutput(
            vectors, getattr(outputs, "hidden_states", None), getattr(outputs, "attentions", None)
        )


def module_config(module: Any) -> Any:
    """A module's config; for a module without, an empty one that can be written and read back."""
    config = getattr(module, "config", None)
    return PretrainedConfig(model_type="custom") if config is None else config


def as_generator(module: Any) -> Any:
    """The module itself if it offers the decoding contract, else a `ForeignGenerator` around it."""
    if all(callable(getattr(module, name, None)) for name in _CONTRACT):
        return module
    return ForeignGenerator(module)


@dataclass
class ForeignState:
    """What decoding with a foreign module keeps: encoder states, and the prefix of each beam.

    Attributes:
        hidden: (R, S, d).
        mask: (R, S) bool or None.
        beams: K.
        prefix: (R, K, positions so far), or None without a cache (every call decodes a whole
            prefix).
        past: the module's own cache for R*K rows, where it can be reordered.
        use_cache: whether to ask the module for one.
        reorder_cache: the module's function (past, rows) -> past, for caches without a method of
            that name.
    """

    hidden: tf.Tensor
    mask: tf.Tensor | None
    beams: int
    prefix: tf.Tensor | None = None
    past: Any = None
    use_cache: bool = False
    reorder_cache: Callable[[Any, tf.Tensor], Any] | None = None

    @property
    def position(self) -> int:
        """Number of positions decoded so far."""
        return 0 if self.prefix is None else int(self.prefix.shape[2])

    def reorder(self, source: tf.Tensor) -> None:
        """Beam k of row r continues beam `source[r, k]` of the same row; (R, K) integers."""
        if self.prefix is None or not self.position:
            return
        source = tf.convert_to_tensor(source)
        self.prefix = tf.gather(self.prefix, source, batch_dims=1)
        if self.past is not None:
            first = tf.range(tf.shape(source)[0])[:, None] * self.beams  # (R, 1)
            rows = tf.reshape(tf.cast(first, source.dtype) + source, (-1,))
            if _reorders_itself(self.past):
                self.past.reorder_cache(rows)
            elif self.reorder_cache is not None:
                self.past = self.reorder_cache(self.past, rows)

    def select(self, rows: tf.Tensor) -> ForeignState:
        """A state of these contexts only.

        The module's cache is dropped and made again from the prefixes.
        """
        hidden, mask, prefix = (
            None if each is None else tf.gather(each, rows)
            for each in (self.hidden, self.mask, self.prefix)
        )
        return ForeignState(
            hidden, mask, self.beams, prefix, None, self.use_cache, self.reorder_cache
        )


class ForeignGenerator:
    """Another library's sequence-to-sequence module behind the decoding contract.

    Attributes that are not found here are the module's.

    Args:
        module: see the protocol above.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.config = module_config(module)

    def __getattr__(self, name: str) -> Any:
        if name == "module":
            raise AttributeError(name)
        return getattr(self.module, name)

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """The module's weights."""
        return named_variables(self.module, prefix)

    def __call__(self, **kwargs: Any) -> Seq2SeqLMOutput:
        """The module's call as our record."""
        if kwargs.get("encoder_outputs") is not None:
            kwargs["encoder_outputs"] = self._encoder_outputs(
                as_encoder_output(kwargs["encoder_outputs"])
            )
        outputs = self.module(**accepted(self.module, kwargs))
        names = Seq2SeqLMOutput.__dataclass_fields__
        return Seq2SeqLMOutput(**{name: getattr(outputs, name, None) for name in names})

    def _encoder_outputs(self, outputs: EncoderOutput) -> Any:
        return (outputs.last_hidden_state, outputs.hidden_states, outputs.attentions)

    def encode(self, input_ids: tf.Tensor, attention_mask: tf.Tensor | None = None) -> tf.Tensor:
        """Contexts (R, S) -> encoder states (R, S, d)."""
        encoder = getattr(self.module, "get_encoder", None)
        if encoder is not None:
            module = encoder()
            kwargs = accepted(module, {"attention_mask": attention_mask, "return_dict": True})
            return as_encoder_output(module(input_ids, **kwargs)).last_hidden_state
        start = tf.fill(
            (tf.shape(input_ids)[0], 1),
            tf.cast(self.config.decoder_start_token_id, input_ids.dtype),
        )
        outputs = self(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=start,
            return_dict=True,
        )
        return outputs.encoder_last_hidden_state

    def start(
        self,
        encoder_hidden: tf.Tensor,
        encoder_mask: tf.Tensor | None,
        beams: int = 1,
        max_length: int | None = None,
    ) -> ForeignState:
        """Prepare decoding: see `rag_tf.seq2seq.Generator.start`."""
        state = ForeignState(encoder_hidden, encoder_mask, beams)
        if max_length is not None:
            state.prefix = tf.zeros((encoder_hidden.shape[0], beams, 0), tf.int64)
            names = inspect.signature(getattr(self.module, "call", self.module)).parameters
            state.use_cache = {"past_key_values", "use_cache"} <= set(names)
            functions = (
                getattr(self.module, name, None) for name in ("_reorder_cache", "reorder_cache")
            )
            state.reorder_cache = next((each for each in functions if callable(each)), None)
        return state

    def decode(
        self, tokens: tf.Tensor, state: ForeignState, trace: Trace | None = None
    ) -> tf.Tensor:
        """Tokens (R, K, T) -> logits (R, K, T, V).

        With a cache they continue the state's prefixes.
        """
        tokens = tf.convert_to_tensor(tokens)
        rows, beams, length = tokens.shape
        whole = (
            tokens
            if state.prefix is None
            else tf.concat([state.prefix, tf.cast(tokens, tf.int64)], 2)
        )
        fresh = state.past is None
        inputs = whole if fresh else tokens
        hidden = tf.repeat(state.hidden, beams, 0)  # (R*K, S, d)
        mask = None if state.mask is None else tf.cast(tf.repeat(state.mask, beams, 0), tf.int64)
        outputs = self(
            attention_mask=mask,
            encoder_outputs=(hidden,),
            decoder_input_ids=tf.reshape(inputs, (rows * beams, -1)),
            past_key_values=None if fresh else state.past,
            use_cache=state.use_cache,
            output_attentions=trace is not None and trace.want_attentions,
            output_hidden_states=trace is not None and trace.want_hidden,
            return_dict=True,
        )
        if trace is not None:
            if trace.want_attentions and not (
                outputs.decoder_attentions and outputs.cross_attentions
            ):
                raise ValueError(
                    f"output_attentions: {type(self.module).__name__} hands back no attentions, "
                    "which some of transformers' models do only when made with "
                    "output_attentions=True in their config"
                )
            for each in outputs.decoder_hidden_states or ():
                trace.hidden(each)
            for own, cross in zip(
                outputs.decoder_attentions or (), outputs.cross_attentions or (), strict=True
            ):
                trace.attentions(own, cross)
        if state.prefix is not None:
            state.prefix = whole
        past = outputs.past_key_values
        if (
            state.use_cache
            and past is not None
            and (_reorders_itself(past) or state.reorder_cache is not None)
        ):
            state.past = past
        logits = outputs.logits[:, -length:]  # (R*K, T, V)
        return tf.reshape(logits, (rows, beams, length, -1))


def _reorders_itself(past: Any) -> bool:
    return callable(getattr(past, "reorder_cache", None))
