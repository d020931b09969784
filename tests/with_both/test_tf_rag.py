"""rag_tf's RagModel and heads beside rag_torch's with the same weights.

Outputs, losses, gradients, errors, graphs.
"""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import rag_torch
from rag_core.config.rag import BartConfig, DPRConfig, PretrainedConfig, RagConfig
from rag_tf import marginalize as marginal
from rag_tf.bert import DPRContextEncoder
from rag_tf.foreign import ForeignEncoder, ForeignGenerator
from tests.support import rag_models
from tests.support.rag_models import BART, BERT, B, D, N, Retriever, S, V
from tests.support.rag_models_tf import (
    LABELS,
    MASK,
    QUESTIONS,
    TWINS,
    assert_same,
    contexts,
    error_of,
    pair,
    to_torch,
    traces,
    twin,
)

import tensorflow as tf  # isort: skip  (torch first where both are loaded)

TOKEN, SEQUENCE, MODEL = "RagTokenForGeneration", "RagSequenceForGeneration", "RagModel"


@pytest.mark.parametrize("kind, generator", [(MODEL, "bart"), (TOKEN, "t5"), (SEQUENCE, "bart")])
def test_every_field_of_the_output(kind, generator):
    theirs, ours = pair(kind, generator)
    inputs = {"input_ids": QUESTIONS, "attention_mask": MASK, "decoder_input_ids": LABELS}
    switches = {"output_retrieved": True, "output_attentions": True, "output_hidden_states": True}
    switches |= {"do_marginalize": True} if kind == TOKEN else {}
    with torch.no_grad():
        want = theirs(**to_torch(inputs), **switches)
    got = ours(**inputs, **switches)
    assert type(got).__name__ == type(want).__name__
    assert set(want.keys()) == set(vars(want)) - {"loss"}
    assert_same(got, want)
    assert got.retrieved_doc_ids.dtype == got.context_input_ids.dtype == tf.int64
    plain = ours(**inputs, return_dict=False)
    assert isinstance(plain, tuple)
    assert len(plain) == len(theirs(**to_torch(inputs), return_dict=False))


def test_losses_of_both_heads():
    heads = {TOKEN: pair(TOKEN), SEQUENCE: pair(SEQUENCE)}
    draw = np.random.default_rng(3)
    yes_no = (False, True)
    for n_docs, length, epsilon, reduce, bos in itertools.product(
        (1, 3, 5), (1, 2, 5), (0.0, 0.1), yes_no, yes_no
    ):
        logits, scores = (
            draw.normal(size=(B * n_docs, length, V)) * 3,
            draw.normal(size=(B, n_docs)) * 2,
        )
        scores[0, 1:2] = -np.inf
        labels = draw.integers(2, V, (B, length))
        labels[:, 1:2], labels[1, -1:] = 0, -100
        for kind, (theirs, ours) in heads.items():
            options = {"exclude_bos_score": bos} if kind == SEQUENCE else {}
            options |= {"reduce_loss": reduce, "epsilon": epsilon, "n_docs": n_docs}
            given = {"seq_logits": logits, "doc_scores": scores, "target": labels}
            assert_same(
                ours.get_nll(**given, **options),
                theirs.get_nll(**to_torch(given), **options),
                str(options),
            )
    assert traces(ours) < 40  # lengths and numbers of documents share graphs, switches do not


@pytest.mark.parametrize("kind", [TOKEN, SEQUENCE])
def test_loss_of_a_call_and_switches_of_the_config(kind):
    theirs, ours = pair(kind, label_smoothing=0.1, reduce_loss=True)
    labels = np.where(LABELS == 1, -100, LABELS)
    for given in (contexts(), {**contexts(), "context_attention_mask": np.ones((B * N, S), bool)}):
        given["doc_scores"][0, 2] = -np.inf
        with torch.no_grad():
            want = theirs(**to_torch(given), labels=torch.tensor(labels))
        got = ours(**given, labels=labels)
        assert got.past_key_values is None and got.loss.shape == ()
        assert_same(got, want)
    moved = ours.shift_tokens_right(LABELS, 2) if kind == TOKEN else None
    assert moved is None or moved[0].numpy().tolist() == [2, 4, 9, 12, 7]


@pytest.mark.parametrize("kind", [TOKEN, SEQUENCE])
def test_gradients_of_every_weight_with_missing_documents_and_a_live_encoder(kind):
    documents = np.random.default_rng(2).integers(1, 19, (B * N, 5))
    tokenized = {
        "tokenized_doc_ids": documents,
        "tokenized_doc_attention_mask": np.ones_like(documents),
    }
    mask = np.array([[True, True, False], [True, False, False]])
    theirs = rag_models.build(
        getattr(rag_models, kind), retriever=Retriever(**to_torch({**tokenized, "doc_mask": mask}))
    )
    encoder = rag_torch.DPRContextEncoder(DPRConfig(**BERT)).double().eval()
    ours = twin(theirs)
    live = DPRContextEncoder(DPRConfig(**BERT)).to("float64")
    live.load_state_dict({name: each.numpy() for name, each in encoder.state_dict().items()})
    theirs.set_context_encoder_for_training(encoder)
    ours.set_context_encoder_for_training(live)
    want = theirs(torch.tensor(QUESTIONS), torch.tensor(MASK), labels=torch.tensor(LABELS))
    want.loss.sum().backward()
    with tf.GradientTape() as tape:
        got = ours(QUESTIONS, MASK, labels=LABELS)
        loss = tf.reduce_sum(got.loss)
    assert_same(got, want)
    assert np.array_equal(np.isneginf(got.doc_scores), ~mask)
    variables = dict(ours.named_parameters())
    found = dict(zip(variables, tape.gradient(loss, list(variables.values())), strict=True))
    wanted = {name: each.grad for name, each in theirs.named_parameters()}
    for name, gradient in wanted.items():
        ours_too = (
            np.zeros(gradient.shape) if found[name] is None else tf.convert_to_tensor(found[name])
        )
        assert_same(ours_too, gradient, name)
    assert (
        np.abs(
            found["rag.ctx_encoder.ctx_encoder.bert_model.embeddings.word_embeddings.weight"].values
        ).max()
        > 0
    )


def test_extreme_scores_have_finite_gradients():
    logits, scores = (
        tf.Variable(np.zeros((2, 2, 3, 4))),
        tf.Variable([[-np.inf, -np.inf], [1e4, -np.inf]]),
    )
    with tf.GradientTape() as tape:
        loss = marginal.token_nll(logits, scores, tf.constant([[1, 2, 3], [0, 0, 0]], tf.int64), 0)
    assert np.isposinf(loss[0]) and loss[1] == 0
    assert all(
        np.isfinite(tf.convert_to_tensor(each)).all()
        for each in tape.gradient(loss, [logits, scores])
    )
    for dtype in (tf.float16, tf.bfloat16):
        question, docs = np.full((1, 768), 0.3125), np.full((1, 2, 768), 0.3125)
        docs[0, 1, 0] += 0.25
        question, docs = tf.cast(question, dtype), tf.cast(docs, dtype)
        assert marginal.doc_scores(question, docs).numpy().tolist() == [[75.0, 75.078125]]


BAD = [
    {"doc_scores": np.zeros((B, 2 * N))},
    {"doc_scores": np.full((B, N), -np.inf)},
    {"doc_scores": np.full((B, N), np.nan)},
    {"context_input_ids": np.ones((4, S), np.int64)},
    {"context_input_ids": np.ones((B * N, 0), np.int64)},
    {"context_input_ids": np.full((B * N, S), V)},
    {"context_input_ids": np.ones((B * N, S), np.float32)},
    {"context_attention_mask": np.ones((B * N, 3))},
    {"context_attention_mask": None},
    {"context_input_ids": None, "context_attention_mask": None, "doc_scores": None, "input_ids": None},
    {"context_input_ids": None, "context_attention_mask": None, "doc_scores": None, "attention_mask": np.ones((2, 3))},
    {"context_input_ids": None, "context_attention_mask": None, "doc_scores": None, "input_ids": QUESTIONS[:, :0]},
    {"context_input_ids": None, "context_attention_mask": None, "doc_scores": None, "input_ids": QUESTIONS + 90},
    {"labels": LABELS[:1]},
    {"labels": LABELS - 50},
    {"labels": LABELS.astype(np.float64)},
    {"labels": "answer"},
    {"decoder_input_ids": LABELS[:, :2]},
    {"n_docs": 2},
    {"n_docs": 0},
    {"encoder_outputs": (np.zeros((5, S, 12)),)},
    {"encoder_outputs": (np.zeros((B * N, S + 1, 12)),)},
    {"encoder_outputs": (np.zeros((B * N, S, 12)),), "doc_scores": None},
    {"question_text": ["a", "b"]},
    {"surprise": 1},
]  # fmt: skip


@pytest.mark.parametrize("kind", [TOKEN, SEQUENCE])
def test_bad_input_is_refused_in_the_same_words(kind):
    theirs, ours = pair(kind)
    for change in BAD:
        given = {
            "input_ids": QUESTIONS,
            "attention_mask": MASK,
            **contexts(),
            "labels": LABELS,
            **change,
        }
        want = error_of(lambda given=given: theirs(**to_torch(given)))
        assert want is not None, change
        assert error_of(lambda given=given: ours(**given)) == want, change
    assert error_of(lambda: ours.set_retriever("nq")) == error_of(
        lambda: theirs.set_retriever("nq")
    )
    empty = error_of(lambda: TWINS[kind]())
    assert empty == error_of(lambda: rag_torch.RagTokenForGeneration())


def test_lengths_and_batches_share_graphs():
    _, ours = pair(TOKEN)
    ours(QUESTIONS, MASK, labels=LABELS)
    ours(**contexts(), labels=LABELS)
    before = traces(ours)
    assert before > 0
    for rows, length, width, n_docs in ((1, 3, 9, 1), (5, 7, 4, 2), (2, 2, 13, 5), (3, 1, 6, 3)):
        draw = np.random.default_rng(rows)
        ids = draw.integers(3, V, (rows * n_docs, width))
        labels = draw.integers(3, V, (rows, length)).astype(np.int32 if rows == 5 else np.int64)
        scores = draw.normal(size=(rows, n_docs))
        out = ours(context_input_ids=ids, context_attention_mask=np.ones_like(ids), doc_scores=scores, labels=labels,
                   n_docs=n_docs)  # fmt: skip
        assert out.loss.shape == (rows,)
        questions = draw.integers(1, 19, (B, width))
        ours(questions, np.ones_like(questions), labels=LABELS[:, : length + 1])
    assert traces(ours) == before


def test_inputs_in_every_shape_that_users_have():
    _, ours = pair(TOKEN)
    want = ours(QUESTIONS, MASK, labels=LABELS).loss
    named = {"input_ids": QUESTIONS, "attention_mask": MASK, "token_type_ids": np.zeros_like(MASK)}
    for args, kwargs in (
        ((tf.constant(QUESTIONS, tf.int32), tf.constant(MASK, tf.int32)), {}),
        ((QUESTIONS.tolist(), MASK.tolist()), {}),
        (([QUESTIONS, MASK],), {}),
        (((tf.constant(QUESTIONS), MASK.astype(bool)),), {}),
        ((named,), {}),
        ((), named),
        ((), {"inputs": named}),
        ((), {"inputs": QUESTIONS, "attention_mask": MASK}),
        (({**named, "labels": LABELS.astype(np.int32)},), {"labels": None}),
    ):
        labels = (
            {} if args and isinstance(args[0], dict) and "labels" in args[0] else {"labels": LABELS}
        )
        assert_same(ours(*args, **{**kwargs, **labels}).loss, want)
    given = contexts()
    want = ours(**given, labels=LABELS).loss
    assert_same(ours(inputs=None, **{k: v.tolist() for k, v in given.items()}, labels=LABELS.tolist()).loss, want,
                tolerance=1e-6)  # fmt: skip
    assert_same(ours.call(**given, labels=LABELS).loss, want)
    assert_same(ours.forward(**given, labels=LABELS).loss, want)
    with pytest.raises(TypeError, match="given beside a dictionary"):
        ours(named, input_ids=QUESTIONS)
    with pytest.raises(TypeError, match="one argument"):
        ours(QUESTIONS, inputs=QUESTIONS)


def test_within_the_callers_own_graph():
    _, ours = pair(TOKEN)
    given = {name: tf.constant(value) for name, value in contexts().items()}
    own = tf.function(lambda **kwargs: ours(**kwargs), autograph=False)
    assert_same(own(**given, labels=tf.constant(LABELS)), ours(**given, labels=LABELS))
    searching = tf.function(
        lambda ids, mask, labels: ours(ids, mask, labels=labels, output_retrieved=True),
        autograph=False,
    )
    got = searching(tf.constant(QUESTIONS), tf.constant(MASK), tf.constant(LABELS))
    assert_same(got, ours(QUESTIONS, MASK, labels=LABELS, output_retrieved=True))
    traced = searching.get_concrete_function(
        *map(tf.constant, (QUESTIONS, MASK, LABELS))
    ).structured_outputs
    assert traced.doc_scores.shape == (B, N)
    with pytest.raises(ValueError, match=r"rows \(doc_scores are \(2, 3\)\)"):
        own(**{**given, "context_input_ids": tf.ones((4, S), tf.int64)}, labels=tf.constant(LABELS))


def test_special_tokens_that_the_table_lacks_are_read_as_unknown(monkeypatch, caplog):
    """A passage may spell "<mask>" where the model was saved without it.

    That is no reason to stop.
    """
    spelled = contexts()["context_input_ids"].copy()
    spelled[0, 1] = V + 1
    plain = np.where(spelled > V, 3, spelled)
    names = {
        "unk_token_id": 3,
        "unk_token": "<unk>",
        "convert_ids_to_tokens": lambda ids: [f"<{i}>" for i in ids],
    }
    outputs = []
    for model in pair(TOKEN):
        for ids, special in ((plain, []), (spelled, [V + 1])):
            kind = torch.from_numpy if isinstance(model, torch.nn.Module) else tf.constant
            retriever = Retriever(context_input_ids=kind(ids))
            retriever.generator_tokenizer = SimpleNamespace(**names, all_special_ids=special)
            monkeypatch.setattr(model.rag, "retriever", retriever)
            given = {
                name: kind(value)
                for name, value in (("input_ids", QUESTIONS), ("attention_mask", MASK))
            }
            outputs.append(model(**given, labels=kind(LABELS), output_retrieved=True))
            assert np.asarray(outputs[-1].context_input_ids).tolist() == plain.tolist()
            assert_same(outputs[-1], outputs[0])
        retriever.generator_tokenizer.all_special_ids = []
        with pytest.raises(
            ValueError,
            match=r"must lie in the model's vocabulary.* load the tokenizer with split_special",
        ):
            model(**given, labels=kind(LABELS))
    assert caplog.text.count(f"lacks, ['<{V + 1}>']: they are read as '<unk>'") == 1


def test_continuing_from_an_earlier_call():
    _, ours = pair(TOKEN)
    given = contexts()
    whole = ours(**given, decoder_input_ids=LABELS, do_marginalize=True).logits
    first = ours(**given, decoder_input_ids=LABELS[:, :2], do_marginalize=True)
    rest = ours(
        context_attention_mask=given["context_attention_mask"],
        doc_scores=given["doc_scores"],
        encoder_outputs=(first.generator_enc_last_hidden_state,),
        past_key_values=first.past_key_values,
        decoder_input_ids=LABELS[:, 2:],
        do_marginalize=True,
    )
    assert_same(np.concatenate([first.logits, rest.logits], 1), whole)
    trimmed = ours._contexts(
        **{**given, "context_attention_mask": (np.arange(S) < 4) + 0 * given["context_input_ids"]}
    )
    assert trimmed.trimmed().context_input_ids.shape == (B * N, 4)


def test_dropout_acts_in_training_only():
    generator = BartConfig(**{**BART, "dropout": 0.5})
    config = RagConfig.from_question_encoder_generator_configs(
        DPRConfig(**BERT), generator, n_docs=N
    )
    model = TWINS[TOKEN](config, retriever=Retriever())
    call = {"input_ids": QUESTIONS, "attention_mask": MASK, "labels": LABELS}
    assert_same(model(**call).loss, model(**call).loss)
    assert np.abs(model(**call, training=True).loss - model(**call, training=True).loss).max() > 0
    model.train()
    assert np.abs(model(**call).loss - model(**call).loss).max() > 0
    assert_same(model(**call, training=False).loss, model.eval()(**call).loss)


def test_checkpointing_reaches_every_part():
    model = TWINS[TOKEN](rag_models.config())
    before = model.weights_version()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert [part.is_gradient_checkpointing for part in model._networks()] == [True, True]
    # graphs are made anew
    assert model.is_gradient_checkpointing and model.weights_version() != before
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs=None, every_n_layers=1, offload=False
    )
    assert model.is_gradient_checkpointing
    with pytest.raises(TypeError, match="nothing but use_reentrant, got debug"):
        model.gradient_checkpointing_enable({"debug": True})
    with pytest.raises(ValueError, match="every_n_layers must be 1, got 2"):
        model.activation_checkpointing_enable(every_n_layers=2)


class States(tf.Module):
    """A user's encoder: plain states (B, S, d), no config."""

    def __init__(self):
        super().__init__()
        self.table = tf.Variable(np.random.default_rng(0).normal(size=(19, D)).astype(np.float32))

    def __call__(self, input_ids):
        return tf.gather(self.table, input_ids)


def test_modules_of_ones_own():
    import keras

    class Foreign(keras.Model):
        """A generator of another library: only call, and weights of its own kind."""

        def __init__(self, inner):
            super().__init__(autocast=False)
            self.settings, self.inner = inner.config, [inner]
            self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

        @property
        def config(self):
            return self.settings

        def call(
            self, input_ids=None, attention_mask=None, decoder_input_ids=None, encoder_outputs=None
        ):
            out = self.inner[0](
                input_ids, attention_mask, decoder_input_ids, encoder_outputs=encoder_outputs
            )
            return PretrainedOutput(out.logits * self.scale, out.encoder_last_hidden_state)

    class PretrainedOutput(tuple):
        def __new__(cls, logits, encoder_last_hidden_state):
            self = super().__new__(cls, (logits, encoder_last_hidden_state))
            self.logits, self.encoder_last_hidden_state = logits, encoder_last_hidden_state
            return self

    inner = TWINS[TOKEN](rag_models.config()).generator
    own, foreign = (
        TWINS[TOKEN](
            question_encoder=ForeignEncoder(States(), "mean"),
            generator=each,
            n_docs=N,
            retriever=Retriever(),
        )
        for each in (inner, Foreign(inner))
    )
    assert own.generator is inner
    assert isinstance(foreign.generator, ForeignGenerator)
    assert isinstance(foreign.generator.config, PretrainedConfig)
    names = [name for name, _ in foreign.named_parameters()]
    assert any(name.startswith("rag.question_encoder.module.") for name in names)
    assert any("scale" in name for name in names)
    given = {
        name: value.astype(np.float32) if name == "doc_scores" else value
        for name, value in contexts().items()
    }
    with tf.GradientTape() as tape:
        loss = foreign(QUESTIONS, MASK, labels=LABELS).loss
    assert_same(loss, own(QUESTIONS, MASK, labels=LABELS).loss, tolerance=1e-6)
    assert all(each is not None for each in tape.gradient(loss, foreign.trainable_variables))
    assert_same(
        foreign(**given, labels=LABELS).loss, own(**given, labels=LABELS).loss, tolerance=1e-6
    )
    ids, mask = (
        tf.constant(given[name]) for name in ("context_input_ids", "context_attention_mask")
    )
    hidden = foreign.generator.encode(ids, mask)
    states = [each.generator.start(hidden, mask, 2, 6) for each in (own, foreign)]
    tokens = tf.constant(np.random.default_rng(1).integers(3, V, (B * N, 2, 3)))
    source = tf.constant([[1, 0]] * (B * N))
    for step in range(3):
        one, other = (
            each.generator.decode(tokens[:, :, step : step + 1], state)
            for each, state in zip((own, foreign), states, strict=True)
        )
        assert_same(other, one, tolerance=1e-5)
        for state in states:
            state.reorder(source)
    unpooled = TWINS[TOKEN](
        question_encoder=States(), generator=inner, retriever=Retriever(), n_docs=N
    )
    with pytest.raises(ValueError, match=r"ForeignEncoder\(module, pooling='mean'\)"):
        unpooled(QUESTIONS, labels=LABELS)
