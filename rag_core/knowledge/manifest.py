"""manifest.json of a knowledge base.

What it holds, what made it, and whether its files are still what was written.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.checkpoint import vouch
from rag_core.hub import DamagedFileError, bounded_json
from rag_core.knowledge.files import in_full
from rag_core.retrieval import notes_fault

if TYPE_CHECKING:
    from rag_core.knowledge.frames import Frame

VERSION = 1
FILE = "manifest.json"
INDEX_FILE = "index.faiss"
PASSAGES = "passages"
# Checksums of up to this much are checked at each opening; beyond, they would take seconds, and
# sizes and a few spots are.
HASHED_BYTES = 256 << 20


def index_text(index: Mapping[str, Any]) -> str:
    """What a manifest says of the index, for people: kind, settings, recall against exact search."""
    text = str(index.get("kind"))
    if index.get("search"):
        text = f"{index['search']}, and of vectors {text}"
    if settings := index.get("settings"):
        text += f" ({', '.join(f'{name} {value}' for name, value in settings.items())})"
    if index.get("recall_at_5") is not None:
        text += f", recall@5 {index['recall_at_5']:.3f}"
    return text


@dataclass
class Manifest:
    """What manifest.json holds; every path in it is relative to the knowledge base.

    Attributes:
        encoder: "name", "fingerprint" (of its weights, where known) and "probe", the beginning of
            its vector of a fixed sentence, by which a different encoder is noticed; "prompts" of
            "query" and "passage", where it has some; "path" where it
            lies beside the knowledge base, relative to that.
        dimension: D, the size of a vector.
        rows: number of passages.
        metric: always inner product (paper, section 2.2).
        words: passage length asked for; None where documents were kept whole.
        index: "kind", "settings", "recall_at_5" against exact search and "queries" it was measured
            on; "search" where it is searched otherwise than by vectors ("bm25",
            "hybrid").
        sources: "path", "bytes", "sha256" of each file read; the path is the file's name as a
            source of passages.
        roots: "path" and "name" of each folder or file that was asked for: relative to the folder
            that holds the knowledge base, and what its sources begin with.
        files: relative path -> "bytes", "sha256" and "spots" of each file of the knowledge base.
        credit: authors and licence of the text, where given.
        libraries: versions of the modules at the time of writing.
        request: what `build_knowledge_base` was asked for, so that asking again finds it done.
    """

    encoder: dict[str, Any]
    dimension: int
    rows: int
    words: int | None
    index: dict[str, Any]
    sources: list[dict[str, Any]]
    roots: list[dict[str, str]] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    metric: str = "inner_product"
    credit: str | None = None
    libraries: dict[str, str] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)
    format: str = "dualrag knowledge base"
    version: int = VERSION

    @property
    def search(self) -> str:
        """How passages are searched: "vectors", "bm25" or "hybrid"."""
        return self.index.get("search", "vectors")

    def summary(self) -> str:
        """Passages, vector size, index and encoder, in one line."""
        kind = self.index.get("search") or self.index.get("kind", "unknown")
        return (
            f"{self.rows:,} passages, D={self.dimension}, {kind} index, encoder "
            f"{self.encoder.get('name')!r}"
        )

    def __repr__(self) -> str:
        return f"Manifest({self.summary()}, {len(self.sources):,} sources)"

    def write(self, folder: Path) -> None:
        """Lists the files of `folder` with size and sha256 and writes manifest.json beside them."""
        from rag_core import __version__

        paths = [path for path in folder.rglob("*") if path.is_file() and path.name != FILE]
        files = {path.relative_to(folder).as_posix(): path for path in paths}
        self.files = {
            name: {**describe(path), "spots": spots(path)} for name, path in sorted(files.items())
        }
        vouch(paths)
        # Modules, not distributions: faiss comes as faiss-cpu, faiss-gpu or conda's faiss.
        modules = ("numpy", "faiss", "datasets", "pyarrow")
        self.libraries = {
            name: str(getattr(import_module(name), "__version__", "unknown")) for name in modules
        }
        self.libraries["dualrag"] = __version__
        (folder / FILE).write_text(
            json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads manifest.json.

        Raises:
            FileNotFoundError: no knowledge base there.
            ValueError: the manifest is damaged, of a later version, or points outside its folder.
        """
        path = folder / FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder}: no knowledge base here (there is no {FILE}). Build one:  dualrag "
                f"index PATHS --out {folder}"
            )
        try:
            values = bounded_json(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise TypeError(f"it must hold an object, got {type(values).__name__}")
            later = _whole("version", values.get("version", 0)) > VERSION
            manifest = cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
            if not later:
                manifest._check_types()
        except (ValueError, TypeError) as error:
            raise DamagedFileError(
                f"{path} is damaged ({error!s:.160}). Build the knowledge base anew."
            ) from None
        if later:
            raise ValueError(
                f"{path}: version {manifest.version}, this release reads up to {VERSION}. Update "
                "dualrag."
            )
        for name in manifest.files:
            if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
                raise DamagedFileError(
                    f"{path}: file names must stay inside the knowledge base, got {name!r}."
                )
        return manifest

    def _check_types(self) -> None:
        for name, kind in _KINDS.items():
            if not isinstance(getattr(self, name), kind):
                rule = getattr(kind, "__name__", "text or null")
                raise TypeError(f"{name} must be {rule}, got {getattr(self, name)!r:.60}")
        _whole("rows", self.rows)
        _whole("dimension", self.dimension, 1)
        if self.words is not None:
            _whole("words", self.words, 1)
        probe = self.encoder.get("probe")
        if not isinstance(self.encoder.get("name"), str) or not isinstance(probe, list):
            raise TypeError(f"encoder must have a name and a probe, got {self.encoder!r:.60}")
        if not all(type(value) in (int, float) and math.isfinite(value) for value in probe):
            raise TypeError(f"encoder: probe must hold numbers, got {probe!r:.60}")
        prompts = self.encoder.get("prompts", {})
        if not isinstance(prompts, dict) or not all(
            name in ("query", "passage") and isinstance(text, str) for name, text in prompts.items()
        ):
            raise TypeError(f"encoder: prompts must be of query and passage, got {prompts!r:.60}")
        place = self.encoder.get("path", "")
        # a knowledge base from elsewhere must not make a program open what lies anywhere
        if not isinstance(place, str) or Path(place).is_absolute() or "\0" in place:
            raise TypeError(f"encoder: path must be relative, got {place!r:.60}")
        for name, entry in self.files.items():
            has_hash = isinstance(entry, dict) and isinstance(entry.get("sha256"), str)
            if not has_hash or "bytes" not in entry:
                raise TypeError(f"files: {name!r} must have bytes and sha256, got {entry!r:.60}")
            _whole(f"files: {name!r}: bytes", entry["bytes"])
        if not all(isinstance(entry, dict) for entry in self.sources):
            raise TypeError(f"sources must hold objects, got {self.sources!r:.60}")
        for root in self.roots:
            texts = isinstance(root, dict) and [root.get("path"), root.get("name")]
            if not texts or not all(isinstance(text, str) and "\0" not in text for text in texts):
                raise TypeError(f"roots must have a path and a name, got {root!r:.60}")
            if Path(root["path"]).is_absolute():
                raise TypeError(f"roots: path must be relative, got {root['path']!r:.60}")
        if fault := notes_fault(self.index):
            raise TypeError(f"index: {fault}")
        if not isinstance(self.index.get("search", ""), str):
            raise TypeError(f"index: search must be a text, got {self.index['search']!r:.60}")

    def root_paths(self, folder: Path) -> dict[Path, str]:
        """The folders and files that were asked for, with the names of `roots`.

        Args:
            folder: the knowledge base; what it was built from has to lie beside it as it did.
        """
        home = folder.resolve().parent
        return {Path(os.path.normpath(home / root["path"])): root["name"] for root in self.roots}

    def check_files(self, folder: Path, verify: bool | None = None) -> None:
        """Compares the files with what was written: presence and size, the faiss header, and
        checksums.

        Args:
            folder: the knowledge base.
            verify: whether checksums are computed; None does so up to 256 MB in all. Without, eight
                blocks of each file are compared: gigabytes open at once, and a copy that broke off
                is noticed.

        Raises:
            ValueError: a file is missing, truncated or altered.
        """
        needed = (INDEX_FILE, f"{PASSAGES}/state.json")
        missing = [name for name in needed if name not in self.files]
        if missing:
            raise DamagedFileError(
                f"{folder / FILE} does not list {missing}. Build the knowledge base anew."
            )
        if verify is None:
            verify = sum(entry["bytes"] for entry in self.files.values()) <= HASHED_BYTES
        for name, entry in self.files.items():
            path = folder / name
            if not path.is_file():
                raise DamagedFileError(
                    f"{path} is missing from the knowledge base. Build it anew, or copy it whole."
                )
            size = path.stat().st_size
            if size != entry["bytes"]:
                raise DamagedFileError(
                    f"{path} is damaged: {entry['bytes']:,} bytes were written, it has {size:,}. "
                    "Build it anew."
                )
            if verify and describe(path)["sha256"] != entry["sha256"]:
                raise DamagedFileError(
                    f"{path} is damaged: its sha256 is not the manifest's. Build the knowledge "
                    "base anew."
                )
            if verify:
                vouch([path])
            if not verify and spots(path) != entry.get("spots", spots(path)):
                raise DamagedFileError(
                    f"{path} is damaged: it is not what was written. Build the knowledge base anew."
                )
        size, rows = _faiss_header(folder / INDEX_FILE)
        if (size, rows) != (self.dimension, self.rows):
            raise DamagedFileError(
                f"{folder}: the manifest says {self.rows} rows of {self.dimension} numbers, "
                f"{INDEX_FILE} holds {rows} of {size}. They are not from one build; build the "
                "knowledge base anew."
            )


_KINDS: dict[str, Any] = {
    **dict.fromkeys(("encoder", "index", "files", "libraries", "request"), dict),
    **dict.fromkeys(("sources", "roots"), list),
    "metric": str,
    "credit": str | None,
}


def _whole(name: str, value: Any, least: int = 0) -> int:
    """The value, a whole number that faiss and NumPy hold.

    Raises:
        TypeError: it is none.
    """
    if type(value) is not int or not least <= value < 2**63:
        raise TypeError(f"{name} must be a whole number of at least {least}, got {value!r:.60}")
    return value


def root_entries(roots: Iterable[tuple[Path, str]], folder: Path) -> list[dict[str, str]]:
    """What `Manifest.roots` holds of paths and names that `find_roots` gave.

    Args:
        roots: the pairs; those that have no relative path (another drive), or one that is no text,
            are left out.
        folder: the knowledge base.
    """
    home = folder.resolve().parent
    entries = []
    for path, name in roots:
        try:
            relative = Path(os.path.relpath(in_full(path), home)).as_posix()
            relative.encode()
        except ValueError:
            continue
        entries.append({"path": relative, "name": name})
    return entries


def described_files(files: Iterable[tuple[Path | Frame, str]]) -> list[dict[str, Any]]:
    """What `Manifest.sources` holds of files that `find_files` found, or of a table in memory."""
    return [{"path": Path(name).as_posix(), **describe(path)} for path, name in files]


def describe(path: Path | Frame) -> dict[str, Any]:
    """Size and sha256 of a file, or of a table in memory."""
    if not isinstance(path, Path):
        return path.describe()
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
        return {"bytes": stream.tell(), "sha256": digest.hexdigest()}


def spots(path: Path, count: int = 8, size: int = 4096) -> str:
    """A sha256 of a few evenly spaced blocks of a file, the first and the last among them."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        last = max(0, path.stat().st_size - size)
        for number in range(count):
            stream.seek(last * number // (count - 1))
            digest.update(stream.read(size))
    return digest.hexdigest()


def probe_entry(vector: np.ndarray) -> list[float]:
    """The beginning of a probe vector, as the manifest keeps it."""
    return [float(f"{value:.6g}") for value in vector[:32] if math.isfinite(value)]


def _faiss_header(path: Path) -> tuple[int, int]:
    # All faiss files begin alike: a four-letter kind, int32 D, int64 number of vectors.
    with path.open("rb") as stream:
        head = stream.read(16)
    if len(head) < 16 or not head[:4].isalnum():
        raise ValueError(
            f"{path} is no faiss index (it begins with {head[:4]!r}). Build the knowledge base "
            "anew."
        )
    return int(np.frombuffer(head, "<i4", 1, 4)[0]), int(np.frombuffer(head, "<i8", 1, 8)[0])
