"""The comparison of the backends.

Every stage of a hundred cases, faults that are planted and found, traces refused.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.faults import FAULTS, TRAINING_FAULTS, room
from conformance.parity_cases import STRUCTURES, all_cases, quick_cases, training_cases
from conformance.parity_run import Models, run_case
from rag_core.backends import available_backends
from rag_core.parity.compare import Comparison, compare_case, compare_files, load_tolerances
from rag_core.parity.trace_files import TraceFile

ROOT = Path(__file__).parents[2]
HERE = available_backends()
BOUNDS = load_tolerances("float64")


def compared(expected, actual):
    result = Comparison()
    compare_case(
        "case",
        expected,
        actual,
        {name: array.shape for name, array in expected.items()},
        BOUNDS,
        result,
    )
    return result


def test_the_catalogue_has_every_switch():
    quick, everything = quick_cases(), all_cases()
    assert 95 <= len(quick) <= 110 and len({case["name"] for case in everything}) == len(everything)
    assert sum(len(case["modes"]) for case in everything) >= 2000
    for name, wanted in {
        "n_docs": {1, 2, 3, 5, 50},
        "head": {"token", "sequence"},
        "source": {"given", "retrieved"},
        "fault": {"none", "masked_row", "missing_document"},
        "label_smoothing": {0.0, 0.1},
        "exclude_bos_score": {False, True},
    }.items():
        assert {case[name] for case in quick} == wanted
    runs = {case["name"]: case for case in everything if "training" in case}
    assert {case["head"] for case in quick if "training" in case} == {"token", "sequence"}
    assert sum(case["training"]["steps"] == 100 for case in runs.values()) >= 8
    assert {case["structure"] for case in quick} >= set(STRUCTURES)
    assert {case["batch"] for case in quick} >= {1, 2, 3}
    assert len({mode for case in quick for mode in case["modes"]}) >= 14


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The quick cases on every backend at hand, side by side, each in a process of its own.

    Of one alone a few.
    """
    names = [case["name"] for case in quick_cases()][:: 1 if len(HERE) > 1 else 8]
    folder = tmp_path_factory.mktemp("traces")
    commands = [
        [
            sys.executable,
            *f"-m conformance run --backend {name} --out".split(),
            str(folder / f"{name}.npz"),
        ]
        for name in HERE
    ]
    running = [
        subprocess.Popen([*each, "--cases", *names], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for each in commands
    ]
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    return [folder / f"{name}.npz" for name in HERE]


def test_the_backends_agree_at_every_stage_of_the_quick_cases(recorded):
    """With one backend at hand, its recording still has to be whole and equal to itself."""
    found = compare_files(TraceFile(recorded[0]), TraceFile(recorded[-1]))
    assert [str(each) for each in found.first] == []
    assert found.agrees and not found.flipped
    assert len(HERE) == 1 or (found.cases == len(quick_cases()) and found.generations >= 190)
    wanted = (
        "question_encoder question_vector doc_scores doc_ids context_ids encoder decoder logits "
        "marginal loss gradient"
    )
    assert set(wanted.split()) <= set(found.stages)


def test_the_comparison_loads_no_framework_and_reports(recorded, tmp_path):
    code = (
        "import sys, runpy; sys.argv = ['conformance', *sys.argv[1:]]\ntry: "
        "runpy.run_module('conformance', run_name='__main__')\nexcept SystemExit as end: assert "
        "not {'torch', 'tensorflow', 'keras'} & set(sys.modules); sys.exit(end.code)"
    )
    pair = [str(recorded[0]), str(recorded[-1])]
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", *pair, "--report", str(tmp_path / "parity")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert "They agree" in done.stdout
    report = json.loads((tmp_path / "parity.json").read_text())
    assert report["agrees"] and report["stages"]["logits"]["relative"] <= 1e-10
    assert "| gradient" in (tmp_path / "parity.md").read_text()


@pytest.fixture(scope="module")
def healthy():
    """A case's stages without a fault, on the first backend."""
    known = {}

    def get(name):
        if name not in known:
            known[name] = traced(Models(HERE[0], "float64"), FAULTS[name])
        return known[name]

    return get


def traced(models, fault):
    first = next(
        c for c in quick_cases() if c["structure"] == fault.structure and c["head"] == fault.head
    )
    case = {**first, **fault.case, "n_docs": 3, "seed": 1, "label_smoothing": 0.0, "modes": {}}
    return run_case(models, case, gradients=False)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_where_it_is(name, backend, healthy, monkeypatch):
    fault, expected, models = FAULTS[name], healthy(name), Models(backend, "float64")
    if backend == "tf":  # a graph used once costs more than it saves
        monkeypatch.setattr(
            room("rag_tf")("graph").Graph, "__call__", lambda graph, *args: graph.function(*args)
        )
    tracer = models.tracer(fault.structure, fault.head)

    def fill(arrays, fill=tracer.fill):  # the run fills in the weights first; then comes the fault
        fill(arrays)
        monkeypatch.setattr(tracer, "fill", fill)
        fault.plant(tracer, room(models.engine.__name__), monkeypatch.setattr)

    monkeypatch.setattr(tracer, "fill", fill)
    found = compared(expected, traced(models, fault))
    assert [each.stage for each in found.first] == [fault.stage]
    assert found.first[0].place is not None and found.first[0].relative > 1e-9


def test_a_fault_planted_in_training_is_found_at_its_step(monkeypatch):
    """Of two backends one is at fault."""
    (case,) = training_cases(3, ["token"])
    expected = run_case(Models(HERE[0], "float64"), case)
    models = Models(HERE[-1], "float64")
    first = {}
    for name, fault in TRAINING_FAULTS.items():
        with monkeypatch.context() as patch:
            fault.plant(room(models.engine.__name__), patch.setattr)
            faulty = {**case, "training": {**case["training"], **fault.settings}}
            found = compared(expected, run_case(models, faulty))
        first[name] = [each.stage for each in found.first]
    assert first == {name: [fault.stage] for name, fault in TRAINING_FAULTS.items()}
