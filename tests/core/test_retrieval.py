"""RagRetriever: prompts as transformers 4.37.2 builds them, layout, missing hits, foreign
indexes.
"""

import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_core.knowledge.passages import split_text
from rag_core.retrieval.faiss_files import build_faiss, read_faiss
from rag_core.retrieval.index import FaissIndex, Index
from rag_core.retrieval.prompts import shorten_documents
from rag_core.retrieval.retriever import RagRetriever
from tests.support.golden_prompts import GOLDEN, QUERIES, VECTORS, OwnIndex, config


@pytest.mark.parametrize("number", range(len(GOLDEN["cases"])))
def test_prompts_equal_the_recorded_ones(tokenizers, index, number):
    case = GOLDEN["cases"][number]
    values = {key: case[key] for key in ("title_sep", "doc_sep") if key in case}
    rag = config(
        case["generator"],
        case.get("generator_prefix"),
        max_combined_length=case["max_length"],
        **values,
    )
    generator = tokenizers[case["generator"]]
    found = RagRetriever(rag, tokenizers["question"], generator, index=index)(
        GOLDEN["question_ids"], QUERIES, prefix=case.get("prefix"), n_docs=case["n_docs"]
    )
    assert found["doc_ids"].tolist() == case["doc_ids"]
    np.testing.assert_array_equal(found["retrieved_doc_embeds"], VECTORS[case["doc_ids"]])
    padded = [
        row + [generator.pad_token_id] * (case["max_length"] - len(row))
        for row in case["input_ids"]
    ]
    assert found["context_input_ids"] == padded
    assert found["context_attention_mask"] == [
        [1] * len(row) + [0] * (case["max_length"] - len(row)) for row in case["input_ids"]
    ]


def test_documents_for_a_context_encoder_equal_the_recorded_ones(retriever, tokenizers):
    retriever.set_ctx_encoder_tokenizer(tokenizers["question"])
    found = retriever(GOLDEN["question_ids"], QUERIES, n_docs=2)
    assert found["tokenized_doc_ids"] == GOLDEN["tokenized_doc_ids"]
    assert found["tokenized_doc_attention_mask"] == GOLDEN["tokenized_doc_attention_mask"]
    retriever.set_ctx_encoder_tokenizer(None)
    assert "tokenized_doc_ids" not in retriever(GOLDEN["question_ids"], QUERIES)


@pytest.mark.backend("torch")
def test_kinds_of_output(retriever):
    import torch

    plain = retriever(GOLDEN["question_ids"], QUERIES)
    assert type(plain["context_input_ids"]) is list and plain["doc_ids"].dtype == np.int64
    assert plain["retrieved_doc_embeds"].dtype == np.float32 and plain["doc_mask"].all()
    hidden = torch.tensor(QUERIES, requires_grad=True)
    tensors = retriever(torch.tensor(GOLDEN["question_ids"]), hidden, return_tensors="pt")
    assert {key: value.dtype for key, value in tensors.items()} == {
        "context_input_ids": torch.int64,
        "context_attention_mask": torch.int64,
        "retrieved_doc_embeds": torch.float32,
        "doc_ids": torch.int64,
        "doc_mask": torch.bool,
    }
    assert tensors["context_input_ids"].tolist() == plain["context_input_ids"]
    halves = retriever.retrieve(torch.tensor(QUERIES, dtype=torch.bfloat16), 2)[0]
    assert halves.dtype == np.float32
    with pytest.raises(ValueError, match="return_tensors"):
        retriever(GOLDEN["question_ids"], QUERIES, return_tensors="jax")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_layout_masks_and_chunks(tokenizers, data):
    questions, n_docs, rows = (data.draw(st.integers(1, high)) for high in (9, 6, 5))
    hits = data.draw(st.lists(st.integers(1, n_docs), min_size=questions, max_size=questions))
    chunk = data.draw(st.integers(1, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    own = OwnIndex(
        rng.standard_normal((rows, 4)).astype(np.float32), hits, data.draw(st.booleans())
    )
    queries = rng.standard_normal((questions, 4)).astype(np.float32)
    queries[:, 0] = np.arange(questions)
    texts = [f"question {b}" for b in range(questions)]
    rag = config(n_docs=n_docs, retrieval_batch_size=chunk, max_combined_length=48)
    retriever = RagRetriever(rag, tokenizers["question"], tokenizers["bart"], index=own)
    out = retriever(None, queries, return_tensors="np", question_text=texts)
    assert own.asked == [min(chunk, questions - start) for start in range(0, questions, chunk)]
    order = np.argsort(-(queries @ own.vectors.T), axis=1, kind="stable")
    for b in range(questions):
        for d in range(n_docs):
            hit = d < min(hits[b], rows)
            assert out["doc_ids"][b, d] == (order[b, d] if hit else -1)
            assert out["doc_mask"][b, d] == hit
            vector = own.vectors[order[b, d]] if hit else np.zeros(4)
            np.testing.assert_array_equal(out["retrieved_doc_embeds"][b, d], vector)
            document = f"t{order[b, d]} / x{order[b, d]}" if hit else " / "
            prompt = tokenizers["bart"].decode(
                out["context_input_ids"][b * n_docs + d], skip_special_tokens=True
            )
            assert prompt == f"{document} // {texts[b]}".replace("  ", " ")


def test_more_documents_than_the_index_holds(retriever, passages):
    few = passages.select([3, 4])
    retriever.index = FaissIndex(few, build_faiss([VECTORS[3:5]], 2, 8))
    vectors, doc_ids, docs = retriever.retrieve(QUERIES[:3], 5)
    assert (doc_ids >= 0).sum(axis=1).tolist() == [2, 2, 2] and vectors.dtype == np.float32
    assert not vectors[doc_ids < 0].any() and docs[0]["text"][2:] == ["", "", ""]
    assert list(docs[0]) == ["title", "text", "embeddings"]
    np.testing.assert_array_equal(docs[1]["embeddings"], vectors[1])


def test_what_cannot_be_searched_is_refused(retriever, tokenizers, passages):
    empty = FaissIndex(passages.select([]), faiss.IndexFlatIP(8))
    parts = tokenizers["question"], tokenizers["bart"]
    with pytest.raises(ValueError, match=r"\(0 documents\) has no hit for question rows \[0, 1\]"):
        RagRetriever(config(), *parts, index=empty).retrieve(QUERIES[:2], 3)
    with pytest.raises(ValueError, match=r"question vectors have size 5.*index have size 8"):
        retriever.retrieve(np.ones((2, 5)), 1)
    with pytest.raises(
        ValueError, match=r"vectors of shape \(2, 1, 8\).*question vectors of size 4"
    ):
        own = OwnIndex(VECTORS)
        own.get_top_docs = lambda queries, n_docs: (np.zeros((2, 1), int), np.zeros((2, 1, 8)))
        RagRetriever(config(), *parts, index=own).retrieve(np.ones((2, 4)), 1)
    with pytest.raises(ValueError, match=r"NaN or infinity in rows \[1\]"):
        retriever.retrieve(np.array([[0.0] * 8, [np.nan] * 8]), 1)
    with pytest.raises(ValueError, match=r"shape \(batch, vector size\), got \(8,\)"):
        retriever.retrieve(QUERIES[0], 1)
    with pytest.raises(ValueError, match="n_docs must be a positive integer, got 0"):
        retriever.retrieve(QUERIES, 0)
    with pytest.raises(ValueError, match=r"5 questions.*6 rows"):
        retriever(GOLDEN["question_ids"][:5], QUERIES)
    with pytest.raises(ValueError, match="12 vectors, the passages are 11 rows"):
        FaissIndex(passages.select(range(11)), build_faiss([VECTORS], *VECTORS.shape))
    with pytest.raises(ValueError, match="size 8, the faiss index is of size 4"):
        FaissIndex(passages, build_faiss([VECTORS[:, :4]], 12, 4))
    with pytest.raises(ValueError, match=r"missing: \['title'\]"):
        FaissIndex(passages.remove_columns("title"), faiss.IndexFlatIP(8))
    with pytest.raises(ValueError, match="add_faiss_index"):
        FaissIndex(passages)
    with pytest.raises(TypeError, match="Dataset lacks"):
        retriever.index = passages


@pytest.mark.parametrize(
    ("document", "kept"),
    [
        ("\u6f22\u5b57\u304b\u306a" * 50, 105),
        ("\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e" * 50, 98),
        ("A" * 3000, 97),
        ("words of " + "A" * 3000, 58),
        ("plain words here " * 20, 101),
    ],
)
def test_documents_are_cut_between_words_of_any_script(document, kept):
    question = " // question"
    prompts = shorten_documents(
        [f"pre{document}{question}"],
        [len(question)],
        3,
        120,
        lambda texts: [len(text) for text in texts],
    )
    assert prompts[0].startswith("pre") and prompts[0].endswith(question)
    body = prompts[0][3 : -len(question)]
    assert document.startswith(body) and kept <= len(body) <= 105


def test_the_document_is_cut_and_the_question_kept(tokenizers, index):
    rag = config(max_combined_length=64, n_docs=12, prompt_truncation="document")
    retriever = RagRetriever(rag, tokenizers["question"], tokenizers["bart"], index=index)
    raw = GOLDEN["questions"][:3]
    rows = retriever(GOLDEN["question_ids"][:3], QUERIES[:3], "Q: ", question_text=raw)[
        "context_input_ids"
    ]
    texts = tokenizers["bart"].batch_decode(
        rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    for number, text in enumerate(texts):
        question = f" // {raw[number // 12]}".replace("  ", " ")
        assert text.startswith("Q: ") and text.endswith(question), text
    assert all(len(row) == 64 for row in rows)
    used = [sum(token != tokenizers["bart"].pad_token_id for token in row) for row in rows]
    assert max(used) == 64 and np.mean(used) > 50, "as much of the documents as fits is kept"
    rag.max_combined_length = 20
    tight = RagRetriever(rag, tokenizers["question"], tokenizers["bart"], index=index)
    only = tight(None, QUERIES[:1], n_docs=1, question_text=[raw[2]])["context_input_ids"][0]
    assert tokenizers["bart"].decode(only, skip_special_tokens=True).startswith(" // Call me — who")
    lossy = retriever(GOLDEN["question_ids"], QUERIES, truncate="compatible")
    assert (
        lossy["context_input_ids"]
        != retriever(GOLDEN["question_ids"], QUERIES)["context_input_ids"]
    )
    rag.max_combined_length = 300
    wide = RagRetriever(rag, tokenizers["question"], tokenizers["bart"], index=index)
    assert (
        wide(GOLDEN["question_ids"], QUERIES)["context_input_ids"]
        == (wide(GOLDEN["question_ids"], QUERIES, truncate="compatible")["context_input_ids"])
    )
    with pytest.raises(ValueError, match="truncate must be one of"):
        wide(GOLDEN["question_ids"], QUERIES, truncate="left")


def test_own_index_loads_neither_faiss_nor_datasets(tokenizers, tmp_path):
    for name in ("question", "bart"):
        tokenizers[name].save_pretrained(tmp_path / name)
    script = """
import sys, numpy as np
from rag_core import RagConfig, RagRetriever, Tokenizer
class Own:
    def is_initialized(self): return True
    def init_index(self): pass
    def get_top_docs(self, q, n_docs=5): return np.zeros((len(q), n_docs), int), np.ones((len(q), n_docs, 3))
    def get_doc_dicts(self, ids): return [{"title": ["t"] * len(row), "text": ["x"] * len(row)} for row in ids]
parts = [Tokenizer.from_pretrained(sys.argv[1] + "/" + name) for name in ("question", "bart")]
config = RagConfig(question_encoder={"model_type": "dpr"}, generator={"model_type": "bart"})
retriever = RagRetriever(config, *parts, index=Own())
print(retriever(None, np.ones((2, 3)), question_text=["a", "b"], return_tensors="np")["doc_ids"].shape)
print(sorted({"faiss", "datasets", "torch", "tensorflow", "transformers", "pyarrow"} & set(sys.modules)))
"""
    run = [sys.executable, "-c", script, str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(run, capture_output=True, text=True, cwd=root, check=False)
    assert done.stdout.splitlines() == ["(2, 5)", "[]"], done.stderr


def test_protocol(index):
    assert (
        isinstance(index, Index)
        and isinstance(OwnIndex(VECTORS), Index)
        and not isinstance([], Index)
    )


def test_a_question_reads_its_vectors_once_and_its_texts_without_them(retriever, monkeypatch):
    """P5: 4.37.2 reads every column again, vectors included, to get at titles and texts."""
    index, gathered, read = retriever.index, [], []
    gather, get = index._vectors.gather, index.get_doc_dicts
    monkeypatch.setattr(
        index._vectors, "gather", lambda rows: gathered.append(rows.size) or gather(rows)
    )
    monkeypatch.setattr(index, "get_doc_dicts", lambda ids: read.append(get(ids)) or read[-1])
    found = retriever(GOLDEN["question_ids"], QUERIES, n_docs=2)
    assert found["retrieved_doc_embeds"].shape == (len(QUERIES), 2, QUERIES.shape[1])
    assert gathered == [2 * len(QUERIES)] and len(read) == 1
    assert all("embeddings" not in document for document in read[0])


def indexed(factory, ids=None, vectors=VECTORS, metric=faiss.METRIC_INNER_PRODUCT):
    inner = faiss.index_factory(8, factory, metric)
    inner.train(vectors)
    if ids is None:
        inner.add(vectors)
    elif isinstance(inner, faiss.IndexIVF | faiss.IndexPreTransform):
        inner.add_with_ids(vectors, np.asarray(ids))
    else:
        inner = faiss.IndexIDMap(inner)
        inner.add_with_ids(vectors, np.asarray(ids))
    return inner


@pytest.mark.parametrize("factory", ["Flat", "HNSW4,Flat", "IVF2,Flat", "PCA8,IVF2,Flat"])
@pytest.mark.parametrize("bare", [True, False])
def test_ids_of_a_faiss_index_must_be_row_numbers(passages, tmp_path, factory, bare):
    data = passages.remove_columns("embeddings") if bare else passages
    expected = FaissIndex(data, indexed(factory)).get_top_docs(QUERIES, 4)
    given = FaissIndex(data, indexed(factory, range(12)))
    for found, wanted in zip(given.get_top_docs(QUERIES, 4), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    given.save(tmp_path)
    again = FaissIndex.from_files(tmp_path / "hf_dataset", tmp_path / "hf_dataset_index.faiss")
    np.testing.assert_array_equal(again.get_top_docs(QUERIES, 4)[0], expected[0])
    listed = "IVF" in factory
    for ids, says in (
        (range(1, 13), "list [01] holds ids from" if listed else "row 0 has the id 1:"),
        ([7] * 12, "no vector has the id 0" if listed else "row 0 has the id 7"),
        ([*range(11), 50], "holds ids from . to 50" if listed else "row 11 has the id 50"),
        ([-3] * 12, "holds ids from -3 to -3" if listed else "row 0 has the id -3"),
    ):
        with pytest.raises(
            ValueError, match=rf"faiss_index must number.*rows are, 0 to 11, but .*{says}"
        ):
            FaissIndex(data, indexed(factory, ids))


@pytest.mark.parametrize("factory", ["IVF8,Flat", "OPQ4,IVF4,Flat", "IVF16_HNSW4,SQ8"])
def test_ids_given_in_another_order_are_compared_with_the_stored_vectors(factory):
    draws = np.random.default_rng(0)
    vectors = draws.standard_normal((400, 8)).astype(np.float32)
    texts = [str(row) for row in range(400)]
    data = Dataset.from_dict({"title": texts, "text": texts, "embeddings": list(vectors)})
    order = draws.permutation(400)
    inner = faiss.index_factory(8, factory, faiss.METRIC_INNER_PRODUCT)
    inner.train(vectors)
    wrong = faiss.clone_index(inner)
    inner.add_with_ids(vectors[order], order)  # the rows' numbers, though not in their order
    FaissIndex(data, inner)
    wrong.add_with_ids(vectors, order)
    with pytest.raises(
        ValueError, match="the stored vectors of the rows belong into other inverted lists"
    ):
        FaissIndex(data, wrong)
    with pytest.warns(
        UserWarning, match=r"was given its ids \(add_with_ids\).*index\.add\(vectors\)"
    ):
        FaissIndex(data.remove_columns("embeddings"), wrong)


@pytest.mark.parametrize("kind", [faiss.IndexBinaryFlat(8), VECTORS, "index.faiss"])
def test_what_is_no_faiss_index_is_refused(passages, kind):
    with pytest.raises(
        TypeError, match=rf"faiss_index must be a faiss\.Index of .*, got {type(kind).__name__}"
    ):
        FaissIndex(passages, kind)


def test_counts_are_whole_numbers_of_any_library(passages, retriever):
    count = np.int64
    index = build_faiss([VECTORS], count(12), count(8), "hnsw", hnsw_neighbors=count(4))
    found, _ = FaissIndex(passages, index).get_top_docs(QUERIES, count(2))
    assert found.shape == (len(QUERIES), 2)
    assert list(split_text("a b c d", count(2))) == ["a b", "c d"]
    for ask in (
        FaissIndex(passages, index).get_top_docs,
        lambda vectors, n: retriever.retrieve(vectors, n),
    ):
        for wrong in (0, -1, 2.5, "2", True):
            with pytest.raises(ValueError, match="n_docs must be a positive integer, got"):
                ask(QUERIES, wrong)
    for wrong, kind in ((0, ValueError), (2.5, ValueError), (True, TypeError), ("2", TypeError)):
        with pytest.raises(
            kind, match=r"words must be a whole number of at least 1, got .*None makes one passage"
        ):
            list(split_text("a", wrong))
        with pytest.raises(kind, match="nlist must be a whole number of at least 1, got"):
            build_faiss([VECTORS], 12, 8, "ivfpq", nlist=wrong)


def test_kinds_that_compute_parts_of_themselves_are_read(passages, tmp_path):
    codes = indexed("LSH", metric=faiss.METRIC_L2)
    faiss.write_index(codes, str(tmp_path / "codes.faiss"))
    assert read_faiss(tmp_path / "codes.faiss").ntotal == len(VECTORS)


def test_another_metric_than_the_inner_product_is_said(passages, recwarn):
    FaissIndex(passages, indexed("Flat"))
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    alike = passages.remove_columns("embeddings").add_column("embeddings", list(unit))
    FaissIndex(alike, build_faiss([unit], *unit.shape, metric="l2"))
    assert not recwarn.list, "vectors of one length have one order by either measure"
    indexes = [faiss.IndexHNSWFlat(8, 4), build_faiss([VECTORS], *VECTORS.shape, metric="l2")]
    indexes[0].add(VECTORS)
    indexes.append(indexed("L2norm,Flat"))  # cosines
    for index in indexes:
        with pytest.warns(
            UserWarning, match=r"another measure than the inner product.*METRIC_INNER_PRODUCT"
        ):
            FaissIndex(passages, index)
    own = passages.select(range(12))
    own.add_faiss_index("embeddings")
    with pytest.warns(UserWarning, match="METRIC_INNER_PRODUCT"):
        FaissIndex(own)


def test_an_index_that_keeps_no_vectors_needs_the_stored_ones(passages):
    codes = faiss.index_factory(8, "IVF1,PQ4x4fs", faiss.METRIC_INNER_PRODUCT)
    codes.train(np.tile(VECTORS, (2, 1)))
    codes.add(VECTORS)
    with pytest.raises(
        ValueError, match=r"IVFPQFastScan\) can't give its vectors back.*add a column 'embeddings'"
    ):
        FaissIndex(passages.remove_columns("embeddings"), codes)
    assert (FaissIndex(passages, codes).get_top_docs(QUERIES, 2)[0] >= 0).all()


@pytest.mark.parametrize(
    ("ids", "vectors", "words"),
    [
        ([[0, 12]], VECTORS[None, :2], r"row numbers below its len\(\), 12.*got 12"),
        ([[0.5, 1]], VECTORS[None, :2], "doc_ids of integers, got float64"),
        ([["a", "b"]], VECTORS[None, :2], "doc_ids of integers, got <U1"),
        ([[0], [1, 2]], VECTORS[None, :2], "doc_ids of integers, got list of 2"),
        ([[0, 1]], [[b"x", b"y"]], r"vectors of real numbers, got \|S1"),
        ([[0, 1]], VECTORS[None, :2] * 1j, "vectors of real numbers, got complex"),
        (
            [[0, 1]],
            np.full((1, 2, 8), np.nan),
            r"finite vectors, got NaN or infinity for rows \[0, 1\]",
        ),
        ([[0, 1]], VECTORS[:2], r"vectors of shape \(2, 8\)"),
        ([[0, 1, 2]], VECTORS[None, :3], r"doc_ids of shape \(1, 3\) for 1 questions, n_docs=2"),
        (None, None, "must return doc_ids and vectors, got NoneType"),
    ],
)
def test_what_an_index_of_ones_own_may_not_return(retriever, ids, vectors, words):
    own = OwnIndex(VECTORS)
    own.get_top_docs = lambda queries, n_docs: None if ids is None else (ids, vectors)
    retriever.index = own
    with pytest.raises(ValueError, match=rf"{words}"):
        retriever.retrieve(QUERIES[:1], 2)


@pytest.mark.parametrize(
    ("docs", "words"),
    [
        ([], "1 dictionaries, one a question, got list of 0"),
        (["ab"], "got for question 0 a str"),
        ([{"text": ["a", "b"]}], r"got for question 0 the keys \['text'\]"),
        ([{"title": ["a", "b"], "text": ["a"]}], "a 'text' that is list of 1"),
        ([{"title": "ab", "text": ["a", "b"]}], "a 'title' that is str of 2"),
        ([{"title": ["a", "b"], "text": ["a", b"b"]}], "a 'text' with b'b'"),
        ([{"title": ["a", None], "text": ["a", "b"]}], "a 'title' with None"),
    ],
)
def test_texts_of_an_index_of_ones_own_must_be_texts(retriever, docs, words):
    own = OwnIndex(VECTORS)
    own.get_doc_dicts = lambda doc_ids: docs
    retriever.index = own
    with pytest.raises(ValueError, match=rf"OwnIndex\.get_doc_dicts must return.*{words}"):
        retriever.retrieve(QUERIES[:1], 2)


def test_what_retrievers_for_several_processes_call(retriever):
    class Distributed(RagRetriever):
        """As transformers' research projects write theirs.

        The main process searches, texts are read by each.
        """

        def retrieve(self, question_hidden_states, n_docs):
            parts = self._chunk_tensor(question_hidden_states, 2)
            ids, vectors = zip(*(self._main_retrieve(part, n_docs) for part in parts), strict=True)
            ids = np.concatenate(ids)
            return np.concatenate(vectors), ids, self.index.get_doc_dicts(ids)

    parts = retriever.question_encoder_tokenizer, retriever.generator_tokenizer
    other = Distributed(retriever.config, *parts, index=retriever.index, init_retrieval=False)
    expected, found = (
        retriever(GOLDEN["question_ids"], QUERIES),
        other(GOLDEN["question_ids"], QUERIES),
    )
    assert (
        list(found) == list(expected)
        and found["context_input_ids"] == expected["context_input_ids"]
    )
    np.testing.assert_array_equal(found["doc_ids"], expected["doc_ids"])
    assert [len(part) for part in other._chunk_tensor(np.arange(7), 3)] == [3, 3, 1]
    custom = config(index_path="x.faiss", passages_path="x")
    assert not RagRetriever._build_index(custom).is_initialized()
