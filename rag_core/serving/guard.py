"""What stands before every route: key, limits, and the count of what came."""

from __future__ import annotations

import asyncio
import hmac
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag_core.serving.errors import ApiError
from rag_core.serving.handlers import error_response
from rag_core.serving.service import Service

# They show nothing of the model, and a browser or a probe has no key to bring.
OPEN_TO_ALL = {"/", "/docs", "/openapi.json", "/health", "/ready"}
OPEN_BELOW = ("/static/",)
_CLOSE = {"Connection": "close"}
# Of a body that is too large, so much is read on, for the client to come to read the refusal.
_READ_ON = 32_000_000
_READ_ON_SECONDS = 2.0


class Guard:
    """Lets through what may pass, with its whole body, and notes how it went.

    Args:
        app: what comes behind.
        service: whose settings and metrics count.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._settings = service.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 499  # the client went away before an answer began

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._guarded(scope, receive, sending)
        except ApiError as error:
            await error_response(error)(scope, receive, sending)
        finally:
            metrics = self._service.metrics
            metrics.request(metrics.route(scope), status, time.monotonic() - began)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._check_key(scope["path"], headers)
        body = await self._body(headers, receive)
        if body is None:
            return  # the client went away

        async def received() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            whole, body = body, None
            return {"type": "http.request", "body": whole, "more_body": False}

        await self._app(scope, received, send)

    def _check_key(self, path: str, headers: Headers) -> None:
        key = self._settings.api_key
        if key is None or path in OPEN_TO_ALL or path.startswith(OPEN_BELOW):
            return
        if not brings_key(headers, key):
            raise ApiError(
                401,
                "The key is missing or wrong. Send it as  Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body; None where the client went away.

        Raises:
            ApiError: it is too large, or comes too slowly.
        """
        most = self._settings.max_body
        announced = headers.get("content-length", "")
        is_large = announced.isdigit() and int(announced) > most
        if not is_large:
            chunks: list[bytes] = []
            try:
                is_large = await asyncio.wait_for(
                    _read(receive, most, chunks), self._settings.body_seconds
                )
            except asyncio.TimeoutError:
                raise ApiError(
                    408,
                    "The request came too slowly: its body must be here within "
                    f"{self._settings.body_seconds:g} s.",
                    headers=_CLOSE,
                ) from None
            except _Gone:
                return None
        if is_large:
            await _read_on(receive)
            raise ApiError(413, f"A request must have at most {most:,} bytes.", headers=_CLOSE)
        return b"".join(chunks)


def brings_key(headers: Headers, key: str) -> bool:
    """Whether a request brings the key, told in constant time."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        given = headers.get("x-api-key", "")
    return hmac.compare_digest(given.strip().encode("latin-1", "replace"), key.encode())


class _Gone(Exception):
    pass


async def _read(receive: Receive, most: int, chunks: list[bytes] | None) -> bool:
    """Read a body to its end; whether it has more bytes than it may, and then not to its end."""
    size = 0
    while True:
        message: Any = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        body = message.get("body", b"")
        size += len(body)
        if size > most:
            return True
        if chunks is not None:
            chunks.append(body)
        if not message.get("more_body", False):
            return False


async def _read_on(receive: Receive) -> None:
    """Read what is thrown away."""
    try:
        await asyncio.wait_for(_read(receive, _READ_ON, None), _READ_ON_SECONDS)
    except (asyncio.TimeoutError, _Gone):
        return
