"""Haystack: a component that finds passages, and one that answers (docs/integrations.md).

Needs haystack-ai, the extra `[haystack]`.
"""

from __future__ import annotations

import asyncio
from functools import cached_property
from pathlib import Path
from typing import Any

from rag_core.integrations.asking import PassageSearch, QuestionAnswering
from rag_core.integrations.libraries import lacking
from rag_core.integrations.records import answer_record, passage_metadata
from rag_core.knowledge import KnowledgeBase
from rag_core.outputs import Answer, Hit, Passage

try:
    from haystack import Document, GeneratedAnswer, component, default_from_dict, default_to_dict
except ModuleNotFoundError as error:
    raise lacking("haystack-ai", "haystack") from error

__all__ = ["AnswerComponent", "PassageRetriever"]


@component
class PassageRetriever:
    """The passages nearest to a query, as Haystack's documents.

    A document's `meta` has "title", "source", "origin" (for people), "rank" and the place in the
    source.

    Args:
        source, where, encoder, backend: as of `rag_core.integrations.PassageSearch`; to be saved
            with a pipeline, names and texts.
        top_k: passages a query.
    """

    def __init__(
        self,
        source: Any,
        top_k: int = 5,
        where: Any = None,
        encoder: Any = None,
        backend: str | None = None,
    ) -> None:
        self.source = source
        self.top_k = top_k
        self.where = where
        self.encoder = encoder
        self.backend = backend

    @cached_property
    def _search(self) -> PassageSearch:
        return PassageSearch(
            self.source, where=self.where, encoder=self.encoder, backend=self.backend
        )

    def warm_up(self) -> None:
        """Open what is searched."""
        _ = self._search

    @component.output_types(documents=list[Document])
    def run(self, query: str, top_k: int | None = None, where: Any = None) -> dict[str, Any]:
        """Find passages.

        Args:
            query: a question.
            top_k, where: in the place of the component's.
        """
        if top_k is None:
            top_k = self.top_k
        (hits,) = self._search([query], top_k, where)
        return {"documents": [document_of(hit) for hit in hits]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, top_k: int | None = None, where: Any = None
    ) -> dict[str, Any]:
        """As `run`, in a thread."""
        return await asyncio.to_thread(self.run, query, top_k, where)

    def to_dict(self) -> dict[str, Any]:
        """What a pipeline saves.

        Raises:
            TypeError: an argument was no name and no text.
        """
        return default_to_dict(
            self,
            source=_name("source", self.source),
            top_k=self.top_k,
            where=_texts("where", self.where),
            encoder=_name("encoder", self.encoder),
            backend=self.backend,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PassageRetriever:
        """A component from what `to_dict` gave."""
        return default_from_dict(cls, data)


@component
class AnswerComponent:
    """Questions to answers with their passages.

    An answer's `documents` are the passages, with their posterior as the score; its `meta` has
    "probability", "confidence" and "citations".

    Args:
        model, knowledge_base, head, backend: as of `rag_core.integrations.QuestionAnswering`; to be
            saved with a pipeline, names.
        options: of the model's method `answer`.
    """

    def __init__(
        self,
        model: Any,
        knowledge_base: Any = None,
        head: str | None = None,
        backend: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.knowledge_base = knowledge_base
        self.head = head
        self.backend = backend
        self.options = options or {}

    @cached_property
    def _answering(self) -> QuestionAnswering:
        return QuestionAnswering(
            self.model,
            self.knowledge_base,
            head=self.head,
            backend=self.backend,
            **self.options,
        )

    def warm_up(self) -> None:
        """Load the model, if it is named."""
        _ = self._answering

    @component.output_types(answers=list[GeneratedAnswer])
    def run(self, query: str, options: dict[str, Any] | None = None) -> dict[str, Any]:
        """Answer a question.

        Args:
            query: the question.
            options: in the place of the component's.
        """
        answers = self._answering([query], **(options or {}))
        return {"answers": [_answer_of(answer) for answer in answers]}

    @component.output_types(answers=list[GeneratedAnswer])
    async def run_async(self, query: str, options: dict[str, Any] | None = None) -> dict[str, Any]:
        """As `run`, in a thread."""
        return await asyncio.to_thread(self.run, query, options)

    def to_dict(self) -> dict[str, Any]:
        """What a pipeline saves.

        Raises:
            TypeError: model or knowledge base were not named.
        """
        return default_to_dict(
            self,
            model=_name("model", self.model),
            knowledge_base=_name("knowledge_base", self.knowledge_base),
            head=self.head,
            backend=self.backend,
            options=self.options,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AnswerComponent:
        """A component from what `to_dict` gave."""
        return default_from_dict(cls, data)


def document_of(passage: Passage | Hit, score: float | None = None) -> Document:
    """A passage as Haystack keeps it."""
    meta = passage_metadata(passage)
    if score is None:
        score = meta.pop("score")
    return Document(id=str(passage.id), content=passage.text, meta=meta, score=score)


def _answer_of(answer: Answer) -> GeneratedAnswer:
    record = answer_record(answer)
    return GeneratedAnswer(
        data=answer.text,
        query=answer.question,
        documents=[document_of(passage, passage.posterior) for passage in answer.passages],
        meta={name: record[name] for name in ("probability", "confidence", "citations")},
    )


def _name(argument: str, value: Any) -> str | None:
    """What a file can hold of something that may be named."""
    if isinstance(value, KnowledgeBase):
        value = value.path
    if isinstance(value, Path):
        value = str(value)
    if value is None or isinstance(value, str):
        return value
    raise TypeError(
        f"{argument} must be a folder or a name to be saved, got {type(value).__name__}. Make the "
        "component with that"
    )


def _texts(argument: str, value: Any) -> Any:
    if callable(value):
        raise TypeError(
            f"{argument} must be texts such as 'source=handbook/*' to be saved, got a function"
        )
    return value
