"""Answers and passages where people already are: MCP, LangChain, LlamaIndex, Haystack
(docs/integrations.md).

Each library has a module of its own, which is the only one that imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.integrations.asking import PassageSearch as PassageSearch
    from rag_core.integrations.asking import QuestionAnswering as QuestionAnswering
    from rag_core.integrations.mcp import check_mcp as check_mcp
    from rag_core.integrations.mcp import create_mcp_server as create_mcp_server
    from rag_core.integrations.mcp import run_mcp_server as run_mcp_server
    from rag_core.integrations.records import answer_record as answer_record
    from rag_core.integrations.records import passage_metadata as passage_metadata

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "asking": ["PassageSearch", "QuestionAnswering"],
        "mcp": ["check_mcp", "create_mcp_server", "run_mcp_server"],
        "records": ["answer_record", "passage_metadata"],
    },
)
