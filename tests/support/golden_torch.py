"""The catalogue's models in PyTorch, filled with the seeded weights; shared by the tests that hold
golden arrays.

`golden_tf` has the same names, so that a test takes either as `golden`.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.cases import MODELS, contexts, model_weights, rag_config, toy_retrieve
from conformance.generation_cases import raise_every_third as raise_every_third
from conformance.seeded import seeded_weights
from rag_core.config.rag import DPRConfig, RagConfig
from rag_torch import DPRContextEncoder, RagModel, RagSequenceForGeneration, RagTokenForGeneration
from rag_torch.weights import named_tensors

CLASSES = {"model": RagModel, "token": RagTokenForGeneration, "sequence": RagSequenceForGeneration}
integers = torch.tensor
set_seed = torch.manual_seed
without_gradients = torch.no_grad


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


def build(model_name: str, head: str, seed: int, precision: str, n_docs: int, **config: Any) -> Any:
    """A model of the catalogue, in eval mode."""
    model = CLASSES[head](RagConfig(**rag_config(model_name, n_docs, **config)))
    model.to(getattr(torch, precision)).eval()
    fill(model, weights(model_name, seed, tuple(shapes(model).items())))
    return model


def context_encoder(model_name: str, precision: str) -> nn.Module:
    """The document encoder of the context-encoder cases."""
    settings = {
        key: value
        for key, value in MODELS[model_name]["question_encoder"].items()
        if key != "model_type"
    }
    encoder = DPRContextEncoder(DPRConfig(**settings)).to(getattr(torch, precision)).eval()
    fill(encoder, seeded_weights(shapes(encoder), 7))
    return encoder


def tensors(arrays: dict[str, np.ndarray], precision: str) -> dict[str, torch.Tensor]:
    """numpy to torch, floats in the given precision."""
    return {
        name: torch.from_numpy(array.astype(precision) if array.dtype.kind == "f" else array)
        for name, array in arrays.items()
    }


def toy_retriever(model_name: str, precision: str) -> Any:
    """The catalogue's toy index as a retriever: any callable will do."""

    def retrieve(
        question_input_ids: Any, vectors: np.ndarray, **options: Any
    ) -> dict[str, torch.Tensor]:
        found = toy_retrieve(model_name, np.asarray(question_input_ids), vectors, options["n_docs"])
        return tensors(found, precision)

    return retrieve


def with_contexts(head: str, n_docs: int = 3, batch: int = 2, name: str = "bart_scaled") -> Any:
    """One model of the catalogue, float32, and contexts for it."""
    given = tensors(contexts(name, "given", batch, n_docs), "float32")
    return build(name, head, 3, "float32", n_docs), given


def heard(rule: Any) -> Any:
    """A `prefix_allowed_tokens_fn` of the catalogue as `generate` calls it."""
    return rule


def cast(model: nn.Module, precision: str) -> nn.Module:
    """The model with its weights in another precision."""
    return model.to(getattr(torch, precision))


def restore(model: nn.Module, arrays: dict[str, np.ndarray]) -> None:
    """Give a model the weights of a `state_dict` of arrays."""
    model.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})


def draw() -> float:
    """The framework's next random number."""
    return float(torch.rand(()))
