"""The native API: answers, passages, and how the server is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from rag_core.outputs import Answer
from rag_core.serving.errors import ApiError
from rag_core.serving.service import Service

router = APIRouter()


def service_of(request: Request) -> Service:
    """The app's service, for routes that depend on it."""
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(service_of)]


class AnswerRequest(BaseModel):
    """A question or several, and options of `generate` beside them."""

    model_config = ConfigDict(extra="allow")

    question: str | None = None
    questions: list[str] | None = None
    timeout: float | None = None


class RetrieveRequest(BaseModel):
    """Questions, for each of which passages are searched; as Search-R1's clients send it."""

    model_config = ConfigDict(extra="forbid")

    queries: list[str]
    topk: int | None = None
    return_scores: bool = False


async def while_connected(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of some work, which is cancelled when the client goes away."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "The client went away.")
        return task.result()
    finally:
        for each in (task, leaving):
            each.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await each


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@router.post("/answer")
async def answer(body: AnswerRequest, request: Request, service: TheService) -> Response:
    """Answer questions, with the passages behind each answer and their probabilities."""
    if (body.question is None) == (body.questions is None):
        raise ApiError(422, "A request must hold either question or questions.")
    options = body.model_extra or {}
    if body.question is not None:
        asked = [body.question]
    else:
        asked = body.questions or []
    answers = await while_connected(request, service.answer_all(asked, options, body.timeout))
    if body.question is not None:
        return JSONResponse({"answers": [answer_values(each) for each in answers[0]]})
    return JSONResponse(
        {"results": [{"answers": [answer_values(each) for each in group]} for group in answers]}
    )


def answer_values(answer: Answer) -> dict[str, Any]:
    """An answer as it is sent."""
    return answer.to_dict()


@router.post("/retrieve")
async def retrieve(body: RetrieveRequest, request: Request, service: TheService) -> Response:
    """Find the passages nearest to each query, in the form that Search-R1's clients read."""
    found = await while_connected(request, service.retrieve(body.queries, body.topk))
    result = []
    for hits in found:
        documents = [{"id": str(hit.id), "contents": f'"{hit.title}"\n{hit.text}'} for hit in hits]
        if body.return_scores:
            documents = [
                {"document": document, "score": hit.score}
                for document, hit in zip(documents, hits, strict=True)
            ]
        result.append(documents)
    return JSONResponse({"result": result})


@router.get("/passages/{row}")
async def passage(row: int, service: TheService) -> Response:
    """One passage of the knowledge base."""
    found = service.model.passage(row)
    if found is None:
        raise ApiError(404, f"There is no passage {row}.")
    return JSONResponse(found)


@router.get("/health")
async def health() -> Response:
    """Whether the process is alive."""
    return JSONResponse({"status": "alive"})


@router.get("/ready")
async def ready(service: TheService) -> Response:
    """Whether questions are answered: 503 while the model is loaded."""
    return JSONResponse({"status": "ready", "model": service.model.name})


@router.get("/info")
async def info(service: TheService) -> Response:
    """What model and knowledge base answer, and in which versions."""
    return JSONResponse(service.model.info())


@router.get("/metrics")
async def metrics(service: TheService) -> Response:
    """Numbers for Prometheus."""
    page, kind = service.metrics.page()
    return Response(page, media_type=kind)
