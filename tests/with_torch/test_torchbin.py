"""pytorch_model.bin without torch.

Every kind of tensor reads equal, hostile and damaged files are refused.
"""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_core.checkpoint.folder import read_weights
from rag_core.checkpoint.torch_bin import TorchFile

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


@pytest.mark.parametrize(
    "options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}]
)
def test_torch_files_of_every_kind_read_equal(options, tmp_path):
    tensors = OrderedDict(TENSORS)
    tensors["tied"] = tensors["float32"]
    tensors._metadata = OrderedDict(version=1)
    torch.save(tensors, tmp_path / "a.bin", **options)
    torch.save(
        {"state_dict": dict(tensors), "epoch": 3, "optimizer": {"lr": [0.1, (1, None)]}},
        tmp_path / "b.bin",
        **options,
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
            return (
                ("storage", torch.FloatStorage, "0", "cpu", numel) if value == "STORAGE" else None
            )

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (
                "STORAGE",
                offset,
                size,
                stride,
                False,
                OrderedDict(),
            )

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


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    tensors, buffer = {"a": torch.ones(3, 2), "b": torch.arange(4)}, io.BytesIO()
    torch.save(tensors, buffer)
    return tmp_path_factory.mktemp("damage"), [buffer.getvalue(), legacy(tensors)]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_anywhere_is_an_error_or_harmless(whole_files, data):
    """Any byte changed or any end cut off: the same arrays, or OSError; nothing else."""
    folder, files = whole_files
    path = folder / "pytorch_model.bin"
    whole = data.draw(st.sampled_from(files))
    at = data.draw(st.integers(0, len(whole) - 1))
    change = data.draw(st.integers(1, 255))
    cut = data.draw(st.booleans())
    path.write_bytes(
        whole[:at] if cut else whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :]
    )
    try:
        weights = {name: array.copy() for name, array in read_weights(path).items()}
    except OSError as error:
        assert "pytorch_model.bin" in str(error)
    else:
        assert all(isinstance(array, np.ndarray) for array in weights.values())


def test_corrupt_values_in_a_zip_are_noticed(tmp_path):
    torch.save({"a": torch.full((50,), 1.5)}, tmp_path / "a.bin")
    data = bytearray((tmp_path / "a.bin").read_bytes())
    data[data.index(struct.pack("<f", 1.5) * 50) + 9] ^= 1
    (tmp_path / "a.bin").write_bytes(data)
    assert "a" in read_weights(tmp_path / "a.bin")
    with pytest.raises(OSError, match="checksum"):
        read_weights(tmp_path / "a.bin")["a"]
