"""TensorFlow's names and layouts of weights, as transformers' TF classes write them -> PyTorch's.

Keras calls a weight by the path of scopes in which it was made,
"rag/tf_rag_token_for_generation_1/rag/generator/model/ decoder/layers.0/fc1/kernel:0". Which scopes
stand in front depends on the class, on how it was built and on how many models were built before,
so that a name is known by its end: the longest end that a network needs is the weight. The same
rule serves `tf_model.h5` and safetensors marked `format: tf`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from rag_core.checkpoint.lazy import LazyWeights, same_numbers
from rag_core.hub import DamagedFileError

# What a network may need in front of a name's end, where the file holds a part alone or left a
# scope out.
_PARTS = (
    "",
    "model.",
    "generator.",
    "generator.model.",
    "question_encoder.",
    "question_encoder.question_encoder.",
    "question_encoder.bert_model.",
    "question_encoder.question_encoder.bert_model.",
    "ctx_encoder.bert_model.",
)
_FRONTS = (*_PARTS, *(f"rag.{part}" for part in _PARTS))
_COMPONENTS = {"question_encoder", "ctx_encoder", "generator"}
_LEAVES = {"kernel": "weight", "embeddings": "weight", "gamma": "weight", "beta": "bias"}


def torch_name(name: str) -> str:
    """A name of TensorFlow spelled as PyTorch's, scopes still in front.

    Args:
        name: such as "bert/tf_bert_model/bert/encoder/layer_._0/output/dense/kernel:0".

    Returns:
        Such as "bert.tf_bert_model.bert.encoder.layer.0.output.dense.weight".
    """
    path = re.sub(r":\d+$", "", name).replace("_._", "/")
    parts = [part.rpartition("___")[2] or part for part in re.split(r"[/.]", path) if part]
    if not parts:
        return name
    parts[-1] = _LEAVES.get(parts[-1], parts[-1])
    return ".".join(parts)


def torch_layout(weights: LazyWeights, source: str) -> LazyWeights:
    """The weights of a TensorFlow file under PyTorch's spelling, matrices as (out, in), scopes
    still in front.

    Args:
        weights: as the file holds them.
        source: what to call the file in errors.

    Raises:
        DamagedFileError: two names of the file are spelled alike.
    """

    names = {torch_name(name): name for name in weights.shapes}
    if len(names) < len(weights.shapes):
        twice = sorted(set(weights.shapes) - set(names.values()))
        raise DamagedFileError(
            f"{source} holds two weights that PyTorch would call alike: "
            f"{', '.join(map(torch_name, twice))}."
        )
    shapes = {name: weights.shapes[old] for name, old in names.items()}
    # Keras stores matrices as (in, out)
    transposed = {
        name
        for name, old in names.items()
        if re.search(r"(^|/)kernel(:\d+)?$", old) and len(shapes[name]) == 2
    }

    def read(name: str) -> np.ndarray:
        array = weights[names[name]]
        if name in transposed:
            return array.T
        return array

    shapes |= {name: shapes[name][::-1] for name in transposed}
    dtypes = {name: weights.dtypes[old] for name, old in names.items()}
    return LazyWeights(shapes, read, dtypes=dtypes, free=weights.free, scoped=True)


def by_end(names: Iterable[str], expected: Iterable[str]) -> dict[str, list[str]]:
    """Which names of a file serve each needed name.

    Args:
        names: of the file, as `torch_name` spells them.
        expected: names needed.

    Returns:
        Needed name -> names of the file, copies of tied weights among them; names that serve
        nothing are left out.
    """
    needed = set(expected)
    served: dict[str, list[str]] = {}
    for name in names:
        match = _match(name.split("."), needed)
        if match is not None:
            served.setdefault(match, []).append(name)
    return served


def _match(parts: list[str], needed: set[str]) -> str | None:
    components = _COMPONENTS.intersection(parts)
    for start in range(len(parts)):
        end = ".".join(parts[start:])
        for front in _FRONTS:
            name = front + end
            if name not in needed:
                continue
            # A generator's weights never serve an encoder, nor one encoder's the other, however
            # alike they end.
            others = _COMPONENTS.intersection(name.split("."))
            if not components or not others or components & others:
                return name
    return None


def unscoped(name: str) -> str:
    """A name without the scopes in front of the model's own, for people."""
    parts = name.split(".")
    scopes = [number for number, part in enumerate(parts) if re.fullmatch(r"tf\w+", part)]
    start = max(scopes, default=-1) + 1
    return ".".join(parts[start:]) or name


def under_needed_names(
    weights: LazyWeights, expected: Mapping[str, tuple[int, ...]], source: str = "The checkpoint"
) -> LazyWeights:
    """The weights of `torch_layout` under the names that a network needs; those it doesn't need
    under their own.

    Args:
        weights: with scopes in front of their names.
        expected: needed name -> shape.
        source: what to call the file in errors.

    Raises:
        ValueError: copies of one weight differ.
    """

    served = by_end(weights, expected)
    for needed, copies in served.items():
        for other in copies[1:]:
            alike = weights.shapes[copies[0]] == weights.shapes[other]
            if not alike or not same_numbers(weights[copies[0]], weights[other], weights.free):
                raise ValueError(
                    f"{source} holds different values for {needed}: as {copies[0]} and as {other}."
                )
    names = {needed: copies[0] for needed, copies in served.items()}
    used = {name for copies in served.values() for name in copies}
    names |= {unscoped(name): name for name in weights if name not in used}
    shapes = {needed: weights.shapes[name] for needed, name in names.items()}
    dtypes = {needed: weights.dtypes[name] for needed, name in names.items()}
    return LazyWeights(shapes, lambda name: weights[names[name]], dtypes=dtypes, free=weights.free)
