"""The step loop: feeds rag_core.generation.beam, which decides, with scores that a generator
computes on the device.

Letters: N documents of a search, Q searches, K beams, R = Q * K rows, S context length, t tokens so
far, C candidates, d width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.arguments import check_processed, refuse_nan
from rag_core.backends import to_numpy
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
from rag_tf.contexts import checked_ids, facts, table_size
from rag_tf.graph import Graph, searched
from rag_tf.marginalize import logsumexp
from rag_tf.step_decoder import Decoder, placed
from rag_tf.step_scores import apply_edits, apply_warps, best_candidates, normalised

_MakeRules = Callable[[int], StepRules]


def run_search(
    decoder: Decoder,
    options: GenerationConfig,
    hooks: Hooks,
    context_ids: tf.Tensor | None,
    starts: np.ndarray,
) -> tuple[SearchResult, tuple[tf.Tensor, ...] | None]:
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
        "decoder_start_token_id, or decoder_input_ids,", starts, table_size(decoder.generator)
    )
    group = decoder.searches // len(starts)
    starts = starts.repeat(group, axis=0)  # (Q, P)
    plugged = (
        hooks.logits_processor,
        hooks.stopping_criteria,
        hooks.prefix_allowed_tokens_fn,
        hooks.streamer,
    )
    with placed(decoder.generator):
        found = None if any(plugged) else searched(decoder, options, starts)
    if found is not None:
        return found, None
    rules = partial(_rules, decoder, options, hooks, context_ids, group, starts.shape[1])
    loop = _BeamLoop if options.num_beams > 1 else _RowLoop
    with placed(decoder.generator):
        return loop(decoder, options, hooks, rules, starts).run()


def _chosen_tokens(scores: tf.Tensor, noise: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    """The tokens (R,) of the largest (noisy) scores (R, V), the lowest index of equals, and
    their log-probabilities.
    """
    drawn = scores if noise is None else scores + tf.cast(noise, scores.dtype)
    tokens = best_candidates(drawn, 1)[1][:, 0]
    return tokens, tf.gather(scores, tokens, batch_dims=1) - logsumexp(scores, 1)


def _chosen_candidates(
    scores: tf.Tensor,
    running: tf.Tensor,
    alive: tf.Tensor,
    noise: tf.Tensor | None,
    count: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The candidates of the searches still alive (Q',).

    Values and places in their K * V scores, (Q', C) each.
    """
    total = scores + tf.reshape(running, [-1, 1])  # (R, V)
    searches = tf.shape(running)[0]

    def of_alive(x: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.reshape(x, tf.stack([searches, -1])), alive)  # (Q', K*V)

    if noise is None:
        return best_candidates(of_alive(total), count)
    _, flat = best_candidates(of_alive(total + tf.cast(noise, total.dtype)), count)
    return tf.gather(of_alive(total), flat, batch_dims=1), flat


# they close over no weights, so one of each serves every model
_TOKENS, _CANDIDATES = Graph(_chosen_tokens), Graph(_chosen_candidates)


class _Loop(ABC):
    search: BeamSearch | RowSearch

    def __init__(
        self, decoder: Decoder, options: GenerationConfig, hooks: Hooks, make: _MakeRules
    ) -> None:
        self.decoder, self.options, self.hooks, self.make = decoder, options, hooks, make
        self.rules: StepRules | None = None
        self.warps, self.least = sampling_warps(options), least_kept(options)
        self.seed = hooks.seed
        if self.seed is None and options.do_sample:
            self.seed = int(tf.random.uniform((), maxval=2**62, dtype=tf.int64))
        self.kept: list[tf.Tensor] = []

    def run(self) -> tuple[SearchResult, tuple[tf.Tensor, ...] | None]:
        while not self.search.done:
            rows = self.search.tokens.reshape(-1, self.search.length)
            scores = self.decoder.scores(
                rows.reshape(self.decoder.searches, -1, self.search.length)
            )
            self.advance(rows, tf.reshape(scores, [len(rows), -1]))
            if self.stopped():
                break
        if self.hooks.streamer is not None:
            self.hooks.streamer.end()
        scores_kept = tuple(self.kept) if self.options.output_scores else None
        return self.search.finish(), scores_kept

    @abstractmethod
    def advance(self, rows: np.ndarray, scores: tf.Tensor) -> None:
        """Choose the next tokens of all rows (R, t) by their scores (R, V)."""

    def processed(self, rows: np.ndarray, scores: tf.Tensor) -> tf.Tensor:
        if self.rules is None:
            self.rules = self.make(int(scores.shape[1]))
        scores = apply_edits(scores, self.rules.edits(rows, self.search.live))
        for processor in self.hooks.logits_processor:
            changed = processor(tf.constant(rows), scores)
            if not isinstance(changed, tf.Tensor):
                raise TypeError(
                    f"a logits_processor must return scores, got {type(changed).__name__}"
                )
            check_processed(facts("a logits_processor", changed), tuple(scores.shape))
            if bool(tf.reduce_any(tf.math.is_nan(changed))):
                refuse_nan("a logits_processor")
            scores = changed
        scores = normalised(scores) if self.options.renormalize_logits else scores
        return apply_warps(scores, self.warps, self.least)

    def noise(self, scores: tf.Tensor, step: int) -> tf.Tensor | None:
        """What makes the largest score a draw, (R, V) float32; None without sampling."""
        if not self.options.do_sample:
            return None
        return tf.constant(
            gumbel_noise(self.seed or 0, int(scores.shape[0]), step, int(scores.shape[1]))
        )

    def stream(self, tokens: np.ndarray) -> None:
        if self.hooks.streamer is not None:
            self.hooks.streamer.put(tf.constant(tokens))

    def keep(self, scores: tf.Tensor) -> None:
        if self.options.output_scores:
            self.kept.append(scores)

    def stopped(self) -> bool:
        if not self.hooks.stopping_criteria:
            return False
        rows = self.search.tokens.reshape(-1, self.search.length)
        input_ids = tf.constant(rows)
        said = np.zeros(len(rows), dtype=bool)
        for criterion in self.hooks.stopping_criteria:
            said |= to_numpy(criterion(input_ids, tuple(self.kept))).astype(bool)
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

    def advance(self, rows: np.ndarray, scores: tf.Tensor) -> None:
        scores = self.processed(rows, scores)
        self.keep(scores)
        tokens, log_probs = _TOKENS(scores, self.noise(scores, self.search.length - 1))
        self.stream(self.search.step(tokens.numpy(), log_probs.numpy()))
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

    def advance(self, rows: np.ndarray, scores: tf.Tensor) -> None:
        search, vocab_size = self.search, int(scores.shape[1])
        if self.decoder.log_priors is None and self.decoder.without is None:
            scores = tf.nn.log_softmax(scores)
        scores = self.processed(rows, scores)
        self.keep(scores)
        running = tf.constant(search.scores, scores.dtype)
        alive = np.flatnonzero(~search.finished)
        noise = self.noise(scores, search.length - 1)
        values, flat = _CANDIDATES(
            scores, running, tf.constant(alive), noise, tf.constant(search.candidates)
        )
        best, where = order_candidates(values.numpy(), flat.numpy(), search.candidates)  # (Q', C)
        candidates = np.zeros((search.searches, best.shape[1]), dtype=best.dtype)
        places = np.zeros((search.searches, best.shape[1]), dtype=np.int64)
        candidates[alive], places[alive] = best, where
        _, sources = search.step(candidates, places % vocab_size, places // vocab_size)
        if not search.done:
            self.decoder.reorder(sources)
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
    context_ids: tf.Tensor | None,
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
        ids, docs = context_ids.numpy(), decoder.docs
        encoder_ids = [list(ids[i : i + docs]) for i in range(0, len(ids), docs)]
    given = hooks.prefix_allowed_tokens_fn

    def allowed(batch_id: int, ids: np.ndarray) -> Iterable[int]:
        found = given(batch_id, tf.constant(ids))  # type: ignore[misc]
        return found.numpy() if isinstance(found, tf.Tensor) else found

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
