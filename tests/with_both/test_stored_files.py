"""Files that an earlier version wrote: they open, give the numbers they gave, and runs go on.

`tests/support/stored_files.py` wrote them.
"""

import json
import lzma
import shutil
from dataclasses import asdict, dataclass

import numpy as np
import pytest
from safetensors.numpy import load_file

from rag_core import KnowledgeBase, checks
from rag_core.parity.command import Request, record
from rag_core.parity.compare import compare_files, load_tolerances
from rag_core.parity.trace_files import TraceFile
from rag_core.training import TrainingConfig, config, state
from rag_core.training.report import REPORT, TrainingReport
from rag_core.training.state import CHECKPOINT
from tests.support.knowledge_bases import hashed
from tests.support.stored_files import STORED, TRAINING, outputs, top_passages, train


def test_a_model_and_its_tokenizers_give_what_they_gave(backend):
    expected = np.load(STORED / backend / "outputs.npz")
    found = outputs(backend, STORED)
    assert sorted(found) == sorted(expected.files)
    for name, array in found.items():
        assert array.dtype == expected[name].dtype, name
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize("name", ["knowledge", "knowledge_ivfpq"])
def test_a_knowledge_base_finds_what_it_found(name):
    expected = np.load(STORED / "top_passages.npz")
    np.testing.assert_array_equal(top_passages(STORED / name), expected[name])


@pytest.mark.parametrize("name", ["knowledge", "knowledge_ivfpq"])
def test_a_knowledge_base_can_be_changed(name, tmp_path):
    shutil.copytree(STORED / name, tmp_path / "knowledge")
    base = KnowledgeBase.open(tmp_path / "knowledge")
    rows = len(base)
    (tmp_path / "more.jsonl").write_text('{"title": "new", "text": "a passage of today"}\n')
    assert base.add(tmp_path / "more.jsonl", hashed, progress=False) == 1
    index = KnowledgeBase.open(tmp_path / "knowledge").index()
    ids, _ = index.get_top_docs(hashed(["new"], ["a passage of today"]), 1)
    assert ids.tolist() == [[rows]]


def test_a_trace_is_compared_with_one_of_today(backend, tmp_path):
    (tmp_path / "stored.npz").write_bytes(lzma.decompress((STORED / "trace.npz.xz").read_bytes()))
    stored = TraceFile(tmp_path / "stored.npz")
    request = Request(str(STORED / "torch" / "model"), dtype="float32", n_docs=1)
    record(request, backend, tmp_path / "today.npz")
    today = TraceFile(tmp_path / "today.npz")
    today.header["version"] = stored.header["version"]  # traces of two versions are not compared
    for case in stored.cases:
        assert set(today.stages(case)) == set(stored.stages(case))
    compared = compare_files(stored, today, load_tolerances("float32"))
    assert compared.agrees, compared.first


def with_new_settings(stored, run):
    """A stored run as one of today: what it lacks has its default."""
    defaults = asdict(TrainingConfig()) | {"processes": 1}
    return stored | {name: defaults[name] for name in run if name not in stored}


def test_a_killed_run_ends_where_the_whole_run_ended(backend, tmp_path):
    shutil.copytree(STORED / backend / "killed", tmp_path / "out")
    report = train(backend, STORED, tmp_path / "out")
    assert not (tmp_path / "out" / CHECKPOINT).exists()
    expected = TrainingReport.from_dict(
        json.loads((STORED / backend / "trained" / REPORT).read_text())
    )
    assert report.run == with_new_settings(expected.run, report.run)
    assert report.steps == expected.steps
    for line, stored_line in zip(report.history, expected.history, strict=True):
        known = {name: line[name] for name in stored_line}
        assert known == pytest.approx(stored_line, rel=1e-4)
    found, stored = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "out", STORED / backend / "trained")
    )
    assert sorted(found) == sorted(stored)
    # The gradient of a key's bias is 0 but for rounding, which is another on another machine.
    for name in stored:
        if not name.endswith(("k_proj.bias", "key.bias")):
            np.testing.assert_allclose(found[name], stored[name], rtol=0, atol=1e-4, err_msg=name)


def test_a_finished_run_is_found_finished(backend, tmp_path):
    shutil.copytree(STORED / backend / "trained", tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert train(backend, STORED, tmp_path / "out").run["steps"] == 6
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}


@dataclass(frozen=True)
class NewerConfig(TrainingConfig):
    """The settings of a later version, which has one more."""

    added_loss: float = 0.0


@pytest.mark.parametrize("name", ["killed", "trained"])
def test_a_run_from_before_a_setting_had_its_default(name, backend, tmp_path, monkeypatch):
    shutil.copytree(STORED / backend / name, tmp_path / "out")
    monkeypatch.setattr(state, "TrainingConfig", NewerConfig)
    monkeypatch.setitem(config._RULES, "added_loss", checks.number(0))
    refused = {
        "killed": (ValueError, r"another run \(added_loss: 0\.0 there, 0\.5 now\)"),
        "trained": (FileExistsError, "holds a model already"),
    }
    error, words = refused[name]
    with pytest.raises(error, match=words):
        train(backend, STORED, tmp_path / "out", NewerConfig(**asdict(TRAINING), added_loss=0.5))
    report = train(backend, STORED, tmp_path / "out", NewerConfig(**asdict(TRAINING)))
    assert report.steps == 6
    assert not (tmp_path / "out" / CHECKPOINT).exists()
    expected = json.loads((STORED / backend / "trained" / REPORT).read_text())["run"]
    # a folder that was finished stays as it was
    if name == "killed":
        expected = with_new_settings(expected | {"added_loss": 0.0}, report.run)
    assert report.run == expected
