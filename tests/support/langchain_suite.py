"""langchain-tests' own standard suites, for `tests/core/test_integrations.py` to run in a
process of its own: the classes need that library when they are made.
"""

import os
from pathlib import Path

import pytest
from langchain_tests.integration_tests import RetrieversIntegrationTests, ToolsIntegrationTests

from rag_core import KnowledgeBase, RagRetriever
from rag_core.backends import load_backend
from rag_core.integrations.langchain import AnswerRunnable, PassageRetriever

# What `write_demo_cache` wrote.
HOME = Path(os.environ.get("DUALRAG_HOME", ""))
QUESTION = "Which novel is set during Napoleon's invasion?"


@pytest.fixture
def anyio_backend():
    return "asyncio"


def model():
    rag = load_backend()
    retriever = RagRetriever.from_pretrained("dualrag/demo")
    return rag.RagTokenForGeneration.from_pretrained("dualrag/demo", retriever=retriever)


class Retrievers(RetrieversIntegrationTests):
    pytestmark = pytest.mark.anyio
    retriever_constructor = PassageRetriever
    retriever_query_example = QUESTION


class TestOfAKnowledgeBase(Retrievers):
    @property
    def retriever_constructor_params(self):
        return {"source": KnowledgeBase.open("dualrag/demo")}


class TestOfAFolder(Retrievers):
    @property
    def retriever_constructor_params(self):
        return {"source": str(HOME / "demo-kb"), "where": "source=*"}


class TestOfAModel(Retrievers):
    @property
    def retriever_constructor_params(self):
        return {"source": model()}


class TestOfARagRetriever(Retrievers):
    @property
    def retriever_constructor_params(self):
        encoder = load_backend().load_encoder(HOME / "all-MiniLM-L6-v2")
        return {"source": RagRetriever.from_pretrained("dualrag/demo"), "encoder": encoder}


class TestTheRunnableAsATool(ToolsIntegrationTests):
    """What the suite has that a Runnable of one's own can be put through: as a tool of agents."""

    pytestmark = pytest.mark.anyio
    tool_invoke_params_example = {"__arg1": QUESTION}  # noqa: RUF012

    @property
    def tool_constructor(self):
        return AnswerRunnable(model=model()).as_tool(name="ask", description="Answer a question")
