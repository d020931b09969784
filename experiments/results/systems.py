"""Systems that `dualrag eval` has no option for, measured as it measures.

`python -m experiments.results.systems bm25|closed-book|extractive --help`
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.results.answering import extracted
from rag_core.backends import load_backend
from rag_core.evaluation import Evaluation, Question, evaluate, read_questions
from rag_core.evaluation.report import figures_of
from rag_core.evaluation.scores import mistakes, text_scores
from rag_core.retrieval import Bm25Index, RagRetriever

VARIANT = "extractive"


class NoPassages:
    """An index with one more passage, without a word, which is all that it ever finds.

    Args:
        index: holds the other passages, so that what is answerable stays the same.
    """

    def __init__(self, index: Any) -> None:
        self.index = index

    def __len__(self) -> int:
        return len(self.index) + 1

    def is_initialized(self) -> bool:
        """Whether the other one is."""
        return self.index.is_initialized()

    def init_index(self) -> None:
        """Load the other one."""
        self.index.init_index()

    def get_top_docs(
        self, question_hidden_states: np.ndarray, n_docs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """The empty passage, N times: ids (B, N) and zeros (B, N, D)."""
        shape = len(question_hidden_states), n_docs
        vectors = np.zeros((*shape, question_hidden_states.shape[1]), np.float32)
        return np.full(shape, len(self.index)), vectors

    def get_doc_dicts(self, doc_ids: np.ndarray) -> list[dict[str, Any]]:
        """Titles and texts of rows."""
        last = len(self.index) - 1
        found = []
        for ids, columns in zip(
            doc_ids, self.index.get_doc_dicts(np.minimum(doc_ids, last)), strict=True
        ):
            words = {
                name: [
                    "" if id > last else text for id, text in zip(ids, columns[name], strict=True)
                ]
                for name in ("title", "text")
            }
            found.append({**columns, **words})
        return found


def closed_book(dense: RagRetriever) -> RagRetriever:
    """A retriever that finds nothing to read."""
    dense.index = NoPassages(dense.index)
    return dense


def by_words(dense: RagRetriever) -> RagRetriever:
    """A retriever that finds passages by BM25, its scores the logits of p(z|x) (paper, section
    4.5).
    """
    dense.index = Bm25Index(dense.index)
    return dense


RETRIEVERS = {"bm25": by_words, "closed-book": closed_book}


def measure(options: argparse.Namespace) -> None:
    """Evaluate a model with another retriever."""
    from rag_core.cli.common import say
    from rag_core.cli.models import open_model

    engine = load_backend(options.backend)
    model, base = open_model(engine, options.kb, options.model, None, say)
    model.set_retriever(RETRIEVERS[options.system](model.retriever))
    evaluate(
        model,
        read_questions(options.questions),
        out=options.out,
        about={
            "model": {"name": options.model},
            "knowledge_base": {"path": str(base and base.path)},
            "questions": {"path": str(options.questions)},
        },
        progress=False,
        n_docs=options.n_docs,
        limit=options.limit,
        answerable_only=options.answerable_only,
    )


def extract(options: argparse.Namespace) -> None:
    """Answer from the first passages that a finished evaluation retrieved."""
    run = Evaluation.open(options.run)
    passages = {row["id"]: row for row in run.passages}
    rows = []
    for found in run.retrieved:
        question = Question(found["id"], found["question"], tuple(found["answers"]))
        first = found["passages"][0]
        passage = passages[first["id"]]
        text = extracted(question.question, passage["title"], passage["text"])
        scores = text_scores(text, question)
        scores |= mistakes(scores, [first.get("holds_answer")])
        rows.append(
            {
                "id": question.id,
                "question": question.question,
                "answers": list(question.answers),
                "text": text,
                "log_probability": None,
                "passages": [],
                "scores": scores,
            }
        )
    every = [True] * len(rows)
    variant = {
        "settings": {},
        "figures": figures_of(rows, every, run.report["settings"]["seed"]),
        "seconds": 0.0,
    }
    report = {**run.report, "variants": {VARIANT: variant}, "command": None}
    Evaluation(report, run.retrieved, {VARIANT: rows}, run.passages).save(options.out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m experiments.results.systems`."""
    parser = argparse.ArgumentParser(prog="python -m experiments.results.systems")
    commands = parser.add_subparsers(required=True)
    for name in RETRIEVERS:
        command = commands.add_parser(name, description=measure.__doc__)
        command.set_defaults(do=measure, system=name)
        command.add_argument("questions", type=Path)
        command.add_argument("--model", required=True, help="folder of a RAG model")
        command.add_argument("--kb", type=Path, required=True, help="knowledge base")
        command.add_argument("--n-docs", type=int, help="passages a question")
        command.add_argument("--limit", type=int, help="questions to draw")
        command.add_argument("--answerable-only", action="store_true")
        command.add_argument("--out", type=Path, required=True, help="folder of the report")
        command.add_argument("--backend", default="torch")
    command = commands.add_parser(VARIANT, description=extract.__doc__)
    command.set_defaults(do=extract)
    command.add_argument("run", type=Path, help="folder of an evaluation")
    command.add_argument("--out", type=Path, required=True, help="folder of the report")
    options = parser.parse_args(arguments)
    options.do(options)


if __name__ == "__main__":
    main()
