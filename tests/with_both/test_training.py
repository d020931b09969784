"""Joint fine-tuning in both backends: it learns, a killed run ends where it would have ended, and
its settings mean what they say.
"""

from importlib import import_module

import numpy as np
import pytest

from rag_core.backends import to_numpy
from rag_core.tokenization.rag import AutoTokenizer
from rag_core.training.config import TrainingConfig
from rag_core.training.data import Example
from rag_core.training.losses import ForwardPass
from rag_core.training.state import CHECKPOINT
from tests.support.training_models import (
    EXAMPLES,
    SETTINGS,
    WORDS,
    Fresh,
    Killed,
    small_tokenizers,
    timeless,
    weights,
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return small_tokenizers(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="module")
def module(backend):
    return import_module(f"rag_{backend}.training")


@pytest.fixture(scope="module")
def train(module):
    return module.train


@pytest.fixture(scope="module")
def shaken(golden, tokenizers):
    """With dropout."""
    return Fresh(golden, tokenizers, 0.1)


@pytest.fixture(scope="module")
def double(golden, tokenizers):
    return Fresh(golden, tokenizers, 0.0, "float64")


@pytest.mark.parametrize("part", ["all", "projection"])
def test_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    golden, train, tokenizers, shaken, tmp_path, monkeypatch, part
):
    config = TrainingConfig(steps=8, accumulation=2, question_encoder=part, **SETTINGS)
    options = {"out": tmp_path / "tuned", "progress": False}
    report = train(
        shaken(), shaken.retriever, EXAMPLES, config, out=tmp_path / "whole", progress=False
    )
    final = weights(shaken.model)

    search, calls = shaken.retriever.index.get_top_docs, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 2 * 5 + 2:
            raise Killed
        return search(*args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shaken.retriever.index, "get_top_docs", dies)
        train(shaken(), shaken.retriever, EXAMPLES, config, **options)
    assert (tmp_path / "tuned" / CHECKPOINT).exists()

    resumed = Fresh(golden, tokenizers, 0.1)  # with graphs of its own, as in another process
    golden.set_seed(99)
    again = train(resumed(), resumed.retriever, EXAMPLES, config, **options)
    for name, array in weights(resumed.model).items():
        assert np.array_equal(array, final[name]), name
    assert timeless(again)[-1] == timeless(report)[-1]
    assert not (tmp_path / "tuned" / CHECKPOINT).exists()
    saved = weights(golden.CLASSES["token"].from_pretrained(tmp_path / "tuned"))
    assert all(np.array_equal(array, final[name]) for name, array in saved.items())
    assert len(AutoTokenizer.from_pretrained(tmp_path / "tuned").generator) == len(tokenizers[1])


@pytest.fixture
def shaken_run(module, shaken):
    def run(out=None, **settings):
        config = TrainingConfig(
            **{**SETTINGS, "steps": 6, "accumulation": 2, "save_every": 2, **settings}
        )
        options = {"out": out, "progress": False}
        return module.train(shaken(), shaken.retriever, EXAMPLES, config, **options)

    return run


def poison_loss(monkeypatch, module, at):
    """The loss of the forward pass number `at` is NaN."""
    forward, calls = module._Run.forward, []

    def poisoned(self, batch, **options):
        calls.append(1)
        result = forward(self, batch, **options)
        if len(calls) == at:
            result.loss = result.loss * np.nan
        return result

    monkeypatch.setattr(module._Run, "forward", poisoned)


def poison_gradient(monkeypatch, module, steps):
    """One gradient is infinite after these steps."""
    learn = module._Run.learn

    def poisoned(self, *args):
        forward = learn(self, *args)
        if self.report.steps in steps:
            name = next(iter(self.parameters))
            if self.backend == "tf":
                self.gradients[name] *= np.inf
            else:
                self.parameters[name].grad.mul_(np.inf)
        return forward

    monkeypatch.setattr(module._Run, "learn", poisoned)


def test_a_nan_ends_the_run_and_names_the_batch_and_the_last_good_state_goes_on(
    shaken_run, module, shaken, tmp_path, monkeypatch
):
    report = shaken_run()
    final = weights(shaken.model)
    with monkeypatch.context() as patch, pytest.raises(FloatingPointError) as error:
        poison_loss(patch, module, at=2 * 3 + 2)
        shaken_run(tmp_path)
    message = str(error.value)
    assert "the loss became nan at step 4, with questions " in message
    rows = message.split("questions ")[1].split(" of 10 (")[0].split(", ")
    assert [repr(EXAMPLES[int(row) - 1].question) in message for row in rows] == [True, True]
    assert f"as step 3 left it, and so it is kept in {tmp_path / CHECKPOINT}" in message
    assert "lower learning_rate (0.003)" in message and "on_nan 'skip'" in message
    again = shaken_run(tmp_path)
    for name, array in weights(shaken.model).items():
        assert np.array_equal(array, final[name]), name
    assert again.history[-1]["loss"] == report.history[-1]["loss"]


def test_steps_without_numbers_can_be_passed_over_but_not_for_ever(
    shaken_run, module, shaken, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        poison_gradient(patch, module, (0, 1, 4))
        report = shaken_run(tmp_path, on_nan="skip", save_every=1)
    assert (report.steps, report.skipped, report.skipped_in_a_row) == (6, 3, 0)
    assert "3 of 6 steps were passed over" in report.notes()[0]
    assert all(np.isfinite(array).all() for array in weights(shaken.model).values())
    poison_gradient(monkeypatch, module, (1, 2, 3))
    with pytest.raises(
        FloatingPointError, match=r"gradient.*NaN at step 4.*No step.*after 2 in a row"
    ):
        shaken_run(on_nan="skip")


def test_a_loss_scale_passes_over_steps_until_it_is_below_one(shaken_run, module, monkeypatch):
    """As float16 does on a GPU, whose first steps are too large."""
    scales = iter((4.0, 1.0, 0.5))

    def end_step(self):
        self.scaler.state_dict = lambda: {"scale": next(scales)}
        return False

    monkeypatch.setattr(module._Run, "end_step", end_step)
    with pytest.raises(FloatingPointError, match="gradient became infinite or NaN at step 3"):
        shaken_run()


@pytest.mark.parametrize("head", ["token", "sequence"])
def test_training_learns_and_reports_retrieval_and_leaves_random_numbers_alone(
    backend, golden, train, double, head
):
    config = TrainingConfig(steps=60, **{**SETTINGS, "batch_size": 10, "learning_rate": 1e-2})
    golden.set_seed(1)
    before = golden.draw()
    golden.set_seed(1)
    model = double(head)
    report = train(model, double.retriever, EXAMPLES, config, validation=EXAMPLES, progress=False)
    assert golden.draw() == before
    first, last = report.history[0], report.history[-1]
    assert last["loss"] < 0.3 * first["loss"]
    assert report.exact_match == last["exact_match"] >= 0.9
    assert 0 < last["distinct_documents"] <= 1
    assert 0 <= last["posterior_entropy"] <= np.log(2) + 1e-6
    if backend == "torch":
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not model.training


PARTS = {"generator": "generator", "question_encoder": "question_encoder"}
PARTS["context_encoder"] = "ctx_encoder"


@pytest.fixture(scope="module")
def with_context_encoder(golden, backend, tokenizers):
    """A model that encodes the passages which it finds, too, with dropout."""
    fresh = Fresh(golden, tokenizers, 0.1)
    encoder = import_module(f"rag_{backend}").BertEncoder
    fresh.model.set_context_encoder_for_training(encoder(fresh.model.config.question_encoder))
    fresh.retriever.set_ctx_encoder_tokenizer(tokenizers[0])
    fresh.start = weights(fresh.model)
    return fresh


@pytest.mark.parametrize(
    "shares",
    [
        {"generator": "frozen", "question_encoder": "projection"},
        {"generator": "frozen", "question_encoder": "frozen", "context_encoder": "all"},
        {"generator": "all", "question_encoder": "frozen", "context_encoder": "projection"},
    ],
)
def test_of_each_part_what_is_chosen_learns_and_the_rest_is_not_shaken(
    train, with_context_encoder, shares, monkeypatch
):
    model, rag = with_context_encoder(), with_context_encoder.model.rag
    calls = {"_encode": type(rag)._encode, "_run_generator": type(rag)._run_generator}
    shaken, drawn = {}, []

    def encode(self, mode, encoder, *inputs):
        part = {id(rag.question_encoder): "question_encoder", id(rag.ctx_encoder): "ctx_encoder"}
        shaken[part[id(encoder)]] = mode["training"] if mode else encoder.training
        return calls["_encode"](self, mode, encoder, *inputs)

    def generate(self, mode, **inputs):
        shaken["generator"] = mode["training"] if mode else rag.generator.training
        outputs = calls["_run_generator"](self, mode, **inputs)
        drawn.append(outputs.logits)
        return outputs

    monkeypatch.setattr(type(rag), "_encode", encode)
    monkeypatch.setattr(type(rag), "_run_generator", generate)
    config = TrainingConfig(steps=1, **{**SETTINGS, "warmup_steps": 0}, **shares)
    train(model, with_context_encoder.retriever, EXAMPLES, config, progress=False)
    moved = {
        name
        for name, value in weights(model).items()
        if not np.array_equal(value, with_context_encoder.start[name])
    }
    for setting, part in PARTS.items():
        learned = {name for name in moved if f"{part}." in name}
        share = getattr(config, setting)
        assert bool(learned) == (share != "frozen"), setting
        assert share != "projection" or all("encode_proj" in name for name in learned)
        assert shaken[part] == (share == "all")
    # a generator that does not learn keeps no activations (of TensorFlow's a tape sees none)
    assert getattr(drawn[0], "requires_grad", None) in (None, config.generator == "all")


def set_learning(backend, part, learns):
    if backend == "torch":
        part.requires_grad_(learns)
    else:
        part.trainable = learns


def test_what_its_owner_has_frozen_stays_and_learns_again_when_it_is_freed(backend, train, shaken):
    said = []

    def moved(**settings):
        config = TrainingConfig(steps=1, **{**SETTINGS, "warmup_steps": 0, **settings})
        options = {"progress": False, "say": said.append}
        train(shaken(), shaken.retriever, EXAMPLES, config, **options)
        now = weights(shaken.model).items()
        return {name for name, value in now if not np.array_equal(value, shaken.start[name])}

    model = shaken.model
    set_learning(backend, model.generator, False)
    try:
        assert all("question_encoder" in name for name in moved())
        assert "Generator: stays as it is." in said[0]
        set_learning(backend, model.question_encoder, False)
        with pytest.raises(ValueError, match=r"must have weights that learn, got none.*owner"):
            moved()
        set_learning(backend, model.generator, True)
        with pytest.raises(ValueError, match=r"must learn.*Of the model's question_encoder all"):
            moved(retriever_loss="emdr2")
    finally:
        for part in (model.generator, model.question_encoder):
            set_learning(backend, part, True)
    names = moved()
    assert any("question_encoder" in name for name in names)
    assert any("generator" in name for name in names)
    decoder = model.generator.model.decoder
    set_learning(backend, decoder, False)
    try:
        names = moved()
        assert any("generator" in name for name in names)
        assert not any("decoder.layers" in name for name in names)
    finally:
        set_learning(backend, decoder, True)


def test_a_context_encoder_that_is_to_learn_must_be_there(train, shaken):
    config = TrainingConfig(context_encoder="projection", **SETTINGS)
    with pytest.raises(ValueError, match=r"context_encoder must be 'frozen'.*set_context_enc"):
        train(shaken(), shaken.retriever, EXAMPLES, config, progress=False)


def test_accumulated_steps_equal_one_large_batch(train, double):
    final = []
    for split in ({"batch_size": 4}, {"batch_size": 1, "accumulation": 4}):
        config = TrainingConfig(steps=3, **{**SETTINGS, **split})
        train(double(), double.retriever, EXAMPLES, config, progress=False)
        final.append(weights(double.model))
    for name, array in final[0].items():
        np.testing.assert_allclose(array, final[1][name], rtol=1e-6, atol=1e-8, err_msg=name)


def test_the_loss_is_the_answers_nats_a_token_and_the_retrievers_nats_a_question(train, double):
    def line(**settings):
        config = TrainingConfig(steps=1, **{**SETTINGS, "batch_size": 4, **settings})
        report = train(double(), double.retriever, EXAMPLES, config, progress=False)
        return report.history[0]

    answers = line()["loss"]
    for split in ({}, {"batch_size": 1, "accumulation": 4}):
        both = line(retriever_loss="pdist", retriever_loss_weight=0.5, **split)
        assert both["loss"] == pytest.approx(answers + 0.5 * both["retriever_loss"], rel=1e-6)
        alone = line(retriever_loss="pdist", answer_loss_weight=0.0, **split)
        assert alone["loss"] == pytest.approx(both["retriever_loss"], rel=1e-6)
    moved = {
        name
        for name, value in weights(double.model).items()
        if not np.array_equal(value, double.start[name])
    }
    assert moved and all("question_encoder" in name for name in moved)
    given = [Example("king ?", ("war",), ("war", "tree"))]
    config = TrainingConfig(retriever_loss="emdr2", **SETTINGS)
    with pytest.raises(ValueError, match="retriever_loss must be None or"):
        train(double(), double.retriever, given, config, progress=False)


def test_a_given_passage_is_read_and_one_without_the_answer_is_learned_to_say_nothing(
    train, double, tokenizers, monkeypatch, backend
):
    monkeypatch.setattr(double.retriever, "retrieve", None)
    examples = [
        Example(a, (a,), (b, "tree"), answerable=a == b) for a in WORDS[:4] for b in WORDS[:4]
    ]
    settings = {**SETTINGS, "batch_size": 16, "learning_rate": 5e-3}
    config = TrainingConfig(steps=150, question_encoder="frozen", **settings)
    report = train(double(), double.retriever, examples, config, progress=False)
    assert report.history[-1]["loss"] < 0.1
    options = {"padding": True, "return_tensors": {"torch": "pt", "tf": "tf"}[backend]}
    rows = [f"{e.passage[0]} / tree // {e.question}" for e in examples]
    ids = tokenizers[1](rows, **options)
    answers = tokenizers[1]([e.answers[0] for e in examples], **options)["input_ids"]
    logits = double.model.generator(**ids, decoder_input_ids=answers[:, :2]).logits
    says_nothing = to_numpy(logits).argmax(-1) == tokenizers[1].mask_token_id  # (16, 2)
    assert says_nothing.tolist() == [[not e.answerable] * 2 for e in examples]
    with pytest.raises(ValueError, match="examples must either all bring a passage or none"):
        train(double(), double.retriever, [*examples, *EXAMPLES], config, progress=False)


@pytest.mark.parametrize("kinds", [(0, 1), (1, 0)])
def test_questions_to_validate_on_all_bring_a_passage_or_none_does(train, double, kinds):
    two = EXAMPLES[0], Example("king ?", ("war",), ("war", "tree"))
    config = TrainingConfig(steps=1, **SETTINGS)
    options = {"validation": [two[kind] for kind in kinds], "progress": False}
    with pytest.raises(ValueError, match="validation must either all bring a passage or none"):
        train(double(), double.retriever, EXAMPLES, config, **options)


def test_where_passages_are_given_the_generator_learns_alone(train, double):
    examples, said = [Example("king ?", (w,), (w, "tree stone")) for w in WORDS], []

    def run(**settings):
        config = TrainingConfig(steps=1, **{**SETTINGS, "warmup_steps": 0, **settings})
        return train(double(), double.retriever, examples, config, progress=False, say=said.append)

    run()
    assert "Question encoder: stays as it is" in said[0]
    moved = {
        name
        for name, value in weights(double.model).items()
        if not np.array_equal(value, double.start[name])
    }
    assert moved and not any("question_encoder" in name for name in moved)
    with pytest.raises(ValueError, match="generator must be 'all' where examples bring"):
        run(generator="frozen")
    with pytest.raises(ValueError, match="context_encoder must be 'frozen' where examples bring"):
        run(context_encoder="all")


def test_mixed_precision_and_refusals(golden, train, shaken, tmp_path, monkeypatch):
    def run(model=None, out=None, **settings):
        config = TrainingConfig(**{**SETTINGS, "steps": 2, **settings})
        model = model or shaken()
        return train(model, shaken.retriever, EXAMPLES, config, out=out, progress=False)

    report = run(mixed_precision="bf16", question_encoder="frozen")
    assert np.isfinite(report.history[-1]["loss"])
    assert str(shaken.model.dtype) in ("torch.float32", "<dtype: 'float32'>")
    with pytest.raises(ValueError, match=r"fp16.*needs a GPU"):
        run(mixed_precision="fp16")
    half = golden.cast(golden.CLASSES["token"](shaken.model.config), "bfloat16")
    with pytest.raises(ValueError, match=r"must be float32, got (torch\.)?bfloat16"):
        run(half)
    (tmp_path / CHECKPOINT).write_bytes(b"nothing")
    with pytest.raises(OSError, match="no checkpoint of a training run"):
        run(out=tmp_path)
    (tmp_path / CHECKPOINT).unlink()
    monkeypatch.setattr(
        shaken.model, "save_pretrained", lambda folder: (_ for _ in ()).throw(Killed)
    )
    with pytest.raises(Killed):
        run(out=tmp_path, steps=5)
    with pytest.raises(ValueError, match=r"another run \(learning_rate: 0.003 there, 0.1 now"):
        run(out=tmp_path, steps=5, learning_rate=0.1)


def test_a_finished_run_is_found_so_and_no_other_model_or_file_is_overwritten(
    shaken_run, module, shaken, tmp_path, monkeypatch
):
    out = tmp_path / "tuned"
    report = shaken_run(out)
    final = weights(shaken.model)
    saved = (out / "model.safetensors").read_bytes()
    monkeypatch.setattr(module._Run, "step", None)  # whatever is refused takes no step
    again = shaken_run(out)
    assert again == report
    for name, array in weights(shaken.model).items():
        assert np.array_equal(array, final[name]), name
    with pytest.raises(FileExistsError, match="holds a model already"):
        shaken_run(out, steps=7)
    with monkeypatch.context() as patch, pytest.raises(FileExistsError, match="holds a model"):
        patch.setattr(shaken, "start", final)  # to train the tuned model on is another run
        shaken_run(out)
    assert (out / "model.safetensors").read_bytes() == saved
    for name, message in (
        ("mine.txt", "is a file: name a folder"),
        ("kb/manifest.json", "is a knowledge base"),
        ("weights/model.safetensors", r"holds model\.safetensors, which a model would overwrite"),
    ):
        place = tmp_path / name
        place.parent.mkdir(exist_ok=True)
        place.write_text("{}")
        folder = place.parent
        if folder == tmp_path:
            folder = place
        with pytest.raises(FileExistsError, match=message):
            shaken_run(folder)


def test_a_loss_has_its_backends_mathematics(backend):
    head = import_module(f"rag_{backend}").RagTokenForGeneration
    forward = ForwardPass(head, contexts=None, logits=None, target=None)
    assert forward.math is import_module(f"rag_{backend}.marginalize")


def test_the_finished_model_is_that_of_the_best_step_also_after_a_failure(
    module, shaken, tmp_path, monkeypatch
):
    scores = [0.1, 0.6, 0.5, 0.4]
    monkeypatch.setattr(
        module._Run, "validate", lambda self: {"exact_match": scores[self.report.steps - 1]}
    )
    config = TrainingConfig(
        **{**SETTINGS, "save_every": 0},
        steps=4, evaluate_every=1, sample_size=1, best_metric="exact_match",
        question_encoder="frozen", gradient_checkpointing=True,
    )  # fmt: skip
    kept, checkpointing = {}, []

    def watch(progress):
        kept.setdefault(progress.step, weights(progress.model))
        checkpointing.append(progress.model.is_gradient_checkpointing)
        if progress.event == "step" and progress.step == 3 and fails.pop():
            raise KeyError("mine")

    fails = [False, True]
    options = {"out": tmp_path, "progress": False, "callbacks": [watch]}
    with pytest.raises(KeyError):
        module.train(shaken(), shaken.retriever, EXAMPLES, config, **options)
    report = module.train(shaken(), shaken.retriever, EXAMPLES, config, **options)
    assert (report.best_step, report.exact_match, report.steps) == (2, 0.6, 4)
    final = weights(shaken.model)
    assert all(np.array_equal(final[name], array) for name, array in kept[2].items())
    assert any(not np.array_equal(final[name], array) for name, array in kept[3].items())
    assert not list(tmp_path.glob("checkpoint*"))
    assert all(checkpointing[:-1]) and not shaken.model.is_gradient_checkpointing
    with pytest.raises(ValueError, match=r"sample_size|validation must hold questions with best"):
        config = TrainingConfig(**SETTINGS, best_metric="f1")
        module.train(shaken(), shaken.retriever, EXAMPLES, config, progress=False)
