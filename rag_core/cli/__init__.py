"""The `dualrag` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.cli.commands import app as app
    from rag_core.cli.commands import main as main

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {"commands": ["app", "main"]},
)
