"""The reference models of the catalogue, built in memory.

Needs transformers 4.37.2 (requirements-oracle.txt).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers import (
    BatchEncoding,
    DPRConfig,
    DPRContextEncoder,
    RagConfig,
    RagModel,
    RagRetriever,
    RagSequenceForGeneration,
    RagTokenForGeneration,
)

from conformance.cases import MODELS, model_weights, rag_config, toy_retrieve
from conformance.seeded import seeded_weights

CLASSES = {"model": RagModel, "token": RagTokenForGeneration, "sequence": RagSequenceForGeneration}


def fill(model: torch.nn.Module, weights: dict[str, np.ndarray]) -> None:
    """Write weights over a model's parameters and buffers; tied copies follow by sharing memory."""
    state = model.state_dict()
    with torch.no_grad():
        for name, array in weights.items():
            state[name].copy_(torch.from_numpy(array))


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what is saved, each tied weight once, under its first name."""
    saved = model.state_dict()
    buffers = {name: array for name, array in model.named_buffers() if name in saved}
    arrays = {**dict(model.named_parameters()), **buffers}
    return {name: tuple(array.shape) for name, array in arrays.items()}


@lru_cache(maxsize=64)
def _weights(
    model_name: str, seed: int, named: tuple[tuple[str, tuple[int, ...]], ...]
) -> dict[str, np.ndarray]:
    return model_weights(model_name, dict(named), seed)


def build(
    model_name: str, head: str, seed: int, dtype: torch.dtype, n_docs: int, **config: Any
) -> Any:
    """A reference model in memory: never reloaded, so that an untied head stays untied (D7)."""
    model = CLASSES[head](RagConfig(**rag_config(model_name, n_docs, **config))).to(dtype).eval()
    fill(model, _weights(model_name, seed, tuple(shapes(model).items())))
    return model


def context_encoder(model_name: str, dtype: torch.dtype) -> Any:
    """A DPR context encoder of the question encoder's shape, with weights of its own."""
    settings = dict(MODELS[model_name]["question_encoder"])
    del settings["model_type"]
    encoder = DPRContextEncoder(DPRConfig(**settings)).to(dtype).eval()
    fill(encoder, seeded_weights(shapes(encoder), 7))
    return encoder


def tensors(arrays: dict[str, np.ndarray], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """numpy to torch, floats in the given dtype."""
    converted = {}
    for name, array in arrays.items():
        converted[name] = torch.from_numpy(array)
        if converted[name].is_floating_point():
            converted[name] = converted[name].to(dtype)
    return converted


class ToyRetriever(RagRetriever):
    """The catalogue's toy index behind the reference's retriever interface.

    No tokenizers, no faiss.
    """

    def __init__(self, model_name: str, config: RagConfig) -> None:
        self.model_name = model_name
        self.config = config
        self.n_docs = config.n_docs

    def __call__(
        self,
        question_input_ids: list[list[int]],
        question_hidden_states: np.ndarray,
        prefix: str | None = None,
        n_docs: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Contexts, document vectors and ids for a batch of questions."""
        docs = toy_retrieve(
            self.model_name,
            np.asarray(question_input_ids),
            question_hidden_states,
            n_docs or self.n_docs,
        )
        return BatchEncoding(docs, tensor_type=return_tensors)


@contextmanager
def pure_float64(active: bool) -> Iterator[None]:
    """Switch off the reference's own casts to float32 (T5's norm and softmax), which would hide
    errors below 1e-7.
    """
    if not active:
        yield
        return
    original_to = torch.Tensor.to
    original_float = torch.Tensor.float

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        is_single = args[:1] == (torch.float32,) or kwargs.get("dtype") is torch.float32
        if is_single and self.dtype is torch.float64:
            return self
        return original_to(self, *args, **kwargs)

    def as_float(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.dtype is torch.float64:
            return self
        return original_float(self)

    torch.set_default_dtype(torch.float64)
    torch.Tensor.to = to
    torch.Tensor.float = as_float
    try:
        yield
    finally:
        torch.Tensor.to = original_to
        torch.Tensor.float = original_float
        torch.set_default_dtype(torch.float32)
