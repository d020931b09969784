"""uvicorn around an app: its socket, its signals, slow clients and the end."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from rag_core.serving.app import create_app
from rag_core.serving.errors import ApiError
from rag_core.serving.model import OpenModel
from rag_core.serving.service import Service
from rag_core.serving.settings import ServerSettings

# Connections of a burst wait; refused ones would be errors of the clients.
_BACKLOG = 1024
# Beyond the time that answers in flight get: what is stopped then has to be said, too.
_LAST_SECONDS = 2


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        OSError: it can't be had; the message says what to do.
    """
    try:
        if not 0 <= port < 2**16:
            raise OverflowError("there is no such port")
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server((host, address[1]), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (")[0]
        raise OSError(
            f"--host and --port must be free to listen at, got {host} {port}: {reason}. "
            "Choose another --port, or end what listens there"
        ) from None


def run_server(
    open_model: OpenModel,
    settings: ServerSettings,
    listening: socket.socket,
    *,
    say: Callable[[str], None] = lambda text: None,
    access_log: bool = False,
) -> None:
    """Serve until a signal ends it: SIGINT and SIGTERM, after which answers in flight finish.

    SIGHUP loads model and knowledge base anew.

    Args:
        open_model, settings: as of `create_app`.
        listening: as `bind` returns it.
        say: told what goes on.
        access_log: log each request.

    Raises:
        Exception: what loading the model raised, at the start.
    """
    faults: list[Exception] = []

    def failed(error: Exception) -> None:
        faults.append(error)
        server.should_exit = True

    def loaded(service: Service) -> None:
        host, port = listening.getsockname()[:2]
        if ":" in host:
            host = f"[{host}]"
        say(f"{service.model.name} answers at http://{host}:{port} (API: /docs). Ctrl-C ends it.")

    app = create_app(open_model, settings, on_loaded=loaded, on_failed=failed)
    server = Server(app, say, access_log)
    with listening:
        server.run(sockets=[listening])
    if faults:
        raise faults[0]


class Server(uvicorn.Server):
    """uvicorn's server of an app of `create_app`.

    Args:
        app: it.
        say: told what goes on.
        access_log: log each request.
        **options: further ones of `uvicorn.Config`.
    """

    def __init__(
        self,
        app: Any,
        say: Callable[[str], None] = lambda text: None,
        access_log: bool = False,
        **options: Any,
    ) -> None:
        self._service: Service = app.state.service
        self._say = say
        settings = self._service.settings
        log_level = "error"
        if access_log:
            log_level = "info"
        super().__init__(
            uvicorn.Config(
                app,
                access_log=access_log,
                log_level=log_level,
                http=_protocol(settings.body_seconds, settings.timeout),
                ws="none",
                lifespan="on",
                backlog=_BACKLOG,
                server_header=False,
                timeout_graceful_shutdown=round(settings.shutdown_seconds) + _LAST_SECONDS,
                **options,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if hasattr(signal, "SIGHUP"):
            loop = asyncio.get_running_loop()
            try:
                loop.add_signal_handler(signal.SIGHUP, self._reload)
            except (RuntimeError, ValueError):
                return  # not the main thread's loop: signals are somebody else's

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.end_soon()
        await super().shutdown(sockets)

    def _reload(self) -> None:
        self._reloading = asyncio.ensure_future(self._reloaded())

    async def _reloaded(self) -> None:
        try:
            await self._service.reload()
        except ApiError as error:
            self._say(f"note: {error.message}")
        else:
            self._say("note: model and knowledge base were loaded anew")


def _protocol(seconds: float, reading_seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, with so many seconds for the lines before a body, and for a client to
    read what it was sent.

    uvicorn waits for both for as long as a client likes.
    """

    class Protocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _reading: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._unwatch()
            self._has_read()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._reading = self.loop.call_later(reading_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._has_read()

        def _has_read(self) -> None:
            if self._reading is not None:
                self._reading.cancel()
                self._reading = None

        def send_400_response(self, msg: str) -> None:
            """As uvicorn's, in the form of all errors."""
            error = ApiError(400, "What came is no request of HTTP.")
            body = json.dumps(error.body()).encode()
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
            }
            answer = h11.Response(status_code=400, headers=list(headers.items()))
            for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _watch(self) -> None:
            """Begins to count where a request has not begun, and stops where it has."""
            if self.conn.their_state is not h11.IDLE:
                self._unwatch()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(seconds, self._give_up)

        def _unwatch(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _give_up(self) -> None:
            self._deadline = None
            if self.conn.their_state is h11.IDLE:
                self.transport.close()

    return Protocol
