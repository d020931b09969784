"""Confidence: what is fitted, where it is written, and what is refused."""

import json

import numpy as np
import pytest

from rag_core.config import RagConfig
from rag_core.evaluation import Evaluation, calibrate_model, fit_confidence
from rag_core.evaluation.calibration import calibration_of
from tests.support.golden_prompts import config as rag_config


def answers(count: int, seed: int = 0):
    """Answers that are right with the probability sigma(0.5 log p + 2 score + 1)."""
    rng = np.random.default_rng(seed)
    log_probs = -rng.exponential(4.0, count)
    scores = rng.normal(0.3, 0.8, count)
    right = rng.random(count) < 1 / (1 + np.exp(-(0.5 * log_probs + 2 * scores + 1)))
    return log_probs, scores, right.astype(float)


def evaluation(count: int, head: str = "token", seed: int = 0) -> Evaluation:
    rows = [
        {"log_probability": p, "doc_score": s, "confidence": None, "scores": {"exact_match": r}}
        for p, s, r in zip(*answers(count, seed), strict=True)
    ]
    name = f"{head}-docs5-beams1"
    report = {"variants": {name: {"settings": {"head": head}}}, "model": {"name": "x"}}
    return Evaluation(report, [], {name: rows})


def test_the_planted_function_is_found() -> None:
    assert fit_confidence(*answers(200_000)) == pytest.approx((0.5, 2.0, 1.0), abs=0.05)


def test_answers_that_do_not_overlap_give_finite_numbers() -> None:
    line = fit_confidence([-1.0] * 15 + [-9.0] * 15, [0.5] * 30, [1.0] * 15 + [0.0] * 15)
    assert all(np.isfinite(line)) and line[1] == 0


@pytest.mark.parametrize("noise", [0.0, 1e-6])
@pytest.mark.parametrize("score", [2 / 61, -3.417727, 80.1234])
def test_scores_that_differ_by_their_rounding_alone_get_no_weight(score, noise) -> None:
    log_probs, _, right = answers(61)
    drawn = np.random.default_rng(1).normal(score, noise * abs(score), 61)
    line = fit_confidence(log_probs, [float(f"{value:.6g}") for value in drawn], right)
    assert line[1] == 0 < line[0]


def test_an_answer_whose_probability_is_no_number_teaches_nothing(tmp_path) -> None:
    rag_config().save_pretrained(tmp_path)
    found = evaluation(200)
    fitted = calibrate_model([found], tmp_path)
    [rows] = found.answers.values()
    rows += [{**rows[0], "log_probability": bad} for bad in (np.nan, -np.inf, None)]
    assert calibrate_model([found], tmp_path) == fitted
    with pytest.raises(ValueError, match="must be finite numbers"):
        fit_confidence([np.nan] * 30, [0.5] * 30, [1.0] * 15 + [0.0] * 15)


@pytest.mark.parametrize(
    ("log_probs", "right", "words"),
    [
        ([-1.0] * 5, [1.0, 0, 1, 0, 1], "at least 20 answers"),
        (list(range(-30, 0)), [1.0] * 30, "30 are right"),
        (list(range(-30, 0)), [1.0] * 15 + [0.0] * 15, "more often right"),
    ],
)
def test_what_nothing_can_be_learned_from_is_refused(log_probs, right, words) -> None:
    with pytest.raises(ValueError, match=words):
        fit_confidence(log_probs, [0.5] * len(log_probs), right)


def test_the_model_remembers_it_by_head(tmp_path) -> None:
    rag_config().save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    parts = [evaluation(200), evaluation(200, seed=1)]
    fitted = calibrate_model(parts, tmp_path)
    calibrate_model([evaluation(300, "sequence", seed=2)], tmp_path)
    config = RagConfig.from_pretrained(tmp_path)
    assert config.answer_calibration["token"] == list(fitted["token"])
    assert set(config.answer_calibration) == {"token", "sequence"}
    after = json.loads((tmp_path / "config.json").read_text())
    del after["answer_calibration"]
    assert after == before

    logit = np.dot(fitted["token"], (-2.0, 0.7, 1.0))
    assert config.confidence("token", -2.0, 0.7) == pytest.approx(1 / (1 + np.exp(-logit)))
    rows = evaluation(2000, seed=3).answers["token-docs5-beams1"]
    for row in rows:
        row["confidence"] = config.confidence("token", row["log_probability"], row["doc_score"])
    error = "expected_calibration_error"
    sure = calibration_of(rows, None, 0, of_confidence=True)["all"][error]["mean"]
    assert sure < 0.05 < calibration_of(rows, None, 0)["all"][error]["mean"]


def test_bad_folders_and_variants_are_refused_and_nothing_is_written(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        calibrate_model([evaluation(50)], tmp_path)
    rag_config().save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match="variant must be one of"):
        calibrate_model([evaluation(50)], tmp_path, "other")
    with pytest.raises(ValueError, match="retrieval alone"):
        calibrate_model([Evaluation({"variants": {}})], tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize("value", [{"both": [1, 2, 3]}, {"token": [1, 2]}, {"token": [1, 2, "3"]}])
def test_a_calibration_that_is_none_is_refused(value) -> None:
    with pytest.raises(ValueError, match="answer_calibration must hold"):
        rag_config(answer_calibration=value)
