"""`dualrag convert`: every readable layout becomes the one that is written, whole and unchanged,
or nothing.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from typer.testing import CliRunner

from conformance import exchange, tf_exchange
from conformance.mismatches import compare, relative_error
from rag_core.checkpoint.convert import convert_checkpoint
from rag_core.checkpoint.folder import read_weights, write_checkpoint
from rag_core.checkpoint.weights import fit_weights
from rag_core.cli.commands import app
from rag_core.config.rag import AutoConfig, BertConfig
from rag_core.knowledge.remembered import REMEMBERED, remembered_base
from rag_core.retrieval.index import INDEX_PATTERNS
from rag_torch import RagSequenceForGeneration, RagTokenForGeneration
from tests.support.small_weights import BART, BERT, DPR, T5_GATED, rag, same, some_weights

GOLDEN = Path(__file__).parents[2] / "conformance" / "golden" / "checkpoints"
CLASSES = {"token": RagTokenForGeneration, "sequence": RagSequenceForGeneration}


def files_of(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


@pytest.mark.parametrize("name", exchange.CHECKPOINTS)
def test_converted_checkpoints_of_pytorch_give_the_references_outputs(name, tmp_path):
    model_name, head, _ = exchange.CHECKPOINTS[name]
    done = convert_checkpoint(GOLDEN / name, tmp_path / "out", max_shard_size="100KB")
    assert len(done.files) > 2 and done.dtypes == ["float32"] and done.left_out == []
    model = CLASSES[head].from_pretrained(tmp_path / "out")
    with torch.no_grad():
        found = exchange.outputs(model, model_name, torch.from_numpy)
    expected = dict(np.load(GOLDEN / name / "expected.npz"))
    assert [str(mismatch) for mismatch in compare(expected, found, 1e-5)] == []


@pytest.mark.parametrize("name", tf_exchange.TF_CHECKPOINTS)
def test_converted_checkpoints_of_tensorflow_give_the_references_outputs(name, tmp_path):
    head = name.split("_")[1]
    convert_checkpoint(GOLDEN / name, tmp_path / "out")
    assert files_of(tmp_path / "out") == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (
        values["architectures"] == [CLASSES[head].__name__] and values["torch_dtype"] == "float32"
    )
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert "rag.generator.model.shared.weight" in file.keys()
    inputs = {key: torch.from_numpy(array) for key, array in tf_exchange.given().items()}
    labels = inputs.pop("labels")
    with torch.no_grad():
        output = CLASSES[head].from_pretrained(tmp_path / "out")(**inputs, decoder_input_ids=labels)
    assert (
        relative_error(np.load(GOLDEN / name / "expected.npz")["logits"], output.logits.numpy())
        < 1e-5
    )


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16])
def test_half_precision_survives_and_can_be_asked_for(dtype, tmp_path):
    config = rag(T5_GATED)
    halves = {name: value.astype(dtype) for name, value in some_weights(config, "sequence").items()}
    config.architectures = ["RagSequenceForGeneration"]
    write_checkpoint(tmp_path / "half", halves, config)
    kind = np.dtype(dtype).name
    assert convert_checkpoint(tmp_path / "half", tmp_path / "kept").dtypes == [kind]
    same(read_weights(tmp_path / "kept"), read_weights(tmp_path / "half"))
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["torch_dtype"] == kind
    convert_checkpoint(tmp_path / "half", tmp_path / "single", dtype="float32")
    same(
        read_weights(tmp_path / "single"),
        {k: v.astype(np.float32) for k, v in read_weights(tmp_path / "half").items()},
    )
    convert_checkpoint(tmp_path / "single", tmp_path / "again", dtype=kind)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "kept/model.safetensors"
    ).read_bytes()


def test_an_index_and_what_is_known_of_it_come_along(tmp_path):
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    config = rag(T5_GATED)
    config.architectures = ["RagSequenceForGeneration"]
    write_checkpoint(source, some_weights(config, "sequence"), config)
    names = [pattern.replace("*", "part") for pattern in INDEX_PATTERNS]
    for name in names:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)
    notes = {"path": "../kb", "manifest_sha256": "0" * 64, "encoder": None}
    (source / REMEMBERED).write_text(json.dumps(notes))
    done = convert_checkpoint(source, target)
    assert {*names, REMEMBERED} <= {*done.copied}
    assert all((target / name).read_text() == name for name in names)
    assert remembered_base(target) == remembered_base(source)
    assert remembered_base(target).path == tmp_path / "kb"


def test_numbers_too_large_for_half_precision_are_refused(tmp_path):
    weights = some_weights(BART)
    weights["model.decoder.layers.0.fc1.bias"] = np.full(6, 1e5, np.float32)
    write_checkpoint(tmp_path / "a", weights, BART)
    with pytest.raises(
        ValueError, match=r"layers\.0\.fc1\.bias holds 100000, too large for float16"
    ):
        convert_checkpoint(tmp_path / "a", tmp_path / "b", dtype="float16")
    assert not (tmp_path / "b").exists()
    convert_checkpoint(tmp_path / "a", tmp_path / "b", dtype="bfloat16")


def test_parts_alone_and_what_they_bring_along(tmp_path):
    bert = BertConfig(**BERT)
    weights = {
        f"bert.{name}": value
        for name, value in some_weights(BertConfig(**BERT, pooling="pooler")).items()
    }
    weights |= {"cls.predictions.bias": np.zeros(11, np.float32)}
    folder = tmp_path / "bert"
    bert.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name in (
        "vocab.txt",
        "tokenizer_config.json",
        "1_Pooling/config.json",
        "pytorch_model.bin.old",
        "notes.md",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    done = convert_checkpoint(folder, tmp_path / "out")
    assert done.left_out == ["cls.predictions.bias"] and "1 (cls.predictions.bias)" in str(done)
    assert done.copied == ["1_Pooling/config.json", "tokenizer_config.json", "vocab.txt"]
    assert files_of(tmp_path / "out") == [
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        *done.copied[1:],
    ]
    assert sorted(read_weights(tmp_path / "out")) == sorted(
        some_weights(BertConfig(**BERT, pooling="pooler"))
    )
    assert AutoConfig.from_pretrained(tmp_path / "out").architectures == ["BertModel"]
    for head, architecture in (
        ("question", "DPRQuestionEncoder"),
        ("context", "DPRContextEncoder"),
    ):
        write_checkpoint(tmp_path / head, some_weights(DPR, head), DPR)
        convert_checkpoint(tmp_path / head, tmp_path / f"{head}_out")
        config = AutoConfig.from_pretrained(tmp_path / f"{head}_out")
        assert config.architectures == [architecture]
        same(
            fit_weights(config, read_weights(tmp_path / f"{head}_out"), head),
            some_weights(DPR, head),
        )


def test_nothing_is_written_where_anything_is_wrong(tmp_path):
    source = GOLDEN / "tf_token_bart"
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    values = json.loads((broken / "config.json").read_text())
    values["generator"]["decoder_layers"] = 2
    (broken / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"broken.* doesn't fit the configuration") as caught:
        convert_checkpoint(broken, tmp_path / "new" / "out")
    assert "missing: rag.generator.model.decoder.layers.1.encoder_attn.k_proj.bias" in str(
        caught.value
    )
    with pytest.raises(ValueError, match="max_shard_size"):
        convert_checkpoint(source, tmp_path / "new" / "out", max_shard_size="big")
    with pytest.raises(ValueError, match="dtype must be one of keep"):
        convert_checkpoint(source, tmp_path / "new" / "out", dtype="int8")
    with pytest.raises(TypeError, match="got colour"):
        convert_checkpoint(source, tmp_path / "new" / "out", colour=1)
    assert (
        files_of(tmp_path) == [f"broken/{name}" for name in files_of(broken)]
        and not (tmp_path / "new").exists()
    )
    before = (broken / "tf_model.h5").read_bytes()
    with pytest.raises(
        OSError, match=r"broken' holds a model already \(config\.json, tf_model\.h5\)"
    ):
        convert_checkpoint(source, broken)
    assert (broken / "tf_model.h5").read_bytes() == before


def test_the_command_tells_what_it_did_in_one_line(tmp_path):
    out = tmp_path / "out"
    words = [
        "convert",
        str(GOLDEN / "tf_token_bart"),
        str(out),
        "--max-shard-size",
        "80KB",
        "--dtype",
        "bfloat16",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert (
        done.stderr
        == f"{out}: 87 weights, 0.1 MB of bfloat16, in 2 file(s), 1 other file(s) copied.\n"
    )
    assert CliRunner().invoke(app, words).stderr == done.stderr  # found done
    again = CliRunner().invoke(app, [*words[:-1], "float16"])
    assert (
        again.exit_code == 2
        and again.stderr.startswith("dualrag: error: ")
        and "holds a model already" in again.stderr
    )
    assert again.stderr.count("\n") == 1


LARGE = """
import resource, sys
from pathlib import Path
import numpy as np
import h5py, tqdm, safetensors
from rag_core.config.rag import BartConfig
from rag_core.checkpoint.convert import convert_checkpoint
from rag_core.checkpoint.safetensors_files import write_safetensors
from rag_core.checkpoint.weights import expected_shapes, tied_names

def peak():  # MB of this process alone; ru_maxrss begins with the parent's
    if not Path("/proc/self/status").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

root = Path(sys.argv[1])
config = BartConfig(vocab_size=2000, d_model=1024, encoder_layers=4, decoder_layers=2)
shapes = expected_shapes(config)
for copy in tied_names(config)[0][1:]:
    del shapes[copy]
config.save_pretrained(root / "a")
kinds = dict.fromkeys(shapes, np.dtype("f4"))
write_safetensors(root / "a" / "model.safetensors", shapes, kinds, lambda name: np.ones(shapes[name], "f4"))
before = peak()
done = convert_checkpoint(root / "a", root / "b", max_shard_size="50MB")
print(done.size / 1e6, peak() - before)
"""


def test_memory_holds_single_tensors_not_the_checkpoint(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LARGE, tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ},
        check=True,
    )
    size, grown = map(float, done.stdout.split())
    assert size > 300 and grown < 100, (size, grown)
