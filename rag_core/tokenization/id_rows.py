"""Rows made of ids instead of text: special tokens put around them, cut, padded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rag_core.backends import to_numpy
from rag_core.tokenization.batch import BatchEncoding, pad_arrays, pad_rows
from rag_core.tokenization.truncation import check_side, check_strategies, kept_lengths
from rag_core.tokenization.vocabulary import Vocabulary, plain_ids

# what `pad` fills up
_ROW_KEYS = ("input_ids", "token_type_ids", "attention_mask", "special_tokens_mask")

logger = logging.getLogger(__name__)


class _Row(NamedTuple):
    ids: list[int]
    type_ids: list[int]
    special_tokens_mask: list[int]


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
        parts = [plain_ids(ids)] if pair_ids is None else [plain_ids(ids), plain_ids(pair_ids)]
        lengths = [len(part) for part in parts]
        if num_tokens_to_remove <= 0:
            return parts[0], None if pair_ids is None else parts[1], []
        if truncation_strategy == "longest_first" and len(parts) == 2:
            for _ in range(min(num_tokens_to_remove, sum(lengths))):
                lengths[0 if lengths[0] > lengths[1] else 1] -= 1
        else:
            lengths = kept_lengths(
                lengths, sum(lengths) - num_tokens_to_remove, truncation_strategy
            )
        taken: list[int] = []
        right = self.truncation_side == "right"
        for number, length in enumerate(lengths):
            part = parts[number]
            if length == len(part):
                continue
            window = min(len(part), stride + len(part) - length)
            if truncation_strategy != "longest_first" or len(parts) == 1:
                taken = part[len(part) - window :] if right else part[:window]
            parts[number] = part[:length] if right else part[len(part) - length :]
        return parts[0], None if pair_ids is None else parts[1], taken

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
        limit = self.model_max_length if max_length is None else max_length
        _, cut = check_strategies(padding, truncation, max_length, limit, pad_to_multiple_of)
        pair = pair_ids is not None
        if return_overflowing_tokens and pair and cut == "longest_first":
            raise ValueError(
                "return_overflowing_tokens must be False where a pair is cut by "
                "truncation='longest_first'. Use 'only_first' or 'only_second'"
            )
        ids, pair_ids = plain_ids(ids), None if pair_ids is None else plain_ids(pair_ids)
        extra = self.num_special_tokens_to_add(pair) if add_special_tokens else 0
        excess = len(ids) + len(pair_ids or ()) + extra - limit
        row: dict[str, Any] = {}
        if cut:
            ids, pair_ids, taken = self.truncate_sequences(ids, pair_ids, excess, cut, stride)
            if return_overflowing_tokens:
                row = {"overflowing_tokens": taken, "num_truncated_tokens": excess}
        if add_special_tokens:
            framed = self._framed(ids, pair_ids)
        else:
            both = [*ids, *(pair_ids or ())]
            framed = _Row(both, [0] * len(both), [0] * len(both))
        if cut is None and max_length is None and verbose:
            self._note_long([framed.ids])
        row["input_ids"] = framed.ids
        names = self.model_input_names
        if return_token_type_ids or (return_token_type_ids is None and "token_type_ids" in names):
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

    def _framed(self, ids: Any, pair_ids: Any = None) -> _Row:
        """Ids with special tokens around, learned from what the pipeline puts around a word."""
        backend = self.backend_tokenizer
        # the vocabulary is large
        texts = (text for some in (lambda: ["a"], self.get_vocab) for text in some())
        word = next(text for text in texts if backend.encode(text, add_special_tokens=False).ids)
        frame = backend.encode(word, None if pair_ids is None else word)
        parts = [plain_ids(ids), [] if pair_ids is None else plain_ids(pair_ids)]
        row = _Row([], [], [])
        done = None
        for index, type_id, sequence in zip(
            frame.ids, frame.type_ids, frame.sequence_ids, strict=True
        ):
            if sequence is not None and sequence == done:
                continue
            done = sequence
            new = [index] if sequence is None else parts[sequence]
            row.ids.extend(new)
            row.type_ids.extend([type_id] * len(new))
            row.special_tokens_mask.extend([int(sequence is None)] * len(new))
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
        rows, single, kind = _collected(encoded_inputs)
        if not rows["input_ids"]:
            return BatchEncoding(
                {**encoded_inputs} if isinstance(encoded_inputs, Mapping) else rows
            )
        if "attention_mask" not in rows and or_default(
            return_attention_mask, "attention_mask" in self.model_input_names
        ):
            rows["attention_mask"] = [[1] * len(row) for row in rows["input_ids"]]
        limit = self.model_max_length if max_length is None else max_length
        how, _ = check_strategies(padding, False, max_length, limit, pad_to_multiple_of)
        if how:
            known = {key: rows[key] for key in _ROW_KEYS if key in rows}
            if return_attention_mask is False:
                known.pop("attention_mask", None)
            rows |= self._padded(known, limit if how == "max_length" else None, pad_to_multiple_of)
        if single:
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
                "padding was asked for but this tokenizer has no pad token; set "
                "tokenizer.pad_token first"
            )
        fills: dict[str, Any] = {
            "input_ids": self.pad_token_id,
            "token_type_ids": self.pad_token_type_id,
            "attention_mask": 0,
            "special_tokens_mask": 1,
            "offset_mapping": (0, 0),
        }
        how: dict[str, Any] = {
            "length": length,
            "multiple_of": multiple_of,
            "side": self.padding_side,
        }
        padded = (
            pad_arrays(rows, fills, **how)
            if arrays and self.padding_side in ("right", "left")
            else None
        )
        return padded or pad_rows(rows, fills, **how)

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


def or_default(choice: bool | None, default: bool) -> bool:
    """A switch that may be left open."""
    return default if choice is None else choice


def _collected(encoded: Any) -> tuple[dict[str, Any], bool, str | None]:
    """Lists by key, whether they were a single encoding, and which kind of tensor they were
    ("np", "pt", "tf").
    """
    listed = not isinstance(encoded, Mapping)
    if listed:
        keys = set(encoded[0]) if encoded else {"input_ids"}
        if any(set(one) != keys for one in encoded):
            raise ValueError(
                "encoded_inputs must have the same keys in each, got "
                f"{sorted({tuple(sorted(one)) for one in encoded})}"
            )
        encoded = {key: [one[key] for one in encoded] for key in (encoded[0] if encoded else keys)}
    if "input_ids" not in encoded:
        raise ValueError(f"encoded_inputs must hold input_ids, got {sorted(encoded)}")
    ids = encoded["input_ids"]
    first = ids[0] if isinstance(ids, list | tuple) and ids else ids
    kinds = {"torch": "pt", "numpy": "np", "tensorflow": "tf"}
    kind = kinds.get(type(first).__module__.partition(".")[0])
    rows = {key: _plain(value) for key, value in encoded.items()}
    single = (
        not listed
        and bool(rows["input_ids"])
        and not isinstance(rows["input_ids"][0], list | tuple)
    )
    return {key: [value] for key, value in rows.items()} if single else rows, single, kind


def _plain(value: Any) -> Any:
    """Lists in place of arrays and tensors, also inside a list."""
    if isinstance(value, list | tuple):
        return (
            [_plain(item) for item in value]
            if any(hasattr(item, "shape") for item in value)
            else value
        )
    return to_numpy(value).tolist() if hasattr(value, "shape") else value
