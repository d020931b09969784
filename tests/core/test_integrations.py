"""Passages and answers in LangChain, LlamaIndex and Haystack: the real libraries, a tiny model."""

import asyncio
import importlib
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rag_core import RagRetriever
from rag_core.backends import load_backend
from rag_core.integrations import PassageSearch, QuestionAnswering
from tests.support.records import same
from tests.support.serving_models import QUESTIONS, opened, write_model
from tests.support.training_models import small_config, small_tokenizers

ROOT = Path(__file__).parents[2]
QUESTION = QUESTIONS[0]
OPTIONS = {"max_new_tokens": 5, "num_beams": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """What `DUALRAG_HOME` names."""
    home = write_model(tmp_path_factory.mktemp("home"), load_backend())
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DUALRAG_HOME", str(home))
        patched.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
        patched.setenv("LANGSMITH_TRACING", "false")
        yield home


@pytest.fixture(scope="module")
def served(home):
    """A model and its knowledge base."""
    return opened(home, load_backend())


@pytest.fixture(scope="module")
def base(served):
    return served.base


@pytest.fixture(scope="module")
def model(served):
    return served.network


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("langchain", "langchain_core", "langchain"),
        ("llama_index", "llama_index", "llama-index"),
        ("haystack", "haystack", "haystack"),
    ],
)
def test_a_missing_library_is_one_error(module, library, extra, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"rag_core.integrations.{module}", raising=False)
    with pytest.raises(ImportError, match=rf"Run  pip install 'dualrag\[{extra}\]'\."):
        importlib.import_module(f"rag_core.integrations.{module}")


def test_whatever_is_searched_finds_what_it_finds_by_itself(base, model, home):
    expected = base.search(QUESTIONS, k=3)
    assert PassageSearch(base)(QUESTIONS, 3) == expected
    assert PassageSearch(base.path)(QUESTIONS, 3) == expected
    encoder = load_backend().load_encoder(home / "all-MiniLM-L6-v2")
    retriever = RagRetriever.from_pretrained(home / "demo-model", index=base.index())
    assert PassageSearch(retriever, encoder=encoder)(QUESTIONS, 3) == expected
    assert PassageSearch(retriever, encoder=encoder.embed_questions)(QUESTIONS, 3) == expected
    of_model = [hit.id for hit in PassageSearch(model)([QUESTION], 3)[0]]
    assert of_model == [passage.id for passage in model.answer(QUESTION, n_docs=3)[0].passages]

    only = "title=Paris"
    assert PassageSearch(base, where=only)([QUESTION], 3) == [base.search(QUESTION, 3, only)]
    assert PassageSearch(base)([QUESTION], 3, only) == [base.search(QUESTION, 3, only)]
    by_retriever = PassageSearch(retriever, encoder=encoder, where=only)
    assert [hit.title for hit in by_retriever([QUESTION], 3)[0]] == ["Paris"]
    with pytest.raises(TypeError, match="source must be a KnowledgeBase or its folder, a model"):
        PassageSearch(base.index())
    with pytest.raises(ValueError, match="encoder must be given with a RagRetriever"):
        PassageSearch(retriever)
    with pytest.raises(ValueError, match="where must go with a knowledge base, got a model"):
        PassageSearch(model, where=only)([QUESTION], 3)


class Own:
    """An index with four methods and nothing else; it finds fewer than are wanted."""

    vectors = None

    def is_initialized(self):
        return self.vectors is not None

    def init_index(self):
        self.vectors = np.eye(3, dtype=np.float32)

    def get_top_docs(self, question_hidden_states, n_docs=5):
        rows = np.argsort(-question_hidden_states @ self.vectors, axis=1)[:, :n_docs]
        return rows, self.vectors[rows]

    def get_doc_dicts(self, doc_ids):
        return [{"title": [""] * len(rows), "text": [*map(str, rows)]} for rows in doc_ids]


def test_an_index_of_one_s_own_is_opened_and_what_it_lacks_is_told(tmp_path):
    tokenizers = small_tokenizers(tmp_path)
    retriever = RagRetriever(
        small_config(tokenizers), *tokenizers, index=Own(), init_retrieval=False
    )
    search = PassageSearch(retriever, encoder=lambda texts: np.array([[0, 2, 1]] * len(texts)))
    [hits] = search("a question is one question", 5)
    assert [(hit.text, hit.score) for hit in hits] == [("1", 2.0), ("2", 1.0), ("0", 0.0)]
    with pytest.raises(ValueError, match="where must go with an index that has a method where"):
        search(["river"], 2, "title=x")
    with pytest.raises(ValueError, match="k must be a whole number"):
        search(["river"], 0)
    with pytest.raises(TypeError, match=r"encoder must be a function of texts .*got 'a-name'"):
        PassageSearch(retriever, encoder="a-name")


def test_a_named_model_answers_as_the_loaded_one(base, model, home):
    own = QuestionAnswering(model, **OPTIONS)
    named = QuestionAnswering(str(home / "demo-model"), base.path, **OPTIONS)
    answers = own(QUESTIONS)
    assert [answer.question for answer in answers] == QUESTIONS
    assert [answer.text for answer in named(QUESTIONS)] == [answer.text for answer in answers]
    several = own(QUESTIONS[:2], num_return_sequences=2)
    assert [answer.question for answer in several] == QUESTIONS[:2]
    token = QuestionAnswering(model, head="token", **OPTIONS)([QUESTION])[0]
    assert token.token_posteriors is not None and answers[0].token_posteriors is None
    with pytest.raises(ValueError, match="knowledge_base must go with the name of a model"):
        QuestionAnswering(model, base)


def test_a_refused_question_leaves_the_others_their_answers(model):
    answering = QuestionAnswering(model, **OPTIONS)
    first, second, third = answering.answered_or_not([QUESTION, " ", QUESTIONS[1]])
    assert (first.question, third.question) == (QUESTION, QUESTIONS[1])
    assert isinstance(second, ValueError)
    assert [answer.question for answer in answering(QUESTION)] == [QUESTION]  # not its letters


@pytest.mark.beyond
def test_langchain_s_own_suite_passes(home):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "tests/support/langchain_suite.py"),
            *("-q", "-n", "0", "-rA", "-o", "addopts=--import-mode=importlib"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout
    outcomes = re.findall(r"^(PASSED|[A-Z]{4,}) tests/support/langchain_suite", done.stdout, re.M)
    # five tests of a retriever for each thing that is searched, and five of the tool
    assert outcomes == ["PASSED"] * 25


class Watched:
    """A knowledge base's search, counted."""

    def __init__(self, monkeypatch, kind):
        self.calls = []
        call = kind.__call__

        def counted(search, questions, *arguments, **options):
            self.calls.append(list(questions))
            return call(search, questions, *arguments, **options)

        monkeypatch.setattr(kind, "__call__", counted)


@pytest.mark.beyond
def test_langchain_s_retriever_batches_streams_and_composes(base, monkeypatch):
    from langchain_core.runnables import RunnableLambda

    from rag_core.integrations.langchain import PassageRetriever

    retriever = PassageRetriever(source=base, k=2)
    hits = base.search(QUESTIONS, k=2)
    (document, _) = retriever.invoke(QUESTION)
    assert (document.id, document.page_content) == (str(hits[0][0].id), hits[0][0].text)
    assert document.metadata == {
        **hits[0][0].metadata,
        "title": hits[0][0].title,
        "source": hits[0][0].source,
        "origin": hits[0][0].origin,
        "score": hits[0][0].score,
        "rank": 1,
    }
    ids = [[str(hit.id) for hit in each] for each in hits]

    def ids_of(found):
        return [[document.id for document in each] for each in found]

    watched = Watched(monkeypatch, PassageSearch)
    assert ids_of(retriever.batch(QUESTIONS)) == ids
    assert ids_of(asyncio.run(retriever.abatch(QUESTIONS))) == ids
    assert watched.calls == [QUESTIONS, QUESTIONS]
    assert ids_of(retriever.batch(QUESTIONS, k=1)) == [each[:1] for each in ids]
    assert ids_of([asyncio.run(retriever.ainvoke(QUESTION))]) == ids[:1]
    assert ids_of([asyncio.run(retriever.ainvoke(QUESTION, k=1))]) == [ids[0][:1]]
    assert ids_of(retriever.stream(QUESTION)) == ids[:1]
    first, refused = retriever.batch([QUESTION, " "], return_exceptions=True)
    assert ids_of([first]) == ids[:1] and isinstance(refused, ValueError)
    with pytest.raises(ValueError, match="is empty"):
        retriever.batch([QUESTION, " "])
    assert [d.metadata["title"] for d in retriever.invoke(QUESTION, where="title=Paris")] == [
        "Paris"
    ]
    chain = retriever | RunnableLambda(lambda found: [each.metadata["title"] for each in found])
    assert chain.invoke(QUESTION) == [hit.title for hit in hits[0]]


@pytest.mark.beyond
def test_langchain_s_runnable_answers_one_by_one_and_together(model, monkeypatch):
    from langchain_core.callbacks import BaseCallbackHandler
    from langchain_core.runnables import RunnablePassthrough

    from rag_core.integrations.langchain import AnswerRunnable

    class Told(BaseCallbackHandler):
        ended, failed = 0, 0

        def on_chain_end(self, outputs, **_):
            self.ended += "answer" in outputs

        def on_chain_error(self, error, **_):
            self.failed += 1

    runnable = AnswerRunnable(model=model, options=OPTIONS)
    own = model.answer(QUESTIONS, **OPTIONS)
    record = runnable.invoke(QUESTION)
    assert (record["question"], record["answer"]) == (QUESTION, own[0].text)
    assert record["probability"] == pytest.approx(math.exp(own[0].log_probability), rel=1e-4)
    posteriors = [each.metadata["posterior"] for each in record["context"]]
    assert same(posteriors, [passage.posterior for passage in own[0].passages])
    assert same(record["citations"], own[0].to_dict()["citations"])

    watched = Watched(monkeypatch, QuestionAnswering)
    told = Told()
    texts = [answer.text for answer in own]
    assert [r["answer"] for r in runnable.batch(QUESTIONS, {"callbacks": [told]})] == texts
    assert [r["answer"] for r in asyncio.run(runnable.abatch(QUESTIONS))] == texts
    assert watched.calls == [QUESTIONS, QUESTIONS] and told.ended == len(QUESTIONS)
    assert asyncio.run(runnable.ainvoke(QUESTION))["answer"] == texts[0]
    first, refused = runnable.batch([QUESTION, " "], {"callbacks": [told]}, return_exceptions=True)
    assert first["answer"] == texts[0] and isinstance(refused, ValueError) and told.failed == 1
    with pytest.raises(ValueError, match="is empty"):
        runnable.invoke(" ")
    assert len(runnable.bind(n_docs=1).invoke(QUESTION)["context"]) == 1
    chain = {"asked": RunnablePassthrough(), "found": runnable}
    assert (RunnablePassthrough() | chain).invoke(QUESTION)["found"]["answer"] == texts[0]


@pytest.mark.beyond
def test_llama_index_retrieves_and_answers(base, model):
    from llama_index.core.llms import MockLLM
    from llama_index.core.query_engine import RetrieverQueryEngine
    from llama_index.core.schema import MetadataMode
    from llama_index.core.tools import QueryEngineTool

    from rag_core.integrations.llama_index import AnswerQueryEngine, PassageRetriever

    hits = base.search(QUESTION, k=3)
    retriever = PassageRetriever(base, similarity_top_k=3)
    nodes = retriever.retrieve(QUESTION)
    assert [(n.node_id, n.text, n.score) for n in nodes] == [
        (str(hit.id), hit.text, hit.score) for hit in hits
    ]
    assert nodes[0].metadata["origin"] == hits[0].origin
    read = nodes[0].node.get_content(MetadataMode.LLM)
    assert hits[0].title in read and "rank" not in read
    assert asyncio.run(retriever.aretrieve(QUESTION)) == nodes

    # a stand-in for a language model, which gives back what it is asked
    echo = RetrieverQueryEngine.from_args(retriever, llm=MockLLM()).query(QUESTION)
    assert echo.source_nodes == nodes
    assert hits[0].title in str(echo) and hits[0].origin in str(echo) and hits[0].text in str(echo)

    engine = AnswerQueryEngine(model, **OPTIONS)
    (own,) = model.answer(QUESTION, **OPTIONS)
    response = engine.query(QUESTION)
    assert str(response) == own.text
    assert same([n.score for n in response.source_nodes], [p.posterior for p in own.passages])
    assert same(response.metadata["citations"], own.to_dict()["citations"])
    assert asyncio.run(engine.aquery(QUESTION)).response == own.text
    assert [n.node_id for n in engine.retrieve(query(QUESTION))] == [
        str(passage.id) for passage in own.passages
    ]
    tool = QueryEngineTool.from_defaults(engine, name="ask", description="Answer a question")
    assert tool.call(QUESTION).content == own.text
    with pytest.raises(ValueError, match="is empty"):
        engine.query(" ")


def query(text):
    from llama_index.core.schema import QueryBundle

    return QueryBundle(text)


@pytest.mark.beyond
def test_haystack_runs_and_saves_its_components(base, model, home):
    from haystack import Pipeline
    from haystack.core.errors import DeserializationError
    from haystack.core.serialization import component_from_dict, component_to_dict

    from rag_core.integrations.haystack import AnswerComponent, PassageRetriever

    hits = base.search(QUESTION, k=3)
    retriever = PassageRetriever(str(base.path), top_k=3)
    answerer = AnswerComponent(str(home / "demo-model"), str(base.path), options=OPTIONS)
    pipeline = Pipeline()
    pipeline.add_component("retriever", retriever)
    pipeline.add_component("answerer", answerer)
    asked = {"retriever": {"query": QUESTION}, "answerer": {"query": QUESTION}}
    result = pipeline.run(asked)
    documents = result["retriever"]["documents"]
    assert [(d.id, d.content, d.score) for d in documents] == [
        (str(hit.id), hit.text, hit.score) for hit in hits
    ]
    assert documents[0].meta["origin"] == hits[0].origin
    (answer,) = result["answerer"]["answers"]
    (own,) = model.answer(QUESTION, **OPTIONS)
    assert (answer.query, answer.data) == (QUESTION, own.text)
    assert same([d.score for d in answer.documents], [p.posterior for p in own.passages])
    assert same(answer.meta["citations"], own.to_dict()["citations"])
    assert type(answer).from_dict(answer.to_dict()) == answer

    saved = pipeline.dumps()
    with pytest.raises(DeserializationError):  # Haystack trusts no module that it isn't told of
        Pipeline.loads(saved)
    again = Pipeline.loads(saved, allowed_modules=["rag_core.integrations.*"])
    assert again.to_dict() == pipeline.to_dict()
    assert again.run(asked)["retriever"]["documents"] == documents
    for component in (retriever, answerer):
        values = component_to_dict(component, "component")
        made = component_from_dict(type(component), values, "component")
        assert component_to_dict(made, "component") == values

    few = retriever.run(QUESTION, top_k=1, where="title=Paris")["documents"]
    assert [document.meta["title"] for document in few] == ["Paris"]
    assert asyncio.run(retriever.run_async(QUESTION))["documents"] == documents
    assert len(answerer.run(QUESTION, {"n_docs": 1})["answers"][0].documents) == 1
    assert PassageRetriever(base).to_dict()["init_parameters"]["source"] == str(base.path)
    with pytest.raises(TypeError, match="model must be a folder or a name to be saved"):
        AnswerComponent(model).to_dict()
    with pytest.raises(TypeError, match="where must be texts such as"):
        PassageRetriever(str(base.path), where=bool).to_dict()


@pytest.mark.beyond
def test_the_page_s_python_runs(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "integrations.md").read_text("utf-8")
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "docs/integrations.md", "exec"), names)
