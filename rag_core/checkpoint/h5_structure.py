"""Where the arrays of an HDF5 file lie. Its library can crash at a damaged one.

`file_checks` runs this in a child.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rag_core.checkpoint.mapped_file import MappedFile
from rag_core.hub import DamagedFileError

# Far beyond any model's file: one that was made to have no end is refused.
_MAX_OBJECTS = 1_000_000
_MAX_DEPTH = 64
# What h5py raises on the way through a damaged file.
_MALFORMED = (OSError, ValueError, TypeError, LookupError, RuntimeError, MemoryError)

# (bits, first bit of sign, of exponent, its width, of mantissa, its width) of the floats that are
# read.
_FLOATS: dict[tuple[int, ...], Any] = {
    (16, 15, 10, 5, 0, 10): np.float16,
    (16, 15, 7, 8, 0, 7): ml_dtypes.bfloat16,
    (32, 31, 23, 8, 0, 23): np.float32,
    (64, 63, 52, 11, 0, 52): np.float64,
}


class _Refused(Exception):
    """What is in the file isn't taken."""


def structure(path: str | Path) -> dict[str, tuple[int, tuple[int, ...], str]]:
    """Where each array of a file lies: path inside the file -> (first byte, shape, dtype).

    The HDF5 library, which this asks, can crash at a damaged file: `file_checks` calls it in a
    child.

    Raises:
        DamagedFileError: not such a file, truncated, corrupt, or holding what Keras doesn't write.
    """
    import h5py

    file = MappedFile(path, "HDF5")
    if not h5py.is_hdf5(str(path)):
        file.refuse("no HDF5 signature")
    walk = _Walk(h5py, file)
    try:
        with h5py.File(path, "r") as opened:
            walk.through(opened.id, "", 0)
    except _Refused as error:
        raise DamagedFileError(
            f"{path} is refused: {error}. Nothing was loaded; save it as safetensors."
        ) from error
    except _MALFORMED as error:
        if str(error).startswith(str(path)):
            raise
        file.refuse(f"{type(error).__name__}: {error}", error)
    return walk.places


class _Walk:
    """A way through all objects of a file that is opened."""

    def __init__(self, h5py: Any, file: MappedFile) -> None:
        self.places: dict[str, tuple[int, tuple[int, ...], str]] = {}
        self._h5py, self._file = h5py, file
        self._seen: set[Any] = set()

    def through(self, group: Any, prefix: str, depth: int) -> None:
        """Takes the arrays of a group and of the groups in it."""
        h5py = self._h5py
        if depth > _MAX_DEPTH:
            raise _Refused(f"its groups lie more than {_MAX_DEPTH} deep")
        for key in group:
            name = prefix + key.decode("utf-8")
            if group.links.get_info(key).type != h5py.h5l.TYPE_HARD:
                raise _Refused(
                    f"{name!r} is a link to another place or file, which Keras doesn't write"
                )
            info = h5py.h5o.get_info(group, key)
            if (info.fileno, info.addr) in self._seen or len(self._seen) > _MAX_OBJECTS:
                raise _Refused(
                    f"{name!r} stands in it twice, or it holds more than {_MAX_OBJECTS:,} objects"
                )
            self._seen.add((info.fileno, info.addr))
            member = h5py.h5o.open(group, key)
            if isinstance(member, h5py.h5g.GroupID):
                self.through(member, f"{name}/", depth + 1)
            elif isinstance(member, h5py.h5d.DatasetID):
                self._take(member, name)
            else:
                raise _Refused(f"{name!r} is neither a group nor an array")

    def _take(self, dataset: Any, name: str) -> None:
        """Notes where an array lies, after all that could make it something else."""
        h5py = self._h5py
        storage = dataset.get_create_plist()
        if storage.get_nfilters():
            raise _Refused(f"{name!r} is compressed or filtered, which Keras doesn't write")
        if storage.get_layout() != h5py.h5d.CONTIGUOUS or storage.get_external_count():
            raise _Refused(
                f"{name!r} doesn't lie in one piece in this file (chunks, virtual or external "
                "storage)"
            )
        dtype = _dtype(h5py, dataset.get_type(), name)
        space = dataset.get_space()
        if space.get_simple_extent_type() not in (h5py.h5s.SIMPLE, h5py.h5s.SCALAR):
            raise _Refused(f"{name!r} has no shape")
        shape = tuple(int(size) for size in space.get_simple_extent_dims())
        offset = 0
        if 0 not in shape:
            offset = dataset.get_offset()
        if offset is None:
            raise _Refused(f"{name!r} was made but never filled")
        self._file.check(name, offset, shape, dtype)
        code = dtype.str
        if dtype.kind == "V":  # bfloat16 has a name, and no code of its own
            code = dtype.name
        self.places[name] = offset, shape, code


def _dtype(h5py: Any, kind: Any, name: str) -> np.dtype:
    """The NumPy dtype of a stored type, judged by its bits."""
    stored: Any = None
    bits = kind.get_size() * 8
    if isinstance(kind, h5py.h5t.TypeFloatID):
        stored = _FLOATS.get((bits, *kind.get_fields()))
    elif isinstance(kind, h5py.h5t.TypeIntegerID) and kind.get_precision() == bits <= 64:
        stored = f"i{kind.get_size()}"
        if kind.get_sign() == h5py.h5t.SGN_NONE:
            stored = f"u{kind.get_size()}"
    elif isinstance(kind, h5py.h5t.TypeOpaqueID) and bits == 16 and not kind.get_tag():
        # what h5py writes of TensorFlow's bfloat16, for want of a type
        return np.dtype(ml_dtypes.bfloat16)
    if stored is None:
        raise _Refused(
            f"{name!r} holds {type(kind).__name__} of {kind.get_size()} bytes, no numbers that "
            "are read"
        )
    dtype = np.dtype(stored)
    if kind.get_order() != h5py.h5t.ORDER_BE:
        return dtype
    if dtype.kind == "V":
        raise _Refused(f"{name!r} holds big-endian bfloat16")
    return dtype.newbyteorder(">")
