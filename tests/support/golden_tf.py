"""The catalogue's models in TensorFlow, filled with the seeded weights; shared by the tests that
hold golden arrays.

`golden_torch` has the same names, so that a test takes either as `golden`.

The networks of one name and precision are built once, so that their graphs are traced once: a model
here is a shell around them, and `build` writes the weights of its seed into them. What an earlier
`build` of that name gave has these weights then, too.
"""

import contextlib
from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf

from conformance.cases import MODELS, contexts, model_weights, rag_config, toy_retrieve
from conformance.seeded import seeded_weights
from rag_core.config.rag import DPRConfig, RagConfig
from rag_tf import DPRContextEncoder, RagModel, RagSequenceForGeneration, RagTokenForGeneration
from rag_tf.weights import named_tensors

# what each model holds; they are all kept by the caches below
_FILLED: dict[int, dict[str, np.ndarray]] = {}
CLASSES = {"model": RagModel, "token": RagTokenForGeneration, "sequence": RagSequenceForGeneration}
integers = tf.constant
set_seed = tf.random.set_seed
without_gradients = contextlib.nullcontext


@cache
def networks(model_name: str, precision: str) -> Any:
    """The two networks, as a RagModel."""
    return RagModel(RagConfig(**rag_config(model_name))).to(precision)


@cache
def weights(model_name: str, seed: int) -> dict[str, np.ndarray]:
    """Seeded weights."""
    return model_weights(model_name, shapes(networks(model_name, "float32")), seed)


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights, tied ones once."""
    return {name: tuple(variable.shape) for name, variable in named_tensors(model)}


def fill(model: Any, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays into a model's variables, if they are not there."""
    if _FILLED.get(id(model)) is not arrays:
        for name, variable in named_tensors(model):
            variable.assign(arrays[name])
        _FILLED[id(model)] = arrays


def build(model_name: str, head: str, seed: int, precision: str, n_docs: int, **config: Any) -> Any:
    """A model of the catalogue; it shares its networks with all of that name and precision."""
    parts = networks(model_name, precision)
    fill(parts, weights(model_name, seed))
    return CLASSES[head](
        RagConfig(**rag_config(model_name, n_docs, **config)),
        question_encoder=parts.question_encoder,
        generator=parts.generator,
    )


@cache
def context_encoder(model_name: str, precision: str) -> Any:
    """The document encoder of the context-encoder cases."""
    settings = {
        key: value
        for key, value in MODELS[model_name]["question_encoder"].items()
        if key != "model_type"
    }
    encoder = DPRContextEncoder(DPRConfig(**settings)).to(precision)
    fill(encoder, seeded_weights(shapes(encoder), 7))
    return encoder


def tensors(arrays: dict[str, np.ndarray], precision: str) -> dict[str, tf.Tensor]:
    """numpy to TensorFlow, floats in the given precision."""
    return {
        name: tf.constant(array.astype(precision) if array.dtype.kind == "f" else array)
        for name, array in arrays.items()
    }


def toy_retriever(model_name: str, precision: str) -> Any:
    """The catalogue's toy index as a retriever: any callable will do."""

    def retrieve(
        question_input_ids: Any, vectors: np.ndarray, **options: Any
    ) -> dict[str, tf.Tensor]:
        found = toy_retrieve(model_name, np.asarray(question_input_ids), vectors, options["n_docs"])
        return tensors(found, precision)

    return retrieve


def with_contexts(head: str, n_docs: int = 3, batch: int = 2, name: str = "bart_scaled") -> Any:
    """One model of the catalogue, float32, and contexts for it."""
    given = tensors(contexts(name, "given", batch, n_docs), "float32")
    return build(name, head, 3, "float32", n_docs), given


def raise_every_third(ids: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    """As conformance.generation_cases.raise_every_third, which is for PyTorch."""
    third = tf.range(scores.shape[1]) % 3 == ids.shape[-1] % 3
    return scores + tf.where(third, 1.5, 0.0)


def heard(rule: Any) -> Any:
    """A `prefix_allowed_tokens_fn` of the catalogue as `generate` calls it.

    With NumPy's integers: the rule looks at them for every token of the vocabulary.
    """
    return lambda batch_id, ids: rule(batch_id, ids.numpy())


def cast(model: Any, precision: str) -> Any:
    """The model with its weights in another precision."""
    return model.to(precision)


def restore(model: Any, arrays: dict[str, np.ndarray]) -> None:
    """Give a model the weights of a `state_dict` of arrays."""
    model.load_state_dict(arrays)


def draw() -> float:
    """The framework's next random number."""
    return float(tf.random.uniform(()))
