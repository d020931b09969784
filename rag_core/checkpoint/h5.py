"""Keras' HDF5 files (`tf_model.h5`): h5py reads where each array lies, the mapped file gives its
numbers.

Only what Keras writes is taken: groups and plain, uncompressed, contiguous arrays of numbers in the
file itself. Links, external and virtual storage, filters (which could be plugins) and objects are
refused, so that a hostile file can at most be unreadable. The HDF5 library itself runs in a child
process, where its crash is an error.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import ml_dtypes  # noqa: F401  # NumPy knows bfloat16 by its name from then on
import numpy as np

from rag_core.checkpoint.file_checks import h5_structure
from rag_core.checkpoint.mapped_file import MappedFile


class H5File:
    """The arrays of an HDF5 file by path, each read when asked for.

    Args:
        path: the file.

    Attributes:
        shapes: path inside the file, such as "shared/shared/embeddings:0" -> shape.
        dtypes: the same -> dtype.

    Raises:
        ImportError: h5py is missing.
        OSError: not such a file, truncated, corrupt, or holding what Keras doesn't write.
    """

    def __init__(self, path: str | Path) -> None:
        if find_spec("h5py") is None:
            raise ImportError(f"Reading {path} needs h5py:  pip install h5py")
        self._file = MappedFile(path, "HDF5")
        self._places: dict[str, tuple[int, tuple[int, ...], np.dtype]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype] = {}
        for name, (offset, shape, kind) in h5_structure(path).items():
            dtype = np.dtype(kind)
            # the child's word is taken for nothing
            self._file.check(name, offset, shape, dtype)
            self._places[name] = offset, shape, dtype
            self.shapes[name] = shape
            self.dtypes[name] = dtype.newbyteorder("=")
        self.free = self._file.free

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._file.view(*self._places[name])
        return array.astype(array.dtype.newbyteorder("="), copy=False)
