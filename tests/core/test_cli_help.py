"""What `dualrag` says of itself: help, examples, completion, how loud it is."""

import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rag_core.cli import app, common
from rag_core.cli.commands import main

ROOT = Path(__file__).parents[2]
GROUP = typer.main.get_command(app)
NAMES = sorted(GROUP.commands)


def examples(command) -> list[str]:
    lines = (command.epilog or "").splitlines()
    return [line.strip() for line in lines if line.startswith("  dualrag ")]


@pytest.mark.parametrize("command", [GROUP, *GROUP.commands.values()], ids=lambda each: each.name)
def test_every_help_has_examples_whose_options_exist(command) -> None:
    assert examples(command)
    for example in examples(command):
        words = shlex.split(example.split(" > ")[0])[1:]
        wanted = GROUP.commands[words[0]]
        assert wanted.make_context(words[0], words[1:]).command is wanted


def test_every_command_is_on_the_page_of_the_command_line() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    assert [name for name in NAMES if f"\ndualrag {name} " not in page] == []


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_help_is_as_wide_as_the_terminal_and_cuts_nothing(columns: int) -> None:
    overview = run("--help", COLUMNS=str(columns))
    detail = run("index", "--help", COLUMNS=str(columns))
    for command in GROUP.commands.values():
        assert command.short_help in " ".join(overview.split())
    lines = [line for line in overview.splitlines() if "  dualrag " not in line]
    assert max(len(line) for line in lines) <= min(columns, 110)
    if columns > 40:
        assert min(columns, 110) - 15 < max(map(len, detail.splitlines())) <= min(columns, 110)


def run(*words: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "rag_core.cli", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
    )
    return done.stdout


@pytest.mark.parametrize(("shell", "part"), [("bash", "complete -o"), ("zsh", "#compdef dualrag")])
def test_shells_complete_commands_options_and_choices(shell: str, part: str) -> None:
    assert part in run(_DUALRAG_COMPLETE=f"source_{shell}")
    asked = {
        "_DUALRAG_COMPLETE": "complete_bash",
        "COMP_WORDS": "dualrag ask --head ",
        "COMP_CWORD": "3",
    }
    assert run(**asked).split() == ["token", "sequence"]
    asked = {"_DUALRAG_COMPLETE": "complete_bash", "COMP_WORDS": "dualrag in", "COMP_CWORD": "1"}
    assert "index" in run(**asked).split()


@pytest.fixture
def loudness():
    yield
    common.set_loudness(False, False)


def test_quiet_leaves_errors_and_verbose_is_over_the_loggers(loudness, capsys, monkeypatch) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    logger = logging.getLogger("rag_tf.graph")
    for verbose, quiet, heard in (
        (False, False, "note\nrag_tf.graph: warning\n"),
        (True, False, "note\nrag_tf.graph: why\nrag_tf.graph: warning\n"),
        (False, True, ""),
    ):
        common.set_loudness(True, False)
        common.set_loudness(verbose, quiet)
        common.say("note")
        logger.debug("why")
        logger.warning("warning")
        assert capsys.readouterr().err == heard and common.is_quiet() is quiet
    common.say_error(ValueError("x must be y"))
    assert capsys.readouterr().err == "dualrag: error: x must be y\n"


@pytest.mark.parametrize("words", [["-q", "index"], ["index", "--quiet"]])
def test_how_loud_it_is_stands_before_the_command_or_after(loudness, words: list[str]) -> None:
    done = CliRunner().invoke(app, [*words, "absent.txt", "--out", "kb"])
    assert done.exit_code == 2 and "dualrag: error: absent.txt" in done.stderr
    assert common.is_quiet()
    both = CliRunner().invoke(app, [*words, "--verbose", "absent.txt", "--out", "kb"])
    assert both.exit_code == 2 and ("exclude each other" in both.stderr) == (words[0] == "index")


def test_a_command_to_paste_has_the_name_it_was_started_by(monkeypatch, tmp_path) -> None:
    script = tmp_path / "a b" / "dualrag"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert common.pasteable("ask", "--kb", "my kb") == f"'{script}' ask --kb 'my kb'"
    monkeypatch.setenv("PATH", str(script.parent))
    assert common.pasteable("ask") == "dualrag ask"
    monkeypatch.setattr(sys, "argv", [str(Path(common.__file__).with_name("__main__.py"))])
    assert common.pasteable("ask") == f"{shlex.quote(sys.executable)} -m rag_core.cli ask"
    monkeypatch.setattr(sys, "argv", ["-c"])
    assert common.pasteable("ask") == "dualrag ask"


def test_the_program_is_called_dualrag_however_it_is_started(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["elsewhere.py", "ask", "--nothing-such"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "Usage: dualrag ask" in capsys.readouterr().err
