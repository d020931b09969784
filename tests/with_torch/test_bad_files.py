"""Files that are missing, damaged or do not belong together, and disks that fill up, through the
command and the saves.

What a single room refuses is tested with that room; here is the whole way: one line, exit code 2,
nothing half-written.
"""

import json
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager

import datasets
import faiss
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rag_core.checkpoint.folder import read_weights
from rag_core.cli.commands import app
from rag_core.generation.config import GenerationConfig
from rag_core.knowledge.base import KnowledgeBase, build_knowledge_base
from rag_core.knowledge.manifest import describe
from rag_core.retrieval.faiss_files import read_faiss
from rag_core.retrieval.passage_files import write_passages
from rag_core.retrieval.retriever import RagRetriever
from rag_core.tokenization.rag import RagTokenizer
from rag_core.training.config import TrainingConfig
from rag_core.training.data import Example
from rag_torch import RagTokenForGeneration, load_encoder
from rag_torch.training import train

MODEL = "facebook/rag-token-nq"
ENCODER = "facebook/dpr-ctx_encoder-single-nq-base"
ARROW = "passages/data-00000-of-00001.arrow"


@pytest.fixture(scope="module")
def made(world):
    """`world` with a knowledge base, and with a model that has its index beside it."""
    notes = world / "notes.tsv"
    notes.write_text("title\ttext\nParis\tA city of 2 people.\nRome\tA city of 3.\n")
    encoder = load_encoder(str(world / ENCODER))
    base = build_knowledge_base(
        notes, world / "base", encoder.embed, encoder_name="tiny", progress=False
    )
    shutil.copytree(world / MODEL, world / "whole")
    RagRetriever.from_pretrained(world / MODEL, index=base.index()).save_pretrained(world / "whole")
    return world


@pytest.fixture
def dualrag(made, tmp_path, monkeypatch):
    """Runs the command in an empty folder, offline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def run(*words):
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def refused(result, says):
    lines = result.stderr.replace("\r", "\n").strip().splitlines()
    assert (
        result.exit_code == 2 and result.stdout == "" and lines[-1].startswith("dualrag: error: ")
    ), result.output
    assert "Traceback" not in result.stderr and says in lines[-1]


def cut(name, share=0.5):
    def damage(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return damage


def entries(name, **values):
    def damage(folder):
        known = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps(known | values))

    return damage


def gone(name):
    return lambda folder: (
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    )


def as_bin(folder, share=0.5):
    weights = read_weights(folder)
    torch.save(
        {name: torch.tensor(np.asarray(weights[name])) for name in weights},
        folder / "pytorch_model.bin",
    )
    (folder / "model.safetensors").unlink()
    cut("pytorch_model.bin", share)(folder)


def as_shards(text):
    def damage(folder):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        names = dict.fromkeys(read_weights(folder / "model-00001-of-00002.safetensors"), text)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))

    return damage


def with_ids_from_one(folder):
    vectors = read_faiss(folder / "hf_dataset_index.faiss").reconstruct_n()
    index = faiss.IndexIDMap(faiss.IndexFlatIP(vectors.shape[1]))
    index.add_with_ids(vectors, np.arange(1, len(vectors) + 1))
    faiss.write_index(index, str(folder / "hf_dataset_index.faiss"))


def without_vectors(folder):
    """Neither the passages nor the index can say what a document's vector is."""
    passages = datasets.load_from_disk(str(folder / "hf_dataset"), keep_in_memory=True)
    vectors = np.array(passages["embeddings"][:], np.float32)
    codes = faiss.index_factory(vectors.shape[1], "IVF1,PQ2x4fs", faiss.METRIC_INNER_PRODUCT)
    codes.train(np.tile(vectors, (16, 1)))
    codes.add(vectors)
    faiss.write_index(codes, str(folder / "hf_dataset_index.faiss"))
    shutil.rmtree(folder / "hf_dataset")
    write_passages(passages.remove_columns("embeddings"), folder / "hf_dataset")


def swapped_tokenizers(folder):
    shutil.rmtree(folder / "question_encoder_tokenizer")
    shutil.copytree(folder / "generator_tokenizer", folder / "question_encoder_tokenizer")


@pytest.mark.parametrize(
    "damage, says",
    [
        (gone("config.json"), "No config.json in folder"),
        (cut("config.json"), "config.json is not valid json"),
        (entries("config.json", model_type="gpt9"), "'gpt9'"),
        (
            entries("config.json", generator={"model_type": "gpt9"}),
            "no generator is known for model_type 'gpt9'",
        ),
        (
            entries("config.json", question_encoder={"model_type": "gpt9"}),
            "is known for model_type 'gpt9'",
        ),
        (entries("config.json", index_name="legacy"), "CVE-2023-6730"),
        (
            entries(
                "config.json", index_name="custom", index_path="x.index.dpr", passages_path="p.pkl"
            ),
            "CVE-2023-6730",
        ),
        (gone("model.safetensors"), "No weights in folder"),
        (cut("model.safetensors"), "model.safetensors is truncated or not a safetensors file"),
        (cut("model.safetensors", 0), "model.safetensors is truncated or not a safetensors file"),
        (as_bin, "pytorch_model.bin is truncated or corrupt"),
        (
            as_shards("model-00002-of-00002.safetensors"),
            "No model-00002-of-00002.safetensors in folder",
        ),
        (as_shards("../model.safetensors"), "names a shard outside its folder"),
        (gone("generator_tokenizer"), "generator_tokenizer: no tokenizer found"),
        (cut("question_encoder_tokenizer/tokenizer.json"), "tokenizer.json can't be read"),
        (swapped_tokenizers, "input_ids must lie in the model's vocabulary, 0 to 287"),
        (cut("hf_dataset_index.faiss"), "can't be read as a faiss index"),
        (with_ids_from_one, "but row 0 has the id 1: each document found would be another row's"),
        (
            without_vectors,
            "can't give its vectors back, and documents are weighed by them: add a column "
            "'embeddings'",
        ),
        (gone("hf_dataset_index.faiss"), "hf_dataset_index.faiss': there is no such file"),
        (cut("hf_dataset/data-00000-of-00001.arrow"), "can't be opened as a saved data set"),
        (cut("hf_dataset/state.json"), "can't be opened as a saved data set"),
    ],
)
def test_a_damaged_model_is_one_line(dualrag, made, tmp_path, damage, says):
    model = shutil.copytree(made / "whole", tmp_path / "model")
    damage(model)
    refused(dualrag("ask", "How many people live in Paris?", "--model", model), says)


def unnoticed(damage):
    """Damage that the manifest's checksums agree with."""

    def both(folder):
        damage(folder)
        files = json.loads((folder / "manifest.json").read_text())["files"]
        entries("manifest.json", files={name: describe(folder / name) for name in files})(folder)

    return both


@pytest.mark.parametrize(
    "damage, says",
    [
        (cut("index.faiss"), "index.faiss is damaged"),
        (unnoticed(cut("index.faiss", 0.9)), "can't be read as a faiss index"),
        (cut(ARROW), "arrow is damaged"),
        (unnoticed(cut(ARROW)), "can't be opened as a saved data set"),
        (gone(ARROW), "arrow is missing from the knowledge base"),
        (unnoticed(cut("passages/state.json")), "can't be opened as a saved data set"),
        (cut("manifest.json"), "manifest.json is damaged"),
        (gone("manifest.json"), "no knowledge base here"),
        (entries("manifest.json", dimension=8), "are not from one build"),
        (entries("manifest.json", encoder={}), "encoder must have a name and a probe"),
        (
            entries("manifest.json", files={"index.faiss": 5, "passages/state.json": 5}),
            "must have bytes and sha256",
        ),
    ],
)
def test_a_damaged_knowledge_base_is_one_line(dualrag, made, tmp_path, damage, says):
    base = shutil.copytree(made / "base", tmp_path / "kb")
    damage(base)
    refused(dualrag("ask", "Who?", "--model", made / MODEL, "--kb", base), says)


def test_names_that_are_wrong_unusual_or_short(dualrag, made, tmp_path, monkeypatch):
    model = made / MODEL
    for words, says in (
        (["--model", "absent/model", "--kb", made / "base"], "No folder 'absent/model' here"),
        (["--model", made / ENCODER, "--kb", made / "base"], "got a configuration of type 'dpr'"),
        (["--model", model, "--kb", model], "no knowledge base here"),
        (["--model", model, "--kb", made / "notes.tsv"], "no knowledge base here"),
    ):
        refused(dualrag("ask", "Who?", *words), says)
    refused(dualrag("ask", "\udcff", "--model", model, "--kb", made / "base"), "must be UTF-8 text")
    model, base = (
        shutil.copytree(model, tmp_path / "mödel 文"),
        shutil.copytree(made / "base", tmp_path / "bäse 文"),
    )
    monkeypatch.chdir(base)
    asked = dualrag("ask", "Who lives in Zürich?", "--model", model, "--kb", ".", "--json")
    assert asked.exit_code == 0 and json.loads(asked.stdout)["question"] == "Who lives in Zürich?"


def test_an_index_that_can_not_be_built_leaves_nothing(dualrag, made, tmp_path):
    encoder = ["--encoder", made / ENCODER]
    (tmp_path / "one.tsv").write_text("name\nParis\n")
    (tmp_path / "empty.txt").touch()
    for paths, options, says in (
        (["one.tsv"], [], "it has one column, 'name'"),
        (["empty.txt"], [], "the file is empty"),
        (
            [made / "notes.tsv"],
            ["--index", "ivfpq"],
            "at least 256 passages to train its codes, there are 2",
        ),
        (
            [made / "notes.tsv"],
            ["--encoder", made / MODEL],
            "is a 'rag' model, not an encoder of documents",
        ),
    ):
        refused(dualrag("index", *paths, "--out", "kb", *encoder, *options), says)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "one.tsv"]
    refused(dualrag("index", made / "notes.tsv", "--out", ".", *encoder), "is no knowledge base")


def test_training_that_can_not_end_well_does_not_begin(dualrag, made, tmp_path):
    (tmp_path / "qa.jsonl").write_text('{"question": "Who?", "answer": "Paris"}\n')
    (tmp_path / "file").touch()
    rest = ["--model", made / MODEL, "--kb", made / "base"]
    refused(dualrag("train", "absent.jsonl", *rest, "--out", "tuned"), "absent.jsonl: no such file")
    refused(dualrag("train", "qa.jsonl", *rest, "--out", "file"), "file is a file: name a folder")
    refused(
        dualrag("train", "qa.jsonl", *rest, "--out", "b\udcff"),
        "out must be a name that is text in this locale",
    )
    refused(
        dualrag("train", "qa.jsonl", *rest, "--out", "file/tuned"), "'file/tuned' can't be written"
    )
    parity = ["parity", "--model", made / MODEL]
    refused(
        dualrag(*parity, "--questions", "qa.jsonl", "--out", "file/report"),
        "'file/report' can't be written",
    )
    refused(dualrag(*parity, "--questions", "absent"), "absent")
    refused(
        dualrag("train", "qa.jsonl", *rest[:3], made / MODEL, "--out", "tuned"),
        "no knowledge base here",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "qa.jsonl"]


@contextmanager
def full_after(size):
    """No file may grow beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    "name, size",
    [
        ("model", 20000),
        ("tokenizers", 6000),  # the first is smaller, the second larger
        ("retriever", 6000),
        ("options", 5000),
        ("checkpoint", 20000),
        ("tuned", 20000),
        ("new base", 700),
        ("base", 700),
    ],
)
def test_a_full_disk_is_named_and_leaves_what_was_there(made, tmp_path, name, size):
    retriever = RagRetriever.from_pretrained(made / "whole")
    model = RagTokenForGeneration.from_pretrained(made / "whole", retriever=retriever)
    embed = load_encoder(str(made / ENCODER)).embed
    examples = [Example("Who?", ("Paris",)), Example("Where?", ("Rome",))]

    def tune(folder, saves):
        settings = TrainingConfig(steps=2, save_every=saves)
        train(model, retriever, examples, settings, out=folder, progress=False)

    save = {
        "model": model.save_pretrained,
        "tokenizers": RagTokenizer.from_pretrained(made / "whole").save_pretrained,
        "retriever": retriever.save_pretrained,
        "options": GenerationConfig(bad_words_ids=[[i] for i in range(2000)]).save_pretrained,
        "checkpoint": lambda folder: tune(folder, 1),
        "tuned": lambda folder: tune(folder, 0),
        "new base": lambda folder: build_knowledge_base(
            made / "notes.tsv", folder, embed, progress=False
        ),
        "base": lambda folder: KnowledgeBase.open(folder).add(
            made / "notes.tsv", embed, progress=False
        ),
    }[name]
    old = {"model": MODEL, "tokenizers": MODEL, "retriever": MODEL, "base": "base"}.get(name)
    if old:
        shutil.copytree(made / old, tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with (
        pytest.raises(OSError, match=f"(?s)({name}|model.safetensors).*Make room"),
        full_after(size),
    ):
        save(tmp_path / name)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == [name] * bool(old)


SAVES = """
import sys, numpy as np
from rag_core.checkpoint.folder import write_checkpoint
from rag_core.config.rag import DPRConfig
mine = int(sys.argv[1])
for turn in range(30):
    weights = {f"w{i}": np.full(50, mine, np.float32) for i in range(4)}
    write_checkpoint(sys.argv[2], weights, DPRConfig(mine=mine), max_shard_size=300 if mine else "1GB")
"""


def test_two_processes_saving_to_one_folder_leave_one_of_the_saves(tmp_path):
    folder = tmp_path / "model"
    both = [subprocess.Popen([sys.executable, "-c", SAVES, str(mine), folder]) for mine in (0, 1)]
    assert [process.wait(60) for process in both] == [0, 0]
    weights = read_weights(folder)
    mine = json.loads((folder / "config.json").read_text())["mine"]
    assert {float(value) for name in weights for value in weights[name]} == {mine}
    assert len(list(folder.iterdir())) == (6 if mine else 2) and len(list(tmp_path.iterdir())) == 1
