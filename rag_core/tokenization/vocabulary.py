"""Vocabulary: special tokens, ids and tokens, ids -> text.

The half of a Tokenizer that encodes nothing.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Mapping, Sequence
from functools import lru_cache
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.backends import to_numpy, to_tensor
from rag_core.tokenization.pipelines import MANY
from rag_core.tokenization.reading import EXTRA, SPECIAL_NAMES, TokenizerFiles

if TYPE_CHECKING:
    import tokenizers

logger = logging.getLogger(__name__)

# transformers 4.37.2's clean-up of decoded English, in this order (it shapes the question inside
# the prompt)
CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


_ID_NAMES = frozenset(f"{name}_id" for name in SPECIAL_NAMES)


class Vocabulary:
    """The tokens of a tokenizer and the way back to text.

    Attributes:
        padding_side, truncation_side: "right" or "left".
        model_max_length: tokens a model takes, 1e30 for "not said".
        clean_up_tokenization_spaces: default of `decode`'s argument.
        model_input_names: keys that a call returns.
        split_special_tokens: read special tokens that are spelled in a text as letters (see
            `Tokenizer.__call__`).
        pad_token, bos_token, ...: special tokens or None; each has its `_id`, and setting one sets
            the other.
    """

    is_fast = True
    padding_side: str
    truncation_side: str
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    sep_token: str | None
    pad_token: str | None
    cls_token: str | None
    mask_token: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    unk_token_id: int | None
    sep_token_id: int | None
    pad_token_id: int | None
    cls_token_id: int | None
    mask_token_id: int | None

    def __init__(self, files: TokenizerFiles, name_or_path: str = "") -> None:
        config = files.config
        self._files = files
        self.name_or_path = name_or_path
        self.padding_side = config.get("padding_side", "right")
        self.truncation_side = config.get("truncation_side", "right")
        self.model_max_length = int(config.get("model_max_length") or config.get("max_len") or MANY)
        self.clean_up_tokenization_spaces = bool(config.get("clean_up_tokenization_spaces", True))
        self.split_special_tokens = bool(config.get("split_special_tokens", False))
        self.model_input_names = list(
            config.get("model_input_names") or files.family.model_input_names
        )
        self.pad_token_type_id = int(config.get("pad_token_type_id", 0))
        self.additional_special_tokens = list(config[EXTRA])
        for name in SPECIAL_NAMES:
            setattr(self, name, config[name])

    @property
    def backend_tokenizer(self) -> tokenizers.Tokenizer:
        """The pipeline of the `tokenizers` library; keep truncation and padding off it."""
        return self._files.backend

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary without the added ones; `len(tokenizer)` counts them too."""
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        # Without it an empty vocabulary would count as no tokenizer.
        return True

    def __repr__(self) -> str:
        where = self.name_or_path or "memory"
        return (
            f"{type(self).__name__}({self._files.family.name}, {len(self)} tokens, from {where!r})"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        # A special token and its id are set together, whichever of them is assigned.
        if name in _ID_NAMES:
            value = self._token_of(name, value)
            name = name.removesuffix("_id")
        if name in SPECIAL_NAMES:
            index = None
            if value is not None:
                value = str(value)
                index = self.backend_tokenizer.token_to_id(value)
                if index is None:
                    raise ValueError(
                        f"{name} must be in the vocabulary, got {value!r}. Add it first with "
                        f"add_tokens, or add_special_tokens({{{name!r}: {value!r}}})"
                    )
            object.__setattr__(self, f"{name}_id", index)
        object.__setattr__(self, name, value)

    def _token_of(self, name: str, index: Any) -> str | None:
        if index is None:
            return None
        token = None
        if isinstance(index, Integral) and int(index) >= 0:
            token = self.convert_ids_to_tokens(index)
        if token is None:
            raise ValueError(
                f"{name} must be an id of the vocabulary, 0 to {len(self) - 1}, or None, got "
                f"{index!r}"
            )
        return token

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id, added ones included."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    @property
    def vocab(self) -> dict[str, int]:
        """`get_vocab()`."""
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, tokenizers.AddedToken]:
        """Added tokens (special ones too) by id."""
        return dict(sorted(self.backend_tokenizer.get_added_tokens_decoder().items()))

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Ids of added tokens, special ones too."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    def get_added_vocab(self) -> dict[str, int]:
        """`added_tokens_encoder`."""
        return self.added_tokens_encoder

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """The settings, as tokenizer_config.json holds them."""
        names = (
            "model_max_length",
            "padding_side",
            "truncation_side",
            "clean_up_tokenization_spaces",
        )
        special = {name: getattr(self, name) for name in SPECIAL_NAMES}
        return {**self._files.config, **{name: getattr(self, name) for name in names}, **special}

    @property
    def do_lower_case(self) -> bool:
        """Whether a BERT lowers what it reads; other families have no such attribute."""
        lowers = getattr(
            self.backend_tokenizer.normalizer, "lowercase", self._files.config.get("do_lower_case")
        )
        if lowers is None:
            raise AttributeError(f"a tokenizer of {self._files.family.name} has no 'do_lower_case'")
        return bool(lowers)

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """The special tokens by name, as special_tokens_map.json holds them."""
        tokens: dict[str, Any] = {}
        for name in SPECIAL_NAMES:
            if getattr(self, name) is not None:
                tokens[name] = getattr(self, name)
        if self.additional_special_tokens:
            tokens[EXTRA] = self.additional_special_tokens
        return tokens

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once."""
        named = [getattr(self, name) for name in SPECIAL_NAMES if getattr(self, name) is not None]
        return list(dict.fromkeys([*named, *self.additional_special_tokens]))

    @property
    def special_tokens_map_extended(self) -> dict[str, Any]:
        """As `special_tokens_map`, with the library's `AddedToken`s in place of texts."""
        extended = self.special_tokens_map
        for name, value in extended.items():
            if name == EXTRA:
                extended[name] = [self._added(token) for token in value]
            else:
                extended[name] = self._added(value)
        return extended

    @property
    def all_special_tokens_extended(self) -> list[Any]:
        """As `all_special_tokens`, with the library's `AddedToken`s in place of texts."""
        return [self._added(token) for token in self.all_special_tokens]

    def _added(self, token: str) -> Any:
        added = self.backend_tokenizer.get_added_tokens_decoder().values()
        return next((known for known in added if known.content == token), token)

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of `all_special_tokens`."""
        vocabulary = self.backend_tokenizer
        return [i for i in map(vocabulary.token_to_id, self.all_special_tokens) if i is not None]

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        """Ids of `additional_special_tokens`; setting them sets the tokens."""
        return self.convert_tokens_to_ids(self.additional_special_tokens)

    @additional_special_tokens_ids.setter
    def additional_special_tokens_ids(self, ids: Sequence[int]) -> None:
        self.additional_special_tokens = [
            self._token_of("additional_special_tokens_ids", index) for index in ids
        ]

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_additional_special_tokens: bool = True
    ) -> int:
        """Sets special tokens by name, adding to the vocabulary those that it lacks (then resize
        the model's table).

        Args:
            special_tokens_dict: token by name (`{"pad_token": "<pad>"}`); under
                "additional_special_tokens" a list.
            replace_additional_special_tokens: False keeps those that were there.

        Returns:
            How many were new.

        Raises:
            ValueError: a name that is not one of a special token.
        """
        if not isinstance(special_tokens_dict, Mapping):
            raise TypeError(
                "special_tokens_dict must map names to tokens, got "
                f"{type(special_tokens_dict).__name__}. Write {{'additional_special_tokens': "
                "[...]}"
            )
        unknown = sorted(set(special_tokens_dict) - {*SPECIAL_NAMES, EXTRA})
        if unknown:
            raise ValueError(
                f"special_tokens_dict must have keys of {[*SPECIAL_NAMES, EXTRA]}, got {unknown}"
            )
        before = len(self)
        for name, value in special_tokens_dict.items():
            if name in SPECIAL_NAMES:
                self.backend_tokenizer.add_special_tokens([value])
                setattr(self, name, value)
                continue
            tokens = list(value)
            self.backend_tokenizer.add_special_tokens(tokens)
            if replace_additional_special_tokens:
                self.additional_special_tokens = []
            everything = [*self.additional_special_tokens, *map(str, tokens)]
            self.additional_special_tokens = list(dict.fromkeys(everything))
        return len(self) - before

    def add_tokens(self, new_tokens: str | Sequence[str], special_tokens: bool = False) -> int:
        """Adds tokens at the end of the vocabulary (then resize the model's embeddings to
        `len(tokenizer)`).

        Args:
            new_tokens: one, or several.
            special_tokens: whether they are left out of decoded texts, as others are that are
                special.

        Returns:
            How many were new.
        """
        tokens: list[Any] = [new_tokens]
        if isinstance(new_tokens, list | tuple):
            tokens = list(new_tokens)
        before = len(self)
        if not special_tokens:
            self.backend_tokenizer.add_tokens(tokens)
            return len(self) - before
        self.backend_tokenizer.add_special_tokens(tokens)
        known = self.all_special_tokens
        self.additional_special_tokens += [
            str(token) for token in tokens if str(token) not in known
        ]
        return len(self) - before

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Ids of tokens (the unknown token's where there is none).

        An int for a str, else a list.
        """
        if isinstance(tokens, str):
            index = self.backend_tokenizer.token_to_id(tokens)
            return self.unk_token_id if index is None else index
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Tokens of ids; a str for an int, else a list."""
        if isinstance(ids, Integral):
            return self._tokens([int(ids)])[0]
        indices = plain_ids(ids)
        if skip_special_tokens:
            special = set(self.all_special_ids)
            indices = [index for index in indices if index not in special]
        return self._tokens(indices)

    def _tokens(self, ids: list[int]) -> list[Any]:
        renamed = self._renamed()
        return [renamed.get(index) or self.backend_tokenizer.id_to_token(index) for index in ids]

    def _renamed(self) -> dict[int, str]:
        """Added tokens, by id, that the library spells as it looks for them (in lower case).

        Not so here.
        """
        backend = self.backend_tokenizer
        # Looked at by every `decode`; a caller may add tokens to the pipeline itself.
        state = backend, backend.get_vocab_size()
        known_state, renamed = self.__dict__.get("_known_renamed", (None, {}))
        if known_state != state:
            added = backend.get_added_tokens_decoder().items()
            renamed = {
                index: token.content
                for index, token in added
                if backend.id_to_token(index) != token.content
            }
            self._known_renamed = state, renamed
        return renamed

    def _limit(self, max_length: int | None) -> int:
        """Tokens that a row may have."""
        return self.model_max_length if max_length is None else max_length

    def _returns(self, key: str, choice: bool | None) -> bool:
        """Whether a call returns a key; `choice` is None where the call leaves it open."""
        return key in self.model_input_names if choice is None else choice

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Special tokens put around one text (or a pair)."""
        return self.backend_tokenizer.num_special_tokens_to_add(pair)

    @property
    def max_len_single_sentence(self) -> int:
        """Tokens of a text that fit `model_max_length` beside the special ones."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=False)

    @property
    def max_len_sentences_pair(self) -> int:
        """Tokens of two texts that fit `model_max_length` beside the special ones."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        *,
        spaces_between_special_tokens: bool = True,
        use_source_tokenizer: bool = False,
    ) -> str:
        """The text of one row of ids.

        Args:
            token_ids: a list, array or tensor of shape (L,), or one id.
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: remove blanks before punctuation; None for the attribute
                of that name.
            spaces_between_special_tokens, use_source_tokenizer: change nothing, as in the fast
                tokenizers of transformers.
        """
        return self._cleaned(
            self._text(plain_ids(token_ids), skip_special_tokens), clean_up_tokenization_spaces
        )

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        *,
        spaces_between_special_tokens: bool = True,
        use_source_tokenizer: bool = False,
    ) -> list[str]:
        """The texts of B rows of ids (list of lists, array or tensor of shape (B, L)).

        Arguments as of `decode`.
        """
        if not isinstance(sequences, list | tuple):
            sequences = to_numpy(sequences)
        rows = [plain_ids(row) for row in sequences]
        if self._renamed():
            texts = [self._text(row, skip_special_tokens) for row in rows]
        else:
            # In parallel, unlike row by row.
            texts = self.backend_tokenizer.decode_batch(
                rows, skip_special_tokens=skip_special_tokens
            )
        return [self._cleaned(text, clean_up_tokenization_spaces) for text in texts]

    def _text(self, ids: list[int], skip_special_tokens: bool) -> str:
        backend = self.backend_tokenizer
        if self._renamed().keys().isdisjoint(ids):
            return backend.decode(ids, skip_special_tokens=skip_special_tokens)
        if skip_special_tokens:
            special = {
                index
                for index, token in backend.get_added_tokens_decoder().items()
                if token.special
            }
            ids = [index for index in ids if index not in special]
        return self.convert_tokens_to_string(
            [token for token in self._tokens(ids) if token is not None]
        )

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Joins tokens into text as `decode` does, without clean-up."""
        decoder = self.backend_tokenizer.decoder
        if decoder is None:
            return " ".join(tokens)
        return decoder.decode(list(tokens))

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """See the function of that name."""
        return clean_up_tokenization(out_string)

    def _cleaned(self, text: str, clean: bool | None) -> str:
        if clean is None:
            clean = self.clean_up_tokenization_spaces
        return clean_up_tokenization(text) if clean else text


def clean_up_tokenization(text: str) -> str:
    """Removes the spaces that tokenization left before English punctuation and contractions."""
    for spaced, plain in CLEAN_UP:
        text = text.replace(spaced, plain)
    return text


def plain_ids(value: Any) -> list[int]:
    """A list of ids out of an id, a list, an array or a tensor."""
    if isinstance(value, int):
        value = [value]
    elif not isinstance(value, list):
        value = to_numpy(value).reshape(-1).tolist()
    try:
        value = [operator.index(item) for item in value]
    except TypeError as error:
        raise TypeError(f"token ids must be integers, got {str(value)[:80]}") from error
    if value and min(value) < 0:
        raise ValueError(
            f"token ids must be 0 or more, got {min(value)}. Replace -100 by the pad token's id "
            "first"
        )
    return value


def within_table(ids: Any, size: int | None, tokenizer: Any) -> Any:
    """Ids with the unknown token in place of special tokens that a model's table lacks.

    A text may spell such a token ("<mask>" where the model was saved without it). Ids beyond the
    table that are no special tokens stay: then the tokenizer belongs to another model, which is an
    error.

    Args:
        ids: rows of ids, an array or a tensor.
        size: ids that the table holds; None if it does not say.
        tokenizer: what made the ids, ours or one of transformers.

    Returns:
        `ids` itself where nothing is to be done, else new ones: an array, or lists for lists.
    """
    if size is None or not len(ids):
        return ids
    if isinstance(ids, list) and isinstance(ids[0], list):
        rows = [within_table(row, size, tokenizer) for row in ids]
        if all(new is old for new, old in zip(rows, ids, strict=True)):
            return ids
        return rows
    array = to_numpy(ids)
    # Nearly every row: what follows asks the tokenizer for all its tokens.
    if not array.size or array.max() < size:
        return ids
    unknown = getattr(tokenizer, "unk_token_id", None)
    added = getattr(tokenizer, "added_tokens_decoder", {}).items()
    special = {index for index, token in added if token.special}
    special.update(getattr(tokenizer, "all_special_ids", ()))
    beyond = np.isin(array, sorted(index for index in special if index >= size))
    if not beyond.any() or unknown is None or not 0 <= unknown < size:
        return ids
    spelled = tokenizer.convert_ids_to_tokens(np.unique(array[beyond]).tolist())
    _warn_once(
        f"a text spells special tokens that the model's table of {size} ids lacks, {spelled}: "
        f"they are read as {tokenizer.unk_token!r}. With split_special_tokens=True the tokenizer "
        "reads them as letters"
    )
    fitting = np.where(beyond, unknown, array)
    if isinstance(ids, list):
        return fitting.tolist()
    return fitting


def encoded_within(
    encoded: Any,
    size: int | None,
    tokenizer: Any,
    return_tensors: str | None,
    key: str = "input_ids",
) -> Any:
    """An encoding, or what a retriever returned, with `within_table` done to its ids.

    A copy if that changes them.
    """
    fitting = within_table(encoded[key], size, tokenizer)
    if fitting is encoded[key]:
        return encoded
    encoded = encoded.copy()
    encoded[key] = to_tensor(fitting, return_tensors)
    return encoded


# The same texts come again in every epoch.
@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    logger.warning(message)
