"""Tokenizer: text <-> ids over the `tokenizers` library, answering as transformers 4.37.2's fast tokenizers do.

The pipeline is shared and never told to truncate or pad: both are done here for each call, so threads may share one
tokenizer. Letters: B texts, L tokens.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_core.backends import to_numpy
from rag_core.batch import BatchEncoding, pad_arrays, pad_rows
from rag_core.hub import Pushable, atomic_folder, split_hub_kwargs
from rag_core.keywords import Saving
from rag_core.tokenizer_build import MANY, VOCABULARY_FILES
from rag_core.tokenizer_files import EXTRA, SPECIAL_NAMES, read_tokenizer
from rag_core.tokenizer_save import write_tokenizer
from rag_core.tokenizer_words import Words, splits_alike
from rag_core.truncation import check_strategies, fitted, kept, shortened
from rag_core.vocabulary import Vocabulary

if TYPE_CHECKING:
    import tokenizers

_SETTINGS = {
    *SPECIAL_NAMES,
    EXTRA,
    "model_max_length",
    "padding_side",
    "truncation_side",
    "clean_up_tokenization_spaces",
    "model_input_names",
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "add_prefix_space",
    "extra_ids",
    "tokenizer_class",
}


class Tokenizer(Vocabulary, Pushable):
    """Turns text into token ids and back; made by `from_pretrained`. Attributes as of `Vocabulary`."""

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **kwargs: Any) -> Tokenizer:
        """Reads tokenizer.json, vocab.txt, vocab.json + merges.txt or spiece.model from a folder or repository.

        Args:
            name_or_path: a folder, or a repository id on the hub.
            **kwargs: hub options (subfolder, cache_dir, revision, token, local_files_only, force_download), settings
                that overrule tokenizer_config.json (padding_side, model_max_length, do_lower_case, pad_token, ...), and
                what transformers takes and changes nothing here, as `use_fast` or `legacy` (see `rag_core.keywords`).

        Raises:
            OSError: nothing readable there.
            TypeError: an unknown keyword.
        """
        hub, settings = split_hub_kwargs(kwargs, "tokenizer")
        settings.pop("config", None)
        unknown = sorted(set(settings) - _SETTINGS)
        if unknown:
            raise TypeError(f"Tokenizer.from_pretrained got unknown arguments {unknown}; known: {sorted(_SETTINGS)}")
        return cls(read_tokenizer(os.fspath(name_or_path), settings, **hub), str(name_or_path))

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> tuple[str, ...]:
        """Writes a folder that transformers 4.x (fast and slow), 5.x and this package read.

        Args:
            save_directory: the folder, made if missing.
            **kwargs: `push_to_hub`, and then arguments of `rag_core.hub.push_folder`; see `rag_core.keywords.Saving`.

        Returns:
            The paths written.
        """
        saving = Saving.of(**kwargs)
        if not saving.here:
            return ()
        target = Path(save_directory)
        with atomic_folder(target, stale=("added_tokens.json", *VOCABULARY_FILES)) as folder:
            names = write_tokenizer(self, folder)
        saving.finish(target)
        return tuple(str(target / name) for name in names)

    # text -> ids

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text (and a second one) as strings."""
        return self._encode([text], None if pair is None else [pair], add_special_tokens, None, MANY, "text")[0].tokens

    def token_starts(self, texts: Sequence[str]) -> list[list[int]]:
        """Where in each of B texts its tokens begin, in characters; special tokens are not counted."""
        encoded = self.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [[start for start, _ in one.offsets] for one in encoded]

    def encode(self, text: str, text_pair: str | None = None, **kwargs: Any) -> Any:
        """The `input_ids` of one text; keyword arguments as in a call."""
        return self(text, text_pair, **kwargs)["input_ids"]

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        text_pair: str | Sequence[str] | None = None,
        text_target: str | Sequence[str] | None = None,
        text_pair_target: str | Sequence[str] | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
    ) -> BatchEncoding:
        """Encodes a text or a list of B texts.

        Args:
            text: a str (rows come back without a batch dimension, unless as tensors) or a list of str.
            text_pair: second texts, encoded in the same rows.
            text_target: targets; with `text` their ids come back as `labels`, alone as `input_ids`.
            text_pair_target: second texts of the targets.
            add_special_tokens: put [CLS] ... [SEP] or <s> ... </s> around.
            padding: False, True or "longest" (in the batch), or "max_length".
            truncation: False, True or "longest_first", "only_first", "only_second". None (the default) truncates
                when `max_length` is given without padding, as transformers does.
            max_length: tokens in a row, special tokens included; None for `model_max_length`.
            pad_to_multiple_of: round the padded length up to a multiple.
            return_tensors: None (lists), "np", "pt" or "tf"; int64 of shape (B, L).
            return_token_type_ids, return_attention_mask: None for what `model_input_names` says.
            return_special_tokens_mask, return_offsets_mapping, return_length: more keys.

        Returns:
            input_ids, attention_mask and, by family, token_type_ids; labels.

        Raises:
            TypeError: something other than text was given.
            ValueError: a rule on padding or truncation is broken.
        """
        if text is None and text_target is None:
            raise TypeError("text must be a str or a list of str, got None (and text_target is None too)")
        options: dict[str, Any] = {
            "add_special_tokens": add_special_tokens,
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            "pad_to_multiple_of": pad_to_multiple_of,
            "return_tensors": return_tensors,
            "return_token_type_ids": return_token_type_ids,
            "return_attention_mask": return_attention_mask,
            "return_special_tokens_mask": return_special_tokens_mask,
            "return_offsets_mapping": return_offsets_mapping,
            "return_length": return_length,
        }
        if text is None:
            return self._encode_plus("text_target", text_target, text_pair_target, **options)
        encoded = self._encode_plus("text", text, text_pair, **options)
        if text_target is not None:
            encoded["labels"] = self._encode_plus("text_target", text_target, text_pair_target, **options)["input_ids"]
        return encoded

    def _encode_plus(
        self,
        argument: str,
        text: Any,
        pair: Any,
        *,
        add_special_tokens: bool,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        pad_to_multiple_of: int | None,
        return_tensors: str | None,
        return_token_type_ids: bool | None,
        return_attention_mask: bool | None,
        return_special_tokens_mask: bool,
        return_offsets_mapping: bool,
        return_length: bool,
    ) -> BatchEncoding:
        limit = self.model_max_length if max_length is None else max_length
        pad, cut = check_strategies(padding, truncation, max_length, limit, pad_to_multiple_of)
        single = isinstance(text, str)
        texts, pairs = _texts(argument, text), _texts(f"{argument}_pair", pair) if pair is not None else None
        if pairs is not None and len(texts) != len(pairs):
            raise ValueError(f"{argument} has {len(texts)} texts, its pair {len(pairs)}; they must be as many")
        names = self.model_input_names
        wanted = {
            "token_type_ids": return_token_type_ids or (return_token_type_ids is None and "token_type_ids" in names),
            "attention_mask": return_attention_mask or (return_attention_mask is None and "attention_mask" in names),
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
        }
        only_ids = pairs is None and not any(on for name, on in wanted.items() if name != "attention_mask")
        if only_ids and (words := self._words()) is not None:
            ids = self._ids_by_words(words, texts, add_special_tokens, cut, limit, argument)
            rows: dict[str, list[Any]] = {"input_ids": ids}
            if wanted["attention_mask"]:
                rows["attention_mask"] = [[1] * len(row) for row in ids]
        else:
            encodings = self._encode(texts, pairs, add_special_tokens, cut, limit, argument, return_offsets_mapping)
            rows = {"input_ids": [e.ids for e in encodings]}
            if wanted["token_type_ids"]:
                rows["token_type_ids"] = [e.type_ids for e in encodings]
            if wanted["attention_mask"]:
                rows["attention_mask"] = [e.attention_mask for e in encodings]
            if return_special_tokens_mask:
                rows["special_tokens_mask"] = [e.special_tokens_mask for e in encodings]
            if return_offsets_mapping:
                rows["offset_mapping"] = [e.offsets for e in encodings]
        if pad:
            rows = self._padded(
                rows,
                limit if pad == "max_length" else None,
                pad_to_multiple_of,
                arrays=return_tensors is not None and not return_offsets_mapping,
            )
        if return_length:
            rows["length"] = [len(row) for row in rows["input_ids"]]
        if single and return_tensors is None:
            return BatchEncoding({key: values[0] for key, values in rows.items()})
        return BatchEncoding(rows).convert_to_tensors(return_tensors)

    def _encode(
        self,
        texts: list[str],
        pairs: list[str] | None,
        add_special_tokens: bool,
        cut: str | None,
        limit: int,
        argument: str,
        offsets: bool = False,
    ) -> list[tokenizers.Encoding]:
        backend = self.backend_tokenizer
        encode_batch = backend.encode_batch if offsets else backend.encode_batch_fast  # a third faster without them
        inputs: list[Any] = texts if pairs is None else list(zip(texts, pairs, strict=True))
        # Single texts are cut before their special tokens are added, so that none is encoded twice.
        later = cut is not None and pairs is None and not offsets
        special = add_special_tokens and not later
        try:
            if len(inputs) == 1:
                encodings = [backend.encode(texts[0], pairs[0] if pairs else None, False, special)]
            else:
                encodings = encode_batch(inputs, add_special_tokens=special)
        except (TypeError, UnicodeEncodeError) as error:
            raise ValueError(f"{argument} holds characters that are no text (lone surrogates?): {error}") from error
        if cut is None:
            return encodings
        if later:
            return [
                fitted(backend, (encoding,), add_special_tokens, cut, limit, self.truncation_side)
                for encoding in encodings
            ]
        return [
            encoding
            if len(encoding.ids) <= limit
            else shortened(backend, _args(row), add_special_tokens, cut, limit, self.truncation_side)
            for row, encoding in zip(inputs, encodings, strict=True)
        ]

    def _words(self) -> Words | None:
        """The words seen so far, where a text's ids are those of its words."""
        backend = self.backend_tokenizer
        known = self.__dict__.get("_known_words")
        if known is None or known[0] is not backend:
            known = self._known_words = backend, Words(backend) if splits_alike(backend) else None
        return known[1]

    def _ids_by_words(
        self, words: Words, texts: list[str], special: bool, cut: str | None, limit: int, argument: str
    ) -> list[list[int]]:
        found = words.encode(texts)
        left = [number for number, row in enumerate(found) if row is None]
        before, after = (words.before, words.after) if special else ([], [])
        rows = []
        for row in found:
            if row is not None and cut and len(row) + len(before) + len(after) > limit:
                row = kept(row, limit - len(before) - len(after), cut, self.truncation_side)
            rows.append([*before, *(row or ()), *after])
        if left:
            encoded = self._encode([texts[number] for number in left], None, special, cut, limit, argument)
            for number, encoding in zip(left, encoded, strict=True):
                rows[number] = encoding.ids
        return rows

    def _padded(
        self, rows: Mapping[str, list[Any]], length: int | None, multiple_of: int | None, arrays: bool = False
    ) -> dict[str, Any]:
        if self.pad_token_id is None:
            raise ValueError("padding was asked for but this tokenizer has no pad token; set tokenizer.pad_token first")
        fills: dict[str, Any] = {
            "input_ids": self.pad_token_id,
            "token_type_ids": self.pad_token_type_id,
            "attention_mask": 0,
            "special_tokens_mask": 1,
            "offset_mapping": (0, 0),
        }
        how: dict[str, Any] = {"length": length, "multiple_of": multiple_of, "side": self.padding_side}
        padded = pad_arrays(rows, fills, **how) if arrays and self.padding_side in ("right", "left") else None
        return padded or pad_rows(rows, fills, **how)

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Pads encodings made earlier: a list of single ones, or one of lists."""
        if not isinstance(encoded_inputs, Mapping):
            encoded_inputs = {key: [one[key] for one in encoded_inputs] for key in encoded_inputs[0]}
        rows: dict[str, Any] = {k: [to_numpy(row).tolist() for row in rows] for k, rows in encoded_inputs.items()}
        rows.setdefault("attention_mask", [[1] * len(row) for row in rows["input_ids"]])
        limit = self.model_max_length if max_length is None else max_length
        how, _ = check_strategies(padding, False, max_length, limit, pad_to_multiple_of)
        if how:
            rows = self._padded(rows, limit if how == "max_length" else None, pad_to_multiple_of)
        return BatchEncoding(rows).convert_to_tensors(return_tensors)


def _args(row: Any) -> tuple[str, ...]:
    return row if isinstance(row, tuple) else (row,)


def _texts(argument: str, value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list | tuple):
        raise TypeError(f"{argument} must be a str or a list of str, got {type(value).__name__}")
    for index, item in enumerate(value):
        if not isinstance(item, str):
            raise TypeError(f"{argument}[{index}] must be a str, got {type(item).__name__}: {str(item)[:80]!r}")
    return list(value)
