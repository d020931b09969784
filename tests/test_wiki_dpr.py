"""The canonical wiki_dpr on a local folder of the same layout as the public repository, with small contents."""

import io

import faiss
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rag_core import hub
from rag_core.wiki_dpr import WikiDprIndex, find_faiss_file, find_shards

ROWS, SIZE, SHARDS, DUMMY = 600, 16, 4, 200


@pytest.fixture(scope="module")
def wiki(tmp_path_factory):
    """Four nq shards, one multiset shard, the five faiss files of the public repository."""
    root = tmp_path_factory.mktemp("wiki_dpr")
    vectors = {
        name: np.random.default_rng(seed).standard_normal((ROWS, SIZE)).astype(np.float32)
        for seed, name in enumerate(("nq", "multiset"))
    }
    for name, shards in (("nq", SHARDS), ("multiset", 1)):
        folder = root / "data" / "psgs_w100" / name
        folder.mkdir(parents=True)
        for shard, rows in enumerate(np.array_split(np.arange(ROWS), shards)):
            table = pa.table(
                {
                    "id": [str(row + 1) for row in rows],
                    "text": [f"text {row} of {name}" for row in rows],
                    "title": [f'"Title {row}"' for row in rows],
                    "embeddings": pa.array(list(vectors[name][rows]), pa.list_(pa.float32())),
                }
            )
            pq.write_table(table, folder / f"train-{shard:05d}-of-{shards:05d}.parquet")
    (root / "index").mkdir()
    for name in vectors:
        for kind, factory in (("HNSW128_SQ8", "HNSW16,SQ8"), ("IVF4096_HNSW128_PQ128", "IVF4_HNSW8,PQ8np")):
            _write(vectors[name], factory, root / "index" / f"psgs_w100.{name}.{kind}-IP-train.faiss")
    _write(vectors["nq"][:DUMMY], "HNSW16,SQ8", root / "index" / "dummy.psgs_w100.nq.HNSW128_SQ8-IP-train.faiss")
    return root, vectors


def _write(vectors, factory, path):
    faiss.omp_set_num_threads(1)
    index = faiss.index_factory(SIZE, factory, faiss.METRIC_INNER_PRODUCT)
    if "IVF" in factory:
        index.nprobe, index.cp.niter, index.pq.cp.niter = 4, 2, 2
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(path))


@pytest.mark.parametrize("name", ["nq", "multiset"])
@pytest.mark.parametrize("kind", ["exact", "compressed"])
@pytest.mark.parametrize("memory_map", [False, True])
def test_vectors_come_back_out_of_the_index(wiki, tmp_path, name, kind, memory_map):
    root, vectors = wiki
    index = WikiDprIndex(str(root), index_name=kind, embeddings_name=name, memory_map=memory_map, cache_dir=tmp_path)
    assert not index.is_initialized()
    queries = vectors[name][[0, 149, 150, 599]]
    doc_ids, found = index.get_top_docs(queries, 3)
    assert index.is_initialized() and len(index) == ROWS
    assert index.dataset.column_names == ["id", "title", "text"], "the embeddings column must not be read"
    if kind == "exact":
        np.testing.assert_array_equal(doc_ids, np.argsort(-(queries @ vectors[name].T), axis=1)[:, :3])
        np.testing.assert_allclose(found, vectors[name][doc_ids], atol=0.03)
    else:
        spread = np.abs(found - vectors[name][doc_ids]).mean()
        assert 0 < spread < 0.5 * np.abs(vectors[name]).mean()
    for row, doc in enumerate(index.get_doc_dicts(doc_ids)):
        assert doc["id"] == [str(i + 1) for i in doc_ids[row]]
        assert doc["text"] == [f"text {i} of {name}" for i in doc_ids[row]]
        assert doc["title"] == [f'"Title {i}"' for i in doc_ids[row]]


def test_stored_vectors_and_full_names(wiki, tmp_path):
    root, vectors = wiki
    index = WikiDprIndex(str(root), index_name="psgs_w100.multiset.compressed", vectors="stored", cache_dir=tmp_path)
    doc_ids, found = index.get_top_docs(vectors["multiset"][:20], 5)
    np.testing.assert_array_equal(found, vectors["multiset"][doc_ids])


def test_dummy_reads_only_the_shards_it_needs(wiki, tmp_path):
    root, vectors = wiki
    index = WikiDprIndex(str(root), index_name="exact", use_dummy_dataset=True, cache_dir=tmp_path)
    doc_ids, _ = index.get_top_docs(vectors["nq"][[DUMMY - 1]], 1)
    assert len(index) == DUMMY and doc_ids.tolist() == [[DUMMY - 1]]
    assert index.get_doc_dicts(doc_ids)[0]["id"] == [str(DUMMY)]
    assert len(list(tmp_path.rglob("*.arrow"))) == 2  # 150 rows a shard
    with pytest.raises(OSError, match=r"index_name='exact'.*index_path="):
        WikiDprIndex(str(root), index_name="compressed", use_dummy_dataset=True, cache_dir=tmp_path).init_index()


def test_conversion_is_resumed_and_follows_the_files(wiki, tmp_path):
    root, _ = wiki
    index = WikiDprIndex(str(root), index_name="exact", cache_dir=tmp_path)
    index.init_index()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.arrow")}
    gone = sorted(before)[1]
    gone.unlink()
    again = WikiDprIndex(str(root), index_name="exact", cache_dir=tmp_path)
    again.init_index()
    assert {p for p, t in before.items() if p.stat().st_mtime_ns != t} == {gone}
    assert again.dataset["text"][:] == index.dataset["text"][:] == [f"text {i} of nq" for i in range(ROWS)]


def test_what_is_missing_or_damaged_is_named(wiki, tmp_path):
    root, _ = wiki
    copy = tmp_path / "copy"
    for path in root.rglob("*nq*/*"):
        (copy / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(root)).write_bytes(path.read_bytes())
    with pytest.raises(OSError, match=r"no faiss file.*HNSW\*\.faiss, found no \.faiss file"):
        WikiDprIndex(str(copy), index_name="exact", cache_dir=tmp_path).init_index()
    own = str(next(root.rglob("psgs_w100.nq.HNSW*")))
    shards = sorted(copy.rglob("*.parquet"))
    shards[2].write_bytes(shards[2].read_bytes()[:-2000])
    with pytest.raises(OSError, match=r"00002-of-00004.*truncated or damaged"):
        WikiDprIndex(str(copy), index_name="exact", index_path=own, cache_dir=tmp_path).init_index()
    shards[2].unlink()
    with pytest.raises(OSError, match=r"lacks 1 of 00004.*\[2\]"):
        WikiDprIndex(str(copy), index_name="exact", index_path=own, cache_dir=tmp_path).init_index()
    with pytest.raises(OSError, match=r"no passages.*data/psgs_w100/multiset.*found 3 parquet.*psgs_w100/nq"):
        WikiDprIndex(
            str(copy), index_name="exact", embeddings_name="multiset", index_path=own, cache_dir=tmp_path
        ).init_index()
    dummy = str(next(root.rglob("dummy*")))
    with pytest.raises(OSError, match=r"200 vectors.*600 rows"):
        WikiDprIndex(str(root), index_name="exact", index_path=dummy, cache_dir=tmp_path).init_index()
    with pytest.raises(ValueError, match="CVE-2023-6730"):
        WikiDprIndex(str(root), index_name="legacy")
    with pytest.raises(ValueError, match="'exact', 'compressed' or 'custom'"):
        WikiDprIndex(str(root), index_name="no_index")


def test_only_the_wanted_columns_travel_from_the_hub(wiki, tmp_path, monkeypatch):
    root, vectors = wiki
    read, opened = [], []
    shard = "data/psgs_w100/multiset/train-00000-of-00001.parquet"
    table = pq.read_table(root / shard).drop_columns("embeddings")
    fat = tmp_path / "fat.parquet"
    pq.write_table(table.append_column("embeddings", pa.array(list(np.random.default_rng(0).random((ROWS, 512))))), fat)

    class Counted(io.FileIO):
        def read(self, size=-1):
            read.append(super().read(size))
            return read[-1]

    class Files:
        def __init__(self, token=None):
            opened.append(token)

        def open(self, path, mode):
            opened.append(path)
            return Counted(fat, mode)

    def resolve(name, filename, **hub):
        assert (name, hub) == ("facebook/wiki_dpr", {"repo_type": "dataset", "revision": "v7", **options})
        return root / filename

    options = {"cache_dir": tmp_path, "token": "t"}
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", Files)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "list_files", lambda name, **_: hub._files_below(root))
    monkeypatch.setattr(hub, "resolve_file", resolve)
    index = WikiDprIndex(index_name="multiset.exact", revision="v7", **options)
    doc_ids, _ = index.get_top_docs(vectors["multiset"][:1], 1)
    best = int(np.argmax(vectors["multiset"] @ vectors["multiset"][0]))
    assert index.get_doc_dicts(doc_ids)[0]["text"] == [f"text {best} of multiset"]
    assert opened == ["t", f"datasets/facebook/wiki_dpr@v7/{shard}"]
    assert sum(map(len, read)) < 0.1 * fat.stat().st_size


def test_public_listing_is_matched():
    listing = [f"data/psgs_w100/{n}/train-{i:05d}-of-00157.parquet" for n in ("multiset", "nq") for i in range(157)]
    kinds = ("HNSW128_SQ8", "IVF4096_HNSW128_PQ128")
    listing += [f"index/psgs_w100.{n}.{k}-IP-train.faiss" for n in ("nq", "multiset") for k in kinds]
    listing += ["index/dummy.psgs_w100.nq.HNSW128_SQ8-IP-train.faiss", "README.md", "wiki_dpr.py"]
    assert find_shards(listing, "nq", "train", False, "x") == listing[157:314]
    for name in ("nq", "multiset"):
        for kind, index_name in zip(kinds, ("exact", "compressed"), strict=True):
            found = find_faiss_file(listing, index_name, name, False, "x")
            assert found == f"index/psgs_w100.{name}.{kind}-IP-train.faiss"
    assert find_faiss_file(listing, "exact", "nq", True, "x").startswith("index/dummy.")
