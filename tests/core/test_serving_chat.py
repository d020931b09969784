"""OpenAI's API as its own client speaks it, to a real uvicorn on a real socket."""

import json
import re
import time
from pathlib import Path

import openai
import pytest

from rag_core.serving import ServedModel, ServerSettings
from rag_core.serving.words import WordStreamer
from tests.support.serving import StandIn, answer_to, running, wait_until

MODEL = StandIn.name
ROOT = Path(__file__).parents[2]


def asked(question="who is it", **more):
    return {"model": MODEL, "messages": [{"role": "user", "content": question}]} | more


def client_of(server, key="none", **options):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, **options)


@pytest.fixture(scope="module")
def client():
    with running(StandIn()) as server, client_of(server) as client:
        yield client


def test_the_last_user_message_is_answered_with_citations(client):
    earlier = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hello"},
    ]
    parts = [{"type": "text", "text": "who"}, {"type": "text", "text": "is it"}]
    request = asked(parts, logprobs=True)
    request["messages"] = earlier + request["messages"]
    answer = client.chat.completions.create(**request)
    (choice,) = answer.choices
    assert choice.message.content == "a who\nis it" and choice.message.role == "assistant"
    assert choice.finish_reason == "stop" and answer.model == MODEL
    whole = answer.citations[0]
    assert (whole["start"], whole["end"], whole["text"]) == (0, 11, "a who\nis it")
    assert whole["passage_text"] == "text" and whole["origin"] == "file.md:3"
    assert choice.message.citations == answer.citations
    assert [each.logprob for each in choice.logprobs.content] == [-1.0, -0.5]
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (6, 2, 8)
    assert "0 (system), 1 (user), 2 (assistant)" in answer.warnings[0]


def test_models_are_listed_by_the_name_that_answers(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "dualrag"
    with pytest.raises(openai.NotFoundError, match="does not exist") as caught:
        client.chat.completions.create(**asked() | {"model": "gpt"})
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def pieces(client, **request):
    """The texts of a stream, its last chunk with a choice, and its usage."""
    chunks = list(client.chat.completions.create(**asked(**request), stream=True))
    texts = [c.choices[0].delta.content for c in chunks if c.choices]
    return [text for text in texts if text], [c for c in chunks if c.choices][-1], chunks[-1].usage


def test_words_are_streamed_where_the_search_writes_in_order(client):
    usage = {"stream_options": {"include_usage": True}}
    texts, last, counts = pieces(client, extra_body={"head": "token"}, **usage)
    assert texts == ["a", " who", " is", " it"]
    assert last.choices[0].finish_reason == "stop" and last.citations[0]["text"] == "a who is it"
    assert last.choices[0].delta.citations == last.citations and counts.total_tokens == 8
    texts, last, counts = pieces(client)
    assert texts == ["a who is it"] and last.citations and counts is None


@pytest.mark.parametrize("head", ["token", "sequence"])
def test_a_stop_ends_the_answer_before_it_streamed_or_not(client, head):
    options = {"stop": ["is it", "nowhere"], "extra_body": {"head": head}}
    answer = client.chat.completions.create(**asked(**options))
    assert answer.choices[0].message.content == "a who "
    assert answer.choices[0].finish_reason == "stop"
    assert all(each["end"] <= 6 for each in answer.citations)
    texts, last, _ = pieces(client, **options)
    assert "".join(texts) == "a who " and last.citations == answer.citations


def test_a_cut_answer_says_so_and_n_answers_come(client):
    answer = client.chat.completions.create(**asked(max_tokens=3, n=2))
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    chunks = list(client.chat.completions.create(**asked(n=2), stream=True))
    assert {chunk.choices[0].index for chunk in chunks} == {0, 1}


@pytest.mark.parametrize(
    ("wrong", "param", "words"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "no tools"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "another vocabulary"),
        ({"response_format": {"type": "json_object"}}, "response_format", "plain text"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio", "writes text"),
        ({"presence_penalty": 0.5}, "presence_penalty", "repetition_penalty"),
        ({"logprobs": True, "top_logprobs": 2}, "top_logprobs", "own tokens"),
        ({"extra_body": {"num_beems": 2}}, "num_beems", "Unrecognized"),
        ({"extra_body": {"stream": "yes"}}, "stream", "boolean"),
        ({"max_tokens": 10_000}, "max_tokens", "max_tokens must be at most 256"),
        ({"n": 99}, "n", "n must be at most 16"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream=true"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages", "role 'user'"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role", "'robot'"),
        ({"messages": [{"role": "user", "content": " "}]}, None, "at least one word"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
            "'image_url'",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "messages[1]",
            "goes on from no other text",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client, wrong, param, words):
    for stream in (True, False):
        if "stream_options" in wrong and stream:
            continue
        more = {} if "stream" in wrong.get("extra_body", {}) else {"stream": stream}
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**asked() | wrong | more)
        assert words in caught.value.body["message"] and caught.value.param == param
        assert set(caught.value.body) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"top_k": 5}, "top_k must go with a temperature above 0, got it alone. Leave it out."),
        ({"num_return_sequences": 2, "num_beams": 1}, "n=2 needs num_beams>=2 or a temperature"),
        ({"do_sample": "maybe"}, "do_sample must be True or False, got 'maybe'."),
    ],
)
def test_a_refusal_names_what_a_client_of_theirs_can_set(real, wrong, sentence):
    wrong |= {"head": "token"}
    with running(real) as server, client_of(server) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**asked(extra_body=wrong))
    assert caught.value.body["message"].startswith(sentence)


def test_parameters_that_ask_for_nothing_are_taken(client):
    idle = {
        "tools": [],
        "tool_choice": "none",
        "logit_bias": {},
        "response_format": {"type": "text"},
        "presence_penalty": 0,
        "store": False,
        "user": "somebody",
        "metadata": {"a": "b"},
    }
    assert client.chat.completions.create(**asked(**idle)).choices[0].message.content


class Noting(StandIn):
    """Remembers the options of each answer."""

    def answer(self, questions, options, cancelled):
        self.options = options
        return super().answer(questions, options, cancelled)


@pytest.mark.parametrize(
    ("request_", "options"),
    [
        ({}, {}),
        ({"temperature": 0, "seed": 5}, {"do_sample": False}),
        ({"top_p": 1}, {}),
        (
            {"temperature": 0.5, "seed": -1, "extra_body": {"top_k": 7}},
            {"do_sample": True, "temperature": 0.5, "num_beams": 1, "top_k": 7, "seed": 2**63 - 1},
        ),
        (
            {"top_p": 0.5, "max_completion_tokens": 9, "max_tokens": 20},
            {"do_sample": True, "temperature": 1.0, "num_beams": 1, "top_k": 0, "top_p": 0.5}
            | {"max_new_tokens": 9},
        ),
        ({"n": 3}, {"num_return_sequences": 3}),
        ({"extra_body": {"n_docs": 2, "num_beams": 4}}, {"n_docs": 2, "num_beams": 4}),
    ],
)
def test_parameters_become_options_of_generate(request_, options):
    model = Noting()
    with running(model) as server, client_of(server) as client:
        client.chat.completions.create(**asked(**request_))
    assert model.options == options


def test_faults_of_the_server_come_in_the_same_form(client):
    with pytest.raises(openai.BadRequestError, match="can't be answered"):
        client.chat.completions.create(**asked("fail"))
    broken = StandIn(error=RuntimeError("of /home/somebody"))
    with running(broken) as server, client_of(server) as other:
        with pytest.raises(openai.InternalServerError, match="its log says what") as caught:
            other.chat.completions.create(**asked("fail"))
        assert "somebody" not in str(caught.value)
    with running(StandIn(), ServerSettings(api_key="right")) as server:
        with pytest.raises(openai.AuthenticationError):
            client_of(server, "wrong").chat.completions.create(**asked())
        assert client_of(server, "right").models.list().data


def test_a_stream_that_fails_on_its_way_says_why():
    with running(StandIn(seconds=30), ServerSettings(timeout=0.3)) as server:
        stream = client_of(server).chat.completions.create(**asked(), stream=True)
        with pytest.raises(openai.APIError, match=r"longer than 0\.3 s"):
            list(stream)


def test_the_search_stops_when_the_reader_of_a_stream_goes_away():
    model = StandIn(seconds=30)
    with running(model) as server, client_of(server) as client:
        stream = client.chat.completions.create(**asked(), stream=True)
        next(iter(stream))
        stream.close()
        wait_until(lambda: model.stopped == 1)


def test_words_are_handed_on_whole_and_never_taken_back():
    letters = "\u00e9t\u00e9 d'hiver \u6f22\u5b57 end".encode()
    texts = []
    streamer = WordStreamer(
        lambda ids, skip_special_tokens: bytes(ids).decode("utf-8", "replace"), texts.append
    )
    for letter in letters:
        streamer.put([letter])
    assert texts == ["\u00e9t\u00e9", "\u00e9t\u00e9 d'hiver", "\u00e9t\u00e9 d'hiver \u6f22\u5b57"]


@pytest.fixture(scope="module")
def real(demo_cache):
    """The demo at tiny sizes."""
    from rag_core.backends import load_backend
    from rag_core.cli.models import open_model

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUALRAG_HOME", str(demo_cache))
        patch.setenv("HF_HUB_OFFLINE", "1")
        network, base = open_model(load_backend(), None, None, None, lambda text: None, False)
    return ServedModel(network, base, MODEL)


def test_folders_of_the_server_are_shown_by_their_own_names_alone(real, tmp_path, monkeypatch):
    monkeypatch.setitem(real.base.manifest.encoder, "name", "/srv/secret/encoder")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "tuned").mkdir(parents=True)
    names = {"runs/tuned": "tuned", "/srv/secret/gone": "gone", "dualrag/demo": "dualrag/demo"}
    for name, shown in names.items():
        served = ServedModel(real.network, real.base, name)
        assert (served.name, served.info()["knowledge_base"]["encoder"]) == (shown, "encoder")


def test_a_real_model_streams_what_it_answers_and_counts_its_tokens(real):
    from rag_core.backends import to_numpy
    from rag_core.modeling import Reading

    question = "Which planet has rings of ice?"
    alone = Reading(real.network._engine, real.network, [question])
    (answer,) = alone.answers(head="token", max_new_tokens=12, seed=None)[0]
    with running(real) as server, client_of(server) as client:
        options = {"max_tokens": 12, "extra_body": {"head": "token"}}
        usage = {"stream_options": {"include_usage": True}}
        texts, last, counts = pieces(client, question=question, **options, **usage)
        sampled = [
            client.chat.completions.create(**asked(question, temperature=1.5, seed=seed))
            for seed in (1, 1)
        ]
    assert "".join(texts) == answer.text
    assert len(texts) > 1 or " " not in answer.text  # the weights are drawn
    assert counts.prompt_tokens == int(to_numpy(alone.contexts.context_attention_mask).sum())
    assert counts.completion_tokens == len(answer.tokens)
    ended = answer.tokens[-1] == "</s>"
    assert last.choices[0].finish_reason == ("stop" if ended else "length")
    assert [each["text"] for each in last.citations] == [c.text for c in answer.citations()]
    assert sampled[0].choices[0].message.content == sampled[1].choices[0].message.content


def test_the_documented_client_gets_its_answer(real, capsys):
    page = (ROOT / "docs" / "serving.md").read_text("utf-8")
    section = page[page.index("## OpenAI's API") :]
    (block,) = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[:1]
    with running(real) as server:
        lines = block.replace("http://127.0.0.1:8000", server.url).replace("dualrag/demo", MODEL)
        assert lines.count(server.url) == lines.count(MODEL) == 1
        names = {}
        exec(compile(lines, "docs/serving.md", "exec"), names)
    assert names["answer"].usage.prompt_tokens > 0
    assert capsys.readouterr().out.startswith(names["answer"].choices[0].message.content)


class Slow(StandIn):
    """Takes its time before it refuses."""

    def check(self, options):
        time.sleep(0.2)
        raise ValueError("top_k must be a whole number")


def test_what_is_refused_late_is_refused_with_its_status_and_what_fails_names_it():
    with running(Slow()) as server:
        refused = server.ask("/answer/stream", {"question": "why"})
        assert (refused.status, refused.error) == (422, "top_k must be a whole number.")
    with running(StandIn(seconds=30), ServerSettings(timeout=0.3)) as server:
        reply = server.ask("/answer/stream", {"question": "why"})
        assert reply.status == 200
        told = json.loads(reply.body.decode().rpartition("event: error\ndata: ")[2])
        assert (told["status"], told["error"]["code"]) == (504, "timeout")


class Unbounded(StandIn):
    """An answer with numbers for which JSON has no word."""

    def answer(self, questions, options, cancelled):
        groups = super().answer(questions, options, cancelled)
        for (answer,) in groups:
            answer.passages[0].metadata["size"] = float("nan")
            answer.token_log_probs[0] = answer.log_probability = float("-inf")
            answer.passages[1].posterior = float("nan")
        return groups


def read_strictly(text):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("head", ["token", "sequence"])
def test_numbers_that_json_lacks_are_null_in_every_kind_of_reply(head):
    options = {"head": head}
    with running(Unbounded()) as server, client_of(server) as client:
        plain = read_strictly(server.ask("/answer", {"question": "why", **options}).body)
        stream = server.ask("/answer/stream", {"question": "why", **options}).body.decode()
        whole = client.chat.completions.create(**asked(logprobs=True, extra_body=options))
        chunks = client.chat.completions.create(
            **asked(logprobs=True, stream=True, extra_body=options)
        )
        said = [
            each.logprob
            for chunk in chunks
            if chunk.choices[0].logprobs
            for each in chunk.choices[0].logprobs.content
        ]
    (answer,) = plain["answers"]
    assert answer["log_probability"] is None and answer["passages"][0]["metadata"]["size"] is None
    last = stream.rpartition("data: ")[2]
    assert read_strictly(last) == plain
    assert [each.logprob for each in whole.choices[0].logprobs.content] == said == [None, -0.5]


def test_the_native_stream_sends_passages_words_and_the_answer():
    with running(StandIn(seconds=0.2)) as server:
        reply = server.ask("/answer/stream", {"question": "who is it", "head": "token"})
        plain = server.ask("/answer", {"question": "who is it"}).json
        refused = server.ask("/answer/stream", {"question": "why", "num_beems": 2})
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [block.split("\ndata: ") for block in reply.body.decode().strip().split("\n\n")]
    data = {name.removeprefix("event: "): json.loads(text) for name, text in events}
    assert [hit["title"] for hit in data["passages"]["passages"]] == ["title 0", "title 1"]
    priors = [hit["prior"] for hit in data["passages"]["passages"]]
    assert priors[0] > priors[1] and abs(sum(priors) - 1) < 1e-12
    assert data["text"] == {"text": "a who is"}
    assert (
        data["answers"]
        == plain
        == {"answers": [json.loads(json.dumps(answer_to("who is it").to_dict()))]}
    )
    assert refused.status == 422 and "num_beems" in refused.error
