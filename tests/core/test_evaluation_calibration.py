"""Calibration of answers' probabilities: by hand, and what faults would change."""

import math

import numpy as np
import pytest

from rag_core.evaluation.calibration import calibration, calibration_of, probability

ERROR, BRIER, AREA = "expected_calibration_error", "brier_score", "risk_coverage_area"


def means(probabilities, right):
    found = calibration(probabilities, right, seed=0)
    return [found[name]["mean"] for name in (ERROR, BRIER, AREA)]


def test_three_answers_by_hand() -> None:
    found = calibration([0.3, 0.9, 0.8], [1, 1, 0], seed=0)
    assert found[ERROR]["mean"] == pytest.approx((0.1 + 0.8 + 0.7) / 3)
    assert found[BRIER]["mean"] == pytest.approx((0.01 + 0.64 + 0.49) / 3)
    assert found[AREA]["mean"] == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    assert [each["mean"] for each in found["bins"]] == [0.9, 0.8, 0.3]
    assert [each["right"] for each in found["bins"]] == [1, 0, 1]
    assert [each["coverage"] for each in found["bins"]] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [each["right_above"] for each in found["bins"]] == pytest.approx([1, 1 / 2, 2 / 3])


def test_bins_hold_equally_many_answers() -> None:
    """Twenty-three answers: within a bin a high and a low probability may cancel out."""
    rng = np.random.default_rng(0)
    sure, right = rng.random(23), rng.integers(2, size=23)
    order = np.argsort(-sure)
    bins = [order[23 * m // 10 : 23 * (m + 1) // 10] for m in range(10)]
    gaps = [len(rows) * abs(sure[rows].mean() - right[rows].mean()) for rows in bins]
    found = calibration(sure, right, seed=0)
    assert found[ERROR]["mean"] == pytest.approx(sum(gaps) / 23)
    assert [each["n"] for each in found["bins"]] == [len(rows) for rows in bins]
    assert found[ERROR]["low"] < found[ERROR]["high"] and found[ERROR]["n"] == 23


def test_the_order_of_answers_of_equal_probability_does_not_matter() -> None:
    sure = [0.5] * 30 + [0.2] * 10
    right = [1] * 15 + [0] * 15 + [1] * 2 + [0] * 8
    wanted = means(sure, right)
    assert wanted == pytest.approx(means(sure, right[:30][::-1] + right[30:][::-1]))
    assert wanted[0] == pytest.approx(0) and wanted[2] > 0.5


def test_planted_miscalibration_is_seen() -> None:
    rng = np.random.default_rng(1)
    sure = rng.random(4000)
    right = rng.random(4000) < sure
    error, brier, area = means(sure, right)
    assert error < 0.03
    too_sure = means(sure**0.25, right)
    # the mean of p^(1/4) is 0.8, that of p 0.5; the order is the same
    assert too_sure[0] == pytest.approx(0.3, abs=0.02)
    assert too_sure[1] > brier + 0.05 and too_sure[2] == pytest.approx(area)
    reversed_order = means(1 - sure, right)
    assert reversed_order[2] > area + 0.3
    interval = calibration(sure, right, seed=0)[ERROR]
    assert too_sure[0] > interval["high"]


def test_rows_without_an_answer_to_compare_with_are_left_out() -> None:
    rows = [
        {"log_probability": math.log(0.25), "scores": {"exact_match": 0.0}},
        {"log_probability": None, "scores": {"exact_match": 0.0}},
        {"log_probability": 1e-9, "scores": {"exact_match": 1.0}},
        {"log_probability": -1.0, "scores": {}},
    ]
    assert [probability(row) for row in rows[:3]] == pytest.approx([0.25, 0, 1])
    assert probability({"log_probability": math.nan}) == 0  # it was once the surest of all
    found = calibration_of(rows, [True, False, False, True], seed=0)
    assert found["all"][BRIER]["n"] == 3
    assert found["all"][BRIER]["mean"] == pytest.approx(0.25**2 / 3)
    assert found["answerable"][ERROR]["mean"] == pytest.approx(0.25)
    assert calibration_of(rows[3:], None, seed=0) == {}


def test_a_confidence_that_is_no_number_is_none() -> None:
    rows = [
        {"log_probability": math.nan, "confidence": value, "scores": {"exact_match": 0.0}}
        for value in (math.nan, 0.5)
    ]
    found = calibration_of(rows, None, seed=0, of_confidence=True)["all"]
    assert found[BRIER]["mean"] == pytest.approx(0.125)
