"""The forward passes and losses that are recorded, as data."""

from itertools import product
from typing import Any

from conformance.cases import MODELS, TARGETS

FORWARD_SEED = 1
LOSS_MODELS = ("bart", "bart_scaled", "t5", "t5_gated")
LOSS_GRID = {
    "n_docs": (1, 3, 5),
    "target": TARGETS,
    "label_smoothing": (0.0, 0.1),
    "exclude_bos_score": (False, True),
}

# What is kept of a pass: what is new in it. `None` keeps everything.
_RESULT = ("logits", "doc_scores", "loss", "retrieved_doc_ids")
_SCORE = ("doc_scores", "loss")
_STATES = {"output_hidden_states": True, "output_attentions": True}

_FORWARDS: dict[str, dict[str, Any]] = {
    "model_given": {"head": "model", "keep": None},
    "model_one_document": {"head": "model", "n_docs": 1},
    "model_retrieved": {
        "head": "model",
        "source": "retriever",
        "arguments": {"output_retrieved": True},
        "keep": None,
    },
    "model_states": {
        "head": "model",
        "n_docs": 2,
        "source": "retriever",
        "arguments": _STATES,
        "keep": None,
    },
    "model_context_encoder": {
        "head": "model",
        "source": "retriever",
        "context_encoder": True,
        "keep": _SCORE,
    },
    "model_steps": {"head": "model", "steps": True},
    "model_encoder_outputs": {"head": "model", "reuse": True},
    "model_decoder_mask": {"head": "model", "target": "padded", "decoder_mask": True},
    "token_marginal": {"head": "token", "n_docs": 5, "arguments": {"do_marginalize": True}},
    "token_labels": {"head": "token", "labels": True, "target": "padded", "keep": _SCORE},
    "token_steps": {"head": "token", "steps": True, "arguments": {"do_marginalize": True}},
    "token_retrieved": {"head": "token", "source": "retriever", "labels": True, "keep": _SCORE},
    "sequence_labels": {"head": "sequence", "labels": True, "target": "padded"},
    "sequence_retrieved": {
        "head": "sequence",
        "n_docs": 5,
        "source": "retriever",
        "labels": True,
        "keep": _SCORE,
    },
    "sequence_context_encoder": {
        "head": "sequence",
        "source": "retriever",
        "labels": True,
        "context_encoder": True,
        "keep": _SCORE,
    },
}
_DEFAULTS: dict[str, Any] = {
    "n_docs": 3,
    "source": "given",
    "target": "plain",
    "arguments": {},
    "labels": False,
    "keep": _RESULT,
    **dict.fromkeys(("context_encoder", "steps", "reuse", "decoder_mask"), False),
}


def forward_cases() -> list[dict[str, Any]]:
    """Every recorded forward pass; the flags left out are off."""
    chosen = (model for model in MODELS if model != "bart_habits")
    return [
        {**_DEFAULTS, **case, "name": f"{model}/{name}", "model": model}
        for model, (name, case) in product(chosen, _FORWARDS.items())
        if name != "model_states" or model in ("bart_scaled", "t5_gated")
    ]


def loss_cases(head: str) -> list[dict[str, Any]]:
    """The grid of loss switches for one head, in the order of the rows of its golden array."""
    grid = dict(LOSS_GRID)
    if head != "sequence":
        grid["exclude_bos_score"] = (False,)
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
