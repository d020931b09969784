"""Names and values of a thing, in a line and as a notebook shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rag_core.display.marks import escaped

_LONGEST = 200  # characters of a value


def facts_line(title: str, facts: Mapping[str, Any]) -> str:
    """The facts as a `repr`; those that are None or empty are left out."""
    return f"{title}({', '.join(f'{name}: {text}' for name, text in _known(facts))})"


def facts_html(title: str, facts: Mapping[str, Any], details: str = "") -> str:
    """The facts as a table.

    Args:
        title: of the table.
        facts: by name; those that are None or empty are left out.
        details: a long text, shown to whom asks for it.
    """
    left = 'style="text-align: left; padding-right: 1em"'
    rows = "".join(
        f"<tr><th {left}>{escaped(name)}</th><td {left}>{escaped(text)}</td></tr>"
        for name, text in _known(facts)
    )
    folded = ""
    if details:
        folded = f"<details><summary>all of it</summary><pre>{escaped(details)}</pre></details>"
    return f"<div><strong>{escaped(title)}</strong><table>{rows}</table>{folded}</div>"


def byte_size(count: int) -> str:
    """A number of bytes for people."""
    for unit, size in (("GB", 1_000_000_000), ("MB", 1_000_000)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    if count >= 1000:
        return f"{count / 1000:,.0f} kB"
    return f"{count} B"


def how_many(count: int) -> str:
    """A number of weights for people."""
    if count < 100_000:
        return f"{count:,}"
    return f"{count / 1e6:,.1f} million"


def shortened(text: str, longest: int = _LONGEST) -> str:
    """The text in one line, or its beginning."""
    line = " ".join(text.split())
    if len(line) <= longest:
        return line
    return f"{line[: longest - 1]}…"


def _known(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    texts = {name: _text_of(value) for name, value in facts.items() if value is not None}
    return [(name, shortened(text)) for name, text in texts.items() if text]


def _text_of(value: Any) -> str:
    """A value without the signs of Python."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text_of, value))
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_text_of(each)}" for name, each in value.items())
    return str(value)
