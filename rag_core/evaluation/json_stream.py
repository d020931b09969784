"""JSON files too large for memory: the elements of one array, one after another."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from rag_core.hub import DamagedFileError, encoding_of

# Files of passages are gigabytes: they are read piece by piece.
_CHUNK = 1 << 20
# Of one element: far above any article with its questions.
_MOST = 1 << 28
_SPACE = " \t\r\n"


def array_elements(path: Path, key: str | None = None) -> Iterator[Any]:
    """The elements of a JSON array, read as far as they are asked for.

    Args:
        path: UTF-8, or UTF-16 or UTF-32 with a byte order mark.
        key: of the top-level object whose value the array is; None where the file is the array.

    Raises:
        DamagedFileError: no JSON, no such array, or an element beyond all bounds.
    """
    with path.open("rb") as stream:
        reader = _Reader(stream, path)
        if key is not None:
            reader.expect("{")
            reader.skip_to(key)
        reader.expect("[")
        if reader.peek() == "]":
            return
        while True:
            yield reader.value()
            if reader.symbol() == "]":
                return


class _Reader:
    """Text of a stream, of which as much is held as the value that is being read needs."""

    def __init__(self, stream: BufferedReader, path: Path) -> None:
        self.stream = stream
        self.path = path
        self.text = ""
        self.place = 0
        self.decoder = json.JSONDecoder()
        self.encoding = encoding_of(stream.peek(4))
        self.decode: Callable[..., str] = codecs.getincrementaldecoder(self.encoding)().decode

    def fault(self, reason: str) -> DamagedFileError:
        return DamagedFileError(f"{self.path} is not valid json: {reason}. Mend or copy it again.")

    def more(self) -> bool:
        """Read on; False at the end of the file."""
        self.text = self.text[self.place :]
        self.place = 0
        if len(self.text) > _MOST:
            raise self.fault(f"a value of more than {_MOST:,} characters")
        # As much again as is held: a long value is begun anew a few times only.
        data = self.stream.read(max(_CHUNK, len(self.text)))
        try:
            self.text += self.decode(data, not data)
        except UnicodeDecodeError as error:
            encoding = self.encoding.removesuffix("-sig").upper()
            raise self.fault(f"text must be {encoding} ({error.reason})") from None
        return bool(data)

    def peek(self) -> str:
        """The next sign that is no blank; "" at the end."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in _SPACE:
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if not self.more():
                return ""

    def symbol(self) -> str:
        """Take "," or a closing bracket."""
        sign = self.peek()
        if sign not in (",", "]", "}"):
            raise self.fault(f"a comma or a bracket must follow a value, got {sign!r}")
        self.place += 1
        return sign

    def expect(self, sign: str) -> None:
        """Take a sign."""
        if self.peek() != sign:
            raise self.fault(f"{sign!r} must stand where {self.peek()!r} does")
        self.place += 1

    def skip_to(self, key: str) -> None:
        """Pass over the entries of an object before the one of that name."""
        while True:
            name = self.value()
            self.expect(":")
            if name == key:
                return
            self.value()
            if self.symbol() != ",":
                raise self.fault(f"an object must have the key {key!r}")

    def value(self) -> Any:
        """Take a value."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.place)
            except json.JSONDecodeError as error:
                if self.more():
                    continue
                raise self.fault(error.msg) from None
            except RecursionError:
                raise self.fault("it is nested too deep") from None
            # A number may go on beyond what is held.
            if end == len(self.text) and self.more():
                continue
            self.place = end
            return value
