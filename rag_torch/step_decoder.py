"""Scores of the next token, with what the networks saw on the way: contexts encoded once, beams
riding on them.

Letters: N documents of a search, Q searches, K beams, R contexts, S context length, t tokens so
far, d width, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rag_core.generation import GenerationConfig
from rag_torch.contexts import checked_ids, checked_mask, table_size, used_length
from rag_torch.layers import Trace, as_encoder_output
from rag_torch.marginalize import widen
from rag_torch.seq2seq import Generator
from rag_torch.step_scores import marginal_scores


def is_traced(options: GenerationConfig) -> bool:
    """Whether a call hands back attentions or hidden states."""
    return bool(
        options.return_dict_in_generate
        and (options.output_attentions or options.output_hidden_states)
    )


class Decoder:
    """Scores of the next token for Q searches of K beams.

    Args:
        generator: offers `start` and `decode` (see rag_torch.seq2seq).
        encoder_hidden: (Q*N, S, d); N is 1 where there is no prior.
        encoder_mask: (Q*N, S) bool.
        beams: K.
        options: `max_length`, `use_cache`, `guidance_scale` and what to trace are read.
        log_priors: (Q, N) log p(z|x), over which the scores are marginalised; None for a plain
            generator.
        without: scores the same searches without their documents; what these add is then weighed by
            `guidance_scale`.
        traced: whether to note attentions and hidden states.
    """

    def __init__(
        self,
        generator: Any,
        encoder_hidden: Tensor,
        encoder_mask: Tensor,
        *,
        beams: int,
        options: GenerationConfig,
        log_priors: Tensor | None = None,
        without: Decoder | None = None,
        traced: bool = False,
    ) -> None:
        self.generator, self.log_priors, self.options = generator, log_priors, options
        self.without, self.traced = without, traced
        self.docs = 1 if log_priors is None else log_priors.shape[1]
        self.searches, self.beams = encoder_hidden.shape[0] // self.docs, beams
        self.device = encoder_hidden.device
        self._keep(np.arange(self.searches))
        # whether a step's scores are new memory; a module of one's own may hand out something that
        # it keeps
        self.owned = (
            log_priors is not None or without is not None or isinstance(generator, Generator)
        )
        self.fed = 0  # positions that the cache holds
        self.traces: list[list[Any]] = []
        length = options.max_length if options.use_cache else None
        self.state = generator.start(encoder_hidden, encoder_mask, beams=beams, max_length=length)

    def scores(self, tokens: Tensor) -> Tensor:
        """Tokens so far (Q, K, t) -> logits or marginal log-probabilities (Q, K, V), zeros for
        searches let go of.
        """
        some = len(self.running) < self.searches
        # the beams of a search begin alike: one is decoded for all
        alike = (
            self.options.use_cache
            and not self.fed
            and not self.traced
            and isinstance(self.generator, Generator)
        )
        # (Q, K, t or new ones)
        fed = (tokens[self.at] if some else tokens)[:, : 1 if alike else None, self.fed :]
        fed = fed.repeat_interleave(self.docs, dim=0)  # (Q*N, K, t or new ones)
        if self.options.use_cache:
            self.fed = tokens.shape[2]
        logits = widen(self._decode(fed)[:, :, -1])  # (Q*N, K, V)
        if self.log_priors is not None:
            log_priors = self.log_priors[self.at] if some else self.log_priors
            logits = marginal_scores(logits.unflatten(0, (-1, self.docs)), log_priors)  # (Q, K, V)
        if alike and self.beams > 1:
            logits = logits.repeat(1, self.beams, 1)
        if some:
            logits = logits.new_zeros(self.searches, *logits.shape[1:]).index_copy(
                0, self.at, logits
            )
        return logits if self.without is None else self._guided(logits, self.without.scores(tokens))

    def _decode(self, fed: Tensor) -> Tensor:
        if not self.traced:
            return self.generator.decode(fed, self.state)
        trace = Trace(self.options.output_hidden_states, self.options.output_attentions)
        logits = self.generator.decode(fed, self.state, trace=trace)
        self.traces.append(trace.result())
        return logits

    def _guided(self, scores: Tensor, without: Tensor) -> Tensor:
        scores, without = scores.log_softmax(dim=-1), without.log_softmax(dim=-1)
        guided = without + (self.options.guidance_scale or 1.0) * (scores - without)
        return torch.where(scores.isneginf(), scores, guided)

    def reorder(self, sources: Tensor) -> None:
        """Beam k of search q continues beam `sources[q, k]` (Q, K)."""
        self.state.reorder(sources[self.at].repeat_interleave(self.docs, dim=0))
        if self.without is not None:
            self.without.reorder(sources)

    def drop(self, finished: np.ndarray) -> None:
        """Lets go of finished searches (Q,) once they are half of what is computed.

        A trace keeps all its rows.
        """
        if self.without is not None:
            self.without.drop(finished)
        alive = ~finished[self.running]
        few = 2 * alive.sum() <= len(alive)
        if self.traced or not few or not alive.any() or not hasattr(self.state, "select"):
            return
        rows = np.flatnonzero(alive.repeat(self.docs))
        self.state = self.state.select(torch.as_tensor(rows, device=self.device))
        self._keep(self.running[alive])

    def _keep(self, running: np.ndarray) -> None:
        # known on both sides, so that no step waits for the device to count them
        self.running, self.at = running, torch.as_tensor(running, device=self.device)

    def seen(self) -> dict[str, Any]:
        """The decoder's fields of `GenerateOutput`: for each step a tuple, one a layer."""
        names = ("decoder_hidden_states", "decoder_attentions", "cross_attentions")
        parts = zip(*self.traces, strict=True) if self.traces else ()
        return {
            name: steps for name, steps in zip(names, parts, strict=False) if steps[0] is not None
        }


def trim(input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Contexts (R, S) and their bool mask, without the columns at the end that are padding in
    every row.
    """
    width = used_length(mask)
    return input_ids[:, :width], mask[:, :width]


def encode_distinct(generator: Any, input_ids: Tensor, mask: Tensor) -> Tensor:
    """Encoder states (R, S, d) of contexts (R, S); a context that occurs twice is encoded once."""
    both = torch.cat([input_ids, mask.to(input_ids.dtype)], dim=1)
    distinct, place = both.unique(dim=0, return_inverse=True)
    if len(distinct) == len(both):
        return generator.encode(input_ids, mask)
    width = input_ids.shape[1]
    return generator.encode(distinct[:, :width], distinct[:, width:].bool())[place]


def encode_seen(
    generator: Any, input_ids: Tensor, mask: Tensor, options: GenerationConfig
) -> tuple[Tensor, dict[str, Any]]:
    """Encoder states (R, S, d) and, where the options ask, the encoder's fields of
    `GenerateOutput`.

    Raises:
        ValueError: a generator of one's own that cannot be traced.
    """
    if not is_traced(options):
        return encode_distinct(generator, input_ids, mask), {}
    if (
        not hasattr(generator, "get_encoder")
        or "trace" not in inspect.signature(generator.decode).parameters
    ):
        raise ValueError(
            "output_attentions and output_hidden_states need a generator that has get_encoder() "
            f"and whose decode(tokens, state, trace) notes them; {type(generator).__name__} lacks "
            "one of the two"
        )
    wanted = {
        "output_attentions": options.output_attentions,
        "output_hidden_states": options.output_hidden_states,
    }
    outputs = as_encoder_output(
        generator.get_encoder()(input_ids=input_ids, attention_mask=mask, **wanted)
    )
    seen = {
        "encoder_attentions": outputs.attentions,
        "encoder_hidden_states": outputs.hidden_states,
    }
    return outputs.last_hidden_state, seen


def without_documents(
    generator: Any,
    options: GenerationConfig,
    negative_prompt: tuple[Tensor | None, Tensor | None],
    questions: int,
) -> tuple[Tensor, Tensor] | None:
    """Encoder states (B, S', d) and mask of the contexts that guidance contrasts the documents
    with.

    Args:
        generator: the generator.
        options: `guidance_scale` is read; None and 1 ask for nothing.
        negative_prompt: ids (B, S') and their mask; without ids the generator's empty text.
        questions: B.
    """
    if options.guidance_scale in (None, 1):
        return None
    ids, mask = negative_prompt
    device = next(generator.parameters()).device
    if ids is None:
        config = generator.config
        empty = [i for i in (config.bos_token_id, config.eos_token_id) if isinstance(i, int)]
        ids, mask = torch.tensor([empty], device=device).expand(questions, -1), None
    checked_ids("negative_prompt_ids", ids, table_size(generator))
    if (
        ids.dim() != 2
        or len(ids) != questions
        or not ids.shape[1]
        or (mask is not None and mask.shape != ids.shape)
    ):
        raise ValueError(
            f"negative_prompt_ids and negative_prompt_attention_mask must be ({questions}, S), a "
            f"row for each question; got {tuple(ids.shape)} and "
            f"{None if mask is None else tuple(mask.shape)}"
        )
    checked_mask("negative_prompt_attention_mask", mask, tuple(ids.shape), "negative_prompt_ids")
    mask = torch.ones_like(ids) if mask is None else mask
    return encode_distinct(generator, ids.to(device), mask.to(device).bool()), mask.to(
        device
    ).bool()
