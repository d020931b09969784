"""What the demo's model gets right: on articles it was never trained on, on questions written by
hand, and on real ones.

The paper's claims in miniature: the answer comes from the retrieved passage, so without passages
(closed book), or with an index that lacks the articles, little should be left.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from experiments.about_articles import KEPT_APART, questions_about
from experiments.results.material import TOPICS
from rag_core.demo import (
    Article,
    assemble_model,
    corpus_file,
    demo_knowledge_base,
    description_clue,
    encoder_folder,
    held_out_titles,
    home,
    natural_questions,
    read_articles,
    write_card,
)
from rag_core.evaluation import read_questions
from rag_core.evaluation.calibration import calibration
from rag_core.hub import atomic_folder
from rag_core.metrics import exact_match, recall_at_k
from rag_core.retrieval import RagRetriever
from rag_core.training import batches
from rag_torch.encoders import load_encoder
from rag_torch.rag import RagSequenceForGeneration, RagTokenForGeneration

BATCH = 16
EVALUATION = "evaluation.json"
DRAWN = 500
SEED = 0


class Asked(NamedTuple):
    """A question, its accepted answers, and the titles of the articles that answer it."""

    question: str
    answers: Sequence[str]
    titles: Sequence[str]


class IndexWithout:
    """An index with some rows left out; searches deeper to make up for them.

    Args:
        index: the whole one.
        rows: row numbers to leave out.
    """

    def __init__(self, index: Any, rows: Sequence[int]) -> None:
        self.index = index
        self.rows = np.asarray(rows)

    def is_initialized(self) -> bool:
        """Whether the whole index is."""
        return self.index.is_initialized()

    def init_index(self) -> None:
        """Load the whole index."""
        self.index.init_index()

    def get_top_docs(
        self, question_hidden_states: np.ndarray, n_docs: int = 5
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest rows that are left, ids (B, N) and vectors (B, N, D)."""
        ids, vectors = self.index.get_top_docs(question_hidden_states, 20 * n_docs)
        left = ~np.isin(ids, self.rows)
        order = np.argsort(~left, axis=1, kind="stable")[:, :n_docs]
        if not np.take_along_axis(left, order, 1).all():
            raise ValueError(
                f"fewer than {n_docs} of the {20 * n_docs} nearest rows are left of a question"
            )
        return np.take_along_axis(ids, order, 1), np.take_along_axis(vectors, order[:, :, None], 1)

    def get_doc_dicts(self, doc_ids: np.ndarray) -> list[dict[str, Any]]:
        """Titles and texts of rows."""
        return self.index.get_doc_dicts(doc_ids)


def evaluate_demo(out: Path, topics: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure the model whose shipped parts are in `out`; writes evaluation.json and the model card
    there.

    Args:
        out: folder of the parts.
        topics: folder with the files of questions of pyserini's wheel.
        say: takes a line for people.

    Returns:
        The figures: shares between 0 and 1.
    """
    start = time.monotonic()
    encoder = encoder_folder(say)
    stock = load_encoder(encoder)
    base = demo_knowledge_base(lambda _: stock.embed, say)
    articles = read_articles(corpus_file(say))
    held_out = held_out_titles(articles)
    folder = assemble_model(encoder, home() / "demo-model-evaluated", out)
    retriever = RagRetriever.from_pretrained(folder, index=base.index())
    model = RagTokenForGeneration.from_pretrained(folder, retriever=retriever)
    sequence = RagSequenceForGeneration.from_pretrained(folder, retriever=retriever)

    figures: dict[str, Any] = {"model_sha256": (folder / "made_from.txt").read_text()}
    titles = base.dataset()["title"]
    sets = asked_sets(articles, held_out, titles, topics)
    lacking = IndexWithout(
        retriever.index, [row for row, title in enumerate(titles) if title in held_out]
    )
    all_sure: list[float] = []
    all_hits: list[float] = []
    for name, asked in sets.items():
        shares: dict[str, float] = {}
        if asked[0].titles:
            shares = _retrieval(model, stock, retriever, asked)
            shares["rag_token_exact_match"] = _exact(model, retriever, asked)
        hits, sure = _answered(sequence, asked)
        shares["rag_sequence_exact_match"] = float(np.mean(hits))
        if name == "held_out":  # from the last ones confidence was learned
            hits, sure = hits[:-KEPT_APART], sure[:-KEPT_APART]
        shares["calibration_error"] = _calibration_error(sure, hits)
        if name != "natural_held_out":  # these are among the others
            all_sure += sure
            all_hits += hits
        if asked[0].titles:
            shares["closed_book_exact_match"] = _exact(model, retriever, asked, closed_book=True)
        if name in ("held_out", "natural_held_out"):
            whole = retriever.index
            retriever.index = lacking
            shares["index_without_them_exact_match"] = _exact(model, retriever, asked)
            retriever.index = whole
        figures[name] = {"questions": len(asked), **shares}
        say(f"{name}: " + ", ".join(f"{key} {share:.3f}" for key, share in figures[name].items()))
    figures["together"] = {
        "questions": len(all_hits),
        "calibration_error": _calibration_error(all_sure, all_hits),
    }
    figures["seconds"] = round(time.monotonic() - start, 1)
    with atomic_folder(out) as draft:
        (draft / EVALUATION).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        write_card(draft, figures)
    return figures


def asked_sets(
    articles: Sequence[Article], held_out: Set[str], titles: Sequence[str], topics: Path
) -> dict[str, list[Asked]]:
    """All sets of questions by name."""
    clues = [
        Asked(description_clue(a), [a.title], [a.title]) for a in articles if a.title in held_out
    ]
    natural = [
        Asked(each["question"], [each["answer"]], [each["answer"]]) for each in natural_questions()
    ]
    sets = {
        "held_out": clues,
        "natural": natural,
        "natural_held_out": [each for each in natural if each.titles[0] in held_out],
    }
    rng = random.Random(SEED)
    everything = []
    for name in ("nq", "trivia"):
        questions = read_questions(topics / TOPICS[f"{name}-test"])
        everything += questions
        about = [
            Asked(q.question, q.answers, found) for q, found in questions_about(titles, questions)
        ]
        sets[name] = rng.sample(about, min(DRAWN, len(about)))
    sets["every"] = [Asked(q.question, q.answers, []) for q in rng.sample(everything, DRAWN)]
    return sets


def _calibration_error(sure: Sequence[float], hits: Sequence[float]) -> float:
    return float(calibration(sure, hits, SEED)["expected_calibration_error"]["mean"])


def _retrieval(
    model: Any, stock: Any, retriever: RagRetriever, asked: Sequence[Asked]
) -> dict[str, float]:
    """Recall of the article with the tuned encoder and with the stock question vector."""
    answering = [each.titles for each in asked]
    tuned = np.concatenate([_vectors(model, retriever, part) for part in batches(asked, BATCH)])
    recalls: dict[str, float] = {}
    for name, vectors in (
        ("", tuned),
        ("stock_", stock.embed_texts([each.question for each in asked])),
    ):
        _, _, docs = retriever.retrieve(vectors, 5)
        titles = [doc["title"] for doc in docs]
        for k in (1, 5):
            recalls[f"{name}recall_at_{k}"] = recall_at_k(titles, answering, k)
    return recalls


def _encoded(retriever: RagRetriever, asked: Sequence[Asked]) -> Any:
    return retriever.question_encoder_tokenizer(
        [each.question for each in asked], padding=True, return_tensors="pt"
    )


def _answered(model: Any, asked: Sequence[Asked]) -> tuple[list[float], list[float]]:
    """Which answers are an exact match, and how sure each is; 0 before confidence was learned."""
    hits: list[float] = []
    sure: list[float] = []
    for part in batches(asked, BATCH):
        answers = model.answer([each.question for each in part])
        for answer, each in zip(answers, part, strict=True):
            hits.append(exact_match(answer.text, each.answers))
            sure.append(answer.confidence or 0.0)
    return hits, sure


@torch.inference_mode()
def _vectors(model: Any, retriever: RagRetriever, asked: Sequence[Asked]) -> np.ndarray:
    ids = _encoded(retriever, asked)
    return model.question_encoder(ids["input_ids"], ids["attention_mask"])[0].numpy()


@torch.inference_mode()
def _exact(
    model: Any, retriever: RagRetriever, asked: Sequence[Asked], closed_book: bool = False
) -> float:
    hits = 0.0
    for part in batches(asked, BATCH):
        ids = _encoded(retriever, part)
        if closed_book:
            rows = model.generate(**_without_passage(retriever, ids["input_ids"]))
        else:
            rows = model.generate(ids["input_ids"], ids["attention_mask"])
        texts = retriever.generator_tokenizer.batch_decode(rows, skip_special_tokens=True)
        for text, each in zip(texts, part, strict=True):
            hits += exact_match(text, each.answers)
    return hits / len(asked)


def _without_passage(retriever: RagRetriever, ids: torch.Tensor) -> dict[str, Any]:
    """Contexts of questions (B, Q) beside a passage without any text."""
    questions = retriever.question_encoder_tokenizer.batch_decode(ids, skip_special_tokens=True)
    empty = [{"title": [""], "text": [""]}] * len(questions)
    contexts, mask = retriever.postprocess_docs(empty, questions, None, 1, return_tensors="pt")
    return {
        "context_input_ids": contexts,
        "context_attention_mask": mask,
        "doc_scores": torch.zeros(len(questions), 1),
        "n_docs": 1,
    }
