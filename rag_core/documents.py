"""Files on disk -> documents: txt, md, csv, tsv, jsonl, parquet, or folders of them, one streamed line at a time."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rag_core.checks import warn

BLOCK_CHARS = 1 << 20  # a longer plain text is handed on in blocks, so that one huge file never sits in memory
FIELD_LIMIT = 1 << 30

_HEADING = re.compile(r"^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
_FENCE = re.compile(r"^ {0,3}(```|~~~)")
_MARKUP = re.compile(r"<!--.*?-->|!?\[([^\]]*)\]\([^)]*\)", re.DOTALL)


@dataclass(frozen=True)
class Document:
    """A titled text before it is split; `source` is the file, with the line or row where that helps."""

    title: str
    text: str
    source: str


def find_files(paths: str | Path | Iterable[str | Path]) -> list[tuple[Path, str]]:
    """The files behind `paths`, folders walked recursively in sorted order.

    Args:
        paths: files or folders. A folder's hidden files, other suffixes and (with a warning) empty files are passed by.

    Returns:
        (file, name relative to what the caller gave) pairs, without repeats.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a file of another kind or an empty one was named, or nothing was found.
    """
    if isinstance(paths, (str, Path)):
        paths = [paths]
    found: dict[Path, str] = {}
    for given in map(Path, paths):
        if not given.exists():
            raise FileNotFoundError(f"{given}: no such file or folder. Check the path.")
        if given.is_dir():
            root = given.resolve()
            inside = [p for p in sorted(root.rglob("*")) if p.is_file() and p.suffix.lower() in READERS]
            inside = [p for p in inside if not any(part.startswith(".") for part in p.relative_to(root).parts)]
            if not inside:
                raise ValueError(f"{given}: the folder holds none of {', '.join(READERS)}. Name another folder.")
            for path in inside:
                if path.stat().st_size == 0:
                    warn(f"{path} is empty and was passed by.")
                else:
                    found.setdefault(path, str(Path(root.name) / path.relative_to(root)))
        else:
            _check_named(given)
            found.setdefault(given.resolve(), given.name)
    if not found:
        raise ValueError("paths: there is nothing to read, every file is empty or no path was given.")
    return list(found.items())


def read_documents(paths: str | Path | Iterable[str | Path]) -> Iterator[Document]:
    """Documents of files and folders, streamed.

    txt: the file is one document, titled by its name. md: a document a section, titled `Doc — Section`, where Doc is
    the first-level heading or the file's name. csv, tsv, jsonl, parquet: a document a row, from a column `text` and
    optionally `title` (DPR's `id, text, title` files fit); rows with blank text are passed by.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: an empty, undecodable or malformed file, naming the file, its line and what to do.
    """
    for path, _ in find_files(paths):
        some = False
        for document in READERS[path.suffix.lower()](path):
            if document.text.strip():
                some = True
                yield document
        if not some:
            raise ValueError(f"{path}: the file holds no text. Remove it from the list or fill it.")


def _check_named(path: Path) -> None:
    if path.suffix.lower() not in READERS:
        raise ValueError(f"{path}: cannot read {path.suffix or 'a file without suffix'}; use {', '.join(READERS)}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty. Remove it from the list or fill it.")


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}:{number}: text must be UTF-8, but byte 0x{raw[error.start]:02x} at column "
                    f"{error.start + 1} is not. Convert it, e.g.  iconv -f LATIN1 -t UTF-8 {path.name}"
                ) from None
            if "\0" in line:
                raise ValueError(f"{path}:{number}: a NUL byte, so this is no UTF-8 text file. Convert or remove it.")
            yield line


def _read_txt(path: Path) -> Iterator[Document]:
    block: list[str] = []
    size = 0
    for line in _lines(path):
        block.append(line)
        size += len(line)
        if size >= BLOCK_CHARS:
            yield Document(path.stem, "".join(block), str(path))
            block, size = [], 0
    yield Document(path.stem, "".join(block), str(path))


def _read_md(path: Path) -> Iterator[Document]:
    name, section, fence, front = path.stem, "", "", False
    block: list[str] = []
    size = start = 0

    def flush() -> Iterator[Document]:
        title = f"{name} — {section}" if section else name
        text = _MARKUP.sub(lambda match: match[1] or "", "".join(block))
        yield Document(title, text, f"{path}:{start or 1}")
        block.clear()

    for number, line in enumerate(_lines(path), 1):
        if front or (number == 1 and line.rstrip() == "---"):  # YAML front matter
            front = number == 1 or line.rstrip() not in ("---", "...")
            continue
        mark = _FENCE.match(line)
        if mark and fence in ("", mark[1]):
            fence = "" if fence else mark[1]
        heading = None if fence else _HEADING.match(line)
        if heading or size >= BLOCK_CHARS:
            yield from flush()
            size, start = 0, number
        if heading and len(heading[1]) == 1:
            name, section = _MARKUP.sub(lambda match: match[1] or "", heading[2]) or path.stem, ""
        elif heading:
            section = _MARKUP.sub(lambda match: match[1] or "", heading[2])
        else:
            block.append(line)
            size += len(line)
    yield from flush()


def _columns(path: Path, names: list[str]) -> tuple[int, int | None]:
    lowered = [name.strip().lower() for name in names]
    if "text" not in lowered:
        hint = f"it has one column, {names[0]!r:.60}" if len(names) == 1 else f"its columns are {names!r:.200}"
        raise ValueError(
            f"{path}: a table needs a first line naming a column 'text' and optionally 'title'; {hint}. "
            "Add that line, or check that the suffix fits the separator (.csv comma, .tsv tab)."
        )
    return lowered.index("text"), lowered.index("title") if "title" in lowered else None


def _read_table(path: Path, delimiter: str) -> Iterator[Document]:
    rows = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    text = title = None
    width = 0
    while True:
        before = csv.field_size_limit(FIELD_LIMIT)  # process-wide, so it is lent only for one row
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(
                f"{path}:{rows.line_num}: {error}. A field that holds the separator, a line break or a quote at its "
                'start must stand in double quotes, with quotes inside doubled ("").'
            ) from None
        finally:
            csv.field_size_limit(before)
        if not row:
            continue
        if text is None:
            text, title = _columns(path, row)
            width = len(row)
            continue
        if len(row) != width:
            raise ValueError(
                f"{path}:{rows.line_num}: the first line names {width} columns, this row has {len(row)}. "
                "Quote fields that hold the separator."
            )
        yield Document(row[title] if title is not None else path.stem, row[text], f"{path}:{rows.line_num}")


def _read_jsonl(path: Path) -> Iterator[Document]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: every line must be one JSON object: {error}. Mend the line.") from None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            got = f"keys {sorted(row)!r:.120}" if isinstance(row, dict) else f"a JSON {type(row).__name__}"
            raise ValueError(f"{path}:{number}: a line must be an object with a string 'text', got {got}. Mend it.")
        title = row.get("title", path.stem)
        if not isinstance(title, str):
            raise ValueError(f"{path}:{number}: 'title' must be a string, got {title!r:.60}. Mend the line.")
        yield Document(title, row["text"], f"{path}:{number}")


def _read_parquet(path: Path) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        text, title = _columns(path, file.schema_arrow.names)
        wanted = [file.schema_arrow.field(i) for i in (text, title) if i is not None]
        for field in wanted:
            if not (pa.types.is_string(field.type) or pa.types.is_large_string(field.type)):
                raise ValueError(f"{path}: column {field.name!r} must hold strings, got {field.type}. Convert it.")
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=[field.name for field in wanted]):
            columns = [batch.column(field.name).to_pylist() for field in wanted]
            for row in zip(*columns, strict=True):
                head = path.stem if title is None else (row[1] or "")
                yield Document(head, row[0] or "", f"{path} row {number}")
                number += 1
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a readable parquet file ({reason:.120}). Write it anew.") from None


READERS: dict[str, Callable[[Path], Iterator[Document]]] = {
    ".txt": _read_txt,
    ".md": _read_md,
    ".csv": lambda path: _read_table(path, ","),
    ".tsv": lambda path: _read_table(path, "\t"),
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
