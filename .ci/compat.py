"""Both ends of what `pyproject.toml` allows: `make compat` tries each pair of a Python and a framework that can be had.

For each a virtual environment gets the wheel with that framework, or without one and with the oldest of the libraries;
then knowledge bases, tables and tokenizers are tested, and the networks. A pair whose Python is not here, or whose
releases the index does not offer for it, is told as "not tried", never as passed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
# A framework's oldest release needs the NumPy of its time, and its protobuf a sentencepiece; datasets' newer releases
# need another pyarrow.
OLD_TF = ("numpy<2", "pyarrow<22", "sentencepiece<0.2.1")
OLD_LIBRARIES = (
    *("datasets==3.0.*", "faiss-cpu==1.8.*", "h5py==3.10.*", "huggingface_hub==0.25.*"),
    *("numpy==1.26.*", "safetensors==0.4.3", "tokenizers==0.20.*", "typer==0.15.*"),
)
BOTH = ["tests/with_both/test_outputs.py"]
TESTS = {
    "core": [],
    "torch": [
        *BOTH,
        "tests/with_torch/test_torch_models.py",
        "tests/with_torch/test_checkpoint.py",
    ],
    "tf": [*BOTH, "tests/with_tf/test_tf_generators.py", "tests/with_tf/test_tf_packing.py"],
}
CORE = [
    "tests/core/test_frames.py",
    "tests/core/test_knowledge.py",
    "tests/core/test_tokenization.py",
]


class Pair(NamedTuple):
    """A Python and a framework to try together.

    Attributes:
        python: as "3.10".
        backend: "torch" or "tf"; "core" for none.
        pins: requirements beside the wheel's own.
    """

    python: str
    backend: str
    pins: tuple[str, ...]


PAIRS = (
    Pair("3.10", "core", OLD_LIBRARIES),
    Pair("3.13", "core", ()),
    Pair("3.10", "torch", ("torch==2.4.*", "numpy<2.2")),
    Pair("3.13", "torch", ("torch",)),
    Pair("3.10", "tf", ("tensorflow==2.16.*", *OLD_TF)),
    Pair("3.13", "tf", ("tensorflow",)),
)


def tried(pair: Pair, wheel: Path, place: Path) -> str:
    """What came of a pair: "passed", "not tried: ...", or "failed: ..."."""
    python = shutil.which(f"python{pair.python}")
    # a shim of pyenv may stand for a Python that is not chosen
    if python is None or subprocess.run([python, "-V"], capture_output=True).returncode:
        return f"not tried: no python{pair.python} here"
    subprocess.run([python, "-m", "venv", place], check=True)
    inside = str(place / "bin" / "python")
    install = [inside, "-m", "pip", "install", "--quiet", "--no-compile"]
    extras = {"core": "t5"}.get(pair.backend, f"{pair.backend},t5")
    wanted = [f"{wheel}[{extras}]", "pytest>=8", "pytest-xdist", "hypothesis", *pair.pins]
    done = subprocess.run([*install, *wanted], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        return f"not tried: could not be installed ({lines[-1]:.120})"
    tests = [*CORE, *TESTS[pair.backend]]
    settings = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [inside, "-m", "pytest", "-n", "0", "-x", *tests, "-o", "pythonpath="]
    # the tests find the wheel, not the checkout: only the folder `tests` lies beside them
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tests", "conformance", "pyproject.toml"):
            (Path(folder) / name).symlink_to(ROOT / name)
        settings["PYTHONPATH"] = folder
        done = subprocess.run(command, cwd=folder, env=settings)
    if done.returncode:
        return f"failed: pytest ended with {done.returncode}"
    return "passed"


def versions(place: Path, backend: str) -> str:
    package = {"torch": "torch", "tf": "tensorflow", "core": "datasets"}[backend]
    script = (
        f"from importlib.metadata import version; print(version('{package}'), version('numpy'))"
    )
    if not place.exists():
        return "-"
    done = subprocess.run([place / "bin" / "python", "-c", script], capture_output=True, text=True)
    return done.stdout.strip() or "-"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="pairs whose text holds this, as '3.13 torch'")
    only = parser.parse_args().only or ""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", scratch, ROOT]
        subprocess.run(build, check=True)
        [wheel] = Path(scratch).glob("*.whl")
        for number, pair in enumerate(PAIRS):
            if only not in f"{pair.python} {pair.backend}":
                continue
            place = Path(scratch) / str(number)
            outcome = tried(pair, wheel, place)
            rows.append((pair, versions(place, pair.backend), outcome))
            shutil.rmtree(place, ignore_errors=True)
    print("\n| Python | asked for | framework (or datasets), NumPy | outcome |\n|---|---|---|---|")
    for pair, found, outcome in rows:
        print(f"| {pair.python} | {pair.backend}: {' '.join(pair.pins)} | {found} | {outcome} |")
    return any(outcome.startswith("failed") for _, _, outcome in rows)


if __name__ == "__main__":
    sys.exit(main())
