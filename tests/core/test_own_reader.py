"""A reader for own text: what a tuned model remembers, and what people are told of it."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from rag_core.cli import app, process, reader_notes
from rag_core.cli.reader_notes import unfamiliar, way_to_a_reader
from rag_core.config import BartConfig, BertConfig, RagConfig
from rag_core.demo.checkpoint import MARK
from rag_core.demo.material import PASSAGES_SHA256
from rag_core.knowledge import REMEMBERED, KnowledgeBase, remember_base, remembered_base
from rag_core.training import Example, TrainingConfig, chosen_config
from rag_core.training.choices import FEW_QUESTIONS, LEAST_STEPS, NARROW_RATE, SAMPLE
from rag_core.training.data import spread
from rag_core.training.words import beginning, time_left, wrong_answers
from tests.support.stored_files import STORED


def stored_base(folder):
    shutil.copytree(STORED / "knowledge", folder)
    return KnowledgeBase.open(folder)


def test_a_model_remembers_its_knowledge_base_and_both_may_move_together(tmp_path):
    (tmp_path / "a" / "model").mkdir(parents=True)
    base = stored_base(tmp_path / "a" / "kb")
    remember_base(tmp_path / "a" / "model" / REMEMBERED, tmp_path / "a" / "model", base)
    (tmp_path / "a").rename(tmp_path / "b")
    own = remembered_base(tmp_path / "b" / "model")
    assert own.path == (tmp_path / "b" / "kb").resolve() and own.is_here()
    assert own.is_of(KnowledgeBase.open(tmp_path / "b" / "kb"))
    shutil.move(tmp_path / "b" / "kb", tmp_path / "elsewhere")
    assert not own.is_here()
    assert own.is_of(KnowledgeBase.open(tmp_path / "elsewhere"))
    assert remembered_base("facebook/rag-token-nq") is None


@pytest.mark.parametrize(
    "notes",
    [
        [],
        {"path": "../kb"},
        {"path": "/etc", "manifest_sha256": ""},
        {"path": "\\\\host\\share", "manifest_sha256": ""},
        {"path": "C:\\kb", "manifest_sha256": ""},
        {"path": 3, "manifest_sha256": ""},
    ],
)
def test_a_strange_memory_is_refused(tmp_path, notes):
    (tmp_path / REMEMBERED).write_text(json.dumps(notes))
    with pytest.raises(ValueError, match=r"knowledge_base\.json.*Remove it"):
        remembered_base(tmp_path)


def test_a_model_that_meets_other_passages_is_noted_once_with_the_way_out(tmp_path):
    own, other = stored_base(tmp_path / "own"), stored_base(tmp_path / "other")
    model = tmp_path / "model"
    model.mkdir()
    assert unfamiliar(model, other) is None  # nothing is known of it
    remember_base(model / REMEMBERED, model, own)
    assert unfamiliar(model, other) is None  # the same passages
    (other.path / "manifest.json").write_text((own.path / "manifest.json").read_text() + "\n")
    assert unfamiliar(model, own) is None
    note = unfamiliar(model, other)
    assert str(own.path) in note
    assert f"train questions.jsonl --kb {other.path} --out tuned" in way_to_a_reader(other)
    (model / MARK).write_text("")
    assert "name articles of Wikipedia" in unfamiliar(model, other)
    other.manifest.sources.append({"sha256": PASSAGES_SHA256})
    assert unfamiliar(model, other) is None


def model_of(width):
    generator = BartConfig(d_model=width).to_dict()
    return RagConfig(question_encoder=BertConfig().to_dict(), generator=generator)


def test_few_questions_get_steps_enough_and_leave_the_question_encoder_alone():
    config = chosen_config(40, model_of(256), {})
    assert config.total_steps(40) == LEAST_STEPS
    assert (config.learning_rate, config.question_encoder) == (NARROW_RATE, "frozen")
    assert config.sample_size == SAMPLE and config.evaluate_first
    assert LEAST_STEPS // 4 == config.save_every == config.evaluate_every == 2 * config.log_every


def test_many_questions_get_the_usual_passes_and_a_slow_question_encoder():
    config = chosen_config(8000, model_of(1024), {"seed": 3})
    assert config.total_steps(8000) == TrainingConfig().total_steps(8000) == 3000
    assert config.learning_rate == TrainingConfig.learning_rate
    assert config.question_encoder == "all" and config.seed == 3
    assert config.question_encoder_learning_rate == pytest.approx(config.learning_rate / 10)
    assert config.save_every == 200
    assert chosen_config(FEW_QUESTIONS - 1, model_of(1024), {}).question_encoder == "frozen"


@pytest.mark.parametrize(
    "given",
    [
        {"steps": 7, "learning_rate": 0.1, "save_every": 0, "evaluate_every": 0},
        {"epochs": 2.0, "question_encoder": "all", "question_encoder_learning_rate": 1e-6},
        {"question_encoder": "projection", "batch_size": 3, "on_collapse": "warn"},
    ],
)
def test_what_is_said_stays_said(given):
    config = chosen_config(40, model_of(256), given)
    assert {name: getattr(config, name) for name in given} == given
    if "epochs" in given:
        assert config.total_steps(40) == 10


def test_a_rate_for_the_question_encoder_lets_it_learn():
    config = chosen_config(40, model_of(256), {"question_encoder_learning_rate": 1e-5})
    assert (config.question_encoder, config.question_encoder_learning_rate) == ("all", 1e-5)
    with pytest.raises(TypeError, match="stepz"):
        chosen_config(40, model_of(256), {"stepz": 3})


def test_a_run_says_what_it_is_about_to_do():
    config = TrainingConfig(batch_size=8, learning_rate=5e-4)
    learning = {"rag.generator.a": np.ones((1000, 600)), "rag.question_encoder.b": np.ones(7)}
    said = beginning(config, 200, 40, 56, learning, "torch and the CPU")
    assert (
        "40 questions about 56 passages: 200 steps of 8 questions, each question 40 times" in said
    )
    assert "Generator: 0.6 million numbers learn, at a rate of up to 0.0005." in said
    assert "Question encoder: 7 numbers learn, at a rate of up to 0.0005." in said
    del learning["rag.question_encoder.b"]
    assert "stays as it is" in beginning(config, 200, 40, None, learning, "torch and the CPU")
    assert [time_left(seconds) for seconds in (9, 250, 9000)] == [
        "Less than a minute to go.",
        "About 4 minutes to go.",
        "About 2.5 hours to go.",
    ]


def test_a_sample_is_spread_and_a_few_wrong_answers_are_shown():
    examples = [Example(f"q{number}", ("a",)) for number in range(10)]
    assert [each.question for each in spread(examples, 4)] == ["q0", "q2", "q5", "q7"]
    assert spread(examples, 20) == examples and spread(examples, 0) == []
    said = wrong_answers(examples, ["b"] * 10, [1.0] * 5 + [0.0] * 5)
    assert said.splitlines()[:2] == ["Not right yet, 3 of 5:", "  q5 -> b (wanted: a)"]
    assert wrong_answers(examples, ["a"] * 10, [1.0] * 10) == ""


def test_a_model_is_measured_through_the_index_that_is_named(tmp_path, monkeypatch):
    kb, told = stored_base(tmp_path / "kb"), {}
    engine = SimpleNamespace(measure_files=lambda *files, **options: told.update(options) or 0.5)
    monkeypatch.setattr(process, "load_backend_for_command", lambda name: engine)
    monkeypatch.setattr(reader_notes, "unfamiliar", lambda model, base: None)
    words = ["train", "--validation", "qa.jsonl", "--model", "m", "--kb", str(kb.path)]
    said = CliRunner().invoke(app, [*words, "--index", "ray://here/kb"])
    assert said.stdout == "exact match 0.500\n", said.output
    assert told["index"] == "ray://here/kb"
