"""Every shell line of the documentation: run where it can be, on a small cache in the place of the demo's.

What is not run stands in `NOT_RUN` with the reason, and is read: options, targets, modules and files are there.
"""

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rag_core.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *(ROOT / folder / "README.md" for folder in ("examples", "conformance", "rag_core/demo/model")),
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"^ *```bash\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
COMMANDS = typer.main.get_command(app).commands
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))

# How a line begins -> why no test runs it.
NOT_RUN = {
    "dualrag index handbook --out kb --encoder intfloat/": "fetches an encoder of 1.1 GB",
    "make ": "installs an environment, or takes minutes: the tests run inside of one",
    "pip ": "asks a package index",
    "python3 -m venv ": "makes an environment: .ci/run does",
    "source ": "enters an environment: .ci/run does",
    "unzip ": "of a wheel of 109 MB that a package index has",
    "dualrag eval topics/": "the questions of that wheel",
    "dualrag index wikipedia.tsv ": "a compressed index learns from 256 passages or more",
    "dualrag parity ": "a dozen seconds each: tests/with_both/test_parity_command.py",
    "dualrag train questions.jsonl --kb kb --out tuned --context-encoder ": "tests/core/test_reindexing.py",
    "dualrag calibrate ": "learns from 20 answers or more, right and wrong: tests/core/test_evaluation_confidence.py",
    "torchrun ": "starts processes: tests/with_torch/test_processes_torch.py",
    "accelerate ": "starts processes: tests/with_torch/test_processes_torch.py",
    "curl ": "a server answers it in tests/core/test_serving.py",
    "dualrag index wiki.tsv --out kb --workers ": "needs Ray: tests/core/test_clusters.py",
    "dualrag index wiki.tsv --out kb --ray ": "needs a cluster: tests/core/test_clusters.py",
    "ray start ": "starts a cluster: tests/core/test_clusters.py",
    "dualrag shards kb-shards ": "needs a cluster: tests/core/test_clusters.py",
    "dualrag shards --name ": "needs a cluster: tests/core/test_clusters.py",
    'dualrag ask "Who is the fire warden?" --model tuned --index ': "needs a cluster: tests/core/test_clusters.py",
    "docker ": "there is none: tests/core/test_container.py",
    "dualrag serve": "serves until it is stopped: tests of its own",
    "dualrag mcp": "serves until its stdin ends: tests/core/test_integrations_mcp.py",
    "dualrag --install-completion": "writes into the shell's own files",
    "dualrag --show-completion": "asks which shell it is started by: tests/core/test_cli_help.py",
    "python -m conformance": "minutes: tests/with_both runs its cases, and recording needs transformers 4.37.2",
    "python -m benchmarks.": "minutes, on a machine without other work",
    "python -m experiments.": "half an hour: tests/core/test_results.py runs it at small sizes",
    "python examples/": "tests/core/test_examples.py",
}


def lines_of(page: Path) -> list[str]:
    """The commands in a page's shell blocks, without comments."""
    found = []
    for block in BLOCK.findall(page.read_text("utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"(^| +)#( .*)?$", "", line.strip())
            found += re.split(r" && ", line.removeprefix(".venv/bin/"))
    return [line for line in found if line]


LINES = sorted({line for page in PAGES for line in lines_of(page)})
RUN = [line for line in LINES if not line.startswith(tuple(NOT_RUN))]
# what makes what others read comes first
ORDER = ["demo", "index", "train", "eval", "info", "search", "ask", "add", "update", "remove"]


def words_of(line: str) -> tuple[list[str], str]:
    """The words of a command up to a pipe, and the file that its output goes to."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|>")
    lexer.whitespace_split = True
    words = list(lexer)
    if "|" in words:
        words = words[: words.index("|")]
    if ">" in words:
        return words[: words.index(">")], words[words.index(">") + 1]
    return words, ""


@pytest.fixture(scope="module")
def material(demo_cache, tmp_path_factory):
    """A folder with all that the lines read: texts, questions, a knowledge base, a tuned model."""
    folder = tmp_path_factory.mktemp("material")
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copytree(ROOT / "examples" / "handbook", folder / "handbook")
    for name in ("handbook/old/fire.md", "reports/fire.md", "notes.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"# Fire\n\nThe fire warden of {name} is Ada.\n")
    (folder / "wiki.tsv").write_text("title\ttext\nSaturn\tSaturn has rings of ice and rock.\n")
    pairs = [("Who is the fire warden?", "Ada"), ("Who is Ingrid?", "Solberg")]
    # each with its passage: the weights are drawn, and may find none
    lines = [
        json.dumps({"question": question, "answer": answer, "positive": {"id": row}})
        for row, (question, answer) in enumerate(pairs)
    ]
    for name in ("questions.jsonl", "held-out.jsonl", "dev.jsonl", "qa.jsonl"):
        (folder / name).write_text("\n".join(lines))
    (folder / "questions.txt").write_text("\n".join(question for question, _ in pairs))
    for name in ("old-folder", "old-model", "MODEL"):
        shutil.copytree(demo_cache / "demo-model", folder / name)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("DUALRAG_HOME", str(demo_cache))
        for line in (
            "dualrag index handbook --out kb",
            "dualrag train questions.jsonl --kb kb --out tuned",
            "dualrag eval questions.jsonl --model tuned --kb kb --out report",
        ):
            done(line)
    for copy, of in {
        "my-kb": "kb",
        "kb-words": "kb",
        "reader": "tuned",
        "my-model": "tuned",
        "other-report": "report",
    }.items():
        shutil.copytree(folder / of, folder / copy)
    return folder


def done(line: str) -> str:
    """Run a line in this process.

    Returns:
        Its output.
    """
    words, file = words_of(line)
    if words[1] == "train":
        words += ["--steps", "2"]
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, f"{line}\n{result.output}"
    if file:
        Path(file).write_text(result.stdout, "utf-8")
    return result.stdout


@pytest.mark.parametrize("line", RUN)
def test_a_line_runs(line, material, demo_cache, tmp_path, monkeypatch, offline):
    shutil.copytree(material, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALRAG_HOME", str(demo_cache))
    words, file = words_of(line)
    out = Path(words[words.index("--out") + 1]) if "--out" in words else None
    if out is not None:
        shutil.rmtree(out, ignore_errors=True)
    said = done(line)
    assert out is None or out.exists()
    if "--json" in words:
        assert [json.loads(answer)["passages"] for answer in said.splitlines()]
        assert not file or Path(file).read_text("utf-8") == said


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("dualrag ")])
def test_commands_know_the_options_of_a_line(line):
    words, _ = words_of(line)
    if words[1] in COMMANDS:
        command = COMMANDS[words[1]]
        assert command.make_context(words[1], words[2:]).command is command
    else:
        assert words[1] in {f"--{name}-completion" for name in ("install", "show")}


@pytest.mark.parametrize("line", [line for line in LINES if not line.startswith("dualrag ")])
def test_what_a_line_names_is_there(line, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    words, _ = words_of(line)
    if words[0] == "make":
        assert words[1] in TARGETS
    if words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) is not None
        package = ROOT / words[2].split(".")[0]
        source = "".join(path.read_text("utf-8") for path in package.rglob("*.py"))
        assert [word for word in words if word.startswith("--") and f'"{word}"' not in source] == []
    for file in re.findall(r"\b[\w/-]+\.(?:py|txt)\b", line):
        assert "conformance.txt" in file or (ROOT / file).is_file() or "topics" in line, file


def test_no_reason_is_left_over():
    assert [
        begins for begins in NOT_RUN if not any(line.startswith(begins) for line in LINES)
    ] == []
