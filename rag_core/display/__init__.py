"""What people look at: answers with their passages as pages and pictures, things in notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.display.explanation import Explanation as Explanation
    from rag_core.display.explanation import explanation_kind as explanation_kind
    from rag_core.display.facts import byte_size as byte_size
    from rag_core.display.facts import facts_html as facts_html
    from rag_core.display.facts import facts_line as facts_line
    from rag_core.display.facts import how_many as how_many
    from rag_core.display.facts import shortened as shortened
    from rag_core.display.marks import answer_spans as answer_spans
    from rag_core.display.marks import percent as percent
    from rag_core.display.page import style_hash as style_hash

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "explanation": ["Explanation", "explanation_kind"],
        "facts": ["byte_size", "facts_html", "facts_line", "how_many", "shortened"],
        "marks": ["answer_spans", "percent"],
        "page": ["style_hash"],
    },
)
