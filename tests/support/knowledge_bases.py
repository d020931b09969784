"""A tiny corpus, an encoder without a model, and the knowledge base of the two."""

import json
import random
import time
import zlib
from functools import partial
from pathlib import Path

import numpy as np

from rag_core.knowledge.base import KnowledgeBase, build_knowledge_base

SIZE = 16


def hashed(titles: list[str], texts: list[str], delay: float = 0.0) -> np.ndarray:
    """A bag-of-words encoder: words vote for coordinates by their checksum."""
    vectors = np.zeros((len(texts), SIZE), np.float32)
    for row, (title, text) in enumerate(zip(titles, texts, strict=True)):
        for word in f"{title} {text}".lower().split():
            code = zlib.crc32(word.encode())
            vectors[row, code % SIZE] += 1 - 2 * (code >> 16 & 1)
        time.sleep(delay)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-3)


def write_corpus(path: Path, rows: int = 60, seed: int = 0) -> Path:
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(400)]
    lines = [
        {"title": f"T{seed}-{i}", "text": " ".join(rng.choices(words, k=rng.randint(3, 30)))}
        for i in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def load_hashed(delay: float = 0.0):
    """`hashed`, as a process of its own loads an encoder."""
    return partial(hashed, delay=delay)


def load_broken():
    """An encoder that works for the fixed sentence alone."""
    return lambda titles, texts: hashed(titles, texts) * (np.nan if len(texts) > 1 else 1)


def build(tmp_path: Path, rows: int = 60, encode=hashed, **options) -> KnowledgeBase:
    corpus = write_corpus(tmp_path / "corpus.jsonl", rows)
    options = {
        "encoder_name": "hashed",
        "progress": False,
        "shard_rows": 16,
        "batch_size": 4,
    } | options
    return build_knowledge_base(corpus, tmp_path / "kb", encode, **options)
