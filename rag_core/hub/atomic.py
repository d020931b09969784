"""Files and folders written whole or not at all: the one way to write here, whatever moment a
writer is killed at.

A draft. What is written goes to a *draft* first, a folder `.NAME.xxxxxxxx.dualrag`: beside a file
or folder that is new, inside a folder that exists (on its disk, even where the folder above is
read-only). It is synced, then its names are put where they belong. A writer that fails removes its
draft; a writer that dies leaves it, and the next writer to the same place removes it. A living
writer's is told by a lock on the draft, which the system drops with the process. Where folders
can't be locked (Windows, some network disks), a draft counts as dead a day after its last change.

One name. A new folder, or one file, appears by one rename.

Several names in a folder that exists. Renaming the folder would lose what others put there, and
break mounted folders and processes that stand in it. So the draft gets a journal (`journal.json`:
which files come, which go), and is renamed to `.dualrag-commit` in the folder: *from this rename on
the new set counts*. Then all old files of the set are moved aside into it, then all new ones out of
it, then it goes: at no moment does the folder hold files of both sets, and what other programs look
for first (config.json, manifest.json, indexes of shards) goes first and comes last, so that they
find no model in between rather than half of one. After a success the folder is a plain one again.

Killed in between: whoever reads or writes the folder next, through this package, finishes the
exchange (`recover`). Other programs find an incomplete folder and say so, or finish nothing and
change nothing. A place that can't be written to while an exchange waits in it is refused by one
OSError that says what to do.
Failed in between (a full disk, a file that Windows holds open): the exchange is undone, and the
error raised.

Two writers of one folder: each has its own draft, a lock on the folder lets one exchange names at a
time, and the last one stands. Readers take no lock: one that reads while another process saves may
miss files, and is then told so.

Loss of power: files, folders and the journal are synced before the rename that counts and after it,
so on a disk that keeps its promises a save is there once its call returned, and the old one until
then.

A file that is a link is replaced, and what it points to stays as it is (the hub's cache is made of
such links). Folders inside a saved folder may not be links that lead out of it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from rag_core.hub.damaged import DamagedFileError
from rag_core.hub.json_files import read_json

__all__ = [
    "COMMIT",
    "atomic_folder",
    "atomic_write",
    "check_writable",
    "clear",
    "install",
    "is_draft",
    "name_full_disk",
    "recover",
]

COMMIT = ".dualrag-commit"
_JOURNAL, _NEW, _OLD = "journal.json", "new", "old"
_FORMAT = "dualrag commit 1"
_DRAFT = re.compile(r"\.(.*)\.[0-9a-f]{8}\.dualrag")
_NAME = 100  # bytes of a target's name in its draft's: names end at 255 of them
_DAY = 86400.0
# Seconds to wait for a folder's lock: exchanges are short, and `flock FOLDER dualrag ...` holds it
# for good.
_PATIENCE = 10.0
# What readers look for first: while it is away, there is no model, no tokenizer, no knowledge base.
_KEYS = ("config.json", "manifest.json", "tokenizer_config.json", "state.json")

# Drafts of this process. A writer within another's draft writes there: nobody reads it before the
# outer one is done.
_drafts: set[str] = set()
_LEVELS = 2  # a model's tokenizers and indexes lie at most so deep in its folder


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a path to write to; what is there replaces `path` on success and vanishes on failure.

    Missing parent folders are made.

    Args:
        path: of the file.

    Raises:
        OSError: it can't be written; what was there before is as it was.
    """
    target = Path(path)
    if _is_within_draft(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        yield target
        return
    if target.is_dir():
        raise IsADirectoryError(
            errno.EISDIR, "a file can't be written, a folder has its name", str(target)
        )
    with _parents(target.parent):
        recover(target.parent)
        try:
            with _draft(target.parent, target.name) as draft:
                yield draft / target.name
                _sync(draft)
                with _alone(target.parent):
                    (draft / target.name).replace(target)
                _sync_folder(target.parent)
        except OSError as error:
            name_full_disk(error, target)
            raise


@contextmanager
def atomic_folder(folder: str | Path, *, stale: Iterable[str] = ()) -> Iterator[Path]:
    """Yields a folder to write to; on success all its files appear in `folder` together, on failure
    nothing changes.

    Other files of an existing `folder` stay.

    Args:
        folder: the folder to make or to add to.
        stale: patterns of files (relative, with forward slashes) of an earlier save, which go
            unless just written.

    Raises:
        OSError: `folder` is a file, or can't be written.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise OSError(f"Can't save into {str(folder)!r}: it is a file. Name a folder.")
    if _is_within_draft(target):
        target.mkdir(parents=True, exist_ok=True)
        for name in _matching(target, stale):
            (target / name).unlink()
        yield target
        return
    try:
        if target.is_dir():
            recover(target)
            with _draft(target, target.resolve().name, _NEW) as draft:
                yield draft / _NEW
                _exchange(draft, target, stale)
            return
        with _parents(target.parent), _draft(target.parent, target.name) as draft:
            yield draft
            _appear(draft, target, stale)
    except OSError as error:
        name_full_disk(error, target)
        raise


def install(new: Path, folder: Path, *, stale: Iterable[str] = ()) -> None:
    """Puts the finished folder `new` in the place of `folder`, or its files into it, all together.

    Args:
        new: a folder on the same disk; gone afterwards.
        folder: as in `atomic_folder`.
        stale: as in `atomic_folder`.

    Raises:
        OSError: names can't be changed there; `folder` is as it was.
    """
    recover(folder)
    _appear(new, folder, stale)


def recover(folder: str | Path) -> None:
    """Finishes the exchange of a writer that was killed within it, if there is one; costs three
    looks otherwise.

    Args:
        folder: what is about to be read or written; the two folders above it are seen to as well.

    Raises:
        OSError: one waits there and can't be finished.
    """
    folder = Path(folder)
    for above in list(folder.absolute().parents)[:_LEVELS]:
        # What somebody else leaves in a folder for all, /tmp say, is none of ours.
        if os.path.lexists(above / COMMIT) and _is_own(above / COMMIT):
            _recover(above)
    if os.path.lexists(folder / COMMIT):
        _recover(folder)


def _is_own(path: Path) -> bool:
    return os.name == "nt" or path.lstat().st_uid == os.getuid()


def _recover(folder: Path) -> None:
    if (
        os.name != "nt"
        and not _is_own(folder / COMMIT)
        and (folder / COMMIT).lstat().st_uid != folder.stat().st_uid
    ):
        raise DamagedFileError(
            f"{str(folder / COMMIT)!r} was left by another user than {str(folder)!r} is of, and "
            "may not change what is there. Remove it, or have that user open the folder once."
        )
    try:
        with _alone(folder):
            if os.path.lexists(folder / COMMIT):  # else its writer lives and has just finished
                _finish(folder)
    except OSError as error:
        if isinstance(error, DamagedFileError):
            raise
        raise OSError(
            f"{str(folder)!r} was being saved when its writer was stopped; the new files wait in "
            f"{COMMIT} there and can't be put in place ({error.strerror or error}). Open it once "
            "where it can be written to."
        ) from error


def clear(folder: str | Path) -> None:
    """Finishes what a killed writer left at `folder`, and removes drafts of dead writers in it and
    for it.

    For writers that ask what a folder holds before they write to it.
    """
    target = Path(folder)
    # That is new, and its lock is held by this very writer: it would wait for itself.
    if _is_within_draft(target):
        return
    if target.is_dir():
        recover(target)
        with _alone(target):
            _sweep(target)
    if target.name and target.parent.is_dir():
        with _alone(target.parent):
            _sweep(target.parent, target.name)


def check_writable(target: str | Path) -> None:
    """Refuses a place that nothing can be written to, before work is done for it; leaves nothing
    there.

    Args:
        target: a file or folder to be written; what is missing above it would be made.

    Raises:
        OSError: naming the target.
    """
    import tempfile

    place = Path(target).absolute()
    if not place.is_dir():
        place = next(above for above in place.parents if above.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(
            error.errno,
            f"{str(target)!r} can't be written: {error.strerror}, at {str(place)!r}. Name another "
            "place.",
        ) from error


def is_draft(name: str) -> bool:
    """Whether a file or folder name, or a path's part, is a draft's and none of a saved folder's
    own.
    """
    return name == COMMIT or _DRAFT.fullmatch(name) is not None


def name_full_disk(error: OSError, target: Path) -> None:
    """Raises, where the system ran out of room without naming a file, an error that names `target`;
    else does nothing.

    Raises:
        OSError: of the same number, saying what could not be written and what to do.
    """
    if (
        error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        and error.strerror
        and not error.filename
    ):
        raise OSError(
            error.errno,
            f"{error.strerror}: {str(target)!r} could not be written and is as it was. Make room "
            "and try again.",
        ) from error


def _is_within_draft(path: Path) -> bool:
    full = str(path.absolute())
    return any(full == draft or full.startswith(draft + os.sep) for draft in tuple(_drafts))


@contextmanager
def _draft(where: Path, name: str, inner: str = "") -> Iterator[Path]:
    """A locked draft in `where`; gone afterwards unless it was renamed.

    Drafts of dead writers are removed before.
    """
    with _alone(where):
        # A draft beside its target lies in a folder that is not ours alone: there each writer
        # removes its own.
        _sweep(where, "" if inner else name)
        draft = where / _draft_name(name)
        try:
            draft.mkdir()
        except OSError as error:
            # people know the folder, not its draft
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise type(error)(
                    error.errno, f"{error.strerror}: nothing can be saved in", str(where)
                ) from None
            raise
        handle = _locked(draft)
    try:
        if inner:
            (draft / inner).mkdir()
        key = str((draft / inner).absolute())
        _drafts.add(key)
        try:
            yield draft
        finally:
            _drafts.discard(key)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _draft_name(name: str) -> str:
    return f".{_shortened(name)}.{os.urandom(4).hex()}.dualrag"


def _shortened(name: str) -> str:
    """The characters of a name that fit into `_NAME` bytes."""
    name = name[:_NAME]
    while len(os.fsencode(name)) > _NAME:
        name = name[:-1]
    return name


def _sweep(where: Path, name: str = "") -> None:
    """Removes the drafts of dead writers in a folder, those of one target or all.

    The folder is locked meanwhile.
    """
    wanted = _shortened(name)
    with contextlib.suppress(OSError):
        for entry in list(where.iterdir()):
            match = _DRAFT.fullmatch(entry.name)
            if match is None or (name and match[1] != wanted):
                continue
            if _is_dead(entry):
                shutil.rmtree(entry, ignore_errors=True)


def _is_dead(draft: Path) -> bool:
    if draft.is_symlink() or not draft.is_dir():
        return False
    try:
        import fcntl

        handle = os.open(draft, os.O_RDONLY)
    except (ImportError, OSError):
        return _is_forgotten(draft)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return _is_forgotten(draft)
    finally:
        os.close(handle)
    return True


def _is_forgotten(draft: Path) -> bool:
    changed = [path.lstat().st_mtime for path in (draft, *draft.rglob("*"))]
    return time.time() - max(changed) > _DAY


def _appear(new: Path, target: Path, stale: Iterable[str]) -> None:
    """A finished folder becomes `target` by one rename or, where that is there, by an exchange."""
    if not target.exists():
        _sync(new)
        try:
            new.replace(target)
            _sync_folder(target.parent)
            return
        except OSError:
            if not target.is_dir():  # else another process has just saved there
                raise
    with _draft(target, target.resolve().name) as draft:
        new.replace(draft / _NEW)
        _exchange(draft, target, stale)


def _exchange(draft: Path, target: Path, stale: Iterable[str]) -> None:
    """The files in `draft`/new take their places in `target`."""
    files, folders = _below(draft / _NEW)
    for name in files:
        _check_place(target, name)
    _sync(draft / _NEW)
    with _alone(target):
        gone = sorted(set(_matching(target, stale)) - set(files))
        if len(files) == 1 and not gone and not folders:
            (draft / _NEW / files[0]).replace(target / files[0])
            _sync_folder(target)
            return
        (draft / _OLD).mkdir()
        journal = {"format": _FORMAT, "files": files, "folders": folders, "removed": gone}
        (draft / _JOURNAL).write_text(json.dumps(journal, ensure_ascii=False), encoding="utf-8")
        _sync_file(draft / _JOURNAL)
        _sync_folder(draft)
        if os.path.lexists(target / COMMIT):  # a writer died there since this one began
            _finish(target)
        draft.replace(target / COMMIT)
        _sync_folder(target)
        try:
            _finish(target)
        except OSError:
            _undo(target, draft, files, gone)
            raise


def _check_place(target: Path, name: str) -> None:
    """A file may replace a file, below folders that lie in `target`.

    Moving anything else aside would lose it.
    """
    place = target / name
    if place.is_dir() and not place.is_symlink():
        raise IsADirectoryError(
            errno.EISDIR, "a file can't be saved, a folder has its name", str(place)
        )
    root = target.resolve()
    for above in PurePosixPath(name).parents:
        folder = target / above
        if os.path.lexists(folder) and not folder.is_dir():
            raise NotADirectoryError(
                errno.ENOTDIR, "a folder can't be saved, a file has its name", str(folder)
            )
        if not folder.resolve().is_relative_to(root):
            raise OSError(
                f"{str(folder)!r} is a link that leads out of {str(target)!r}; what is saved "
                "together lies in one folder. Replace the link by a folder, or save elsewhere."
            )


def _finish(target: Path) -> None:
    """Carries out a journal, from wherever it was left; the folder is locked meanwhile."""
    commit = target / COMMIT
    files, folders, gone = _read_journal(target)
    coming = [name for name in _ordered(files) if os.path.lexists(commit / _NEW / name)]
    for name in [*coming, *_ordered(gone)]:
        if os.path.lexists(target / name):
            _move(target / name, commit / _OLD / name)
    for name in folders:
        (target / name).mkdir(parents=True, exist_ok=True)
    for name in reversed(coming):
        _move(commit / _NEW / name, target / name)
    for name in {"", *folders}:
        _sync_folder(target / name)
    # Under a draft's name first: half removed, it must not look like a journal that waits.
    done = target / _draft_name(target.resolve().name)
    commit.replace(done)
    shutil.rmtree(done, ignore_errors=True)


def _undo(target: Path, draft: Path, files: list[str], gone: list[str]) -> None:
    """Puts everything back after an exchange that failed; what can't be stays for `recover`."""
    commit = target / COMMIT
    try:
        for name in _ordered(files):
            if not os.path.lexists(commit / _NEW / name):
                _move(target / name, commit / _NEW / name)
        for name in reversed(_ordered([*files, *gone])):
            if os.path.lexists(commit / _OLD / name):
                _move(commit / _OLD / name, target / name)
        commit.replace(draft)
    except OSError:
        pass


def _read_journal(target: Path) -> tuple[list[str], list[str], list[str]]:
    """What comes (files and their folders) and what goes.

    It may stand in a folder from elsewhere: nothing that it says may reach out of that folder.
    """
    path = target / COMMIT / _JOURNAL
    try:
        if (target / COMMIT).is_symlink() or path.is_symlink():
            raise ValueError("a link")
        journal = read_json(path)
        if journal["format"] != _FORMAT:
            raise ValueError(f"format {journal['format']!r}")
        lists = [journal[key] for key in ("files", "folders", "removed")]
        for name in [name for names in lists for name in names]:
            place = PurePosixPath(name)
            if (
                not isinstance(name, str)
                or not name
                or "\\" in name
                or place.is_absolute()
                or ".." in place.parts
            ):
                raise ValueError(f"a name outside the folder: {name!r}")
            if is_draft(place.parts[0]):
                raise ValueError(f"a name of its own kind: {name!r}")
            for root in (target, target / COMMIT / _NEW, target / COMMIT / _OLD):
                if not (root / place).parent.resolve().is_relative_to(target.resolve()):
                    raise ValueError(f"a link out of the folder: {name!r}")
        files, folders, removed = lists
        return files, folders, removed
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFileError(
            f"{str(path)!r} is no journal of an unfinished save ({type(error).__name__}: "
            f"{error!s:.160}). Remove the folder {COMMIT} and save {str(target)!r} again."
        ) from error


def _ordered(names: Iterable[str]) -> list[str]:
    """Keys first, the folder's own before those of folders in it."""

    def rank(name: str) -> tuple[bool, int, str]:
        is_key = PurePosixPath(name).name in _KEYS or name.endswith(".index.json")
        return not is_key, name.count("/"), name

    return sorted(names, key=rank)


def _move(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    source.replace(place)


def _matching(folder: Path, patterns: Iterable[str]) -> list[str]:
    """Files of the folder, drafts apart, that match one of the patterns."""
    names = set()
    for pattern in patterns:
        for path in folder.glob(pattern):
            name = path.relative_to(folder)
            if not is_draft(name.parts[0]) and (path.is_symlink() or path.is_file()):
                names.add(name.as_posix())
    return sorted(names)


def _below(root: Path) -> tuple[list[str], list[str]]:
    """Files (links to folders among them) and folders below a folder."""
    files, folders = [], []
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_dir() and not path.is_symlink():
            folders.append(name)
        else:
            files.append(name)
    return sorted(files), sorted(folders)


def _sync(folder: Path) -> None:
    """Gives everything in a draft the permissions that the umask leaves, and sends it to the
    disk.
    """
    # Some libraries write files that only their owner can read; a folder made plainly shows what
    # others may do.
    may = folder.stat().st_mode & 0o666
    files, folders = _below(folder)
    for name in files:
        if not (folder / name).is_symlink():
            # disks without permissions
            with contextlib.suppress(PermissionError, NotImplementedError):
                (folder / name).chmod(may)
            _sync_file(folder / name)
    for name in [*folders, ""]:
        _sync_folder(folder / name)


def _sync_file(path: Path) -> None:
    flags = os.O_RDONLY
    if os.name == "nt":  # which syncs only what is open for writing
        flags = os.O_RDWR
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    except OSError as error:
        # of a disk that can't be told to
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    # Some file systems have no such thing, which is no reason to fail.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _locked(folder: Path, *, wait: bool = False) -> int | None:
    """An open handle that holds the folder's lock, or None where there is no lock to be had."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    until = time.monotonic()
    if wait:
        until += _PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(0.01)
                continue
        except OSError:
            pass
        os.close(handle)
        return None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process (and thread) at a time changes names in a folder, where the system can lock
    it.
    """
    handle = _locked(folder, wait=True)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Makes `folder`; removes again what it made if the body fails."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # not empty: another process writes there
                path.rmdir()
        raise
