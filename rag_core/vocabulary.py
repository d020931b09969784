"""Vocabulary: special tokens, ids and tokens, ids -> text; the half of a Tokenizer that encodes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rag_core.backends import to_numpy
from rag_core.tokenizer_build import MANY
from rag_core.tokenizer_files import EXTRA, SPECIAL_NAMES, TokenizerFiles

if TYPE_CHECKING:
    import tokenizers

# transformers 4.37.2's clean-up of decoded English, in this order (it shapes the question inside the prompt)
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


class Vocabulary:
    """The tokens of a tokenizer and the way back to text.

    Attributes:
        padding_side, truncation_side: "right" or "left".
        model_max_length: tokens a model takes, 1e30 for "not said".
        clean_up_tokenization_spaces: default of `decode`'s argument.
        model_input_names: keys that a call returns.
        pad_token, bos_token, ...: special tokens or None; each has its `_id`.
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
        self.model_input_names = list(config.get("model_input_names") or files.family.model_input_names)
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
        return True

    def __repr__(self) -> str:
        return f"Tokenizer({self._files.family.name}, {len(self)} tokens, from {self.name_or_path or 'memory'!r})"

    def __setattr__(self, name: str, value: Any) -> None:
        if name in SPECIAL_NAMES:
            if value is not None and self.backend_tokenizer.token_to_id(value) is None:
                raise ValueError(f"{name} {value!r} is not in the vocabulary; add it first with add_tokens")
            object.__setattr__(self, f"{name}_id", None if value is None else self.backend_tokenizer.token_to_id(value))
        object.__setattr__(self, name, value)

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id, added ones included."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """The special tokens by name, as special_tokens_map.json holds them."""
        named = {name: getattr(self, name) for name in SPECIAL_NAMES if getattr(self, name) is not None}
        return {**named, EXTRA: self.additional_special_tokens} if self.additional_special_tokens else named

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once."""
        named = [getattr(self, name) for name in SPECIAL_NAMES if getattr(self, name) is not None]
        return list(dict.fromkeys([*named, *self.additional_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of `all_special_tokens`."""
        vocabulary = self.backend_tokenizer
        return [i for i in map(vocabulary.token_to_id, self.all_special_tokens) if i is not None]

    def add_tokens(self, tokens: str | Sequence[str], special_tokens: bool = False) -> int:
        """Adds tokens at the end of the vocabulary (then resize the model's embeddings to `len(tokenizer)`).

        Returns:
            How many were new.
        """
        tokens = [tokens] if isinstance(tokens, str) else list(tokens)
        before = len(self)
        if special_tokens:
            self.backend_tokenizer.add_special_tokens(tokens)
            self.additional_special_tokens += [t for t in tokens if t not in self.all_special_tokens]
        else:
            self.backend_tokenizer.add_tokens(tokens)
        return len(self) - before

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Ids of tokens (the unknown token's where there is none); an int for a str, else a list."""
        if isinstance(tokens, str):
            index = self.backend_tokenizer.token_to_id(tokens)
            return self.unk_token_id if index is None else index
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Tokens of ids; a str for an int, else a list."""
        if isinstance(ids, int):
            return self.backend_tokenizer.id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.backend_tokenizer.id_to_token(index) for index in plain_ids(ids) if index not in skipped]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Special tokens put around one text (or a pair)."""
        return self.backend_tokenizer.num_special_tokens_to_add(pair)

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text of one row of ids (list, array or tensor of shape (L,), or one id)."""
        return self._cleaned(
            self.backend_tokenizer.decode(plain_ids(token_ids), skip_special_tokens=skip_special_tokens),
            clean_up_tokenization_spaces,
        )

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """The texts of B rows of ids (list of lists, array or tensor of shape (B, L))."""
        rows = [plain_ids(row) for row in (sequences if isinstance(sequences, list | tuple) else to_numpy(sequences))]
        texts = self.backend_tokenizer.decode_batch(rows, skip_special_tokens=skip_special_tokens)
        return [self._cleaned(text, clean_up_tokenization_spaces) for text in texts]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Joins tokens into text as `decode` does, without clean-up."""
        decoder = self.backend_tokenizer.decoder
        return decoder.decode(list(tokens)) if decoder is not None else " ".join(tokens)

    def _cleaned(self, text: str, clean: bool | None) -> str:
        return clean_up_tokenization(text) if (self.clean_up_tokenization_spaces if clean is None else clean) else text


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
    value = [item if isinstance(item, int) else int(item) for item in value]
    if value and min(value) < 0:
        raise ValueError(f"token ids must be 0 or more, got {min(value)}; replace -100 by the pad token's id first")
    return value
