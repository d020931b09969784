"""Files on disk -> documents, one streamed at a time."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_core.checks import warn
from rag_core.hub import read_lines
from rag_core.knowledge.files import BadFilesError, PassedByWarning, find_files, told_by_kind
from rag_core.knowledge.kinds import TABLES, reader
from rag_core.knowledge.outline import BLOCK_CHARS, LeftOut, Section

if TYPE_CHECKING:
    from rag_core.knowledge.frames import Frame


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


@dataclass(frozen=True)
class ReadingOptions:
    """How files are read.

    Attributes:
        tsv_quotes: whether double quotes in .tsv files enclose fields, as in .csv; False: they are
            letters.
        text_column: the column of text of tables without a column `text`.
        title_column: the column of titles of tables without a column `title`.
    """

    tsv_quotes: bool = True
    text_column: str | None = None
    title_column: str | None = None

    def asked(self) -> dict[str, Any]:
        """What differs from the defaults, as a manifest keeps it."""
        defaults = asdict(DEFAULTS)
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> ReadingOptions:
        """The options of what `asked` gave, among other things."""
        return cls(**{name: asked[name] for name in asdict(cls()) if name in asked})


DEFAULTS = ReadingOptions()


def read_documents(
    paths: str | Path | Iterable[str | Path],
    *,
    tsv_quotes: bool = True,
    text_column: str | None = None,
    title_column: str | None = None,
    exclude: str | Iterable[str] = (),
    skip_bad: bool = False,
) -> Iterator[Document]:
    """Documents of files and folders, streamed.

    txt: the file is one document, titled by its name. md, html, docx, epub, rst, ipynb: a document
    a section, titled `Doc — Section`, where Doc is the document's own title or the file's name.
    pdf: one document with its pages; pptx: one a slide; eml: one, titled by its subject. csv, tsv,
    jsonl, parquet, arrow, feather: a document a row, from a column `text` and optionally `title`
    (DPR's `id, text, title` files fit). Plain text is UTF-8, or UTF-16 or UTF-32 with a byte order mark. What is
    passed by (rows and files without text, attachments) is told at the end, by a
    `PassedByWarning`.

    Args:
        paths: files or folders, see `find_files`.
        tsv_quotes, text_column, title_column: see `ReadingOptions`.
        exclude: see `find_files`.
        skip_bad: whether files that cannot be read are passed by; each is then read twice.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: an empty, undecodable or malformed file, naming the file, its line and what to
            do. Where files after it cannot be read, either, they are all named (`BadFilesError`).
    """
    options = ReadingOptions(tsv_quotes, text_column, title_column)
    files = find_files(paths, exclude=exclude)
    if skip_bad:
        files = readable(files, options)
    yield from read_files(files, options)


def read_files(
    files: Sequence[tuple[Path | Frame, str]], options: ReadingOptions = DEFAULTS
) -> Iterator[Document]:
    """Documents of what `find_files` found, as `read_documents` gives them.

    Args:
        files: (file or table in memory, its name as a source) pairs.
        options: how they are read.

    Raises:
        ValueError: as in `read_documents`.
    """
    passed_by = PassedBy()
    for number, (path, name) in enumerate(files):
        try:
            yield from read_file(path, name, options, passed_by)
        except ValueError as error:
            rest = find_faults(files[number + 1 :], options)
            if not rest:
                raise
            raise BadFilesError([str(error), *(fault for _, fault in rest)]) from None
    passed_by.warn()


def read_file(
    path: Path | Frame,
    name: str,
    options: ReadingOptions,
    passed_by: PassedBy,
    blank: bool = False,
) -> Iterator[Document]:
    """Documents of a file.

    Args:
        path: the file, or a table in memory.
        name: as a source.
        options: how it is read.
        passed_by: takes what is left out of it.
        blank: whether documents without text count, too.

    Raises:
        ValueError: it cannot be read, or holds no text.
    """
    name = Path(name).as_posix()
    has_text = False
    for document in _documents(path, options):
        if isinstance(document, LeftOut):
            passed_by.add(document.kind, f"{name}: {document.name}")
        elif blank or document.text.strip():
            has_text = True
            yield _with_source(document, name)
        elif path.suffix.lower() in TABLES:
            passed_by.add("row(s) without text", document.place.replace(str(path), name, 1))
    if not has_text:
        raise ValueError(f"{path}: the file holds no text. Remove it from the list or fill it.")


@dataclass
class PassedBy:
    """What was left out of files that were read, by kind."""

    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, name: str) -> None:
        self.names[kind].append(name)

    def warn(self) -> None:
        if self.names:
            warn(f"passed by: {told_by_kind(self.names)}.", PassedByWarning)


def find_faults(
    files: Iterable[tuple[Path | Frame, str]], options: ReadingOptions
) -> list[tuple[tuple[Path | Frame, str], str]]:
    """The files that cannot be read, each with what is wrong; all are read to their ends."""
    faults = []
    for path, name in files:
        try:
            for _ in read_file(path, name, options, PassedBy()):
                pass
        except (ValueError, OSError) as error:
            faults.append(((path, name), str(error)))
    return faults


def readable(
    files: list[tuple[Path, str]],
    options: ReadingOptions,
    known_good: Container[tuple[Path, str]] = (),
) -> list[tuple[Path, str]]:
    """The files that can be read to their ends; the others are named in a `PassedByWarning`.

    Args:
        files: as `find_files` gives them.
        options: how they are read.
        known_good: those of them that need not be tried.

    Raises:
        BadFilesError: there are none.
    """
    faults = find_faults([file for file in files if file not in known_good], options)
    bad = {file for file, _ in faults}
    if files and len(bad) == len(files):
        raise BadFilesError([fault for _, fault in faults])
    if faults:
        told = [f"{len(faults)} file(s) could not be read and were passed by:"]
        warn("\n  ".join(told + [fault for _, fault in faults]), PassedByWarning)
    return [file for file in files if file not in bad]


def _with_source(document: Document, file: str) -> Document:
    """The document with the file as its source, or, where it has another one, in its metadata."""
    if document.source is None:
        return replace(document, source=file)
    return replace(document, metadata={**document.metadata, "file": file})


def _documents(path: Path | Frame, options: ReadingOptions) -> Iterator[Document | LeftOut]:
    if not isinstance(path, Path):
        yield from path.documents(options)
        return
    read = reader(path.suffix)
    if not read.__module__.startswith("rag_core.knowledge.readers."):
        yield from read(path, options)
        return
    from rag_core.knowledge.readers.bounds import FileFault

    try:
        for found in read(path, title_of(path)):
            if isinstance(found, LeftOut):
                yield found
            else:
                yield _of_section(path, found)
    except FileFault as fault:
        raise ValueError(f"{path}: {fault}") from None
    except (OSError, MemoryError):
        raise
    # Libraries raise what they like at a damaged file.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{path}: not a readable {path.suffix.lower()} file ({reason:.160}). Save it anew, or "
            "leave it out."
        ) from None


def _of_section(path: Path, section: Section) -> Document:
    place = str(path)
    if section.line is not None:
        place = f"{path}:{section.line}"
    return Document(
        section.title,
        section.text,
        place,
        metadata=section.metadata,
        marks=section.marks,
        kept=section.kept,
    )


def title_of(path: Path) -> str:
    """The title of what has none of its own; bytes of a name that are not UTF-8 are replaced."""
    return os.fsencode(path.stem).decode("utf-8", "replace")


def read_plain(path: Path, _: ReadingOptions) -> Iterator[Document]:
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


def read_markdown(path: Path, _: ReadingOptions) -> Iterator[Document]:
    from rag_core.knowledge.markdown import sections

    lines = (text for _, text in read_lines(path))
    for section in sections(lines, title_of(path), BLOCK_CHARS):
        yield _of_section(path, section)
