"""BatchEncoding and the padding of token rows: no framework, no state on a shared tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from rag_core.backends import to_tensor

if TYPE_CHECKING:
    import tokenizers
    from typing_extensions import LiteralString

    class AnyTensor(Any):
        """What checkers see in `**batch`: it passes for a tensor of any framework and for no flag,
        so that `generate(**batch)` is the overload without `return_dict_in_generate=True`.
        """


# Where an encoding keeps how its `encodings` are made: few ask for them, and they take long.
_ENCODE = "_encode"


class CharSpan(NamedTuple):
    """Characters of a text, from `start` to before `end`."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens of a row, from `start` to before `end`."""

    start: int
    end: int


class BatchEncoding(dict[str, Any]):
    """What a tokenizer or retriever returns: a dict whose keys are attributes too
    (`batch.input_ids`).

    That of a tokenizer also knows its tokens: `encoding[0]`, `tokens()`, `word_ids()`,
    `char_to_token()` and the like ask the `tokenizers` library again when they are first used; they
    are lost on pickling.

    Args:
        data: the mapping to hold; more keys may follow as keyword arguments.
        encoding: the library's encoding, or one for each row.
        tensor_type: None, "np", "pt" or "tf": what rows become, as in `convert_to_tensors`.
        prepend_batch_axis: wrap each value in a batch of one before that.
        n_sequences: 1, or 2 for pairs of texts; None asks the encoding.
    """

    def __init__(
        self,
        data: Any = None,
        encoding: Any = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
        n_sequences: int | None = None,
        **more: Any,
    ) -> None:
        super().__init__(data or {}, **more)
        if encoding is not None:
            encodings = [encoding]
            if isinstance(encoding, list | tuple):
                encodings = list(encoding)
            self._encode_later(lambda: encodings)
        self.__dict__["_n_sequences"] = n_sequences
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    def _encode_later(self, encode: Callable[[], list[tokenizers.Encoding]]) -> BatchEncoding:
        self.__dict__[_ENCODE] = encode
        return self

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"this BatchEncoding has no {name!r}, it has {sorted(self)}")

    @overload
    def __getitem__(self, key: LiteralString | int | slice) -> Any: ...

    @overload
    def __getitem__(self, key: str) -> AnyTensor: ...  # type: ignore[overload-cannot-match]

    def __getitem__(self, key: Any) -> Any:
        """The value of a key; of a row number the library's encoding of that row, of a slice a
        list of them.
        """
        if not isinstance(key, slice) and key in self.keys():
            return super().__getitem__(key)
        if not isinstance(key, int | slice):
            raise KeyError(key)
        try:
            rows = self._rows()
        except ValueError as error:
            raise KeyError(str(error)) from None
        return rows[key]

    def __reduce__(self) -> tuple[Any, ...]:
        # The library's encodings are made by a closure, which can't be pickled.
        return type(self), (dict(self), None, None, False, self.__dict__["_n_sequences"])

    def __copy__(self) -> BatchEncoding:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchEncoding:
        return self._like(copy.deepcopy(dict(self), memo))

    def copy(self) -> BatchEncoding:
        """A shallow copy, of the same class."""
        return self._like(dict(self))

    def _like(self, data: dict[str, Any]) -> BatchEncoding:
        other = type(self)(data)
        other.__dict__.update(self.__dict__)
        return other

    @property
    def data(self) -> dict[str, Any]:
        """The mapping itself, for code written against transformers."""
        return self

    @property
    def encodings(self) -> list[tokenizers.Encoding] | None:
        """The `tokenizers` library's encodings, padded as the rows are.

        None if this was not made by a tokenizer.
        """
        if _ENCODE not in self.__dict__:
            return None
        encodings = self.__dict__[_ENCODE]()
        self._encode_later(lambda: encodings)
        return list(encodings)

    @property
    def is_fast(self) -> bool:
        """Whether tokens, words and characters can be asked for."""
        return _ENCODE in self.__dict__

    @property
    def n_sequences(self) -> int | None:
        """Texts in each row: 1, or 2 for pairs; None if this was not made by a tokenizer."""
        if self.__dict__["_n_sequences"] is None and self.is_fast:
            self.__dict__["_n_sequences"] = max(
                (row.n_sequences for row in self._rows()), default=1
            )
        return self.__dict__["_n_sequences"]

    def _rows(self) -> list[tokenizers.Encoding]:
        rows = self.encodings
        if rows is None:
            raise ValueError(
                "this BatchEncoding knows no tokens: it was not made by a tokenizer, or was "
                f"pickled since. Its keys are {sorted(self)}"
            )
        return rows

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row as strings."""
        return self._rows()[batch_index].tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row, which word of its text it belongs to.

        None for special tokens.
        """
        return self._rows()[batch_index].word_ids

    def words(self, batch_index: int = 0) -> list[int | None]:
        """`word_ids`, under its older name."""
        return self.word_ids(batch_index)

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row 0 for the first text, 1 for the second, None for special
        tokens.
        """
        return self._rows()[batch_index].sequence_ids

    def token_to_sequence(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """Which text of its row a token belongs to; with one number, of row 0."""
        row, token = self._place(batch_or_token_index, token_index)
        return row.token_to_sequence(token)

    def token_to_word(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """Which word a token belongs to; with one number, of row 0."""
        row, token = self._place(batch_or_token_index, token_index)
        return row.token_to_word(token)

    def token_to_chars(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> CharSpan | None:
        """The characters of its text that a token stands for, as (start, end).

        None for special tokens.
        """
        row, token = self._place(batch_or_token_index, token_index)
        span = row.token_to_chars(token)
        return span and CharSpan(*span)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token that holds a character of a text; None between tokens.

        With one number, of row 0.
        """
        row, character = self._place(batch_or_char_index, char_index)
        return row.char_to_token(character, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The word that holds a character of a text; with one number, of row 0."""
        row, character = self._place(batch_or_char_index, char_index)
        return row.char_to_word(character, sequence_index)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word, as (start, end); with one number, of row 0."""
        row, word = self._place(batch_or_word_index, word_index)
        span = row.word_to_tokens(word, sequence_index)
        return span and TokenSpan(*span)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """The characters of a word, as (start, end); with one number, of row 0."""
        row, word = self._place(batch_or_word_index, word_index)
        span = row.word_to_chars(word, sequence_index)
        return span and CharSpan(*span)

    def _place(self, row: int, index: int | None) -> tuple[tokenizers.Encoding, int]:
        if index is None:
            row, index = 0, row
        encoding = self._rows()[row]
        # The library knows no places counted from the end.
        if index < 0:
            index += len(encoding)
        return encoding, index

    def to(self, device: Any, *, non_blocking: bool = False) -> BatchEncoding:
        """Moves every tensor that can move (torch) to a device, in place.

        Args:
            device: a device, its name or its number.
            non_blocking: whether copies to a GPU go on beside what follows.

        Returns:
            The same BatchEncoding.

        Raises:
            TypeError: a type of numbers: ids must stay whole.
        """
        if not isinstance(device, str | int) and not hasattr(device, "index"):
            raise TypeError(
                f"device must be a device, its name or its number, got {device!r}. Cast the "
                "model, not ids"
            )
        # Values of other libraries that move need not know the word.
        options = {"non_blocking": True} if non_blocking else {}
        for key, value in self.items():
            if hasattr(value, "to"):
                self[key] = value.to(device, **options)
        return self

    def convert_to_tensors(
        self, tensor_type: str | None = None, prepend_batch_axis: bool = False
    ) -> BatchEncoding:
        """Turns rows of equal length into arrays or tensors, in place.

        Args:
            tensor_type: None (as is), "np", "pt" or "tf". Integers become 64 bits wide in every
                kind.
            prepend_batch_axis: wrap each value in a batch of one first.

        Raises:
            ValueError: rows of different length, or an unknown kind of tensor.
        """
        if tensor_type is None:
            return self
        for key, value in self.items():
            if prepend_batch_axis:
                value = [value]
            if isinstance(value, list | tuple | int | float):
                value = _as_array(key, value, tensor_type)
            self[key] = to_tensor(value, tensor_type)
        return self


def _as_array(key: str, rows: Any, tensor_type: str) -> np.ndarray:
    if isinstance(rows, list) and not rows:
        return np.zeros((0, 0), np.int64)
    if isinstance(rows, list) and isinstance(rows[0], list):
        lengths = {len(row) for row in rows}
        if len(lengths) > 1:
            raise ValueError(
                f"{key} must hold rows of one length to become a tensor, got {min(lengths)} to "
                f"{max(lengths)} tokens. Pass padding=True (and truncation=True, max_length=... "
                "for long text) or return_tensors=None"
            )
    array = np.asarray(rows)
    if array.dtype.kind in "iu" or not array.size:
        return array.astype(np.int64, copy=False)
    if array.dtype.kind not in "bf" and tensor_type != "np":
        raise ValueError(
            f"{key} must hold numbers to become a tensor, got {str(rows)[:80]}. Take it out first"
        )
    # As torch.tensor and tf.constant make of Python's floats.
    if array.dtype.kind == "f" and tensor_type != "np":
        return array.astype(np.float32)
    return array


def pad_arrays(
    batch: Mapping[str, Sequence[Sequence[int]]],
    fills: Mapping[str, int],
    *,
    length: int | None = None,
    multiple_of: int | None = None,
    side: str = "right",
) -> dict[str, np.ndarray] | None:
    """As `pad_rows`, but arrays (B, L) of int64 in one step.

    None where rows are too long to make an array.
    """
    lengths = np.array(_lengths(batch), dtype=np.int64)[:, None]  # (B, 1)
    longest = int(lengths.max(initial=0))
    width = _padded_length(longest, length, multiple_of)
    if longest > width or not len(lengths):
        return None
    steps = np.arange(width)
    is_token = steps < lengths  # (B, L)
    if side == "left":
        is_token = steps >= width - lengths
    tokens = int(lengths.sum())
    padded = {}
    for key, rows in batch.items():
        padded[key] = np.full(is_token.shape, fills[key], dtype=np.int64)
        padded[key][is_token] = np.fromiter(chain.from_iterable(rows), np.int64, count=tokens)
    return padded


def _lengths(batch: Mapping[str, Sequence[Sequence[int]]]) -> list[int]:
    return [len(row) for row in next(iter(batch.values()), [])]


def _padded_length(longest: int, length: int | None, multiple_of: int | None) -> int:
    """Tokens to pad to, a multiple of `multiple_of` that holds `length`, or the longest row."""
    if length is None:
        length = longest
    step = multiple_of or 1
    return -(-length // step) * step


def pad_rows(
    batch: Mapping[str, Sequence[Sequence[int]]],
    fills: Mapping[str, int],
    *,
    length: int | None = None,
    multiple_of: int | None = None,
    side: str = "right",
) -> dict[str, list[list[int]]]:
    """Pads every row of every key to one length; longer rows stay as they are.

    Args:
        batch: key -> rows of token ids, masks or types, of the same lengths in each key.
        fills: key -> the value that fills (pad id, 0 in a mask, ...).
        length: tokens to pad to; None for the longest row.
        multiple_of: round the length up to a multiple of this.
        side: "right" or "left", where the filling goes.

    Returns:
        A new mapping; the given rows are not changed.
    """
    if side not in ("right", "left"):
        raise ValueError(f"padding_side must be 'right' or 'left', got {side!r}")
    width = _padded_length(max(_lengths(batch), default=0), length, multiple_of)
    padded: dict[str, list[list[int]]] = {}
    for key, rows in batch.items():
        padded[key] = []
        for row in rows:
            filling = [fills[key]] * (width - len(row))
            if side == "right":
                padded[key].append([*row, *filling])
            else:
                padded[key].append([*filling, *row])
    return padded
