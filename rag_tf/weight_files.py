"""All weights in one file, as Keras' save_weights promises.

Safetensors or HDF5, under Hugging Face's names. As with Keras, an HDF5 file also holds the state of an
optimizer, in a group of that name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.checks import warn
from rag_core.hub import atomic_write
from rag_tf.weights import to_array

_ENDINGS = (".safetensors", ".h5")
_OPTIMIZER = "optimizer/"


def write(
    filepath: str | Path,
    variables: Mapping[str, Any],
    overwrite: bool = True,
    optimizer: Any = None,
) -> None:
    """Write variables to a file, whole or not at all.

    Args:
        filepath: the file.
        variables: name -> variable.
        overwrite: whether a file may be replaced.
        optimizer: one of Keras', whose state an .h5 file holds, too, once there is any.

    Raises:
        ValueError: the name has another ending than ".safetensors" or ".h5".
        FileExistsError: the file is there and may not be replaced.
    """
    path = _checked(filepath)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} is there already: pass overwrite=True, or choose another name"
        )
    arrays = {
        name: np.ascontiguousarray(to_array(variable)) for name, variable in variables.items()
    }
    if path.suffix == ".h5" and optimizer is not None and optimizer.built:
        state = _state(optimizer)
        arrays |= {name: to_array(variable.value) for name, variable in state.items()}
    with atomic_write(path) as draft:
        if path.suffix == ".h5":
            _write_h5(draft, arrays)
        else:
            from safetensors.numpy import save_file

            save_file(arrays, draft, metadata={"format": "pt"})


def _write_h5(path: Path, arrays: dict[str, np.ndarray]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array.dtype.name == "bfloat16":
                # HDF5 has no bfloat16; every one of its numbers is a float32.
                array = array.astype(np.float32)
            file[name] = array


def _state(optimizer: Any) -> dict[str, Any]:
    """Name in a file -> variable of a Keras optimizer.

    Keras counts the optimizers of a process in their names, and gives some variables one name.
    """
    names = [variable.path.rpartition("/")[2] for variable in optimizer.variables]
    return {
        f"{_OPTIMIZER}{place}/{name}": variable
        for place, (name, variable) in enumerate(zip(names, optimizer.variables, strict=True))
    }


def read_into(
    filepath: str | Path,
    variables: Mapping[str, Any],
    skip_mismatch: bool = False,
    optimizer: Any = None,
) -> None:
    """Read a file that `write` wrote into variables, all or an error.

    Args:
        filepath: the file.
        variables: name -> variable.
        skip_mismatch: pass over names and shapes that are not those of `variables`, with a warning
            that counts them.
        optimizer: one of Keras', which gets the state that the file holds. Where that is another
            one's or none, a warning says so, and it stays as it is.

    Raises:
        OSError: no such file, or it cannot be read.
        ValueError: names or shapes do not fit, with `skip_mismatch` none of them; without, the
            message lists them all.
    """
    from rag_core.checkpoint import check_weights, read_weights

    path = _checked(filepath)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: load_weights reads a file that save_weights wrote"
        )
    if path.suffix == ".h5":
        arrays = _read_h5(path)
    else:
        arrays = dict(read_weights(path.absolute()))
    state = {name: arrays.pop(name) for name in list(arrays) if name.startswith(_OPTIMIZER)}
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    if skip_mismatch:
        arrays = _fitting(arrays, shapes, path)
    else:
        stored_shapes = {name: array.shape for name, array in arrays.items()}
        check_weights(shapes, stored_shapes, source=str(path))
    for name, array in arrays.items():
        variable = variables[name]
        variable.assign(tf.cast(array, variable.dtype))
    if optimizer is not None:
        _restore(optimizer, state, path)


def _restore(optimizer: Any, state: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a file's state into an optimizer, all of it or, with a warning, nothing."""
    if not optimizer.built:
        if state:
            warn(
                f"{path} also holds an optimizer's state, which was passed over, as the model's "
                "optimizer has none yet. To go on training with it, call "
                "model.optimizer.build(model.trainable_variables) before load_weights"
            )
        return
    variables = _state(optimizer)
    if not state:
        warn(
            f"{path} holds no optimizer's state: the model's optimizer keeps its own, moments and "
            "steps. save_weights writes it to .h5 files, of a model that has been trained"
        )
        return
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    if shapes != {name: array.shape for name, array in state.items()}:
        warn(
            f"{path} holds the state of another optimizer, or of one for other weights "
            f"({len(state)} variables, the model's {type(optimizer).__name__} has {len(shapes)}): "
            "it was passed over. Compile as for the run that wrote it, with the same weights "
            "trainable"
        )
        return
    for name, variable in variables.items():
        variable.assign(state[name])


def _fitting(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], path: Path
) -> dict[str, np.ndarray]:
    """Those of a file that a model has weights for.

    Raises:
        ValueError: there is none.
    """
    fitting = {name: array for name, array in arrays.items() if shapes.get(name) == array.shape}
    if not fitting:
        raise ValueError(
            f"{path} holds no weight of this model: none of its {len(arrays)} has name and shape "
            f"of one of the model's {len(shapes)}. Its names begin with {_first(arrays)}, the "
            f"model's with {_first(shapes)}"
        )
    if len(fitting) < max(len(arrays), len(shapes)):
        warn(
            f"{path}: {len(fitting)} of the model's {len(shapes)} weights were read, the others "
            f"stay; {len(arrays) - len(fitting)} weights of the file were passed over"
        )
    return fitting


def _first(names: Iterable[str]) -> str:
    return next(iter(names), "nothing")


def _read_h5(path: Path) -> dict[str, np.ndarray]:
    from rag_core.checkpoint import H5File

    file = H5File(path)
    return {name: file[name] for name in file.shapes}


def _checked(filepath: str | Path) -> Path:
    path = Path(filepath)
    if path.suffix not in _ENDINGS:
        raise ValueError(
            f"filepath must end with .safetensors, .weights.h5 or .h5, got {str(filepath)!r}"
        )
    return path
