"""A server on a real socket, and a stand-in for the model behind it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rag_core.generation import SearchCancelledError
from rag_core.outputs import Answer, Hit, Passage
from rag_core.serving import Server, ServerSettings, Service, create_app


class StandIn:
    """Answers "a <question>" from two passages, in so many steps; remembers its batches.

    Args:
        seconds: that a batch takes, also one that has begun.
        error: what it raises instead, if the question holds "fail".
    """

    name = "stand-in"
    n_docs = 2
    samples = False

    def __init__(self, seconds: float = 0.0, error: Exception | None = None) -> None:
        self.seconds = seconds
        self.error = error or ValueError("this question can't be answered")
        self.batches: list[list[str]] = []
        self.stopped = 0

    def check_question(self, question: str) -> None:
        if "token" in question:
            raise ValueError("a question must have at most 3 tokens, got 4")

    def check(self, options: Any) -> Any:
        return json.dumps(options, sort_keys=True)

    def answer(self, questions: list[str], options: Any, cancelled: Any) -> list[list[Answer]]:
        self.batches.append(list(questions))
        if any("fail" in question for question in questions):
            raise self.error
        began = time.monotonic()
        while time.monotonic() < began + self.seconds:
            if all(cancelled()):
                self.stopped += 1
                raise SearchCancelledError
            time.sleep(0.002)
        if "on_text" in options:
            for words in range(1, len(questions[0].split()) + 1):
                options["on_text"](" ".join(answer_to(questions[0]).text.split()[:words]))
        count = options.get("num_return_sequences", 1)
        return [[answer_to(question) for _ in range(count)] for question in questions]

    def retrieve(self, questions: list[str], k: int) -> list[list[Hit]]:
        return [
            [Hit(n + 1, n, 1.0 - n, f"title {n}", f"text\nof {question}") for n in range(k)]
            for question in questions
        ]

    def writes_in_order(self, options: Any) -> bool:
        return options.get("head") == "token"

    def is_cut(self, answer: Answer, options: Any) -> bool:
        return "max_new_tokens" in options

    def prompt_tokens(self, answer: Answer) -> int:
        return 2 * len(answer.question.split())

    def passage(self, row: int) -> dict[str, Any] | None:
        if not 0 <= row <= 1:
            return None
        hit = Hit(1, row, 0.0, f"title {row}", "text", "file.md", {"line": 3})
        return {"id": row, "title": hit.title, "text": hit.text, "origin": hit.origin}

    def info(self) -> dict[str, Any]:
        return {"model": {"name": self.name}, "knowledge_base": None, "versions": {}}


def answer_to(question: str) -> Answer:
    """What the stand-in says."""
    text = f"a {question}"
    passages = [
        Passage(0, "title 0", "text", 2.0, 0.6, 0.9, "file.md", {"line": 3}),
        Passage(1, "title 1", "text", 1.0, 0.4, 0.1),
    ]
    return Answer(
        question,
        text,
        -1.5,
        passages,
        tokens=["a", question],
        token_posteriors=[[0.8, 0.2], [1.0, 0.0]],
        token_spans=[(0, 1), (2, len(text))],
        token_log_probs=[-1.0, -0.5],
    )


@dataclass
class Reply:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence of an error."""
        return self.json["error"]["message"]


@dataclass
class Running:
    """A server that runs in a thread of its own."""

    port: int
    app: Any
    server: Server
    thread: threading.Thread

    @property
    def service(self) -> Service:
        return self.app.state.service

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Ends it."""
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive(), "the server did not end"

    def ask(self, path: str, body: Any = None, method: str = "", **headers: str) -> Reply:
        """One request; bodies that are no bytes are sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            headers = {"Content-Type": "application/json"} | headers
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
            reply = connection.getresponse()
            return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        finally:
            connection.close()


@contextmanager
def running(
    model: Any, settings: ServerSettings | None = None, wait: bool = True, **parts: Any
) -> Iterator[Running]:
    """A server of a model on a free port of the loopback interface, ready to answer.

    Args:
        model: a ServedModel or a stand-in; or a function that opens one.
        wait: for the model to be loaded.
        settings, **parts: as of `create_app`.
    """
    open_model = model if callable(model) else lambda: model
    app = create_app(open_model, settings, **parts)
    server = Server(app, port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    running = Running(0, app, server, thread)
    try:
        wait_until(lambda: server.started and (app.state.service.is_ready or not wait))
        running.port = server.servers[0].sockets[0].getsockname()[1]
        yield running
    finally:
        running.close()


def wait_until(holds: Any, seconds: float = 30.0) -> None:
    """Waits for something to hold."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.005)
