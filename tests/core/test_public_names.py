"""What a newcomer, an editor and a type checker see of the packages: names, sentences, one line a
thing.
"""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from datasets import Dataset

from rag_core import RagTokenizer, Tokenizer
from rag_core.arguments import checked_questions
from rag_core.backends import BACKENDS, OLDEST, check_framework
from rag_core.knowledge.manifest import Manifest
from rag_core.retrieval.index import FaissIndex
from rag_core.retrieval.wiki_dpr import WikiDprIndex
from rag_core.training.report import TrainingReport

ROOT = Path(__file__).parents[2]
PACKAGES = ("rag_core", "rag_torch", "rag_tf")
WINGS = [
    f"rag_core.{path.parent.name}" for path in sorted((ROOT / "rag_core").glob("*/__init__.py"))
]


def static_names(package: str) -> set[str]:
    """The names that a checker finds in a package's `__init__`: those of `if TYPE_CHECKING`."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text("utf-8"))
    found = set()
    for node in tree.body:
        if not isinstance(node, ast.If) or ast.unparse(node.test) != "TYPE_CHECKING":
            continue
        for each in node.body:
            if isinstance(each, ast.ImportFrom):
                found |= {alias.asname for alias in each.names if alias.asname == alias.name}
            elif isinstance(each, ast.Assign):
                found |= {ast.unparse(target) for target in each.targets}
    return found


@pytest.mark.parametrize("package", [*PACKAGES, *WINGS])
def test_every_name_that_loads_lazily_is_known_to_checkers_too(package):
    offered = set(importlib.import_module(package).__all__)
    assert static_names(package) == offered - {"__version__", "as_tensor"}


def test_every_package_says_that_it_is_typed():
    assert all((ROOT / package / "py.typed").is_file() for package in PACKAGES)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_without_its_framework_says_what_to_install(backend):
    """And importing it, with the names of rag_core, needs none."""
    package, framework, extra = BACKENDS[backend]
    code = (
        f"import sys; sys.modules[{framework!r}] = None\n"
        f"import {package}; {package}.RagConfig\n"
        f"from {package} import RagTokenForGeneration"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    sentence = f"The {backend} backend needs {framework}. Run  pip install 'dualrag[{extra}]'."
    assert done.stderr.splitlines()[-1] == f"ImportError: {sentence}"
    assert "ModuleNotFoundError" not in done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_framework_that_is_too_old_is_named(backend, monkeypatch):
    framework = BACKENDS[backend][1]
    old = type(sys)(framework)
    old.__version__ = "1.15.3+cpu"
    monkeypatch.setitem(sys.modules, framework, old)
    with pytest.raises(ImportError, match=rf"needs {framework} 2\.\d+ or newer, got 1\.15\.3"):
        check_framework(backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_oldest_framework_is_that_of_the_extra(backend):
    _, framework, extra = BACKENDS[backend]
    (version,) = re.findall(
        rf'^{extra} = \["{framework}>=([\d.]+)"\]', (ROOT / "pyproject.toml").read_text(), re.M
    )
    assert version == ".".join(map(str, OLDEST[backend]))


def test_a_repr_is_one_line_that_tells_what_a_thing_is():
    manifest = Manifest({"name": "encoders/mini"}, 384, 10033, 100, {"kind": "flat"}, [{}, {}])
    assert repr(manifest) == (
        "Manifest(10,033 passages, D=384, flat index, encoder 'encoders/mini', 2 sources)"
    )
    wiki = WikiDprIndex(index_name="exact")
    assert repr(wiki) == "WikiDprIndex('facebook/wiki_dpr', 'exact', 'nq', not loaded)"
    lazy = FaissIndex.from_files("passages", "index.faiss")
    assert repr(lazy) == (
        "LazyIndex(passages_path='passages' with index_path='index.faiss', not loaded)"
    )
    columns = {"title": ["a"], "text": ["b"], "embeddings": np.ones((1, 3), np.float32)}
    passages = Dataset.from_dict(columns)
    passages.add_faiss_index("embeddings", metric_type=0)
    assert repr(FaissIndex(passages)) == "FaissIndex(1 passages, D=3, IndexFlat)"
    history = [{"loss": 11.7}, {"loss": 1.29}]
    report = TrainingReport(150, history, exact_match=0.775, seconds=148.2, first_loss=11.72)
    assert repr(report) == "TrainingReport(150 steps, loss 11.72 to 1.29, exact match 0.775, 148 s)"


QUESTIONS = ["Who wrote War and Peace?", "What is Saturn?"]
COLUMNS = {
    "tuple": lambda: tuple(QUESTIONS),
    "array": lambda: np.array(QUESTIONS),
    "objects": lambda: np.array(QUESTIONS, object),
    "series": lambda: pandas.Series(QUESTIONS),
    "column": lambda: Dataset.from_dict({"question": QUESTIONS})["question"],
    "generator": lambda: (question for question in QUESTIONS),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_questions_come_as_a_column_of_any_kind(kind):
    assert checked_questions(COLUMNS[kind]()) == QUESTIONS
    tokenizer = Tokenizer.from_pretrained(ROOT / "tests" / "data" / "tokenizers" / "bert")
    expected = tokenizer(QUESTIONS)["input_ids"]
    both = RagTokenizer(tokenizer, tokenizer)
    if kind != "tuple":  # which is a pair of texts
        assert tokenizer(COLUMNS[kind]())["input_ids"] == expected
    assert both.encode_questions(COLUMNS[kind]())["input_ids"] == expected
    encoded = both(QUESTIONS, text_target=COLUMNS[kind]())
    assert encoded["labels"] == expected


@pytest.mark.parametrize(
    "questions",
    [
        {"question": "Who?"},
        b"Who?",
        3,
        None,
        pandas.DataFrame({"question": QUESTIONS}),
        np.array([QUESTIONS]),
        np.array("Who?"),
    ],
    ids=lambda questions: type(questions).__name__,
)
def test_what_is_no_column_of_questions_is_refused(questions):
    with pytest.raises(TypeError, match="questions must be a string or a list of strings; got "):
        checked_questions(questions)


def test_lists_of_lists_are_no_questions():
    with pytest.raises(TypeError, match="questions must be strings; number 0 is a list"):
        checked_questions([QUESTIONS])
