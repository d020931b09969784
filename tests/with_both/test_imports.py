"""Which package loads which framework, and what a user reads when none is installed.

Each claim in a fresh process.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = [
    "torch",
    "tensorflow",
    "keras",
    "transformers",
    "faiss",
    "datasets",
    "huggingface_hub",
    "tokenizers",
    "pandas",
]


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*[m for m in {HEAVY} if m in sys.modules])"
    return set(run(code).split())


def test_importing_rag_core_loads_nothing_heavy():
    assert loaded_by("import rag_core, rag_core.cli.commands") == set()
    assert (
        loaded_by(
            "from rag_core import RagConfig; RagConfig(question_encoder={'model_type': 'dpr'}, "
            "generator={'model_type': 'bart'})"
        )
        == set()
    )


def test_every_name_rag_core_offers_loads_without_a_framework():
    loaded = loaded_by("import rag_core\nfor name in rag_core.__all__: getattr(rag_core, name)")
    assert loaded.isdisjoint({"torch", "tensorflow", "keras", "transformers"})


@pytest.mark.backend("torch")
def test_every_name_rag_torch_offers_loads_and_tensorflow_stays_out():
    # `rag_torch.train` is a function; the file of that name is for launchers
    function = "assert rag_torch.train is rag_torch.training.train"
    loaded = loaded_by(
        "import rag_torch, rag_torch.train, rag_torch.training\n"
        f"for name in rag_torch.__all__: getattr(rag_torch, name)\n{function}"
    )
    assert "torch" in loaded
    assert loaded.isdisjoint({"tensorflow", "keras", "transformers"})


@pytest.mark.backend("tf")
def test_every_name_and_file_of_rag_tf_loads_and_torch_stays_out():
    """The names of transformers' TensorFlow classes are the same objects."""
    files = sorted((ROOT / "rag_tf").rglob("[a-z]*.py"))
    rooms = ", ".join(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
    same = (
        "[name for name in rag_tf.__all__ if name[:2] == 'TF' and found[name] is not "
        "found[name[2:]]]"
    )
    found = "found = {name: getattr(rag_tf, name) for name in rag_tf.__all__}"
    loaded = loaded_by(f"import {rooms}\n{found}\nassert 'TFRagModel' in found and not {same}")
    assert "tensorflow" in loaded
    assert loaded.isdisjoint({"torch", "transformers"})


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("rag_core", {"torch", "tensorflow", "keras", "transformers", "pickle"}),
        ("rag_torch", {"tensorflow", "keras", "rag_tf"}),
        ("rag_tf", {"torch", "transformers", "rag_torch"}),
    ],
)
def test_no_source_file_imports_what_its_package_must_not(package, forbidden):
    """Also catches imports inside functions, which the processes above do not reach."""
    found = []
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            found += [
                f"{path.name}:{node.lineno} {name}"
                for name in names
                if name.split(".")[0] in forbidden
            ]
    # The restricted reader interprets the pickle format; it uses opcode tables and never unpickles.
    assert [line for line in found if "pickletools" not in line] == []


WITHOUT_FRAMEWORKS = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "tensorflow"):
            raise ModuleNotFoundError(name=name)
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ("torch", "tensorflow") else real(name, package)
sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "Who?"],
        ["demo"],
        ["index", "x.txt", "--out", "kb", "--encoder", "e"],
        ["train", "qa.jsonl", "--model", "m", "--kb", "kb", "--out", "tuned"],
    ],
)
def test_with_no_backend_every_command_gives_the_pip_line(arguments):
    code = (
        WITHOUT_FRAMEWORKS
        + "from rag_core.cli.commands import main\nsys.argv = ['dualrag', *sys.argv[1:]]\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode != 0
    assert "pip install 'dualrag[torch]'" in done.stderr
    assert "Traceback" not in done.stderr
