"""A knowledge base brought up to its files: what changed is read and embedded again, the rest stays.

Letters: R passages there are, M passages embedded anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rag_core.checks import warn
from rag_core.hub import numbered
from rag_core.knowledge.documents import ReadingOptions, readable
from rag_core.knowledge.embedding import read_batches
from rag_core.knowledge.files import Paths, find_files, find_roots, in_full
from rag_core.knowledge.manifest import Manifest, described_files, root_entries
from rag_core.retrieval import METADATA_COLUMN, decode_metadata

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Update:
    """What an update of a knowledge base did, or would do.

    Attributes:
        changed, new, gone: names of files, as they are sources of passages.
        unchanged: how many files are as they were.
        embedded: passages of changed and new files.
        removed: passages of changed files, as they were, and of those that are gone.
    """

    changed: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    unchanged: int = 0
    embedded: int = 0
    removed: int = 0

    def __bool__(self) -> bool:
        return bool(self.changed or self.new or self.gone)

    def __str__(self) -> str:
        noun = "passages"
        if self.embedded == 1:
            noun = "passage"
        return (
            f"{len(self.changed):,} changed, {len(self.new):,} new, {len(self.gone):,} gone, "
            f"{self.unchanged:,} as they were: {self.embedded:,} {noun} embedded, "
            f"{self.removed:,} removed"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return asdict(self)

    @classmethod
    def from_note(cls, note: Any) -> Update | None:
        """The update that `to_dict` gave; None if it is none."""
        try:
            return cls(**note)
        except TypeError:
            return None


class UpdatePlan:
    """What is to be done, found by comparing files with a manifest.

    Args:
        manifest: of the knowledge base.
        folder: the knowledge base.
        paths: files or folders to compare; None compares all that was indexed.

    Attributes:
        files: (file, name) pairs to read.
        is_done: whether there is nothing to do.
        changed, new, gone: names of files.
        manifest: as it is to be, but for what is known at the end.

    Raises:
        FileNotFoundError: a folder that was indexed is not where it was.
        ValueError: nothing would be left, or the knowledge base does not know its files.
    """

    def __init__(self, manifest: Manifest, folder: Path, paths: Paths | None) -> None:
        if not manifest.roots:
            raise ValueError(
                f"{folder} does not know where the files of its passages lie: it was built of a "
                "table in memory (KnowledgeBase.add adds another one), it was built by an earlier "
                "release, or the entries of 'roots' were taken out of its manifest. Build "
                f"it anew:  dualrag index PATHS --out {folder} --overwrite"
            )
        before = _sums(manifest.sources)
        roots = manifest.root_paths(folder)
        scopes = _scopes(roots, before, paths)
        found = []
        if scopes.present:
            exclude = manifest.request.get("exclude", ())
            found = find_files(
                scopes.present,
                scopes.present,
                exclude=exclude,
                inherited=exclude,
                below=scopes.below,
                may_be_empty=True,
            )
        entries = described_files(found)
        if manifest.request.get("skip_bad"):
            pairs = zip(found, entries, strict=True)
            good = {
                file for file, entry in pairs if entry["sha256"] in before.get(entry["path"], [])
            }
            found = readable(found, ReadingOptions.of(manifest.request), good)
            entries = described_files(found)
        now = _sums(entries)
        compared = [name for name in before if _is_within(name, scopes.names)]
        self.changed = [name for name in now if name in before and now[name] != before[name]]
        self.new = [name for name in now if name not in before]
        self.gone = [name for name in compared if name not in now]
        self.unchanged = len(before) - len(self.changed) - len(self.gone)
        to_read = {*self.changed, *self.new}
        self.files = [(path, name) for path, name in found if Path(name).as_posix() in to_read]
        left = [entry for entry in manifest.sources if entry["path"] not in {*now, *self.gone}]
        if not left and not entries:
            raise ValueError(
                f"{folder}: of its {len(before):,} files none is left. Name the folder where they "
                "lie now, or delete the knowledge base."
            )
        kept_roots = root_entries(scopes.roots.items(), folder)
        self.is_done = not to_read and not self.gone and kept_roots == manifest.roots
        order = _order(kept_roots)
        self.manifest = replace(
            manifest,
            sources=sorted([*left, *entries], key=lambda entry: order(entry["path"])),
            roots=kept_roots,
        )

    def outcome(self, embedded: int, removed: int) -> Update:
        """The record of what was done."""
        return Update(self.changed, self.new, self.gone, self.unchanged, embedded, removed)


@dataclass
class _Scopes:
    """Which files are compared.

    Attributes:
        present: paths to search, with the names that their files have in front.
        names: what the names of files that are compared begin with.
        roots: the paths that the knowledge base has from now on, with their names.
        below: where those of `present` that lie in a root lie below it.
    """

    present: dict[Path, str]
    names: set[str]
    roots: dict[Path, str]
    below: dict[Path, str] = field(default_factory=dict)


def _scopes(roots: Mapping[Path, str], before: Mapping[str, Any], paths: Paths | None) -> _Scopes:
    present = {path: name for path, name in roots.items() if path.exists()}
    if paths is not None:
        return _scopes_given(listed(paths), roots, present, before)
    for path, name in roots.items():
        # A single file may be gone; a folder is not emptied by being somewhere else.
        is_gone_file = name in before and path.parent.is_dir()
        if path not in present and not is_gone_file:
            raise FileNotFoundError(
                f"{path}: no such file or folder, and the knowledge base was built from it. "
                "Say where it lies now (dualrag update KB PATHS); if it is gone for good, "
                f"remove its passages (dualrag remove KB --source '{name}*')."
            )
    return _Scopes(present, {*roots.values()}, dict(present))


def _scopes_given(
    paths: list[Path],
    roots: Mapping[Path, str],
    present: Mapping[Path, str],
    before: Mapping[str, Any],
) -> _Scopes:
    """Of paths that lie in roots, are roots that were moved, or are new."""
    missing = {name: path for path, name in roots.items() if path not in present}
    scopes = _Scopes({}, set(), dict(roots))
    inside = places_inside(paths, roots)
    for path in map(in_full, paths):
        if path in inside:
            name = inside[path].name
            scopes.below[path] = inside[path].below
        elif path.name in missing:  # it lies elsewhere now
            name = path.name
            del scopes.roots[missing.pop(name)]
            scopes.roots[path] = name
        else:
            [(_, name)] = find_roots([path], present)
            scopes.roots[path] = name
            if missing:
                warn(
                    f"{numbered(missing.values())}: not where it was, and {path} counts as new. If "
                    f"it is that folder, give it the name that it had, {numbered(missing)}."
                )
        scopes.names.add(name)
        is_known = any(_is_within(known, {name}) for known in before)
        if path.exists() or not is_known:
            scopes.present[path] = name
    return scopes


def listed(paths: Paths) -> list[Path]:
    """One path, or several, as a list."""
    if isinstance(paths, str | Path):
        return [Path(paths)]
    return [Path(path) for path in paths]


class Inside(NamedTuple):
    """Where a path lies in a root of a knowledge base.

    Attributes:
        root: the root's name.
        below: the way from there, "." for the root itself.
    """

    root: str
    below: str

    @property
    def name(self) -> str:
        """As a source of passages."""
        return (Path(self.root) / self.below).as_posix()


def places_inside(paths: Iterable[Path], roots: Mapping[Path, str]) -> dict[Path, Inside]:
    """Those paths that are roots of a knowledge base or lie in one, by whatever links."""
    names: dict[Path, str] = {}
    for root, name in roots.items():
        names.setdefault(root, name)
        names.setdefault(root.resolve(), name)
    places = {}
    for path in paths:
        for spelling in _spellings(path):
            if found := _inside(spelling, names):
                places[in_full(path)] = found
                break
    return places


def _spellings(path: Path) -> Iterator[Path]:
    """A path with the links that it was given with, with its last name alone, and without."""
    if ".." not in path.parts:  # which leads out of where a link leads to
        yield Path.cwd() / path
    yield in_full(path)
    yield path.resolve()


def _inside(path: Path, names: Mapping[Path, str]) -> Inside | None:
    above: dict[Path, Path] = {}
    for folder in (path, *path.parents):
        above.setdefault(folder, folder)
        above.setdefault(folder.resolve(), folder)
    # The first root in which it lies has read it.
    for root, name in names.items():
        if root in above:
            return Inside(name, path.relative_to(above[root]).as_posix())
    return None


def place_of(name: str, roots: Mapping[Path, str]) -> Path | None:
    """Where the file of this name lies; None where no root has it."""
    for root, of_root in roots.items():
        if _is_within(name, {of_root}):
            return root / name.removeprefix(of_root).lstrip("/")
    return None


def without_lost(manifest: Manifest, folder: Path, names_left: set[str]) -> Manifest:
    """A manifest less the files that no passage is left of and that are not on disk any more, and
    the tables in memory that none is left of.

    Of other files whose passages were removed it is remembered that they are not to be added.
    """
    roots = manifest.root_paths(folder)
    sources = []
    for entry in manifest.sources:
        name = str(entry.get("path"))
        place = place_of(name, roots)
        if place is not None:
            is_there = place.exists()
        else:
            is_there = not is_table(name)  # nobody knows where files of earlier releases lie
        if name in names_left or is_there:
            sources.append(entry)
    names = [str(entry.get("path")) for entry in sources]
    is_here = {name: path.exists() for path, name in roots.items()}
    kept = []
    for root in manifest.roots:
        if is_here.get(root["name"]) or any(_is_within(name, {root["name"]}) for name in names):
            kept.append(root)
    return replace(manifest, sources=sources, roots=kept)


def is_table(name: str) -> bool:
    """Whether a source is a table in memory: files have suffixes."""
    return "." not in name


def _is_within(name: str, scopes: Iterable[str]) -> bool:
    return any(name == scope or name.startswith(f"{scope}/") for scope in scopes)


def _sums(sources: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The checksums of files by name; one that was added twice has two."""
    sums = defaultdict(list)
    for entry in sources:
        sums[entry["path"]].append(entry["sha256"])
    return dict(sums)


def _order(roots: list[dict[str, str]]) -> Any:
    """What names of files are sorted by, so that they stand as a build of `roots` has them."""

    def key(name: str) -> tuple[int, tuple[str, ...]]:
        numbers = [number for number, root in enumerate(roots) if _is_within(name, {root["name"]})]
        return min(numbers, default=len(roots)), Path(name).parts

    return key


def arranged(
    old: list[Path], new: list[Path], plan: UpdatePlan
) -> tuple[Iterator[pa.RecordBatch], int, bool]:
    """The passages of an updated knowledge base, in the order of its sources.

    Args:
        old: Arrow files of the passages there are.
        new: shards of those embedded anew.
        plan: says which files stay.

    Returns:
        Record batches; how many of the old passages are left out; and whether the others stand
        where they stood.

    Raises:
        ValueError: passages that do not say which file they are of.
    """
    import pyarrow as pa

    batches = list(read_batches(old))
    rows_before = sum(map(len, batches))
    numbers = {entry["path"]: number for number, entry in enumerate(plan.manifest.sources)}
    numbers.update(dict.fromkeys(plan.gone, -1))
    of_old = _file_numbers(batches, numbers)  # (R,)
    for name in plan.changed:
        of_old[of_old == numbers[name]] = -1
    shards = list(read_batches(new))
    number_of = np.concatenate([of_old, _file_numbers(shards, numbers)])  # (R + M,)
    order = np.argsort(number_of, kind="stable")
    order = order[number_of[order] >= 0]
    removed = int((of_old < 0).sum())
    in_place = not removed and bool((order[:rows_before] == np.arange(rows_before)).all())
    table = pa.Table.from_batches([*batches, *shards])
    return _runs(table, order), removed, in_place


def _runs(table: pa.Table, order: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The rows of a table in another order, copied by none: rows that stay together are a slice."""
    ends = np.flatnonzero(np.diff(order) != 1) + 1
    for rows in np.split(order, ends):
        if len(rows):
            yield from table.slice(int(rows[0]), len(rows)).to_batches()


def _file_numbers(batches: Iterable[pa.RecordBatch], numbers: Mapping[str, int]) -> np.ndarray:
    """The number of each passage's file."""
    found: list[int] = []
    for name in files_of(batches):
        if name is None or name not in numbers:
            raise ValueError(
                f"every passage must say which file it is of, got {name!r} for one. Build the "
                "knowledge base anew (dualrag index ... --overwrite)."
            )
        found.append(numbers[name])
    return np.array(found, np.int64)


def files_of(batches: Iterable[pa.RecordBatch]) -> Iterator[str | None]:
    """The file of each passage."""
    for batch in batches:
        sources = batch.column("source").to_pylist()
        for source, text in zip(sources, batch.column(METADATA_COLUMN).to_pylist(), strict=True):
            # Of tables whose rows name a source: few are.
            if text is not None and '"file"' in text:
                yield decode_metadata(text, "the passages").get("file", source)
            else:
                yield source
