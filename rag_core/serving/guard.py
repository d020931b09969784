"""What stands before every route: names, key, limits, and the count of what came."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag_core.serving.errors import ApiError
from rag_core.serving.handlers import error_response
from rag_core.serving.service import Service

# They show nothing of the model, and a browser or a probe has no key to bring.
OPEN_TO_ALL = {"/", "/docs", "/openapi.json", "/health", "/ready"}
OPEN_BELOW = ("/static/", "/docs/")
_PROBES = {"/health", "/ready"}
_CLOSE = {"Connection": "close"}
# Of a body that is refused, so much is read on, for the client to come to read the refusal.
_READ_ON = 32_000_000
# A client that sends slowly does not hold a connection for the sake of a refusal.
_READ_ON_SECONDS = 2.0
# What a WebSocket is closed with that breaks a rule.
_MAY_NOT = 1008
_MINUTE = 60.0
# Who has an IPv6 address has all that begin with the same 64 bits.
_OF_ONE_CLIENT = 64


class Guard:
    """Lets through what may pass, with its whole body, and notes how it went.

    Args:
        app: what comes behind.
        service: whose settings and metrics count.
        routes: what there is behind, by whose paths it is counted.
    """

    def __init__(self, app: ASGIApp, service: Service, routes: Sequence[BaseRoute] = ()) -> None:
        self._app = app
        self._routes = routes
        self._service = service
        self._settings = service.settings
        self._rate = Rate(service.settings.rate_limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._of_websocket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = None

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._guarded(scope, receive, sending)
        except ApiError as error:
            await error_response(error)(scope, receive, sending)
        except Exception:
            status = status or 500  # which is sent further out
            raise
        finally:
            status = status or 499  # the client went away before an answer began
            self._service.metrics.request(self._route(scope), status, time.monotonic() - began)

    async def _of_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As of requests: who may not ask is answered with 403 before the connection is one."""
        try:
            self._check(scope, Headers(scope=scope))
        except ApiError as error:
            await receive()  # the wish to connect
            await send({"type": "websocket.close", "code": _MAY_NOT, "reason": error.message})
            return
        await self._app(scope, receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            self._check(scope, headers)
        except ApiError as error:
            # uvicorn waits for the rest of a body for as long as a client likes
            if not await _read_on(headers, receive):
                error.headers |= _CLOSE
            raise
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

    def _route(self, scope: Scope) -> str:
        """The path of a route with names for its parameters, so that there are few."""
        route = scope.get("route")
        if route is None:  # the request was refused before it was looked for
            found = (each for each in self._routes if each.matches(scope)[0] is not Match.NONE)
            route = next(found, None)
        return getattr(route, "path", "other")

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Refuse who may not ask, before anything of a body is looked at."""
        path = scope["path"]
        self._check_host(headers)
        if path not in _PROBES:
            self._rate.check(scope["client"])  # guesses of a key count, too
        self._check_key(path, headers)

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
        await _read_on(headers, receive)
        raise ApiError(413, f"A request must have at most {most:,} bytes.", headers=_CLOSE)


class Rate:
    """When whom a request of was let through, in the last minute; all else is forgotten.

    Args:
        most: requests a minute from one client; None is any number.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        # seconds of each client, who came last at the end
        self._times: OrderedDict[str, list[float]] = OrderedDict()

    def __len__(self) -> int:
        """Clients that are remembered."""
        return len(self._times)

    def check(self, client: tuple[str, int] | None) -> None:
        """Count a request.

        Raises:
            ApiError: it is one too many.
        """
        if self._most is None:
            return
        now = time.monotonic()
        while self._times and next(iter(self._times.values()))[-1] <= now - _MINUTE:
            self._times.popitem(last=False)
        name = _name_of(client)
        times = self._times.setdefault(name, [])
        while times and times[0] <= now - _MINUTE:
            times.pop(0)
        if len(times) < self._most:
            times.append(now)
            self._times.move_to_end(name)
            return
        seconds = max(1, math.ceil(times[0] + _MINUTE - now))
        raise ApiError(
            429,
            f"At most {self._most} requests a minute are answered. Try again in {seconds} s.",
            code="rate_limit",
            headers={"Retry-After": str(seconds)},
        )


def _name_of(client: tuple[str, int] | None) -> str:
    """What one client is known by, whichever of its addresses it takes."""
    try:
        address = ipaddress.ip_address(client[0] if client else "")
    except ValueError:  # of a proxy's header, or none at a socket of Unix
        return "unknown"
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _OF_ONE_CLIENT), strict=False))


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


async def _read_on(headers: Headers, receive: Receive) -> bool:
    """Read what is thrown away; whether that was all."""
    if headers.get("expect", "").lower() == "100-continue":
        return False  # the client waits to be asked for it
    try:
        is_more = await asyncio.wait_for(_read(receive, _READ_ON, None), _READ_ON_SECONDS)
    except (asyncio.TimeoutError, _Gone):
        return False
    return not is_more
