"""Answers over HTTP, from a stand-in for the model behind a real uvicorn on a real socket."""

import asyncio
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import APIRouter, WebSocket
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rag_core.cli import app, process
from rag_core.retrieval import ShardLostError
from rag_core.serving import ApiError, Batcher, ServerSettings, bind, create_app
from rag_core.serving.errors import without_paths
from rag_core.serving.guard import Rate
from tests.support.serving import StandIn, answer_to, running, wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server():
    limits = ServerSettings(max_body=100_000, max_questions=3, max_question_chars=200)
    with running(StandIn(), limits) as server:
        yield server


def test_an_answer_is_sent_with_its_passages_and_citations(server):
    reply = server.ask("/answer", {"question": "why"})
    assert reply.status == 200
    assert reply.json == {"answers": [json.loads(json.dumps(answer_to("why").to_dict()))]}
    assert reply.json["answers"][0]["citations"][0]["text"] == "a why"
    several = server.ask("/answer", {"questions": ["why", "how"], "num_return_sequences": 2})
    texts = [[each["text"] for each in result["answers"]] for result in several.json["results"]]
    assert texts == [["a why"] * 2, ["a how"] * 2]


def test_an_explanation_is_a_page_without_scripts_or_json(server):
    asked = {"question": "<script>alert(1)</script>", "head": "token"}
    page = server.ask("/explain", {**asked, "format": "html"})
    assert page.headers["content-type"].startswith("text/html")
    assert b"<script" not in page.body
    assert b"&lt;script" in page.body
    (allowed,) = re.findall(r"style-src '(sha256-[^']+)'", page.headers["content-security-policy"])
    (style,) = re.findall(rb"<style>(.*?)</style>", page.body, re.DOTALL)
    assert allowed == f"sha256-{b64encode(sha256(style).digest()).decode()}"
    assert server.ask("/explain", asked, Accept="text/html,*/*").body == page.body
    told = server.ask("/explain", asked).json
    assert told["answers"] == server.ask("/answer", asked).json["answers"]
    assert server.ask("/explain", {**asked, "format": "pdf"}).status == 422


def curl(server, line):
    """What a server says to a line of curl, of which the parts that the documentation uses are read."""
    words = iter(shlex.split(line)[1:])
    method, headers, body, path = "", {}, None, ""
    for word in words:
        if word == "-X":
            method = next(words)
        elif word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name] = value
        elif word == "-d":
            body = json.loads(next(words))
        elif word == "-o":
            assert Path(next(words)).suffix
        elif word != "-s":
            assert word.startswith("http://127.0.0.1:8000/")
            path = word.removeprefix("http://127.0.0.1:8000")
    return server.ask(path, body, method, **headers)


def test_the_lines_of_curl_in_the_documentation_are_answered():
    page = (ROOT / "docs" / "serving.md").read_text("utf-8").replace("\\\n", " ")
    lines = re.findall(r"^curl .*$", page, re.MULTILINE)
    assert len(lines) >= 8
    with running(StandIn(), ServerSettings(api_key="KEY")) as server:
        for line in lines:
            if "-H 'Authorization" not in line:
                line += " -H 'Authorization: Bearer KEY'"
            reply = curl(server, line)
            assert reply.status == 200, (line, reply.body)
        (error,) = re.findall(r"```json\n(.*?)\n```", page, re.DOTALL)
        key = {"Authorization": "Bearer KEY"}
        wrong = server.ask("/answer", {"question": "why", "num_beam": 2}, **key)
        assert wrong.json == json.loads(error)


def search_r1_client(server, queries, topk):
    """Reads what the retrieval server sends as the training loops of Search-R1 do."""
    payload = {"queries": queries, "topk": topk, "return_scores": True}
    read = []
    for found in server.ask("/retrieve", payload).json["result"]:
        lines = [item["document"]["contents"].split("\n") for item in found]
        read.append([(line[0].strip('"'), "\n".join(line[1:])) for line in lines])
        assert [item["score"] for item in found] == sorted(
            (item["score"] for item in found), reverse=True
        )
    return read


def test_a_client_of_search_r1_reads_titles_and_texts(server):
    first, second = search_r1_client(server, ["why", "how"], 3)
    assert first == [(f"title {n}", "text\nof why") for n in range(3)]
    assert second[0] == ("title 0", "text\nof how")
    without = server.ask("/retrieve", {"queries": ["why"]}).json["result"]
    assert without == [
        [{"id": str(n), "contents": f'"title {n}"\ntext\nof why'} for n in range(StandIn.n_docs)]
    ]


def test_what_is_asked_of_the_server_itself(server):
    assert server.ask("/health").json == {"status": "alive"}
    assert server.ask("/ready").json["status"] == "ready"
    assert server.ask("/passages/1").json["origin"] == "file.md:3"
    info = server.ask("/info").json
    assert info["model"]["name"] == "stand-in"
    assert info["limits"]["max_questions"] == 3
    assert "api_key" not in info["limits"]
    page = server.ask("/metrics").body.decode()
    assert re.search(r'dualrag_requests_total\{route="/ready",status="200"\} [1-9]', page)
    assert "dualrag_ready 1.0" in page


def test_the_metrics_name_faults_refusals_and_both_queues():
    class Slow(StandIn):
        def retrieve(self, questions, k):
            time.sleep(0.3)
            return super().retrieve(questions, k)

    limits = ServerSettings(api_key="k", queue=1, batch_wait=0)
    key = {"X-API-Key": "k"}
    with running(Slow(error=RuntimeError("no")), limits) as server, ThreadPoolExecutor(6) as pool:
        server.ask("/answer", {"question": "fail"}, **key)
        server.ask("/answer", {"question": "why"})
        server.ask("/passages/1")
        asked = [pool.submit(server.ask, "/retrieve", {"queries": ["x"]}, **key) for _ in range(6)]
        refused = sum(each.result().status == 429 for each in asked)
        page = server.ask("/metrics", **key).body.decode()
    assert 'dualrag_requests_total{route="/answer",status="500"} 1.0' in page
    assert 'dualrag_requests_total{route="/answer",status="401"} 1.0' in page
    assert 'dualrag_requests_total{route="/passages/{row}",status="401"} 1.0' in page
    assert 'status="499"' not in page and 'route="other"' not in page
    assert refused
    assert f'dualrag_refused_questions{{queue="searches"}} {refused}.0' in page
    assert 'dualrag_refused_questions{queue="answers"} 0.0' in page


def test_the_documentation_runs_no_script_of_elsewhere_and_none_in_the_page(server):
    page = server.ask("/docs").body.decode()
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)
    assert [text for _, text in scripts] == [""] * 2
    assert "://" not in page
    assert "style=" not in page
    for name in re.findall(r'(?:src|href)="(docs/[^"]+)"', page):
        assert server.ask(f"/{name}").status == 200
    paths = server.ask("/openapi.json").json["paths"]
    assert {"/answer", "/retrieve", "/passages/{row}", "/admin/reload"} <= set(paths)
    schema = server.ask("/openapi.json").json["components"]["schemas"]["AnswerRequest"]
    assert schema["properties"]["num_beams"]["description"].startswith("K, beams of a search")
    assert server.ask("/docs/nothing.js").status == 404


BAD = {
    "no JSON": (b"{", 400, "The body must be JSON: "),
    "no UTF-8": (b'{"question": "\xff"}', 400, "JSON in UTF-8"),
    "too deep": (b"[" * 50_000, 400, "JSON"),
    "a long number": (b'{"question": "x", "seed": ' + b"9" * 9999 + b"}", 400, "JSON"),
    "a list": ([1], 422, "The body: "),
    "a number": ({"question": 5}, 422, "question: Input should be a valid string."),
    "nothing": ({}, 422, "either question or questions"),
    "both": ({"question": "x", "questions": ["x"]}, 422, "either question or questions"),
    "none": ({"questions": []}, 422, "one question or more, got none"),
    "too many": ({"questions": ["x"] * 4}, 422, "at most 3 texts, got 4"),
    "one of another kind": ({"questions": ["x", None]}, 422, "questions.1: "),
    "empty": ({"question": ""}, 422, "at least one word"),
    "blanks": ({"question": " \n\t\u2003"}, 422, "at least one word"),
    "too long": ({"question": "x" * 201}, 422, "at most 200 characters, got 201"),
    "too many tokens": ({"question": "token"}, 422, "at most 3 tokens"),
    "half a character": (b'{"question": "\\ud800"}', 422, "half a character"),
    "misspelt": ({"question": "x", "num_beam": 2}, 422, "Did you mean 'num_beams'?"),
    "unknown": ({"question": "x", "graph": True}, 422, "'graph' is no option of an answer"),
    "too many beams": ({"question": "x", "num_beams": 17}, 422, "at most 16 on this server"),
    "too many passages": ({"question": "x", "n_docs": 10**9}, 422, "at most 50"),
    "too long an answer": ({"question": "x", "max_length": 258}, 422, "at most 257"),
    "no time": ({"question": "x", "timeout": 0}, 422, "timeout must be seconds above 0"),
    "endless": (b'{"question": "x", "timeout": NaN}', 422, "timeout must be seconds above 0"),
    "refused": ({"question": "fail"}, 422, "this question can't be answered."),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_gets_its_status_and_one_sentence(name, server):
    body, status, words = BAD[name]
    reply = server.ask("/answer", body)
    assert (reply.status, reply.headers["content-type"]) == (status, "application/json")
    assert list(reply.json) == ["error"]
    assert list(reply.json["error"]) == ["message", "type", "param", "code"]
    assert words in reply.error
    assert "\n" not in reply.error
    assert server.ask("/answer", {"question": "why"}).status == 200


def test_bad_addresses_methods_and_kinds_of_bodies(server):
    assert server.ask("/nothing").status == 404
    wrong = server.ask("/answer", method="DELETE")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    text = server.ask("/answer", b"why", **{"Content-Type": "text/plain"})
    assert (text.status, "application/json" in text.error) == (415, True)
    for row in ("7", "-1", "9" * 40):
        assert server.ask(f"/passages/{row}").status == 404
    assert server.ask("/passages/x").status == 422
    assert server.ask("/retrieve", {"queries": ["x"], "topk": 0}).status == 422
    assert server.ask("/retrieve", {"queries": ["x"], "k": 1}).status == 422
    assert server.ask(f"/static/{'x' * 300}.js").status == 404  # longer than a file's name may be
    large = server.ask("/answer", b"x" * 10_000_000)
    assert (large.status, large.error) == (413, "A request must have at most 100,000 bytes.")


def talk(server, *parts, half=False, pause=0.0):
    """What a server says to bytes that are sent part by part, until it hangs up."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        if half:
            connection.shutdown(socket.SHUT_WR)
        said = b""
        try:
            while chunk := connection.recv(65536):
                said += chunk
        except ConnectionResetError:
            pass
        return said


HEAD = (
    b"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 19\r\n\r\n"
)
BODY = b'{"question": "why"}'


def test_clients_that_are_slow_or_speak_no_http_are_hung_up_on():
    with running(StandIn(), ServerSettings(body_seconds=0.5)) as server:
        assert talk(server) == b""
        assert talk(server, HEAD[:20], HEAD[20:30], HEAD[30:40], pause=0.3) == b""
        assert b" 408 " in talk(server, HEAD, BODY[:5])
        said = talk(server, b"nonsense\r\n\r\n")
        assert b" 400 " in said
        assert b'"What came is no request of HTTP."' in said
        assert b" 200 " in talk(server, HEAD, BODY, b"GET /health HTTP/1.0\r\n\r\n")
        assert server.ask("/answer", {"question": "why"}).status == 200
        waited = talk(
            server,
            HEAD.replace(b"19\r\n", b"99999999\r\nExpect: 100-continue\r\n"),
        )
        assert waited.startswith(b"HTTP/1.1 413 ")


def test_who_is_refused_holds_no_connection_by_a_body_that_does_not_come(monkeypatch):
    monkeypatch.setattr("rag_core.serving.guard._READ_ON_SECONDS", 0.2)
    head = HEAD.replace(b"19\r\n", b"900000\r\n")
    for limits, status in (({"api_key": "k"}, b"401"), ({"hosts": ("other",)}, b"421")):
        with running(StandIn(), ServerSettings(**limits)) as server:
            said = talk(server, head, b"x")  # hangs up
            assert said.startswith(b"HTTP/1.1 " + status) and b"connection: close" in said.lower()
            waits = talk(server, head.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
            assert waits.startswith(b"HTTP/1.1 " + status)
            # whoever has sent all may go on asking
            next_one = b"GET /health HTTP/1.0\r\nHost: other\r\n\r\n"
            assert b" 200 " in talk(server, HEAD, BODY, next_one)
            large = server.ask("/answer", b"x" * 900_000)
            assert large.status == int(status) and "connection" not in large.headers


def test_a_client_that_does_not_read_is_hung_up_on():
    with running(StandIn(), ServerSettings(timeout=0.5)) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 9)
        state = server.server.server_state
        wait_until(lambda: state.total_requests > 0 and not state.connections)
        assert server.ask("/answer", {"question": "why"}).status == 200


@pytest.mark.parametrize("leave", ["hang up", "half"])
def test_the_search_ends_when_the_client_goes_away(leave):
    model = StandIn(seconds=20)
    with running(model) as server:
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(HEAD + BODY)
        wait_until(lambda: model.batches)
        if leave == "half":  # nothing tells it from one who is gone
            connection.shutdown(socket.SHUT_WR)
        else:
            connection.close()
        wait_until(lambda: model.stopped == 1)
        connection.close()
        model.seconds = 0
        assert server.ask("/answer", {"question": "why"}).status == 200
        assert server.service.answers.counts.cancelled == 1


def test_a_deadline_ends_the_search_and_a_batch_goes_on_for_the_others():
    model = StandIn(seconds=1)
    with running(model, ServerSettings(batch_wait=0.2)) as server, ThreadPoolExecutor(2) as pool:
        body = {"question": "why", "timeout": 0.4}
        late = pool.submit(server.ask, "/answer", body)
        in_time = pool.submit(server.ask, "/answer", {"question": "how"})
        assert (late.result().status, late.result().json["error"]["code"]) == (504, "timeout")
        assert in_time.result().json["answers"][0]["text"] == "a how"
        assert len(model.batches) == 1
        assert model.stopped == 0
        model.seconds = 60
        assert server.ask("/answer", {"question": "why", "timeout": 0.4}).status == 504
        wait_until(lambda: model.stopped == 1)


def test_beyond_the_queue_the_answer_is_429():
    model = StandIn(seconds=0.4)
    limits = ServerSettings(batch_size=2, queue=3, batch_wait=0)
    with running(model, limits) as server, ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(server.ask, "/answer", {"question": f"q{n}"}) for n in range(12)]
        replies = [each.result() for each in asked]
        refused = [reply for reply in replies if reply.status == 429]
        assert {reply.status for reply in replies} == {200, 429}
        assert len(refused) >= 3
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
        assert server.ask("/answer", {"questions": ["x"] * 4}).status == 422  # there never is room
        assert server.ask("/answer", {"questions": ["x"] * 3}).status == 200
        assert all(len(batch) <= 2 for batch in model.batches)


def test_fifty_at_once_get_their_own_answers_in_batches():
    model = StandIn(seconds=0.02)
    with running(model) as server, ThreadPoolExecutor(50) as pool:
        questions = [f"q{n} " + "x" * (n % 3) * 60 for n in range(100)]
        asked = pool.map(lambda q: (q, server.ask("/answer", {"question": q})), questions)
        for question, reply in asked:
            assert reply.json["answers"][0]["text"] == f"a {question}"
    assert len(model.batches) < 50
    for batch in model.batches:
        assert max(map(len, batch)) < 2 * max(64, min(map(len, batch)))


def test_options_are_looked_at_while_others_are_served():
    looked = threading.Event()

    class Careful(StandIn):
        def check(self, options):
            assert looked.wait(10)
            return super().check(options)

    with running(Careful()) as server, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.ask, "/answer", {"question": "why"})
        assert server.ask("/health").status == 200
        looked.set()
        assert asked.result().status == 200


jobs = st.lists(
    st.tuples(st.text(min_size=1, max_size=200), st.sampled_from("ab"), st.sampled_from("ok!~?")),
    max_size=30,
)


@given(jobs, st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_every_job_gets_its_own_result_or_its_own_error(asked, size):
    def run(texts, options, cancelled):
        assert len(texts) <= size
        assert {options} == {text[0] for text in texts}
        lengths = [max(64, len(text)) for text in texts]
        assert max(lengths) < 2 * min(lengths)
        if len(texts) > 1 and any(text[1] == "?" for text in texts):
            return texts[1:]  # a fault of `run` itself: nobody gets another's result
        if any(text[1] == "!" for text in texts):
            raise ValueError("no " + "".join(text for text in texts if text[1] == "!"))
        return [text[::-1] for text in texts]

    async def go():
        batcher = Batcher(run, size=size, wait=0.001, queue=100, name="tests")
        batcher.start()
        texts = [option + kind + text for text, option, kind in asked]
        results = [
            batcher(text, text[0], key=text[0], timeout=0.0 if text[1] == "~" else 9)
            for text in texts
        ]
        results = await asyncio.gather(*results, return_exceptions=True)
        await batcher.close()
        assert batcher.waiting == batcher.running == 0
        for text, result in zip(texts, results, strict=True):
            if text[1] == "!":
                assert str(result) == f"no {text}"
            elif text[1] == "~":
                assert isinstance(result, asyncio.TimeoutError)
            else:
                assert result == text[::-1]

    asyncio.run(go())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer right"}, 200),
        ({"authorization": "bearer right "}, 200),
        ({"X-API-Key": "right"}, 200),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic right"}, 401),
        ({"Authorization": "Bearer r\xefght"}, 401),
        ({}, 401),
    ],
)
def test_a_key_is_asked_for_where_one_is_set(headers, status, with_key):
    for path in ("/answer", "/nothing", "/info", "/metrics"):
        body = {"question": "why"} if path == "/answer" else None
        reply = with_key.ask(path, body, **headers)
        assert reply.status == (404 if status == 200 and path == "/nothing" else status)
    assert with_key.ask("/health").status == with_key.ask("/docs").status == 200
    reloaded = with_key.ask("/admin/reload", method="POST", **headers)
    assert reloaded.status == status


@pytest.fixture(scope="module")
def with_key():
    limits = ServerSettings(api_key="right", hosts=("127.0.0.1", "::1", "localhost"))
    with running(StandIn(), limits) as server:
        yield server


def test_a_server_of_this_machine_answers_to_its_own_names_alone(with_key):
    names = {"127.0.0.1": 200, "LOCALHOST:80": 200, "[::1]:8000": 200, "[::1]": 200}
    names |= {"evil.example": 421, "localhost.evil.example:80": 421, "": 421}
    for name, status in names.items():
        assert with_key.ask("/health", Host=name).status == status


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"host": "localhost", "authorization": "Bearer right"}, True),
        ({"host": "localhost"}, False),
        ({"host": "evil.example", "authorization": "Bearer right"}, False),
    ],
)
def test_a_websocket_of_one_s_own_is_guarded_as_requests_are(headers, passes):
    router = APIRouter()

    @router.websocket("/ws")
    async def talk_on(socket: WebSocket):
        await socket.accept()
        await socket.close()

    limits = ServerSettings(api_key="right", hosts=("localhost",))
    guarded = create_app(StandIn, limits, routers=[router])
    lines = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "websocket", "path": "/ws", "headers": lines, "client": ("127.0.0.1", 1)}
    scope |= {"query_string": b"", "subprotocols": [], "asgi": {"version": "3.0"}}
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message["type"])

    asyncio.run(guarded(scope, receive, send))
    assert sent == ["websocket.accept"] * passes + ["websocket.close"]


def test_a_client_that_asks_too_often_is_told_when_to_come_back():
    with running(StandIn(), ServerSettings(rate_limit=3)) as server:
        replies = [server.ask("/answer", {"question": "why"}) for _ in range(5)]
        assert [reply.status for reply in replies] == [200, 200, 200, 429, 429]
        assert 1 <= int(replies[-1].headers["retry-after"]) <= 60
        assert "At most 3 requests a minute" in replies[-1].error
        assert server.ask("/health").status == 200


def test_guesses_of_a_key_count_as_requests():
    with running(StandIn(), ServerSettings(rate_limit=2, api_key="right")) as server:
        asked = [server.ask("/info", Authorization=f"Bearer {n}").status for n in range(3)]
        assert asked == [401, 401, 429]


def test_a_client_is_known_by_its_network_and_forgotten_after_a_minute(monkeypatch):
    now = 0.0
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("rag_core.serving.guard.time", clock)
    rate = Rate(2)

    def passes(address):
        try:
            rate.check((address, 1))
        except ApiError:
            return False
        return True

    same = ["2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:0:9::3"]  # all of one /64
    assert [passes(address) for address in same] == [True, True, False]
    assert passes("2001:db8:0:1::1")
    mapped = ["10.0.0.1", "::ffff:10.0.0.1", "::ffff:10.0.0.1"]
    assert [passes(address) for address in mapped] == [True, True, False]
    assert passes("::ffff:10.0.0.2")
    assert [passes(name) for name in ("x\x1b[2J", "y" * 9999, "z")] == [True, True, False]
    assert sum(passes(f"10.1.{n // 256}.{n % 256}") for n in range(3000)) == 3000
    now = 59.0
    assert passes("10.0.0.2")
    now = 61.0
    assert passes("10.0.0.1")
    assert len(rate) == 2  # those of the last minute


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (FileNotFoundError("/secret/kb/passages"), 503),
        (ShardLostError("ray://secret/kb: shard 0 is lost"), 503),
        (RuntimeError("/secret/x.py"), 500),
    ],
)
def test_what_fails_inside_is_told_without_paths_and_tracebacks(error, status, caplog, capfd):
    with running(StandIn(error=error)) as server:
        reply = server.ask("/answer", {"question": "fail"})
        assert reply.status == status
        for secret in (b"secret", b"Traceback", b".py"):
            assert secret not in reply.body
        assert server.ask("/answer", {"question": "why"}).status == 200
    assert "secret" in caplog.text + capfd.readouterr().err  # the server's own log has it


class Panic(BaseException):
    """As a library in Rust raises it."""


@pytest.mark.parametrize("error", [Panic("a tokenizer's"), StopIteration("no more")])
def test_what_is_no_ordinary_error_is_told_and_the_next_question_is_answered(error):
    class Model(StandIn):
        def retrieve(self, questions, k):
            if "fail" in questions[0]:
                raise error
            return super().retrieve(questions, k)

        def passage(self, row):
            if row == 6:
                raise error
            return super().passage(row)

    with running(Model(error=error), ServerSettings(timeout=5)) as server:
        for path, body in (("/answer", "question"), ("/retrieve", "queries")):
            texts = {"question": "fail", "queries": ["fail"]}
            assert server.ask(path, {body: texts[body]}).status == 500
            texts = {"question": "why", "queries": ["why"]}
            assert server.ask(path, {body: texts[body]}).status == 200
        assert server.ask("/passages/6").status == 500
        assert server.ask("/passages/1").status == 200


def test_a_model_whose_loading_panics_is_said_to_be_none():
    told = []

    def open_model():
        raise Panic("a tokenizer's")

    with running(open_model, wait=False, on_failed=told.append) as server:
        wait_until(lambda: told)
        assert server.ask("/ready").json["error"]["code"] == "not_loaded"
    assert "Panic: a tokenizer's" in str(told[0])


def test_paths_are_taken_out_of_sentences():
    told = (
        "kb must be here, got '/home/me/kb'. Look at ~/x/y.json, C:\\a\\b or a/b, 1/2, http://a.b/c"
    )
    assert without_paths(told) == (
        "kb must be here, got '(a path)'. Look at (a path), (a path) or a/b, 1/2, http://a.b/c"
    )


def test_model_and_knowledge_base_are_swapped_without_losing_a_request():
    opened = []

    def open_model():
        if len(opened) == 2:
            raise FileNotFoundError("there is no /secret/kb any more")
        time.sleep(0.1)
        model = StandIn(seconds=0.01)
        model.name = f"model {len(opened)}"
        opened.append(model)
        return model

    with running(open_model, ServerSettings(api_key="k")) as server:
        key = {"Authorization": "Bearer k"}
        stop = threading.Event()
        statuses = []

        def ask():
            while not stop.is_set():
                statuses.append(server.ask("/answer", {"question": "why"}, **key).status)

        askers = [threading.Thread(target=ask) for _ in range(4)]
        for asker in askers:
            asker.start()
        reloaded = server.ask("/admin/reload", method="POST", **key)
        assert (reloaded.status, reloaded.json["model"]["name"]) == (200, "model 1")
        wait_until(lambda: opened[1].batches)
        failed = server.ask("/admin/reload", method="POST", **key)
        assert failed.status == 409
        assert "those before go on answering" in failed.error
        assert "secret" not in failed.error
        stop.set()
        for asker in askers:
            asker.join()
        assert set(statuses) == {200}
        assert server.ask("/info", **key).json["model"]["name"] == "model 1"
    with running(StandIn()) as server:
        assert server.ask("/admin/reload", method="POST").status == 403


def test_until_the_model_is_there_the_server_lives_and_is_not_ready():
    gate = threading.Event()

    def open_model():
        gate.wait(10)
        return StandIn()

    with running(open_model, wait=False) as server:
        assert server.ask("/health").status == 200
        for path, body in {"/ready": None, "/info": None, "/answer": {"question": "x"}}.items():
            reply = server.ask(path, body)
            assert (reply.status, reply.json["error"]["code"]) == (503, "loading")
        gate.set()
        wait_until(lambda: server.ask("/ready").status == 200)


PROGRAM = """
from rag_core.serving import ServerSettings, bind, run_server
from tests.support.serving import StandIn
opened = []
def open_model():
    opened.append(1)
    model = StandIn(0.5)
    model.name = f"model {len(opened)}"
    return model
def say(text):
    print(text, flush=True)
listening = bind("127.0.0.1", 0)
say(listening.getsockname()[1])
run_server(open_model, ServerSettings(shutdown_seconds=5), listening, say=say)
"""


@contextmanager
def in_a_process():
    """A server in a process of its own; its port and what it says, line by line."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield program
    finally:
        program.kill()
        program.communicate()


def test_signals_reload_and_end_a_server_whose_answers_finish():
    with in_a_process() as program:
        port = int(program.stdout.readline())
        assert f"model 1 answers at http://127.0.0.1:{port}" in program.stdout.readline()
        program.send_signal(signal.SIGHUP)
        assert "loaded anew" in program.stdout.readline()
        with socket.create_connection(("127.0.0.1", port), timeout=30) as asker:
            asker.sendall(HEAD + BODY)
            time.sleep(0.2)
            program.send_signal(signal.SIGTERM)
            said = b""
            while chunk := asker.recv(65536):
                said += chunk
        assert b" 200 " in said
        assert b'"text":"a why"' in said
        assert program.wait(30) == -signal.SIGTERM
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_a_model_that_cannot_be_loaded_ends_the_command_with_one_sentence(monkeypatch):
    def load(name):
        raise ImportError("The torch backend needs torch. Run  pip install 'dualrag[torch]'.")

    monkeypatch.setattr(process, "load_backend_for_command", load)
    monkeypatch.setattr(process, "give_memory_back", lambda: None)
    result = CliRunner().invoke(app, ["serve", "--port", "0"])
    assert result.exit_code == 2
    assert result.stderr == (
        "dualrag: error: The torch backend needs torch. Run pip install 'dualrag[torch]'.\n"
    )
    with bind("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["serve", "--port", port])
    assert (result.exit_code, f"got 127.0.0.1 {port}: " in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "taken", "refused"),
    [
        ([], {"localhost", "127.0.0.1", "::1"}, {"proxy.example"}),
        (["--host", "LOCALHOST", "--allow-host", "Proxy.example"], {"proxy.example"}, {"evil"}),
        (["--host", "127.0.0.2"], {"127.0.0.2", "localhost"}, {"evil"}),
        (["--host", "0.0.0.0", "--allow-host", "proxy.example"], {"proxy.example"}, {"evil"}),
        (["--host", "0.0.0.0"], None, set()),
    ],
)
def test_names_are_checked_at_a_loopback_address_and_where_some_are_given(
    arguments, taken, refused, monkeypatch
):
    told = []
    monkeypatch.setattr(
        "rag_core.serving.run_server", lambda opened, settings, *_, **__: told.append(settings)
    )
    monkeypatch.setattr(process, "give_memory_back", lambda: None)
    result = CliRunner().invoke(app, ["serve", "--port", "0", *arguments])
    assert result.exit_code == 0, result.output
    (settings,) = told
    assert settings.hosts is None if taken is None else taken <= {*settings.hosts}
    assert not refused & {*(settings.hosts or ())}
    assert ("whoever reaches 0.0.0.0 can ask" in result.stderr) == ("0.0.0.0" in arguments)


def test_names_are_compared_as_they_are_sent_and_one_alone_is_no_list():
    with running(StandIn(), ServerSettings(hosts=["Example.com", "[::1]"])) as server:
        for name, status in {"example.COM:80": 200, "[::1]:80": 200, "example": 421}.items():
            assert server.ask("/health", Host=name).status == status
    with pytest.raises(TypeError, match="hosts must be a tuple of names"):
        ServerSettings(hosts="example.com")


def test_a_port_in_use_is_one_sentence():
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        for wrong in (port, 70_000, -1):
            with pytest.raises(OSError, match=f"got 127.0.0.1 {wrong}: .*another --port"):
                bind("127.0.0.1", wrong)
    with pytest.raises(OSError, match=r"got no\.such\.host\.invalid 0: "):
        bind("no.such.host.invalid", 0)


@pytest.mark.parametrize("key", ["", " a", "ä", "a\nb"])
def test_a_key_that_no_request_can_bring_is_refused(key):
    with pytest.raises(ValueError, match="api_key must be printable ASCII"):
        ServerSettings(api_key=key)
    assert "secret" not in repr(ServerSettings(api_key="secret"))


@pytest.mark.parametrize("limit", [{"batch_size": 0}, {"timeout": 0}, {"queue": 1.5}])
def test_limits_have_rules(limit):
    (name,) = limit
    with pytest.raises((ValueError, TypeError), match=f"{name} must be"):
        ServerSettings(**limit)
