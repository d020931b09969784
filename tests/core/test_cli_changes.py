"""`dualrag search`, `info`, `update`, `add` and `remove` with a stand-in encoder."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from rag_core import backends
from rag_core.cli.commands import app
from rag_core.knowledge.base import KnowledgeBase
from tests.support.knowledge_bases import hashed


@pytest.fixture
def dualrag(monkeypatch, tmp_path):
    """Runs the command beside a knowledge base of three files, with a backend that needs no
    framework.
    """
    loaded: list[str] = []

    def load_encoder(name, for_questions=False, prompts=None):
        loaded.append(name)
        if name == "gone":
            raise OSError("no such folder")
        return SimpleNamespace(
            embed=lambda titles, texts, **_: hashed(titles, texts),
            embed_questions=lambda texts: hashed([""] * len(texts), texts),
            name=name,
            prompts={},
        )

    engine = SimpleNamespace(load_encoder=load_encoder)
    monkeypatch.setattr(backends, "load_backend", lambda name=None: engine)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALRAG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")
    Path("docs").mkdir()
    Path("docs/a.md").write_text("# Apples\n\nRed ones.\n\n# Pears\n\nGreen ones.\n")
    Path("docs/b.txt").write_text("Bees make honey.")
    Path("docs/c.txt").write_text("Cats sleep.")

    def run(*words, rc=0, **options):
        result = CliRunner().invoke(app, list(words), **options)
        assert result.exit_code == rc, result.output
        return result

    run("index", "docs", "--out", "kb", "--encoder", "some/encoder")
    run.loaded = loaded
    return run


def test_an_encoder_of_other_weights_is_told(dualrag) -> None:
    Path("encoder").mkdir()
    weights = Path("encoder/model.safetensors")
    weights.write_bytes(b"first")
    build = ("index", "docs", "--out", "kb", "--encoder", "encoder")
    dualrag(*build, "--overwrite")
    dualrag(*build)  # found done
    Path("more.txt").write_text("Dogs bark.")
    assert "other weights" not in dualrag("add", "kb", "more.txt", "--encoder", "encoder").stderr
    weights.write_bytes(b"trained further")
    again = dualrag(*build, rc=2).stderr
    assert "holds another knowledge base" in again and "the encoder's weights are others" in again
    Path("more.txt").write_text("Dogs bark aloud.")
    said = dualrag("update", "kb", "--encoder", "encoder").stderr
    assert "'encoder' holds other weights than those that embedded kb" in said


def test_update_says_what_it_does_and_loads_an_encoder_only_to_embed(dualrag) -> None:
    dualrag.loaded.clear()
    assert "nothing to do, all files are as they were (3)" in dualrag("update", "kb").stderr
    Path("docs/b.txt").unlink()
    Path("docs/a.md").write_text("# Apples\n\nNone.\n")
    dry = dualrag("update", "kb", "--dry-run")
    assert dry.stdout == (
        "kb, if it were updated: 1 changed, 0 new, 1 gone, 1 as they were: 1 passage embedded, "
        "3 removed.\n"
    )
    assert dry.stderr == "  changed docs/a.md\n  gone    docs/b.txt\n"
    Path("docs/a.md").write_text("# Apples\n\nRed ones.\n\n# Pears\n\nGreen ones.\n")
    dualrag("update", "kb")
    assert dualrag.loaded == [] and len(KnowledgeBase.open("kb")) == 3
    Path("docs/d.txt").write_text("Dogs bark.")
    said = dualrag("update", "kb").stderr
    assert "kb: 0 changed, 1 new, 0 gone, 2 as they were: 1 passage embedded" in said
    assert said.endswith("0 removed, 4 in all.\n") and dualrag.loaded == ["some/encoder"]
    assert dualrag("--quiet", "update", "kb").output == ""


def test_add_and_what_it_refuses(dualrag) -> None:
    Path("more.txt").write_text("One two three. Four five six.")
    assert "2 passages added, 6 in all" in dualrag("add", "kb", "more.txt", "--words", "3").stderr
    again = dualrag("add", "kb", "more.txt", rc=2).stderr
    assert "paths must be new to kb, got more.txt" in again and "dualrag update kb" in again
    index = dualrag("index", "more.txt", "--out", "kb", "--encoder", "some/encoder", rc=2).stderr
    assert "(dualrag update kb) or add to it (dualrag add kb PATHS)" in index
    Path("last.txt").write_text("Last.")
    gone = dualrag("add", "kb", "last.txt", "--encoder", "gone", rc=2).stderr
    assert "embedded by 'some/encoder', and 'gone' cannot be loaded (no such folder)" in gone
    assert "no such file" in dualrag("add", "kb", "nowhere", rc=2).stderr


def test_add_reads_as_its_options_say(dualrag) -> None:
    more = Path("more")
    more.mkdir()
    (more / "table.csv").write_text("name,body\nPlum,A stone fruit.\n", "utf-8")
    (more / "bad.jsonl").write_text("no json\n", "utf-8")
    (more / "draft.txt").write_text("Not yet.\n", "utf-8")
    columns = ("--text-column", "body", "--title-column", "name")
    said = dualrag("add", "kb", "more", *columns, "--exclude", "draft*", "--skip-bad").stderr
    assert "1 passage added, 5 in all" in said and "bad.jsonl" in said
    last = KnowledgeBase.open("kb").dataset()[4]
    assert (last["title"], last["text"]) == ("Plum", "A stone fruit.")


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (("--source", "*.txt"), "Apples Pears"),
        (("--source", "docs/a.md", "--title", "Apples"), "Pears b c"),
        (("--rows", "0,3"), "Pears b"),
        (("--where", "line>1", "--where", "source=*.md"), "b c"),
    ],
)
def test_remove_counts_first(dualrag, words, left) -> None:
    before = [path.stat().st_mtime_ns for path in sorted(Path("kb").rglob("*"))]
    removed = 4 - len(left.split())
    dry = dualrag("remove", "kb", *words, "--dry-run").stdout
    assert dry.startswith(f"{removed} of 4 passages match: ")
    assert dry.endswith("Nothing was removed.\n")
    assert before == [path.stat().st_mtime_ns for path in sorted(Path("kb").rglob("*"))]
    said = dualrag("remove", "kb", *words).stderr
    assert f"kb: {removed} passage" in said and f" removed, {4 - removed} are left" in said
    titles = KnowledgeBase.open("kb").dataset()["title"]
    assert [title.split(" — ")[-1] for title in titles] == left.split()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "--source, --title, --rows or --where must be given"),
        (("--rows", "1,9"), "--rows must be row numbers from 0 to 3"),
        (("--rows", "-1"), "--rows must be row numbers from 0 to 3"),
        (("--title", "Ap*"), "matches none of the 4"),
        (("--where", "lin>3"), "Did you mean 'line'?"),
        (("--source", "*"), "all of the 4 passages match"),
        (("--rows", "0", "--source", "*.txt"), "none of the 4 passages match"),
    ],
)
def test_what_remove_refuses(dualrag, words, says) -> None:
    assert says in dualrag("remove", "kb", *words, rc=2).stderr
    assert len(KnowledgeBase.open("kb")) == 4


def test_info_is_one_screen_for_people_and_one_object_for_programs(dualrag, monkeypatch) -> None:
    shown = dualrag("info", "kb").stdout
    for part in (
        "passages        4, of about 100 words",
        "files           3 (2 .txt, 1 .md): docs/a.md, docs/b.txt, docs/c.txt",
        "encoder         some/encoder, 16 numbers a vector",
        "encoder at      not on this machine",
        "index           flat, recall@5 1.000",
        "source (docs/a.md, docs/b.txt, docs/c.txt)",
    ):
        assert part in shown
    assert len(shown.splitlines()) < 24
    found = json.loads(dualrag("info", "kb", "--json").stdout)
    assert found["passages"] == 4 and found["metadata"]["line"][:2] == ["3", "7"]
    assert found["encoder_at"] is None and found["kinds"] == {".txt": 2, ".md": 1}
    monkeypatch.setenv("COLUMNS", "40")
    assert max(map(len, dualrag("info", "kb").stdout.splitlines())) <= 40
    Path("some/encoder").mkdir(parents=True)
    assert "encoder at      some/encoder" in dualrag("info", "kb").stdout
    assert "no knowledge base here" in dualrag("info", "docs", rc=2).stderr


def test_search_shows_passages_with_their_scores_and_origins(dualrag, monkeypatch) -> None:
    shown = dualrag("search", "kb", "bees make honey", "--k", "2").stdout.splitlines()
    assert shown[0] == "bees make honey"
    assert shown[1].split()[:2] == ["1", "0.577"] and "docs/b.txt:1" in shown[1]
    assert shown[2].strip() == "Bees make honey."
    assert shown[3].split()[0] == "2" and not shown[-1].strip()
    monkeypatch.setenv("COLUMNS", "30")
    narrow = dualrag("search", "kb", "bees make honey", "--full").stdout.splitlines()
    assert max(map(len, narrow)) <= 30 and len(narrow) > len(shown)


def test_search_takes_questions_from_anywhere_and_conditions(dualrag) -> None:
    Path("questions.txt").write_text("honey\n\nsleep\n")
    words = ("search", "kb", "--json", "-k", "1", "--where", "source=*.txt")
    lines = dualrag(*words, "--questions", "questions.txt").stdout.splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["question"] for row in found] == ["honey", "sleep"]
    assert all(row["hits"][0]["source"].endswith(".txt") for row in found)
    assert found[0]["hits"][0]["origin"] == "docs/b.txt:1" and len(found[0]["hits"]) == 1
    piped = dualrag(*words, input="honey\n\xff\nsleep\n", rc=0)
    assert len(piped.stdout.splitlines()) == 3
    with_fault = dualrag(*words, input=b"honey\n\xff\nsleep\n", rc=2)
    assert len(with_fault.stdout.splitlines()) == 2 and "must be UTF-8" in with_fault.stderr


def test_search_at_a_terminal(dualrag, monkeypatch) -> None:
    from rag_core.cli import questions
    from rag_core.hub import Line

    typed = [Line(1, "honey", None), Line(2, "sleep", None)]
    monkeypatch.setattr(questions, "at_terminal", lambda: True)
    monkeypatch.setattr(questions, "typed", lambda history: iter(typed))
    shown = dualrag("search", "kb", "-k", "1").stdout
    assert shown.count("  1  ") == 2 and "honey" in shown and "sleep" in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("two", "words"), "QUESTION must be one argument, got 2"),
        (("who?", "--k", "0"), "--k must be at least 1, got 0"),
        (("who?", "--where", "sorce=*"), "Did you mean 'source'?"),
        (("who?", "--where", "source=*.pdf"), "matches none of the 4"),
        (("who?", "--encoder", "gone"), "no such folder"),
    ],
)
def test_what_search_refuses(dualrag, words, says) -> None:
    dualrag.loaded.clear()
    assert says in dualrag("search", "kb", *words, rc=2).stderr
    assert dualrag.loaded in ([], ["gone"])
