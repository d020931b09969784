"""Conditions on passages, and the search among those that they hold for."""

import json
from fnmatch import fnmatchcase

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_core.hub import DamagedFileError
from rag_core.retrieval.bm25 import Bm25Index
from rag_core.retrieval.faiss_files import build_faiss
from rag_core.retrieval.filtered import FilteredIndex
from rag_core.retrieval.hybrid import HybridIndex
from rag_core.retrieval.index import FaissIndex, Index
from rag_core.retrieval.ray_index import RayIndex
from rag_core.retrieval.reranked import RerankedIndex
from rag_core.retrieval.stores import LanceIndex, QdrantIndex

PASSAGES = [
    {"title": "Fire", "source": "handbook/safety.md", "line": 3, "headings": ["Fire", "Wardens"]},
    {"title": "Exits", "source": "handbook/safety.md", "line": 40, "headings": ["Fire"]},
    {"title": "Leave", "source": "handbook/leave/sick.md", "line": 1, "headings": []},
    {"title": "Report", "source": "report.pdf", "page": 12},
    {"title": "Ada", "source": "https://x.org/ada", "file": "people.csv", "row": 7, "born": "1815"},
    {"title": "Alan", "source": None, "row": 8, "born": "1912", "alive": False},
]


def an_index(rows: list[dict], vectors: np.ndarray, kind: str = "flat") -> FaissIndex:
    columns = ("title", "text", "source")
    metadata = [{key: row[key] for key in row if key not in columns} for row in rows]
    dataset = Dataset.from_dict(
        {
            "title": [row["title"] for row in rows],
            "text": [f"About {row['title']}." for row in rows],
            "source": [row.get("source") for row in rows],
            "metadata_json": [json.dumps(entries) if entries else None for entries in metadata],
            "embeddings": list(vectors),
        }
    )
    return FaissIndex(dataset, build_faiss([vectors], *vectors.shape, kind))


@pytest.fixture
def index():
    return an_index(PASSAGES, np.eye(6, dtype=np.float32))


@pytest.mark.parametrize(
    ("where", "titles"),
    [
        ("source=handbook/*", "Fire Exits Leave"),
        ("source=Handbook/*", None),
        ("source!=handbook/*", "Report Ada Alan"),
        ("headings=Wardens", "Fire"),
        ("headings!=Fire", "Leave Report Ada Alan"),
        ("line >= 3", "Fire Exits"),
        ("line<3", "Leave"),
        ("page>11.5", "Report"),
        ("row<=7", "Ada"),
        ("born>1815", "Alan"),
        ("born=18*", "Ada"),
        ("alive=false", "Alan"),
        ("alive>=0", None),
        ("file=people.csv", "Ada"),
        ("file=*.md", "Fire Exits Leave"),
        ("text=About A*", "Ada Alan"),
        (["source=handbook/*", "line<30", "title!=Fire"], "Leave"),
        (lambda passage: passage.get("page") or passage["title"] == "Ada", "Report Ada"),
        (lambda passage: passage["file"] is None, "Alan"),
    ],
)
def test_a_condition_holds_for_what_it_says(index, where, titles) -> None:
    if titles is None:
        with pytest.raises(ValueError, match=r"matches none of the 6\. Here \w+ is, e\.g\., '"):
            index.where(where)
        return
    rows = index.where(where).rows
    assert [PASSAGES[row]["title"] for row in rows] == titles.split()


def test_whole_numbers_beyond_those_of_floats_differ() -> None:
    ids = [2**60 + offset for offset in range(3)]
    rows = [{"title": str(one), "id": one, "text_id": str(one)} for one in ids]
    rows.append({"title": "no number", "id": None, "text_id": "inf"})
    index = an_index(rows, np.eye(4, dtype=np.float32))
    for key in ("id", "text_id"):
        assert list(index.where(f"{key}>={ids[2]}").rows) == [2]
        assert list(index.where(f"{key}<{ids[1]}").rows) == [0]
        assert list(index.where(f"{key}>0.5").rows) == [0, 1, 2]
    with pytest.raises(ValueError, match="must compare with a number, got 'inf'"):
        index.where("id<inf")


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("handbook", r"must be a key, a sign and a value, got 'handbook'\. Write key=glob"),
        ("=x", "must be a key, a sign and a value"),
        (["line>2", 3], "must be a key, a sign and a value, got 3"),
        ("page>=many", "must compare with a number, got 'many'"),
        ([], "must be a condition, a list of conditions or a function"),
        ("sorce=*", r"got 'sorce'.*Keys there are: alive, .*, title\. Did you mean 'source'\?"),
        (lambda passage: False, "a function that is true for none of the 6"),
    ],
)
def test_what_is_no_condition_is_refused_with_what_is(index, where, says) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        index.where(where)


def test_a_base_that_knows_no_sources_says_so() -> None:
    index = an_index([{"title": "a"}, {"title": "b"}], np.eye(2, dtype=np.float32))
    with pytest.raises(ValueError, match=r"Keys there are: text, title\. Index the text anew"):
        index.where("source=*")
    assert index.where(lambda passage: passage["title"] == "b").rows.tolist() == [1]


@pytest.mark.parametrize("text", ['{"a": 1', "[1]", "{}, {}", "[" * 100_000])
def test_damaged_metadata_is_an_error(text) -> None:
    index = an_index([{"title": "a", "line": 1}] * 3, np.eye(3, dtype=np.float32))
    column = ["{}", text, "{}"]
    dataset = index.dataset.remove_columns("metadata_json").add_column("metadata_json", column)
    index = FaissIndex(dataset, index.faiss_index)
    with pytest.raises(DamagedFileError, match="'metadata_json' of the passages is damaged"):
        index.where("line=1")
    assert len(index.where("title=a").rows) == 3


CONDITIONS = st.one_of(
    st.sampled_from(["source=a*", "source!=a*", "source=*b", "n>=3", "n<5", "n=2", "n!=2"]),
    st.lists(st.sampled_from(["source=*a*", "n>1", "n<=6", "title!=?"]), min_size=1, max_size=3),
)


def holds(where, row) -> bool:
    """The brute-force reading of the conditions above."""
    if isinstance(where, list):
        return all(holds(each, row) for each in where)
    for sign in ("!=", ">=", "<=", "=", ">", "<"):
        key, found, value = where.partition(sign)
        if found:
            break
    known = row.get(key)
    if sign == "!=":
        return known is None or not fnmatchcase(str(known), value)
    if known is None:
        return False
    if sign == "=":
        return fnmatchcase(str(known), value)
    compared = {">=": known >= int(value), "<=": known <= int(value)}
    compared |= {">": known > int(value), "<": known < int(value)}
    return compared[sign]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), where=CONDITIONS, shuffled=st.booleans(), n_docs=st.integers(1, 9))
def test_a_filtered_search_is_what_brute_force_finds(data, where, shuffled, n_docs) -> None:
    size = data.draw(st.integers(8, 40))
    number = st.integers(-3, 3)
    rows = [{"title": "x", "source": "a", "n": 2}, {"title": "yy", "source": "ab", "n": 7}]
    for _ in range(size):
        row = {
            "title": data.draw(st.sampled_from(["x", "yy"])),
            "source": data.draw(st.sampled_from([None, "a", "ab", "b"])),
        }
        if data.draw(st.booleans()):
            row["n"] = data.draw(st.integers(0, 8))
        rows.append(row)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    # small whole numbers: scores are exact, and many are equal
    vectors = rng.integers(-2, 3, (len(rows), 3)).astype(np.float32)
    queries = np.array(data.draw(st.lists(st.tuples(number, number, number), min_size=1)))
    index = an_index(rows, vectors, data.draw(st.sampled_from(["flat", "hnsw"])))
    if shuffled:
        order = rng.permutation(len(rows))
        rows, vectors = [rows[row] for row in order], vectors[order]
        faiss_index = build_faiss([vectors], *vectors.shape)
        index = FaissIndex(index.dataset.select(order), faiss_index)
    wanted = np.array([holds(where, row) for row in rows])
    if not wanted.any():
        with pytest.raises(ValueError, match="matches none"):
            index.where(where)
        return
    filtered = index.where(where)
    assert isinstance(filtered, Index) and filtered.rows.tolist() == np.flatnonzero(wanted).tolist()
    scores = np.where(wanted, queries @ vectors.T, -np.inf)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :n_docs]
    best = np.pad(best, ((0, 0), (0, n_docs - best.shape[1])), constant_values=-1)
    kept = np.take_along_axis(np.pad(scores, ((0, 0), (0, 1)), constant_values=-np.inf), best, 1)
    ids, found = filtered.get_top_docs(queries.astype(np.float32), n_docs)
    np.testing.assert_array_equal(ids, np.where(np.isinf(kept), -1, best))
    np.testing.assert_array_equal(found, np.where(ids[..., None] < 0, 0, vectors[ids]))


def test_blocks_and_ties_do_not_change_what_is_found(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.integers(-1, 2, (500, 4)).astype(np.float32)
    index = an_index([{"title": "a"}] * 500, vectors)
    queries = rng.integers(-1, 2, (7, 4)).astype(np.float32)
    rows = np.flatnonzero(rng.random(500) < 0.4)
    whole = FilteredIndex(index, rows).get_top_docs(queries, 20)[0]
    monkeypatch.setattr("rag_core.retrieval.filtered.BLOCK_BYTES", 4 * 7 * 11)
    in_blocks = FilteredIndex(index, rows).get_top_docs(queries, 20)[0]
    np.testing.assert_array_equal(whole, in_blocks)
    scores = queries @ vectors[rows].T
    np.testing.assert_array_equal(whole, rows[np.argsort(-scores, axis=1, kind="stable")[:, :20]])


def test_a_row_without_a_number_for_a_vector_is_left_out_as_by_faiss(monkeypatch) -> None:
    vectors = np.eye(6, dtype=np.float32)
    vectors[2, 3] = np.nan
    index = an_index(PASSAGES, vectors)
    queries = np.ones((2, 6), np.float32)
    expected, _ = index.get_top_docs(queries, 6)
    for size in (1 << 20, 4 * 6 * 2):  # all at once, and two rows at a time
        monkeypatch.setattr("rag_core.retrieval.filtered.BLOCK_BYTES", size)
        ids, found = index.where(lambda passage: True).get_top_docs(queries, 6)
        assert ids.tolist() == [[0, 1, 3, 4, 5, -1]] * 2 and not found[:, -1].any()
        assert sorted(ids[0]) == sorted(expected[0])


def test_a_part_is_told_from_a_whole_index(index) -> None:
    part = index.where("source=handbook/*")
    with pytest.raises(ValueError, match=r"passages must be a whole .*FilteredIndex without a len"):
        Bm25Index(part)
    for store in (LanceIndex, QdrantIndex):
        with pytest.raises(
            ValueError, match=r"FilteredIndex without a length and vectors_of\. Give"
        ):
            store.create(part, None, "passages")
        with pytest.raises(
            ValueError, match=r"got PassageTexts without vector_size and vectors_of"
        ):
            store.create(index._texts, None, "passages")
    for outer in (HybridIndex(part, index), RerankedIndex(part, len)):
        with pytest.raises(ValueError, match=r"a method where, got FilteredIndex\. Leave it out"):
            outer.where("line>2")


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_every_kind_of_index_is_filtered_exactly(kind) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(400, 8)).astype(np.float32)
    rows = [{"title": "t", "n": row % 7} for row in range(400)]
    index = an_index(rows, vectors, kind).where("n=3")
    queries = rng.normal(size=(5, 8)).astype(np.float32)
    ids, _ = index.get_top_docs(queries, 4)
    scores = np.where(np.arange(400) % 7 == 3, queries @ vectors.T, -np.inf)
    np.testing.assert_array_equal(ids, np.argsort(-scores, axis=1)[:, :4])
    assert index.get_doc_dicts(ids[:1])[0]["text"] == ["About t."] * 4


def test_vectors_that_only_the_index_holds_are_searched_as_it_gives_them_back() -> None:
    vectors = np.random.default_rng(2).normal(size=(300, 8)).astype(np.float32)
    rows = [{"title": str(row % 2)} for row in range(300)]
    stored = an_index(rows, vectors)
    index = FaissIndex(stored.dataset, stored.faiss_index, vectors="index")
    ids, found = index.where("title=1").get_top_docs(vectors[:2], 1)
    assert (ids % 2 == 1).all()
    np.testing.assert_array_equal(found, vectors[ids])


def test_a_retriever_takes_it_as_its_index(tmp_path) -> None:
    from rag_core.retrieval.retriever import RagRetriever
    from tests.support.training_models import small_config, small_tokenizers

    tokenizers = small_tokenizers(tmp_path)
    index = an_index(PASSAGES, np.eye(6, dtype=np.float32))
    retriever = RagRetriever(small_config(tokenizers), *tokenizers, index=index)
    retriever.index = retriever.index.where("source=handbook/leave/*")
    vectors, ids, docs = retriever.retrieve(np.ones((2, 6)), 3)
    assert ids.tolist() == [[2, -1, -1]] * 2 and docs[0]["title"] == ["Leave", "", ""]
    assert vectors[0].sum(axis=1).tolist() == [1, 0, 0]


def test_conditions_on_shards_of_a_cluster_all_hold_and_are_read_before_they_are_sent() -> None:
    part = RayIndex("ray://auto/wiki", where="source=public/*")
    assert part.where(("title=A*", "page>=3"))._where == ["source=public/*", "title=A*", "page>=3"]
    assert part._where == ["source=public/*"]
    for wrong, says in (([], "must be a condition"), ("title", "a key, a sign and a value")):
        with pytest.raises((TypeError, ValueError), match=says):
            part.where(wrong)
    with pytest.raises(TypeError, match="got a function"):
        RayIndex("ray://auto/wiki", where=lambda passage: True)
