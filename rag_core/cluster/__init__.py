"""A knowledge base on a Ray cluster: shards held by actors, passages embedded by them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.cluster.embedding import RayEncoder as RayEncoder
    from rag_core.cluster.embedding import load_embed as load_embed
    from rag_core.cluster.service import start_shards as start_shards
    from rag_core.cluster.service import stop_shards as stop_shards

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {"embedding": ["RayEncoder", "load_embed"], "service": ["start_shards", "stop_shards"]},
)
