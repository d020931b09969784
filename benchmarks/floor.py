"""How little time a job can take: its matrix products, at the rate that this machine multiplies
matrices.

Counted are multiplications and additions, 2 for each weight that a token meets, from the config and
the contexts' real lengths. Letters: R contexts, s their lengths (sum S), d width, f feed-forward
width, L layers, V vocabulary, K beams, T new tokens, C candidates a question, B questions, N
documents.

    encoder layer      S * 2 (4 d^2 + 2 d f)  +  4 d * sum(s^2)
    cross keys, values S * 2 * 2 d^2, for each decoder layer, once
    decoder row        L * (2 (6 d^2 + 2 d f) + 4 d (s + t)) + 2 d V, for a token of a context of
    length s at place t

    search             encoder + cross + rows: R in the first step, R K in each of the other T - 1
    thorough           search + rows: C N T a question, each candidate against each document

Norms, softmaxes and copying are not counted: no program reaches the floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shape:
    """A BART-like generator.

    Width d, feed-forward width f, layers of encoder and decoder, vocabulary V.
    """

    d: int
    f: int
    encoder_layers: int
    decoder_layers: int
    vocab: int


def encoding(shape: Shape, lengths: np.ndarray) -> float:
    """Operations of the encoder and of the cross keys and values, over contexts of the given
    lengths (R,).
    """
    d, f, total = shape.d, shape.f, float(lengths.sum())
    layer = total * 2 * (4 * d * d + 2 * d * f) + 4 * d * float(
        (lengths.astype(np.float64) ** 2).sum()
    )
    return shape.encoder_layers * layer + shape.decoder_layers * total * 4 * d * d


def row(shape: Shape, length: float, place: float) -> float:
    """Operations of one token through the decoder and the head."""
    d, f = shape.d, shape.f
    layer = 2 * (6 * d * d + 2 * d * f) + 4 * d * (length + place)
    return shape.decoder_layers * layer + 2 * d * shape.vocab


def search(shape: Shape, lengths: np.ndarray, beams: int, tokens: int) -> float:
    """Operations of a beam search, or a greedy one with one beam."""
    mean, count = float(lengths.mean()), len(lengths)
    rows = [row(shape, mean, place + 1) * (1 if place == 0 else beams) for place in range(tokens)]
    return encoding(shape, lengths) + count * sum(rows)


def thorough(shape: Shape, lengths: np.ndarray, beams: int, tokens: int, questions: int) -> float:
    """Operations of a RAG-Sequence search whose candidates, `beams` from each context, are all
    weighed everywhere.
    """
    contexts = len(lengths)
    # (candidate, document) pairs of all questions
    scored = contexts * beams * (contexts // questions)
    mean = float(lengths.mean())
    weighing = scored * sum(row(shape, mean, place + 1) for place in range(tokens))
    return search(shape, lengths, beams, tokens) + weighing


def seconds(operations: float, gflops: float) -> float:
    """The floor in seconds."""
    return operations / (gflops * 1e9)
