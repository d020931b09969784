"""The workload of real answers: the demo's generator, with contexts retrieved from the demo's
knowledge base.

python -m benchmarks.demo_workload

transformers has no class for the demo's question encoder, so the folder holds the generator beside
a small drawn DPR encoder, and contexts and doc scores are given: the same for every contestant.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.workload import CACHE, VERSION
from conformance.seeded import seeded_weights
from rag_core.checkpoint.folder import read_weights, write_checkpoint
from rag_core.checkpoint.shapes import expected_shapes
from rag_core.config.rag import RagConfig
from rag_core.demo import material as demo
from rag_core.demo.checkpoint import SHIPPED
from rag_core.retrieval.retriever import RagRetriever
from rag_core.tokenization.rag import RagTokenizer
from rag_torch import RagSequenceForGeneration, load_encoder

QUESTIONS = 4
ENCODER = {
    "model_type": "dpr",
    "vocab_size": 30_522,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def prepared(cache: Path = CACHE) -> Path:
    """The workload's folder, made at the first call.

    The demo's knowledge base is built if there is none yet.
    """
    folder, model = cache / "demo", demo.demo_model_folder()
    wanted = json.dumps(
        {"version": VERSION, "model": (model / "made_from.txt").read_text(), "questions": QUESTIONS}
    )
    if (folder / "size.json").is_file() and (folder / "size.json").read_text() == wanted:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "size.json").unlink(missing_ok=True)
    base = demo.demo_knowledge_base(lambda encoder: load_encoder(str(encoder)).embed)
    # 4.37.2 has no truncation that spares the question
    retriever = RagRetriever.from_pretrained(
        model, index=base.index(), prompt_truncation="compatible"
    )
    np.savez(folder / "inputs.npz", **_inputs(model, retriever))
    write_model(folder / "model-sequence", model)
    paths = {"kb": str(base.path.resolve()), "tokenizers": str(model.resolve())}
    (folder / "retriever.json").write_text(json.dumps(paths))
    (folder / "size.json").write_text(wanted)
    return folder


@torch.no_grad()
def _inputs(model: Path, retriever: RagRetriever) -> dict[str, np.ndarray]:
    lines = (SHIPPED / "natural_questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line)["question"] for line in lines[:QUESTIONS]]
    head = RagSequenceForGeneration.from_pretrained(model)
    tokens = RagTokenizer.from_pretrained(model).encode_questions(
        questions, padding=True, return_tensors="pt"
    )
    vectors = head.question_encoder(tokens["input_ids"], tokens["attention_mask"])[0]  # (B, D)
    found = retriever(tokens["input_ids"], vectors, return_tensors="pt")
    scores = (vectors[:, None] * found["retrieved_doc_embeds"]).sum(-1)  # (B, N)
    return {
        "input_ids": tokens["input_ids"].numpy(),
        "question_vectors": vectors.numpy().astype(np.float32),
        "context_input_ids": found["context_input_ids"].numpy(),
        "context_attention_mask": found["context_attention_mask"].numpy(),
        "doc_scores": scores.numpy().astype(np.float32),
    }


def write_model(folder: Path, model: Path) -> None:
    """The demo's generator beside a drawn encoder, as transformers 4.37.2 reads it."""
    values = json.loads((model / "config.json").read_text())
    config = RagConfig.from_dict(
        {**values, "question_encoder": ENCODER, "retrieval_vector_size": 64}
    )
    trained = read_weights(model)
    weights = {
        name: np.asarray(trained[name]) for name in trained if name.startswith("rag.generator.")
    }
    shapes = expected_shapes(config, "sequence")
    drawn = {
        name: shape for name, shape in shapes.items() if name.startswith("rag.question_encoder.")
    }
    weights |= {
        name: array.astype(np.float32) for name, array in seeded_weights(drawn, seed=11).items()
    }
    write_checkpoint(folder, weights, config, architecture="RagSequenceForGeneration")


if __name__ == "__main__":
    print(prepared())
