"""The examples run as they are, on a small cache in the place of the demo's."""

import json
import runpy
import shutil
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))


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
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "Who wrote War and Peace?" and said[1].startswith("-> ")
    assert len(said[4:]) == 5 and all(line.count("%") == 2 for line in said[4:])


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_runs_without_arguments(script, reader, capsys):
    run(script)
    assert capsys.readouterr().out
    if script == "plot_the_posteriors.py":
        assert (reader / "posteriors.png").read_bytes().startswith(b"\x89PNG")
    if script == "index_a_folder.py":
        assert (reader / "handbook-kb" / "manifest.json").exists()


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
    there = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb", ".jsonl")}
    assert there and [name for name in there if f"]({name})" not in text] == []
