"""Which rows are padded or cut, and by how much.

Transformers 4.37.2's rules, free of shared state.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

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
# Above this a model_max_length means "not known": transformers' files say 1e30 then, as a float or
# rounded to some whole number.
_HUGE = int(1e20)


# Tuples, not frozen dataclasses: those take three times as long to make, which a call with one
# short text would show.
class EncodeOptions(NamedTuple):
    """The options of a call, as `Tokenizer.__call__` describes them."""

    add_special_tokens: bool = True
    padding: bool | str = False
    truncation: bool | str | None = None
    max_length: int | None = None
    stride: int = 0
    is_split_into_words: bool = False
    pad_to_multiple_of: int | None = None
    return_tensors: str | None = None
    return_token_type_ids: bool | None = None
    return_attention_mask: bool | None = None
    return_overflowing_tokens: bool = False
    return_special_tokens_mask: bool = False
    return_offsets_mapping: bool = False
    return_length: bool = False
    verbose: bool = True

    def need_encodings(self) -> bool:
        """Whether the ids of a text's words are not all that is asked for."""
        return bool(
            self.return_overflowing_tokens
            or self.return_special_tokens_mask
            or self.return_offsets_mapping
            or self.is_split_into_words
            or self.stride
        )

    def strategies(self, limit: int) -> tuple[str | None, str | None]:
        """Settle the padding ("longest", "max_length", None) and the truncation strategy.

        Args:
            limit: `max_length`, or the model's where that is None.

        Raises:
            ValueError: an unknown strategy, or lengths that contradict each other.
        """
        padding, truncation, multiple_of = self.padding, self.truncation, self.pad_to_multiple_of
        if padding not in _PADDING:
            raise ValueError(
                f"padding must be True, 'longest', 'max_length' or False, got {padding!r}"
            )
        if truncation is not None and truncation not in _TRUNCATION:
            raise ValueError(
                f"truncation must be True, False or one of {sorted(_TRUNCATION, key=str)}, got "
                f"{truncation!r}"
            )
        if self.max_length is not None and self.max_length < 0:
            raise ValueError(f"max_length must be 0 or more, got {self.max_length}")
        pad = _PADDING[padding]
        if truncation is None:
            truncation = self.max_length is not None and pad is None
        strategy = _TRUNCATION[truncation]
        if limit > _HUGE:
            if pad == "max_length" or strategy:
                logger.warning(
                    "padding or truncation to max_length: this tokenizer knows no maximum; pass "
                    "max_length"
                )
            # The longest row of a batch has a length without any maximum.
            if pad == "max_length":
                pad = None
            return pad, None
        if strategy and pad and multiple_of and limit % multiple_of:
            raise ValueError(
                f"max_length must be a multiple of pad_to_multiple_of, {multiple_of}, got {limit}"
            )
        return pad, strategy


class Cut(NamedTuple):
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
    budget = cut.limit
    if add_special_tokens:
        budget -= backend.num_special_tokens_to_add(len(parts) == 2)
    lengths = [len(part) for part in parts]
    if cut.stride and cut.stride >= budget:
        raise ValueError(_too_long(cut.stride, budget))
    if sum(lengths) > budget:
        check_side(cut.side)
        new_lengths = kept_lengths(lengths, budget, cut.strategy)
        for part, length in zip(parts, new_lengths, strict=True):
            # The library panics at a stride that long.
            if cut.stride and 0 < length < len(part) and cut.stride >= length:
                raise ValueError(_too_long(cut.stride, length))
            part.truncate(length, stride=cut.stride, direction=cut.side)
    second = parts[1] if len(parts) == 2 else None
    return backend.post_process(parts[0], second, add_special_tokens)


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
    if side == "right":
        return ids[:length]
    return ids[len(ids) - length :]


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
        short, long = sorted(lengths)
        long = max(short, budget - short)
        if short + long > budget:
            short = budget // 2
            long = budget - short
        if lengths[0] <= lengths[1]:
            return [short, long]
        return [long, short]
    which = int(strategy != "only_first")
    if which >= len(lengths) or lengths[which] <= excess:
        raise ValueError(
            f"truncation must leave something of each text, got {strategy!r} where {excess} tokens "
            f"must go from texts of {lengths}. Raise max_length or use truncation='longest_first'"
        )
    shortened = list(lengths)
    shortened[which] -= excess
    return shortened
