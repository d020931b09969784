"""What stands before every route: names, key, limits, and the count of what came."""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from typing import Any

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag_core.serving.errors import ApiError
from rag_core.serving.handlers import error_response
from rag_core.serving.service import Service
from rag_core.serving.settings import ServerSettings

# They show nothing of the model, and a browser or a probe has no key to bring.
OPEN_TO_ALL = {"/", "/docs", "/openapi.json", "/health", "/ready"}
OPEN_BELOW = ("/static/", "/docs/")
_PROBES = {"/health", "/ready"}
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
        self._rate = _Rate(service.settings)

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
        headers, path = Headers(scope=scope), scope["path"]
        self._check_host(headers)
        self._check_key(path, headers)
        if path not in _PROBES:
            self._rate.check(scope["client"])
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

    def _check_host(self, headers: Headers) -> None:
        """A page of a stranger, whose name was made to mean this machine, has that name here."""
        hosts = self._settings.hosts
        name = headers.get("host", "")
        if not name.endswith("]"):
            name = name.rpartition(":")[0] or name
        if hosts is not None and name.strip("[]").lower() not in hosts:
            raise ApiError(
                421, "This server goes by another name. --allow-host NAME adds one.", code="host"
            )

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
        most, seconds = self._settings.max_body, self._settings.body_seconds
        announced = headers.get("content-length", "")
        is_large = announced.isdigit() and int(announced) > most
        chunks: list[bytes] = []
        try:
            if not is_large:
                is_large = await asyncio.wait_for(_read(receive, most, chunks), seconds)
        except asyncio.TimeoutError:
            raise ApiError(
                408,
                f"The request came too slowly: it must be here within {seconds:g} s.",
                headers=_CLOSE,
            ) from None
        except _Gone:
            return None
        if not is_large:
            return b"".join(chunks)
        if headers.get("expect", "").lower() != "100-continue":
            await _read_on(receive)
        raise ApiError(413, f"A request must have at most {most:,} bytes.", headers=_CLOSE)


class _Rate:
    """How many requests came from whom in the last minute."""

    def __init__(self, settings: ServerSettings) -> None:
        self._limit = None
        if settings.rate_limit is not None:
            self._limit = RateLimitItemPerMinute(settings.rate_limit)
            self._window = MovingWindowRateLimiter(MemoryStorage())

    def check(self, client: tuple[str, int] | None) -> None:
        """Count a request.

        Raises:
            ApiError: it is one too many.
        """
        if self._limit is None:
            return
        address = "unknown" if client is None else client[0]
        if self._window.hit(self._limit, address):
            return
        until = self._window.get_window_stats(self._limit, address).reset_time
        seconds = max(1, math.ceil(until - time.time()))
        raise ApiError(
            429,
            f"At most {self._limit.amount} requests a minute are answered. Try again in "
            f"{seconds} s.",
            code="rate_limit",
            headers={"Retry-After": str(seconds)},
        )


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
