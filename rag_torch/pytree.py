"""Output records as PyTorch's trees of tensors, which torch.export, DDP and functions over trees
take apart.

TensorFlow asks the records themselves (`ModelOutput.__tf_flatten__`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils import _pytree

from rag_core.outputs import ModelOutput


def register_outputs() -> None:
    """Tell PyTorch of every record of `rag_core.outputs`, once."""
    for kind in _kinds(ModelOutput):
        if kind in _pytree.SUPPORTED_NODES:
            continue
        _pytree.register_pytree_node(
            kind,
            _flatten,
            _unflatten(kind),
            serialized_type_name=f"{kind.__module__}.{kind.__name__}",
            flatten_with_keys_fn=_flatten_with_keys,
        )


def _kinds(kind: type[ModelOutput]) -> Iterator[type[ModelOutput]]:
    """All subclasses, those of subclasses included."""
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _kinds(subclass)


def _flatten(output: ModelOutput) -> tuple[list[Any], list[str]]:
    return list(output.values()), list(output)


def _flatten_with_keys(output: ModelOutput) -> tuple[list[tuple[Any, Any]], list[str]]:
    pairs: list[tuple[Any, Any]] = []
    for name, value in output.items():
        pairs.append((_pytree.MappingKey(name), value))
    return pairs, list(output)


def _unflatten(kind: type[ModelOutput]) -> Any:
    def unflatten(values: Iterable[Any], names: list[str]) -> ModelOutput:
        fields = dict(zip(names, values, strict=True))
        return kind(**fields)

    return unflatten
