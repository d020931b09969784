"""What every contestant computes: the same weights and the same inputs, made once and kept as
files.

A workload is a folder: `model-token` and `model-sequence` (config.json, model.safetensors as
transformers reads them) and `inputs.npz`. Weights are drawn by name, as `rag_core.parity` draws
them but for a few scales: with those below no token is liked whatever the context says, so that
texts are varied and candidates distinct. Contexts are real Wikipedia passages.

Letters: B questions, N documents a question, Q question length, S context length, D vector size.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conformance.seeded import seeded_weights
from rag_core.checkpoint.folder import write_checkpoint
from rag_core.checkpoint.shapes import expected_shapes, tied_names
from rag_core.config.rag import RagConfig
from rag_core.demo import material as demo
from rag_core.parity.inputs import seeded_noise
from rag_core.tokenization.tokenizer import Tokenizer

CACHE = Path(__file__).resolve().parent.parent / "build" / "benchmarks"
VERSION = 2  # of what is drawn; folders of another one are made anew

# What is multiplied with `seeded_weights`, first match: the generator's biases, and what its layers
# add, matter little; what the decoder reads in a context, and where it is in the answer, matters
# much.
_SCALES = (
    (r"final_logits_bias$", 0.0),
    (r"generator\..*bias$", 0.1),
    (r"decoder.*encoder_attn\.[qk]_proj\.weight$", 3.0 / 1.7),
    (r"decoder.*encoder_attn\.out_proj\.weight$", 2.0),
    (r"(fc2|self_attn\.out_proj)\.weight$", 0.25),
)
# The same for positions, which are drawn without regard to the width, in units of 1/sqrt(width).
_POSITIONS = (
    (r"encoder\.embed_positions\.weight$", 2.5),
    (r"decoder\.embed_positions\.weight$", 5.0),
)


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
QUICK = Size(
    "quick", width=128, encoder_layers=2, generator_layers=2, heads=4, vocab=5_000, tokens=6
)
TINY = Size(
    "tiny", width=64, encoder_layers=2, generator_layers=2, heads=4, vocab=1_000, longest=128
)
# the generator alone, for CTranslate2
PLAIN = Size("plain", encoder_layers=2, vocab=20_000)
PLAIN_QUICK = Size(
    "plain-quick", width=128, encoder_layers=2, generator_layers=2, heads=4, vocab=5_000, tokens=6
)
SIZES = {size.name: size for size in (BASE, QUICK, TINY, PLAIN, PLAIN_QUICK)}

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
    wanted = json.dumps({**asdict(size), "version": VERSION}, indent=1)
    if (folder / "size.json").is_file() and (folder / "size.json").read_text() == wanted:
        return folder
    config = config_of(size)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "size.json").unlink(missing_ok=True)
    for head in ("token", "sequence"):
        weights = drawn_weights(config, head)
        write_checkpoint(
            folder / f"model-{head}",
            weights,
            config,
            architecture=f"Rag{head.title()}ForGeneration",
        )
    if size.name.startswith("plain"):
        write_plain(folder / "model-plain", weights, config)
    np.savez(folder / "inputs.npz", **inputs(size, config))
    (folder / "size.json").write_text(wanted)  # last: it says that the rest is whole
    return folder


def drawn_weights(config: RagConfig, head: str) -> dict[str, np.ndarray]:
    """A model's weights by name, float32."""
    tied = {name for group in tied_names(config, head) for name in group[1:]}
    shapes = {
        name: shape for name, shape in expected_shapes(config, head).items() if name not in tied
    }
    weights = {}
    for name, shape in shapes.items():
        drawn = seeded_weights({name: shape}, seed=11)[name]
        drawn *= next((scale for pattern, scale in _SCALES if re.search(pattern, name)), 1.0)
        drawn *= next(
            (scale / shape[-1] ** 0.5 for pattern, scale in _POSITIONS if re.search(pattern, name)),
            1.0,
        )
        weights[name] = drawn.astype(np.float32)
    return weights


def write_plain(folder: Path, weights: dict[str, np.ndarray], config: RagConfig) -> None:
    """The generator alone as a BART folder.

    CTranslate2's converter asks for a vocabulary, so the words are made up.
    """
    part = "rag.generator."
    alone = {
        name.removeprefix(part): array for name, array in weights.items() if name.startswith(part)
    }
    write_checkpoint(folder, alone, config.generator, architecture="BartForConditionalGeneration")
    (folder / "vocab.json").write_text(
        json.dumps({word: i for i, word in enumerate(words(config.generator.vocab_size))})
    )
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BartTokenizer"}))


def words(count: int) -> list[str]:
    """A word for each id."""
    return ["<s>", "<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(4, count - 1)), "<mask>"]


def inputs(size: Size, config: RagConfig) -> dict[str, np.ndarray]:
    """Question ids (B, Q), contexts (B*N, S) padded to their longest allowed, doc scores (B, N),
    labels (B, T).

    Contexts are Wikipedia lead paragraphs and a question, 60 to 190 tokens (mean 125), in the ids
    of the demo's WordPiece tokenizer, between BART's <s> and </s>. The ids need no other meaning:
    weights are drawn.
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
    labels = (
        4
        + np.abs(seeded_noise("labels", (size.questions, size.tokens)) * limit / 3).astype(np.int64)
        % limit
    )
    labels[:, 0], labels[:, -1] = config.generator.bos_token_id, config.generator.eos_token_id
    return {
        "input_ids": questions,
        "attention_mask": (questions > 0).astype(np.int64),
        "context_input_ids": ids,
        "context_attention_mask": mask.astype(np.int64),
        "doc_scores": (75 + seeded_noise("doc scores", (size.questions, size.docs))).astype(
            np.float32
        ),
        # for losses and training, which compute doc scores from question vectors of about unit
        # variance
        "doc_vectors": (
            seeded_noise("doc vectors", (size.questions, size.docs, size.width)) / size.width**0.5
        ).astype(np.float32),
        "labels": labels,
    }


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _shuffled(count: int) -> np.ndarray:
    return np.argsort(seeded_noise("order", (count,)))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(prepared(SIZES[name]))
