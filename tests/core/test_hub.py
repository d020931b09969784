"""Folders and repositories: found, refused with reasons, written whole or not at all, pushed."""

import errno
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar
from unittest.mock import Mock

import datasets
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from hypothesis import given
from hypothesis import strategies as st

from rag_core.checkpoint.convert import convert_checkpoint
from rag_core.checkpoint.folder import read_weights, write_checkpoint
from rag_core.config.rag import AutoConfig, DPRConfig, T5Config
from rag_core.hub import push as hub_push
from rag_core.hub.atomic import atomic_folder, atomic_write
from rag_core.hub.files import HUB_KWARGS, is_local, list_files, resolve_file, split_hub_kwargs
from rag_core.hub.push import Saving, loader_of, model_card, push_folder
from rag_core.retrieval.faiss_files import build_faiss, write_faiss
from rag_core.retrieval.retriever_files import open_index
from rag_core.tokenization.rag import RagTokenizer

COMMIT = "0" * 40


@pytest.fixture
def cache(tmp_path):
    """A cache of the hub as huggingface_hub leaves it, holding one repository."""
    root = tmp_path / "cache" / "models--owner--name"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    snapshot = root / "snapshots" / COMMIT
    (snapshot / "sub").mkdir(parents=True)
    DPRConfig(projection_dim=5).save_pretrained(snapshot)
    DPRConfig(projection_dim=6).save_pretrained(snapshot / "sub")
    (root / ".no_exist" / COMMIT).mkdir(parents=True)
    (root / ".no_exist" / COMMIT / "absent.json").touch()
    return tmp_path / "cache"


@given(st.dictionaries(st.sampled_from([*HUB_KWARGS, "n_docs", "dtype"]), st.integers()))
def test_split_keeps_everything_once(kwargs):
    before = dict(kwargs)
    hub, rest = split_hub_kwargs(kwargs)
    assert (
        {**hub, **rest} == kwargs == before
        and set(hub) <= set(HUB_KWARGS)
        and not set(rest) & set(HUB_KWARGS)
    )


def test_names_and_paths_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    local = [
        "models",
        "./x",
        "../x",
        "/x",
        "~/x",
        "models/x",
        "a/b/c",
        "x/",
        "a\\b",
        ".",
        "",
        Path("x"),
    ]
    assert [name for name in local if not is_local(name)] == []
    assert [name for name in ("bert-base-uncased", "facebook/rag-token-nq") if is_local(name)] == []


def test_local_files_are_found_and_missing_ones_explained(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("a")
    assert resolve_file(tmp_path, "a.txt", subfolder="sub") == tmp_path / "sub" / "a.txt"
    assert resolve_file(str(tmp_path), "sub/a.txt", cache_dir=None) == tmp_path / "sub" / "a.txt"
    assert resolve_file(tmp_path, "b.txt", required=False) is None
    assert list_files(tmp_path) == ["sub/a.txt"] and list_files(tmp_path, subfolder="sub") == [
        "a.txt"
    ]
    with pytest.raises(OSError, match=r"No b\.txt in folder .*it holds sub"):
        resolve_file(tmp_path, "b.txt")
    with pytest.raises(OSError, match=r"No folder .*nowhere.*config\.json"):
        resolve_file(tmp_path / "nowhere", "config.json", required=False)
    with pytest.raises(OSError, match="is a file"):
        resolve_file(tmp_path / "sub" / "a.txt", "config.json")
    with pytest.raises(OSError, match="No folder"):
        list_files("./nowhere")
    with pytest.raises(TypeError, match="Unknown hub option 'cachedir'"):
        resolve_file(tmp_path, "a.txt", cachedir="x")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (ConnectionError("no route"), "the hub, which might know .* can't be reached"),
        (RepositoryNotFoundError("404", response=Mock()), "no such repository on the hub"),
    ],
)
def test_a_word_that_is_no_folder_is_asked_for_once_and_briefly(
    tmp_path, monkeypatch, answer: Exception, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    (tmp_path / "tuned").mkdir()
    asked = []

    def repo_info(self, name: str, *, repo_type: None, timeout: float) -> None:
        asked.append((name, timeout))
        raise answer

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    options = {"cache_dir": tmp_path / "cache"}
    for load in (list_files, lambda name, **hub: resolve_file(name, "config.json", **hub)):
        with pytest.raises(OSError, match=rf"^No folder 'tund' here \(but 'tuned'\), and {says}"):
            load("tund", **options)
    assert asked == 2 * [("tund", 5)]
    with pytest.raises(OSError, match=r"No folder 'tund' .*\(but 'tuned'\)"):
        resolve_file("./tund", "config.json")
    assert len(asked) == 2


def test_without_a_network_a_repository_is_asked_for_once_and_briefly(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)

    def repo_info(self, name, *, repo_type, timeout):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    with pytest.raises(OSError, match=r"No folder 'o/n' here, and the hub, .* \(ConnectionError\)"):
        resolve_file("o/n", "config.json", cache_dir=tmp_path)


def test_offline_what_was_fetched_is_found(cache):
    options = {"cache_dir": cache, "local_files_only": True}
    assert AutoConfig.from_pretrained("owner/name", **options).projection_dim == 5
    assert AutoConfig.from_pretrained("owner/name", subfolder="sub", **options).projection_dim == 6
    assert AutoConfig.from_pretrained("owner/name", revision=COMMIT, **options).projection_dim == 5
    assert list_files("owner/name", **options) == ["config.json", "sub/config.json"]
    assert list_files("owner/name", subfolder="sub", **options) == ["config.json"]
    assert resolve_file("owner/name", "other.json", required=False, **options) is None
    for name in ("owner/name", "owner/other", "single"):
        with pytest.raises(
            OSError, match=rf"No folder '{name}' here, and other\.json .* offline .*name a folder"
        ) as caught:
            resolve_file(name, "other.json", **options)
        assert str(cache) in str(caught.value)


def test_files_that_belong_together_are_fetched_at_one_commit(tmp_path, monkeypatch):
    """Shards follow their index and passages their faiss file, though the branch has moved in
    between.
    """
    root = tmp_path / "models--owner--name" / "snapshots" / COMMIT
    write_checkpoint(
        root, {f"w{i}": np.full(9, i, np.float32) for i in range(4)}, DPRConfig(), max_shard_size=60
    )
    folder = root / "passages"
    data = datasets.Dataset.from_dict({"title": ["a"], "text": ["b"], "embeddings": [[1.0]]})
    data.save_to_disk(folder)
    write_faiss(build_faiss([np.ones((1, 1))], 1, 1), root / "own.faiss")
    asked = {}

    def download(name, filename, *, revision=None, **_):
        asked[filename] = revision
        if not (root / filename).is_file():
            raise EntryNotFoundError(filename)
        return str(root / filename)

    class Api:
        def __init__(self, token=None):
            pass

        def repo_info(self, name, *, revision, repo_type):
            asked["commit"] = revision
            return SimpleNamespace(sha=COMMIT)

        def list_repo_files(self, name, *, revision, repo_type):
            asked["list"] = revision
            return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    weights = read_weights("owner/name", revision="v1")
    assert sorted(weights) == ["w0", "w1", "w2", "w3"]
    shards = {name: revision for name, revision in asked.items() if "-of-" in name}
    assert len(shards) > 1 and set(shards.values()) == {COMMIT}
    assert asked["model.safetensors.index.json"] == "v1"

    asked.clear()
    with pytest.raises(ValueError, match="w0"):  # no network that we know
        convert_checkpoint("owner/name", tmp_path / "converted", revision="v1")
    assert asked.pop("commit") == "v1" and set(asked.values()) == {COMMIT}

    asked.clear()
    config = SimpleNamespace(index_name="custom", index_path="own.faiss", passages_path="passages")
    assert len(open_index(config, "owner/name", revision="v1")) == 1
    assert asked.pop("commit") == "v1" and len(asked) > 3 and set(asked.values()) == {COMMIT}


def test_hf_hub_offline_is_heeded(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert resolve_file("owner/name", "config.json", cache_dir=cache).is_file()
    with pytest.raises(OSError, match="HF_HUB_OFFLINE"):
        list_files("owner/other", cache_dir=cache)


def test_options_reach_huggingface_hub(tmp_path, monkeypatch):
    calls = []

    def download(*args, **kwargs):
        calls.append((args, kwargs))
        return str(tmp_path / "got")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", Mock())
    given_options = {"token": "t", "revision": "r", "force_download": True, "cache_dir": tmp_path}
    assert (
        resolve_file("o/n", "f", repo_type="dataset", subfolder="s", **given_options)
        == tmp_path / "got"
    )
    assert calls == [(("o/n", "s/f"), {"repo_type": "dataset", **given_options})]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (HFValidationError("x"), "neither a folder here nor a possible repository id"),
        (EntryNotFoundError("x"), r"No f in repository 'o/n' \(revision 'r'\)"),
        (ConnectionError("no route"), "can't be fetched: ConnectionError: no route"),
        (OfflineModeIsEnabled("x"), "can't be fetched"),
    ],
)
def test_failures_say_what_was_looked_for(error, words, monkeypatch):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", Mock())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(OSError, match=words):
        resolve_file("o/n", "f", revision="r")
    if isinstance(error, EntryNotFoundError):
        assert resolve_file("o/n", "f", revision="r", required=False) is None
    else:
        with pytest.raises(OSError, match=words):
            resolve_file("o/n", "f", revision="r", required=False)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_folder_is_made_or_merged_on_success(tmp_path):
    target = tmp_path / "deep" / "model"
    for text, stale in (("1", ()), ("2", ("old-*",))):
        with atomic_folder(target, stale=stale) as draft:
            (draft / "sub").mkdir()
            (draft / "sub" / "a").write_text(text)
            (draft / f"old-{text}").write_text(text)
            assert draft.is_relative_to(target.parent) and draft != target
    assert contents(target) == {"sub/a": "2", "old-2": "2"}
    (target / "mine").write_text("x")
    with atomic_folder(target) as draft:
        (draft / "b").write_text("b")
    assert contents(tmp_path) == {
        f"deep/model/{name}": text for name, text in contents(target).items()
    }
    assert contents(target) == {"sub/a": "2", "old-2": "2", "mine": "x", "b": "b"}


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_failure_leaves_nothing_new_and_everything_old(error, tmp_path, monkeypatch):
    with atomic_folder(tmp_path / "old") as draft:
        (draft / "a").write_text("1")

    def full(*args, **kwargs):
        raise error

    for target in (tmp_path / "old", tmp_path / "new" / "deep"):
        with pytest.raises(type(error)), atomic_folder(target, stale=("*",)) as draft:
            (draft / "a").write_text("2")
            monkeypatch.setattr(Path, "write_text", full)
            (draft / "b").write_text("2")
        with pytest.raises(type(error)), atomic_write(target / "config.json") as path:
            path.write_text("2")
        monkeypatch.undo()
    assert contents(tmp_path) == {"old/a": "1"} and [path.name for path in tmp_path.iterdir()] == [
        "old"
    ]


def test_single_files_are_replaced_whole(tmp_path):
    for text in ("1", "2"):
        with atomic_write(tmp_path / "deep" / "a.json") as path:
            path.write_text(text)
    assert contents(tmp_path) == {"deep/a.json": "2"}
    with pytest.raises(OSError, match="is a file"), atomic_folder(tmp_path / "deep" / "a.json"):
        pass


API = ("create_repo", "create_branch", "file_exists", "upload_folder", "upload_file")
signatures = {name: inspect.signature(getattr(huggingface_hub.HfApi, name)) for name in API}


class FakeApi:
    """Records what would be sent; `readme` is whether the repository has one."""

    readme = False
    fail = None
    calls: ClassVar[list]

    def __init__(self, token=None):
        self.calls.append(("token", token))

    def file_exists(self, *args, **kwargs):
        signatures["file_exists"].bind(self, *args, **kwargs)
        return self.readme

    def create_repo(self, repo_id, **kwargs):
        signatures["create_repo"].bind(self, repo_id, **kwargs)
        if self.fail:
            raise self.fail
        self.calls.append(("create_repo", repo_id, kwargs))
        return f"https://huggingface.co/{repo_id}"

    def __getattr__(self, name):
        def call(*args, **kwargs):
            signatures[name].bind(self, *args, **kwargs)
            self.calls.append((name, *args, kwargs))

        return call


@pytest.fixture
def api(monkeypatch):
    Api = type("Api", (FakeApi,), {"calls": []})
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return Api


def test_pushing_uploads_the_folder_and_a_card(api, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    address = push_folder(
        tmp_path, "o/n", token="t", private=True, revision="r", commit_message="m"
    )
    assert address == "https://huggingface.co/o/n"
    assert [call[0] for call in api.calls] == [
        "token",
        "create_repo",
        "create_branch",
        "upload_folder",
        "upload_file",
    ]
    assert api.calls[0] == ("token", "t") and api.calls[1][2] == {"private": True, "exist_ok": True}
    assert api.calls[3][1] == {
        "repo_id": "o/n",
        "folder_path": tmp_path,
        "revision": "r",
        "commit_message": "m",
    }
    card = api.calls[4][1]["path_or_fileobj"].decode()
    assert (
        card.startswith("---\nlibrary_name: dualrag\n")
        and '\n- "rag"\n' in card
        and "\n# n\n" in card
    )
    assert contents(tmp_path) == {"config.json": "{}"}


@pytest.mark.parametrize("where", ["folder", "repository"])
def test_an_own_card_stays(where, api, tmp_path):
    (tmp_path / ("README.md" if where == "folder" else "config.json")).write_text("mine")
    api.readme = where == "repository"
    push_folder(tmp_path, "o/n")
    assert [call[0] for call in api.calls] == ["token", "create_repo", "upload_folder"]


def test_configs_tokenizers_and_retrievers_push_what_they_save(api, retriever, monkeypatch):
    pushed = set()
    monkeypatch.setattr(
        FakeApi,
        "upload_folder",
        lambda self, **given: pushed.update(path.name for path in given["folder_path"].rglob("*")),
        raising=False,
    )
    parts = RagTokenizer(retriever.question_encoder_tokenizer, retriever.generator_tokenizer)
    for part, file in (
        (retriever.config, "config.json"),
        (parts, "generator_tokenizer"),
        (retriever, "hf_dataset_index.faiss"),
    ):
        pushed.clear()
        assert part.push_to_hub("o/n", token="t") == "https://huggingface.co/o/n"
        assert file in pushed


class RagModel:
    """Stands for a model of a backend."""


class RagSequenceForGeneration(RagModel):
    """Of a user's own, derived from one of ours."""


@pytest.mark.parametrize("package", ["rag_torch", "rag_tf"])
def test_a_card_names_what_saved_the_folder(package, api, tmp_path, monkeypatch):
    monkeypatch.setattr(RagModel, "__module__", f"{package}.rag_model")
    Saving.of(push_to_hub=True, repo_id="o/n").finish(tmp_path, RagModel())
    card = api.calls[-1][1]["path_or_fileobj"].decode()
    assert f"\nfrom {package} import RagModel, RagRetriever, RagTokenizer\n" in card
    assert "\nmodel = RagModel.from_pretrained(name, retriever=retriever)\n" in card
    assert loader_of(RagSequenceForGeneration()) == f"{package}.RagModel"
    assert "from rag_core import T5Config\n" in model_card("T", loader=loader_of(T5Config()))
    assert loader_of(None) is None


def test_failed_pushes_are_explained(api, tmp_path):
    api.fail = ConnectionError("no route")
    with pytest.raises(
        OSError, match=r"Pushing .* to 'o/n' failed: ConnectionError: no route.*token="
    ):
        push_folder(tmp_path, "o/n")
    with pytest.raises(OSError, match="no folder"):
        push_folder(tmp_path / "nowhere", "o/n")


def test_card_front_matter():
    card = model_card(
        "T",
        summary="S.",
        license="apache-2.0",
        tags=["x"],
        base_models=["a/b"],
        datasets=["d"],
        figures={"EM": 0.9},
    )
    head, body = card.split("\n---\n", 1)
    assert head.splitlines()[1:] == [
        "library_name: dualrag",
        "pipeline_tag: question-answering",
        'language: "en"',
        'license: "apache-2.0"',
        "tags:",
        '- "rag"',
        '- "retrieval-augmented-generation"',
        '- "x"',
        "base_model:",
        '- "a/b"',
        "datasets:",
        '- "d"',
    ]
    assert "# T" in body and "| EM | 0.9 |" in body


def test_how_weights_are_split_is_heard_when_pushing(api):
    given = {}

    class Model(hub_push.Pushable):
        def save_pretrained(self, folder, **kwargs):
            given.update(kwargs)

    Model().push_to_hub(
        "o/n", max_shard_size="1GB", safe_serialization=True, use_temp_dir=True, use_auth_token="t"
    )
    assert given == {"max_shard_size": "1GB", "safe_serialization": True}
    assert api.calls[0] == ("token", "t")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("revision", 5),
        ("subfolder", 5),
        ("local_files_only", "yes"),
        ("force_download", 1.5),
        ("token", 5),
        ("cache_dir", 5),
    ],
)
def test_options_of_the_hub_are_of_their_kinds(name, value, tmp_path):
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=rf"^{name} must be .* or None, got {value!r}"):
        AutoConfig.from_pretrained(tmp_path, **{name: value})


@pytest.mark.parametrize("name", [5, ["me/model"], b"me/model"])
def test_what_is_loaded_has_a_name(name):
    with pytest.raises(
        TypeError, match=r"^pretrained_model_name_or_path must be a folder or a repository id, got"
    ):
        AutoConfig.from_pretrained(name)
    with pytest.raises(TypeError, match=r"^pretrained_model_name_or_path must be"):
        RagTokenizer.from_pretrained(name)
