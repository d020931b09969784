"""A head run on NumPy arrays that hands back NumPy arrays, for `rag_core.parity.trace` to record
its stages.

Letters: B questions, N documents a question, S context length, T target length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rag_core.backends import to_numpy
from rag_core.generation import GenerationConfig, sequence_options, token_options
from rag_torch import marginalize as marginal
from rag_torch.weights import named_tensors, tied_names


class Tracer:
    """Runs a RAG-Token or RAG-Sequence head.

    Args:
        model: the head; it is put into eval mode.
    """

    backend = "torch"
    version = torch.__version__

    def __init__(self, model: Any) -> None:
        self.model = model.eval()

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes arrays over the weights of these names, in the model's dtype.

        Tied copies follow.
        """
        ties, state = tied_names(self.model), self.model.state_dict()
        with torch.no_grad():
            for name, array in arrays.items():
                if name not in ties:
                    state[name].copy_(torch.from_numpy(np.array(array)))

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
        model, target = self.model, torch.from_numpy(labels)
        with torch.set_grad_enabled(gradients):
            out = model(
                **self._tensors(inputs),
                labels=target,
                n_docs=n_docs,
                reduce_loss=False,
                output_hidden_states=True,
                output_retrieved=True,
            )
        found = {name: _arrays(value) for name, value in out.items() if name != "past_key_values"}
        with torch.no_grad():
            found["doc_log_probs"] = to_numpy(marginal.doc_log_probs(out.doc_scores))
            found["marginal"] = to_numpy(self._marginal(out, target, n_docs))
            given = (out.logits, out.doc_scores, target)
            found["losses"] = tuple(
                to_numpy(model.get_nll(*given, n_docs=n_docs, **each)) for each in switches
            )
        return found, self._gradients(out.loss.sum()) if gradients else {}

    def _marginal(self, out: Any, target: Tensor, n_docs: int) -> Tensor:
        """RAG-Token: (B, T, V) log p(y_i|x, y_<i). RAG-Sequence: (B, N) log p(z|x) p(y|x, z)."""
        if self.model.head == "token":
            return self.model.marginalize(out.logits, out.doc_scores, n_docs)
        pad = self.model.config.generator.pad_token_id
        target = marginal.shift_left(target, pad)
        each = marginal.target_log_probs(out.logits.unflatten(0, (-1, n_docs)), target)  # (B, N, T)
        return marginal.sequence_joint(each, marginal.doc_log_probs(out.doc_scores), target == pad)

    def _gradients(self, loss: Tensor) -> dict[str, np.ndarray]:
        named = {name: tensor for name, tensor in named_tensors(self.model) if tensor.requires_grad}
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        pairs = zip(named.items(), found, strict=True)
        return {
            name: to_numpy(torch.zeros_like(x) if each is None else each)
            for (name, x), each in pairs
        }

    def generate(
        self, inputs: Mapping[str, np.ndarray], n_docs: int, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The fields of a `GenerateOutput` as arrays.

        `scores` (a tuple, one (rows, V) a step) with `output_scores`.
        """
        given = self._tensors(inputs)
        out = self.model.generate(**given, n_docs=n_docs, **options, return_dict_in_generate=True)
        return {name: _arrays(value) for name, value in out.items()}

    def options(self, options: Mapping[str, Any]) -> GenerationConfig:
        """The options that the searches of such a `generate` call run with."""
        known = {
            name: value
            for name, value in options.items()
            if name in GenerationConfig.__dataclass_fields__
        }
        if self.model.head == "token":
            return token_options(self.model, **known)
        known.pop("num_return_sequences", None)
        return sequence_options(self.model, known.pop("num_beams", None), **known)

    def _tensors(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
        return {
            name: x.to(self.model.dtype) if x.is_floating_point() else x
            for name, x in tensors.items()
        }


def _arrays(value: Any) -> Any:
    return tuple(_arrays(each) for each in value) if isinstance(value, tuple) else to_numpy(value)
