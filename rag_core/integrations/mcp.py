"""Answers and passages as tools of the Model Context Protocol, for assistants and editors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rag_core import __version__
from rag_core.checks import one_of, whole
from rag_core.integrations.libraries import lacking
from rag_core.integrations.records import answer_record
from rag_core.outputs import finite, json_text
from rag_core.serving import ApiError, ServedModel, ServerSettings, Service

if TYPE_CHECKING:
    from mcp.server import Server

_LOG = logging.getLogger(__name__)
_INSTRUCTIONS = (
    "ask answers a question from a knowledge base, with the passages that the answer comes from. "
    "search finds passages alone, without an answer."
)
_FAULT = "It could not be done; the server's log says why."


def check_mcp() -> None:
    """See that the libraries of an MCP server are installed.

    Raises:
        ImportError: one isn't; the message has the pip line.
    """
    for name in ("mcp", "prometheus_client"):
        if find_spec(name) is None:
            raise lacking(name, "mcp")


def run_mcp_server(
    open_model: Callable[[], ServedModel],
    settings: ServerSettings | None = None,
    *,
    say: Callable[[str], None] | None = None,
) -> None:
    """Serve the tools over stdin and stdout, until stdin ends.

    Args:
        open_model: loads model and knowledge base, in a thread, while the server is listening.
        settings: limits, as of a server over HTTP.
        say: told what people should read: that the model is loaded, or why not.

    Raises:
        ImportError: the library is not installed.
    """
    check_mcp()
    asyncio.run(_run(open_model, settings or ServerSettings(), say or _LOG.info))


async def _run(
    open_model: Callable[[], ServedModel], settings: ServerSettings, say: Callable[[str], None]
) -> None:
    from mcp.server.stdio import stdio_server

    service = Service(open_model, settings)
    loading = asyncio.create_task(_load(service, say))
    server = create_mcp_server(service, loading)
    try:
        async with stdio_server() as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())
    finally:
        loading.cancel()
        with suppress(asyncio.CancelledError):
            await loading
        await service.close()


async def _load(service: Service, say: Callable[[str], None]) -> None:
    try:
        await service.start()
    except Exception as error:
        service.fault = error
        say(f"the model can't be loaded: {error}")
        _LOG.debug("the model can't be loaded", exc_info=True)
    else:
        say(f"{service.model.name} is loaded")


def create_mcp_server(service: Service, loading: asyncio.Task[None] | None = None) -> Server[Any]:
    """Make a server of the `mcp` library with the tools `ask` and `search`.

    Args:
        service: what answers; `start` it, in the event loop that the server runs in.
        loading: the task that does so; calls wait for it.

    Raises:
        ImportError: the library is not installed.
    """
    check_mcp()
    from mcp.server import Server
    from mcp.types import CallToolResult, ListToolsResult, TextContent

    tools = _tools(service.settings)
    run = {"ask": _ask, "search": _search}

    async def list_tools(context: Any, parameters: Any) -> Any:
        return ListToolsResult(tools=tools)

    async def call_tool(context: Any, call: Any) -> Any:
        try:
            if loading is not None:
                await asyncio.shield(loading)
            if service.fault is not None:
                raise ApiError(503, f"The model can't be loaded: {service.fault}")
            name = one_of(run)("tool", call.name)
            values = await run[name](service, **_arguments(name, call.arguments or {}, tools))
        except (ApiError, ValueError, TypeError) as error:
            return CallToolResult(content=[_text(" ".join(str(error).split()))], is_error=True)
        except Exception:
            _LOG.exception("a call of %r failed", call.name)
            return CallToolResult(content=[_text(_FAULT)], is_error=True)
        values = finite(values)
        return CallToolResult(content=[_text(json_text(values))], structured_content=values)

    def _text(text: str) -> Any:
        return TextContent(type="text", text=text)

    return Server(
        "dualrag",
        version=__version__,
        title="dualrag",
        instructions=_INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


async def _ask(service: Service, question: Any = None, n_docs: Any = None) -> dict[str, Any]:
    (answer, *_) = await service.answer(question, {"n_docs": n_docs})
    return answer_record(answer)


async def _search(service: Service, query: Any = None, k: Any = 5) -> dict[str, Any]:
    k = whole(1, service.settings.max_docs)("k", k)
    (hits,) = await service.retrieve([query], k)
    return {"query": query, "passages": [hit.to_dict() for hit in hits]}


def _arguments(name: str, given: dict[str, Any], tools: list[Any]) -> dict[str, Any]:
    """The arguments of a call, without those that are null.

    Raises:
        ValueError: one that the tool does not have.
    """
    (schema,) = [tool.input_schema for tool in tools if tool.name == name]
    for argument in given:
        one_of(schema["properties"])(f"an argument of {name}", argument)
    return {argument: value for argument, value in given.items() if value is not None}


def _tools(settings: ServerSettings) -> list[Any]:
    from mcp.types import Tool, ToolAnnotations

    reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    count = {"type": "integer", "minimum": 1, "maximum": settings.max_docs}
    text = {"type": "string", "maxLength": settings.max_question_chars}
    place: dict[str, Any] = {
        "id": "integer",
        "title": "string",
        "text": "string",
        "source": ["string", "null"],
        "metadata": "object",
        "origin": "string",
        "score": "number",
    }
    weighed = _object(**place, prior="number", posterior="number")
    citation = _object(
        passage="integer",
        id="integer",
        text="string",
        start="integer",
        end="integer",
        probability="number",
    )
    answered = _object(
        question="string", answer="string", probability="number", confidence=["number", "null"]
    )
    return [
        Tool(
            name="ask",
            title="Ask the knowledge base",
            description=(
                "Answer a question from the knowledge base. Besides the answer: the probability of "
                "this wording, the probability that it is right (confidence, null where the model "
                "doesn't know), the passages read with where they come from (origin) and the share "
                "that each has in the answer (posterior), and which passage carries which part "
                "(citations)."
            ),
            input_schema={
                "type": "object",
                "properties": {
                    "question": {**text, "description": "a whole question"},
                    "n_docs": {**count, "description": "passages read; by default the model's"},
                },
                "required": ["question"],
                "additionalProperties": False,
            },
            output_schema=_with_lists(answered, passages=weighed, citations=citation),
            annotations=reads,
        ),
        Tool(
            name="search",
            title="Search the knowledge base",
            description=(
                "Find the passages of the knowledge base that are nearest to a query, with where "
                "they come from (origin). No model writes an answer."
            ),
            input_schema={
                "type": "object",
                "properties": {
                    "query": {**text, "description": "a question or a few words"},
                    "k": {**count, "default": 5, "description": "passages"},
                },
                "required": ["query"],
                "additionalProperties": False,
            },
            output_schema=_with_lists(
                _object(query="string"), passages=_object(rank="integer", **place)
            ),
            annotations=reads,
        ),
    ]


def _object(**kinds: str | list[str]) -> dict[str, Any]:
    """The JSON Schema of an object that has all of these properties."""
    properties = {name: {"type": kind} for name, kind in kinds.items()}
    return {"type": "object", "properties": properties, "required": list(kinds)}


def _with_lists(schema: dict[str, Any], **items: dict[str, Any]) -> dict[str, Any]:
    """An object's schema with lists of other objects beside its properties."""
    lists = {name: {"type": "array", "items": item} for name, item in items.items()}
    return {
        "type": "object",
        "properties": schema["properties"] | lists,
        "required": [*schema["required"], *lists],
    }
