"""`dualrag inspect`: what folders and files hold, and one sentence where they are damaged."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rag_core.cli import app

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "conformance" / "golden" / "checkpoints"
STORED = ROOT / "tests" / "data" / "stored"


def inspect(place, *options, rc=0):
    done = CliRunner().invoke(app, ["inspect", str(place), *options])
    assert done.exit_code == rc, done.output
    return done.stdout if rc == 0 else done.stderr


def found(place):
    return json.loads(inspect(place, "--json"))


@pytest.mark.parametrize(
    ("name", "file", "head", "layers"),
    [
        ("token_bart", "pytorch_model.bin", "token", (2, 2)),
        ("tf_token_bart", "tf_model.h5", "token", (2, 1)),
        ("sequence_t5_gated", "model.safetensors", "sequence", (2, 3)),
    ],
)
def test_a_model_of_any_layout_has_parts_and_numbers(name, file, head, layers):
    told = found(CHECKPOINTS / name)
    assert (told["kind"], told["head"], told["n_docs"]) == ("RAG model", head, 3)
    parts, weights = told["parts"], told["weights"]
    assert list(parts) == ["question_encoder", "generator"] and weights["files"] == [file]
    assert (parts["generator"]["layers"], parts["generator"]["decoder_layers"]) == layers
    assert parts["question_encoder"]["model_type"] == "dpr"
    # TensorFlow stores a bias beside the generator
    rest = weights["numbers"] - sum(part["numbers"] for part in parts.values())
    assert rest == {"tf_model.h5": parts["generator"]["vocabulary"]}.get(file, 0)
    assert weights["dtypes"] == {"float32": weights["numbers"]}
    assert weights["bytes"] == 4 * weights["numbers"] < told["bytes"]
    shown = inspect(CHECKPOINTS / name)
    assert f"head              RAG-{head.title()}, 3 passages a question" in shown
    assert len(shown.splitlines()) < 24


def test_tokenizers_and_licences_are_noted(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(STORED / "torch" / "model", folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (folder / "LICENSE.txt").write_text("\n  Apache License\nVersion 2.0\n")
    told = found(folder)
    assert told["licence"] == {"README.md": "apache-2.0", "LICENSE.txt": "Apache License"}
    assert told["tokenizers"]["generator_tokenizer"] == {"class": "BartTokenizer", "tokens": 298}
    assert "apache-2.0 (README.md), Apache License (LICENSE.txt)" in inspect(folder)
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    assert found(folder)["licence"] == {"LICENSE.txt": "Apache License"}


def test_what_is_no_model(tmp_path):
    base = found(STORED / "knowledge")
    assert base["kind"] == "knowledge base" and base["passages"] == 10
    assert base["index"]["recall_at_5"] == 1.0
    index = found(STORED / "knowledge_ivfpq" / "index.faiss")
    assert (index["index"], index["rows"], index["dimension"]) == ("IndexIVFPQ", 256, 16)
    passages = found(STORED / "knowledge" / "passages")
    assert passages["passages"] == 10 and "title" in passages["columns"]
    weights = found(CHECKPOINTS / "token_bart" / "pytorch_model.bin")
    assert weights["kind"] == "file of weights" and weights["weights"]["numbers"] > 1000
    asked = found(ROOT / "examples" / "held-out.jsonl")
    assert (asked["questions"], asked["with_answers"]) == (10, 10)
    plain = tmp_path / "questions.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        plain.write_text("Who?\n\nWhat?\n", encoding)
        assert (found(plain)["questions"], found(plain)["first"]) == (2, "Who?")
    assert "with gold documents" in inspect(plain)
    assert inspect(STORED / "knowledge").startswith("knowledge base  ")
    assert "IndexIVFPQ, 256 vectors of 16 numbers, inner product" in inspect(
        STORED / "knowledge_ivfpq" / "index.faiss"
    )


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("folder", "harm", "says"),
    [
        (CHECKPOINTS / "sequence_t5_gated", "model.safetensors", "model.safetensors"),
        (CHECKPOINTS / "token_bart", "pytorch_model.bin", "pytorch_model.bin"),
        (CHECKPOINTS / "token_bart", "config.json", "config.json"),
        (STORED / "knowledge", "manifest.json", "manifest.json"),
        (STORED / "knowledge", "index.faiss", "index.faiss"),
    ],
)
def test_a_damaged_folder_is_one_sentence(tmp_path, folder, harm, says):
    shutil.copytree(folder, tmp_path / "copy")
    cut(tmp_path / "copy" / harm)
    fault = inspect(tmp_path / "copy", rc=2)
    assert says in fault and len(fault.splitlines()) == 1 and fault.startswith("dualrag: error: ")


def test_weights_that_do_not_fit_the_config_are_told(tmp_path):
    shutil.copytree(CHECKPOINTS / "token_bart", tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text("utf-8"))
    config["generator"]["vocab_size"] += 1
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    assert "fault             it doesn't fit the configuration: " in inspect(tmp_path / "copy")
    fault = found(tmp_path / "copy")["weights"]["fault"]
    assert "of another shape: rag.generator.final_logits_bias (1, 96), needed (1, 97)" in fault
    assert found(CHECKPOINTS / "token_bart")["weights"]["fault"] is None


def test_a_network_of_somebody_elses_has_what_its_config_says(tmp_path):
    shutil.copytree(CHECKPOINTS / "token_bart", tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text("utf-8"))
    config["generator"] = {"model_type": "other", "vocab_size": 96}
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    assert "generator         other, " in inspect(tmp_path / "copy")
    assert "model_type must be" in found(tmp_path / "copy")["weights"]["fault"]


def test_a_folder_of_something_else_says_what_it_holds(tmp_path):
    (tmp_path / "notes.md").write_text("# Notes")
    assert "no model and no knowledge base here; it holds notes.md. Name" in inspect(tmp_path, rc=2)
    assert "no such folder or file" in inspect(tmp_path / "gone", rc=2)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "it holds nothing. Name" in inspect(empty, rc=2)
