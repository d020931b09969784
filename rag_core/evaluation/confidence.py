"""From the probability of an answer to that of its being right, by Platt scaling.

p(y|x) is the probability of one exact wording among all texts, given that the retrieved passages
are all there is: low where much else could have been said, and blind to passages that are all far
from the question. How often such answers are right is learned from questions whose answers are
known, as a logistic function of log p(y|x) and of the best document's score (Platt 1999,
"Probabilistic outputs for support vector machines", with one feature more).

Letters: n answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rag_core.config import RagConfig
from rag_core.evaluation.fingerprints import saved_sha256
from rag_core.evaluation.report import Evaluation
from rag_core.hub import atomic_write, read_json

# Three numbers are fitted; with fewer answers they say nothing about others.
LEAST = 20
_STEPS = 100
_TINY = 1e-9
# Reports keep six digits: what varies by less is their rounding, and gets no weight.
_NOISE = 1e-5


def fit_confidence(
    log_probabilities: Sequence[float], doc_scores: Sequence[float], right: Sequence[float]
) -> tuple[float, float, float]:
    """The three numbers of `RagConfig.answer_calibration` that make these answers likeliest.

    By Newton's method, and with Platt's targets in place of 1 and 0, which keep the factors finite
    where right and wrong answers do not overlap.

    Args:
        log_probabilities: (n,), log p(y|x) of the answers.
        doc_scores: (n,), the score of each question's best document.
        right: (n,), 1 = right, 0 = wrong.

    Raises:
        ValueError: fewer than 20 answers, all of them right or all wrong, numbers that are not
            finite, or the more probable ones are not more often right.
    """
    hits = np.asarray(right, np.float64) > 0.5
    count, rights = len(hits), int(hits.sum())
    if count < LEAST or not 0 < rights < count:
        raise ValueError(
            f"a calibration must have at least {LEAST} answers, right and wrong ones, got {count} "
            f"of which {rights} are right. Measure more questions."
        )
    targets = np.where(hits, (rights + 1) / (rights + 2), 1 / (count - rights + 2))
    columns = np.array([log_probabilities, doc_scores], np.float64)
    if not np.isfinite(columns).all():
        raise ValueError(
            "log_probabilities and doc_scores must be finite numbers, got some that are not. Leave "
            "such answers out"
        )
    # means of 0 and deviations of 1: Newton's steps from here converge
    means, spreads = columns.mean(1), columns.std(1)
    is_constant = spreads <= _NOISE * np.abs(columns).max(1)
    spreads = np.where(is_constant, 1.0, spreads)
    varied = np.where(is_constant[:, None], 0.0, (columns - means[:, None]) / spreads[:, None])
    features = np.vstack([varied, np.ones(count)])
    weights = np.array([0.0, 0.0, np.log(targets.mean() / (1 - targets.mean()))])
    for _ in range(_STEPS):
        sure = (1 + np.tanh(weights @ features / 2)) / 2
        curvature = (features * (sure * (1 - sure))) @ features.T + _TINY * np.eye(3)
        step = np.linalg.solve(curvature, features @ (sure - targets))
        weights = weights - step
        if np.abs(step).max() < _TINY:
            break
    factors = weights[:2] / spreads
    if factors[0] <= 0:
        raise ValueError(
            "the more probable answers must be more often right, but here they are not: the "
            f"factor that fits is {factors[0]:.3g}. Measure more questions, or train further."
        )
    return float(factors[0]), float(factors[1]), float(weights[2] - factors @ means)


def calibrate_model(
    evaluations: Sequence[Evaluation], model: str | Path, variant: str | None = None
) -> dict[str, tuple[float, float, float]]:
    """Fit `answer_calibration` on the answers of evaluations, and write it to the model's config.

    Args:
        evaluations: of this model, on questions that are not those of a test.
        model: its folder.
        variant: one way of answering; None = for each head the first.

    Returns:
        By head, "token" or "sequence", what was fitted; other heads keep what they had.

    Raises:
        FileNotFoundError: `model` is no folder of a RAG model.
        ValueError: no such variant, evaluations of other weights than those in the folder, or as of
            `fit_confidence`.
        OSError: the weights can't be read, or the config can't be written; it is as it was.
    """
    path = Path(model) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"model must be the folder of a RAG model, got {model}: there is no config.json. Name "
            "the folder with --model; a model of the hub has to be copied to one first."
        )
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for evaluation in evaluations:
        for name, head in _variants(evaluation, variant).items():
            judged = [row for row in evaluation.answers[name] if _is_judged(row)]
            rows.setdefault(head, []).extend(judged)
    fitted = {}
    for head, answers in rows.items():
        fitted[head] = fit_confidence(
            [row["log_probability"] for row in answers],
            [row["doc_score"] for row in answers],
            [row["scores"]["exact_match"] for row in answers],
        )
    values = read_json(path)
    for evaluation in evaluations:
        _check_weights(evaluation.report.get("model") or {}, path.parent, values)
    held = dict(values.get("answer_calibration") or {})
    values["answer_calibration"] = held | {head: list(line) for head, line in fitted.items()}
    RagConfig.from_dict(values)
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return fitted


def _check_weights(measured: Mapping[str, Any], folder: Path, config: dict[str, Any]) -> None:
    """Refuse to learn from answers of another model than the folder's.

    A calibration is itself an entry of the config, so the weights alone are compared.

    Raises:
        ValueError: its weights are others.
    """
    layout = measured.get("layout_sha256")
    if layout is None:  # the report is of before, or the sum is somebody's own
        return
    found = saved_sha256(folder, RagConfig.from_dict(config), layout)
    if found not in (None, measured.get("sha256")):
        raise ValueError(
            f"evaluations must be of the model in {folder}, got one of other weights (sha256 "
            f"{measured.get('sha256')!s:.12} there, {found:.12} here). Measure this model, or name "
            "the folder of the one that was measured."
        )


def _variants(evaluation: Evaluation, name: str | None) -> dict[str, str]:
    """The variants to learn from, with their heads."""
    heads = {
        each: found["settings"]["head"] for each, found in evaluation.report["variants"].items()
    }
    if name is not None and name not in heads:
        raise ValueError(f"variant must be one of {list(heads)}, got {name!r}")
    if not heads:
        raise ValueError(
            "a calibration must have answers, got an evaluation of retrieval alone. Run dualrag "
            "eval without --retrieval-only."
        )
    if name is not None:
        return {name: heads[name]}
    first = {head: each for each, head in reversed(heads.items())}
    return {each: head for head, each in first.items()}


def _is_judged(row: Mapping[str, Any]) -> bool:
    numbers = (row["log_probability"], row["doc_score"])
    is_known = all(number is not None and math.isfinite(number) for number in numbers)
    return is_known and "exact_match" in row["scores"]
