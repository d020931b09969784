"""`dualrag mcp`, asked by the SDK's own client."""

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rag_core import RagRetriever
from rag_core.backends import load_backend
from rag_core.cli import app
from rag_core.integrations import answer_record, create_mcp_server
from rag_core.serving import ServedModel, ServerSettings, Service
from tests.support.records import same
from tests.support.serving import StandIn, answer_to

ROOT = Path(__file__).parents[2]
QUESTION = "Which novel is set during Napoleon's invasion?"


@asynccontextmanager
async def served(model, settings=None, mode="auto"):
    """A client of a server in this process."""
    from mcp import Client

    def opened():
        if isinstance(model, Exception):
            raise model
        return model

    service = Service(opened, settings or ServerSettings())

    async def load():
        try:
            await service.start()
        except ValueError as error:
            service.fault = error

    loading = asyncio.create_task(load())
    async with Client(create_mcp_server(service, loading), mode=mode) as client:
        yield client
    await loading
    await service.close()


def said(result):
    """The sentence of an error."""
    assert result.is_error and result.structured_content is None
    (content,) = result.content
    assert "\n" not in content.text
    return content.text


@pytest.mark.beyond
@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_process_answers_the_sdk_s_client(demo_cache, offline, mode):
    """Over stdin and stdout, in the protocol of today and in that of before 2026."""
    from mcp import Client, StdioServerParameters

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DUALRAG_HOME": str(demo_cache)}
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "rag_core.cli", "mcp", "--head", "token"],
        env=environment,
    )

    async def ask():
        async with Client(parameters, mode=mode) as client:
            tools = (await client.list_tools()).tools
            answered = await client.call_tool("ask", {"question": QUESTION, "n_docs": 2})
            found = await client.call_tool("search", {"query": QUESTION, "k": 3})
            refused = await client.call_tool("search", {"query": " "})
            return client.server_info, tools, answered, found, refused

    server, tools, answered, found, refused = asyncio.run(ask())
    assert server.name == "dualrag"
    assert [tool.name for tool in tools] == ["ask", "search"]

    rag = load_backend()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DUALRAG_HOME", str(demo_cache))
        retriever = RagRetriever.from_pretrained("dualrag/demo")
        model = rag.RagTokenForGeneration.from_pretrained("dualrag/demo", retriever=retriever)
        (own,) = model.answer(QUESTION, n_docs=2)
        (hits,) = ServedModel(model).retrieve([QUESTION], 3)
    record = answered.structured_content
    assert same(record, answer_record(own))
    assert json.loads(answered.content[0].text) == record
    assert same(found.structured_content["passages"], [hit.to_dict() for hit in hits])
    assert said(refused) == "A query must have at least one word, got an empty text."


def test_a_difference_of_records_is_noticed():
    record = answer_record(answer_to("who"))
    assert same(record, json.loads(json.dumps(record)))
    assert not same(record, record | {"probability": record["probability"] * 1.01})
    assert not same(record, record | {"passages": record["passages"][:1]})


@pytest.mark.beyond
@pytest.mark.parametrize(
    ("tool", "arguments", "sentence"),
    [
        ("ask", {}, "A question must be a text, got NoneType."),
        ("ask", {"question": 3}, "A question must be a text, got int."),
        ("ask", {"question": "who", "n_docs": 51}, "n_docs must be at most 50"),
        ("ask", {"question": "who", "n_doc": 1}, "an argument of ask must be one of"),
        ("ask", {"question": "of one token"}, "a question must have at most 3 tokens, got 4."),
        ("ask", {"question": "fail"}, "this question can't be answered."),
        ("search", {"query": "who", "k": 0}, "k must be a whole number from 1 to 50, got 0"),
        ("search", {"query": "x" * 4001}, "A query must have at most 4,000 characters"),
        ("find", {}, "tool must be one of ('ask', 'search'), got 'find'"),
    ],
)
def test_what_is_refused_is_one_sentence(tool, arguments, sentence):
    async def ask():
        async with served(StandIn()) as client:
            return await client.call_tool(tool, arguments)

    assert said(asyncio.run(ask())).startswith(sentence)


@pytest.mark.beyond
@pytest.mark.parametrize(
    ("model", "question", "sentence"),
    [
        (ValueError("no such kb"), "why", "The model can't be loaded: no such kb"),
        (StandIn(error=KeyError("a")), "fail", "It could not be done; the server's log says why."),
        (StandIn(seconds=30), "who", "It took longer than 0.2 s, and was stopped."),
    ],
)
def test_what_fails_is_one_sentence(model, question, sentence):
    async def ask():
        async with served(model, ServerSettings(timeout=0.2)) as client:
            return await client.call_tool("ask", {"question": question})

    assert said(asyncio.run(ask())) == sentence
    assert getattr(model, "stopped", 0) == (question == "who")


@pytest.mark.beyond
def test_numbers_that_json_lacks_are_null():
    class Unbounded(StandIn):
        def answer(self, questions, options, cancelled):
            groups = super().answer(questions, options, cancelled)
            groups[0][0].passages[0].metadata["size"] = float("nan")
            return groups

    async def ask():
        async with served(Unbounded()) as client:
            return await client.call_tool("ask", {"question": "who"})

    answered = asyncio.run(ask())
    (content,) = answered.content
    assert json.loads(content.text, parse_constant=pytest.fail) == answered.structured_content
    assert answered.structured_content["passages"][0]["metadata"]["size"] is None


@pytest.mark.beyond
def test_questions_at_once_share_batches_and_keep_their_answers():
    model = StandIn(seconds=0.05)

    async def ask():
        async with served(model) as client:
            asked = [client.call_tool("ask", {"question": f"who {n}"}) for n in range(9)]
            return await asyncio.gather(*asked)

    results = asyncio.run(ask())
    assert [each.structured_content["answer"] for each in results] == [
        answer_to(f"who {n}").text for n in range(9)
    ]
    assert len(model.batches) < 9


@pytest.mark.beyond
@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_cancelled_call_has_its_search_stopped(mode):
    model = StandIn(seconds=30)

    async def ask():
        async with served(model, mode=mode) as client:
            call = asyncio.create_task(client.call_tool("ask", {"question": "who"}))
            while not model.batches:
                await asyncio.sleep(0.01)
            call.cancel()
            while not model.stopped:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(ask(), 10))


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setattr("rag_core.integrations.mcp.find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["mcp"])
    assert done.exit_code == 2
    assert "rag_core.integrations needs mcp. Run pip install 'dualrag[mcp]'." in done.stderr
