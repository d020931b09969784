"""rag_tf is rag_torch's mirror image.

The same files, and in them the same names of the same kind with the same arguments in the same
order. What a class inherits from rag_core counts as its own.
"""

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rag_core.backends import load_backend

ROOT = Path(__file__).parents[2]
# TensorFlow has no int8 products outside its converter for small devices
TORCH_ONLY = {"quantize.py"}
TORCH_ONLY |= {"pytree.py"}  # TensorFlow asks the records themselves
TORCH_ONLY |= {"programs.py"}  # rag_tf has export.py, with all of generation
TORCH_ONLY |= {"processes.py"}  # rag_tf has replicas.py, over tf.distribute
TORCH_ONLY |= {"train.py"}  # for torchrun and accelerate, which start PyTorch's processes
TORCH_ONLY |= {"trainer.py"}  # transformers has a Trainer for PyTorch alone
ROOMS = sorted({path.name for path in (ROOT / "rag_torch").glob("*.py")} - TORCH_ONLY)
# What only one framework has: file -> names.
WITHOUT_TWIN: dict[str, set[str]] = {
    "weights.py": {"MetaDevice"},  # modules.placeholders, a function
    "layers.py": {"outside_graph"},  # torch.compile's
    # a CPU's, without a graph; rag_tf subtracts a penalty instead
    "attention.py": {
        *("RowLengthsMask", "PackedMask", "AttentionMask.by_row", "lengths_if_padded_right"),
        "AttentionMask.bias",
    },
    # a mask over what all beams have written, where rag_tf moves caches
    "decode_state.py": {
        "noted",
        *("GrowingCache.fold", "GrowingCache.unfold_weights"),
        "GrowingCache.__init__",  # `kept`: a graph leaves out what nobody reads
        "DecodeState.__init__",  # `cross_mask`, the bias of T5; `source` and `max_length` of a graph
        *("DecodeState.fold", "DecodeState.unfold_weights", "DecodeState.biased"),
    },
    # a hook of autograd's, for adapters around a frozen table; tensors taken as they are (`assign`)
    "pretrained.py": {
        "PretrainedModel.enable_input_require_grads",
        "PretrainedModel.disable_input_require_grads",
        "PretrainedModel.load_state_dict",
    },
    "packing.py": {"Packing.of", "Packing.mask"},  # `worth_packing`, and an attribute
    "seq2seq.py": {"by_length"},  # a graph has one shape for all rows
    # in place, and in fewer passes, where no compiler sees to it
    "step_scores.py": {"apply_processors", "log_softmax"},
}
# What users of TensorFlow write besides, and what they have no use for.
ADDED, DROPPED = {"inputs", "training", "from_pt", "load_weight_prefix"}, {"device", "skip_padding"}
ADDED |= {"packing"}  # real tokens alone, which PyTorch's encoders see to themselves
ADDED |= {"folded"}  # how the queries lie: a tensor of PyTorch tells its sizes at any time
SPECIAL = {"__init__", "__call__"}
KINDS = {
    "contextmanager": "context manager",
    "property": "property",
    "cached_property": "property",
    "staticmethod": "static method",
    "classmethod": "class method",
}


class Member(NamedTuple):
    """A class, or something that is called, with its arguments in order."""

    kind: str
    arguments: tuple[str, ...]


def is_public(name: str) -> bool:
    return not name.startswith("_") or name in SPECIAL


@cache
def members(path: Path, with_imports: bool = False) -> dict[str, Member]:
    """Each public class, function and method that a file defines or inherits from rag_core.

    With `with_imports`, what it imports from files beside it counts as its own.
    """
    tree = ast.parse(path.read_text("utf-8"))
    from_core = dict(imports(tree))
    own = dict(imports(tree, path.parent)) if with_imports else {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            own[node.name] = member(node)
        elif isinstance(node, ast.ClassDef):
            own |= class_members(node, {**from_core, **own})
    return {name: each for name, each in own.items() if is_public(name)}


def imports(tree: ast.Module, folder: Path | None = None) -> Iterator[tuple[str, Member]]:
    """What a file imports from rag_core, or from files of its folder, under the names it uses."""
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        package, _, room = node.module.rpartition(".")
        for alias in node.names:
            known: dict[str, Member] = {}
            if folder is None and node.module.split(".")[0] == "rag_core":
                known = core_members(node.module, alias.name)
            elif folder and package == folder.name and (folder / f"{room}.py").is_file():
                known = members(folder / f"{room}.py", with_imports=True)
            for name, each in known.items():
                first, dot, method = name.partition(".")
                if first == alias.name:
                    yield (alias.asname or first) + dot + method, each


def class_members(node: ast.ClassDef, known: dict[str, Member]) -> dict[str, Member]:
    """A class, its public methods, and those of its bases as far as they are known."""
    own = {node.name: Member("class", ())}
    for base in reversed(node.bases):
        base = base.value if isinstance(base, ast.Subscript) else base
        if isinstance(base, ast.Name):
            inherited = [name for name in known if name.startswith(f"{base.id}.")]
            own |= {f"{node.name}{name.removeprefix(base.id)}": known[name] for name in inherited}
    if any("dataclass" in ast.unparse(each) for each in node.decorator_list):
        own[f"{node.name}.__init__"] = Member("function", ("self", *fields(node)))
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and is_public(part.name) and not is_setter(part):
            own[f"{node.name}.{part.name}"] = member(part)
    return own


def is_setter(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(each).endswith(".setter") for each in node.decorator_list)


def fields(node: ast.ClassDef) -> Iterator[str]:
    """The public fields of a record."""
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            if is_public(part.target.id):
                yield part.target.id


def member(node: ast.FunctionDef) -> Member:
    """A function or method of a file that is not imported."""
    decorators = [ast.unparse(each).split(".")[-1] for each in node.decorator_list]
    kinds = [KINDS[name] for name in decorators if name in KINDS]
    given = node.args
    arguments = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return Member(kinds[0] if kinds else "function", tuple(arguments))


@cache
def core_members(module: str, name: str) -> dict[str, Member]:
    """A class of rag_core, which loads no framework, with the methods that a backend inherits."""
    kind = getattr(import_module(module), name)
    if not inspect.isclass(kind):
        return {}
    own = {name: Member("class", ())}
    for base in reversed(kind.__mro__):
        if base.__module__.split(".")[0] == "rag_core":
            public = {key: value for key, value in vars(base).items() if is_public(key)}
            for key, value in public.items():
                if isinstance(value, property | classmethod | staticmethod) or callable(value):
                    own[f"{name}.{key}"] = core_member(value)
    return own


def core_member(value: Any) -> Member:
    if isinstance(value, property):
        return Member("property", ("self",))
    decorated = isinstance(value, classmethod | staticmethod)
    kind = KINDS[type(value).__name__] if decorated else "function"
    function = value.__func__ if decorated else value
    if inspect.isgeneratorfunction(getattr(function, "__wrapped__", None)):
        kind = "context manager"
    named = [
        each.name
        for each in inspect.signature(function).parameters.values()
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    return Member(kind, tuple(named))


def normalised(named: dict[str, Member]) -> dict[str, Member]:
    """`forward` and `__call__` as `call`.

    Where a class has several of them, the one that names its arguments.
    """
    result: dict[str, Member] = {}
    for name, each in named.items():
        for other in (".forward", ".__call__"):
            name = name.replace(other, ".call")
        if name not in result or len(each.arguments) > len(result[name].arguments):
            result[name] = each
    return result


def is_twin(ours: Member, theirs: Member | None) -> bool:
    if theirs is None or theirs.kind != ours.kind:
        return False
    expected = [each for each in ours.arguments if each not in DROPPED]
    extra = (ADDED | DROPPED) - set(expected)
    return [each for each in theirs.arguments if each not in extra] == expected


def differences(room: str) -> dict[str, tuple[Member, Member | None]]:
    """The names of a file of rag_torch that rag_tf has otherwise or not at all."""
    ours = normalised(members(ROOT / "rag_torch" / room))
    theirs = normalised(members(ROOT / "rag_tf" / room, with_imports=True))
    return {
        name: (each, theirs.get(name))
        for name, each in ours.items()
        if not is_twin(each, theirs.get(name))
    }


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_its_twin_of_the_same_kind_with_the_same_arguments(room):
    assert (ROOT / "rag_tf" / room).is_file()
    exceptions = WITHOUT_TWIN.get(room, set())
    differing = {
        name: pair
        for name, pair in differences(room).items()
        if not {name, name.split(".")[0]} & exceptions
    }
    assert differing == {}


@pytest.mark.parametrize("room", WITHOUT_TWIN)
def test_every_exception_is_needed(room):
    assert WITHOUT_TWIN[room] - set(differences(room)) == set()


def test_a_missing_name_another_kind_and_another_argument_are_noticed(tmp_path):
    (tmp_path / "a.py").write_text(
        "from contextlib import contextmanager\n"
        "from rag_core.outputs import ModelOutput\n"
        "class A:\n"
        "    def forward(self, x, y): ...\n"
        "    @property\n"
        "    def z(self): ...\n"
        "class B(ModelOutput): ...\n"
        "@contextmanager\n"
        "def f(a, *, b): ...\n"
        "def _g(): ...\n"
    )
    named = members(tmp_path / "a.py")
    inherited = {name for name in named if name.startswith("B.")}
    assert "B.to_tuple" in inherited
    assert {name: each for name, each in named.items() if name not in inherited} == {
        "A": Member("class", ()),
        "A.forward": Member("function", ("self", "x", "y")),
        "A.z": Member("property", ("self",)),
        "B": Member("class", ()),
        "f": Member("context manager", ("a", "b")),
    }
    assert not is_twin(named["f"], None)
    assert not is_twin(named["f"], Member("function", ("a", "b")))
    assert not is_twin(named["f"], Member("context manager", ("b", "a")))
    assert not is_twin(named["f"], Member("context manager", ("a",)))
    assert is_twin(named["f"], Member("context manager", ("a", "b", "training")))


def test_every_public_name_of_a_backend_is_described(backend):
    """By a docstring of its own or of what it inherits, never of the framework's."""
    rag = load_backend(backend)
    undescribed = set()
    for name in rag.__all__:
        value = getattr(rag, name)
        if inspect.isclass(value):
            ours = [base for base in value.__mro__ if base.__module__.startswith("rag_")]
            descriptions = [base.__doc__ for base in value.__mro__ if base.__doc__]
            if descriptions[0] not in [base.__doc__ for base in ours]:
                undescribed.add(name)
            for method in {key for base in ours for key in vars(base) if key[0] != "_"}:
                parts = [vars(base)[method] for base in ours if method in vars(base)]
                called = any(callable(each) or hasattr(each, "__get__") for each in parts)
                if called and not any(each.__doc__ for each in parts):
                    undescribed.add(f"{name}.{method}")
        elif inspect.isroutine(value) and not inspect.getdoc(value):
            undescribed.add(name)
    assert undescribed == set()
