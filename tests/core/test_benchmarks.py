"""The benchmarks' arithmetic, and the check that keeps wrong figures out of the table.

Nothing is timed here.
"""

import copy
from pathlib import Path

import numpy as np
import pytest

import benchmarks
from benchmarks import agreement, floor, report, serving_load
from benchmarks.jobs import (
    CONTESTANTS,
    GOALS,
    JOBS,
    contestant,
    contestants_of,
    selected,
    takes_part,
)
from benchmarks.run import judge, operations, summarize
from benchmarks.workload import BASE, PLAIN

ROWS = {"tokens": [[2, 7, 8, 9, 1], [2, 7, 8, 1, 1], [2, 5, 5, 5, 5], [2, 4, 4, 4, 4]]}
JOB = {job.name: job for job in JOBS}


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (lambda rows: rows[0].__setitem__(3, 6), "row 0 parts at token 3"),
        (lambda rows: rows[3].__setitem__(4, 6), "1 of 2 candidates in common among rows 2 to 3"),
        (lambda rows: rows.__setitem__(slice(0, 2), rows[1::-1]), "row 0 parts at token 3"),
        (lambda rows: rows.pop(), "3 rows, expected 4"),
        (lambda rows: rows[0].append(3), "row 0 parts at token 4"),
    ],
)
def test_other_tokens_are_found(fault, named):
    found = copy.deepcopy(ROWS)
    assert agreement.difference(ROWS, found, 2) == ""
    fault(found["tokens"])
    assert agreement.difference(ROWS, found, 2) == named


def test_padding_and_the_order_of_lesser_candidates_do_not_count():
    rows = [row.copy() for row in ROWS["tokens"]]
    rows[1] = rows[1] + [1, 1]
    assert agreement.difference(ROWS, {"tokens": rows}, 2) == ""
    three = {"tokens": [[2, 3], [2, 4], [2, 5]]}
    swapped = {"tokens": [[2, 3], [2, 5], [2, 4]]}
    assert agreement.difference(three, swapped, 3) == "" != agreement.difference(three, swapped, 1)


@pytest.mark.parametrize("wrong", [1.0002, float("nan"), -1.0])
def test_other_losses_are_found(wrong):
    assert agreement.difference({"numbers": [1.0]}, {"numbers": [1.00005]}) == ""
    assert "number 0" in agreement.difference({"numbers": [1.0]}, {"numbers": [wrong]})
    assert agreement.difference({"numbers": [1.0]}, {"numbers": []}) and agreement.difference(
        {"numbers": [1.0]}, {}
    )


def test_a_candidate_that_comes_twice_is_found():
    assert agreement.repeated(ROWS["tokens"], 2) == ""
    assert "only 1 distinct" in agreement.repeated([[2, 7, 1], [2, 7]], 2)


def test_who_disagrees_is_marked_and_compared_with_4_37_2():
    some = [
        contestant(name) for name in ("dualrag-torch", "transformers4-torch", "transformers5-torch")
    ]
    found = {one.name: copy.deepcopy(ROWS) for one in some}
    found["dualrag-torch"]["tokens"][0][1] = 99
    entries = {one.name: {} for one in some}
    said = []
    judge(JOB["token_beam4"], some, found, entries, said.append)
    assert [entries[one.name]["agrees"] for one in some] == [False, True, True]
    assert (
        "transformers4-torch" in entries["dualrag-torch"]["difference"] and "DISAGREES" in said[0]
    )
    assert entries["dualrag-torch"]["equal_rows"] == 0.75


def test_medians_and_rates():
    entry = {"seconds": [3.0, 1.0, 2.0, 10.0], "beside": []}
    summarize(entry, tokens=50)
    assert entry["seconds"] == 2.5 and entry["tokens_per_second"] == 20 and "beside" not in entry


def results():
    """Figures as a run gives them, with round numbers."""
    each = {
        "dualrag-torch": {"seconds": 2.0, "agrees": True, "peak_bytes": 1.5e9},
        "transformers4-torch": {"seconds": 12.0, "agrees": True, "peak_bytes": 4e9},
        "dualrag-tf": {"agrees": False, "difference": "row 0 parts", "peak_bytes": 2.5e9},
        "transformers4-tf": {"seconds": 20.0, "agrees": True, "peak_bytes": 6e9},
    }
    calls = {
        "dualrag-torch": {"seconds": 0.003, "beside": 0.002, "agrees": True},
        "transformers4-torch": {"seconds": 0.006, "beside": 0.002, "agrees": True},
    }
    beams = {"title": "beams", "operations": 1e11, "gflops": 100.0, "contestants": each}
    return {
        "date": "2030-01-01",
        "machine": {
            "processor": "CPU",
            "cores": 2,
            "threads": "2",
            "memory_gb": 8,
            "system": "Linux",
            "python": "3.11",
            "gflops": {"torch": 100.0},
        },
        "jobs": {
            "token_beam4": beams,
            "retrieve": {"title": "retrieve", "operations": None, "contestants": calls},
        },
    }


def test_goals_are_worked_out_from_the_figures():
    found = {(g.job, g.contestant, g.measure): report.reached(results(), g) for g in GOALS}
    assert found["token_beam4", "dualrag-torch", "faster"] == 6
    assert found["token_beam4", "dualrag-torch", "floor"] == 2
    assert found["token_beam4", "dualrag-tf", "faster"] is None  # it computed something else
    assert found["retrieve", "dualrag-torch", "beyond"] == pytest.approx(4)
    assert found["inference", "dualrag-torch", "memory"] == 1.5
    assert found["training", "dualrag-torch", "faster"] is None
    goals = {(g.job, g.contestant, g.measure): g for g in GOALS}
    assert report.met(goals["token_beam4", "dualrag-torch", "faster"], 5.0)
    assert not report.met(goals["token_beam4", "dualrag-torch", "floor"], 1.6)


def test_the_tables_say_what_was_not_reached_and_what_was_not_measured():
    text = report.markdown(results())
    assert "2.0 s (6.0 x)" in text and "other tokens" in text and "2.00 x | **no**" in text
    assert "training" not in text and "100 GFLOP/s" in text
    assert "**6.0 x**" in report.summary(results())


def test_the_floors_are_those_of_the_operation_count():
    """1.1 s to encode, 2.9 s to search, 10.7 s to weigh all candidates at 178 GFLOP/s.

    Written out once by hand.
    """
    lengths = np.linspace(60, 190, 20).round()
    shape = floor.Shape(768, 3072, 6, 6, 50_265)
    one = floor.Shape(2, 8, 1, 1, 10)
    assert floor.encoding(one, np.array([3])) == 3 * 2 * (16 + 32) + 8 * 9 + 3 * 16
    assert floor.row(one, 3, 1) == 2 * (24 + 32) + 8 * 4 + 40
    rate = 178.0
    assert floor.seconds(floor.search(shape, lengths, 4, 20), rate) == pytest.approx(2.9, abs=0.15)
    assert floor.seconds(floor.thorough(shape, lengths, 4, 20, 4), rate) == pytest.approx(
        10.8, abs=0.3
    )
    assert floor.search(shape, lengths, 1, 20) < floor.search(shape, lengths, 4, 20)


def test_operations_are_counted_over_real_lengths(tmp_path):
    mask = np.zeros((20, 300), np.int64)
    mask[:, :100] = 1
    np.savez(tmp_path / "inputs.npz", context_attention_mask=mask)
    counted = operations(JOB["token_beam4"], BASE, tmp_path)
    shape = floor.Shape(768, 3072, 6, 6, 50_265)
    assert counted == floor.search(shape, np.full(20, 100), 4, 20)
    assert operations(JOB["training"], BASE, tmp_path) is None
    assert operations(JOB["plain_beam4"], PLAIN, tmp_path) < counted


def test_who_does_what():
    names = {job.name: [one.name for one in CONTESTANTS if takes_part(one, job)] for job in JOBS}
    assert "transformers4-tf" not in names["training"] and "dualrag-tf" in names["training"]
    assert "ctranslate2@int8" in names["plain_beam4"] and "ctranslate2" not in names["token_beam4"]
    assert (
        contestant("dualrag-torch@bf16").dtype == "bf16"
        and not contestant("dualrag-torch@bf16").exact
    )
    assert {goal.job for goal in GOALS} <= {*JOB, "inference"}
    assert JOB["token_greedy"].generate_options(BASE) == {
        "num_beams": 1,
        "min_length": 21,
        "max_length": 21,
    }
    with pytest.raises(ValueError, match="no job nothing"):
        selected("nothing")
    with pytest.raises(ValueError, match="no contestant 'nobody'"):
        contestant("nobody")


def test_another_checkout_is_a_contestant_with_its_own_code(tmp_path):
    root = Path(benchmarks.__file__).parent.parent
    before = contestants_of(root)
    assert contestant("before-tf", before).checkout == root
    assert contestant("before-torch@bf16", before).dtype == "bf16"
    assert all(takes_part(one, JOB["training"]) for one in before)
    with pytest.raises(ValueError, match="no contestant 'before-tf'"):
        contestant("before-tf")
    with pytest.raises(ValueError, match="must be the root of a checkout of this project"):
        contestants_of(tmp_path)


ALONE = {
    "why": {"text": "so", "log_probability": -1.0, "passages": [{"id": 3}, {"id": 4}]},
}


@pytest.mark.parametrize(
    ("fault", "noted"),
    [
        ({}, "right"),
        ({"text": "or so", "log_probability": -1.0005}, "tie"),
        ({"text": "or so", "log_probability": -1.1}, "wrong"),
        ({"log_probability": -1.1}, "wrong"),
        ({"question": "how"}, "wrong"),
        ({"passages": [{"id": 4}, {"id": 3}]}, "wrong"),
        ({"status": 503}, "wrong"),
        ({"status": 429}, "refused"),
        ({"status": 504}, "late"),
    ],
)
def test_answers_under_load_are_compared_with_those_of_their_question_alone(fault, noted):
    status = fault.pop("status", 200)
    answer = {"question": "why", **ALONE["why"], **fault}
    tally = serving_load.Tally()
    serving_load.judge(tally, "why", status, {"answers": [answer]}, ALONE)
    found = {
        "wrong": len(tally.wrong),
        "tie": tally.ties,
        "refused": tally.refused,
        "late": tally.late,
    }
    assert found == {name: int(name == noted) for name in found}
