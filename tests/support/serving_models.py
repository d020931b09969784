"""What servers and threads must be with a real model, whichever framework it runs in."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conformance.seeded import seeded_weights
from rag_core import KnowledgeBase, RagRetriever, RagTokenizer
from rag_core.generation import SearchCancelledError
from rag_core.serving import ServedModel, ServerSettings
from tests.support.demo_cache import ARTICLES, write_demo_cache
from tests.support.serving import running, wait_until

QUESTIONS = [f"{title}: {text}" for title, text in ARTICLES.items()]
OPTIONS: list[dict[str, Any]] = [
    {"num_beams": 2, "max_new_tokens": 6, "head": "token"},
    {"num_beams": 2, "max_new_tokens": 5, "head": "sequence", "n_docs": 2},
    {"num_beams": 1, "max_new_tokens": 7, "head": "token", "n_docs": 3},
    {"do_sample": True, "seed": 4, "num_beams": 1, "max_new_tokens": 6, "head": "token"},
]


def write_model(home: Path, rag: Any) -> Path:
    """A tiny model with its knowledge base below a folder, for `opened`: its weights are strong
    enough for each question to have another answer.
    """
    write_demo_cache(home, rag)
    file = home / "demo-model" / "model.safetensors"
    weights = load_file(file)
    strong = seeded_weights(
        {name: each.shape for name, each in weights.items() if "generator." in name}, 5
    )
    save_file(weights | {n: w.astype(np.float32) for n, w in strong.items()}, file)
    return home


def opened(home: Path, rag: Any) -> ServedModel:
    """What `write_model` wrote."""
    base = KnowledgeBase.open(home / "demo-kb")
    folder = home / "demo-model"
    config = rag.RagConfig.from_pretrained(folder)
    tokenizer = RagTokenizer.from_pretrained(folder)
    retriever = RagRetriever(
        config, tokenizer.question_encoder, tokenizer.generator, index=base.index()
    )
    network = rag.RagSequenceForGeneration.from_pretrained(folder, retriever=retriever)
    return ServedModel(network, base, "tiny")


def check_answers_are_the_model_s(model: ServedModel) -> None:
    """One by one, over HTTP: the model's own."""
    with running(model) as server:
        for options in OPTIONS:
            reply = server.ask("/answer", {"question": QUESTIONS[0], **options})
            ((alone,),) = model.answer(QUESTIONS[:1], options)
            check_same(reply.json["answers"][0], alone)
        found = server.ask("/retrieve", {"queries": QUESTIONS[:2], "topk": 3}).json["result"]
        assert [[int(doc["id"]) for doc in docs] for docs in found] == [
            [hit.id for hit in hits] for hits in model.retrieve(QUESTIONS[:2], 3)
        ]
        first = server.ask(f"/passages/{found[0][0]['id']}").json
        assert found[0][0]["contents"] == f'"{first["title"]}"\n{first["text"]}'
        for wrong, words in WRONG.items():
            reply = server.ask("/answer", {"question": QUESTIONS[0], **dict(wrong)})
            assert reply.status == 422, reply.body
            assert words in reply.error
        long = server.ask("/answer", {"question": "why " * 700})
        assert (long.status, "at most 512 tokens, got 1402" in long.error) == (422, True)


WRONG = {
    (("max_time", 3),): "max_time=3 (a time limit) is not supported",
    (("temperature", 0.5),): "temperature must go with do_sample=true",
    (("num_return_sequences", 3), ("num_beams", 2), ("head", "token")): "num_return_sequences (3)",
    (("decoding", "fast"), ("head", "token")): "decoding must go with the head 'sequence'",
    (("num_beams", "two"),): "num_beams must be a whole number",
    (("head", "both"),): "head must be",
    (("length_penalty", 10**9), ("num_beams", 2), ("head", "token")): "length_penalty must be",
    (("length_penalty", -1000), ("num_beams", 2), ("head", "sequence")): "length_penalty must be",
    (("do_sample", "maybe"),): "do_sample must be",
}


def check_a_knowledge_base_may_vanish(home: Path, rag: Any) -> None:
    """Answers go on, a reload says why it can't be, and works once the files are back."""
    key = {"Authorization": "Bearer k"}
    base, away = home / "demo-kb", home / "away"
    with running(lambda: opened(home, rag), ServerSettings(api_key="k")) as server:
        asked = {"question": QUESTIONS[0], **OPTIONS[0]}
        before = server.ask("/answer", asked, **key).json
        base.rename(away)
        try:
            assert server.ask("/answer", asked, **key).json == before
            assert server.ask("/passages/3", **key).status == 200
            failed = server.ask("/admin/reload", method="POST", **key)
            assert failed.status == 409
            assert str(home) not in failed.error
            assert server.ask("/answer", asked, **key).json == before
        finally:
            away.rename(base)
        assert server.ask("/admin/reload", method="POST", **key).status == 200
        assert server.ask("/answer", asked, **key).json == before


def check_threads_get_their_own_answers(model: ServedModel) -> None:
    """The model itself, called by eight threads at once with several options: each gets what it
    gets alone.
    """
    requests = list(product(QUESTIONS[:4], OPTIONS))
    alone = [model.answer([question], options)[0][0] for question, options in requests]
    texts = {answer.text for answer in alone}
    assert len(texts) > 4, "answers must differ for a mix-up to be seen"
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(len(requests)) for _ in range(3)])
    start = threading.Barrier(8)
    first = iter(range(8))

    def ask(place: int) -> Any:
        if next(first, None) is not None:
            start.wait(20)
        question, options = requests[place]
        if place % 5 == 0:
            model.retrieve([question], 2)
        return model.answer([question], options)[0][0]

    with ThreadPoolExecutor(8) as pool:
        for place, found in zip(order, pool.map(ask, order), strict=True):
            check_same(found.to_dict(), alone[place])


def check_batches_give_everybody_their_own(model: ServedModel) -> None:
    """Over HTTP, many askers at once: each gets what it gets alone, and they share batches."""
    requests = list(product(QUESTIONS, OPTIONS[:2])) * 2
    alone = [model.answer([question], options)[0][0] for question, options in requests]
    with running(model, ServerSettings(batch_wait=0.05)) as server, ThreadPoolExecutor(24) as pool:
        bodies = [{"question": question, **options} for question, options in requests]
        replies = list(pool.map(lambda body: server.ask("/answer", body), bodies))
        for reply, answer in zip(replies, alone, strict=True):
            check_same(reply.json["answers"][0], answer)
        counts = server.service.answers.counts
        assert counts.jobs == len(requests)
        assert counts.batches < len(requests)


def check_same(found: dict[str, Any], answer: Any) -> None:
    """An answer as it was sent is an answer of the model."""
    wanted = answer.to_dict()
    for name in ("question", "text", "tokens"):
        assert found[name] == wanted[name]
    ids = [passage["id"] for passage in found["passages"]]
    assert ids == [passage["id"] for passage in wanted["passages"]]
    for name in ("score", "prior", "posterior"):
        np.testing.assert_allclose(
            [passage[name] for passage in found["passages"]],
            [passage[name] for passage in wanted["passages"]],
            rtol=1e-3,
            atol=1e-5,
        )
    np.testing.assert_allclose(found["log_probability"], wanted["log_probability"], rtol=1e-4)


LONG = [
    {"num_beams": 1, "head": "token"},
    {"num_beams": 3, "head": "token"},
    {"num_beams": 2, "head": "sequence"},
]


def check_searches_end_where_nobody_waits(model: ServedModel, options: dict[str, Any]) -> None:
    """A search without end is left at once when all are gone; of two questions the one that is
    waited for gets what it gets alone, and fewer rows are computed.
    """
    # no end token: without `cancelled` a search goes on to its longest
    options = {**options, "max_new_tokens": 24, "min_new_tokens": 24}
    pair = QUESTIONS[:2]
    alone = [model.answer([question], options)[0][0] for question in pair]
    assert len(alone[0].tokens) == 24
    asked = []

    def gone_after(calls: int, gone: list[bool]) -> Any:
        def cancelled() -> list[bool]:
            asked.append(gone)
            return gone if len(asked) >= calls else [False] * len(gone)

        return cancelled

    with pytest.raises(SearchCancelledError):
        model.answer(pair, options, gone_after(2, [True, True]))
    assert len(asked) == 2
    for gone in ([True, False], [False, True]):
        asked.clear()
        answers = model.answer(pair, options, gone_after(2, gone))
        assert len(asked) > 2
        place = gone.index(False)
        check_same(answers[place][0].to_dict(), alone[place])


class Slow:
    """A model whose searches wait whenever they ask whether to go on; counts those that did not."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self.stopped = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def answer(self, questions: list[str], options: Any, cancelled: Any) -> Any:
        def asked() -> Any:
            time.sleep(0.05)
            return cancelled()

        try:
            return self._model.answer(questions, options, asked)
        except SearchCancelledError:
            self.stopped += 1
            raise


def check_a_deadline_ends_the_search(model: ServedModel) -> None:
    """Over HTTP: the model is free for the next question, long before 200 tokens are there."""
    slow = Slow(model)
    asked = {"question": QUESTIONS[0], "max_new_tokens": 200, "min_new_tokens": 200}
    with running(slow) as server:
        assert server.ask("/answer", {**asked, "timeout": 0.3}).status == 504
        wait_until(lambda: slow.stopped == 1)
        assert server.service.answers.counts.cancelled == 1
        assert server.ask("/answer", {"question": QUESTIONS[0], "max_new_tokens": 3}).status == 200
