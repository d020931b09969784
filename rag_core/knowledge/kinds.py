"""Kinds of files: which are read, by what, and what to do about those that are not."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

EXTRA = "pip install 'dualrag[files]'"


class Kind(NamedTuple):
    """How files of a suffix are read.

    Attributes:
        module: of rag_core.knowledge.
        function: of it.
        libraries: modules that are needed besides, of the extra `files`.
        walked: whether they are read in folders, too, or only where they are named themselves.
    """

    module: str
    function: str = "read"
    libraries: tuple[str, ...] = ()
    walked: bool = True


_HTML = ("lxml", "webencodings")

KINDS: dict[str, Kind] = {
    ".txt": Kind("documents", "read_plain"),
    ".md": Kind("documents", "read_markdown"),
    ".markdown": Kind("documents", "read_markdown"),
    ".csv": Kind("tables", "read_csv"),
    ".tsv": Kind("tables", "read_tsv"),
    ".jsonl": Kind("tables", "read_jsonl"),
    ".parquet": Kind("tables", "read_parquet"),
    # Knowledge bases, caches and half-done work are made of such files.
    ".arrow": Kind("tables", "read_arrow", walked=False),
    ".feather": Kind("tables", "read_arrow", walked=False),
    ".pdf": Kind("readers.pdf", libraries=("pypdf",)),
    ".docx": Kind("readers.docx", libraries=("docx",)),
    ".pptx": Kind("readers.pptx", libraries=("pptx",)),
    ".html": Kind("readers.html", libraries=_HTML),
    ".htm": Kind("readers.html", libraries=_HTML),
    ".xhtml": Kind("readers.html", libraries=_HTML),
    ".epub": Kind("readers.epub", libraries=_HTML),
    ".rst": Kind("readers.rst", libraries=("docutils",)),
    ".ipynb": Kind("readers.ipynb"),
    # The text of many an e-mail is HTML alone.
    ".eml": Kind("readers.eml", libraries=_HTML),
}
TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".arrow", ".feather")
_ADVICE = {
    ".doc": "save it as .docx",
    ".odt": "save it as .docx",
    ".rtf": "save it as .docx",
    ".pages": "save it as .docx",
    ".ppt": "save it as .pptx",
    ".odp": "save it as .pptx",
    ".key": "save it as .pptx",
    ".xls": "save its sheets as .csv",
    ".xlsx": "save its sheets as .csv",
    ".ods": "save its sheets as .csv",
    ".json": "save it as .jsonl, an object a line",
    ".msg": "save it as .eml",
    ".mbox": "save its e-mails as .eml",
    ".mobi": "save it as .epub",
    ".zip": "unpack it",
    ".tar": "unpack it",
    ".gz": "unpack it",
}


def is_known(suffix: str) -> bool:
    """Whether files of a suffix (".pdf") are read where the libraries are installed."""
    return suffix.lower() in KINDS


def is_read(suffix: str) -> bool:
    """Whether files of a suffix are read here."""
    kind = KINDS.get(suffix.lower())
    return kind is not None and all(find_spec(name) is not None for name in kind.libraries)


def is_walked(suffix: str) -> bool:
    """Whether files of a suffix are read here where a folder holds them."""
    return is_read(suffix) and KINDS[suffix.lower()].walked


def reader(suffix: str) -> Any:
    """The function that reads files of a suffix."""
    kind = KINDS[suffix.lower()]
    return getattr(import_module(f"rag_core.knowledge.{kind.module}"), kind.function)


def advice(suffixes: Iterable[str]) -> str:
    """What makes files of these suffixes readable, as sentences; "" where nothing is known."""
    suffixes = list(suffixes)
    told = []
    if missing := [suffix for suffix in suffixes if is_known(suffix) and not is_read(suffix)]:
        told.append(f"To read {', '.join(missing)}:  {EXTRA}")
    for suffix in suffixes:
        if suffix in _ADVICE:
            told.append(f"A {suffix} file is read if you {_ADVICE[suffix]}.")
    return " ".join(told)
