"""Reads `pytorch_model.bin` without PyTorch and without running anything the file says.

The container is either a zip archive (PyTorch 1.6 and later) or a row of pickles followed by raw
storages (before). The pickles are interpreted here by a small machine that knows only what a state
dict needs: any other name or operation is refused, so a hostile file can at most be unreadable.
Arrays are views of the memory-mapped file.
"""

from __future__ import annotations

import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from rag_core.checkpoint.mapped_file import free_pages
from rag_core.checkpoint.unpickler import Refused, Storage, Tensor, run
from rag_core.hub import DamagedFileError

# What torch.save began a file with before its zip files, and its version.
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

# What Python raises on the way through a damaged file.
_MALFORMED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
)


class TorchFile(Mapping[str, np.ndarray]):
    """The tensors of a file that `torch.save` wrote from a state dict: name -> read-only array.

    Args:
        path: the file.

    Attributes:
        shapes: name -> shape, known without reading the arrays.
        dtypes: name -> dtype, likewise.

    Raises:
        OSError: not such a file, truncated, corrupt, or holding anything but tensors and plain
            containers.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # storage -> offset, bytes, checksum
        self._places: dict[str, tuple[int, int, int | None]] = {}
        self._checked: set[str] = set()
        try:
            with self.path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            self._fail("is empty")
        try:
            if self._data[:4] == b"PK\x03\x04":
                content = self._read_zip()
            elif self._data[257:262] == b"ustar" or self._data[:1] != b"\x80":
                raise Refused("is neither a zip archive nor a legacy file of torch.save")
            else:
                content = self._read_legacy()
            self._tensors = _tensors_of(content)
            for name, tensor in self._tensors.items():
                self._check_geometry(name, tensor)
        except Refused as error:
            self._fail(str(error), error)
        except _MALFORMED as error:
            self._fail(f"is truncated or corrupt ({type(error).__name__}: {error})", error)
        self.shapes = {name: tensor.size for name, tensor in self._tensors.items()}
        self.dtypes = {
            name: np.dtype(tensor.storage.dtype) for name, tensor in self._tensors.items()
        }

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        dtype = np.dtype(tensor.storage.dtype)
        start, size, checksum = self._places[tensor.storage.key]
        if checksum is not None and tensor.storage.key not in self._checked:
            with memoryview(self._data) as view, view[start : start + size] as part:
                if zlib.crc32(part) != checksum:
                    self._fail(f"is corrupt: the values of {name} don't match their checksum")
            self._checked.add(tensor.storage.key)
        if 0 in tensor.size:
            return np.zeros(tensor.size, dtype)
        strides = tuple(step * dtype.itemsize for step in tensor.stride)
        offset = start + tensor.offset * dtype.itemsize
        return np.ndarray(tensor.size, dtype, buffer=self._data, offset=offset, strides=strides)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def free(self) -> None:
        """Gives the memory of pages read so far back; arrays stay valid."""
        free_pages(self._data)

    def _fail(self, what: str, cause: Exception | None = None) -> NoReturn:
        raise DamagedFileError(
            f"{self.path} {what}. Nothing was loaded; fetch the file again or save it as "
            "safetensors."
        ) from cause

    def _read_zip(self) -> Any:
        with self.path.open("rb") as file, zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("data.pkl")]
            if len(roots) != 1:
                raise Refused(
                    f"is a zip archive with {len(roots)} files data.pkl, where torch.save writes "
                    "one"
                )
            root = roots[0]
            places: dict[str, tuple[int, int, int | None]] = {}
            for name, entry in entries.items():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise Refused(
                        f"holds a compressed entry {name!r}, which torch.save never writes"
                    )
                lengths = struct.unpack_from("<HH", self._data, entry.header_offset + 26)
                start = entry.header_offset + 30 + sum(lengths)
                if start + entry.file_size > len(self._data):
                    raise Refused(
                        f"is truncated: {name} of {entry.file_size} bytes reaches past the end"
                    )
                places[name.removeprefix(root)] = (start, entry.file_size, entry.CRC)
        self._places = {
            name.removeprefix("data/"): place
            for name, place in places.items()
            if name.startswith("data/")
        }
        start, size, checksum = places["data.pkl"]
        pickled = self._data[start : start + size]
        if zlib.crc32(pickled) != checksum:
            raise Refused("is corrupt: its table of contents doesn't match its checksum")
        if "byteorder" in places:  # files of old releases have no such entry
            start = places["byteorder"][0]
            if self._data[start : start + 6] != b"little":
                raise Refused("holds big-endian numbers, which aren't supported")
        return run(_Bytes(pickled))

    def _read_legacy(self) -> Any:
        if run(self._data) != _MAGIC or run(self._data) != _PROTOCOL:
            raise Refused("is a plain pickle, not a file of torch.save")
        system = run(self._data)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise Refused("holds big-endian numbers, which aren't supported")
        storages: dict[str, Storage] = {}
        content = run(self._data, storages)
        keys = run(self._data)
        for key in keys:
            (numel,) = struct.unpack("<q", self._data.read(8))
            size = numel * np.dtype(storages[key].dtype).itemsize
            start = self._data.tell()
            if numel != storages[key].numel or start + size > len(self._data):
                raise Refused(f"is truncated or corrupt: storage {key} of {size} bytes doesn't fit")
            self._places[key] = (start, size, None)
            self._data.seek(start + size)
        return content

    def _check_geometry(self, name: str, tensor: Tensor) -> None:
        """Refuses sizes and strides that reach outside the storage, before anything is
        allocated.
        """
        size = tensor.size
        stride = tensor.stride
        storage = tensor.storage
        numbers = (tensor.offset, storage.numel, *size, *stride)
        is_malformed = any(type(number) is not int or number < 0 for number in numbers)
        if is_malformed or len(size) != len(stride):
            raise Refused(f"is corrupt: {name} has size {size} and strides {stride}")
        if storage.key not in self._places:
            raise Refused(f"is truncated or corrupt: the values of {name} are missing")
        start, length, _ = self._places[storage.key]
        itemsize = np.dtype(storage.dtype).itemsize
        last = tensor.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        fits = storage.numel * itemsize <= length and start + length <= len(self._data)
        # A stride of 0 lets few bytes declare any size.
        bounded = math.prod(size) * itemsize <= len(self._data) and len(size) <= 32
        if not fits or not bounded or (0 not in size and last >= storage.numel):
            raise Refused(
                f"is truncated or corrupt: {name} of size {size} reaches outside its {length} bytes"
            )


class _Bytes:
    """Bytes with the three methods that the machine reads a file with."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def read(self, count: int) -> bytes:
        part = self._data[self._position : self._position + count]
        self._position += len(part)
        return part

    def readline(self) -> bytes:
        end = self._data.find(b"\n", self._position) + 1
        return self.read((end or len(self._data)) - self._position)

    def tell(self) -> int:
        return self._position


def _tensors_of(content: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the one a training checkpoint holds under "state_dict"."""
    if not isinstance(content, dict):
        content = {}
    if isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    tensors = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise Refused("holds no state dict (names with tensors)")
    return tensors
