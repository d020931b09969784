"""Words of an answer while it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rag_core.backends import to_numpy


class WordStreamer:
    """A streamer for `generate` that hands on the text so far, up to its last word, which may still
    grow.

    Args:
        decode: a tokenizer's method.
        on_text: called with the text.
    """

    def __init__(self, decode: Callable[..., str], on_text: Callable[[str], None]) -> None:
        self._decode = decode
        self._on_text = on_text
        self._ids: list[int] = []
        self._sent = ""

    def put(self, ids: Any) -> None:
        """Takes the start tokens, and then each new one."""
        self._ids += to_numpy(ids).reshape(-1).tolist()
        text = self._decode(self._ids, skip_special_tokens=True).lstrip()
        whole_words = text.rpartition(" ")[0]
        if len(whole_words) > len(self._sent) and whole_words.startswith(self._sent):
            self._sent = whole_words
            self._on_text(whole_words)

    def end(self) -> None:
        """Nothing: the answer itself comes."""
