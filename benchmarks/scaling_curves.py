"""The curves: what is varied, what stays, and how many operations each point takes.

Letters: B questions, N documents a question, K beams, S context length, T new tokens, R = B * N
contexts, d width, V vocabulary, n what a curve varies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.workload import Size
from rag_core.retrieval.faiss_files import default_nlist

# heavy enough that matrices outweigh the calls around them, light enough for two cores
MODEL = Size(
    "scaling", width=256, encoder_layers=1, generator_layers=3, heads=4, vocab=20_000, questions=1
)
USUAL = {
    "kind": "generate",
    "head": "token",
    "questions": 1,
    "docs": 5,
    "length": 128,
    "beams": 4,
    "tokens": 16,
}
OURS = ("dualrag-torch", "dualrag-tf")
ALL = (*OURS, "transformers4-torch")
SIZES = (10_000, 31_623, 100_000, 316_228, 1_000_000)


@dataclass(frozen=True)
class Curve:
    """Time against one quantity.

    Attributes:
        name: its key in the results.
        title: what is varied.
        values: n.
        job: n -> the job.
        operations: job -> a number proportional to the work; its own growth is the expected one.
        contestants: who runs it.
        what: what is timed, for readers.
        slowest: contestants -> the largest n they are asked; all others run them all.
    """

    name: str
    title: str
    values: tuple[int, ...]
    job: Callable[[int], dict[str, Any]]
    operations: Callable[[dict[str, Any]], float]
    contestants: tuple[str, ...] = ALL
    what: str = "RAG-Token, 4 beams"
    slowest: dict[str, int] = field(default_factory=dict)


def generation_operations(job: dict[str, Any]) -> float:
    """Multiply-adds of encoding R contexts and writing T tokens on K beams of each.

    Thorough weighing writes again.
    """
    d, layers, vocab = MODEL.width, MODEL.generator_layers, MODEL.vocab
    rows, length, steps = job["questions"] * job["docs"], job["length"], job["tokens"]
    # with the cross keys and values
    encoding = rows * length * layers * (12 * d**2 + 2 * length * d + 2 * d**2)
    # a step attends to the context and, on the average, to half of what will be written
    step = layers * (14 * d**2 + 2 * length * d + steps * d) + d * vocab
    written = rows * job["beams"] * steps * step
    if job["head"] == "sequence":  # every candidate, were all distinct, against every document
        written += rows * (job["docs"] * job["beams"]) * steps * step
    return float(encoding + written)


def _varied(name: str, **fixed: Any) -> Callable[[int], dict[str, Any]]:
    return lambda n: USUAL | {"vocab": MODEL.vocab} | fixed | {name: n}


def search_operations(job: dict[str, Any]) -> float:
    """Numbers looked at: all vectors; or the centres, a table and some lists.

    Or layers of a graph.
    """
    rows, size = job["rows"], 384
    if job["index"] == "hnsw":
        return math.log(rows)
    if job["index"] == "ivfpq":
        lists = default_nlist(rows)
        return float(lists * size + 256 * size + max(16, lists // 64) * rows / lists * size / 8)
    return float(rows * size)


def _searches(index: str) -> Callable[[int], dict[str, Any]]:
    return lambda n: {"kind": "search", "index": index, "rows": n}


def _embedding(batch: int) -> dict[str, Any]:
    return {"kind": "embed", "rows": 64 if batch < 16 else 128, "batch": batch}


CURVES = (
    Curve(
        "docs",
        "documents a question",
        (1, 2, 5, 10, 20, 50),
        _varied("docs"),
        generation_operations,
    ),
    Curve(
        "beams",
        "beams",
        (1, 2, 4, 8),
        _varied("beams"),
        generation_operations,
        what="RAG-Token, 5 documents",
    ),
    Curve(
        "batch",
        "questions a batch",
        (1, 4, 8, 16, 32),
        _varied("questions", beams=1),
        generation_operations,
        what="RAG-Token, greedy",
    ),
    Curve(
        "length",
        "context length",
        (32, 64, 128, 256, 512),
        _varied("length"),
        generation_operations,
    ),
    Curve("tokens", "new tokens", (12, 25, 50, 100, 200), _varied("tokens"), generation_operations),
    Curve(
        "thorough",
        "documents, each with a candidate",
        (1, 2, 5, 10, 20, 50),
        _varied("docs", head="sequence", beams=1, tokens=8),
        generation_operations,
        what="RAG-Sequence, greedy, thorough",
        slowest={"transformers4-torch": 20},
    ),
    Curve(
        "embedding",
        "passages a batch",
        (1, 4, 16, 64),
        _embedding,
        lambda _: 1.0,
        OURS,
        what="MiniLM over Wikipedia leads, one passage",
    ),
    *(
        Curve(
            index,
            f"vectors, {title}",
            sizes,
            _searches(index),
            search_operations,
            ("faiss",),
            what="search for 5",
        )
        for index, title, sizes in (
            ("flat", "flat", SIZES),
            ("ivfpq", "IVF-PQ", SIZES),
            ("hnsw", "HNSW", SIZES[:3]),
        )
    ),
)
