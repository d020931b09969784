"""Passages on disk: the folder that `datasets` writes, in the dialect that old and new releases
both read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rag_core.checkpoint import check_arrow, vouch
from rag_core.hub import DamagedFileError, atomic_folder, read_json, recover


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
        kind = "" if isinstance(error, DamagedFileError) else f"{type(error).__name__}: "
        raise DamagedFileError(
            f"passages_path={str(path)!r} can't be opened as a saved data set: it is incomplete, "
            f"damaged or another kind of folder ({kind}{str(error)[:300]}). Save it again with "
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
        lists = [
            state.get(name) for name in ("_data_files", "_indices_files", "_indices_data_files")
        ]
        data, *indices = [
            [_named(folder, entry) for entry in _listed(folder, files)] for files in lists
        ]
        if not data:
            raise DamagedFileError(f"{folder / 'state.json'} names no files")
        # `datasets` reads more of the folder than its rows.
        if (folder / "dataset_info.json").exists():
            read_json(folder / "dataset_info.json")
        check_arrow([*data, *(file for files in indices for file in files)], full=full)
    return data, any(indices)


def _listed(folder: Path, files: Any) -> list[Any]:
    if files is not None and not isinstance(files, list):
        raise DamagedFileError(f"{folder / 'state.json'} must list files, got {files!r:.60}")
    return files or []


def _named(folder: Path, entry: Any) -> Path:
    name = entry.get("filename") if isinstance(entry, dict) else None
    if (
        not isinstance(name, str)
        or not name
        or Path(name).is_absolute()
        or {"..", ""} & set(Path(name).parts)
    ):
        raise DamagedFileError(
            f"{folder / 'state.json'} must name files of its folder, got {entry!r:.100}"
        )
    return folder / name


def write_passages(dataset: Any, path: str | Path, *, max_shard_rows: int = 1_000_000) -> None:
    """Write a data set, all or nothing, as a folder that ``datasets.load_from_disk`` opens, before
    release 4.0 as well.

    ``Dataset.save_to_disk`` of release 4 and later names list columns "List", which earlier
    releases (and so transformers 4.37 in its own environment) refuse; both read "Sequence".

    Args:
        dataset: a `datasets.Dataset`; ``select``, ``shuffle`` and ``filter`` are applied, its
            indexes are not written.
        path: the folder to create.
        max_shard_rows: rows a file.

    Raises:
        OSError: the folder can't be written.
    """
    import pyarrow as pa

    rows = dataset.with_format("arrow")
    # Format must not hide columns from the writer: with_format("arrow") selects all of them.
    schema = dataset.data.schema.remove_metadata()
    shards = max(1, -(-len(dataset) // max_shard_rows))
    names = [f"data-{number:05d}-of-{shards:05d}.arrow" for number in range(shards)]
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": dataset._fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    info = {
        "citation": "",
        "description": "",
        "homepage": "",
        "license": "",
        "features": dataset.features.to_dict(),
    }
    with atomic_folder(path, stale=("*.arrow",)) as folder:
        for number, name in enumerate(names):
            with (
                pa.OSFile(str(folder / name), "wb") as sink,
                pa.ipc.new_stream(sink, schema) as writer,
            ):
                stop = min((number + 1) * max_shard_rows, len(dataset))
                for start in range(number * max_shard_rows, stop, 10_000):
                    table = rows[start : min(start + 10_000, stop)]
                    writer.write_table(
                        table.replace_schema_metadata(None).cast(schema).combine_chunks()
                    )
        vouch(folder / name for name in names)
        (folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
        (folder / "dataset_info.json").write_text(
            json.dumps(_with_sequences(info), indent=2), encoding="utf-8"
        )


def _with_sequences(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _sequence_name(key, _with_sequences(value)) for key, value in node.items()}
    return [_with_sequences(value) for value in node] if isinstance(node, list) else node


def _sequence_name(key: str, value: Any) -> Any:
    return "Sequence" if key == "_type" and value == "List" else value
