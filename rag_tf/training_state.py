"""A training run's state in one safetensors file, exact to the bit: weights, optimizer, log.

Random numbers are no part of it: those of a step are a function of the settings and the step's
number.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rag_core.hub import atomic_write, parse_json, reading
from rag_core.training import checked_state
from rag_tf.training_parts import AdamW

_WRITER = "rag_tf"


def save_state(
    path: Path, parameters: dict[str, tf.Variable], optimizer: AdamW, scaler: Any, state: dict
) -> None:
    """Write what is needed to go on, whole or not at all.

    Args:
        path: the file.
        parameters: the trained parameters by name.
        optimizer: AdamW over exactly these.
        scaler: the `LossScale` of fp16 training.
        state: what else to keep, as JSON.

    Raises:
        OSError: it can't be written; an earlier checkpoint there is as it was.
    """
    tensors = {}
    for name, parameter in parameters.items():
        tensors[f"model.{name}"] = parameter.numpy()
        tensors[f"exp_avg.{name}"] = optimizer.exp_avg[name].numpy()
        tensors[f"exp_avg_sq.{name}"] = optimizer.exp_avg_sq[name].numpy()
        tensors[f"step.{name}"] = np.array(optimizer.steps[name], np.int64)
    kept = {**state, "scaler": scaler.state_dict(), "writer": _WRITER}
    with atomic_write(path) as draft:
        try:
            save_file(tensors, draft, metadata={"state": json.dumps(kept)})
        except SafetensorError as error:
            raise OSError(
                f"the checkpoint {path} can't be written ({error}). Make room and run it again."
            ) from error


def load_state(
    path: Path, parameters: dict[str, tf.Variable], optimizer: AdamW, scaler: Any
) -> dict[str, Any]:
    """Put a saved state back into model, optimizer and scaler.

    Returns:
        What was given as `state`.

    Raises:
        DamagedFileError: the file is damaged.
        ValueError: it is another framework's or holds other weights. Nothing has been changed then.
    """
    with reading(path, "is no checkpoint of a training run, or damaged", "Remove it."):
        with safe_open(path, framework="np") as file:
            names, metadata = set(file.keys()), file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in names}
        state = checked_state(parse_json(metadata["state"], path, advice="Remove it."), path)
    if state.pop("writer", None) != _WRITER:
        raise ValueError(
            f"{path} belongs to a run of the torch backend. Go on with that one, or remove it."
        )
    wanted = {
        f"{kind}.{name}": p
        for name, p in parameters.items()
        for kind in ("model", "exp_avg", "exp_avg_sq")
    }
    wrong = [n for n, p in wanted.items() if n not in tensors or tensors[n].shape != tuple(p.shape)]
    wrong = sorted(
        [*wrong, *(f"step.{n}" for n in parameters if not _is_count(tensors.get(f"step.{n}")))]
    )
    if wrong:
        raise ValueError(
            f"{path} does not fit the model: {', '.join(wrong)} missing or of another shape. "
            "Remove it."
        )
    for name, parameter in parameters.items():
        parameter.assign(tensors[f"model.{name}"])
        optimizer.exp_avg[name].assign(tensors[f"exp_avg.{name}"])
        optimizer.exp_avg_sq[name].assign(tensors[f"exp_avg_sq.{name}"])
        optimizer.steps[name] = int(tensors[f"step.{name}"])
    scaler.load_state_dict(state.pop("scaler") or {})
    return state


def _is_count(value: Any) -> bool:
    return value is not None and value.shape == () and value.dtype.kind in "iu"
