"""`dualrag search`: questions to passages with scores, without a generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rag_core.cli.ask import Answerer, Page, converse
from rag_core.cli.changes import Base
from rag_core.cli.common import Backend, Full, QuestionsFile, Where, clean, say

if TYPE_CHECKING:
    from rag_core.knowledge import KnowledgeBase
    from rag_core.outputs import Hit

_FILE_BATCH = 64


@dataclass
class Found:
    """A question and the passages that a search found for it."""

    question: str
    hits: list[Hit]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"question": self.question, "hits": [hit.to_dict() for hit in self.hits]}


class Searcher:
    """A knowledge base that answers questions with passages.

    Args:
        base: the knowledge base.
        **options: of its method `search`.
    """

    def __init__(self, base: KnowledgeBase, **options: Any) -> None:
        self.base = base
        self.options = options

    def answer(self, questions: list[str]) -> list[Found]:
        """The passages of each question."""
        from rag_core.cli.process import uncollected

        with uncollected():
            hits = self.base.search(questions, **self.options)
        return [Found(*pair) for pair in zip(questions, hits, strict=True)]


class HitsPage(Page):
    """Where hits are shown."""

    def print(self, found: Found) -> None:
        from rag_core.cli.show import show_hits

        show_hits(found.question, found.hits, self.console(), full=self.full)
        if not all(hit.source for hit in found.hits):
            self.without_source = True


@clean
def search(
    kb: Base,
    question: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUESTION", help="Leave it out to search one after another."),
    ] = None,
    questions: QuestionsFile = None,
    k: Annotated[int, typer.Option("--k", "-k", help="Passages a question.")] = 5,
    where: Where = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a question, on stdout.")
    ] = False,
    full: Full = False,
    encoder: Annotated[
        str | None,
        typer.Option(help="Folder or name of the encoder of questions; by default KB's own."),
    ] = None,
    backend: Backend = None,
) -> None:
    """Find the passages nearest to a question, with where they come from; no model answers.

    Scores are inner products of the vectors of question and passage, or BM25 where KB is searched
    by words.
    """
    from rag_core.cli import questions as source
    from rag_core.cli.models import fetch_encoder
    from rag_core.cli.process import load_backend_for_command
    from rag_core.knowledge import KnowledgeBase

    if question and questions:
        raise ValueError("QUESTION or --questions must be given, got both. Leave one out")
    asked = None
    if question:
        asked = source.one_argument(question, "search", kb)
    if k < 1:
        raise ValueError(f"--k must be at least 1, got {k}")
    if questions is not None:
        lines = source.of_file(questions)
    base = KnowledgeBase.open(kb)
    if where:
        base.matching(where)  # a wrong condition should not wait for an encoder to load
    if base.manifest.search != "bm25":
        load_backend_for_command(backend)
        fetch_encoder(encoder or base.manifest.encoder["name"], say)
    page = HitsPage(as_json, full)
    if base.manifest.credit:
        page.notes.append(base.manifest.credit)
    searcher = Searcher(base, k=k, where=where or None, encoder=encoder, backend=backend)
    answerer = Answerer(None, searcher, page, {})
    with page:
        if asked is not None:
            answerer.answer([asked])
        elif questions is not None:
            answerer.answer_all(lines, _FILE_BATCH)
        elif source.at_terminal():
            converse(answerer)
        else:
            answerer.answer_all(source.piped(), 1)
    if answerer.refused:
        raise typer.Exit(2)
