"""Which knowledge base a tuned model belongs to: a small file in the model's folder.

`knowledge_base.json`: "path" (relative to the model's folder, null where there is no such way),
"manifest_sha256", "encoder" (its name).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from rag_core.hub import DamagedFileError, atomic_write, read_json
from rag_core.knowledge.base import KnowledgeBase
from rag_core.knowledge.manifest import FILE as MANIFEST
from rag_core.knowledge.manifest import describe

REMEMBERED = "knowledge_base.json"
_ADVICE = "Remove it, and name the knowledge base (--kb)."


@dataclass(frozen=True)
class RememberedBase:
    """The knowledge base that a model was tuned with.

    Attributes:
        path: where it lay; None where nothing is known of that.
        manifest_sha256: of its manifest.json then.
        encoder: the name of its encoder; None if it had none.
    """

    path: Path | None
    manifest_sha256: str
    encoder: str | None

    def is_here(self) -> bool:
        """Whether there is a knowledge base where it lay."""
        return self.path is not None and (self.path / MANIFEST).is_file()

    def is_of(self, base: KnowledgeBase) -> bool:
        """Whether `base` is this one: at its place, or the same passages elsewhere."""
        if self.path is not None and self.path.resolve() == base.path.resolve():
            return True
        return describe(base.path / MANIFEST)["sha256"] == self.manifest_sha256


def remember_base(file: Path, model_folder: Path, base: KnowledgeBase) -> None:
    """Write what a model's folder remembers of its knowledge base.

    Args:
        file: where to; it may lie in a draft of the folder.
        model_folder: where the model will lie.
        base: its knowledge base; it may lie in the draft, too.
    """
    home = model_folder.resolve()
    if base.path.resolve().is_relative_to(file.parent.resolve()):
        home = file.parent.resolve()
    try:
        path = Path(os.path.relpath(base.path.resolve(), home)).as_posix()
    except ValueError:  # on another drive of Windows
        path = None
    notes = {
        "path": path,
        "manifest_sha256": describe(base.path / MANIFEST)["sha256"],
        "encoder": base.manifest.encoder.get("name"),
    }
    with atomic_write(file) as draft:
        draft.write_text(json.dumps(notes, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def remembered_base(model: str | Path) -> RememberedBase | None:
    """The knowledge base that a model's folder remembers; None if it is no folder or remembers
    none.

    Raises:
        DamagedFileError: the file says something else, or its path is not relative.
    """
    file = Path(model) / REMEMBERED
    if not file.is_file():
        return None
    notes = read_json(file, advice=_ADVICE)
    path, digest, encoder = (notes.get(name) for name in ("path", "manifest_sha256", "encoder"))
    if not isinstance(path, str | None) or not isinstance(encoder, str | None):
        raise DamagedFileError(f"{file}: path and encoder must be texts or null. {_ADVICE}")
    if not isinstance(digest, str):
        raise DamagedFileError(f"{file}: manifest_sha256 must be a text. {_ADVICE}")
    if path is None:
        return RememberedBase(None, digest, encoder)
    # a model from elsewhere must not make a program open what lies anywhere
    if Path(path).is_absolute() or PureWindowsPath(path).anchor or "\0" in path:
        raise DamagedFileError(f"{file}: path must be relative, got {path!r}. {_ADVICE}")
    return RememberedBase((Path(model).resolve() / path).resolve(), digest, encoder)
