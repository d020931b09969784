"""E-mails in .eml -> one section each: the subject is the title, sender and date are kept."""

from __future__ import annotations

from collections.abc import Iterator
from email import message_from_binary_file, policy
from email.header import decode_header
from email.message import EmailMessage
from pathlib import Path
from typing import Any, cast

from rag_core.knowledge.outline import Block, LeftOut, Section
from rag_core.knowledge.readers.bounds import FileFault, check_size, tidy
from rag_core.knowledge.readers.html import codec, decode, page_blocks

# Attachments are in it, which are passed by.
MAX_BYTES = 256 << 20
_HEADERS = ("from", "to", "date")


def read(path: Path, name: str) -> Iterator[Section | LeftOut]:
    """The text of an .eml file, plain where it has both; attachments are left out."""
    check_size(path.stat().st_size, MAX_BYTES)
    with path.open("rb") as stream:
        message = cast(EmailMessage, message_from_binary_file(stream, policy=policy.default))
    if not message.keys():
        raise FileFault("it has no headers of an e-mail. Save it anew, or as .txt.")
    section = Section(_header(message, "subject") or name, "")
    for header in _HEADERS:
        if value := _header(message, header):
            section.metadata[header] = value
    for kind in ("plain", "html"):
        body = message.get_body((kind,))
        # The plain part of some is blank. Headings within an e-mail are lines of it.
        if body is not None and not section.text.strip():
            section.fill(_blocks(body))
    yield section
    for part in message.iter_attachments():
        yield LeftOut("attachment(s)", tidy(part.get_filename() or part.get_content_type()))


def _header(message: EmailMessage, name: str) -> str:
    value: Any = message[name]
    if value is None:
        return ""
    if name == "date" and getattr(value, "datetime", None) is not None:
        return value.datetime.isoformat(sep=" ")
    text = tidy(str(value))
    if "\ufffd" in text:
        # The library takes a label for less than it is taken for, and knows fewer.
        raw = next(value for key, value in message.raw_items() if key.lower() == name)
        text = tidy("".join(_part(*part) for part in decode_header(raw)))
    return " ".join(text.split())


def _part(part: str | bytes, label: str | None) -> str:
    """A part of a header as `decode_header` gives it."""
    if isinstance(part, str):
        part = part.encode("ascii", "surrogateescape")
    return _letters(part, label)


def _blocks(body: Any) -> list[Block]:
    data = body.get_payload(decode=True) or b""
    text = _letters(data, body.get_content_charset())
    if body.get_content_subtype() == "html":
        blocks, _ = page_blocks(text)
        return blocks
    return [Block(tidy(text).strip())]


def _letters(data: bytes, label: str | None) -> str:
    """A text by the label of its letters; what says ASCII is often more."""
    if label not in (None, "ascii", "us-ascii") and (name := codec(label)):
        return data.decode(name, "replace")
    return decode(data)
