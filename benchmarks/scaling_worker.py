"""One contestant of the scaling curves in a process of its own: a job a line in, its time a line
out.

`python -m benchmarks.scaling_worker dualrag-torch FOLDER`, in whichever environment the contestant
lives; of this project only what the contestant itself needs is imported.
Letters: B questions, N documents a question, K beams, S context length, T new tokens, R = B * N.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CONTESTANTS = ("dualrag-torch", "dualrag-tf", "transformers4-torch")
_FIRST_ID, _BOS, _EOS = 4, 0, 2


def contexts(job: dict[str, Any]) -> dict[str, np.ndarray]:
    """Drawn contexts (R, S), every position real, and doc scores (B, N).

    The same for every contestant.
    """
    rng = np.random.default_rng([job["questions"], job["docs"], job["length"]])
    ids = rng.integers(_FIRST_ID, job["vocab"], (job["questions"] * job["docs"], job["length"]))
    ids[:, 0], ids[:, -1] = _BOS, _EOS
    scores = 75 + rng.standard_normal((job["questions"], job["docs"])).astype(np.float32)
    return {
        "context_input_ids": ids,
        "context_attention_mask": np.ones_like(ids),
        "doc_scores": scores,
    }


class Contestant:
    """Loads what a job needs at its first use.

    Args:
        name: of `CONTESTANTS`.
        folder: a prepared workload: `model-token`, `model-sequence`.
    """

    def __init__(self, name: str, folder: str) -> None:
        self.name, self.folder = name, Path(folder)
        self.models: dict[str, Any] = {}
        self.texts: list[str] = []
        self.loaded = 0.0  # MB after the last model was loaded
        if name == "dualrag-tf":
            import tensorflow as tf

            import rag_tf as rag

            self.tensor: Callable[[np.ndarray], Any] = tf.constant
        else:
            import torch

            if name == "dualrag-torch":
                import rag_torch as rag
            else:
                import transformers as rag

                rag.logging.set_verbosity_error()
            self.tensor = torch.as_tensor
        self.rag: Any = rag

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Do a job; the reply holds its seconds and a mark of its result."""
        return self.embed(job) if job["kind"] == "embed" else self.generate(job)

    def generate(self, job: dict[str, Any]) -> dict[str, Any]:
        """Exactly T new tokens for each question by `head`."""
        head = job["head"]
        if head not in self.models:
            kind = getattr(self.rag, f"Rag{head.title()}ForGeneration")
            model = kind.from_pretrained(str(self.folder / f"model-{head}"))
            self.models[head] = model.eval() if hasattr(model, "eval") else model
            self.loaded = _memory("VmRSS")
        if self.name == "transformers4-torch":  # its weighing of candidates asks the config alone
            self.models[head].config.n_docs = job["docs"]
        inputs = {name: self.tensor(value) for name, value in contexts(job).items()}
        length = job["tokens"] + 1
        options = {
            "num_beams": job["beams"],
            "n_docs": job["docs"],
            "min_length": length,
            "max_length": length,
        }
        _reset_peak()
        start = time.perf_counter()
        tokens = self.models[head].generate(**inputs, **options)
        seconds = time.perf_counter() - start
        peak = _memory("VmHWM") - self.loaded
        rows = np.ascontiguousarray(np.asarray(tokens), dtype=np.int64)
        said = hashlib.sha256(rows.tobytes()).hexdigest()[:12]
        return {"seconds": seconds, "peak_mb": round(peak), "tokens": said, "shape": rows.shape}

    def embed(self, job: dict[str, Any]) -> dict[str, Any]:
        """Seconds for each of `rows` passages of the demo's corpus, `batch` at a time."""
        if "encoder" not in self.models:
            from rag_core.demo import material as demo

            where = "rag_tf.encoders" if self.name == "dualrag-tf" else "rag_torch.encoders"
            module = __import__(where, fromlist=["load_encoder"])
            self.models["encoder"] = module.load_encoder(str(demo.encoder_folder(lambda *_: None)))
            lines = demo.passages_file(lambda *_: None).open(encoding="utf-8")
            self.texts = [json.loads(line)["text"] for line in lines]
        # spread over the corpus; where a batch has one row only, a few rows tell the same
        step = len(self.texts) // job["rows"]
        texts = self.texts[::step][: job["rows"]]
        start = time.perf_counter()
        vectors = self.models["encoder"].embed_texts(texts, batch_size=job["batch"])
        seconds = time.perf_counter() - start
        return {"seconds": seconds / len(texts), "tokens": f"{np.abs(vectors).sum():.3f}"}


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # not Linux, or not allowed: the peak is the process's own


def _memory(field: str) -> float:
    """MB of a field of /proc/self/status; nan where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def main() -> None:
    """Serve jobs until stdin ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    contestant = Contestant(sys.argv[1], sys.argv[2])
    for line in sys.stdin:
        try:
            reply = contestant.run(json.loads(line))
        except Exception as error:  # the curve goes on without this contestant
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
