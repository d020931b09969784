"""Keras' `fit` with losses for the retriever, and with passages embedded anew: a step is the
trainer's, whatever the loss.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import rag_tf
from rag_core.knowledge.base import KnowledgeBase
from rag_core.retrieval.retriever import RagRetriever
from rag_core.training import reindexing
from rag_core.training.config import TrainingConfig
from rag_core.training.parameters import learning_parameters
from rag_tf.bert import BertEncoder
from rag_tf.rag import RagTokenForGeneration
from rag_tf.training import _Run
from tests.support.reindexing import Inline
from tests.support.training_models import (
    EXAMPLES,
    WORDS,
    live_files,
    small_config,
    small_retriever,
    small_tokenizers,
)

CONTRASTIVE = {"retriever_loss": "contrastive", "retriever_loss_weight": 0.7}
LOSSES = {
    "none": {},
    "emdr2": {"retriever_loss": "emdr2", "retriever_loss_weight": 0.5},
    "pdist_alone": {
        "retriever_loss": "pdist",
        "answer_loss_weight": 0.0,
        "distillation_temperature": 2.0,
    },
    "contrastive": CONTRASTIVE,
    "contrastive_alone": {**CONTRASTIVE, "answer_loss_weight": 0.0},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """In float64, with an encoder of passages."""
    tf.random.set_seed(3)
    tokenizers = small_tokenizers(tmp_path_factory.mktemp("tokenizers"))
    config = small_config(tokenizers, 0.0)
    retriever = small_retriever(config, tokenizers)
    retriever.set_ctx_encoder_tokenizer(tokenizers[0])
    model = RagTokenForGeneration(config, retriever=retriever)
    model.set_context_encoder_for_training(BertEncoder(config.question_encoder))
    return model.to("float64")


def data_of(run, batch):
    """What Keras is given for a batch of the trainer."""
    data = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "labels": batch.labels,
    }
    if run.contrast is None:
        return data
    compared = run.contrast.lessons.compare(batch.examples)
    titles, texts = run.contrast.lessons.texts(
        [compared.passages[row] for row in compared.positive]
    )
    tokens = run.retriever.tokenized_docs(titles, texts, "np")
    return data | {
        "passage_input_ids": tokens["tokenized_doc_ids"][:, None],
        "passage_attention_mask": tokens["tokenized_doc_attention_mask"][:, None],
    }


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_of_fit_is_the_trainers(model, name):
    settings = LOSSES[name]
    config = TrainingConfig(batch_size=4, context_encoder="all", on_collapse="warn", **settings)
    run = _Run(model, model.retriever, EXAMPLES, config, [], None)
    run.parameters = learning_parameters(run.named_parameters(), config)
    if config.retriever_loss == "contrastive":
        run._compare()
    batch = run.batch(run.examples[:4])
    batch.tokens_a_question = batch.tokens / 4
    run.window.tokens = batch.tokens
    with run.prepared():
        run.start_step()
        forward = run.learn(batch, batch.tokens, (0, 0, 0))
        run.window.join([run._measure(forward, logs=False)])
    wanted = run.window.line()
    before = {name: variable.numpy() for name, variable in run.parameters.items()}

    model.compile(keras.optimizers.SGD(1.0), **settings)
    history = model.fit(data_of(run, batch), batch_size=4, shuffle=False, verbose=0).history

    assert history["loss"] == pytest.approx([wanted["loss"]], rel=1e-6)
    for key in ("retriever_loss", "in_batch_accuracy"):
        assert (key in history) == (key in wanted)
        if key in wanted:
            assert history[key] == pytest.approx([wanted[key]], rel=1e-6)
    for name, old in before.items():
        moved = old - run.parameters[name].numpy()
        np.testing.assert_allclose(moved, run.gradients.get(name, 0.0), atol=1e-10, err_msg=name)
        run.parameters[name].assign(old)


def test_what_learns_is_said_by_trainable_and_rows_weigh(model):
    passages = np.array([[[2, 5, 3]], [[2, 6, 3]], [[2, 7, 3]]])
    questions = np.array([[2, 5, 3], [2, 6, 3], [2, 7, 3]])
    data = {"input_ids": questions, "passage_input_ids": passages}
    parts = {"rag.question_encoder": True, "rag.ctx_encoder": False}
    model.rag.ctx_encoder.trainable = False
    model.compile(keras.optimizers.SGD(0.1), answer_loss_weight=0, **CONTRASTIVE)
    before = {name: variable.numpy() for name, variable in model._named()}
    model.fit(data, batch_size=3, verbose=0)
    model.rag.ctx_encoder.trainable = True
    for prefix, learns in parts.items():
        moved = {
            name
            for name, variable in model._named()
            if name.startswith(prefix) and (variable.numpy() != before[name]).any()
        }
        assert bool(moved) == learns, prefix
    rows = [
        model.evaluate(
            data, questions, sample_weight=weight, batch_size=3, verbose=0, return_dict=True
        )
        for weight in (np.eye(3)[0], np.ones(3))
    ]
    losses = [row["retriever_loss"] for row in rows]
    assert losses[0] != pytest.approx(losses[1]) and min(losses) > 0
    assert rows[1]["loss"] == pytest.approx(0.7 * losses[1], rel=1e-5)


def test_what_cannot_be_is_refused(model):
    with pytest.raises(ValueError, match="retriever_loss must be one of"):
        model.compile("sgd", retriever_loss="mse")
    with pytest.raises(ValueError, match="answer_loss_weight must be above 0"):
        model.compile("sgd", answer_loss_weight=0)
    model.compile("sgd", **CONTRASTIVE)
    questions = np.array([[2, 5, 3], [2, 6, 3]])
    with pytest.raises(ValueError, match="passage_input_ids must be given"):
        model.fit({"input_ids": questions, "labels": questions}, verbose=0)
    encoder, model.rag.ctx_encoder = model.rag.ctx_encoder, None
    model.compile("sgd", answer_loss_weight=0, **CONTRASTIVE)
    with pytest.raises(ValueError, match=r"set_context_encoder_for_training\(encoder\)"):
        model.evaluate(
            {"input_ids": questions, "labels": questions, "passage_input_ids": questions[:, None]},
            verbose=0,
        )
    model.rag.ctx_encoder = encoder


def test_passages_are_embedded_anew_while_fit_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(reindexing, "start_process", Inline)
    _, folder, kb = live_files(tmp_path, rag_tf, small_tokenizers(tmp_path))
    model = RagTokenForGeneration.from_pretrained(folder)
    before = KnowledgeBase.open(kb)
    model.set_retriever(
        RagRetriever.from_pretrained(folder, config=model.config, index=before.index())
    )
    callback = rag_tf.ReindexCallback(kb, tmp_path / "out", every=2)
    made_at = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: made_at.append(callback._live.reindexing.made_at)
    )
    tokenizer = model.retriever.tokenizer
    data = tokenizer(
        [example.question for example in EXAMPLES],
        text_target=[example.answers[0] for example in EXAMPLES],
        padding=True,
        return_tensors="np",
    )
    model.compile(keras.optimizers.SGD(1.0))
    model.fit(dict(data), batch_size=2, callbacks=[callback, watch], verbose=0)
    assert made_at == [0, 0, 0, 2, 2]

    def vectors(base):
        return np.asarray(base.dataset()["embeddings"], np.float32)

    trained = callback.encoder.embed(WORDS, [f"{word} {word}" for word in WORDS])
    assert callback.kb.path == tmp_path / "out" / "knowledge_base"
    np.testing.assert_allclose(vectors(callback.kb), trained, atol=1e-6)
    assert np.abs(vectors(before) - trained).max() > 1e-3
    ids, found = model.retriever.index.get_top_docs(trained[:1], 1)
    np.testing.assert_allclose(found[0, 0], trained[ids[0, 0]], atol=1e-6)
    assert not model.rag.context_encoder_training
    assert rag_tf.load_encoder(tmp_path / "out" / "context_encoder") is not None
