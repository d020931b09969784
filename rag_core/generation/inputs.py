"""What a call of a sequence-to-sequence network gives, checked, and what stands in for what it
leaves out.

Letters: R rows, S context length, T target length, d width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What `generate(**batch)` is given along with a batch of training examples, and does not read.
UNREAD_BY_GENERATE = ("labels", "token_type_ids")


def check_head_masks(**masks: Any) -> None:
    """Refuses masks over attention heads.

    Raises:
        ValueError: one is given.
    """
    for name, mask in masks.items():
        if mask is not None:
            raise ValueError(
                f"{name} must be None, as heads of attention cannot be masked; got "
                f"{type(mask).__name__}. Leave it out, or set the columns of those heads in the "
                "attention's output projection to zero"
            )


def check_one_of(ids_name: str, ids: Any, embeds_name: str, embeds: Any) -> None:
    """Refuses both or neither of ids and embeddings.

    Raises:
        ValueError: naming what came.
    """
    if (ids is None) == (embeds is None):
        came = "neither" if ids is None else "both"
        raise ValueError(f"exactly one of {ids_name} and {embeds_name} must be given, got {came}")


def check_embeds(name: str, shape: Sequence[int | None], width: int) -> None:
    """Refuses embeddings that are not (R, length, d).

    Raises:
        ValueError: naming the shape.
    """
    if len(shape) != 3 or shape[1] == 0 or shape[2] != width:
        raise ValueError(
            f"{name} must be (rows, length, d) with d = {width} and one position or more, got "
            f"shape {tuple(shape)}"
        )


def check_context(states: Any, past_key_values: Any) -> None:
    """Refuses a decoder's call without a context.

    Raises:
        ValueError: neither the encoder's states nor a cache that holds what was made of them.
    """
    if states is None and past_key_values is None:
        raise ValueError(
            "encoder_hidden_states must be given to a decoder, got None: the encoder's "
            "last_hidden_state (or past_key_values of an earlier call)"
        )


def check_label_shape(shape: Sequence[int | None], fed: Sequence[int | None]) -> None:
    """Refuses labels that are not (R, T) with T that of the decoder's input; a length not known yet
    passes.

    Raises:
        ValueError: naming both shapes.
    """
    fits = len(shape) == 2 and all(
        None in (one, other) or one == other for one, other in zip(shape, fed[:2], strict=True)
    )
    if not fits:
        raise ValueError(
            f"labels must be (rows, T) = {tuple(fed[:2])} as the decoder's input is, got shape "
            f"{tuple(shape)}. Leave decoder_input_ids out to have them made from the labels"
        )


def start_and_pad(config: Any) -> tuple[int, int]:
    """The tokens with which labels become decoder inputs.

    Raises:
        ValueError: the config lacks one.
    """
    start, pad = config.decoder_start_token_id, config.pad_token_id
    if start is None or pad is None:
        raise ValueError(
            "decoder_start_token_id and pad_token_id must be set in the config, or "
            "decoder_input_ids given"
        )
    return start, pad


def past_length(past_key_values: Any) -> int:
    """How many positions an earlier call's cache holds; 0 without one."""
    if past_key_values is None:
        return 0
    return int(past_key_values[0][0].shape[2])


def next_inputs(decoder_input_ids: Any, past_key_values: Any, **others: Any) -> dict[str, Any]:
    """A forward pass's arguments for the tokens (R, t) so far, less those that the cache holds
    (the last one stays).
    """
    fed = min(past_length(past_key_values), decoder_input_ids.shape[1] - 1)
    return {
        "input_ids": None,  # the encoder's output stands for it
        "decoder_input_ids": decoder_input_ids[:, fed:],
        "past_key_values": past_key_values,
        **others,
    }
