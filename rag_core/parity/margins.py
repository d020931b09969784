"""How near a generation came to other tokens: its searches run again on the scores that a backend
recorded.

Two programs whose scores differ by rounding may choose differently where two candidates are closer
than that. Letters: Q searches, K beams, R = Q * K rows, V vocabulary, C candidates a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rag_core.generation import BeamSearch, GenerationConfig, RowSearch, gumbel_noise, start_tokens

# Beams that may not speak in the first step carry -1e9: nothing is ever chosen between them.
_SHUT = -1e8


class _Watch:
    """The smallest distance between what was chosen and what was not, relative to the scores
    where these exceed 1.
    """

    def __init__(self) -> None:
        self.margin = float("inf")

    def note(self, better: Any, worse: Any) -> None:
        better, worse = np.broadcast_arrays(
            np.asarray(better, np.float64), np.asarray(worse, np.float64)
        )
        real = np.isfinite(better) & np.isfinite(worse) & (np.minimum(better, worse) > _SHUT)
        if real.any():
            gaps = np.abs(better[real] - worse[real]) / np.maximum(1.0, np.abs(better[real]))
            self.margin = min(self.margin, float(gaps.min()))


class _WatchedSearch(BeamSearch):
    watch: _Watch

    def _close(self, q: int, source: int, score: float) -> None:
        self._weigh(q, score / (self.length + 1 - self.prompt_length) ** self.length_penalty)
        super()._close(q, source, score)

    def _weigh(self, q: int, score: float) -> None:
        if len(self._pools[q].kept) >= self.beams:
            self.watch.note(self._pools[q].worst, score)

    def _settled(self, q: int, best: float) -> bool:
        pool, generated = self._pools[q], self.length + 1 - self.prompt_length
        if len(pool.kept) >= self.beams and self.early_stopping is not True:
            if self.early_stopping == "never" and self.length_penalty > 0:
                generated = self.max_length - self.prompt_length
            self.watch.note(pool.worst, best / generated**self.length_penalty)
        return super()._settled(q, best)

    def ranking(self) -> None:
        """Notes how near the sequences handed back are to each other and to the next."""
        width = max(self.length - self.prompt_length, 1)
        for q in np.flatnonzero(~self.finished).tolist():
            for score in self.scores[q]:
                self._weigh(q, float(score) / width**self.length_penalty)
        self.finish()
        for pool in self._pools:
            scores = np.sort([each.score for each in pool.kept])[::-1][
                : self.num_return_sequences + 1
            ]
            self.watch.note(scores[:-1], scores[1:])


def replay(
    step_scores: Sequence[np.ndarray],
    options: GenerationConfig,
    questions: int,
    searches: int,
    seed: int,
) -> tuple[np.ndarray, float]:
    """Runs the searches of one `generate` call again.

    Args:
        step_scores: one (R, V) a step, as `output_scores` returns them.
        options: what the searches ran with.
        questions: B; the searches of a question follow each other.
        searches: Q.
        seed: of the sampling noise.

    Returns:
        The two best scores (steps, R or Q, 2) of each step, zeros where nothing was chosen; and the
        smallest relative distance between two scores whose order decided something.
    """
    starts = start_tokens(options, questions, None).repeat(searches // questions, axis=0)
    limits: dict[str, Any] = {
        "max_length": options.max_length,
        "eos_token_ids": options.eos_token_ids,
        "pad_token_id": options.pad_token_id,
    }
    run = _replay_beams if options.num_beams > 1 else _replay_rows
    return run(step_scores, options, starts, limits, seed)


def _replay_rows(
    step_scores: Sequence[np.ndarray],
    options: GenerationConfig,
    starts: np.ndarray,
    limits: dict[str, Any],
    seed: int,
) -> tuple[np.ndarray, float]:
    watch, copies = _Watch(), len(step_scores[0]) // len(starts)
    search = RowSearch(
        rows=len(step_scores[0]), start_tokens=starts.repeat(copies, axis=0), **limits
    )
    choices = np.zeros((len(step_scores), len(step_scores[0]), 2))
    for step, scores in enumerate(step_scores):
        if options.do_sample:
            scores = scores + gumbel_noise(seed, *_place(scores, search))
        best = np.argsort(-scores, axis=1, kind="stable")[:, :2]
        values = np.take_along_axis(scores, best, axis=1).astype(np.float64)
        alive = ~search.finished
        choices[step, alive] = np.where(np.isfinite(values[alive]), values[alive], 0.0)
        watch.note(values[alive, 0], values[alive, 1])
        search.step(best[:, 0])
    return choices, watch.margin


def _place(scores: np.ndarray, search: RowSearch | BeamSearch) -> tuple[int, int, int]:
    return scores.shape[0], search.length - 1, scores.shape[1]


def _replay_beams(
    step_scores: Sequence[np.ndarray],
    options: GenerationConfig,
    starts: np.ndarray,
    limits: dict[str, Any],
    seed: int,
) -> tuple[np.ndarray, float]:
    search = _WatchedSearch(
        searches=len(starts),
        beams=options.num_beams,
        start_tokens=starts,
        length_penalty=options.length_penalty,
        early_stopping=options.early_stopping,
        num_return_sequences=options.num_return_sequences,
        sampled=options.do_sample,
        **limits,
    )
    search.watch = _Watch()
    choices = np.zeros((len(step_scores), len(starts), 2))
    for step, scores in enumerate(step_scores):
        total = scores + search.scores.astype(scores.dtype).reshape(-1, 1)
        drawn = total + gumbel_noise(seed, *_place(scores, search)) if options.do_sample else total
        drawn, flat_total = (x.reshape(len(starts), -1) for x in (drawn, total))  # (Q, K*V)
        nearest = np.argsort(-drawn, axis=1, kind="stable")[:, : search.candidates + 1]
        alive = ~search.finished
        ranked = np.take_along_axis(drawn, nearest, axis=1)
        search.watch.note(ranked[alive, :-1], ranked[alive, 1:])
        chosen = nearest[:, : search.candidates]
        values = np.take_along_axis(flat_total, chosen, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        values, chosen = (
            np.take_along_axis(values, order, axis=1),
            np.take_along_axis(chosen, order, axis=1),
        )
        search.watch.note(values[alive, :-1], values[alive, 1:])
        choices[step, alive] = np.where(np.isfinite(values[alive, :2]), values[alive, :2], 0.0)
        size = scores.shape[1]
        search.step(values, chosen % size, chosen // size)
    search.ranking()
    return choices, search.watch.margin
