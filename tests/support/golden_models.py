"""The catalogue's models as ours, filled with the seeded weights.

Shared by the tests that hold golden arrays.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.cases import MODELS, model_weights, rag_config, toy_retrieve
from conformance.seeded import seeded_weights
from rag_core.config.rag import DPRConfig, RagConfig
from rag_torch import DPRContextEncoder, RagModel, RagSequenceForGeneration, RagTokenForGeneration
from rag_torch.weights import named_tensors

CLASSES = {"model": RagModel, "token": RagTokenForGeneration, "sequence": RagSequenceForGeneration}


@cache
def weights(
    model_name: str, seed: int, named: tuple[tuple[str, tuple[int, ...]], ...]
) -> dict[str, np.ndarray]:
    """Seeded weights; models of one name and seed share the arrays."""
    return model_weights(model_name, dict(named), seed)


def fill(model: nn.Module, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays over a model's parameters."""
    state = model.state_dict()
    with torch.no_grad():
        for name, array in arrays.items():
            state[name].copy_(torch.from_numpy(array))


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights, tied ones once."""
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}


def build(
    model_name: str, head: str, seed: int, dtype: torch.dtype, n_docs: int, **config: Any
) -> Any:
    """A model of the catalogue, in eval mode."""
    model = CLASSES[head](RagConfig(**rag_config(model_name, n_docs, **config))).to(dtype).eval()
    fill(model, weights(model_name, seed, tuple(shapes(model).items())))
    return model


def context_encoder(model_name: str, dtype: torch.dtype) -> nn.Module:
    """The document encoder of the context-encoder cases."""
    settings = {
        key: value
        for key, value in MODELS[model_name]["question_encoder"].items()
        if key != "model_type"
    }
    encoder = DPRContextEncoder(DPRConfig(**settings)).to(dtype).eval()
    fill(encoder, seeded_weights(shapes(encoder), 7))
    return encoder


def tensors(arrays: dict[str, np.ndarray], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """numpy to torch, floats in the given dtype."""
    found = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {
        name: array.to(dtype) if array.is_floating_point() else array
        for name, array in found.items()
    }


def toy_retriever(model_name: str, dtype: torch.dtype) -> Any:
    """The catalogue's toy index as a retriever: any callable will do."""

    def retrieve(
        question_input_ids: Any, vectors: np.ndarray, **options: Any
    ) -> dict[str, torch.Tensor]:
        found = toy_retrieve(model_name, np.asarray(question_input_ids), vectors, options["n_docs"])
        return tensors(found, dtype)

    return retrieve
