"""What a knowledge base holds and what made it, as one dictionary."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_core.backends import available_backends
from rag_core.hub import local_name
from rag_core.knowledge.manifest import FILE
from rag_core.retrieval import known_keys

if TYPE_CHECKING:
    from rag_core.knowledge.base import KnowledgeBase

FIRST_FILES = 5


def base_info(kb: KnowledgeBase) -> dict[str, Any]:
    """See `KnowledgeBase.info`."""
    manifest = kb.manifest
    names = [str(entry.get("path")) for entry in manifest.sources]
    kinds = Counter(Path(name).suffix.lower() or "without suffix" for name in names)
    keys = known_keys(kb.dataset())
    changed = (kb.path / FILE).stat().st_mtime
    return {
        "path": str(kb.path),
        "passages": len(kb),
        "words": manifest.words,
        "files": len(names),
        "kinds": dict(kinds.most_common()),
        "first_files": names[:FIRST_FILES],
        "roots": [str(path) for path in manifest.root_paths(kb.path)],
        "metadata": {key: values for key, values in keys.items() if key not in ("title", "text")},
        "encoder": manifest.encoder["name"],
        "encoder_at": encoder_place(kb.encoder_source),
        "backends": available_backends(),
        "dimension": manifest.dimension,
        "index": manifest.index,
        "bytes": sum(file.stat().st_size for file in kb.path.rglob("*") if file.is_file()),
        "written": datetime.fromtimestamp(changed, UTC).isoformat(timespec="seconds"),
        "credit": manifest.credit,
        "libraries": manifest.libraries,
        "request": manifest.request,
    }


def encoder_place(name: str) -> str | None:
    """Where an encoder lies on this machine: a folder, or the hub's cache; None where it doesn't."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    folder = Path(local_name(name))
    if folder.is_dir():
        return str(folder)
    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # the name of a folder, which is no repository's
        return None
    if not isinstance(config, str):
        return None
    return str(Path(config).parent)
