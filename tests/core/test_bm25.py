"""BM25 as an index: its scores by the formula, its files, and what is told in words."""

import json
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from rag_core.cli import app
from rag_core.hub import DamagedFileError
from rag_core.retrieval.bm25 import Bm25Index
from rag_core.retrieval.retriever import RagRetriever
from rag_core.serving import ServedModel
from tests.support.evaluations import Countable
from tests.support.knowledge_bases import build, hashed
from tests.support.training_models import VECTORS, small_config, small_tokenizers

TITLES = ["River", "King", "King", "Moon", "Song"]
TEXTS = ["a river city", "king war", "king war", "the moon", "king king fish"]
QUESTIONS = ["Which KING, which fish?", "king war", "Moon over the city", "nothing known"]


def words_of(text):
    return [word for word in re.findall(r"\w\w+", text.lower()) if word != "the"]


def by_formula(question, k1=1.5, b=0.75):
    """BM25 of all passages as Lucene has it, written out (Robertson and Zaragoza 2009, section 3)."""
    passages = [words_of(f"{title} {text}") for title, text in zip(TITLES, TEXTS, strict=True)]
    mean = np.mean([len(words) for words in passages])
    scores = np.zeros(len(passages))
    for word in words_of(question):
        holding = sum(word in words for words in passages)
        weight = np.log(1 + (len(passages) - holding + 0.5) / (holding + 0.5))
        for row, words in enumerate(passages):
            count = Counter(words)[word]
            scores[row] += weight * count / (count + k1 * (1 - b + b * len(words) / mean))
    return scores


@pytest.fixture
def index():
    return Bm25Index(Countable(TITLES, TEXTS, VECTORS[: len(TITLES)]))


def test_scores_are_the_formulas_and_logits_whatever_the_vector(index) -> None:
    queries = np.random.default_rng(0).normal(size=(len(QUESTIONS), 384)).astype(np.float32) * 9
    ids, vectors = index.get_top_docs(queries, 5, question_text=QUESTIONS)
    expected = np.array([by_formula(question) for question in QUESTIONS])
    order = np.argsort(-expected, axis=1, kind="stable")
    assert ids.tolist() == order.tolist()  # ties, and passages without a word, by row
    assert ids[3].tolist() == [0, 1, 2, 3, 4] and vectors.dtype == np.float32
    scores = np.einsum("bd,bnd->bn", queries, vectors)
    np.testing.assert_allclose(scores, np.take_along_axis(expected, order, 1), rtol=2e-6, atol=1e-6)
    assert expected[1].tolist() != by_formula("king fish").tolist()  # the formula tells them apart


def test_a_retriever_tells_it_the_questions(index, tmp_path) -> None:
    tokenizers = small_tokenizers(tmp_path)
    retriever = RagRetriever(small_config(tokenizers), *tokenizers, index=index)
    queries = np.ones((3, 16), np.float32)
    ids = tokenizers[0](["fish ?", "river", "moon"], padding=True)["input_ids"]
    found = retriever(ids, queries, n_docs=2)
    typed = retriever(None, queries, n_docs=2, question_text=["Fish?", "river", "moon"])
    assert found["doc_ids"].tolist() == typed["doc_ids"].tolist() == [[4, 0], [0, 1], [3, 0]]
    one = retriever.retrieve(queries[:1], 7, question_text=["fish"])
    assert one[1].tolist() == [[4, 0, 1, 2, 3, -1, -1]] and not one[0][0, 5:].any()
    for texts in (None, ["fish"]):
        with pytest.raises(ValueError, match=r"question_text must be 3 texts, one a question"):
            retriever.retrieve(queries, 2, question_text=texts)
    with pytest.raises(ValueError, match=r"must not be zero, got zeros in rows \[1\]"):
        retriever.retrieve(queries * [[1], [0], [1]], 2, question_text=QUESTIONS[:3])


def test_passages_of_ones_own_are_neither_saved_nor_narrowed(index, tmp_path) -> None:
    tokenizers = small_tokenizers(tmp_path)
    retriever = RagRetriever(small_config(tokenizers), *tokenizers, index=index)
    with pytest.raises(ValueError, match=r"to be saved, got BM25 over Countable\. Save without it"):
        retriever.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with pytest.raises(ValueError, match=r"where must go with .*got BM25 over Countable, which"):
        index.where("title=King")


def test_a_knowledge_base_is_built_searched_changed_and_saved_by_words(tmp_path) -> None:
    kb = build(tmp_path, index="bm25")
    assert "bm25 index" in repr(kb) and kb.manifest.search == "bm25"
    names = {name for name in kb.manifest.files if name.startswith("bm25/")}
    assert len(names) == 5 and all(name.endswith((".npy", ".json")) for name in names)
    data = kb.dataset()
    row = 17
    title = data[row]["title"]
    hits = kb.search([title, "w1 w2"], k=3)  # no encoder is loaded: there is none called "hashed"
    assert hits[0][0].id == row and hits[0][0].score > 1 > hits[0][1].score
    assert kb.search(title, k=3, where=f"title!={title}")[0].id != row
    said = CliRunner().invoke(app, ["search", str(kb.path), title, "--json", "--k", "1"])
    assert json.loads(said.stdout)["hits"][0]["id"] == row, said.output
    index = kb.index()
    assert isinstance(index._bm25.scores["data"], np.memmap) and len(index) == len(kb)
    assert kb.index(search="vectors").vector_size == 16
    kb.check_model({"question_encoder": None})  # searched by words, any model fits
    kb.remove(ids=[0])
    assert kb.search(title, k=1)[0].id == row - 1
    extra = tmp_path / "more.jsonl"
    extra.write_text(json.dumps({"title": "New", "text": "zebra crossing"}) + "\n")
    kb.add(extra, hashed, progress=False)
    assert kb.search("zebra", k=1)[0].title == "New"

    tokenizers = small_tokenizers(tmp_path)
    retriever = RagRetriever(small_config(tokenizers), *tokenizers, index=kb.index())
    retriever.save_pretrained(tmp_path / "rag")
    again = RagRetriever.from_pretrained(tmp_path / "rag")
    queries = np.ones((1, 3), np.float32)
    assert isinstance(again.index, Bm25Index)
    assert again.retrieve(queries, 1, question_text=["zebra"])[2][0]["title"] == ["New"]
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pkl", ".pickle")]


def test_a_base_without_words_and_damaged_files_are_told_in_words(tmp_path) -> None:
    kb = build(tmp_path)
    with pytest.raises(ValueError, match=r"built without an index of words.*--index bm25"):
        kb.index(search="bm25")
    with pytest.raises(ValueError, match=r"search must be one of vectors, bm25"):
        kb.index(search="words")
    index = Bm25Index(kb.index())
    titles = kb.dataset()["title"]
    part = index.where(f"title!={titles[0]}").where(f"title!={titles[1]}")
    assert not {titles[0], titles[1]} & {titles[row] for row in part.rows}
    with pytest.raises(ValueError, match=r"where must hold for a passage of this part"):
        part.where(f"title={titles[0]}")
    with pytest.raises(ValueError, match=r"index must be whole to be saved"):
        part.save(tmp_path / "part")
    index.save(tmp_path / "saved")
    place = tmp_path / "saved" / "bm25" / "indices.csc.index.npy"
    whole = place.read_bytes()
    for damaged in (whole[:-8], b"\x80\x04pickled", whole[:200]):
        place.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"bm25 is no index of BM25"):
            Bm25Index.from_files(tmp_path / "saved" / "hf_dataset", tmp_path / "saved" / "bm25")
    np.save(place, index._bm25.scores["indices"] + len(kb))
    broken = Bm25Index.from_files(tmp_path / "saved" / "hf_dataset", tmp_path / "saved" / "bm25")
    with pytest.raises(DamagedFileError, match=r"index of BM25 is damaged"):
        broken.get_top_docs(np.ones((1, 4)), 2, question_text=["w1 w2 w3 w4 w5"])


@pytest.mark.parametrize("way", ["vectors", "bm25", "hybrid"])
def test_a_server_shows_no_passage_that_conditions_leave_out(tmp_path, way) -> None:
    kb = build(tmp_path, rows=9, index="bm25")
    title = kb.dataset()[4]["title"]
    retriever = SimpleNamespace(index=kb.index(search=way).where(f"title={title}"))
    model = SimpleNamespace(network=SimpleNamespace(retriever=retriever))
    assert ServedModel.passage(model, 4)["title"] == title
    for row in (3, 9, -1, 10**40):
        assert ServedModel.passage(model, row) is None
    retriever.index = kb.index(search=way)
    assert ServedModel.passage(model, 3) and ServedModel.passage(model, 9) is None
