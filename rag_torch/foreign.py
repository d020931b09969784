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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rag_core.config import PretrainedConfig
from rag_core.outputs import EncoderOutput, Seq2SeqLMOutput
from rag_torch.layers import Trace, as_encoder_output
from rag_torch.pretrained import PretrainedModel

_CONTRACT = ("encode", "start", "decode")


def accepted(function: Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments that `function` takes."""
    parameters = inspect.signature(function).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return kwargs
    return {name: value for name, value in kwargs.items() if name in parameters}


def encode_questions(
    module: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    output_attentions: bool = False,
    output_hidden_states: bool = False,
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
    }
    if not isinstance(module, PretrainedModel):
        kwargs = accepted(module.forward, kwargs)
    outputs = module(input_ids, **kwargs)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    shape = tuple(outputs[0].shape)
    if len(shape) != 2:
        raise ValueError(
            f"{type(module).__name__} must return one vector for each text, (B, D), as element 0, "
            f"got shape {shape}: wrap it in rag_torch.foreign.ForeignEncoder(module, "
            "pooling='mean') (or 'cls')"
        )
    return outputs


class ForeignEncoder(nn.Module):
    """Pools another module's token states into one vector a text.

    Args:
        module: returns (B, S, d) as element 0.
        pooling: "cls" for the first state, "mean" for the mean over real tokens.
    """

    def __init__(self, module: nn.Module, pooling: str = "mean") -> None:
        super().__init__()
        if pooling not in ("cls", "mean"):
            raise ValueError(f"pooling must be 'cls' or 'mean', got {pooling!r}")
        self.module = module
        self.pooling = pooling
        self.config = module_config(module)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> EncoderOutput:
        """(B, S) ids -> a record whose element 0 is (B, D)."""
        if attention_mask is None:
            pad = getattr(self.config, "pad_token_id", None)
            attention_mask = (
                torch.ones_like(input_ids) if pad is None else (input_ids != pad).long()
            )
        outputs = self.module(
            input_ids,
            **accepted(
                self.module.forward,
                {"attention_mask": attention_mask, "return_dict": True, **kwargs},
            ),
        )
        states = outputs if isinstance(outputs, Tensor) else outputs[0]
        if self.pooling == "cls":
            vectors = states[:, 0]
        else:
            real = attention_mask[:, :, None].to(states.dtype)  # (B, S, 1)
            vectors = (states * real).sum(1) / real.sum(1).clamp(min=1)
        return EncoderOutput(
            vectors, getattr(outputs, "hidden_states", None), getattr(outputs, "attentions", None)
        )


def module_config(module: nn.Module) -> Any:
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
        return 0 if self.prefix is None else self.prefix.shape[2]

    def reorder(self, source: Tensor) -> None:
        """Beam k of row r continues beam `source[r, k]` of the same row; (R, K) long, in place."""
        if self.prefix is None or not self.position:
            return
        source = source.to(self.prefix.device)
        self.prefix = self.prefix.gather(1, source[:, :, None].expand(-1, -1, self.position))
        if self.past is not None:
            # (R, 1)
            first = torch.arange(source.shape[0], device=source.device)[:, None] * self.beams
            rows = (first + source).flatten()
            if _reorders_itself(self.past):
                self.past.reorder_cache(rows)
            elif self.reorder_cache is not None:
                self.past = self.reorder_cache(self.past, rows)

    def select(self, rows: Tensor) -> ForeignState:
        """A state of these contexts only.

        The module's cache is dropped and made again from the prefixes.
        """
        mask = None if self.mask is None else self.mask[rows]
        prefix = None if self.prefix is None else self.prefix[rows]
        return ForeignState(
            self.hidden[rows], mask, self.beams, prefix, None, self.use_cache, self.reorder_cache
        )


class ForeignGenerator(nn.Module):
    """Another library's sequence-to-sequence module behind the decoding contract.

    Attributes that are not found here are the module's.

    Args:
        module: see the protocol above.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module
        self.config = module_config(module)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":
                raise
            return getattr(self.module, name)

    def forward(self, **kwargs: Any) -> Seq2SeqLMOutput:
        """The module's forward as our record."""
        if kwargs.get("encoder_outputs") is not None:
            kwargs["encoder_outputs"] = self._encoder_outputs(
                as_encoder_output(kwargs["encoder_outputs"])
            )
        outputs = self.module(**accepted(self.module.forward, kwargs))
        names = Seq2SeqLMOutput.__dataclass_fields__
        return Seq2SeqLMOutput(**{name: getattr(outputs, name, None) for name in names})

    def _encoder_outputs(self, outputs: EncoderOutput) -> Any:
        return (outputs.last_hidden_state, outputs.hidden_states, outputs.attentions)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Contexts (R, S) -> encoder states (R, S, d)."""
        encoder = getattr(self.module, "get_encoder", None)
        if encoder is not None:
            module = encoder()
            kwargs = accepted(
                module.forward, {"attention_mask": attention_mask, "return_dict": True}
            )
            return as_encoder_output(module(input_ids, **kwargs)).last_hidden_state
        start = input_ids.new_full((input_ids.shape[0], 1), self.config.decoder_start_token_id)
        outputs = self(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=start,
            return_dict=True,
        )
        return outputs.encoder_last_hidden_state

    def start(
        self,
        encoder_hidden: Tensor,
        encoder_mask: Tensor | None,
        beams: int = 1,
        max_length: int | None = None,
    ) -> ForeignState:
        """Prepare decoding: see `rag_torch.seq2seq.Generator.start`."""
        state = ForeignState(encoder_hidden, encoder_mask, beams)
        if max_length is not None:
            rows = encoder_hidden.shape[0]
            state.prefix = torch.zeros(
                rows, beams, 0, dtype=torch.long, device=encoder_hidden.device
            )
            state.use_cache = {"past_key_values", "use_cache"} <= set(
                inspect.signature(self.module.forward).parameters
            )
            functions = (
                getattr(self.module, name, None) for name in ("_reorder_cache", "reorder_cache")
            )
            state.reorder_cache = next((each for each in functions if callable(each)), None)
        return state

    def decode(self, tokens: Tensor, state: ForeignState, trace: Trace | None = None) -> Tensor:
        """Tokens (R, K, T) -> logits (R, K, T, V).

        With a cache they continue the state's prefixes.
        """
        rows, beams, length = tokens.shape
        whole = tokens if state.prefix is None else torch.cat([state.prefix, tokens], 2)
        fresh = state.past is None
        inputs = whole if fresh else tokens
        hidden = state.hidden.repeat_interleave(beams, 0)  # (R*K, S, d)
        mask = None if state.mask is None else state.mask.repeat_interleave(beams, 0).long()
        outputs = self(
            attention_mask=mask,
            encoder_outputs=(hidden,),
            decoder_input_ids=inputs.flatten(0, 1),
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
                    f"output_attentions: {type(self.module).__name__} hands back no attentions; "
                    "transformers' models do when loaded with attn_implementation='eager'"
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
        return outputs.logits[:, -length:].unflatten(0, (rows, beams))


def _reorders_itself(past: Any) -> bool:
    return callable(getattr(past, "reorder_cache", None))
