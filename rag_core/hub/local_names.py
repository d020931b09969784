"""Names that mean what the demo keeps in its cache, with or without a hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

DEMO = "dualrag/demo"
DEMO_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
# Who asks for one of these wants the hub's files.
_ASKS_FOR_THE_HUB = ("cache_dir", "revision", "force_download")


def local_name(name_or_path: str | Path, hub: Mapping[str, Any] | None = None) -> str | Path:
    """The folder that a name means on this machine; any other name as it is.

    ``"dualrag/demo"`` is the demo's model, made of its parts if need be, and its encoder's
    repository means the encoder in the cache once it is there. A folder of that name in the working
    directory comes first. Nothing is fetched.

    Args:
        name_or_path: of a model.
        hub: options of `rag_core.hub.HUB_KWARGS`.

    Raises:
        FileNotFoundError: the demo was not built here.
    """
    name = os.fspath(name_or_path)
    if name not in (DEMO, DEMO_ENCODER) or Path(name).exists():
        return name_or_path
    if name == DEMO:
        return _demo().model_here()
    if hub and any(hub.get(option) for option in _ASKS_FOR_THE_HUB):
        return name_or_path
    return _demo().encoder_here() or name_or_path


def local_knowledge(name_or_path: str | Path) -> Path | None:
    """The folder of the knowledge base that a name means on this machine; None for other names.

    Raises:
        FileNotFoundError: the demo was not built here.
    """
    if os.fspath(name_or_path) != DEMO or Path(DEMO).exists():
        return None
    return _demo().knowledge_here()


def _demo() -> Any:
    # by its name, as it is a wing above this one
    return import_module("rag_core.demo")
