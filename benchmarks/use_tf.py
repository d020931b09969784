"""Contestants in TensorFlow: rag_tf, and the TensorFlow classes of transformers 4.37.2.

Letters: B questions, N documents a question, S context length, D vector size, T target length.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

HEADS = {"token": "RagTokenForGeneration", "sequence": "RagSequenceForGeneration"}
LEARNING_RATE, WEIGHT_DECAY = 3e-5, 0.01


def load(contestant: dict[str, Any], job: dict[str, Any]) -> Any:
    """A model and its inputs."""
    return {"loss": Loss, "generate": Generate, "plain": Plain, "train": Train}[job["kind"]](
        contestant, job
    )


class Contender:
    """A model and its inputs."""

    def __init__(self, contestant: dict[str, Any], job: dict[str, Any]) -> None:
        self.job, self.own = job, contestant["library"] == "dualrag"
        folder = Path(job["folder"])
        self.inputs = {
            name: tf.constant(array) for name, array in dict(np.load(folder / "inputs.npz")).items()
        }
        folder = folder / f"model-{job['head']}"
        if self.own:
            import rag_tf

            self.model = getattr(rag_tf, HEADS[job["head"]]).from_pretrained(folder)
        else:
            self.model = _transformers_model(folder, job["head"], self.inputs, job["docs"])

    def contexts(self) -> dict[str, Any]:
        """What RAG's models take instead of a retriever."""
        names = ("context_input_ids", "context_attention_mask", "doc_scores")
        return {name: self.inputs[name] for name in names if name in self.inputs}

    def check(self) -> Any:
        """What is compared, in numbers."""
        return self.run()

    def run(self) -> Any:
        """What is timed; ends when the numbers are on the host."""
        raise NotImplementedError


def _transformers_model(folder: Path, head: str, inputs: dict[str, Any], docs: int) -> Any:
    """A model of 4.37.2 in memory, built by a call and then given the folder's weights by name.

    Its from_pretrained reads PyTorch's files by way of a model in PyTorch, which would count as its
    memory.
    """
    import transformers
    from safetensors.numpy import load_file

    from rag_core.checkpoint.tf_names import torch_name, unscoped

    transformers.logging.set_verbosity_error()
    config = transformers.RagConfig.from_pretrained(folder)
    model = getattr(transformers, "TF" + HEADS[head])(config)
    given = {
        name: inputs[name] for name in ("context_input_ids", "context_attention_mask", "doc_scores")
    }
    start = tf.zeros((given["doc_scores"].shape[0], 2), tf.int64)
    # Without the leading None this class takes its keywords for missing inputs.
    model(
        None, **{n: tf.identity(t) for n, t in given.items()}, decoder_input_ids=start, n_docs=docs
    )
    model.rag.question_encoder(inputs["input_ids"])
    arrays = load_file(folder / "model.safetensors")
    short = {re.sub(r"^rag\.", "", name): array for name, array in arrays.items()}
    for weight in model.weights:
        name = re.sub(r"^rag\.", "", unscoped(torch_name(weight.name)))
        found = _by_end(short, name)
        weight.assign(found.T if re.search(r"/kernel:0$", weight.name) else found)
    return model


def _by_end(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    parts = name.split(".")
    for start in range(len(parts)):
        end = ".".join(parts[start:])
        hits = [known for known in arrays if known == end or known.endswith("." + end)]
        if len(hits) == 1:
            return arrays[hits[0]]
    raise KeyError(f"no weight for {name}")


class Loss(Contender):
    """Questions encoded, doc scores from given document vectors, loss of given labels."""

    def loss(self, **options: Any) -> Any:
        """The head's loss, summed over the batch: 4.37.2's TensorFlow has no other."""
        given = self.inputs
        encoder = self.model.rag.question_encoder
        # (B, D)
        question = encoder(given["input_ids"], attention_mask=given["attention_mask"], **options)[0]
        scores = tf.linalg.matvec(given["doc_vectors"], question)  # (B, N, D), (B, D) -> (B, N)
        contexts = {**self.contexts(), "doc_scores": scores}
        docs = given["doc_vectors"].shape[1]
        return self.model(
            None, **contexts, labels=given["labels"], n_docs=docs, reduce_loss=True, **options
        ).loss

    def run(self) -> dict[str, Any]:
        """The loss."""
        return {"numbers": [float(tf.squeeze(self.loss()))]}


class Train(Loss):
    """A step of AdamW that moves every parameter.

    Rag_tf's own, since 4.37.2's TensorFlow has none to compare.
    """

    def __init__(self, contestant: dict[str, Any], job: dict[str, Any]) -> None:
        super().__init__(contestant, job)
        from rag_core.training import TrainingConfig
        from rag_tf.training import make_optimizer
        from rag_tf.weights import named_tensors

        config = TrainingConfig(learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.parameters = dict(named_tensors(self.model))
        self.optimizer = make_optimizer(self.parameters, config)

    def step(self, training: bool) -> float:
        """The loss before a step."""
        variables = list(self.parameters.values())
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss = self.loss(training=training)
        found = zip(self.parameters, tape.gradient(loss, variables), strict=True)
        self.optimizer.step(
            {
                name: tf.convert_to_tensor(gradient)
                for name, gradient in found
                if gradient is not None
            }
        )
        return float(loss)

    def check(self) -> dict[str, Any]:
        """The losses of two steps without dropout: the second one shows the gradient."""
        found = {"numbers": [self.step(False), self.step(False)]}
        # with dropout the graphs are others, which are to be traced before anything is timed
        self.run()
        return found

    def run(self) -> dict[str, Any]:
        """One step, with dropout."""
        return {"numbers": [self.step(True)]}


class Generate(Contender):
    """Answers from given contexts and doc scores."""

    def check(self) -> dict[str, Any]:
        """The tokens; rag_tf makes the graph of its loop in the second call."""
        if self.own:
            self.run()
        return self.run()

    def run(self) -> dict[str, Any]:
        """The tokens, the start token included."""
        found = self.model.generate(
            **self.contexts(), n_docs=self.job["docs"], **self.job["options"]
        )
        return {"tokens": found.numpy().tolist()}


class Plain(Generate):
    """The generator's own beam search over contexts, without documents."""

    def run(self) -> dict[str, Any]:
        """The tokens of the best beam of each context."""
        ids, mask, options = (
            self.inputs["context_input_ids"],
            self.inputs["context_attention_mask"],
            self.job["options"],
        )
        if not self.own:
            found = self.model.rag.generator.generate(ids, attention_mask=mask, **options)
        else:  # a question with one document is plain beam search: there is nothing to marginalise
            given = {
                "context_input_ids": ids,
                "context_attention_mask": mask,
                "doc_scores": tf.zeros((len(ids), 1)),
            }
            found = self.model.generate(**given, n_docs=1, **options)
        return {"tokens": found.numpy().tolist()}
