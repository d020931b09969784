"""The one reader of text by lines.

Corpora, questions and training files, a fault named with its file and line.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from rag_core.hub.json_files import bounded_json

_MARKS = (  # the longer ones first: UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_BYTE_ORDER_MARK = "\ufeff"
_NUL = "\0"
_JSON_LINES = "every line must be one JSON object"
_MEND = "Mend the line."


class Line(NamedTuple):
    """A line of a text.

    Attributes:
        number: counted from 1; LF, CR LF and CR alone end a line.
        text: with its line end, without a byte order mark.
        fault: why it is no text, as "name:line: ..."; None where it is one.
    """

    number: int
    text: str
    fault: str | None


def encoding_of(start: bytes) -> str:
    """The encoding of a text by its first bytes: UTF-8 without a byte order mark."""
    return next((encoding for mark, encoding in _MARKS if start.startswith(mark)), "utf-8")


def scan_lines(stream: IO[bytes], name: str | PathLike[str]) -> Generator[Line, None, None]:
    """The lines of a stream of UTF-8 (or UTF-16 or UTF-32 with a byte order mark); a faulty one
    does not end it.

    Args:
        stream: bytes, read as far as lines are asked for; it stays open.
        name: of the file, for faults.
    """
    buffered: Any = stream
    if not hasattr(stream, "peek"):
        buffered = io.BufferedReader(cast(Any, stream))
    encoding = encoding_of(buffered.peek(4))
    # A byte that is not UTF-8 is kept as a lone surrogate, and so found with its line and column.
    errors = "surrogatepass"
    if encoding.startswith("utf-8"):
        errors = "surrogateescape"
    decoded = io.TextIOWrapper(buffered, encoding, errors, newline="")
    number = 0
    try:
        for number, text in enumerate(decoded, 1):
            text = text.lstrip(_BYTE_ORDER_MARK)  # files that were joined bring marks in the middle
            fault = _line_fault(text, encoding, name, number)
            yield Line(number, text, fault and f"{name}:{number}: {fault}")
    except UnicodeDecodeError as error:
        fault = (
            f"{name}:{number + 1}: not {encoding.upper()} as its first bytes say "
            f"({error.reason}). Write it anew."
        )
        yield Line(number + 1, "", fault)
    finally:
        decoded.detach()
        if buffered is not stream:
            buffered.detach()


def read_lines(path: str | PathLike[str]) -> Iterator[tuple[int, str]]:
    """The numbered lines of a text file, with their line ends.

    Raises:
        OSError: it cannot be read.
        ValueError: a line is no text; names the file and the line.
    """
    with Path(path).open("rb") as stream, closing(scan_lines(stream, path)) as lines:
        for number, text, fault in lines:
            if fault:
                raise ValueError(fault)
            yield number, text


def parse_object(text: str, place: str, first: bool = False) -> dict[str, Any]:
    """The JSON object on a line.

    Args:
        text: the line.
        place: "file:line", for errors.
        first: whether it is the file's first line with something on it, whose errors tell of files
            of other layouts.

    Raises:
        ValueError: no JSON, or no object.
    """
    text = text.strip()
    advice = _MEND
    if first:
        advice = _layout_advice(text)
    try:
        row = bounded_json(text, _once, strict=False)
    except ValueError as error:
        reason = str(error)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} at column {error.pos + 1}"
            if error.msg == "Extra data":  # a whole object, and more after it
                advice = _MEND
        raise ValueError(f"{place}: {_JSON_LINES}: {reason}. {advice}") from None
    if row is None:
        raise ValueError(f"{place}: {_JSON_LINES}, got null. {advice}")
    if not isinstance(row, dict):
        raise ValueError(f"{place}: {_JSON_LINES}, got a JSON {type(row).__name__}. {advice}")
    return row


def check_text(text: str, place: str, name: str) -> str:
    """The text itself.

    Args:
        text: decoded already, e.g. out of JSON or parquet.
        place: "file:line", for errors.
        name: of the field.

    Raises:
        ValueError: it holds a NUL or half of a surrogate pair, which no encoder, index or file
            takes.
    """
    if fault := text_fault(text):
        raise ValueError(f"{place}: {name} must be text, but holds {fault}. Mend or remove it.")
    return text


def text_fault(text: str) -> str | None:
    """What makes a string no text, or None."""
    if _NUL in text:
        return f"a NUL at character {text.index(_NUL) + 1}"
    # most texts are ASCII, which costs nothing to see
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        return (
            f"half of a surrogate pair ({half}) at character {error.start + 1}, no Unicode "
            "character"
        )
    return None


def numbered(paths: Iterable[Any], most: int = 3) -> str:
    """The first few names of a list, for a message."""
    names = [str(path) for path in paths]
    if len(names) > most:
        names[most:] = ["..."]
    return ", ".join(names)


def _line_fault(text: str, encoding: str, name: str | PathLike[str], number: int) -> str | None:
    if _NUL in text:
        is_utf16, order = _utf16(text.encode("utf-8", "surrogateescape"), number)
        if is_utf16:
            return (
                "NUL bytes, and no byte order mark: this looks like UTF-16. Convert it, "
                f"{_iconv(order, name)}"
            )
        return (
            "a NUL byte, so this is no text file. Remove it, or convert it if it is UTF-16, "
            f"{_iconv(order, name)}"
        )
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        column = error.start + 1
        code = ord(text[error.start])
        if encoding.startswith("utf-8"):
            # surrogateescape keeps the byte 0xNN as the character U+DCNN
            return (
                f"text must be UTF-8, but byte 0x{code - 0xDC00:02x} at column {column} is not. "
                f"Convert it from the encoding it has, {_iconv('WINDOWS-1252', name)}"
            )
        return (
            f"half of a surrogate pair (\\u{code:04x}) at column {column}, no Unicode character. "
            "Mend the line."
        )
    return None


def _utf16(line: bytes, number: int) -> tuple[bool, str]:
    """Whether the NUL bytes of a line lie as in UTF-16, and in which byte order.

    Letters of ASCII have one each, all in odd places or all in even ones; so have blanks among
    other scripts.
    """
    places = [place for place, byte in enumerate(line) if not byte]
    parities = {place % 2 for place in places}
    order = "UTF-16LE"
    # After the first line, lines begin with the second half of a line feed where the order is LE.
    if number == 1 and parities == {0}:
        order = "UTF-16BE"
    return len(parities) == 1 and (len(places) > 1 or len(line) < 4), order


def _iconv(encoding: str, name: str | PathLike[str]) -> str:
    file = "FILE"
    if Path(name).exists():
        file = Path(name).name
    return f"e.g.  iconv -f {encoding} -t UTF-8 {file}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"the key {key!r:.60} comes twice")
        seen.add(key)
    return row


def _layout_advice(text: str) -> str:
    """What to do about a file whose first line begins an array, or ends before its object does."""
    if text.startswith("["):
        return (
            "The file is a JSON array: write its objects one a line, e.g.  jq -c '.[]' FILE > "
            "FILE.jsonl"
        )
    if text.startswith("{") and text.endswith(("{", "[", ",", ":")):
        return (
            "If the objects are written over several lines, write each on one, e.g.  jq -c . FILE "
            "> FILE.jsonl"
        )
    return _MEND
