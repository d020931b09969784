"""CTranslate2 as a contestant.

The generator alone, converted in the same process before anything is timed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np


def load(contestant: dict[str, Any], job: dict[str, Any]) -> Any:
    """The converted generator and the contexts as words."""
    return Plain(contestant, job)


class Plain:
    """The generator's own beam search over contexts."""

    def __init__(self, contestant: dict[str, Any], job: dict[str, Any]) -> None:
        folder, kind = Path(job["folder"]), contestant["dtype"] or "float32"
        target = folder / f"ctranslate2-{ctranslate2.__version__}-{kind}"
        if not (target / "model.bin").is_file():
            ctranslate2.converters.TransformersConverter(str(folder / "model-plain")).convert(
                str(target), quantization=None if kind == "float32" else kind, force=True
            )
        threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
        kinds = {"bf16": "bfloat16", "fp16": "float16"}
        self.translator = ctranslate2.Translator(
            str(target),
            device=job["device"],
            compute_type=kinds.get(kind, kind),
            inter_threads=1,
            intra_threads=threads,
        )
        given = np.load(folder / "inputs.npz")
        names = _words(folder / "model-plain")
        self.ids = {name: number for number, name in enumerate(names)}
        rows = zip(given["context_input_ids"], given["context_attention_mask"], strict=True)
        self.texts = [[names[i] for i in ids[mask > 0]] for ids, mask in rows]
        self.options = job["options"]

    def check(self) -> dict[str, Any]:
        """What is compared."""
        return self.run()

    def run(self) -> dict[str, Any]:
        """The tokens of the best beam of each context, with the start token that the others
        give, too.
        """
        tokens = self.options["max_length"] - 1
        found = self.translator.translate_batch(
            self.texts,
            beam_size=self.options["num_beams"],
            min_decoding_length=tokens,
            max_decoding_length=tokens,
            max_batch_size=0,
        )
        return {"tokens": [[2, *(self.ids[word] for word in row.hypotheses[0])] for row in found]}


def _words(folder: Path) -> list[str]:
    import json

    known = json.loads((folder / "vocab.json").read_text())
    return sorted(known, key=known.get)
