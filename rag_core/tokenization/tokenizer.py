"""Tokenizer: text <-> ids over the `tokenizers` library, answering as transformers 4.37.2's fast
tokenizers do.

The pipeline is shared and never told to truncate or pad: both are done here for each call, so
threads may share one tokenizer. Letters: B texts, L tokens.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rag_core.arguments import as_list
from rag_core.hub import (
    Pushable,
    Saving,
    atomic_folder,
    checked_name,
    locating,
    split_hub_kwargs,
    text_fault,
)
from rag_core.tokenization.batch import BatchEncoding
from rag_core.tokenization.id_rows import IdRows
from rag_core.tokenization.pipelines import (
    BART,
    BERT,
    T5,
    Family,
    split_special_tokens,
    vocabulary_files,
)
from rag_core.tokenization.reading import EXTRA, SPECIAL_NAMES, read_tokenizer, read_vocabulary
from rag_core.tokenization.truncation import Cut, EncodeOptions, fitted, kept
from rag_core.tokenization.vocabulary import Vocabulary
from rag_core.tokenization.words import Words, splits_alike
from rag_core.tokenization.writing import TOKENIZER_FILES, write_tokenizer

if TYPE_CHECKING:
    from typing import Self

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
    "split_special_tokens",
    "tokenizer_class",
}

Part = str | list[str]  # a text, or its words
Row = tuple[Part, ...]  # one part, or a pair


class _Request(NamedTuple):
    """The texts of a call and what becomes of them.

    Attributes:
        argument: name of the argument that they came in, for errors.
        texts: B rows of one text or two.
        options: of the call.
        cut: how rows are made to fit; None leaves them as long as they are.
        has_pairs: whether a row has two texts.
    """

    argument: str
    texts: list[Row]
    options: EncodeOptions
    cut: Cut | None
    has_pairs: bool


class Tokenizer(IdRows, Pushable):
    """Turns text into token ids and back; made by `from_pretrained`.

    Attributes as of `Vocabulary`.
    """

    family: Family | None = None  # of `BertTokenizer` and its like: what may be read

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Tokenizer:
        """Reads tokenizer.json, vocab.txt, vocab.json + merges.txt or spiece.model from a folder or
        repository.

        Args:
            pretrained_model_name_or_path: a folder, or a repository id on the hub.
            **kwargs: hub options (subfolder, cache_dir, revision, token, local_files_only,
                force_download), settings that overrule tokenizer_config.json (padding_side,
                model_max_length, do_lower_case, pad_token, ...), and what transformers takes and
                changes nothing here, as `use_fast` or `legacy`.

        Raises:
            OSError: nothing readable there.
            TypeError: an unknown keyword.
            ValueError: a file is not what its name says, or belongs to another family than this
                class.
        """
        hub, settings = split_hub_kwargs(kwargs, "tokenizer")
        settings.pop("config", None)
        _check_settings(settings)
        name_or_path = checked_name(pretrained_model_name_or_path)
        files = read_tokenizer(name_or_path, settings, cls.family, **hub)
        if cls.family not in (None, files.family):
            raise ValueError(
                f"{cls.__name__} must read a tokenizer of {cls.family.name}, {name_or_path} holds "
                f"one of {files.family.name}. Use AutoTokenizer, or {files.family.tokenizer_class}"
            )
        kind: type[Tokenizer] = cls
        if cls is Tokenizer:
            kind = _CLASSES.get(files.family.name, cls)
        # The classes' own constructors take single files.
        made = kind.__new__(kind)
        with locating(f"the tokenizer of {name_or_path}"):
            Vocabulary.__init__(made, files, name_or_path)
        return made

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[str, ...]:
        """Writes a folder that transformers 4.x (fast and slow), 5.x and this package read.

        Args:
            save_directory: the folder, made if missing.
            **kwargs: `push_to_hub`, and then arguments of `rag_core.hub.push_folder`; see
                `rag_core.hub.Saving`.

        Returns:
            The paths written.
        """
        saving = Saving.of(**kwargs)
        if not saving.here:
            return ()
        target = Path(save_directory)
        with atomic_folder(target, stale=TOKENIZER_FILES) as folder:
            names = write_tokenizer(self, folder)
        saving.finish(target, self)
        return tuple(str(target / name) for name in names)

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Writes the vocabulary alone: vocab.txt, vocab.json and merges.txt, or spiece.model.

        Args:
            save_directory: the folder, made if missing.
            filename_prefix: put before each name, with a dash.

        Returns:
            The paths written.

        Raises:
            ValueError: a T5 tokenizer that was not read from a sentencepiece model has no such
                file.
        """
        with atomic_folder(Path(save_directory)) as draft:
            paths = vocabulary_files(self.backend_tokenizer, draft, filename_prefix)
            names = [path.name for path in paths]
            for name, source in self._files.sources.items():
                names.append("-".join(filter(None, (filename_prefix, name))))
                (draft / names[-1]).write_bytes(source)
            if not names:
                raise ValueError(
                    "this tokenizer has no vocabulary file of its own. Call save_pretrained: "
                    "tokenizer.json"
                )
        return tuple(str(Path(save_directory) / name) for name in names)

    # text -> ids

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """The tokens of a text (and a second one) as strings; options as in a call."""
        if not isinstance(text, str) and not options.get("is_split_into_words"):
            raise TypeError(
                f"text must be a str, got {type(text).__name__}. Call the tokenizer itself with a "
                "list"
            )
        options.setdefault("verbose", False)
        return self(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def token_starts(self, texts: Sequence[str]) -> list[list[int]]:
        """Where in each of B texts its tokens begin, in characters.

        Special tokens are not counted.
        """
        encoded = self._pipeline().encode_batch(list(texts), add_special_tokens=False)
        return [[start for start, _ in one.offsets] for one in encoded]

    def encode(
        self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **options: Any
    ) -> Any:
        """The `input_ids` of one text, or of its tokens; arguments as of `encode_plus`."""
        return self.encode_plus(text, text_pair, add_special_tokens, **options)["input_ids"]

    def encode_plus(
        self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **options: Any
    ) -> BatchEncoding:
        """Encodes one text, or what it was split or turned into before.

        Args:
            text: a str, a pair of them as a tuple, a list of tokens (as `tokenize` gives them), or
                a list of ids.
            text_pair: second text, of the same kind.
            add_special_tokens: put special tokens around.
            **options: as in a call.

        Raises:
            TypeError: neither text, tokens nor ids.
            ValueError: a list of texts.
        """
        is_pair = isinstance(text, tuple) and len(text) == 2 and isinstance(text[0], str)
        if is_pair and text_pair is None:
            text, text_pair = text
        if isinstance(text, str | None) or options.get("is_split_into_words"):
            return self(text, text_pair, add_special_tokens=add_special_tokens, **options)
        ids = self._ids_of("text", text)
        pair_ids = None
        if text_pair is not None:
            pair_ids = self._ids_of("text_pair", text_pair)
        if options.get("return_tensors") is not None:
            options.setdefault("prepend_batch_axis", True)
        return self.prepare_for_model(ids, pair_ids, add_special_tokens, **options)

    def batch_encode_plus(
        self,
        batch_text_or_text_pairs: Sequence[Any],
        add_special_tokens: bool = True,
        **options: Any,
    ) -> BatchEncoding:
        """Encodes a list of texts, or of pairs of texts; options as in a call."""
        if isinstance(batch_text_or_text_pairs, str):
            raise TypeError(
                "batch_text_or_text_pairs must be a list of texts or pairs, got a str. Use "
                "encode_plus"
            )
        return self(batch_text_or_text_pairs, add_special_tokens=add_special_tokens, **options)

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        pad_to_max_length: bool = False,
    ) -> BatchEncoding:
        """Encodes a text or a list of B texts.

        A special token that is spelled in a text ("</s>") becomes that token's id, as in
        transformers; with `tokenizer.split_special_tokens = True` (or that key in
        tokenizer_config.json) it is read as letters.

        Args:
            text: a str (rows come back without a batch dimension, unless as tensors), or a list of
                str or of pairs.
            text_pair: second texts, encoded in the same rows.
            text_target: targets; with `text` their ids come back as `labels`, alone as `input_ids`.
            text_pair_target: second texts of the targets.
            add_special_tokens: put [CLS] ... [SEP] or <s> ... </s> around.
            padding: False, True or "longest" (in the batch), or "max_length".
            truncation: False, True or "longest_first", "only_first", "only_second". None (the
                default) truncates when `max_length` is given without padding, as transformers does.
            max_length: tokens in a row, special tokens included; None for `model_max_length`.
            stride: tokens that a row of overflowing tokens repeats of the row before.
            is_split_into_words: each text is a list of words.
            pad_to_multiple_of: round the padded length up to a multiple.
            return_tensors: None (lists), "np", "pt" or "tf"; int64 of shape (B, L).
            return_token_type_ids, return_attention_mask: None for what `model_input_names` says.
            return_overflowing_tokens: what truncation takes away comes back as further rows, and
                `overflow_to_sample_mapping` says of which text each row is.
            return_special_tokens_mask, return_offsets_mapping, return_length: more keys.
            verbose: False leaves out the note of a text longer than `model_max_length`.
            pad_to_max_length: deprecated, for `padding="max_length"` (True without a `max_length`).

        Returns:
            input_ids, attention_mask and, by family, token_type_ids; labels.

        Raises:
            TypeError: something other than text was given.
            ValueError: a rule on padding or truncation is broken.
        """
        if text is None and text_target is None:
            raise TypeError(
                "text must be a str or a list of str, got None (and text_target is None too)"
            )
        text, text_pair, text_target, text_pair_target = map(
            as_list, (text, text_pair, text_target, text_pair_target)
        )
        options = EncodeOptions(
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            is_split_into_words=is_split_into_words,
            pad_to_multiple_of=pad_to_multiple_of,
            return_tensors=return_tensors,
            return_token_type_ids=return_token_type_ids,
            return_attention_mask=return_attention_mask,
            return_overflowing_tokens=return_overflowing_tokens,
            return_special_tokens_mask=return_special_tokens_mask,
            return_offsets_mapping=return_offsets_mapping,
            return_length=return_length,
            verbose=verbose,
        )
        if pad_to_max_length and padding is False:
            options = _padded_to_max_length(options)
        # Questions and targets of seq2seq models are encoded alike by these families.
        if text is None:
            return self._encode_rows("text_target", text_target, text_pair_target, options)
        encoded = self._encode_rows("text", text, text_pair, options)
        if text_target is not None:
            targets = self._encode_rows("text_target", text_target, text_pair_target, options)
            encoded["labels"] = targets["input_ids"]
        return encoded

    def _encode_rows(
        self, argument: str, text: Any, pair: Any, options: EncodeOptions
    ) -> BatchEncoding:
        limit = self._limit(options.max_length)
        pad, strategy = options.strategies(limit)
        if options.stride < 0:
            raise ValueError(f"stride must be 0 or more, got {options.stride}")
        cut = None
        if strategy is not None:
            cut = Cut(strategy, limit, self.truncation_side, options.stride)
        texts, is_single = _rows_of(argument, text, pair, options.is_split_into_words)
        if options.is_split_into_words:
            self._check_words(argument)
        request = _Request(argument, texts, options, cut, any(len(row) > 1 for row in texts))
        rows, samples = self._unpadded(request)
        if cut is None and options.max_length is None and options.verbose:
            self._note_long(rows["input_ids"])
        if pad:
            # Pairs of offsets make no array of two dimensions.
            arrays = options.return_tensors is not None and not options.return_offsets_mapping
            length = limit if pad == "max_length" else None
            rows = self._padded(rows, length, options.pad_to_multiple_of, arrays)
        lengths = [len(row) for row in rows["input_ids"]]
        if options.return_length:
            rows["length"] = lengths
        if options.return_overflowing_tokens:
            rows["overflow_to_sample_mapping"] = samples
        elif is_single and options.return_tensors is None:
            rows.update({key: row[0] for key, row in rows.items() if key != "length"})
        encoded = BatchEncoding(rows, tensor_type=options.return_tensors)
        # The attribute may have another value by the time that somebody asks.
        side = self.padding_side
        return encoded._encode_later(lambda: self._encodings(request, lengths, side))

    def _unpadded(self, request: _Request) -> tuple[dict[str, list[Any]], list[int]]:
        """The rows of each key, and of which text each row is."""
        options = request.options
        has_overflow = options.return_overflowing_tokens
        with_types = self._returns("token_type_ids", options.return_token_type_ids)
        with_mask = self._returns("attention_mask", options.return_attention_mask)
        ids = None
        if not (with_types or request.has_pairs or options.need_encodings()):
            ids = self._ids_by_words(request)
        if ids is not None:
            rows: dict[str, list[Any]] = {"input_ids": ids}
            if with_mask:
                rows["attention_mask"] = [[1] * len(row) for row in ids]
            return rows, [*range(len(ids))]
        first_rows = self._encode(request, options.return_offsets_mapping)
        encodings = first_rows
        if has_overflow:
            encodings = _with_overflow(first_rows)
        rows = {"input_ids": [row.ids for row in encodings]}
        if with_types and has_overflow:
            rows["token_type_ids"] = list(chain.from_iterable(map(_type_ids, first_rows)))
        elif with_types:
            rows["token_type_ids"] = [row.type_ids for row in encodings]
        if with_mask:
            rows["attention_mask"] = [row.attention_mask for row in encodings]
        if options.return_special_tokens_mask:
            rows["special_tokens_mask"] = [row.special_tokens_mask for row in encodings]
        if options.return_offsets_mapping:
            rows["offset_mapping"] = [row.offsets for row in encodings]
        samples: list[int] = []
        for sample, row in enumerate(first_rows):
            samples += [sample] * (1 + len(row.overflowing))
        return rows, samples

    def _encodings(
        self, request: _Request, lengths: list[int], side: str
    ) -> list[tokenizers.Encoding]:
        """What a `BatchEncoding` answers about tokens, words and characters from."""
        encodings = self._encode(request, offsets=True)
        if request.options.return_overflowing_tokens:
            encodings = _with_overflow(encodings)
        for encoding, length in zip(encodings, lengths, strict=True):
            if len(encoding) < length:
                encoding.pad(
                    length,
                    direction=side,
                    pad_id=self.pad_token_id,
                    pad_type_id=self.pad_token_type_id,
                    pad_token=self.pad_token,
                )
        return encodings

    def _check_words(self, argument: str) -> None:
        splitter = self.backend_tokenizer.pre_tokenizer
        if self._files.family is BART and not getattr(splitter, "add_prefix_space", True):
            raise ValueError(
                f"{argument}: is_split_into_words must be False for a BART tokenizer that puts no "
                "blank before a word. Load it with add_prefix_space=True"
            )

    def _encode(self, request: _Request, offsets: bool = False) -> list[tokenizers.Encoding]:
        """The library's encoding of each row, cut to fit."""
        cut = request.cut
        special = request.options.add_special_tokens
        whole = self._pipeline()
        if cut is None:
            return self._run(whole, request, special, offsets)
        # The special tokens' step also moves offsets off blanks and numbers the texts, and must not
        # be done twice.
        once = offsets and (request.has_pairs or not _only_adds(whole.post_processor))
        parts_of = self._pipeline(bare=once)
        if not request.has_pairs:
            # Cut before their special tokens are added, so that none is encoded twice.
            encodings = self._run(parts_of, request, False, offsets)
            return [fitted(whole, (encoding,), special, cut) for encoding in encodings]
        encodings = self._run(whole, request, special, offsets)
        for number, row in enumerate(request.texts):
            if len(encodings[number].ids) > cut.limit:
                apart = request._replace(texts=[(part,) for part in row])
                parts = self._run(parts_of, apart, False, offsets)
                encodings[number] = fitted(whole, tuple(parts), special, cut)
        return encodings

    @staticmethod
    def _run(
        backend: tokenizers.Tokenizer, request: _Request, special: bool, offsets: bool
    ) -> list[tokenizers.Encoding]:
        texts = request.texts
        split = request.options.is_split_into_words
        try:
            if len(texts) == 1:
                first, second = (*texts[0], None)[:2]
                return [backend.encode(first, second, split, special)]
            # Without offsets the library is a third faster.
            encode_batch = backend.encode_batch if offsets else backend.encode_batch_fast
            batch = [row[0] if len(row) == 1 else row for row in texts]
            return encode_batch(batch, is_pretokenized=split, add_special_tokens=special)
        except (TypeError, UnicodeEncodeError) as error:
            fault = (
                _text_fault(request) or f"{request.argument} must hold Unicode characters: {error}"
            )
            raise ValueError(fault) from None

    def _pipeline(self, bare: bool = False) -> tokenizers.Tokenizer:
        """The shared pipeline, or a copy with other settings: set on the shared one, other threads
        would see them.

        Args:
            bare: nothing is done after the model, neither special tokens added nor offsets moved.
        """
        from tokenizers import Tokenizer as Pipeline

        backend = self.backend_tokenizer
        if not bare and not self.split_special_tokens:
            return backend
        # Tokens added since a copy was made are not in it.
        state = backend, len(self)
        if self.__dict__.get("_copies", (None,))[0] != state:
            self._copies: tuple[Any, dict[Any, Pipeline]] = state, {}
        copies = self._copies[1]
        key = bare, self.split_special_tokens
        if key not in copies:
            copied = Pipeline.from_str(backend.to_str())
            if self.split_special_tokens:
                split_special_tokens(copied)
            if bare:
                copied.post_processor = None
            copies[key] = copied
        return copies[key]

    def _words(self) -> Words | None:
        """The words seen so far, where a text's ids are those of its words."""
        backend = self.backend_tokenizer
        known_backend, words = self.__dict__.get("_known_words", (None, None))
        if known_backend is not backend:
            words = None
            if splits_alike(backend):
                words = Words(backend)
            self._known_words = backend, words
        return words

    def _ids_by_words(self, request: _Request) -> list[list[int]] | None:
        """The rows of single texts by the ids of their words; None where these do not tell."""
        words = self._words()
        if words is None:
            return None
        cut = request.cut
        before: list[int] = []
        after: list[int] = []
        if request.options.add_special_tokens:
            before, after = words.before, words.after
        rows = words.encode([str(row[0]) for row in request.texts])
        unknown = [number for number, row in enumerate(rows) if row is None]
        special = len(before) + len(after)
        framed = []
        for row in rows:
            ids = row or []
            if cut and len(ids) + special > cut.limit:
                ids = kept(ids, cut.limit - special, cut.strategy, cut.side)
            framed.append([*before, *ids, *after])
        if unknown:
            texts = [request.texts[number] for number in unknown]
            encodings = self._encode(request._replace(texts=texts))
            for number, encoding in zip(unknown, encodings, strict=True):
                framed[number] = encoding.ids
        return framed

    def train_new_from_iterator(
        self,
        text_iterator: Iterable[Any],
        vocab_size: int,
        length: int | None = None,
        new_special_tokens: Sequence[Any] | None = None,
        special_tokens_map: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Self:
        """A tokenizer like this one with a vocabulary learned from other texts.

        Args:
            text_iterator: texts, or lists of texts.
            vocab_size: tokens of the new vocabulary, special ones included.
            length: how many texts there are, for the library's estimates.
            new_special_tokens: further special tokens.
            special_tokens_map: new names of special tokens, by old names.
            **options: of the `tokenizers` library's trainer (`min_frequency`, `show_progress`,
                ...).

        Raises:
            ValueError: the pipeline is of a kind that cannot be trained.
        """
        from rag_core.tokenization.learning import trained_files

        files = trained_files(
            self._files,
            text_iterator,
            vocab_size,
            length,
            new_special_tokens or (),
            special_tokens_map or {},
            options,
        )
        made = type(self).__new__(type(self))
        Vocabulary.__init__(made, files)
        return made

    # older ways to call

    def prepare_seq2seq_batch(
        self,
        src_texts: Any,
        tgt_texts: Any = None,
        max_length: int | None = None,
        max_target_length: int | None = None,
        padding: bool | str = "longest",
        return_tensors: str | None = None,
        truncation: bool | str = True,
        **options: Any,
    ) -> BatchEncoding:
        """Deprecated: call the tokenizer with `text_target=` instead."""
        warnings.warn(
            "prepare_seq2seq_batch is deprecated; write tokenizer(texts, text_target=targets, ...)",
            DeprecationWarning,
            stacklevel=2,
        )
        options |= {"padding": padding, "return_tensors": return_tensors, "truncation": truncation}
        encoded = self(src_texts, max_length=max_length, **options)
        if tgt_texts is not None:
            if max_target_length is None:
                max_target_length = max_length
            targets = self(text_target=tgt_texts, max_length=max_target_length, **options)
            encoded["labels"] = targets["input_ids"]
        return encoded

    @contextmanager
    def as_target_tokenizer(self) -> Iterator[None]:
        """Deprecated: call the tokenizer with `text_target=` instead.

        Texts and targets are encoded alike.
        """
        warnings.warn(
            "as_target_tokenizer is deprecated; write tokenizer(text_target=...)",
            DeprecationWarning,
            stacklevel=3,
        )
        yield


class _FromFiles(Tokenizer):
    """A family's tokenizer, which can be made of vocabulary files too."""

    def _read(
        self,
        family: Family,
        paths: Mapping[str, Any],
        tokenizer_file: Any,
        settings: dict[str, Any],
    ) -> None:
        hub, settings = split_hub_kwargs(settings, "tokenizer")
        _check_settings({**settings, **hub})
        Vocabulary.__init__(self, read_vocabulary(family, paths, tokenizer_file, settings))


class BertTokenizer(_FromFiles):
    """BERT's and DPR's tokenizer.

    Args:
        vocab_file: path of a vocab.txt.
        tokenizer_file: path of a tokenizer.json, instead.
        **settings: as of `Tokenizer.from_pretrained` (do_lower_case, model_max_length, pad_token,
            ...).
    """

    family = BERT

    def __init__(self, vocab_file: Any = None, tokenizer_file: Any = None, **settings: Any) -> None:
        self._read(BERT, {"vocab.txt": vocab_file}, tokenizer_file, settings)


class BartTokenizer(_FromFiles):
    """BART's tokenizer.

    Args:
        vocab_file: path of a vocab.json.
        merges_file: path of its merges.txt.
        tokenizer_file: path of a tokenizer.json, instead.
        **settings: as of `Tokenizer.from_pretrained` (add_prefix_space, model_max_length,
            pad_token, ...).
    """

    family = BART

    def __init__(
        self,
        vocab_file: Any = None,
        merges_file: Any = None,
        tokenizer_file: Any = None,
        **settings: Any,
    ) -> None:
        self._read(
            BART, {"vocab.json": vocab_file, "merges.txt": merges_file}, tokenizer_file, settings
        )


class T5Tokenizer(_FromFiles):
    """T5's tokenizer.

    Args:
        vocab_file: path of a spiece.model.
        tokenizer_file: path of a tokenizer.json, instead.
        **settings: as of `Tokenizer.from_pretrained` (extra_ids, model_max_length,
            additional_special_tokens, ...).
    """

    family = T5

    def __init__(self, vocab_file: Any = None, tokenizer_file: Any = None, **settings: Any) -> None:
        self._read(T5, {"spiece.model": vocab_file}, tokenizer_file, settings)

    def get_sentinel_tokens(self) -> list[str]:
        """The tokens `<extra_id_0>`, `<extra_id_1>`, ..."""
        return [token for token in self.additional_special_tokens if token.startswith("<extra_id_")]

    def get_sentinel_token_ids(self) -> list[int]:
        """Ids of `get_sentinel_tokens()`."""
        return self.convert_tokens_to_ids(self.get_sentinel_tokens())


# transformers' names of the same
BertTokenizerFast = DPRContextEncoderTokenizer = DPRContextEncoderTokenizerFast = BertTokenizer
DPRQuestionEncoderTokenizer = DPRQuestionEncoderTokenizerFast = BertTokenizer
BartTokenizerFast = BartTokenizer
T5TokenizerFast = T5Tokenizer

_CLASSES: dict[str, type[Tokenizer]] = {
    "bert": BertTokenizer,
    "bart": BartTokenizer,
    "t5": T5Tokenizer,
}


def _check_settings(settings: Mapping[str, Any]) -> None:
    unknown = sorted(set(settings) - _SETTINGS)
    if unknown:
        raise TypeError(
            f"the tokenizer got unknown arguments {unknown}; known: {sorted(_SETTINGS)}"
        )


def _only_adds(processor: Any) -> bool:
    from tokenizers import processors

    return isinstance(processor, processors.TemplateProcessing | None)


def _padded_to_max_length(options: EncodeOptions) -> EncodeOptions:
    warnings.warn(
        "pad_to_max_length is deprecated; write padding='max_length'", FutureWarning, stacklevel=3
    )
    truncation = options.truncation
    if truncation is None:
        truncation = options.max_length is not None
    padding = "longest" if options.max_length is None else "max_length"
    return options._replace(padding=padding, truncation=truncation)


def _text_fault(request: _Request) -> str | None:
    """Which of the texts is none, and where; None where all are."""
    for number, row in enumerate(request.texts):
        for part in chain.from_iterable([text] if isinstance(text, str) else text for text in row):
            # NUL is encoded as any other character.
            fault = text_fault(part.replace("\0", " "))
            if not fault:
                continue
            where = request.argument
            if len(request.texts) > 1:
                where = f"{where}[{number}]"
            return f"{where} must hold Unicode characters, but holds {fault}. Mend or remove it."
    return None


def _with_overflow(encodings: list[tokenizers.Encoding]) -> list[tokenizers.Encoding]:
    return list(chain.from_iterable([encoding, *encoding.overflowing] for encoding in encodings))


def _type_ids(encoding: tokenizers.Encoding) -> list[list[int]]:
    """Token types of an encoding and of what overflowed, where the library types second texts as
    first ones.
    """
    typed = zip(encoding.type_ids, encoding.sequence_ids, strict=True)
    second_type = next((type_id for type_id, sequence in typed if sequence == 1), 0)
    rows = [encoding.type_ids]
    for overflowing in encoding.overflowing:
        type_ids = list(overflowing.type_ids)
        for token, sequence in enumerate(overflowing.sequence_ids):
            if sequence == 1:
                type_ids[token] = second_type
        rows.append(type_ids)
    return rows


def _rows_of(argument: str, text: Any, pair: Any, split: bool) -> tuple[list[Row], bool]:
    """Rows of one text or two each, and whether a single text was given."""
    is_text = _is_words if split else _is_str
    is_single = is_text(text)
    firsts = text
    if is_single:
        firsts = [text]
    if is_single and pair in ("", []):
        pair = None  # as in transformers, where an empty second text of a single one is none
    if not isinstance(firsts, list | tuple):
        rule = "a str or a list of str"
        if split:
            rule = "a list of words or a list of such lists (is_split_into_words=True)"
        raise TypeError(f"{argument} must be {rule}, got {type(text).__name__}")
    if pair is None:
        if not split and all(map(_is_str, firsts)):
            return [(item,) for item in firsts], is_single
        rows = [_row(f"{argument}[{index}]", item, split) for index, item in enumerate(firsts)]
        return rows, is_single
    seconds = pair
    if isinstance(pair, str) or is_text(pair):
        seconds = [pair]
    if not isinstance(seconds, list | tuple):
        raise TypeError(
            f"{argument}_pair must be a str or a list of str, got {type(pair).__name__}"
        )
    if len(firsts) != len(seconds):
        raise ValueError(
            f"{argument} has {len(firsts)} texts, its pair {len(seconds)}; they must be as many"
        )
    for name, items in ((argument, firsts), (f"{argument}_pair", seconds)):
        for index, item in enumerate(items):
            _check_part(f"{name}[{index}]", item, split)
    return [(first, second) for first, second in zip(firsts, seconds, strict=True)], is_single


def _row(name: str, item: Any, split: bool) -> Row:
    if isinstance(item, list | tuple) and not split:
        if len(item) == 2 and _is_words(item):
            return tuple(item)
        raise TypeError(
            f"{name} must be a str or a pair of them, got {len(item)} items: {str(item)[:80]}. "
            "For texts split into words pass is_split_into_words=True"
        )
    _check_part(name, item, split)
    return (item,)


def _check_part(name: str, item: Any, split: bool) -> None:
    if split and not _is_words(item):
        raise TypeError(
            f"{name} must be a list of words (is_split_into_words=True), got {str(item)[:80]!r}"
        )
    if not split and not isinstance(item, str):
        raise TypeError(f"{name} must be a str, got {type(item).__name__}: {str(item)[:80]!r}")


def _is_str(value: Any) -> bool:
    return isinstance(value, str)


def _is_words(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_str, value))
