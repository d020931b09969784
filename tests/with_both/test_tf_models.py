"""The generators in TensorFlow against PyTorch's in float64: outputs, caches, beams, gradients.

One graph for all.
"""

from functools import cache

import numpy as np
import pytest
import torch

import rag_tf.bart
import rag_tf.layers
import rag_tf.t5
import rag_torch.bart
import rag_torch.layers
import rag_torch.t5
from conformance.cases import MODELS
from conformance.mismatches import relative_error
from rag_core.checkpoint.weights import expected_shapes
from rag_core.config.rag import BartConfig, T5Config
from rag_tf.attention import AttentionMask
from rag_tf.modules import computing_in, seeded_by
from tests.support.networks import BART, DROPPING, NO_LAYERS, T5_TIED, T5_UNTIED, seeded

import tensorflow as tf  # isort: skip  (torch first where both are loaded)

LOPSIDED = {
    key: value for key, value in MODELS["bart_scaled"]["generator"].items() if key != "model_type"
}
CONFIGS = {"bart": BART, "bart_relu": BartConfig(**LOPSIDED), "t5": T5_TIED, "t5v11": T5_UNTIED}
EVERYTHING = {"use_cache": True, "output_attentions": True, "output_hidden_states": True}


@cache
def pair(kind, dtype="float64"):
    """The same network with the same weights in both."""
    config = CONFIGS[kind] if kind in CONFIGS else NO_LAYERS[kind.removesuffix("_bare")]
    name = (
        "BartForConditionalGeneration"
        if isinstance(config, BartConfig)
        else "T5ForConditionalGeneration"
    )
    room = "bart" if isinstance(config, BartConfig) else "t5"
    theirs = seeded(getattr(getattr(rag_torch, room), name)(config), getattr(torch, dtype))
    ours = getattr(getattr(rag_tf, room), name)(config).to(dtype)
    ours.load_state_dict({name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    return theirs, ours


def draw(*shape, seed=0):
    return np.random.default_rng(seed).integers(3, 23, shape)


def contexts(rows=3, length=7):
    mask = np.ones((rows, length), np.int64)
    mask[1, 4:] = 0
    return draw(rows, length), mask


def leaves(value):
    """Arrays of nested tuples of tensors of either framework."""
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in leaves(item)]
    return (
        []
        if value is None
        else [value.detach().numpy() if isinstance(value, torch.Tensor) else value.numpy()]
    )


def assert_same(theirs, ours, tolerance=1e-12):
    theirs, ours = leaves(theirs), leaves(ours)
    assert len(theirs) == len(ours) > 0
    assert max(relative_error(*both) for both in zip(theirs, ours, strict=True)) < tolerance


def torch_of(*arrays):
    return [torch.tensor(array) for array in arrays]


@pytest.mark.parametrize("kind", CONFIGS)
def test_names_shapes_and_ties(kind):
    ours = pair(kind)[1]
    found = {name: tuple(variable.shape) for name, variable in ours.named_parameters()}
    assert found == {name: tuple(shape) for name, shape in expected_shapes(CONFIGS[kind]).items()}
    table = ours.get_input_embeddings().weight
    assert ours.get_encoder().embed_tokens.weight is ours.get_decoder().embed_tokens.weight is table
    assert (ours.lm_head.weight is table) == (kind != "t5v11")


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_output_is_pytorchs(kind):
    theirs, ours = pair(kind)
    ids, mask = contexts()
    target = draw(3, 5, seed=1)
    with torch.no_grad():
        want = theirs(*torch_of(ids, mask, target[:, :3]), **EVERYTHING)
    got = ours(ids, mask, target[:, :3], **EVERYTHING)
    assert list(got) == list(want)
    for field in want:
        assert_same(want[field], got[field])
    if kind in ("bart", "t5"):
        last = {"decoder_input_ids": target[:, 3:], "attention_mask": mask}
        more = ours(
            **last, encoder_outputs=got.to_tuple()[-3:], past_key_values=got.past_key_values
        )
        with torch.no_grad():
            whole = theirs(*torch_of(ids, mask, target), use_cache=True)
        assert_same(whole.logits[:, 3:], more.logits)
        assert_same(whole.past_key_values, more.past_key_values)


@pytest.mark.parametrize("kind", ["bart", "t5v11"])
def test_every_returned_state_lies_on_the_way_to_the_logits(kind):
    theirs, ours = pair(kind)
    ids, mask = contexts()
    mask[2] = 0
    wanted = {"output_attentions": True, "output_hidden_states": True, "use_cache": False}
    with tf.GradientTape() as tape:
        got = ours(ids, mask, ids[:, :4], **wanted)
        target = tf.reduce_sum(tf.tanh(got.logits))
    want = theirs(*torch_of(ids, mask, ids[:, :4]), **wanted)
    states = [
        [each for part in output.to_tuple()[1:] if isinstance(part, tuple) for each in part]
        for output in (want, got)
    ]
    slopes = torch.autograd.grad(want.logits.tanh().sum(), states[0])
    assert len(states[1]) == 12
    for one, other in zip(slopes, tape.gradient(target, states[1]), strict=True):
        assert_same([one], [other], 1e-10)


def test_the_bias_of_the_logits():
    bart, t5 = pair("bart")[1], pair("t5")[1]
    bias = bart.get_bias()["final_logits_bias"]
    old, ids = bias.numpy(), draw(1, 4)
    before = bart(ids, None, ids).logits
    bart.set_bias({"final_logits_bias": old + np.arange(23)})
    assert_same(before + np.arange(23), bart(ids, None, ids).logits)
    bart.set_bias({"final_logits_bias": old})
    assert bart.get_lm_head() is bart.lm_head and t5.get_bias() is None
    with pytest.raises(ValueError, match=r"must have the shape \(1, 23\), got \(1, 7\)"):
        bart.set_bias({"final_logits_bias": np.ones((1, 7))})
    with pytest.raises(
        ValueError, match="must hold nothing for T5ForConditionalGeneration, got final_logits_bias"
    ):
        t5.set_bias({"final_logits_bias": old})


@pytest.mark.parametrize("kind", ["bart_bare", "t5v11_bare"])
def test_networks_without_layers(kind):
    theirs, ours = pair(kind)
    ids, mask = contexts()
    with torch.no_grad():
        want = theirs(*torch_of(ids, mask, ids[:, :4]), **EVERYTHING)
        first = theirs.start(theirs.encode(*torch_of(ids, mask)), torch.tensor(mask).bool(), 2, 4)
    got = ours(ids, mask, ids[:, :4], **EVERYTHING)
    assert_same(want.to_tuple(), got.to_tuple())
    state = ours.start(ours.encode(ids, mask), mask, 2, 4)
    for step in range(3):
        tokens = draw(3, 2, 1, seed=step)
        with torch.no_grad():
            logits = theirs.decode(torch.tensor(tokens), first)
        assert_same(logits, ours.decode(tokens, state))
        state.reorder(np.array([[1, 0]] * 3))
        first.reorder(torch.tensor([[1, 0]] * 3))


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_several_targets_of_a_context_ride_on_it(kind):
    theirs, ours = pair(kind)
    ids, mask = contexts()
    target = draw(6, 4, seed=1)
    with torch.no_grad():
        want = theirs(*torch_of(ids, mask, target), **EVERYTHING)
    got = ours(ids, mask, target, **EVERYTHING)
    assert_same(want.logits, got.logits)
    assert_same(want.cross_attentions, got.cross_attentions)


def test_no_rows_are_gathered_of_a_variable():
    # or TensorFlow copies it whole whenever it is read
    table = pair("bart")[1].get_input_embeddings()
    graph = tf.function(table).get_concrete_function(tf.TensorSpec((None, None), tf.int64)).graph
    assert (
        "GatherV2" in (kinds := {each.type for each in graph.get_operations()})
        and "ResourceGather" not in kinds
    )


@pytest.mark.parametrize("kind", ["bart", "t5", "t5v11"])
def test_every_gradient_is_pytorchs(kind):
    theirs, ours = pair(kind)
    ids, mask = contexts()
    mask[2] = 0  # nothing to attend to at all
    target, weigh = (
        draw(3, 4, seed=1),
        np.linspace(-1, 1, 3 * 4 * CONFIGS[kind].vocab_size).reshape(3, 4, -1),
    )
    theirs.zero_grad()
    (theirs(*torch_of(ids, mask, target)).logits * torch.tensor(weigh)).tanh().sum().backward()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.tanh(ours(ids, mask, target).logits * weigh))
    variables = ours.trainable_variables
    gradients = {
        id(v): tf.convert_to_tensor(g)
        for v, g in zip(variables, tape.gradient(loss, variables), strict=True)
    }
    want = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    got = {
        name: gradients[id(variable)] for name, variable in ours.named_parameters() if name in want
    }
    assert got.keys() == want.keys()
    scale = float(np.median([np.abs(leaf).max() for leaf in leaves(list(want.values()))]))
    for name in want:
        # A bias on the keys has no effect: what PyTorch has for its gradient is rounding.
        tolerance = 1e-12 * max(1.0, scale / float(want[name].abs().max()))
        assert_same(want[name], got[name], tolerance)


@pytest.mark.parametrize("kind", ["bart", "t5v11"])
def test_checkpointing_changes_memory_alone(kind, monkeypatch):
    fewer = (
        {"encoder_layers": 1, "decoder_layers": 1}
        if kind == "bart"
        else {"num_layers": 1, "num_decoder_layers": 1}
    )
    rates = DROPPING if kind == "bart" else {"dropout_rate": 0.2}
    ours = type(pair(kind)[1])(
        type(CONFIGS[kind]).from_dict(CONFIGS[kind].to_dict(), **rates, **fewer)
    ).to("float64")
    weights = {name: tensor.numpy() for name, tensor in pair(kind)[0].state_dict().items()}
    ours.train().load_state_dict(weights, strict=False)
    counted = []
    attend = AttentionMask.attend
    monkeypatch.setattr(
        AttentionMask,
        "attend",
        lambda *args, **kwargs: counted.append(1) or attend(*args, **kwargs),
    )
    ids, mask = np.tile(draw(3, 7), (1, 15)), np.zeros((3, 105), np.int64)
    ids, mask = (ids[:, :20], mask[:, :20]) if kind == "bart" else (ids, mask)
    mask[:, :5] = 1  # so much padding that rag_tf packs T5's rows
    variables, runs = ours.trainable_variables, []
    for on in (False, True):
        if on:
            ours.gradient_checkpointing_enable()
        assert ours.is_gradient_checkpointing is on
        with seeded_by(np.random.default_rng(3)), tf.GradientTape() as tape:
            output = ours(ids, mask, ids[:, :4], use_cache=False)
            loss = tf.reduce_sum(tf.tanh(output.logits))
        runs.append([output.logits, *map(tf.convert_to_tensor, tape.gradient(loss, variables))])
        counted.append(-1)
    for one, other in zip(*runs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)
    first = counted.index(-1)
    # every layer's attention once more for the gradient
    assert len(counted) - first - 2 == 2 * first


@pytest.mark.parametrize("kind", ["bart", "t5v11"])
def test_beams_step_as_in_pytorch(kind):
    theirs, ours = pair(kind)
    ours.reset_graphs()
    ids, mask = contexts()
    with torch.no_grad():
        want = theirs.start(theirs.encode(*torch_of(ids, mask)), torch.tensor(mask).bool(), 3, 7)
    got = ours.start(ours.encode(ids, mask), mask, 3, 7)
    for step in range(5):
        rows = 3 if step < 3 else 2
        tokens = draw(rows, 3, 2 if step == 0 else 1, seed=step)
        traces = rag_torch.layers.Trace(True, True), rag_tf.layers.Trace(True, True)
        with torch.no_grad():
            logits = theirs.decode(torch.tensor(tokens), want, traces[0])
        assert_same(logits, ours.decode(tokens, got, traces[1]))
        assert_same(traces[0].result(), traces[1].result())
        source = draw(rows, 3, seed=step) % 3
        if step != 1:
            want.reorder(torch.tensor(source))
            got.reorder(source)
        if step == 2:
            want, got = want.select(torch.tensor([2, 1])), got.select(np.array([2, 1]))
    assert got.position == want.position == 6
    assert len(ours._graphs["decode"].traces) == 1
    tokens = draw(3, 3, 4)
    with torch.no_grad():
        prefixes = theirs.decode(
            torch.tensor(tokens), theirs.start(theirs.encode(*torch_of(ids, mask)), None, 3)
        )
    assert_same(prefixes, ours.decode(tokens, ours.start(ours.encode(ids, mask), None, 3)))


def test_another_shape_is_no_other_graph():
    ours = pair("bart")[1]
    ours.reset_graphs()
    for rows, length, beams, targets in ((2, 5, 1, 3), (1, 1, 4, 1), (3, 9, 2, 6)):
        ids, mask = draw(rows, length), np.ones((rows, length), np.int32)
        ours(ids.astype(np.int32), mask, draw(rows, targets).tolist())
        ours(ids, mask.astype(bool), draw(rows, targets))
        state = ours.start(ours.encode(ids, mask), mask, beams, 4 + rows)
        for new in (2, 1, 1):
            ours.decode(draw(rows, beams, new), state)
            state.reorder(np.zeros((rows, beams), np.int64))
    assert {name: len(graph.traces) for name, graph in ours._graphs.items()} == dict.fromkeys(
        ours._graphs, 1
    )


@pytest.mark.parametrize("kind", ["bart", "t5v11"])
def test_float32_and_half_precision(kind):
    ids, mask = contexts()
    target = draw(3, 4, seed=1)
    with torch.no_grad():
        wide = pair(kind)[0](*torch_of(ids, mask, target)).logits
    ours = pair(kind, "float32")[1]
    assert relative_error(wide, ours(ids, mask, target).logits) < 2e-6
    if kind == "bart":
        with computing_in("bfloat16"):
            half = ours(ids, mask, target).logits
        assert half.dtype == tf.bfloat16
    else:
        half = pair(kind, "float16")[1](ids, mask, target).logits
        assert half.dtype == tf.float16
    assert relative_error(wide, half) < (0.15 if kind == "bart" else 0.02)


def test_too_many_positions():
    ours = pair("bart")[1]
    state = ours.start(ours.encode(*contexts()), None, 1, 2)
    with pytest.raises(ValueError, match="holds 2 positions, 3 are needed"):
        ours.decode(draw(3, 1, 3), state)
    for call in (ours.encode, ours, lambda ids: ours(ids[:, :2], None, ids)):
        with pytest.raises(ValueError, match="24 positions"):
            call(draw(1, 25))
    state = ours.start(ours.encode(*contexts()), None, 1, 99)
    with pytest.raises(ValueError, match="24 positions"):
        ours.decode(draw(3, 1, 25), state)


def test_dropout_and_layerdrop_act_in_training_only():
    rates = {
        "attention_dropout": 0.1,
        "activation_dropout": 0.1,
        "encoder_layerdrop": 0.5,
        "decoder_layerdrop": 0.5,
    }
    ours = rag_tf.bart.BartForConditionalGeneration(BartConfig.from_dict(BART.to_dict(), **rates))
    ids, mask = contexts()
    still = ours(ids, mask, ids).logits
    assert relative_error(still, ours(ids, mask, ids, training=False).logits) == 0
    runs = [ours(ids, mask, ids, training=True).logits.numpy() for _ in range(2)]
    assert relative_error(*runs) > 0.01
    assert relative_error(still, ours.train()(ids, mask, ids).logits) > 0.01
    dropped = T5Config.from_dict(T5_TIED.to_dict(), dropout_rate=0.3)
    t5 = rag_tf.t5.T5ForConditionalGeneration(dropped).train()
    assert relative_error(t5.encode(ids, mask), t5.encode(ids, mask)) > 0.01
    assert relative_error(t5.eval().encode(ids, mask), t5.encode(ids, mask)) == 0


def test_resizing_an_untied_head_keeps_what_was_there():
    theirs = pair("t5v11")[0]
    ours = rag_tf.t5.T5ForConditionalGeneration(T5_UNTIED).to("float64")
    ours.load_state_dict({name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    ids, mask = contexts()
    before = ours(ids, mask, ids).logits
    assert ours.resize_token_embeddings(26) is ours.get_input_embeddings()
    assert_same(before, ours(ids, mask, np.where(ids == 22, 22, ids)).logits[..., :23])
    assert ours(np.full((1, 2), 25), None, np.full((1, 2), 25)).logits.shape == (1, 2, 26)
