"""The search loop: scores that a backend computes, and searches that decide on them, step by step.

Letters: B questions, N documents of a search, Q searches, q of them still active, K beams, R = Q * K
rows, S context length, P start tokens, t tokens so far, C candidates, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np

from rag_core.arguments import check_processed, check_vocabulary, refuse_nan
from rag_core.backends import to_numpy
from rag_core.generation.beam import BeamSearch, RowSearch, SearchResult, order_candidates
from rag_core.generation.config import GenerationConfig
from rag_core.generation.decoder import Decoder, GuidedDecoder
from rag_core.generation.engine import Tensor
from rag_core.generation.hooks import Hooks
from rag_core.generation.logits_rules import (
    LogitsWarper,
    StepRules,
    logits_warpers,
    min_tokens_to_keep,
)
from rag_core.generation.noise import gumbel_noise

_RENORMALIZE = [LogitsWarper("normalise", 1.0)]


def run_search(
    decoder: Decoder | GuidedDecoder,
    options: GenerationConfig,
    hooks: Hooks,
    context_ids: Tensor | None,
    starts: np.ndarray,
) -> tuple[SearchResult, tuple[Tensor, ...] | None]:
    """Run all searches to their end.

    Args:
        decoder: scores the next token.
        options: as `resolve_options` returns them.
        hooks: the caller's functions.
        context_ids: (Q*N, S) what the searches read, for the `encoder_*` options; None = not known.
        starts: (B, P) the tokens that all searches of a question start from, as `Hooks.begin`
            returns them.

    Returns:
        What the searches found, and with `output_scores` the (R, V) scores of each step.
    """
    engine, generator = decoder.engine, decoder.generator
    size = engine.table_size(generator)
    if size is not None:
        name = "decoder_start_token_id, or decoder_input_ids,"
        check_vocabulary(name, starts.min(), starts.max(), size)
    searches_of_question = decoder.searches // len(starts)
    starts = starts.repeat(searches_of_question, axis=0)  # (Q, P)
    with engine.on_device(generator):
        result = engine.search_in_graph(decoder, options, hooks, starts)
        if result is not None:
            return result, None
        # One beam is no beam search in 4.37.2 either: sequences have no score there.
        loop = _BeamLoop if options.num_beams > 1 else _RowLoop
        return loop(decoder, options, hooks, context_ids, starts, searches_of_question).run()


class _Loop(ABC):
    search: BeamSearch | RowSearch

    def __init__(
        self,
        decoder: Decoder | GuidedDecoder,
        options: GenerationConfig,
        hooks: Hooks,
        context_ids: Tensor | None,
        starts: np.ndarray,
        searches_of_question: int,
    ) -> None:
        self.decoder, self.options, self.hooks = decoder, options, hooks
        self.engine = decoder.engine
        self.context_ids, self.searches_of_question = context_ids, searches_of_question
        self.rules: StepRules | None = None
        self.warpers = logits_warpers(options)
        self.min_tokens_to_keep = min_tokens_to_keep(options)
        # Drawn once a call, so that the framework's own seed repeats it.
        self.seed = hooks.seed
        if self.seed is None and options.do_sample:
            self.seed = self.engine.draw_seed()
        self.step_scores: list[Tensor] = []
        self.search = self.started(starts)

    @abstractmethod
    def started(self, starts: np.ndarray) -> Any:
        """The search from (Q, P)."""

    @abstractmethod
    def advance(self, rows: np.ndarray, scores: Tensor) -> None:
        """Choose the next tokens of all rows (R, t) by their scores (R, V)."""

    @abstractmethod
    def give_up(self, searches: np.ndarray) -> None:
        """End the searches where the (Q,) mask is True."""

    def run(self) -> tuple[SearchResult, tuple[Tensor, ...] | None]:
        search = self.search
        while not search.done:
            rows = self.rows()
            scores = self.decoder.scores(rows.reshape(self.decoder.searches, -1, search.length))
            self.advance(rows, scores)
            if self.stopped():
                break
            if self.hooks.cancelled is not None:
                self.give_up(self.hooks.given_up(self.decoder.searches))
        if self.hooks.streamer is not None:
            self.hooks.streamer.end()
        step_scores = tuple(self.step_scores) if self.options.output_scores else None
        return search.finish(), step_scores

    def rows(self) -> np.ndarray:
        """The tokens so far, (R, t)."""
        return self.search.tokens.reshape(-1, self.search.length)

    def processed(self, rows: np.ndarray, scores: Tensor, inplace: bool) -> Tensor:
        """Scores (R, V) after the options' rules and the caller's processors."""
        engine = self.engine
        # The first step tells the vocabulary's size.
        if self.rules is None:
            self.rules = self.step_rules(int(scores.shape[1]))
        scores = engine.apply_processors(
            scores, self.rules.processors(rows, self.search.active), inplace
        )
        for processor in self.hooks.logits_processor:
            changed = processor(engine.tensor(rows, like=scores), scores)
            if not engine.is_tensor(changed):
                raise TypeError(
                    f"a logits_processor must return scores, got {type(changed).__name__}"
                )
            check_processed(engine.facts("a logits_processor", changed), tuple(scores.shape))
            if engine.has_nan(changed):
                refuse_nan("a logits_processor")
            scores = changed
        if self.options.renormalize_logits:
            scores = engine.apply_warpers(scores, _RENORMALIZE, self.min_tokens_to_keep)
        scores = engine.apply_warpers(scores, self.warpers, self.min_tokens_to_keep)
        if self.options.output_scores:
            self.step_scores.append(scores)
        return scores

    def noise(self, scores: Tensor) -> np.ndarray | None:
        """What makes the largest score a draw, (R, V) float32; None without sampling."""
        if not self.options.do_sample:
            return None
        rows, vocab_size = scores.shape
        return gumbel_noise(self.seed or 0, int(rows), self.search.length - 1, int(vocab_size))

    def stopped(self) -> bool:
        """Whether the caller's criteria end all rows; each row that they end is ended."""
        if not self.hooks.stopping_criteria:
            return False
        rows = self.rows()
        input_ids = self.engine.tensor(rows, like=self.decoder.like)
        stop = np.zeros(len(rows), dtype=bool)
        for criterion in self.hooks.stopping_criteria:
            stop |= to_numpy(criterion(input_ids, tuple(self.step_scores))).astype(bool)
        if isinstance(self.search, RowSearch):
            self.search.stop(stop)
        return bool(stop.all())

    def limits(self, starts: np.ndarray) -> dict[str, Any]:
        """What a search is told of the options."""
        return {
            "start_tokens": starts,
            "max_length": self.options.max_length,
            "eos_token_ids": self.options.eos_token_ids,
            "pad_token_id": self.options.pad_token_id,
        }

    def step_rules(self, vocab_size: int) -> StepRules:
        """The options' rules."""
        decoder, options = self.decoder, self.options
        encoder_ids = None
        reads_encoder_ids = (
            options.encoder_repetition_penalty not in (None, 1.0)
            or options.encoder_no_repeat_ngram_size
        )
        if reads_encoder_ids and self.context_ids is not None:
            ids = to_numpy(self.context_ids)
            encoder_ids = [
                list(ids[i : i + decoder.docs]) for i in range(0, len(ids), decoder.docs)
            ]
        return StepRules(
            options,
            beams=decoder.beams,
            vocab_size=vocab_size,
            encoder_ids=encoder_ids,
            prefix_allowed_tokens_fn=self.prefix_function(),
            batch_ids=[q // self.searches_of_question for q in range(decoder.searches)],
            prompt_length=self.search.length,
        )

    def prefix_function(self) -> Any:
        """The caller's `prefix_allowed_tokens_fn`, for arrays; None without one."""
        allowed_tokens = self.hooks.prefix_allowed_tokens_fn
        if allowed_tokens is None:
            return None

        def allowed(batch_id: int, ids: np.ndarray) -> Iterable[int]:
            tokens = allowed_tokens(batch_id, self.engine.tensor(ids, like=self.decoder.like))
            if self.engine.is_tensor(tokens):
                return to_numpy(tokens)
            return tokens

        return allowed


class _RowLoop(_Loop):
    """Greedy search and sampling."""

    search: RowSearch

    def started(self, starts: np.ndarray) -> RowSearch:
        self.stream(starts)
        rows = starts.repeat(self.decoder.beams, axis=0)  # (R, P)
        return RowSearch(rows=len(rows), **self.limits(rows))

    def stream(self, tokens: np.ndarray) -> None:
        if self.hooks.streamer is not None:
            self.hooks.streamer.put(self.engine.tensor(tokens))

    def advance(self, rows: np.ndarray, scores: Tensor) -> None:
        search, decoder = self.search, self.decoder
        scores = self.processed(rows, scores, inplace=decoder.is_new)
        tokens, log_probs = self.engine.choose_tokens(scores, self.noise(scores))
        self.stream(search.step(tokens, log_probs))
        # Rows of a search go together: samples of one question share its contexts.
        if not search.done:
            decoder.drop(search.finished.reshape(decoder.searches, -1).min(axis=1))

    def give_up(self, searches: np.ndarray) -> None:
        self.search.stop(searches.repeat(self.decoder.beams))


class _BeamLoop(_Loop):
    """Beam search and beam sampling."""

    search: BeamSearch

    def started(self, starts: np.ndarray) -> BeamSearch:
        options = self.options
        return BeamSearch(
            searches=self.decoder.searches,
            beams=self.decoder.beams,
            length_penalty=options.length_penalty,
            early_stopping=options.early_stopping,
            num_return_sequences=options.num_return_sequences,
            sampled=options.do_sample,
            **self.limits(starts),
        )

    def advance(self, rows: np.ndarray, scores: Tensor) -> None:
        search, decoder, vocab_size = self.search, self.decoder, int(scores.shape[1])
        if not decoder.are_log_probs:
            scores = self.engine.log_softmax(scores, inplace=decoder.is_new)
        scores = self.processed(rows, scores, inplace=True)
        active = np.flatnonzero(~search.finished)
        # Who was shown the scores may have kept them.
        were_shown = self.hooks.logits_processor or self.options.output_scores
        sums, places = self.engine.choose_candidates(
            scores,
            search.scores,
            active,
            self.noise(scores),
            search.candidates,
            inplace=not were_shown,
        )
        sums, places = order_candidates(sums, places, search.candidates)  # (q, C)
        # Searches that are over have no candidates; their rows are not looked at.
        all_sums = np.zeros((search.searches, sums.shape[1]), dtype=sums.dtype)
        all_places = np.zeros((search.searches, sums.shape[1]), dtype=np.int64)
        all_sums[active], all_places[active] = sums, places
        _, sources = search.step(all_sums, all_places % vocab_size, all_places // vocab_size)
        if not search.done:
            decoder.reorder(sources)
            decoder.drop(search.finished)

    def give_up(self, searches: np.ndarray) -> None:
        self.search.stop(searches)
