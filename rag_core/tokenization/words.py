"""Byte-level BPE word by word: the ids of a word never depend on its neighbours, so that each is
worked out once.

Most of what the `tokenizers` library does for a text of BART or GPT-2 is finding where its words
begin. Python's `re` does that faster for the characters that it and the library are known to class
alike; all other texts are left to the library.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

# Latin, Greek
_LETTERS = r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0391-\u03a1\u03a3-\u03c9"
_SPACES = r" \t\n\v\f\r"
# ASCII that prints, letters, some signs, dashes and quotation marks; no other spaces, digits or
# marks that combine.
_KNOWN = re.compile(
    rf"[!-~{_SPACES}{_LETTERS}\u00a3\u00b0\u00d7\u00f7\u2010-\u2027\u2032\u2033\u20ac\u2212]*"
)
# The pattern of GPT-2, for those characters.
_WORD = re.compile(
    rf"'(?:s|t|re|ve|m|ll|d)| ?[{_LETTERS}]+| ?[0-9]+| ?[^{_SPACES}{_LETTERS}0-9]+"
    rf"|[{_SPACES}]+(?![^{_SPACES}])|[{_SPACES}]+"
)
# Words kept: more than most corpora often use, in some 15 MB.
_MOST = 1 << 16
# bytes that byte-level BPE writes as they are
_SHOWN = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
HIDDEN = {byte: 0x100 + number for number, byte in enumerate(sorted({*range(0x100)} - _SHOWN))}


class Words:
    """Ids of words that came before.

    Args:
        backend: a pipeline of which `splits_alike` is true.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend = backend
        self._ids: dict[str, list[int]] = {}
        word = backend.encode("a", add_special_tokens=False).ids
        framed = backend.encode("a").ids
        start = framed.index(word[0])
        self.before = framed[:start]
        self.after = framed[start + len(word) :]

    def encode(self, texts: Sequence[str]) -> list[list[int] | None]:
        """The ids of each text without special tokens; None where only the library knows them."""
        tokens = self.backend.get_added_tokens_decoder().values()
        added = re.compile("|".join(re.escape(token.content) for token in tokens) or "(?!)")
        if len(self._ids) > _MOST:
            self._ids = {}
        ids = self._ids
        model = self.backend.model
        split: list[list[str] | None] = []
        for text in texts:
            words = None
            if _KNOWN.fullmatch(text) and not added.search(text):
                words = _WORD.findall(text)
            split.append(words)
        # All words first, then all rows: looking for new ones in every row takes a quarter longer.
        for word in {word for words in split for word in words or () if word not in ids}:
            letters = word.encode().decode("latin-1").translate(HIDDEN)
            ids[word] = [token.id for token in model.tokenize(letters)]
        rows: list[list[int] | None] = []
        for words in split:
            row = None
            if words is not None:
                row = [index for word in words for index in ids[word]]
            rows.append(row)
        return rows


def splits_alike(backend: tokenizers.Tokenizer) -> bool:
    """Whether a pipeline is byte-level BPE over GPT-2's words, and nothing else."""
    from tokenizers import models, pre_tokenizers

    splitter, model = backend.pre_tokenizer, backend.model
    return (
        backend.normalizer is None
        and isinstance(splitter, pre_tokenizers.ByteLevel)
        and splitter.use_regex
        and not splitter.add_prefix_space
        and isinstance(model, models.BPE)
        and not model.dropout
        # else the special tokens around a text could not be told from those behind it
        and bool(backend.encode("a", add_special_tokens=False).ids)
    )
