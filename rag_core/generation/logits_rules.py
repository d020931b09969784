"""What each step of decoding may and may not write: options and tokens so far -> edits of the
step's scores.

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

from rag_core.generation.config import GenerationConfig, as_ids

PrefixFunction = Callable[[int, np.ndarray], Iterable[int]]


@dataclass(frozen=True)
class Edit:
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
class Warp:
    """One narrowing of the distribution that is sampled from.

    "temperature", "top_k", "top_p", "typical_p", ...
    """

    kind: str
    value: float


def _ids(values: Iterable[int]) -> np.ndarray:
    return np.asarray(list(values), dtype=np.int64).reshape(-1)


def _returned(ids: Any) -> np.ndarray:
    """The ids that `prefix_allowed_tokens_fn` returned, in any form that holds whole numbers."""
    array = np.asarray(ids if isinstance(ids, np.ndarray) or ids is None else [*ids]).reshape(-1)
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
        begin = (
            2 if prompt_length == 1 and options.forced_bos_token_id is not None else prompt_length
        )
        self.begin_index = begin + (int(list(forced)[-1]) if forced else 0)
        self.encoder_tokens: list[np.ndarray] = []
        self.encoder_ngrams: list[np.ndarray] = []
        if options.encoder_repetition_penalty not in (None, 1.0):
            self.encoder_tokens = [
                np.unique(np.concatenate(list(docs))) for docs in self._need(encoder_ids)
            ]
        n = options.encoder_no_repeat_ngram_size
        if n:
            for docs in self._need(encoder_ids):
                grams = [sliding_window_view(np.asarray(doc), n) for doc in docs if len(doc) >= n]
                self.encoder_ngrams.append(
                    np.concatenate(grams) if grams else np.zeros((0, n), np.int64)
                )

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

    def edits(self, tokens: np.ndarray, live: np.ndarray | None = None) -> list[Edit]:
        """The edits of the step that follows `tokens` (R, t) int64, start tokens included, in the
        order to apply them.

        Args:
            tokens: what the rows hold.
            live: (R,) bool, the rows whose next token can still count; None = all. Of the others
                nothing is asked.

        Raises:
            ValueError: `prefix_allowed_tokens_fn` allowed nothing to any live beam of a search.
        """
        o, t = self.options, tokens.shape[1]
        edits: list[Edit] = []
        if self.bias:
            edits += self._biases(tokens, self.bias, "add")
        if self.encoder_tokens:
            rows, ids = self._spread(self.encoder_tokens)
            edits.append(Edit("penalise", ids, rows, 1 / o.encoder_repetition_penalty))
        if o.repetition_penalty not in (None, 1.0):
            rows, ids = _unique_pairs(np.repeat(np.arange(len(tokens)), t), tokens.reshape(-1))
            edits.append(Edit("penalise", ids, rows, o.repetition_penalty))
        edits += self._repeats(tokens)
        if self.bad_words:
            edits += self._biases(tokens, self.bad_words, "ban")
        new = t - self.prompt_length
        if len(self.eos) and (t < (o.min_length or 0) or new < (o.min_new_tokens or 0)):
            edits.append(Edit("ban", self.eos))
        if self.prefix_fn is not None:
            edits.append(
                self._allowed(tokens, np.ones(len(tokens), dtype=bool) if live is None else live)
            )
        if o.forced_bos_token_id is not None and t == 1:
            edits.append(Edit("force", _ids([o.forced_bos_token_id])))
        if o.forced_eos_token_id is not None and t == o.max_length - 1:
            edits.append(Edit("force", _ids(as_ids(o.forced_eos_token_id))))
        if o.remove_invalid_values:
            edits.append(Edit("finite", _ids([])))
        if o.exponential_decay_length_penalty is not None and len(self.eos):
            start, factor = o.exponential_decay_length_penalty
            if new > start:
                edits.append(Edit("decay", self.eos, value=factor ** (new - start) - 1))
        if o.suppress_tokens:
            edits.append(Edit("ban", _ids(o.suppress_tokens)))
        if o.begin_suppress_tokens and t == self.begin_index:
            edits.append(Edit("ban", _ids(o.begin_suppress_tokens)))
        if t in self.forced:
            edits.append(Edit("force", _ids([self.forced[t]])))
        return edits

    def _spread(self, per_search: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        rows = [
            np.full(len(ids), s * self.beams + k)
            for s, ids in enumerate(per_search)
            for k in range(self.beams)
        ]
        return np.concatenate(rows), np.concatenate(
            [ids for ids in per_search for _ in range(self.beams)]
        )

    def _biases(
        self, tokens: np.ndarray, sequences: list[tuple[np.ndarray, float]], kind: str
    ) -> list[Edit]:
        rows_of, ids_of, values_of = [], [], []
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
        pairs = np.stack([np.concatenate(rows_of), np.concatenate(ids_of)], axis=1)
        unique, inverse = np.unique(pairs, axis=0, return_inverse=True)
        total = np.zeros(len(unique), dtype=np.float32)
        np.add.at(total, inverse.reshape(-1), np.concatenate(values_of))
        return [Edit(kind, unique[:, 1], unique[:, 0], total)]

    def _repeats(self, tokens: np.ndarray) -> list[Edit]:
        edits, t = [], tokens.shape[1]
        n = self.options.no_repeat_ngram_size or 0
        if 0 < n <= t:
            windows = sliding_window_view(tokens, n, axis=1)  # (R, t-n+1, n)
            rows, at = np.nonzero((windows[..., :-1] == tokens[:, None, t - n + 1 :]).all(axis=-1))
            edits.append(Edit("ban", windows[rows, at, -1], rows))
        n = self.options.encoder_no_repeat_ngram_size or 0
        if 0 < n <= t + 1:
            banned = []
            for row, sequence in enumerate(tokens):
                grams = self.encoder_ngrams[row // self.beams]
                banned.append(
                    np.unique(grams[(grams[:, :-1] == sequence[t - n + 1 :]).all(axis=1), -1])
                )
            rows = np.repeat(np.arange(len(tokens)), [len(ids) for ids in banned])
            edits.append(Edit("ban", np.concatenate(banned), rows))
        return edits

    def _allowed(self, tokens: np.ndarray, live: np.ndarray) -> Edit:
        # Some token must stay even where none counts: a row of nothing but -inf is NaN once it is
        # normalised.
        allowed = [_ids([0])] * len(tokens)
        for row in np.flatnonzero(live).tolist():
            allowed[row] = _returned(self.prefix_fn(self._batch_id(row), tokens[row]))  # type: ignore[misc]
            self._check_ids("prefix_allowed_tokens_fn", allowed[row])
        counts = np.array([len(ids) for ids in allowed])
        together = self.beams if self.options.num_beams > 1 else 1
        for start in range(0, len(tokens), together):
            own = slice(start, start + together)
            if live[own].any() and not counts[own][live[own]].any():
                raise ValueError(
                    "prefix_allowed_tokens_fn must allow a token or more to one beam of each "
                    f"search at least, got none for batch_id={self._batch_id(start)}. Let it "
                    "return the end token where a sequence is complete"
                )
        return Edit("keep", np.concatenate(allowed), np.repeat(np.arange(len(tokens)), counts))

    def _batch_id(self, row: int) -> int:
        search = row // self.beams
        return search if self.batch_ids is None else int(self.batch_ids[search])


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
    prompt = start if prompt is None else prompt
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


def sampling_warps(options: GenerationConfig) -> list[Warp]:
    """The narrowings of the sampled distribution, in order; empty without `do_sample`."""
    if not options.do_sample:
        return []
    warps = []
    if options.temperature not in (None, 1.0):
        warps.append(Warp("temperature", options.temperature))
    if options.top_k:
        warps.append(Warp("top_k", options.top_k))
    for name in ("top_p", "typical_p"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            warps.append(Warp(name, getattr(options, name)))
    for name in ("epsilon_cutoff", "eta_cutoff"):
        if getattr(options, name):
            warps.append(Warp(name, getattr(options, name)))
    if options.renormalize_logits:
        warps.append(Warp("normalise", 1.0))
    return warps


def least_kept(options: GenerationConfig) -> int:
    """How many tokens a narrowing must leave: a beam needs one beside each end token."""
    return (
        1
        if options.num_beams == 1
        else max(2, len(options.eos_token_ids) + (len(options.eos_token_ids) > 1))
    )
