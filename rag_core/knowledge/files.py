"""Folders and files named by people -> the files to read; what is not read is counted."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from rag_core.checks import warn
from rag_core.hub import numbered
from rag_core.knowledge.kinds import KINDS, advice, is_read, is_walked

Paths = str | Path | Iterable[str | Path]

# More than fit a screen help nobody.
FAULTS_TOLD = 20
EXCLUDED = "excluded"
EMPTY = "empty"
HIDDEN = "hidden"


class PassedByWarning(UserWarning):
    """Something on disk that was not read: files of other kinds, empty ones, rows without text."""


class BadFilesError(ValueError):
    """Several files cannot be read.

    Attributes:
        faults: what is wrong with each, with its name.
    """

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("\n".join([f"{len(faults)} files cannot be read:", *self.told()]))

    def told(self) -> list[str]:
        """The first of the faults, and how many there are beside them."""
        told = self.faults[:FAULTS_TOLD]
        if more := len(self.faults) - len(told):
            told.append(f"... and {more:,} more")
        return told


def find_roots(
    paths: str | Path | Iterable[str | Path], known: Mapping[Path, str] = MappingProxyType({})
) -> list[tuple[Path, str]]:
    """Paths without repeats, each with the name that its files have in front.

    That is the folder's or file's own name, and as much of the path before it as tells it from the
    others.

    Args:
        paths: files or folders, which need not exist.
        known: names that paths have already; others get other ones.
    """
    if isinstance(paths, (str, Path)):
        paths = [paths]
    roots: dict[Path, Path] = {}
    for path in map(Path, paths):
        roots.setdefault(_real(path), path)
    named = {_real(path): name for path, name in known.items()}
    names = {real: named.get(real, _as_text(real.name)) for real in roots}
    taken = [name for real, name in named.items() if real not in roots]
    longest = max((len(real.parts) for real in roots), default=0)
    for length in range(2, longest + 1):
        all_names = [*names.values(), *taken]
        times = Counter(all_names)
        # A file's name begins with that of its root: so none may lie in another.
        above = {parent for name in times for parent in map(str, PurePosixPath(name).parents)}
        for real in roots.keys() - named.keys():
            name = names[real]
            is_inside = any(str(parent) in times for parent in PurePosixPath(name).parents)
            if times[name] > 1 or name in above or is_inside:
                names[real] = _as_text("/".join(real.parts[-length:]).strip("/"))
    return [(path, names[real]) for real, path in roots.items()]


def find_files(
    paths: str | Path | Iterable[str | Path],
    known: Mapping[Path, str] = MappingProxyType({}),
    *,
    exclude: str | Iterable[str] = (),
    inherited: Container[str] = (),
    below: Mapping[Path, str] = MappingProxyType({}),
    may_be_empty: bool = False,
) -> list[tuple[Path, str]]:
    """The files behind `paths`, folders walked recursively in sorted order, linked ones entered.

    Args:
        paths: files or folders. What a folder holds beside files of the kinds that are read (other
            kinds, empty and hidden files, links to nothing) is passed by, and counted in one
            `PassedByWarning`. A file that is reached twice, by a link or by its name, is read once.
            A folder that `Dataset.save_to_disk` wrote is the table in it.
        known: as in `find_roots`.
        exclude: patterns as in a .gitignore file ("drafts/", "*.tmp", "!keep.tmp"), matched against
            paths below each folder and names of files that are given by themselves.
        inherited: those of them that an earlier call was given: no warning where they match nothing.
        below: of paths (as `in_full` has them) that lie in a folder which was walked before, where
            below it they lie: what is left out there is left out now.
        may_be_empty: whether folders that hold nothing to read, and empty files, are passed by.

    Returns:
        (file, name as `find_roots` begins it) pairs, without repeats.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a file of another kind or an empty one was named, or nothing was found.
        OSError: a folder cannot be opened.
    """
    collection = _Collection(_Exclusion.of(exclude), may_be_empty)
    faults: list[ValueError | OSError] = []
    for path, name in find_roots(paths, known):
        place = PurePosixPath(below.get(in_full(path), "."))
        try:
            if kind := collection.left_out(place, path.is_dir()):
                collection.passed_by[kind].append(name)
            elif is_saved_dataset(path):
                for file in _arrow_files(path):
                    collection.add(file, f"{name}/{file.name}")
            elif path.is_dir():
                _walk(path, name, place, collection)
            elif not place.parts and collection.exclusion.matches(path.name):
                collection.passed_by[EXCLUDED].append(name)
            elif may_be_empty and _not_read(path) == EMPTY:
                collection.passed_by[EMPTY].append(name)
            else:
                _check_named(path)
                collection.add(in_full(path), name)
        except (ValueError, OSError) as error:
            faults.append(error)
    if len(faults) > 1:
        raise BadFilesError([str(fault) for fault in faults])
    if faults:
        raise faults[0]
    if collection.passed_by:
        warn(collection.summary(), PassedByWarning)
    unused = [one for one in collection.exclusion.unused() if one not in inherited]
    if unused:
        warn(f"exclude: nothing matches {', '.join(map(repr, unused))}.", PassedByWarning)
    if not collection.files and not may_be_empty:
        raise ValueError(
            "paths: there is nothing to read, every file is empty or excluded, or no path was "
            "given."
        )
    return collection.files


class _Exclusion:
    """Patterns of paths that are left out, and which of them were of use."""

    def __init__(self, patterns: list[str]) -> None:
        self.patterns = patterns
        self.used: set[int] = set()
        self.spec: Any = None
        if patterns:
            from pathspec import GitIgnoreSpec

            try:
                self.spec = GitIgnoreSpec.from_lines(patterns)
            except ValueError as error:
                raise ValueError(
                    f"exclude must be patterns as in a .gitignore file, got {patterns!r} ({error})."
                ) from None

    @classmethod
    def of(cls, patterns: str | Iterable[str]) -> _Exclusion:
        if isinstance(patterns, str):
            patterns = [patterns]
        return cls(list(patterns))

    def matches(self, path: str) -> bool:
        """Whether a relative path, one of a folder with "/" at its end, is left out."""
        if self.spec is None:
            return False
        result = self.spec.check_file(path)
        if result.index is not None:
            self.used.add(result.index)
        return bool(result.include)

    def unused(self) -> list[str]:
        return [
            pattern
            for number, pattern in enumerate(self.patterns)
            if number not in self.used and pattern.strip() and not pattern.startswith("#")
        ]


class _Seen:
    """Files and folders that were met."""

    def __init__(self) -> None:
        self.seen: set[Any] = set()

    def first_time(self, path: Path) -> bool:
        """Whether the file or folder, whatever its name, comes for the first time."""
        stat = path.stat()
        key: Any = stat.st_dev, stat.st_ino
        # Some file systems number no files.
        if not stat.st_ino:
            key = path.resolve()
        if key in self.seen:
            return False
        self.seen.add(key)
        return True


class _Collection(_Seen):
    """Files to read, each once, and the names of what was passed by, by kind."""

    def __init__(self, exclusion: _Exclusion, may_be_empty: bool) -> None:
        super().__init__()
        self.exclusion = exclusion
        self.may_be_empty = may_be_empty
        self.files: list[tuple[Path, str]] = []
        self.passed_by: dict[str, list[str]] = defaultdict(list)

    def add(self, path: Path, name: str) -> None:
        if self.first_time(path):
            self.files.append((path, _as_text(name)))

    def left_out(self, place: PurePosixPath, is_folder: bool) -> str | None:
        """Why a walk from the folder that `place` is relative to would not have come there."""
        if any(part.startswith(".") for part in place.parts):
            return HIDDEN
        folders = [*place.parents][-2::-1]  # less the one that is walked
        if is_folder and place.parts:
            folders.append(place)
        if any(self.exclusion.matches(f"{folder}/") for folder in folders):
            return EXCLUDED
        if place.parts and not is_folder and self.exclusion.matches(str(place)):
            return EXCLUDED
        return None

    def summary(self) -> str:
        told = f"passed by: {told_by_kind(self.passed_by)}."
        return " ".join(filter(None, (told, advice(self.passed_by))))


def told_by_kind(names: Mapping[str, Sequence[str]]) -> str:
    """How many there are of each kind, and the first few names."""
    # What people may have meant to be read comes first.
    order = sorted((kind in (EXCLUDED, HIDDEN), -len(names[kind]), kind) for kind in names)
    told = []
    for _, _, kind in order:
        few = _as_text(numbered(names[kind]))
        told.append(f"{len(names[kind]):,} {kind} ({few})")
    return ", ".join(told)


def in_full(path: Path) -> Path:
    """The path without links but for its last name; "." and ".." have none."""
    if path.name in ("", ".."):
        return path.resolve()
    return path.parent.resolve() / path.name


def _real(path: Path) -> Path:
    """What tells roots apart: a folder has one name however it is reached, a file its own."""
    if path.is_dir():
        return path.resolve()
    return in_full(path)


def is_saved_dataset(path: Path) -> bool:
    """Whether `Dataset.save_to_disk` wrote a folder."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def _arrow_files(folder: Path) -> list[Path]:
    """The files of a saved data set, in the order of its rows."""
    from rag_core.retrieval import passage_parts

    files, is_shuffled = passage_parts(folder)
    if is_shuffled:
        raise ValueError(
            f"{folder}: a saved data set must hold its rows in order, got one that a list of row "
            "numbers lies over. Save it anew:  dataset.flatten_indices().save_to_disk(PATH)"
        )
    return [in_full(file) for file in files]


def _walk(path: Path, name: str, place: PurePosixPath, collection: _Collection) -> None:
    """Collects what a folder holds; `place` is where it lies below the one that patterns are of."""
    root = path.resolve()
    passed_by = collection.passed_by
    # Folders of this one: a link back into it is not followed for ever.
    entered = _Seen()
    entered.first_time(root)

    def refuse(error: OSError) -> None:
        raise OSError(
            f"{error.filename}: the folder cannot be opened ({error.strerror}). Change that, or "
            "leave it out."
        )

    def shown(path: Path) -> str:
        return str(Path(name) / path.relative_to(root))

    def is_excluded(path: Path, end: str = "") -> bool:
        relative = place / path.relative_to(root).as_posix()
        return collection.exclusion.matches(f"{relative}{end}")

    inside: list[Path] = []
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        here = Path(folder)
        to_enter = []
        for below in folders:
            if below.startswith("."):
                passed_by[HIDDEN].append(shown(here / below))
            elif is_excluded(here / below, "/"):
                passed_by[EXCLUDED].append(shown(here / below))
            elif entered.first_time(here / below):
                to_enter.append(below)
        folders[:] = sorted(to_enter)
        inside += [here / file for file in files]
    for file in sorted(inside):
        if kind := _not_read(file):
            passed_by[kind].append(shown(file))
        elif is_excluded(file):
            passed_by[EXCLUDED].append(shown(file))
        else:
            collection.add(file, shown(file))
    is_read_here = any(is_walked(file.suffix) and not file.name.startswith(".") for file in inside)
    if not is_read_here and not collection.may_be_empty:
        kinds = sorted({file.suffix.lower() for file in inside})
        raise ValueError(
            f"{path}: the folder holds none of {', '.join(filter(is_walked, KINDS))}. "
            f"{advice(kinds) or 'Name another folder.'}"
        )


def _not_read(path: Path) -> str | None:
    """What kind of file that is not read this one is."""
    if path.name.startswith("."):
        return HIDDEN
    if not path.exists():
        return "links to nothing"
    if not path.is_file():
        return "special"
    if not is_walked(path.suffix):
        return path.suffix.lower() or "without suffix"
    if path.stat().st_size == 0:
        return EMPTY
    return None


def _check_named(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder. Check the path.")
    suffix = path.suffix.lower()
    if not is_read(suffix):
        raise ValueError(
            f"{path}: cannot read {suffix or 'a file without suffix'}; use "
            f"{', '.join(filter(is_read, KINDS))}. {advice([suffix])}".rstrip()
        )
    if not path.is_file():
        raise ValueError(
            f"{path}: must be a file or a folder, not a pipe or a device. Write its text to a "
            "file first."
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty. Remove it from the list or fill it.")


def _as_text(name: str) -> str:
    r"""A file's name for people and manifests.

    Bytes that are not UTF-8, lone surrogates here, as \x.. .
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")
