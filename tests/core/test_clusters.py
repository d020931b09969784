"""Work on a Ray cluster: shards searched as one index, lost, exchanged."""

import functools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rag_core.backends import load_backend
from rag_core.cli import app
from rag_core.knowledge import KnowledgeBase, build_knowledge_base, cut_shards
from rag_core.retrieval import RagRetriever, RayIndex, ShardLostError, ShardsExchangedError, join
from tests.support.clusters import small_cluster
from tests.support.golden_prompts import config
from tests.support.knowledge_bases import SIZE, build, hashed, load_broken, load_hashed

pytestmark = pytest.mark.beyond


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with small_cluster():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build(tmp_path_factory.mktemp("whole"), rows=150)


@pytest.fixture(scope="module")
def folder(base):
    return cut_shards(base, base.path.parent / "shards", 2).folder


@pytest.fixture(scope="module")
def place(folder):
    from rag_core.cluster import start_shards, stop_shards

    assert start_shards(folder, "wiki") == 1
    yield "ray://auto/wiki"
    assert stop_shards("wiki") == 3
    with pytest.raises(OSError, match="no shards of this name"):
        RayIndex("ray://auto/wiki").init_index()


def queries(count, seed=0):
    random = np.random.default_rng(seed)
    return hashed([""] * count, [f"w{n}" for n in random.integers(0, 400, count)])


def test_what_is_found_is_what_the_whole_index_finds(base, place):
    local, index = base.index(), pickle.loads(pickle.dumps(RayIndex(place)))
    for batch, n_docs in ((1, 5), (3, 1), (40, 7), (2, 150)):
        ids, vectors = index.get_top_docs(queries(batch, batch), n_docs)
        expected_ids, expected_vectors = local.get_top_docs(queries(batch, batch), n_docs)
        if n_docs < 100:
            assert ids.tolist() == expected_ids.tolist()
            assert (vectors == expected_vectors).all()
        assert index.get_doc_dicts(ids) == local.get_doc_dicts(ids)
    assert len(index) == len(local) and index.vector_size == SIZE
    rows = np.array([[149, 0], [75, 74]])
    assert RayIndex(place).get_doc_dicts(rows) == local.get_doc_dicts(rows)
    rows = np.array([149, 0, 75, 74, 0])
    assert (index.vectors_of(rows) == local.vectors_of(rows)).all()
    for row in (-1, 150):
        with pytest.raises(IndexError, match=f"rows must be 0 to 149, got {row}"):
            index.get_doc_dicts(np.array([[row]]))
    with pytest.raises(ValueError, match="question encoder and the encoder of the index"):
        index.get_top_docs(np.zeros((1, 3)))


def test_an_address_is_that_of_the_cluster_which_the_process_has_joined():
    import ray

    here = ray.get_runtime_context().gcs_address
    port = here.rpartition(":")[2]
    for address in ("auto", "local", here, f"localhost:{port}"):
        assert join(address) is ray
    for other in ("localhost:1", f"192.0.2.77:{port}"):
        with pytest.raises(OSError, match=f"which this process has joined, {here}, got '{other}'"):
            join(other)


def test_conditions_are_searched_in_every_shard(base, place):
    local, index = base.index().where("title=T0-7*"), RayIndex(place).where("title=T0-7*")
    ids, vectors = index.get_top_docs(queries(4), 20)
    expected_ids, expected_vectors = local.get_top_docs(queries(4), 20)
    assert ids.tolist() == expected_ids.tolist() and (vectors == expected_vectors).all()
    assert index.rows.tolist() == local.rows.tolist() and RayIndex(place).rows is None
    # conditions come one after another, and from pickled parts, and all of them hold
    both = pickle.loads(pickle.dumps(index)).where("title=T0-70*")
    narrower = base.index().where(["title=T0-7*", "title=T0-70*"]).rows.tolist()
    assert both.rows.tolist() == narrower and len(narrower) < len(index.rows)
    with pytest.raises(ValueError, match="match"):
        index.where("title!=T0-7*").get_top_docs(queries(1))
    with pytest.raises(ValueError, match="match"):
        RayIndex(place).where("title=nothing").get_top_docs(queries(1))
    with pytest.raises(TypeError, match="got a function"):
        index.where(lambda passage: True)


def test_a_retriever_searches_them(base, place, tokenizers):
    parts = tokenizers["question"], tokenizers["bart"]
    retriever = RagRetriever(config(n_docs=3), *parts, index=place)
    local = RagRetriever(config(n_docs=3), *parts, index=base.index())
    vectors, ids, docs = retriever.retrieve(queries(20))
    expected = local.retrieve(queries(20))
    assert (vectors == expected[0]).all() and (ids == expected[1]).all()
    assert [doc["text"] for doc in docs] == [doc["text"] for doc in expected[2]]


def processes(place):
    """The process of each shard, once all are there."""
    import ray

    index = RayIndex(place)
    index.init_index()
    while True:
        try:
            return ray.get([handle.pid.remote() for handle in index._build.handles])
        except ray.exceptions.RayActorError:
            time.sleep(0.1)


def test_a_lost_shard_comes_back_and_the_call_is_answered(base, place):
    index = RayIndex(place)
    expected = base.index().get_top_docs(queries(3), 5)[0].tolist()
    for victim in processes(place):
        os.kill(victim, signal.SIGKILL)
        assert index.get_top_docs(queries(3), 5)[0].tolist() == expected
    assert victim not in processes(place)
    fresh = RayIndex(place)
    os.kill(processes(place)[1], signal.SIGKILL)
    assert fresh.get_doc_dicts(np.array([[149]])) == base.index().get_doc_dicts(np.array([[149]]))


def test_while_a_shard_is_lost_a_search_fails_or_says_what_it_lacks(base, place):
    strict, partial = RayIndex(f"{place}?when_lost=fail"), RayIndex(place, when_lost="partial")
    for index in (strict, partial):
        index.init_index()
    os.kill(processes(place)[0], signal.SIGKILL)
    with pytest.warns(UserWarning, match="1 of 2 shards are lost; .* without 75 of 150 passages"):
        ids, _ = partial.get_top_docs(queries(2), 5)
    assert partial.missing_shards == (0,)
    assert ids.min() >= 75
    os.kill(processes(place)[0], signal.SIGKILL)
    with pytest.raises(ShardLostError, match="shard 0 is lost"):
        strict.get_top_docs(queries(2), 5)
    expected = base.index().get_top_docs(queries(2), 5)[0].tolist()
    assert RayIndex(place).get_top_docs(queries(2), 5)[0].tolist() == expected
    assert partial.get_top_docs(queries(2), 5)[0].tolist() == expected
    assert partial.missing_shards == ()


def test_an_exchange_under_load_mixes_no_two_builds(base, folder, tmp_path, tokenizers):
    """Passages of the other build have the same rows and vectors, and other titles."""
    from rag_core.cluster import start_shards, stop_shards

    other = rename_titles(base, tmp_path)
    folders = [folder, cut_shards(other, tmp_path / "shards", 3).folder]
    parts = tokenizers["question"], tokenizers["bart"]
    start_shards(folders[0], "news")
    seen, faults, ended = set(), [], threading.Event()

    def ask():
        retriever = RagRetriever(config(n_docs=20), *parts, index="ray://auto/news")
        while not ended.is_set():
            try:
                _, ids, docs = retriever.retrieve(queries(20))
                later = retriever.index.get_doc_dicts(ids)
            except Exception as error:
                faults.append(error)
                return
            for doc in [*docs, *later]:
                seen.add(frozenset(title[0] for title in doc["title"]))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(3):
        assert start_shards(folders[(number + 1) % 2], "news", grace=1.0) == number + 2
    ended.set()
    for thread in threads:
        thread.join()
    assert faults == []
    assert seen == {frozenset("T"), frozenset("N")}
    stop_shards("news")


def test_shards_that_are_stopped_and_started_anew_are_found(base, folder):
    from rag_core.cluster import start_shards, stop_shards

    index = RayIndex("ray://auto/again")
    for _ in range(2):
        start_shards(folder, "again")
        ids, _ = index.get_top_docs(queries(2), 5)
        assert ids.tolist() == base.index().get_top_docs(queries(2), 5)[0].tolist()
        assert index.is_initialized() and index.serial == 1
        assert stop_shards("again") == 3


def test_what_must_see_one_build_stops_at_another(base, folder, tmp_path):
    from rag_core.cluster import start_shards, stop_shards

    index = RayIndex("ray://auto/fixed?when_exchanged=fail")
    for _ in range(2):
        start_shards(folder, "fixed", grace=0)
        ids, _ = index.get_top_docs(queries(2), 5)
        assert ids.tolist() == base.index().get_top_docs(queries(2), 5)[0].tolist()
    other = cut_shards(rename_titles(base, tmp_path), tmp_path / "other", 2).folder
    start_shards(other, "fixed", grace=0)
    RayIndex("ray://auto/fixed").get_top_docs(queries(2), 5)
    for stopped in (index, index.where("title=*"), pickle.loads(pickle.dumps(index))):
        assert not stopped.is_initialized()
        with pytest.raises(ShardsExchangedError, match="another build, number 3, has taken"):
            stopped.get_top_docs(queries(2), 5)
    stop_shards("fixed")


def files_of(base):
    """Name -> bytes of what searches read."""
    names = [*base.path.glob("passages/*"), base.path / "index.faiss"]
    return {path.name: path.read_bytes() for path in names}


def test_a_build_on_a_cluster_is_the_build_without(base, tmp_path):
    from rag_core.cluster import RayEncoder

    # one more than there are processors: it never begins
    with RayEncoder(load_hashed, 3, "auto") as encode:
        done = build(tmp_path, 150, encode=encode)
    assert files_of(done) == files_of(base)
    assert done.manifest.request == base.manifest.request


def test_a_lost_worker_costs_its_shard_alone(base, tmp_path):
    from rag_core.cluster import RayEncoder

    slow = functools.partial(load_hashed, 0.05)
    with RayEncoder(slow, 2, "auto") as encode:
        victims = encode.pids()
        threading.Timer(1.0, os.kill, (victims[0], signal.SIGKILL)).start()
        done = build(tmp_path, 150, encode=encode)
        assert victims[0] not in encode.pids()
    assert files_of(done) == files_of(base)


def test_what_an_encoder_says_in_an_actor_is_what_its_user_is_told(tmp_path):
    from rag_core.cluster import RayEncoder

    with RayEncoder(load_broken, 1, "auto") as encode, pytest.raises(ValueError, match="NaN"):
        build(tmp_path, encode=encode)


DRIVER = """
import functools, sys
from pathlib import Path
from rag_core.cluster import RayEncoder
from tests.support.knowledge_bases import build, load_hashed

with RayEncoder(functools.partial(load_hashed, 0.1), 2, sys.argv[2]) as encode:
    build(Path(sys.argv[1]), 150, encode=encode)
"""


def test_a_killed_build_goes_on_from_its_shards(base, tmp_path):
    import ray

    address = ray.get_runtime_context().gcs_address
    # A cluster of Ray's own asks whoever joins for its token, which Ray keeps and sends.
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), address],
        env=os.environ | {"RAY_AUTH_MODE": "token"},
    )
    shards = tmp_path / "kb.work"
    while driver.poll() is None and len([*shards.glob("shard-*")]) < 3:
        time.sleep(0.01)
    assert driver.poll() is None
    driver.kill()
    driver.wait()
    kept = {path: path.stat().st_mtime_ns for path in shards.glob("shard-*")}
    calls = []

    def counted(titles, texts):
        calls.extend(texts)
        return hashed(titles, texts)

    done = build(tmp_path, 150, encode=counted)
    assert len(calls) == 1 + 150 - 16 * len(kept)
    assert files_of(done) == files_of(base)


def rename_titles(base, folder):
    from tests.support.knowledge_bases import write_corpus

    corpus = write_corpus(folder / "corpus.jsonl", 150)
    corpus.write_text(corpus.read_text().replace('"title": "T', '"title": "N'))
    return build_knowledge_base(
        corpus,
        folder / "kb",
        lambda titles, texts: hashed([""] * len(texts), texts),
        progress=False,
    )


def test_shards_that_are_not_there_take_nobodys_place(base, folder, place, tmp_path):
    from rag_core.cluster import start_shards

    broken = shutil.copytree(folder, tmp_path / "broken")
    next(broken.glob("shard-00001/passages/*.arrow")).unlink()
    with pytest.raises(OSError, match="could not be loaded by all shards"):
        start_shards(broken, "wiki")
    RayIndex(place).init_index()
    assert len(processes(place)) == 2


def done(*words):
    """What a command writes."""
    result = CliRunner().invoke(app, [*words])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def demo(demo_cache, tmp_path_factory):
    """Where the shards of the demo's knowledge base are."""
    place = tmp_path_factory.mktemp("demo") / "parts"
    done("shards", str(demo_cache / "demo-kb"), "--out", str(place), "--n", "2", "--name", "demo")
    yield "ray://auto/demo"
    done("shards", "--name", "demo", "--stop")


@pytest.fixture
def kb(demo_cache, tmp_path, monkeypatch, offline):
    """The demo's knowledge base, beside a file of questions."""
    monkeypatch.setenv("DUALRAG_HOME", str(demo_cache))
    monkeypatch.chdir(tmp_path)
    lines = [{"question": QUESTION, "answer": "Tolstoy"}, {"question": "Saturn?", "answer": "ice"}]
    Path("qa.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(demo_cache / "demo-kb")


QUESTION = "Who wrote War and Peace?"


def test_commands_search_a_cluster_in_the_knowledge_bases_place(kb, demo, tmp_path):
    answer = json.loads(done("ask", QUESTION, "--kb", kb, "--json"))
    for base in (["--kb", kb], []):
        assert json.loads(done("ask", QUESTION, "--index", demo, "--json", *base)) == answer
    local, of_cluster = (
        json.loads(done("eval", "qa.jsonl", "--json", *words))
        for words in (["--kb", kb], ["--index", demo])
    )
    del local["retrieval"]["seconds"], of_cluster["retrieval"]["seconds"]
    assert of_cluster["retrieval"] == local["retrieval"]
    assert of_cluster["knowledge_base"] == local["knowledge_base"] | {"path": demo}
    pages = {}
    for name, words in {"local": ["--kb", kb], "cluster": ["--index", demo]}.items():
        done("explain", QUESTION, "--out", f"{name}.json", *words)
        pages[name] = Path(f"{name}.json").read_text()
    assert pages["cluster"] == pages["local"]
    (tmp_path / "other").mkdir()
    other = build(tmp_path / "other", 20)
    refused = CliRunner().invoke(app, ["ask", QUESTION, "--kb", str(other.path), "--index", demo])
    assert refused.exit_code == 2


def test_a_server_answers_from_a_cluster(kb, demo):
    """What `dualrag serve` and `dualrag mcp` open."""
    from rag_core.cli.serve import served_model
    from tests.support.serving import running

    answers = []
    for options in ({"kb": Path(kb)}, {"index": demo}):
        with running(served_model(**options)) as server:
            answers.append(
                [
                    server.ask("/answer", {"question": QUESTION}).json,
                    server.ask("/retrieve", {"queries": [QUESTION], "topk": 4}).json,
                    [server.ask(f"/passages/{row}").json for row in range(5)],
                    server.ask("/passages/99").status,
                ]
            )
            told = server.ask("/info").json["knowledge_base"]
    assert answers[0] == answers[1]
    assert told["name"] == "demo" and told["cluster"] == demo and told["passages"] > 5


def test_training_searches_a_cluster_as_the_knowledge_base_itself(kb, demo, demo_cache):
    words = ["--kb", kb, "--model", str(demo_cache / "demo-model")]
    trained = [*words, "--steps", "3", "--log-every", "1", "--question-encoder", "all"]
    logs = {}
    for name, index in {"local": [], "cluster": ["--index", demo]}.items():
        done("train", "qa.jsonl", "--out", name, *trained, *index)
        logs[name] = json.loads(Path(name, "training.json").read_text())["history"]
        for line in logs[name]:
            del line["tokens_per_second"]
    assert len(logs["cluster"]) == 3 and logs["cluster"] == logs["local"]
    missing = ["--index", "ray://auto/none"]
    for asked in (["qa.jsonl", "--out", "none", *trained], ["--validation", "qa.jsonl", *words]):
        refused = CliRunner().invoke(app, ["train", *asked, *missing])
        assert refused.exit_code == 2 and "no shards of this name" in refused.output


def test_training_stops_where_another_build_takes_the_shards_place(kb, folder, demo_cache):
    from rag_core.cluster import start_shards, stop_shards

    own = cut_shards(KnowledgeBase.open(kb), "parts", 2).folder
    start_shards(own, "moved")

    def exchange(progress):
        if progress.event == "step":
            start_shards(folder, "moved", grace=0)

    files = "qa.jsonl", demo_cache / "demo-model", kb, "tuned", {"steps": 2}
    options = {"index": "ray://auto/moved", "progress": False}
    with pytest.raises(ShardsExchangedError, match="another build, number 2, has taken"):
        load_backend().train_files(*files, **options, callbacks=[exchange])
    start_shards(own, "moved", grace=0)
    assert load_backend().train_files(*files, **options).steps == 2
    stop_shards("moved")
