"""LanceDB and Qdrant as an index: what they find and give back is what the faiss index does."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from rag_core.retrieval import stores
from rag_core.retrieval.faiss_files import build_faiss
from rag_core.retrieval.index import FaissIndex
from rag_core.retrieval.passage_metadata import encode_metadata
from rag_core.retrieval.retriever import RagRetriever
from rag_core.retrieval.stores import LanceIndex, QdrantIndex
from tests.support.knowledge_bases import build
from tests.support.training_models import small_config, small_tokenizers

HALF = ("vector", pa.list_(pa.float16(), 4))
pytestmark = pytest.mark.beyond


def lance(index, folder):
    import lancedb

    LanceIndex.create(index, lancedb.connect(folder))
    return LanceIndex(lancedb.connect(folder).open_table("passages"))


def qdrant(index, folder):
    from qdrant_client import QdrantClient

    with_folder = QdrantClient(path=str(folder))
    QdrantIndex.create(index, with_folder, "passages")
    with_folder.close()
    return QdrantIndex(QdrantClient(path=str(folder)), "passages")


@pytest.fixture(scope="module")
def kb(tmp_path_factory):
    return build(tmp_path_factory.mktemp("base"), rows=150, shard_rows=256, batch_size=64)


@pytest.fixture(params=[lance, qdrant])
def pair(request, kb, tmp_path, monkeypatch):
    """A faiss index, and the store of its passages, written in blocks, closed and opened again."""
    monkeypatch.setattr(stores, "_BLOCK", 64)
    index = kb.index()
    return index, request.param(index, tmp_path / "store")


def test_passages_vectors_and_texts_are_those_of_the_faiss_index(pair) -> None:
    index, store = pair
    assert len(store) == len(index) == 150 and store.vector_size == index.vector_size
    queries = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)
    ids, vectors = index.get_top_docs(queries, 10)
    found, of_store = store.get_top_docs(queries, 10)
    stored = index.vectors_of(np.arange(len(index)))
    assert (of_store == stored[found]).all() and of_store.dtype == np.float32  # to the last bit
    scores = np.einsum("bnd,bd->bn", vectors, queries)
    of_found = np.einsum("bnd,bd->bn", of_store, queries)
    np.testing.assert_allclose(of_found, scores, atol=1e-5)
    assert (found == ids).mean() > 0.95  # equal vectors may stand in another order
    assert store.get_doc_dicts(found) == [
        {name: doc[name] for name in ("title", "text", "source", "metadata")}
        for doc in index.get_doc_dicts(found)
    ]
    few, blank = store.get_top_docs(queries[:1], 160)
    assert (few[0, 150:] == -1).all() and not blank[0, 150:].any()
    assert sorted(few[0, :150].tolist()) == list(range(150))
    with pytest.raises(LookupError, match=r"has no rows \[150\]"):
        store.get_doc_dicts(np.array([[3, 150]]))


@pytest.mark.parametrize("made", [lance, qdrant])
def test_metadata_that_a_knowledge_base_may_hold_comes_back(made, tmp_path) -> None:
    metadata = {"numbers": [1] * 30_000}  # with a blank after each comma it would be too long
    vectors = np.eye(2, 4, dtype=np.float32)
    columns = {"title": ["a", "b"], "text": ["c", "d"], "embeddings": list(vectors)}
    columns["metadata_json"] = [encode_metadata(metadata, "a test"), None]
    index = FaissIndex(Dataset.from_dict(columns), build_faiss([vectors], *vectors.shape))
    (doc,) = made(index, tmp_path / "store").get_doc_dicts(np.array([[0, 1]]))
    assert doc["metadata"] == [metadata, {}]


def test_a_retriever_works_through_it(pair, tmp_path) -> None:
    index, store = pair
    tokenizers = small_tokenizers(tmp_path)
    config = small_config(tokenizers)
    queries = index.vectors_of(np.array([5, 130]))  # their own passages are best
    answers = [
        RagRetriever(config, *tokenizers, index=one)(
            None, queries, n_docs=3, question_text=["a", "b"]
        )
        for one in (index, store)
    ]
    first, second = (answer["doc_ids"] for answer in answers)
    np.testing.assert_array_equal(first[:, 0], second[:, 0])
    np.testing.assert_array_equal(
        answers[0]["retrieved_doc_embeds"][:, 0], answers[1]["retrieved_doc_embeds"][:, 0]
    )


def test_the_lines_of_the_page_run(kb, tmp_path, monkeypatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "stores.md").read_text("utf-8")
    (block,) = re.findall(r"^```text\n(import lancedb\n.*?)^```$", page, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    retriever = SimpleNamespace()
    lines = {"kb": kb, "retriever": retriever}
    exec(block, lines)
    assert len(retriever.index) == 150 and isinstance(retriever.index, QdrantIndex)
    lines["client"].close()


def test_of_a_copy_that_fails_no_collection_is_left(kb, monkeypatch) -> None:
    from qdrant_client import QdrantClient

    monkeypatch.setattr(stores, "_BLOCK", 64)
    index, client = kb.index(), QdrantClient(":memory:")
    first = index.vectors_of(np.arange(64))
    monkeypatch.setattr(index, "vectors_of", lambda rows: {0: first}[rows[0]])
    with pytest.raises(KeyError):
        QdrantIndex.create(index, client, "passages")
    assert not client.get_collections().collections


def test_a_collection_that_changes_vectors_and_a_table_of_others_are_refused(tmp_path) -> None:
    import lancedb
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    for name, distance in (("cosine", models.Distance.COSINE), ("dot", models.Distance.DOT)):
        client.create_collection(name, models.VectorParams(size=4, distance=distance))
    with pytest.raises(ValueError, match=r"must have one float32 vector .* distance Dot"):
        QdrantIndex(client, "cosine")
    assert len(QdrantIndex(client, "dot")) == 0
    half = pa.schema([*[(name, pa.string()) for name in ("row", *stores._TEXTS)], HALF])
    with pytest.raises(ValueError, match=r"must hold float32 vectors of one size"):
        LanceIndex(lancedb.connect(tmp_path).create_table("half", schema=half))
    table = lancedb.connect(tmp_path).create_table("t", [{"vector": [1.0, 2.0], "title": "a"}])
    with pytest.raises(ValueError, match=r"'row', 'text', .* are missing"):
        LanceIndex(table)
