"""Answers to look at: where each token of them comes from, as a page, a picture or JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_core.display.page import document, fragment
from rag_core.display.picture import picture
from rag_core.hub import atomic_write, check_writable
from rag_core.outputs import json_text

KINDS = ("html", "svg", "png", "json")


def explanation_kind(path: str | Path) -> str:
    """What the name of a file asks for.

    Raises:
        ValueError: an explanation has no such form.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in KINDS:
        names = ", ".join(f".{name}" for name in KINDS[:-1])
        raise ValueError(
            f"path must end in {names} or .{KINDS[-1]}, got {str(path)!r}. Choose one of them"
        )
    return kind


class Explanation:
    """Answers with the posterior of each passage token by token (paper, figure 2), prior beside
    posterior, and the passages with the answer's words marked.

    A notebook shows it.

    Args:
        answers: as `Answer.to_dict` makes them, or a line of `dualrag ask --json`.
        credit: authors and licence of the passages.
    """

    def __init__(self, answers: Sequence[Mapping[str, Any]], credit: str = "") -> None:
        self.answers = list(answers)
        self.credit = credit

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists: `answers` and `credit`."""
        return {"answers": self.answers, "credit": self.credit}

    def json(self) -> str:
        """`to_dict` as JSON."""
        return json_text(self.to_dict(), ensure_ascii=False, indent=1)

    def html(self) -> str:
        """A page that needs nothing beside it: no script, no file, no network.

        It is light or dark as its reader's desktop; what it shows is text, whatever stands in it.
        """
        return document(self.answers, self.credit)

    def svg(self) -> str:
        """A drawing of heat map and bars, without the passages' texts.

        Raises:
            ImportError: matplotlib is not installed (`dualrag[plots]`).
        """
        return picture(self.answers, self.credit, "svg").decode()

    def png(self) -> bytes:
        """The same as pixels; letters that no font of this machine has are boxes.

        Raises:
            ImportError: matplotlib is not installed (`dualrag[plots]`).
        """
        return picture(self.answers, self.credit, "png")

    def save(self, path: str | Path) -> None:
        """Write a file, whole or not at all.

        Args:
            path: its end says which: .html, .svg, .png or .json.

        Raises:
            ValueError: another end.
            ImportError: matplotlib is not installed, and a picture was asked for.
        """
        kind = explanation_kind(path)
        content = getattr(self, kind)()
        if isinstance(content, str):
            content = content.encode("utf-8", "replace")
        check_writable(path)
        with atomic_write(path) as draft:
            draft.write_bytes(content)

    def _repr_html_(self) -> str:
        return fragment(self.answers, self.credit)

    def __repr__(self) -> str:
        texts = [answer["text"] for answer in self.answers]
        return f"Explanation({texts!r:.200})"
