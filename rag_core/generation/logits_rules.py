"""What each step of decoding may and may not write: options and tokens so far -> the logits
processors and warpers of a step.

The rules are decided here in numpy and carried out by a backend, in the order in which transformers
4.37.2 applies its logits processors. Letters: R rows (searches * K beams), t tokens so far, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from rag_core.generation.config import MOST_FACTOR, GenerationConfig, as_ids

PrefixFunction = Callable[[int, np.ndarray], Iterable[int]]


@dataclass(frozen=True)
class LogitsProcessor:
    """One change of the (R, V) scores, at the pairs (rows[i], ids[i]), or at `ids` of every row
    where `rows` is None.

    `kind` is one of
        "add"       score + value
        "ban"       -inf
        "keep"      every other pair becomes -inf
        "force"     0 here, -inf everywhere else
        "penalise"  score * value where negative, score / value elsewhere
        "decay"     score + |score| * value
        "finite"    of all scores: nan -> 0, inf -> the largest number, -inf -> the lowest
    """

    kind: str
    ids: np.ndarray
    rows: np.ndarray | None = None
    value: Any = None


@dataclass(frozen=True)
class LogitsWarper:
    """One change of the distribution p = softmax(scores) that is sampled from, each row by itself.

    What is left out becomes -inf; `min_tokens_to_keep` tokens stay in any case, of "typical_p" the
    most typical, otherwise the likeliest. `kind` is one of
        "temperature"     score / value
        "normalise"       log p; -inf stays -inf
        "top_k"           leave out what is below the value-th largest score
        "top_p"           leave out, the least likely first (of equals the highest index), tokens
                          that make up 1 - value together at most
        "typical_p"       keep tokens in the order of |-log p - entropy| until they make up value
                          together, and what is as typical as the last of them
        "epsilon_cutoff"  leave out p < value
        "eta_cutoff"      leave out p < min(value, sqrt(value) * exp(-entropy))
    """

    kind: str
    value: float


def _ids(values: Iterable[int]) -> np.ndarray:
    return np.asarray(list(values), dtype=np.int64).reshape(-1)


def _returned(ids: Any) -> np.ndarray:
    """The ids that `prefix_allowed_tokens_fn` returned, in any form that holds whole numbers."""
    if not isinstance(ids, np.ndarray) and ids is not None:
        ids = [*ids]
    array = np.asarray(ids).reshape(-1)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"prefix_allowed_tokens_fn must return whole token ids, got {ids!r:.100}")
    return array.astype(np.int64)


def _unique_pairs(rows: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pairs = np.unique(np.stack([rows, ids], axis=1), axis=0)
    return pairs[:, 0], pairs[:, 1]


class StepRules:
    """The rules of one `generate` call.

    Args:
        options: as `resolve_options` returns them.
        beams: K, rows of one search; row r belongs to search r // K.
        vocab_size: V; ids outside it are refused.
        encoder_ids: for each search, the (S,) ids of each of its documents; read by the `encoder_*`
            options, which join the documents of a search (compatibility D10).
        prefix_allowed_tokens_fn: (batch id, (t,) ids) -> ids allowed next.
        batch_ids: for each search, the batch id told to that function; its own number where None.
        prompt_length: tokens that the decoder starts from.

    Raises:
        ValueError: an option names a token outside the vocabulary or has the wrong form.
    """

    def __init__(
        self,
        options: GenerationConfig,
        *,
        beams: int,
        vocab_size: int,
        encoder_ids: Sequence[Sequence[np.ndarray]] | None = None,
        prefix_allowed_tokens_fn: PrefixFunction | None = None,
        batch_ids: Sequence[int] | None = None,
        prompt_length: int = 1,
    ) -> None:
        self.options, self.beams, self.vocab_size = options, beams, vocab_size
        self.prefix_fn, self.batch_ids = prefix_allowed_tokens_fn, batch_ids
        self.eos = _ids(options.eos_token_ids)
        self.bias = self._checked_sequences("sequence_bias", (options.sequence_bias or {}).items())
        # 4.37.2 lets a bad word pass that is the end token alone.
        words = [
            (word, -np.inf)
            for word in options.bad_words_ids or []
            if list(word) not in [[e] for e in self.eos]
        ]
        self.bad_words = self._checked_sequences("bad_words_ids", words)
        forced: dict[Any, Any] = dict(options.forced_decoder_ids or {})  # type: ignore[arg-type]
        self.forced = {int(k): int(v) for k, v in forced.items() if v is not None}
        for name in (
            "suppress_tokens",
            "begin_suppress_tokens",
            "forced_bos_token_id",
            "forced_eos_token_id",
        ):
            self._check_ids(name, as_ids(getattr(options, name)))
        self._check_ids("forced_decoder_ids", self.forced.values())
        self._check_ids("pad_token_id", as_ids(options.pad_token_id))
        self.prompt_length = prompt_length
        # Where 4.37.2 takes the first free token to be: after what is forced at the beginning.
        self.begin_index = prompt_length
        if prompt_length == 1 and options.forced_bos_token_id is not None:
            self.begin_index = 2
        if forced:
            self.begin_index += int(list(forced)[-1])
        self.encoder_tokens: list[np.ndarray] = []
        self.encoder_ngrams: list[np.ndarray] = []
        if options.encoder_repetition_penalty not in (None, 1.0):
            self.encoder_tokens = [
                np.unique(np.concatenate(list(docs))) for docs in self._need(encoder_ids)
            ]
        n = options.encoder_no_repeat_ngram_size
        if n:
            none = np.zeros((0, n), np.int64)
            for docs in self._need(encoder_ids):
                grams = [sliding_window_view(np.asarray(doc), n) for doc in docs if len(doc) >= n]
                self.encoder_ngrams.append(np.concatenate([none, *grams]))

    @staticmethod
    def _need(encoder_ids: Sequence[Sequence[np.ndarray]] | None) -> Sequence[Sequence[np.ndarray]]:
        if encoder_ids is None:
            raise ValueError(
                "encoder_repetition_penalty and encoder_no_repeat_ngram_size need the contexts' "
                "token ids"
            )
        return encoder_ids

    def _check_ids(self, name: str, ids: Iterable[int]) -> None:
        wrong = [i for i in ids if not 0 <= i < self.vocab_size]
        if wrong:
            raise ValueError(
                f"{name} holds ids {wrong} outside the generator's vocabulary of {self.vocab_size}"
            )

    def _checked_sequences(self, name: str, items: Iterable[Any]) -> list[tuple[np.ndarray, float]]:
        checked = []
        for sequence, value in items:
            if isinstance(sequence, (int, str)) or not len(sequence):
                raise ValueError(
                    f"{name} must hold non-empty sequences of token ids; got {sequence!r}"
                )
            self._check_ids(name, sequence)
            checked.append((_ids(sequence), float(value)))
        return checked

    def processors(
        self, tokens: np.ndarray, active: np.ndarray | None = None
    ) -> list[LogitsProcessor]:
        """The logits processors of the step that follows `tokens` (R, t) int64, start tokens
        included, in the order to apply them.

        Args:
            tokens: what the rows hold.
            active: (R,) bool, the rows whose next token can still count; None = all. Of the others
                nothing is asked.

        Raises:
            ValueError: `prefix_allowed_tokens_fn` allowed nothing to any active beam of a search.
        """
        options, t = self.options, tokens.shape[1]
        processors: list[LogitsProcessor] = []
        if self.bias:
            processors += self._biases(tokens, self.bias, "add")
        if self.encoder_tokens:
            rows, ids = self._spread(self.encoder_tokens)
            processors.append(
                LogitsProcessor("penalise", ids, rows, 1 / options.encoder_repetition_penalty)
            )
        if options.repetition_penalty not in (None, 1.0):
            rows, ids = _unique_pairs(np.repeat(np.arange(len(tokens)), t), tokens.reshape(-1))
            processors.append(LogitsProcessor("penalise", ids, rows, options.repetition_penalty))
        processors += self._repeats(tokens)
        if self.bad_words:
            processors += self._biases(tokens, self.bad_words, "ban")
        new = t - self.prompt_length
        # 4.37.2 counts the prompt in min_length, and not in min_new_tokens.
        too_short = t < (options.min_length or 0) or new < (options.min_new_tokens or 0)
        if len(self.eos) and too_short:
            processors.append(LogitsProcessor("ban", self.eos))
        if self.prefix_fn is not None:
            if active is None:
                active = np.ones(len(tokens), dtype=bool)
            processors.append(self._allowed(tokens, active))
        if options.forced_bos_token_id is not None and t == 1:
            processors.append(LogitsProcessor("force", _ids([options.forced_bos_token_id])))
        if options.forced_eos_token_id is not None and t == options.max_length - 1:
            processors.append(LogitsProcessor("force", _ids(as_ids(options.forced_eos_token_id))))
        if options.remove_invalid_values:
            processors.append(LogitsProcessor("finite", _ids([])))
        if options.exponential_decay_length_penalty is not None and len(self.eos):
            if growth := self.growth_of_the_end(new):
                processors.append(LogitsProcessor("decay", self.eos, value=growth))
        if options.suppress_tokens:
            processors.append(LogitsProcessor("ban", _ids(options.suppress_tokens)))
        if options.begin_suppress_tokens and t == self.begin_index:
            processors.append(LogitsProcessor("ban", _ids(options.begin_suppress_tokens)))
        if t in self.forced:
            processors.append(LogitsProcessor("force", _ids([self.forced[t]])))
        return processors

    def growth_of_the_end(self, new: int) -> float:
        """By how much of itself `exponential_decay_length_penalty` raises an end token's score after
        so many new tokens; 0 before it begins.
        """
        start, factor = self.options.exponential_decay_length_penalty or (new, 1.0)
        try:
            growth = float(factor) ** max(new - start, 0) - 1
        except OverflowError:
            return MOST_FACTOR
        return min(growth, MOST_FACTOR)

    def _spread(self, per_search: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of each search for all its rows, as pairs (rows[i], ids[i])."""
        of_rows = [ids for ids in per_search for _ in range(self.beams)]
        counts = [len(ids) for ids in of_rows]
        return np.repeat(np.arange(len(of_rows)), counts), np.concatenate(of_rows)

    def _biases(
        self, tokens: np.ndarray, sequences: list[tuple[np.ndarray, float]], kind: str
    ) -> list[LogitsProcessor]:
        rows_of: list[np.ndarray] = []
        ids_of: list[np.ndarray] = []
        values_of: list[np.ndarray] = []
        for sequence, value in sequences:
            n = len(sequence)
            if n == 1:
                rows = np.arange(len(tokens))
            elif n > tokens.shape[1]:
                continue
            else:
                rows = np.flatnonzero((tokens[:, 1 - n :] == sequence[:-1]).all(axis=1))
            rows_of.append(rows)
            ids_of.append(np.full(len(rows), sequence[-1]))
            values_of.append(np.full(len(rows), value, dtype=np.float32))
        if not rows_of:
            return []
        # A pair may be hit by several sequences: their values add up, and it is changed once.
        pairs = np.stack([np.concatenate(rows_of), np.concatenate(ids_of)], axis=1)
        unique, inverse = np.unique(pairs, axis=0, return_inverse=True)
        total = np.zeros(len(unique), dtype=np.float32)
        np.add.at(total, inverse.reshape(-1), np.concatenate(values_of))
        return [LogitsProcessor(kind, unique[:, 1], unique[:, 0], total)]

    def _repeats(self, tokens: np.ndarray) -> list[LogitsProcessor]:
        processors, t = [], tokens.shape[1]
        n = self.options.no_repeat_ngram_size or 0
        if 0 < n <= t:
            windows = sliding_window_view(tokens, n, axis=1)  # (R, t-n+1, n)
            continues = (windows[..., :-1] == tokens[:, None, t - n + 1 :]).all(axis=-1)
            rows, at = np.nonzero(continues)
            processors.append(LogitsProcessor("ban", windows[rows, at, -1], rows))
        n = self.options.encoder_no_repeat_ngram_size or 0
        if 0 < n <= t + 1:
            banned = []
            for row, sequence in enumerate(tokens):
                grams = self.encoder_ngrams[row // self.beams]
                continues = (grams[:, :-1] == sequence[t - n + 1 :]).all(axis=1)
                banned.append(np.unique(grams[continues, -1]))
            rows = np.repeat(np.arange(len(tokens)), [len(ids) for ids in banned])
            processors.append(LogitsProcessor("ban", np.concatenate(banned), rows))
        return processors

    def _allowed(self, tokens: np.ndarray, active: np.ndarray) -> LogitsProcessor:
        # Some token must stay even where none counts: a row of nothing but -inf is NaN once it is
        # normalised.
        allowed = [_ids([0])] * len(tokens)
        for row in np.flatnonzero(active).tolist():
            allowed[row] = _returned(self.prefix_fn(self._batch_id(row), tokens[row]))  # type: ignore[misc]
            self._check_ids("prefix_allowed_tokens_fn", allowed[row])
        counts = np.array([len(ids) for ids in allowed])
        # The beams of a search stand in for each other, samples do not.
        rows_of_search = self.beams if self.options.num_beams > 1 else 1
        for start in range(0, len(tokens), rows_of_search):
            rows = slice(start, start + rows_of_search)
            if active[rows].any() and not counts[rows][active[rows]].any():
                raise ValueError(
                    "prefix_allowed_tokens_fn must allow a token or more to one beam of each "
                    f"search at least, got none for batch_id={self._batch_id(start)}. Let it "
                    "return the end token where a sequence is complete"
                )
        return LogitsProcessor(
            "keep", np.concatenate(allowed), np.repeat(np.arange(len(tokens)), counts)
        )

    def _batch_id(self, row: int) -> int:
        search = row // self.beams
        if self.batch_ids is None:
            return search
        return int(self.batch_ids[search])


def start_tokens(
    options: GenerationConfig, rows: int, prompt: np.ndarray | None = None
) -> np.ndarray:
    """What the decoder starts from, (rows, P); `max_length` of `options` is set to count a prompt
    as 4.37.2 does.

    Args:
        options: as `resolve_options` returns them; changed in place.
        rows: how many questions.
        prompt: `decoder_input_ids` (rows, P), or None for the start token alone. The start token is
            put in front where no row begins with it.

    Raises:
        ValueError: a prompt of another shape, or as long as `max_length`.
    """
    start = np.full((rows, 1), options.decoder_start_token_id, dtype=np.int64)
    if prompt is None:
        prompt = start
    if (
        prompt.ndim != 2
        or len(prompt) != rows
        or not prompt.shape[1]
        or prompt.dtype.kind not in "iu"
    ):
        raise ValueError(
            f"decoder_input_ids must be whole numbers of shape ({rows}, P), a row for each "
            f"question; got {prompt.dtype} {prompt.shape}"
        )
    if (prompt[:, 0] != start[:, 0]).all():
        prompt = np.concatenate([start, prompt], axis=1)
    length = prompt.shape[1]
    if options.max_new_tokens is not None:
        options.max_length = options.max_new_tokens + length
    if options.max_length <= length:
        raise ValueError(
            f"max_length ({options.max_length}) must be above the {length} tokens of "
            "decoder_input_ids, which it counts; or pass max_new_tokens"
        )
    return prompt.astype(np.int64)


def logits_warpers(options: GenerationConfig) -> list[LogitsWarper]:
    """The logits warpers of sampling, in order; empty without `do_sample`."""
    if not options.do_sample:
        return []
    warpers = []
    if options.temperature not in (None, 1.0):
        warpers.append(LogitsWarper("temperature", options.temperature))
    if options.top_k:
        warpers.append(LogitsWarper("top_k", options.top_k))
    for name in ("top_p", "typical_p"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            warpers.append(LogitsWarper(name, getattr(options, name)))
    for name in ("epsilon_cutoff", "eta_cutoff"):
        if getattr(options, name):
            warpers.append(LogitsWarper(name, getattr(options, name)))
    if options.renormalize_logits:
        warpers.append(LogitsWarper("normalise", 1.0))
    return warpers


def min_tokens_to_keep(options: GenerationConfig) -> int:
    """How many tokens a logits warper must leave: a beam needs one beside each end token."""
    if options.num_beams == 1:
        return 1
    return max(2, len(options.eos_token_ids) + 1)
