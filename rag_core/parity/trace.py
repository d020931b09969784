"""A model's stages, recorded in the order in which a difference would spread: question vector
first, tokens last.

The first stage at which two programs part tells where to look.
Letters: B questions, N documents a question, S context length, T target length, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rag_core.parity.inputs import random_words
from rag_core.parity.margins import replay

# Stages of more numbers than this are kept as a sample of as many places, drawn by the stage's
# name.
SAMPLE = 2**16

# stage -> field of the output; the fields of layers are tuples, embeddings first
_FIELDS = {
    "question_encoder": "question_enc_hidden_states",
    "question_vector": "question_encoder_last_hidden_state",
    "doc_scores": "doc_scores",
    "doc_ids": "retrieved_doc_ids",
    "context_ids": "context_input_ids",
    "context_mask": "context_attention_mask",
    "encoder": "generator_enc_hidden_states",
    "decoder": "generator_dec_hidden_states",
    "logits": "logits",
    "doc_log_probs": "doc_log_probs",
    "marginal": "marginal",
    "loss": "loss",
}


def loss_switches(head: str) -> dict[str, dict[str, Any]]:
    """The losses recorded beside the model's own: name -> keywords of `get_nll`."""
    switches: dict[str, dict[str, Any]] = {
        "smoothing0": {"epsilon": 0.0},
        "smoothing0.1": {"epsilon": 0.1},
    }
    if head == "sequence":
        for name, keywords in list(switches.items()):
            keywords["exclude_bos_score"] = False
            switches[f"exclude_bos_{name}"] = {**keywords, "exclude_bos_score": True}
    switches["reduced"] = {"reduce_loss": True}
    return switches


def trace(
    tracer: Any,
    inputs: Mapping[str, np.ndarray],
    labels: np.ndarray,
    n_docs: int,
    modes: Mapping[str, Mapping[str, Any]],
    *,
    forward: bool = True,
    gradients: bool = True,
    margins: bool = False,
) -> dict[str, np.ndarray]:
    """Every stage of one model on one set of inputs, in order.

    Args:
        tracer: a backend's `tracing.Tracer` around a RAG-Token or RAG-Sequence head.
        inputs: questions (`input_ids`, `attention_mask`) or contexts (`context_input_ids`,
            `context_attention_mask`, `doc_scores`).
        labels: (B, T).
        n_docs: N.
        modes: name -> options of a `generate` call.
        forward: whether to record what comes before the tokens.
        gradients: whether to record the gradient of every parameter.
        margins: whether to record, for each mode, the scores chosen from and how near the nearest
            decision was.

    Returns:
        Stage -> array. Layers are `encoder.0` (the embeddings), `encoder.1` and so on, gradients
        `gradient.<name>` or, in a network with ReLU, `gradient_relu.<name>`, generations
        `tokens.<mode>` and `scores.<mode>`.
    """
    stages: dict[str, Any] = {}
    if forward:
        switches = loss_switches(tracer.model.head)
        losses = list(switches.values())
        fields, by_name = tracer.forward(inputs, labels, n_docs, losses, gradients)
        for stage, field in _FIELDS.items():
            value = fields.get(field)
            if isinstance(value, tuple):
                stages |= {f"{stage}.{number}": layer for number, layer in enumerate(value)}
            elif value is not None:
                stages[stage] = value
        for name, loss in zip(switches, fields["losses"], strict=True):
            stages[f"loss.{name}"] = loss
        kind = "gradient"
        if _has_relu(tracer.model.config):
            kind = "gradient_relu"
        stages |= {f"{kind}.{name}": by_name[name] for name in sorted(by_name)}
    for name, options in modes.items():
        out = tracer.generate(inputs, n_docs, options)
        stages[f"tokens.{name}"] = out["sequences"]
        if margins:
            stages |= _margins(tracer, inputs, n_docs, name, options)
        if out.get("sequences_scores") is not None:
            stages[f"scores.{name}"] = out["sequences_scores"]
    return {stage: np.asarray(array) for stage, array in stages.items()}


def batch_size(inputs: Mapping[str, np.ndarray]) -> int:
    """B of questions or contexts."""
    if "input_ids" in inputs:
        return len(inputs["input_ids"])
    return len(inputs["doc_scores"])


def _has_relu(config: Any) -> bool:
    """Whether a network has ReLU.

    A float32 that rounding takes across 0 switches a whole unit's gradient on or off.
    """
    names = ("activation_function", "dense_act_fn", "hidden_act")
    parts = (config.question_encoder, config.generator)
    return any(str(getattr(part, name, "")).startswith("relu") for part in parts for name in names)


def _margins(
    tracer: Any,
    inputs: Mapping[str, np.ndarray],
    n_docs: int,
    name: str,
    options: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """The scores chosen from, and the smallest distance between what was chosen and what was
    not.
    """
    resolved = tracer.options(options)
    scored = tracer.generate(inputs, n_docs, {**options, "output_scores": True})
    questions = batch_size(inputs)
    searches = questions
    by_document = tracer.model.head == "sequence"
    if by_document:
        searches = questions * n_docs
    seed = options.get("seed") or 0
    choices, margin = replay(scored["scores"], resolved, questions, searches, seed)
    if by_document:
        # candidates of all documents compete: the first that is not handed back is seen, too
        count = len(scored["sequences"]) // questions
        more = tracer.generate(inputs, n_docs, {**options, "num_return_sequences": count + 1})
        ranked = more["sequences_scores"].reshape(questions, count + 1).astype(np.float64)
        with np.errstate(invalid="ignore"):
            gaps = (ranked[:, :-1] - ranked[:, 1:]) / np.maximum(1.0, np.abs(ranked[:, :-1]))
        margin = min([margin, *gaps[np.isfinite(gaps)].tolist()])
    return {f"choices.{name}": choices, f"margin.{name}": np.asarray(margin)}


def places(stage: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Which of an array's numbers are kept, as flat indices in order; None where all are."""
    size = int(np.prod(shape, dtype=np.int64))
    if size <= SAMPLE:
        return None
    return np.sort(random_words(stage, SAMPLE) % np.uint64(size)).astype(np.int64)


def sampled(stage: str, array: np.ndarray) -> np.ndarray:
    """The array, or a sample (`SAMPLE`,) of a large one; the same places for every program."""
    sample = places(stage, array.shape)
    if sample is None:
        return array
    return array.reshape(-1)[sample]


def fingerprint(arrays: Mapping[str, np.ndarray], names: Iterable[str] | None = None) -> str:
    """sha256 over names, types, shapes and bytes of arrays (or of some), in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(names or arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
