"""A retriever's files: saved, moved, loaded with overrides; damaged and hostile ones.

Passages and vectors on disk.
"""

import copy
import json
import pickle
from pathlib import Path

import datasets
import faiss
import numpy as np
import pytest

from rag_core.cli.contents import contents as summary_of
from rag_core.config.rag import DPRConfig
from rag_core.retrieval.faiss_files import build_faiss, read_faiss
from rag_core.retrieval.index import FaissIndex
from rag_core.retrieval.passage_files import read_passages, write_passages
from rag_core.retrieval.retriever import RagRetriever
from rag_core.retrieval.vectors import ArrowVectors
from rag_core.retrieval.wiki_dpr import WikiDprIndex
from tests.support.golden_prompts import GOLDEN, QUERIES, VECTORS, OwnIndex, config
from tests.support.killing import contents


def test_saving_twice_and_moving(retriever, tmp_path, monkeypatch):
    before = retriever.config.to_dict()
    first, second = tmp_path / "a" / "first", tmp_path / "second"
    retriever.save_pretrained(first)
    retriever.save_pretrained(second)
    assert retriever.config.to_dict() == before
    written = json.loads((second / "config.json").read_text())
    names = ("index_name", "index_path", "passages_path")
    assert [written[name] for name in names] == ["custom", "hf_dataset_index.faiss", "hf_dataset"]
    first.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    expected = retriever(GOLDEN["question_ids"], QUERIES)
    for folder in (tmp_path / "moved", "second"):
        for memory_map in (False, True):
            again = RagRetriever.from_pretrained(folder, memory_map=memory_map)
            found = again(GOLDEN["question_ids"], QUERIES)
            assert found["context_input_ids"] == expected["context_input_ids"]
            np.testing.assert_array_equal(
                found["retrieved_doc_embeds"], expected["retrieved_doc_embeds"]
            )
    again.save_pretrained(second)
    assert len(RagRetriever.from_pretrained(second).index) == 12
    # A model saved into the same folder afterwards writes a config.json that knows nothing of the
    # index.
    config(index_name="compressed").save_pretrained(second)
    assert len(RagRetriever.from_pretrained(second).index) == 12
    (second / "config.json").write_text(
        json.dumps(written | {"index_path": "/gone/hf_dataset_index.faiss"})
    )
    assert len(RagRetriever.from_pretrained(second).index) == 12


def of_lists(passages) -> FaissIndex:
    size = VECTORS.shape[1]
    lists = faiss.IndexIVFFlat(faiss.IndexFlatIP(size), size, 1, faiss.METRIC_INNER_PRODUCT)
    lists.train(VECTORS)
    lists.add(VECTORS)
    return FaissIndex(passages, lists)


def test_the_lists_of_a_mapped_file_are_saved_with_it(retriever, passages, tmp_path):
    own = copy.copy(retriever)
    own.index = of_lists(passages)
    own.save_pretrained(tmp_path / "own")
    written = (tmp_path / "own" / "hf_dataset_index.faiss").read_bytes()
    mapped = RagRetriever.from_pretrained(tmp_path / "own", memory_map=True)
    expected = mapped.retrieve(QUERIES)
    for folder in ("copy", "own"):
        mapped.save_pretrained(tmp_path / folder)
        assert (tmp_path / folder / "hf_dataset_index.faiss").read_bytes() == written
        again = RagRetriever.from_pretrained(tmp_path / folder)
        for searched in (mapped, again):
            np.testing.assert_array_equal(searched.retrieve(QUERIES)[1], expected[1])


def test_lists_in_another_file_are_refused(passages, tmp_path):
    index = of_lists(passages).faiss_index
    lists = faiss.OnDiskInvertedLists(1, index.code_size, str(tmp_path / "elsewhere"))
    lists.merge_from(faiss.extract_index_ivf(index).invlists, 0)
    index.replace_invlists(lists)
    faiss.write_index(index, str(tmp_path / "a.faiss"))
    with pytest.raises(OSError, match=r"lists are in another file, '.*elsewhere'"):
        read_faiss(tmp_path / "a.faiss")


def test_an_index_without_save_takes_no_other_ones_place(retriever, tmp_path, caplog):
    retriever.save_pretrained(tmp_path / "s")
    before = contents(tmp_path / "s")
    narrowed = RagRetriever.from_pretrained(tmp_path / "s")
    title = narrowed.index.dataset["title"][0]
    narrowed.index = narrowed.index.where(f"title!={title}")
    with pytest.raises(
        ValueError, match=r"FilteredIndex, has no save.*with hf_dataset_index\.faiss"
    ):
        narrowed.save_pretrained(tmp_path / "s")
    assert contents(tmp_path / "s") == before
    narrowed.save_pretrained(tmp_path / "other")
    assert "pass index=" in caplog.text
    written = json.loads((tmp_path / "other" / "config.json").read_text())
    assert (written["index_path"], written["passages_path"]) == (None, None)


@pytest.fixture
def repository(retriever, tmp_path, monkeypatch):
    """The options that read "me/x" from a hub's cache: a model saved over its retriever."""
    root = tmp_path / "cache" / "models--me--x"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    retriever.save_pretrained(root / "snapshots" / ("0" * 40))
    monkeypatch.chdir(tmp_path)
    return {"cache_dir": tmp_path / "cache", "local_files_only": True}


def test_a_repositorys_index_is_its_own_wherever_it_is_opened(
    retriever, repository, passages, tmp_path, monkeypatch
):
    other = copy.copy(retriever)
    other.index = FaissIndex(passages.select(range(3)), build_faiss([VECTORS[:3]], 3, 8))
    other.save_pretrained(tmp_path / "local")
    monkeypatch.chdir(tmp_path / "local")
    assert len(RagRetriever.from_pretrained("me/x", **repository).index) == 12


def test_a_model_saved_over_its_retriever_keeps_the_index(
    retriever, repository, tmp_path, monkeypatch
):
    folder = tmp_path / "home" / "model"
    retriever.save_pretrained(folder)
    for place in (folder, *(tmp_path / "cache").glob("*/snapshots/*")):
        config(index_name="compressed").save_pretrained(place)
    monkeypatch.setenv("HOME", str(folder.parent))
    for name, hub in ((str(folder), {}), ("~/model", {}), ("me/x", repository)):
        assert len(RagRetriever.from_pretrained(name, **hub).index) == 12
    index = summary_of(folder)["index"]
    assert index["index_path"] == "hf_dataset_index.faiss"


def test_a_wiki_dpr_index_is_named_as_it_is(retriever, tmp_path):
    wiki = WikiDprIndex(
        index_name="psgs_w100.multiset.exact",
        split="test",
        revision="abc",
        vectors="stored",
        rerank=4,
        index_path="/data/own.faiss",
    )
    named = copy.copy(retriever)
    named.index = wiki
    named.save_pretrained(tmp_path)
    again = RagRetriever.from_pretrained(tmp_path, init_retrieval=False).index
    for name in ("index_name", "embeddings_name", "source", "_split", "_revision", "_rerank"):
        assert getattr(again, name) == getattr(wiki, name), name
    assert (again._doc_vectors, again._index_path) == ("stored", "/data/own.faiss")


def test_a_failed_save_leaves_nothing(retriever, tmp_path, monkeypatch):
    monkeypatch.setattr(
        faiss,
        "write_index",
        lambda *_: (_ for _ in ()).throw(RuntimeError("No space left on device")),
    )
    with pytest.raises(OSError, match="No space left"):
        retriever.save_pretrained(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_loading_is_deferred_until_the_first_search(retriever, tmp_path):
    retriever.save_pretrained(tmp_path)
    lazy = RagRetriever.from_pretrained(tmp_path, init_retrieval=False, n_docs=1)
    assert not lazy.index.is_initialized()
    assert lazy.retrieve(QUERIES)[1].shape == (6, 1) and lazy.index.is_initialized()


def test_overrides_and_other_indexes(retriever, tmp_path, passages):
    retriever.save_pretrained(tmp_path)
    indexed = passages.shuffle(seed=1)
    indexed.add_faiss_index("embeddings", metric_type=faiss.METRIC_INNER_PRODUCT)
    other = RagRetriever.from_pretrained(tmp_path, indexed_dataset=indexed)
    expected, found = retriever.retrieve(QUERIES, 3), other.retrieve(QUERIES, 3)
    assert [doc["title"] for doc in found[2]] == [doc["title"] for doc in expected[2]]
    np.testing.assert_array_equal(found[0], expected[0])
    own = OwnIndex(VECTORS)
    mine = config(n_docs=3)
    swapped = RagRetriever.from_pretrained(tmp_path, index=own, config=mine, n_docs=4)
    assert swapped.index is own and swapped.n_docs == 4 and mine.n_docs == 3
    swapped.index = other.index
    np.testing.assert_array_equal(swapped.retrieve(QUERIES)[0][:, :3], expected[0])
    with pytest.raises(ValueError, match="not both"):
        RagRetriever.from_pretrained(tmp_path, indexed_dataset=indexed, index=own)
    wiki = RagRetriever.from_pretrained(
        tmp_path,
        dataset="wiki_dpr",
        index_name="exact",
        use_dummy_dataset=True,
        init_retrieval=False,
    )
    named = wiki.index
    assert (named.source, named.index_name, named.use_dummy_dataset) == (
        "facebook/wiki_dpr",
        "exact",
        True,
    )


def test_nothing_is_unpickled(retriever, tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    retriever.save_pretrained(tmp_path / "rag")
    legacy = tmp_path / "legacy"
    legacy.mkdir()
    for name in ("index_meta.dpr", "psgs_w100.tsv.pkl"):
        (legacy / name).write_bytes(pickle.dumps(Bomb()))
    disguised = tmp_path / "index.faiss"
    disguised.write_bytes(pickle.dumps(Bomb()))
    asks = [
        {"index_name": "legacy"},
        {
            "index_name": "legacy",
            "index_path": str(legacy),
            "passages_path": str(legacy / "psgs_w100.tsv.pkl"),
        },
        {"index_name": "custom", "index_path": str(legacy / "index_meta.dpr")},
        {"index_name": "exact", "index_path": str(legacy)},
    ]
    for ask in asks:
        with pytest.raises(ValueError, match=r"CVE-2023-6730.*index_name='compressed'"):
            RagRetriever.from_pretrained(tmp_path / "rag", **ask)
    with pytest.raises(OSError, match="can't be read as a faiss index"):
        RagRetriever.from_pretrained(tmp_path / "rag", index_path=str(disguised))
    assert not (tmp_path / "exploded").exists()


def test_a_folder_that_is_not_rag_is_explained(tmp_path):
    DPRConfig().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"type 'dpr', not a RAG folder.*from_pretrained\('facebook/rag-token-nq'"
    ):
        RagRetriever.from_pretrained(tmp_path, index_name="legacy")
    with pytest.raises(OSError, match="nowhere"):
        RagRetriever.from_pretrained(tmp_path / "nowhere")


def test_documents_have_the_same_vectors_once_an_index_is_opened_again(
    retriever, passages, tmp_path
):
    renamed = passages.rename_column("embeddings", "vecs")
    codes = faiss.index_factory(8, "IVF2,SQ4", faiss.METRIC_INNER_PRODUCT)
    codes.train(VECTORS)
    codes.add(VECTORS)
    moved = (VECTORS + 1).tolist()

    class Doubled(ArrowVectors):
        def gather(self, rows):
            return 2 * super().gather(rows)

    indexes = [
        FaissIndex(renamed, codes, column="vecs", rerank=16),
        FaissIndex(renamed.add_column("embeddings", moved), codes, column="vecs"),
        FaissIndex(passages, codes, vectors="index"),
        FaissIndex(renamed.add_column("embeddings", moved), codes, column="vecs", vectors="index"),
        FaissIndex(passages, codes, vectors=Doubled(passages)),
        FaissIndex(passages.shuffle(seed=1), codes, vectors=Doubled(passages), rerank=2),
    ]
    fingerprints = set()
    for number, index in enumerate(indexes):
        retriever.index = index
        vectors, ids, docs = retriever.retrieve(QUERIES, 5)
        retriever.save_pretrained(tmp_path / str(number))
        again = RagRetriever.from_pretrained(tmp_path / str(number))
        found = again.retrieve(QUERIES, 5)
        np.testing.assert_array_equal(found[0], vectors)
        np.testing.assert_array_equal(found[1], ids)
        assert [doc["title"] for doc in found[2]] == [doc["title"] for doc in docs]
        assert list(found[2][0]) == ["title", "text", "embeddings"]
        kept = {"title", "text"} if number in (2, 3) else {"title", "text", "embeddings"}
        assert set(again.index.dataset.column_names) == kept
        assert again.index.rerank == index.rerank
        fingerprints.add(again.index.dataset._fingerprint)
    assert len(fingerprints) == 6 and renamed.column_names == ["title", "text", "vecs"]
    indexes[-1]._vectors.gather = lambda rows: np.ones((len(rows), 3))
    with pytest.raises(
        ValueError, match=r"shape \(12, 8\) for 12 rows, Doubled\.gather gave \(12, 3"
    ):
        indexes[-1].save(tmp_path / "bad")


def test_damaged_files_are_named(retriever, tmp_path):
    retriever.save_pretrained(tmp_path)
    file = tmp_path / "hf_dataset_index.faiss"
    whole = file.read_bytes()
    for damaged in (whole[:-7], whole[:30], b"", b"#" + whole[1:]):
        file.write_bytes(damaged)
        with pytest.raises(
            OSError, match=r"hf_dataset_index\.faiss.*can't be read as a faiss index"
        ):
            RagRetriever.from_pretrained(tmp_path)
    file.write_bytes(whole)
    data = next((tmp_path / "hf_dataset").glob("*.arrow"))
    content = data.read_bytes()
    for damaged in (content[: len(content) // 2], b""):
        data.write_bytes(damaged)
        with pytest.raises(OSError, match=r"passages_path=.*can't be opened as a saved data set"):
            RagRetriever.from_pretrained(tmp_path)
    file.unlink()
    data.write_bytes(content)
    with pytest.raises(OSError, match="there is no such file"):
        RagRetriever.from_pretrained(tmp_path)


def test_numbers_of_a_faiss_file_that_lead_out_of_it_are_refused(tmp_path):
    """What faiss reads without a word, and then searches beyond its memory, or asks for all of
    the machine's.
    """

    def refused(index, says, change=lambda content: content):
        faiss.write_index(index, str(tmp_path / "x.faiss"))
        content = (tmp_path / "x.faiss").read_bytes()
        (tmp_path / "x.faiss").write_bytes(change(content))
        with pytest.raises(OSError, match=rf"x\.faiss.*can't be read as a faiss index.*{says}"):
            read_faiss(tmp_path / "x.faiss")

    lists = faiss.index_factory(8, "IVF2,PQ4x4np", faiss.METRIC_INNER_PRODUCT)
    lists.train(np.tile(VECTORS, (4, 1)))
    lists.add(VECTORS)
    lists.nprobe = 0
    refused(lists, "nprobe=0")
    lists.nprobe, lists.ntotal = 1, 99
    refused(lists, "12 vectors in 2 lists")
    lists.ntotal, lists.d = 12, 4
    refused(lists, "pq: d=8|quantizer|d")
    graph = faiss.IndexHNSWFlat(8, 4, faiss.METRIC_INNER_PRODUCT)
    graph.add(VECTORS)
    graph.hnsw.efSearch = 1 << 30
    refused(graph, "efSearch=1073741824")
    graph.hnsw.efSearch = 16
    links = faiss.rev_swig_ptr(graph.hnsw.neighbors.data(), graph.hnsw.neighbors.size())
    kept, links[0] = links[0], len(VECTORS)
    refused(graph, "links from -1 to 12|neighbors")  # releases of faiss differ in what they notice
    links[0] = kept
    graph.hnsw.entry_point = 12
    refused(graph, "entry_point")
    graph.hnsw.entry_point, graph.is_trained = 0, False
    refused(graph, "12 vectors before training|trained")
    flat = faiss.IndexFlatIP(8)
    flat.add(VECTORS)
    numbers = len(VECTORS.tobytes()) // 4
    assert read_faiss_bytes(flat, tmp_path).count(numbers.to_bytes(8, "little")) == 1
    huge = numbers.to_bytes(8, "little"), (1 << 36).to_bytes(8, "little")
    refused(flat, "", lambda content: content.replace(*huge))


def read_faiss_bytes(index, folder):
    faiss.write_index(index, str(folder / "y.faiss"))
    return (folder / "y.faiss").read_bytes()


def test_a_part_of_a_data_set_is_written_without_the_rest(passages, tmp_path):
    part = passages.select(range(2))
    write_passages(part, tmp_path)
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    texts = passages["text"][:]
    assert all(text.encode() in held for text in texts[:2])
    assert not any(text.encode() in held for text in texts[2:] if text)


def test_passages_are_written_for_old_and_new_readers(passages, tmp_path):
    mixed = passages.add_column("section", [[str(i)] * (i % 3) for i in range(12)]).shuffle(seed=3)
    write_passages(mixed, tmp_path / "out", max_shard_rows=5)
    assert len(list((tmp_path / "out").glob("*.arrow"))) == 3
    # Releases of datasets before 4.0 know "Sequence" but not "List", in either place.
    kinds = json.loads((tmp_path / "out" / "dataset_info.json").read_text())["features"]
    assert kinds["embeddings"]["_type"] == kinds["section"]["_type"] == "Sequence"
    assert b'"List"' not in b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    again = read_passages(tmp_path / "out")
    assert again.to_dict() == mixed.to_dict() and again.features == mixed.features


def test_vectors_are_views_in_any_order(passages):
    odd = datasets.concatenate_datasets(
        [passages, passages.select(range(3, 9)), passages.shuffle(seed=2)]
    )
    rows = np.array([[0, 29, -1], [13, 12, 17]])
    expected = np.array(odd["embeddings"][:], np.float32)
    for data in (odd, odd.select(range(30))):
        np.testing.assert_array_equal(
            ArrowVectors(data).gather(rows), np.where(rows[..., None] < 0, 0, expected[rows])
        )
    assert ArrowVectors(passages)._chunks[0].base is not None
    with pytest.raises(ValueError, match="different sizes"):
        ArrowVectors(
            datasets.Dataset.from_dict({"embeddings": [[1.0, 2.0], [3.0], [1.0, 2.0, 3.0]]})
        )
