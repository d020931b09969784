"""Where TensorFlow's RAG in transformers 4.37.2 was another function than PyTorch's.

Here it is the same (rows T).
"""

import numpy as np
import pytest
import tensorflow as tf

from conformance.cases import contexts, questions, targets
from rag_core.config.rag import BartConfig, DPRConfig
from rag_core.tokenization.batch import BatchEncoding
from rag_tf import BartForConditionalGeneration, DPRQuestionEncoder, RagTokenForGeneration
from tests.support.golden_models_tf import build, context_encoder, tensors, toy_retriever

SEED, N = 1, 3


def given(model_name="bart", dtype="float64"):
    return tensors(contexts(model_name, "loss", 2, N), dtype)


def labels(kind="plain"):
    return tf.constant(targets("bart", kind, 2))


def test_t2_the_loss_is_of_the_decoders_input():
    model = build("bart", "sequence", SEED, "float64", N)
    fed, others = labels("plain"), labels("padded")
    both = model(**given(), decoder_input_ids=fed, labels=others).loss
    tf.debugging.assert_equal(both, model(**given(), labels=fed).loss)
    assert not np.allclose(both, model(**given(), labels=others).loss)


@pytest.mark.parametrize("head", ["token", "sequence"])
def test_t3_losses_are_smoothed_and_summed_where_asked_only(head):
    plain, smooth = (
        build("bart", head, SEED, "float64", N, label_smoothing=eps) for eps in (0.0, 0.1)
    )
    each = plain(**given(), labels=labels()).loss
    assert each.shape == (2,)
    tf.debugging.assert_near(
        plain(**given(), labels=labels(), reduce_loss=True).loss, tf.reduce_sum(each)
    )
    assert not np.allclose(each, smooth(**given(), labels=labels()).loss)


def test_t4_switches_of_the_config_count_and_false_overrides_them():
    switches = {"output_retrieved": True, "do_marginalize": True, "reduce_loss": True}
    model = build("bart", "token", SEED, "float64", N, **switches)
    model.set_retriever(toy_retriever("bart", "float64"))
    ids, mask = map(tf.constant, questions("bart", "forward", 2))
    on = model(ids, attention_mask=mask, labels=labels())
    assert on.retrieved_doc_ids.shape == (2, N) and on.loss.shape == () and on.logits.shape[0] == 2
    off = model(ids, attention_mask=mask, labels=labels(), **dict.fromkeys(switches, False))
    assert off.retrieved_doc_ids is None and off.loss.shape == (2,) and off.logits.shape[0] == 2 * N
    model.set_retriever(None)


def test_t6_options_of_the_call_count():
    model = build("t5", "token", SEED, "float32", N)
    asked = {**given("t5", "float32"), "num_beams": 4, "max_length": 16, "length_penalty": -9.0}
    usual = model.generate(**asked)
    assert model.generate(**asked, num_return_sequences=3).shape[0] == 6
    for option in (
        {"length_penalty": 9.0},
        {"prefix_allowed_tokens_fn": lambda batch, ids: [5, 6, 7]},
    ):
        changed = model.generate(**{**asked, **option})
        assert changed.shape != usual.shape or not np.array_equal(changed, usual), option


def test_t8_cross_attentions_argument_order_and_a_live_document_encoder():
    model = build("bart", "model", SEED, "float64", N)
    model.set_retriever(toy_retriever("bart", "float64"))
    ids, mask = map(tf.constant, questions("bart", "forward", 2))
    # encoder_outputs third, as in PyTorch
    outputs = model(ids, mask, None, labels(), output_attentions=True)
    assert len(outputs.generator_cross_attentions) == 2
    assert outputs.generator_cross_attentions[0].shape == (
        2 * N,
        4,
        6,
        outputs.generator_enc_attentions[0].shape[-1],
    )
    model.set_context_encoder_for_training(context_encoder("bart", "float64"))
    live = model(ids, mask, None, labels())
    assert not np.allclose(live.doc_scores, outputs.doc_scores)
    model.set_retriever(None)


def test_t9_parts_from_folders_or_at_hand_and_their_overrides(tmp_path):
    sizes = {
        "vocab_size": 20,
        "d_model": 8,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
    }
    rest = {"decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    generator = BartForConditionalGeneration(BartConfig(**sizes, **rest))
    encoder = DPRQuestionEncoder(
        DPRConfig(
            vocab_size=20,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
        )
    )
    encoder.save_pretrained(tmp_path / "encoder")
    generator.save_pretrained(tmp_path / "generator")
    join = RagTokenForGeneration.from_pretrained_question_encoder_generator
    assert join(str(tmp_path / "encoder"), generator_model=generator).generator is generator
    loaded = join(str(tmp_path / "encoder"), str(tmp_path / "generator"), generator_max_length=17)
    assert loaded.config.generator.max_length == 17


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_t10_the_index_is_asked_in_float32_whatever_the_weights(dtype):
    asked = []
    retrieve = toy_retriever("bart", "float32")

    def watched(ids, vectors, **options):
        asked.append(vectors.dtype)
        return retrieve(ids, vectors, **options)

    model = build("bart", "token", SEED, dtype, N)
    model.set_retriever(watched)
    ids, mask = map(tf.constant, questions("bart", "forward", 2))
    outputs = model(ids, attention_mask=mask, labels=labels())
    model.generate(ids, attention_mask=mask, max_length=4)
    model.set_retriever(None)
    assert asked == [np.float32] * 2 and outputs.doc_scores.dtype == tf.float32


def test_ids_are_64_bits_wide_and_32_are_taken():
    ids = BatchEncoding({"input_ids": [[5, 6]]}, tensor_type="tf").input_ids
    assert (
        ids.dtype == tf.int64
        and tf.concat([tf.cast(ids, tf.int32), tf.constant([[2]])], 1).dtype == tf.int32
    )
    model = build("bart", "token", SEED, "float32", N)
    narrow = {
        name: tf.cast(value, tf.int32) if value.dtype == tf.int64 else value
        for name, value in given().items()
    }
    assert model.generate(**narrow, n_docs=N, max_length=3).dtype == tf.int64
