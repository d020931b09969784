"""A knowledge base in shards: cut, and searches of all shards merged to those of the whole."""

import itertools
import json
from dataclasses import replace

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_core.cluster.holder import ShardHolder
from rag_core.knowledge import KnowledgeBase
from rag_core.knowledge.shards import ShardSet, cut_shards, starts_of
from rag_core.retrieval import RagRetriever, RayIndex, flat_candidates
from rag_core.retrieval.merging import merged, merged_as_faiss, merged_by_row
from rag_core.retrieval.ray_cluster import ray_place
from rag_core.retrieval.vectors import FaissVectors
from tests.support.knowledge_bases import build, hashed


def flat(values):
    index = faiss.IndexFlatIP(1)
    index.add(np.asarray(values, np.float32).reshape(-1, 1))
    return index


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
    st.integers(1, 8),
    st.lists(st.integers(0, 40), max_size=4),
)
def test_shards_find_what_the_whole_finds_however_many_scores_are_equal(values, n_docs, cuts):
    """With a few distinct scores nearly every place is tied for."""
    query = np.ones((1, 1), np.float32)
    _, expected = flat(values).search(query, n_docs)
    bounds = sorted({0, len(values), *(cut for cut in cuts if cut < len(values))})
    scores, rows = [], []
    for start, stop in itertools.pairwise(bounds):
        ((own_scores, own_rows),) = flat_candidates(flat(values[start:stop]), query, n_docs)
        assert len(own_rows) <= 2 * n_docs
        scores.append(own_scores)
        rows.append(own_rows + start)
    best = merged_as_faiss(np.concatenate(scores), np.concatenate(rows), n_docs)
    found = np.concatenate(rows)[best].tolist()
    assert found == [row for row in expected[0].tolist() if row >= 0]


def test_by_row_is_another_order_where_scores_are_equal():
    """The comparator above would see it: the planted fault."""
    _, expected = flat([1, 1, 2, 2]).search(np.ones((1, 1), np.float32), 3)
    best = merged_by_row(np.array([1.0, 1, 2, 2]), np.arange(4), 3)
    assert best.tolist() == [2, 3, 0] != expected[0].tolist()


def test_rows_are_spread_over_shards_that_begin_where_blocks_of_faiss_do():
    assert starts_of(10, 3) == [0, 3, 7, 10]
    assert starts_of(10_033, 4) == [0, 2048, 5120, 7168, 10_033]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build(tmp_path_factory.mktemp("shards"), rows=120)


@pytest.fixture(scope="module")
def shards(base):
    return cut_shards(base, base.path.parent / "shards", 3)


def held(shards):
    return [
        ShardHolder(str(shards.folder / shard["folder"]), shard["start"], shard["sha256"])
        for shard in shards.shards
    ]


@pytest.mark.parametrize("batch", [1, 32])
def test_shards_answer_as_the_whole_does(base, shards, batch):
    index = base.index()
    queries = hashed([""] * batch, [f"w{n} w{3 * n} w{7 * n + 1}" for n in range(batch)])
    expected_ids, expected_vectors = index.get_top_docs(queries, 7)
    holders = held(shards)
    hits = [holder.search(queries, 7) for holder in holders]
    ids, vectors = merged(hits, batch, 7, index.vector_size, as_faiss=True)
    assert ids.tolist() == expected_ids.tolist()
    assert (vectors == expected_vectors).all()
    texts = {}
    for each in hits:
        texts |= dict(zip(each.read.tolist(), each.texts["text"], strict=True))
    for row, doc in zip(ids.tolist(), index.get_doc_dicts(ids), strict=True):
        assert [texts[number] for number in row] == doc["text"]
    last = shards.shards[-1]["start"]
    rows = np.array([last, last + 1])
    assert holders[-1].read(rows) == index.get_doc_dicts(rows[None])[0]


def test_every_shard_is_a_knowledge_base_of_its_rows(base, shards):
    texts = base.dataset()["text"]
    for shard in shards.shards:
        part = KnowledgeBase.open(shards.folder / shard["folder"], verify=True)
        assert part.dataset()["text"] == texts[shard["start"] : shard["stop"]]


def test_codes_trained_on_the_whole_are_those_of_the_shards(tmp_path):
    base = build(tmp_path, rows=300, index="ivfpq", settings={"nlist": 4, "nprobe": 4, "m": 4})
    shards = cut_shards(base, tmp_path / "shards", 2)
    whole = base.index()
    codes = FaissVectors(whole.faiss_index).gather(np.arange(300))
    for shard in shards.shards:
        part = KnowledgeBase.open(shards.folder / shard["folder"]).index()
        own = FaissVectors(part.faiss_index).gather(np.arange(len(part)))
        assert (own == codes[shard["start"] : shard["stop"]]).all()


def test_a_folder_of_shards_is_found_done_or_left_alone(base, shards, tmp_path):
    assert cut_shards(base, shards.folder, 3) == shards
    with pytest.raises(FileExistsError, match="3 shards of another build or number"):
        cut_shards(base, shards.folder, 2)
    with pytest.raises(FileExistsError, match="holds no shards"):
        cut_shards(base, base.path, 2)
    with pytest.raises(ValueError, match="n must be at most the 120 passages"):
        cut_shards(base, tmp_path / "many", 121)
    with pytest.raises(FileNotFoundError, match="dualrag shards KB"):
        ShardSet.open(tmp_path)


def test_words_are_not_cut(base, tmp_path):
    by_words = replace(base.manifest, index={**base.manifest.index, "search": "bm25"})
    with pytest.raises(ValueError, match="must be searched by vectors, got 'bm25'"):
        cut_shards(KnowledgeBase(base.path, by_words), tmp_path / "shards", 2)


def test_a_damaged_list_of_shards_is_refused(shards, tmp_path):
    for fault in ({"start": 1}, {"folder": "../elsewhere"}, {"stop": 10**6}):
        values = json.loads((shards.folder / "shards.json").read_text())
        values["shards"][0] |= fault
        (tmp_path / "shards.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match=r"shards\.json is damaged"):
            ShardSet.open(tmp_path)


def test_a_shard_of_another_build_is_not_held(shards):
    folder = str(shards.folder / shards.shards[0]["folder"])
    with pytest.raises(ValueError, match="another build"):
        ShardHolder(folder, 0, "0" * 64)


def test_places_on_clusters():
    assert ray_place("ray://10.0.0.1:6379/wiki") == ("10.0.0.1:6379", "wiki", {})
    place = "ray://auto/wiki?when_lost=partial&timeout=5"
    assert ray_place(place).options == {"when_lost": "partial", "timeout": "5"}
    assert repr(RayIndex(place)) == "RayIndex('ray://auto/wiki', not loaded)"
    for options, message in (
        ({"when_lost": "never"}, "when_lost must be one of"),
        ({"timeout": 0}, "timeout must be seconds above 0, got 0"),
        ({"place": "ray://auto/wiki?timeout=soon"}, "got 'soon'"),
        ({"place": "ray://auto/wiki?retry=1"}, r"got \['retry'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            RayIndex(**{"place": place} | options)
    for wrong in ("ray://wiki", "ray:///wiki", "http://a/b", "ray://auto/a b", "ray://auto/"):
        with pytest.raises(ValueError, match="index must be ray://ADDRESS/NAME"):
            ray_place(wrong)


def test_a_retriever_takes_a_place_in_words(tokenizers):
    from tests.support.golden_prompts import config

    parts = tokenizers["question"], tokenizers["bart"]
    retriever = RagRetriever(config(), *parts, index="ray://auto/wiki", init_retrieval=False)
    assert repr(retriever.index) == "RayIndex('ray://auto/wiki', not loaded)"
