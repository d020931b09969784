"""Which rows are padded or cut, and by how much.

Transformers 4.37.2's rules, free of shared state.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

logger = logging.getLogger(__name__)

_PADDING: dict[bool | str, str | None] = {
    False: None,
    "do_not_pad": None,
    True: "longest",
    "longest": "longest",
    "max_length": "max_length",
}
_TRUNCATION: dict[bool | str, str | None] = {
    False: None,
    "do_not_truncate": None,
    True: "longest_first",
    **{name: name for name in ("longest_first", "only_first", "only_second")},
}
_HUGE = int(1e20)  # a model_max_length above this means "not known"


def check_strategies(
    padding: bool | str,
    truncation: bool | str | None,
    max_length: int | None,
    limit: int,
    pad_to_multiple_of: int | None,
) -> tuple[str | None, str | None]:
    """Settles the padding ("longest", "max_length", None) and the truncation strategy of a call.

    Args:
        padding, truncation, max_length, pad_to_multiple_of: as the caller gave them.
        limit: `max_length`, or the model's where that is None.

    Raises:
        ValueError: an unknown strategy, or lengths that contradict each other.
    """
    if padding not in _PADDING:
        raise ValueError(f"padding must be True, 'longest', 'max_length' or False, got {padding!r}")
    if truncation is not None and truncation not in _TRUNCATION:
        raise ValueError(
            f"truncation must be True, False or one of {sorted(_TRUNCATION, key=str)}, got "
            f"{truncation!r}"
        )
    if max_length is not None and max_length < 0:
        raise ValueError(f"max_length must be 0 or more, got {max_length}")
    pad = _PADDING[padding]
    if truncation is None:
        truncation = max_length is not None and pad is None
    cut = _TRUNCATION[truncation]
    if limit > _HUGE:
        if pad == "max_length" or cut:
            logger.warning(
                "padding or truncation to max_length: this tokenizer knows no maximum; pass "
                "max_length"
            )
        return (None if pad == "max_length" else pad), None
    if cut and pad and pad_to_multiple_of and limit % pad_to_multiple_of:
        raise ValueError(
            f"max_length {limit} is no multiple of pad_to_multiple_of {pad_to_multiple_of}"
        )
    return pad, cut


@dataclass(frozen=True)
class Cut:
    """How rows are made to fit.

    Attributes:
        strategy: "longest_first", "only_first" or "only_second".
        limit: tokens in a row, special tokens included.
        side: "right" or "left", where tokens are taken away.
        stride: tokens that what was taken away repeats of what is left, row by row.
    """

    strategy: str
    limit: int
    side: str
    stride: int = 0


def fitted(
    backend: tokenizers.Tokenizer,
    parts: tuple[tokenizers.Encoding, ...],
    add_special_tokens: bool,
    cut: Cut,
) -> tokenizers.Encoding:
    """Cuts a text's (or a pair's) encodings without special tokens to fit, and adds these.

    Raises:
        ValueError: the part that may be cut is too short to make the row fit, or the stride too
            long.
    """
    extra = backend.num_special_tokens_to_add(len(parts) == 2) if add_special_tokens else 0
    lengths = [len(part) for part in parts]
    if cut.stride and cut.stride >= cut.limit - extra:
        raise ValueError(_too_long(cut.stride, cut.limit - extra))
    if sum(lengths) + extra > cut.limit:
        check_side(cut.side)
        for part, length in zip(
            parts, kept_lengths(lengths, cut.limit - extra, cut.strategy), strict=True
        ):
            if cut.stride and 0 < length < len(part) and cut.stride >= length:
                raise ValueError(_too_long(cut.stride, length))
            part.truncate(length, stride=cut.stride, direction=cut.side)
    return backend.post_process(parts[0], parts[1] if len(parts) == 2 else None, add_special_tokens)


def _too_long(stride: int, room: int) -> str:
    return (
        f"stride must be below the {room} tokens that stay of a text, got {stride}. Raise "
        "max_length"
    )


def check_side(side: str) -> None:
    """Raises ValueError unless a truncation side is "right" or "left"."""
    if side not in ("right", "left"):
        raise ValueError(f"truncation_side must be 'right' or 'left', got {side!r}")


def kept(ids: list[int], budget: int, strategy: str, side: str) -> list[int]:
    """Cuts the ids of a text without special tokens as `fitted` does; raises what it raises."""
    check_side(side)
    length = kept_lengths([len(ids)], budget, strategy)[0]
    return ids[:length] if side == "right" else ids[len(ids) - length :]


def kept_lengths(lengths: list[int], budget: int, strategy: str) -> list[int]:
    """How many tokens of each text stay so that the sum is within the budget.

    "longest_first" takes from the longer text until both are as long, then from both; an odd token
    stays with the one that was longer (the second, if neither was), as the `tokenizers` library has
    it.

    Raises:
        ValueError: no budget is left, or the text that `strategy` names is too short to lose that
            many.
    """
    excess = sum(lengths) - budget
    if budget < 0:
        raise ValueError(
            f"max_length leaves no room for the special tokens: it is {-budget} too small"
        )
    if excess <= 0:
        return lengths
    if strategy == "longest_first":
        if len(lengths) == 1:
            return [budget]
        small, large = sorted(lengths)
        large = max(small, budget - small)
        if small + large > budget:
            small, large = budget // 2, budget - budget // 2
        return [small, large] if lengths[0] <= lengths[1] else [large, small]
    which = 0 if strategy == "only_first" else 1
    if which >= len(lengths) or lengths[which] <= excess:
        raise ValueError(
            f"truncation={strategy!r} can't remove {excess} tokens from texts of {lengths} tokens; "
            "raise max_length or use truncation='longest_first'"
        )
    return [length - excess if index == which else length for index, length in enumerate(lengths)]
