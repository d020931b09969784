"""The documentation is true.

Its Python runs, its links lead somewhere, the tests and files it names exist.
"""

import ast
import json
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from rag_core.backends import available_backends, load_backend

PACKAGES = (
    "rag_core",
    "rag_torch",
    "rag_tf",
    "conformance",
    "benchmarks",
    "experiments",
    "website",
)
ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FENCED = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)


@pytest.fixture
def reader(demo_cache, world, tmp_path, monkeypatch, offline):
    """The working directory of someone who built the demo, and has folders for repositories of the hub."""
    (tmp_path / "facebook").symlink_to(world / "facebook")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALRAG_HOME", str(demo_cache))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # which a page sets: put back afterwards
    return tmp_path


# Embeds a knowledge base in a process of its own, half a minute: tests/with_tf/test_tf_keras_losses.py.
ELSEWHERE = "rag_tf.ReindexCallback("


def run_blocks(page, names, without=(), only=""):
    """A page's Python, pasted block by block into one interpreter.

    Args:
        names: the interpreter's, changed in place.
        without: headings whose sections are left out.
        only: a heading whose section alone is run.
    """
    text = (ROOT / page).read_text("utf-8")
    for block in BLOCK.finditer(text):
        heading = re.findall(r"^## (.+)$", text[: block.start()], re.MULTILINE)[-1:]
        if {*heading} & {*without} or (only and heading != [only]) or ELSEWHERE in block[1]:
            continue
        line = text.count("\n", 0, block.start(1))
        try:
            exec(compile("\n" * line + block[1], page, "exec"), names)
        except RuntimeError as error:  # what the page says of such processors
            if "have no exact int8 products" not in str(error):
                raise


# Run where their libraries are installed: tests/with_torch/test_ecosystem_torch.py, tests/core/test_integrations.py.
WITH_OTHER_LIBRARIES = ("integrations.md", "moving-from-transformers.md")
# Run by a test of its own, as TensorFlow loads the model once more.
ON_STRATEGIES = "Several devices and processes"


def pages_with_python():
    for page in PAGES:
        if BLOCK.search(page.read_text("utf-8")) and page.name not in WITH_OTHER_LIBRARIES:
            framework = "torch"
            if page.name == "tensorflow.md":
                framework = "tf"
            name = page.relative_to(ROOT).as_posix()
            yield pytest.param(name, marks=pytest.mark.backend(framework))


@pytest.mark.parametrize("page", list(pages_with_python()))
def test_python_blocks_run_in_order(page, reader, capsys):
    names: dict = {}
    if page == "docs/tensorflow.md":
        run_blocks(page, names, only="Keras")
        names["held_out"] = names["data"]
        run_blocks("docs/training.md", names, only="Keras")
    elsewhere = ["Keras", ON_STRATEGIES, "KerasHub"]  # tests/with_tf/test_keras_hub.py
    if page == "docs/serving.md":
        elsewhere = ["OpenAI's API"]  # tests/core/test_serving_chat.py has a server for it
    run_blocks(page, names, without=elsewhere)
    if page == "docs/quickstart.md":
        printed = capsys.readouterr().out
        assert "Which planet has rings? ->" in printed
        assert (reader / "tuned" / "model.safetensors").exists() and (
            reader / "kb" / "manifest.json"
        ).exists()
        assert names["again"].config.n_docs == names["new"].config.n_docs == 5


@pytest.mark.beyond
@pytest.mark.backend("tf")
def test_python_blocks_on_strategies_run(reader):
    run_blocks("docs/tensorflow.md", {}, only=ON_STRATEGIES)
    assert (reader / "shared-tf" / "model.safetensors").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_python_is_hidden_from_the_tests_by_its_tag(page):
    tags = set(
        re.findall(r"^```(\w*)\n.*?^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    )
    assert tags <= {"python", "bash", "text", "json", "diff"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_code_is_hidden_from_the_tests_by_its_indentation(page):
    blocks = MarkdownIt("commonmark").enable("table").parse(page.read_text("utf-8"))
    assert [block.content for block in blocks if block.type == "code_block"] == []


def anchors(page: Path) -> set[str]:
    """The anchors GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCED.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text("utf-8")))
    dead = []
    for link in found:
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = page if not path else (page.parent / path).resolve()
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert dead_links(page) == []


def test_dead_links_are_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A Title!\n[a](#a-title) [b](#b) [c](page.md#a-title) [d](none.md) [e](https://x.org)\n",
        "utf-8",
    )
    assert dead_links(page) == ["#b", "none.md"]


def test_every_entry_has_a_row_and_every_test_named_exists():
    text = (ROOT / "docs" / "compatibility.md").read_text("utf-8")
    rows = re.findall(r"^\| ([QDTP]\d+) \|.*\|$", text, re.MULTILINE)
    counts = {"Q": 24, "D": 34, "T": 11, "P": 9}
    assert rows == [f"{letter}{i}" for letter, count in counts.items() for i in range(1, count + 1)]
    for row in re.findall(r"^\| [QDTP]\d+ \|.*$", text, re.MULTILINE):
        assert re.search(r"`test_\w+\.py::test_\w+`", row), row
    for file, name in set(re.findall(r"`(test_\w+\.py)::(\w+)`", text)):
        (source,) = (ROOT / "tests").rglob(file)
        assert f"\ndef {name}(" in source.read_text("utf-8"), f"{file}::{name}"


def test_every_file_of_tests_named_exists():
    pages = [*PAGES, ROOT / "SECURITY.md", ROOT / "conformance" / "README.md"]
    files = {
        file
        for page in pages
        for file in re.findall(r"\btests/[\w/]+\.py", page.read_text("utf-8"))
    }
    assert files and [file for file in sorted(files) if not (ROOT / file).is_file()] == []


def test_the_map_of_the_house_is_whole():
    text = (ROOT / "docs" / "design.md").read_text("utf-8")
    wings = {path.parent.name for path in (ROOT / "rag_core").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)) == wings
    tools = {path.stem for path in (ROOT / "rag_core").glob("*.py")} - {"__init__"}
    assert tools == set(re.findall(r"`(\w+)`", re.search(r"^\| root \|.*$", text, re.MULTILINE)[0]))
    named = set(re.findall(r"\b(\w+\.py)\b", text))
    for package in ("rag_torch", "rag_tf"):
        files = {path.name for path in (ROOT / package).rglob("*.py")} - {"__init__.py"}
        assert files <= named, f"docs/design.md does not name {sorted(files - named)} of {package}"
    there = {path.name for name in (*PACKAGES, "tests") for path in (ROOT / name).rglob("*.py")}
    assert named <= there, f"docs/design.md names {sorted(named - there)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_first_line_of_a_file_says_what_it_holds(package):
    for path in (ROOT / package).rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path


def test_figures_are_those_of_the_files():
    recorded = json.loads((ROOT / "conformance" / "golden" / "generations.json").read_text("utf-8"))
    assert f"and {len(recorded)} generations token by token" in (
        ROOT / "docs" / "compatibility.md"
    ).read_text("utf-8")


def test_the_index_of_names_is_whole():
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    names = [
        name
        for rag in map(load_backend, available_backends())
        for name in rag.__all__
        if name != "__version__"
    ]
    assert names and [name for name in names if f"`{name}`" not in text] == []
