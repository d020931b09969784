"""BatchEncoding and the padding of token rows: no framework, no state on a shared tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from rag_core.backends import to_tensor


class BatchEncoding(dict[str, Any]):
    """What a tokenizer or retriever returns: a dict whose keys are attributes too (`batch.input_ids`)."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"this BatchEncoding has no {name!r}, it has {sorted(self)}")

    @property
    def data(self) -> dict[str, Any]:
        """The mapping itself, for code written against transformers."""
        return self

    def to(self, device: Any) -> BatchEncoding:
        """Moves every tensor that can move (torch) to a device, in place.

        Returns:
            The same BatchEncoding.
        """
        for key, value in self.items():
            if hasattr(value, "to"):
                self[key] = value.to(device)
        return self

    def convert_to_tensors(self, return_tensors: str | None) -> BatchEncoding:
        """Turns rows of equal length into arrays or tensors, in place.

        Args:
            return_tensors: None (as is), "np", "pt" or "tf".

        Raises:
            ValueError: rows of different length, or an unknown kind of tensor.
        """
        if return_tensors is None:
            return self
        for key, value in self.items():
            if isinstance(value, list):
                value = _as_array(key, value)
            self[key] = to_tensor(value, return_tensors)
        return self


def _as_array(key: str, rows: list[Any]) -> np.ndarray:
    if rows and isinstance(rows[0], list):
        lengths = {len(row) for row in rows}
        if len(lengths) > 1:
            raise ValueError(
                f"{key}: rows of {min(lengths)} to {max(lengths)} tokens make no tensor; "
                "pass padding=True (and truncation=True, max_length=... for long text) or return_tensors=None"
            )
    elif not rows:
        return np.zeros((0, 0), np.int64)
    return np.asarray(rows, np.int64)


def pad_arrays(
    batch: Mapping[str, Sequence[Sequence[int]]],
    fills: Mapping[str, int],
    *,
    length: int | None = None,
    multiple_of: int | None = None,
    side: str = "right",
) -> dict[str, np.ndarray] | None:
    """As `pad_rows`, but arrays (B, L) of int64 in one step; None where rows are too long to make an array."""
    lengths = np.array([len(row) for row in next(iter(batch.values()), [])], dtype=np.int64)  # (B,)
    longest = int(lengths.max(initial=0))
    width = _padded_length(longest if length is None else length, multiple_of)
    if longest > width or not len(lengths):
        return None
    steps = np.arange(width)
    there = steps < lengths[:, None] if side == "right" else steps >= width - lengths[:, None]  # (B, L)
    padded = {}
    for key, rows in batch.items():
        padded[key] = np.full(there.shape, fills[key], dtype=np.int64)
        padded[key][there] = np.fromiter(chain.from_iterable(rows), np.int64, count=int(lengths.sum()))
    return padded


def _padded_length(length: int, multiple_of: int | None) -> int:
    return -(-length // multiple_of) * multiple_of if multiple_of else length


def pad_rows(
    batch: Mapping[str, Sequence[Sequence[int]]],
    fills: Mapping[str, int],
    *,
    length: int | None = None,
    multiple_of: int | None = None,
    side: str = "right",
) -> dict[str, list[list[int]]]:
    """Pads every row of every key to one length; longer rows stay as they are.

    Args:
        batch: key -> rows of token ids, masks or types, of the same lengths in each key.
        fills: key -> the value that fills (pad id, 0 in a mask, ...).
        length: tokens to pad to; None for the longest row.
        multiple_of: round the length up to a multiple of this.
        side: "right" or "left", where the filling goes.

    Returns:
        A new mapping; the given rows are not changed.
    """
    if side not in ("right", "left"):
        raise ValueError(f"padding_side must be 'right' or 'left', got {side!r}")
    if length is None:
        length = max((len(row) for row in next(iter(batch.values()), [])), default=0)
    length = _padded_length(length, multiple_of)
    padded = {}
    for key, rows in batch.items():
        filled = []
        for row in rows:
            filling = [fills[key]] * max(0, length - len(row))
            filled.append([*row, *filling] if side == "right" else [*filling, *row])
        padded[key] = filled
    return padded
