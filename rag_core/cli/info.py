"""`dualrag info`: what a knowledge base holds and what made it, on one screen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rag_core.cli.common import clean
from rag_core.cli.lines import json_line, printable, stdout_console
from rag_core.display import byte_size

VALUES_SHOWN = 3
KEYS_SHOWN = 12


@clean
def info(
    kb: Annotated[Path, typer.Argument(metavar="KB", help="Folder of the knowledge base.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, on stdout.")] = False,
) -> None:
    """Say what a knowledge base holds, what made it, and whether its encoder is at hand."""
    from rag_core.knowledge import KnowledgeBase

    found = KnowledgeBase.open(kb).info()
    if as_json:
        print(json_line(found))
        return
    from rich.table import Table
    from rich.text import Text

    console = stdout_console()
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for name, text in _lines(found):
        table.add_row(name, Text(printable(text, console.encoding)))
    console.print(table)


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and texts of what is shown, without what is unknown."""
    from rag_core.knowledge import index_text

    words = "documents whole"
    if found["words"]:
        words = f"of about {found['words']:,} words"
    place = found["encoder_at"] or "not on this machine: it is fetched where it is needed"
    backends = ", ".join(found["backends"]) or "none installed"
    lines = {
        "knowledge base": found["path"],
        "passages": f"{found['passages']:,}, {words}",
        "files": _files(found),
        "indexed": ", ".join(found["roots"]),
        "encoder": f"{found['encoder']}, {found['dimension']:,} numbers a vector",
        "encoder at": place,
        "backends": backends,
        "index": index_text(found["index"]),
        "conditions on": _keys(found["metadata"]),
        "size": byte_size(found["bytes"]),
        "written": found["written"].replace("T", " ").replace("+00:00", " UTC"),
        "with": ", ".join(f"{name} {version}" for name, version in found["libraries"].items()),
        "credit": found["credit"] or "",
    }
    return [(name, text) for name, text in lines.items() if text]


def _files(found: dict[str, Any]) -> str:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in found["kinds"].items())
    names = ", ".join(found["first_files"])
    if found["files"] > len(found["first_files"]):
        names += ", ..."
    return f"{found['files']:,} ({kinds}): {names}"


def _keys(metadata: dict[str, list[str]]) -> str:
    told = ["title", "text"]
    for name, values in sorted(metadata.items()):
        if name.startswith("end_"):
            continue
        told.append(f"{name} ({', '.join(values[:VALUES_SHOWN])})")
    if len(told) > KEYS_SHOWN:
        told[KEYS_SHOWN:] = ["..."]
    return ", ".join(told)
