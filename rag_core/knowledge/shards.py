"""A knowledge base cut into shards: each a knowledge base of a range of its rows, and one file that
says which.

    shards/shard-00000/    rows 0 to ..., a knowledge base
    shards/shard-00001/    the next ones
    shards/shards.json     see `ShardSet`
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_core.checks import whole
from rag_core.hub import DamagedFileError, atomic_folder, read_json
from rag_core.knowledge.assembly import assemble, workplace
from rag_core.knowledge.base import KnowledgeBase
from rag_core.knowledge.embedding import read_batches
from rag_core.knowledge.manifest import FILE, INDEX_FILE, PASSAGES, Manifest, describe

if TYPE_CHECKING:
    import pyarrow as pa

    from rag_core.retrieval import RayIndex

SHARDS_FILE = "shards.json"
# Faiss compares questions with as many rows at once: of shards that begin where a block of the
# whole does, scores are the same to the last bit.
BLOCK_ROWS = 1024
_FORMAT = "dualrag shards 1"


@dataclass(frozen=True)
class ShardSet:
    """A folder of shards.

    Attributes:
        folder: where it is.
        manifest: that of the whole knowledge base, and "sha256", the file's own, which tells the
            build.
        kind: of the faiss index of each shard.
        shards: "folder" (relative), "start" and "stop" (rows of the whole) and "sha256" (of its
            manifest) of each.
    """

    folder: Path
    manifest: dict[str, Any]
    kind: str
    shards: list[dict[str, Any]]

    @property
    def rows(self) -> int:
        """Passages of the whole."""
        return int(self.manifest["rows"])

    @classmethod
    def open(cls, folder: str | Path) -> ShardSet:
        """Reads shards.json.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged.
        """
        folder = Path(folder)
        place = folder / SHARDS_FILE
        if not place.is_file():
            raise FileNotFoundError(
                f"{folder}: no shards here (there is no {SHARDS_FILE}). Cut some:  dualrag shards "
                f"KB --out {folder} --n 4"
            )
        values = read_json(place, advice="Cut the knowledge base again.")
        try:
            if values["format"] != _FORMAT:
                raise ValueError(f"format {values['format']!r}")
            shards = [dict(shard) for shard in values["shards"]]
            stops = [0, *(shard["stop"] for shard in shards)]
            if [shard["start"] for shard in shards] != stops[:-1]:
                raise ValueError("its shards do not follow each other")
            if stops[-1] != values["manifest"]["rows"]:
                raise ValueError(f"its shards end at row {stops[-1]}")
            for shard in shards:
                name = Path(shard["folder"])
                if name.is_absolute() or ".." in name.parts:
                    raise ValueError(f"a shard outside its folder: {shard['folder']!r}")
            return cls(folder, dict(values["manifest"]), str(values["kind"]), shards)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedFileError(
                f"{place} is damaged ({type(error).__name__}: {error!s:.120}). Cut the knowledge "
                "base again."
            ) from error


def base_of_manifest(place: str, values: Mapping[str, Any]) -> KnowledgeBase:
    """A knowledge base that is elsewhere, for its `check_model` and its manifest.

    Args:
        place: what errors call it.
        values: what its manifest holds.
    """
    known = {field.name for field in fields(Manifest)}
    manifest = Manifest(**{name: value for name, value in values.items() if name in known})
    return KnowledgeBase(Path(place), manifest)


def held_index(
    place: str, base: KnowledgeBase | None = None, *, when_exchanged: str | None = None
) -> RayIndex:
    """The index of shards on a cluster.

    Args:
        place: "ray://ADDRESS/NAME".
        base: the whole that they must have been cut from; None takes any.
        when_exchanged: see `RayIndex`.

    Raises:
        OSError: there are none.
        ValueError: they are of another build.
    """
    from rag_core.retrieval import RayIndex

    index = RayIndex(place, when_exchanged=when_exchanged)
    index.init_index()
    if base is not None and describe(base.path / FILE)["sha256"] != index.manifest["sha256"]:
        raise ValueError(
            f"index must hold the shards of {base.path}, got those of another build at {place}. Cut "
            "and start them again, or leave the knowledge base out."
        )
    return index


def starts_of(rows: int, n: int) -> list[int]:
    """Where n shards of so many rows begin, and where the last ends: evenly, at blocks of faiss
    where there are enough.
    """
    unit = 1
    if rows >= 2 * n * BLOCK_ROWS:
        unit = BLOCK_ROWS
    starts = [round(number * rows / n / unit) * unit for number in range(n)]
    return [*starts, rows]


def cut_shards(base: KnowledgeBase, out: str | Path, n: int) -> ShardSet:
    """Cut a knowledge base into shards, each with a faiss index of the same kind; all or nothing.

    Args:
        base: the whole.
        out: the folder to create; one that holds the same shards of the same build is found done.
        n: how many; rows are spread evenly.

    Raises:
        FileExistsError: `out` holds something else.
        ValueError: fewer rows than shards; a knowledge base that is searched by words.
        OSError: it can't be written.
    """
    out = Path(out)
    n = whole(1)("n", n)
    if n > len(base):
        raise ValueError(f"n must be at most the {len(base)} passages of {base.path}, got {n}")
    if base.manifest.search != "vectors":
        raise ValueError(
            f"{base.path} must be searched by vectors, got {base.manifest.search!r}: what a word "
            "counts depends on all passages. Build it with  --index flat"
        )
    sha256 = describe(base.path / FILE)["sha256"]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _existing(out, sha256, n)
    kind = base.manifest.index["kind"]
    starts = starts_of(len(base), n)
    entries = []
    with atomic_folder(out) as draft:
        for number, (start, stop) in enumerate(itertools.pairwise(starts)):
            folder = draft / f"shard-{number:05d}"
            _write_shard(base, folder, start, stop)
            entry = {"folder": folder.name, "start": start, "stop": stop}
            entries.append(entry | {"sha256": describe(folder / FILE)["sha256"]})
        manifest = asdict(base.manifest) | {"sha256": sha256}
        content = {"format": _FORMAT, "kind": kind, "shards": entries, "manifest": manifest}
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (draft / SHARDS_FILE).write_text(text + "\n", encoding="utf-8")
    return ShardSet.open(out)


def _existing(out: Path, sha256: str, n: int) -> ShardSet:
    """The shards at `out`, if they are those that are asked for."""
    if not (out / SHARDS_FILE).is_file():
        raise FileExistsError(f"{out} exists and holds no shards. Choose another folder.")
    there = ShardSet.open(out)
    if there.manifest.get("sha256") != sha256 or len(there.shards) != n:
        raise FileExistsError(
            f"{out} holds {len(there.shards)} shards of another build or number. Choose another "
            "folder: shards that are in use must stay as they are."
        )
    return there


def _write_shard(base: KnowledgeBase, folder: Path, start: int, stop: int) -> None:
    from rag_core.retrieval import passage_parts, read_faiss

    whole_manifest = base.manifest
    kind = whole_manifest.index["kind"]
    files, _ = passage_parts(base.path / PASSAGES)
    kept = None
    if kind == "ivfpq":
        # Trained on the whole: the codes of a passage are the same in its shard.
        kept = read_faiss(base.path / INDEX_FILE)
        kept.reset()
    request = {**whole_manifest.request, "index": kind}
    plan = replace(whole_manifest, rows=0, files={}, request=request)
    with workplace(folder) as work:
        assemble(work, folder, rows_between(read_batches(files), start, stop), plan, kept)


def rows_between(
    batches: Iterable[pa.RecordBatch], start: int, stop: int
) -> Iterator[pa.RecordBatch]:
    """The rows from `start` up to `stop` of batches that follow each other."""
    first = 0
    for batch in batches:
        here = max(start - first, 0), min(stop - first, len(batch))
        if here[0] < here[1]:
            yield batch.slice(here[0], here[1] - here[0])
        first += len(batch)
        if first >= stop:
            return
