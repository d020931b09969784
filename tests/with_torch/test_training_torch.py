"""Joint fine-tuning in PyTorch: what learns, what is read, the command line."""

from __future__ import annotations

import json

import pytest
import torch

from rag_core.modeling.answers import find_passages
from rag_core.retrieval.bm25 import Bm25Index
from rag_core.training.config import TrainingConfig
from rag_core.training.data import Example
from rag_torch.rag import RagSequenceForGeneration, RagTokenForGeneration
from rag_torch.training import _Run, train
from tests.support.training_models import (
    EXAMPLES,
    SETTINGS,
    WORDS,
    small_config,
    small_retriever,
    small_tokenizers,
    train_command,
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return small_tokenizers(tmp_path_factory.mktemp("tokenizers"))


def build(tokenizers, head=RagTokenForGeneration, dropout=0.1):
    torch.manual_seed(3)
    config = small_config(tokenizers, dropout)
    retriever = small_retriever(config, tokenizers)
    return head(config, retriever=retriever), retriever


@pytest.mark.parametrize("part", ["projection", "frozen"])
def test_only_the_chosen_part_of_the_question_encoder_moves(tokenizers, part):
    model, retriever = build(tokenizers)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(
        model,
        retriever,
        EXAMPLES,
        TrainingConfig(steps=3, question_encoder=part, **SETTINGS),
        progress=False,
    )
    moved = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    question = {name for name in moved if "question_encoder" in name}
    projection = {
        "rag.question_encoder.encode_proj.weight",
        "rag.question_encoder.encode_proj.bias",
    }
    assert question == (projection if part == "projection" else set())
    assert any("generator" in name for name in moved)


def test_words_teach_no_question_encoder_but_a_frozen_one_reads_what_they_find(tokenizers):
    model, retriever = build(tokenizers, dropout=0.0)
    retriever.index = Bm25Index(retriever.index)
    for part in ("all", "projection"):
        config = TrainingConfig(steps=2, question_encoder=part, **SETTINGS)
        with pytest.raises(ValueError, match=r"question_encoder must be 'frozen' with Bm25Index"):
            train(model, retriever, EXAMPLES, config, progress=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = TrainingConfig(steps=2, question_encoder="frozen", **SETTINGS)
    train(model, retriever, EXAMPLES, config, progress=False)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) or "question_encoder" not in name
    (answer,) = model.answer("fish moon ?", n_docs=3)
    scores = [
        passage.score for passage in answer.passages
    ]  # whose texts are "moon moon", "fish fish"
    assert [passage.title for passage in answer.passages][:2] == ["river", "city"]
    assert scores[0] == pytest.approx(scores[1]) and scores[1] > scores[2] > 0
    found = find_passages(model._engine, model, "fish moon ?", 3)
    assert found.ids.tolist() == [[passage.id for passage in answer.passages]]


def test_given_passages_are_read_instead_of_retrieved_ones(tokenizers, monkeypatch):
    model, retriever = build(tokenizers, dropout=0.0)
    monkeypatch.setattr(retriever, "retrieve", None)
    examples = [Example("king ?", (w,), (w, "tree stone")) for w in WORDS]
    config = TrainingConfig(
        steps=60, question_encoder="frozen", **{**SETTINGS, "batch_size": 10, "learning_rate": 1e-2}
    )
    report = train(model, retriever, examples, config, validation=examples, progress=False)
    assert report.exact_match >= 0.9
    with pytest.raises(ValueError, match="either all bring a passage or none"):
        train(model, retriever, [*examples, *EXAMPLES], config, progress=False)


@pytest.mark.parametrize("head", [RagTokenForGeneration, RagSequenceForGeneration])
def test_command_line_trains_a_saved_model_on_a_knowledge_base(tokenizers, tmp_path, head):
    from typer.testing import CliRunner

    from rag_core.cli.commands import app

    model, _ = build(tokenizers, head)
    words = train_command(tmp_path, model, tokenizers)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert "2 steps, loss" in result.stderr
    tuned = head.from_pretrained(tmp_path / "tuned")
    assert tuned.config.architectures == [head.__name__]
    assert not torch.equal(tuned.generator.lm_head.weight, model.generator.lm_head.weight)
    assert json.loads((tmp_path / "tuned" / "training.json").read_text())["steps"] == 2
    # found done
    assert (
        CliRunner().invoke(app, words).stderr.splitlines()[-2:] == result.stderr.splitlines()[-2:]
    )
    again = CliRunner().invoke(app, [*words, "--seed", "1"])
    assert again.exit_code == 2
    assert "holds a model already" in again.stderr
    kb = words[words.index("--kb") + 1]
    mixed_up = CliRunner().invoke(app, [*words, "--out", kb])
    assert mixed_up.exit_code == 2 and "is a knowledge base: name another" in mixed_up.stderr


def test_the_command_chooses_measures_remembers_and_describes(tokenizers, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from rag_core.cli.commands import app
    from rag_core.knowledge import remembered_base

    model, _ = build(tokenizers, RagSequenceForGeneration)
    train_command(tmp_path, model, tokenizers)
    folders = {name: str(tmp_path / name) for name in ("qa.jsonl", "model", "kb", "tuned")}
    words = ["train", folders["qa.jsonl"], "--model", folders["model"], "--kb", folders["kb"]]
    words += ["--out", folders["tuned"], "--steps", "4", "--batch-size", "2"]
    said = CliRunner().invoke(app, words).stderr
    assert "10 questions about 10 passages: 4 steps of 2 questions" in said
    assert "Question encoder: stays as it is" in said
    assert "Exact match before: 0." in said and "10 of the questions trained on" in said
    report = json.loads((tmp_path / "tuned" / "training.json").read_text())
    assert report["exact_match_before"] is not None and report["exact_match"] is not None
    assert report["run"]["learning_rate"] == 5e-4
    assert f"exact match {report['exact_match_before']:.3f} -> {report['exact_match']:.3f}" in said
    assert said.splitlines()[-1].endswith(f'ask --model {folders["tuned"]} "..."')
    assert remembered_base(folders["tuned"]).path == (tmp_path / "kb").resolve()
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert "tuned on 10 questions" in card and "RagSequenceForGeneration" in card
    measured = ["train", "--validation", folders["qa.jsonl"], "--model", folders["tuned"]]
    monkeypatch.setattr(_Run, "forward", None)  # no loss is computed for nobody
    result = CliRunner().invoke(app, measured)  # the model knows its knowledge base
    monkeypatch.undo()
    assert result.stdout == f"exact match {report['exact_match']:.3f}\n"
    # a README of somebody's own stays
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("mine")
    words[words.index(folders["tuned"])] = str(tmp_path / "own")
    assert CliRunner().invoke(app, words).exit_code == 0
    assert (tmp_path / "own" / "README.md").read_text() == "mine"
    assert remembered_base(tmp_path / "own").is_here()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "QUESTIONS must be given"),
        (["train", "qa.jsonl"], "--out must be given"),
        (["train", "qa.jsonl", "--out", "tuned", "--model", "nothing"], "--kb must be given"),
    ],
)
def test_what_the_command_cannot_do_without(words, message):
    from typer.testing import CliRunner

    from rag_core.cli.commands import app

    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and message in result.stderr


def test_a_resumed_run_says_where_it_goes_on(tokenizers, tmp_path, monkeypatch):
    model, retriever = build(tokenizers)
    run = {"out": tmp_path, "progress": False}
    config = TrainingConfig(**{**SETTINGS, "steps": 8, "question_encoder": "frozen"})
    monkeypatch.setattr(type(model), "save_pretrained", lambda self, folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(model, retriever, EXAMPLES, config, **run)
    said = []
    model, retriever = build(tokenizers)
    resumed = _Run(model, retriever, EXAMPLES, config, [], tmp_path, say=said.append)
    monkeypatch.undo()
    resumed.go(progress=False)
    assert "Goes on from step 6 of 8." in said
