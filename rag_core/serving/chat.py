"""OpenAI's chat completions, over a model that answers one question from passages.

What the model cannot honour is refused by name: a request is never answered as if it had asked for
something else.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from rag_core.outputs import Answer, Citation
from rag_core.serving.errors import ApiError
from rag_core.serving.handlers import as_api_error
from rag_core.serving.model import ServedModel
from rag_core.serving.native import TheService, json_response, while_connected
from rag_core.serving.options import OPTIONS
from rag_core.serving.service import Service
from rag_core.serving.streaming import Event, event_stream, follow, sent_event

# Parameters of OpenAI's API: the values at which they ask for nothing, and why no other is taken.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "audio": ((), "the model writes text"),
    "frequency_penalty": ((0,), "generate has repetition_penalty and no_repeat_ngram_size instead"),
    "function_call": (("none", "auto"), "the model calls no functions"),
    "functions": (([],), "the model calls no functions"),
    "logit_bias": (({},), "its token ids are of another vocabulary; generate has sequence_bias"),
    "modalities": ((["text"],), "the model writes text"),
    "moderation": ((), "nothing is moderated here"),
    "prediction": ((), "the model takes no draft"),
    "presence_penalty": ((0,), "generate has repetition_penalty and no_repeat_ngram_size instead"),
    "reasoning_effort": (("none",), "the model does not reason before it answers"),
    "response_format": (({"type": "text"},), "the model writes plain text"),
    "service_tier": (("auto", "default"), "all requests are served alike"),
    "store": ((False,), "no answer is stored"),
    "tool_choice": (("none", "auto"), "the model calls no tools"),
    "tools": (([],), "the model calls no tools"),
    "top_logprobs": ((0,), "log-probabilities are those of the answer's own tokens"),
    "verbosity": ((), "an answer is as long as the model was trained to write"),
    "web_search_options": ((), "passages are those of the knowledge base"),
}
# They say who asks, or what the client means to do with several tools, and change no answer.
_WITHOUT_EFFECT = (
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "user",
)
_ROLES = ("assistant", "developer", "function", "system", "tool", "user")
# As the API of OpenAI has it.
_MOST_STOPS = 4
_STARTED = int(time.time())
# Ours -> theirs, in errors.
_THEIR_NAMES = {"max_new_tokens": "max_tokens", "num_return_sequences": "n"}
# What there is to set for it in theirs.
_SAMPLING = re.compile(r"\bdo_sample=true\b", re.IGNORECASE)


class _Route(APIRoute):
    """A route whose refusals speak as OpenAI's do: of its parameters, and with status 400."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as error:
                raise _in_their_words(as_api_error(request, error)) from None
            except ApiError as error:
                raise _in_their_words(error) from None

        return handle


def _in_their_words(error: ApiError) -> ApiError:
    message = error.message
    for ours, theirs in _THEIR_NAMES.items():
        message = re.sub(rf"\b{ours}\b", theirs, message)
    message = _SAMPLING.sub("a temperature above 0", message)
    status = error.status
    if status == 422:
        status = 400
    return ApiError(
        status,
        message,
        param=_THEIR_NAMES.get(error.param or "", error.param),
        code=error.code,
        headers=error.headers,
    )


router = APIRouter(prefix="/v1", route_class=_Route, tags=["OpenAI"])


class ChatRequest(BaseModel):
    """The last user message is the question. Options of `generate`, "n_docs", "head" and "timeout"
    may stand beside these (the client's `extra_body`).
    """

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    n: Annotated[int | None, Field(ge=1)] = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    timeout: float | None = None

    def question(self) -> str:
        """The last user message.

        Raises:
            ApiError: there is none, it is no text, or something comes after it.
        """
        roles = [_role(message, place) for place, message in enumerate(self.messages)]
        if "user" not in roles:
            raise ApiError(
                400, "messages must hold one of role 'user', the question.", param="messages"
            )
        last = len(roles) - 1 - roles[::-1].index("user")
        if last < len(roles) - 1:
            raise ApiError(
                400,
                f"messages must end with the question, of role 'user', got {roles[-1]!r}: the model "
                "goes on from no other text.",
                param=f"messages[{len(roles) - 1}]",
            )
        return _text(self.messages[last].get("content"), f"messages[{last}].content")

    def unread(self) -> list[str]:
        """What the model was sent and does not read."""
        earlier = [str(message.get("role")) for message in self.messages[:-1]]
        if not earlier:
            return []
        roles = ", ".join(f"{place} ({role})" for place, role in enumerate(earlier))
        return [f"The model reads the last user message alone; messages not read: {roles}."]

    def options(self, model: ServedModel) -> dict[str, Any]:
        """The request as options of `generate`.

        Raises:
            ApiError: a parameter that cannot be honoured, or is not known.
        """
        options = self._beside()
        longest = [most for most in (self.max_tokens, self.max_completion_tokens) if most]
        if longest:
            options["max_new_tokens"] = min(longest)
        if self.n is not None and self.n > 1:
            options["num_return_sequences"] = self.n
        narrows = self.top_p is not None and self.top_p < 1
        if self.temperature or (self.temperature is None and narrows):
            # As OpenAI's: from the whole distribution, one token after another.
            options = {"top_k": 0, "num_beams": 1} | options
            options |= {"do_sample": True, "temperature": self.temperature or 1.0}
            if narrows:
                options["top_p"] = self.top_p
        elif self.temperature == 0:
            options["do_sample"] = False
        # Without a draw any seed gives the same answer.
        if self.seed is not None and options.get("do_sample", model.samples):
            options["seed"] = self.seed % 2**63
        return options

    def _beside(self) -> dict[str, Any]:
        """Options of `generate` that stand beside OpenAI's parameters."""
        options = {}
        for name, value in (self.model_extra or {}).items():
            if value is None or name in _WITHOUT_EFFECT:
                continue
            if name in _REFUSED:
                idle, why = _REFUSED[name]
                if not any(value == nothing for nothing in idle):
                    raise ApiError(
                        400,
                        f"{name} cannot be honoured: {why}. Leave it out.",
                        param=name,
                        code="unsupported_parameter",
                    )
                continue
            if name not in OPTIONS:
                raise ApiError(
                    400,
                    f"Unrecognized request argument supplied: {name[:80]}.",
                    param=name[:80],
                    code="unknown_parameter",
                )
            options[name] = value
        return options

    def stops(self) -> list[str]:
        """The texts that end an answer.

        Raises:
            ApiError: too many, or an empty one.
        """
        stops = []
        if isinstance(self.stop, str):
            stops = [self.stop]
        elif self.stop is not None:
            stops = self.stop
        if len(stops) > _MOST_STOPS or not all(stops):
            raise ApiError(
                400, f"stop must be at most {_MOST_STOPS} texts, none of them empty.", param="stop"
            )
        return stops

    def reports_usage(self) -> bool:
        """Whether a stream ends with the token counts.

        Raises:
            ApiError: options of a stream that are not known, or without one.
        """
        wanted = self.stream_options or {}
        for name in wanted:
            if name not in ("include_usage", "include_obfuscation"):
                raise ApiError(
                    400,
                    f"Unrecognized request argument supplied: stream_options.{name[:80]}.",
                    param=f"stream_options.{name[:80]}",
                )
        if wanted and not self.stream:
            raise ApiError(
                400,
                "stream_options must go with stream=true, got it alone.",
                param="stream_options",
            )
        return bool(wanted.get("include_usage"))


def _role(message: Mapping[str, Any], place: int) -> str:
    role = message.get("role")
    if role not in _ROLES:
        raise ApiError(
            400,
            f"messages[{place}].role must be one of {', '.join(_ROLES)}, got {role!r:.80}.",
            param=f"messages[{place}].role",
        )
    return str(role)


def _text(content: Any, name: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(
            400, f"{name} must be a text or a list of parts, got {content!r:.80}.", param=name
        )
    texts = []
    for place, part in enumerate(content):
        kind = None
        if isinstance(part, dict):
            kind = part.get("type")
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ApiError(
                400,
                f"{name}[{place}] must be of type 'text', got {kind!r:.80}: the model reads nothing "
                "else.",
                param=f"{name}[{place}]",
            )
        texts.append(part["text"])
    return "\n".join(texts)


@router.get("/models")
async def models(service: TheService) -> Response:
    """The one model that answers."""
    return JSONResponse({"object": "list", "data": [_model(service)]})


@router.get("/models/{name:path}")
async def model(name: str, service: TheService) -> Response:
    """What is said of the model."""
    _check_model(name, service)
    return JSONResponse(_model(service))


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.model.name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "dualrag",
    }


def _check_model(name: str, service: Service) -> None:
    if name != service.model.name:
        raise ApiError(
            404,
            f"The model {name[:80]!r} does not exist; here is {service.model.name!r}.",
            param="model",
            code="model_not_found",
        )


@router.post("/chat/completions")
async def chat_completions(body: ChatRequest, request: Request, service: TheService) -> Response:
    """Answer the last user message, as OpenAI's clients ask for it; `citations` say which passage
    carries which part of the answer.
    """
    _check_model(body.model, service)
    question = body.question()
    options = body.options(service.model)
    completion = _Completion(service, body, options)
    if body.stream:
        events = await follow(service, question, options, body.timeout)
        return event_stream(completion.chunks(events))
    answers = await while_connected(request, service.answer(question, options, body.timeout))
    return json_response(await run_in_threadpool(completion.whole, answers))


class _Completion:
    """A response in the making.

    Args:
        service: whose model answers.
        body: the request.
        options: as its `options` are.
    """

    def __init__(self, service: Service, body: ChatRequest, options: Mapping[str, Any]) -> None:
        self._model = service.model
        self._body = body
        self._options = options
        self._stops = body.stops()
        self._reports_usage = body.reports_usage()
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self._model.name,
            "system_fingerprint": None,
        }

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The response to a request without a stream."""
        choices = self._choices(answers)
        response = {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": self._usage(answers),
            "citations": choices[0]["message"]["citations"],
        }
        if warnings := self._body.unread():
            response["warnings"] = warnings
        return response

    async def chunks(self, events: AsyncIterator[Event]) -> AsyncIterator[str]:
        """The events of a stream."""
        sent = ""
        yield self._chunk(_delta(0, role="assistant", content=""))
        async for name, value in events:
            if name == "waiting":
                yield sent_event(None)
            if name == "text":
                text = self._without_begun_stop(self._before_stop(value))
                if len(text) > len(sent):
                    yield self._chunk(_delta(0, content=text[len(sent) :]))
                    sent = text
            if name == "error":
                yield sent_event(_in_their_words(value).body())
                return
            if name == "answers":
                for chunk in await run_in_threadpool(self._last_chunks, value, sent):
                    yield chunk
        yield "data: [DONE]\n\n"

    def _last_chunks(self, answers: Sequence[Answer], sent: str) -> list[str]:
        try:
            choices = self._choices(answers)
        except ApiError as error:
            return [sent_event(_in_their_words(error).body())]
        chunks = []
        for choice in choices:
            message, place = choice["message"], choice["index"]
            if place > 0:
                chunks.append(self._chunk(_delta(place, role="assistant", content="")))
            rest = message["content"]
            if place == 0:
                rest = rest[len(sent) :]
            if rest or choice["logprobs"]:
                chunks.append(self._chunk(_delta(place, choice["logprobs"], content=rest)))
            ending = _delta(
                place, annotations=message["annotations"], citations=message["citations"]
            )
            ending["finish_reason"] = choice["finish_reason"]
            chunks.append(self._chunk(ending, citations=message["citations"]))
        if self._reports_usage:
            chunks.append(self._chunk(usage=self._usage(answers)))
        return chunks

    def _chunk(self, choice: dict[str, Any] | None = None, **fields: Any) -> str:
        choices = []
        if choice is not None:
            choices.append(choice)
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": choices, **fields}
        if self._reports_usage:
            chunk.setdefault("usage", None)
        if "citations" in fields and (warnings := self._body.unread()):
            chunk["warnings"] = warnings
        return sent_event(chunk)

    def _choices(self, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        wanted = self._body.n or 1
        if len(answers) < wanted:
            raise ApiError(
                400,
                f"n must be at most {len(answers)} for this question, got {wanted}: the search found "
                "no more answers. More num_beams find more.",
                param="n",
            )
        return [self._choice(place, answer) for place, answer in enumerate(answers)]

    def _choice(self, place: int, answer: Answer) -> dict[str, Any]:
        text = self._before_stop(answer.text)
        reason = "stop"
        if text == answer.text and self._model.is_cut(answer, self._options):
            reason = "length"
        cited = _cited(answer, len(text))
        log_probs = None
        if self._body.logprobs:
            log_probs = _log_probs(answer, len(text))
        return {
            "index": place,
            "message": {
                "role": "assistant",
                "content": text,
                "refusal": None,
                "annotations": _annotations(answer, cited),
                "citations": [_citation(answer, each) for each in cited],
            },
            "logprobs": log_probs,
            "finish_reason": reason,
        }

    def _before_stop(self, text: str) -> str:
        places = [text.find(stop) for stop in self._stops]
        return text[: min((place for place in places if place >= 0), default=len(text))]

    def _without_begun_stop(self, text: str) -> str:
        """A text without an end that may be the beginning of a stop."""
        most = max(map(len, self._stops), default=0)
        for size in range(min(most - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return text[:-size]
        return text

    def _usage(self, answers: Sequence[Answer]) -> dict[str, int]:
        prompt = self._model.prompt_tokens(answers[0])
        completion = sum(len(answer.tokens) for answer in answers)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }


def _delta(place: int, log_probs: Any = None, **delta: Any) -> dict[str, Any]:
    return {"index": place, "delta": delta, "logprobs": log_probs, "finish_reason": None}


def _cited(answer: Answer, length: int) -> list[Citation]:
    """The citations of the first so many characters."""
    cited = []
    for citation in answer.citations():
        if citation.start < length:
            end = min(citation.end, length)
            cited.append(replace(citation, end=end, text=answer.text[citation.start : end]))
    return cited


def _citation(answer: Answer, citation: Citation) -> dict[str, Any]:
    """A citation with its passage, so that it can be shown by itself."""
    passage = answer.passages[citation.passage]
    return {
        **asdict(citation),
        "title": passage.title,
        "passage_text": passage.text,
        "source": passage.source,
        "origin": passage.origin,
        "prior": passage.prior,
        "posterior": passage.posterior,
    }


def _annotations(answer: Answer, cited: Sequence[Citation]) -> list[dict[str, Any]]:
    """The citations whose passages stand in the web, in OpenAI's own form."""
    annotations = []
    for citation in cited:
        passage = answer.passages[citation.passage]
        if re.match(r"https?://", passage.source or ""):
            place = {
                "start_index": citation.start,
                "end_index": citation.end,
                "title": passage.title,
                "url": passage.source,
            }
            annotations.append({"type": "url_citation", "url_citation": place})
    return annotations


def _log_probs(answer: Answer, length: int) -> dict[str, Any]:
    """log p of those tokens that wrote some of the first so many characters."""
    content: list[dict[str, Any]] = []
    rows = zip(answer.tokens, answer.token_log_probs, answer.token_spans, strict=True)
    for token, log_prob, (start, end) in rows:
        if start == end or start >= length:
            continue
        row = {"token": token, "logprob": log_prob, "bytes": None, "top_logprobs": []}
        if "\ufffd" not in token:  # else it ends within a character
            row["bytes"] = list(token.encode())
        content.append(row)
    return {"content": content, "refusal": None}
