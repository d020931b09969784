"""A model's stages, recorded in the order in which a difference would spread: question vector
first, tokens last.

The first stage at which two programs part tells where to look.
Letters: B questions, N documents a question, S context length, T target length, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from rag_core.parity.margins import replay

# Stages of more numbers than this are kept as a sample of as many places, drawn by the stage's
# name.
SAMPLE = 2**16

# stage -> field of the output; the fields of layers are tuples, embeddings first
_BEFORE = {
    "question_encoder": "question_enc_hidden_states",
    "question_vector": "question_encoder_last_hidden_state",
}
_RETRIEVED = {
    "doc_scores": "doc_scores",
    "doc_ids": "retrieved_doc_ids",
    "context_ids": "context_input_ids",
}
_GENERATOR = {
    "encoder": "generator_enc_hidden_states",
    "decoder": "generator_dec_hidden_states",
    "logits": "logits",
}
_AFTER = {"doc_log_probs": "doc_log_probs", "marginal": "marginal", "loss": "loss"}
_FIELDS = {
    **_BEFORE,
    **_RETRIEVED,
    "context_mask": "context_attention_mask",
    **_GENERATOR,
    **_AFTER,
}


def loss_switches(head: str) -> dict[str, dict[str, Any]]:
    """The losses recorded beside the model's own: name -> keywords of `get_nll`."""
    found: dict[str, dict[str, Any]] = {}
    for bos in ("", "exclude_bos") if head == "sequence" else ("",):
        for smoothing in (0.0, 0.1):
            keywords: dict[str, Any] = {"epsilon": smoothing}
            if head == "sequence":
                keywords["exclude_bos_score"] = bool(bos)
            found["_".join(part for part in (bos, f"smoothing{smoothing:g}") if part)] = keywords
    found["reduced"] = {"reduce_loss": True}
    return found


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
    found: dict[str, Any] = {}
    if forward:
        switches = loss_switches(tracer.model.head)
        fields, slopes = tracer.forward(inputs, labels, n_docs, list(switches.values()), gradients)
        for stage, field in _FIELDS.items():
            value = fields.get(field)
            if isinstance(value, tuple):
                found.update({f"{stage}.{place}": each for place, each in enumerate(value)})
            elif value is not None:
                found[stage] = value
        found.update(
            {f"loss.{name}": loss for name, loss in zip(switches, fields["losses"], strict=True)}
        )
        kind = "gradient_relu" if _kinked(tracer.model.config) else "gradient"
        found.update({f"{kind}.{name}": slopes[name] for name in sorted(slopes)})
    for name, options in modes.items():
        out = tracer.generate(inputs, n_docs, options)
        found[f"tokens.{name}"] = out["sequences"]
        if margins:
            found.update(_margins(tracer, inputs, n_docs, name, options))
        if out.get("sequences_scores") is not None:
            found[f"scores.{name}"] = out["sequences_scores"]
    return {stage: np.asarray(array) for stage, array in found.items()}


def _kinked(config: Any) -> bool:
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
    resolved, asked = tracer.options(options), dict(options)
    weighed = tracer.model.head == "sequence"
    wanted = tracer.generate(inputs, n_docs, {**options, "output_scores": True})
    questions = (
        len(next(iter(inputs.values()))) if "input_ids" in inputs else len(inputs["doc_scores"])
    )
    searches = questions * (n_docs if weighed else 1)
    choices, margin = replay(
        wanted["scores"], resolved, questions, searches, asked.get("seed") or 0
    )
    if weighed:
        count = len(wanted["sequences"]) // questions
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
    key = int.from_bytes(hashlib.sha256(stage.encode()).digest()[:16], "little")
    return np.sort(np.random.Philox(key=key).random_raw(SAMPLE) % np.uint64(size)).astype(np.int64)


def kept(stage: str, array: np.ndarray) -> np.ndarray:
    """The array, or a sample (`SAMPLE`,) of a large one; the same places for every program."""
    chosen = places(stage, array.shape)
    return array if chosen is None else array.reshape(-1)[chosen]


def fingerprint(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
