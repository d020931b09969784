"""Record what sentence-transformers computes: tiny random encoders as it saves them, texts, vectors.

Run in an environment of its own with sentence-transformers 6.2.0:

    python conformance/record_sentence_encoders.py

It writes tests/data/sentence_encoders: a folder an architecture, and vectors.npz.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel

OUT = Path(__file__).parents[1] / "tests" / "data" / "sentence_encoders"
WORDS = "who wrote it is a text about nothing and the query passage : . Ada Böll in 1815".split()
SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
DISTIL_SIZES = {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12}
TEXTS = [
    "who wrote it",
    "Ada is in the text about nothing . Böll wrote it in 1815",
    " ".join(WORDS * 8),
    "",
]
PROMPTS = {"query": "query : ", "passage": "passage : "}
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def seeded(model: torch.nn.Module, seed: int) -> None:
    """Weights far from what a mistake would leave alone: gains off 1, biases and tables off 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() == 1:
            noise = noise * 0.2 + (1.0 if "norm" in name.lower() and "weight" in name else 0.0)
        elif weight.dim() == 2 and "embeddings" not in name and "relative" not in name:
            noise = noise * 1.5 / weight.shape[1] ** 0.5
        weight.data.copy_(noise)


def word_pieces(first: list[str], cls: str, sep: str, unk: str) -> tokenizers.Tokenizer:
    vocabulary = {word: number for number, word in enumerate([*first, *WORDS, *map(str, range(9))])}
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unk))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in (cls, sep)]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=ends
    )
    return backend


def pieces_of_bytes() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return backend


def unigram() -> tokenizers.Tokenizer:
    tokens = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [*(f"▁{word}" for word in WORDS), "▁", *sorted(set("".join(TEXTS) + ":"))]
    scores = [(token, 0.0) for token in tokens]
    scores += [(piece, -3.0 - number / 50) for number, piece in enumerate(pieces)]
    scores.append(("<mask>", 0.0))
    backend = tokenizers.Tokenizer(models.Unigram(scores, unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return backend


BRACKETS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
ANGLES = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "bos_token": "<s>"}
ANGLES |= {"eos_token": "</s>", "mask_token": "<mask>"}


def architectures() -> dict[str, tuple[tokenizers.Tokenizer, str, dict[str, str], dict[str, Any]]]:
    brackets = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    bert = word_pieces(brackets, "[CLS]", "[SEP]", "[UNK]")
    mpnet = word_pieces(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"], "<s>", "</s>", "[UNK]")
    unk = {"unk_token": "<unk>"}
    offset = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "layer_norm_eps": 1e-5}
    return {
        "bert": (bert, "BertTokenizer", BRACKETS, {**SIZES, "max_position_embeddings": 48}),
        "distilbert": (
            bert,
            "DistilBertTokenizer",
            BRACKETS,
            {**DISTIL_SIZES, "max_position_embeddings": 48},
        ),
        "mpnet": (
            mpnet,
            "MPNetTokenizer",
            ANGLES | {"unk_token": "[UNK]"},
            {**SIZES, **offset, "max_position_embeddings": 162},
        ),
        "roberta": (
            pieces_of_bytes(),
            "RobertaTokenizer",
            ANGLES | unk,
            {**SIZES, **offset, "max_position_embeddings": 66, "type_vocab_size": 1},
        ),
        "xlm-roberta": (
            unigram(),
            "XLMRobertaTokenizer",
            ANGLES | unk,
            {**SIZES, **offset, "max_position_embeddings": 66, "type_vocab_size": 1},
        ),
    }


def write_network(folder: Path, kind: str, seed: int) -> int:
    """A network with its tokenizer, as transformers saves them; returns how many tokens it reads."""
    backend, tokenizer_class, tokens, sizes = architectures()[kind]
    vocabulary = backend.get_vocab_size()
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, **sizes)
    model = AutoModel.from_config(config)
    seeded(model, seed)
    model.eval().save_pretrained(folder)
    backend.save(str(folder / "tokenizer.json"))
    limit = sizes["max_position_embeddings"] - 2 * ("pad_token_id" in sizes)
    values = {"tokenizer_class": tokenizer_class, "model_max_length": limit, **tokens}
    if kind in ("bert", "distilbert", "mpnet"):
        values["do_lower_case"] = False
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return limit


def modules_after(kind: str) -> list[Any]:
    """What stands behind each network, as in the public models that are made of it."""
    torch.manual_seed(0)
    dense = Dense(8, 5, activation_function=torch.nn.Tanh())
    return {
        "bert": [Pooling(8, "cls"), dense, Normalize()],  # LaBSE
        "distilbert": [Pooling(8, "mean"), Dense(8, 6, bias=False)],  # distiluse
        "mpnet": [Pooling(8, "mean"), Normalize()],  # all-mpnet-base-v2
        "roberta": [Pooling(8, "mean")],  # all-distilroberta-v1, with its position rows
        "xlm-roberta": [Pooling(8, "mean"), Normalize()],  # multilingual-e5
    }[kind]


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    vectors: dict[str, np.ndarray] = {}
    for seed, kind in enumerate(architectures()):
        plain = OUT / "network"
        plain.mkdir(parents=True)
        limit = write_network(plain, kind, seed)
        transformer = Transformer(str(plain), max_seq_length=limit)
        prompts = PROMPTS if kind == "xlm-roberta" else {}
        after = modules_after(kind)
        # with "cosine" vectors are scaled here to where inner products are that
        similarity = "cosine" if isinstance(after[-1], Normalize) else "dot"
        model = SentenceTransformer(
            modules=[transformer, *after],
            device="cpu",
            prompts=prompts,
            similarity_fn_name=similarity,
        ).eval()
        model.save(str(OUT / kind), create_model_card=False)
        vectors[f"{kind}/passages"] = model.encode_document(TEXTS)
        vectors[f"{kind}/questions"] = model.encode_query(TEXTS)
        if kind == "bert":
            for pooling in POOLINGS:
                pooled = SentenceTransformer(
                    modules=[transformer, Pooling(8, pooling)], device="cpu"
                )
                vectors[f"{kind}/{pooling}"] = pooled.eval().encode(TEXTS)
        shutil.rmtree(plain)
    np.savez_compressed(OUT / "vectors.npz", texts=np.array(TEXTS), **vectors)


if __name__ == "__main__":
    main()
