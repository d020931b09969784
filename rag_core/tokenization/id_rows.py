"""Rows made of ids instead of text: special tokens put around them, cut, padded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from rag_core.backends import BACKENDS, TENSOR_KINDS, to_numpy
from rag_core.tokenization.batch import BatchEncoding, pad_arrays, pad_rows
from rag_core.tokenization.truncation import EncodeOptions, check_side, kept_lengths
from rag_core.tokenization.vocabulary import Vocabulary, plain_ids

# What `pad` fills up; the rest (labels, say) has a length of its own.
_ROW_KEYS = ("input_ids", "token_type_ids", "attention_mask", "special_tokens_mask")

logger = logging.getLogger(__name__)


class _Row(NamedTuple):
    """A row in the making, entry by entry."""

    ids: list[int]
    type_ids: list[int]
    special_tokens_mask: list[int]

    def extend(self, ids: list[int], type_id: int, special: bool) -> None:
        self.ids.extend(ids)
        self.type_ids.extend([type_id] * len(ids))
        self.special_tokens_mask.extend([int(special)] * len(ids))


class IdRows(Vocabulary):
    """What a `Tokenizer` does with ids that were made before."""

    def build_inputs_with_special_tokens(
        self, token_ids_0: Any, token_ids_1: Any = None
    ) -> list[int]:
        """The ids of one text (or two) with special tokens around."""
        return self._framed(token_ids_0, token_ids_1).ids

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Any, token_ids_1: Any = None
    ) -> list[int]:
        """The token types of `build_inputs_with_special_tokens`."""
        return self._framed(token_ids_0, token_ids_1).type_ids

    def get_special_tokens_mask(
        self, token_ids_0: Any, token_ids_1: Any = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for each special token, else 0.

        Args:
            token_ids_0: ids of a text.
            token_ids_1: ids of a second text.
            already_has_special_tokens: the ids are a whole row; False puts special tokens around
                first.
        """
        if already_has_special_tokens:
            special = set(self.all_special_ids)
            return [int(index in special) for index in plain_ids(token_ids_0)]
        return self._framed(token_ids_0, token_ids_1).special_tokens_mask

    def truncate_sequences(
        self,
        ids: Any,
        pair_ids: Any = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: str = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], list[int] | None, list[int]]:
        """Takes ids off one text (or two) on the truncation side.

        Args:
            ids: ids of a text, without special tokens.
            pair_ids: ids of a second text.
            num_tokens_to_remove: how many go.
            truncation_strategy: "longest_first" (of equals the second text goes first),
                "only_first", "only_second".
            stride: ids that stay and are handed back among those taken away.

        Returns:
            Both texts' ids, and what was taken off; this is empty where two texts were shortened by
            turns.
        """
        check_side(self.truncation_side)
        first, second = plain_ids(ids), None
        if pair_ids is not None:
            second = plain_ids(pair_ids)
        if num_tokens_to_remove <= 0:
            return first, second, []
        if truncation_strategy == "longest_first" and second is not None:
            lengths = [len(first), len(second)]
            for _ in range(min(num_tokens_to_remove, sum(lengths))):
                # Of equals the second goes first, as in the slow tokenizers of transformers.
                lengths[int(lengths[0] <= lengths[1])] -= 1
            first, _ = self._split(first, lengths[0])
            second, _ = self._split(second, lengths[1])
            return first, second, []
        lengths = [len(part) for part in (first, second) if part is not None]
        lengths = kept_lengths(lengths, sum(lengths) - num_tokens_to_remove, truncation_strategy)
        taken: list[int] = []
        if lengths[0] < len(first):
            first, taken = self._split(first, lengths[0], stride)
        if second is not None and lengths[1] < len(second):
            second, taken = self._split(second, lengths[1], stride)
        return first, second, taken

    def _split(self, ids: list[int], length: int, stride: int = 0) -> tuple[list[int], list[int]]:
        """The ids that stay, and those taken off with `stride` of those that stay."""
        taken = min(len(ids), stride + len(ids) - length)
        if self.truncation_side == "right":
            return ids[:length], ids[len(ids) - taken :]
        return ids[len(ids) - length :], ids[:taken]

    def prepare_for_model(
        self,
        ids: Any,
        pair_ids: Any = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        prepend_batch_axis: bool = False,
    ) -> BatchEncoding:
        """Makes a row of the ids of one text (or two), as a call makes it of text; arguments as of
        a call.

        Args:
            ids: ids of a text, without special tokens.
            pair_ids: ids of a second text.
            return_overflowing_tokens: also `overflowing_tokens`, the ids that were cut off (with
                `stride` of those left), and `num_truncated_tokens`.
            return_offsets_mapping: must be False: ids have no places in a text.
            prepend_batch_axis: tensors get a batch dimension.
        """
        if return_offsets_mapping:
            raise ValueError(
                "return_offsets_mapping must be False for ids. Call the tokenizer itself with the "
                "text"
            )
        options = EncodeOptions(
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
        )
        limit = self._limit(max_length)
        _, strategy = options.strategies(limit)
        is_pair = pair_ids is not None
        if return_overflowing_tokens and is_pair and strategy == "longest_first":
            raise ValueError(
                "return_overflowing_tokens must be False where a pair is cut by "
                "truncation='longest_first'. Use 'only_first' or 'only_second'"
            )
        ids = plain_ids(ids)
        if is_pair:
            pair_ids = plain_ids(pair_ids)
        # Below 0 where there is room; `num_truncated_tokens` says it as transformers does.
        excess = len(ids) + len(pair_ids or ()) - limit
        if add_special_tokens:
            excess += self.num_special_tokens_to_add(is_pair)
        row: dict[str, Any] = {}
        if strategy:
            ids, pair_ids, taken = self.truncate_sequences(ids, pair_ids, excess, strategy, stride)
            if return_overflowing_tokens:
                row = {"overflowing_tokens": taken, "num_truncated_tokens": excess}
        framed = self._framed(ids, pair_ids, add_special_tokens)
        if strategy is None and max_length is None and verbose:
            self._note_long([framed.ids])
        row["input_ids"] = framed.ids
        if self._returns("token_type_ids", return_token_type_ids):
            row["token_type_ids"] = framed.type_ids
        if return_special_tokens_mask:
            row["special_tokens_mask"] = framed.special_tokens_mask
        padded = self.pad(
            row,
            padding=padding,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
        )
        if return_length:
            padded["length"] = len(padded["input_ids"])
        return padded.convert_to_tensors(return_tensors, prepend_batch_axis)

    def _ids_of(self, name: str, value: Any) -> list[int]:
        """Ids out of a list of tokens or of ids."""
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            try:
                return plain_ids(value)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"{name} must be a str, a list of tokens or a list of ids, got "
                    f"{type(value).__name__}: {str(value)[:80]!r}. Call the tokenizer itself with "
                    "a list of texts"
                ) from error
        vocabulary = self.get_vocab()
        texts = [item for item in value if item not in vocabulary and len(item.split()) > 1]
        if texts:
            raise ValueError(
                f"{name} must be a str, a list of tokens or a list of ids, got a list with the "
                f"text {texts[0][:80]!r}. Call the tokenizer itself with a list of texts"
            )
        return self.convert_tokens_to_ids(list(value))

    def _framed(self, ids: Any, pair_ids: Any = None, special: bool = True) -> _Row:
        """Ids with special tokens around, learned from what the pipeline puts around a word."""
        backend = self.backend_tokenizer
        row = _Row([], [], [])
        parts = [plain_ids(ids)]
        if pair_ids is not None:
            parts.append(plain_ids(pair_ids))
        if not special:
            row.extend(list(chain.from_iterable(parts)), 0, special=False)
            return row

        def has_ids(text: str) -> bool:
            return bool(backend.encode(text, add_special_tokens=False).ids)

        # The vocabulary is large: it is looked at only where an "a" is no word.
        word = "a" if has_ids("a") else next(filter(has_ids, self.get_vocab()))
        frame = backend.encode(word, word if len(parts) == 2 else None)
        before = None
        for index, type_id, sequence in zip(
            frame.ids, frame.type_ids, frame.sequence_ids, strict=True
        ):
            if sequence is None:
                row.extend([index], type_id, special=True)
            elif sequence != before:
                row.extend(parts[sequence], type_id, special=False)
            before = sequence
        return row

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pads encodings made earlier.

        Ids, attention masks, token types and special tokens' masks are filled up; all other keys
        (labels, say) are handed on as they are.

        Args:
            encoded_inputs: one encoding, several in lists (`{"input_ids": [[...], [...]]}`), or a
                list of single ones; lists, arrays or tensors.
            padding, max_length, pad_to_multiple_of: as in a call.
            return_attention_mask: add a missing mask; None for what `model_input_names` says.
            return_tensors: None (lists, or what came), "np", "pt" or "tf".
            verbose: changes nothing.

        Raises:
            ValueError: no `input_ids`, or encodings that have not all the same keys.
        """
        rows, is_single, kind = _collected(encoded_inputs)
        if not rows["input_ids"]:
            if isinstance(encoded_inputs, Mapping):
                rows = dict(encoded_inputs)
            return BatchEncoding(rows)
        wants_mask = self._returns("attention_mask", return_attention_mask)
        if wants_mask and "attention_mask" not in rows:
            rows["attention_mask"] = [[1] * len(row) for row in rows["input_ids"]]
        options = EncodeOptions(
            padding=padding,
            truncation=False,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
        )
        limit = self._limit(max_length)
        strategy, _ = options.strategies(limit)
        if strategy:
            filled = {key: rows[key] for key in _ROW_KEYS if key in rows}
            # A mask that is not asked for stays as it came.
            if return_attention_mask is False:
                filled.pop("attention_mask", None)
            length = limit if strategy == "max_length" else None
            rows |= self._padded(filled, length, pad_to_multiple_of)
        if is_single:
            rows = {key: value[0] for key, value in rows.items()}
        return BatchEncoding(rows, tensor_type=return_tensors or kind)

    def _padded(
        self,
        rows: Mapping[str, list[Any]],
        length: int | None,
        multiple_of: int | None,
        arrays: bool = False,
    ) -> dict[str, Any]:
        if self.pad_token_id is None:
            raise ValueError(
                "padding must be False where a tokenizer has no pad token. Set tokenizer.pad_token "
                "first"
            )
        fills: dict[str, Any] = {
            "input_ids": self.pad_token_id,
            "token_type_ids": self.pad_token_type_id,
            "attention_mask": 0,
            "special_tokens_mask": 1,
            "offset_mapping": (0, 0),
        }
        side = self.padding_side
        padded = None
        if arrays and side in ("right", "left"):
            padded = pad_arrays(rows, fills, length=length, multiple_of=multiple_of, side=side)
        return padded or pad_rows(rows, fills, length=length, multiple_of=multiple_of, side=side)

    def _note_long(self, rows: list[list[int]]) -> None:
        longest = max(map(len, rows), default=0)
        if longest > self.model_max_length and not self.__dict__.get("_noted_long"):
            self._noted_long = True
            logger.warning(
                "a text of %d tokens is longer than the %d that the model takes "
                "(model_max_length): pass truncation=True. This is said once",
                longest,
                self.model_max_length,
            )


def _collected(encoded: Any) -> tuple[dict[str, Any], bool, str | None]:
    """Lists by key, whether they were a single encoding, and which kind of tensor they were
    ("np", "pt", "tf").
    """
    is_list = not isinstance(encoded, Mapping)
    if is_list:
        keys = ["input_ids"]
        if encoded:
            keys = list(encoded[0])
        if any(set(row) != set(keys) for row in encoded):
            raise ValueError(
                "encoded_inputs must have the same keys in each, got "
                f"{sorted({tuple(sorted(row)) for row in encoded})}"
            )
        encoded = {key: [row[key] for row in encoded] for key in keys}
    if "input_ids" not in encoded:
        raise ValueError(f"encoded_inputs must hold input_ids, got {sorted(encoded)}")
    first = encoded["input_ids"]
    if isinstance(first, list | tuple) and first:
        first = first[0]
    kinds = {"numpy": "np"} | {BACKENDS[name][1]: kind for kind, name in TENSOR_KINDS.items()}
    kind = kinds.get(type(first).__module__.partition(".")[0])
    rows = {key: _plain(value) for key, value in encoded.items()}
    ids = rows["input_ids"]
    if is_list or not ids or isinstance(ids[0], list | tuple):
        return rows, False, kind
    return {key: [value] for key, value in rows.items()}, True, kind


def _plain(value: Any) -> Any:
    """Lists in place of arrays and tensors, also inside a list."""
    if hasattr(value, "shape"):
        return to_numpy(value).tolist()
    if isinstance(value, list | tuple) and any(hasattr(item, "shape") for item in value):
        return [_plain(item) for item in value]
    return value
