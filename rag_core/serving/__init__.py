"""Answers over HTTP: one app in front of a model of either backend (docs/serving.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.serving.app import create_app as create_app
    from rag_core.serving.batching import Batcher as Batcher
    from rag_core.serving.errors import ApiError as ApiError
    from rag_core.serving.libraries import check_libraries as check_libraries
    from rag_core.serving.model import ServedModel as ServedModel
    from rag_core.serving.server import Server as Server
    from rag_core.serving.server import bind as bind
    from rag_core.serving.server import run_server as run_server
    from rag_core.serving.service import Service as Service
    from rag_core.serving.settings import ServerSettings as ServerSettings

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "app": ["create_app"],
        "batching": ["Batcher"],
        "errors": ["ApiError"],
        "libraries": ["check_libraries"],
        "model": ["ServedModel"],
        "server": ["Server", "bind", "run_server"],
        "service": ["Service"],
        "settings": ["ServerSettings"],
    },
)
