"""By what a model that was measured is known again: sums of its weights, of what it is set to, and
of its tokenizers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rag_core.backends import to_numpy
from rag_core.checkpoint import RAG_HEADS, read_weights, tied_names, with_ties
from rag_core.config import RagConfig

# Entries of a config that say where something lies or who wrote it; the knowledge base and the
# weights have sums of their own.
_PLACES = (
    "_name_or_path",
    "architectures",
    "index_path",
    "passages_path",
    "torch_dtype",
    "transformers_version",
)
# What an encoding leaves in a tokenizer for the next one to replace.
_PASSING = ("padding", "truncation")


def weights_sums(model: Any) -> tuple[str, str]:
    """A sum of all weights of a model in memory, by their names, and one of their layout: names,
    types and shapes.
    """
    state = {name: value for name, value in model.state_dict().items() if hasattr(value, "shape")}
    layout = {}

    def read(name: str) -> np.ndarray:
        array = to_numpy(state[name])
        layout[name] = (array.dtype, array.shape)
        return array

    return _sum_of(state, read), _layout(layout)


def saved_sha256(folder: Path, config: RagConfig, layout: str) -> str | None:
    """The sum of the weights of the model in a folder, as `weights_sums` gives it.

    Args:
        folder: of a model.
        config: its configuration.
        layout: the sum of the layout of the model to compare with.

    Returns:
        None where the folder has other names, types or shapes, as of a model that is loaded in half
        precision: its sum says nothing then.

    Raises:
        OSError: the weights can't be read.
    """
    stored = read_weights(folder)
    groups = [group for head in RAG_HEADS for group in tied_names(config, head)]
    ties = {name: group[0] for group in groups for name in group[1:]}
    names = with_ties({name: name for name in stored}, ties)
    found = {name: (stored.dtypes[own], stored.shapes[own]) for name, own in names.items()}
    if _layout(found) != layout:
        return None
    return _sum_of(names, lambda name: stored[names[name]])


def settings_sums(model: Any) -> dict[str, Any]:
    """What a model answers by besides its weights: the sums of its config, of its options of
    generation and of its tokenizers, and its calibration as it is.
    """
    config = _placeless(model.config.to_dict())
    calibration = config.pop("answer_calibration", None)
    for part in ("question_encoder", "generator"):
        config[part] = _placeless(config[part])
    options: dict[str, Any] = {}
    if getattr(model, "generation_config", None) is not None:
        options = model.generation_config.to_diff_dict()
    retriever = model.retriever
    tokenizers = (retriever.question_encoder_tokenizer, retriever.generator_tokenizer)
    return {
        "config_sha256": _sum_of_json(config),
        "generation_sha256": _sum_of_json(options),
        "tokenizers_sha256": _sum_of_json([_vocabulary(each) for each in tokenizers]),
        "answer_calibration": calibration,
    }


def _sum_of(names: Iterable[str], read: Callable[[str], np.ndarray]) -> str:
    """Of arrays that are read one after another."""
    digest = hashlib.sha256()
    for name in sorted(names):
        array = np.ascontiguousarray(read(name))
        digest.update(f"{name}{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _layout(entries: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> str:
    rows = [f"{name} {dtype} {tuple(shape)}" for name, (dtype, shape) in sorted(entries.items())]
    return _sum_of_json(rows)


def _placeless(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _PLACES}


def _vocabulary(tokenizer: Any) -> Any:
    """What a tokenizer is; nothing where it doesn't say."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        return None
    values = json.loads(backend.to_str())
    return {name: value for name, value in values.items() if name not in _PASSING}


def _sum_of_json(values: Any) -> str:
    # of an object that JSON has no form for its kind alone is the same in another process
    text = json.dumps(values, sort_keys=True, default=lambda value: type(value).__name__)
    return hashlib.sha256(text.encode()).hexdigest()
