"""A disk that is full when a checkpoint is written, and a checkpoint of other data or settings."""

import errno
import json

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open

from rag_core.training.best import BestWeights
from rag_core.training.config import TrainingConfig
from rag_core.training.data import Example
from rag_core.training.state import CHECKPOINT, check_fingerprint, fingerprint, save_state

ARRAYS = {"w": np.ones(4, np.float32)}
ASKED = [Example("q", ("a",)), Example("r", ("b",))]


def full(draft, *args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("writer", ["checkpoint", "best"])
def test_a_full_disk_is_named_and_the_checkpoint_before_is_as_it_was(tmp_path, monkeypatch, writer):
    best = BestWeights(tmp_path)
    save_state(tmp_path / CHECKPOINT, "torch", ARRAYS, {"report": {}})
    best.keep(1, ARRAYS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match=r"(?i)space|full|room") as error:
        if writer == "best":
            best.keep(2, ARRAYS)
        else:
            save_state(tmp_path / CHECKPOINT, "torch", ARRAYS, {"report": {}})
    assert error.value.errno == errno.ENOSPC
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_checkpoint_is_as_large_as_its_notes_and_only_a_full_disk_needs_room(
    tmp_path, monkeypatch
):
    save_state(tmp_path / CHECKPOINT, "torch", ARRAYS, {"report": {"a": "b"}})
    with safe_open(tmp_path / CHECKPOINT, "np") as file:
        assert not file.metadata()  # which is 100 MB at most
        assert json.loads(file.get_tensor("notes").tobytes()) == {"report": {"a": "b"}}
    for words, advice in (("I/O error: No space left", " Make room"), ("header too large", "")):

        def fails(*args, words=words):
            raise SafetensorError(f"Error while serializing: {words}")

        monkeypatch.setattr("safetensors.numpy.save_file", fails)
        with pytest.raises(
            OSError, match=rf"can't be written \(.*{words}\)\.({advice}|$)"
        ) as error:
            save_state(tmp_path / CHECKPOINT, "torch", ARRAYS, {})
        assert ("room" in str(error.value)) == bool(advice)


@pytest.mark.parametrize(
    ("examples", "settings", "named"),
    [
        (ASKED[:1], {}, r"examples: 2 there, 1 now; other questions or answers"),
        (ASKED[::-1], {}, r"\(other questions or answers, or in another order\)"),
        (ASKED, {"seed": 1}, r"\(seed: 0 there, 1 now\)"),
        (ASKED, {"best_metric": "f1"}, r"\(best_metric: None there, 'f1' now; evaluate_every"),
    ],
)
def test_other_data_or_settings_are_named_with_what_to_do(tmp_path, examples, settings, named):
    stored = fingerprint(ASKED, TrainingConfig())
    current = fingerprint(examples, TrainingConfig(**settings), examples)
    with pytest.raises(ValueError, match=named) as error:
        check_fingerprint(stored, current, tmp_path / CHECKPOINT)
    assert "choose another output folder, or remove it to begin anew" in str(error.value)
    bases = [{"kb_sha256": "a"}, {"kb_sha256": "b"}]
    with pytest.raises(ValueError, match=r"\(another knowledge base, or changed since\)"):
        check_fingerprint(*({**stored, **base} for base in bases), tmp_path / CHECKPOINT)
    outward = TrainingConfig(on_nan="skip", gradient_checkpointing=True, log_every=3)
    check_fingerprint(stored, fingerprint(ASKED, outward), tmp_path / CHECKPOINT)
