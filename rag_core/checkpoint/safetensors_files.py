"""safetensors files: read as views of the mapped file, written one tensor at a time.

The format: the length of a header (8 bytes, little-endian), the header (JSON: name -> dtype, shape,
first and last byte), then the numbers of all tensors without gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rag_core.checkpoint.mapped_file import MappedFile
from rag_core.hub import bounded_json

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # the format's own limit


class SafetensorsFile:
    """The tensors of one file, read when asked for.

    Args:
        path: the file.

    Attributes:
        shapes: name -> shape.
        dtypes: name -> dtype.
        metadata: the file's own notes; "format" says whose names it holds.

    Raises:
        OSError: truncated, corrupt, or tensors that don't lie within the file.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = MappedFile(path, "safetensors")
        data = self._file.data
        length = int.from_bytes(data[:8], "little")
        if len(data) < 8 or length > min(len(data) - 8, _MAX_HEADER):
            self._file.refuse(f"its header of {length} bytes reaches past the end")
        try:
            header = bounded_json(data[8 : 8 + length].decode("utf-8"), _unique)
            self.metadata = dict(header.pop("__metadata__", {}))
            self._places = {
                name: self._place(name, entry, 8 + length) for name, entry in header.items()
            }
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            self._file.refuse(f"{type(error).__name__}: {error}", error)
        self.shapes = {name: shape for name, (_, shape, _) in self._places.items()}
        self.dtypes = {name: dtype for name, (_, _, dtype) in self._places.items()}
        self.free = self._file.free
        end = 8 + length
        for name in sorted(self._places, key=self._start):
            start = self._start(name)
            if start != end and 0 not in self.shapes[name]:
                self._file.refuse(
                    f"the numbers of {name} start at byte {start}, where {end} is free"
                )
            end += math.prod(self.shapes[name]) * self.dtypes[name].itemsize
        if end != len(data):
            self._file.refuse(f"its tensors end at byte {end} of {len(data)}")

    def _start(self, name: str) -> int:
        return self._places[name][0]

    def _place(
        self, name: str, entry: Mapping[str, Any], base: int
    ) -> tuple[int, tuple[int, ...], np.dtype]:
        if entry["dtype"] not in DTYPES:
            raise ValueError(
                f"{name} holds numbers of type {entry['dtype']!r}, known are {', '.join(DTYPES)}"
            )
        shape = tuple(entry["shape"])
        dtype = DTYPES[entry["dtype"]]
        first, last = entry["data_offsets"]
        if type(first) is not int or type(last) is not int:
            raise ValueError(f"{name} has offsets {first!r}, {last!r}")
        self._file.check(name, base + first, shape, dtype)
        if last - first != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} of shape {shape} and type {dtype} has {last - first} bytes")
        return base + first, shape, dtype

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file.view(*self._places[name])


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, np.dtype],
    read: Callable[[str], Any],
) -> None:
    """Writes a file of which one tensor at a time is in memory.

    Args:
        path: the file, overwritten.
        shapes: name -> shape of what will be written.
        dtypes: name -> dtype of it.
        read: name -> array; asked once for each name.

    Raises:
        OSError: the disk is full, or another reason to stop.
        TypeError: a dtype that the format lacks.
        ValueError: `read` gives another shape or dtype than was said.
    """
    # Wide numbers first, so that every tensor starts at a multiple of its item's size.
    names = sorted(shapes, key=lambda name: (-np.dtype(dtypes[name]).itemsize, name))
    # transformers refuses files without this mark.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        dtype = np.dtype(dtypes[name]).newbyteorder("=")
        if dtype not in _NAMES:
            raise TypeError(
                f"{name} holds numbers of type {dtype}, which safetensors can't; known: "
                f"{', '.join(DTYPES)}."
            )
        start = end
        end += math.prod(shapes[name]) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shapes[name]),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # The numbers begin at a multiple of 8, too.
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            array = np.asarray(read(name))
            if array.shape != tuple(shapes[name]) or array.dtype != dtypes[name]:
                raise ValueError(
                    f"{name} is {array.dtype} {array.shape}, was said to be {dtypes[name]} "
                    f"{shapes[name]}."
                )
            file.write(_bytes(array))


def _bytes(array: np.ndarray) -> Any:
    """The numbers in order, little-endian, without a copy where they lie so already."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a name stands twice in its header")
    return entries
