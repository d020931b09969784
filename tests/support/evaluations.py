"""A tiny model with ten questions to it, for the tests of evaluations."""

from rag_core.backends import load_backend
from rag_core.evaluation import Evaluation, Gold, Question, evaluate
from tests.support.training_models import (
    WORDS,
    ArrayIndex,
    small_config,
    small_retriever,
    small_tokenizers,
)

QUESTIONS = [
    Question(f"q{n}", f"{a} {b} ?", (b, "stone river"), ((Gold(title=a),),))
    for n, (a, b) in enumerate(zip(WORDS, reversed(WORDS), strict=True))
]


class Countable(ArrayIndex):
    """An index that can be gone through."""

    def __len__(self):
        return len(self.titles)


def small_model(backend, folder):
    """A RAG-Token model of that backend with a retriever, in eval mode.

    Args:
        backend: "torch" or "tf".
        folder: where tokenizers are put.
    """
    rag = load_backend(backend)
    tokenizers = small_tokenizers(folder)
    config = small_config(tokenizers, dropout=0.0)
    config.generator.init_std = 1.0
    config.generator.max_length = 6
    if backend == "torch":
        import torch

        torch.manual_seed(1)
    else:
        import tensorflow as tf

        tf.random.set_seed(1)
    model = rag.RagTokenForGeneration(config, retriever=small_retriever(config, tokenizers))
    array = model.retriever.index
    model.retriever.index = Countable(array.titles, array.texts, array.vectors)
    return model.eval()


def sweep(model, **options) -> Evaluation:
    options = {"n_docs": (1, 3), "head": ("token", "sequence"), "progress": False} | options
    return evaluate(model, options.pop("questions", QUESTIONS), **options)
