"""Are two backends the same function? Stages recorded and compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.parity.command import Request as Request
    from rag_core.parity.command import check_parity as check_parity
    from rag_core.parity.command import compare_traces as compare_traces
    from rag_core.parity.tracer import TracerBase as TracerBase

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "command": ["Request", "check_parity", "compare_traces"],
        "tracer": ["TracerBase"],
    },
)
