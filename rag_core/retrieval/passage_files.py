"""Passages on disk: the folder that `datasets` writes, in the dialect that old and new releases
both read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.checkpoint import check_arrow, vouch
from rag_core.hub import DamagedFileError, atomic_folder, read_json, recover
from rag_core.retrieval.vectors import VectorSource

if TYPE_CHECKING:
    from typing import Self

# Of the passages' vectors, where nothing else is said.
VECTORS_COLUMN = "embeddings"
# Rows of an Arrow record batch: some 40 MB of passages with vectors of 768 numbers.
_BATCH_ROWS = 10_000


def read_passages(path: str | Path) -> Any:
    """Open a folder that ``Dataset.save_to_disk`` (any release) or `write_passages` wrote;
    memory-mapped.

    Args:
        path: the folder.

    Returns:
        A `datasets.Dataset`.

    Raises:
        OSError: there is no such folder, or it is damaged or no saved data set.
    """
    import datasets

    passage_parts(path)
    with opening(path):
        return datasets.load_from_disk(str(path))


@contextmanager
def opening(path: str | Path) -> Iterator[None]:
    """Turns what is raised within it into the error of a damaged folder of passages, which is
    named.
    """
    try:
        yield
    except Exception as error:
        reason = str(error)[:300]
        if not isinstance(error, DamagedFileError):
            reason = f"{type(error).__name__}: {reason}"
        raise DamagedFileError(
            f"passages_path={str(path)!r} can't be opened as a saved data set: it is incomplete, "
            f"damaged or another kind of folder ({reason}). Save it again with "
            "dataset.save_to_disk."
        ) from error


def passage_parts(path: str | Path, *, full: bool | None = None) -> tuple[list[Path], bool]:
    """The Arrow files of a folder of passages in row order, and whether a list of row numbers lies
    over them.

    What they hold is validated first, where a crash of the Arrow library is an error (see
    `check_arrow`).

    Args:
        path: the folder.
        full: as in `rag_core.checkpoint.check_arrow`.

    Raises:
        OSError: there is no such folder, it holds several splits, or it is damaged.
    """
    recover(path)
    folder = Path(path)
    if not folder.is_dir():
        raise OSError(
            f"passages_path={str(path)!r}: there is no such folder; give a folder saved by "
            "save_to_disk."
        )
    splits = folder / "dataset_dict.json"
    if splits.is_file() and not (folder / "state.json").exists():
        names = read_json(splits).get("splits")
        raise OSError(
            f"passages_path={str(path)!r} holds several splits {names}; give the folder of one of "
            "them."
        )
    with opening(path):
        state = read_json(folder / "state.json")
        data = _listed_files(folder, state.get("_data_files"))
        # Older releases of `datasets` write the second name.
        indices = _listed_files(folder, state.get("_indices_files"))
        indices += _listed_files(folder, state.get("_indices_data_files"))
        if not data:
            raise DamagedFileError(f"{folder / 'state.json'} names no files")
        # `datasets` reads more of the folder than its rows.
        if (folder / "dataset_info.json").exists():
            read_json(folder / "dataset_info.json")
        check_arrow([*data, *indices], full=full)
    return data, bool(indices)


def _listed_files(folder: Path, entries: Any) -> list[Path]:
    """The files that a list of state.json names; None is an empty one."""
    place = folder / "state.json"
    if not isinstance(entries, list | None):
        raise DamagedFileError(f"{place} must list files, got {entries!r:.60}")
    files = []
    for entry in entries or ():
        name = None
        if isinstance(entry, dict):
            name = entry.get("filename")
        # A file elsewhere could be anybody's: this folder may come from the hub.
        if not isinstance(name, str) or not name or not _is_inside(Path(name)):
            raise DamagedFileError(f"{place} must name files of its folder, got {entry!r:.100}")
        files.append(folder / name)
    return files


def _is_inside(path: Path) -> bool:
    return not path.is_absolute() and ".." not in path.parts


def copied_batch(batch: Any) -> Any:
    """A `pyarrow.RecordBatch` that holds its rows alone.

    A slice holds all that it is a slice of: written to a file, it would take texts along that were
    left out or removed.
    """
    import pyarrow as pa

    columns = [pa.concat_arrays([column, column.slice(0, 0)]) for column in batch.columns]
    return pa.record_batch(columns, schema=batch.schema)


class PassageWriter:
    """Writes a folder of passages, laid out as `Dataset.save_to_disk` does.

    Used in a `with` statement; the folder is whole after `finish`.

    Args:
        folder: an existing folder: a draft, which others do not see yet.
        schema: `pyarrow.Schema` of the rows.
    """

    def __init__(self, folder: Path, schema: Any) -> None:
        self._folder = folder
        self._schema = schema
        self._parts: list[Path] = []
        self._opened = ExitStack()
        self._rows: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def start_file(self) -> None:
        """Begin the next file of rows."""
        import pyarrow as pa

        self._opened.close()
        self._parts.append(self._folder / f"{len(self._parts)}.part")
        sink = self._opened.enter_context(pa.OSFile(str(self._parts[-1]), "wb"))
        self._rows = self._opened.enter_context(pa.ipc.new_stream(sink, self._schema))

    def write(self, rows: Any) -> None:
        """Add rows, a `pyarrow.RecordBatch`, to the file that was begun last."""
        self._rows.write_batch(rows)

    def finish(self, fingerprint: str, info: Mapping[str, Any]) -> list[Path]:
        """Give the files their names, and write what `datasets` is to know about them.

        Args:
            fingerprint: what `datasets` tells this content by from others in its caches.
            info: the entries of dataset_info.json.

        Returns:
            The files in row order.
        """
        self._opened.close()
        files = []
        for number, part in enumerate(self._parts):
            # The names tell how many there are, which is known only now.
            name = f"data-{number:05d}-of-{len(self._parts):05d}.arrow"
            files.append(part.rename(self._folder / name))
        state: dict[str, Any] = {
            "_data_files": [{"filename": file.name} for file in files],
            "_fingerprint": fingerprint,
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        for name, content in (("state.json", state), ("dataset_info.json", info)):
            (self._folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
        return files


def write_passages(
    dataset: Any,
    path: str | Path,
    *,
    vectors: VectorSource | None = None,
    max_shard_rows: int = 1_000_000,
) -> None:
    """Write a data set, all or nothing, as a folder that ``datasets.load_from_disk`` opens, before
    release 4.0 as well.

    ``Dataset.save_to_disk`` of release 4 and later names list columns "List", which earlier
    releases (and so transformers 4.37 in its own environment) refuse; both read "Sequence".

    Args:
        dataset: a `datasets.Dataset`; ``select``, ``shuffle`` and ``filter`` are applied, its
            indexes are not written.
        path: the folder to create.
        vectors: one a row, written as a further column "embeddings".
        max_shard_rows: rows a file.

    Raises:
        OSError: the folder can't be written.
        ValueError: `vectors` gives others than it says.
    """
    import pyarrow as pa

    # Format must not hide columns from the writer: with_format("arrow") selects all of them.
    rows = dataset.with_format("arrow")
    schema = dataset.data.schema.remove_metadata()
    features = dataset.features.to_dict()
    if vectors is not None:
        schema = schema.append(pa.field(VECTORS_COLUMN, pa.list_(pa.float32())))
        number = {"dtype": "float32", "_type": "Value"}
        features[VECTORS_COLUMN] = {"feature": number, "_type": "Sequence"}
    content = hashlib.blake2b(dataset._fingerprint.encode(), digest_size=8)
    info = {
        "citation": "",
        "description": "",
        "homepage": "",
        "license": "",
        "features": _with_sequences(features),
    }
    with (
        atomic_folder(path, stale=("*.arrow",)) as folder,
        PassageWriter(folder, schema) as writer,
    ):
        # An empty data set has a file, too.
        for first in range(0, max(1, len(dataset)), max_shard_rows):
            writer.start_file()
            stop = min(first + max_shard_rows, len(dataset))
            for start in range(first, stop, _BATCH_ROWS):
                table = rows[start : min(start + _BATCH_ROWS, stop)]
                table = table.replace_schema_metadata(None)
                if vectors is not None:
                    block = _gathered(vectors, start, len(table))  # (r, D)
                    content.update(block.data)
                    table = table.append_column(VECTORS_COLUMN, _lists(block))
                for batch in table.cast(schema).combine_chunks().to_batches():
                    writer.write(copied_batch(batch))
        fingerprint = dataset._fingerprint
        if vectors is not None:
            fingerprint = content.hexdigest()  # the data set's own says nothing of them
        vouch(writer.finish(fingerprint, info))


def _gathered(vectors: VectorSource, start: int, count: int) -> np.ndarray:
    """The vectors of `count` rows, (count, D) float32."""
    block = np.ascontiguousarray(vectors.gather(np.arange(start, start + count)), np.float32)
    shape = (count, vectors.vector_size)
    if block.shape != shape:
        raise ValueError(
            f"vectors must give an array of shape {shape} for {count} rows, "
            f"{type(vectors).__name__}.gather gave {block.shape}."
        )
    return block


def _lists(block: np.ndarray) -> Any:
    """An Arrow array of a list a row."""
    import pyarrow as pa

    count, size = block.shape
    starts = np.arange(count + 1, dtype=np.int32) * size
    return pa.ListArray.from_arrays(starts, pa.array(block.reshape(-1)))


def _with_sequences(node: Any) -> Any:
    """Features as releases before 4.0 name their types."""
    if isinstance(node, list):
        return [_with_sequences(value) for value in node]
    if not isinstance(node, dict):
        return node
    renamed = {key: _with_sequences(value) for key, value in node.items()}
    if renamed.get("_type") == "List":
        renamed["_type"] = "Sequence"
    return renamed
