"""An answer as it comes, over server-sent events.

Passages are known first. RAG-Token without beams writes one word after another, and never takes
one back; a beam search, and RAG-Sequence, which weighs whole answers, know no word of theirs before
the last: they come in one piece.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict

from rag_core.outputs import Hit, json_text
from rag_core.serving.errors import ApiError
from rag_core.serving.native import TheService
from rag_core.serving.service import Service

Event = tuple[str, Any]

_LOG = logging.getLogger(__name__)

router = APIRouter(tags=["dualrag"])


class QuestionRequest(BaseModel):
    """One question; options of `generate` may stand beside it."""

    model_config = ConfigDict(extra="allow")

    question: str
    timeout: float | None = None


# What is refused is refused at once, with its own status instead of a stream that breaks off.
_AT_ONCE = 0.05
# Seconds without an event after which the client hears that it is not forgotten.
_PATIENCE = 15.0


async def follow(
    service: Service,
    question: Any,
    options: Mapping[str, Any],
    timeout: Any = None,
    *,
    with_passages: bool = False,
) -> AsyncIterator[Event]:
    """Begin an answer, and tell what comes of it.

    Args:
        service, question, options, timeout: as of `Service.answer`.
        with_passages: whether passages are searched beforehand.

    Returns:
        Pairs: "passages" and the hits; "text" and the text so far, where it is written in order;
        "waiting" and None after seconds of silence; at last "answers" and the answers, or "error"
        and an ApiError.

    Raises:
        ApiError: the request is refused.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()

    def on_text(text: str) -> None:
        loop.call_soon_threadsafe(events.put_nowait, ("text", text))

    asked = await service.checked([question], options, timeout, on_text=on_text)
    answering = asyncio.create_task(service.answers_to(asked))
    answering.add_done_callback(lambda task: events.put_nowait(("answers", task)))
    tasks: list[asyncio.Task[Any]] = [answering]
    if with_passages:
        searching = asyncio.create_task(
            service.retrieve([question], options.get("n_docs"), timeout)
        )
        searching.add_done_callback(lambda task: events.put_nowait(("passages", task)))
        tasks.append(searching)
    try:
        await asyncio.wait({answering}, timeout=_AT_ONCE)
        if answering.done():
            answering.result()
    except BaseException:
        await _cancel(tasks)
        raise
    return _events(events, tasks)


async def _events(
    events: asyncio.Queue[Event], tasks: list[asyncio.Task[Any]]
) -> AsyncIterator[Event]:
    try:
        while True:
            try:
                name, value = await asyncio.wait_for(events.get(), _PATIENCE)
            except asyncio.TimeoutError:
                yield "waiting", None
                continue
            if name == "text":
                yield name, value
                continue
            error = value.exception()
            if name == "passages":
                if error is None:  # or else the answer says it, too
                    yield name, value.result()[0]
                continue
            if error is None:
                yield name, value.result()[0]
            elif isinstance(error, ApiError):
                yield "error", error
            else:
                _LOG.error("an answer failed", exc_info=error)
                yield (
                    "error",
                    ApiError(500, "Something went wrong in the server; its log says what."),
                )
            return
    finally:
        await _cancel(tasks)


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@router.post("/answer/stream")
async def answer_stream(body: QuestionRequest, service: TheService) -> Response:
    """Answer one question by server-sent events, as things get known.

    `passages` (`{"passages": [...]}`, with priors; if they are known before the answer), `text`
    (`{"text": ...}`, all words so far; only where the search writes in order), and at the end
    `answers`, as of `/answer`, or `error`, with the `status` that it would have had.
    """
    options = body.model_extra or {}
    events = await follow(service, body.question, options, body.timeout, with_passages=True)
    return event_stream(_named_events(events))


async def _named_events(events: AsyncIterator[Event]) -> AsyncIterator[str]:
    async for name, value in events:
        data: Any = None
        if name == "passages":
            data = {
                "passages": [{**hit.to_dict(), "prior": prior} for hit, prior in _priors(value)]
            }
        if name == "text":
            data = {"text": value}
        if name == "answers":
            data = {"answers": [answer.to_dict() for answer in value]}
        if name == "error":
            data = {**value.body(), "status": value.status}
        yield sent_event(data, name)


def _priors(hits: Sequence[Hit]) -> list[tuple[Hit, float]]:
    """Each of the passages found with p(z|x), a softmax of their scores."""
    highest = max((hit.score for hit in hits), default=0.0)
    weights = [math.exp(hit.score - highest) for hit in hits]
    return [(hit, weight / sum(weights)) for hit, weight in zip(hits, weights, strict=True)]


def event_stream(chunks: AsyncIterator[str]) -> StreamingResponse:
    """A response of server-sent events."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(chunks, media_type="text/event-stream", headers=headers)


def sent_event(data: Any, name: str = "") -> str:
    """One event as it is sent; of None a comment, which clients pass over."""
    if data is None:
        return ": waiting\n\n"
    lines = f"data: {json_text(data)}\n\n"
    return f"event: {name}\n{lines}" if name else lines
