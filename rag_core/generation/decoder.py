"""Scores of the next token, with what the networks saw on the way: contexts encoded once, beams
folded into their rows.

Letters: B questions, N documents of a search, Q searches, q of them still active, K beams, R = Q * K
rows, S context length, t tokens so far, T new ones, d width, V vocabulary.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rag_core.generation.config import GenerationConfig
from rag_core.generation.engine import Engine, Tensor, is_native
from rag_core.outputs import as_encoder_output


def traced_parts(options: GenerationConfig) -> tuple[bool, bool] | None:
    """Whether a call hands back hidden states, and whether attentions; None where neither."""
    parts = bool(options.output_hidden_states), bool(options.output_attentions)
    if not options.return_dict_in_generate or not any(parts):
        return None
    return parts


def beams_of(options: GenerationConfig) -> int:
    """K: beams of a search, or the samples drawn side by side."""
    if options.num_beams > 1:
        return options.num_beams
    return options.num_return_sequences


class Decoder:
    """Scores of the next token for Q searches of K beams.

    Args:
        engine: the generator's framework.
        generator: offers `start` and `decode` (docs/design.md, "The Engine protocol").
        hidden: encoder states (Q*N, S, d); N is 1 where there is no prior.
        mask: (Q*N, S) bool.
        beams: K.
        options: `max_length`, `use_cache` and what to trace are read.
        log_priors: (Q, N) log p(z|x), over which the scores are marginalised; None for a plain
            generator.
        traced: what to note, as `traced_parts` says it.

    Attributes:
        searches: Q.
        docs: N.
        state: the generator's, of the active searches.
        active: numbers of the searches that are still computed.
        active_log_priors: their `log_priors`, or None.
        is_new: whether a step's scores are new memory; a generator of one's own may hand out
            something that it keeps.
        are_log_probs: whether scores are log-probabilities, and not logits.
    """

    def __init__(
        self,
        engine: Engine,
        generator: Any,
        hidden: Tensor,
        mask: Tensor,
        *,
        beams: int,
        options: GenerationConfig,
        log_priors: Tensor | None = None,
        traced: tuple[bool, bool] | None = None,
    ) -> None:
        self.engine, self.generator, self.options = engine, generator, options
        self.log_priors, self.traced, self.beams = log_priors, traced, beams
        self.docs = 1
        if log_priors is not None:
            self.docs = int(log_priors.shape[1])
        self.searches = int(hidden.shape[0]) // self.docs
        self.is_new = log_priors is not None or is_native(generator)
        self.are_log_probs = log_priors is not None
        self.like = mask  # new tensors lie where it lies
        self.active = np.arange(self.searches)
        self.active_log_priors = log_priors
        self._active_rows: Tensor = None
        self._fed = 0  # positions that the cache holds
        self._traces: list[list[Any]] = []
        # Without a length there is no cache, and every step reads all tokens again.
        length = options.max_length if options.use_cache else None
        self.state = generator.start(hidden, mask, beams=beams, max_length=length)

    def scores(self, tokens: np.ndarray) -> Tensor:
        """Tokens so far (Q, K, t) -> scores (R, V), zeros for searches let go of."""
        return self.scores_after(self.feed(tokens))

    def feed(self, tokens: np.ndarray) -> Tensor:
        """Tokens so far (Q, K, t) -> those that the generator has not read, (q*N, K, T)."""
        # The beams of a search begin alike: one is decoded for all.
        are_equal = (
            self.engine.shares_first_step
            and self.options.use_cache
            and not self._fed
            and self.traced is None
            and is_native(self.generator)
        )
        new = tokens[self.active, :, self._fed :].repeat(self.docs, axis=0)  # (q*N, K, T)
        if are_equal:
            new = new[:, :1]
        if self.options.use_cache:
            self._fed = tokens.shape[2]
        return self.engine.tensor(new, like=self.like)

    def scores_after(self, new: Tensor) -> Tensor:
        """What `feed` returned -> scores (R, V), zeros for searches let go of."""
        engine = self.engine
        scores, noted = engine.decode_step(
            self.generator, self.state, new, self.active_log_priors, self.traced
        )
        if noted is not None:
            self._traces.append(noted)
        if new.shape[1] < self.beams:
            scores = engine.repeat_rows(scores, self.beams)
        if self._active_rows is not None:
            scores = engine.scatter_rows(scores, self._active_rows, self.searches * self.beams)
        return scores

    def reorder(self, sources: np.ndarray) -> None:
        """Beam k of search q continues beam `sources[q, k]` (Q, K)."""
        of_contexts = sources[self.active].repeat(self.docs, axis=0)  # (q*N, K)
        self.state.reorder(self.engine.tensor(of_contexts, like=self.like))

    def drop(self, finished: np.ndarray) -> None:
        """Let go of finished searches (Q,) once they are half of what is computed.

        A trace keeps all its rows.
        """
        go_on = ~finished[self.active]
        few = 2 * go_on.sum() <= len(go_on)
        if self.traced or not few or not go_on.any() or not hasattr(self.state, "select"):
            return
        engine = self.engine
        contexts = np.flatnonzero(go_on.repeat(self.docs))
        self.state = self.state.select(engine.tensor(contexts, like=self.like))
        self.active = self.active[go_on]
        # Known on both sides, so that no step waits for the device to count them.
        rows = (self.active[:, None] * self.beams + np.arange(self.beams)).reshape(-1)
        self._active_rows = engine.tensor(rows, like=self.like)
        if self.log_priors is not None:
            active = engine.tensor(self.active, like=self.like)
            self.active_log_priors = engine.take_rows(self.log_priors, active)

    def seen(self) -> dict[str, Any]:
        """The decoder's fields of `GenerateOutput`: for each step a tuple, one a layer."""
        if not self._traces:
            return {}
        names = ("decoder_hidden_states", "decoder_attentions", "cross_attentions")
        fields = zip(names, zip(*self._traces, strict=True), strict=True)
        return {name: steps for name, steps in fields if steps[0] is not None}


class GuidedDecoder:
    """Two decoders of the same searches, with documents and without: what the documents add is
    weighed.

    Args:
        decoder: with documents.
        unconditional: without.
        scale: the weight of what the documents add; 1 leaves them as they are.

    Attributes as of `Decoder`.
    """

    is_new = True
    are_log_probs = True

    def __init__(self, decoder: Decoder, unconditional: Decoder, scale: float) -> None:
        self.decoder, self.unconditional, self.scale = decoder, unconditional, scale
        self.engine, self.generator, self.like = decoder.engine, decoder.generator, decoder.like
        self.searches, self.beams, self.docs = decoder.searches, decoder.beams, decoder.docs

    @property
    def state(self) -> Any:
        """See `Decoder`."""
        return self.decoder.state

    def scores(self, tokens: np.ndarray) -> Tensor:
        """See `Decoder.scores`."""
        # Both cross to the device before either computes, or the second would wait for the first.
        new = self.decoder.feed(tokens), self.unconditional.feed(tokens)
        return self.engine.guided_scores(
            self.decoder.scores_after(new[0]), self.unconditional.scores_after(new[1]), self.scale
        )

    def reorder(self, sources: np.ndarray) -> None:
        """See `Decoder.reorder`."""
        self.decoder.reorder(sources)
        self.unconditional.reorder(sources)

    def drop(self, finished: np.ndarray) -> None:
        """See `Decoder.drop`."""
        self.decoder.drop(finished)
        self.unconditional.drop(finished)

    def seen(self) -> dict[str, Any]:
        """What the networks saw with documents; see `Decoder.seen`."""
        return self.decoder.seen()


@dataclass(frozen=True)
class Encoded:
    """Contexts as the encoder hands them on.

    Attributes:
        hidden: (R, S, d).
        mask: (R, S) bool.
        seen: the encoder's fields of `GenerateOutput`, where the options ask.
    """

    hidden: Tensor
    mask: Tensor
    seen: dict[str, Any] = field(default_factory=dict)


def trim(engine: Engine, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Contexts (R, S) and their bool mask, without the columns at the end that are padding in
    every row.
    """
    width = engine.used_width(mask)
    return input_ids[:, :width], mask[:, :width]


def encode(
    engine: Engine, generator: Any, input_ids: Tensor, mask: Tensor, options: GenerationConfig
) -> Encoded:
    """Encode contexts (R, S) under their bool mask.

    Raises:
        ValueError: a generator of one's own that cannot be traced, and the options ask for it.
    """
    if traced_parts(options) is None:
        return Encoded(engine.encode_distinct(generator, input_ids, mask), mask)
    if (
        not hasattr(generator, "get_encoder")
        or "trace" not in inspect.signature(generator.decode).parameters
    ):
        raise ValueError(
            "output_attentions and output_hidden_states need a generator that has get_encoder() "
            f"and whose decode(tokens, state, trace) notes them; {type(generator).__name__} lacks "
            "one of the two"
        )
    outputs = generator.get_encoder()(
        input_ids=input_ids,
        attention_mask=mask,
        output_attentions=options.output_attentions,
        output_hidden_states=options.output_hidden_states,
    )
    return as_encoded(as_encoder_output(outputs), mask, options)


def as_encoded(outputs: Any, mask: Tensor, options: GenerationConfig) -> Encoded:
    """An `EncoderOutput` and its mask (R, S), with what the options ask of it."""
    if traced_parts(options) is None:
        return Encoded(outputs.last_hidden_state, mask)
    seen = {
        "encoder_attentions": outputs.attentions,
        "encoder_hidden_states": outputs.hidden_states,
    }
    return Encoded(outputs.last_hidden_state, mask, seen)


def encode_without_documents(
    engine: Engine,
    generator: Any,
    options: GenerationConfig,
    negative_prompt: tuple[Any, Any],
    questions: int,
) -> Encoded | None:
    """Encode the contexts (B, S) that guidance contrasts the documents with.

    Args:
        engine: the generator's framework.
        generator: encodes.
        options: `guidance_scale` is read; None and 1 ask for nothing, and nothing comes back.
        negative_prompt: ids (B, S) and their mask; without ids the generator's empty text.
        questions: B.

    Raises:
        TypeError, ValueError: a prompt that does not fit.
    """
    if options.guidance_scale in (None, 1):
        return None
    ids, mask = negative_prompt
    if ids is None:
        config = generator.config
        empty = [i for i in (config.bos_token_id, config.eos_token_id) if isinstance(i, int)]
        rows = np.tile(np.array([empty], dtype=np.int64), (questions, 1))  # (B, 2)
        ids = engine.tensor(rows)
        mask = None
    ids = engine.checked_ids("negative_prompt_ids", ids, engine.table_size(generator))
    shape = tuple(ids.shape)
    # What has no shape is refused below, as no tensor.
    mask_shape = tuple(mask.shape) if hasattr(mask, "shape") else None
    fits = len(shape) == 2 and shape[0] == questions and shape[1] > 0
    if not fits or mask_shape not in (None, shape):
        raise ValueError(
            f"negative_prompt_ids and negative_prompt_attention_mask must be ({questions}, S), a "
            f"row for each question; got {shape} and {mask_shape}"
        )
    mask = engine.checked_mask("negative_prompt_attention_mask", mask, shape, "negative_prompt_ids")
    ids = engine.tensor(ids, like=generator)
    if mask is not None:
        mask = engine.tensor(mask, like=generator)
    mask = engine.bool_mask(mask, ids)
    return Encoded(engine.encode_distinct(generator, ids, mask), mask)
