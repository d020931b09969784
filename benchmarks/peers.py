"""The peers' environments: made from benchmarks/requirements/NAME.txt, or pointed to."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from benchmarks.workload import CACHE

REQUIREMENTS = Path(__file__).resolve().parent / "requirements"
NAMES = ("transformers4", "transformers5", "ctranslate2")


def python_of(name: str, given: dict[str, Path]) -> tuple[Path | None, str]:
    """A peer's interpreter, made at the first call.

    Args:
        name: of the requirements file.
        given: environments that exist already, by name; they are taken as they are.

    Returns:
        The interpreter and "", or None and the reason why there is none.
    """
    if name in given:
        python = given[name] / "bin" / "python"
        return (python, "") if python.is_file() else (None, f"{python} does not exist")
    folder, wanted = CACHE / f"env-{name}", REQUIREMENTS / f"{name}.txt"
    python, mark = folder / "bin" / "python", folder / "installed.txt"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
    if mark.is_file() and mark.read_text() == digest:
        return python, ""
    print(
        f"Installing {name} into {folder}; minutes, and some hundred megabytes.",
        file=sys.stderr,
        flush=True,
    )
    pip = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-compile",
    ]
    for command in ([sys.executable, "-m", "venv", str(folder)], [*pip, "-r", str(wanted)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return None, f"could not be installed: {_last_error(done.stderr)}"
    mark.write_text(digest)
    return python, ""


def _last_error(text: str) -> str:
    lines = (
        [line for line in text.splitlines() if line.startswith("ERROR")]
        or text.splitlines()
        or ["no message"]
    )
    return lines[-1][:300]
