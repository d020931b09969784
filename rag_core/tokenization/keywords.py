"""The keywords of a tokenizer's call, for editors and type checkers; what each does stands in
`Tokenizer.__call__`.
"""

from __future__ import annotations

from typing import Any, TypedDict


class CallKeywords(TypedDict, total=False):
    """What a tokenizer's call takes by name besides texts."""

    text_pair_target: Any
    add_special_tokens: bool
    padding: bool | str
    truncation: bool | str | None
    max_length: int | None
    stride: int
    is_split_into_words: bool
    pad_to_multiple_of: int | None
    return_tensors: str | None
    return_token_type_ids: bool | None
    return_attention_mask: bool | None
    return_overflowing_tokens: bool
    return_special_tokens_mask: bool
    return_offsets_mapping: bool
    return_length: bool
    verbose: bool
    pad_to_max_length: bool


class TokenizerKeywords(CallKeywords, total=False):
    """The same with second texts."""

    text_pair: Any
