"""Modules that are not ours as question encoder or generator: the protocol, and the adapters.

**Question or document encoder**: `module(input_ids, attention_mask=...)` returns the vectors (B,
D), or something whose element 0 they are. A module that returns token states (B, S, d) is wrapped
in `ForeignEncoder(module, pooling)`.

**Generator**: `module.config` names `pad_token_id`, `eos_token_id` and `decoder_start_token_id`,
and `module(input_ids=, attention_mask=, encoder_outputs=, decoder_input_ids=, ...)` returns a
record with `logits` (R, T, V) and `encoder_last_hidden_state` (R, S, d), accepting the latter back
as `encoder_outputs=(states,)`. transformers' sequence-to-sequence models are such modules. A module
that offers `encode`, `start` and `decode` as `BartForConditionalGeneration` does is used as it is,
which is faster: `ForeignGenerator` decodes each prefix anew unless the module's cache can be
reordered.

Letters: B texts, R contexts, K beams of a context, S context length, T target positions now, V
vocabulary, D vector size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from rag_core.config import PretrainedConfig
from rag_core.outputs import EncoderOutput, Seq2SeqLMOutput, as_encoder_output

Tensor = Any  # the framework's own

_CONTRACT = ("encode", "start", "decode")


def parameters_of(function: Callable[..., Any]) -> Any:
    """The parameters of a function, or of a Keras model's `call`."""
    return inspect.signature(getattr(function, "call", function)).parameters


def accepted(function: Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments that `function` (or a Keras model's `call`) takes."""
    parameters = parameters_of(function)
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return kwargs
    return {name: value for name, value in kwargs.items() if name in parameters}


def module_config(module: Any) -> Any:
    """A module's config; for a module without, an empty one that can be written and read back."""
    config = getattr(module, "config", None)
    if config is None:
        return PretrainedConfig(model_type="custom")
    return config


def offers_decoding(module: Any) -> bool:
    """Whether a module has the methods that decoding asks a generator for."""
    return all(callable(getattr(module, name, None)) for name in _CONTRACT)


def checked_vectors(module: Any, outputs: Any) -> Any:
    """What an encoder returned, as a record or tuple whose element 0 is the vectors (B, D).

    Raises:
        ValueError: the encoder does not return vectors.
    """
    if hasattr(outputs, "shape"):
        outputs = (outputs,)
    shape = tuple(outputs[0].shape)
    if len(shape) != 2:
        raise ValueError(
            f"{type(module).__name__} must return one vector for each text, (B, D), as element 0, "
            f"got shape {shape}. Wrap it in ForeignEncoder(module, pooling='mean') (or 'cls') of "
            "rag_torch.foreign or rag_tf.foreign"
        )
    return outputs


class ForeignModule:
    """What both adapters share.

    Attributes:
        module: the other library's.
        config: its config.
    """

    module: Any
    config: Any

    @property
    def _function(self) -> Callable[..., Any]:
        """What tells which keywords the module takes."""
        return self._function_of(self.module)

    @staticmethod
    def _function_of(module: Any) -> Callable[..., Any]:
        return module


class ForeignEncoderBase(ForeignModule):
    """Pools another module's token states into one vector a text.

    Args:
        module: returns (B, S, d) as element 0.
        pooling: "cls" for the first state, "mean" for the mean over real tokens.

    Raises:
        ValueError: another pooling.
    """

    def __init__(self, module: Any, pooling: str = "mean") -> None:
        super().__init__()
        if pooling not in ("cls", "mean"):
            raise ValueError(f"pooling must be 'cls' or 'mean', got {pooling!r}")
        self.module = module
        self.pooling = pooling
        # past TensorFlow's trackers, which wrap what they find
        object.__setattr__(self, "config", module_config(module))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> EncoderOutput:
        """(B, S) ids -> a record whose element 0 is (B, D)."""
        if attention_mask is None:
            pad = getattr(self.config, "pad_token_id", None)
            attention_mask = self._real_tokens(input_ids, pad)
        kwargs = {"attention_mask": attention_mask, "return_dict": True, **kwargs}
        outputs = self.module(input_ids, **accepted(self._function, kwargs))
        # a bare tensor, or a record or tuple that begins with it
        states = outputs if hasattr(outputs, "shape") else outputs[0]
        if self.pooling == "cls":
            vectors = states[:, 0]
        else:
            vectors = self._mean(states, attention_mask)
        return EncoderOutput(
            vectors, getattr(outputs, "hidden_states", None), getattr(outputs, "attentions", None)
        )

    @staticmethod
    def _real_tokens(input_ids: Tensor, pad: int | None) -> Tensor:
        """A mask (B, S) of integers, 1 = not the pad token; without one all are real."""
        raise NotImplementedError

    @staticmethod
    def _mean(states: Tensor, mask: Tensor) -> Tensor:
        """The mean over a text's real tokens, (B, S, d) -> (B, d)."""
        raise NotImplementedError


@dataclass
class ForeignStateBase:
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

    hidden: Tensor
    mask: Tensor | None
    beams: int
    prefix: Tensor | None = None
    past: Any = None
    use_cache: bool = False
    reorder_cache: Callable[[Any, Tensor], Any] | None = None

    @property
    def position(self) -> int:
        """Number of positions decoded so far."""
        return 0 if self.prefix is None else int(self.prefix.shape[2])

    def reorder(self, source: Tensor) -> None:
        """Beam k of row r continues beam `source[r, k]` of the same row; (R, K) integers, in
        place.
        """
        if self.prefix is None or not self.position:
            return
        self.prefix, rows = self._continued(self.prefix, source)
        if self.past is None:
            return
        if _reorders_itself(self.past):
            self.past.reorder_cache(rows)
        elif self.reorder_cache is not None:
            self.past = self.reorder_cache(self.past, rows)

    def select(self, rows: Tensor) -> ForeignStateBase:
        """A state of these contexts only.

        The module's cache is dropped and made again from the prefixes.
        """
        of_these = {"hidden": self._take(self.hidden, rows), "past": None}
        if self.mask is not None:
            of_these["mask"] = self._take(self.mask, rows)
        if self.prefix is not None:
            of_these["prefix"] = self._take(self.prefix, rows)
        return replace(self, **of_these)

    def keep_past(self, past: Any) -> None:
        """Keep what the module handed back as its cache, if it can be reordered."""
        if self.use_cache and past is not None:
            if _reorders_itself(past) or self.reorder_cache is not None:
                self.past = past

    @staticmethod
    def _continued(prefix: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """The prefixes (R, K, t) that the beams continue, and their rows (R*K,) in the module's
        cache.
        """
        raise NotImplementedError

    @staticmethod
    def _take(x: Tensor, rows: Tensor) -> Tensor:
        """Rows of (R, ...)."""
        raise NotImplementedError


class ForeignGeneratorBase(ForeignModule):
    """Another library's sequence-to-sequence module behind the decoding contract.

    Attributes that are not found here are the module's.

    Args:
        module: see the protocol above.

    Attributes:
        without_attentions: when modules hand back no attentions, and what helps.
        state_class: the backend's `ForeignStateBase`.
    """

    __call__: Callable[..., Any]
    without_attentions: ClassVar[str]
    state_class: ClassVar[Any]

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module
        self.config = module_config(module)

    def __getattr__(self, name: str) -> Any:
        if name == "module":
            raise AttributeError(name)
        return getattr(self.module, name)

    def forward(self, **kwargs: Any) -> Seq2SeqLMOutput:
        """The module's outputs as our record."""
        if kwargs.get("encoder_outputs") is not None:
            encoded = as_encoder_output(kwargs["encoder_outputs"])
            kwargs["encoder_outputs"] = self._encoder_outputs(encoded)
        outputs = self.module(**accepted(self._function, kwargs))
        names = Seq2SeqLMOutput.__dataclass_fields__
        return Seq2SeqLMOutput(**{name: getattr(outputs, name, None) for name in names})

    def _encoder_outputs(self, outputs: EncoderOutput) -> Any:
        """What the module takes as `encoder_outputs`."""
        return (outputs.last_hidden_state, outputs.hidden_states, outputs.attentions)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Contexts (R, S) -> encoder states (R, S, d)."""
        kwargs = {"attention_mask": attention_mask, "return_dict": True}
        get_encoder = getattr(self.module, "get_encoder", None)
        if get_encoder is not None:
            encoder = get_encoder()
            outputs = encoder(input_ids, **accepted(self._function_of(encoder), kwargs))
            return as_encoder_output(outputs).last_hidden_state
        start = self._start_tokens(input_ids, self.config.decoder_start_token_id)
        outputs = self(input_ids=input_ids, decoder_input_ids=start, **kwargs)
        return outputs.encoder_last_hidden_state

    def start(
        self,
        encoder_hidden: Tensor,
        encoder_mask: Tensor | None,
        beams: int = 1,
        max_length: int | None = None,
    ) -> Any:
        """Prepare decoding: see `GeneratorBase.start`."""
        state = self.state_class(encoder_hidden, encoder_mask, beams)
        if max_length is None:
            return state
        state.prefix = self._no_tokens(encoder_hidden, beams)
        state.use_cache = {"past_key_values", "use_cache"} <= set(parameters_of(self._function))
        names = ("_reorder_cache", "reorder_cache")
        functions = [getattr(self.module, name, None) for name in names]
        state.reorder_cache = next(filter(callable, functions), None)
        return state

    def decode(self, tokens: Tensor, state: Any, trace: Any = None) -> Tensor:
        """Tokens (R, K, T) -> logits (R, K, T, V).

        With a cache they continue the state's prefixes.
        """
        tokens = self._as_ids(tokens)
        length = tokens.shape[2]
        prefixes = tokens
        if state.prefix is not None:
            prefixes = self._joined(state.prefix, tokens)
        # a cache holds what came before
        inputs = prefixes if state.past is None else tokens
        mask = state.mask
        if mask is not None:
            mask = self._as_ids(self._repeated(mask, tokens.shape[1]))
        outputs = self(
            attention_mask=mask,
            encoder_outputs=(self._repeated(state.hidden, tokens.shape[1]),),  # (R*K, S, d)
            decoder_input_ids=self._folded(inputs),
            past_key_values=state.past,
            use_cache=state.use_cache,
            output_attentions=trace is not None and trace.want_attentions,
            output_hidden_states=trace is not None and trace.want_hidden,
            return_dict=True,
        )
        if trace is not None:
            self._note(outputs, trace)
        if state.prefix is not None:
            state.prefix = prefixes
        state.keep_past(outputs.past_key_values)
        return self._unfolded(outputs.logits[:, -length:], tokens)

    def _note(self, outputs: Seq2SeqLMOutput, trace: Any) -> None:
        """Tell a trace of the decoder's hidden states and attentions."""
        attentions = outputs.decoder_attentions or ()
        cross_attentions = outputs.cross_attentions or ()
        if trace.want_attentions and not (attentions and cross_attentions):
            raise ValueError(
                f"output_attentions: {type(self.module).__name__} hands back no attentions"
                f"{self.without_attentions}"
            )
        for hidden in outputs.decoder_hidden_states or ():
            trace.hidden(hidden)
        for weights, cross_weights in zip(attentions, cross_attentions, strict=True):
            trace.attentions(weights, cross_weights)

    # what a backend writes

    @staticmethod
    def _start_tokens(input_ids: Tensor, token: int) -> Tensor:
        """One start token for each context, (R, 1)."""
        raise NotImplementedError

    @staticmethod
    def _no_tokens(hidden: Tensor, beams: int) -> Tensor:
        """(R, K, 0) ids where the states (R, S, d) are."""
        raise NotImplementedError

    @staticmethod
    def _as_ids(x: Tensor) -> Tensor:
        """The same numbers as int64."""
        raise NotImplementedError

    @staticmethod
    def _joined(prefix: Tensor, tokens: Tensor) -> Tensor:
        """Prefixes (R, K, t) and what follows them, (R, K, T) -> (R, K, t + T)."""
        raise NotImplementedError

    @staticmethod
    def _repeated(x: Tensor, beams: int) -> Tensor:
        """Each row once for each of its beams, (R, ...) -> (R*K, ...)."""
        raise NotImplementedError

    @staticmethod
    def _folded(tokens: Tensor) -> Tensor:
        """(R, K, T) -> (R*K, T)."""
        raise NotImplementedError

    @staticmethod
    def _unfolded(logits: Tensor, tokens: Tensor) -> Tensor:
        """(R*K, T, V) -> (R, K, T, V), for tokens (R, K, T)."""
        raise NotImplementedError


def _reorders_itself(past: Any) -> bool:
    return callable(getattr(past, "reorder_cache", None))
