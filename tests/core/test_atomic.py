"""Folders of several files, whatever moment their writer dies at.

Wholly old or wholly new, and no trace in the end.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from rag_core.hub import atomic
from rag_core.hub.atomic import COMMIT, atomic_folder, atomic_write, clear, is_draft, recover
from tests.support.killing import contents, kills, quick_folder

OLD = {
    "config.json": "old",
    "model.safetensors": "old",
    "sub/tokenizer.json": "old",
    "sub/gone": "old",
}
NEW = {
    "config.json": "new",
    "model-1.safetensors": "new",
    "model-2.safetensors": "new",
    "sub/tokenizer.json": "new",
}
OTHERS = {"README.md": "mine", "sub/notes": "mine"}


@pytest.fixture
def tmp_path():
    with quick_folder() as folder:
        yield folder


def lay(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def save(folder: Path) -> None:
    with atomic_folder(folder, stale=("model*.safetensors", "sub/gone")) as draft:
        lay(draft, NEW)


def texts(folder: Path) -> dict[str, str]:
    return {name: data.decode() for name, data in contents(folder).items() if data is not None}


def seen(folder: Path) -> dict[str, str]:
    """What a program that knows nothing of drafts finds."""
    return {
        name: text
        for name, text in texts(folder).items()
        if not any(map(is_draft, Path(name).parts))
    }


def test_a_save_over_another_is_old_or_new_at_every_kill_and_asking_again_ends_alike(
    tmp_path,
) -> None:
    target = tmp_path / "model"

    def prepare() -> None:
        shutil.rmtree(target, ignore_errors=True)
        lay(target, OLD | OTHERS)

    states = set()
    for _ in kills(prepare, lambda: save(target)):
        # No program, not even one that knows no journal, meets files of both; without its
        # config.json it is no model.
        mine = {text for name, text in seen(target).items() if name not in OTHERS}
        assert len(mine) <= 1
        whole = [files | OTHERS for files in (OLD, NEW)]
        assert (
            seen(target) in whole
            or "config.json" not in seen(target)
            or seen(target).items() <= whole[0].items()
        )
        recover(target)
        assert seen(target) in whole
        states.add(seen(target)["config.json"])
        save(target)
        assert texts(target) == NEW | OTHERS
    assert states == {"old", "new"}
    assert texts(target) == NEW | OTHERS
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_new_folder_and_a_new_file_are_there_or_not_at_every_kill(tmp_path) -> None:
    target, single = tmp_path / "deep" / "model", tmp_path / "deep" / "single"

    def work() -> None:
        save(target)
        with atomic_write(single) as path:
            path.write_text("new")

    for _ in kills(lambda: shutil.rmtree(tmp_path / "deep", ignore_errors=True), work):
        assert not target.exists() or texts(target) == NEW
        assert not single.exists() or single.read_text() == "new"
        work()
        assert (
            sorted(path.name for path in target.parent.iterdir()) == ["model", "single"]
            and texts(target) == NEW
        )


def test_a_save_that_fails_midway_is_undone(tmp_path, monkeypatch) -> None:
    target, move = tmp_path / "model", atomic._move
    lay(target, OLD | OTHERS)
    moves = 0
    while True:
        left = moves

        def full(source: Path, place: Path) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                raise OSError(errno.ENOSPC, "No space left on device")
            move(source, place)

        monkeypatch.setattr(atomic, "_move", full)
        if moves == 8:  # four old files go, four new ones come
            break
        with pytest.raises(OSError, match="could not be written and is as it was"):
            save(target)
        assert texts(target) == OLD | OTHERS
        moves += 1
    save(target)
    assert texts(target) == NEW | OTHERS


def test_drafts_of_dead_writers_go_and_those_of_living_ones_stay(tmp_path) -> None:
    target = tmp_path / "model"
    lay(target, OLD)
    dead = [target / ".model.0123abcd.dualrag" / "new", tmp_path / ".model.0123abcd.dualrag"]
    foreign = [tmp_path / ".other.0123abcd.dualrag", target / ".cache.part"]
    for folder in dead + foreign:
        folder.mkdir(parents=True)
        (folder / "half").write_text("x")
    inside, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        with atomic_folder(target) as draft:
            lay(draft, {"slow": "1", "slow2": "1"})
            inside.set()
            go_on.wait(20)

    thread = threading.Thread(target=slow)
    thread.start()
    assert inside.wait(20)
    save(target)
    clear(target)
    assert not any(folder.exists() for folder in dead) and all(
        folder.exists() for folder in foreign
    )
    go_on.set()
    thread.join()
    shutil.rmtree(foreign[1])
    assert texts(target) == NEW | {"slow": "1", "slow2": "1"}


LONG = {"of 3 bytes": "\u6f22" * 80, "of 2": "a" + "\xe9" * 127, "of 4": "\U0001f525" * 63}


@pytest.mark.parametrize("name", LONG.values(), ids=LONG)
def test_a_name_may_be_as_long_as_names_are(tmp_path, name) -> None:
    dead = tmp_path / atomic._draft_name(name)
    dead.mkdir()
    for _ in range(2):  # a new folder, and one that is there
        save(tmp_path / name)
    with atomic_write(tmp_path / name / name) as path:
        path.write_text("new")
    assert texts(tmp_path / name) == NEW | {name: "new"} and is_draft(dead.name)
    assert not dead.exists() and name.startswith(dead.name[1:].split(".")[0])


def test_a_writer_does_not_wait_for_itself(tmp_path, monkeypatch) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError("it waits for a lock")

    monkeypatch.setattr(atomic.time, "sleep", sleep)
    with atomic_folder(tmp_path / "out") as draft:
        clear(draft / "part")
        with atomic_folder(draft / "part") as part:
            (part / "file").write_text("x")
        clear(draft)
    assert (tmp_path / "out" / "part" / "file").read_text() == "x"


def test_what_is_in_the_way_is_named_and_kept(tmp_path) -> None:
    target, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    lay(elsewhere, {"tokenizer.json": "theirs"})
    lay(target, {"config.json": "old", "model-1.safetensors/mine": "x"})
    with pytest.raises(IsADirectoryError, match=r"model-1\.safetensors"):
        save(target)
    with (
        pytest.raises(IsADirectoryError, match=r"model-1\.safetensors"),
        atomic_write(target / "model-1.safetensors"),
    ):
        pass
    shutil.rmtree(target / "model-1.safetensors")
    (target / "sub").write_text("a file")
    with pytest.raises(NotADirectoryError, match="sub"):
        save(target)
    (target / "sub").unlink()
    (target / "sub").symlink_to(elsewhere)
    with pytest.raises(OSError, match="is a link that leads out of"):
        save(target)
    assert (
        texts(elsewhere) == {"tokenizer.json": "theirs"}
        and (target / "config.json").read_text() == "old"
    )
    (target / "sub").unlink()
    # A file that is a link, as in the hub's cache, is replaced itself.
    (target / "config.json").unlink()
    (target / "config.json").symlink_to(elsewhere / "tokenizer.json")
    (tmp_path / "link").symlink_to(target)
    save(tmp_path / "link")
    assert texts(target) == NEW and texts(elsewhere) == {"tokenizer.json": "theirs"}


def waiting(folder: Path, **journal) -> Path:
    """A folder in which a save waits to be finished."""
    lay(folder, {"config.json": "old", f"{COMMIT}/new/config.json": "new"})
    values = {
        "format": "dualrag commit 1",
        "files": ["config.json"],
        "folders": [],
        "removed": [],
    } | journal
    (folder / COMMIT / "journal.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    "journal",
    [
        {"removed": ["../outside"]},
        {"removed": ["/etc/passwd"]},
        {"removed": ["linked/outside"]},
        {"files": ["sub\\config.json"]},
        {"files": [f"{COMMIT}/journal.json"]},
        {"files": [7]},
        {"folders": None},
        {"format": "another"},
    ],
)
def test_a_journal_from_elsewhere_cannot_reach_out_of_its_folder(tmp_path, journal) -> None:
    (tmp_path / "outside").write_text("mine")
    folder = waiting(tmp_path / "model", **journal)
    (folder / "linked").symlink_to(tmp_path)
    before = contents(tmp_path / "model" / COMMIT)
    with pytest.raises(
        OSError, match=r"journal\.json' is no journal .* Remove the folder \.dualrag-commit"
    ):
        recover(folder)
    assert (tmp_path / "outside").read_text() == "mine" and contents(folder / COMMIT) == before


def test_what_waits_is_finished_from_a_folder_within_and_refused_on_a_read_only_place(
    tmp_path, monkeypatch
) -> None:
    folder = waiting(tmp_path / "model")
    (folder / "sub" / "deep").mkdir(parents=True)
    recover(folder / "sub" / "deep")
    assert texts(folder) == {"config.json": "new"}
    waiting(tmp_path / "other")
    monkeypatch.setattr(
        atomic, "_move", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EACCES, "denied"))
    )
    with pytest.raises(
        OSError,
        match=r"other' was being saved when .*denied\). Open it once where it can be written",
    ):
        recover(tmp_path / "other")


def test_neither_another_users_journal_is_followed_nor_a_lock_waited_for_that_is_held_for_good(
    tmp_path, monkeypatch
) -> None:
    folder = waiting(tmp_path / "model")
    before, stranger = texts(folder), SimpleNamespace(st_uid=os.getuid() + 1)
    monkeypatch.setattr(Path, "lstat", lambda path: stranger)
    recover(folder / "sub")  # in a folder above it is none of ours
    with pytest.raises(OSError, match="left by another user"):
        recover(folder)
    monkeypatch.undo()
    assert texts(folder) == before
    monkeypatch.setattr(atomic, "_PATIENCE", 0.0)
    fcntl = pytest.importorskip("fcntl")
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    save(folder)
    os.close(handle)
    assert texts(folder) == NEW


def test_everything_is_on_the_disk_before_it_counts_and_readable_as_the_umask_says(
    tmp_path, monkeypatch
) -> None:
    target, synced = tmp_path / "model", []
    lay(target, OLD)
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    replace = Path.replace

    def checked(source: Path, place: Path) -> Path:
        if Path(place).name == COMMIT:
            assert {
                path.stat().st_ino for path in source.rglob("*") if path != source / "old"
            } <= set(synced)
        return replace(source, place)

    monkeypatch.setattr(Path, "replace", checked)
    mask = os.umask(0o027)
    try:
        with atomic_folder(target) as draft:
            lay(draft, NEW)
            (draft / "config.json").chmod(0o600)  # as safetensors and tempfile make them
        with atomic_write(tmp_path / "single") as path:
            path.write_text("1")
            path.chmod(0o600)
    finally:
        os.umask(mask)
    for path in (target / "config.json", target / "sub/tokenizer.json", tmp_path / "single"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert (tmp_path / "single").stat().st_ino in synced
