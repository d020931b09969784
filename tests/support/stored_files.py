"""Writes the files of tests/data/stored, and what a program made of them.

`tests/with_both/test_stored_files.py` holds later code to them. They are not to be written anew
but for a format that is given up on purpose:

    python -m tests.support.stored_files tests/data/stored torch
    python -m tests.support.stored_files tests/data/stored tf

Each backend writes a model, a trace of it for `dualrag parity`, a finished training run and the
checkpoint of one that was killed in its middle; torch, which comes first, the questions and the
knowledge bases, too.
"""

import json
import lzma
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from rag_core import GenerationConfig, KnowledgeBase, RagConfig, RagRetriever, RagTokenizer
from rag_core.backends import load_backend
from rag_core.knowledge.base import build_knowledge_base
from rag_core.parity.command import Request, record
from rag_core.retrieval.index import FaissIndex
from rag_core.training import TrainingConfig, read_examples
from rag_core.training.state import CHECKPOINT
from tests.support.knowledge_bases import hashed
from tests.support.training_models import EXAMPLES, Killed, small_config, small_tokenizers

STORED = Path(__file__).parents[1] / "data" / "stored"
TRAINING = TrainingConfig(
    steps=6,
    batch_size=2,
    accumulation=2,
    learning_rate=3e-3,
    warmup_steps=2,
    save_every=2,
    log_every=3,
    on_collapse="warn",
)
SEARCHES = {
    "greedy": {"num_beams": 1, "no_repeat_ngram_size": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampled": {"do_sample": True, "top_k": 20, "seed": 1},
}


def train(backend: str, stored: Path, out: Path, settings: TrainingConfig = TRAINING):
    """Trains the stored model on the stored questions and knowledge base, or goes on doing it."""
    asked = stored / "questions.jsonl"
    return load_backend(backend).train_files(
        asked,
        stored / backend / "model",
        stored / "knowledge",
        out,
        settings,
        validation=asked,
        **({"device": "cpu"} if backend == "torch" else {}),
        progress=False,
    )


def outputs(backend: str, stored: Path) -> dict[str, np.ndarray]:
    """What the stored model makes of the stored questions with the stored knowledge base."""
    rag, folder = load_backend(backend), stored / backend / "model"
    tensors = {"torch": "pt", "tf": "tf"}[backend]
    index = KnowledgeBase.open(stored / "knowledge").index()
    retriever = RagRetriever.from_pretrained(folder, index=index)
    model = rag.RagTokenForGeneration.from_pretrained(folder, retriever=retriever)
    tokenizer = RagTokenizer.from_pretrained(folder)
    examples = read_examples(stored / "questions.jsonl")[:3]
    given = tokenizer.encode_questions(
        [example.question for example in examples], padding=True, return_tensors=tensors
    )
    labels = tokenizer.encode_targets(
        [example.answers[0] for example in examples], padding=True, return_tensors=tensors
    )["input_ids"]
    result = model(**given, labels=labels, output_retrieved=True)
    found = {
        "loss": result.loss,
        "doc_ids": result.retrieved_doc_ids,
        "doc_scores": result.doc_scores,
        "logits": result.logits[:, :, ::16],
    }
    for name, options in SEARCHES.items():
        found[name] = model.generate(**given, max_length=12, **options)
    answers = model.answer([example.question for example in examples], max_length=12)
    found["answers"] = np.array([answer.text for answer in answers])
    return {name: as_array(value) for name, value in found.items()}


def as_array(value) -> np.ndarray:
    return np.asarray(value.detach() if hasattr(value, "detach") else value)


def top_passages(knowledge: Path) -> np.ndarray:
    """The rows that a stored knowledge base finds for the vectors of its first passages."""
    base = KnowledgeBase.open(knowledge)
    vectors = np.array(base.dataset()[:5]["embeddings"], np.float32)
    return base.index().get_top_docs(vectors, 3)[0]


def write_shared(stored: Path) -> None:
    stored.mkdir(parents=True)
    lines = [json.dumps({"question": e.question, "answer": e.answers[0]}) for e in EXAMPLES]
    (stored / "questions.jsonl").write_text("".join(f"{line}\n" for line in lines))
    with tempfile.TemporaryDirectory() as folder:
        wiki = Path(folder) / "wiki.jsonl"
        passages = [{"title": e.question[:-2], "text": e.answers[0]} for e in EXAMPLES]
        wiki.write_text("".join(json.dumps(passage) + "\n" for passage in passages))
        build_knowledge_base(wiki, stored / "knowledge", hashed, progress=False)
        passages = [
            {"title": f"T{row}", "text": f"a{row % 7} b{row % 11} c{row}"} for row in range(256)
        ]
        wiki.write_text("".join(json.dumps(passage) + "\n" for passage in passages))
        settings = {"nlist": 4, "nprobe": 3, "m": 4, "rerank": 8}
        build_knowledge_base(
            wiki,
            stored / "knowledge_ivfpq",
            hashed,
            index="ivfpq",
            settings=settings,
            progress=False,
        )
    found = {name: top_passages(stored / name) for name in ("knowledge", "knowledge_ivfpq")}
    np.savez(stored / "top_passages.npz", **found)


def write_model(rag, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        tokenizers = small_tokenizers(Path(scratch))
        config = small_config(tokenizers)
        question = {**config.question_encoder.to_dict(), "hidden_size": 8, "intermediate_size": 8}
        narrow = {"d_model": 8, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
        generator = {**config.generator.to_dict(), **narrow}
        config = RagConfig.from_dict(
            config.to_dict(), question_encoder=question, generator=generator
        )
        model = rag.RagTokenForGeneration(config)
        model.generation_config = GenerationConfig(
            num_beams=2, max_length=9, decoder_start_token_id=0, eos_token_id=2, pad_token_id=1
        )
        model.save_pretrained(folder)
        RagTokenizer(*tokenizers).save_pretrained(folder)


def write_trace(backend: str, model: Path, packed: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        record(Request(str(model), dtype="float32", n_docs=1), backend, Path(folder) / "trace.npz")
        packed.write_bytes(lzma.compress((Path(folder) / "trace.npz").read_bytes(), preset=9))


def write_training(backend: str, stored: Path) -> None:
    folder = stored / backend
    train(backend, stored, folder / "trained")
    for part in ("question_encoder_tokenizer", "generator_tokenizer"):
        shutil.rmtree(folder / "trained" / part)  # as they lie beside the model it began with
    search, calls = FaissIndex.get_top_docs, []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) > 2 * 5:
            raise Killed
        return search(*arguments)

    FaissIndex.get_top_docs = dies
    try:
        train(backend, stored, folder / "killed")
    except Killed:
        pass
    finally:
        FaissIndex.get_top_docs = search
    assert [path.name for path in (folder / "killed").iterdir()] == [CHECKPOINT]


def main(stored: Path, backend: str) -> None:
    rag = load_backend(backend)
    if backend == "torch":
        import torch

        torch.manual_seed(3)
        write_shared(stored)
    else:
        import tensorflow as tf

        tf.random.set_seed(3)
    write_model(rag, stored / backend / "model")
    np.savez(stored / backend / "outputs.npz", **outputs(backend, stored))
    if backend == "torch":
        write_trace(backend, stored / backend / "model", stored / "trace.npz.xz")
    write_training(backend, stored)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
