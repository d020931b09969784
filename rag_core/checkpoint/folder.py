"""Checkpoints on disk: names with arrays, read lazily from any layout of Hugging Face, written
whole or not at all.

Written: `config.json`, `generation_config.json`, `model.safetensors` (in shards above a size), one
tensor in memory at a time. Read besides, also in shards: `pytorch_model.bin`, without running what
it holds (see `torch_bin`); `tf_model.h5` and safetensors of TensorFlow classes, under PyTorch's
names (see `tf_names`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rag_core.checkpoint.lazy import LazyWeights, dtype_of, shape_of
from rag_core.checkpoint.safetensors_files import SafetensorsFile, write_safetensors
from rag_core.checkpoint.tf_names import torch_layout, torch_name
from rag_core.checkpoint.weights import (
    FLOATS,
    needs_float32,
    tied_names,
)
from rag_core.config import PretrainedConfig
from rag_core.hub import (
    DamagedFileError,
    atomic_folder,
    commit_of,
    is_local,
    read_json,
    recover,
    resolve_file,
    split_hub_kwargs,
)

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "tf_model.h5.index.json",
)

# What an earlier checkpoint leaves in a folder: weights of one and options of another would be read
# as one model.
CHECKPOINT_PATTERNS = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "generation_config.json",
)
_INDEX = ".index.json"
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def read_weights(name_or_path: str | Path, **hub: Any) -> LazyWeights:
    """The weights of a folder, a repository of the hub, or one file; safetensors are preferred.

    Args:
        name_or_path: where `WEIGHT_FILES` are looked for, in that order; or a .safetensors, .bin or
            .h5 file.
        **hub: options of `rag_core.hub.HUB_KWARGS`.

    Returns:
        Name -> array (bfloat16 through ml_dtypes), read-only and read when asked for; `.shapes` and
        `.dtypes` tell shapes and types without reading. TensorFlow's names keep the scopes in
        front, which `fit_weights` understands.

    Raises:
        OSError: no weights there, or a file is missing, truncated, corrupt or refused; the file is
            named.
        TypeError: an unknown option.
    """
    _, unknown = split_hub_kwargs(hub)
    if unknown:
        raise TypeError(
            f"read_weights must get hub options only, got {', '.join(sorted(unknown))}. Leave the "
            "rest out."
        )
    file = Path(name_or_path).expanduser()
    if is_local(name_or_path) and file.is_file():
        recover(file.parent)
        return _open(file)
    path = _first_file(name_or_path, hub)
    if not path.name.endswith(_INDEX):
        return _open(path)
    # The shards of the very commit of their index: a branch may move while gigabytes travel.
    hub["revision"] = commit_of(path) or hub.get("revision")
    return _open_shards(path, lambda shard: resolve_file(name_or_path, shard, **hub))


def weight_files(name_or_path: str | Path, **hub: Any) -> list[Path]:
    """The files that `read_weights` reads, the index of shards first.

    Raises:
        OSError: none there, or a shard is missing; the file is named.
    """
    path = _first_file(name_or_path, hub)
    if not path.name.endswith(_INDEX):
        return [path]
    shards = sorted(set(_shard_places(path).values()))
    return [path, *(resolve_file(name_or_path, shard, **hub) for shard in shards)]


def _first_file(name_or_path: str | Path, hub: Mapping[str, Any]) -> Path:
    """The first of `WEIGHT_FILES` that is there."""
    for filename in WEIGHT_FILES:
        path = resolve_file(name_or_path, filename, required=False, **hub)
        if path is not None:
            return path
    kind = "repository"
    if is_local(name_or_path):
        kind = "folder"
    raise OSError(f"No weights in {kind} {str(name_or_path)!r}: none of {', '.join(WEIGHT_FILES)}.")


def write_checkpoint(
    folder: str | Path,
    weights: Mapping[str, Any],
    config: PretrainedConfig,
    *,
    generation_config: Any = None,
    architecture: str | None = None,
    max_shard_size: int | str = "5GB",
    progress: Callable[[int], None] | None = None,
) -> None:
    """Saves weights with their configuration; all files appear together or none does, other files
    of the folder stay.

    Args:
        folder: made if missing.
        weights: name -> array, read one at a time; copies of tied weights are left out of the file
            (see `tied_names`).
        config: written as `config.json`, with the dtype of the weights.
        generation_config: a `GenerationConfig` or a dictionary, for `generation_config.json`, which
            names every option: what was set to its default on purpose stays so.
        architecture: class name for `config.json`, as transformers' pipelines look it up.
        max_shard_size: bytes, or text such as "5GB"; larger checkpoints are split.
        progress: told the bytes of each weight before it is written.

    Raises:
        OSError: the folder can't be written; what was there before is untouched.
        ValueError: no weights, tied copies that differ, or a size that can't be read.
    """
    limit = _bytes(max_shard_size)
    if not weights:
        raise ValueError(f"weights must hold some, got none to save into {str(folder)!r}.")
    names = _stored(weights, config)
    values = config.to_dict()
    dtypes = [dtype_of(weights, name).name for name in names if not needs_float32(name)]
    floats = [dtype for dtype in dtypes if dtype in FLOATS]
    values["torch_dtype"] = next(iter(floats), values["torch_dtype"])
    if architecture is not None:
        values["architectures"] = [architecture]
    stale = list(CHECKPOINT_PATTERNS)
    # Options without a model beside them were put there for this one.
    if not any((Path(folder) / name).is_file() for name in WEIGHT_FILES):
        stale = [pattern for pattern in stale if pattern.startswith("model")]
    with atomic_folder(folder, stale=stale) as draft:
        _write_json(draft / "config.json", values)
        if hasattr(generation_config, "to_json_string"):
            text = generation_config.to_json_string(use_diff=False)
            (draft / "generation_config.json").write_text(text, encoding="utf-8")
        elif generation_config is not None:
            _write_json(draft / "generation_config.json", generation_config)
        _write_shards(draft, names, weights, limit, progress)


def _write_shards(
    folder: Path,
    names: list[str],
    weights: Mapping[str, Any],
    limit: int,
    progress: Callable[[int], None] | None,
) -> None:
    shapes = {name: shape_of(weights, name) for name in names}
    dtypes = {name: dtype_of(weights, name) for name in names}
    sizes = {name: math.prod(shapes[name]) * dtypes[name].itemsize for name in names}
    shards = _split(sizes, limit)
    files = ["model.safetensors"]
    if len(shards) > 1:
        count = len(shards)
        files = [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
        places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        _write_json(folder / "model.safetensors.index.json", index)

    def read(name: str) -> Any:
        if progress is not None:
            progress(sizes[name])
        return weights[name]

    for file, shard in zip(files, shards, strict=True):
        try:
            write_safetensors(folder / file, {name: shapes[name] for name in shard}, dtypes, read)
        except OSError as error:
            reason = error.strerror or error
            raise OSError(
                f"Can't write {file} ({reason}); nothing was saved. Make room and save again."
            ) from None


def _split(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in order, in shards of at most `limit` bytes; a larger weight has one for itself."""
    shards: list[list[str]] = [[]]
    room = limit
    for name, size in sizes.items():
        if shards[-1] and size > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards


def _stored(weights: Mapping[str, Any], config: PretrainedConfig) -> list[str]:
    """The names to write: one for each group of tied weights, whose copies must be equal."""
    head = None
    if any(name.startswith("rag.") for name in weights):
        head = "token"
    left_out: set[str] = set()
    for group in tied_names(config, head):
        present = [name for name in group if name in weights]
        for name in present[1:]:
            first = np.asarray(weights[present[0]])
            other = np.asarray(weights[name])
            if first.ctypes.data != other.ctypes.data and not np.array_equal(first, other):
                raise ValueError(
                    f"{present[0]} and {name} differ although the configuration ties them; "
                    "nothing was saved."
                )
        # transformers leaves the same copies out and ties them again.
        left_out.update(present[1:])
    return [name for name in weights if name not in left_out]


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(dict(values), indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _bytes(size: int | str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if match is None or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise ValueError(
            "max_shard_size must be a positive number of bytes or a text such as '5GB', got "
            f"{size!r}."
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _open(path: Path) -> LazyWeights:
    file: Any
    if path.suffix == ".safetensors":
        file = SafetensorsFile(path)
    elif path.suffix == ".bin":
        from rag_core.checkpoint.torch_bin import TorchFile

        file = TorchFile(path)
    elif path.suffix == ".h5":
        from rag_core.checkpoint.h5 import H5File

        file = H5File(path)
    else:
        raise OSError(
            f"{path} is no file of weights that can be read; those end in .safetensors, .bin or "
            ".h5."
        )
    # Where Keras keeps the state of an optimizer, there are no weights.
    shapes = {
        name: shape
        for name, shape in file.shapes.items()
        if path.suffix != ".h5" or not name.startswith("optimizer/")
    }
    weights = LazyWeights(shapes, file.__getitem__, dtypes=file.dtypes, free=file.free)
    if path.suffix == ".h5" or getattr(file, "metadata", {}).get("format") == "tf":
        return torch_layout(weights, str(path))
    return weights


def _shard_places(index: Path) -> dict[str, str]:
    """Name of a weight -> its shard, as an index file has it."""
    places = read_json(index).get("weight_map")
    got = None
    if not isinstance(places, dict):
        got = type(places).__name__
    elif not all(isinstance(file, str) for file in places.values()):
        got = "other values"
    if got is not None:
        raise DamagedFileError(
            f"{index} is not an index of weights (weight_map must be an object of file names, got "
            f"{got}); fetch it again."
        )
    for file in places.values():
        if "/" in file or "\\" in file or file.startswith("."):
            raise DamagedFileError(f"{index} names a shard outside its folder: {file!r}.")
    return places


def _open_shards(index: Path, resolve: Callable[[str], Path]) -> LazyWeights:
    """The weights named in an index file; each shard is opened once."""
    places = _shard_places(index)
    shards = {file: _open(resolve(file)) for file in sorted(set(places.values()))}
    scoped = any(shard.scoped for shard in shards.values())
    if scoped:
        places = _scoped_places(places, shards)
    missing = sorted(name for name, file in places.items() if name not in shards[file])
    if missing:
        raise DamagedFileError(
            f"{index} names weights that their shards lack: {', '.join(missing)}; fetch all of "
            "them again."
        )

    def free() -> None:
        for shard in shards.values():
            shard.free()

    shapes = {name: shards[file].shapes[name] for name, file in places.items()}
    dtypes = {name: shards[file].dtypes[name] for name, file in places.items()}
    return LazyWeights(
        shapes, lambda name: shards[places[name]][name], dtypes=dtypes, free=free, scoped=scoped
    )


def _scoped_places(places: dict[str, str], shards: dict[str, LazyWeights]) -> dict[str, str]:
    """TensorFlow's index under the names of its shards, which lack some of the scopes that the
    index names.
    """
    under_ends = {}
    for name, file in places.items():
        parts = torch_name(name).split(".")
        ends = [".".join(parts[start:]) for start in range(len(parts))]
        served = [end for end in ends if end in shards[file]]
        under_ends[next(iter(served), name)] = file
    return under_ends
