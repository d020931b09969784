"""Knowledge bases: what is built is what was read, kills lose nothing, damage is noticed,
changes are whole.
"""

import importlib.metadata
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rag_core.knowledge.base import KnowledgeBase, build_knowledge_base
from tests.support.knowledge_bases import build, hashed, write_corpus


def test_a_built_base_is_searched_by_row_and_described(tmp_path) -> None:
    kb = build(tmp_path, credit="CC BY-SA")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus.jsonl", "kb"]
    assert sorted(p.name for p in kb.path.iterdir()) == ["index.faiss", "manifest.json", "passages"]
    data = kb.dataset()
    columns = ["title", "text", "source", "metadata_json", "embeddings"]
    assert data.column_names == columns and len(kb) == len(data) == 60
    vectors = np.array(data["embeddings"], np.float32)
    np.testing.assert_array_equal(vectors, hashed(list(data["title"]), list(data["text"])))
    ids, found = kb.index().get_top_docs(vectors[:3], 2)
    scores = vectors[:3] @ vectors.T
    np.testing.assert_array_equal(ids, np.argsort(-scores, axis=1)[:, :2])
    np.testing.assert_array_equal(found, vectors[ids])
    text = (kb.path / "manifest.json").read_text()
    assert str(tmp_path) not in text and json.loads(text)["sources"][0]["path"] == "corpus.jsonl"
    manifest = kb.manifest
    assert (manifest.dimension, manifest.rows, manifest.credit, manifest.index["recall_at_5"]) == (
        16,
        60,
        "CC BY-SA",
        1,
    )


def test_a_base_is_built_whatever_distribution_faiss_comes_from(tmp_path, monkeypatch) -> None:
    """faiss-gpu and conda's faiss are the same module under another name."""
    import datasets
    import faiss

    known = importlib.metadata.version

    def version(name: str) -> str:
        if name.startswith("faiss"):
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = build(tmp_path).manifest.libraries
    assert (found["faiss"], found["datasets"]) == (faiss.__version__, datasets.__version__)


CHILD = """
import sys
from pathlib import Path
from tests.support.knowledge_bases import build, hashed

encoded = []

def slow(titles, texts):
    encoded.extend(texts)
    # the probe and two shards at most, however late the kill comes
    return hashed(titles, texts, delay=0.004 if len(encoded) <= 1 + 2 * 16 else 60)

build(Path(sys.argv[1]), rows=100, encode=slow)
"""


def test_a_build_killed_at_random_moments_resumes_to_the_same_vectors(tmp_path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = build(tmp_path / "whole", rows=100)
    command = [
        sys.executable,
        "-c",
        CHILD,
        str(tmp_path / "killed"),
    ]
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
    }
    write_corpus(tmp_path / "killed" / "corpus.jsonl", rows=100)
    work = tmp_path / "killed" / "kb.work"
    for round_ in range(2):
        child = subprocess.Popen(command, env=environment)
        end = time.monotonic() + 30
        while len(list(work.glob("shard-*.arrow"))) < round_ + 1 and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(random.random() * 0.03)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not (tmp_path / "killed" / "kb").exists()
    done = {path: path.stat().st_mtime_ns for path in work.glob("shard-*.arrow")}
    encoded = []

    def counting(titles: list[str], texts: list[str]) -> np.ndarray:
        encoded.extend(texts)
        return hashed(titles, texts)

    kb = build_knowledge_base(
        tmp_path / "killed" / "corpus.jsonl",
        tmp_path / "killed" / "kb",
        counting,
        encoder_name="hashed",
        progress=False,
        shard_rows=16,
        batch_size=4,
    )
    # the probe, and what was not yet done
    assert len(done) >= 2 and len(encoded) == 1 + 100 - 16 * len(done)
    assert not work.exists()
    for column in ("title", "text", "embeddings"):
        assert list(kb.dataset()[column]) == list(whole.dataset()[column])
    assert (kb.path / "index.faiss").read_bytes() == (whole.path / "index.faiss").read_bytes()


def test_a_killed_build_goes_on_with_the_same_weights_only(tmp_path) -> None:
    calls = []

    def dying(titles, texts):
        calls.append(len(texts))
        if len(calls) > 6:
            raise KeyboardInterrupt
        return hashed(titles, texts)

    def near(titles, texts):  # whose probe is the same
        vectors = hashed(titles, texts)
        return vectors + 0.01 * vectors[:, ::-1]

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, encode=dying, encoder_fingerprint="sha256:1")
    assert list((tmp_path / "kb.work").glob("shard-*.arrow"))
    kb = build(tmp_path, encode=near, encoder_fingerprint="sha256:2")
    passages = kb.dataset()
    expected = near(list(passages["title"]), list(passages["text"]))
    np.testing.assert_array_equal(np.array(passages["embeddings"], np.float32), expected)
    with pytest.raises(FileExistsError, match="the encoder's weights are others"):
        build(tmp_path, encode=near, encoder_fingerprint="sha256:3")


def test_asking_again_is_done_at_once_and_anything_else_is_refused(tmp_path) -> None:
    first = build(tmp_path)
    stamp = (first.path / "index.faiss").stat().st_mtime_ns
    build(tmp_path)
    assert (first.path / "index.faiss").stat().st_mtime_ns == stamp
    with pytest.raises(
        FileExistsError, match=r"base \(60 passages by 'hashed'\); words: \d+ there, 5 now\. Choose"
    ):
        build(tmp_path, words=5)
    assert len(build(tmp_path, words=5, overwrite=True)) > 60
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="is no knowledge base"):
        build_knowledge_base(
            tmp_path / "corpus.jsonl", tmp_path / "mine", hashed, overwrite=True, progress=False
        )


@pytest.mark.parametrize(("kind", "knob"), [("hnsw", "efSearch"), ("ivfpq", "nprobe")])
def test_approximate_indexes_are_measured_against_exact_search(
    tmp_path, kind: str, knob: str
) -> None:
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kb = build(tmp_path, rows=300, index=kind, shard_rows=128)
    recall = kb.manifest.index["recall_at_5"]
    assert knob in kb.manifest.index["settings"] and 0 < recall <= 1
    expected = {
        "hnsw": {"M", "efConstruction", "efSearch"},
        "ivfpq": {"nlist", "nprobe", "m", "bits", "rerank"},
    }[kind]
    assert set(kb.manifest.index["settings"]) == expected
    assert any(f"recall@5 of the {kind} index" in str(w.message) for w in caught) == (recall < 0.95)
    if kind == "hnsw":
        assert recall > 0.95


def test_auto_turns_from_flat_to_hnsw_as_the_base_grows(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("rag_core.knowledge.assembly.FLAT_ROWS", 70)
    kb = build(tmp_path)
    assert kb.manifest.index["kind"] == "flat"
    kb.add(write_corpus(tmp_path / "more.jsonl", 20, seed=1), hashed, progress=False)
    assert KnowledgeBase.open(kb.path).manifest.index["kind"] == "hnsw"


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_added_and_removed_passages_leave_index_and_texts_in_step(tmp_path, kind: str) -> None:
    kb = build(tmp_path, index=kind)
    before = kb.index()
    assert kb.add(write_corpus(tmp_path / "more.jsonl", 20, seed=1), hashed, progress=False) == 20
    assert kb.remove(ids=[0, 79]) == 2
    assert kb.remove(title=lambda title: title.startswith("T0-1")) == 11
    assert kb.remove(title="T1-0") == 1
    kb = KnowledgeBase.open(kb.path)
    data = kb.dataset()
    titles = [f"T0-{i}" for i in range(1, 60) if not f"{i}".startswith("1")] + [
        f"T1-{i}" for i in range(1, 19)
    ]
    assert list(data["title"]) == titles and len(kb) == 66
    vectors = np.array(data["embeddings"], np.float32)
    np.testing.assert_array_equal(vectors, hashed(titles, list(data["text"])))
    ids, _ = kb.index().get_top_docs(vectors, 1)
    np.testing.assert_allclose(
        (vectors @ vectors.T).max(axis=1), (vectors * vectors[ids[:, 0]]).sum(axis=1), rtol=1e-5
    )
    assert [source["path"] for source in kb.manifest.sources] == ["corpus.jsonl", "more.jsonl"]
    # an index in use stays what it was
    assert before.get_doc_dicts(np.array([[0]]))[0]["title"] == ["T0-0"]


def test_wrong_changes_change_nothing(tmp_path) -> None:
    kb = build(tmp_path)
    before = (kb.path / "manifest.json").read_bytes()
    for options, says in [
        ({}, "either ids= "),
        ({"ids": [1], "title": "x"}, "either ids= "),
        ({"ids": [60]}, "rows 0 to 59, got 60"),
        ({"ids": [-1]}, "rows 0 to 59, got -1"),
        ({"title": "absent"}, "none of the 60"),
        ({"ids": range(60)}, "all of the 60"),
    ]:
        with pytest.raises(ValueError, match=says):
            kb.remove(**options)
    with pytest.raises(ValueError, match=r"embedded by 'hashed' \(D=16\).*gives other vectors"):
        kb.add(write_corpus(tmp_path / "more.jsonl", 5), lambda a, b: hashed(b, a)[:, ::-1])
    assert (kb.path / "manifest.json").read_bytes() == before


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [damage_cut, damage_flip, Path.unlink])
@pytest.mark.parametrize(
    "name", ["index.faiss", "passages/data-00000-of-00001.arrow", "manifest.json"]
)
def test_damaged_files_are_noticed(tmp_path, damage, name: str) -> None:
    kb = build(tmp_path, rows=8)
    if name == "manifest.json" and damage is damage_flip:
        text = (kb.path / name).read_text()
        (kb.path / name).write_text(text.replace('"rows": 8', '"rows": 9'))
    else:
        damage(kb.path / name)
    with pytest.raises(
        (ValueError, FileNotFoundError),
        match=r"damaged|missing|no knowledge base|not from one build",
    ):
        KnowledgeBase.open(kb.path)


def test_a_base_without_stored_vectors_can_be_asked_but_not_changed(tmp_path) -> None:
    from datasets import Dataset

    from rag_core.retrieval.passage_files import write_passages

    kb = build(tmp_path)
    passages, vectors = (
        Dataset.from_dict(kb.dataset().to_dict()),
        np.array(kb.dataset()["embeddings"], np.float32),
    )
    shutil.rmtree(kb.path / "passages")
    write_passages(passages.remove_columns("embeddings"), kb.path / "passages")
    kb.manifest.write(kb.path)
    kb = KnowledgeBase.open(kb.path)
    np.testing.assert_array_equal(kb.index().get_top_docs(vectors[:3], 1)[1][:, 0], vectors[:3])
    for change in (lambda: kb.remove([1]), lambda: kb.add(tmp_path / "corpus.jsonl", hashed)):
        with pytest.raises(
            ValueError, match=r"must have columns title, text and embeddings, \['embeddings'\]"
        ):
            change()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "kb"]


def test_a_manifest_may_not_point_elsewhere(tmp_path) -> None:
    kb = build(tmp_path, rows=8)
    path = kb.path / "manifest.json"
    path.write_text(path.read_text().replace('"index.faiss"', '"../../index.faiss"'))
    with pytest.raises(ValueError, match="must stay inside"):
        KnowledgeBase.open(kb.path)


def test_models_that_do_not_fit_are_refused_naming_both_sides(tmp_path) -> None:
    kb = build(tmp_path, rows=8)
    bert = SimpleNamespace(model_type="bert", hidden_size=32, projection_dim=16)
    kb.check_model(SimpleNamespace(question_encoder=bert, context_encoder="some/hashed"))
    with pytest.raises(ValueError, match=r"\(dpr\) gives vectors of D=768.*holds D=16 by 'hashed'"):
        kb.check_model(SimpleNamespace(model_type="dpr", hidden_size=768, projection_dim=0))
    with pytest.raises(ValueError, match=r"embedded by 'org/other'.*by 'hashed'"):
        kb.check_model(SimpleNamespace(question_encoder=bert, context_encoder="org/other"))


@pytest.mark.parametrize(
    ("encode", "says"),
    [
        (lambda titles, texts: hashed(titles, texts)[0], r"\(1, D\), got shape \(16,\)"),
        (lambda titles, texts: hashed(titles, texts) * np.nan, "NaN or infinity"),
        ("some/encoder", "encode must be a function of titles and texts, got 'some/encoder'"),
        (
            lambda titles, texts: hashed(titles, texts)[:, : 16 if len(texts) == 1 else 8],
            "D=8 after D=16",
        ),
    ],
)
def test_bad_encoders_leave_nothing_at_the_goal(tmp_path, encode, says: str) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", 8)
    with pytest.raises((TypeError, ValueError), match=says):
        build_knowledge_base(corpus, tmp_path / "kb", encode, progress=False, batch_size=4)
    assert not (tmp_path / "kb").exists()


def test_a_full_disk_leaves_nothing_at_the_goal_and_the_work_to_go_on_from(
    tmp_path, monkeypatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("rag_core.retrieval.write_faiss", full)
        build(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus.jsonl", "kb.work"]
    assert len(build(tmp_path)) == 60 and not (tmp_path / "kb.work").exists()


def test_two_builds_of_one_base_do_not_mix_and_bad_lines_leave_no_trace(tmp_path) -> None:
    from filelock import FileLock

    (tmp_path / "kb.work").mkdir()
    with (
        FileLock(tmp_path / "kb.work" / "lock"),
        pytest.raises(OSError, match="being written by another process"),
    ):
        build(tmp_path, rows=8)
    shutil.rmtree(tmp_path / "kb.work")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:2"):
        build_knowledge_base(tmp_path / "bad.jsonl", tmp_path / "kb", hashed, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl", "corpus.jsonl"]
