"""T5 in float16: its feed-forward sums pass float16's range, so these maps and what the layers
add up are float32.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from conformance.mismatches import relative_error
from rag_core.checkpoint.convert import convert_checkpoint
from rag_core.checkpoint.folder import read_weights
from rag_tf.modules import computing_in
from rag_tf.rag import RagTokenForGeneration as TFRagTokenForGeneration
from rag_torch.rag import RagTokenForGeneration
from tests.support.rag_models import LABELS, build, given_contexts

import tensorflow as tf  # isort: skip  (torch first where both are loaded)

WIDE = ".DenseReluDense.wo.weight"


def loud(model):
    """The model with feed-forward sums beyond float16, which the norm after them takes back."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".wi_" in name:
                parameter *= 16
            elif WIDE in name:
                parameter *= 100
    return model


def logits(model):
    given = {name: value.numpy() for name, value in given_contexts(torch.float32).items()}
    if not isinstance(model, torch.nn.Module):
        return tf.cast(model(**given, labels=LABELS.numpy()).logits, tf.float32).numpy()
    with torch.no_grad():
        return (
            model(**{n: torch.tensor(v) for n, v in given.items()}, labels=LABELS)
            .logits.float()
            .numpy()
        )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A RAG model over T5 v1.1 in float32, and the same converted to float16."""
    folder = tmp_path_factory.mktemp("loud")
    loud(build(generator="t5", dtype=torch.float32)).save_pretrained(folder / "float32")
    convert_checkpoint(folder / "float32", folder / "float16", dtype="float16")
    return folder / "float32", folder / "float16"


@pytest.fixture(scope="module")
def want(folders):
    model, sums = RagTokenForGeneration.from_pretrained(folders[0]), []
    for name, module in model.named_modules():
        if name.endswith("DenseReluDense"):
            module.register_forward_hook(
                lambda _, given, made: sums.append(float(made.abs().max()))
            )
    found = logits(model)
    assert max(sums) > 2 * 65504  # or the tests below would show nothing
    return found


def wide(model):
    """The types of the maps in question."""
    kinds = {weight.dtype for name, weight in model.named_parameters() if WIDE in name}
    return {getattr(kind, "name", str(kind)).removeprefix("torch.") for kind in kinds}


def test_float16_stays_near_in_pytorch_however_it_comes(folders, want):
    load = RagTokenForGeneration.from_pretrained
    once = load(folders[0], dtype="float16")
    models = [
        once,
        load(folders[1], dtype="auto"),
        load(folders[0]).half(),
        load(folders[0]).to("cpu", torch.float16),
    ]
    for model in models:
        assert model.generator.dtype == torch.float16 and wide(model) == {"float32"}
        assert relative_error(want, logits(model)) < 0.02
        # where `wo` itself was rounded
        assert np.array_equal(logits(model), logits(once)) == (model is not models[1])
    assert wide(once.double()) == {"float64"} and wide(once.bfloat16()) == {"bfloat16"}
    with torch.autocast("cpu", torch.float16):
        assert relative_error(want, logits(load(folders[0]))) < 0.02
    options = {"num_beams": 2, "max_length": 6}
    assert models[1].generate(**given_contexts(), **options).shape == (2, 6)


def test_float16_learns_in_pytorch(folders):
    model = RagTokenForGeneration.from_pretrained(folders[0])
    with torch.autocast("cpu", torch.float16):
        loss = model(**given_contexts(torch.float32), labels=LABELS).loss.mean()
    (loss * 2.0**-4).backward()
    gradients = [parameter.grad for parameter in model.generator.parameters()]
    assert all(each.isfinite().all() for each in gradients) and any(
        each.abs().max() > 0 for each in gradients
    )


def test_float16_stays_near_in_tensorflow_however_it_comes(folders, want):
    load = TFRagTokenForGeneration.from_pretrained
    model = load(folders[0])
    # as the Keras policy mixed_float16 and mixed_precision="fp16" have it
    with computing_in("float16"):
        assert relative_error(want, logits(model)) < 0.02
    for half in (model.to("float16"), load(folders[1], dtype="auto")):
        assert half.generator.dtype == tf.float16 and wide(half) == {"float32"}
        assert relative_error(want, logits(half)) < 0.02


def test_what_is_written_in_float16(folders, tmp_path):
    RagTokenForGeneration.from_pretrained(folders[0], dtype="float16").save_pretrained(tmp_path)
    saved, converted, whole = (
        read_weights(folder) for folder in (tmp_path, folders[1], folders[0])
    )
    for name in saved:
        assert converted[name].dtype == "float16"
        assert np.array_equal(saved[name], whole[name] if WIDE in name else converted[name])
    for folder in (tmp_path, folders[1]):
        assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "float16"
