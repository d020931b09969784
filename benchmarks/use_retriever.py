"""Retrievers as contestants, on the demo's 10,033 passages: rag_core's, and transformers' on the
same files.

Letters: B questions, N documents a question, S context length, D vector size.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

TENSORS = {"torch": "pt", "tf": "tf"}
LONGEST = 128


def load(contestant: dict[str, Any], job: dict[str, Any]) -> Any:
    """A retriever and question vectors."""
    return Retrieve(contestant, job) if job["kind"] == "retrieve" else Call(contestant, job)


class Retrieve:
    """`retriever.retrieve`: vectors in; document ids, vectors and texts out."""

    def __init__(self, contestant: dict[str, Any], job: dict[str, Any]) -> None:
        self.docs, self.tensors = job["docs"], TENSORS[contestant["framework"]]
        folder = Path(job["folder"])
        paths = json.loads((folder / "retriever.json").read_text())
        given = np.load(folder / "inputs.npz")
        self.ids, self.vectors = given["input_ids"].tolist(), given["question_vectors"]
        # imported before faiss, whose threads are then the same
        if contestant["framework"] == "torch":
            import torch  # noqa: F401
        if contestant["library"] == "dualrag":
            self.retriever, self.faiss = _own(paths)
        else:
            self.retriever, self.faiss = _transformers(paths, self.docs)

    def beside(self) -> float:
        """Seconds of faiss' own search, which no retriever can save."""
        started = time.perf_counter()
        self.faiss.search(self.vectors, self.docs)
        return time.perf_counter() - started

    def check(self) -> dict[str, Any]:
        """Document ids and texts; every document is found again in the same order."""
        _, ids, docs = self.retriever.retrieve(self.vectors, self.docs)
        return {"tokens": np.asarray(ids).tolist(), "texts": [list(doc["text"]) for doc in docs]}

    def run(self) -> dict[str, Any]:
        """One retrieval."""
        self.retriever.retrieve(self.vectors, self.docs)
        return {}


class Call(Retrieve):
    """The retriever called: question ids and vectors in, the generator's inputs out."""

    def check(self) -> dict[str, Any]:
        """The prompts' ids."""
        found = self.retriever(self.ids, self.vectors, n_docs=self.docs, return_tensors="np")
        return {"tokens": np.asarray(found["context_input_ids"]).tolist()}

    def run(self) -> dict[str, Any]:
        """One call, with tensors of the framework."""
        self.retriever(self.ids, self.vectors, n_docs=self.docs, return_tensors=self.tensors)
        return {}


def _own(paths: dict[str, str]) -> tuple[Any, Any]:
    from rag_core import RagRetriever
    from rag_core.knowledge.base import KnowledgeBase

    index = KnowledgeBase.open(paths["kb"]).index()
    options = {"index": index, "prompt_truncation": "compatible", "max_combined_length": LONGEST}
    retriever = RagRetriever.from_pretrained(paths["tokenizers"], **options)
    return retriever, _read_index(paths)


def _transformers(paths: dict[str, str], docs: int) -> tuple[Any, Any]:
    import transformers

    transformers.logging.set_verbosity_error()
    kb, folder = Path(paths["kb"]), Path(paths["tokenizers"])
    values = json.loads((folder / "config.json").read_text())
    parts = {
        name: values[name] for name in ("question_encoder", "generator", "title_sep", "doc_sep")
    }
    config = transformers.RagConfig(
        **parts,
        n_docs=docs,
        max_combined_length=LONGEST,
        retrieval_vector_size=values["retrieval_vector_size"],
        index_name="custom",
        passages_path=str(kb / "passages"),
        index_path=str(kb / "index.faiss"),
    )
    question = transformers.BertTokenizerFast.from_pretrained(folder / "question_encoder_tokenizer")
    generator = transformers.BartTokenizerFast.from_pretrained(folder / "generator_tokenizer")
    retriever = transformers.RagRetriever(config, question, generator)
    retriever.init_retrieval()
    return retriever, _read_index(paths)


def _read_index(paths: dict[str, str]) -> Any:
    import faiss

    return faiss.read_index(str(Path(paths["kb"]) / "index.faiss"))
