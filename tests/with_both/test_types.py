"""What a user writes is known to mypy and pyright, for both backends: each thing has the type that
the programs of `tests/data/programs` say, and slips of the pen are found.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

# The checkers read both frameworks' own types, and are of the extra dev.
pytestmark = pytest.mark.backend("torch", "tf")
ROOT = Path(__file__).parents[2]
PROGRAMS = sorted((ROOT / "tests" / "data" / "programs").glob("*.py"))
# All lines but the first two are wrong.
SLIPS = """from rag_torch import GenerationConfig, RagTokenForGeneration
model = RagTokenForGeneration.from_pretrained("folder")
from rag_torch import RagTokenForGenerations
GenerationConfig(num_beam=3)
model.generate(num_beam=3)
model.answer("Who?", num_beam=3)
model.answers("Who?")
texts: list[str] = model.answer("Who?")
model.generate(return_dict_in_generate=True).shape
"""


@pytest.fixture(scope="module")
def slips(tmp_path_factory):
    file = tmp_path_factory.mktemp("slips") / "slips.py"
    file.write_text(SLIPS, "utf-8")
    return file


def mypy(files: list[Path]) -> dict[str, set[int]]:
    """The lines with errors of each file, by its name."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *map(str, files)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode in (0, 1), done.stderr
    lines = re.findall(r"([\w]+\.py):(\d+): error", done.stdout)
    return by_file((name, int(line)) for name, line in lines)


def pyright(files: list[Path]) -> dict[str, set[int]]:
    """The same of pyright, whose lines count from 0."""
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(
        [*command, *map(str, files)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == len(files)
    return by_file(
        (Path(fault["file"]).name, fault["range"]["start"]["line"] + 1)
        for fault in report["generalDiagnostics"]
        if fault["severity"] == "error"
    )


def by_file(places):
    found: dict[str, set[int]] = {}
    for name, line in places:
        found.setdefault(name, set()).add(line)
    return found


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_the_programs_have_the_types_they_say_and_slips_are_found(checker, slips):
    faults = checker([*PROGRAMS, slips])
    wrong = set(range(3, len(SLIPS.splitlines()) + 1))
    assert faults == {"slips.py": wrong}
