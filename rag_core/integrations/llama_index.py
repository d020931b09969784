"""LlamaIndex: a retriever of passages, and a query engine that answers (docs/integrations.md).

Needs llama-index-core, the extra `[llama-index]`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from rag_core.integrations.asking import PassageSearch, QuestionAnswering
from rag_core.integrations.libraries import lacking
from rag_core.integrations.records import answer_record, passage_metadata
from rag_core.outputs import Answer, Hit, Passage

try:
    from llama_index.core.base.base_query_engine import BaseQueryEngine
    from llama_index.core.base.response.schema import Response
    from llama_index.core.callbacks import CallbackManager
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
except ModuleNotFoundError as error:
    raise lacking("llama-index-core", "llama-index") from error

if TYPE_CHECKING:
    from rag_core.retrieval import Where

__all__ = ["AnswerQueryEngine", "PassageRetriever"]
# What language models and embeddings read of a node beside its text.
_READ = ("title", "origin")


class PassageRetriever(BaseRetriever):
    """The passages nearest to a question, as LlamaIndex's nodes.

    A node's `metadata` has "title", "source", "origin" (for people), "score", "rank" and the place
    in the source; language models are shown title and origin.

    Args:
        source, where, encoder, backend: as of `rag_core.integrations.PassageSearch`.
        similarity_top_k: passages a question.
        **options: of LlamaIndex's `BaseRetriever`.
    """

    def __init__(
        self,
        source: Any,
        similarity_top_k: int = 5,
        *,
        where: Where | None = None,
        encoder: Any = None,
        backend: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.similarity_top_k = similarity_top_k
        self._search = PassageSearch(source, where=where, encoder=encoder, backend=backend)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        (hits,) = self._search([query_bundle.query_str], self.similarity_top_k)
        return [node_of(hit, hit.score) for hit in hits]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


class AnswerQueryEngine(BaseQueryEngine):
    """Questions to answers with their passages.

    The response's `source_nodes` are the passages, with their posterior as the score; its
    `metadata` has "probability", "confidence" and "citations".

    Args:
        model, knowledge_base, head, backend: as of `rag_core.integrations.QuestionAnswering`.
        callback_manager: LlamaIndex's.
        **options: of the model's method `answer`.
    """

    def __init__(
        self,
        model: Any,
        knowledge_base: Any = None,
        *,
        head: str | None = None,
        backend: str | None = None,
        callback_manager: CallbackManager | None = None,
        **options: Any,
    ) -> None:
        super().__init__(callback_manager)
        self._answering = QuestionAnswering(
            model, knowledge_base, head=head, backend=backend, **options
        )
        self._search = PassageSearch(self._answering.model)

    def _get_prompt_modules(self) -> dict[str, Any]:
        return {}

    def _query(self, query_bundle: QueryBundle) -> Response:
        (answer,) = self._answering([query_bundle.query_str])
        return _response_of(answer)

    async def _aquery(self, query_bundle: QueryBundle) -> Response:
        return await asyncio.to_thread(self._query, query_bundle)

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """The passages that the model reads for a question, with their inner products."""
        n_docs = self._answering.options.get("n_docs") or self._answering.model.config.n_docs
        (hits,) = self._search([query_bundle.query_str], n_docs)
        return [node_of(hit, hit.score) for hit in hits]


def node_of(passage: Passage | Hit, score: float) -> NodeWithScore:
    """A passage as LlamaIndex keeps it."""
    metadata = passage_metadata(passage)
    hidden = [name for name in metadata if name not in _READ]
    node = TextNode(
        id_=str(passage.id),
        text=passage.text,
        metadata=metadata,
        excluded_llm_metadata_keys=hidden,
        excluded_embed_metadata_keys=hidden,
    )
    return NodeWithScore(node=node, score=score)


def _response_of(answer: Answer) -> Response:
    record = answer_record(answer)
    return Response(
        response=answer.text,
        source_nodes=[node_of(passage, passage.posterior) for passage in answer.passages],
        metadata={name: record[name] for name in ("probability", "confidence", "citations")},
    )
