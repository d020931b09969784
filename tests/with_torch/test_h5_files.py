"""tf_model.h5 and TensorFlow's safetensors.

The reference's files read right, hostile ones are refused.
"""

import json
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from conformance import tf_exchange
from conformance.mismatches import relative_error
from rag_core.checkpoint.folder import read_weights
from rag_core.checkpoint.h5 import H5File
from rag_core.checkpoint.tf_names import by_end, torch_name
from rag_core.checkpoint.weights import expected_shapes, fit_weights
from rag_core.config.rag import AutoConfig, BertConfig, DPRConfig
from rag_torch import RagSequenceForGeneration, RagTokenForGeneration
from tests.support.small_weights import BART, BERT, DPR, T5, rag, same, some_weights

GOLDEN = Path(__file__).parents[2] / "conformance" / "golden" / "checkpoints"
H5 = GOLDEN / "tf_token_bart" / "tf_model.h5"
CLASSES = {
    "TFRagTokenForGeneration": RagTokenForGeneration,
    "TFRagSequenceForGeneration": RagSequenceForGeneration,
}


@pytest.mark.parametrize("name", tf_exchange.TF_CHECKPOINTS)
def test_a_checkpoint_of_tensorflow_gives_the_references_outputs(name):
    expected = np.load(GOLDEN / name / "expected.npz")
    model = CLASSES[tf_exchange.TF_CHECKPOINTS[name][0]].from_pretrained(GOLDEN / name)
    inputs = {key: torch.from_numpy(array) for key, array in tf_exchange.given().items()}
    labels = inputs.pop("labels")
    with torch.no_grad():
        logits = model(**inputs, decoder_input_ids=labels).logits.numpy()
        assert relative_error(expected["logits"], logits) < 1e-5
        if "greedy" in expected:
            assert model.generate(**inputs, max_length=10).tolist() == expected["greedy"].tolist()


def test_every_array_of_the_references_files_is_read_once_and_turned_where_it_must_be():
    for name, (_, safe) in tf_exchange.TF_CHECKPOINTS.items():
        config = AutoConfig.from_pretrained(GOLDEN / name)
        fitted = fit_weights(config, read_weights(GOLDEN / name), "token")
        if safe:
            held = load_file(GOLDEN / name / "model.safetensors")
        else:
            with h5py.File(GOLDEN / name / "tf_model.h5") as file:
                found = []
                file.visit(found.append)
                held = {
                    path: file[path][()] for path in found if isinstance(file[path], h5py.Dataset)
                }
        unseen = set(fitted)
        for path, array in held.items():
            ours = next(
                each
                for each in sorted(fitted)
                if torch_name(path).endswith(each.removeprefix("rag.generator."))
            )
            np.testing.assert_array_equal(
                fitted[ours], array.T if path.endswith("kernel:0") else array
            )
            unseen.discard(ours)
        assert {each.rpartition(".")[0].rpartition(".")[2] for each in unseen} == {
            "embed_tokens",
            "lm_head",
        }


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("decoder/shared/shared/embeddings:0", "decoder.shared.shared.weight"),
        ("rag/final_logits_bias:0", "rag.final_logits_bias"),
        (
            "model/tf_bart_model/model.shared/embeddings:0",
            "model.tf_bart_model.model.shared.weight",
        ),
        (
            "t/encoder/block_._1/layer_._0/SelfAttention/q/kernel:0",
            "t.encoder.block.1.layer.0.SelfAttention.q.weight",
        ),
        ("x/bert/embeddings/LayerNorm/gamma:0", "x.bert.embeddings.LayerNorm.weight"),
        ("x/bert/embeddings/LayerNorm/beta", "x.bert.embeddings.LayerNorm.bias"),
        ("mlm___cls/x/mlm___cls/predictions/bias:0", "cls.x.cls.predictions.bias"),
    ],
)
def test_names_are_spelled_as_pytorch_spells_them(name, spelled):
    assert torch_name(name) == spelled


def test_a_name_is_known_by_its_end_and_never_by_another_component():
    bert = expected_shapes(DPR, "question")
    inner = "bert_model.encoder.layer.0.output.dense.weight"
    assert list(by_end([f"a.tfdpr.question_encoder.{inner}"], bert)) == [
        f"question_encoder.{inner}"
    ]
    assert by_end([f"a.tfdpr.ctx_encoder.{inner}"], bert) == {}
    assert list(by_end([f"a.tfdpr.ctx_encoder.{inner}"], expected_shapes(BertConfig(**BERT)))) == [
        inner[11:]
    ]
    assert by_end([f"rag.generator.{inner}"], expected_shapes(rag(), "token")) == {}
    # A layer that only the other stack has.
    assert by_end(["tf_x.model.encoder.layers.1.fc1.weight"], expected_shapes(BART)) == {}
    shared = {"shared.weight": ["encoder.shared.shared.weight", "shared.weight"]}
    assert (
        by_end(["encoder.shared.shared.weight", "shared.weight", "x.weight"], expected_shapes(T5))
        == shared
    )


def tensorflow_files(config, head, folder, *, shards=False, changed=None):
    """Weights of ours as TensorFlow's classes would write them, T5's table in three places."""
    weights = some_weights(config, head)
    arrays = {}
    for name, value in weights.items():
        if "embed_tokens" in name or (
            config.tie_word_embeddings and name.endswith("lm_head.weight")
        ):
            continue
        parts = name.split(".")
        kernel = (
            parts[-1] == "weight"
            and value.ndim == 2
            and not {"shared", "relative_attention_bias"} & set(parts)
        )
        arrays[
            "/".join(["decoder/tf_x_1", *parts[:-1], "kernel:0" if kernel else f"{parts[-1]}:0"])
        ] = value.T if kernel else value
    if not shards:
        arrays["encoder/shared/shared/embeddings:0"] = (
            weights["shared.weight"] if changed is None else changed
        )
    names = sorted(arrays)
    rows = [names[::2], names[1::2]] if shards else [names]
    files = ["a.h5", "b.h5"] if shards else ["tf_model.h5"]
    for file, row in zip(files, rows, strict=True):
        with h5py.File(folder / file, "w") as h5:
            for name in row:
                h5[name.removeprefix("decoder/tf_x_1/") if shards else name] = arrays[name]
    if shards:
        places = {name: file for file, row in zip(files, rows, strict=True) for name in row}
        (folder / "tf_model.h5.index.json").write_text(json.dumps({"weight_map": places}))
    return weights


@pytest.mark.parametrize("shards", [False, True], ids=["one", "shards"])
def test_t5_and_shards_whose_index_names_more_scopes(shards, tmp_path):
    weights = tensorflow_files(T5, None, tmp_path, shards=shards)
    same(fit_weights(T5, read_weights(tmp_path)), weights)
    if shards:
        index = json.loads((tmp_path / "tf_model.h5.index.json").read_text())
        index["weight_map"]["decoder/tf_x_1/lost/kernel:0"] = "a.h5"
        (tmp_path / "tf_model.h5.index.json").write_text(json.dumps(index))
        with pytest.raises(OSError, match="shards lack: decoder/tf_x_1/lost/kernel:0"):
            read_weights(tmp_path)


def test_another_models_file_and_copies_that_differ_are_one_error(tmp_path):
    with pytest.raises(ValueError, match="46 missing: ") as caught:
        fit_weights(T5, read_weights(H5), source="THE FILE")
    text = str(caught.value).replace("\n", " ")
    assert (
        "THE FILE" in text
        and "86 unexpected: " in text
        and "encoder.block.0.layer.0.layer_norm.weight" in text
        and "tf_rag" not in text
    )
    assert (
        "rag.generator.model.decoder.layers.0.fc1.weight" in text
        and "bert_model.encoder.layer.0.output" in text
    )
    config = AutoConfig.from_pretrained(H5.parent)
    config.generator.vocab_size += 1
    with pytest.raises(
        ValueError, match=r"of another shape: .*shared\.weight \(96, 32\), needed \(97, 32\)"
    ):
        fit_weights(config, read_weights(H5), "token")
    tensorflow_files(T5, None, tmp_path, changed=np.zeros((13, 4), np.float32))
    with pytest.raises(
        ValueError, match=r"different values for shared\.weight: as .* and as encoder\.shared"
    ):
        fit_weights(T5, read_weights(tmp_path))
    with pytest.raises(ValueError, match="39 missing"):
        save_file(
            {"tf_x/ctx_encoder/a": np.zeros(1)},
            tmp_path / "model.safetensors",
            metadata={"format": "tf"},
        )
        fit_weights(DPRConfig(**BERT, projection_dim=3), read_weights(tmp_path), "question")


def test_every_kind_of_number_reads_equal(tmp_path):
    kinds = [
        np.float16,
        np.float32,
        np.float64,
        ml_dtypes.bfloat16,
        np.int64,
        np.int32,
        np.uint8,
        ">f4",
        ">f8",
        ">i4",
    ]
    arrays = {str(i): (np.arange(6).reshape(2, 3) / 3).astype(kind) for i, kind in enumerate(kinds)}
    arrays |= {"scalar": np.float32(3), "empty": np.zeros((0, 3), np.float32)}
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = array
    found = H5File(tmp_path / "a.h5")
    assert found.dtypes == {
        name: np.asarray(array).dtype.newbyteorder("=") for name, array in arrays.items()
    }
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == found.dtypes[name] and found.shapes[name] == np.shape(array)


ONES = np.ones((20, 30), np.float32)


def virtual(file):
    layout = h5py.VirtualLayout((20, 30), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "a", (20, 30))
    file.create_virtual_dataset("a", layout)


def twice(file):
    file["a"] = ONES
    file["b"] = file["a"]


def circle(file):
    file.create_group("a")["a"] = file["/"]


def deep(file):
    file["/".join("a" * 100)] = ONES


def claimed(file):
    """A size of 4 TB, of which nothing is stored."""
    file.create_dataset("a", (2**20, 2**20), "f4")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda file: file.update(a=h5py.SoftLink("/b"), b=ONES), "'a' is a link"),
        (lambda file: file.update(a=h5py.ExternalLink("/etc/passwd", "/b")), "'a' is a link"),
        (
            lambda file: file.create_dataset("a", (9,), "u1", external=[("/etc/passwd", 0, 9)]),
            "'a' doesn't lie in one",
        ),
        (virtual, "'a' doesn't lie in one piece"),
        (
            lambda file: file.create_dataset("a", data=ONES, chunks=(5, 30)),
            "'a' doesn't lie in one piece",
        ),
        (lambda file: file.create_dataset("a", data=ONES, compression="gzip"), "'a' is compressed"),
        (
            lambda file: file.create_dataset("a", data=ONES, chunks=True, fletcher32=True),
            "'a' is compressed or filtered",
        ),
        (
            lambda file: file.create_dataset("a", data=["text"], dtype=h5py.string_dtype()),
            "'a' holds TypeStringID",
        ),
        (lambda file: file.create_dataset("a", data=np.zeros(2, "S9")), "'a' holds TypeStringID"),
        (
            lambda file: file.create_dataset("a", (2,), h5py.vlen_dtype(np.float32)),
            "'a' holds TypeVlenID",
        ),
        (lambda file: file.create_dataset("a", (2,), h5py.ref_dtype), "'a' holds TypeReferenceID"),
        (
            lambda file: file.create_dataset("a", data=np.zeros(2, "i4,f4")),
            "'a' holds TypeCompoundID",
        ),
        (
            lambda file: file.create_dataset("a", data=np.zeros(2, "V7")),
            "'a' holds TypeOpaqueID of 7",
        ),
        (lambda file: file.create_dataset("a", data=h5py.Empty("f4")), "'a' has no shape"),
        (lambda file: file.update(a=np.dtype("f4")), "'a' is neither a group nor an array"),
        (claimed, "'a' was made but never filled"),
        (twice, "'b' stands in it twice"),
        (circle, "stands in it twice|deep"),
        (deep, "more than 64 deep"),
    ],
)
def test_what_keras_does_not_write_is_refused(write, words, tmp_path):
    with h5py.File(tmp_path / "tf_model.h5", "w") as file:
        write(file)
    with pytest.raises(OSError, match=words) as caught:
        read_weights(tmp_path)
    assert "tf_model.h5 is refused" in str(caught.value)


def test_a_size_above_the_files_own_is_refused_before_anything_is_allocated(tmp_path):
    """The shape in the file is made larger than the file, in place."""
    path = tmp_path / "tf_model.h5"
    with h5py.File(path, "w") as file:
        file["a"] = np.ones((7, 11), np.float32)
    data = path.read_bytes()
    shape = np.array([7, 11], "<u8").tobytes()
    assert data.count(shape) >= 1
    path.write_bytes(data.replace(shape, np.array([2**30, 2**31], "<u8").tobytes()))
    with pytest.raises(OSError, match=r"tf_model\.h5 is truncated or not a HDF5 file"):
        read_weights(tmp_path)
    header = {"a": {"dtype": "F32", "shape": [2**30, 2**31], "data_offsets": [0, 2**63]}}
    for entry in (
        header,
        {"a": {**header["a"], "data_offsets": [0, 8]}},
        {"a": {**header["a"], "shape": [-1, -2]}},
    ):
        text = json.dumps(entry).encode()
        (tmp_path / "model.safetensors").write_bytes(
            len(text).to_bytes(8, "little") + text + b"\0" * 8
        )
        with pytest.raises(
            OSError, match=r"model\.safetensors is truncated or not a safetensors file"
        ):
            read_weights(tmp_path)
    for length in (2**63, 2**20):
        (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
        with pytest.raises(OSError, match=f"header of {length} bytes reaches past the end"):
            read_weights(tmp_path)


def test_damaged_files_are_named(tmp_path):
    content = H5.read_bytes()
    for damaged in (b"", b"hello", content[:-1], content[: len(content) // 2], content[:100]):
        (tmp_path / "tf_model.h5").write_bytes(damaged)
        with pytest.raises(OSError, match=r"tf_model\.h5 is truncated or not a HDF5 file"):
            read_weights(tmp_path)
