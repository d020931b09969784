"""Text in, passages with scores out: the search of a knowledge base."""

import json
import pickle
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest

from rag_core import backends
from rag_core.knowledge.base import KnowledgeBase, build_knowledge_base
from tests.support.knowledge_bases import build, hashed, write_corpus


class Encoder:
    """What a backend's `load_encoder` gives, without a network."""

    dimension = 16
    pairs = only_questions = False

    def __init__(self, name: str = "hashed") -> None:
        self.name = name

    def embed(self, titles, texts):
        return hashed(titles, texts)

    def embed_questions(self, questions):
        return hashed([""] * len(questions), [f"query {question}" for question in questions])


@pytest.fixture
def loaded(monkeypatch):
    """The names that were loaded, by a backend that needs no framework."""
    names: list[str] = []

    def load_encoder(name, for_questions):
        assert for_questions
        names.append(name)
        if name == "gone":
            raise OSError("no such folder")
        return Encoder(name)

    engine = SimpleNamespace(load_encoder=load_encoder)
    monkeypatch.setattr(backends, "load_backend", lambda name=None: engine)
    return names


def test_a_question_finds_what_its_vector_is_nearest_to(tmp_path, loaded) -> None:
    kb = build(tmp_path)
    data = kb.dataset()
    vectors = np.array(data["embeddings"], np.float32)
    questions = ["w1 w2 w3", "w7", "w100 w200"]
    queries = Encoder().embed_questions(questions)
    best = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :3]
    found = kb.search(questions, k=3)
    assert [[hit.id for hit in hits] for hits in found] == best.tolist()
    assert kb.search(questions[1], 3) == found[1] and loaded == ["hashed"]
    hit = found[0][1]
    assert (hit.rank, hit.title, hit.text) == (2, data[hit.id]["title"], data[hit.id]["text"])
    assert hit.score == pytest.approx(float(queries[0] @ vectors[hit.id]), abs=1e-6)
    assert hit.source == "corpus.jsonl" and hit.metadata["row"] == hit.id + 1
    assert hit.to_dict()["origin"] == hit.origin == f"corpus.jsonl row {hit.id + 1}"
    json.dumps(hit.to_dict())
    assert len(kb.search("w1", k=100)) == 60
    assert len(pickle.dumps(kb)) < 10_000
    array = np.array(questions, object)
    assert kb.search(array, 3) == kb.search(iter(questions), 3) == found


def test_a_filter_narrows_the_search_and_a_change_renews_it(tmp_path, loaded) -> None:
    kb = build(tmp_path)
    hits = kb.search("w1 w2", k=4, where=["row>10", "row<=13"])
    assert sorted(hit.id for hit in hits) == [10, 11, 12]
    best = kb.search("w1 w2", k=1, where=lambda passage: passage["row"] == 5)
    assert [hit.id for hit in best] == [4]
    with pytest.raises(ValueError, match="matches none of the 60"):
        kb.search("w1", where="source=other/*")
    kb.remove([0])
    assert kb.search("w1 w2", k=1, where="row=5")[0].id == 3
    kb.add(write_corpus(tmp_path / "more.jsonl", 5, seed=1), hashed, progress=False)
    assert {hit.id for hit in kb.search("w1", k=9, where="file=more.*")} == {59, 60, 61, 62, 63}


def test_a_search_is_not_narrowed_by_the_conditions_of_another_thread(tmp_path, loaded) -> None:
    kb = build(tmp_path)
    found: list = []
    other = Thread(target=lambda: found.extend(kb.search("w1", where="row=2")))

    class Meddled(type(kb._loaded)):
        """Another thread searches when this one has just found the rows that it may."""

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "filtered" and value is not None and other.ident is None:
                other.start()
                other.join(0.3)

    kb._loaded = Meddled()
    assert [hit.id for hit in kb.search("w1", where="row=1")] == [0]
    other.join()
    assert [hit.id for hit in found] == [1]


def test_an_encoder_is_a_function_a_loaded_one_or_a_name(tmp_path, loaded) -> None:
    kb = build(tmp_path)
    plain = kb.search("w1 w2", encoder=lambda texts: hashed([""] * len(texts), texts))
    assert loaded == [] and plain == kb.search(
        "w1 w2", encoder=lambda texts: hashed([""] * len(texts), texts).tolist()
    )
    assert kb.search("w1", encoder=Encoder()) == kb.search("w1", encoder="other/copy")
    assert loaded == ["other/copy"]
    partner = Encoder("question")
    partner.only_questions = True
    partner.embed = None
    assert kb.search("w1", encoder=partner) == kb.search("w1")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"questions": ""}, "question number 0 is empty"),
        ({"questions": []}, "questions must hold one question or more"),
        ({"questions": 3}, "questions must be a string or a list of strings"),
        ({"k": 0}, "k must be a whole number of at least 1, got 0"),
        ({"encoder": lambda texts: np.ones(16)}, r"one vector a question, \(1, D\), got shape"),
        ({"encoder": lambda texts: np.ones((1, 3))}, "question vectors have size 3"),
        ({"encoder": lambda texts: np.full((1, 16), np.nan)}, "NaN or infinity"),
        ({"encoder": "gone"}, "no such folder"),
    ],
)
def test_what_cannot_be_searched_is_said(tmp_path, loaded, options, says) -> None:
    kb = build(tmp_path, rows=8)
    with pytest.raises((ValueError, TypeError, OSError), match=says):
        kb.search(**{"questions": "w1"} | options)


def test_an_encoder_of_other_passages_is_refused(tmp_path, loaded) -> None:
    kb = build(tmp_path, rows=8, encoder_name="gone")
    with pytest.raises(OSError, match=r"embedded by 'gone', which cannot .*--encoder"):
        kb.search("w1")
    other = Encoder("other")
    other.embed = lambda titles, texts: hashed(texts, titles)[:, ::-1]
    with pytest.raises(ValueError, match=r"embedded by 'gone' \(D=16\); 'other' .* other vectors"):
        kb.search("w1", encoder=other)
    small = Encoder("small")
    small.only_questions, small.dimension = True, 8
    with pytest.raises(ValueError, match=r"D=16 .* got 'small' with D=8. Name the partner of"):
        kb.search("w1", encoder=small)


def test_dprs_two_encoders_search_together(world, backend, monkeypatch) -> None:
    rag = backends.load_backend(backend)
    monkeypatch.chdir(world)
    monkeypatch.setattr("rag_core.knowledge.search._backend_in_use", lambda: backend)
    passages, questions = (
        f"facebook/dpr-{side}_encoder-single-nq-base" for side in ("ctx", "question")
    )
    (world / "two.jsonl").write_text('{"text": "one text"}\n{"text": "another text"}\n')
    options = {"encoder_name": passages, "progress": False, "overwrite": True}
    encode = rag.load_encoder(passages).embed
    kb = build_knowledge_base(world / "two.jsonl", world / "two", encode, **options)
    with pytest.raises(ValueError, match=rf"embeds passages only.*its partner: {questions}"):
        kb.search("which text")
    with pytest.raises(ValueError, match="documents need its partner"):
        rag.load_encoder(questions)
    asker = rag.load_encoder(questions, for_questions=True)
    with pytest.raises(ValueError, match="documents need its partner"):
        asker.embed(["a"], ["b"])
    vector = asker.embed_questions(["which text"])
    hits = KnowledgeBase.open(kb.path).search("which text", encoder=questions)
    vectors = np.array(kb.dataset()["embeddings"], np.float32)
    np.testing.assert_allclose(
        [hit.score for hit in hits], sorted((vectors @ vector[0]).tolist(), reverse=True), rtol=1e-4
    )
