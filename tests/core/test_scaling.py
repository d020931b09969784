"""The growth that benchmarks state is the growth there is."""

import numpy as np
import pytest

from benchmarks.growth import growth, growth_beyond, too_fast
from benchmarks.scaling import faster_than_expected, measured
from benchmarks.scaling_curves import CURVES
from benchmarks.scaling_report import duration, inserted, table

DOCS = [1, 2, 5, 10, 20, 50]


def noisy(values):
    return np.asarray(values) * (1 + 0.03 * np.random.default_rng(0).standard_normal(len(values)))


def test_a_planted_quadratic_is_found_and_flagged_though_it_starts_flat():
    found = growth(DOCS, noisy([0.05 + 1e-3 * n**2 for n in DOCS]))
    assert found == pytest.approx(1.85, abs=0.1)
    assert too_fast(found, 1.0)
    assert not too_fast(found, 2.0)
    beyond = growth_beyond(DOCS, noisy([0.5 + 1e-3 * n**2 for n in DOCS]))
    assert beyond is None  # it rises only at its end
    assert growth_beyond(DOCS, noisy([0.2 + 1e-3 * n**2 for n in DOCS])) == pytest.approx(
        2.0, abs=0.15
    )


def test_a_line_above_a_constant_is_no_quadratic():
    found = growth(DOCS, noisy([0.02 + 0.01 * n for n in DOCS]))
    assert 0.8 < found < 1.05
    assert not too_fast(found, 1.0)


def test_pure_powers_are_exact():
    for power in (0.0, 0.5, 1.0, 2.0):
        assert growth(DOCS, [0.3 * n**power for n in DOCS]) == pytest.approx(power)
    assert growth([1, 4], [1, 2]) == pytest.approx(0.5)


def test_what_has_no_slope_is_refused():
    for values, taken in (([1], [1]), ([1, 2], [1]), ([0, 1], [1, 1]), ([1, 2], [0, 1])):
        with pytest.raises(ValueError, match="two points or more"):
            growth(values, taken)


class Planted:
    """A contestant whose time grows with the square of what is varied."""

    def __init__(self):
        self.done = []

    def run(self, job):
        self.done.append(job["docs"])
        slow = 100.0 if len(self.done) <= len(DOCS) else 1.0  # the warm-up
        return {"seconds": slow * 1e-4 * job["docs"] ** 2, "tokens": "same", "peak_mb": 7}


def test_a_contestant_that_grows_too_fast_is_found_and_one_that_breaks_is_left_out():
    class Broken:
        def run(self, job):
            return {"error": "no memory"}

    curve, planted = CURVES[0], Planted()
    found = measured(curve, {"dualrag-torch": planted, "dualrag-tf": Broken()})
    assert planted.done == DOCS * 6  # in turns, not point by point
    entry = found["contestants"]["dualrag-torch"]
    assert list(found["contestants"]) == ["dualrag-torch"]
    assert (entry["growth"], entry["expected"]) == (2.0, 1.0)
    assert entry["seconds"][-1] == 0.25 and entry["peak_mb"] == [7] * 6
    results = {"curves": {curve.name: found}}
    assert faster_than_expected(results) == [
        "docs, dualrag-torch: n^2.00 (2.01) where n^1.00 (1.05) is expected"
    ]
    assert "100 µs to 250 ms, n^2.00 (2.01) **faster than expected**" in table(results)


def test_operations_grow_as_theory_says():
    expected = {
        curve.name: growth(curve.values, [curve.operations(curve.job(n)) for n in curve.values])
        for curve in CURVES
    }
    assert expected["docs"] == pytest.approx(1.0) and expected["batch"] == pytest.approx(1.0)
    assert (
        0.4 < expected["beams"] < 1.0
        and 0.5 < expected["length"] < 1.2
        and 0.8 < expected["tokens"] < 1.2
    )
    assert 1.6 < expected["thorough"] <= 2.0
    assert (
        expected["embedding"] == 0
        and expected["flat"] == pytest.approx(1.0)
        and expected["hnsw"] < 0.2
    )


def test_a_page_keeps_what_is_outside_of_its_markers():
    page = "before\n<!-- scaling -->\nold\n<!-- /scaling -->\nafter\n"
    new = inserted(page, "scaling", "| a |")
    assert new == "before\n<!-- scaling -->\n\n| a |\n\n<!-- /scaling -->\nafter\n"
    assert inserted(new, "scaling", "| a |") == new
    assert inserted("no markers", "scaling", "| a |") == "no markers"


def test_durations_have_two_digits():
    assert [duration(s) for s in (12.34, 1.234, 0.0456, 0.00347, 7.8e-5)] == [
        "12 s",
        "1.2 s",
        "46 ms",
        "3.5 ms",
        "78 µs",
    ]
