"""Joint fine-tuning in PyTorch: what learns, what is read, the command line."""

from __future__ import annotations

import json

import pytest
import torch

from rag_core.training.config import TrainingConfig
from rag_core.training.data import Example
from rag_torch.rag import RagSequenceForGeneration, RagTokenForGeneration
from rag_torch.training import train
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
