"""rag_tf is rag_torch's mirror image.

The same files, and in them the same names with the same arguments.
"""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# TensorFlow has no int8 products outside its converter for small devices
TORCH_ONLY = {"quantize.py"}
TORCH_ONLY |= {"pytree.py"}  # TensorFlow asks the records themselves
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
        *("DecodeState.fold", "DecodeState.unfold_weights", "DecodeState.biased"),
    },
    "contexts.py": {"TensorChecks.check_places"},  # no meta device
    # a hook of autograd's, for adapters around a frozen table; tensors taken as they are (`assign`)
    "pretrained.py": {
        "PretrainedModel.enable_input_require_grads",
        "PretrainedModel.disable_input_require_grads",
        "PretrainedModel.load_state_dict",
    },
    "packing.py": {"Packing.of", "Packing.mask"},  # `pays`, and an attribute
    "seq2seq.py": {"by_length"},  # a graph has one shape for all rows
    # in place, and in fewer passes, where no compiler sees to it
    "step_scores.py": {"apply_edits", "log_softmax"},
}
# What users of TensorFlow write besides, and what they have no use for.
ADDED, DROPPED = {"inputs", "training", "from_pt", "load_weight_prefix"}, {"device", "skip_padding"}
ADDED |= {"packing"}  # real tokens alone, which PyTorch's encoders see to themselves
ADDED |= {"folded"}  # how the queries lie: a tensor of PyTorch tells its sizes at any time
SPECIAL = {"__init__", "__call__"}


def signatures(path: Path, follow: bool = False) -> dict[str, list[str]]:
    """Each public function, method and class of a file -> its arguments in order.

    With `follow`, what it imports from files beside it counts as its own. What its classes inherit
    counts as theirs, be it from there or from rag_core.
    """
    found: dict[str, list[str]] = {}
    mixins: dict[str, list[str]] = {}
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = arguments(node)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rag_core"):
            mixins |= methods(node)
        elif isinstance(node, ast.ImportFrom) and follow:
            package, _, room = (node.module or "").rpartition(".")
            if package == path.parent.name and (path.parent / f"{room}.py").is_file():
                names = {each.name for each in node.names}
                beside = signatures(path.parent / f"{room}.py", follow)
                found |= {
                    name: given for name, given in beside.items() if name.split(".")[0] in names
                }
        elif isinstance(node, ast.ClassDef):
            found[node.name] = []
            for base in [each.id for each in reversed(node.bases) if isinstance(each, ast.Name)]:
                inherited = {
                    name: given
                    for name, given in {**mixins, **found}.items()
                    if name.startswith(f"{base}.")
                }
                found |= {
                    f"{node.name}{name.removeprefix(base)}": given
                    for name, given in inherited.items()
                }
            for each in node.body:
                public = isinstance(each, ast.FunctionDef) and (
                    not each.name.startswith("_") or each.name in SPECIAL
                )
                if public:
                    found[f"{node.name}.{each.name}"] = arguments(each)
    return {name: given for name, given in found.items() if not name.startswith("_")}


def methods(node: ast.ImportFrom) -> dict[str, list[str]]:
    """The public methods of those classes that are imported from rag_core -> their arguments."""
    module = importlib.import_module(node.module or "")
    found = {}
    for alias in node.names:
        kind = getattr(module, alias.name, None)
        for name in dir(kind) if inspect.isclass(kind) else ():
            member = inspect.getattr_static(kind, name)
            function = getattr(member, "__func__", member)  # of a class method
            if inspect.isfunction(function) and not name.startswith("_"):
                spec = inspect.getfullargspec(function)
                found[f"{alias.name}.{name}"] = spec.args + spec.kwonlyargs
    return found


def arguments(node: ast.FunctionDef) -> list[str]:
    given = node.args
    return [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]


def normalised(found: dict[str, list[str]]) -> dict[str, list[str]]:
    """`forward` and `__call__` as `call`.

    Where a class has several of them, the one that names its arguments.
    """
    result: dict[str, list[str]] = {}
    for name, given in found.items():
        for other in (".forward", ".__call__"):
            name = name.replace(other, ".call")
        result[name] = max(given, result.get(name, []), key=len)
    return result


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_its_twin_with_the_same_arguments(room):
    assert (ROOT / "rag_tf" / room).is_file()
    ours, theirs = (
        normalised(signatures(ROOT / package / room, follow))
        for package, follow in (("rag_torch", False), ("rag_tf", True))
    )
    differing = {}
    for name, given in ours.items():
        if name.split(".")[0] in WITHOUT_TWIN.get(room, ()) or name in WITHOUT_TWIN.get(room, ()):
            continue
        twin = theirs.get(name)
        wanted = [each for each in given if each not in DROPPED]
        if (
            twin is None
            or [each for each in twin if each in wanted or each not in ADDED | DROPPED] != wanted
        ):
            differing[name] = (given, twin)
    assert differing == {}


def test_a_missing_name_and_another_argument_are_noticed(tmp_path):
    (tmp_path / "a.py").write_text(
        "class A:\n    def forward(self, x, y): ...\ndef f(a, *, b): ...\ndef _g(): ...\n"
    )
    assert signatures(tmp_path / "a.py") == {
        "A": [],
        "A.forward": ["self", "x", "y"],
        "f": ["a", "b"],
    }
