"""Joint fine-tuning: it learns, a killed run ends where it would have ended, and its settings
mean what they say.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_core.tokenization.rag import AutoTokenizer
from rag_core.training.config import TrainingConfig, learning_rate_factor
from rag_core.training.data import DataOrder, Example, read_examples
from rag_core.training.state import CHECKPOINT
from rag_torch.rag import RagSequenceForGeneration, RagTokenForGeneration
from rag_torch.training import train
from tests.support.training_models import (
    EXAMPLES,
    SETTINGS,
    WORDS,
    Killed,
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


@pytest.mark.parametrize("part", ["all", "projection"])
def test_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tokenizers, tmp_path, monkeypatch, part
):
    config = TrainingConfig(steps=8, accumulation=2, question_encoder=part, **SETTINGS)
    whole, retriever = build(tokenizers)
    report = train(whole, retriever, EXAMPLES, config, out=tmp_path / "whole", progress=False)

    broken, retriever = build(tokenizers)
    forward, calls = retriever.index.get_top_docs, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 2 * 5 + 2:
            raise Killed
        return forward(*args)

    monkeypatch.setattr(retriever.index, "get_top_docs", dies)
    with pytest.raises(Killed):
        train(broken, retriever, EXAMPLES, config, out=tmp_path / "tuned", progress=False)
    assert (tmp_path / "tuned" / CHECKPOINT).exists()

    resumed, retriever = build(tokenizers)
    torch.manual_seed(99)
    again = train(resumed, retriever, EXAMPLES, config, out=tmp_path / "tuned", progress=False)
    states = [dict(model.state_dict()) for model in (whole, resumed)]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    assert again.history[-1] == report.history[-1]
    assert not (tmp_path / "tuned" / CHECKPOINT).exists()
    read = RagTokenForGeneration.from_pretrained(tmp_path / "tuned")
    assert all(torch.equal(t, states[0][n]) for n, t in read.state_dict().items())
    assert len(AutoTokenizer.from_pretrained(tmp_path / "tuned").generator) == len(tokenizers[1])


@pytest.mark.parametrize("head", [RagTokenForGeneration, RagSequenceForGeneration])
def test_training_learns_and_reports_retrieval(tokenizers, head):
    model, retriever = build(tokenizers, head, dropout=0.0)
    config = TrainingConfig(steps=60, **{**SETTINGS, "batch_size": 10, "learning_rate": 1e-2})
    random_state = torch.get_rng_state()
    report = train(model, retriever, EXAMPLES, config, validation=EXAMPLES, progress=False)
    first, last = report.history[0], report.history[-1]
    assert last["loss"] < 0.3 * first["loss"]
    assert report.exact_match == last["exact_match"] >= 0.9
    assert 0 < last["distinct_documents"] <= 1
    assert 0 <= last["posterior_entropy"] <= np.log(2) + 1e-6
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(p.requires_grad for p in model.parameters())
    assert not model.training


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


def test_accumulated_steps_equal_one_large_batch(tokenizers):
    weights = []
    for split in ({"batch_size": 4}, {"batch_size": 1, "accumulation": 4}):
        model, retriever = build(tokenizers, dropout=0.0)
        model.double()
        train(
            model,
            retriever,
            EXAMPLES,
            TrainingConfig(steps=3, **{**SETTINGS, **split}),
            progress=False,
        )
        weights.append(model.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-6, atol=1e-8)


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


def test_a_passage_without_the_answer_is_learned_to_say_nothing(tokenizers):
    model, retriever = build(tokenizers, dropout=0.0)
    silent = [
        Example(a, (a,), (b, "tree"), answerable=a == b) for a in WORDS[:4] for b in WORDS[:4]
    ]
    config = TrainingConfig(
        steps=150,
        question_encoder="frozen",
        **{**SETTINGS, "batch_size": 16, "learning_rate": 5e-3},
    )
    report = train(model, retriever, silent, config, progress=False)
    assert report.history[-1]["loss"] < 0.1
    rows = [f"{e.passage[0]} / tree // {e.question}" for e in silent]
    ids = tokenizers[1](rows, padding=True, return_tensors="pt")
    answers = tokenizers[1]([e.answers[0] for e in silent], padding=True, return_tensors="pt")
    logits = model.generator(**ids, decoder_input_ids=answers["input_ids"][:, :2]).logits
    says_nothing = logits.argmax(-1) == tokenizers[1].mask_token_id  # (16, 2)
    assert says_nothing.tolist() == [[not e.answerable] * 2 for e in silent]


def test_mixed_precision_and_refusals(tokenizers, tmp_path):
    model, retriever = build(tokenizers)
    report = train(
        model,
        retriever,
        EXAMPLES,
        TrainingConfig(steps=2, mixed_precision="bf16", **SETTINGS),
        progress=False,
    )
    assert np.isfinite(report.history[-1]["loss"])
    assert model.dtype == torch.float32
    with pytest.raises(ValueError, match=r"fp16.*needs a GPU"):
        train(model, retriever, EXAMPLES, TrainingConfig(mixed_precision="fp16"), progress=False)
    with pytest.raises(ValueError, match=r"must be float32, got torch\.bfloat16"):
        train(
            model.to(torch.bfloat16), retriever, EXAMPLES, TrainingConfig(steps=1), progress=False
        )
    (tmp_path / CHECKPOINT).write_bytes(b"nothing")
    model, retriever = build(tokenizers)
    with pytest.raises(OSError, match="no checkpoint of a training run"):
        train(model, retriever, EXAMPLES, TrainingConfig(steps=1), out=tmp_path, progress=False)


def test_checkpoint_of_another_run_is_refused(tokenizers, tmp_path, monkeypatch):
    model, retriever = build(tokenizers)
    monkeypatch.setattr(model, "save_pretrained", lambda folder: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        train(
            model,
            retriever,
            EXAMPLES,
            TrainingConfig(steps=5, **SETTINGS),
            out=tmp_path,
            progress=False,
        )
    with pytest.raises(ValueError, match=r"another run \(learning_rate: 0.003 there, 0.1 now"):
        settings = {**SETTINGS, "learning_rate": 0.1}
        train(
            model,
            retriever,
            EXAMPLES,
            TrainingConfig(steps=5, **settings),
            out=tmp_path,
            progress=False,
        )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", r"qa.jsonl:2: every line must be one JSON object: Expecting value"),
        ('["q", "a"]', r"qa.jsonl:2: every line must be one JSON object, got a JSON list"),
        (
            '{"question": " ", "answer": "a"}',
            r'qa.jsonl:2: "question" must be a text that is not empty',
        ),
        (
            '{"question": "q"}',
            r'qa.jsonl:2: "answer" must be a text or a list.*got an object with the keys .\'question',
        ),
        (
            '{"q": "q", "a": "a"}',
            r'qa.jsonl:2: "question" must be .* keys .\'a\', \'q\'.*Rename one',
        ),
        (
            '{"question": "q", "answer": "a"},',
            r"qa.jsonl:2: every line .* Extra data at column 33\. Mend the line",
        ),
        ('{"question": "q", "answer": ["a", 3]}', r'qa.jsonl:2: "answer" must be a text or a list'),
        (
            '{"question": "q", "answer": "a", "passage": "p"}',
            r'qa.jsonl:2: "passage" must be an object',
        ),
        (
            '{"question": "q", "answer": "a", "answerable": false}',
            r'qa.jsonl:2: "answerable" must be true, or false',
        ),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "qa.jsonl"
    path.write_text('{"question": "q", "answers": ["a", "b"]}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_examples(path)


def test_examples_are_read(tmp_path):
    path = tmp_path / "qa.jsonl"
    path.write_text(
        '{"question": "q ", "answers": ["a", "b"]}\n\n{"question": "é", "answer": "x", "id": 7}\n',
        "utf-8",
    )
    assert read_examples(path) == [Example("q", ("a", "b")), Example("é", ("x",))]
    path.write_text("\n")
    with pytest.raises(ValueError, match="no question in it"):
        read_examples(path)


@given(
    size=st.integers(1, 40),
    seed=st.integers(0, 5),
    start=st.integers(0, 100),
    count=st.integers(0, 60),
)
@settings(max_examples=60, deadline=None)
def test_data_order_is_known_at_any_position_and_covers_every_epoch(size, seed, start, count):
    whole = DataOrder(size, seed).rows(0, start + count)
    assert DataOrder(size, seed).rows(start, count) == whole[start:]
    for epoch in range(len(whole) // size):
        assert sorted(whole[epoch * size : (epoch + 1) * size]) == list(range(size))


@given(warmup=st.integers(0, 20), total=st.integers(1, 60))
def test_learning_rate_rises_then_falls_and_is_never_zero_before_the_end(warmup, total):
    factors = [learning_rate_factor(step, warmup, total) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    top = factors.index(max(factors))
    assert factors == sorted(factors[: top + 1]) + sorted(factors[top + 1 :], reverse=True)
    assert learning_rate_factor(total, min(warmup, total), total) == 0.0


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
