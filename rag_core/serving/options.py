"""The options of a request: those of `generate`, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from rag_core.checks import nearest, one_of, switch, whole
from rag_core.generation import GenerationConfig
from rag_core.serving.errors import ApiError
from rag_core.serving.settings import ServerSettings

# They change no answer.
_NOT_SERVED = (
    "generation_kwargs",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "return_dict_in_generate",
    "use_cache",
)
_OF_THE_CALL = {
    "n_docs": whole(1),
    "head": one_of(["token", "sequence"]),
    "seed": whole(0, 2**63 - 1),
    "do_deduplication": switch(),
    "decoding": one_of(["thorough", "fast"]),
}
_OF_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "seed",
)
# Asked for, they are refused by name.
REFUSED = (
    "constraints",
    "diversity_penalty",
    "force_words_ids",
    "low_memory",
    "max_time",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "num_beam_groups",
    "penalty_alpha",
    "prompt_lookup_num_tokens",
)
OPTIONS = (
    *_OF_THE_CALL,
    *(each.name for each in fields(GenerationConfig) if each.name not in _NOT_SERVED),
)


def checked_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are given, without those that are None.

    Raises:
        ApiError: an unknown one.
    """
    for name in options:
        if name in OPTIONS:
            continue
        hint = "/docs lists the options."
        if near := nearest(name, OPTIONS):
            hint = f"Did you mean {near!r}?"
        raise ApiError(422, f"{name[:80]!r} is no option of an answer. {hint}", param=name[:80])
    return {name: value for name, value in options.items() if value is not None}


def check_limits(options: Mapping[str, Any], settings: ServerSettings) -> None:
    """See that no more is asked for than the server gives.

    Raises:
        ApiError: it is.
    """
    most = {
        "n_docs": settings.max_docs,
        "num_beams": settings.max_beams,
        "num_return_sequences": settings.max_beams,
        "max_new_tokens": settings.max_new_tokens,
        "max_length": settings.max_new_tokens + 1,
    }
    for name, limit in most.items():
        value = options.get(name)
        if isinstance(value, int | float) and value > limit:
            raise ApiError(
                422, f"{name} must be at most {limit} on this server, got {value}.", param=name
            )


def check_of_the_call(options: Mapping[str, Any]) -> None:
    """See that the options beside those of `GenerationConfig` can work.

    Raises:
        ValueError, TypeError: one can't.
    """
    for name, rule in _OF_THE_CALL.items():
        if name in options:
            rule(name, options[name])


def check_sampling(options: Mapping[str, Any], samples: bool) -> None:
    """See that nothing is asked of a sampling that isn't.

    Args:
        options: of the request.
        samples: whether the model draws its answers where a request says nothing of it.

    Raises:
        ValueError: it is.
    """
    if options.get("do_sample", samples):
        return
    for name in _OF_SAMPLING:
        if name in options:
            raise ValueError(f"{name} must go with do_sample=true, got it alone. Leave it out")
