"""The comparator finds planted faults, and the seeded weights are what they promise to be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.mismatches import compare, relative_error
from conformance.seeded import seeded_weights
from rag_core.parity.inputs import seeded_noise

TRACE = {
    "logits": np.linspace(-3.0, 3.0, 24).reshape(2, 3, 4),
    "doc_scores": np.array([[1.5, -np.inf, 0.25]]),
    "tokens": np.array([[2, 0, 7]]),
    "mask": np.array([True, False]),
}


def fault(name, place, value):
    changed = {key: array.copy() for key, array in TRACE.items()}
    changed[name][place] = value
    return changed


def test_a_trace_agrees_with_itself_and_within_the_tolerance():
    assert compare(TRACE, TRACE, 0.0) == []
    near = dict(TRACE, logits=TRACE["logits"] + 2.9e-5)
    assert compare(TRACE, near, 1e-5) == []
    assert [m.name for m in compare(TRACE, near, 0.9e-5)] == ["logits"]
    assert compare(TRACE, near, {"logits": 1e-5}) == []


@pytest.mark.parametrize(
    "planted",
    [
        fault("logits", (1, 2, 3), 3.001),
        fault("logits", (0, 0, 0), np.nan),
        fault("logits", (0, 0, 0), -np.inf),
        fault("doc_scores", (0, 1), np.inf),
        fault("doc_scores", (0, 1), -1e30),
        fault("tokens", (0, 1), 1),
        fault("mask", 1, True),
        dict(TRACE, logits=TRACE["logits"].swapaxes(0, 1)),
        dict(TRACE, logits=TRACE["logits"][:, :, :1]),
        dict(TRACE, tokens=TRACE["tokens"].astype(float)),
        dict(TRACE, extra=np.zeros(1)),
        {key: array for key, array in TRACE.items() if key != "mask"},
    ],
)
def test_one_planted_fault_is_one_mismatch(planted):
    found = compare(TRACE, planted, 1e-4)
    assert len(found) == 1
    assert found[0].name in str(found[0])


def test_nan_never_equals_nan_and_a_nan_tolerance_passes_nothing():
    broken = {"loss": np.array([1.0, np.nan])}
    assert relative_error(broken["loss"], broken["loss"]) == np.inf
    assert len(compare(broken, broken, 1e9)) == 1
    assert len(compare(TRACE, fault("logits", (0, 0, 0), 0.0), float("nan"))) >= 1


def test_the_error_is_relative_to_the_largest_expected_value():
    assert relative_error(np.array([0.0, 200.0]), np.array([1.0, 200.0])) == 1 / 200
    assert relative_error(np.full(3, -np.inf), np.full(3, -np.inf)) == 0.0
    with pytest.raises(ValueError, match=r"\(2,\).*\(1,\)"):
        relative_error(np.zeros(1), np.zeros(2))


# Recorded with numpy 1.26 on Python 3.11.
STREAM = [-0.059122459521774307, -1.132761539613999, -0.6628935187793688]

SHAPES = {
    "rag.generator.model.shared.weight": (60, 16),
    "rag.generator.model.encoder.layers.0.self_attn.q_proj.weight": (16, 16),
    "rag.generator.model.encoder.layers.0.self_attn.q_proj.bias": (16,),
    "rag.generator.model.encoder.layers.0.self_attn_layer_norm.weight": (16,),
    "rag.generator.final_logits_bias": (1, 60),
    "generator.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (8, 4),
}


def test_weights_depend_on_name_and_seed_alone():
    first, again = (
        seeded_weights(SHAPES, 3),
        seeded_weights(dict(reversed(list(SHAPES.items()))), 3),
    )
    assert all(np.array_equal(first[name], again[name]) for name in SHAPES)
    other = seeded_weights(SHAPES, 4)
    assert not any(np.array_equal(first[name], other[name]) for name in SHAPES)
    tied = seeded_weights({"generator.model.decoder.embed_tokens.weight": (60, 16)}, 3)
    assert np.array_equal(*tied.values(), first["rag.generator.model.shared.weight"])


def test_weights_are_scaled_to_show_mistakes():
    weights = seeded_weights(SHAPES, 0)
    gain = weights["rag.generator.model.encoder.layers.0.self_attn_layer_norm.weight"]
    assert 0.8 < gain.mean() < 1.2
    assert gain.std() > 0.1
    assert all(array.std() > 0.1 and array.dtype == np.float64 for array in weights.values())
    assert [array.shape for array in weights.values()] == list(SHAPES.values())


def test_the_stream_is_the_recorded_one():
    """Golden arrays hold no weights: were the stream to change, every one of them would be void."""
    assert seeded_noise("stream", (3,)).tolist() == STREAM


@given(st.text(max_size=20), st.lists(st.integers(0, 4), max_size=3))
def test_noise_is_bounded_and_of_the_asked_shape(key, shape):
    noise = seeded_noise(key, tuple(shape))
    assert noise.shape == tuple(shape)
    assert np.abs(noise).max(initial=0.0) <= 3.0
