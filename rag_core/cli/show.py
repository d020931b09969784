"""Answers for people: the question, the answer, and the passages behind it with their
probabilities, by rich.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rag_core.cli.lines import printable
from rag_core.display import answer_spans, percent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rag_core.outputs import Answer, Hit, Passage

SNIPPET = 220  # characters shown of a passage that the answer owes something to
BAR = 10
SHARE = BAR + 8  # columns of a bar and its number
NARROW = 70  # columns of a terminal that has no room for bars
OWES = 0.1  # posterior from which on a passage is shown in more than one line
_LEAD = 60  # characters shown before the answer where a snippet begins in the middle
_MARK = "bold reverse"


def show_answer(
    answer: Answer, console: Console, credit: str | None = None, full: bool = False
) -> None:
    """Prints one answer.

    Args:
        answer: with its passages; `prior` is p(z|x), `posterior` p(z|x, y) (paper, section 2.1).
        console: where to.
        credit: authors and licence of the passages.
        full: whole passages, with their line breaks.
    """
    _Page(console, full).answer(answer)
    if credit:
        show_notes(console, credit)


def show_hits(question: str, hits: Sequence[Hit], console: Console, full: bool = False) -> None:
    """Prints what a search found.

    Args:
        question: as asked.
        hits: best first.
        console: where to.
        full: whole passages, with their line breaks.
    """
    from rich.text import Text

    page = _Page(console, full)
    console.print(Text(page.line(question), style="bold"))
    for hit in hits:
        page.hit(hit)
    console.print()


def show_notes(console: Console, *notes: str) -> None:
    """Prints what holds of all answers, such as authors and licence of the passages."""
    from rich.padding import Padding
    from rich.text import Text

    for note in notes:
        console.print(Padding(Text(note, style="dim"), (0, 1)))


class _Page:
    """What answers are printed on."""

    def __init__(self, console: Console, full: bool) -> None:
        self.console = console
        self.full = full
        self.is_narrow = console.width < NARROW
        self.plain = console.options.ascii_only
        self.ellipsis = "…"
        if self.plain:
            self.ellipsis = "..."

    def answer(self, answer: Answer) -> None:
        self.console.print(self._head(answer))
        if answer.passages and not self.is_narrow:
            row = self._row()
            row.add_row("", "before answering", "given the answer", "")
            self.console.print(row, style="dim")
        best = max((passage.posterior for passage in answer.passages), default=0.0)
        for rank, passage in enumerate(answer.passages, 1):
            is_best = passage.posterior == best
            if self.is_narrow:
                self._narrow(rank, passage, is_best)
            else:
                self._wide(rank, passage, is_best)
            wanted = ""
            if is_best:
                wanted = answer.text
            self._text(passage, wanted, is_best or passage.posterior >= OWES)
        self.console.print()

    def hit(self, hit: Hit) -> None:
        """Prints one passage that a search found."""
        from rich.text import Text

        title, origin = self._names(hit, hit.rank == 1)
        gap = ""
        if title:
            gap = "  "
        score = (f"{hit.score:.3f}", "green")
        self.console.print(Text.assemble(f"{hit.rank:>3}  ", score, "  ", title, gap, origin))
        self._text(hit, "", True)

    def _head(self, answer: Answer) -> object:
        from rich.panel import Panel
        from rich.text import Text

        # not as markup: its brackets and back slashes are its own
        question = Text(self.line(answer.question), style="bold")
        body = Text(self.line(answer.text) or "(no answer)", style="bold green")
        title: Text | None = question
        if question.cell_len > self.console.width - 6:  # a border would cut it
            body = Text("\n").join([question, body])
            title = None
        likely = f"p = {percent(math.exp(min(0.0, answer.log_probability)))}"
        sure = f"this exact wording: {likely}"
        if answer.confidence is not None:
            sure = f"right: {percent(answer.confidence)} (this exact wording: {likely})"
        return Panel(
            body,
            title=title,
            title_align="left",
            subtitle=Text(sure, style="dim"),
            subtitle_align="right",
            border_style="cyan",
            padding=(0, 1),
        )

    def _row(self) -> Table:
        """The line of a passage: rank, both shares, what it is called and where it comes from."""
        from rich.table import Table

        row = Table.grid(padding=(0, 2, 0, 0), expand=True)
        row.add_column(justify="right", width=3)
        row.add_column(width=SHARE)
        row.add_column(width=SHARE)
        row.add_column(ratio=1)
        return row

    def _wide(self, rank: int, passage: Passage, is_best: bool) -> None:
        from rich.padding import Padding
        from rich.text import Text

        title, origin = self._names(passage, is_best)
        named = origin
        if title:
            named = Text.assemble(title, "  ", origin)
        room = self.console.width - 2 * SHARE - 9
        row = self._row()
        prior = _bar(passage.prior, "blue", self.plain)
        posterior = _bar(passage.posterior, "green", self.plain)
        if title and named.cell_len > room:
            row.add_row(str(rank), prior, posterior, title)
            self.console.print(row)
            self.console.print(Padding(origin, (0, 1, 0, 5)))
        else:
            row.add_row(str(rank), prior, posterior, named)
            self.console.print(row)

    def _narrow(self, rank: int, passage: Passage, is_best: bool) -> None:
        from rich.padding import Padding
        from rich.text import Text

        title, origin = self._names(passage, is_best)
        gap = ""
        if title:
            gap = "  "
        self.console.print(Text.assemble(f"{rank}  ", title, gap, origin))
        prior, posterior = percent(passage.prior), percent(passage.posterior)
        shares = Text(f"{prior} before, {posterior} given answer", style="green")
        self.console.print(Padding(shares, (0, 0, 0, 3)))

    def _names(self, passage: Passage | Hit, is_best: bool) -> tuple[Text, Text]:
        """A passage's title, empty where its origin says as much, and its origin."""
        from rich.text import Text

        from rag_core.outputs import origin_of

        origin = f"row {passage.id}"
        if passage.source:
            origin = self.line(origin_of(passage.source, passage.metadata, self.plain))
        style = "cyan"
        if is_best:
            style = "bold cyan"
        if _says(passage.metadata.get("headings"), passage.title):
            return Text(), Text(origin, style=style)
        title = self.line(passage.title) or "(untitled)"
        return Text(title, style=style), Text(origin, style="dim")

    def _text(self, passage: Passage | Hit, wanted: str, at_length: bool) -> None:
        from rich.padding import Padding
        from rich.text import Text

        if self.full:
            shown = "\n".join(self.known(line).rstrip() for line in passage.text.splitlines())
        else:
            shown = self.line(passage.text)
        marks = answer_spans(shown, wanted)
        text = Text(shown)
        for start, end in marks:
            text.stylize(_MARK, start, end)
        if not self.full:
            length = SNIPPET
            if not at_length:
                length = max(self.console.width - 6, 20)  # one line
            text = self._snippet(text, marks, length)
        if not at_length:
            text.stylize_before("dim")
        left = 5
        if self.is_narrow:
            left = 3
        self.console.print(Padding(text, (0, 1, 0, left)))

    def _snippet(self, text: Text, marks: list[tuple[int, int]], length: int) -> Text:
        """A part of a text between blanks: its beginning, or from shortly before the first mark."""
        if len(text) <= length:
            return text
        ellipsis = self.ellipsis
        start = 0
        if marks and marks[0][1] > length - len(ellipsis) - 1:
            start = text.plain.rfind(" ", 0, max(1, marks[0][0] - _LEAD)) + 1
        last = start + length - 2 * (len(ellipsis) + 1)
        end = len(text)
        if last < end:
            end = text.plain.rfind(" ", start + 1, last + 1)
            if end < 0:
                end = last
        part = text[start:end]
        if start:
            part = part.blank_copy(f"{ellipsis} ").append_text(part)
        if end < len(text):
            part.append(f" {ellipsis}")
        return part

    def line(self, text: str) -> str:
        """The text in one line, as `known`."""
        return " ".join(self.known(text).split())

    def known(self, text: str) -> str:
        """The text in letters that the terminal has, without control characters."""
        return printable(text, self.console.encoding)


def _says(headings: object, title: str) -> bool:
    """Whether a path of headings holds all that a title says."""
    if not isinstance(headings, list) or not headings:
        return False
    return all(part in headings for part in title.split(" — "))


def _bar(share: float, colour: str, plain: bool) -> Text:
    from rich.text import Text

    letters = "█░"
    if plain:
        letters = "#-"
    length = round(BAR * min(1.0, max(0.0, share)))
    filled = letters[0] * length
    rest = letters[1] * (BAR - length)
    return Text.assemble((filled, colour), (rest, "dim"), f"{percent(share):>8}")
