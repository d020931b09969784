"""Damaged and hostile files: whatever is wrong with one is an error that names it, in every reader;
nothing crashes.

The mutants are seeded. `python -m tests.support.damaged_readers READER COUNT` tries more of them.
"""

import json
import random
import sys

import numpy as np
import pytest

from rag_core import AutoConfig, RagTokenizer, Tokenizer
from rag_core.checkpoint import file_checks
from rag_core.checkpoint.folder import read_weights
from rag_core.checkpoint.weights import LazyWeights, check_sizes
from rag_core.config.rag import BartConfig, DPRConfig
from rag_core.hub.damaged import DamagedFileError, locating, reading
from rag_core.hub.json_files import bounded_json, read_json
from rag_core.knowledge.base import KnowledgeBase
from rag_core.knowledge.manifest import describe
from rag_core.retrieval.index import FaissIndex
from rag_core.retrieval.passage_files import read_passages, write_passages
from tests.support.damaged_readers import READERS, Damage, write_h5, write_index
from tests.support.mutations import damaged_bytes

# Mutants of those below cost a process each, and are tried many at once.
_APART = ("index", "saved data set", "h5", "model")
# Tokenizers, faiss and parquet cost milliseconds a mutant.
_TRIES = {"t5": 40, "faiss": 60, "knowledge base": 60}


@pytest.mark.parametrize("name", [name for name in READERS if name not in _APART])
def test_a_mutant_is_read_or_refused_by_its_name(name, tmp_path):
    damage = Damage(READERS[name], tmp_path / "files")
    ends = [damage.verdict(seed) for seed in range(_TRIES.get(name, 120))]
    assert {"read", "refused"} == set(ends)


@pytest.mark.backend("torch")
def test_a_mutant_of_a_whole_model_is_read_or_refused_by_its_name(tmp_path):
    damage = Damage(READERS["model"], tmp_path / "files")
    assert {"read", "refused"} == {damage.verdict(seed) for seed in range(40)}


@pytest.mark.parametrize("kind", ["h5", "arrow-full"])
def test_mutants_that_a_child_finds_sound_are_read_here(kind, tmp_path):
    """One child for 150 files.

    What it lets through is opened, searched and read in this process.
    """
    write = write_h5 if kind == "h5" else write_index
    write(tmp_path)
    [good] = tmp_path.rglob("*.h5" if kind == "h5" else "*.arrow")
    content = good.read_bytes()
    paths = [tmp_path / f"{seed}{good.suffix}" for seed in range(150)]
    for seed, path in enumerate(paths):
        path.write_bytes(damaged_bytes(content, random.Random(seed)))
    found = dict(zip(paths, file_checks.outcomes(kind, paths), strict=True))
    refused = {path: error for path, error in found.items() if isinstance(error, Exception)}
    assert all(
        isinstance(error, DamagedFileError) and str(path) in str(error)
        for path, error in refused.items()
    )
    assert 30 < len(refused) < 150
    for path in set(paths) - set(refused):
        good.unlink()
        path.rename(good)
        if kind == "arrow-full":
            file_checks.vouch([good])
            try:
                index = FaissIndex.from_files(good.parent, tmp_path / "x.faiss")
                index.get_doc_dicts(np.arange(len(index))[None])
            except (OSError, ValueError) as error:
                assert str(good.parent) in str(error)


@pytest.fixture
def crashing(monkeypatch):
    """A library that ends the process at files called bad, and never comes to an end at files
    called slow.
    """
    code = """
import os, sys, time
def read(path):
    if "bad" in path: os.abort()
    if "slow" in path: time.sleep(60)
    return {}
import rag_core.checkpoint.file_checks
"""
    source = file_checks._CHILD.replace(
        "from rag_core",
        code + "rag_core.checkpoint.file_checks._READERS['h5'] = read\nfrom rag_core",
    )
    monkeypatch.setattr(file_checks, "_CHILD", source)


def test_a_crash_and_an_endless_loop_of_a_library_are_errors_that_name_the_file(
    crashing, tmp_path, monkeypatch
):
    paths = [tmp_path / name for name in ("good", "bad", "fine")]
    for path in paths:
        path.touch()
    good, bad, fine = file_checks.outcomes("h5", paths)
    assert good == fine == {} and isinstance(bad, DamagedFileError)
    assert str(bad).startswith(
        f"{paths[1]} can't be read: the library that reads such files crashed at it (exit status"
    )
    (tmp_path / "slow").touch()
    monkeypatch.setattr(file_checks, "SECONDS", 1)
    with pytest.raises(
        DamagedFileError, match=r"slow can't be read: .* did not come to an end within 1 s"
    ):
        file_checks.h5_structure(tmp_path / "slow")


def test_where_no_child_starts_a_file_is_read_here_and_that_is_said(tmp_path, monkeypatch):
    write_h5(tmp_path)
    monkeypatch.setattr(file_checks, "_CHILD", "raise SystemExit(1)")
    with pytest.warns(
        UserWarning,
        match=r"no process could be started to look at .*tf_model\.h5 first \(.*status 1\)",
    ):
        assert len(read_weights(tmp_path)) == 3


def test_nothing_is_imported_from_where_one_stands(tmp_path, monkeypatch):
    """A folder with a module of the name of a library, or of ours, gives it to nobody."""
    write_h5(tmp_path)
    for name in ("h5py", "numpy", "rag_core", "json"):
        (tmp_path / f"{name}.py").write_text("open('imported', 'w').close(); raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert len(read_weights(tmp_path)) == 3
    assert not (tmp_path / "imported").exists()


def test_files_are_looked_at_once_and_those_of_a_manifest_on_request(tmp_path, monkeypatch):
    asked = []
    ask = file_checks._ask
    monkeypatch.setattr(
        file_checks,
        "_ask",
        lambda kind, names: asked.append((kind, len(names))) or ask(kind, names),
    )
    READERS["saved data set"].write(tmp_path)
    for _ in range(2):
        read_passages(tmp_path / "data")
    assert asked == [("arrow-full", 1)]
    write_passages(read_passages(tmp_path / "data"), tmp_path / "ours")
    read_passages(tmp_path / "ours")
    monkeypatch.setattr(file_checks, "FULL_BYTES", 10)
    (tmp_path / "copy").mkdir()
    for path in (tmp_path / "ours").iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    read_passages(tmp_path / "copy")
    assert asked[1:] == [("arrow", 1)]
    READERS["knowledge base"].write(tmp_path / "kb")
    file_checks._vouched.clear()
    KnowledgeBase.open(tmp_path / "kb").dataset()
    assert len(asked) == 2
    [data] = (tmp_path / "kb").rglob("*.arrow")
    content = data.read_bytes()
    at = content.index(b"A city") - 32  # offsets of the column in front of its letters
    data.write_bytes(content[:at] + b"\xff" * 8 + content[at + 8 :])
    manifest = json.loads((tmp_path / "kb/manifest.json").read_text())
    manifest["files"]["passages/" + data.name] = describe(data)
    (tmp_path / "kb/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        DamagedFileError, match=rf"can't be opened as a saved data set.*{data.name}"
    ):
        KnowledgeBase.open(tmp_path / "kb", verify=True)
    assert asked[2:] == [("arrow-full", 1)]


@pytest.mark.parametrize(
    "text, says",
    [
        (b"[" * 100_000, "nested more than 64 deep"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested more than 64 deep"),
        (b'{"a": ' + b"9" * 41 + b"}", "a whole number of 41 digits, where at most 40 are read"),
        (rb'{"a": ["\ud800"]}', r"half of a surrogate pair \(\\ud800\)"),
        (b'{"a": 1', "Expecting"),
        (b'{"a": "\xff"}', "invalid start byte"),
        (b"[1]", "must hold a json object, got list"),
    ],
)
def test_json_has_bounds(text, says, tmp_path):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(OSError, match=rf"x\.json.*{says}") as caught:
        read_json(tmp_path / "x.json")
    assert isinstance(caught.value, ValueError)
    assert bounded_json('{"a": [1e400, -0.5, "é", null]}') == {"a": [float("inf"), -0.5, "é", None]}


def test_one_error_for_all_that_is_raised_at_a_file_and_none_for_a_wish_to_stop():
    class PanicException(BaseException):
        """As Rust's: no Exception."""

    for error in (
        KeyError("k"),
        RecursionError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        PanicException(),
    ):
        with (
            pytest.raises(DamagedFileError, match=f"^a.json can't be read .{type(error).__name__}"),
            reading("a.json"),
        ):
            raise error
    for error in (
        KeyboardInterrupt(),
        ImportError("pip install"),
        ValueError("a.json: no"),
        FileNotFoundError("gone"),
    ):
        with pytest.raises(type(error)) as caught, reading("a.json"):
            raise error
        assert caught.value is error
    for error, kind in (
        (TypeError("x"), TypeError),
        (OverflowError("x"), ValueError),
        (AttributeError("x"), ValueError),
    ):
        with pytest.raises(kind, match=r"^here"), locating("here"):
            raise error


def test_layers_and_sizes_beyond_the_file_are_refused_before_anything_is_built(tmp_path):
    for name, values in {"encoder_layers": 10**9, "d_model": 10**15, "vocab_size": 2**31}.items():
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bart", name: values}))
        with pytest.raises(
            ValueError, match=rf"config\.json of .*BartConfig\.{name} must be at most"
        ):
            AutoConfig.from_pretrained(tmp_path)
    few = LazyWeights(
        {"a": (3, 4)}, lambda name: np.ones((3, 4)), dtypes={"a": np.dtype(np.float32)}
    )
    with pytest.raises(
        ValueError,
        match=r"DPRConfig\.num_hidden_layers must be at most the number of weights, 1, got",
    ):
        check_sizes(DPRConfig(num_hidden_layers=9_999), few, "x")
    with pytest.raises(
        ValueError, match=r"model\.shared\.weight would have the shape \(2000000000, 1600\)"
    ):
        check_sizes(BartConfig(vocab_size=2 * 10**9, d_model=1600), few, "x")
    check_sizes(BartConfig(), few, "x")  # the weights are compared one by one later


def test_a_tokenizers_settings_are_of_their_kind(tmp_path):
    READERS["bert"].write(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    good = json.loads(path.read_text())
    for name, value, says in (
        ("extra_ids", 10**9, "a whole number below 100,000"),
        ("model_max_length", float("nan"), "a number of tokens"),
        ("pad_token", ["[PAD]"], "a token: a text, or an object with its content"),
        ("do_lower_case", "no", "true, false or null"),
        ("added_tokens_decoder", {"one": {"content": "x"}}, "an object of ids"),
    ):
        path.write_text(json.dumps(good | {name: value}))
        with pytest.raises(OSError, match=rf"tokenizer_config\.json: {name} must be {says}"):
            Tokenizer.from_pretrained(tmp_path)
    path.write_text(json.dumps(good))
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\n")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(
        OSError,
        match=r"vocab\.txt and the settings beside it make no tokenizer \(UnicodeDecodeError",
    ):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="no tokenizer found"):
        RagTokenizer.from_pretrained(tmp_path)
