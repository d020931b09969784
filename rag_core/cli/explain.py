"""`dualrag explain`: an answer as a page or a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rag_core.cli.ask import Page, open_answerer
from rag_core.cli.common import clean, say, taking


@clean
@taking(open_answerer)
def explain(
    question: Annotated[list[str], typer.Argument(metavar="QUESTION")],
    out: Annotated[Path, typer.Option(help="File to write: .html, .svg, .png or .json.")] = Path(
        "answer.html"
    ),
    **options: Any,
) -> None:
    """Answer a question and show which passage each token of the answer comes from."""
    from rag_core.cli.questions import one_argument
    from rag_core.display import Explanation, explanation_kind
    from rag_core.hub import check_writable

    asked = one_argument(question, "explain")
    explanation_kind(out)
    check_writable(out)
    answers = Answers()
    answerer = open_answerer(answers, **options)
    answerer.answer([asked], last=True)
    Explanation(answers.shown, " ".join(answers.notes)).save(out)
    for answer in answers.shown:
        say(f"answer: {answer['text'] or '(no answer)'}")
    if not any(answer["token_posteriors"] for answer in answers.shown):
        say(
            "note: RAG-Sequence takes the whole answer from one passage; --head token shows where "
            "each token comes from"
        )
    say(f"written: {out}")


class Answers(Page):
    """A page that keeps its answers as JSON has them."""

    def __init__(self) -> None:
        super().__init__(as_json=True)
        self.shown: list[dict[str, Any]] = []

    def show(self, answer: Any) -> None:
        """Keeps an answer."""
        self.shown.append(answer.to_dict())
