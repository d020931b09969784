"""The operations on tensors that rag_core's generation asks for, in PyTorch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rag_core.generation import Engine
from rag_torch import contexts, rescoring, step_scores
from rag_torch.layers import Trace
from rag_torch.marginalize import doc_log_probs, widen

# Numbers of a block of logits held at once while rescoring: what a CPU's cache holds,
_BLOCK = 2**23
# and what keeps a GPU busy.
_BLOCK_GPU = 2**27


class TensorEngine(Engine):
    """See `rag_core.generation.Engine`."""

    framework = "pt"
    # The beams of a context share its cache, and one of them can stand for all.
    shares_first_step = True
    has_graphs = False

    facts = staticmethod(contexts.facts)
    checked_ids = staticmethod(contexts.checked_ids)
    checked_mask = staticmethod(contexts.checked_mask)
    checked_questions = staticmethod(contexts.checked_questions)
    table_size = staticmethod(contexts.table_size)
    used_width = staticmethod(contexts.used_length)
    doc_log_probs = staticmethod(doc_log_probs)
    log_softmax = staticmethod(step_scores.log_softmax)
    apply_processors = staticmethod(step_scores.apply_processors)
    apply_warpers = staticmethod(step_scores.apply_warpers)
    guided_scores = staticmethod(step_scores.guided_scores)
    target_log_probs = staticmethod(rescoring.target_log_probs)
    tree_log_probs = staticmethod(rescoring.tree_log_probs)
    candidate_scores = staticmethod(rescoring.candidate_scores)

    def tensor(self, array: Any, like: Any = None) -> Tensor:
        if like is None:
            return torch.as_tensor(array)
        if not isinstance(like, Tensor):
            like = next(like.parameters())
        return torch.as_tensor(array, device=like.device)

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, Tensor)

    def has_nan(self, x: Tensor) -> bool:
        return bool(x.isnan().any())

    def bool_mask(self, mask: Tensor | None, like: Tensor) -> Tensor:
        if mask is None:
            return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
        return mask.bool()

    def same_mask(self, mask: Tensor, other: Tensor) -> bool:
        width = other.shape[1]
        if not torch.equal(mask[:, :width], other):
            return False
        return not bool(mask[:, width:].any())

    def take_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        return x[rows]

    def repeat_rows(self, x: Tensor, times: int) -> Tensor:
        return x.repeat_interleave(times, dim=0)

    def scatter_rows(self, x: Tensor, rows: Tensor, count: int) -> Tensor:
        zeros = x.new_zeros(count, *x.shape[1:])
        return zeros.index_copy(0, rows, x)

    def buffer(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return like.new_zeros(shape)

    def generation_context(self, model: Any) -> AbstractContextManager[Any]:
        return torch.no_grad()

    def on_device(self, module: Any) -> AbstractContextManager[Any]:
        return nullcontext()  # tensors know where they are

    def draw_seed(self) -> int:
        return int(torch.randint(2**62, ()))

    def encode_distinct(self, generator: Any, input_ids: Tensor, mask: Tensor) -> Tensor:
        both = torch.cat([input_ids, mask.to(input_ids.dtype)], dim=1)  # (R, 2S)
        distinct, place = both.unique(dim=0, return_inverse=True)
        if len(distinct) == len(both):
            return generator.encode(input_ids, mask)
        width = input_ids.shape[1]
        distinct_ids = distinct[:, :width]
        distinct_mask = distinct[:, width:].bool()
        states = generator.encode(distinct_ids, distinct_mask)
        return states[place]

    def decode_step(
        self,
        generator: Any,
        state: Any,
        tokens: Tensor,
        log_priors: Tensor | None,
        traced: tuple[bool, bool] | None = None,
    ) -> tuple[Tensor, Any]:
        noted = None
        if traced is None:
            logits = generator.decode(tokens, state)
        else:
            trace = Trace(*traced)
            logits = generator.decode(tokens, state, trace=trace)
            noted = trace.result()
        scores = widen(logits[:, :, -1])  # (q*N, K, V)
        if log_priors is not None:
            n_docs = log_priors.shape[1]
            by_question = scores.unflatten(0, (-1, n_docs))  # (q, N, K, V)
            scores = step_scores.marginal_scores(by_question, log_priors)  # (q, K, V)
        return scores.flatten(0, 1), noted

    def choose_tokens(
        self, scores: Tensor, noise: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        drawn = scores
        if noise is not None:
            drawn = scores + self.tensor(noise, scores)
        tokens = drawn.argmax(dim=-1)  # (R,)
        log_probs = scores.log_softmax(dim=-1)
        log_probs = log_probs.gather(1, tokens[:, None]).squeeze(1)  # (R,)
        return tokens.cpu().numpy(), log_probs.cpu().numpy()

    def choose_candidates(
        self,
        scores: Tensor,
        sums: np.ndarray,
        active: np.ndarray,
        noise: np.ndarray | None,
        count: int,
        inplace: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        so_far = torch.as_tensor(sums, device=scores.device, dtype=scores.dtype)
        so_far = so_far.reshape(-1, 1)  # (Q*K, 1)
        if inplace:
            total = scores.add_(so_far)  # (Q*K, V)
        else:
            total = scores + so_far

        def of_active(x: Tensor) -> Tensor:
            x = x.reshape(len(sums), -1)  # (Q, K*V)
            # All rows are most often active: no copy then.
            if len(active) == len(sums):
                return x
            return x[self.tensor(active, x)]  # (q, K*V)

        if noise is None:
            values, places = step_scores.best_candidates(of_active(total), count)
        else:
            drawn = total + self.tensor(noise, scores)
            _, places = step_scores.best_candidates(of_active(drawn), count)
            values = of_active(total).gather(1, places)
        return values.cpu().numpy(), places.cpu().numpy()

    def search_in_graph(self, decoder: Any, options: Any, hooks: Any, starts: np.ndarray) -> None:
        return None  # PyTorch runs its operations one by one, at no cost that a graph would save

    def block_size(self, like: Tensor) -> int:
        if like.device.type == "cpu":
            return _BLOCK
        return _BLOCK_GPU


ENGINE = TensorEngine()
