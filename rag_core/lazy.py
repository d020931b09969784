"""Packages whose names load on first use, so that importing one costs nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def lazily(
    package: str, homes: Mapping[str, Iterable[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """What a package's `__init__` needs to offer names of its modules: `__getattr__`, `__dir__` and
    `__all__`.

    Args:
        package: `__name__` of the package.
        homes: module, relative to the package -> the names it holds.
    """
    home = {name: module for module, names in homes.items() for name in names}
    offered = sorted(home)

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, value)  # the next access finds it there
        return value

    return load, lambda: offered, offered
