"""The step loop: feeds rag_core.beam, which decides, with scores that a generator computes on the device.

Letters: N documents of a search, Q searches, K beams, R = Q * K rows, S context length, t tokens so far,
d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rag_core.beam import BeamSearch, Finished, RowSearch, order_candidates
from rag_core.generation import GenerationConfig
from rag_core.noise import gumbel_noise
from rag_core.step_rules import StepRules, least_kept, sampling_warps
from rag_torch.marginalize import token_log_probs, widen
from rag_torch.step_scores import apply_edits, apply_warps, best_candidates

ScoreFunction = Callable[[Tensor, Any], Any]
_MakeRules = Callable[[int], StepRules]


@dataclass(frozen=True)
class Hooks:
    """What the caller plugs into the loop.

    Attributes:
        logits_processor: callables (input_ids (R, t), scores (R, V)) -> scores (R, V), after the built-in rules.
        stopping_criteria: callables (input_ids (R, t), scores so far) -> True to stop, or (R,) bools to end rows.
        prefix_allowed_tokens_fn: (question number, (t,) ids) -> ids allowed next.
        seed: of the sampling noise; drawn from torch's global generator where None.
    """

    logits_processor: tuple[ScoreFunction, ...] = ()
    stopping_criteria: tuple[ScoreFunction, ...] = ()
    prefix_allowed_tokens_fn: Callable[[int, Tensor], Iterable[int]] | None = None
    seed: int | None = None

    @classmethod
    def of(cls, logits_processor: Any, stopping_criteria: Any, prefix_allowed_tokens_fn: Any, seed: Any) -> Hooks:
        """Checks what a `generate` call passed; one callable may stand for a list of one."""
        lists = []
        given = {"logits_processor": logits_processor, "stopping_criteria": stopping_criteria}
        for name, value in given.items():
            items = [] if value is None else list(value) if isinstance(value, Sequence) else [value]
            if not all(callable(item) for item in items):
                raise TypeError(f"{name} must be callables (input_ids, scores); got {value!r}")
            lists.append(tuple(items))
        if prefix_allowed_tokens_fn is not None and not callable(prefix_allowed_tokens_fn):
            raise TypeError("prefix_allowed_tokens_fn must be a function (batch_id, input_ids) -> list of token ids")
        if seed is not None and not isinstance(seed, int):
            raise TypeError(f"seed must be a whole number; got {seed!r}")
        return cls(lists[0], lists[1], prefix_allowed_tokens_fn, seed)


class Decoder:
    """Scores of the next token for Q searches of K beams.

    Args:
        generator: offers `start` and `decode` (see rag_torch.bart).
        encoder_hidden: (Q*N, S, d); N is 1 where there is no prior.
        encoder_mask: (Q*N, S) bool.
        beams: K.
        options: `max_length` and `use_cache` are read.
        log_priors: (Q, N) log p(z|x), over which the scores are marginalised; None for a plain generator.
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
    ) -> None:
        self.generator, self.log_priors, self.cached = generator, log_priors, bool(options.use_cache)
        self.docs = 1 if log_priors is None else log_priors.shape[1]
        self.searches, self.beams = encoder_hidden.shape[0] // self.docs, beams
        self.running = torch.arange(self.searches, device=encoder_hidden.device)
        length = options.max_length if self.cached else None
        self.state = generator.start(encoder_hidden, encoder_mask, beams=beams, max_length=length)

    def scores(self, tokens: Tensor) -> Tensor:
        """Tokens so far (Q, K, t) -> logits or marginal log-probabilities (Q, K, V), zeros for searches let go of."""
        fed = tokens[self.running][..., -1:] if self.cached else tokens[self.running]
        fed = fed.repeat_interleave(self.docs, dim=0)  # (Q*N, K, 1 or t)
        logits = widen(self.generator.decode(fed, self.state)[:, :, -1])  # (Q*N, K, V)
        if self.log_priors is not None:
            logits = token_log_probs(logits.unflatten(0, (-1, self.docs)), self.log_priors[self.running])  # (Q, K, V)
        if len(self.running) == self.searches:
            return logits
        return logits.new_zeros(self.searches, *logits.shape[1:]).index_copy(0, self.running, logits)

    def reorder(self, sources: Tensor) -> None:
        """Beam k of search q continues beam `sources[q, k]` (Q, K)."""
        self.state.reorder(sources[self.running].repeat_interleave(self.docs, dim=0))

    def drop(self, finished: np.ndarray) -> None:
        """Lets go of finished searches (Q,) once they are half of what is computed."""
        alive = torch.as_tensor(~finished, device=self.running.device)[self.running]
        if not hasattr(self.state, "select") or 2 * int(alive.sum()) > len(self.running) or not alive.any():
            return
        rows = alive.repeat_interleave(self.docs).nonzero().squeeze(1)
        self.state, self.running = self.state.select(rows), self.running[alive]


def run_search(
    decoder: Decoder, options: GenerationConfig, hooks: Hooks, context_ids: Tensor, group: int
) -> tuple[Finished, tuple[Tensor, ...] | None]:
    """Runs all searches to their end.

    Args:
        decoder: scores the next token.
        options: as `resolve_options` returns them.
        hooks: the caller's functions.
        context_ids: (Q*N, S) what the searches read, for the `encoder_*` options.
        group: how many searches serve one question.

    Returns:
        What rag_core.beam hands back, and with `output_scores` the (R, V) scores of each step.
    """
    loop = _BeamLoop if options.num_beams > 1 else _RowLoop
    return loop(decoder, options, hooks, lambda size: _rules(decoder, options, hooks, context_ids, group, size)).run()


class _Loop:
    search: BeamSearch | RowSearch

    def __init__(self, decoder: Decoder, options: GenerationConfig, hooks: Hooks, make: _MakeRules) -> None:
        self.decoder, self.options, self.hooks, self.make = decoder, options, hooks, make
        self.rules: StepRules | None = None
        self.device = decoder.running.device
        self.warps, self.least = sampling_warps(options), least_kept(options)
        self.seed = hooks.seed
        if self.seed is None and options.do_sample:
            self.seed = int(torch.randint(2**62, ()))
        self.kept: list[Tensor] = []

    def run(self) -> tuple[Finished, tuple[Tensor, ...] | None]:
        while not self.search.done:
            rows = self.search.tokens.reshape(-1, self.search.length)
            input_ids = torch.as_tensor(rows, device=self.device)
            scores = self.decoder.scores(input_ids.unflatten(0, (self.decoder.searches, -1)))
            self.advance(rows, input_ids, scores.flatten(0, 1))
            if self.stopped():
                break
        scores_kept = tuple(self.kept) if self.options.output_scores else None
        return self.search.finish(), scores_kept

    def advance(self, rows: np.ndarray, input_ids: Tensor, scores: Tensor) -> None:
        raise NotImplementedError

    def processed(self, rows: np.ndarray, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.rules is None:
            self.rules = self.make(scores.shape[1])
        scores = apply_edits(scores, self.rules.edits(rows))
        for processor in self.hooks.logits_processor:
            changed = processor(input_ids, scores)
            if not isinstance(changed, Tensor) or changed.shape != scores.shape:
                got = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
                raise ValueError(f"a logits_processor must return scores of shape {tuple(scores.shape)}; got {got}")
            scores = changed
        return scores.log_softmax(dim=-1) if self.options.renormalize_logits else scores

    def noisy(self, scores: Tensor, step: int) -> Tensor:
        noise = gumbel_noise(self.seed or 0, scores.shape[0], step, scores.shape[1])
        return scores + torch.as_tensor(noise, device=self.device)

    def keep(self, scores: Tensor) -> None:
        if self.options.output_scores:
            self.kept.append(scores)

    def stopped(self) -> bool:
        if not self.hooks.stopping_criteria:
            return False
        rows = self.search.tokens.reshape(-1, self.search.length)
        input_ids = torch.as_tensor(rows, device=self.device)
        said = np.zeros(len(rows), dtype=bool)
        for criterion in self.hooks.stopping_criteria:
            answer = criterion(input_ids, tuple(self.kept))
            answer = answer.cpu().numpy() if isinstance(answer, Tensor) else np.asarray(answer)
            said |= answer.astype(bool)
        if isinstance(self.search, RowSearch):
            self.search.stop(said)
        return bool(said.all())


class _RowLoop(_Loop):
    """Greedy search and sampling."""

    def __init__(self, decoder: Decoder, options: GenerationConfig, hooks: Hooks, make: _MakeRules) -> None:
        super().__init__(decoder, options, hooks, make)
        self.search: RowSearch = RowSearch(rows=decoder.searches * decoder.beams, **_limits(options))

    def advance(self, rows: np.ndarray, input_ids: Tensor, scores: Tensor) -> None:
        scores = apply_warps(self.processed(rows, input_ids, scores), self.warps, self.least)
        self.keep(scores)
        drawn = self.noisy(scores, self.search.length - 1) if self.options.do_sample else scores
        tokens = drawn.argmax(dim=-1)  # (R,); the lowest index of equals
        log_probs = scores.gather(1, tokens[:, None]).squeeze(1) - scores.logsumexp(dim=-1)
        self.search.step(tokens.cpu().numpy(), log_probs.cpu().numpy())
        if not self.search.done:
            self.decoder.drop(self.search.finished.reshape(self.decoder.searches, -1).min(axis=1))


class _BeamLoop(_Loop):
    """Beam search and beam sampling."""

    def __init__(self, decoder: Decoder, options: GenerationConfig, hooks: Hooks, make: _MakeRules) -> None:
        super().__init__(decoder, options, hooks, make)
        self.search: BeamSearch = BeamSearch(
            searches=decoder.searches,
            beams=decoder.beams,
            length_penalty=options.length_penalty,
            early_stopping=options.early_stopping,
            num_return_sequences=options.num_return_sequences,
            sampled=options.do_sample,
            **_limits(options),
        )

    def advance(self, rows: np.ndarray, input_ids: Tensor, scores: Tensor) -> None:
        search, vocab_size = self.search, scores.shape[-1]
        if self.decoder.log_priors is None:
            scores = scores.log_softmax(dim=-1)
        scores = self.processed(rows, input_ids, scores)
        scores = apply_warps(scores, self.warps, self.least)
        self.keep(scores)
        total = scores + torch.as_tensor(search.scores, device=self.device, dtype=scores.dtype).reshape(-1, 1)
        drawn = self.noisy(total, search.length - 1) if self.options.do_sample else total
        alive = np.flatnonzero(~search.finished)
        at = torch.as_tensor(alive, device=self.device)
        total, drawn = (x.unflatten(0, (search.searches, -1)).flatten(1)[at] for x in (total, drawn))  # (Q, K*V)
        values, flat = best_candidates(drawn, search.candidates)
        if self.options.do_sample:
            values = total.gather(1, flat)
        best, where = order_candidates(values.cpu().numpy(), flat.cpu().numpy(), search.candidates)
        candidates = np.zeros((search.searches, best.shape[1]), dtype=best.dtype)
        places = np.zeros((search.searches, best.shape[1]), dtype=np.int64)
        candidates[alive], places[alive] = best, where
        _, sources = search.step(candidates, places % vocab_size, places // vocab_size)
        if not search.done:
            self.decoder.reorder(torch.as_tensor(sources, device=self.device))
            self.decoder.drop(search.finished)


def _limits(options: GenerationConfig) -> dict[str, Any]:
    return {
        "start_token_id": options.decoder_start_token_id,
        "max_length": options.max_length,
        "eos_token_ids": options.eos_token_ids,
        "pad_token_id": options.pad_token_id,
    }


def trim(input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Contexts (R, S) and their bool mask, without the columns at the end that are padding in every row."""
    used = mask.any(dim=0).nonzero()
    width = int(used[-1]) + 1 if len(used) else 1
    return input_ids[:, :width], mask[:, :width]


def encode_distinct(generator: Any, input_ids: Tensor, mask: Tensor) -> Tensor:
    """Encoder states (R, S, d) of contexts (R, S); a context that occurs twice is encoded once."""
    both = torch.cat([input_ids, mask.to(input_ids.dtype)], dim=1)
    distinct, place = both.unique(dim=0, return_inverse=True)
    if len(distinct) == len(both):
        return generator.encode(input_ids, mask)
    width = input_ids.shape[1]
    return generator.encode(distinct[:, :width], distinct[:, width:].bool())[place]


def _rules(
    decoder: Decoder, options: GenerationConfig, hooks: Hooks, context_ids: Tensor, group: int, vocab_size: int
) -> StepRules:
    encoder_ids = None
    if options.encoder_repetition_penalty not in (None, 1.0) or options.encoder_no_repeat_ngram_size:
        ids, docs = context_ids.cpu().numpy(), decoder.docs
        encoder_ids = [list(ids[i : i + docs]) for i in range(0, len(ids), docs)]
    given, device = hooks.prefix_allowed_tokens_fn, context_ids.device

    def allowed(batch_id: int, ids: np.ndarray) -> Iterable[int]:
        return given(batch_id, torch.as_tensor(ids, device=device))  # type: ignore[misc]

    return StepRules(
        options,
        beams=decoder.beams,
        vocab_size=vocab_size,
        encoder_ids=encoder_ids,
        prefix_allowed_tokens_fn=None if given is None else allowed,
        batch_ids=[q // group for q in range(decoder.searches)],
    )


def beams_of(options: GenerationConfig) -> int:
    """K: beams of a search, or the samples drawn side by side."""
    return options.num_beams if options.num_beams > 1 else options.num_return_sequences
