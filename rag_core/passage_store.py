"""Columns of parquet shards as memory-mapped Arrow files, made once and kept in a cache folder.

Only the wanted columns are read, from the hub too (by ranges of the file), so passages cost about 14 GB and not 87 GB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def open_passages(
    source: str,
    shards: list[str],
    columns: list[str],
    rows: int,
    revision: str | None,
    options: dict[str, Any],
    *,
    first_rows: bool = False,
) -> Any:
    """Open the rows of some parquet shards.

    Args:
        source: local folder or data set repository.
        shards: file names inside it, in row order.
        columns: wanted columns.
        rows: rows the index holds.
        revision: of the repository.
        options: cache_dir, token, local_files_only, force_download.
        first_rows: the index covers the first rows only (dummy data set); shards beyond them are not read.

    Returns:
        A `datasets.Dataset`, memory-mapped. Conversion is resumed where an earlier one stopped.

    Raises:
        OSError: a shard is missing or damaged, or all together hold fewer or more rows than the index.
    """
    import datasets
    from tqdm import tqdm

    folder = _store_folder(source, shards, columns, revision, options)
    parts: list[Any] = []
    held = 0
    bar = tqdm(shards, desc=f"passages of {source}", unit="file", disable=len(shards) < 3)
    for shard in bar:
        if first_rows and held >= rows:
            break
        arrow = folder / f"{hashlib.sha256(shard.encode()).hexdigest()[:16]}.arrow"
        if options.get("force_download") or not arrow.is_file():
            _convert(source, shard, columns, arrow, revision, options)
        parts.append(datasets.Dataset.from_file(str(arrow)))
        held += len(parts[-1])
    if held < rows or not parts or (held > rows and not first_rows):
        raise OSError(
            f"the faiss index holds {rows} vectors, the {len(shards)} passage files of {source!r} {held} rows: they "
            "are not of the same build."
        )
    whole = datasets.concatenate_datasets(parts)
    return whole if held == rows else whole.select(range(rows))


def _store_folder(
    source: str, shards: list[str], columns: list[str], revision: str | None, options: dict[str, Any]
) -> Path:
    """A cache folder that another content never shares: local files count with size and time of change."""
    from huggingface_hub import constants

    root = Path(options.get("cache_dir") or constants.HF_HOME).expanduser() / "dualrag" / "passages"
    key = [source, revision or "", *columns]
    if Path(source).is_dir():
        base = Path(source).resolve()
        stats = [(base / shard).stat() for shard in shards]
        key = [str(base), *columns, *(f"{s.st_size}:{s.st_mtime_ns}" for s in stats)]
    return root / hashlib.sha256("\n".join(key).encode()).hexdigest()[:24]


def _convert(
    source: str, shard: str, columns: list[str], target: Path, revision: str | None, options: dict[str, Any]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rag_core.hub import atomic_write

    with _opened(source, shard, revision, options) as file:
        try:
            parquet = pq.ParquetFile(file, pre_buffer=True)
            there = parquet.schema_arrow.names
            if missing := [name for name in columns if name not in there]:
                raise OSError(f"passage file {shard!r} of {source!r} lacks columns {missing}; it has {there}.")
            schema = pa.schema([parquet.schema_arrow.field(name) for name in columns])
            with atomic_write(target) as draft, pa.OSFile(str(draft), "wb") as sink:
                with pa.ipc.new_stream(sink, schema) as writer:
                    for batch in parquet.iter_batches(batch_size=10_000, columns=columns):
                        writer.write_table(pa.Table.from_batches([batch]).select(columns).cast(schema))
        except pa.ArrowException as error:
            raise OSError(
                f"passage file {shard!r} of {source!r} can't be read as parquet (truncated or damaged: {error}); "
                "download it again."
            ) from error


@contextmanager
def _opened(source: str, shard: str, revision: str | None, options: dict[str, Any]) -> Iterator[Any]:
    from huggingface_hub import HfFileSystem, constants

    from rag_core.hub import is_local, resolve_file

    if is_local(source) or options.get("local_files_only") or constants.HF_HUB_OFFLINE:
        yield str(resolve_file(source, shard, repo_type="dataset", revision=revision, **options))
        return
    files = HfFileSystem(token=options.get("token"))
    with files.open(f"datasets/{source}@{revision or 'main'}/{shard}", "rb") as file:
        yield file
