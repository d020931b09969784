"""Checkpoint folders: files written whole, as transformers names them.

Sharded, damaged and missing ones.
"""

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from rag_core.checkpoint.folder import read_weights, write_checkpoint
from rag_core.checkpoint.weights import fit_weights, tied_names
from tests.support.small_weights import BART, T5, rag, same, some_weights


def test_written_files_are_those_of_transformers(tmp_path):
    config = rag()
    weights = {
        name: value.astype(ml_dtypes.bfloat16)
        for name, value in some_weights(config, "token").items()
    }
    for group in tied_names(config, "token"):
        weights |= dict.fromkeys(group, weights[group[0]])
    write_checkpoint(
        tmp_path / "a" / "b", weights, config, generation_config={"num_beams": 4}, architecture="X"
    )
    folder = tmp_path / "a" / "b"
    assert files_of(folder) == ["config.json", "generation_config.json", "model.safetensors"]
    with safe_open(folder / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(weights) - set(file.keys()) == set(tied_names(config, "token")[0][1:])
    values = json.loads((folder / "config.json").read_text())
    assert (values["torch_dtype"], values["architectures"], config.torch_dtype) == (
        "bfloat16",
        ["X"],
        None,
    )
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
    assert index["metadata"]["total_size"] == sum(
        read_weights(tmp_path)[name].nbytes for name in index["weight_map"]
    )
    same(fit_weights(config, read_weights(tmp_path), "sequence"), weights)
    (tmp_path / files[1]).unlink()
    with pytest.raises(OSError, match=files[1]):
        read_weights(tmp_path)
    write_checkpoint(tmp_path, weights, config)
    assert files_of(tmp_path) == ["config.json", "model.safetensors", "notes.txt"]


def test_a_full_disk_leaves_what_was_there(tmp_path):
    script = (
        "import resource, sys, numpy as np\nfrom rag_core.checkpoint.folder import "
        "write_checkpoint\nfrom rag_core.config.rag import "
        "DPRConfig\nresource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\nfor shards in "
        "('1GB', '50KB'):\n    try:\n        write_checkpoint(sys.argv[1], {f'w{i}': "
        "np.ones(2000, np.float32) for i in range(9)}, DPRConfig(), max_shard_size=shards)\n    "
        "except OSError as error:\n        print('refused', error)\n"
    )
    config = rag()
    write_checkpoint(tmp_path / "old", some_weights(config), config)
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    for folder in ("old", "new/deep"):
        ran = subprocess.run(
            [sys.executable, "-c", script, tmp_path / folder],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "refused" in ran.stdout and "model.safetensors" in ran.stdout
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before


def test_saving_refuses_what_would_not_read_back(tmp_path):
    weights = some_weights(BART)
    with pytest.raises(ValueError, match="differ although the configuration ties"):
        write_checkpoint(
            tmp_path / "x", weights | {"lm_head.weight": weights["lm_head.weight"] * 2}, BART
        )
    with pytest.raises(ValueError, match="max_shard_size"):
        write_checkpoint(tmp_path / "x", weights, BART, max_shard_size="big")
    assert not (tmp_path / "x").exists()


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
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    for layout, name, shape in (("tf", "tf_x.a.weight", (3, 2)), ("pt", "tf_x/a/kernel:0", (2, 3))):
        save_file(
            {"tf_x/a/kernel:0": kernel}, tmp_path / "model.safetensors", metadata={"format": layout}
        )
        weights = read_weights(tmp_path)
        assert weights.shapes == {name: shape} and weights.scoped == (layout == "tf")
        np.testing.assert_array_equal(weights[name], kernel.T if layout == "tf" else kernel)


def test_sharded_torch_files_and_bad_indices(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(2)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    places = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    weights = read_weights(tmp_path)
    assert weights["a"].tolist() == [1, 1] and weights.shapes == {"a": (2,), "b": (2,)}
    bad = [
        ({**places, "c": places["a"]}, "lack: c"),
        ({"a": "../x.bin"}, "outside"),
        ([], "not an index"),
    ]
    for weight_map, words in bad:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(OSError, match=words):
            read_weights(tmp_path)
    with pytest.raises(
        OSError, match=r"No weights in folder .*model\.safetensors, .*pytorch_model\.bin"
    ):
        (tmp_path / "empty").mkdir()
        read_weights(tmp_path / "empty")
