"""Answers over HTTP, from a stand-in for the model behind a real uvicorn on a real socket."""

import json

import pytest

from rag_core.serving import ServerSettings
from tests.support.serving import StandIn, answer_to, running


@pytest.fixture(scope="module")
def server():
    with running(StandIn()) as server:
        yield server


def test_an_answer_is_sent_with_its_passages_and_citations(server):
    reply = server.ask("/answer", {"question": "why"})
    assert reply.status == 200
    assert reply.json == {"answers": [json.loads(json.dumps(answer_to("why").to_dict()))]}
    assert reply.json["answers"][0]["citations"][0]["text"] == "a why"
    several = server.ask("/answer", {"questions": ["why", "how"], "num_return_sequences": 2})
    texts = [[each["text"] for each in result["answers"]] for result in several.json["results"]]
    assert texts == [["a why"] * 2, ["a how"] * 2]


@pytest.mark.parametrize("key", ["right", "wrong", None])
def test_a_key_is_asked_for_where_one_is_set(key):
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with running(StandIn(), ServerSettings(api_key="right")) as server:
        reply = server.ask("/answer", {"question": "why"}, **headers)
        assert reply.status == (200 if key == "right" else 401)
        assert server.ask("/health").status == 200
