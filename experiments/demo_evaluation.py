"""What the demo's model gets right, on articles it was never trained on and on questions written by
hand.

The paper's claims in miniature: the answer comes from the retrieved passage, so without passages
(closed book), or with an index that lacks the articles, little should be left.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rag_core.demo import (
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
from rag_core.hub import atomic_folder
from rag_core.metrics import exact_match, recall_at_k
from rag_core.retrieval import RagRetriever
from rag_core.training import batches
from rag_torch.encoders import load_encoder
from rag_torch.rag import RagSequenceForGeneration, RagTokenForGeneration

BATCH = 16
EVALUATION = "evaluation.json"
Pairs = Sequence[tuple[str, str]]


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


def evaluate_demo(out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure the model whose shipped parts are in `out`; writes evaluation.json and the model card
    there.

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
    natural = [(each["question"], each["answer"]) for each in natural_questions()]
    sets: dict[str, Pairs] = {
        "held_out": [(description_clue(a), a.title) for a in articles if a.title in held_out],
        "natural": natural,
        "natural_held_out": [pair for pair in natural if pair[1] in held_out],
    }
    titles = base.dataset()["title"]
    lacking = IndexWithout(
        retriever.index, [row for row, title in enumerate(titles) if title in held_out]
    )
    for name, pairs in sets.items():
        shares = _retrieval(model, stock, retriever, pairs)
        shares["rag_token_exact_match"] = _exact(model, retriever, pairs)
        shares["rag_sequence_exact_match"] = _exact(sequence, retriever, pairs)
        shares["closed_book_exact_match"] = _exact(model, retriever, pairs, closed_book=True)
        if name != "natural":
            whole = retriever.index
            retriever.index = lacking
            shares["index_without_them_exact_match"] = _exact(model, retriever, pairs)
            retriever.index = whole
        figures[name] = {"questions": len(pairs), **shares}
        say(f"{name}: " + ", ".join(f"{key} {share:.3f}" for key, share in figures[name].items()))
    figures["seconds"] = round(time.monotonic() - start, 1)
    with atomic_folder(out) as draft:
        (draft / EVALUATION).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        write_card(draft, figures)
    return figures


def _retrieval(model: Any, stock: Any, retriever: RagRetriever, pairs: Pairs) -> dict[str, float]:
    """Recall of the article with the tuned projection and with the stock question vector."""
    texts = [question for question, _ in pairs]
    answers = [[answer] for _, answer in pairs]
    tuned = np.concatenate([_vectors(model, retriever, part) for part in batches(pairs, BATCH)])
    recalls: dict[str, float] = {}
    for name, vectors in (("", tuned), ("stock_", stock.embed_texts(texts))):
        _, _, docs = retriever.retrieve(vectors, 5)
        titles = [doc["title"] for doc in docs]
        for k in (1, 5):
            recalls[f"{name}recall_at_{k}"] = recall_at_k(titles, answers, k)
    return recalls


def _encoded(retriever: RagRetriever, pairs: Pairs) -> Any:
    return retriever.question_encoder_tokenizer(
        [question for question, _ in pairs], padding=True, return_tensors="pt"
    )


@torch.inference_mode()
def _vectors(model: Any, retriever: RagRetriever, pairs: Pairs) -> np.ndarray:
    ids = _encoded(retriever, pairs)
    return model.question_encoder(ids["input_ids"], ids["attention_mask"])[0].numpy()


@torch.inference_mode()
def _exact(model: Any, retriever: RagRetriever, pairs: Pairs, closed_book: bool = False) -> float:
    hits = 0.0
    for part in batches(pairs, BATCH):
        ids = _encoded(retriever, part)
        if closed_book:
            rows = model.generate(**_without_passage(retriever, ids["input_ids"]))
        else:
            rows = model.generate(ids["input_ids"], ids["attention_mask"])
        texts = retriever.generator_tokenizer.batch_decode(rows, skip_special_tokens=True)
        for text, (_, answer) in zip(texts, part, strict=True):
            hits += exact_match(text, [answer])
    return hits / len(pairs)


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
