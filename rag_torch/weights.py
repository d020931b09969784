"""{name: ndarray} <-> parameters, strictly.

Every name accounted for, ties kept, nothing half loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rag_core.checkpoint import chosen_weights, needs_float32

_DRAWING = {Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_}


class MetaDevice(TorchFunctionMode):
    """Within it modules are built on the meta device, without memory and without drawing fresh
    weights.

    Drawing on the meta device would do nothing, but import all of torch.compile first: seconds.
    """

    def __enter__(self) -> MetaDevice:
        self._meta = torch.device("meta")
        self._meta.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._meta.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Skip whatever draws weights; run everything else."""
        kwargs = kwargs or {}
        draws = func in _DRAWING or getattr(func, "__module__", "") == "torch.nn.init"
        if not draws:
            return func(*args, **kwargs)
        if args:
            return args[0]
        return kwargs["tensor"]


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and saved buffers by name; of tied parameters only the first name."""
    saved = model.state_dict(keep_vars=True)
    seen: set[int] = set()
    for name, tensor in saved.items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        yield name, tensor


def tied_names(model: nn.Module) -> dict[str, str]:
    """Each further name of a tied parameter -> its first name."""
    first: dict[int, str] = {}
    ties = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in first:
            ties[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
    return ties


def to_arrays(
    model: nn.Module, state_dict: Mapping[str, Tensor] | None = None
) -> dict[str, np.ndarray]:
    """The weights as NumPy arrays, tied ones once; bfloat16 stays bfloat16.

    Args:
        model: whose weights, or whose names.
        state_dict: values in place of the model's own, tied ones under any of their names.

    Raises:
        ValueError: the model's weights were rounded to int8, or `state_dict` has other names or
            shapes.
    """
    if any(type(module).__name__ == "Int8Linear" for module in model.modules()):
        raise ValueError(
            "a model in int8 cannot be saved: its weights are rounded. Save the model it was made "
            "from"
        )
    weights = dict(named_tensors(model))
    if state_dict is not None:
        weights = chosen_weights(weights, tied_names(model), state_dict)
    return {name: to_array(tensor) for name, tensor in weights.items()}


def to_array(tensor: Any) -> np.ndarray:
    """A tensor's values; on the CPU the array shares its memory."""
    if not isinstance(tensor, Tensor):
        return np.asarray(tensor)
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:
        import ml_dtypes

        bits = tensor.view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    return tensor.numpy()


def resolve_device(device: Any) -> torch.device | None:
    """A device that is there; None leaves the weights where they are made, on the CPU.

    Raises:
        ValueError: not the name of a device, or no such device here.
    """
    if device is None:
        return None
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device must be 'cpu', 'cuda', 'cuda:0', 'mps' or None, got {device!r}"
        ) from error
    if place.type == "cuda":
        count = torch.cuda.device_count()
    elif place.type == "mps":
        count = int(torch.backends.mps.is_available())
    else:
        return place
    number = place.index or 0
    if number >= count:
        raise ValueError(
            f"device must be one that PyTorch sees; got {device!r}, and it sees {count} of "
            f"{place.type!r}: use 'cpu', or install a build of PyTorch for this GPU"
        )
    return place


def from_array(array: np.ndarray, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    """A tensor that owns its memory.

    Args:
        array: any shape; ml_dtypes' bfloat16 included.
        dtype: wanted type; None keeps the array's. Integers keep theirs.
        device: wanted place.
    """
    # A copy: files mapped into memory are read-only.
    array = np.array(array)
    if array.dtype.name == "bfloat16":
        bits = torch.from_numpy(array.view(np.int16))
        tensor = bits.view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    if dtype is None or not tensor.is_floating_point():
        dtype = tensor.dtype
    return tensor.to(device=device, dtype=dtype)


def assign(
    model: nn.Module, arrays: Mapping[str, np.ndarray], dtype: torch.dtype | None, device: Any
) -> None:
    """Replace the named parameters and buffers by new ones (the model may be on the meta device).

    Args:
        model: whose names these are.
        arrays: name -> values of the right shape; the caller has checked both.
        dtype: of floating-point weights; None keeps the arrays'. What needs float32 has that in
            place of float16.
        device: where to put them.
    """
    assign_each(model, arrays.items(), dtype, device)


def assign_each(
    model: nn.Module,
    pairs: Iterable[tuple[str, np.ndarray]],
    dtype: torch.dtype | None,
    device: Any,
) -> None:
    """As `assign`, from (name, array) pairs that are read one at a time."""
    for name, array in pairs:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        in_half = dtype is torch.float16 or (dtype is None and array.dtype == np.float16)
        own_dtype = dtype
        if in_half and needs_float32(name):
            own_dtype = torch.float32
        tensor = from_array(array, own_dtype, device)
        if leaf not in module._parameters:
            module._buffers[leaf] = tensor
            continue
        old = module._parameters[leaf]
        learns = old is None or old.requires_grad
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=learns)


def resized(weight: Tensor, rows: int, std: float) -> Tensor:
    """The table with `rows` rows: cut, or lengthened by normal(0, std)."""
    old = weight.detach()[:rows]
    missing = max(0, rows - weight.shape[0])
    fresh = torch.randn(missing, *weight.shape[1:], device=weight.device) * std
    return torch.cat([old, fresh.to(weight.dtype)])
