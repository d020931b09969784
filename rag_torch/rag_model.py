"""RagModel in PyTorch: how its networks are run, and the one crossing to NumPy between them.

Letters: B questions, N documents a question, Q question length, D vector size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rag_core.modeling import RagModelBase
from rag_torch.components import RagPretrained
from rag_torch.foreign import as_generator, encode_questions
from rag_torch.layers import outside_graph

if TYPE_CHECKING:
    from rag_torch.bert import PooledEncoder
    from rag_torch.seq2seq import Generator


class RagModel(RagModelBase[Tensor], RagPretrained):
    question_encoder: PooledEncoder

    def _set_generator(self, module: Any) -> None:
        self._modules["generator"] = module

    @property
    def generator(self) -> Generator:
        module = self._modules["generator"]
        adapter = self.__dict__.get("_adapter")
        if adapter is None or getattr(adapter, "module", adapter) is not module:
            adapter = as_generator(module)
            object.__setattr__(self, "_adapter", adapter)
        return adapter

    def _encode(self, mode: dict[str, Any], encoder: Any, *inputs: Any) -> Any:
        return encode_questions(encoder, *inputs)

    def _retrieve(
        self, retriever: Any, questions: Tensor, vectors: Tensor, options: dict[str, Any]
    ) -> Any:
        on_cpu = vectors.detach().to("cpu", torch.float32).numpy()
        return outside_graph(retriever, questions, on_cpu, return_tensors="pt", **options)

    def _run_generator(self, mode: dict[str, Any], **inputs: Any) -> Any:
        return self.generator(**inputs)
