"""What is searched and what answers, however it was named."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_core.arguments import checked_questions
from rag_core.backends import load_backend
from rag_core.checks import whole
from rag_core.config import RagConfig
from rag_core.knowledge import KnowledgeBase, remembered_base, search_index
from rag_core.outputs import Answer, Hit
from rag_core.retrieval import RagRetriever, needs_vectors
from rag_core.serving import ServedModel

if TYPE_CHECKING:
    from rag_core.retrieval import Where

# Of a model, whose memory grows with them; a knowledge base sees to that itself.
_ANSWERED_AT_ONCE = 8
_SEARCHED_AT_ONCE = 64


class PassageSearch:
    """Finds passages for questions; can be called from several threads.

    Args:
        source: a KnowledgeBase or its folder or name; a model with its retriever; or a
            RagRetriever, with an `encoder` unless its index searches by words.
        where: conditions on passages, as `KnowledgeBase.search` takes them; not of a model, whose
            index may have them.
        encoder: of questions, as `KnowledgeBase.search` takes it. A RagRetriever needs a function
            (n texts -> vectors (n, D)) or what `load_encoder` gave.
        backend: "torch" or "tf"; by default the one in use or installed.

    Raises:
        TypeError, ValueError: something else to search in, or options that do not go with it.
    """

    def __init__(
        self,
        source: Any,
        *,
        where: Where | None = None,
        encoder: Any = None,
        backend: str | None = None,
    ) -> None:
        if isinstance(source, str | Path):
            source = KnowledgeBase.open(source)
        is_model = hasattr(source, "retriever")
        if not is_model and not isinstance(source, KnowledgeBase | RagRetriever):
            raise TypeError(
                "source must be a KnowledgeBase or its folder, a model with its retriever or a "
                f"RagRetriever, got {type(source).__name__}"
            )
        is_retriever = isinstance(source, RagRetriever)
        if is_retriever and encoder is None and needs_vectors(source.index):
            raise ValueError(
                "encoder must be given with a RagRetriever, which embeds no questions. Pass "
                "load_encoder(...), or the model in its place"
            )
        embed = getattr(encoder, "embed_questions", encoder)
        if is_retriever and not callable(embed) and encoder is not None:
            raise TypeError(
                "encoder must be a function of texts or what load_encoder gave with a "
                f"RagRetriever, got {encoder!r:.80}. Pass load_encoder(...)"
            )
        self.source = source
        self.where = where
        self.encoder = encoder
        self.backend = backend
        self._served = None
        if is_model:
            if encoder is not None:
                raise ValueError("encoder must be left out with a model, which has its own")
            self._served = ServedModel(source)
        self._one_at_a_time = threading.Lock()

    def __call__(
        self, questions: Sequence[str], k: int, where: Where | None = None
    ) -> list[list[Hit]]:
        """For each question its k nearest passages, nearest first.

        Args:
            questions: texts.
            k: passages a question.
            where: conditions in the place of the own ones.

        Raises:
            TypeError, ValueError: no question, no such number, or conditions that match nothing.
        """
        questions = checked_questions(questions)
        k = whole(1)("k", k)
        if where is None:
            where = self.where
        if self._served is not None:
            if where is not None:
                raise ValueError(
                    "where must go with a knowledge base, got a model. Give its retriever "
                    "index.where(...)"
                )
            return [
                hits
                for start in range(0, len(questions), _SEARCHED_AT_ONCE)
                for hits in self._served.retrieve(questions[start : start + _SEARCHED_AT_ONCE], k)
            ]
        with self._one_at_a_time:
            if isinstance(self.source, KnowledgeBase):
                return self.source.search(
                    questions, k, where, encoder=self.encoder, backend=self.backend
                )
            index: Any = self.source.index
            if where is not None:
                index = _narrowed(index, where)
            embed = getattr(self.encoder, "embed_questions", self.encoder)
            return search_index(index, embed, questions, k)


def _narrowed(index: Any, where: Where) -> Any:
    if not hasattr(index, "where"):
        raise ValueError(
            f"where must go with an index that has a method where, got {type(index).__name__}. "
            "Leave it out"
        )
    return index.where(where)


class QuestionAnswering:
    """Answers questions; can be called from several threads.

    Args:
        model: a RagTokenForGeneration or RagSequenceForGeneration with its retriever, or the folder
            or name of one.
        knowledge_base: for a named model: a KnowledgeBase or its folder or name. By default the one
            that the model was tuned with, or its checkpoint's index.
        head: "token" or "sequence"; by default the model's own.
        backend: "torch" or "tf", for a named model; by default the first that is installed.
        **options: of the model's method `answer`.

    Raises:
        OSError, ValueError: the model cannot be loaded, or has no retriever.
    """

    def __init__(
        self,
        model: Any,
        knowledge_base: KnowledgeBase | str | Path | None = None,
        *,
        head: str | None = None,
        backend: str | None = None,
        **options: Any,
    ) -> None:
        if isinstance(model, str | Path):
            model = _opened(model, knowledge_base, backend)
        elif knowledge_base is not None:
            raise ValueError(
                "knowledge_base must go with the name of a model, got it with a model that is "
                "loaded. Give its retriever the index"
            )
        self.model = model
        if head is not None:
            options["head"] = head
        self.options = options
        self._served = ServedModel(model)

    def __call__(self, questions: Sequence[str], **options: Any) -> list[Answer]:
        """The best answer to each question.

        Args:
            questions: texts.
            **options: in the place of the own ones.

        Raises:
            TypeError, ValueError: an empty question, or options that the model cannot have.
        """
        questions = checked_questions(questions)
        options = {**self.options, **options}
        answers: list[Answer] = []
        for start in range(0, len(questions), _ANSWERED_AT_ONCE):
            batch = questions[start : start + _ANSWERED_AT_ONCE]
            answers += [best for best, *_ in self._served.answer(batch, options)]
        return answers

    def answered_or_not(self, questions: Sequence[str], **options: Any) -> list[Answer | Exception]:
        """As a call; in the place of the answer to a question that is refused stands the error."""
        try:
            return [*self(questions, **options)]
        except (TypeError, ValueError) as error:
            if len(questions) == 1:
                return [error]
        return [each for one in questions for each in self.answered_or_not([one], **options)]


def _opened(
    name: str | Path, knowledge_base: KnowledgeBase | str | Path | None, backend: str | None
) -> Any:
    engine = load_backend(backend)
    config = RagConfig.from_pretrained(name)
    if knowledge_base is None:
        own = remembered_base(name)
        if own is not None:
            knowledge_base = own.path
    index = None
    if knowledge_base is not None:
        if not isinstance(knowledge_base, KnowledgeBase):
            knowledge_base = KnowledgeBase.open(knowledge_base)
        knowledge_base.check_model(config)
        index = knowledge_base.index()
    retriever = RagRetriever.from_pretrained(name, index=index)
    head = engine.RagSequenceForGeneration
    if config.saved_head == "token":
        head = engine.RagTokenForGeneration
    return head.from_pretrained(name, retriever=retriever)
