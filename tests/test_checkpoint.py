"""Checkpoints: shapes from configurations, names fitted, files read safely and written whole."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from rag_core.checkpoint import read_weights, write_checkpoint
from rag_core.config import BartConfig, BertConfig, DPRConfig, RagConfig, T5Config
from rag_core.torchbin import TorchFile
from rag_core.weights import check_weights, expected_shapes, fit_names, fit_weights, tied_names

BERT = {"vocab_size": 11, "hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 6}
DPR = DPRConfig(**BERT, max_position_embeddings=8, projection_dim=3)
BART = BartConfig(
    vocab_size=13,
    d_model=4,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=1,
    encoder_ffn_dim=5,
    decoder_ffn_dim=6,
    max_position_embeddings=8,
)
T5_SIZES = {"vocab_size": 13, "d_model": 4, "d_kv": 3, "d_ff": 5, "num_layers": 2, "num_heads": 2}
T5 = T5Config(**T5_SIZES)
T5_GATED = T5Config(**T5_SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False)


def rag(generator=BART):
    return RagConfig(question_encoder=DPR, generator=generator)


def some_weights(config, head=None):
    """Random weights, tied names sharing one array."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=size).astype(np.float32) for name, size in expected_shapes(config, head).items()}
    for group in tied_names(config, head):
        weights |= dict.fromkeys(group, weights[group[0]])
    return weights


def same(one, other):
    assert sorted(one) == sorted(other)
    for name in one:
        np.testing.assert_array_equal(np.asarray(one[name]), np.asarray(other[name]))


# Counts, and shapes of the names that are easy to get wrong, as transformers 4.37.2's state_dict lists them.
@pytest.mark.parametrize(
    ("config", "head", "count", "facts"),
    [
        (
            DPR,
            "question",
            39,
            {
                "question_encoder.encode_proj.weight": (3, 4),
                "question_encoder.bert_model.embeddings.LayerNorm.bias": (4,),
            },
        ),
        (DPR, "context", 39, {"ctx_encoder.bert_model.encoder.layer.1.output.dense.weight": (4, 6)}),
        (BertConfig(**BERT), None, 37, {"encoder.layer.0.intermediate.dense.weight": (6, 4)}),
        (BertConfig(**BERT, pooling="pooler"), None, 39, {"pooler.dense.weight": (4, 4)}),
        (
            BART,
            None,
            79,
            {
                "model.encoder.embed_positions.weight": (10, 4),
                "final_logits_bias": (1, 13),
                "model.decoder.layers.1.encoder_attn_layer_norm.bias": (4,),
                "model.decoder.layers.0.fc1.weight": (6, 4),
                "lm_head.weight": (13, 4),
            },
        ),
        (
            T5,
            None,
            50,
            {
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 2),
                "decoder.block.1.layer.1.EncDecAttention.o.weight": (4, 6),
                "decoder.block.0.layer.2.DenseReluDense.wi.weight": (5, 4),
            },
        ),
        (T5_GATED, None, 54, {"decoder.block.1.layer.2.DenseReluDense.wi_1.weight": (5, 4)}),
        (rag(), "token", 118, {"rag.question_encoder.question_encoder.encode_proj.bias": (3,)}),
        (rag(T5), "model", 89, {"generator.decoder.final_layer_norm.weight": (4,)}),
    ],
)
def test_shapes_are_those_of_transformers(config, head, count, facts):
    shapes = expected_shapes(config, head)
    assert len(shapes) == count
    assert {name: shapes[name] for name in facts} == facts
    assert all(name in shapes for group in tied_names(config, head) for name in group)


def test_what_no_network_computes_is_refused():
    with pytest.raises(ValueError, match="position_embedding_type must be 'absolute'"):
        expected_shapes(BertConfig(position_embedding_type="relative_key"))
    with pytest.raises(ValueError, match="pruned_heads"):
        expected_shapes(DPRConfig(pruned_heads={"0": [1]}))
    with pytest.raises(ValueError, match="head must be one of"):
        expected_shapes(rag(), "tokens")


@pytest.mark.parametrize("generator", [BART, T5, T5_GATED], ids=["bart", "t5", "t5-gated"])
@pytest.mark.parametrize(("saved", "wanted"), [("model", "token"), ("token", "model"), ("sequence", "token")])
def test_heads_load_into_one_another(generator, saved, wanted, tmp_path):
    config = rag(generator)
    write_checkpoint(tmp_path, some_weights(config, saved), config)
    fitted = fit_weights(config, read_weights(tmp_path), wanted)
    same(fitted, some_weights(config, wanted))


def test_foreign_layouts_fit():
    bert = BertConfig(**BERT, max_position_embeddings=8)
    plain = DPRConfig(**BERT, max_position_embeddings=8)
    bare = some_weights(bert)
    pretraining = {f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma"): value for name, value in bare.items()}
    pretraining |= {"cls.predictions.bias": np.zeros(11), "bert.pooler.dense.bias": np.zeros(4)}
    pretraining["bert.embeddings.position_ids"] = np.zeros((1, 8))
    for found in (bare, pretraining):
        same(fit_weights(bert, found), bare)
        same(fit_weights(plain, found, "context"), {f"ctx_encoder.bert_model.{name}": bare[name] for name in bare})
    same(fit_weights(bert, some_weights(plain)), bare)
    headless = {name.removeprefix("model."): value for name, value in some_weights(BART).items()}
    del headless["final_logits_bias"], headless["lm_head.weight"]
    assert not fit_weights(BART, headless)["final_logits_bias"].any()
    same({**fit_weights(BART, headless), "final_logits_bias": 0}, {**some_weights(BART), "final_logits_bias": 0})


def test_context_encoder_is_a_component_of_its_own():
    config, prefix = rag(), "rag.ctx_encoder.ctx_encoder.bert_model."
    shapes = expected_shapes(config, "token", context_encoder=DPR)
    assert shapes[f"{prefix}embeddings.word_embeddings.weight"] == (11, 4)
    weights = {name: np.zeros(size, np.float32) for name, size in shapes.items()}
    assert len(fit_weights(config, weights, "token", context_encoder=DPR)) == len(shapes)
    assert not any("ctx_encoder" in name for name in fit_weights(config, weights, "token"))


def test_every_name_is_accounted_for_in_one_error():
    weights = some_weights(rag(), "token")
    for name in ("final_layer_norm.bias", "fc1.weight"):
        del weights[f"rag.generator.model.decoder.layers.1.{name}"]
    weights |= {"zzz": np.zeros(1), "aaa.weight": np.zeros(1)}
    weights["rag.question_encoder.question_encoder.encode_proj.weight"] = np.zeros((4, 4))
    with pytest.raises(ValueError, match="doesn't fit") as caught:
        fit_weights(rag(), weights, "model", source="FILE")
    text = str(caught.value)
    assert text.startswith("FILE") and text.index("aaa.weight") < text.index("zzz")
    assert "2 missing: generator.model.decoder.layers.1.fc1.weight, generator.model.decoder.layers.1.final_" in text
    assert "question_encoder.question_encoder.encode_proj.weight (4, 4), needed (3, 4)" in text


@given(st.sets(st.sampled_from("abcdefg")), st.sets(st.sampled_from("abcdefg")))
def test_check_weights_tells_exactly_the_differences(expected, found):
    needed, held = dict.fromkeys(expected, (1,)), dict.fromkeys(found, (1,))
    assert fit_names(found, expected) == {name: name for name in expected & found}
    if expected == found:
        check_weights(needed, held)
    else:
        with pytest.raises(ValueError) as caught:
            check_weights(needed, held)
        lines = str(caught.value).splitlines()[1:]
        told = {line.split(":")[0].split()[1]: set(line.split(": ")[1].split(", ")) for line in lines}
        wanted = {"missing": expected - found, "unexpected": found - expected}
        assert told == {name: names for name, names in wanted.items() if names}


def test_tied_copies_must_agree_and_may_be_missing():
    weights = some_weights(BART)
    only_copy = {name: value for name, value in weights.items() if name not in tied_names(BART)[0][:3]}
    same(fit_weights(BART, only_copy), weights)
    with pytest.raises(ValueError, match=r"different values for model\.shared.weight and lm_head.weight"):
        fit_weights(BART, weights | {"lm_head.weight": weights["lm_head.weight"] + 1})
    untied = some_weights(T5_GATED)
    assert "lm_head.weight" not in tied_names(T5_GATED)[0]
    del untied["lm_head.weight"]
    with pytest.raises(ValueError, match=r"1 missing: lm_head\.weight"):
        fit_weights(T5_GATED, untied)
    of_transformers_5 = T5Config.from_dict({**T5_GATED.to_dict(), "scale_decoder_outputs": False})
    fitted = fit_weights(of_transformers_5, untied)
    np.testing.assert_array_equal(fitted["lm_head.weight"], untied["shared.weight"])


def test_written_files_are_those_of_transformers(tmp_path):
    config = rag()
    weights = {name: value.astype(ml_dtypes.bfloat16) for name, value in some_weights(config, "token").items()}
    for group in tied_names(config, "token"):
        weights |= dict.fromkeys(group, weights[group[0]])
    write_checkpoint(tmp_path / "a" / "b", weights, config, generation_config={"num_beams": 4}, architecture="X")
    folder = tmp_path / "a" / "b"
    assert files_of(folder) == ["config.json", "generation_config.json", "model.safetensors"]
    with safe_open(folder / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(weights) - set(file.keys()) == set(tied_names(config, "token")[0][1:])
    values = json.loads((folder / "config.json").read_text())
    assert (values["torch_dtype"], values["architectures"], config.torch_dtype) == ("bfloat16", ["X"], None)
    same(fit_weights(config, read_weights(folder), "token"), weights)
    assert folder.stat().st_mode & 0o077 == (0o777 & ~current_umask()) & 0o077
    for file in folder.iterdir():
        assert file.stat().st_mode & 0o777 == 0o666 & ~current_umask(), file.name


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_shards_are_written_and_read_and_old_ones_leave(tmp_path):
    config = rag(T5)
    weights = some_weights(config, "sequence")
    (tmp_path / "notes.txt").write_text("mine")
    write_checkpoint(tmp_path, weights, config)
    write_checkpoint(tmp_path, weights, config, max_shard_size="1KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2 and not (tmp_path / "model.safetensors").exists()
    assert index["metadata"]["total_size"] == sum(read_weights(tmp_path)[name].nbytes for name in index["weight_map"])
    same(fit_weights(config, read_weights(tmp_path), "sequence"), weights)
    (tmp_path / files[1]).unlink()
    with pytest.raises(OSError, match=files[1]):
        read_weights(tmp_path)
    write_checkpoint(tmp_path, weights, config)
    assert files_of(tmp_path) == ["config.json", "model.safetensors", "notes.txt"]


def test_a_full_disk_leaves_what_was_there(tmp_path):
    script = (
        "import resource, sys, numpy as np\n"
        "from rag_core.checkpoint import write_checkpoint\n"
        "from rag_core.config import DPRConfig\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "for shards in ('1GB', '50KB'):\n"
        "    try:\n"
        "        write_checkpoint(sys.argv[1], {f'w{i}': np.ones(2000, np.float32) for i in range(9)}, DPRConfig(),"
        " max_shard_size=shards)\n"
        "    except OSError as error:\n"
        "        print('refused', error)\n"
    )
    config = rag()
    write_checkpoint(tmp_path / "old", some_weights(config), config)
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    for folder in ("old", "new/deep"):
        ran = subprocess.run(
            [sys.executable, "-c", script, tmp_path / folder], capture_output=True, text=True, check=True
        )
        assert "refused" in ran.stdout and "model.safetensors" in ran.stdout
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before


def test_saving_refuses_what_would_not_read_back(tmp_path):
    weights = some_weights(BART)
    with pytest.raises(ValueError, match="differ although the configuration ties"):
        write_checkpoint(tmp_path / "x", weights | {"lm_head.weight": weights["lm_head.weight"] * 2}, BART)
    with pytest.raises(ValueError, match="max_shard_size"):
        write_checkpoint(tmp_path / "x", weights, BART, max_shard_size="big")
    assert not (tmp_path / "x").exists()


TENSORS = {
    "float32": torch.arange(12.0).reshape(3, 4),
    "float64": torch.ones(2, dtype=torch.float64) / 3,
    "float16": torch.ones(2, 2, dtype=torch.float16) / 3,
    "bfloat16": torch.ones(2, 2, dtype=torch.bfloat16) / 3,
    "int64": torch.arange(-2, 3),
    "int32": torch.arange(3, dtype=torch.int32),
    "uint8": torch.arange(3, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "sliced": torch.arange(20.0).reshape(4, 5)[1:3, ::2],
    "expanded": torch.arange(3.0).reshape(3, 1).expand(3, 4),
    "scalar": torch.tensor(7.0),
    "empty": torch.zeros(0, 3),
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}])
def test_torch_files_of_every_kind_read_equal(options, tmp_path):
    tensors = OrderedDict(TENSORS)
    tensors["tied"] = tensors["float32"]
    tensors._metadata = OrderedDict(version=1)
    torch.save(tensors, tmp_path / "a.bin", **options)
    torch.save(
        {"state_dict": dict(tensors), "epoch": 3, "optimizer": {"lr": [0.1, (1, None)]}}, tmp_path / "b.bin", **options
    )
    for name in ("a.bin", "b.bin"):
        found = TorchFile(tmp_path / name)
        assert list(found) == list(tensors) and found.shapes["sliced"] == (2, 3)
        for key, tensor in tensors.items():
            if key == "bfloat16":
                assert found[key].dtype == ml_dtypes.bfloat16
                np.testing.assert_array_equal(found[key].astype(np.float32), tensor.float().numpy())
            else:
                assert found[key].dtype == tensor.detach().numpy().dtype
                np.testing.assert_array_equal(found[key], tensor.detach().numpy())


class Attack:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


def zipped(payload, storage=b"\0" * 16):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/data/0", storage)
    return buffer.getvalue()


def rebuilt(size=(4,), stride=(1,), numel=4, offset=0):
    """A pickle of one tensor of any geometry."""

    class Persistent(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if value == "STORAGE" else None

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, ("STORAGE", offset, size, stride, False, OrderedDict())

    buffer = io.BytesIO()
    Persistent(buffer, 2).dump({"w": Tensor()})
    return buffer.getvalue()


def legacy(tensors):
    buffer = io.BytesIO()
    torch.save(tensors, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"hello world, not a model", "neither a zip archive"),
        (pickle.dumps({"w": Attack()}, 2), "names 'posix.system'"),
        (zipped(pickle.dumps({"w": Attack()}, 4)), "names 'posix.system'"),
        (legacy({"w": Attack()}), "names 'posix.system'"),
        (zipped(pickle.dumps({"w": np.ones(2)}, 2)), "names 'numpy"),
        (zipped(pickle.dumps({"w": torch.nn.Linear}, 2)), "names 'torch.nn.modules.linear.Linear'"),
        (zipped(pickle.dumps([1, 2], 2)), "holds no state dict"),
        (zipped(pickle.dumps({1, 2}, 4)), "operation EMPTY_SET"),
        (zipped(b"\x80\x02}q\x00"), "truncated or corrupt"),
        (zipped(b"\x80\x02]0."), "operation POP"),
        (zipped(rebuilt(size=(5,))), "reaches outside"),
        (zipped(rebuilt(size=(2**40, 2**40), stride=(0, 0))), "reaches outside"),
        (zipped(rebuilt(numel=2**50, size=(2**50,))), "reaches outside"),
        (zipped(rebuilt(stride=(-1,))), "strides"),
        (zipped(rebuilt(offset=2)), "reaches outside"),
        (zipped(rebuilt(size=("4",))), "size"),
        (legacy({"w": torch.ones(50)})[:-40], "doesn't fit"),
        (legacy({"w": torch.ones(50)})[:60], "truncated"),
        (zipped(rebuilt())[:-30], "truncated or corrupt"),
        (zipped(b"\x80\x02\x8d" + struct.pack("<Q", 2**60) + b"x."), "truncated or corrupt"),
    ],
)
def test_hostile_and_damaged_torch_files_are_refused(data, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(OSError, match=words) as caught:
        read_weights(tmp_path)
    assert "pytorch_model.bin" in str(caught.value) and not (tmp_path / "PWNED").exists()
    rebuilt_whole = tmp_path / "good.bin"
    rebuilt_whole.write_bytes(zipped(rebuilt(), np.arange(4, dtype=np.float32).tobytes()))
    np.testing.assert_array_equal(TorchFile(rebuilt_whole)["w"], np.arange(4))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_anywhere_is_an_error_or_harmless(data):
    """Any byte changed or any end cut off: the same arrays, or OSError; nothing else."""
    path = pytest.damage_folder / "pytorch_model.bin"
    whole = data.draw(st.sampled_from(pytest.damage_files))
    at = data.draw(st.integers(0, len(whole) - 1))
    change = data.draw(st.integers(1, 255))
    cut = data.draw(st.booleans())
    path.write_bytes(whole[:at] if cut else whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :])
    try:
        weights = {name: array.copy() for name, array in read_weights(path).items()}
    except OSError as error:
        assert "pytorch_model.bin" in str(error)
    else:
        assert all(isinstance(array, np.ndarray) for array in weights.values())


@pytest.fixture(autouse=True, scope="module")
def _damage(tmp_path_factory):
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3, 2), "b": torch.arange(4)}, buffer)
    pytest.damage_files = [buffer.getvalue(), legacy({"a": torch.ones(3, 2), "b": torch.arange(4)})]
    pytest.damage_folder = tmp_path_factory.mktemp("damage")
    yield
    del pytest.damage_files, pytest.damage_folder


def test_corrupt_values_in_a_zip_are_noticed(tmp_path):
    torch.save({"a": torch.full((50,), 1.5)}, tmp_path / "a.bin")
    data = bytearray((tmp_path / "a.bin").read_bytes())
    data[data.index(struct.pack("<f", 1.5) * 50) + 9] ^= 1
    (tmp_path / "a.bin").write_bytes(data)
    assert "a" in read_weights(tmp_path / "a.bin")
    with pytest.raises(OSError, match="checksum"):
        read_weights(tmp_path / "a.bin")["a"]


def test_safetensors_are_preferred_and_damage_is_named(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    assert read_weights(tmp_path)["a"].tolist() == [1, 1, 1]
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    assert read_weights(tmp_path)["a"].tolist() == [0, 0, 0]
    whole = (tmp_path / "model.safetensors").read_bytes()
    for damaged in (b"", whole[:-3], b"\xff" * 30, whole[:20]):
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(OSError, match=r"model\.safetensors is truncated or not"):
            read_weights(tmp_path)


def test_tensorflow_layouts_are_told_apart(tmp_path):
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "model.safetensors", metadata={"format": "tf"})
    with pytest.raises(OSError, match="TensorFlow"):
        read_weights(tmp_path)


def test_sharded_torch_files_and_bad_indices(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(2)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    places = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    weights = read_weights(tmp_path)
    assert weights["a"].tolist() == [1, 1] and weights.shapes == {"a": (2,), "b": (2,)}
    bad = [({**places, "c": places["a"]}, "lack: c"), ({"a": "../x.bin"}, "outside"), ([], "not an index")]
    for weight_map, words in bad:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(OSError, match=words):
            read_weights(tmp_path)
    with pytest.raises(OSError, match=r"No weights in folder .*model\.safetensors, .*pytorch_model\.bin"):
        (tmp_path / "empty").mkdir()
        read_weights(tmp_path / "empty")
