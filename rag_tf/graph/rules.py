"""The rules of a decoding step inside a graph: the twin of `StepRules`, for options known
beforehand.

Letters: R rows (searches * K beams), t tokens so far, M most tokens, V vocabulary, W sequences of a
list of words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.generation import GenerationConfig, StepRules, as_ids

_LOWEST = float("-inf")
# option -> the value at which it asks for nothing, and why a graph can't have it
_REFUSED: dict[str, tuple[Any, str]] = {
    "do_sample": (False, "its noise is drawn outside"),
    "guidance_scale": (1.0, "it reads a second context"),
    "encoder_repetition_penalty": (1.0, "it reads the contexts outside"),
    "encoder_no_repeat_ngram_size": (0, "it reads the contexts outside"),
}


def refused_option(options: GenerationConfig) -> str | None:
    """Which option a loop in a graph can't have, and why, in words; None where it can have all."""
    for name, (neutral, reason) in _REFUSED.items():
        value = getattr(options, name)
        if value is not None and value != neutral:
            return f"{name}={value!r} is not offered in a graph ({reason})"
    return None


def check_options(options: GenerationConfig) -> None:
    """Refuse what the loop in the graph doesn't offer.

    Raises:
        ValueError: naming the option.
    """
    refused = refused_option(options)
    if refused is not None:
        raise ValueError(f"{refused}: leave it out, or use generate()")


class GraphRules:
    """The logits processors that rag_core.generation.logits_rules decides, carried out in the graph.

    Args:
        options: as `resolve_options` returns them.
        vocab_size: V.
        prompt_length: tokens that the decoder starts from.

    Raises:
        ValueError: an option that a graph can't have, or one that names a token outside the
            vocabulary.
    """

    def __init__(self, options: GenerationConfig, vocab_size: int, prompt_length: int = 1) -> None:
        check_options(options)
        self.options = options
        self.vocab_size = vocab_size
        self.prompt_length = prompt_length
        self.rules = StepRules(options, beams=1, vocab_size=vocab_size, prompt_length=prompt_length)

    def __call__(self, scores: tf.Tensor, tokens: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
        """The scores as the rules leave them.

        Args:
            scores: (R, V) of the next token.
            tokens: (R, M) tokens so far, anything beyond `length`.
            length: t, a scalar.

        Returns:
            (R, V).
        """
        options = self.options
        rules = self.rules
        generated = length - self.prompt_length
        if rules.bias:
            scores += tf.cast(self._completed_values(tokens, length, rules.bias), scores.dtype)
        if options.repetition_penalty not in (None, 1.0):
            scores = self._penalized(scores, tokens, length, options.repetition_penalty)
        if options.no_repeat_ngram_size:
            scores = _ban(scores, self._is_repeated(tokens, length, options.no_repeat_ngram_size))
        if rules.bad_words:
            scores = _ban(scores, self._completed_values(tokens, length, rules.bad_words) < 0)
        if len(rules.eos):
            too_short = length < (options.min_length or 0)
            too_few = generated < (options.min_new_tokens or 0)
            scores = _ban(scores, self._at(rules.eos) & (too_short | too_few))
        if options.forced_bos_token_id is not None:
            scores = self._force(scores, [options.forced_bos_token_id], tf.equal(length, 1))
        if options.forced_eos_token_id is not None:
            is_last = tf.equal(length, tf.shape(tokens)[1] - 1)
            scores = self._force(scores, as_ids(options.forced_eos_token_id), is_last)
        if options.remove_invalid_values:
            finite = tf.clip_by_value(scores, scores.dtype.min, scores.dtype.max)
            scores = tf.where(tf.math.is_nan(scores), tf.zeros_like(scores), finite)
        if options.exponential_decay_length_penalty is not None and len(rules.eos):
            start, _ = options.exponential_decay_length_penalty
            scores = self._decayed(scores, generated, start)
        if options.suppress_tokens:
            scores = _ban(scores, self._at(options.suppress_tokens))
        if options.begin_suppress_tokens:
            is_first = tf.equal(length, rules.begin_index)
            scores = _ban(scores, self._at(options.begin_suppress_tokens) & is_first)
        for place, token in rules.forced.items():
            scores = self._force(scores, [token], tf.equal(length, place))
        if options.renormalize_logits:
            scores = tf.nn.log_softmax(scores)
        return scores

    def _at(self, ids: Sequence[int] | np.ndarray) -> tf.Tensor:
        """(V,) True at the ids."""
        mask = np.zeros(self.vocab_size, dtype=bool)
        mask[list(ids)] = True
        return tf.constant(mask)

    def _force(self, scores: tf.Tensor, ids: Sequence[int], now: tf.Tensor) -> tf.Tensor:
        only = tf.where(self._at(ids), tf.zeros_like(scores), _LOWEST)
        return tf.where(now, only, scores)

    def _penalized(
        self, scores: tf.Tensor, tokens: tf.Tensor, length: tf.Tensor, penalty: float
    ) -> tf.Tensor:
        """Tokens written before are worth less."""
        is_written = tf.range(tf.shape(tokens)[1])[None] < length  # (1, M)
        is_written = tf.broadcast_to(is_written, tf.shape(tokens))
        worse = tf.where(scores < 0, scores * penalty, scores / penalty)
        return tf.where(self._marked(tokens, is_written), worse, scores)

    def _decayed(self, scores: tf.Tensor, generated: tf.Tensor, start: int) -> tf.Tensor:
        """End tokens are worth more and more, once `start` tokens are generated."""
        # a table, so that the powers are Python's
        lengths = range(self.options.max_length + 1)
        growth = [self.rules.growth_of_the_end(i) for i in lengths]
        share = tf.gather(tf.constant(growth, scores.dtype), generated)
        raised = tf.where(tf.math.is_inf(scores), scores, scores + tf.abs(scores) * share)
        return tf.where(self._at(self.rules.eos) & (generated > start), raised, scores)

    def _completed_values(
        self, tokens: tf.Tensor, length: tf.Tensor, words: list[tuple[np.ndarray, float]]
    ) -> tf.Tensor:
        """(R, V) float32: the values of the sequences that each next token would complete."""
        longest = max(len(ids) for ids, _ in words)
        # (W, longest - 1); -1 = any token
        beginnings = np.full((len(words), longest - 1), -1, dtype=np.int64)
        for row, (ids, _) in enumerate(words):
            beginnings[row, longest - len(ids) :] = ids[:-1]
        # a sequence of one token is always complete, longer ones need all their tokens written
        needed = tf.constant([0 if len(ids) == 1 else len(ids) for ids, _ in words])
        last = _last(tokens, length, longest - 1)  # (R, longest - 1)
        is_same = (last[:, None] == beginnings) | (beginnings == -1)
        is_begun = tf.reduce_all(is_same, axis=2) & (needed <= length)  # (R, W)
        values = tf.constant([value for _, value in words], tf.float32)
        last_ids = tf.constant([int(ids[-1]) for ids, _ in words])
        by_word = tf.transpose(tf.where(is_begun, values, 0.0))  # (W, R)
        return tf.transpose(tf.math.unsorted_segment_sum(by_word, last_ids, self.vocab_size))

    def _is_repeated(self, tokens: tf.Tensor, length: tf.Tensor, n: int) -> tf.Tensor:
        """(R, V) True at tokens that would complete an n-gram written before."""
        last = _last(tokens, length, n - 1)  # (R, n - 1)
        count = tf.maximum(tf.shape(tokens)[1] - n + 1, 0)  # n-grams of M tokens
        is_written = tf.range(count)[None] <= length - n  # (1, M-n+1)
        is_same = tf.broadcast_to(is_written, [tf.shape(tokens)[0], count])
        for i in range(n - 1):
            is_same &= tokens[:, i : i + count] == last[:, i : i + 1]
        return self._marked(tokens[:, n - 1 :], is_same)

    def _marked(self, ids: tf.Tensor, is_marked: tf.Tensor) -> tf.Tensor:
        """(R, V) True at the ids (R, L) where `is_marked` (R, L) is True."""
        numbers = tf.range(tf.shape(ids, tf.int64)[0], dtype=tf.int64)[:, None]
        rows = tf.broadcast_to(numbers, tf.shape(ids))
        # those not meant go to a column beyond the vocabulary
        columns = tf.where(is_marked, ids, self.vocab_size)
        marks = tf.zeros([tf.shape(ids)[0], self.vocab_size + 1], tf.int32)
        ones = tf.ones_like(ids, tf.int32)
        marks = tf.tensor_scatter_nd_max(marks, tf.stack([rows, columns], axis=2), ones)
        return marks[:, : self.vocab_size] > 0


def _last(tokens: tf.Tensor, length: tf.Tensor, count: int) -> tf.Tensor:
    """The `count` tokens before position t, (R, count).

    Where there are fewer, the first one stands for them.
    """
    return tf.gather(tokens, tf.maximum(length - count + tf.range(count), 0), axis=1)


def _ban(scores: tf.Tensor, where: tf.Tensor) -> tf.Tensor:
    return tf.where(where, tf.constant(_LOWEST, scores.dtype), scores)
