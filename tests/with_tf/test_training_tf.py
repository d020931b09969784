"""Joint fine-tuning in TensorFlow.

Step for step as in PyTorch, and a killed run ends where it would have ended.
"""

import json

import numpy as np
import pytest
import tensorflow as tf

from rag_core.training.config import TrainingConfig
from rag_tf import marginalize as marginal
from rag_tf import modules
from rag_tf.adamw import AdamW, LossScale
from rag_tf.graph import Graph
from rag_tf.rag import RagSequenceForGeneration, RagTokenForGeneration
from rag_tf.training import train
from tests.support.training_models import (
    EXAMPLES,
    SETTINGS,
    small_config,
    small_retriever,
    small_tokenizers,
    train_command,
)

PROJECTION = {"rag.question_encoder.encode_proj.weight", "rag.question_encoder.encode_proj.bias"}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return small_tokenizers(tmp_path_factory.mktemp("tokenizers"))


def weights(model):
    return {name: array.copy() for name, array in model.state_dict().items()}


class Fresh:
    """A model that starts anew with the same weights: its graphs are compiled once."""

    def __init__(self, tokenizers, dropout, dtype="float32"):
        tf.random.set_seed(3)
        config = small_config(tokenizers, dropout)
        self.retriever = small_retriever(config, tokenizers)
        self.model = RagTokenForGeneration(config, retriever=self.retriever).to(dtype)
        parts = self.model.question_encoder, self.model.generator
        self.sequence = RagSequenceForGeneration(config, *parts, self.retriever)
        self.start = weights(self.model)

    def __call__(self, sequence=False):
        self.model.load_state_dict(self.start)
        return self.sequence if sequence else self.model


@pytest.fixture(scope="module")
def double(tokenizers):
    return Fresh(tokenizers, 0.0, "float64")


def torch_twin(tokenizers, state, head):
    import torch

    from rag_torch import rag

    config = small_config(tokenizers, 0.0)
    twin = getattr(rag, head.__name__)(
        config, retriever=small_retriever(config, tokenizers)
    ).double()
    twin.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    return twin


# In float64: the gradient of a key's bias is 0 but for rounding, and in float32 Adam makes a step
# of that.
@pytest.mark.backend("torch")
@pytest.mark.parametrize(
    ("part", "sequence"), [("all", False), ("projection", True), ("frozen", False)]
)
def test_every_step_is_pytorchs(tokenizers, double, part, sequence):
    from rag_torch.training import train as train_torch

    model = double(sequence)
    twin = torch_twin(tokenizers, double.start, type(model))
    settings = {
        **SETTINGS,
        "log_every": 1,
        "question_encoder_learning_rate": 1e-3,
        "weight_decay": 0.1,
    }
    config = TrainingConfig(steps=20, question_encoder=part, label_smoothing=0.1, **settings)
    ours = train(model, double.retriever, EXAMPLES, config, progress=False)
    theirs = train_torch(twin, twin.retriever, EXAMPLES, config, progress=False)
    for mine, other in zip(ours.history, theirs.history, strict=True):
        assert mine.pop("tokens_per_second") > 0 and other.pop("tokens_per_second") > 0
        assert mine == pytest.approx(other, rel=1e-9), mine["step"]
    final = weights(model)
    for name, tensor in twin.state_dict().items():
        np.testing.assert_allclose(final[name], tensor.numpy(), rtol=0, atol=1e-9, err_msg=name)
    moved = {
        name
        for name in final
        if "question_encoder" in name and (final[name] != double.start[name]).any()
    }
    assert {"all": moved > PROJECTION, "projection": moved == PROJECTION, "frozen": moved == set()}[
        part
    ]


def test_an_overflow_in_float16_skips_the_step_and_halves_the_scale():
    scale = LossScale(True)
    gradients = {"a": tf.constant([3.0, 4.0]) * scale.value}
    optimizer = AdamW(
        [{"params": {"a": tf.Variable([0.0, 0.0])}, "weight_decay": 0.0}], 0.1, (0.9, 0.99)
    )
    factor = optimizer.clip_factor(gradients, 1.0, scale.value)
    assert (gradients["a"] * factor).numpy() == pytest.approx([0.6, 0.8], abs=1e-6)
    assert optimizer.clip_factor({"a": tf.constant([1.0, np.inf])}, 1.0, scale.value) is None
    assert optimizer.clip_factor({"a": tf.constant([3.0, 4.0])}, 9.0) == 1.0
    scale.update(False)
    assert scale.value == 32768
    for _ in range(2000):
        scale.update(True)
    assert scale.value == 65536
    again = LossScale(True)
    scale.update(True)
    again.load_state_dict(scale.state_dict())
    assert vars(again) == vars(scale)


@pytest.mark.backend("torch")
def test_command_line_trains_a_saved_model_which_pytorch_then_reads(tokenizers, double, tmp_path):
    from typer.testing import CliRunner

    from rag_core.cli.commands import app
    from rag_torch.rag import RagSequenceForGeneration as TorchSequence

    words = train_command(tmp_path, double(sequence=True), tokenizers)
    result = CliRunner().invoke(app, [*words, "--backend", "tf"])
    assert result.exit_code == 0, result.stderr
    assert "2 steps, loss" in result.stderr
    assert json.loads((tmp_path / "tuned" / "training.json").read_text())["steps"] == 2
    ours, theirs = (
        head.from_pretrained(tmp_path / "tuned")
        for head in (RagSequenceForGeneration, TorchSequence)
    )
    assert ours.config.architectures == ["RagSequenceForGeneration"]
    assert (
        ours.state_dict()["rag.generator.lm_head.weight"]
        != double.start["rag.generator.lm_head.weight"]
    ).any()
    questions = [e.question for e in EXAMPLES[:3]]
    answers = []
    for model in (ours, theirs):
        model.set_retriever(small_retriever(model.config, tokenizers))
        answers.append([answer.text for answer in model.answer(questions, num_beams=2)])
    assert answers[0] == answers[1]


def test_dropout_follows_the_seed_or_the_run():
    table = tf.ones((100, 100))
    graph = Graph(lambda x, training: modules.dropout(x, 0.25, training))

    def drawn(seed):
        tf.random.set_seed(seed)
        return [graph(table, True).numpy() for _ in range(2)]

    def in_run(function, seed):
        with modules.seeded_by(np.random.default_rng(seed)):
            return function(table, True).numpy()

    first, second = drawn(1)
    assert set(np.unique(first)) == {np.float32(0), np.float32(4 / 3)}
    assert abs(first.mean() - 1) < 0.03
    assert (first != second).any()
    assert np.array_equal([first, second], drawn(1))
    assert (first != drawn(2)[0]).any()
    assert np.array_equal(in_run(graph, 5), in_run(graph, 5))
    assert np.array_equal(in_run(graph, 5), in_run(graph.function, 5))
    assert (in_run(graph, 5) != in_run(graph, 6)).any()


@pytest.mark.parametrize(
    ("dtype", "atol"), [("float64", 1e-12), ("float32", 1e-6), ("bfloat16", 1e-2)]
)
def test_log_probs_have_the_gradients_of_the_plain_formula(dtype, atol):
    rng = np.random.default_rng(5)
    logits = tf.cast(tf.constant(rng.standard_normal((2, 3, 4, 17))), dtype)
    target = tf.constant(rng.integers(0, 17, (2, 4)))

    def plain(logits, target):
        index = tf.broadcast_to(target[:, None], (2, 3, 4))
        return tf.gather(tf.nn.log_softmax(marginal.widen(logits)), index, batch_dims=3)

    def both(function):  # the gradient, and that of a sum of its sines
        with tf.GradientTape() as outer:
            outer.watch(logits)
            with tf.GradientTape() as inner:
                inner.watch(logits)
                found = function(logits, target)
                total = tf.reduce_sum(tf.sin(found))
            first = inner.gradient(total, logits)
            second = tf.reduce_sum(tf.sin(tf.cast(first, tf.float64)))
        return found, first, outer.gradient(second, logits)

    wanted = both(plain)
    for function in (
        marginal.target_log_probs,
        tf.function(marginal.target_log_probs, autograph=False),
    ):
        for got, want in zip(both(function), wanted, strict=True):
            assert got.dtype == want.dtype
            np.testing.assert_allclose(
                tf.cast(got, tf.float64), tf.cast(want, tf.float64), rtol=0, atol=atol
            )
