"""Without padding a generator, or an encoder of documents, gives what it gives with it.

Losses, states of real tokens, every gradient.
"""

import numpy as np
import pytest
import tensorflow as tf

from rag_core.config.rag import BartConfig, BertConfig, RagConfig, T5Config
from rag_core.modeling import RagModelBase
from rag_tf import RagModel, packing
from rag_tf.bart import BartForConditionalGeneration
from rag_tf.bert import BertEncoder
from rag_tf.t5 import T5ForConditionalGeneration

BART = BartConfig(
    vocab_size=40, d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=64,
)  # fmt: skip
T5 = T5Config(
    vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=1, num_heads=2
)
LENGTHS = np.array([3, 0, 40, 7, 11, 5, 9, 21])  # a row without a single token, too


@pytest.fixture(scope="module", params=["bart", "t5"])
def case(request):
    tf.random.set_seed(2)
    rng = np.random.default_rng(3)
    mask = np.arange(48) < LENGTHS[:, None]
    mask[4, 2], mask[2, 5:20] = False, False  # holes
    mask[5] = np.roll(mask[5], 30)  # padding on both sides
    ids = tf.constant(np.where(mask, rng.integers(4, 40, mask.shape), 1))
    targets = tf.constant(rng.integers(4, 40, (len(ids), 5)))
    weights = tf.constant(rng.standard_normal((8, 5, 40)))
    kind, config = {
        "bart": (BartForConditionalGeneration, BART),
        "t5": (T5ForConditionalGeneration, T5),
    }[request.param]
    return kind(config).to("float64"), ids, tf.constant(mask), targets, weights


def run(case, training=False):
    model, ids, mask, targets, weights = case
    with tf.GradientTape() as tape:
        out = model(ids, mask, targets, use_cache=False, training=training)
        states = out.encoder_last_hidden_state
        real = tf.where(mask[..., None], states, tf.zeros((), states.dtype))
        total = tf.reduce_sum(out.logits * weights) + tf.reduce_sum(real * real)
    gradients = tape.gradient(total, model.trainable_variables)
    return out.logits, states, real, [tf.convert_to_tensor(each) for each in gradients]


def test_numbers_and_gradients_do_not_change(case, monkeypatch):
    model, ids, mask, *_ = case
    assert (
        packing.worth_packing(mask)
        and not packing.worth_packing(tf.ones_like(mask))
        and not packing.worth_packing(None)
    )
    logits, states, real, gradients = run(case)
    assert states.shape == (8, 48, 16) and np.array_equal(states, real)  # zeros for padding
    np.testing.assert_allclose(model.encode(ids, mask), states, rtol=0, atol=1e-12)
    monkeypatch.setattr("rag_tf.seq2seq.worth_packing", lambda mask: False)
    others = run(case)
    assert not np.array_equal(others[1], others[2])
    np.testing.assert_allclose(logits, others[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(real, others[2], rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients, others[3], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


def test_what_is_handed_back_keeps_its_columns(case):
    model, ids, mask, targets, _ = case
    cached = model(ids, mask, targets, use_cache=True)
    assert cached.past_key_values[0][2].shape[2] == 48
    assert model(ids, mask, targets, output_attentions=True).cross_attentions[0].shape[-1] == 48
    np.testing.assert_allclose(
        model(ids, mask, targets, use_cache=False).logits, cached.logits, rtol=0, atol=1e-12
    )
    assert np.isfinite(run(case, training=True)[0]).all()


def test_graphs_of_the_callers_are_never_packed(case):
    model, ids, mask, targets, _ = case
    traced = tf.function(lambda ids, mask: model(ids, mask, targets, use_cache=False).logits)
    np.testing.assert_allclose(traced(ids, mask), run(case)[0], rtol=0, atol=1e-12)


def test_documents_of_like_length_together_have_the_vectors_of_all_in_one(monkeypatch):
    """The live encoder's vectors and gradients, wherever a document stands."""
    tf.random.set_seed(5)
    rng = np.random.default_rng(6)
    lengths = np.array([70, 3, 33, 96, 32, 5])
    mask = (np.arange(96) < lengths[:, None]).astype(np.int64)
    mask[0, 40] = 0  # a hole
    tokens = {
        "tokenized_doc_ids": rng.integers(4, 40, mask.shape) * mask,
        "tokenized_doc_attention_mask": mask,
        "tokenized_doc_token_type_ids": rng.integers(0, 2, mask.shape) * mask,
    }
    bert = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
    )
    encoder = BertEncoder(bert)
    model = RagModel(RagConfig(question_encoder=bert.to_dict(), generator=BART.to_dict()))
    model.set_context_encoder_for_training(encoder)
    model.to("float64")
    shapes = []
    run_encoder = RagModel._encode

    def noted(self, mode, part, ids, *inputs):
        shapes.append(tuple(ids.shape))
        return run_encoder(self, mode, part, ids, *inputs)

    monkeypatch.setattr(RagModel, "_encode", noted)
    found = []
    for vectors_of in (RagModel.document_vectors, RagModelBase.document_vectors):
        with tf.GradientTape() as tape:
            vectors = vectors_of(model, tokens, training=False)
            total = tf.reduce_sum(vectors**2 * np.arange(1.0, 7.0)[:, None])
        gradients = tape.gradient(total, encoder.trainable_variables)
        found.append([vectors, *map(tf.convert_to_tensor, gradients)])
    assert shapes == [(3, 32), (1, 33), (2, 96), (6, 96)]
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)
