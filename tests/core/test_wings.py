"""rag_core's wings: each says what others may use, nothing else is taken from it, and no import
runs in a circle, neither there nor in the backends.
"""

import ast
import importlib
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "rag_core"
WINGS = sorted(path.name for path in CORE.iterdir() if (path / "__init__.py").is_file())
PACKAGES = ("rag_core", "rag_torch", "rag_tf")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {dotted(path) for path in MODULES}


@cache
def imports(path):
    """(module, name, line, whether it happens when the file is imported) of all that a file
    takes from rag_core and the backends.
    """
    return list(_imports(path))


def _imports(path):
    tree = ast.parse(path.read_text("utf-8"))
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            yield from (
                (node.module, alias.name, node.lineno, id(node) not in late) for alias in node.names
            )
        if isinstance(node, ast.Import):
            taken = [alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES]
            yield from ((name, "", node.lineno, id(node) not in late) for name in taken)


def wing_of(module):
    parts = module.split(".")
    return parts[1] if parts[0] == "rag_core" and len(parts) > 1 and parts[1] in WINGS else None


def test_there_are_wings_and_few_files_beside_them():
    assert len(WINGS) > 8
    assert len(list(CORE.glob("*.py"))) <= 8


@pytest.mark.parametrize("wing", WINGS)
def test_every_name_that_a_wing_offers_is_there(wing):
    package = importlib.import_module(f"rag_core.{wing}")
    assert package.__all__ == sorted(set(package.__all__))
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert dir(package) == package.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing_such'"):
        package.nothing_such  # noqa: B018


def test_what_a_wing_does_not_name_nobody_else_imports():
    names = {wing: importlib.import_module(f"rag_core.{wing}").__all__ for wing in WINGS}
    wrong = []
    for path in MODULES:
        home = wing_of(dotted(path))
        for module, name, line, _ in imports(path):
            wing = wing_of(module)
            if (
                wing is not None
                and wing != home
                and (module != f"rag_core.{wing}" or name not in names[wing])
            ):
                wrong.append(
                    f"{path.relative_to(ROOT)}:{line} takes {name or module} from {module}"
                )
            if module == "rag_core" and name in WINGS:
                wrong.append(f"{path.relative_to(ROOT)}:{line} takes the wing {name} as a whole")
    assert wrong == []


def circle(arrows):
    """The names along a circle of arrows (from, to); empty where there is none."""
    graph = TopologicalSorter()
    for start, end in arrows:
        graph.add(start, end)
    try:
        graph.prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_wing_imports_one_that_imports_it():
    """Neither at import nor later."""
    arrows = {
        (wing_of(dotted(path)), wing_of(module))
        for path in MODULES
        for module, *_ in imports(path)
        if wing_of(dotted(path)) and wing_of(module)
    }
    assert circle((start, end) for start, end in arrows if start != end) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_imports_one_that_imports_it(package):
    """Of rag_core while it is imported; of a backend at any time."""
    arrows = set()
    for path in MODULES:
        here = dotted(path)
        if here.split(".")[0] != package or path.name == "__init__.py":
            continue
        for module, name, _, at_import in imports(path):
            if module.split(".")[0] == package and (at_import or package != "rag_core"):
                inner = f"{module}.{name}"
                arrows.add((here, inner if inner in FILES else module))
    assert circle(arrows) == []


def test_a_circle_is_noticed():
    assert circle([("a", "b"), ("b", "c")]) == []
    assert set(circle([("a", "b"), ("b", "c"), ("c", "a")])) == {"a", "b", "c"}
