"""The generators as models of their own in TensorFlow; the same figures as in test_generators_torch.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from conformance import record_generators as recorded
from conformance.cases import integers
from rag_core.backends import to_numpy
from tests.golden_models_tf import build, tensors

GOLDEN = json.loads((Path(recorded.__file__).parent / "golden" / "generators.json").read_text("utf-8"))
MODELS = ("bart_habits", "t5_gated")  # the other two in PyTorch


def generator(name):
    return build(name, "token", recorded.SEED, "float64", 1).generator


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_the_references(name):
    model = generator(name)
    given = tensors(recorded.given(name), "float64")
    target, fed = recorded.labels(model.config.pad_token_id), integers("fed", 5, 90, (recorded.BATCH, 5))
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
    np.testing.assert_allclose([each.loss.numpy() for each in outputs], GOLDEN[f"{name}/losses"], rtol=1e-10)
    np.testing.assert_allclose(tf.reduce_sum(abs(outputs[2].logits)), GOLDEN[f"{name}/logits"], rtol=1e-10)
    assert model.prepare_decoder_input_ids_from_labels(labels=target).numpy().tolist() == GOLDEN[f"{name}/shifted"]
    assert [*outputs[0]][:2] == ["loss", "logits"] and "past_key_values" not in outputs[0]
    assert all(each is not None for each in tape.gradient(ours, [table, *model.trainable_variables]))


@pytest.mark.parametrize("name", MODELS)
def test_generations_are_the_references(name):
    model = generator(name)
    given = tensors(recorded.given(name), "float64")
    for i, options in enumerate(recorded.CASES):
        made = model.generate(**given, **options, labels=given["input_ids"])
        assert made.numpy().tolist() == GOLDEN[f"{name}/tokens/{i}"], options
    assert model.generate(given["input_ids"], max_length=9).numpy().tolist() == GOLDEN[f"{name}/tokens/no mask"]
    last = {key: value[-1:] for key, value in given.items()}
    for i, options in enumerate(recorded.SCORED):
        made = model.generate(**last, **options, return_dict_in_generate=True, output_scores=True)
        want = GOLDEN[f"{name}/scored/{i}"]
        assert made.sequences.numpy().tolist() == want["sequences"]
        np.testing.assert_allclose(recorded.summary(map(to_numpy, made.scores)), want["scores"], rtol=1e-9)
        if want["sequences_scores"] is not None:
            np.testing.assert_allclose(made.sequences_scores, want["sequences_scores"], rtol=1e-6)  # float32 there
