"""Which framework does the tensor work.

Found by name, at call time, never imported before it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

import numpy as np

# backend name -> (our package, the framework it needs, the pip extra)
BACKENDS = {"torch": ("rag_torch", "torch", "torch"), "tf": ("rag_tf", "tensorflow", "tf")}
# as the extras of pyproject.toml say
OLDEST = {"torch": (2, 4), "tf": (2, 16)}
TENSOR_KINDS = {"pt": "torch", "tf": "tf"}


def available_backends() -> list[str]:
    """Names of the backends whose package and framework are both installed, in order of
    preference.
    """
    return [
        name
        for name, (package, framework, _) in BACKENDS.items()
        if importlib.util.find_spec(package) and importlib.util.find_spec(framework)
    ]


def load_backend(name: str | None = None) -> ModuleType:
    """Imports `rag_torch` or `rag_tf`.

    Args:
        name: "torch", "tf", or None for the first one installed (torch is preferred).

    Raises:
        ValueError: the name is not a backend.
        ImportError: the framework is not installed; the message has the pip line.
    """
    if name is not None and name not in BACKENDS:
        raise ValueError(f"backend must be one of {sorted(BACKENDS)} or None, got {name!r}")
    # Asked for with each tensor: no search of the disk once it is loaded.
    if name is not None and all(sys.modules.get(module) for module in BACKENDS[name][:2]):
        return sys.modules[BACKENDS[name][0]]
    installed = available_backends()
    if name is None and not installed:
        raise ImportError(
            "No backend is installed: dualrag needs PyTorch or TensorFlow for its models. "
            "Run  pip install 'dualrag[torch]'  or  pip install 'dualrag[tf]'."
        )
    name = name or installed[0]
    package = BACKENDS[name][0]
    if name not in installed:
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"The {name} backend ({package}) is not part of this installation of dualrag."
            )
        raise ImportError(_lacks_framework(name))
    return importlib.import_module(package)


def check_framework(name: str) -> None:
    """Import a backend's framework, or say in one sentence what to install.

    Raises:
        ImportError: it is not installed, or older than this package was written for; the message
            has the pip line.
    """
    _, framework, extra = BACKENDS[name]
    try:
        version = str(importlib.import_module(framework).__version__)
    except ModuleNotFoundError as error:
        if error.name != framework:
            raise
        raise ImportError(_lacks_framework(name)) from None
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    if tuple(numbers) < OLDEST[name]:
        oldest = ".".join(map(str, OLDEST[name]))
        raise ImportError(
            f"The {name} backend needs {framework} {oldest} or newer, got {version}. Run  "
            f"pip install --upgrade 'dualrag[{extra}]'."
        )


def _lacks_framework(name: str) -> str:
    _, framework, extra = BACKENDS[name]
    return f"The {name} backend needs {framework}. Run  pip install 'dualrag[{extra}]'."


def process_count() -> int:
    """How many processes run this program together.

    As torch.distributed knows it, or as their launcher says.
    """
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_world_size())
    # what torchrun and accelerate tell their processes
    world_size = os.environ.get("WORLD_SIZE", "")
    if not world_size.isdigit():
        return 1
    return int(world_size)


def to_tensor(array: Any, return_tensors: str | None) -> Any:
    """Converts to what `return_tensors` names: None leaves as is, "np" NumPy, "pt" PyTorch, "tf"
    TensorFlow.

    Raises:
        ValueError: another name.
        ImportError: the framework is not installed.
    """
    if return_tensors is None:
        return array
    if return_tensors == "np":
        return np.asarray(array)
    if return_tensors not in TENSOR_KINDS:
        raise ValueError(f"return_tensors must be None, 'np', 'pt' or 'tf', got {return_tensors!r}")
    return load_backend(TENSOR_KINDS[return_tensors]).as_tensor(np.asarray(array))


def to_numpy(value: Any) -> np.ndarray:
    """A NumPy view or copy of a torch or TensorFlow tensor, a list or an array, on the host,
    without gradient.

    Half precisions that NumPy lacks (bfloat16) come back as float32. No framework is imported.
    """
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):  # torch
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        return value.numpy()
    if hasattr(value, "numpy"):  # TensorFlow
        value = value.numpy()
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    return array
