"""LangChain: a retriever of passages, and a Runnable that answers (docs/integrations.md).

Needs langchain-core, the extra `[langchain]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from rag_core.integrations.asking import PassageSearch, QuestionAnswering
from rag_core.integrations.libraries import lacking
from rag_core.integrations.records import answer_record, passage_metadata
from rag_core.outputs import Answer, Hit, Passage

try:
    from langchain_core.callbacks import (
        AsyncCallbackManagerForRetrieverRun,
        CallbackManagerForRetrieverRun,
    )
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables import RunnableConfig, RunnableSerializable
    from langchain_core.runnables.config import run_in_executor
    from pydantic import Field, PrivateAttr
except ModuleNotFoundError as error:
    raise lacking("langchain-core", "langchain") from error

__all__ = ["AnswerRunnable", "PassageRetriever"]


class PassageRetriever(BaseRetriever):
    """The passages nearest to a question, as LangChain's documents.

    `invoke` takes `k` and `where` for one call; a batch is embedded together. A document's
    `metadata` has "title", "source", "origin" (for people), "score", "rank" and the place in the
    source.

    Args:
        source, where, encoder, backend: as of `rag_core.integrations.PassageSearch`.
        k: passages a question.
    """

    source: Any
    k: int = 5
    where: Any = None
    encoder: Any = None
    backend: str | None = None
    _search: PassageSearch = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Open what is searched."""
        super().model_post_init(context)
        self._search = PassageSearch(
            self.source, where=self.where, encoder=self.encoder, backend=self.backend
        )

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        where: Any = None,
        found: dict[str, list[Document]] | None = None,
    ) -> list[Document]:
        if found is None:
            found = self._found([query], k, where)
        return found[query]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        return await run_in_executor(
            None,
            self._get_relevant_documents,
            query,
            run_manager=run_manager.get_sync(),
            **options,
        )

    def _found(
        self, queries: Sequence[str], k: int | None = None, where: Any = None
    ) -> dict[str, list[Document]]:
        if k is None:
            k = self.k
        hits = self._search(queries, k, where)
        return {
            query: [document_of(hit) for hit in each]
            for query, each in zip(queries, hits, strict=True)
        }

    def _found_or_not(self, queries: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
        """The documents of all queries as an option of each call; nothing where one is refused,
        whose own call says so.
        """
        with suppress(Exception):
            return {"found": self._found(queries, **options)}
        return {}

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """As `invoke` for each input; all are searched at once."""
        kwargs |= self._found_or_not(inputs, kwargs)
        return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """As `batch`, in a thread."""
        kwargs |= await run_in_executor(None, self._found_or_not, inputs, kwargs)
        return await super().abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)


class AnswerRunnable(RunnableSerializable[str, dict[str, Any]]):
    """Questions to answers with their passages.

    What comes out has "question", "answer", "context" (the passages as documents, with "prior" and
    "posterior"), "probability", "confidence" and "citations". `invoke`, `bind` and the others take
    options of the model's method `answer`; a batch is answered together.

    Args:
        model, knowledge_base, head, backend: as of `rag_core.integrations.QuestionAnswering`.
        options: of the model's method `answer`.
    """

    model: Any
    knowledge_base: Any = None
    head: str | None = None
    backend: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    _answering: QuestionAnswering = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Load the model, if it is named."""
        super().model_post_init(context)
        self._answering = QuestionAnswering(
            self.model, self.knowledge_base, head=self.head, backend=self.backend, **self.options
        )

    def invoke(
        self, input: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Answer a question."""

        def answer(question: str) -> dict[str, Any]:
            return _record_of(self._answering([question], **kwargs)[0])

        return self._call_with_config(answer, input, config)

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """Answer questions, some at once."""

        def answer(questions: list[str]) -> list[dict[str, Any] | Exception]:
            return self._records(questions, kwargs)

        return self._batch_with_config(answer, inputs, config, return_exceptions=return_exceptions)

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """As `batch`, in a thread."""

        async def answer(questions: list[str]) -> list[dict[str, Any] | Exception]:
            return await run_in_executor(None, self._records, questions, kwargs)

        return await self._abatch_with_config(
            answer, inputs, config, return_exceptions=return_exceptions
        )

    def _records(
        self, questions: list[str], options: dict[str, Any]
    ) -> list[dict[str, Any] | Exception]:
        answers = self._answering.answered_or_not(questions, **options)
        return [each if isinstance(each, Exception) else _record_of(each) for each in answers]


def document_of(passage: Passage | Hit) -> Document:
    """A passage as LangChain keeps it."""
    return Document(passage.text, id=str(passage.id), metadata=passage_metadata(passage))


def _record_of(answer: Answer) -> dict[str, Any]:
    record = answer_record(answer)
    del record["passages"]
    return {**record, "context": [document_of(passage) for passage in answer.passages]}
