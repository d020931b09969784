"""Trace files: NPZ with a JSON header.

Read without pickle, and nothing is allocated that the file does not hold.
"""

from __future__ import annotations

import io
import json
import platform
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from rag_core import __version__
from rag_core.hub import atomic_write, parse_json, reading
from rag_core.parity.trace import sampled

FORMAT = "dualrag-trace/1"
_HEADER = "header.npy"
# A fixed date: two recordings of the same numbers are the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


class TraceWriter:
    """Writes a trace file case by case; it appears under its name when it is whole.

    Args:
        path: of the `.npz`.
        backend: "torch" or "tf".
        framework: its version.
        dtype: "float64" or "float32".
        seed: that the inputs were drawn with.
        about: more for the header; where two headers differ in it, their files are not compared.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        backend: str,
        framework: str,
        dtype: str,
        seed: int,
        about: Mapping[str, Any],
    ) -> None:
        self.path = Path(path)
        self.header: dict[str, Any] = {
            "format": FORMAT,
            "version": __version__,
            "dtype": dtype,
            "seed": seed,
            "about": dict(about),
            "run": {
                "backend": backend,
                "framework": framework,
                "numpy": np.__version__,
                "python": platform.python_version(),
                "machine": f"{platform.system()} {platform.machine()}",
            },
            "cases": {},
            "stages": [],
        }

    def __enter__(self) -> TraceWriter:
        with ExitStack() as writing:
            draft = writing.enter_context(atomic_write(self.path))
            self._zip = writing.enter_context(zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED))
            self._writing = writing.pop_all()
        return self

    def add(self, case: str, info: Mapping[str, Any], stages: Mapping[str, np.ndarray]) -> None:
        """Writes one case.

        Args:
            case: its name.
            info: what it is (JSON); `weights` is the fingerprint of its weights.
            stages: as `rag_core.parity.trace.trace` returns them.
        """
        self.header["cases"][case] = dict(info)
        rows = self.header["stages"]
        for stage, value in stages.items():
            array = np.asarray(value)
            self._put(f"{len(rows)}.npy", sampled(stage, array))
            rows.append([case, stage, list(array.shape)])

    def _put(self, name: str, array: np.ndarray) -> None:
        memory = io.BytesIO()
        np.lib.format.write_array(memory, np.asarray(array, order="C"), allow_pickle=False)
        self._zip.writestr(zipfile.ZipInfo(name, _DATE), memory.getvalue())

    def __exit__(
        self, kind: type[BaseException] | None, error: Any, traceback: TracebackType | None
    ) -> None:
        with self._writing:
            if error is not None:
                raise error  # the draft goes, and what was there before stays
            text = json.dumps(self.header, sort_keys=True)
            self._put(_HEADER, np.frombuffer(text.encode(), np.uint8))


class TraceFile:
    """An opened trace file.

    Args:
        path: of the `.npz`.

    Attributes:
        header: format, version, dtype, seed, about, run and cases.

    Raises:
        OSError: no such file, or not a trace; the message says what is wrong.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._reading():
            self._zip = zipfile.ZipFile(self.path)
            self._members = {member.filename: member for member in self._zip.infolist()}
            self._check_sizes()
            header = self._read(_HEADER).tobytes()
            self.header: dict[str, Any] = parse_json(header, f"the header of {self.path}")
            self._stages: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
            for number, (case, stage, shape) in enumerate(self.header["stages"]):
                member = f"{number}.npy"
                is_named = isinstance(case, str) and isinstance(stage, str)
                if not is_named or member not in self._members:
                    raise ValueError(f"stage {number} has no name or no array")
                if not all(type(size) is int and 0 <= size < 2**31 for size in shape):
                    raise ValueError(f"stage {number} has the shape {shape!r:.60}")
                self._stages.setdefault(case, {})[stage] = member, tuple(shape)
            self._check_header()

    def _reading(self) -> AbstractContextManager[None]:
        return reading(self.path, "is not a trace that this version reads", "Record it again.")

    def _check_header(self) -> None:
        cases = self.header["cases"]
        parts = (self.header["about"], self.header["run"], cases)
        is_trace = all(isinstance(part, dict) for part in parts)
        if not is_trace or set(self._stages) - set(cases):
            raise ValueError("its header is not one of a trace")
        if not all(isinstance(case, dict) for case in cases.values()):
            raise ValueError("its cases are no objects")
        if missing := {"format", "version", "dtype", "seed"} - set(self.header):
            raise ValueError(f"its header lacks {', '.join(sorted(missing))}")

    def _check_sizes(self) -> None:
        length = self.path.stat().st_size
        for member in self._members.values():
            size = member.file_size
            is_stored = member.compress_type == zipfile.ZIP_STORED
            if (
                not is_stored
                or member.compress_size != size
                or member.header_offset + size > length
            ):
                raise ValueError(
                    f"{member.filename} is compressed, or declares more bytes than the file holds"
                )

    def _read(self, name: str) -> np.ndarray:
        """A member as an array.

        Its declared shape is held against its bytes before memory is asked for.
        """
        member = self._members[name]
        with self._zip.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            # what write_array writes of such arrays
            if version != (1, 0):
                raise ValueError(f"{name} has another array format, {version}")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            size = dtype.itemsize
            for axis in shape:  # Python's own integers: no overflow
                size *= int(axis)
            # no objects: they would be pickles
            if dtype.kind not in "fiub" or fortran or size != member.file_size - stream.tell():
                raise ValueError(f"{name} declares {dtype} {shape}, which is not what it holds")
            return np.frombuffer(stream.read(), dtype).reshape(shape)

    @property
    def cases(self) -> list[str]:
        """Names of the cases, in order."""
        return list(self._stages)

    def stages(self, case: str) -> dict[str, np.ndarray]:
        """Stage -> array of one case, in order; large ones as samples.

        Raises:
            OSError: an array is damaged.
        """
        with self._reading():
            return {stage: self._read(name) for stage, (name, _) in self._stages[case].items()}

    def shape(self, case: str, stage: str) -> tuple[int, ...]:
        """The shape of the whole array."""
        return self._stages[case][stage][1]

    def close(self) -> None:
        """Closes the file."""
        self._zip.close()


def refusals(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    """Why two traces cannot be compared: they are not of the same thing.

    Args:
        expected: one header.
        actual: the other.

    Returns:
        One sentence a reason; empty if they can.
    """
    reasons = []
    names = {"format": "format", "version": "version of dualrag", "dtype": "dtype", "seed": "seed"}
    for key, name in names.items():
        if expected[key] != actual[key]:
            reasons.append(f"other {name}: {expected[key]} and {actual[key]}")
    reasons += _unequal(expected["about"], actual["about"])
    cases = expected["cases"]
    others = actual["cases"]
    for case in sorted({*cases, *others}):
        if case in cases and case in others:
            reasons += _unequal(cases[case], others[case], f" in case {case}")
        else:
            reasons.append(f"case {case} is in one of them only")
    return reasons


def _unequal(expected: Mapping[str, Any], actual: Mapping[str, Any], where: str = "") -> list[str]:
    return [
        f"other {key}{where}: {expected.get(key)} and {actual.get(key)}"
        for key in sorted({*expected, *actual})
        if expected.get(key) != actual.get(key)
    ]
