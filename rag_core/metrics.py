"""Exact match and F1 of answers, recall and precision of retrieval, and signs of retrieval
collapse.

Letters: B questions, N documents a question.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and repeated white space (SQuAD's
    rule).
    """
    text = unicodedata.normalize("NFC", text).lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(answer: str, references: str | Iterable[str]) -> float:
    """1.0 if the normalised answer equals one of the normalised references, else 0.0."""
    return _best(lambda a, b: float(a == b), answer, references)


def f1_score(answer: str, references: str | Iterable[str]) -> float:
    """Harmonic mean of word precision and recall, against the best of the references; 0 to 1.

    Words count as often as they occur. Where either side has no words left, 1.0 if both have none.
    """

    def score(text: str, reference: str) -> float:
        words = text.split()
        reference_words = reference.split()
        if not words or not reference_words:
            return float(words == reference_words)
        shared = sum((Counter(words) & Counter(reference_words)).values())
        return 2 * shared / (len(words) + len(reference_words))

    return _best(score, answer, references)


def substring_match(answer: str, references: str | Iterable[str]) -> float:
    """1.0 if one of the normalised references is a part of the normalised answer, else 0.0.

    A reference of which nothing is left ("the") is part of none.
    """
    return _best(lambda text, part: float(bool(part) and part in text), answer, references)


def mean_scores(
    answers: Sequence[str], references: Sequence[str | Iterable[str]]
) -> dict[str, float]:
    """Mean "exact_match" and "f1" over B answers.

    Raises:
        ValueError: none, or not as many references as answers.
    """
    if not answers or len(answers) != len(references):
        raise ValueError(
            f"answers and references must be equally many, got {len(answers)} and {len(references)}"
        )
    # Both scores go through them, and an iterator can be gone through once.
    pairs = list(zip(answers, map(_listed, references), strict=True))
    return {
        "exact_match": float(np.mean([exact_match(*pair) for pair in pairs])),
        "f1": float(np.mean([f1_score(*pair) for pair in pairs])),
    }


def recall_at_k(
    retrieved: Sequence[Sequence[Any]], relevant: Sequence[Iterable[Any]], k: int
) -> float:
    """Mean share of a question's relevant documents that are among its first k.

    Args:
        retrieved: for each of B questions its documents (row numbers or titles), best first. -1 is
            a missing hit.
        relevant: for each question the documents that count; with one each, this is the hit rate.
        k: how many hits count.

    Raises:
        ValueError: lengths differ, k is below 1, or a question has no relevant document.
    """
    rows = _hits(retrieved, relevant, k)
    if not all(right for _, right in rows):
        raise ValueError(
            "relevant must name at least one document a question; leave the others out"
        )
    return float(np.mean([len(first & right) / len(right) for first, right in rows]))


def precision_at_k(
    retrieved: Sequence[Sequence[Any]], relevant: Sequence[Iterable[Any]], k: int
) -> float:
    """Mean share of a question's first k places taken by relevant documents; passages of one
    document take a place each.

    Arguments as `recall_at_k`.
    """
    _check_depth(k)
    shares = []
    for hits, right in _rows(retrieved, relevant):
        taken = [hit for hit in hits[:k] if _documents([hit]) & right]
        shares.append(len(taken) / k)
    return float(np.mean(shares))


def mean_reciprocal_rank(
    retrieved: Sequence[Sequence[Any]], relevant: Sequence[Iterable[Any]]
) -> float:
    """Mean of 1 / the place of a question's first relevant document; 0 where there is none.

    Arguments as `recall_at_k`.
    """
    ranks = []
    for hits, right in _rows(retrieved, relevant):
        places = [place for place, hit in enumerate(hits, 1) if _documents([hit]) & right]
        ranks.append(1 / places[0] if places else 0.0)
    return float(np.mean(ranks))


def r_precision(retrieved: Sequence[Sequence[Any]], relevant: Sequence[Iterable[Any]]) -> float:
    """Mean share of relevant documents among a question's first R, where R are relevant.

    With one relevant document each, this is the share of questions that find it first (KILT's
    measure of retrieval).

    Args:
        retrieved: as `recall_at_k`, each document once.
        relevant: as `recall_at_k`.

    Raises:
        ValueError: lengths differ, or a question has no relevant document.
    """
    rows = _rows(retrieved, relevant)
    if not all(right for _, right in rows):
        raise ValueError(
            "relevant must name at least one document a question; leave the others out"
        )
    shares = [len(_documents(hits[: len(right)]) & right) / len(right) for hits, right in rows]
    return float(np.mean(shares))


def distinct_document_ratio(doc_ids: np.ndarray | Sequence[Sequence[int]]) -> float:
    """Different documents among all those retrieved for a batch: 1 if all differ, 1/B if every
    question gets the same.

    A falling value during training is retrieval collapse (paper, appendix on retrieval collapse).

    Args:
        doc_ids: (B, N), -1 for missing hits, which do not count. Without any hit: 0.
    """
    ids = np.asarray(doc_ids).reshape(-1)
    ids = ids[ids >= 0]
    if not len(ids):
        return 0.0
    return len(np.unique(ids)) / len(ids)


def mean_posterior_entropy(log_probabilities: np.ndarray) -> float:
    """Mean entropy in nats of the distributions over documents: 0 if one document decides, log N if
    none does.

    Args:
        log_probabilities: (..., N), log p(z|x, y) or log p(z|x), normalised here; -inf for masked
            documents.

    Raises:
        ValueError: NaN, or a row without any document.
    """
    scores = np.asarray(log_probabilities, np.float64)
    top = scores.max(axis=-1, keepdims=True)
    if not np.isfinite(top).all():
        raise ValueError("log_probabilities must have a finite value in every row and no NaN")
    weights = np.exp(scores - top)
    weights = weights / weights.sum(axis=-1, keepdims=True)
    # 0 log 0 is 0, and log 1 is what NumPy may compute in its place without a warning
    logs = np.log(np.where(weights > 0, weights, 1.0))
    return float(np.mean(-(weights * logs).sum(axis=-1)))


def _best(
    score: Callable[[str, str], float], answer: str, references: str | Iterable[str]
) -> float:
    texts = _listed(references)
    if not texts:
        raise ValueError("references must hold at least one reference answer")
    normalized = normalize_answer(answer)
    return max(score(normalized, normalize_answer(text)) for text in texts)


def _listed(references: str | Iterable[str]) -> list[str]:
    if isinstance(references, str):
        return [references]
    return list(references)


def _check_depth(k: int) -> None:
    if k < 1:
        raise ValueError(f"hits must be counted with k >= 1, got k={k}")


def _hits(
    retrieved: Sequence[Sequence[Any]], relevant: Sequence[Iterable[Any]], k: int
) -> list[tuple[set[Any], set[Any]]]:
    """Of each question, the documents among its first k hits, and the relevant ones."""
    _check_depth(k)
    return [(_documents(hits[:k]), right) for hits, right in _rows(retrieved, relevant)]


def _rows(
    retrieved: Sequence[Sequence[Any]], relevant: Sequence[Iterable[Any]]
) -> list[tuple[list[Any], set[Any]]]:
    """Of each question, its hits, and the relevant documents."""
    if not len(retrieved) or len(retrieved) != len(relevant):
        raise ValueError(
            "retrieved and relevant must be equally many rows, at least one, got "
            f"{len(retrieved)} and {len(relevant)}"
        )
    return [(list(hits), set(right)) for hits, right in zip(retrieved, relevant, strict=True)]


def _documents(hits: Sequence[Any]) -> set[Any]:
    """Different hits, without the row numbers that say that there was none."""
    return {hit for hit in hits if not (isinstance(hit, int | np.integer) and hit < 0)}
