"""What is printed, in letters that the other end has, and without power over the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rag_core.outputs import json_text

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 120  # longer lines are hard to read
_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], " ")


def json_line(row: dict[str, Any]) -> str:
    """JSON in the letters it is about; as ASCII escapes where stdout cannot write them."""
    line = json_text(row, ensure_ascii=False)
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json_text(row)
    return line


def stdout_console() -> Console:
    """Stdout, never wider than can be read."""
    from rich.console import Console

    console = Console(highlight=False)
    console.width = min(console.width, WIDE)
    return console


def printable(text: str, encoding: str) -> str:
    """The text without control characters: text of strangers has no command over the terminal."""
    # here, so that columns are as wide as what is written
    return text.encode(encoding, "replace").decode(encoding).translate(_CONTROLS)


def counted(number: int, noun: str) -> str:
    """How many there are, in words."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}s"
