"""Which sequence survives: the bookkeeping of beam search, greedy search and sampling, in numpy
alone.

A backend computes scores and takes the best candidates of each step; everything decided about them
is decided here, as transformers 4.37.2 decides it. Letters: Q searches, K beams, C candidates a
step, t tokens so far, R = Q * K rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Watch = Callable[[float, float], None]


def _unwatched(better: float, worse: float) -> None:
    pass


def order_candidates(
    scores: np.ndarray, flat: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best `count` of each search, best first; of equals the lowest index goes first
    (compatibility Q24).

    Args:
        scores: (Q, C) candidates, C >= count.
        flat: (Q, C) their indices in the search's K * V scores.
        count: how many to keep.

    Returns:
        (Q, count) scores and (Q, count) indices.
    """
    # lexsort sorts by its last key first.
    ranked = [np.lexsort((f, -s)) for s, f in zip(scores, flat, strict=True)]
    order = np.stack(ranked)[:, :count]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(flat, order, axis=1)


@dataclass(frozen=True)
class SearchResult:
    """What a search hands back.

    Attributes:
        sequences: (Q * n, L) int64, start token and end token included, right-padded.
        lengths: (Q * n,) tokens before the padding.
        scores: (Q * n,) sum of log-probabilities / generated tokens ** length_penalty, best first;
            None without beams.
        sum_log_probs: (Q * n,) sum of the step scores of the generated tokens, end token included.
        beam_indices: (Q * n, L) row, of the Q * K, that generated token i continued, then -1; None
            without beams.
    """

    sequences: np.ndarray
    lengths: np.ndarray
    sum_log_probs: np.ndarray
    scores: np.ndarray | None = None
    beam_indices: np.ndarray | None = None


@dataclass
class _Hypothesis:
    score: float
    sum_log_probs: float
    tokens: np.ndarray
    indices: np.ndarray


class _BeamHypotheses:
    """The K best finished sequences of one search."""

    def __init__(self, size: int, length_penalty: float, watch: Watch) -> None:
        self.size, self.length_penalty = size, length_penalty
        self.watch = watch
        self.kept: list[_Hypothesis] = []
        self.worst = 1e9

    def add(
        self, tokens: np.ndarray, sum_log_probs: float, indices: np.ndarray, generated: int
    ) -> None:
        score = sum_log_probs / generated**self.length_penalty
        if len(self.kept) >= self.size:
            self.watch(self.worst, score)
            if not score > self.worst:
                return
        self.kept.append(_Hypothesis(score, sum_log_probs, tokens, indices))
        if len(self.kept) > self.size:
            lowest = min(range(len(self.kept)), key=lambda i: self.kept[i].score)
            del self.kept[lowest]
            self.worst = min(h.score for h in self.kept)
        else:
            self.worst = min(score, self.worst)

    def best(self, count: int) -> list[_Hypothesis]:
        # Of equals the later one first, as 4.37.2 pops them from the end of a stable sort
        ranked = sorted(self.kept, key=lambda h: h.score)[::-1]
        for better, worse in pairwise(ranked[: count + 1]):
            self.watch(better.score, worse.score)
        return ranked[:count]


def _begin(rows: int, start_token_id: int, start_tokens: np.ndarray | None) -> np.ndarray:
    if start_tokens is not None:
        return start_tokens
    return np.full((rows, 1), start_token_id, dtype=np.int64)


class _Search:
    tokens: np.ndarray
    finished: np.ndarray
    max_length: int

    @property
    def length(self) -> int:
        """Tokens in every row so far."""
        return self.tokens.shape[-1]

    @property
    def active(self) -> np.ndarray:
        """(R,) bool, the rows whose next token can still count."""
        return ~self.finished

    @property
    def done(self) -> bool:
        """Whether no step is left to do."""
        return bool(self.finished.all()) or self.length >= self.max_length


class BeamSearch(_Search):
    """Q beam searches of K beams that run side by side.

    Args:
        searches: Q.
        beams: K.
        start_token_id: the token every row begins with.
        start_tokens: (Q, P) the tokens that each search begins with instead.
        max_length: tokens a sequence may have, those included.
        eos_token_ids: ids that end a sequence; may be empty.
        pad_token_id: fills rows of finished searches and the ends of shorter sequences.
        length_penalty: exponent of the generated length, P not counted, that a finished sequence's
            score is divided by.
        early_stopping: True stops a search at K finished sequences; False when the best running
            beam, at its present length, can't beat the worst of them; "never" when no longer beam
            could.
        num_return_sequences: sequences handed back for each search, at most K.
        sampled: candidates are drawn, so that beams differ from the first step on.
        watch: told of two scores wherever their order decides something.
    """

    def __init__(
        self,
        *,
        searches: int,
        beams: int,
        max_length: int,
        eos_token_ids: tuple[int, ...],
        pad_token_id: int | None,
        start_token_id: int = 0,
        start_tokens: np.ndarray | None = None,
        length_penalty: float = 1.0,
        early_stopping: bool | str = False,
        num_return_sequences: int = 1,
        sampled: bool = False,
        watch: Watch = _unwatched,
    ) -> None:
        if num_return_sequences > beams:
            raise ValueError(
                f"num_return_sequences must not be above beams={beams}; got {num_return_sequences}"
            )
        self.searches, self.beams = searches, beams
        self.max_length, self.eos = max_length, eos_token_ids
        self.length_penalty, self.early_stopping = length_penalty, early_stopping
        self.pad = pad_token_id or 0
        self.num_return_sequences = num_return_sequences
        self.candidates = max(2, 1 + len(eos_token_ids)) * beams
        starts = _begin(searches, start_token_id, start_tokens)  # (Q, P)
        self.tokens = starts[:, None].repeat(beams, axis=1)  # (Q, K, P)
        self.prompt_length = self.length
        self.indices = np.zeros((searches, beams, 0), dtype=np.int64)
        self.scores = np.zeros((searches, beams), dtype=np.float32)
        if not sampled:
            # All beams of a search are equal at first: only one may speak.
            self.scores[:, 1:] = -1e9
        self.finished = np.zeros(searches, dtype=bool)
        self._watch = watch
        self._hypotheses = [_BeamHypotheses(beams, length_penalty, watch) for _ in range(searches)]

    @property
    def active(self) -> np.ndarray:
        """(R,) bool: beams of searches that go on, unless their score is -inf, which no token
        can mend.
        """
        return ((self.scores != -np.inf) & ~self.finished[:, None]).reshape(-1)

    def step(
        self, scores: np.ndarray, tokens: np.ndarray, sources: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Takes the best candidates of one step.

        Args:
            scores: (Q, C) running sums of log-probabilities, best first, C = `self.candidates`.
            tokens: (Q, C) the tokens they add.
            sources: (Q, C) the beams, 0 <= k < K, that they continue.

        Returns:
            (Q, K) tokens to feed next and (Q, K) the beams that they continue.

        Raises:
            ValueError: too few candidates that do not end their sequence.
        """
        shape = self.searches, self.beams
        next_tokens = np.full(shape, self.pad, dtype=np.int64)
        next_sources = np.zeros(shape, dtype=np.int64)
        next_scores = np.zeros(shape, dtype=scores.dtype)
        for q in np.flatnonzero(~self.finished).tolist():
            at = 0
            for rank in range(scores.shape[1]):
                token, source = int(tokens[q, rank]), int(sources[q, rank])
                if token in self.eos:
                    # Past the first K, 4.37.2 lets an ended sequence go.
                    if rank < self.beams:
                        self._close(q, source, float(scores[q, rank]))
                    continue
                next_tokens[q, at] = token
                next_sources[q, at] = source
                next_scores[q, at] = scores[q, rank]
                at += 1
                if at == self.beams:
                    break
            if at < self.beams:
                raise ValueError(
                    f"search {q}: {at} candidates go on, for {self.beams} beams; "
                    f"pass {self.candidates}"
                )
            self.finished[q] = self._settled(q, float(scores[q].max()))
        of_search = np.arange(self.searches)[:, None]
        tokens_so_far = self.tokens[of_search, next_sources]  # (Q, K, t)
        self.tokens = np.concatenate([tokens_so_far, next_tokens[..., None]], axis=2)
        rows = next_sources + of_search * self.beams
        rows_so_far = self.indices[of_search, next_sources]
        self.indices = np.concatenate([rows_so_far, rows[..., None]], axis=2)
        self.scores = next_scores
        return next_tokens, next_sources

    def _close(self, q: int, source: int, score: float) -> None:
        indices = np.append(self.indices[q, source], q * self.beams + source)
        self._hypotheses[q].add(
            self.tokens[q, source], score, indices, self.length + 1 - self.prompt_length
        )

    def _settled(self, q: int, best: float) -> bool:
        hypotheses = self._hypotheses[q]
        if len(hypotheses.kept) < self.beams:
            return False
        if self.early_stopping is True:
            return True
        generated = self.length + 1 - self.prompt_length
        if self.early_stopping == "never" and self.length_penalty > 0:
            generated = self.max_length - self.prompt_length
        best /= generated**self.length_penalty
        self._watch(hypotheses.worst, best)
        return hypotheses.worst >= best

    def stop(self, searches: np.ndarray) -> None:
        """Ends the searches where the (Q,) mask is True: beams still running compete with the
        finished ones.
        """
        generated = max(self.length - self.prompt_length, 1)
        for q in np.flatnonzero(searches & ~self.finished):
            for k in range(self.beams):
                score = float(self.scores[q, k])
                self._hypotheses[q].add(self.tokens[q, k], score, self.indices[q, k], generated)
        self.finished |= searches

    def finish(self) -> SearchResult:
        """Ends all searches."""
        self.stop(~self.finished)
        chosen = [
            hypothesis
            for hypotheses in self._hypotheses
            for hypothesis in hypotheses.best(self.num_return_sequences)
        ]
        lengths = np.array([len(h.tokens) for h in chosen])
        longest = min(int(lengths.max()) + 1, self.max_length)
        sequences = np.full((len(chosen), longest), self.pad, dtype=np.int64)
        indices = np.full((len(chosen), longest), -1, dtype=np.int64)
        for i, h in enumerate(chosen):
            sequences[i, : len(h.tokens)] = h.tokens
            indices[i, : len(h.indices)] = h.indices
            if len(h.tokens) < longest and self.eos:
                sequences[i, len(h.tokens)] = self.eos[0]
        if self.eos:
            lengths = np.minimum(lengths + 1, longest)
        dtype = self.scores.dtype
        sums = np.array([h.sum_log_probs for h in chosen], dtype=dtype)
        scores = np.array([h.score for h in chosen], dtype=dtype)
        return SearchResult(sequences, lengths, sums, scores, indices)


class RowSearch(_Search):
    """Greedy search or sampling: every row goes its own way until it writes an end token.

    Args:
        rows: R.
        start_token_id, start_tokens (R, P), max_length, eos_token_ids, pad_token_id: as in
            `BeamSearch`.
    """

    def __init__(
        self,
        *,
        rows: int,
        max_length: int,
        eos_token_ids: tuple[int, ...],
        pad_token_id: int | None,
        start_token_id: int = 0,
        start_tokens: np.ndarray | None = None,
    ) -> None:
        self.max_length = max_length
        self.eos = np.asarray(eos_token_ids, dtype=np.int64)
        self.pad = pad_token_id or 0
        self.tokens = _begin(rows, start_token_id, start_tokens)  # (R, P)
        self.lengths = np.full(rows, self.length, dtype=np.int64)
        self.sum_log_probs = np.zeros(rows, dtype=np.float64)
        self.finished = np.zeros(rows, dtype=bool)

    def step(self, tokens: np.ndarray, log_probs: np.ndarray | None = None) -> np.ndarray:
        """Appends one token a row, the pad token in finished rows.

        Args:
            tokens: (R,) the tokens chosen.
            log_probs: (R,) their log-probabilities, to be summed.

        Returns:
            (R,) what was appended.
        """
        if log_probs is not None:
            self.sum_log_probs[~self.finished] += log_probs[~self.finished]
        tokens = np.where(self.finished, self.pad, tokens)
        self.tokens = np.concatenate([self.tokens, tokens[:, None]], axis=1)
        self.lengths += ~self.finished
        self.finished |= (tokens[:, None] == self.eos).any(axis=1)
        return tokens

    def stop(self, rows: np.ndarray) -> None:
        """Ends the rows where the (R,) mask is True."""
        self.finished |= rows

    def finish(self) -> SearchResult:
        """The rows as they stand."""
        return SearchResult(self.tokens, self.lengths, self.sum_log_probs)


def transition_scores(
    sequences: np.ndarray,
    scores: Iterable[np.ndarray],
    beam_indices: np.ndarray | None = None,
    normalize: bool = False,
) -> np.ndarray:
    """The score of each generated token; arguments as of
    `PretrainedBase.compute_transition_scores`.

    Returns:
        (R, L).

    Raises:
        ValueError: no scores, or fewer of them than tokens or rows.
    """
    steps = list(scores)
    if not steps:
        raise ValueError(
            "scores must hold an array for each step, got none. Say output_scores=True to generate"
        )
    rows = len(sequences)
    if beam_indices is None:
        beam_indices = np.tile(np.arange(rows)[:, None], (1, len(steps)))
        misses_rows = len(steps[0]) != rows
    else:
        misses_rows = beam_indices.max(initial=0) >= len(steps[0])
    length = int((beam_indices >= 0).sum(axis=1).max(initial=0))
    beam_indices = beam_indices[:, :length]
    if misses_rows or length > min(len(steps), sequences.shape[1]):
        raise ValueError(
            f"scores must be of the call that wrote the sequences, got {len(steps)} steps of "
            f"{len(steps[0])} rows for {length} tokens of {rows} sequences. Hand over "
            "beam_indices where there are beams"
        )
    tokens = sequences[:, sequences.shape[1] - length :]
    result = np.zeros(tokens.shape, steps[0].dtype)
    for step in range(length):
        of_rows = steps[step][beam_indices[:, step]]  # (R, V); -1 is a row that counts for nothing
        of_tokens = np.take_along_axis(of_rows, tokens[:, step, None], 1)[:, 0]
        if normalize:
            of_tokens = of_tokens - np.logaddexp.reduce(of_rows, axis=1)
        result[:, step] = np.where(beam_indices[:, step] < 0, 0, of_tokens)
    return result
