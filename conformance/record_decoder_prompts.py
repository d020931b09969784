"""Records what transformers 4.37.2 generates from `decoder_input_ids`; run by the oracle's Python.

    python conformance/record_decoder_prompts.py conformance/golden/decoder_prompts.json

4.37.2's RAG-Token ignores them, so the generators themselves are recorded: RAG-Token with one
document is the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conformance.cases import contexts, integers

MODELS = ("bart_scaled", "t5_gated")
SEED, BATCH = 3, 3
CASES: list[dict[str, Any]] = [
    {"max_new_tokens": 6},
    {"max_length": 9, "num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0},
    {
        "max_new_tokens": 8,
        "num_beams": 3,
        "early_stopping": "never",
        "length_penalty": 0.7,
        "min_new_tokens": 3,
    },
    {"max_new_tokens": 7, "num_beams": 2, "exponential_decay_length_penalty": (2, 1.5)},
    {"max_new_tokens": 4, "begin_suppress_tokens": list(range(5, 13)), "forced_bos_token_id": 7},
]
SEQUENCE_CASE: dict[str, Any] = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 3}


def prompts(start: int) -> dict[str, np.ndarray]:
    """Prompts (3, 3): the start token in front of all rows, of none, of one."""
    found = {kind: integers("prompt", 5, 90, (BATCH, 3)) for kind in ("all", "none", "one")}
    found["all"][:, 0] = found["one"][0, 0] = start
    return found


def main() -> None:
    """Writes the tokens of every case."""
    import torch

    from conformance.oracle import build, tensors

    tokens = {}
    for name in MODELS:
        generator = build(name, "token", SEED, torch.float32, 1).rag.generator
        given = tensors(contexts(name, "given", BATCH, 1), torch.float32)
        for kind, prompt in prompts(generator.config.decoder_start_token_id).items():
            for i, options in enumerate(CASES):
                made = generator.generate(
                    given["context_input_ids"],
                    attention_mask=given["context_attention_mask"],
                    decoder_input_ids=torch.tensor(prompt),
                    **options,
                )
                tokens[f"{name}/{kind}/{i}"] = made.tolist()
    model = build(MODELS[0], "sequence", SEED, torch.float32, 2)
    given = tensors(contexts(MODELS[0], "given", 1, 2), torch.float32)
    # 4.37.2 wants a row for each document
    prompt = torch.tensor(prompts(2)["none"][:1]).repeat(2, 1)
    tokens["sequence"] = model.generate(
        **given, n_docs=2, decoder_input_ids=prompt, **SEQUENCE_CASE
    ).tolist()
    Path(sys.argv[1]).write_text(json.dumps(tokens) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
