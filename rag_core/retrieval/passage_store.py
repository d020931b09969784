"""Columns of parquet shards as memory-mapped Arrow files, made once and kept in a cache folder.

Only the wanted columns are read, from the hub too (by ranges of the file), so passages cost about
14 GB and not 87 GB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from rag_core.hub import DamagedFileError, reading
from rag_core.retrieval.vectors import as_matrix, is_list, is_text


def open_passages(
    source: str,
    shards: list[str],
    columns: list[str],
    rows: int,
    revision: str | None,
    options: dict[str, Any],
    *,
    first_rows: bool = False,
    fewer: bool = False,
) -> Any:
    """Open the rows of some parquet shards.

    Args:
        source: local folder or data set repository.
        shards: file names inside it, in row order.
        columns: wanted columns.
        rows: rows the index holds.
        revision: the commit of the repository, None for a local folder.
        options: cache_dir, token, local_files_only, force_download.
        first_rows: the index covers the first rows only (dummy data set); shards beyond them are
            not read.
        fewer: fewer rows will do (there is no index yet).

    Returns:
        A `datasets.Dataset`, memory-mapped. Conversion is resumed where an earlier one stopped.

    Raises:
        OSError: a shard is missing or damaged, or all together hold fewer or more rows than the
            index.
    """
    import datasets
    from tqdm import tqdm

    folder = _store_folder(source, shards, columns, revision, options)
    parts: list[Any] = []
    held = 0
    bar = tqdm(shards, desc=f"passages of {source}", unit="file", disable=len(shards) < 3 or None)
    for shard in bar:
        if first_rows and held >= rows:
            break
        arrow = folder / f"{hashlib.sha256(shard.encode()).hexdigest()[:16]}.arrow"
        if options.get("force_download") or not arrow.is_file():
            _convert(source, shard, columns, arrow, revision, options)
        with reading(
            arrow,
            f"made of passage file {shard!r} of {source!r}, is damaged",
            "Delete it: it is made anew.",
        ):
            parts.append(datasets.Dataset.from_file(str(arrow)))
        held += len(parts[-1])
    if not held:
        raise DamagedFileError(
            f"the {len(shards)} passage files of {source!r}, such as {shards[:1]}, hold no row."
        )
    if (held < rows and not fewer) or (held > rows and not first_rows):
        raise OSError(
            f"the faiss index holds {rows} vectors, the {len(shards)} passage files of {source!r} "
            f"{held} rows: they are not of the same build."
        )
    whole = datasets.concatenate_datasets(parts)
    if held > rows:
        return whole.select(range(rows))
    return whole


def listing_record(source: str, revision: str | None, options: dict[str, Any]) -> Path:
    """Where the list of files of a repository is kept, to find again offline what was read of
    it.
    """
    # Names of repositories and branches hold signs that names of files may not.
    name = hashlib.sha256(f"{source}\n{revision or 'main'}".encode()).hexdigest()[:24]
    return _root(options) / "listings" / f"{name}.json"


def _root(options: dict[str, Any]) -> Path:
    from huggingface_hub import constants

    return Path(options.get("cache_dir") or constants.HF_HOME).expanduser() / "dualrag" / "passages"


def _store_folder(
    source: str,
    shards: list[str],
    columns: list[str],
    revision: str | None,
    options: dict[str, Any],
) -> Path:
    """A cache folder that another content never shares.

    Local files count with size and time of change.
    """
    # A folder of one's own may change without a commit to tell.
    key = [source, revision or "", *columns]
    if Path(source).is_dir():
        base = Path(source).resolve()
        stats = [(base / shard).stat() for shard in shards]
        key = [str(base), *columns, *(f"{s.st_size}:{s.st_mtime_ns}" for s in stats)]
    return _root(options) / hashlib.sha256("\n".join(key).encode()).hexdigest()[:24]


def _convert(
    source: str,
    shard: str,
    columns: list[str],
    target: Path,
    revision: str | None,
    options: dict[str, Any],
) -> None:
    import pyarrow as pa

    from rag_core.hub import atomic_write

    with _opened(source, shard, revision, options) as file:
        batches = _batches(file, f"passage file {shard!r} of {source!r}", columns)
        first = next(batches)
        with atomic_write(target) as draft, pa.OSFile(str(draft), "wb") as sink:
            with pa.ipc.new_stream(sink, first.schema) as writer:
                for batch in chain([first], batches):
                    writer.write_batch(batch)


def _batches(file: Any, what: str, columns: list[str]) -> Iterator[Any]:
    """The wanted columns of a parquet file, checked; at least one batch, which may be empty.

    Raises:
        OSError: the file lacks a column or is damaged; it is named.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file, pre_buffer=True)
        held = parquet.schema_arrow
        missing = [name for name in columns if name not in held.names]
        if missing:
            raise DamagedFileError(f"{what} lacks columns {missing}; it has {held.names}.")
        fields = [held.field(name) for name in columns]
        wrong = {field.name: str(field.type) for field in fields if not _fits(field)}
        if wrong:
            raise DamagedFileError(f"{what} lacks columns {wrong}; it has {held.names}.")
        schema = pa.schema(fields, metadata=None)
        yield pa.RecordBatch.from_pylist([], schema=schema)
        for batch in parquet.iter_batches(batch_size=10_000, columns=columns):
            table = pa.Table.from_batches([batch]).select(columns).cast(schema)
            [whole] = table.combine_chunks().to_batches()
            # Letters that are no UTF-8, offsets that lead out of the file: found now, not in a
            # search.
            whole.validate(full=True)
            for name in ("title", "text"):
                if empty := whole.column(name).null_count:
                    raise DamagedFileError(f"{what} has {empty} passages without a {name}.")
            if "embeddings" in columns:
                vectors = as_matrix(whole.column("embeddings"), "embeddings")
                if not np.isfinite(vectors).all():
                    raise DamagedFileError(f"{what} holds NaN or infinity in its vectors.")
            yield whole
    except Exception as error:  # Arrow answers damaged bytes with a dozen kinds of error
        if isinstance(error, OSError) and str(error).startswith(what):
            raise
        raise DamagedFileError(
            f"{what} can't be read as parquet: it is truncated, damaged or out of reach "
            f"({type(error).__name__}: {str(error)[:300]}). Download it again."
        ) from error


def _fits(field: Any) -> bool:
    import pyarrow as pa

    if field.name in ("title", "text"):
        return is_text(field.type)
    if field.name != "embeddings":
        return True
    return is_list(field.type) and bool(pa.types.is_floating(field.type.value_type))


@contextmanager
def _opened(
    source: str, shard: str, revision: str | None, options: dict[str, Any]
) -> Iterator[Any]:
    from huggingface_hub import HfFileSystem, constants, try_to_load_from_cache

    from rag_core.hub import is_local, resolve_file

    # Whole files are kept for later runs offline; otherwise the wanted columns alone are fetched.
    if is_local(source) or options.get("local_files_only") or constants.HF_HUB_OFFLINE:
        yield str(resolve_file(source, shard, repo_type="dataset", revision=revision, **options))
        return
    fetched = try_to_load_from_cache(
        source, shard, cache_dir=options.get("cache_dir"), revision=revision, repo_type="dataset"
    )
    if isinstance(fetched, str) and not options.get("force_download"):
        yield fetched
        return
    files = HfFileSystem(token=options.get("token"))
    with files.open(f"datasets/{source}@{revision or 'main'}/{shard}", "rb") as file:
        yield file
