"""A pickle interpreter that can build containers, numbers, strings and descriptions of tensors, and
nothing else.

`pickletools` only splits the stream into operations; the `pickle` module, which calls what a stream
names, is not used.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

STORAGES: dict[str, Any] = {
    "torch.DoubleStorage": np.float64,
    "torch.FloatStorage": np.float32,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": ml_dtypes.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
}


class Refused(Exception):
    """What a file holds isn't taken; the text continues "<file> ..."."""


@dataclass(frozen=True)
class Global:
    """A name that a stream mentions; never looked up anywhere."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A run of `numel` numbers of one type."""

    key: str
    dtype: Any
    numel: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, in elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _tensor(
    storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    if not isinstance(storage, Storage):
        raise Refused("is corrupt: a tensor without a storage")
    return Tensor(storage, offset, tuple(size), tuple(stride))


# What a stream may "call": the names that torch.save writes for tensors and their containers.
_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda pairs=(): dict(pairs),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch.device": lambda *_: None,
}

_LITERALS = frozenset(
    "INT LONG BININT BININT1 BININT2 LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 STRING BINSTRING SHORT_BINSTRING".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# Lies on the stack where a run of values begins; no value of a stream is it.
_MARK = object()


def run(stream: Any, storages: dict[str, Storage] | None = None) -> Any:
    """Interprets one pickle, leaving the stream behind its end.

    Args:
        stream: an object with `read`, `readline` and `tell` (bytes in memory or a memory map, so
            that a declared length can't allocate more than is there).
        storages: filled with every storage mentioned, by key.

    Returns:
        Containers, numbers, strings and `Tensor`s.

    Raises:
        Refused: an operation or a name that a state dict doesn't need.
        ValueError, LookupError, TypeError: a malformed stream.
    """
    if storages is None:
        storages = {}
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for code, argument, _ in pickletools.genops(stream):
        operation = code.name
        if operation in _LITERALS:
            stack.append(argument)
        elif operation in _CONSTANTS:
            stack.append(_CONSTANTS[operation])
        elif operation in _EMPTY:
            stack.append(_EMPTY[operation]())
        elif operation == "MARK":
            stack.append(_MARK)
        elif operation in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif operation == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif operation in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif operation in _TUPLES:
            count = _TUPLES[operation]
            stack[-count:] = [tuple(_popped(stack, count))]
        elif operation == "TUPLE":
            stack.append(tuple(_to_mark(stack)))
        elif operation == "LIST":
            stack.append(_to_mark(stack))
        elif operation == "DICT":
            stack.append(_pairs(_to_mark(stack)))
        elif operation == "APPEND":
            value = stack.pop()
            _as(stack[-1], list).append(value)
        elif operation == "APPENDS":
            values = _to_mark(stack)
            _as(stack[-1], list).extend(values)
        elif operation == "SETITEM":
            values = _popped(stack, 2, remove=True)
            _as(stack[-1], dict).update(_pairs(values))
        elif operation == "SETITEMS":
            values = _to_mark(stack)
            _as(stack[-1], dict).update(_pairs(values))
        elif operation == "GLOBAL":
            stack.append(_global(argument.replace(" ", ".")))
        elif operation == "STACK_GLOBAL":
            stack.append(_global(".".join(_popped(stack, 2, remove=True))))
        elif operation == "REDUCE":
            called, arguments = _popped(stack, 2, remove=True)
            stack.append(_CALLS[_as(called, Global).name](*_as(arguments, tuple)))
        elif operation == "BINPERSID":
            stack.append(_storage(stack.pop(), storages))
        elif operation == "BUILD":
            stack.pop()  # the attributes of a state dict: version numbers
        elif operation == "STOP":
            return stack.pop()
        elif operation not in ("PROTO", "FRAME"):
            raise Refused(
                f"is refused: it uses the pickle operation {operation}, which a state dict "
                "doesn't need"
            )
    raise Refused("is truncated")


def _pairs(values: list[Any]) -> dict[Any, Any]:
    """A mapping out of its keys and values in turn."""
    return dict(zip(values[::2], values[1::2], strict=True))


def _global(name: str) -> Global:
    if name not in _CALLS and name not in STORAGES:
        raise Refused(
            f"is refused: it names {name!r}, where only tensors and plain containers are read (no "
            "code is run)"
        )
    return Global(name)


def _storage(description: Any, known: dict[str, Storage]) -> Storage:
    """What a persistent id describes: ("storage", type, key, location, numel[, view])."""
    kind, numbers, key, _, numel, *view = _as(description, tuple)
    is_known = kind == "storage" and _as(numbers, Global).name in STORAGES
    if not is_known or any(part is not None for part in view):
        raise Refused("is refused: it describes a storage in a form that isn't known")
    if type(numel) is not int or numel < 0:
        raise Refused(f"is corrupt: a storage of {numel!r} numbers")
    storage = Storage(str(key), STORAGES[numbers.name], numel)
    if known.setdefault(storage.key, storage) != storage:
        raise Refused(f"is corrupt: storage {storage.key} is described twice, differently")
    return storage


def _as(value: Any, kind: type) -> Any:
    # nothing here makes a value of a subclass
    if type(value) is not kind:
        raise Refused(f"is corrupt: a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _popped(stack: list[Any], count: int, *, remove: bool = False) -> list[Any]:
    """The last `count` values; all must be there and above the last mark."""
    values = stack[-count:]
    if len(values) < count or any(value is _MARK for value in values):
        raise Refused("is truncated or corrupt: values are missing")
    if remove:
        del stack[-count:]
    return values


def _to_mark(stack: list[Any]) -> list[Any]:
    """Takes everything above the last mark, and the mark."""
    mark = len(stack) - 1
    while stack[mark] is not _MARK:
        mark -= 1
        if mark < 0:
            raise Refused("is truncated or corrupt: a mark is missing")
    values = stack[mark + 1 :]
    del stack[mark:]
    return values
