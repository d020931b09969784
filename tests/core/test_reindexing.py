"""Passages embedded anew while a run goes on: when, from what, and what is left of it after a kill.

No framework takes part: the encoder is a number, and the process ends when it begins.
"""

import errno
import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_core import backends
from rag_core.knowledge.base import KnowledgeBase
from rag_core.retrieval.fresh import FreshIndex
from rag_core.training import reindexing
from rag_core.training.config import TrainingConfig
from rag_core.training.reindexing import Reindexing
from rag_core.training.schedule import in_the_making, in_use
from rag_core.training.state import REINDEXING
from tests.support.killing import contents, kills, quick_folder
from tests.support.knowledge_bases import build, hashed
from tests.support.reindexing import TURNING, Inline, TurningEncoder

START = reindexing.start_process


@pytest.fixture(autouse=True)
def inline(monkeypatch):
    monkeypatch.setattr(backends, "load_backend", lambda name: TURNING)
    monkeypatch.setattr(reindexing, "start_process", Inline)


def vectors(kb):
    return np.asarray(kb.dataset()["embeddings"], np.float32)


def started(base, out, encoder, every=2, total=9):
    return Reindexing(
        base, encoder, out, every=every, total=total, backend="turning", say=lambda text: None
    )


@given(st.integers(0, 7), st.integers(1, 60))
def test_an_index_is_in_use_from_the_start_after_its_own(every, total):
    used, making = 0, None
    for step in range(1, total + 1):
        if every and step % every == 0 and making is not None:
            used, making = making, None
        if every and step % every == 0 and step + every < total:
            making = step
        if step == total:
            used, making = total, None
        assert in_use(step, every, total) == used
        assert in_the_making(step, every, total) == making
        assert step == total or used == 0 or every <= step - used < 2 * every


def test_a_base_embedded_anew_has_the_same_passages_and_other_vectors(tmp_path):
    base = build(tmp_path, rows=40)
    before = contents(tmp_path / "kb")
    new = TurningEncoder(0.5).embed
    options = {"encoder_name": "new", "encoder_fingerprint": "sha256:1", "progress": False}
    kb = base.reembed(tmp_path / "other" / "kb", new, **options)
    old, fresh = base.dataset(), kb.dataset()
    columns = ["title", "text", "source", "metadata_json"]
    assert fresh.select_columns(columns)[:] == old.select_columns(columns)[:]
    assert np.array_equal(vectors(kb), new(old["title"], old["text"]))
    assert not np.allclose(vectors(kb), vectors(base))
    assert kb.manifest.encoder["name"] == "new"
    assert kb.manifest.index["recall_at_5"] == 1
    assert kb.manifest.root_paths(kb.path) == base.manifest.root_paths(base.path)
    assert not kb.update(encode=new, progress=False)
    assert contents(tmp_path / "kb") == before
    assert len(base.reembed(kb.path, new, **options)) == 40  # found done
    with pytest.raises(FileExistsError, match="holds something else already"):
        base.reembed(kb.path, hashed, **{**options, "encoder_fingerprint": "sha256:2"})


def test_shards_of_other_weights_are_not_gone_on_from_though_a_probe_does_not_tell_them(tmp_path):
    base = build(tmp_path, rows=40)
    calls = []

    def dying(weight, after):
        def embed(titles, texts):
            calls.append(len(texts))
            if len(calls) > after:
                raise KeyboardInterrupt
            return TurningEncoder(weight).embed(titles, texts)

        return embed

    options = {"encoder_name": "new", "progress": False}
    with pytest.raises(KeyboardInterrupt):
        first = dying(0.5, 6)
        base.reembed(tmp_path / "out", first, encoder_fingerprint="sha256:1", **options)
    assert list((tmp_path / "out.work").glob("shard-*"))
    near = TurningEncoder(0.501).embed
    kb = base.reembed(tmp_path / "out", near, encoder_fingerprint="sha256:2", **options)
    old = base.dataset()
    assert np.array_equal(vectors(kb), near(old["title"], old["text"]))


def test_a_base_embedded_anew_is_there_whole_or_not_at_all_and_the_same_after_any_kill():
    with quick_folder() as folder:
        base = build(folder, rows=9)
        out = folder / "out"
        options = {"encoder_name": "new", "encoder_fingerprint": "sha256:1", "progress": False}

        def work():
            return len(base.reembed(out, TurningEncoder(0.5).embed, **options))

        def clean():
            for name in ("out", "out.work"):
                shutil.rmtree(folder / name, ignore_errors=True)

        clean()
        assert work() == 9
        end = contents(folder)
        for _ in kills(clean, work, every=9):
            if out.exists():
                assert len(KnowledgeBase.open(out, verify=True)) == 9
            assert work() == 9
            assert contents(folder) == end


def test_a_run_killed_anywhere_has_the_indexes_of_one_that_was_not(tmp_path):
    """Steps are saved at every third one; each step's weight is its number."""
    base = build(tmp_path, rows=12)
    total, every, save_every = 9, 2, 3

    def run(out, dies_at=None, goes_on_from=0):
        encoder = TurningEncoder(float(goes_on_from))
        ours = started(base, out, encoder, every, total)
        ours.resume(goes_on_from)
        used = {}
        saved = goes_on_from
        for step in range(goes_on_from + 1, total + 1):
            encoder.weight = float(step)
            ours.after(step)
            used[step] = vectors(ours.base)
            assert ours.age(step) == step - in_use(step, every, total)
            if step == dies_at:
                return used, saved
            if step % save_every == 0:
                saved = step
                ours.keep(step)
        return used, saved

    whole, _ = run(tmp_path / "whole")
    texts = base.dataset()
    for step, found in whole.items():
        expected = hashed(texts["title"], texts["text"])
        if at := in_use(step, every, total):
            expected = TurningEncoder(float(at)).embed(texts["title"], texts["text"])
        assert np.array_equal(found, expected)
    for dies_at in (2, 5, 6, 7, 8):
        out = tmp_path / f"killed{dies_at}"
        _, saved = run(out, dies_at)
        again, _ = run(out, goes_on_from=saved)
        assert all(np.array_equal(found, whole[step]) for step, found in again.items())
        assert len(list((out / REINDEXING).iterdir())) <= 4


def test_what_an_embedding_needs_and_does_not_find_is_one_error(tmp_path, monkeypatch):
    base = build(tmp_path, rows=12)
    encoder = TurningEncoder(1.0)
    ours = started(base, tmp_path / "out", encoder)
    ours.after(2)
    with pytest.raises(FileNotFoundError, match=r"00000006 is not there or not whole.*start again"):
        started(base, tmp_path / "out", encoder).resume(7)
    # something kills it: it goes on; and once more: that is no accident
    ends = [-9, -15]
    monkeypatch.setattr(reindexing, "start_process", lambda request: Inline(request, ends))
    ours = started(base, tmp_path / "killed", encoder)
    ours.made_now(1)
    assert not ends and np.array_equal(vectors(ours.base), encoder.embed(*zip_texts(base)))
    ends += [-9] * 3
    with pytest.raises(OSError, match=r"ended 3 times, the last time with status -9"):
        started(base, tmp_path / "thrice", encoder).made_now(1)
    # a full disk
    monkeypatch.setattr(reindexing, "start_process", Inline)
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(
            "rag_core.knowledge.embedding.write_batches",
            lambda *args: (_ for _ in ()).throw(full),
        )
        with pytest.raises(
            OSError,
            match=r"weights after step 1 failed: .*No space left.*knowledge_base'.*goes on from",
        ):
            started(base, tmp_path / "full", encoder).made_now(1)
    ours = started(base, tmp_path / "full", encoder)
    ours.made_now(1)
    assert np.array_equal(vectors(ours.base), encoder.embed(*zip_texts(base)))
    # the knowledge base is not what it was
    path = base.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "credit": "somebody"}))
    with pytest.raises(ValueError, match=r"kb must be the one that the run began with"):
        ours.made_now(2)


def test_a_process_ends_when_its_training_does(tmp_path):
    os.mkfifo(tmp_path / "request.json")  # it waits for what nobody writes
    process = START(tmp_path / "request.json")
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=120) == 3
    process.stdout.close()


def zip_texts(base):
    return base.dataset()["title"], base.dataset()["text"]


def test_more_are_found_by_stale_vectors_and_the_best_by_fresh_ones_are_read(tmp_path):
    base = build(tmp_path, rows=30)
    index, titles, texts = base.index(), *zip_texts(base)
    fresh = TurningEncoder(-0.8).embed
    calls = []

    def embed(titles, texts):
        calls.append(len(texts))
        return fresh(titles, texts)

    queries = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    ids, found = FreshIndex(index, embed, 4).get_top_docs(queries, 2)
    candidates = np.argsort(-(queries @ vectors(base).T), axis=1)[:, :8]
    new = fresh(titles, texts)
    for row, query in enumerate(queries):
        order = np.argsort(-(new[candidates[row]] @ query), kind="stable")[:2]
        assert ids[row].tolist() == candidates[row][order].tolist()
        np.testing.assert_array_equal(found[row], new[ids[row]])
    assert calls == [len(np.unique(candidates))]
    stale = FreshIndex(index, None, 1).get_top_docs(queries, 2)
    assert stale[0].tolist() == index.get_top_docs(queries, 2)[0].tolist()
    assert stale[0].tolist() != ids.tolist()
    few = FreshIndex(base.index(), embed, 20).get_top_docs(queries[:1], 40)  # more than there are
    assert sorted(few[0][0][:30]) == list(range(30)) and (few[0][0][30:] == -1).all()


@pytest.mark.parametrize("settings", [{"reindex_every": 5}, {"overretrieve": 2}])
def test_vectors_that_never_change_are_not_made_anew(settings):
    with pytest.raises(ValueError, match="with context_encoder='frozen', whose vectors never"):
        TrainingConfig(**settings)
    assert TrainingConfig(context_encoder="all", **settings)
