"""Records what transformers 4.37.2's BART and T5 make of labels, embeddings and contexts; run by
the oracle's Python.

python conformance/record_generators.py conformance/golden/generators.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conformance.cases import contexts, integers

MODELS = ("bart_scaled", "bart_habits", "t5", "t5_gated")
SEED, BATCH = 4, 3
CASES: list[dict[str, Any]] = [
    {},
    {"max_length": 12, "repetition_penalty": 1.3},
    {
        "max_new_tokens": 8,
        "num_beams": 4,
        "num_return_sequences": 3,
        "length_penalty": 2.0,
        "no_repeat_ngram_size": 2,
    },
    {
        "max_length": 9,
        "num_beams": 3,
        "min_length": 6,
        "forced_bos_token_id": 7,
        "forced_eos_token_id": 5,
    },
    {
        "max_length": 10,
        "encoder_no_repeat_ngram_size": 1,
        "bad_words_ids": [[11], [7, 8]],
        "early_stopping": True,
    },
]
SCORED: list[dict[str, Any]] = [
    {"max_new_tokens": 5, "repetition_penalty": 1.3},
    {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 2},
]


def given(name: str) -> dict[str, np.ndarray]:
    """Contexts (3, S), padded, with their mask."""
    found = contexts(name, "given", BATCH, 1)
    return {key: found[f"context_{key}"] for key in ("input_ids", "attention_mask")}


def labels(pad: int) -> np.ndarray:
    """Targets (3, 5) with pads, which are scored, and -100, which is not."""
    found = integers("labels", 5, 90, (BATCH, 5))
    found[1, 3:], found[2, 2:] = pad, -100
    return found


def summary(scores: Any) -> list[float]:
    """For each step the sum of all scores that are numbers."""
    steps = map(np.asarray, scores)
    return [float(np.where(np.isfinite(step), step, 0.0).sum()) for step in steps]


def of_model(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of one generator."""
    import torch

    record: dict[str, Any] = {}
    target = torch.tensor(labels(model.config.pad_token_id))
    fed = torch.tensor(integers("fed", 5, 90, (BATCH, 5)))
    embed = model.get_input_embeddings()
    embeds = {"inputs_embeds": embed(inputs["input_ids"]), "decoder_inputs_embeds": embed(fed)}
    with torch.no_grad():
        outputs = [
            model(**inputs, labels=target),
            model(**inputs, labels=target, decoder_input_ids=fed),
            model(attention_mask=inputs["attention_mask"], **embeds, labels=target),
        ]
    record["losses"] = [float(output.loss) for output in outputs]
    record["logits"] = float(outputs[2].logits.abs().sum())
    record["shifted"] = model.prepare_decoder_input_ids_from_labels(labels=target).tolist()
    for i, options in enumerate(CASES):
        record[f"tokens/{i}"] = model.generate(**inputs, **options).tolist()
    record["tokens/no mask"] = model.generate(inputs["input_ids"], max_length=9).tolist()
    # alone: the scores of rows that ended mean nothing
    last = {key: value[-1:] for key, value in inputs.items()}
    for i, options in enumerate(SCORED):
        out = model.generate(**last, **options, return_dict_in_generate=True, output_scores=True)
        scores = getattr(out, "sequences_scores", None)
        if scores is not None:
            scores = scores.tolist()
        record[f"scored/{i}"] = {
            "sequences": out.sequences.tolist(),
            "sequences_scores": scores,
            "scores": summary(out.scores),
        }
    return record


def main() -> None:
    """Writes losses, tokens and scores, in float64."""
    import torch

    from conformance.oracle import build, pure_float64, tensors

    record: dict[str, Any] = {}
    with pure_float64(True):
        for name in MODELS:
            model = build(name, "token", SEED, torch.float64, 1).rag.generator
            inputs = tensors(given(name), torch.float64)
            record |= {f"{name}/{key}": value for key, value in of_model(model, inputs).items()}
    Path(sys.argv[1]).write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
