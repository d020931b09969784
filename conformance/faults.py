"""Faults that porting a network invites, planted in either backend, and the stage at which each
must be found first.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rag_core.backends import to_numpy

Patch = Callable[[Any, str, Any], None]
Room = Callable[[str], Any]


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        structure, head: of `parity_cases`, where it shows.
        stage: where the comparison must find it first.
        plant: does it: (tracer, package, patch), with `patch(object, name, value)` undone after the
            test.
        case: what the case must have for it to show.
    """

    structure: str
    head: str
    stage: str
    plant: Callable[[Any, Room, Patch], None]
    case: dict[str, Any]


def _generator(tracer: Any) -> Any:
    return tracer.model.rag.generator


def _missing_scale(tracer: Any, room: Room, patch: Patch) -> None:
    patch(_generator(tracer).model.encoder, "scale", 1.0)


def _missing_attention_scale(tracer: Any, room: Room, patch: Patch) -> None:
    for module in _generator(tracer).modules():
        if hasattr(module, "scaling"):
            patch(module, "scaling", 1.0)


def _transposed(tracer: Any, room: Room, patch: Patch) -> None:
    name = "model.decoder.layers.1.self_attn.v_proj.weight"
    weight = _generator(tracer).get_submodule(name.rpartition(".")[0]).weight
    tracer.fill({f"rag.generator.{name}": np.ascontiguousarray(to_numpy(weight).T)})


def _tanh_in_encoder(tracer: Any, room: Room, patch: Patch) -> None:
    patch(_generator(tracer).model.encoder.layers[1], "act", room("layers").activation("gelu_new"))


def _tanh_in_question_encoder(tracer: Any, room: Room, patch: Patch) -> None:
    layer = tracer.model.rag.question_encoder.get_submodule(
        "question_encoder.bert_model.encoder.layer.0"
    )
    patch(layer.intermediate, "act", room("layers").activation("gelu_new"))


def _shifted_position(tracer: Any, room: Room, patch: Patch) -> None:
    decoder = _generator(tracer).model.decoder
    embed = decoder._embed
    patch(decoder, "_embed", lambda ids, embeds, start, *rest: embed(ids, embeds, start + 1, *rest))


def _shifted_bucket(tracer: Any, room: Room, patch: Patch) -> None:
    if tracer.backend == "torch":
        buckets = room("t5").t5_buckets
        patch(
            room("t5"),
            "t5_buckets",
            lambda *args, **kwargs: np.maximum(buckets(*args, **kwargs) - 1, 0),
        )
    else:  # its table is made with the network
        encoder = _generator(tracer).encoder
        patch(encoder, "_buckets", np.maximum(encoder._buckets - 1, 0))


def _dropped_cross_mask(tracer: Any, room: Room, patch: Patch) -> None:
    mask = room("seq2seq").key_mask
    patch(room("seq2seq"), "key_mask", lambda attention_mask, *bias: mask(None, *bias))


def _dropped_encoder_mask(tracer: Any, room: Room, patch: Patch) -> None:
    mask = room("t5").key_mask
    patch(room("t5"), "key_mask", lambda attention_mask, *bias: mask(None, *bias))


def _dropped_question_mask(tracer: Any, room: Room, patch: Patch) -> None:
    mask = room("bert_layers").key_mask
    patch(room("bert_layers"), "key_mask", lambda attention_mask, *bias: mask(None, *bias))


def _bos_scored(tracer: Any, room: Room, patch: Patch) -> None:
    nll = room("marginalize").sequence_nll

    def with_bos(*args: Any, **kwargs: Any) -> Any:
        return nll(*args, **{**kwargs, "exclude_bos_score": False})

    for name in ("marginalize", "rag"):  # rag_torch's heads took it by name
        if hasattr(room(name), "sequence_nll"):
            patch(room(name), "sequence_nll", with_bos)


def _untied_head(tracer: Any, room: Room, patch: Patch) -> None:
    generator = _generator(tracer)
    config = generator.config
    head = type(generator.lm_head)(config.d_model, config.vocab_size, bias=False)
    if hasattr(head, "to"):
        head = head.to(tracer.model.dtype)
    patch(generator, "lm_head", head)
    values = np.ascontiguousarray(to_numpy(generator.get_input_embeddings().weight)[::-1])
    room("weights").assign(head, {"weight": values}, generator.dtype, None)


_QUESTIONS = {"source": "retrieved", "fault": "none", "batch": 2}
_CONTEXTS = {"source": "given", "fault": "none", "batch": 2, "target": "plain"}
_BOS = {**_CONTEXTS, "target": "bos_first", "exclude_bos_score": False}

FAULTS = {
    "missing_scale": Fault("bart_scaled", "token", "encoder.0", _missing_scale, _CONTEXTS),
    "missing_attention_scale": Fault(
        "bart", "token", "encoder.1", _missing_attention_scale, _CONTEXTS
    ),
    "transposed_matrix": Fault("bart", "sequence", "decoder.2", _transposed, _CONTEXTS),
    "tanh_for_erf": Fault("bart", "token", "encoder.2", _tanh_in_encoder, _CONTEXTS),
    "tanh_in_question_encoder": Fault(
        "bart", "token", "question_encoder.1", _tanh_in_question_encoder, _QUESTIONS
    ),
    "off_by_one_position": Fault("bart", "sequence", "decoder.0", _shifted_position, _CONTEXTS),
    "off_by_one_bucket": Fault("t5_gated", "token", "encoder.1", _shifted_bucket, _CONTEXTS),
    "dropped_cross_mask": Fault("bart", "token", "decoder.1", _dropped_cross_mask, _CONTEXTS),
    "dropped_encoder_mask": Fault(
        "t5_gated", "token", "encoder.1", _dropped_encoder_mask, _CONTEXTS
    ),
    "dropped_question_mask": Fault(
        "bart", "token", "question_encoder.1", _dropped_question_mask, _QUESTIONS
    ),
    "bos_not_excluded": Fault("bart", "sequence", "loss.exclude_bos_smoothing0", _bos_scored, _BOS),
    "untied_head": Fault("bart", "token", "logits", _untied_head, _CONTEXTS),
}


def _decaying_biases(room: Room, patch: Patch) -> None:
    groups = room("training").parameter_groups

    def decaying(parameters: Any, config: Any) -> list[dict[str, Any]]:
        return [
            {**group, "weight_decay": config.weight_decay} for group in groups(parameters, config)
        ]

    patch(room("training"), "parameter_groups", decaying)


@dataclass(frozen=True)
class TrainingFault:
    """A fault in how a run learns.

    Attributes:
        stage: where the comparison must find it first.
        settings: other ones than the other run has.
        plant: does it: (package, patch).
    """

    stage: str
    settings: dict[str, Any] = field(default_factory=dict)
    plant: Callable[[Room, Patch], None] = lambda room, patch: None


TRAINING_FAULTS = {
    "other_order": TrainingFault("trained_loss.1", {"seed": 4}),
    "biases_decay": TrainingFault("trained_loss.2", plant=_decaying_biases),
    # Adam's step is the same whatever the gradients' scale, but for its epsilon.
    "gradients_not_clipped": TrainingFault("trained_loss.2", {"max_grad_norm": 1e9}),
    "other_beta2": TrainingFault("trained_loss.3", {"beta2": 0.9}),
}


def room(package: str) -> Room:
    """Rooms of a backend by name."""
    return lambda name: importlib.import_module(f"{package}.{name}")
