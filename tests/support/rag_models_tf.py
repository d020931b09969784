"""The models of rag_models.py twice, in PyTorch and in TensorFlow, with the same weights."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch  # before TensorFlow

from rag_core.backends import to_numpy
from rag_tf.rag import RagModel, RagSequenceForGeneration, RagTokenForGeneration
from tests.support import rag_models
from tests.support.rag_models import N, Retriever

TWINS = {
    kind.__name__: kind for kind in (RagModel, RagTokenForGeneration, RagSequenceForGeneration)
}
LABELS, QUESTIONS = rag_models.LABELS.numpy(), rag_models.QUESTIONS.numpy()
MASK = (QUESTIONS != 0).astype(np.int64)


@cache
def pair(kind, generator="bart", **fields):
    """(PyTorch's model, TensorFlow's) in float64 with one retriever.

    Made once, so leave them as they are.
    """
    model = rag_models.build(getattr(rag_models, kind), generator, retriever=Retriever(), **fields)
    return model, twin(model)


def twin(model):
    """A TensorFlow model with the weights, config and retriever of a PyTorch model."""
    other = TWINS[type(model).__name__](model.config, retriever=model.retriever)
    other.to(str(model.dtype).removeprefix("torch."))
    other.load_state_dict({name: tensor.numpy() for name, tensor in model.state_dict().items()})
    return other


def contexts(n_docs=N, seed=0):
    """Contexts and scores of two questions as arrays.

    Rows of other lengths, one of them a pad altogether.
    """
    draw = np.random.default_rng(seed)
    ids = draw.integers(3, rag_models.V, (2 * n_docs, rag_models.S))
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    return {
        "context_input_ids": ids,
        "context_attention_mask": mask,
        "doc_scores": draw.normal(size=(2, n_docs)),
    }


def to_torch(values):
    """Arrays in a dictionary as tensors, all else as it is."""

    def tensor(value):
        if isinstance(value, tuple):
            return tuple(map(tensor, value))
        return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value

    return {name: tensor(value) for name, value in values.items()}


def error_of(function):
    """What a call raises, without what is PyTorch's or TensorFlow's own name for a thing."""
    try:
        function()
    except (TypeError, ValueError) as error:
        text = (
            str(error)
            .replace("torch.long", "tf.int64")
            .replace("torch.", "tf.")
            .replace("'pt'", "'tf'")
        )
        return type(error), text.replace(".forward got", ".call got").replace("rag_torch", "rag_tf")
    return None


def assert_same(got, want, name="", tolerance=1e-10):
    """Records, tuples and tensors of both frameworks, leaf by leaf; None only where None is."""
    if hasattr(want, "keys"):
        assert list(got.keys()) == list(want.keys())
        for key in want.keys():
            assert_same(got[key], want[key], f"{name}.{key}", tolerance)
    elif isinstance(want, list | tuple):
        assert len(got) == len(want), name
        for place, (one, other) in enumerate(zip(got, want, strict=True)):
            assert_same(one, other, f"{name}[{place}]", tolerance)
    else:
        got, want = to_numpy(got), to_numpy(want)
        assert got.shape == want.shape, name
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=name)


def traces(model):
    """How many graphs a model, its parts and heads have been compiled to."""
    parts = [model, model.rag, model.question_encoder, model.generator]
    graphs = {
        id(graph): graph for part in parts for graph in part.__dict__.get("_graphs", {}).values()
    }
    return sum(len(graph.traces) for graph in graphs.values())
