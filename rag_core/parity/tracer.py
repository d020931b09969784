"""A head run on NumPy arrays that hands back NumPy arrays, for `trace` to record its stages.

Letters: B questions, N documents a question, T target length, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np

from rag_core.backends import to_numpy
from rag_core.generation import GenerationConfig, sequence_options, token_options

Tensor = Any  # the framework's own


class TracerBase(ABC):
    """Runs a RAG-Token or RAG-Sequence head; a backend adds its tensors and gradients.

    Args:
        model: the head; it is put into eval mode.

    Attributes:
        backend: "torch" or "tf".
        version: of the framework.
        math: the backend's module `marginalize`.
    """

    backend: ClassVar[str]
    version: ClassVar[str]
    math: Any

    def __init__(self, model: Any) -> None:
        self.model = model.eval()

    # what a backend adds

    @abstractmethod
    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays over the weights of these names, in the model's dtype; tied copies follow."""

    @abstractmethod
    def tensor(self, array: np.ndarray) -> Tensor:
        """An array as a tensor, in the model's dtype if its numbers are real."""

    @abstractmethod
    def run(self, inputs: Mapping[str, Any], gradients: bool) -> tuple[Any, dict[str, np.ndarray]]:
        """The head's output for these arguments; and where `gradients` are wanted that of the
        summed loss for every parameter, by name, zeros where the loss does not depend on it.
        """

    def without_gradients(self) -> AbstractContextManager[Any]:
        """Within it nothing is kept for gradients."""
        return nullcontext()

    # the same in both

    def forward(
        self,
        inputs: Mapping[str, np.ndarray],
        labels: np.ndarray,
        n_docs: int,
        switches: Sequence[Mapping[str, Any]],
        gradients: bool,
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """One forward pass with labels.

        Args:
            inputs: questions, or contexts with their scores, by the names of the head's arguments.
            labels: (B, T).
            n_docs: N.
            switches: keywords of `get_nll`, one loss each.
            gradients: whether to differentiate the summed loss.

        Returns:
            The output's fields, hidden states as tuples, and beside them `doc_log_probs` (B, N),
            `marginal` and `losses`; and the gradient of every parameter, by name, zeros where the
            loss does not depend on it.
        """
        arguments = {
            **self._tensors(inputs),
            "labels": self.tensor(labels),
            "n_docs": n_docs,
            "reduce_loss": False,
            "output_hidden_states": True,
            "output_retrieved": True,
        }
        out, by_name = self.run(arguments, gradients)
        pad = self.model.config.generator.pad_token_id
        target = self.tensor(np.where(labels == -100, pad, labels))
        fields = {name: _arrays(value) for name, value in out.items() if name != "past_key_values"}
        with self.without_gradients():
            fields["doc_log_probs"] = to_numpy(self.math.doc_log_probs(out.doc_scores))
            fields["marginal"] = to_numpy(self._marginal(out, target, n_docs, pad))
            losses = (
                self.model.get_nll(out.logits, out.doc_scores, target, n_docs=n_docs, **options)
                for options in switches
            )
            fields["losses"] = tuple(to_numpy(loss) for loss in losses)
        return fields, by_name

    def _marginal(self, out: Any, target: Tensor, n_docs: int, pad: int) -> Tensor:
        """RAG-Token: (B, T, V) log p(y_i|x, y_<i). RAG-Sequence: (B, N) log p(z|x) p(y|x, z)."""
        if self.model.head == "token":
            return self.model.marginalize(out.logits, out.doc_scores, n_docs)
        target = self.math.shift_left(target, pad)
        logits = self.math.split_docs(out.logits, n_docs)
        log_probs = self.math.target_log_probs(logits, target)  # (B, N, T)
        log_priors = self.math.doc_log_probs(out.doc_scores)
        return self.math.sequence_joint(log_probs, log_priors, target == pad)

    def generate(
        self, inputs: Mapping[str, np.ndarray], n_docs: int, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The fields of a `GenerateOutput` as arrays.

        `scores` (a tuple, one (rows, V) a step) with `output_scores`.
        """
        tensors = self._tensors(inputs)
        out = self.model.generate(**tensors, n_docs=n_docs, **options, return_dict_in_generate=True)
        return {name: _arrays(value) for name, value in out.items()}

    def options(self, options: Mapping[str, Any]) -> GenerationConfig:
        """The options that the searches of such a `generate` call run with."""
        fields = GenerationConfig.__dataclass_fields__
        known = {name: value for name, value in options.items() if name in fields}
        if self.model.head == "token":
            return token_options(self.model, **known)
        known.pop("num_return_sequences", None)
        return sequence_options(self.model, known.pop("num_beams", None), **known)

    def _tensors(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return {name: self.tensor(array) for name, array in inputs.items()}


def _arrays(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_arrays(part) for part in value)
    return to_numpy(value)
