"""The examples run as they are, on a small cache in the place of the demo's."""

import json
import runpy
import shutil
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# What is said for the sake of time, and the framework that a script is written in.
ARGUMENTS = {"keras_fit.py": ["--epochs", "1"], "torch_loop.py": ["--steps", "5"]}
WRITTEN_IN = {"keras_fit.py": "tf", "torch_loop.py": "torch"}
SERVICE = "fastapi_service.py"
SCRIPTS = [
    pytest.param(
        path.name,
        marks=[pytest.mark.backend(WRITTEN_IN[path.name])] if path.name in WRITTEN_IN else [],
    )
    for path in sorted(EXAMPLES.glob("*.py"))
    if path.name != SERVICE
]


@pytest.fixture(autouse=True)
def reader(demo_cache, tmp_path, monkeypatch, offline):
    """The working directory of someone who built the demo, and has no hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALRAG_HOME", str(demo_cache))
    return tmp_path


def run(script, *arguments):
    runpy.run_path(str(EXAMPLES / script))["main"](list(arguments))


def test_the_demo_is_asked_in_either_framework(backend, capsys):
    run("ask_the_demo.py", "Who wrote War and Peace?", "--backend", backend)
    # What a model of drawn weights answers may hold any letter, ends of lines, too.
    said, rows = capsys.readouterr().out.split("before  after   passage\n")
    assert said.startswith("Who wrote War and Peace?\n-> ")
    lines = rows.rstrip("\n").split("\n")
    assert len(lines) == 5 and all(line.count("%") == 2 for line in lines)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_runs(script, reader, capsys):
    run(script, *ARGUMENTS.get(script, []))
    said = capsys.readouterr().out
    assert said
    if script in WRITTEN_IN:
        folder = said.splitlines()[-1].removeprefix("saved in ")
        assert (reader / folder / "model.safetensors").exists()
        assert "handbook/" in said  # where an answer comes from
    if script == "plot_the_posteriors.py":
        assert (reader / "posteriors.png").read_bytes().startswith(b"\x89PNG")
    if script == "index_a_folder.py":
        assert (reader / "handbook-kb" / "manifest.json").exists()


def test_the_service_answers_with_sources_and_refuses_what_is_no_question():
    from fastapi.testclient import TestClient

    app = runpy.run_path(str(EXAMPLES / SERVICE))["create_app"]()
    with TestClient(app) as client:
        said = client.post("/help", json={"question": "Which planet has rings?"}).json()
        [answer] = app.state.model.answer("Which planet has rings?", num_beams=4)
        assert said["text"] == answer.text
        assert [source["words"] for source in said["sources"]] == [
            citation.text for citation in answer.citations()
        ]
        for question in ("", "\n"):
            assert client.post("/help", json={"question": question}).status_code == 422


@pytest.mark.backend("torch")
def test_the_notebook_runs_from_top_to_bottom(reader, capsys):
    shutil.copytree(EXAMPLES / "handbook", reader / "handbook")
    notebook = json.loads((EXAMPLES / "first_steps.ipynb").read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5 and not any(cell["outputs"] for cell in cells)
    names = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert "handbook/" in capsys.readouterr().out


def test_every_example_is_named_in_the_readme():
    text = (EXAMPLES / "README.md").read_text("utf-8")
    kinds = (".py", ".ipynb", ".jsonl", ".yml")
    there = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*")}
    there = {name for name in there if name.endswith(kinds) and "handbook/" not in name}
    assert there and [name for name in there if f"]({name})" not in text] == []
    assert all(len(path.read_text("utf-8").splitlines()) < 100 for path in EXAMPLES.rglob("*.py"))
