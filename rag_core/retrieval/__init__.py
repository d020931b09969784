"""Questions to documents: the index, its files, and the prompts that a generator reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.retrieval.bm25 import Bm25Index as Bm25Index
    from rag_core.retrieval.bm25 import bm25_library as bm25_library
    from rag_core.retrieval.bm25 import build_bm25 as build_bm25
    from rag_core.retrieval.bm25 import passage_text as passage_text
    from rag_core.retrieval.bm25 import write_bm25 as write_bm25
    from rag_core.retrieval.faiss_files import INDEX_KINDS as INDEX_KINDS
    from rag_core.retrieval.faiss_files import MIN_PQ_ROWS as MIN_PQ_ROWS
    from rag_core.retrieval.faiss_files import build_faiss as build_faiss
    from rag_core.retrieval.faiss_files import default_nlist as default_nlist
    from rag_core.retrieval.faiss_files import read_faiss as read_faiss
    from rag_core.retrieval.faiss_files import training_rows as training_rows
    from rag_core.retrieval.faiss_files import write_faiss as write_faiss
    from rag_core.retrieval.filtered import FilteredIndex as FilteredIndex
    from rag_core.retrieval.fresh import FreshIndex as FreshIndex
    from rag_core.retrieval.hybrid import HybridIndex as HybridIndex
    from rag_core.retrieval.index import BM25_FOLDER as BM25_FOLDER
    from rag_core.retrieval.index import FaissIndex as FaissIndex
    from rag_core.retrieval.index import Index as Index
    from rag_core.retrieval.merging import ShardHits as ShardHits
    from rag_core.retrieval.merging import flat_candidates as flat_candidates
    from rag_core.retrieval.own_scores import has_own_scores as has_own_scores
    from rag_core.retrieval.own_scores import length_of as length_of
    from rag_core.retrieval.own_scores import needs_text as needs_text
    from rag_core.retrieval.own_scores import needs_vectors as needs_vectors
    from rag_core.retrieval.passage_files import PassageWriter as PassageWriter
    from rag_core.retrieval.passage_files import copied_batch as copied_batch
    from rag_core.retrieval.passage_files import passage_parts as passage_parts
    from rag_core.retrieval.passage_files import read_passages as read_passages
    from rag_core.retrieval.passage_metadata import METADATA_COLUMN as METADATA_COLUMN
    from rag_core.retrieval.passage_metadata import decode_metadata as decode_metadata
    from rag_core.retrieval.passage_metadata import encode_metadata as encode_metadata
    from rag_core.retrieval.prompts import TRUNCATE as TRUNCATE
    from rag_core.retrieval.prompts import document_cuts as document_cuts
    from rag_core.retrieval.prompts import document_of as document_of
    from rag_core.retrieval.ray_cluster import NAMESPACE as NAMESPACE
    from rag_core.retrieval.ray_cluster import actors_of as actors_of
    from rag_core.retrieval.ray_cluster import checked_name as checked_name
    from rag_core.retrieval.ray_cluster import join as join
    from rag_core.retrieval.ray_cluster import named_actor as named_actor
    from rag_core.retrieval.ray_cluster import newest_serial as newest_serial
    from rag_core.retrieval.ray_cluster import table_name as table_name
    from rag_core.retrieval.ray_index import WHEN_LOST as WHEN_LOST
    from rag_core.retrieval.ray_index import RayIndex as RayIndex
    from rag_core.retrieval.ray_index import ShardLostError as ShardLostError
    from rag_core.retrieval.ray_index import ShardsExchangedError as ShardsExchangedError
    from rag_core.retrieval.recall import LOW_RECALL as LOW_RECALL
    from rag_core.retrieval.recall import Blocks as Blocks
    from rag_core.retrieval.recall import gather_rows as gather_rows
    from rag_core.retrieval.recall import low_recall as low_recall
    from rag_core.retrieval.recall import tune_recall as tune_recall
    from rag_core.retrieval.rerank import RERANK as RERANK
    from rag_core.retrieval.rerank import notes_fault as notes_fault
    from rag_core.retrieval.reranked import RerankedIndex as RerankedIndex
    from rag_core.retrieval.retriever import RagRetriever as RagRetriever
    from rag_core.retrieval.retriever import within_table_of as within_table_of
    from rag_core.retrieval.retriever_files import find_own_index as find_own_index
    from rag_core.retrieval.search import read_docs as read_docs
    from rag_core.retrieval.search import search_and_read as search_and_read
    from rag_core.retrieval.stores import LanceIndex as LanceIndex
    from rag_core.retrieval.stores import QdrantIndex as QdrantIndex
    from rag_core.retrieval.stores import StoreIndex as StoreIndex
    from rag_core.retrieval.tables import MOST_PASSAGES as MOST_PASSAGES
    from rag_core.retrieval.tables import IndexTables as IndexTables
    from rag_core.retrieval.tables import index_tables as index_tables
    from rag_core.retrieval.where import Where as Where
    from rag_core.retrieval.where import known_keys as known_keys
    from rag_core.retrieval.where import matching_rows as matching_rows
    from rag_core.retrieval.wiki_dpr import WikiDprIndex as WikiDprIndex

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "faiss_files": [
            "INDEX_KINDS",
            "MIN_PQ_ROWS",
            "build_faiss",
            "default_nlist",
            "read_faiss",
            "training_rows",
            "write_faiss",
        ],
        "filtered": ["FilteredIndex"],
        "fresh": ["FreshIndex"],
        "bm25": ["Bm25Index", "bm25_library", "build_bm25", "passage_text", "write_bm25"],
        "hybrid": ["HybridIndex"],
        "index": ["BM25_FOLDER", "FaissIndex", "Index"],
        "own_scores": ["has_own_scores", "length_of", "needs_text", "needs_vectors"],
        "stores": ["LanceIndex", "QdrantIndex", "StoreIndex"],
        "tables": ["IndexTables", "MOST_PASSAGES", "index_tables"],
        "merging": ["ShardHits", "flat_candidates"],
        "passage_files": ["PassageWriter", "copied_batch", "passage_parts", "read_passages"],
        "passage_metadata": ["METADATA_COLUMN", "decode_metadata", "encode_metadata"],
        "prompts": ["TRUNCATE", "document_cuts", "document_of"],
        "ray_cluster": [
            "NAMESPACE",
            "actors_of",
            "checked_name",
            "join",
            "named_actor",
            "newest_serial",
            "table_name",
        ],
        "ray_index": ["RayIndex", "ShardLostError", "ShardsExchangedError", "WHEN_LOST"],
        "recall": ["Blocks", "LOW_RECALL", "gather_rows", "low_recall", "tune_recall"],
        "reranked": ["RerankedIndex"],
        "rerank": ["RERANK", "notes_fault"],
        "retriever": ["RagRetriever", "within_table_of"],
        "retriever_files": ["find_own_index"],
        "search": ["read_docs", "search_and_read"],
        "where": ["Where", "known_keys", "matching_rows"],
        "wiki_dpr": ["WikiDprIndex"],
    },
)
