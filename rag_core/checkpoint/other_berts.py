"""Weights of encoders that are BERT by other names (`rag_core.config.OTHER_ENCODERS`) as BERT's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rag_core.checkpoint.lazy import LazyWeights, dtype_of, shape_of
from rag_core.config import BertConfig

_POSITIONS = "embeddings.position_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"
_PREFIX = re.compile(r"^(roberta|distilbert|mpnet)\.")
# What stands on top of them for other tasks.
_HEADS = re.compile(r"^(lm_head|vocab_(transform|layer_norm|projector)|(pre_)?classifier)\.")
_NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "distilbert": (
        (r"^transformer\.layer\.", "encoder.layer."),
        (r"\.attention\.q_lin\.", ".attention.self.query."),
        (r"\.attention\.k_lin\.", ".attention.self.key."),
        (r"\.attention\.v_lin\.", ".attention.self.value."),
        (r"\.attention\.out_lin\.", ".attention.output.dense."),
        (r"\.sa_layer_norm\.", ".attention.output.LayerNorm."),
        (r"\.ffn\.lin1\.", ".intermediate.dense."),
        (r"\.ffn\.lin2\.", ".output.dense."),
        (r"\.output_layer_norm\.", ".output.LayerNorm."),
    ),
    "mpnet": (
        (r"\.attention\.attn\.q\.", ".attention.self.query."),
        (r"\.attention\.attn\.k\.", ".attention.self.key."),
        (r"\.attention\.attn\.v\.", ".attention.self.value."),
        (r"\.attention\.attn\.o\.", ".attention.output.dense."),
        (r"\.attention\.LayerNorm\.", ".attention.output.LayerNorm."),
    ),
}


def under_bert_names(config: BertConfig, weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights of a file as BERT has them: renamed, unused rows of positions left out, types of
    tokens that are zeros where there are none.

    Files that hold a BERT stay as they are, also those that a converted model was saved to.

    Args:
        config: says what the weights were (`converted_from`).
        weights: name -> array.
    """
    kind = config.converted_from
    # the names of TensorFlow's files have scopes in front
    if kind is None or getattr(weights, "scoped", False):
        return weights
    names = {_renamed(name, kind): name for name in weights if not _HEADS.search(name)}
    shapes = {name: shape_of(weights, old) for name, old in names.items()}
    first = 0
    if _POSITIONS in shapes and kind != "distilbert":
        # what was saved as a BERT has no unused rows any more
        first = shapes[_POSITIONS][0] - config.max_position_embeddings
        if first != (config.pad_token_id or 0) + 1:
            first = 0
        shapes[_POSITIONS] = (shapes[_POSITIONS][0] - first, *shapes[_POSITIONS][1:])
    dtypes = {name: dtype_of(weights, old) for name, old in names.items()}
    if _TYPES not in names and config.type_vocab_size == 1 and dtypes:
        shapes[_TYPES] = (1, config.hidden_size)
        dtypes[_TYPES] = next(iter(dtypes.values()))

    def read(name: str) -> np.ndarray:
        if name not in names:
            return np.zeros(shapes[name], dtypes[name])
        array = weights[names[name]]
        return array[first:] if name == _POSITIONS else array

    return LazyWeights(shapes, read, dtypes=dtypes, free=getattr(weights, "free", lambda: None))


def with_projection(
    weights: Mapping[str, Any], projection: Mapping[str, Any], source: str
) -> LazyWeights:
    """Weights of a BERT with a Dense module of sentence-transformers as its `encode_proj`.

    Args:
        weights: name -> array.
        projection: "linear.weight" (out, in) and, unless there is none, "linear.bias" (out,).
        source: what to call the module's file in errors.

    Raises:
        ValueError: other weights.
    """
    names = set(projection)
    if "linear.weight" not in names or names - {"linear.weight", "linear.bias"}:
        raise ValueError(
            f"{source} must hold linear.weight and linear.bias, got {', '.join(sorted(names))}. "
            "Name another encoder."
        )
    weight = np.asarray(projection["linear.weight"])
    bias = np.zeros(len(weight), weight.dtype)
    if "linear.bias" in names:
        bias = np.asarray(projection["linear.bias"])
    added = {"encode_proj.weight": weight, "encode_proj.bias": bias}
    shapes = {name: shape_of(weights, name) for name in weights}
    dtypes = {name: dtype_of(weights, name) for name in weights}
    shapes |= {name: array.shape for name, array in added.items()}
    dtypes |= {name: array.dtype for name, array in added.items()}

    def read(name: str) -> np.ndarray:
        return added[name] if name in added else weights[name]

    return LazyWeights(
        shapes,
        read,
        dtypes=dtypes,
        free=getattr(weights, "free", lambda: None),
        scoped=getattr(weights, "scoped", False),
    )


def _renamed(name: str, kind: str) -> str:
    name = _PREFIX.sub("", name)
    for pattern, replacement in _NAMES.get(kind, ()):
        name = re.sub(pattern, replacement, name)
    return name
