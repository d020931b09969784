"""What every contestant computes: the same weights and the same inputs, made once and kept as files.

A workload is a folder: `model-token` and `model-sequence` (config.json, model.safetensors as transformers reads them)
and `inputs.npz`. Weights are drawn by name (`rag_core.parity.seeded_weights`), contexts are real Wikipedia passages.

Letters: B questions, N documents a question, Q question length, S context length, D vector size.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rag_core import demo
from rag_core.checkpoint import write_checkpoint
from rag_core.config import RagConfig
from rag_core.parity import seeded_noise, seeded_weights
from rag_core.tokenizer import Tokenizer
from rag_core.weight_shapes import expected_shapes, tied_names

CACHE = Path(__file__).resolve().parent.parent / "build" / "benchmarks"


@dataclass(frozen=True)
class Size:
    """A model and a batch.

    Attributes:
        name: of its folder.
        width: of encoder and generator.
        encoder_layers: of the question encoder.
        generator_layers: of BART's encoder, and of its decoder.
        heads: attention heads of each.
        vocab: BART's vocabulary.
        questions: B.
        docs: N.
        tokens: new tokens forced.
        longest: length that 4.37.2's retriever pads contexts to (`max_combined_length`).
    """

    name: str
    width: int = 768
    encoder_layers: int = 12
    generator_layers: int = 6
    heads: int = 12
    vocab: int = 50_265
    questions: int = 4
    docs: int = 5
    tokens: int = 20
    longest: int = 300


BASE = Size("base")
QUICK = Size("quick", width=128, encoder_layers=2, generator_layers=2, heads=4, vocab=5_000, tokens=8)
TINY = Size("tiny", width=64, encoder_layers=2, generator_layers=2, heads=4, vocab=1_000, longest=128)
PLAIN = Size("plain", encoder_layers=2, vocab=20_000)  # the generator alone, for CTranslate2

QUESTIONS = (
    "Which epic novel did Leo Tolstoy set during Napoleon's invasion of Russia?",
    "which planet in the solar system is famous for its rings",
    "Who developed the theory of general relativity?",
    "what is the longest river in africa",
)


def config_of(size: Size) -> RagConfig:
    """The model's config; BART generates exactly `size.tokens` new tokens after its start token."""
    d, heads, layers = size.width, size.heads, size.generator_layers
    bart = {
        "model_type": "bart",
        "vocab_size": size.vocab,
        "d_model": d,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * d,
        "decoder_ffn_dim": 4 * d,
        "max_position_embeddings": 1024,
        # CTranslate2's converter looks for these two; BART has neither in front of its layers
        "normalize_before": False,
        "normalize_embedding": True,
        "forced_eos_token_id": None,
    }
    dpr = {
        "model_type": "dpr",
        "vocab_size": 30_522,
        "hidden_size": d,
        "num_hidden_layers": size.encoder_layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * d,
    }
    return RagConfig.from_dict(
        {
            "question_encoder": dpr,
            "generator": bart,
            "n_docs": size.docs,
            "max_combined_length": size.longest,
            "retrieval_vector_size": d,
        }
    )


def prepared(size: Size, cache: Path = CACHE) -> Path:
    """The workload's folder, made at the first call."""
    folder = cache / size.name
    wanted = json.dumps(asdict(size), indent=1)
    if (folder / "size.json").is_file() and (folder / "size.json").read_text() == wanted:
        return folder
    config = config_of(size)
    folder.mkdir(parents=True, exist_ok=True)
    for head in ("token", "sequence"):
        shapes = expected_shapes(config, head)
        tied = {name for group in tied_names(config, head) for name in group[1:]}
        drawn = seeded_weights({name: shape for name, shape in shapes.items() if name not in tied}, seed=11)
        weights = {name: drawn.pop(name).astype(np.float32) for name in list(drawn)}
        write_checkpoint(folder / f"model-{head}", weights, config, architecture=f"Rag{head.title()}ForGeneration")
    np.savez(folder / "inputs.npz", **inputs(size, config))
    (folder / "size.json").write_text(wanted)  # last: it says that the rest is whole
    return folder


def inputs(size: Size, config: RagConfig) -> dict[str, np.ndarray]:
    """Question ids (B, Q), contexts (B*N, S) padded to their longest allowed, doc scores (B, N), labels (B, T).

    Contexts are Wikipedia lead paragraphs and a question, 60 to 190 tokens, in the ids of the demo's WordPiece
    tokenizer, between BART's <s> and </s>. The ids need no other meaning: weights are drawn.
    """
    tokenizer = Tokenizer.from_pretrained(demo.encoder_folder(print))
    limit = min(size.vocab, 30_522) - 4
    rows = size.questions * size.docs
    lead = [json.loads(line) for line in demo.passages_file(print).open(encoding="utf-8")]
    lengths = np.linspace(60, min(190, size.longest - 2), rows).round().astype(int)[_shuffled(rows)]
    ids = np.full((rows, size.longest), config.generator.pad_token_id, dtype=np.int64)
    question_rows = [_ids(tokenizer, QUESTIONS[b % len(QUESTIONS)]) for b in range(size.questions)]
    at = 0
    for row, length in enumerate(lengths):
        text: list[int] = []
        while len(text) < length - 2:  # one lead paragraph, or as many as it takes
            text += _ids(tokenizer, lead[(at * 37) % len(lead)]["text"])
            at += 1
        question = question_rows[row // size.docs]
        body = [4 + i % limit for i in text[: length - 2 - len(question)] + question]
        ids[row, :length] = [config.generator.bos_token_id, *body, config.generator.eos_token_id]
    mask = np.arange(size.longest) < lengths[:, None]
    longest = 2 + max(map(len, question_rows))
    questions = np.zeros((size.questions, longest), dtype=np.int64)
    for b, row_ids in enumerate(question_rows):
        questions[b, : len(row_ids) + 2] = [101, *row_ids, 102]
    labels = 4 + np.abs(seeded_noise("labels", (size.questions, size.tokens)) * limit / 3).astype(np.int64) % limit
    labels[:, 0], labels[:, -1] = config.generator.bos_token_id, config.generator.eos_token_id
    return {
        "input_ids": questions,
        "attention_mask": (questions > 0).astype(np.int64),
        "context_input_ids": ids,
        "context_attention_mask": mask.astype(np.int64),
        "doc_scores": (75 + seeded_noise("doc scores", (size.questions, size.docs))).astype(np.float32),
        "labels": labels,
    }


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _shuffled(count: int) -> np.ndarray:
    return np.argsort(seeded_noise("order", (count,)))
