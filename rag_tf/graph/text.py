"""Texts to ids and back within a graph, by the tables of rag_core.tokenization.

TensorFlow Text finds the pieces of WordPiece and of sentencepiece, and added tokens; byte-level BPE
it does not have, so that its merges stand here. Letters: R texts, P stretches of text between added
tokens, C characters, W words, U distinct words, L longest word in bytes, M merges, V tokens.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.tokenization import (
    WHITESPACE,
    BytePairTable,
    CharacterKinds,
    CharacterMap,
    TextTables,
    WordPieceTable,
)

SPACE, LETTER, DIGIT, OTHER = range(4)


def tensorflow_text() -> Any:
    """The library, whose operations a graph of strings needs."""
    try:
        import tensorflow_text
    except Exception as error:  # of another release of TensorFlow it finds no symbols
        raise ImportError(
            f"strings=True needs tensorflow-text for TensorFlow {tf.__version__}, of the same "
            "release up to the last number. Run  pip install 'dualrag[tf-text]'  ; where there is "
            f"no such wheel, export without strings=True ({type(error).__name__}: {error})"
        ) from error
    return tensorflow_text


class TextGraph(tf.Module):
    """A tokenizer as operations of a graph.

    Args:
        tables: of the tokenizer.
        limit: ids that a row may have, special ones included; None = as the tokenizer says.
    """

    def __init__(self, tables: TextTables, limit: int | None = None) -> None:
        super().__init__()
        self._library = tensorflow_text()
        self._frame = tables.before, tables.after
        self._side = tables.side
        self._limit = tables.limit if limit is None else limit
        specials = len(tables.before) + len(tables.after)
        if self._limit is not None and self._limit < specials:
            raise ValueError(
                f"max_length leaves no room for the special tokens: it is "
                f"{specials - self._limit} too small"
            )
        self.pad = tables.pad
        self._added = _AddedTokens(tables, self._library)
        # a graph's constants would be copied into each function
        self._first = tf.constant(tables.first)
        self._later = tf.constant(tables.later)
        self._alone = tf.constant(tables.alone)
        self._is_skipped = tf.constant(tables.skipped)
        self._is_word = tf.constant(~tables.no_words)
        self._cleaned = tables.cleaned
        self._is_bytes = isinstance(tables.model, BytePairTable)
        if isinstance(tables.model, WordPieceTable):
            self._model: Any = _WordPiece(tables.model, self._library)
        elif isinstance(tables.model, BytePairTable):
            self._model = _BytePairs(tables.model)
        else:
            self._model = self._library.SentencepieceTokenizer(tables.model.model)

    def ids(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """The ids of texts (R,), neither cut nor framed: (R, none) int64."""
        values, splits = self._ids(texts)
        return tf.RaggedTensor.from_row_splits(values, splits, validate=False)

    # A function of its own, for prompts are read more than once in a graph.
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def _ids(self, texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        parts = self._added.parted(texts)  # (R, none)
        stretches = parts.values  # (P,)
        is_added, added_id = self._added.known(stretches)
        plain = tf.where(is_added, "", stretches)
        found = self._model.tokenize(plain)  # (P, none)
        added = tf.RaggedTensor.from_row_lengths(
            tf.boolean_mask(added_id, is_added), tf.cast(is_added, tf.int64), validate=False
        )
        both = tf.concat([tf.cast(found, tf.int64), added], axis=1)
        rows = parts.with_values(both).merge_dims(1, 2)
        return rows.values, rows.row_splits

    def encode(self, texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """What a call of the tokenizer returns with padding and truncation: ids (R, S) int64 and
        which of them are real.
        """
        return self.framed(self.ids(texts))

    def framed(self, rows: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Rows that `ids` returned, cut, with special tokens around and padded."""
        before, after = self._frame
        if self._limit is not None:
            budget = self._limit - len(before) - len(after)
            if self._side == "right" or not budget:  # the last 0 of a slice are all
                rows = rows[:, :budget]
            else:
                rows = rows[:, -budget:]
        rows = tf.concat([self._repeated(before, rows), rows, self._repeated(after, rows)], axis=1)
        return rows.to_tensor(self.pad), tf.sequence_mask(rows.row_lengths())

    def framed_lengths(self, rows: tf.RaggedTensor) -> tf.Tensor:
        """How many ids the rows of `ids` have with special ones, uncut."""
        before, after = self._frame
        return rows.row_lengths() + len(before) + len(after)

    def _repeated(self, ids: list[int], rows: tf.RaggedTensor) -> tf.Tensor:
        return tf.tile(tf.constant([ids], tf.int64, (1, len(ids))), [rows.nrows(), 1])

    def has_words(self, ids: tf.Tensor) -> tf.Tensor:
        """Whether rows of ids (R, S) hold more than special tokens, (R,)."""
        return tf.reduce_any(tf.gather(self._is_word, ids), axis=1)

    def decode(self, ids: tf.Tensor) -> tf.Tensor:
        """Texts (R,) of rows of ids (R, S), without special tokens."""
        rows = tf.ragged.boolean_mask(ids, ~tf.gather(self._is_skipped, ids))
        written = tf.concat(
            [tf.gather(self._first, rows[:, :1]), tf.gather(self._later, rows[:, 1:])], axis=1
        )
        texts = tf.strings.reduce_join(written, axis=1)
        return self._written(texts)

    def decode_alone(self, ids: tf.Tensor) -> tf.Tensor:
        """The text of each id, of its shape."""
        return tf.gather(self._alone, ids)

    def _written(self, texts: tf.Tensor) -> tf.Tensor:
        if self._is_bytes:
            texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
        for spaced, plain in self._cleaned:
            texts = tf.strings.regex_replace(texts, re.escape(spaced), plain)
        return texts


def stripped(texts: tf.Tensor) -> tf.Tensor:
    """Texts without blanks at their ends, as Python's str.strip has them."""
    return tf.strings.regex_replace(texts, f"^[{WHITESPACE}]+|[{WHITESPACE}]+$", "")


class _AddedTokens(tf.Module):
    """The tokens that are looked for before all else."""

    def __init__(self, tables: TextTables, library: Any) -> None:
        super().__init__()
        self._library = library
        self._pattern = "|".join(
            f"[{WHITESPACE}]*" * (token in tables.swallows) + _quoted(token)
            for token in tables.added
        )
        self._swallows = bool(tables.swallows)
        self._tokens = tf.constant(list(tables.added), tf.string)
        self._ids = tf.constant(list(tables.added.values()), tf.int64)

    def parted(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Texts (R,) as stretches of plain text and added tokens, (R, none)."""
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
        if not self._pattern:
            return tf.RaggedTensor.from_tensor(texts[:, None])
        # The library ends a text at its first NUL: meanwhile that is a byte that no text has.
        texts = tf.strings.regex_replace(texts, r"\x00", tf.constant(b"\xff"))
        parts = self._library.regex_split(texts, self._pattern, self._pattern)
        return parts.with_values(
            tf.strings.unicode_transcode(
                parts.values, "UTF-8", "UTF-8", errors="replace", replacement_char=0
            )
        )

    def known(self, stretches: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Which of (P,) are added tokens, and their ids."""
        if not self._pattern:
            return tf.zeros_like(stretches, tf.bool), tf.zeros_like(stretches, tf.int64)
        if self._swallows:
            stretches = tf.strings.regex_replace(stretches, f"^[{WHITESPACE}]+", "")
        is_equal = stretches[:, None] == self._tokens  # (P, tokens)
        place = tf.argmax(tf.cast(is_equal, tf.int32), axis=1)
        return tf.reduce_any(is_equal, axis=1), tf.gather(self._ids, place)


def _quoted(text: str) -> str:
    """A text as an expression of RE2, which knows no escaped letters beyond ASCII."""
    return "".join(re.escape(letter) if letter.isascii() else letter for letter in text)


class _Characters:
    """The characters of stretches of text, one after another.

    Attributes:
        codes: (C,) int32.
        rows: (C,) int64, the stretch each is of.
        count: P.
    """

    def __init__(self, codes: tf.Tensor, rows: tf.Tensor, count: tf.Tensor) -> None:
        self.codes = codes
        self.rows = rows
        self.count = count
        is_same = rows[1:] == rows[:-1]
        self._follows = tf.concat([[False], is_same], 0)[: tf.size(rows)]

    @classmethod
    def of(cls, texts: tf.Tensor) -> _Characters:
        found = tf.strings.unicode_decode(texts, "UTF-8", errors="replace")
        return cls(found.values, found.value_rowids(), found.nrows())

    def before(self, values: tf.Tensor, places: int, fill: Any) -> tf.Tensor:
        """The value `places` before each character, `fill` beyond its stretch's beginning."""
        shifted = tf.concat([tf.fill([places], tf.constant(fill, values.dtype)), values], 0)
        rows = tf.concat([tf.fill([places], tf.constant(-1, tf.int64)), self.rows], 0)
        size = tf.size(values)
        return tf.where(rows[:size] == self.rows, shifted[:size], tf.constant(fill, values.dtype))

    def after(self, values: tf.Tensor, places: int, fill: Any) -> tf.Tensor:
        """The value `places` behind each character, `fill` beyond its stretch's end."""
        shifted = tf.concat([values, tf.fill([places], tf.constant(fill, values.dtype))], 0)
        rows = tf.concat([self.rows, tf.fill([places], tf.constant(-1, tf.int64))], 0)
        return tf.where(
            rows[places:] == self.rows, shifted[places:], tf.constant(fill, values.dtype)
        )

    def words(self, is_start: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Words (W,) that begin where told, and the stretch each is of.

        Args:
            is_start: (C,) bool, true at the first character of a stretch.
        """
        numbers = tf.cumsum(tf.cast(is_start, tf.int64)) - 1
        letters = tf.RaggedTensor.from_value_rowids(self.codes, numbers, validate=False)
        return tf.strings.unicode_encode(letters, "UTF-8"), tf.boolean_mask(self.rows, is_start)


class _Kinds(tf.Module):
    """The kinds of characters."""

    def __init__(self, kinds: CharacterKinds) -> None:
        super().__init__()
        self._starts = tf.constant(kinds.starts)
        self._kinds = tf.constant(kinds.kinds)

    def __call__(self, codes: tf.Tensor) -> tf.Tensor:
        run = tf.searchsorted(self._starts, codes, side="right") - 1
        return tf.gather(self._kinds, run)


class _Normalizer(tf.Module):
    """Characters one by one into what they become."""

    def __init__(self, table: CharacterMap) -> None:
        super().__init__()
        self._characters = tf.constant(table.characters)
        self._values = tf.constant(table.values)
        self._starts = tf.constant(table.starts)

    def __call__(self, letters: _Characters) -> _Characters:
        codes = letters.codes
        last = tf.size(self._characters) - 1
        place = tf.minimum(tf.searchsorted(self._characters, codes), last)
        is_changed = tf.gather(self._characters, place) == codes
        # all in one table, in which a character that stays is itself, behind the others
        own = tf.size(self._values) + tf.range(tf.size(codes))
        starts = tf.where(is_changed, tf.gather(self._starts, place), own)
        ends = tf.where(is_changed, tf.gather(self._starts, place + 1), own + 1)
        taken = tf.ragged.range(starts, ends)
        values = tf.gather(tf.concat([self._values, codes], 0), taken.values)
        rows = tf.gather(letters.rows, taken.value_rowids())
        return _Characters(values, rows, letters.count)


class _WordPiece(tf.Module):
    """BERT's words and their pieces."""

    def __init__(self, table: WordPieceTable, library: Any) -> None:
        super().__init__()
        self._normal = _Normalizer(table.normal)
        self._kinds = _Kinds(table.kinds)
        self._longest = table.longest
        self._unknown = table.tokens.index(table.unknown)
        self._pieces = library.FastWordpieceTokenizer(
            vocab=table.tokens,
            max_bytes_per_word=4 * table.longest,
            token_out_type=tf.int64,
            unknown_token=table.unknown,
            no_pretokenization=True,
        )

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        letters = self._normal(_Characters.of(texts))
        kinds = self._kinds(letters.codes)
        # A word of its own parts those around it; blanks are words too, until they are dropped.
        is_start = (letters.before(kinds, 1, -1) != kinds) | (kinds == OTHER)
        words, rows = letters.words(is_start)
        is_kept = tf.boolean_mask(kinds, is_start) != SPACE
        words, rows = tf.boolean_mask(words, is_kept), tf.boolean_mask(rows, is_kept)
        is_long = tf.strings.length(words, "UTF8_CHAR") > self._longest
        pieces = self._pieces.tokenize(tf.where(is_long, "", words))  # (W, none)
        unknown = tf.fill([tf.math.count_nonzero(is_long)], tf.constant(self._unknown, tf.int64))
        of_long = tf.RaggedTensor.from_row_lengths(
            unknown, tf.cast(is_long, tf.int64), validate=False
        )
        return _by_row(tf.concat([pieces, of_long], axis=1), rows, letters.count)


class _BytePairs(tf.Module):
    """BART's words and their merges (Sennrich et al. 2016, section 3.2)."""

    def __init__(self, table: BytePairTable) -> None:
        super().__init__()
        self._kinds = _Kinds(table.kinds)
        self._byte_ids = tf.constant(table.byte_ids)
        self._spaced = table.spaced
        self._base = len(table.lengths)
        keys = table.pairs[:, 0].astype(np.int64) * self._base + table.pairs[:, 1]
        # of a pair that is named twice the later merge counts, as in a dictionary
        keys, places = np.unique(keys[::-1], return_index=True)
        ranks = len(table.pairs) - 1 - places
        self._keys = tf.constant(keys)
        self._ranks = tf.constant(ranks, tf.int32)
        self._merged = tf.constant(np.append(table.merged, -1), tf.int32)
        self._none = len(table.pairs)  # the rank of pairs that are not merged

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        if self._spaced:
            is_bare = (texts != "") & ~tf.strings.regex_full_match(texts, "(?s) .*")
            texts = tf.where(is_bare, " " + texts, texts)
        letters = _Characters.of(texts)
        words, rows = letters.words(self._starts(letters))
        distinct, place = tf.unique(words)
        tokens = tf.gather(self._merge(distinct), place)  # (W, none)
        return _by_row(tf.cast(tokens, tf.int64), rows, letters.count)

    def _starts(self, letters: _Characters) -> tf.Tensor:
        """Where words begin: GPT-2's expression, which looks ahead, as rules.

        A word is a run of letters, digits or others, with one blank before it if there is one;
        spaces are one word but for the last before a word; 's, 't, 're, 've, 'm, 'll and 'd are
        words of their own.
        """
        codes = letters.codes
        kinds = self._kinds(codes)
        is_space = kinds == SPACE
        last = letters.before(kinds, 1, -1)
        is_after_blank = letters.before(codes, 1, -1) == ord(" ")
        follows_word = letters.after(kinds, 1, SPACE) != SPACE
        is_start = tf.where(
            is_space, (last != SPACE) | follows_word, (last != kinds) & ~is_after_blank
        )
        after = [letters.after(codes, places, -1) for places in (1, 2)]
        is_apostrophe = (codes == ord("'")) & is_start
        length = tf.zeros_like(codes)
        for ending in ("s", "t", "m", "d", "re", "ve", "ll"):
            is_ending = is_apostrophe
            for letter, code in zip(ending, after, strict=False):
                is_ending &= code == ord(letter)
            length = tf.where(is_ending, len(ending), length)
        one, two, three = (letters.before(length, places, 0) for places in (1, 2, 3))
        is_within = (one >= 1) | (two == 2)
        is_behind = ((two == 1) | (three == 2)) & ~is_space
        return (is_start & ~is_within) | is_behind

    def _merge(self, words: tf.Tensor) -> tf.RaggedTensor:
        """The tokens of distinct words (U,), (U, none) int32."""
        sizes = tf.strings.length(words)
        longest = tf.maximum(tf.reduce_max(sizes), 1)
        values = tf.io.decode_raw(words, tf.uint8, fixed_length=longest)
        ids = tf.gather(self._byte_ids, tf.cast(values, tf.int32))  # (U, L)
        ids = tf.where(tf.sequence_mask(sizes, longest), ids, -1)
        beyond = tf.fill([tf.shape(ids)[0], 1], -1)
        ranks = self._rank(ids, tf.concat([ids[:, 1:], beyond], 1))  # (U, L), of it and the next

        def goes_on(ids: tf.Tensor, ranks: tf.Tensor) -> tf.Tensor:
            return tf.reduce_any(ranks < self._none)

        def merge_first(ids: tf.Tensor, ranks: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            """The first merge of each word that has one, its leftmost."""
            active = tf.where(tf.reduce_min(ranks, 1) < self._none)  # (A, 1)
            old, order = tf.gather_nd(ids, active), tf.gather_nd(ranks, active)
            best = tf.argmin(order, 1, tf.int32)[:, None]  # (A, 1)
            rank = tf.gather(order, best, batch_dims=1)
            columns = tf.range(longest)[None]
            source = tf.minimum(columns + tf.cast(columns > best, tf.int32), longest - 1)
            moved = tf.gather(old, source, batch_dims=1)
            moved = tf.where(columns == best, tf.gather(self._merged, rank), moved)
            moved = tf.where(columns == longest - 1, -1, moved)
            order = tf.gather(order, source, batch_dims=1)
            order = tf.where(columns == longest - 1, self._none, order)
            # the pairs on both sides of what was merged are new ones
            for left in (best - 1, best):
                first = tf.gather(moved, tf.maximum(left, 0), batch_dims=1)
                second = tf.gather(moved, tf.minimum(left + 1, longest - 1), batch_dims=1)
                order = tf.where(columns == left, self._rank(first, second), order)
            return (
                tf.tensor_scatter_nd_update(ids, active, moved),
                tf.tensor_scatter_nd_update(ranks, active, order),
            )

        ids, _ = tf.while_loop(goes_on, merge_first, (ids, ranks))
        return tf.RaggedTensor.from_tensor(ids, tf.math.count_nonzero(ids >= 0, axis=1))

    def _rank(self, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """The rank of pairs of ids, of any shape; -1 is no id."""
        keys = tf.cast(left, tf.int64) * self._base + tf.cast(right, tf.int64)
        keys = tf.where((left < 0) | (right < 0), tf.constant(-1, tf.int64), keys)
        flat = tf.reshape(keys, [-1])
        place = tf.minimum(tf.searchsorted(self._keys, flat), tf.size(self._keys) - 1)
        ranks = tf.where(
            tf.gather(self._keys, place) == flat, tf.gather(self._ranks, place), self._none
        )
        return tf.reshape(ranks, tf.shape(keys))


def _by_row(tokens: tf.RaggedTensor, rows: tf.Tensor, count: tf.Tensor) -> tf.RaggedTensor:
    """Tokens of words (W, none) as tokens of stretches (P, none)."""
    of_tokens = tf.gather(rows, tokens.value_rowids())
    return tf.RaggedTensor.from_value_rowids(tokens.values, of_tokens, nrows=count, validate=False)
