"""A training run's state in one safetensors file, exact to the bit.

Weights, optimizer, random numbers, log.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from rag_core.hub import atomic_write, parse_json, reading
from rag_core.training import checked_state

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def save_state(
    path: Path,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    state: dict,
) -> None:
    """Write what is needed to go on, whole or not at all.

    Args:
        path: the file.
        parameters: the trained parameters by name.
        optimizer: AdamW over exactly these.
        scaler: the gradient scaler of fp16 training.
        state: what else to keep, as JSON.

    Raises:
        OSError: it can't be written; an earlier checkpoint there is as it was.
    """
    tensors = {f"rng.{kind}": value for kind, value in _random_states(parameters).items()}
    for name, parameter in parameters.items():
        tensors[f"model.{name}"] = parameter.detach()
        for moment in _MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as draft:
        try:
            save_file(
                tensors,
                draft,
                metadata={"state": json.dumps({**state, "scaler": scaler.state_dict()})},
            )
        except SafetensorError as error:
            raise OSError(
                f"the checkpoint {path} can't be written ({error}). Make room and run it again."
            ) from error


def load_state(
    path: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, scaler: Any
) -> dict[str, Any]:
    """Put a saved state back into model, optimizer, scaler and the random number generators.

    Returns:
        What was given as `state`.

    Raises:
        DamagedFileError: the file is damaged.
        ValueError: it is another framework's or holds other weights. Nothing has been changed then.
    """
    with reading(path, "is no checkpoint of a training run, or damaged", "Remove it."):
        with safe_open(path, framework="pt") as file:
            names, metadata = set(file.keys()), file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in names}
        state = checked_state(parse_json(metadata["state"], path, advice="Remove it."), path)
    if "rng.cpu" not in tensors:
        raise ValueError(
            f"{path} belongs to a run of the tf backend. Go on with that one, or remove it."
        )
    wanted = {
        f"{kind}.{name}": p
        for name, p in parameters.items()
        for kind in ("model", "exp_avg", "exp_avg_sq")
    }
    wrong = sorted(n for n, p in wanted.items() if n not in tensors or tensors[n].shape != p.shape)
    wrong += sorted(
        name
        for name in (f"step.{n}" for n in parameters)
        if name not in tensors or tensors[name].ndim
    )
    random = {name: tensor for name, tensor in tensors.items() if name.startswith("rng.")}
    wrong += [
        name for name, tensor in random.items() if tensor.dtype != torch.uint8 or tensor.ndim != 1
    ]
    if random["rng.cpu"].shape != torch.get_rng_state().shape:
        wrong.append("rng.cpu")
    if wrong:
        raise ValueError(
            f"{path} does not fit the model: {', '.join(wrong)} missing or of another shape. "
            "Remove it."
        )
    # the fused kernel reads the step count where the weights are
    counted_there = optimizer.defaults["fused"]
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model.{name}"])
            moments = {
                m: tensors[f"{m}.{name}"].to(parameter.device)
                for m in _MOMENTS
                if m != "step" or counted_there
            }
            optimizer.state[parameter] = {"step": tensors[f"step.{name}"], **moments}
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"], next(iter(parameters.values())).device)
    scaler.load_state_dict(state.pop("scaler") or {})
    return state


def _random_states(parameters: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    device = next(iter(parameters.values())).device
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states
