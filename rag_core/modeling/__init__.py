"""What model classes of both frameworks share: mixins, written once, around their tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.modeling.pretrained import PretrainedBase as PretrainedBase
    from rag_core.modeling.pretrained import check_table as check_table
    from rag_core.modeling.pretrained import rows_wanted as rows_wanted

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "pretrained": ["PretrainedBase", "check_table", "rows_wanted"],
    },
)
