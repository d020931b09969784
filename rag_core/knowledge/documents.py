"""Files on disk -> documents.

Txt, md, csv, tsv, jsonl, parquet, or folders of them, one streamed line at a time.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rag_core.checks import warn
from rag_core.hub import numbered, read_lines

Paths = str | Path | Iterable[str | Path]

# A longer plain text is handed on in blocks, so that one huge file never sits in memory.
BLOCK_CHARS = 1 << 20
# More than fit a screen help nobody.
FAULTS_TOLD = 20


@dataclass(frozen=True)
class Document:
    """A titled text before it is split.

    Attributes:
        title: without one of its own, the file's name.
        text: any length.
        place: the file, with the line or row where that helps, for errors.
        source: the file's name below the folder that is read, or the address that a row names.
            Readers of one file leave it None: `read_documents` knows the name.
        metadata: JSON values by name: "headings" (outermost first), "row" (from 1) and the like,
            and the further columns of a table.
        marks: (offset in the text, position) pairs in order: from there on the text stands at
            {"line": 13}, {"page": 2} and the like. Where lines of the text are not lines of the
            file, {"line": 13, "end_line": 15} says among which they are.
        kept: (start, end) ranges of the text, in order, whose line breaks and blanks stay: code,
            tables. Elsewhere white space becomes single blanks.
    """

    title: str
    text: str
    place: str
    source: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    marks: Sequence[tuple[int, Mapping[str, Any]]] = ()
    kept: Sequence[tuple[int, int]] = ()


class PassedByWarning(UserWarning):
    """Something on disk that was not read: files of other kinds, empty ones, rows without text."""


class BadFilesError(ValueError):
    """Several files cannot be read.

    Attributes:
        faults: what is wrong with each, with its name.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join([f"{len(faults)} files cannot be read:", *faults]))
        self.faults = faults


def find_roots(
    paths: str | Path | Iterable[str | Path], known: Mapping[Path, str] = MappingProxyType({})
) -> list[tuple[Path, str]]:
    """Paths without repeats, each with the name that its files have in front.

    That is the folder's or file's own name, and as much of the path before it as tells it from the
    others.

    Args:
        paths: files or folders, which need not exist.
        known: names that paths have already; others get other ones.
    """
    if isinstance(paths, (str, Path)):
        paths = [paths]
    roots: dict[Path, Path] = {}
    for path in map(Path, paths):
        roots.setdefault(_real(path), path)
    named = {_real(path): name for path, name in known.items()}
    names = {real: named.get(real, _as_text(real.name)) for real in roots}
    taken = [name for real, name in named.items() if real not in roots]
    longest = max((len(real.parts) for real in roots), default=0)
    for length in range(2, longest + 1):
        times = Counter([*names.values(), *taken])
        for real in roots.keys() - named.keys():
            if times[names[real]] > 1:
                names[real] = _as_text("/".join(real.parts[-length:]).strip("/"))
    return [(path, names[real]) for real, path in roots.items()]


def find_files(
    paths: str | Path | Iterable[str | Path], known: Mapping[Path, str] = MappingProxyType({})
) -> list[tuple[Path, str]]:
    """The files behind `paths`, folders walked recursively in sorted order, linked ones entered.

    Args:
        paths: files or folders. What a folder holds beside files of the kinds that are read (other
            kinds, empty and hidden files, links to nothing) is passed by, and counted in one
            `PassedByWarning`. A file that is reached twice, by a link or by its name, is read once.
        known: as in `find_roots`.

    Returns:
        (file, name as `find_roots` begins it) pairs, without repeats.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a file of another kind or an empty one was named, or nothing was found.
        OSError: a folder cannot be opened.
    """
    collection = _Collection()
    faults: list[ValueError | OSError] = []
    for path, name in find_roots(paths, known):
        try:
            if path.is_dir():
                _walk(path, name, collection)
            else:
                _check_named(path)
                collection.add(in_full(path), name)
        except (ValueError, OSError) as error:
            faults.append(error)
    if len(faults) > 1:
        raise BadFilesError([str(fault) for fault in faults])
    if faults:
        raise faults[0]
    if collection.passed_by:
        warn(f"passed by: {collection.summary()}.", PassedByWarning)
    if not collection.files:
        raise ValueError(
            "paths: there is nothing to read, every file is empty or no path was given."
        )
    return collection.files


def read_documents(
    paths: str | Path | Iterable[str | Path], *, tsv_quotes: bool = True
) -> Iterator[Document]:
    """Documents of files and folders, streamed.

    txt: the file is one document, titled by its name. md: a document a section, titled `Doc —
    Section`, where Doc is the first-level heading or the file's name. csv, tsv, jsonl, parquet: a
    document a row, from a column `text` and optionally `title` (DPR's `id, text, title` files fit);
    rows with blank text are passed by, with a `PassedByWarning`. Text is UTF-8, or UTF-16 or UTF-32
    with a byte order mark.

    Args:
        paths: files or folders, see `find_files`.
        tsv_quotes: whether double quotes in .tsv files enclose fields, as in .csv; False: they are
            letters.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: an empty, undecodable or malformed file, naming the file, its line and what to
            do. Where the files after it do not begin well, either, they are all named
            (`BadFilesError`).
    """
    yield from read_files(find_files(paths), tsv_quotes=tsv_quotes)


def read_files(files: Sequence[tuple[Path, str]], *, tsv_quotes: bool = True) -> Iterator[Document]:
    """Documents of what `find_files` found, as `read_documents` gives them.

    Args:
        files: (file, its name as a source) pairs.
        tsv_quotes: as in `read_documents`.

    Raises:
        ValueError: as in `read_documents`.
    """
    for number, (path, name) in enumerate(files):
        try:
            for document in _documents(path, tsv_quotes):
                yield _with_source(document, Path(name).as_posix())
        except ValueError as error:
            rest = [path for path, _ in files[number + 1 :]]
            faults = [str(error), *_faults(rest, tsv_quotes)]
            if len(faults) == 1:
                raise
            raise BadFilesError(faults) from None


def _with_source(document: Document, file: str) -> Document:
    """The document with the file as its source, or, where it has another one, in its metadata."""
    if document.source is None:
        return replace(document, source=file)
    return replace(document, metadata={**document.metadata, "file": file})


def _documents(path: Path, tsv_quotes: bool) -> Iterator[Document]:
    has_text = False
    blank_rows = 0
    first_blank = ""
    for document in _reader(path, tsv_quotes)(path):
        if document.text.strip():
            has_text = True
            yield document
        else:
            blank_rows += 1
            first_blank = first_blank or document.place
    if not has_text:
        raise ValueError(f"{path}: the file holds no text. Remove it from the list or fill it.")
    if blank_rows and path.suffix.lower() in _TABLES:
        warn(
            f"{first_blank}: passed by, its text is blank ({blank_rows} row(s) of the file in "
            "all).",
            PassedByWarning,
        )


def _faults(files: Iterable[Path], tsv_quotes: bool) -> Iterator[str]:
    """What is wrong with the beginnings of files: their first document is read."""

    def fault(path: Path) -> str | None:
        try:
            next(_reader(path, tsv_quotes)(path), None)
        except (ValueError, OSError) as error:
            return str(error)
        return None

    yield from islice(filter(None, map(fault, files)), FAULTS_TOLD - 1)


def _reader(path: Path, tsv_quotes: bool) -> Callable[[Path], Iterator[Document]]:
    kind = path.suffix.lower()
    if kind == ".tsv":
        return partial(_read_tsv, quotes=tsv_quotes)
    return READERS[kind]


@dataclass
class _Collection:
    """Files to read, each once, and the names of what was passed by, by kind."""

    files: list[tuple[Path, str]] = field(default_factory=list)
    passed_by: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    seen: set[Any] = field(default_factory=set)

    def first_time(self, path: Path) -> bool:
        """Whether the file or folder, whatever its name, comes for the first time."""
        stat = path.stat()
        key: Any = stat.st_dev, stat.st_ino
        # Some file systems number no files.
        if not stat.st_ino:
            key = path.resolve()
        if key in self.seen:
            return False
        self.seen.add(key)
        return True

    def add(self, path: Path, name: str) -> None:
        if self.first_time(path):
            self.files.append((path, _as_text(name)))

    def summary(self) -> str:
        # What people may have meant to be read comes first.
        order = sorted(
            (kind == "hidden", -len(names), kind) for kind, names in self.passed_by.items()
        )
        told = []
        for _, _, kind in order:
            names = self.passed_by[kind]
            told.append(f"{len(names):,} {kind} ({_as_text(numbered(names))})")
        return ", ".join(told)


def in_full(path: Path) -> Path:
    """The path without links but for its last name; "." and ".." have none."""
    if path.name in ("", ".."):
        return path.resolve()
    return path.parent.resolve() / path.name


def _real(path: Path) -> Path:
    """What tells roots apart: a folder has one name however it is reached, a file its own."""
    if path.is_dir():
        return path.resolve()
    return in_full(path)


def _walk(path: Path, name: str, collection: _Collection) -> None:
    root = path.resolve()
    # Folders of this one: a link back into it is not followed for ever.
    entered = _Collection()
    entered.first_time(root)

    def refuse(error: OSError) -> None:
        raise OSError(
            f"{error.filename}: the folder cannot be opened ({error.strerror}). Change that, or "
            "leave it out."
        )

    def shown(path: Path) -> str:
        return str(Path(name) / path.relative_to(root))

    inside: list[Path] = []
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        here = Path(folder)
        to_enter = []
        for below in folders:
            if below.startswith("."):
                collection.passed_by["hidden"].append(shown(here / below))
            elif entered.first_time(here / below):
                to_enter.append(below)
        folders[:] = sorted(to_enter)
        inside += [here / name for name in names]
    if not any(file.suffix.lower() in READERS and not file.name.startswith(".") for file in inside):
        raise ValueError(
            f"{path}: the folder holds none of {', '.join(READERS)}. Name another folder."
        )
    for file in sorted(inside):
        if kind := _not_read(file):
            collection.passed_by[kind].append(shown(file))
        else:
            collection.add(file, shown(file))


def _not_read(path: Path) -> str | None:
    """What kind of file that is not read this one is."""
    if path.name.startswith("."):
        return "hidden"
    if not path.exists():
        return "links to nothing"
    if not path.is_file():
        return "special"
    if path.suffix.lower() not in READERS:
        return path.suffix.lower() or "without suffix"
    if path.stat().st_size == 0:
        return "empty"
    return None


def _check_named(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder. Check the path.")
    if path.suffix.lower() not in READERS:
        raise ValueError(
            f"{path}: cannot read {path.suffix or 'a file without suffix'}; use "
            f"{', '.join(READERS)}."
        )
    if not path.is_file():
        raise ValueError(
            f"{path}: must be a file or a folder, not a pipe or a device. Write its text to a "
            "file first."
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty. Remove it from the list or fill it.")


def title_of(path: Path) -> str:
    """The title of what has none of its own; bytes of a name that are not UTF-8 are replaced."""
    return os.fsencode(path.stem).decode("utf-8", "replace")


def _as_text(name: str) -> str:
    r"""A file's name for people and manifests.

    Bytes that are not UTF-8, lone surrogates here, as \x.. .
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _read_txt(path: Path) -> Iterator[Document]:
    block: list[str] = []
    marks: list[tuple[int, dict[str, int]]] = []
    size = 0
    place = str(path)
    for number, line in read_lines(path):
        marks.append((size, {"line": number}))
        block.append(line)
        size += len(line)
        if size >= BLOCK_CHARS:
            yield Document(
                title_of(path), "".join(block), f"{path}:{marks[0][1]['line']}", marks=marks
            )
            block = []
            marks = []
            size = 0
            place = f"{path}:{number + 1}"
    yield Document(title_of(path), "".join(block), place, marks=marks)


def _read_md(path: Path) -> Iterator[Document]:
    from rag_core.knowledge.markdown import sections

    lines = (text for _, text in read_lines(path))
    for section in sections(lines, title_of(path), BLOCK_CHARS):
        yield Document(
            section.title,
            section.text,
            f"{path}:{section.line}",
            metadata={"headings": section.headings},
            marks=section.marks,
            kept=section.kept,
        )


def _read_csv(path: Path) -> Iterator[Document]:
    from rag_core.knowledge.tables import read_separated

    return read_separated(path, ",")


def _read_tsv(path: Path, quotes: bool = True) -> Iterator[Document]:
    from rag_core.knowledge.tables import read_separated

    return read_separated(path, "\t", quotes)


def _read_jsonl(path: Path) -> Iterator[Document]:
    from rag_core.knowledge.tables import read_jsonl

    return read_jsonl(path)


def _read_parquet(path: Path) -> Iterator[Document]:
    from rag_core.knowledge.tables import read_parquet

    return read_parquet(path)


READERS: dict[str, Callable[[Path], Iterator[Document]]] = {
    ".txt": _read_txt,
    ".md": _read_md,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
