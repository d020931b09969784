"""The process that embeds all passages of a knowledge base with a snapshot of an encoder:
`python -m rag_core.training.reindex_process REQUEST.json`.

It writes nothing but the new knowledge base, and says how it ended in one line of JSON on stdout:
{}, or what `failure` gives. When its stdin ends it ends: a training that
was killed leaves none behind. Shards that it finished stay, and the next one goes on from them.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

_ORPHANED, _FAILED = 3, 1
# Seconds for the process of a training that was killed to end, and let go of the work folder.
_PATIENCE = 20.0


def embed_anew(request: dict[str, Any]) -> None:
    """Write the knowledge base that a request asks for.

    Args:
        request: what `Reindexing` wrote: "base" and its "manifest_sha256", "encoder" (a folder),
            "backend", "device", and the arguments of `KnowledgeBase.reembed`.

    Raises:
        ValueError: the knowledge base has changed.
        OSError: the disk is full, or something is missing.
    """
    from rag_core.backends import load_backend
    from rag_core.knowledge import KnowledgeBase
    from rag_core.training.state import check_same_base

    check_same_base(request["base"], request["manifest_sha256"])
    base = KnowledgeBase.open(request["base"])
    encoder = load_backend(request["backend"]).load_encoder(
        request["encoder"], device=request["device"]
    )
    batch_size = base.manifest.request.get("batch_size", 32)
    base.reembed(
        request["out"],
        partial(encoder.embed, batch_size=batch_size),
        encoder_name=request["encoder_name"],
        encoder_fingerprint=request["encoder_fingerprint"],
        encoder_path=request["encoder_path"],
        place=request["place"],
        progress=False,
    )


def main(path: str) -> int:
    """Carry out the request in a file; the exit status."""
    answers = os.fdopen(os.dup(1), "w")
    # Libraries that print would fill a pipe that nobody reads before the end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        request = json.loads(Path(path).read_text(encoding="utf-8"))
        _when_free(request)
        answer: dict[str, str] = {}
    except Exception as error:
        answer = failure(error)
    answers.write(json.dumps(answer) + "\n")
    answers.close()
    if answer:
        return _FAILED
    return 0


def failure(error: Exception) -> dict[str, str]:
    """What a process says of what went wrong: whether the system's fault, and its text."""
    kind = type(error).__name__
    if isinstance(error, OSError):
        kind = "OSError"
    return {"kind": kind, "error": f"{error} ({type(error).__name__})"[:2000]}


def _when_free(request: dict[str, Any]) -> None:
    """Carry out a request as soon as an orphan of a killed training has let go of it."""
    from filelock import FileLock, Timeout

    work = Path(request["out"]).parent
    try:
        with FileLock(work / "lock", timeout=_PATIENCE):
            embed_anew(request)
    except Timeout:
        raise OSError(f"{work} is being written by another process. Wait for it to end.") from None


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(_ORPHANED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
