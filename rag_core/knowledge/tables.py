"""Tables -> documents: a row each, of csv, tsv, jsonl, parquet and Arrow files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_core.checks import warn
from rag_core.hub import check_text, parse_object, read_lines
from rag_core.knowledge.columns import Columns, is_label, is_object, placed, text_types
from rag_core.knowledge.documents import Document, ReadingOptions, title_of
from rag_core.knowledge.outline import LeftOut

if TYPE_CHECKING:
    import pyarrow as pa

# Python's own limit, 128 KB, is less than some articles have.
FIELD_LIMIT = 1 << 30
# Of parquet and Arrow files at a time: cells that are left out are read, too.
BATCH_ROWS = 256
# Of jsonl files whose lines have different keys; more are looked at again.
MOST_LAYOUTS = 100


def read_csv(path: Path, options: ReadingOptions) -> Iterator[Document | LeftOut]:
    """A document a row of a table with commas, or with semicolons as some spreadsheets write."""
    yield from _read_separated(path, _csv_delimiter(path, options), options)


def read_tsv(path: Path, options: ReadingOptions) -> Iterator[Document | LeftOut]:
    """A document a row of a table with tabs."""
    yield from _read_separated(path, "\t", options)


def _csv_delimiter(path: Path, options: ReadingOptions) -> str:
    """The separator with which the first line names the column of texts; a comma if none does."""
    head = next((line for _, line in read_lines(path) if line.strip()), "")
    for delimiter in ",;":
        try:
            names = next(csv.reader([head], delimiter=delimiter))
        except csv.Error:  # which is told where the table is read
            continue
        lowered = [name.strip().lower() for name in names]
        if _wanted("text", lowered, options.text_column) in lowered:
            return delimiter
    return ","


def _columns(path: Path | str, names: list[str], options: ReadingOptions) -> tuple[int, int | None]:
    """Which columns hold texts and titles."""
    lowered = [name.strip().lower() for name in names]
    has_text = "text" in lowered
    text = _wanted("text", lowered, options.text_column)
    title = _wanted("title", lowered, options.title_column)
    if text is None:
        hint = f"its columns are {names!r:.200}"
        if len(names) == 1:
            hint = f"it has one column, {names[0]!r:.60}"
        if isinstance(path, str):
            raise ValueError(
                f"{path}: a table needs a column 'text' and optionally 'title'; {hint}. Rename "
                "one, or say which column is the text (text_column=, --text-column)."
            )
        raise ValueError(
            f"{path}: a table needs a first line naming a column 'text' and optionally 'title'; "
            f"{hint}. Add that line, say which column is the text (text_column=, --text-column), or "
            "check that the suffix fits the separator (.csv comma or semicolon, .tsv tab)."
        )
    if text not in lowered:
        raise _no_column(path, names, "text_column", options.text_column)
    if title is not None and title not in lowered:
        # What was asked for the tables without a column `text` need not fit this one.
        if not has_text:
            raise _no_column(path, names, "title_column", options.title_column)
        title = None
    if twice := [name for name in (text, title) if name and lowered.count(name) > 1]:
        raise ValueError(
            f"{path}: the columns must have names of their own, got {twice[0]!r} twice. Rename one."
        )
    if title is None:
        return lowered.index(text), None
    return lowered.index(text), lowered.index(title)


def _wanted(usual: str, lowered: list[str], asked: str | None) -> str | None:
    if usual in lowered or asked is None:
        return usual if usual in lowered else None
    return asked.strip().lower()


def _wanted_key(usual: str, row: dict[str, Any], asked: str | None) -> str:
    if usual in row or asked is None:
        return usual
    return asked


def _no_column(
    place: Path | str, names: Iterable[str], option: str, asked: str | None
) -> ValueError:
    flag = option.replace("_", "-")
    return ValueError(
        f"{place}: {option} must be one of its columns, {sorted(names)!r:.300}, got {asked!r}. Name "
        f"another one (--{flag}), or leave the file out."
    )


def _read_separated(
    path: Path, delimiter: str, options: ReadingOptions
) -> Iterator[Document | LeftOut]:
    lines = _Recorded(path)
    quoting: Any = csv.QUOTE_MINIMAL
    if delimiter == "\t" and not options.tsv_quotes:
        quoting = csv.QUOTE_NONE
    rows = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    text = title = None
    width = 0
    number = 0
    left_out: dict[str, str] = {}
    while True:
        begin = rows.line_num + 1
        lines.record.clear()
        # The limit is the process's, so it is changed for one row at a time.
        before = csv.field_size_limit(FIELD_LIMIT)
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            raise ValueError(
                f"{_place(path, begin, rows.line_num)}: {error}. A field that holds the separator, "
                "a line break or a quote at its start must stand in double quotes, with quotes "
                f'inside doubled ("").{_letters(delimiter)}'
            ) from None
        finally:
            csv.field_size_limit(before)
        if not any(cell.strip() for cell in row):
            continue
        if text is None:
            text, title = _columns(path, row, options)
            further = Columns(row, (text, title), left_out)
            width = len(row)
            continue
        place = _place(path, begin, rows.line_num)
        if len(row) != width:
            raise ValueError(
                f"{place}: the first line names {width} columns, this row has {len(row)}. "
                f"Quote fields that hold the separator.{_letters(delimiter)}"
            )
        if begin != rows.line_num:
            _check_merged(place, row, lines.record, delimiter)
        number += 1
        heading = title_of(path) if title is None else row[title]
        source, metadata = further.read(row)
        position = {"row": number, "line": begin}
        if rows.line_num > begin:
            position["end_line"] = rows.line_num
        yield Document(heading, row[text], f"{path}:{begin}", source, placed(metadata, position))
    yield from _left_out(left_out)


def _left_out(columns: dict[str, str]) -> Iterator[LeftOut]:
    for name, reason in columns.items():
        yield LeftOut("column(s) that are no metadata", f"{name}, {reason}")


class _Recorded:
    """The lines of a file, those of the row that is being read kept."""

    def __init__(self, path: Path) -> None:
        self.lines = read_lines(path)
        self.record: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for _, line in self.lines:
            self.record.append(line)
            yield line


def _check_merged(place: str, row: list[str], lines: list[str], delimiter: str) -> None:
    """Refuses a row over several lines that stray quotes may have made of several: legal, and
    hardly ever meant.

    A tab has no business in a text of several lines. A comma has, so there every line must look
    like a row.
    """
    what = f"{place}: quotes make one row of {len(lines)} lines"
    if delimiter == "\t":
        if any("\t" in cell and ("\n" in cell or "\r" in cell) for cell in row):
            raise ValueError(
                f"{what}, with the separator inside a field. Double a quote that is "
                f"meant.{_letters(delimiter)}"
            )
    elif len(row) > 1 and all(line.count(delimiter) == len(row) - 1 for line in lines):
        warn(f"{what}, each of which looks like a row. If they are rows, double their quotes.")


def _letters(delimiter: str) -> str:
    if delimiter != "\t":
        return ""
    return " If quotes are letters in this file, pass tsv_quotes=False (--no-tsv-quotes)."


def _place(path: Path, begin: int, end: int) -> str:
    if end <= begin:
        return f"{path}:{begin}"
    return f"{path}:{begin} to {end}"


def read_jsonl(path: Path, options: ReadingOptions) -> Iterator[Document | LeftOut]:
    first = True
    left_out: dict[str, str] = {}
    layouts: dict[tuple[str, ...], Columns] = {}
    for number, line in read_lines(path):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        row = parse_object(line, place, first)
        first = False
        text_key = _wanted_key("text", row, options.text_column)
        title_key = _wanted_key("title", row, options.title_column)
        if text_key not in row and options.text_column is not None:
            raise _no_column(place, row, "text_column", options.text_column)
        text, title = row.get(text_key), row.get(title_key)
        if text_key not in row or not isinstance(text, str | None):
            came = f"{text_key!r} {text!r:.60}"
            if text_key not in row:
                came = f"keys {sorted(row)!r:.120}"
            raise ValueError(
                f"{place}: a line must be an object with a string {text_key!r}, got {came}. Mend "
                "it, or say which key is the text (text_column=, --text-column)."
            )
        if not isinstance(title, str | None):
            raise ValueError(
                f"{place}: {title_key!r} must be a string, got {title!r:.60}. Mend the line."
            )
        title = title_of(path) if title is None else check_text(title, place, repr(title_key))
        text = check_text(text or "", place, repr(text_key))
        keys = tuple(row)
        if keys not in layouts:
            used = [keys.index(key) for key in (text_key, title_key) if key in row]
            if len(layouts) == MOST_LAYOUTS:
                layouts.clear()
            layouts[keys] = Columns(keys, used, left_out)
        source, metadata = layouts[keys].read(list(row.values()))
        position = {"row": number, "line": number}
        yield Document(title, text, place, source, placed(metadata, position))
    yield from _left_out(left_out)


def read_parquet(path: Path, options: ReadingOptions) -> Iterator[Document | LeftOut]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = _names_read(str(path), file.schema_arrow, options)
        # A name with a dot may bring a field of another column along.
        read = file.read_row_groups([], columns=names).schema
        batches = file.iter_batches(batch_size=BATCH_ROWS, columns=names)
        left_out = _no_labels(file.schema_arrow, names)
        yield from _rows(str(path), title_of(path), read, batches, options, left_out)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: not a readable parquet file ({reason:.120}). Write it anew."
        ) from None


def read_arrow(path: Path, options: ReadingOptions) -> Iterator[Document | LeftOut]:
    """A document a row of an Arrow file: a stream, as `datasets` writes, or a file (Feather)."""
    from rag_core.checkpoint import check_arrow, open_arrow

    check_arrow([path])
    table = open_arrow(path)
    batches = table.to_batches(max_chunksize=BATCH_ROWS)
    yield from arrow_documents(str(path), title_of(path), table.schema, batches, options)


def arrow_documents(
    place: str,
    title: str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    options: ReadingOptions,
) -> Iterator[Document | LeftOut]:
    """A document a row of an Arrow table.

    Args:
        place: what the table is called, for errors.
        title: of rows where no column holds one.
        schema: of the batches.
        batches: the rows.
        options: how they are read.
    """
    import pyarrow as pa

    names = _names_read(place, schema, options)
    numbers = [schema.get_field_index(name) for name in names]
    read = pa.schema([schema.field(number) for number in numbers])
    chosen = (batch.select(numbers) for batch in batches)
    yield from _rows(place, title, read, chosen, options, _no_labels(schema, names))


def _names_read(place: str, schema: pa.Schema, options: ReadingOptions) -> list[str]:
    """The columns that are read: text, title, and what can be metadata."""
    text, title = _columns(place, schema.names, options)
    fields = [schema.field(number) for number in (text, title) if number is not None]
    for column in fields:
        if not _holds_strings(column.type):
            raise ValueError(
                f"{place}: column {column.name!r} must hold strings, got {column.type}. Convert it."
            )
    return [column.name for column in schema if column in fields or _is_metadata(column)]


def _is_metadata(column: pa.Field) -> bool:
    return is_label(column.type) or is_object(column)


def _no_labels(schema: pa.Schema, names: list[str]) -> dict[str, str]:
    """The columns that are not read, each with its type."""
    return {column.name: str(column.type) for column in schema if column.name not in names}


def _rows(
    place: str,
    default: str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    options: ReadingOptions,
    left_out: dict[str, str],
) -> Iterator[Document | LeftOut]:
    text, title = _columns(place, schema.names, options)
    further = Columns(schema.names, (text, title), left_out)
    number = 0
    for batch in batches:
        columns = [_cells(column, place, number) for column in batch.columns]
        for row in zip(*columns, strict=True):
            number += 1
            where = f"{place} row {number}"
            heading = default
            if title is not None:
                heading = check_text(row[title] or "", where, "'title'")
            body = check_text(row[text] or "", where, "'text'")
            source, metadata = further.read(row)
            yield Document(heading, body, where, source, placed(metadata, {"row": number}))
    yield from _left_out(left_out)


def _holds_strings(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(fits(kind) for fits in text_types())


def _cells(column: Any, path: str, start: int) -> list[Any]:
    """The values of a column; `start` rows are before them."""
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        # Pyarrow says neither which value has no Python form (dates beyond the year 9999, bytes that
        # are no UTF-8, which it does not look at) nor in which row.
        for row, cell in enumerate(column, start + 1):
            try:
                cell.as_py()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path} row {row}: text must be UTF-8 ({error.reason}). Mend it."
                ) from None
            except (ValueError, OverflowError) as error:
                raise ValueError(
                    f"{path} row {row}: must hold values that Python has, got one of type "
                    f"{column.type} that it has not ({error!s:.80}). Mend it, or make the column "
                    "text."
                ) from None
        raise
