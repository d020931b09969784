"""Contrastive training in both backends: its loss, what it reads, and what it refuses."""

from importlib import import_module

import numpy as np
import pytest

from rag_core.backends import to_numpy, to_tensor
from rag_core.training.config import TrainingConfig
from rag_core.training.data import Example
from tests.support.training_models import (
    EXAMPLES,
    SETTINGS,
    WORDS,
    Fresh,
    small_tokenizers,
    weights,
)

RNG = np.random.default_rng(7)
QUESTIONS, PASSAGES = RNG.normal(size=(3, 6)), RNG.normal(size=(5, 6))
POSITIVE = np.array([0, 3, 3])
MASKED = np.zeros((3, 5), bool)
MASKED[0, 3] = MASKED[2, 1] = True
CONTRASTIVE = {**SETTINGS, "retriever_loss": "contrastive", "warmup_steps": 0}
DENSE = {**CONTRASTIVE, "answer_loss_weight": 0.0}


def formula(questions, passages):
    losses = []
    for row, own in enumerate(POSITIVE):
        scores = [
            np.exp(questions[row] @ passage)
            for column, passage in enumerate(passages)
            if not MASKED[row, column]
        ]
        losses.append(-np.log(np.exp(questions[row] @ passages[own]) / sum(scores)))
    return np.array(losses)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return small_tokenizers(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="module")
def train(backend):
    return import_module(f"rag_{backend}.training").train


@pytest.fixture(scope="module")
def plain(golden, tokenizers):
    return Fresh(golden, tokenizers, 0.0)


@pytest.fixture(scope="module")
def twin(backend, golden, tokenizers):
    """With a context encoder, and dropout."""
    fresh = Fresh(golden, tokenizers, 0.1)
    encoder = import_module(f"rag_{backend}").BertEncoder
    fresh.model.set_context_encoder_for_training(encoder(fresh.model.config.question_encoder))
    fresh.retriever.set_ctx_encoder_tokenizer(tokenizers[0])
    fresh.start = weights(fresh.model)
    return fresh


def test_the_loss_is_its_formula_with_its_gradient(backend):
    math = import_module(f"rag_{backend}.marginalize")
    kind = {"torch": "pt", "tf": "tf"}[backend]
    positive, masked = to_tensor(POSITIVE, kind), to_tensor(MASKED, kind)

    def program(questions, passages):
        return math.contrastive(math.passage_scores(questions, passages), positive, masked)

    questions, passages = to_tensor(QUESTIONS, kind), to_tensor(PASSAGES, kind)
    found = to_numpy(program(questions, passages))
    np.testing.assert_allclose(found, formula(QUESTIONS, PASSAGES), rtol=1e-10)
    if backend == "torch":
        inputs = questions.requires_grad_(), passages.requires_grad_()
        program(*inputs).sum().backward()
        slopes = [tensor.grad.numpy() for tensor in inputs]
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch([questions, passages])
            total = tf.reduce_sum(program(questions, passages))
        slopes = [slope.numpy() for slope in tape.gradient(total, [questions, passages])]
    for number, slope in enumerate(slopes):
        expected = np.zeros_like(slope)
        for place in np.ndindex(*slope.shape):
            ends = []
            for step in (1e-6, -1e-6):
                arrays = [QUESTIONS.copy(), PASSAGES.copy()]
                arrays[number][place] += step
                ends.append(formula(*arrays).sum())
            expected[place] = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(slope, expected, atol=1e-8)
    single = math.passage_scores(to_tensor(QUESTIONS.astype(np.float32), kind), passages)
    assert "float64" in str(single.dtype)


def test_a_question_encoder_learns_to_find_its_passages_without_search_or_generator(
    train, plain, monkeypatch
):
    """Passages are those that hold the answer, their vectors the index's."""
    model = plain()
    rag = type(model.rag)
    monkeypatch.setattr(rag, "_retrieve", None)
    monkeypatch.setattr(rag, "_run_generator", None)
    config = TrainingConfig(steps=40, **{**DENSE, "batch_size": 10})
    report = train(model, plain.retriever, EXAMPLES, config, progress=False)
    first, last = report.history[0], report.history[-1]
    assert last["in_batch_accuracy"] > 0.9 > 0.5 > first["in_batch_accuracy"]
    assert last["retriever_loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert last["loss"] < 0.2 * report.first_loss
    assert "prior_entropy" not in last and report.exact_match is None
    moved = {
        name
        for name, value in weights(model).items()
        if not np.array_equal(value, plain.start[name])
    }
    assert moved and all("question_encoder" in name for name in moved)


def test_mined_negatives_stand_beside_the_answers_loss(train, plain):
    config = TrainingConfig(
        steps=2, hard_negatives=2, mine_to=6, **{**CONTRASTIVE, "batch_size": 1, "log_every": 1}
    )
    report = train(plain(), plain.retriever, EXAMPLES, config, progress=False)
    line = report.history[-1]
    assert {"retriever_loss", "in_batch_accuracy", "prior_entropy"} <= line.keys()
    assert line["loss"] > line["retriever_loss"] > 0


def test_both_encoders_learn_and_a_killed_run_goes_on_bit_for_bit(train, twin, tmp_path):
    config = TrainingConfig(
        steps=4, context_encoder="all", hard_negatives=1, **{**DENSE, "save_every": 2}
    )
    options = {"out": tmp_path / "tuned", "progress": False}
    whole = train(twin(), twin.retriever, EXAMPLES, config, out=tmp_path / "w", progress=False)
    final = weights(twin.model)
    for part in ("question_encoder", "ctx_encoder", "generator"):
        moved = any(
            not np.array_equal(final[name], value)
            for name, value in twin.start.items()
            if f"{part}." in name
        )
        assert moved == (part != "generator"), part
    model = twin()
    steps, encode = [], type(model.rag).document_vectors

    def dies(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return encode(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(model.rag), "document_vectors", dies)
        train(model, twin.retriever, EXAMPLES, config, **options)
    again = train(twin(), twin.retriever, EXAMPLES, config, **options)
    lines = [{**report.history[-1], "tokens_per_second": 0.0} for report in (again, whole)]
    assert lines[0] == lines[1]
    for name, value in weights(twin.model).items():
        assert np.array_equal(value, final[name]), name


@pytest.mark.parametrize(
    ("examples", "settings", "message"),
    [
        (EXAMPLES, {"batch_size": 1}, "batch_size must be at least 2 .* got 1 with 10 such"),
        ([Example("q", ("zzz",))], {}, "must have a passage that answers .* got none among 1"),
        ([Example("q", ("a",), positive=99)], {}, "must name passages .* 1 that it lacks.* 99"),
        ([Example("q", ("a",), positive=("new", "text"))] * 2, {}, "1 passages, the first 'new'"),
        ([Example(q, ("moon",)) for q in "pq"], {}, "one passage alone for 2 questions"),
        ([Example("q", ("\x7f",))], {}, "answers must have a token .* got '.x7f' for 'q'"),
    ],
)
def test_what_cannot_be_learned_is_refused(train, plain, examples, settings, message, monkeypatch):
    config = TrainingConfig(steps=1, **{**DENSE, **settings})
    if "token" in message:
        config = TrainingConfig(steps=1, **SETTINGS)
        call = type(plain.retriever.generator_tokenizer).__call__

        def blind(self, texts, *args, **kwargs):
            return call(self, [text.replace("\x7f", "") for text in texts], *args, **kwargs)

        monkeypatch.setattr(type(plain.retriever.generator_tokenizer), "__call__", blind)
    with pytest.raises(ValueError, match=message):
        train(plain(), plain.retriever, examples, config, progress=False)


def test_passages_without_a_place_in_the_index_are_embedded_once(train, twin):
    """By the context encoder as it is."""
    examples = [Example(f"{w} ?", ("x",), positive=(w, f"{w} stone")) for w in WORDS]
    config = TrainingConfig(steps=2, **DENSE)
    report = train(twin(), twin.retriever, examples, config, progress=False)
    assert report.history[-1]["retriever_loss"] > 0
    for name, value in weights(twin.model).items():
        assert "ctx_encoder." not in name or np.array_equal(value, twin.start[name])
