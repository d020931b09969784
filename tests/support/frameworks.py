"""Which tests concern which framework, so that an installation with one of the two runs all that it
can.

A test file concerns a framework if it imports it at the top, or imports a module of tests or
conformance that does; a single test if it is marked `@pytest.mark.backend("torch")`.
"""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "torch": "torch",
    "rag_torch": "torch",
    "tensorflow": "tf",
    "keras": "tf",
    "rag_tf": "tf",
}
INSTALLED = {
    name for name, package in {"torch": "torch", "tf": "tensorflow"}.items() if find_spec(package)
}


@cache
def frameworks_of(path: Path) -> frozenset[str]:
    """The frameworks that a Python file needs to be imported."""
    found: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            found |= {PACKAGES[top] for top in [name.split(".")[0]] if top in PACKAGES}
            local = (ROOT / name.replace(".", "/")).with_suffix(".py")
            if local.is_file():
                found |= frameworks_of(local)
    return frozenset(found)


def left_out(folder: Path = ROOT / "tests") -> list[str]:
    """Test files that need a framework which is not installed."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("test_*.py")
        if not frameworks_of(path) <= INSTALLED
    )
