"""E-mails in .eml -> one section each: the subject is the title, sender and date are kept."""

from __future__ import annotations

from collections.abc import Iterator
from email import message_from_binary_file, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any, cast

from rag_core.knowledge.outline import Block, LeftOut, Section
from rag_core.knowledge.readers.bounds import FileFault, check_size, tidy
from rag_core.knowledge.readers.html import page_blocks

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
    body = message.get_body(("plain", "html"))
    if body is not None:
        # Headings within an e-mail are lines of it.
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
    return " ".join(tidy(str(value)).split())


def _blocks(body: Any) -> list[Block]:
    content = body.get_content()
    if body.get_content_subtype() == "html":
        blocks, _ = page_blocks(content)
        return blocks
    return [Block(tidy(content).strip())]
