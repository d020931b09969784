"""`make results` in miniature, in this process: a tiny model, ten passages, ten questions."""

import dataclasses
import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from experiments.results import collect, errors, jobs, material, plan, report, systems
from experiments.results.answering import RightAnswer, extracted, right_answer, swapped
from experiments.results.jobs import Job
from rag_core.backends import load_backend
from rag_core.cli import app
from rag_core.cli.models import open_model
from rag_core.demo import Article
from rag_core.evaluation import Evaluation, Question, evaluate
from rag_core.knowledge import KnowledgeBase
from rag_core.retrieval import RagRetriever
from rag_core.training import TrainingConfig
from tests.support.evaluations import Countable, small_model
from tests.support.training_models import (
    VECTORS,
    WORDS,
    small_config,
    small_tokenizers,
    train_command,
)

pytestmark = pytest.mark.backend("torch")
FEW = plan.Sizes(
    seeds=2, steps=1, batch_size=2, train=4, dev=4, nq=9, trivia=9, clues=2, sweep=2, every=2,
    unanswerable=2, pairs=1, n_docs=(1, 2),
)  # fmt: skip


class InThisProcess:
    """What `jobs.Process` does, without a process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        job.log.parent.mkdir(parents=True, exist_ok=True)
        module, *words = job.words
        if module == jobs.DUALRAG:
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, done.output
        else:
            sys.modules[module].main(words)

    def ended(self):
        return 0, jobs.Used(1.0, 1.0, 10**9)

    def stop(self) -> None:
        """Nothing runs any more."""


def wheel(folder: Path) -> Path:
    """A wheel with a jar with files of questions, as pyserini's."""
    asked = [f"{a} {b}\t['{b}', '{b}{b}']\n" for a, b in zip(WORDS, reversed(WORDS), strict=True)]
    text = "".join(asked) + f"{WORDS[0]} {WORDS[1]}\t['nowhere']\n{WORDS[2]}\t['nobody']\n"
    with zipfile.ZipFile(folder / "anserini.jar", "w") as jar:
        for name in material.TOPICS.values():
            jar.writestr(f"topics-and-qrels/{name}", text)
    path = folder / "pyserini-0.whl"
    with zipfile.ZipFile(path, "w") as outer:
        outer.write(folder / "anserini.jar", material.JAR)
    return path


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """What is asked of `make results`, in a repository of its own."""
    root = tmp_path_factory.mktemp("root")
    tokenizers = small_tokenizers(root)
    model = small_model("torch", tmp_path_factory.mktemp("model"))
    train_command(root, model, tokenizers)
    vectors = dict(zip(WORDS, VECTORS, strict=True))

    def encoder(*_):
        embed = lambda titles, texts: np.stack([vectors.get(t, VECTORS[0]) for t in titles])  # noqa: E731
        return SimpleNamespace(embed=embed), "unnamed", None

    articles = [Article(word, f"{word} {word}", "", "") for word in WORDS[:3]]
    with pytest.MonkeyPatch.context() as patch:
        found = wheel(root)
        patch.chdir(root)
        patch.setattr(jobs, "ROOT", root)
        patch.setattr(collect, "ROOT", root)
        patch.setattr(material, "SHA256", material.describe(found)["sha256"])
        patch.setattr(material, "corpus_file", lambda say: root)
        patch.setattr(material, "read_articles", lambda path: articles)
        patch.setattr(material, "description_clue", lambda article: article.text)
        patch.setattr(material, "held_out_titles", lambda articles: {WORDS[0], WORDS[1]})
        patch.setattr(plan, "INDEXES", {"hnsw": ("--index", "hnsw")})
        patch.setattr(collect, "INDEXES", {"hnsw": ()})
        patch.setattr("rag_core.cli.models.open_encoder", encoder)
        for module in ("intervals", "calibration"):
            patch.setattr(f"rag_core.evaluation.{module}.RESAMPLES", 50)
        yield plan.Asked(
            Path("work"),
            "torch",
            "model",
            Path("kb"),
            found,
            FEW,
            ("start", "joint", "closed-book"),
        )


@pytest.fixture(scope="module")
def figures(asked):
    made = plan.Plan(asked)
    said: list[str] = []
    failed = jobs.run(made.jobs(), InThisProcess, 2, said.append)
    assert not failed, said
    return collect.collected(made)


def test_every_figure_is_made_once_and_stands_in_the_tables(asked, figures, tmp_path) -> None:
    made = plan.Plan(asked)
    names = [job.name for job in made.jobs()]
    assert len(names) == len(set(names)) == figures["cost"]["commands"]
    assert not jobs.run(made.jobs(), None, 2, print)  # nothing is left to start
    assert jobs.minutes(made.jobs(), 2) == 0
    assert set(figures["systems"]) == {"start", "joint", "closed-book", "bm25", "extractive"}
    counted = figures["questions"]["nq-test"]
    assert counted == {"questions": 12, "answerable": 10, "about an article": 10}
    for name in ("every", "n_docs", "indexes", "swap"):
        assert figures[name], name
    depths = [point["n_docs"] for point in figures["n_docs"]["nq"]["points"]]
    assert depths == [1, 2]
    page = report.page({"torch": figures, "tf": figures})
    assert "| RAG-Token, joint" in page and "TensorFlow" in page
    assert "spreads overlap" in page
    for entry in figures["systems"].values():
        for each in entry["sets"].values():
            assert each["command"].startswith(("dualrag eval work/", "python -m experiments."))
    (tmp_path / report.CHARTS).mkdir(parents=True)
    (tmp_path / report.PAGE).write_text(
        f"# T\n\n{report.BEGIN}\nbefore\n{report.END}\nrest", "utf-8"
    )
    said = report.keep(figures, tmp_path, asked, quick=True)
    assert "of a quick run" in said and "before" in (tmp_path / report.PAGE).read_text("utf-8")
    report.keep(figures, tmp_path, asked, quick=False)
    report.publish(tmp_path)  # from what is kept
    text = (tmp_path / report.PAGE).read_text("utf-8")
    assert text.startswith("# T") and text.endswith("rest") and "\nbefore\n" not in text
    assert "![Number of passages](charts/results-n-docs.svg)" in text
    names = {path.name for path in (tmp_path / report.CHARTS).iterdir()}
    assert names >= {"results-n-docs.svg", "results-systems.svg"}


def test_a_mean_over_seeds_is_that_of_the_runs(asked, figures) -> None:
    rows = [
        Evaluation.open(f"work/torch/joint-{seed}-nq").figures()["f1"]["mean"] for seed in (0, 1)
    ]
    assert figures["systems"]["joint"]["sets"]["nq"]["f1"]["mean"] == pytest.approx(np.mean(rows))


def test_training_sees_what_its_retriever_finds_and_closed_book_sees_nothing(
    asked, figures
) -> None:
    folder = Path("work/torch/train")
    rows, read, closed = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("train", "found", "closed")
    )
    assert rows and all(row["answers"][0] in WORDS for row in rows)
    asked_of = [Question(row["id"], row["question"], tuple(row["answers"])) for row in rows]
    model, _ = open_model(load_backend("torch"), asked.kb, asked.model, None, print)
    titles = list(KnowledgeBase.open(asked.kb).dataset()["title"])
    near = evaluate(model, asked_of, n_docs=5, retrieval_only=True, progress=False).retrieved
    assert read == [
        row
        for row, found in zip(rows, near, strict=True)
        if row["positive"]["title"] in [titles[passage["id"]] for passage in found["passages"]]
    ]
    assert 0 < len(read) < len(rows)
    empty = {"title": "", "text": ""}
    assert closed == [{**row, "positive": None, "passage": empty} for row in read]
    run = Evaluation.open("work/torch/closed-book-0-nq")
    assert {row["text"] for row in run.passages} == {""}
    assert run.retrieval()["answer_recall@1"]["mean"] == 0
    assert run.report["questions"]["answerable"] == 9
    dev = (folder / "dev.jsonl").read_text("utf-8").splitlines()
    assert len(set(dev)) == FEW.dev


def test_exchanged_facts_stand_in_the_new_passages(asked, figures) -> None:
    folder = Path("work/torch/swap")
    before, after = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("before", "after")
    )
    assert [row["question"] for row in before] == [row["question"] for row in after]
    assert (
        before[0]["answers"] == after[1]["answers"] and before[1]["answers"] == after[0]["answers"]
    )
    old = [json.loads(line) for line in Path("wiki.jsonl").read_text("utf-8").splitlines()]
    new = [json.loads(line) for line in (folder / "kb.jsonl").read_text("utf-8").splitlines()]
    changed = [(one, other) for one, other in zip(old, new, strict=True) if one != other]
    assert changed and len(old) == len(new)


def test_a_failure_is_told_and_what_needs_it_is_not_begun(asked, monkeypatch) -> None:
    first = Job("first", asked.work / "log", ("no.such.module",))
    rest = [dataclasses.replace(first, name="second", needs=("first",))]
    rest.append(dataclasses.replace(first, name="third", words=("this", "--out", "made")))
    Path("made").mkdir()
    monkeypatch.setattr(jobs, "LOADED", ())
    monkeypatch.setattr(jobs, "OF_BACKEND", {"torch": ()})
    said: list[str] = []
    assert jobs.run([first, *rest], jobs.Starter("torch", 1), 2, said.append) == [
        "first", "second",
    ]  # fmt: skip
    assert "No module named 'no'" in "".join(said)
    noted = json.loads(rest[1].note.read_text("utf-8"))
    assert noted["peak_bytes"] > 1e6 and rest[1].outcome() == noted
    other = dataclasses.replace(rest[1], words=("this", "-v", "--out", "made"))
    assert other.outcome() is None  # another command is to be run
    Path("made").rmdir()
    assert rest[1].outcome() is None  # what it made was removed


def test_every_system_has_settings_that_training_knows() -> None:
    for system in plan.SYSTEMS:
        TrainingConfig(**(system.train or {}))


def test_goals_are_met_or_missed() -> None:
    def system(title, exact, recall, seeds):
        each = {
            "exact_match": {"mean": exact, "n": 10},
            "answer_recall@5": {"mean": recall, "n": 10},
            "seeds": seeds,
        }
        return {"title": title, "seeds": len(seeds), "sets": {"nq": each, "trivia": each}}

    def kept(exact, low):
        return {
            "systems": {"joint": system("joint", exact, 0.5, [exact, exact + 0.02]),
                        "closed-book": system("closed-book", 0.02, 0.0, [0.02, 0.02])},
            "differences": {"joint against frozen": {
                "exact_match": {"difference": 0.1, "low": low, "high": 0.2},
            }},
            "calibration": {"joint": {"expected_calibration_error": {"mean": 0.2, "low": 0.1, "high": 0.3}}},
        }  # fmt: skip

    assert [met for _, _, met in report.goals(kept(0.3, 0.01))] == [True, True, True, False]
    assert [met for _, _, met in report.goals(kept(0.09, -0.01))] == [False, False, False, False]
    found = {"torch": kept(0.3, 0.1), "tf": kept(0.31, 0.1)}
    assert all(met for _, _, met in report.alike(found))
    found["tf"] = kept(0.33, 0.1)
    met = {title: met for title, _, met in report.alike(found)}
    assert met == {"joint, NQ: spreads overlap": False, "joint, TriviaQA: spreads overlap": False,
                   "closed-book, NQ: spreads overlap": True,
                   "closed-book, TriviaQA: spreads overlap": True}  # fmt: skip


def test_answers_are_exchanged_for_like_ones() -> None:
    texts = {1: "In Rome since 1901.", 2: "The Rome of 1902, rome.", 3: "Oslo"}
    row = {"question": "?", "answers": ["x", "rome"], "passages": [{"id": 1}, {"id": 2}, {"id": 3}]}
    rome = right_answer(row, texts)
    assert rome == RightAnswer("?", ("x", "rome"), "Rome", (1, 2))
    assert rome.replaced(texts[2], "Bern") == "The Bern of 1902, Bern."
    assert right_answer({**row, "answers": ["ome", "19"]}, texts) is None
    year = RightAnswer("when?", ("1901",), "1901", (9,))
    oslo = RightAnswer("where?", ("Oslo",), "Oslo", (3,))
    same = RightAnswer("who?", ("The Rome",), "Rome", (4,))
    shares = RightAnswer("what?", ("Paris",), "Paris", (2, 5))
    assert list(swapped([rome, year, same, shares, oslo], 9)) == [(rome, oslo)]


def test_an_answer_is_extracted_without_a_model() -> None:
    text = "Oslo is the capital of Norway, since 1814, with 709,000 people."
    assert extracted("What is the capital of Norway?", "Oslo", text) == "Oslo"
    assert extracted("Of what is Oslo the capital?", "Oslo", text) == "Norway"
    assert extracted("When did Oslo become one?", "Oslo", text) == "1814"
    assert extracted("oslo norway", "Oslo", "Oslo in Norway") == "Oslo"


def test_wrong_answers_are_sorted_by_what_is_to_blame(asked, figures) -> None:
    def answer(exact, found, believed):
        passages = [{"id": 1, "posterior": 1 - believed}, {"id": 2, "posterior": believed}]
        scores = {"exact_match": exact, "wrong_not_found": float(not exact and not found)}
        return {"scores": scores, "passages": passages}

    row = {"passages": [{"id": 1, "holds_answer": False}, {"id": 2, "holds_answer": True}]}
    assert errors.blame(answer(1.0, True, 0.9), row) is None
    assert errors.blame(answer(0.0, False, 0.9), row) == "retrieval"
    assert errors.blame(answer(0.0, True, 0.9), row) == "reading"
    assert errors.blame(answer(0.0, True, 0.1), row) == "both"
    run = Evaluation.open("work/torch/joint-0-nq")
    found = errors.profile(run, count=2)
    wrong = sum(1 - row["scores"]["exact_match"] for row in next(iter(run.answers.values())))
    assert sum(found["counts"].values()) == wrong and len(found["drawn"]) == min(2, wrong)
    assert f"# {wrong:.0f} wrong of 9" in errors.markdown(run, found)


def test_bm25_finds_by_words_and_its_scores_are_the_logits(tmp_path) -> None:
    tokenizers = small_tokenizers(tmp_path)
    index = Countable(["A", "B", "C"], ["river city", "king war", "king fish moon"], VECTORS[:3])
    dense = RagRetriever(small_config(tokenizers), *tokenizers, index=index)
    found = systems.by_words(dense)
    queries = np.array([[3.0] + [0.0] * 15, [0.0] * 15 + [2.0]], np.float32)
    contexts = found(None, queries, n_docs=2, question_text=["which fish ?", "river"])
    assert contexts["doc_ids"][:, 0].tolist() == [2, 0]
    scores = np.einsum("bd,bnd->bn", queries, contexts["retrieved_doc_embeds"])
    assert scores[0, 0] > 0.1 and scores[0, 1] == 0 and scores[1, 0] > 0.1


def test_without_bm25s_an_error_has_the_line_that_installs_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    tokenizers = small_tokenizers(tmp_path)
    index = Countable(["A"], ["river city"], VECTORS[:1])
    dense = RagRetriever(small_config(tokenizers), *tokenizers, index=index)
    with pytest.raises(ImportError, match=r"pip install 'dualrag\[bm25\]'"):
        systems.by_words(dense)
