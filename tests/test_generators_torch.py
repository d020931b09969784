"""The generators as models of their own: loss, embeddings, `generate`, what other libraries ask of them, training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from conformance import record_generators as recorded
from conformance.cases import integers
from tests.golden_models import build, tensors

GOLDEN = json.loads((Path(recorded.__file__).parent / "golden" / "generators.json").read_text("utf-8"))


def generator(name, dtype=torch.float64):
    return build(name, "token", recorded.SEED, dtype, 1).generator


def inputs_of(name, model):
    """Contexts, the same as embeddings, labels, decoder ids."""
    given = tensors(recorded.given(name), torch.float64)
    target = torch.tensor(recorded.labels(model.config.pad_token_id))
    return given, target, torch.tensor(integers("fed", 5, 90, (recorded.BATCH, 5)))


@pytest.mark.parametrize("name", recorded.MODELS)
def test_losses_are_the_references(name):
    model = generator(name)
    given, target, fed = inputs_of(name, model)
    embed, mask = model.get_input_embeddings(), {"attention_mask": given["attention_mask"]}
    embedded = {"inputs_embeds": embed(given["input_ids"]), "decoder_inputs_embeds": embed(fed)}
    outputs = [
        model(**given, labels=target),
        model(**given, labels=target, decoder_input_ids=fed),
        model(**mask, **embedded, labels=target),
    ]
    np.testing.assert_allclose([each.loss.item() for each in outputs], GOLDEN[f"{name}/losses"], rtol=1e-10)
    np.testing.assert_allclose(outputs[2].logits.abs().sum().item(), GOLDEN[f"{name}/logits"], rtol=1e-10)
    assert model.prepare_decoder_input_ids_from_labels(labels=target).tolist() == GOLDEN[f"{name}/shifted"]
    assert [*outputs[0]][:2] == ["loss", "logits"] and "past_key_values" not in outputs[0]
    wanted = torch.nn.functional.cross_entropy(outputs[0].logits.flatten(0, 1), target.flatten())
    ours, theirs = (torch.autograd.grad(loss, embed.weight, retain_graph=True)[0] for loss in (outputs[0].loss, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", recorded.MODELS)
def test_generations_are_the_references(name):
    model = generator(name)
    given, target, _ = inputs_of(name, model)
    for i, options in enumerate(recorded.CASES):
        made = model.generate(**given, **options, labels=target)  # as Seq2SeqTrainer hands a batch over
        assert made.tolist() == GOLDEN[f"{name}/tokens/{i}"], options
    assert model.generate(given["input_ids"], max_length=9).tolist() == GOLDEN[f"{name}/tokens/no mask"]
    last = {key: value[-1:] for key, value in given.items()}
    for i, options in enumerate(recorded.SCORED):
        made = model.generate(**last, **options, return_dict_in_generate=True, output_scores=True)
        want = GOLDEN[f"{name}/scored/{i}"]
        assert made.sequences.tolist() == want["sequences"]
        np.testing.assert_allclose(recorded.summary(made.scores), want["scores"], rtol=1e-9)
        if want["sequences_scores"] is not None:
            np.testing.assert_allclose(made.sequences_scores, want["sequences_scores"], rtol=1e-6)  # float32 there
