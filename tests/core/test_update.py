"""A knowledge base brought up to its files: what comes out is what a build of them makes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rag_core.knowledge import PassedByWarning
from rag_core.knowledge.base import KnowledgeBase, build_knowledge_base
from rag_core.knowledge.update import Update
from tests.support.killing import contents
from tests.support.knowledge_bases import build, hashed, write_corpus

pytestmark = pytest.mark.filterwarnings("ignore::rag_core.knowledge.PassedByWarning")
OPTIONS = {"encoder_name": "hashed", "progress": False, "words": 6, "shard_rows": 4}


class Counting:
    """The encoder, and what it was given but the probe."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, titles, texts):
        self.texts += [text for text in texts if "fixed sentence" not in text]
        return hashed(titles, texts)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def sentences(word: str, count: int) -> str:
    return " ".join(f"{word} is number {number}." for number in range(count))


@pytest.fixture
def home(tmp_path):
    """A folder of files and its knowledge base."""
    files = {
        "safety.md": "# Fire\n\nThe warden is Ada.\n\n# Exits\n\nThere are two exits here.\n",
        "leave/sick.txt": sentences("Sick", 5),
        "leave/annual.txt": sentences("Annual", 4),
        "people.csv": "title,text,url,floor\nAda,She is the warden,https://x.org/ada,2\n"
        "Alan,He left,https://x.org/alan,3\n",
        "zoo.txt": sentences("Zoo", 3),
    }
    write(tmp_path / "handbook", files)
    build_knowledge_base(tmp_path / "handbook", tmp_path / "kb", hashed, **OPTIONS)
    return tmp_path


def same_as_a_build(home: Path, folder: str = "handbook", **options) -> bool:
    fresh = home / "fresh" / "kb"
    shutil.rmtree(fresh.parent, ignore_errors=True)
    shutil.copytree(home / folder, fresh.parent / folder)
    build_knowledge_base(fresh.parent / folder, fresh, hashed, **(OPTIONS | options))
    return contents(fresh) == contents(home / "kb")


def test_only_what_changed_is_read_and_embedded(home) -> None:
    kb = KnowledgeBase.open(home / "kb")
    write(home / "handbook", {"safety.md": "# Fire\n\nThe warden is Grace.\n", "new/a.txt": "New."})
    write(home / "handbook", {"people.csv": "title,text,url\nAda,She left,https://x.org/ada\n"})
    (home / "handbook" / "leave" / "sick.txt").unlink()
    before = contents(home / "kb")
    rows = len(kb)
    planned = kb.update(dry_run=True)
    assert contents(home / "kb") == before
    encode = Counting()
    done = kb.update(encode=encode, progress=False)
    assert (
        done == planned
        and done
        and str(done)
        == (
            f"2 changed, 1 new, 1 gone, 2 as they were: 3 passages embedded, {done.removed} removed"
        )
    )
    assert (done.changed, done.new) == (
        ["handbook/people.csv", "handbook/safety.md"],
        ["handbook/new/a.txt"],
    )
    assert done.gone == ["handbook/leave/sick.txt"]
    assert len(kb) == rows + 3 - done.removed == len(KnowledgeBase.open(home / "kb"))
    assert sorted(encode.texts) == ["New.", "She left", "The warden is Grace."]
    assert same_as_a_build(home) and not (home / "kb.work").exists()
    again = kb.update(encode=encode, progress=False)
    assert not again and str(again).startswith("0 changed, 0 new, 0 gone, 5 as they were")
    assert len(encode.texts) == 3
    # found done by the command that built it
    build_knowledge_base(home / "handbook", home / "kb", hashed, **OPTIONS)


NAMES = ("a.txt", "b.txt", "c/a.txt", "c/d.txt", "z.txt")
FILES = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 4), min_size=1)


@settings(max_examples=6, deadline=None)
@example(before={"a.txt": 1, "b.txt": 1}, after={"a.txt": 1}, kind="flat")
@given(before=FILES, after=FILES, kind=st.sampled_from(["flat", "hnsw"]))
def test_an_update_makes_what_a_build_makes(tmp_path_factory, before, after, kind) -> None:
    home = tmp_path_factory.mktemp("home")
    for files in (before, after):
        shutil.rmtree(home / "handbook", ignore_errors=True)
        texts = {name: sentences(name[0], count) for name, count in files.items()}
        write(home / "handbook", texts)
        if files is before:
            options = OPTIONS | {"index": kind}
            build_knowledge_base(home / "handbook", home / "kb", hashed, **options)
    done = KnowledgeBase.open(home / "kb").update(encode=hashed, progress=False)
    assert len(done.new) == len(after.keys() - before) and len(done.gone) == len(
        before.keys() - after
    )
    kb = KnowledgeBase.open(home / "kb", verify=True)
    vectors = np.array(kb.dataset()["embeddings"], np.float32)
    np.testing.assert_array_equal(
        vectors, hashed(list(kb.dataset()["title"]), list(kb.dataset()["text"]))
    )
    # a graph that was grown has other links than one built at once
    assert kind == "hnsw" or same_as_a_build(home, index=kind)


@pytest.mark.parametrize("change", ["update", "remove"])
def test_nothing_of_a_removed_passage_stays_in_the_files(tmp_path, change) -> None:
    write(tmp_path, {"docs/a.txt": "An apple.", "docs/b.txt": "A secret."})
    kb = build_knowledge_base(tmp_path / "docs", tmp_path / "kb", hashed, **OPTIONS)
    (tmp_path / "docs" / "b.txt").unlink()
    if change == "update":
        kb.update(encode=hashed, progress=False)
    else:
        kb.remove(where="file=docs/b.txt")
    held = b"".join(path.read_bytes() for path in (tmp_path / "kb" / "passages").iterdir())
    assert b"An apple." in held and b"secret" not in held
    assert same_as_a_build(tmp_path, "docs")


def test_some_paths_are_compared_and_the_rest_is_left_alone(home) -> None:
    kb = KnowledgeBase.open(home / "kb")
    write(home / "handbook", {"safety.md": "# Fire\n\nNone.\n", "leave/sick.txt": "Well."})
    (home / "handbook" / "leave" / "annual.txt").unlink()
    done = kb.update(home / "handbook" / "leave", hashed, progress=False)
    assert (done.changed, done.gone) == (
        ["handbook/leave/sick.txt"],
        ["handbook/leave/annual.txt"],
    )
    assert kb.update(home / "handbook" / "leave", hashed).unchanged == 4
    (home / "handbook" / "zoo.txt").unlink()
    assert kb.update(home / "handbook" / "zoo.txt", hashed).gone == ["handbook/zoo.txt"]
    assert kb.update(encode=hashed, progress=False).changed == ["handbook/safety.md"]
    assert same_as_a_build(home)
    with pytest.raises(FileNotFoundError, match=r"nowhere.*no such file"):
        kb.update(home / "handbook" / "nowhere", hashed)


def test_new_paths_are_added_and_moved_ones_found(home) -> None:
    kb = KnowledgeBase.open(home / "kb")
    write(home, {"more/b.txt": "More of it.", "notes.txt": "Some notes."})
    done = kb.update([home / "more", home / "notes.txt"], hashed, progress=False)
    assert done.new == ["more/b.txt", "notes.txt"] and done.unchanged == 5
    write(home, {"more/b.txt": "Less of it."})
    (home / "notes.txt").unlink()
    assert (home / "handbook").rename(home / "elsewhere") and not (home / "handbook").exists()
    with pytest.raises(FileNotFoundError, match=r"handbook: no such .*dualrag update KB PATHS"):
        kb.update(encode=hashed)
    (home / "elsewhere").rename((home / "deep").mkdir() or home / "deep" / "handbook")
    assert not kb.update(home / "deep" / "handbook", hashed, progress=False)
    done = kb.update(encode=hashed, progress=False)
    assert (done.changed, done.gone, done.unchanged) == (["more/b.txt"], ["notes.txt"], 5)
    assert not kb.update(encode=hashed)
    assert {hit.source for hit in kb.search("of it", encoder=bag, where="source=more/*")} == {
        "more/b.txt"
    }


def test_a_folder_that_was_renamed_or_is_gone_for_good(home) -> None:
    kb = KnowledgeBase.open(home / "kb")
    kb.add(write(home / "more", {"b.txt": "More of it."}), hashed, progress=False)
    (home / "handbook").rename(home / "renamed")
    with pytest.warns(UserWarning, match=r"renamed counts as new.*had, handbook"):
        assert len(kb.update(home / "renamed", dry_run=True).new) == 5
    with pytest.raises(FileNotFoundError, match=r"dualrag remove KB --source 'handbook\*'"):
        kb.update(encode=hashed)
    kb.remove(where="file=handbook/*")
    assert [root["name"] for root in kb.manifest.roots] == ["more"]
    done = kb.update(home / "renamed", hashed, progress=False)
    assert len(done.new) == 5 and done.unchanged == 1 and not kb.update(encode=hashed)


def bag(texts):
    return hashed([""] * len(texts), texts)


def test_what_was_removed_stays_removed_until_its_file_changes(home) -> None:
    kb = KnowledgeBase.open(home / "kb")
    rows = len(kb)
    assert kb.remove(where="file=*/people.csv", dry_run=True) == 2 and len(kb) == rows
    assert kb.remove(where="file=*/people.csv") == 2
    assert kb.remove(where=["title=*Fire*", "source=*/safety.md"]) == 1
    assert not kb.update(encode=hashed)
    write(home / "handbook", {"safety.md": "# Fire\n\nThe warden is Grace.\n"})
    done = kb.update(encode=hashed, progress=False)
    assert (done.embedded, done.removed, len(kb)) == (1, 1, rows - 3)
    with pytest.raises(ValueError, match="matches none"):
        kb.remove(where="file=*/people.csv")


def test_a_file_is_not_added_twice(home) -> None:
    kb = KnowledgeBase.open(home / "kb")
    with pytest.raises(ValueError, match=r"must be new to .*handbook/leave/annual.txt, .*update"):
        kb.add(home / "handbook", hashed, progress=False)
    with pytest.raises(ValueError, match=r"got handbook/zoo\.txt, which it holds"):
        kb.add(home / "handbook" / "zoo.txt", hashed, progress=False)
    write(home / "handbook", {"new.txt": "New."})
    assert kb.add(str(home / "handbook" / "new.txt"), hashed, progress=False) == 1
    assert kb.manifest.sources[-1]["path"] == "handbook/new.txt" and len(kb.manifest.roots) == 1
    assert kb.add(write(home / "x", {"a.txt": "An apple."}), hashed, progress=False) == 1
    assert kb.manifest.sources[-1]["path"] == "x/a.txt"


def test_updates_that_cannot_be_made_change_nothing(home, tmp_path) -> None:
    kb = KnowledgeBase.open(home / "kb")
    before = contents(home / "kb")
    write(home / "handbook", {"people.csv": "name\nAda\n", "zoo.txt": "Changed."})
    with pytest.raises(ValueError, match=r"people\.csv.*'text'"):
        kb.update(encode=hashed, progress=False)
    write(home / "handbook", {"people.csv": "text\nAda\n"})
    with pytest.raises(ValueError, match="gives other vectors"):
        kb.update(encode=lambda a, b: hashed(b, a)[:, ::-1], progress=False)
    (home / "handbook" / "zoo.txt").unlink()
    shutil.rmtree(home / "handbook")
    (home / "handbook").mkdir()
    with pytest.raises(ValueError, match="of its 5 files none is left"):
        kb.update(encode=hashed, progress=False)
    assert contents(home / "kb") == before


def test_what_the_build_left_out_stays_out_when_a_part_is_compared(tmp_path) -> None:
    files = {
        "docs/a.txt": "An apple.",
        "docs/team/b.txt": "A boat.",
        "docs/team/private/s.txt": "A secret.",
        "docs/.git/c.txt": "A commit.",
    }
    write(tmp_path, files)
    exclude = ["team/private/", "*.tmp.txt"]
    kb = build_knowledge_base(
        tmp_path / "docs", tmp_path / "kb", hashed, exclude=exclude, **OPTIONS
    )
    write(tmp_path, {"docs/team/d.txt": "A door.", "docs/team/x.tmp.txt": "A draft."})
    for part in ("docs/team/private", "docs/team/private/s.txt", "docs/.git", "docs/.git/c.txt"):
        with pytest.warns(PassedByWarning, match=f"excluded|hidden.*{part}"):
            assert not kb.update(tmp_path / part, hashed, progress=False)
        with pytest.raises(ValueError, match="nothing to read"):
            kb.add(tmp_path / part, hashed, progress=False)
    assert kb.update(tmp_path / "docs/team", hashed, progress=False).new == ["docs/team/d.txt"]
    assert not kb.update(encode=hashed, progress=False)


def test_files_are_the_same_by_whatever_links_they_are_reached(tmp_path, monkeypatch) -> None:
    write(tmp_path, {"real/sub/b.txt": "A boat.", "else/c.txt": "A cat."})
    (tmp_path / "docs").symlink_to("real")
    (tmp_path / "real" / "ln").symlink_to(tmp_path / "else")
    (tmp_path / "alias").symlink_to("real/sub")
    kb = build_knowledge_base(tmp_path / "docs", tmp_path / "kb", hashed, **OPTIONS)
    monkeypatch.chdir(tmp_path)
    for number, part in enumerate(("docs/sub", "real/sub", "alias", "alias/b.txt", "else/../real")):
        write(tmp_path, {"real/sub/b.txt": f"Boat {number}."})
        assert kb.update(part, hashed, progress=False).changed == ["real/sub/b.txt"], part
        with pytest.raises(ValueError, match="holds already"):
            kb.add(part, hashed, progress=False)
    for number, part in enumerate(("docs/ln/c.txt", "docs/ln", "real/ln/c.txt")):
        write(tmp_path, {"else/c.txt": f"Cat {number}."})
        assert kb.update(part, hashed, progress=False).changed == ["real/ln/c.txt"], part
    assert len(kb) == 2 and len(kb.manifest.roots) == 1


def test_a_folder_or_file_that_was_emptied_holds_up_no_others(tmp_path) -> None:
    write(tmp_path, {"docs/a.txt": "An apple.", "notes/b.txt": "A boat.", "one.txt": "A house."})
    roots = [tmp_path / name for name in ("docs", "notes", "one.txt")]
    kb = build_knowledge_base(roots, tmp_path / "kb", hashed, **OPTIONS)
    write(tmp_path, {"docs/a.txt": "An ape.", "one.txt": "", "notes/picture.png": "no text"})
    (tmp_path / "notes" / "b.txt").unlink()
    done = kb.update(encode=hashed, progress=False)
    assert (done.changed, done.gone) == (["docs/a.txt"], ["notes/b.txt", "one.txt"])
    write(tmp_path, {"one.txt": "A house again.", "notes/c.txt": "A cat."})
    done = kb.update(encode=hashed, progress=False)
    assert done.new == ["notes/c.txt", "one.txt"] and len(kb) == 3


def test_a_change_of_what_another_has_changed_is_refused(home) -> None:
    kb = KnowledgeBase.open(home / "kb")
    other = KnowledgeBase.open(home / "kb")
    for name in "xyz":
        write(home / name, {f"{name}.txt": "New."})
    other.add(home / "x", hashed, progress=False)
    other.add(home / "y", hashed, progress=False)  # its own change is no other's
    before = contents(home / "kb")
    for change in (
        lambda: kb.add(home / "z", hashed, progress=False),
        lambda: kb.update(home / "z", hashed, progress=False),
        lambda: kb.remove([0]),
    ):
        with pytest.raises(OSError, match=r"changed since it was opened.*Open it again"):
            change()
    assert contents(home / "kb") == before
    assert KnowledgeBase.open(home / "kb").add(home / "z", hashed, progress=False) == 1


def test_a_base_of_an_earlier_release_says_how_to_go_on(tmp_path) -> None:
    kb = build(tmp_path, rows=8)
    kb.manifest.roots = []
    with pytest.raises(ValueError, match=r"built by an earlier release.*--overwrite"):
        kb.update(encode=hashed)


def test_a_base_that_was_added_to_is_updated(tmp_path) -> None:
    kb = build(tmp_path, rows=10)
    kb.add(write_corpus(tmp_path / "more.jsonl", 6, seed=1), hashed, progress=False)
    write_corpus(tmp_path / "corpus.jsonl", 7, seed=2)
    done = kb.update(encode=hashed, progress=False)
    assert done == Update(["corpus.jsonl"], [], [], 1, 7, 10)
    titles = [f"T2-{row}" for row in range(7)] + [f"T1-{row}" for row in range(6)]
    assert list(kb.dataset()["title"]) == titles


def test_warnings_of_what_was_passed_by_are_given(home) -> None:
    write(home / "handbook", {"picture.png": "no text"})
    with pytest.warns(PassedByWarning, match=r"\.png"):
        KnowledgeBase.open(home / "kb").update(encode=hashed)
