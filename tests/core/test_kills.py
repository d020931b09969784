"""Every writer, killed at everything it does to the disk: what is opened is wholly old or wholly
new, and the same command asked again ends where an undisturbed one ends, byte for byte.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from rag_core.checkpoint.convert import convert_checkpoint
from rag_core.checkpoint.folder import read_weights, write_checkpoint
from rag_core.config.rag import BertConfig
from rag_core.generation.config import GenerationConfig
from rag_core.hub.atomic import is_draft
from rag_core.knowledge.base import KnowledgeBase, build_knowledge_base
from rag_core.retrieval.faiss_files import build_faiss
from rag_core.retrieval.index import FaissIndex
from rag_core.retrieval.retriever import RagRetriever
from rag_core.tokenization.rag import RagTokenizer
from tests.support.killing import contents, kills, quick_folder
from tests.support.knowledge_bases import build, hashed, write_corpus
from tests.support.small_weights import BERT, some_weights
from tests.support.training_models import small_config, small_tokenizers

CONFIG = BertConfig(**BERT)
OTHERS = {"README.md": b"mine", "notes/todo": b"mine"}


@pytest.fixture
def tmp_path():
    with quick_folder() as folder:
        yield folder


def lay(folder: Path, files: dict[str, bytes | None]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            (folder / name).mkdir(exist_ok=True)
        else:
            (folder / name).write_bytes(data)


def same_weights(folder: Path, weights: dict[str, np.ndarray]) -> bool:
    found = read_weights(folder)
    return set(found) == set(weights) and all(
        np.array_equal(found[name], weights[name]) for name in weights
    )


@pytest.mark.parametrize(("before", "after"), [("1KB", "5GB"), ("5GB", "1KB"), ("5GB", "5GB")])
def test_checkpoint_over_another(tmp_path, before, after) -> None:
    target = tmp_path / "model"
    old = some_weights(CONFIG)
    new = {name: array + 1 for name, array in old.items()}
    lay(target, OTHERS)
    write_checkpoint(target, old, CONFIG, max_shard_size=before, generation_config={"num_beams": 3})
    start = contents(target)

    def save() -> None:
        write_checkpoint(target, new, CONFIG, max_shard_size=after)

    save()
    end = contents(target)
    assert "generation_config.json" not in end  # of another model
    for _ in kills(lambda: lay(target, start), save):
        is_new = same_weights(target, new)
        assert is_new or same_weights(target, old)
        assert (target / "generation_config.json").exists() is not is_new
        save()
        assert contents(target) == end


def test_both_tokenizers_over_others(tmp_path) -> None:
    pairs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pairs.append(RagTokenizer(*small_tokenizers(tmp_path / name)))
    pairs[1].question_encoder.add_tokens(["kraken"])
    pairs[1].generator.add_tokens(["kraken"])
    target = tmp_path / "saved"
    pairs[0].save_pretrained(target)
    start = contents(target)
    pairs[1].save_pretrained(target)
    end = contents(target)
    for _ in kills(lambda: lay(target, start), lambda: pairs[1].save_pretrained(target), every=3):
        found = RagTokenizer.from_pretrained(target)
        assert ("kraken" in found.question_encoder.get_vocab()) is (
            "kraken" in found.generator.get_vocab()
        )
        pairs[1].save_pretrained(target)
        assert contents(target) == end


def a_retriever(folder: Path, rows: int, seed: int) -> RagRetriever:
    from datasets import Dataset

    folder.mkdir()
    tokenizers = small_tokenizers(folder)
    vectors = np.random.default_rng(seed).normal(size=(rows, 16)).astype(np.float32)
    names = [f"{seed}-{row}" for row in range(rows)]
    passages = Dataset.from_dict({"title": names, "text": names, "embeddings": list(vectors)})
    index = FaissIndex(passages, build_faiss([vectors], rows, 16))
    return RagRetriever(small_config(tokenizers), *tokenizers, index=index)


def test_retriever_over_another(tmp_path) -> None:
    old, new = a_retriever(tmp_path / "old", 6, 0), a_retriever(tmp_path / "new", 9, 1)
    target = tmp_path / "saved"
    old.save_pretrained(target)
    start = contents(target)
    new.save_pretrained(target)
    end = contents(target)
    for _ in kills(lambda: lay(target, start), lambda: new.save_pretrained(target), every=13):
        index = RagRetriever.from_pretrained(target).index
        index.init_index()
        vectors = np.asarray(index.dataset["embeddings"], np.float32)
        ids, _ = index.get_top_docs(10 * vectors, 1)
        titles = {title.split("-")[0] for title in index.dataset["title"]}
        assert (len(vectors), titles) in (
            (6, {"0"}),
            (9, {"1"}),
        ) and index.faiss_index.ntotal == len(vectors)
        assert ids.max() < len(vectors)
        new.save_pretrained(target)
        assert contents(target) == end


def test_conversion_into_a_folder_with_other_files(tmp_path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    weights = some_weights(CONFIG)
    write_checkpoint(source, weights, CONFIG, generation_config={"num_beams": 3})

    def convert() -> None:
        convert_checkpoint(source, target, max_shard_size="1KB")

    lay(target, OTHERS)
    convert()
    end = contents(target)
    for _ in kills(lambda: lay(target, OTHERS), convert):
        assert read_weights(source)  # the source is none of its business
        convert()
        assert contents(target) == end


CHANGES = ("add", "remove ids", "remove titles", "update", "overwrite", "build")


@pytest.mark.parametrize("change", CHANGES)
def test_knowledge_base(tmp_path, change) -> None:
    kb = build(tmp_path, rows=9).path
    more = write_corpus(tmp_path / "more.jsonl", rows=5, seed=7)
    start = (
        contents(tmp_path)
        if change != "build"
        else {"corpus.jsonl": (tmp_path / "corpus.jsonl").read_bytes()}
    )
    start["more.jsonl"] = more.read_bytes()
    if change == "update":
        start["corpus.jsonl"] = more.read_bytes()

    def work() -> object:
        if change == "add":
            return KnowledgeBase.open(kb).add(more, hashed, progress=False)
        if change == "remove ids":
            return KnowledgeBase.open(kb).remove([0, 3])
        if change == "remove titles":
            return KnowledgeBase.open(kb).remove(title=lambda title: title.endswith(("-1", "-2")))
        if change == "update":
            return KnowledgeBase.open(kb).update(encode=hashed, progress=False)
        if change == "overwrite":
            options = {"encoder_name": "hashed", "progress": False, "overwrite": True}
            return len(build_knowledge_base(more, kb, hashed, **options))
        return len(build(tmp_path, rows=9))

    lay(tmp_path, start)
    result = work()
    end = contents(tmp_path)
    rows = {"add": 14, "overwrite": 5, "build": 9, "update": 5}.get(change, 7)
    for _ in kills(lambda: lay(tmp_path, start), work, every=7):
        if change != "build" or (kb / "manifest.json").exists():
            found = KnowledgeBase.open(kb, verify=True)
            assert len(found) in (9, rows) and found.index().dataset.num_rows == len(found)
        assert work() == result
        assert contents(tmp_path) == end


def test_single_files(tmp_path) -> None:
    target = tmp_path / "folder"
    CONFIG.save_pretrained(target)
    GenerationConfig(num_beams=2).save_pretrained(target)
    start = contents(target)

    def save() -> None:
        GenerationConfig(num_beams=5).save_pretrained(target)

    for _ in kills(lambda: lay(target, start), save):
        assert GenerationConfig.from_pretrained(target).num_beams in (2, 5)
        save()
        assert set(contents(target)) == set(start)
        assert json.loads((target / "generation_config.json").read_text())["num_beams"] == 5


@pytest.mark.backend("torch")
def test_training(tmp_path) -> None:
    import torch

    from rag_core.training.config import TrainingConfig
    from rag_core.training.report import REPORT
    from rag_torch import RagTokenForGeneration, train_files
    from tests.support.training_models import train_command

    torch.manual_seed(3)
    (tmp_path / "tokenizers").mkdir()
    tokenizers = small_tokenizers(tmp_path / "tokenizers")
    words = train_command(tmp_path, RagTokenForGeneration(small_config(tokenizers)), tokenizers)
    questions, model, kb, tuned = (Path(words[place]) for place in (1, 3, 5, 7))
    # Checkpoints lie between log lines, which are to come out alike all the same. The best step is
    # not the last one, which learns at next to no rate.
    config = TrainingConfig(
        steps=6, batch_size=2, save_every=2, log_every=3, learning_rate=3e-3, on_collapse="warn",
        evaluate_every=1, best_metric="f1", early_stopping=6,
    )  # fmt: skip

    def work() -> object:
        return train_files(
            questions, model, kb, tuned, config, validation=questions, device="cpu", progress=False
        )

    def read() -> dict[str, bytes | None]:
        found = contents(tuned)
        report = json.loads(found[REPORT])
        for line in report["history"]:
            line.pop("tokens_per_second", None)
        found[REPORT] = json.dumps(report | {"seconds": 0}).encode()
        if "README.md" in found:
            found["README.md"] = re.sub(rb"in [\d.]+ minutes", b"", found["README.md"])
        return found

    work()
    end = read()
    assert json.loads(end[REPORT])["best_step"] < 6
    for _ in kills(lambda: shutil.rmtree(tuned, ignore_errors=True), work, every=37):
        if (tuned / "config.json").exists():
            RagTokenForGeneration.from_pretrained(tuned)
        work()
        assert read() == end
        assert not [path for path in tmp_path.rglob("*") if is_draft(path.name)]


@pytest.mark.backend("torch")
def test_training_of_a_context_encoder(tmp_path, monkeypatch) -> None:
    import torch

    import rag_torch
    from rag_core.training import reindexing
    from rag_core.training.config import TrainingConfig
    from rag_core.training.report import REPORT
    from tests.support.reindexing import Inline
    from tests.support.training_models import live_files

    monkeypatch.setattr(reindexing, "start_process", Inline)
    torch.manual_seed(3)
    (tmp_path / "tokenizers").mkdir()
    files = live_files(tmp_path, rag_torch, small_tokenizers(tmp_path / "tokenizers"))
    base = contents(files[2])
    tuned = tmp_path / "tuned"
    config = TrainingConfig(
        steps=5,
        batch_size=2,
        save_every=2,
        learning_rate=3e-3,
        on_collapse="warn",
        context_encoder="all",
        reindex_every=1,
    )

    def work() -> object:
        return rag_torch.train_files(*files, tuned, config, device="cpu", progress=False)

    def read() -> dict[str, bytes | None]:
        found = contents(tuned)
        report = json.loads(found[REPORT])
        for line in report["history"]:
            line.pop("tokens_per_second", None)
        found[REPORT] = json.dumps(report | {"seconds": 0, "reindex_seconds": 0}).encode()
        found["README.md"] = re.sub(rb"in [\d.]+ minutes", b"", found["README.md"])
        return found

    work()
    end = read()
    for _ in kills(lambda: shutil.rmtree(tuned, ignore_errors=True), work, every=149):
        if (tuned / "config.json").exists():
            rag_torch.RagTokenForGeneration.from_pretrained(tuned)
            KnowledgeBase.open(tuned / "knowledge_base", verify=True)
        work()
        assert read() == end
        assert contents(files[2]) == base
        assert not [path for path in tmp_path.rglob("*") if is_draft(path.name)]
