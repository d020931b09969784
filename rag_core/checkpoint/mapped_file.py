"""A file of numbers, mapped.

Arrays are views of its pages, and nothing is allocated for what a header claims.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from rag_core.hub import DamagedFileError


class MappedFile:
    """Read-only arrays out of a file, each checked against the file's size.

    Args:
        path: the file.
        kind: what it should be, for errors.

    Raises:
        OSError: it can't be opened, or is empty.
    """

    def __init__(self, path: str | Path, kind: str) -> None:
        self.path = Path(path)
        self.kind = kind
        try:
            with self.path.open("rb") as file:
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            self.refuse("it is empty", error)

    def refuse(self, why: str, cause: Exception | None = None) -> NoReturn:
        """Raises the error of every damaged or hostile file."""
        raise DamagedFileError(
            f"{self.path} is truncated or not a {self.kind} file ({why}); fetch or save it again."
        ) from cause

    def check(self, name: str, offset: Any, shape: tuple[Any, ...], dtype: np.dtype) -> None:
        """Refuses an array that does not lie within the file.

        Args:
            name: what the array is called in errors.
            offset: of its first byte.
            shape: its shape.
            dtype: of its numbers.
        """
        numbers = (offset, *shape)
        if any(type(number) is not int or number < 0 for number in numbers) or len(shape) > 32:
            self.refuse(f"{name} has shape {shape} at byte {offset}")
        size = math.prod(shape) * dtype.itemsize
        # An array without numbers needs no bytes, but its other sizes would still be trusted later.
        count = math.prod(axis or 1 for axis in shape)
        length = len(self.data)
        if offset + size > length or count > length:
            self.refuse(f"{name} of shape {shape} needs {size} bytes at byte {offset} of {length}")

    def view(self, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array that was checked before."""
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.ndarray(shape, dtype, buffer=self.data, offset=offset)

    def free(self) -> None:
        """Gives the memory of pages read so far back.

        Arrays stay valid and are read again when touched.
        """
        free_pages(self.data)


def free_pages(data: mmap.mmap) -> None:
    """Gives the memory of a mapped file's pages back, where the system can."""
    if hasattr(mmap, "MADV_DONTNEED"):
        data.madvise(mmap.MADV_DONTNEED)
