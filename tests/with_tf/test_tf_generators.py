"""The generators as models of their own in TensorFlow.

The same figures as in test_generators_torch.py; tokens: with_both/test_generate_extras.py.
"""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import rag_tf
from conformance import record_generators as recorded
from conformance.cases import integers
from rag_core.generation.config import resolve_options
from rag_tf.layers import checkpointed
from rag_tf.weights import named_variables
from tests.support.golden_tf import build, tensors

GOLDEN = json.loads(
    (Path(recorded.__file__).parent / "golden" / "generators.json").read_text("utf-8")
)
MODELS = ("bart_habits", "t5_gated")  # the other two in PyTorch


def generator(name):
    return build(name, "token", recorded.SEED, "float64", 1).generator


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_the_references(name):
    model = generator(name)
    given = tensors(recorded.given(name), "float64")
    target, fed = (
        recorded.labels(model.config.pad_token_id),
        integers("fed", 5, 90, (recorded.BATCH, 5)),
    )
    table = model.get_input_embeddings().weight
    with tf.GradientTape() as tape:
        outputs = [
            model({**given, "labels": target}),
            model(given["input_ids"], given["attention_mask"], fed, labels=target),
            model(
                attention_mask=given["attention_mask"],
                inputs_embeds=tf.gather(table, given["input_ids"]),
                decoder_inputs_embeds=tf.gather(table, fed),
                labels=target,
            ),
        ]
        ours = outputs[0].loss
    np.testing.assert_allclose(
        [each.loss.numpy() for each in outputs], GOLDEN[f"{name}/losses"], rtol=1e-10
    )
    np.testing.assert_allclose(
        tf.reduce_sum(abs(outputs[2].logits)), GOLDEN[f"{name}/logits"], rtol=1e-10
    )
    assert (
        model.prepare_decoder_input_ids_from_labels(labels=target).numpy().tolist()
        == GOLDEN[f"{name}/shifted"]
    )
    assert [*outputs[0]][:2] == ["loss", "logits"] and "past_key_values" not in outputs[0]
    assert all(
        each is not None for each in tape.gradient(ours, [table, *model.trainable_variables])
    )


def test_what_does_not_fit_and_parts_by_themselves():
    model = generator("t5_gated")
    given, fed = (
        tensors(recorded.given("t5_gated"), "float64"),
        integers("fed", 5, 90, (recorded.BATCH, 5)),
    )
    embeds, mask = (
        tf.gather(model.get_input_embeddings().weight, given["input_ids"]),
        given["attention_mask"],
    )
    wrong = [
        ({**given, "labels": fed, "decoder_head_mask": fed}, "decoder_head_mask must be None"),
        (
            {**given, "inputs_embeds": embeds, "labels": fed},
            "input_ids and inputs_embeds .* got both",
        ),
        ({"labels": fed}, "input_ids and inputs_embeds must be given, got neither"),
        ({"inputs_embeds": embeds}, "decoder_input_ids must be given when input_ids is None"),
        ({"inputs_embeds": embeds[..., 1:], "labels": fed}, "inputs_embeds must be .* d = 32"),
        (
            {**given, "labels": fed[:, 1:], "decoder_input_ids": fed},
            r"labels must be .* = \(3, 5\)",
        ),
        ({**given, "labels": fed - 90}, r"labels \(but for -100\) must lie in"),
    ]
    for inputs, message in wrong:
        with pytest.raises(ValueError, match=message):
            model(inputs)
    for past in (5, (5,)):
        with pytest.raises(
            TypeError, match="past_key_values must be what an earlier call returned"
        ):
            model(**given, decoder_input_ids=fed, past_key_values=past)
    with pytest.raises(ValueError, match="attention_mask must be"):
        model.generate(inputs_embeds=embeds, attention_mask=mask[:, 1:])
    options = {"max_length": 6, "num_beams": 2}
    made = model.generate(given["input_ids"], attention_mask=mask, **options).numpy().tolist()
    encoded = model.get_encoder()(**given, return_dict=False)
    assert (
        model.generate(inputs_embeds=embeds, attention_mask=mask, **options).numpy().tolist()
        == made
    )
    assert (
        model.generate(encoder_outputs=encoded, attention_mask=mask, **options).numpy().tolist()
        == made
    )
    whole = model(**given, decoder_input_ids=fed, output_hidden_states=True)
    context = {"encoder_hidden_states": encoded[0], "encoder_attention_mask": mask}
    alone = model.get_decoder()(
        fed, **context, output_hidden_states=True, use_cache=True, return_dict=False
    )
    np.testing.assert_allclose(alone[0], whole.decoder_hidden_states[-1], rtol=1e-10)
    again = model.prepare_inputs_for_generation(fed, past_key_values=alone[1], attention_mask=mask)
    assert (
        again["decoder_input_ids"].tolist() == fed[:, 4:].tolist()
        and again["attention_mask"] is mask
    )


def test_a_generator_learns_first_and_goes_into_a_rag_model(tmp_path):
    """Fine-tuned with labels, generating, saved, and then the generator of a RAG model.

    As in PyTorch.
    """
    tf.random.set_seed(0)
    layers = {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    sizes = {
        "vocab_size": 40,
        "d_model": 16,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "dropout": 0.0,
    }
    model = rag_tf.TFBartForConditionalGeneration(
        rag_tf.BartConfig(**layers, **sizes, max_position_embeddings=12)
    )
    ids, labels = (
        tf.constant([[0, 11, 12, 2], [0, 21, 22, 2]]),
        tf.constant([[12, 13, 2], [22, 23, 2]]),
    )
    optimizer, losses = keras.optimizers.Adam(3e-2), []
    for _ in range(15):
        with tf.GradientTape() as tape:
            loss = model({"input_ids": ids, "labels": labels}, training=True).loss
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    written = model.generate(ids, max_length=5)
    model.save_pretrained(tmp_path / "generator")
    assert type(rag_tf.TFAutoModelForSeq2SeqLM.from_pretrained(tmp_path / "generator")) is type(
        model
    )
    part = build("bart", "model", 1, "float32", 2).question_encoder
    rag = rag_tf.RagTokenForGeneration.from_pretrained_question_encoder_generator(
        question_encoder_model=part,
        generator_pretrained_model_name_or_path=str(tmp_path / "generator"),
        n_docs=1,
    )
    given = {
        "context_input_ids": ids,
        "context_attention_mask": tf.ones_like(ids),
        "doc_scores": tf.ones((2, 1)),
    }
    assert (
        rag.generate(**given, max_length=5, labels=labels).numpy().tolist()
        == written.numpy().tolist()
    )
    losses = {
        float(rag(**given, labels=labels, exclude_bos_score=flag).loss[0]) for flag in (True, False)
    }
    assert len(losses) == 1


def test_keras_loops_and_lists_of_arguments():
    model = build("bart", "model", 1, "float32", 2)
    generator, encoder = model.generator, model.question_encoder
    assert generator.losses == encoder.losses == []
    assert (
        len(generator.trainable_weights)
        == len(generator.trainable_variables)
        < len(generator.weights)
    )
    ids, mask = tf.constant([[5, 6, 7], [8, 9, 0]]), tf.constant([[1, 1, 1], [1, 0, 0]])
    np.testing.assert_array_equal(encoder([ids, mask])[0], encoder(ids, mask)[0])
    np.testing.assert_array_equal(encoder([ids])[0], encoder(ids)[0])


def test_weights_of_one_name_are_all_kept():
    module = tf.Module()
    module.tables = [tf.Variable([0.0], name="table"), tf.Variable([1.0], name="table")]
    module.other = tf.Variable([2.0], name="table_1")
    named = dict(named_variables(module, "generator."))
    assert [*named] == ["generator.table_1", "generator.table", "generator.table_2"]
    assert sorted(float(each[0]) for each in named.values()) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("function", [checkpointed, resolve_options])
def test_autograph_reads_what_a_tf_function_may_run_into(function):
    tf.autograph.to_graph(function)
