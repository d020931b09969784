"""Answers for people: the question, the answer, and the passages behind it with their
probabilities, by rich.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from rag_core.outputs import Answer

SNIPPET = 220
BAR = 10
NARROW = 70  # columns of a terminal that has no room for bars
_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], " ")


def show_answer(answer: Answer, console: Console, credit: str | None = None) -> None:
    """Prints one answer.

    Args:
        answer: with its passages; `prior` is p(z|x), `posterior` p(z|x, y) (paper, section 2.1).
        console: where to.
        credit: authors and licence of the passages.
    """
    from rich import box
    from rich.padding import Padding
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    plain = console.options.ascii_only
    line = functools.partial(_line, encoding=console.encoding)
    body = Text(line(answer.text) or "(no answer)", style="bold green")
    body.append(
        f"   p = {_percent(math.exp(min(0.0, answer.log_probability)))}", style="not bold dim"
    )
    # not as markup: its brackets and back slashes are its own
    question = Text(line(answer.question), style="bold")
    console.print(
        Panel(body, title=question, title_align="left", border_style="cyan", padding=(1, 2))
    )
    narrow = console.width < NARROW
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    table.add_column("#", justify="right", style="dim", width=2)
    table.add_column("passage", ratio=1)
    if not narrow:
        table.add_column("before answering", width=16)
        table.add_column("given the answer", width=16)
    best = max((passage.posterior for passage in answer.passages), default=0.0)
    for rank, passage in enumerate(answer.passages, 1):
        style = "cyan"
        if passage.posterior == best:
            style = "bold cyan"
        cell = Text.assemble(
            (line(passage.title) or "(untitled)", style),
            (f"  row {passage.id}", "dim"),
            "\n",
            _snippet(line(passage.text), plain),
        )
        bars = []
        if narrow:
            prior = _percent(passage.prior)
            posterior = _percent(passage.posterior)
            cell.append(f"\n{prior} before, {posterior} given the answer", "green")
        else:
            bars.append(_bar(passage.prior, "blue", plain))
            bars.append(_bar(passage.posterior, "green", plain))
        table.add_row(str(rank), cell, *bars)
    console.print(Padding(table, (0, 1)))
    if credit:
        console.print(Padding(Text(credit, style="dim"), (0, 1, 1, 1)))


def _snippet(text: str, plain: bool) -> str:
    """The beginning of a text, to the end of a word."""
    if len(text) <= SNIPPET:
        return text
    start = text[:SNIPPET].rsplit(" ", 1)[0]
    if plain:
        return start + " ..."
    return start + " …"


def _line(text: str, encoding: str) -> str:
    """The text in one line and without control characters.

    Text of strangers has no command over the terminal.
    """
    # here, so that columns are as wide as what is written
    known = text.encode(encoding, "replace").decode(encoding)
    return " ".join(known.translate(_CONTROLS).split())


def _percent(share: float) -> str:
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.1f} %"


def _bar(share: float, colour: str, plain: bool) -> Text:
    from rich.text import Text

    letters = "█░"
    if plain:
        letters = "#-"
    length = round(BAR * min(1.0, max(0.0, share)))
    filled = letters[0] * length
    rest = letters[1] * (BAR - length)
    return Text.assemble((filled, colour), (rest, "dim"), f"\n{_percent(share)}")
