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


class _Margin:
    """The smallest distance between what was chosen and what was not, relative to the scores
    where these exceed 1.
    """

    def __init__(self) -> None:
        self.smallest = float("inf")

    def note(self, better: Any, worse: Any) -> None:
        better, worse = np.broadcast_arrays(
            np.asarray(better, np.float64), np.asarray(worse, np.float64)
        )
        real = np.isfinite(better) & np.isfinite(worse) & (np.minimum(better, worse) > _SHUT)
        if real.any():
            gaps = np.abs(better[real] - worse[real]) / np.maximum(1.0, np.abs(better[real]))
            self.smallest = min(self.smallest, float(gaps.min()))


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
    if options.num_beams > 1:
        return _replay_beams(step_scores, options, starts, limits, seed)
    return _replay_rows(step_scores, options, starts, limits, seed)


def _replay_rows(
    step_scores: Sequence[np.ndarray],
    options: GenerationConfig,
    starts: np.ndarray,
    limits: dict[str, Any],
    seed: int,
) -> tuple[np.ndarray, float]:
    rows = len(step_scores[0])
    starts = starts.repeat(rows // len(starts), axis=0)
    search = RowSearch(rows=rows, start_tokens=starts, **limits)
    margin = _Margin()
    choices = np.zeros((len(step_scores), rows, 2))
    for step, scores in enumerate(step_scores):
        if options.do_sample:
            scores = scores + gumbel_noise(seed, *_place(scores, search))
        best = np.argsort(-scores, axis=1, kind="stable")[:, :2]
        values = np.take_along_axis(scores, best, axis=1).astype(np.float64)
        values = values[~search.finished]
        choices[step, ~search.finished] = np.where(np.isfinite(values), values, 0.0)
        margin.note(values[:, 0], values[:, 1])
        search.step(best[:, 0])
    return choices, margin.smallest


def _place(scores: np.ndarray, search: RowSearch | BeamSearch) -> tuple[int, int, int]:
    return scores.shape[0], search.length - 1, scores.shape[1]


def _replay_beams(
    step_scores: Sequence[np.ndarray],
    options: GenerationConfig,
    starts: np.ndarray,
    limits: dict[str, Any],
    seed: int,
) -> tuple[np.ndarray, float]:
    margin = _Margin()
    search = BeamSearch(
        searches=len(starts),
        beams=options.num_beams,
        start_tokens=starts,
        length_penalty=options.length_penalty,
        early_stopping=options.early_stopping,
        num_return_sequences=options.num_return_sequences,
        sampled=options.do_sample,
        watch=margin.note,
        **limits,
    )
    choices = np.zeros((len(step_scores), len(starts), 2))
    for step, scores in enumerate(step_scores):
        total = scores + search.scores.astype(scores.dtype).reshape(-1, 1)
        drawn = total
        if options.do_sample:
            drawn = total + gumbel_noise(seed, *_place(scores, search))
        total = total.reshape(len(starts), -1)  # (Q, K*V)
        drawn = drawn.reshape(len(starts), -1)
        active = ~search.finished
        # one candidate more than the search takes: the best of those that it does not see
        nearest = np.argsort(-drawn, axis=1, kind="stable")[:, : search.candidates + 1]
        ranked = np.take_along_axis(drawn, nearest, axis=1)[active]
        margin.note(ranked[:, :-1], ranked[:, 1:])
        chosen = nearest[:, : search.candidates]
        values = np.take_along_axis(total, chosen, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        values = np.take_along_axis(values, order, axis=1)
        chosen = np.take_along_axis(chosen, order, axis=1)
        margin.note(values[active, :-1], values[active, 1:])
        best = values[active, :2]
        choices[step, active] = np.where(np.isfinite(best), best, 0.0)
        vocabulary = scores.shape[1]
        search.step(values, chosen % vocabulary, chosen // vocabulary)
    search.finish()
    return choices, margin.smallest
