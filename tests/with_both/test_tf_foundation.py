"""rag_tf's foundation against rag_torch's.

Encoders in float64, files byte for byte, types, ties, graphs, errors.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch  # before TensorFlow

import rag_tf.bert
import rag_tf.encoders
import rag_torch.bert
import rag_torch.encoders
from conformance.seeded import seeded_weights
from rag_core.checkpoint.folder import read_weights
from rag_core.checkpoint.weights import expected_shapes
from rag_core.config.rag import BartConfig, BertConfig, DPRConfig, PretrainedConfig
from rag_core.outputs import PooledEncoderOutput, RetrievAugLMOutput
from rag_tf.holder import resolve_dtype
from rag_tf.modules import Linear, Placeholder
from rag_tf.weights import from_array, resolve_device, to_arrays

# isort: split
import tensorflow as tf

ROOT = Path(__file__).parents[2]
SMALL = {
    "vocab_size": 19, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20,
    "max_position_embeddings": 16,
}  # fmt: skip
ONE = {**SMALL, "num_hidden_layers": 1}
POOLED = {"projection_dim": 5, "normalize": True, "scale": 3.0}
ENCODERS = {
    "question": ("DPRQuestionEncoder", DPRConfig(**SMALL, projection_dim=5)),
    "context": ("DPRContextEncoder", DPRConfig(**ONE)),
    "cls": ("BertEncoder", BertConfig(**ONE, pooling="cls", hidden_act="gelu_new")),
    "mean": ("BertEncoder", BertConfig(**ONE, pooling="mean", **POOLED)),
    "pooler": ("BertEncoder", BertConfig(**SMALL, pooling="pooler", **POOLED)),
}
BART = BartConfig(
    vocab_size=23, d_model=12, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=3,
    encoder_ffn_dim=20, decoder_ffn_dim=16, max_position_embeddings=24,
)  # fmt: skip
IDS = np.array([[5, 6, 7, 8], [9, 4, 0, 0], [3, 0, 0, 0]])


def both(kind, dtype="float64"):
    """The same encoder in both frameworks, with the same strong weights."""
    name, config = ENCODERS[kind]
    theirs, ours = getattr(rag_torch.bert, name)(config), getattr(rag_tf.bert, name)(config)
    weights = seeded_weights(
        {each: tuple(tensor.shape) for each, tensor in theirs.state_dict().items()}, 7
    )
    theirs.to(getattr(torch, dtype)).eval().load_state_dict(
        {n: torch.tensor(w) for n, w in weights.items()}
    )
    ours.to(dtype).load_state_dict(weights)
    return theirs, ours


def far(got, want):
    return max(
        np.abs(np.asarray(a) - b.detach().numpy()).max() for a, b in zip(got, want, strict=True)
    )


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoders_equal_torchs_in_float64(kind):
    theirs, ours = both(kind)
    assert (
        list(ours.state_dict())
        == list(theirs.state_dict())
        == list(expected_shapes(ours.config, ours.head))
    )
    want = theirs(torch.tensor(IDS), output_hidden_states=True, output_attentions=True)
    got = ours(tf.constant(IDS), output_hidden_states=True, output_attentions=True)
    assert type(got) is PooledEncoderOutput
    assert (
        far(
            [got[0], *got.hidden_states, *got.attentions],
            [want[0], *want.hidden_states, *want.attentions],
        )
        < 1e-12
    )


@pytest.mark.parametrize("kind", ["question", "pooler"])
def test_gradients_equal_torchs_in_float64(kind):
    theirs, ours = both(kind)
    slope = np.arange(1.0, ours.dimension + 1)
    (theirs(torch.tensor(IDS))[0] * torch.tensor(slope)).sum().backward()
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(ours(IDS)[0] * slope)
    gradients = tape.gradient(total, ours.trainable_variables)
    found = [tf.convert_to_tensor(each) for each in gradients if each is not None]
    wanted = [each.grad for each in theirs.parameters() if each.grad is not None]
    assert len(wanted) > 20
    assert far(found, wanted) < 1e-12


@pytest.fixture(scope="module")
def encoder():
    """A pooled encoder in float32, whose graphs are shared; its twin."""
    theirs, ours = both("mean", "float32")
    return ours, theirs


def test_one_graph_serves_all_lengths_arrays_lists_and_dictionaries(encoder):
    ours, theirs = encoder
    ours.reset_graphs()
    for ids in (IDS, IDS[:1, :2], np.full((5, 16), 7), IDS.astype(np.int32)):
        want = theirs(torch.tensor(ids).long())[0].detach()
        for given in (
            ids,
            ids.tolist(),
            tf.constant(ids),
            {"input_ids": ids, "attention_mask": (ids != 0) * 1},
        ):
            np.testing.assert_allclose(ours(given)[0], want, atol=2e-6)
    assert [len(ours._graphs[name].traces) for name in ("body", "pool")] == [1, 1]
    vector, hidden = ours(IDS, output_hidden_states=True, return_dict=False)
    assert (vector.shape, len(hidden)) == ((3, 5), 2)
    embeddings = ours.embeddings.word_embeddings(IDS)
    again = ours(inputs_embeds=embeddings, attention_mask=IDS != 0, output_hidden_states=True)
    np.testing.assert_allclose(again[0], vector)


def test_training_is_a_switch_of_the_call_or_of_the_model(encoder):
    ours, _ = encoder
    calm = ours(IDS)[0]
    assert np.abs(ours(IDS, training=True)[0] - calm).max() > 1e-3
    assert np.abs(ours.train()(IDS)[0] - calm).max() > 1e-3
    np.testing.assert_array_equal(ours(IDS, training=False)[0], calm)
    np.testing.assert_array_equal(ours.eval()(IDS)[0], calm)


def test_bad_input_is_refused_as_in_torch(encoder):
    ours, theirs = encoder
    for bad in ([[19]], [[-1]], [[1] * 17]):
        with pytest.raises(ValueError) as want:
            theirs(torch.tensor(bad))
        with pytest.raises(ValueError) as got:
            ours(bad)
        assert str(got.value) == str(want.value)
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        ours()
    with pytest.raises(TypeError, match=r"integer ids \(int64\), got float32"):
        ours(tf.ones((1, 2)))


def test_replaced_weights_are_those_that_graphs_use():
    _, ours = both("cls", "float32")
    before = ours(IDS)[0]
    wide = ours.to("float64")(IDS)[0]
    assert (ours.dtype, wide.dtype, before.dtype) == (tf.float64, tf.float64, tf.float32)
    np.testing.assert_allclose(wide, before, atol=2e-6)
    assert ours.resize_token_embeddings(21) is ours.get_input_embeddings()
    assert (ours.config.vocab_size, ours.num_parameters()) == (
        21,
        ours.num_parameters(only_trainable=True),
    )
    np.testing.assert_allclose(ours(IDS)[0], wide, atol=1e-12)
    ours([[20]])
    ours.resize_token_embeddings(10)
    np.testing.assert_allclose(ours(IDS)[0], wide, atol=1e-12)
    with pytest.raises(ValueError, match="0 to 9; got ids from 10"):
        ours([[10]])
    with pytest.raises(ValueError, match="must be a whole number from 1"):
        ours.resize_token_embeddings(0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_files_of_both_frameworks_are_the_same_bytes(dtype, tmp_path):
    theirs, _ = both("pooler", "float64")
    theirs.to(getattr(torch, dtype)).save_pretrained(tmp_path / "torch")
    ours = rag_tf.bert.BertEncoder.from_pretrained(tmp_path / "torch", dtype="auto")
    assert ours.dtype == dtype
    ours.save_pretrained(tmp_path / "tf")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "tf" / name).read_bytes() == (tmp_path / "torch" / name).read_bytes()
    back = rag_torch.bert.BertEncoder.from_pretrained(tmp_path / "tf", dtype="auto")
    assert all(
        torch.equal(a, b) for a, b in zip(back.parameters(), theirs.parameters(), strict=True)
    )
    assert rag_tf.bert.BertEncoder.from_pretrained(tmp_path / "tf").dtype == tf.float32


def test_loading_draws_nothing_keeps_ties_and_splits_files(tmp_path, monkeypatch):
    rag_torch.BartForConditionalGeneration(BART).save_pretrained(tmp_path / "torch")
    monkeypatch.setattr(tf.random, "normal", None)
    model = rag_tf.BartForConditionalGeneration.from_pretrained(tmp_path / "torch", from_pt=True)
    monkeypatch.undo()
    tables = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
    tied = {"lm_head.weight", *(f"model.{table}.weight" for table in tables)}
    for change in (
        lambda: None,
        lambda: model.to("float64"),
        lambda: model.resize_token_embeddings(25),
    ):
        change()
        named = dict(model.named_parameters())
        assert {
            name for name, variable in named.items() if variable is named["lm_head.weight"]
        } == tied
        # three copies, and the bias that is no parameter
        assert len(model.trainable_variables) == len(named) - 4
    assert named["model.shared.weight"].shape == (25, 12)
    assert named["final_logits_bias"].shape == (1, 25)
    assert (named["lm_head.weight"].dtype, model.state_dict()["lm_head.weight"].dtype) == (
        tf.float64,
        np.float64,
    )
    model.save_pretrained(tmp_path / "split", max_shard_size="2KB")
    assert len(list((tmp_path / "split").glob("model-*.safetensors"))) > 2
    again = rag_torch.BartForConditionalGeneration.from_pretrained(tmp_path / "split", dtype="auto")
    for name, tensor in again.state_dict().items():
        np.testing.assert_array_equal(tensor, named[name].numpy())


def test_weights_that_do_not_fit_give_torchs_error(tmp_path):
    rag_torch.bert.DPRQuestionEncoder(DPRConfig(**SMALL)).save_pretrained(tmp_path)
    other = DPRConfig(**{**SMALL, "hidden_size": 8, "num_hidden_layers": 3})
    with pytest.raises(ValueError) as want:
        rag_torch.bert.DPRQuestionEncoder.from_pretrained(tmp_path, config=other)
    with pytest.raises(ValueError) as got:
        rag_tf.bert.DPRQuestionEncoder.from_pretrained(tmp_path, config=other)
    assert str(got.value) == str(want.value)
    with pytest.raises(TypeError, match="unknown keywords retreiver"):
        rag_tf.bert.DPRQuestionEncoder.from_pretrained(tmp_path, retreiver=None)
    with pytest.warns(DeprecationWarning, match="load_weight_prefix is ignored"):
        rag_tf.bert.DPRQuestionEncoder.from_pretrained(
            tmp_path, load_weight_prefix="tf_dpr", device="cpu"
        )
    model = rag_tf.bert.DPRQuestionEncoder(DPRConfig(**SMALL))
    state = dict(read_weights(tmp_path))
    first = next(iter(state))
    before = model.state_dict()[first].copy()
    with pytest.raises(ValueError, match=f"1 missing: {first}"):
        model.load_state_dict({name: value for name, value in state.items() if name != first})
    np.testing.assert_array_equal(model.state_dict()[first], before)
    some = {first: state[first], "more": before}
    found = model.load_state_dict(some, strict=False)
    theirs = rag_torch.bert.DPRQuestionEncoder(DPRConfig(**SMALL)).load_state_dict(
        {name: torch.tensor(value) for name, value in some.items()}, strict=False
    )
    assert found == theirs and found.unexpected_keys == ["more"] and first not in found.missing_keys
    np.testing.assert_array_equal(model.state_dict()[first], state[first])


def test_arrays_saved_are_those_of_the_moment():
    model = rag_tf.bert.DPRQuestionEncoder(DPRConfig(**SMALL))
    arrays = to_arrays(model)
    name, variable = next(iter(model.named_parameters()))
    before = arrays[name].copy()
    assert not arrays[name].flags.writeable
    variable.assign_add(tf.ones_like(variable))
    np.testing.assert_array_equal(arrays[name], before)
    array = np.ones((2, 2), np.float32)
    tensor = from_array(array)
    array[:] = 2
    assert from_array(np.arange(3), "float16").dtype == tf.int64
    np.testing.assert_array_equal(tensor, np.ones((2, 2)))


def test_types_and_places_by_every_name():
    config = PretrainedConfig(torch_dtype="bfloat16")
    for given, want in (
        (None, tf.float32), ("auto", tf.bfloat16), ("float64", tf.float64), (np.float16, tf.float16),
        (np.dtype("float64"), tf.float64), (tf.bfloat16, tf.bfloat16), ("tf.float64", tf.float64),
        (torch.float16, tf.float16), ("torch.double", tf.float64),
    ):  # fmt: skip
        assert resolve_dtype(given, config) == want
    for bad in ("int8", tf.int32, "float33", 3.5):
        with pytest.raises(ValueError, match="dtype must be a floating-point TensorFlow dtype"):
            resolve_dtype(bad, config)
    assert {
        resolve_device(each)
        for each in ("cpu", "CPU:0", "/CPU:0", "/device:CPU:0", torch.device("cpu"))
    } == {"/CPU:0"}
    assert resolve_device(None) is None
    with pytest.raises(ValueError, match="device must be 'cpu'"):
        resolve_device("tpu")
    for far_away in ("cuda:77", "/GPU:77", "cpu:77"):
        with pytest.raises(ValueError, match="that TensorFlow sees"):
            resolve_device(far_away)
    model = rag_tf.bert.DPRQuestionEncoder(DPRConfig(**SMALL)).to("cpu", tf.float16)
    assert (model.dtype, model.device) == (tf.float16, "/CPU:0")


def test_records_cross_a_graph_with_their_absent_fields():
    record = RetrievAugLMOutput(
        logits=tf.ones((2, 3)), past_key_values=((tf.zeros(1), tf.ones(1)),)
    )

    @tf.function
    def doubled(given):
        assert given.doc_scores is None
        return RetrievAugLMOutput(logits=2 * given.logits, past_key_values=given.past_key_values)

    found = doubled(record)
    assert type(found) is RetrievAugLMOutput
    assert list(found.keys()) == ["logits", "past_key_values"]
    np.testing.assert_array_equal(found.logits, 2 * np.ones((2, 3)))
    np.testing.assert_array_equal(found.past_key_values[0][1], [1.0])


def test_passage_encoder_equals_torchs_in_batches_with_one_graph(encoder):
    ours, theirs = encoder
    ours.reset_graphs()

    def tokenizer(texts, **options):
        rows = [[3 + ord(c) % 16 for c in text][: options["max_length"]] for text in texts]
        ids = np.array([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])
        tensor = {"pt": torch.tensor, "tf": tf.constant}[options["return_tensors"]]
        return {"input_ids": tensor(ids), "attention_mask": tensor((ids != 0) * 1)}

    titles, texts = ["a", "", "long title", "b"], ["words", "x", "text", "some more words here"]
    vectors = [
        package.encoders.PassageEncoder(model, tokenizer, "tiny", max_length=16).embed(
            titles, texts, batch_size=3
        )
        for package, model in ((rag_torch, theirs), (rag_tf, ours))
    ]
    assert vectors[1].dtype == np.float32
    np.testing.assert_allclose(vectors[1], vectors[0], atol=2e-6)
    assert [len(ours._graphs[name].traces) for name in ("body", "pool")] == [1, 1]


def test_placeholders_take_no_memory_and_say_so():
    from rag_tf.modules import placeholders

    with placeholders():
        layer = Linear(10**6, 10**6)
    assert dict(layer.named_parameters()) == {
        "weight": Placeholder((10**6, 10**6)),
        "bias": Placeholder((10**6,)),
    }


@pytest.mark.parametrize("said_by", ["environment", "file"])
def test_another_keras_backend_is_refused_before_keras_is_imported(said_by, tmp_path):
    (tmp_path / "keras.json").write_text(
        '{"backend": "torch"}' if said_by == "file" else '{"backend": "tensorflow"}'
    )
    environment = {**os.environ, "KERAS_HOME": str(tmp_path), "KERAS_BACKEND": ""}
    if said_by == "environment":
        environment["KERAS_BACKEND"] = "torch"
    code = (
        "import sys\ntry:\n    import rag_tf\nexcept ImportError as e:\n    print(e, 'keras' in "
        "sys.modules)"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(
        run, capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    )
    where = {
        "environment": "the environment variable KERAS_BACKEND",
        "file": str(tmp_path / "keras.json"),
    }[said_by]
    assert f"use 'torch' ({where}). Set KERAS_BACKEND=tensorflow" in done.stdout
    assert done.stdout.rstrip().endswith("False")
