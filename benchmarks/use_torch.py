"""Contestants in PyTorch: rag_torch, transformers 4.37.2 and 5. The same calls for all of them.

Letters: B questions, N documents a question, S context length, D vector size, T target length.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

HEADS = {"token": "RagTokenForGeneration", "sequence": "RagSequenceForGeneration"}
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
LEARNING_RATE, WEIGHT_DECAY = 3e-5, 0.01


def load(contestant: dict[str, Any], job: dict[str, Any]) -> Any:
    """A model on its device, and its inputs."""
    return {"loss": Loss, "generate": Generate, "plain": Plain, "train": Train}[job["kind"]](
        contestant, job
    )


class Contender:
    """A model, its inputs, and how it computes."""

    def __init__(self, contestant: dict[str, Any], job: dict[str, Any]) -> None:
        self.job, self.own = job, contestant["library"] == "dualrag"
        self.device, kind = torch.device(job["device"]), contestant["dtype"]
        self.autocast = kind == "autocast"
        self.model = self._model(Path(job["folder"]) / f"model-{job['head']}")
        if kind == "int8":
            from rag_torch.quantize import quantized

            self.model = quantized(self.model)
        self.model = self.model.to(self.device, HALF.get(kind)).eval()
        arrays = dict(np.load(Path(job["folder"]) / "inputs.npz"))
        self.inputs = {
            name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()
        }

    def _model(self, folder: Path) -> Any:
        if self.own:
            import rag_torch as library
        else:
            import transformers as library

            library.logging.set_verbosity_error()
        return getattr(library, HEADS[self.job["head"]]).from_pretrained(folder)

    @property
    def precision(self) -> Any:
        """Autocast, where it was asked for."""
        if self.autocast:
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

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


class Loss(Contender):
    """Questions encoded, doc scores from given document vectors, loss of given labels."""

    def loss(self) -> torch.Tensor:
        """The head's loss, summed over the batch: 4.37.2's TensorFlow has no other."""
        given = self.inputs
        # (B, D)
        question = self.model.question_encoder(
            given["input_ids"], attention_mask=given["attention_mask"]
        )[0]
        vectors = given["doc_vectors"].to(question.dtype)  # (B, N, D)
        scores = torch.bmm(question.unsqueeze(1), vectors.transpose(1, 2)).squeeze(1)  # (B, N)
        contexts = {**self.contexts(), "doc_scores": scores}
        return self.model(
            **contexts, labels=given["labels"], n_docs=vectors.shape[1], reduce_loss=True
        ).loss

    @torch.no_grad()
    def run(self) -> dict[str, Any]:
        """The loss."""
        with self.precision:
            return {"numbers": [self.loss().item()]}


class Train(Loss):
    """A step of AdamW that moves every parameter."""

    def __init__(self, contestant: dict[str, Any], job: dict[str, Any]) -> None:
        super().__init__(contestant, job)
        if self.own:
            from rag_core.training import TrainingConfig
            from rag_torch.training import make_optimizer

            config = TrainingConfig(learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
            self.optimizer = make_optimizer(dict(self.model.named_parameters()), config)
        else:
            decayed: dict[bool, list[Any]] = {True: [], False: []}
            for name, parameter in self.model.named_parameters():
                plain = parameter.dim() < 2 or "bias" in name or "norm" in name.lower()
                decayed[not plain].append(parameter)
            groups = [{"params": decayed[True]}, {"params": decayed[False], "weight_decay": 0.0}]
            self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def step(self) -> float:
        """The loss before a step."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision:
            loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def check(self) -> dict[str, Any]:
        """The losses of two steps without dropout: the second one shows the gradient."""
        self.model.eval()
        found = {"numbers": [self.step(), self.step()]}
        self.run()  # with dropout the work is another, which is to be warmed up, too
        return found

    def run(self) -> dict[str, Any]:
        """One step, with dropout."""
        self.model.train()
        return {"numbers": [self.step()]}


class Generate(Contender):
    """Answers from given contexts and doc scores."""

    @torch.no_grad()
    def run(self) -> dict[str, Any]:
        """The tokens, the start token included."""
        with self.precision:
            found = self.model.generate(
                **self.contexts(), n_docs=self.job["docs"], **self.job["options"]
            )
        return {"tokens": found.tolist()}


class Plain(Contender):
    """The generator's own beam search over contexts, without documents."""

    @torch.no_grad()
    def run(self) -> dict[str, Any]:
        """The tokens of the best beam of each context."""
        ids, mask, options = (
            self.inputs["context_input_ids"],
            self.inputs["context_attention_mask"],
            self.job["options"],
        )
        if not self.own:
            return {
                "tokens": self.model.generator.generate(
                    ids, attention_mask=mask, **options
                ).tolist()
            }
        # a question with one document is plain beam search: there is nothing to marginalise
        scores = torch.zeros((len(ids), 1), device=ids.device)
        given = {"context_input_ids": ids, "context_attention_mask": mask, "doc_scores": scores}
        return {"tokens": self.model.generate(**given, n_docs=1, **options).tolist()}
