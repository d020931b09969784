"""Passages straight from their memory-mapped Arrow files.

A question needs a few rows; the `datasets` library, which reads the same folder, takes longer to
import than all the rest of an answer. Folders that only `datasets` understands are left to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rag_core.checkpoint import open_arrow
from rag_core.hub import DamagedFileError
from rag_core.retrieval.passage_files import opening, passage_parts, read_passages
from rag_core.retrieval.vectors import is_list, is_text


def map_passages(path: str | Path) -> Any:
    """Open a folder: as a `PassageTable` where its columns are texts and numbers, else as a
    `datasets.Dataset`.

    Args:
        path: the folder, as `rag_core.retrieval.read_passages` takes it.

    Raises:
        OSError: as `read_passages`.
    """
    table = _plain_table(path)
    if table is None:
        return read_passages(path)
    return PassageTable(path, table)


class PassageTable:
    """The rows of a folder of passages; what `FaissIndex` needs of a `datasets.Dataset`.

    Args:
        path: the folder.
        table: its `pyarrow.Table`, memory-mapped.
    """

    def __init__(self, path: str | Path, table: Any) -> None:
        self.path = path
        self.data = table
        self.column_names: list[str] = table.column_names

    def __len__(self) -> int:
        return int(self.data.num_rows)

    def list_indexes(self) -> list[str]:
        """None: the index lies in a file of its own."""
        return []

    def dataset(self) -> Any:
        """The same folder as a `datasets.Dataset`."""
        return read_passages(self.path)


def _plain_table(path: str | Path) -> Any:
    """The table, or None for everything that is left to `datasets`."""
    import pyarrow as pa

    files, is_reordered = passage_parts(path)
    if is_reordered:
        return None
    with opening(path):
        table = pa.concat_tables([open_arrow(file) for file in files])
        table.validate()
        names = table.column_names
        if len(set(names)) < len(names):
            raise DamagedFileError(f"{files[0]} names a column twice: {names}")
        if not table.num_rows or not all(map(_is_plain, table.schema)):
            return None
        return table


def _is_plain(field: Any) -> bool:
    """Whether a column is texts, numbers or lists of numbers, whose Python values are what Arrow
    says they are.
    """
    import pyarrow.types as types

    kind = field.type
    if is_list(kind):
        kind = kind.value_type
    # Images and the like are numbers or bytes, too, until they are decoded.
    if b"ARROW:extension:name" in (field.metadata or {}):
        return False
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return True
    return is_text(kind)
