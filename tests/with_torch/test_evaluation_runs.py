"""Runs of `evaluate` and `dualrag eval`: sweeps, what is answerable, stopped and resumed, compared.

What is decided there is the same whatever the backend; tests/with_both/test_evaluation.py has both.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rag_core.cli import app
from rag_core.evaluation import (
    Evaluation,
    Gold,
    Question,
    Settings,
    calibrate_model,
    compare,
    evaluate,
)
from rag_core.evaluation.fingerprints import weights_sums
from rag_core.hub.atomic import is_draft
from rag_core.modeling import Reading
from tests.support.evaluations import QUESTIONS, small_model, sweep
from tests.support.killing import kills, quick_folder
from tests.support.training_models import train_command

pytestmark = pytest.mark.backend("torch")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model("torch", tmp_path_factory.mktemp("tokenizers"))


def test_retrieval_is_scored_against_titles_and_answers(model) -> None:
    found = sweep(model, n_docs=5, retrieval_only=True)
    assert not found.answers
    ids = [[passage["id"] for passage in row["passages"]] for row in found.retrieved]
    # the text of a passage is the word that its title is the mirror of
    right = [number in row for number, row in enumerate(ids)]
    figures = found.retrieval()
    assert figures["gold_hit@5"]["mean"] == pytest.approx(np.mean(right))
    assert figures["answer_recall@5"]["mean"] == pytest.approx(np.mean(right))
    first = [row.index(n) + 1 if n in row else np.inf for n, row in enumerate(ids)]
    assert figures["gold_mrr"]["mean"] == pytest.approx(np.mean(1 / np.array(first)))
    assert 0 < figures["gold_mrr"]["mean"] < 1
    assert "recall@5 by answer" in repr(found)


def contents(folder: Path) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = json.loads(files.pop("report.json"))
    for each in (report["retrieval"], *report["variants"].values()):
        each["seconds"] = 0
    table = files.pop("report.md").decode()
    return files | {"report": report, "table": table[: table.index("- time")]}


# what is changed -> what an evaluation knows it by
NAMES = {
    "doc_sep": "config_sha256",
    "bad_words_ids": "generation_sha256",
    "answer_calibration": "answer_calibration",
    "generator_tokenizer": "tokenizers_sha256",
}


class Stop(BaseException):
    pass


def test_a_run_that_is_stopped_goes_on_and_a_finished_one_is_found(model, tmp_path) -> None:
    whole = tmp_path / "whole"
    sweep(model, out=whole, batch_size=3)
    wanted = contents(whole)
    asked: list[str] = []
    own = Reading.__init__

    def counting(self, engine, net, questions, **options) -> None:
        if len(asked) >= 6:
            raise Stop
        asked.extend(questions)
        own(self, engine, net, questions, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reading, "__init__", counting)
        with pytest.raises(Stop):
            sweep(model, out=tmp_path / "out", batch_size=3)
        assert len(list((tmp_path / "out" / "unfinished").glob("0*.json"))) == 2
        with pytest.raises(ValueError, match=r"another evaluation .*batch_size: 3 there, 2 now"):
            sweep(model, out=tmp_path / "out", batch_size=2)
        with pytest.raises(ValueError, match=r"holds another evaluation .*questions_sha256"):
            sweep(model, out=tmp_path / "out", batch_size=3, questions=QUESTIONS[1:])
        del asked[:2]
        with pytest.raises(Stop):  # a part of the third is nothing
            sweep(model, out=tmp_path / "out", batch_size=3)
    sweep(model, out=tmp_path / "out", batch_size=3)
    assert contents(tmp_path / "out") == wanted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reading, "__init__", None)  # nothing is asked again
        again = sweep(model, out=tmp_path / "out", batch_size=3)
        assert again.figures("token-docs1-beams1") and again.answers.keys()
        with pytest.raises(ValueError, match=r"holds another evaluation .*seed: 0 there, 1 now"):
            sweep(model, out=tmp_path / "out", batch_size=3, seed=1)


def test_a_model_that_was_changed_is_another_one_and_old_reports_count_as_before(
    model, tmp_path, monkeypatch
) -> None:
    options = {"out": tmp_path, "questions": QUESTIONS[:2], "n_docs": 1, "head": "token"}
    sweep(model, **options)
    for target, name, value in (
        (model.config, "doc_sep", " | "),
        (model.generation_config, "bad_words_ids", [[7]]),
        (model.config, "answer_calibration", {"token": [1.0, 0.1, 0.0]}),
        (model.retriever, "generator_tokenizer", model.retriever.question_encoder_tokenizer),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, value)
            with pytest.raises(ValueError, match=NAMES[name]):
                sweep(model, **options)
    sweep(model, **options)
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    for name in NAMES.values():
        del report["run"][name]
    (tmp_path / "report.json").write_text(json.dumps(report), "utf-8")
    monkeypatch.setattr(model.config, "doc_sep", " | ")
    sweep(model, **options)


def test_a_run_killed_at_any_write_ends_where_an_undisturbed_one_ends(model) -> None:
    options = {"n_docs": 2, "head": "token", "batch_size": 4}
    with quick_folder() as folder:
        sweep(model, out=folder / "whole", **options)
        wanted = contents(folder / "whole")
        out = folder / "out"
        for _ in kills(
            lambda: shutil.rmtree(out, ignore_errors=True),
            lambda: sweep(model, out=out, **options),
            every=11,
        ):
            if (out / "report.json").exists():
                Evaluation.open(out)
            sweep(model, out=out, **options)
            assert contents(out) == wanted
            assert not [path for path in folder.rglob("*") if is_draft(path.name)]


def test_files_of_somebody_elses_are_neither_overwritten_nor_removed(model, tmp_path) -> None:
    options = {"questions": QUESTIONS[:2], "n_docs": 1, "head": "token"}
    (tmp_path / "unfinished").mkdir()
    names = ("passages.jsonl", "report.md", "answers-token-docs1-beams1.jsonl")
    for name in (*names, "unfinished/novel.txt", "answers-gold.jsonl", "report.json"):
        (tmp_path / name).write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rag_core.evaluation.run.survey", None)  # no work before it is refused
        for name in (*names, "report.json", "unfinished"):
            with pytest.raises(FileExistsError, match=rf"overwrites nothing.* {name}.*another"):
                sweep(model, out=tmp_path, **options)
            (tmp_path / name).rename(tmp_path / f"my-{name}")
    first = sweep(model, out=tmp_path, **options)
    (tmp_path / "my-unfinished").rename(tmp_path / "unfinished")
    assert sweep(model, out=tmp_path, **options).report == first.report
    sweep(model, **options | {"n_docs": 2}).save(tmp_path)  # in the place of the first
    assert {path.name for path in tmp_path.glob("answers-*")} == {
        "answers-gold.jsonl",
        "answers-token-docs2-beams1.jsonl",
    }
    assert (tmp_path / "unfinished" / "novel.txt").read_text() == "{}"
    with pytest.raises(FileExistsError, match=r"holds passages\.jsonl, not of an evaluation"):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "passages.jsonl").write_text("my corpus")
        first.save(tmp_path / "mine")


def test_a_calibration_is_written_to_the_model_that_was_measured_alone(
    model, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("rag_core.evaluation.confidence.LEAST", 2)
    model.save_pretrained(tmp_path / "model")
    found = sweep(model, n_docs=2, head="token")
    [rows] = found.answers.values()
    middle = np.median([row["log_probability"] for row in rows])
    for row in rows:
        row["scores"]["exact_match"] = float(row["log_probability"] > middle)
    calibrate_model([found], tmp_path / "model")
    calibrate_model([found], tmp_path / "model")  # its own entry makes it no other model
    (tmp_path / "tokenizers").mkdir()
    other = small_model("torch", tmp_path / "tokenizers")
    other.generator.init_weights()
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"of the model in .*other, got one of other weights"):
        calibrate_model([found], tmp_path / "other")
    assert "answer_calibration" not in (tmp_path / "other" / "config.json").read_text()
    other.bfloat16().save_pretrained(tmp_path / "half")
    calibrate_model([found], tmp_path / "half")  # of other types nothing can be told


def test_two_runs_are_compared_question_by_question(model, tmp_path) -> None:
    first = sweep(model, n_docs=3, head="token", out=tmp_path / "a")
    second = sweep(model, n_docs=1, head="token", questions=QUESTIONS[2:])
    with pytest.warns(UserWarning, match="8 questions are in both runs, of 10 and 8"):
        found = compare(tmp_path / "a", second)
    (pair,) = [name for name in found.differences if name != "retrieval"]
    assert pair == "token-docs3-beams1 against token-docs1-beams1"
    rows = found.differences[pair]
    of_rows = [row["scores"]["f1"] for row in first.answers["token-docs3-beams1"][2:]]
    assert rows["f1"]["first"] == pytest.approx(np.mean(of_rows)) and rows["f1"]["n"] == 8
    with pytest.raises(ValueError, match="questions in common"):
        compare(sweep(model, questions=QUESTIONS[:2]), sweep(model, questions=QUESTIONS[2:4]))
    with pytest.raises(ValueError, match="a variant in common"):
        compare(first, sweep(model, questions=QUESTIONS[:2], n_docs=2))
    done = CliRunner().invoke(app, ["eval", "--compare", str(tmp_path / "a"), str(tmp_path / "a")])
    assert done.exit_code == 0 and "| exact match" in done.stdout, done.output


def test_questions_that_cannot_be_answered_count_apart(model) -> None:
    questions = [
        *QUESTIONS[:3],
        Question("x", "tree stone ?", ("nowhere",), ((Gold(title="Nowhere"),),)),
        Question("y", "king war ?"),
        Question("z", "bird ?", (r"ri\w+r|xx",), patterns=True),
    ]
    found = sweep(model, questions=questions, n_docs=2, head="token")
    assert found.report["questions"] == {
        "sha256": found.report["questions"]["sha256"],
        "read": 6,
        "asked": 6,
        "answerable": 4,
    }
    assert found.figures()["exact_match"]["n"] == 5 and found.figures()["f1"]["n"] == 4
    assert found.figures(of="answerable")["exact_match"]["n"] == 4
    notes = " ".join(found.report["notes"])
    assert "1 of 4 gold documents are not in the knowledge base, by title (Nowhere)" in notes
    assert "Questions without answers: 1." in notes
    only = sweep(model, questions=questions, n_docs=2, head="token", answerable_only=True)
    assert only.report["questions"]["asked"] == 4
    mean = only.figures()["f1"]["mean"]
    assert f"F1 {100 * mean * 4 / 6:.1f}, contains" in only.markdown()
    assert "On all questions, token-docs2-beams1: at least exact match" in only.markdown()
    few = sweep(model, questions=questions, n_docs=2, head="token", answerable_only=True, limit=2)
    assert few.report["questions"]["asked"] == 2
    assert few.report["questions"]["answerable_share"] == pytest.approx(4 / 6)
    one = sweep(model, questions=questions, n_docs=2, head="token", limit=2, seed=3)
    assert [row["id"] for row in one.retrieved] == [
        row["id"] for row in sweep(model, questions=questions, n_docs=2, limit=2, seed=3).retrieved
    ]
    with pytest.raises(ValueError, match="None of the 1 questions has an answer"):
        sweep(model, questions=questions[3:4], answerable_only=True)


def test_what_cannot_be_evaluated_is_said(model) -> None:
    with pytest.raises(ValueError, match="at least one question"):
        evaluate(model, [])
    with pytest.raises(TypeError, match="must be Question records, got str"):
        evaluate(model, ["who?"])
    with pytest.raises(ValueError, match="ids of their own"):
        evaluate(model, [QUESTIONS[0]] * 2)
    for options, said in (
        ({"head": "both"}, "head must be token or sequence, got 'both'"),
        ({"n_docs": (1, 0)}, "n_docs must be whole numbers of at least 1, got 0"),
        ({"limit": 0}, "limit must be"),
        ({"answerable": False, "answerable_only": True}, "answerable_only must go with"),
    ):
        with pytest.raises(ValueError, match=said):
            Settings(**options)
    with pytest.raises(TypeError, match="n_doc"):
        evaluate(model, QUESTIONS, n_doc=3)


def test_without_the_extra_a_note_says_what_is_left_out(model, monkeypatch) -> None:
    for module in ("run", "scores"):
        monkeypatch.setattr(f"rag_core.evaluation.{module}.has_libraries", lambda: False)
    found = sweep(model, questions=QUESTIONS[:2], n_docs=1, head="token")
    assert "f1" in found.figures() and not {"rouge_l", "bleu"} & found.figures().keys()
    assert "pip install 'dualrag[eval]'" in found.markdown()


def test_weights_have_one_sum(model) -> None:
    assert weights_sums(model) == weights_sums(model) != weights_sums(model.generator)


@settings(max_examples=50)
@given(
    n_docs=st.lists(st.integers(1, 9), max_size=3),
    head=st.lists(st.sampled_from(["token", "sequence"]), max_size=2),
    decoding=st.lists(st.sampled_from(["thorough", "fast"]), max_size=2),
    num_beams=st.lists(st.integers(1, 4), max_size=2),
)
def test_a_sweep_is_every_combination_once(model, n_docs, head, decoding, num_beams) -> None:
    options = {"n_docs": n_docs, "head": head, "decoding": decoding, "num_beams": num_beams}
    variants = Settings(**options).variants(model)
    names = [variant.name for variant in variants]
    assert len(set(names)) == len(names)
    heads = set(head) or {"token"}
    ways = len(set(decoding) or {1}) * ("sequence" in heads) + ("token" in heads)
    sizes = [len(set(values) or {1}) for values in (n_docs, num_beams)]
    assert len(names) == ways * sizes[0] * sizes[1]


def test_the_command(model, tmp_path, monkeypatch) -> None:
    retriever = model.retriever
    tokenizers = retriever.question_encoder_tokenizer, retriever.generator_tokenizer
    words = train_command(tmp_path, model, tokenizers)
    asked, folder, kb = words[1], words[3], words[5]
    monkeypatch.chdir(tmp_path)
    command = ["eval", asked, "--model", folder, "--kb", kb, "--backend", "torch"]
    command += ["--limit", "4", "--n-docs", "1,2", "--num-beams", "2", "--out", "report"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "4 of 10 questions" in done.stdout and "token-docs2-beams2" in done.stdout
    assert "%|" not in done.stderr  # bars are for terminals
    report = json.loads(Path("report/report.json").read_text("utf-8"))
    assert report["knowledge_base"]["index"]["recall_at_5"] == 1.0
    assert report["command"].endswith("--out report-again") and report["versions"]["dualrag"]
    again = report["command"].split()
    repeated = CliRunner().invoke(app, again[again.index("eval") :])
    assert repeated.exit_code == 0, repeated.output
    for name, variant in report["variants"].items():
        other = json.loads(Path("report-again/report.json").read_text("utf-8"))["variants"][name]
        assert other["figures"] == variant["figures"]
    refused = CliRunner().invoke(app, ["calibrate", "report"])
    assert refused.exit_code == 2 and "at least 20 answers" in refused.stderr, refused.output
    kept = set(Path().iterdir())
    shown = CliRunner().invoke(app, command[:-2])
    assert "wrong, though found" in shown.stdout and set(Path().iterdir()) == kept
    bad = CliRunner().invoke(app, ["eval", asked, "--out", "x", "--n-docs", "1;2"])
    assert bad.exit_code == 2 and "--n-docs must be whole numbers with commas" in bad.stderr
    for words in (["eval"], ["eval", asked, "--compare", "report", "report"]):
        assert CliRunner().invoke(app, words).exit_code == 2
    words = ["eval", "--compare", "report", "report", "--out", "x", "--retrieval-only"]
    ignored = CliRunner().invoke(app, words)
    assert ignored.exit_code == 2 and "--out, --retrieval-only must be left out" in ignored.stderr
