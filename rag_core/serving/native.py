"""The native API: answers, passages, and how the server is."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from rag_core.display import Explanation, style_hash
from rag_core.generation import GenerationConfig
from rag_core.outputs import Answer, Hit, finite
from rag_core.serving.errors import ApiError
from rag_core.serving.options import OPTIONS, REFUSED
from rag_core.serving.service import Service


class ErrorDetails(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error, in the form of OpenAI's API."""

    error: ErrorDetails


_ERRORS: dict[int | str, dict[str, Any]] = {
    422: {"model": ErrorBody, "description": "The request can't be answered as it is."},
    429: {"model": ErrorBody, "description": "Too many wait; Retry-After says when to come back."},
    503: {"model": ErrorBody, "description": "The model is being loaded, or the server ends."},
    504: {"model": ErrorBody, "description": "It took longer than it may."},
}
_OF_THE_CALL = {
    "n_docs": "passages read for a question",
    "head": 'how passages are marginalised over: "token" or "sequence"; by default the model\'s',
    "seed": "of sampling: the same draws again",
    "do_deduplication": "RAG-Sequence: whether a candidate found twice counts once",
    "decoding": 'RAG-Sequence: "thorough" or "fast"',
}
# Its style stands in the page itself, and is known by its sum.
_OF_A_PAGE = (
    f"default-src 'none'; style-src '{style_hash()}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
router = APIRouter(tags=["dualrag"])


def service_of(request: Request) -> Service:
    """The app's service, for routes that depend on it."""
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(service_of)]


def _with_options(schema: dict[str, Any]) -> None:
    """Adds the options to a schema, in the words of `GenerationConfig`."""
    words = dict(re.findall(r"^ {4,8}(\w+): (.+)$", GenerationConfig.__doc__ or "", re.MULTILINE))
    for name in OPTIONS:
        if name not in REFUSED:
            text = _OF_THE_CALL.get(name) or words.get(name, "")
            schema["properties"][name] = {"title": name, "description": text}


class AnswerRequest(BaseModel):
    """A question or several; beside them options of `generate`, by default the model's."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra=_with_options,
    )

    question: str | None = Field(None, examples=["Which planet is known for its rings?"])
    questions: list[str] | None = None
    timeout: float | None = Field(None, description="seconds; the server has a limit of its own")


class ExplainRequest(AnswerRequest):
    """A question or several, and how the explanation is to be sent."""

    format: Literal["html", "json"] | None = Field(
        None, description='"html" or "json"; by default what the header Accept prefers'
    )


class RetrieveRequest(BaseModel):
    """Questions, for each of which passages are searched; as Search-R1's clients send it."""

    model_config = ConfigDict(extra="forbid")

    queries: list[str] = Field(examples=[["Which planet is known for its rings?"]])
    topk: int | None = Field(None, description="passages a query; by default as the model reads")
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
        task.cancel()
        leaving.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def json_response(values: Any) -> JSONResponse:
    """Values as JSON; see `json_text`."""
    try:
        return JSONResponse(values)
    except ValueError:
        return JSONResponse(finite(values))


@router.post("/answer", responses=_ERRORS)
async def answer(body: AnswerRequest, request: Request, service: TheService) -> Response:
    """Answer questions, with the passages behind each answer and their probabilities.

    One `question` gives `{"answers": [...]}`, best first; `questions` give `{"results":
    [{"answers": [...]}, ...]}` in their order. An answer has `question`, `text`,
    `log_probability`, `passages` (with `prior` and `posterior`), `tokens`, `token_posteriors`
    and `citations` (`passage`: its place among them; `probability`; `start` and `end` in the text).
    """
    groups = await _answered(body, request, service)
    results = [{"answers": [answer.to_dict() for answer in answers]} for answers in groups]
    if body.question is not None:
        return json_response(results[0])
    return json_response({"results": results})


async def _answered(body: AnswerRequest, request: Request, service: Service) -> list[list[Answer]]:
    if (body.question is None) == (body.questions is None):
        raise ApiError(422, "A request must hold either question or questions.")
    asked = body.questions or []
    if body.question is not None:
        asked = [body.question]
    work = service.answer_all(asked, body.model_extra or {}, body.timeout)
    groups: list[list[Answer]] = await while_connected(request, work)
    return groups


@router.post("/explain", responses=_ERRORS)
async def explain(body: ExplainRequest, request: Request, service: TheService) -> Response:
    """Answer questions, and show which passage each token of an answer comes from.

    As a page without scripts, or as JSON: `{"answers": [...], "credit": ...}`.
    """
    answers = [each for group in await _answered(body, request, service) for each in group]
    base = service.model.info()["knowledge_base"] or {}
    explanation = Explanation([each.to_dict() for each in answers], base.get("credit") or "")
    accepted = request.headers.get("accept", "")
    if body.format == "html" or (body.format is None and accepted.startswith("text/html")):
        return HTMLResponse(explanation.html(), headers={"Content-Security-Policy": _OF_A_PAGE})
    return json_response(explanation.to_dict())


@router.post("/retrieve", responses=_ERRORS)
async def retrieve(body: RetrieveRequest, request: Request, service: TheService) -> Response:
    """Find the passages nearest to each query, as Search-R1's retrieval server does.

    `{"result": [[{"document": {"id", "contents"}, "score"}, ...], ...]}`; without `return_scores`
    the documents alone. The first line of `contents` is the title, in quotes.
    """
    found = await while_connected(request, service.retrieve(body.queries, body.topk))
    result = []
    for hits in found:
        documents = [_document(hit) for hit in hits]
        if body.return_scores:
            documents = [
                {"document": document, "score": hit.score}
                for document, hit in zip(documents, hits, strict=True)
            ]
        result.append(documents)
    return json_response({"result": result})


def _document(hit: Hit) -> dict[str, Any]:
    title = " ".join(hit.title.split())  # its line ends where the text begins
    return {"id": str(hit.id), "contents": f'"{title}"\n{hit.text}'}


@router.get("/passages/{row}", responses={404: {"model": ErrorBody}})
async def passage(row: int, service: TheService) -> Response:
    """One passage of the knowledge base, by the `id` that answers give."""
    return json_response(await service.passage(row))


@router.get("/health")
async def health() -> Response:
    """Whether the process is alive."""
    return JSONResponse({"status": "alive"})


@router.get("/ready", responses={503: {"model": ErrorBody}})
async def ready(service: TheService) -> Response:
    """Whether questions are answered: 503 while the model is loaded and when the server ends."""
    if service.is_ending:
        raise ApiError(503, "The server ends.", code="ending")
    return JSONResponse({"status": "ready", "model": service.model.name})


@router.get("/info")
async def info(service: TheService) -> Response:
    """What model and knowledge base answer, in which versions, within which limits."""
    return json_response({**service.model.info(), "limits": service.limits()})


@router.post("/admin/reload", responses={403: {"model": ErrorBody}, 409: {"model": ErrorBody}})
async def reload(service: TheService) -> Response:
    """Load model and knowledge base anew; no request is lost meanwhile. Needs a key."""
    if service.settings.api_key is None:
        raise ApiError(
            403, "Reloading over HTTP needs a key: start the server with one, or send it SIGHUP."
        )
    await service.reload()
    return json_response({"status": "reloaded", **service.model.info()})


@router.get("/metrics")
async def metrics(service: TheService) -> Response:
    """Numbers for Prometheus."""
    page, kind = service.metrics.page()
    return Response(page, media_type=kind)
