"""Approximate indexes.

Candidates ranked exactly, low recall said aloud, files mapped, settings that travel.
"""

import json
import warnings

import datasets
import faiss
import numpy as np
import pytest

from rag_core.demo import material as demo
from rag_core.knowledge.assembly import _built, check_settings
from rag_core.knowledge.base import KnowledgeBase
from rag_core.retrieval.faiss_files import (
    build_faiss,
    default_nlist,
    read_faiss,
    training_rows,
    write_faiss,
)
from rag_core.retrieval.index import FaissIndex
from rag_core.retrieval.passage_texts import PassageTexts
from rag_core.retrieval.recall import tune_recall
from rag_core.retrieval.rerank import RERANK, checked_factor, read_notes
from rag_core.retrieval.retriever_files import open_index
from rag_core.tokenization.batch import pad_arrays, pad_rows
from tests.support.knowledge_bases import build

ROWS, SIZE = 400, 16


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).standard_normal((ROWS, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def data(vectors):
    texts = [f"text {row}" for row in range(ROWS)]
    return datasets.Dataset.from_dict({"title": texts, "text": texts, "embeddings": list(vectors)})


@pytest.fixture(scope="module", params=["inner_product", "l2"])
def coarse(request, vectors):
    """One byte a vector, and half of the lists: bad by itself."""
    return build_faiss(
        [vectors], ROWS, SIZE, "ivfpq", metric=request.param, nlist=8, nprobe=4, pq_bytes=1
    )


def test_reranking_gives_the_best_of_the_candidates_by_their_exact_scores(
    data, vectors, coarse
) -> None:
    queries = np.random.default_rng(1).standard_normal((7, SIZE)).astype(np.float32)
    exact = queries @ vectors.T
    if coarse.metric_type == faiss.METRIC_L2:
        exact = -((queries[:, None] - vectors) ** 2).sum(-1)
    _, candidates = coarse.search(queries, 3 * 8)
    scores = np.take_along_axis(exact, candidates, axis=1)
    expected = np.take_along_axis(
        candidates, np.argsort(-scores, axis=1, kind="stable")[:, :3], axis=1
    )
    found, stored = FaissIndex(data, coarse, rerank=8).get_top_docs(queries, 3)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(stored, vectors[found])
    assert not np.array_equal(found, FaissIndex(data, coarse).get_top_docs(queries, 3)[0])
    few = coarse.nprobe
    coarse.nprobe = 8
    everything, _ = FaissIndex(data, coarse, rerank=ROWS).get_top_docs(queries, 3)
    np.testing.assert_array_equal(everything, np.argsort(-exact, axis=1, kind="stable")[:, :3])
    coarse.nprobe = 1
    ids, stored = FaissIndex(data, coarse, rerank=2).get_top_docs(queries, ROWS)
    assert (ids[:, -1] == -1).all() and (ids[:, 0] >= 0).all() and not stored[ids < 0].any()
    coarse.nprobe = few
    with pytest.raises(ValueError, match="needs vectors='stored'"):
        FaissIndex(data, coarse, vectors="index", rerank=2)
    with pytest.raises(ValueError, match="whole number of at least 1, got 0"):
        FaissIndex(data, coarse, rerank=0)
    assert type(checked_factor(np.int64(2))) is int
    assert [type(value) for value in check_settings("ivfpq", {"nprobe": np.int32(3)}).values()] == [
        int
    ]


def test_low_recall_is_said_at_build_and_at_opening(tmp_path, retriever) -> None:
    says = r"recall@5 of the ivfpq index against exact search is 0\.\d\d: "
    why = r".* lost 17 points of exact match.*Raise nprobe "
    what = r"\(1 of 7 lists.*rerank \(2 candidates.*m \(2 bytes"
    with pytest.warns(UserWarning, match=says + why + what):
        kb = build(tmp_path, rows=300, index="ivfpq", settings={"nprobe": 1, "rerank": 2})
    assert kb.manifest.index["settings"] == {
        "nlist": 7,
        "nprobe": 1,
        "m": 2,
        "bits": 8,
        "rerank": 2,
    }
    with pytest.warns(UserWarning, match=says):
        index = KnowledgeBase.open(kb.path).index()
    retriever.index = index
    retriever.config.retrieval_vector_size = 16
    retriever.save_pretrained(tmp_path / "rag")
    with pytest.warns(UserWarning, match=says):
        again = FaissIndex.from_files(
            tmp_path / "rag/hf_dataset", tmp_path / "rag/hf_dataset_index.faiss"
        )
        again.init_index()
    assert again.rerank == index.rerank == 2


def test_good_recall_is_silent_and_settings_travel(tmp_path, retriever) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        kb = build(tmp_path, rows=300, index="ivfpq")
        index = kb.index()
        retriever.config.index_path, retriever.config.passages_path = (
            str(kb.path / "index.faiss"),
            str(kb.path / "passages"),
        )
        custom = open_index(retriever.config)
        retriever.config.index_rerank = 3
        asked = open_index(retriever.config)
    assert kb.manifest.index["recall_at_5"] >= 0.95
    assert (index.rerank, custom.rerank, asked.rerank) == (RERANK, RERANK, 3)
    (kb.path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is not valid json"):
        read_notes(kb.path / "index.faiss")


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        ("flat", {"nprobe": 1}, "'flat' has no setting 'nprobe'.*ivfpq: nlist, nprobe, m, rerank"),
        (None, {"m": 2}, "'auto' has no setting 'm'"),
        ("ivfpq", {"nprobe": 0}, "nprobe must be a whole number of at least 1, got 0"),
        ("ivfpq", {"m": 5}, "must divide the vector size 16, got 5"),
        ("ivfpq", {"nlist": 301}, "at least 301 vectors"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, kind, settings, says) -> None:
    with pytest.raises(ValueError, match=says):
        build(tmp_path, rows=300, index=kind, settings=settings)


def test_sizes_grow_with_the_rows_and_lists_are_made_anew(tmp_path) -> None:
    from tests.support.knowledge_bases import hashed, write_corpus

    assert [default_nlist(rows) for rows in (10, 10_033, 2_000_000, 21_015_300)] == [
        1,
        200,
        2828,
        9168,
    ]
    assert [training_rows(rows) for rows in (1000, 10_033, 21_015_300)] == [1000, 10_033, 39 * 9168]
    kb = build(tmp_path, rows=300, index="ivfpq")
    before = kb.manifest.index["settings"]["nlist"]
    kb.add(write_corpus(tmp_path / "more.jsonl", 900, seed=1), hashed, progress=False)
    assert before == 7 and kb.manifest.index["settings"]["nlist"] == default_nlist(1200)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_mapped_files_answer_as_read_ones_do(vectors, tmp_path, kind, monkeypatch) -> None:
    write_faiss(build_faiss([vectors], ROWS, SIZE, kind), tmp_path / "x.faiss")
    monkeypatch.setattr("rag_core.retrieval.faiss_files.MAPPED_BYTES", 1)
    flags = []
    read = faiss.read_index
    monkeypatch.setattr(
        faiss, "read_index", lambda path, flag: flags.append(flag) or read(path, flag)
    )
    found = [
        read_faiss(tmp_path / "x.faiss", memory_map=how).search(vectors[:9], 5)
        for how in (False, None)
    ]
    mapped = flags[1] & ~flags[0]
    assert flags[0] == faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE and flags[1] & flags[0] == flags[0]
    assert mapped in (faiss.IO_FLAG_MMAP & ~flags[0], getattr(faiss, "IO_FLAG_MMAP_IFC", 0))
    for plain, mapped in zip(*found, strict=True):
        np.testing.assert_array_equal(plain, mapped)


@pytest.mark.parametrize("where", [0, 0.5, 1])
def test_damage_to_a_large_base_is_noticed_without_reading_it_all(
    tmp_path, monkeypatch, where
) -> None:
    kb = build(tmp_path, rows=60)
    monkeypatch.setattr("rag_core.knowledge.manifest.HASHED_BYTES", 0)
    assert KnowledgeBase.open(kb.path).manifest.files["index.faiss"]["spots"]
    file = kb.path / "passages" / "data-00000-of-00001.arrow"
    content = bytearray(file.read_bytes())
    content[int(where * (len(content) - 1))] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: it is not what was written"):
        KnowledgeBase.open(kb.path)


@pytest.mark.skipif(
    not (demo.home() / "demo-kb" / "manifest.json").is_file(), reason="the demo was not built here"
)
def test_the_preset_finds_95_percent_on_real_vectors() -> None:
    real = np.array(
        KnowledgeBase.open(demo.home() / "demo-kb")
        .dataset()
        .with_format("numpy")["embeddings"][:3000]
    )

    def blocks():
        return iter([real])

    index = _built(blocks, len(real), real.shape[1], "ivfpq", {})
    plain, _ = tune_recall(index, blocks, len(real), fixed=("nprobe", "rerank"))
    recall, found = tune_recall(index, blocks, len(real), rerank=RERANK)
    assert plain < 0.9 and recall >= 0.95 and found["rerank"] >= RERANK
    low, _ = tune_recall(index, blocks, len(real), rerank=1, fixed=("nprobe",))
    assert low < 0.95


def test_texts_equal_those_of_datasets_in_any_order(data) -> None:
    mixed = data.add_column("section", [[row, None] for row in range(ROWS)]).add_column(
        "y", [None, 1.5] * (ROWS // 2)
    )
    mixed = mixed.add_column("nested", [{"a": row} for row in range(ROWS)])
    odd = datasets.concatenate_datasets([mixed, mixed.select(range(3, 9)), mixed.shuffle(seed=2)])
    rows = np.array([0, 805, 401, 401, 399])
    for table in (odd, odd.shuffle(seed=3), odd.select(range(806))):
        expected = table.remove_columns("embeddings")[rows.tolist()]
        found = PassageTexts(table, "embeddings").read(rows)
        assert found == expected and list(found) == list(expected)
    with pytest.raises(IndexError, match="rows must be 0 to 399, got -1 to 2"):
        PassageTexts(data, "embeddings").read(np.array([2, -1]))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("length", "multiple"), [(None, None), (None, 4), (9, None), (6, 4), (2, None)]
)
def test_padding_in_one_step_is_padding_row_by_row(side, length, multiple) -> None:
    batch = {"ids": [[5, 6, 7], [], [8]], "mask": [[1, 1, 1], [], [1]]}
    fills = {"ids": 3, "mask": 0}
    rows = pad_rows(batch, fills, length=length, multiple_of=multiple, side=side)
    arrays = pad_arrays(batch, fills, length=length, multiple_of=multiple, side=side)
    if length == 2:
        assert arrays is None, "rows too long make no array"
    else:
        assert {name: array.tolist() for name, array in arrays.items()} == rows
        assert all(array.dtype == np.int64 for array in arrays.values())


def test_notes_are_written_beside_the_index_only_where_there_are_any(
    data, vectors, tmp_path
) -> None:
    flat = FaissIndex(data, build_faiss([vectors], ROWS, SIZE))
    flat.save(tmp_path)
    assert not (tmp_path / "hf_dataset_index.faiss.json").exists()
    FaissIndex(data, flat.faiss_index, rerank=4).save(tmp_path)
    assert json.loads((tmp_path / "hf_dataset_index.faiss.json").read_text()) == {
        "settings": {"rerank": 4}
    }
