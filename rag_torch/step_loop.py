"""The step loop: feeds rag_core.generation.beam, which decides, with scores that a generator
computes on the device.

Letters: N documents of a search, Q searches, K beams, R = Q * K rows, S context length, t tokens so
far,
d width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rag_core.arguments import check_processed, refuse_nan
from rag_core.generation import (
    BeamSearch,
    GenerationConfig,
    Hooks,
    RowSearch,
    SearchResult,
    StepRules,
    gumbel_noise,
    least_kept,
    order_candidates,
    sampling_warps,
)
from rag_torch.contexts import checked_ids, facts, table_size
from rag_torch.step_decoder import Decoder
from rag_torch.step_scores import apply_edits, apply_warps, best_candidates, log_softmax, normalised

_MakeRules = Callable[[int], StepRules]


def run_search(
    decoder: Decoder,
    options: GenerationConfig,
    hooks: Hooks,
    context_ids: Tensor | None,
    starts: np.ndarray,
) -> tuple[SearchResult, tuple[Tensor, ...] | None]:
    """Runs all searches to their end.

    Args:
        decoder: scores the next token.
        options: as `resolve_options` returns them.
        hooks: the caller's functions.
        context_ids: (Q*N, S) what the searches read, for the `encoder_*` options; None = not known.
        starts: (B, P) the tokens that all searches of a question start from, as `Hooks.begin`
            returns them.

    Returns:
        What rag_core.generation.beam hands back, and with `output_scores` the (R, V) scores of each
        step.
    """
    checked_ids(
        "decoder_start_token_id, or decoder_input_ids,",
        torch.as_tensor(starts),
        table_size(decoder.generator),
    )
    group = decoder.searches // len(starts)
    starts = starts.repeat(group, axis=0)  # (Q, P)
    rules = partial(_rules, decoder, options, hooks, context_ids, group, starts.shape[1])
    loop = _BeamLoop if options.num_beams > 1 else _RowLoop
    return loop(decoder, options, hooks, rules, starts).run()


class _Loop(ABC):
    search: BeamSearch | RowSearch

    def __init__(
        self, decoder: Decoder, options: GenerationConfig, hooks: Hooks, make: _MakeRules
    ) -> None:
        self.decoder, self.options, self.hooks, self.make = decoder, options, hooks, make
        self.rules: StepRules | None = None
        self.device = decoder.device
        self.warps, self.least = sampling_warps(options), least_kept(options)
        self.seed = hooks.seed
        if self.seed is None and options.do_sample:
            self.seed = int(torch.randint(2**62, ()))
        self.kept: list[Tensor] = []

    def run(self) -> tuple[SearchResult, tuple[Tensor, ...] | None]:
        while not self.search.done:
            rows = self.search.tokens.reshape(-1, self.search.length)
            input_ids = torch.as_tensor(rows, device=self.device)
            scores = self.decoder.scores(input_ids.unflatten(0, (self.decoder.searches, -1)))
            self.advance(rows, input_ids, scores.flatten(0, 1))
            if self.stopped():
                break
        if self.hooks.streamer is not None:
            self.hooks.streamer.end()
        scores_kept = tuple(self.kept) if self.options.output_scores else None
        return self.search.finish(), scores_kept

    @abstractmethod
    def advance(self, rows: np.ndarray, input_ids: Tensor, scores: Tensor) -> None:
        """Choose the next tokens of all rows (R, t) by their scores (R, V)."""

    def processed(self, rows: np.ndarray, input_ids: Tensor, scores: Tensor, own: bool) -> Tensor:
        if self.rules is None:
            self.rules = self.make(scores.shape[1])
        scores = apply_edits(scores, self.rules.edits(rows, self.search.live), own)
        for processor in self.hooks.logits_processor:
            changed = processor(input_ids, scores)
            if not isinstance(changed, Tensor):
                raise TypeError(
                    f"a logits_processor must return scores, got {type(changed).__name__}"
                )
            check_processed(facts("a logits_processor", changed), tuple(scores.shape))
            if bool(changed.isnan().any()):
                refuse_nan("a logits_processor")
            scores = changed
        return normalised(scores) if self.options.renormalize_logits else scores

    def noisy(self, scores: Tensor, step: int) -> Tensor:
        noise = gumbel_noise(self.seed or 0, scores.shape[0], step, scores.shape[1])
        return scores + torch.as_tensor(noise, device=self.device)

    def stream(self, tokens: np.ndarray) -> None:
        if self.hooks.streamer is not None:
            self.hooks.streamer.put(torch.as_tensor(tokens))

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

    def __init__(
        self,
        decoder: Decoder,
        options: GenerationConfig,
        hooks: Hooks,
        make: _MakeRules,
        starts: np.ndarray,
    ) -> None:
        super().__init__(decoder, options, hooks, make)
        self.search: RowSearch = RowSearch(
            rows=decoder.searches * decoder.beams,
            **_limits(options, starts.repeat(decoder.beams, axis=0)),
        )
        self.stream(starts)

    def advance(self, rows: np.ndarray, input_ids: Tensor, scores: Tensor) -> None:
        scores = apply_warps(
            self.processed(rows, input_ids, scores, self.decoder.owned), self.warps, self.least
        )
        self.keep(scores)
        drawn = self.noisy(scores, self.search.length - 1) if self.options.do_sample else scores
        tokens = drawn.argmax(dim=-1)  # (R,); the lowest index of equals
        log_probs = scores.log_softmax(dim=-1).gather(1, tokens[:, None]).squeeze(1)
        self.stream(self.search.step(tokens.cpu().numpy(), log_probs.cpu().numpy()))
        if not self.search.done:
            self.decoder.drop(self.search.finished.reshape(self.decoder.searches, -1).min(axis=1))


class _BeamLoop(_Loop):
    """Beam search and beam sampling."""

    def __init__(
        self,
        decoder: Decoder,
        options: GenerationConfig,
        hooks: Hooks,
        make: _MakeRules,
        starts: np.ndarray,
    ) -> None:
        super().__init__(decoder, options, hooks, make)
        self.search: BeamSearch = BeamSearch(
            searches=decoder.searches,
            beams=decoder.beams,
            length_penalty=options.length_penalty,
            early_stopping=options.early_stopping,
            num_return_sequences=options.num_return_sequences,
            sampled=options.do_sample,
            **_limits(options, starts),
        )

    def advance(self, rows: np.ndarray, input_ids: Tensor, scores: Tensor) -> None:
        search, vocab_size = self.search, scores.shape[-1]
        if self.decoder.log_priors is None and self.decoder.without is None:
            scores = log_softmax(scores, self.decoder.owned)
        scores = self.processed(rows, input_ids, scores, own=True)
        scores = apply_warps(scores, self.warps, self.least)
        self.keep(scores)
        shared = self.hooks.logits_processor or self.options.output_scores
        sums = torch.as_tensor(search.scores, device=self.device, dtype=scores.dtype).reshape(-1, 1)
        total = scores + sums if shared else scores.add_(sums)
        alive = np.flatnonzero(~search.finished)

        def of_alive(x: Tensor) -> Tensor:
            x = x.reshape(search.searches, -1)  # (Q, K*V)
            return x if len(alive) == len(x) else x[torch.as_tensor(alive, device=self.device)]

        if self.options.do_sample:
            _, flat = best_candidates(
                of_alive(self.noisy(total, search.length - 1)), search.candidates
            )
            values = of_alive(total).gather(1, flat)
        else:
            values, flat = best_candidates(of_alive(total), search.candidates)
        best, where = order_candidates(values.cpu().numpy(), flat.cpu().numpy(), search.candidates)
        candidates = np.zeros((search.searches, best.shape[1]), dtype=best.dtype)
        places = np.zeros((search.searches, best.shape[1]), dtype=np.int64)
        candidates[alive], places[alive] = best, where
        _, sources = search.step(candidates, places % vocab_size, places // vocab_size)
        if not search.done:
            self.decoder.reorder(torch.as_tensor(sources, device=self.device))
            self.decoder.drop(search.finished)


def _limits(options: GenerationConfig, starts: np.ndarray) -> dict[str, Any]:
    return {
        "start_tokens": starts,
        "max_length": options.max_length,
        "eos_token_ids": options.eos_token_ids,
        "pad_token_id": options.pad_token_id,
    }


def _rules(
    decoder: Decoder,
    options: GenerationConfig,
    hooks: Hooks,
    context_ids: Tensor | None,
    group: int,
    prompt_length: int,
    vocab_size: int,
) -> StepRules:
    encoder_ids = None
    asked = (
        options.encoder_repetition_penalty not in (None, 1.0)
        or options.encoder_no_repeat_ngram_size
    )
    if asked and context_ids is not None:
        ids, docs = context_ids.cpu().numpy(), decoder.docs
        encoder_ids = [list(ids[i : i + docs]) for i in range(0, len(ids), docs)]
    given, device = hooks.prefix_allowed_tokens_fn, decoder.device

    def allowed(batch_id: int, ids: np.ndarray) -> Iterable[int]:
        return given(batch_id, torch.as_tensor(ids, device=device))  # type: ignore[misc]

    return StepRules(
        options,
        beams=decoder.beams,
        vocab_size=vocab_size,
        encoder_ids=encoder_ids,
        prefix_allowed_tokens_fn=None if given is None else allowed,
        batch_ids=[q // group for q in range(decoder.searches)],
        prompt_length=prompt_length,
    )


def beams_of(options: GenerationConfig) -> int:
    """K: beams of a search, or the samples drawn side by side."""
    return options.num_beams if options.num_beams > 1 else options.num_return_sequences
