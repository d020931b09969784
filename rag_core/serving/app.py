"""The app: routes behind a guard, in front of a service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING

from rag_core import __version__
from rag_core.serving.libraries import check_libraries
from rag_core.serving.model import OpenModel
from rag_core.serving.service import Service
from rag_core.serving.settings import ServerSettings

if TYPE_CHECKING:
    from fastapi import APIRouter, FastAPI

# Modules of this wing, each with its `router`.
_ROUTES = ("native", "streaming", "chat", "docs_page", "page")
_LOG = logging.getLogger(__name__)


def create_app(
    open_model: OpenModel,
    settings: ServerSettings | None = None,
    *,
    routers: Sequence[APIRouter] = (),
    on_loaded: Callable[[Service], None] | None = None,
    on_failed: Callable[[Exception], None] | None = None,
) -> FastAPI:
    """Make an ASGI app that answers over HTTP (docs/serving.md).

    It listens at once, and answers questions as soon as the model is loaded. Its `state.service` is
    the `Service`, for routes of one's own.

    Args:
        open_model: returns the ServedModel; called in a thread, at the start and at each reload.
        settings: limits and key; by default those of `ServerSettings`.
        routers: FastAPI routers that are added.
        on_loaded: called when the first model answers.
        on_failed: called when it can't be loaded.

    Raises:
        ImportError: one of the libraries is not installed.
    """
    check_libraries()
    from fastapi import Depends, FastAPI
    from fastapi.security import HTTPBearer

    from rag_core.serving.guard import Guard
    from rag_core.serving.handlers import add_error_handlers
    from rag_core.serving.headers import SecurityHeaders

    settings = settings or ServerSettings()
    service = Service(open_model, settings)

    async def load() -> None:
        try:
            await service.start()
        except Exception as error:
            service.fault = error
            if on_failed is None:
                _LOG.exception("the model can't be loaded")
            else:
                on_failed(error)
        else:
            if on_loaded is not None:
                on_loaded(service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(load())
        yield
        loading.cancel()
        with suppress(asyncio.CancelledError):
            await loading
        await service.close()

    shown_key = []
    if settings.api_key is not None:  # for /docs; it is the guard that looks at it
        shown_key = [Depends(HTTPBearer(auto_error=False))]
    app = FastAPI(
        title="dualrag",
        version=__version__,
        summary="Answers with the passages that carry them.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        dependencies=shown_key,
    )
    app.state.service = service
    add_error_handlers(app)
    ours = [import_module(f"rag_core.serving.{module}").router for module in _ROUTES]
    everyones = [*ours, *routers]
    app.add_middleware(
        Guard, service=service, routes=[route for router in everyones for route in router.routes]
    )
    app.add_middleware(SecurityHeaders)
    for router in everyones:
        app.include_router(router)
    return app
