"""uvicorn around an app: its socket, its signals and its end."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from rag_core.serving.app import create_app
from rag_core.serving.model import OpenModel
from rag_core.serving.service import Service
from rag_core.serving.settings import ServerSettings

_LOG = logging.getLogger(__name__)
_BACKLOG = 256


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        OSError: it can't be had; the message says what to do.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        why = (getattr(error, "strerror", None) or str(error)).partition(" (")[0]
        raise OSError(
            f"--host and --port must be free to listen at, got {host} {port}: {why}. "
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
    try:
        import uvicorn
    except ModuleNotFoundError:
        raise ImportError("a server needs uvicorn: pip install 'dualrag[serve]'") from None
    faults: list[Exception] = []

    def failed(error: Exception) -> None:
        faults.append(error)
        server.should_exit = True

    def loaded(service: Service) -> None:
        host, port = listening.getsockname()[:2]
        if ":" in host:
            host = f"[{host}]"
        say(f"Answers at http://{host}:{port} (API: /docs). Ctrl-C ends.")

    app = create_app(open_model, settings, on_loaded=loaded, on_failed=failed)
    config = uvicorn.Config(
        app,
        access_log=access_log,
        log_level="info" if access_log else "warning",
        timeout_graceful_shutdown=round(settings.shutdown_seconds),
        server_header=False,
        ws="none",
    )
    server = uvicorn.Server(config)
    with listening:
        server.run(sockets=[listening])
    if faults:
        raise faults[0]
