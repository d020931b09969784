"""`dualrag parity`: a checkpoint's trace recorded, compared, refused.

Traces that are not what they say.
"""

import json
import re
import runpy
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from conformance.parity_cases import config, weights
from rag_core.backends import available_backends
from rag_core.checkpoint.folder import write_checkpoint
from rag_core.cli.commands import app
from rag_core.parity.compare import compare_files
from rag_core.parity.trace import SAMPLE, places, sampled
from rag_core.parity.trace_files import TraceFile, TraceWriter

HERE = available_backends()


def dualrag(*arguments):
    done = CliRunner().invoke(app, ["parity", *map(str, arguments)])
    return done.exit_code, done.output


def save(folder, seed):
    write_checkpoint(
        folder,
        weights("bart_scaled", seed),
        config("bart_scaled"),
        architecture="RagSequenceForGeneration",
    )
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"), 1)


@pytest.fixture(scope="module")
def recorded(model, tmp_path_factory):
    """A checkpoint's trace from the first backend, and what the command said of all that are
    here.
    """
    folder = tmp_path_factory.mktemp("traces")
    status, said = dualrag(
        "--model", model, "--record", folder / "trace.npz", "--out", folder / "report"
    )
    assert status == 0, said
    return folder


def test_a_checkpoint_is_the_same_function_on_every_backend_here(recorded):
    trace = TraceFile(recorded / "trace.npz")
    assert trace.header["run"]["backend"] == HERE[0] and trace.header["dtype"] == "float64"
    stages = trace.stages("drawn questions")
    assert {"question_vector", "doc_ids", "logits", "tokens.greedy", "tokens.fast"} <= set(stages)
    assert any(stage.startswith("gradient_relu.rag.question_encoder") for stage in stages)
    if len(HERE) > 1:
        report = json.loads((recorded / "report.json").read_text())
        assert report["agrees"] and report["generations"] == 8 and len(report["weights"]) == 64
        assert report["stages"]["logits"]["relative"] < 1e-10
        assert "**They agree" in (recorded / "report.md").read_text()


def rewritten(source, target, **changes):
    """The trace with other header fields and, for a stage's name, another array."""
    old = TraceFile(source)
    names = ("dtype", "seed", "about")
    known = {name: changes.get(name, old.header[name]) for name in names}
    with TraceWriter(target, backend="torch", framework="none", **known) as writer:
        writer.header |= {name: changes[name] for name in ("format", "version") if name in changes}
        for case in old.cases:
            info = {**old.header["cases"][case], **changes.get("info", {})}
            writer.add(case, info, {**old.stages(case), **changes.get("stages", {})})
    return target


def test_a_difference_is_named_with_its_place_and_fails(recorded, model, tmp_path):
    stages = TraceFile(recorded / "trace.npz").stages("drawn contexts")
    changed = stages["encoder.2"].copy()
    changed[3, 5, 7] += 0.5
    other = rewritten(recorded / "trace.npz", tmp_path / "other.npz", stages={"encoder.2": changed})
    arguments = [
        "--model",
        model,
        "--against",
        other,
        "--backend",
        HERE[0],
        "--out",
        tmp_path / "report",
    ]
    status, said = dualrag(*arguments)
    assert status == 1, said
    alone = dualrag(
        "--trace", recorded / "trace.npz", "--against", other, "--out", tmp_path / "alone"
    )
    assert alone[0] == 1 and "encoder.2 at [3, 5, 7]" in alone[1]
    first = json.loads((tmp_path / "report.json").read_text())["first_differences"]
    assert [each["stage"] for each in first] == ["encoder.2", "encoder.2"]
    assert first[1]["place"] == [3, 5, 7] and abs(first[1]["absolute"] - 0.5) < 1e-9
    assert "encoder.2 at [3, 5, 7]: relative difference" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "dualrag-trace/0"}, "other format: dualrag-trace/0"),
        ({"version": "0.0.1"}, "other version of dualrag: 0.0.1"),
        ({"dtype": "float32"}, "other dtype: float32"),
        ({"seed": 7}, "other seed: 7"),
        ({"about": {"head": "token"}}, "other head: token"),
        ({"info": {"weights": "0" * 64}}, "other weights in case drawn contexts: 0000"),
        ({"info": {"inputs": "1" * 64}}, "other inputs in case drawn questions: 1111"),
    ],
)
def test_a_trace_of_something_else_is_refused_and_it_is_said_what_differs(
    changes, words, recorded, tmp_path
):
    other = rewritten(recorded / "trace.npz", tmp_path / "other.npz", **changes)
    with pytest.raises(ValueError, match="not traces of the same thing") as error:
        compare_files(TraceFile(other), TraceFile(recorded / "trace.npz"))
    assert words in str(error.value)


def test_another_checkpoint_ends_with_status_2(recorded, tmp_path):
    other = save(tmp_path / "other", 2)
    status, said = dualrag(
        "--model", other, "--against", recorded / "trace.npz", "--backend", HERE[0]
    )
    assert status == 2 and "other weights in case" in said


def test_a_trace_is_not_compared_with_itself(recorded, model, tmp_path):
    shutil.copy(recorded / "trace.npz", tmp_path / "trace.npz")
    same = tmp_path / "." / "trace.npz"
    status, said = dualrag("--model", model, "--against", tmp_path / "trace.npz", "--record", same)
    assert status == 2 and "--record must name another file than --against" in said
    assert (tmp_path / "trace.npz").read_bytes() == (recorded / "trace.npz").read_bytes()


@pytest.mark.parametrize(
    "arguments", [["--dtype", "float16"], ["--head", "model"], ["--n-docs", "0"]]
)
def test_bad_options_are_one_line(arguments, model):
    status, said = dualrag("--model", model, *arguments)
    assert (
        status == 2
        and said.startswith(f"dualrag: error: {arguments[0]} must be")
        and said.count("\n") == 1
    )


def test_a_file_that_is_no_trace_or_declares_more_than_it_holds_is_refused(recorded, tmp_path):
    source, bad = recorded / "trace.npz", tmp_path / "bad.npz"
    bad.write_bytes(source.read_bytes()[:-5000])
    with pytest.raises(OSError, match="is not a trace"):
        TraceFile(bad)
    np.savez(bad, weights=np.zeros(3))
    with pytest.raises(OSError, match=r"is not a trace.*header"):
        TraceFile(bad)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(OSError, match="compressed"):
        TraceFile(bad)
    huge = np.lib.format.magic(1, 0)
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 99999999999), }\n"
    huge += len(header).to_bytes(2, "little") + header
    shutil.copy(source, bad)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(bad, "w") as new:
        for name in old.namelist():
            new.writestr(name, huge if name == "0.npy" else old.read(name))
    opened = TraceFile(bad)
    with pytest.raises(OSError, match=r"0.npy declares float64 \(99999999999"):
        opened.stages(opened.cases[0])


def test_large_stages_are_sampled_at_the_same_places_and_located_in_the_whole(tmp_path):
    array = np.arange(3 * SAMPLE, dtype=np.float64).reshape(3, SAMPLE)
    chosen = places("logits", array.shape)
    assert len(chosen) == SAMPLE == len(sampled("logits", array)) and (np.diff(chosen) >= 0).all()
    place = np.unravel_index(int(chosen[100]), array.shape)
    other = array.copy()
    other[place] += 9.0
    for name, what in (("a", array), ("b", other)):
        with TraceWriter(
            tmp_path / name, backend="x", framework="x", dtype="float64", seed=0, about={}
        ) as writer:
            writer.add("case", {"weights": "w"}, {"logits": what})
    found = compare_files(TraceFile(tmp_path / "a"), TraceFile(tmp_path / "b"))
    assert found.first[0].place == tuple(map(int, place)) and found.first[0].absolute == 9.0


@pytest.mark.backend("torch", "tf")
def test_the_example_for_a_pipeline_runs(demo_cache, monkeypatch, offline):
    """Its test, in this process, and its commands, which the parser knows."""
    monkeypatch.setenv("DUALRAG_HOME", str(demo_cache))
    folder = Path(__file__).parents[2] / "examples" / "parity"
    test = runpy.run_path(str(folder / "test_parity.py"))[
        "test_both_frameworks_give_the_same_answers"
    ]
    for head in ("RagTokenForGeneration", "RagSequenceForGeneration"):
        test(head)
    commands = re.findall(
        r"- run: dualrag (.*?)(?: #.*)?$", (folder / "parity.yml").read_text(), re.MULTILINE
    )
    known = typer.main.get_command(app).commands
    for words in map(shlex.split, commands):
        assert known[words[0]].make_context(words[0], words[1:])
    assert [words.split()[0] for words in commands] == ["demo", "parity"]
