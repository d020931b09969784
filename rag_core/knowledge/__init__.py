"""Files to knowledge bases: documents, passages, vectors, manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.knowledge.assembly import check_settings as check_settings
    from rag_core.knowledge.base import KnowledgeBase as KnowledgeBase
    from rag_core.knowledge.base import build_knowledge_base as build_knowledge_base
    from rag_core.knowledge.cross_encoder import CrossEncoderBase as CrossEncoderBase
    from rag_core.knowledge.documents import read_documents as read_documents
    from rag_core.knowledge.embedding import Block as Block
    from rag_core.knowledge.embedding import Encode as Encode
    from rag_core.knowledge.embedding import block_vectors as block_vectors
    from rag_core.knowledge.encoders import PassageEncoderBase as PassageEncoderBase
    from rag_core.knowledge.files import BadFilesError as BadFilesError
    from rag_core.knowledge.files import PassedByWarning as PassedByWarning
    from rag_core.knowledge.files import find_files as find_files
    from rag_core.knowledge.manifest import FILE as FILE
    from rag_core.knowledge.manifest import describe as describe
    from rag_core.knowledge.manifest import index_text as index_text
    from rag_core.knowledge.manifest import spots as spots
    from rag_core.knowledge.remembered import REMEMBERED as REMEMBERED
    from rag_core.knowledge.remembered import RememberedBase as RememberedBase
    from rag_core.knowledge.remembered import remember_base as remember_base
    from rag_core.knowledge.remembered import remembered_base as remembered_base
    from rag_core.knowledge.search import hits_of as hits_of
    from rag_core.knowledge.search import search_index as search_index
    from rag_core.knowledge.shards import ShardSet as ShardSet
    from rag_core.knowledge.shards import base_of_manifest as base_of_manifest
    from rag_core.knowledge.shards import cut_shards as cut_shards
    from rag_core.knowledge.shards import held_index as held_index

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "assembly": ["check_settings"],
        "base": ["KnowledgeBase", "build_knowledge_base"],
        "documents": ["read_documents"],
        "cross_encoder": ["CrossEncoderBase"],
        "embedding": ["Block", "Encode", "block_vectors"],
        "encoders": ["PassageEncoderBase"],
        "files": ["BadFilesError", "PassedByWarning", "find_files"],
        "manifest": ["FILE", "describe", "index_text", "spots"],
        "remembered": ["REMEMBERED", "RememberedBase", "remember_base", "remembered_base"],
        "search": ["hits_of", "search_index"],
        "shards": ["ShardSet", "base_of_manifest", "cut_shards", "held_index"],
    },
)
