"""The scores of one answer and of one list of passages; questions without what a score needs have
none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from rag_core import metrics
from rag_core.evaluation.matching import pattern_found
from rag_core.evaluation.questions import Gold, Question

# From the one passage that an answer is read from to the hundred of DPR's tables.
DEPTHS = (1, 5, 10, 20, 50, 100)
EXTRA = "ROUGE-L and BLEU need  pip install 'dualrag[eval]'"


def text_scores(text: str, question: Question) -> dict[str, Any]:
    """exact_match, f1, contains of an answer, and where the libraries are there rouge_l and bleu
    (the counts that BLEU adds up); of regular expressions the first and the third.
    """
    if not question.answers:
        return {}
    if question.patterns:
        whole = any(
            pattern_found(pattern, text.strip(), whole=True) for pattern in question.answers
        )
        part = any(pattern_found(pattern, text) for pattern in question.answers)
        return {"exact_match": float(whole), "contains": float(part)}
    scores: dict[str, Any] = {
        "exact_match": metrics.exact_match(text, question.answers),
        "f1": metrics.f1_score(text, question.answers),
        "contains": metrics.substring_match(text, question.answers),
    }
    if has_libraries():
        scores["rouge_l"] = rouge_l(text, question.answers)
        scores["bleu"] = bleu_counts(text, question.answers)
    return scores


def mistakes(scores: Mapping[str, Any], holds: Sequence[bool | None]) -> dict[str, float]:
    """Whether retrieval or reading is to blame for an answer that is no exact match.

    Args:
        scores: of the answer, as `text_scores` gives them.
        holds: of the passages that were read, whether an answer stands there.
    """
    if "exact_match" not in scores:
        return {}
    is_wrong = not scores["exact_match"]
    was_found = any(holds)
    return {
        "wrong_not_found": float(is_wrong and not was_found),
        "wrong_though_found": float(is_wrong and was_found),
    }


@cache
def has_libraries() -> bool:
    """Whether rouge-score and sacrebleu are installed."""
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("rouge_score", "sacrebleu"))


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])


@cache
def _bleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)


def rouge_l(text: str, answers: Sequence[str]) -> float:
    """ROUGE-L's F-measure against the best of the answers, by rouge-score."""
    return float(_rouge().score_multi(list(answers), text)["rougeL"].fmeasure)


def bleu_counts(text: str, answers: Sequence[str]) -> list[int]:
    """What an answer adds to corpus BLEU: right and all n-grams of 1 to 4 words, its length and
    the nearest answer's, by sacrebleu.
    """
    score = _bleu().sentence_score(text, list(answers))
    return [int(count) for count in (*score.counts, *score.totals, score.sys_len, score.ref_len)]


def corpus_bleu(counts: Sequence[float]) -> float:
    """BLEU, 0 to 1, of such counts, added up over a corpus.

    Raises:
        ImportError: sacrebleu is not installed; the message has the pip line.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise ImportError(f"{EXTRA}: this report has them.") from None
    right, total = ([int(count) for count in counts[at : at + 4]] for at in (0, 4))
    lengths = int(counts[8]), int(counts[9])
    # as `BLEU().corpus_score` smooths
    score = BLEU.compute_bleu(right, total, *lengths, smooth_method="exp")
    return float(score.score) / 100


def answer_scores(holds: Sequence[bool]) -> dict[str, float]:
    """Recall at several depths, and the reciprocal rank, of the first passage that holds an
    answer.

    Args:
        holds: of the passages of a question, best first, whether an answer stands there.
    """
    ranks = [rank for rank, found in enumerate(holds, 1) if found]
    scores = {f"answer_recall@{k}": float(any(holds[:k])) for k in depths(len(holds))}
    scores["answer_mrr"] = 0.0
    if ranks:
        scores["answer_mrr"] = 1 / ranks[0]
    return scores


def gold_scores(
    documents: Sequence[str], gold: Sequence[Sequence[str]], count: int
) -> dict[str, float]:
    """Hit rate, recall and precision at several depths, reciprocal rank and R-precision.

    Args:
        documents: what the passages of a question are of, best first; several may be of one.
        gold: sets of documents, each of which suffices.
        count: N, passages that were asked for.
    """
    relevant = [{document for documents in gold for document in documents}]
    hits = [documents]
    scores = {}
    for k in depths(count):
        recall = metrics.recall_at_k(hits, relevant, k)
        scores[f"gold_hit@{k}"] = float(recall > 0)
        scores[f"gold_recall@{k}"] = recall
        scores[f"gold_precision@{k}"] = metrics.precision_at_k(hits, relevant, k)
    scores["gold_mrr"] = metrics.mean_reciprocal_rank(hits, relevant)
    distinct = [list(dict.fromkeys(documents))]
    scores["gold_r_precision"] = max(metrics.r_precision(distinct, [each]) for each in gold)
    return scores


def depths(count: int) -> list[int]:
    """The depths that figures of N passages are given for: the usual ones, and N."""
    return sorted({*(k for k in DEPTHS if k < count), count})


def gold_keys(question: Question, by: str | None) -> list[list[str]]:
    """The gold documents of a question by "id" or "title", set by set; without those that lack
    it.
    """
    if by is None:
        return []
    sets = [[key for key in map(_key(by), documents) if key] for documents in question.gold]
    return [documents for documents in sets if documents]


def _key(by: str) -> Callable[[Gold], str | None]:
    def key(gold: Gold) -> str | None:
        value = getattr(gold, by)
        return value and value.strip()

    return key
