"""What the P entries of docs/compatibility.md save, each by itself: `python -m benchmarks.wasted`.

Each row is the same work by rag_torch (P9: by rag_tf) both ways, in turns, medians: as it is done
here, and as 4.37.2 does it. The sums of all savings are the table of `python -m benchmarks`.
Letters: B questions, N documents a question, T target length, V vocabulary, D vector size.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.workload import BASE, QUICK, TINY, Size, prepared

Way = Callable[[], Any]


def seconds(ways: dict[str, Way], turns: int) -> dict[str, float]:
    """Median seconds of each way, in turns; the first turn is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in taken.items()}


def row(entry: str, what: str, theirs: float, ours: float) -> str:
    """A line: seconds as 4.37.2 does it, as it is done here, and their ratio."""
    return f"| {entry} | {what} | {theirs:.3g} s | {ours:.3g} s | {theirs / ours:.1f} x |"


def searches(size: Size, turns: int) -> Iterator[str]:
    """P1, P2, P4 and P8: RAG-Sequence with 4 beams."""
    import rag_torch

    folder = prepared(size)
    model = rag_torch.RagSequenceForGeneration.from_pretrained(folder / "model-sequence").eval()
    arrays = np.load(folder / "inputs.npz")
    names = ("context_input_ids", "context_attention_mask", "doc_scores")
    ids, mask, scores = (torch.from_numpy(arrays[name]) for name in names)
    questions, docs = scores.shape
    options = {
        "n_docs": docs,
        "num_beams": 4,
        "min_length": size.tokens + 1,
        "max_length": size.tokens + 1,
    }
    rows, encode = [], model.generator.encode

    def counted(input_ids: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        rows.append(len(input_ids))
        return encode(input_ids, *rest, **named)

    def answered(at: slice, **more: Any) -> Any:
        contexts = slice(at.start * docs, at.stop * docs)
        return model.generate(
            context_input_ids=ids[contexts],
            context_attention_mask=mask[contexts],
            doc_scores=scores[at],
            **options,
            **more,
        )

    with torch.no_grad():
        model.generator.encode = counted
        found = answered(slice(0, questions), num_return_sequences=docs * 4)
        model.generator.encode = encode
        each = [
            len(set(map(tuple, some))) for some in found.reshape(questions, docs * 4, -1).tolist()
        ]
        repeated = sum(docs + docs * candidates for candidates in each)
        saved = f"{repeated} | {sum(rows)} | {repeated / sum(rows):.0f} x"
        yield f"| P2 | contexts encoded for {sum(each)} candidates | {saved} |"
        real = int(mask.sum())
        yield (
            f"| P4 | tokens encoded for {len(ids)} contexts | {mask.numel()} | {real} | "
            f"{mask.numel() / real:.1f} x |"
        )
        ways = {
            "apart": lambda: [answered(slice(b, b + 1)) for b in range(questions)],
            "together": lambda: answered(slice(0, questions)),
            "fast": lambda: answered(slice(0, questions), decoding="fast"),
        }
        taken = seconds(ways, turns)
    yield row(
        "P1", f"{questions} questions one by one, or at once", taken["apart"], taken["together"]
    )
    yield row("P8", 'thorough decoding, or `decoding="fast"`', taken["together"], taken["fast"])


def losses(size: Size, turns: int) -> str:
    """P3: log-probabilities of targets with their gradient."""
    from rag_torch.marginalize import target_log_probs

    shape = (size.questions, 5, size.tokens, size.vocab)
    logits = torch.randn(shape, requires_grad=True)
    target = torch.randint(0, size.vocab, (size.questions, size.tokens))
    index = target[:, None, :, None].expand(*shape[:3], 1)
    ways = {
        "theirs": lambda: logits.log_softmax(-1).gather(-1, index).sum().backward(),
        "ours": lambda: target_log_probs(logits, target).sum().backward(),
    }
    taken = seconds(ways, 5 * turns)
    return row(
        "P3",
        f"log-probabilities out of logits {shape} and their gradient",
        taken["theirs"],
        taken["ours"],
    )


def vectors(turns: int, count: int = 10_000, width: int = 384) -> str:
    """P6: vectors back out of a flat faiss index."""
    import faiss

    from rag_core.retrieval.vectors import FaissVectors

    index = faiss.IndexFlatIP(width)
    index.add(np.random.default_rng(0).standard_normal((count, width), dtype=np.float32))
    rows = np.random.default_rng(1).permutation(count)
    ours = FaissVectors(index)
    ways = {
        "theirs": lambda: np.array([index.reconstruct(int(number)) for number in rows]),
        "ours": lambda: ours.gather(rows),
    }
    taken = seconds(ways, 5 * turns)
    return row("P6", f"{count:,} vectors back out of a flat index", taken["theirs"], taken["ours"])


def graphs(turns: int) -> str:
    """P9: a tiny model's 20 tokens, operation by operation or in graphs."""
    import rag_tf

    folder = prepared(TINY)
    models = [
        rag_tf.RagTokenForGeneration.from_pretrained(folder / "model-token") for _ in range(2)
    ]
    arrays = np.load(folder / "inputs.npz")
    given = {
        name: arrays[name] for name in ("context_input_ids", "context_attention_mask", "doc_scores")
    }
    options = {
        "n_docs": given["doc_scores"].shape[1],
        "min_length": TINY.tokens + 1,
        "max_length": TINY.tokens + 1,
    }

    def eagerly() -> None:
        with rag_tf.once():
            models[1].generate(**given, **options)

    taken = seconds(
        {"theirs": eagerly, "ours": lambda: models[0].generate(**given, **options)}, 5 * turns
    )
    return row(
        "P9",
        "a tiny model's 20 tokens in TensorFlow, eagerly or in graphs",
        taken["theirs"],
        taken["ours"],
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wasted", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    size = QUICK if given.quick else BASE
    print("| entry | work | as in 4.37.2 | here | saved |\n|---|---|---|---|---|")
    for line in searches(size, given.turns):
        print(line, flush=True)
    print(losses(size, given.turns), flush=True)
    print(vectors(given.turns), flush=True)
    print(graphs(given.turns), flush=True)


if __name__ == "__main__":
    main()
