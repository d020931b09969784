"""The canonical wiki_dpr on a local folder of the public repository's files, with small
contents.
"""

import io
import shutil
from types import SimpleNamespace

import datasets
import faiss
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rag_core.hub import files as hub
from rag_core.retrieval.wiki_dpr import WikiDprIndex, find_faiss_file, find_shards
from tests.support.hub_folders import write_faiss_file, write_shards, write_wiki_dpr

ROWS, SIZE, DUMMY = 628, 16, 40
COMMIT = "0ae2454140a2d6864475c83f26e6dc9cd4ab9ce4"


@pytest.fixture(scope="module")
def wiki(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub") / "wiki_dpr"
    return root, write_wiki_dpr(root, ROWS, DUMMY, SIZE)


@pytest.mark.parametrize("name", ["nq", "multiset"])
@pytest.mark.parametrize("kind", ["exact", "compressed"])
@pytest.mark.parametrize("memory_map", [False, True])
def test_vectors_come_back_out_of_the_index(wiki, tmp_path, name, kind, memory_map):
    root, vectors = wiki
    index = WikiDprIndex(
        str(root), index_name=kind, embeddings_name=name, memory_map=memory_map, cache_dir=tmp_path
    )
    assert not index.is_initialized()
    queries = vectors[name][[0, 149, 150, 627]]
    doc_ids, found = index.get_top_docs(queries, 3)
    assert index.is_initialized() and len(index) == ROWS
    assert index.dataset.column_names == ["id", "title", "text"]
    assert len(list(tmp_path.rglob("*.arrow"))) == 28, (
        "texts alone, not out of the 157 shards with vectors"
    )
    if kind == "exact":
        np.testing.assert_array_equal(
            doc_ids, np.argsort(-(queries @ vectors[name].T), axis=1)[:, :3]
        )
        np.testing.assert_allclose(found, vectors[name][doc_ids], atol=0.03)
    else:
        spread = np.abs(found - vectors[name][doc_ids]).mean()
        assert 0 < spread < 0.5 * np.abs(vectors[name]).mean()
    for row, doc in enumerate(index.get_doc_dicts(doc_ids)):
        assert doc["id"] == [str(i + 1) for i in doc_ids[row]]
        assert doc["text"] == [f"text {i}: Paris has {i} people." for i in doc_ids[row]]
        assert doc["title"] == [f'"Title {i}"' for i in doc_ids[row]]


def test_stored_vectors_and_full_names(wiki, tmp_path):
    root, vectors = wiki
    index = WikiDprIndex(
        str(root), index_name="psgs_w100.multiset.compressed", vectors="stored", cache_dir=tmp_path
    )
    doc_ids, found = index.get_top_docs(vectors["multiset"][:20], 5)
    np.testing.assert_array_equal(found, vectors["multiset"][doc_ids])


@pytest.mark.parametrize("name", ["nq", "multiset"])
@pytest.mark.parametrize("source", ["index", "stored"])
def test_the_dummy_index_is_made_of_the_stored_vectors(wiki, tmp_path, name, source):
    root, vectors = wiki
    index = WikiDprIndex(
        str(root),
        index_name="exact",
        embeddings_name=name,
        use_dummy_dataset=True,
        vectors=source,
        cache_dir=tmp_path,
    )
    queries = np.random.default_rng(5).standard_normal((9, SIZE)).astype(np.float32)
    doc_ids, found = index.get_top_docs(queries, 4)
    np.testing.assert_array_equal(
        doc_ids, np.argsort(-(queries @ vectors[name][:DUMMY].T), axis=1)[:, :4]
    )
    np.testing.assert_array_equal(found, vectors[name][doc_ids])
    assert len(index) == DUMMY and index.get_doc_dicts(doc_ids[:1, :1])[0]["id"] == [
        str(doc_ids[0, 0] + 1)
    ]
    assert len(list(tmp_path.rglob("*.arrow"))) == 1


def test_dummy_says_that_nothing_is_compressed(wiki, tmp_path):
    root, vectors = wiki
    index = WikiDprIndex(str(root), use_dummy_dataset=True, cache_dir=tmp_path)
    with pytest.warns(UserWarning, match="the dummy data set has no compressed index"):
        index.init_index()
    assert index.get_top_docs(vectors["nq"][[7]], 1)[0].tolist() == [[7]]
    by_name = WikiDprIndex(str(root), index_name="dummy.psgs_w100.nq.exact", cache_dir=tmp_path)
    assert by_name.use_dummy_dataset and len(by_name) == DUMMY


def test_a_dummy_index_file_is_read_where_there_is_one(wiki, tmp_path):
    _, vectors = wiki
    # The file of the old bucket, beside the texts alone, as somebody may have copied both.
    mixed = tmp_path / "mixed"
    write_shards(mixed / "data" / "psgs_w100" / "no_embeddings", 28, ROWS, None)
    write_faiss_file(
        vectors["nq"][:30], "HNSW16,Flat", mixed / "dummy.psgs_w100.nq.IndexHNSWFlat-IP-train.faiss"
    )
    index = WikiDprIndex(str(mixed), index_name="exact", use_dummy_dataset=True, cache_dir=tmp_path)
    doc_ids, found = index.get_top_docs(vectors["nq"][[29]], 2)
    assert (
        len(index) == 30
        and doc_ids[0, 0] == 29
        and isinstance(index.faiss_index, faiss.IndexHNSWFlat)
    )
    np.testing.assert_array_equal(found, vectors["nq"][doc_ids])
    assert len(list(tmp_path.rglob("*.arrow"))) == 2, (
        "23 and 22 rows: no shard beyond the 30 of the index"
    )


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
    assert again.dataset["id"][:] == index.dataset["id"][:] == [str(i + 1) for i in range(ROWS)]
    gone.write_bytes(gone.read_bytes()[:50])
    with pytest.raises(OSError, match=rf"{gone.name}.*no_embeddings.*Delete it"):
        WikiDprIndex(str(root), index_name="exact", cache_dir=tmp_path).init_index()


def test_what_is_missing_or_damaged_is_named(wiki, tmp_path):
    root, vectors = wiki
    copy = tmp_path / "copy"
    shutil.copytree(root / "data" / "psgs_w100" / "nq", copy / "data" / "psgs_w100" / "nq")

    def error(match, **options):
        with pytest.raises(OSError, match=match):
            WikiDprIndex(
                str(copy), cache_dir=tmp_path, **{"index_name": "exact", **options}
            ).init_index()

    own = str(next(root.rglob("psgs_w100.nq.HNSW*")))
    few = tmp_path / "few.faiss"
    write_faiss_file(vectors["nq"][:DUMMY], "Flat", few)
    error(r"no faiss file.*HNSW\*\.faiss, found 157 parquet files, in folders .*psgs_w100/nq")
    error(r"40 vectors.*628 rows", index_path=str(few))
    error(
        r"looked for data/psgs_w100/multiset/.*found 157 parquet",
        embeddings_name="multiset",
        index_path=own,
    )
    shards = sorted(copy.rglob("*.parquet"))
    shards[2].write_bytes(shards[2].read_bytes()[:-2000])
    error(r"00002-of-00157.*truncated, damaged", index_path=own)
    shards[2].unlink()
    error(r"lacks 1 of 00157.*\[2\]", index_path=own)
    # Every shard again under another number, as after a push of other sizes: one whole set is
    # enough.
    write_shards(copy / "new", 3, ROWS, vectors["nq"])
    for file in (copy / "new").iterdir():
        file.rename(shards[0].parent / file.name)
    index = WikiDprIndex(str(copy), index_name="exact", index_path=own, cache_dir=tmp_path)
    assert index.dataset["id"][:] == [str(i + 1) for i in range(ROWS)]
    shutil.rmtree(copy / "data")
    (copy / "wiki_dpr.py").touch()
    error(
        r"no passages.*data/psgs_w100/dummy\.nq/.*wiki_dpr\.py.*March 2024", use_dummy_dataset=True
    )
    with pytest.raises(ValueError, match="CVE-2023-6730"):
        WikiDprIndex(str(root), index_name="legacy")
    with pytest.raises(ValueError, match="'exact', 'compressed' or 'custom'"):
        WikiDprIndex(str(root), index_name="no_index")


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("text", pa.array([b"\xff\xfe"]).view(pa.string()), "ArrowInvalid.*UTF8"),
        ("text", pa.array([None], pa.string()), "1 passages without a text"),
        ("title", pa.array([5]), r"lacks columns \{'title': 'int64'\}"),
        ("embeddings", pa.array([["a"]]), r"lacks columns \{'embeddings': 'list<.*string>'\}"),
        ("embeddings", pa.array([[1.0, np.nan]]), "holds NaN or infinity in its vectors"),
        (
            "embeddings",
            pa.array([[1.0, None]]),
            "ValueError: column 'embeddings' has missing numbers",
        ),
        ("embeddings", None, r"lacks columns \['embeddings'\]"),
    ],
)
def test_passages_that_are_none_are_named_before_they_are_searched(tmp_path, column, values, words):
    folder = tmp_path / "data" / "psgs_w100" / "dummy.nq"
    write_shards(folder, 1, 1, np.ones((1, SIZE), np.float32))
    [file] = folder.iterdir()
    table = pq.read_table(file).drop_columns(column)
    pq.write_table(table if values is None else table.append_column(column, values), file)
    with pytest.raises(OSError, match=rf"dummy\.nq/train-00000-of-00001\.parquet' of .*{words}"):
        WikiDprIndex(
            str(tmp_path), index_name="exact", use_dummy_dataset=True, cache_dir=tmp_path
        ).init_index()
    assert not list(tmp_path.rglob("*.arrow"))


@pytest.fixture
def repository(wiki, tmp_path, monkeypatch):
    """`facebook/wiki_dpr` behind stand-ins for huggingface_hub.

    What was asked of it, and where its branch stands.
    """
    root, _ = wiki
    state = SimpleNamespace(asked=[], read=[], commit=COMMIT, files=root)

    class Api:
        def __init__(self, token=None):
            assert token == "t"

        def repo_info(self, name, *, revision, repo_type):
            state.asked.append(f"{name}@{revision}")
            return SimpleNamespace(sha=state.commit)

        def list_repo_files(self, name, *, revision, repo_type):
            assert revision == state.commit
            return hub._files_below(state.files)

    class Counted(io.FileIO):
        def read(self, size=-1):
            state.read.append(super().read(size))
            return state.read[-1]

    class Files:
        def __init__(self, token=None):
            assert token == "t"

        def open(self, path, mode):
            state.commit = "f" * 40  # somebody pushes as soon as the first file is read
            place, _, name = path.removeprefix("datasets/").partition("/data/")
            assert name, path
            state.asked.append(place)
            return Counted(state.files / "data" / name, mode)

    def download(name, filename, *, revision, repo_type, **options):
        state.asked.append(f"{name}@{revision}")
        return str(state.files / filename)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", Files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return state


def test_all_files_are_of_one_commit_and_found_again_offline(
    repository, wiki, tmp_path, monkeypatch
):
    _, vectors = wiki
    options = {"cache_dir": tmp_path, "token": "t", "index_name": "multiset.exact"}
    index = WikiDprIndex(**options)
    expected = index.get_top_docs(vectors["multiset"][:3], 2)[0]
    assert repository.asked == ["facebook/wiki_dpr@None"] + [f"facebook/wiki_dpr@{COMMIT}"] * 29
    texts = index.get_doc_dicts(expected)

    repository.asked.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    again = WikiDprIndex(**options)
    np.testing.assert_array_equal(again.get_top_docs(vectors["multiset"][:3], 2)[0], expected)
    assert again.get_doc_dicts(expected) == texts
    assert repository.asked == [f"facebook/wiki_dpr@{COMMIT}"], (
        "the faiss file, out of the hub's cache"
    )
    with pytest.raises(OSError, match="offline"):
        WikiDprIndex(**options, revision="v7").init_index()

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    repository.asked.clear()
    WikiDprIndex(**options).init_index()
    assert (
        set(repository.asked[1:]) == {f"facebook/wiki_dpr@{'f' * 40}"}
        and len(repository.asked) == 30
    )


def test_only_the_wanted_columns_travel_from_the_hub(repository, tmp_path):
    repository.files = root = tmp_path / "fat"
    rows = 600
    vectors = np.random.default_rng(0).standard_normal((rows, 512)).astype(np.float32)
    write_shards(root / "data" / "psgs_w100" / "nq", 1, rows, vectors)
    write_faiss_file(
        vectors, "HNSW16,SQ8", root / "index" / "psgs_w100.nq.HNSW128_SQ8-IP-train.faiss"
    )
    index = WikiDprIndex(index_name="exact", token="t", cache_dir=tmp_path)
    assert index.get_top_docs(vectors[[9]], 1)[0].tolist() == [[9]]
    assert index.get_doc_dicts(np.array([[9]]))[0]["title"] == ['"Title 9"']
    fat = next(root.rglob("*.parquet")).stat().st_size
    assert 0 < sum(map(len, repository.read)) < 0.1 * fat


def test_public_listing_is_matched(wiki):
    root, _ = wiki
    listing = hub._files_below(root)
    places = {"nq": 157, "multiset": 157}
    for name, shards in places.items():
        for dummy, folder, count in ((False, name, shards), (True, f"dummy.{name}", 1)):
            expected = [
                f"data/psgs_w100/{folder}/train-{i:05d}-of-{count:05d}.parquet"
                for i in range(count)
            ]
            assert find_shards(listing, name, "train", dummy, "x") == expected
        texts = [f"data/psgs_w100/no_embeddings/train-{i:05d}-of-00028.parquet" for i in range(28)]
        assert find_shards(listing, name, "train", False, "x", vectors=False) == texts
        for kind, index_name in (("HNSW128_SQ8", "exact"), ("IVF4096_HNSW128_PQ128", "compressed")):
            found = find_faiss_file(listing, index_name, name, False, "x")
            assert found == f"index/psgs_w100.{name}.{kind}-IP-train.faiss"
            assert find_faiss_file(listing, index_name, name, True, "x") is None
    flat = [
        "dummy.psgs_w100.nq.IndexHNSWFlat-IP-train.faiss",
        "psgs_w100.nq.HNSW128_SQ8-IP-train.faiss",
    ]
    assert find_faiss_file(flat, "exact", "nq", True, "x") == flat[0]
    with pytest.raises(OSError, match=r"more than one faiss file.*index_path="):
        find_faiss_file(
            [*flat, "old/psgs_w100.nq.HNSW128_SQ8-IP-train.faiss"], "exact", "nq", False, "x"
        )


def test_the_graph_of_the_old_script_finds_what_the_flat_index_finds(wiki, tmp_path):
    root, vectors = wiki
    passages = datasets.Dataset.from_parquet(
        str(root / "data/psgs_w100/dummy.nq/*.parquet"), cache_dir=tmp_path
    )
    graph = faiss.IndexHNSWFlat(SIZE, 128, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = 200, 128
    passages.add_faiss_index("embeddings", custom_index=graph)
    index = WikiDprIndex(str(root), index_name="exact", use_dummy_dataset=True, cache_dir=tmp_path)
    for query in vectors["nq"][-5:]:
        _, expected = passages.search("embeddings", query, 5)
        assert index.get_top_docs(query[None], 5)[0].tolist() == [list(expected)]
