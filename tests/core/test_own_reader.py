"""A reader for own text: what a tuned model remembers, and what people are told of it."""

import json
import shutil

import pytest

from rag_core.cli.reader_notes import unfamiliar
from rag_core.demo.checkpoint import MARK
from rag_core.demo.material import PASSAGES_SHA256
from rag_core.knowledge import REMEMBERED, KnowledgeBase, remember_base, remembered_base
from tests.support.stored_files import STORED


def stored_base(folder):
    shutil.copytree(STORED / "knowledge", folder)
    return KnowledgeBase.open(folder)


def test_a_model_remembers_its_knowledge_base_and_both_may_move_together(tmp_path):
    (tmp_path / "a" / "model").mkdir(parents=True)
    base = stored_base(tmp_path / "a" / "kb")
    remember_base(tmp_path / "a" / "model" / REMEMBERED, tmp_path / "a" / "model", base)
    (tmp_path / "a").rename(tmp_path / "b")
    own = remembered_base(tmp_path / "b" / "model")
    assert own.path == (tmp_path / "b" / "kb").resolve() and own.is_here()
    assert own.is_of(KnowledgeBase.open(tmp_path / "b" / "kb"))
    shutil.move(tmp_path / "b" / "kb", tmp_path / "elsewhere")
    assert not own.is_here()
    assert own.is_of(KnowledgeBase.open(tmp_path / "elsewhere"))
    assert remembered_base("facebook/rag-token-nq") is None


@pytest.mark.parametrize(
    "notes",
    [
        [],
        {"path": "../kb"},
        {"path": "/etc", "manifest_sha256": ""},
        {"path": "\\\\host\\share", "manifest_sha256": ""},
        {"path": "C:\\kb", "manifest_sha256": ""},
        {"path": 3, "manifest_sha256": ""},
    ],
)
def test_a_strange_memory_is_refused(tmp_path, notes):
    (tmp_path / REMEMBERED).write_text(json.dumps(notes))
    with pytest.raises(ValueError, match=r"knowledge_base\.json.*Remove it"):
        remembered_base(tmp_path)


def test_a_model_that_meets_other_passages_is_noted_once_with_the_way_out(tmp_path):
    own, other = stored_base(tmp_path / "own"), stored_base(tmp_path / "other")
    model = tmp_path / "model"
    model.mkdir()
    assert unfamiliar(model, other) is None  # nothing is known of it
    remember_base(model / REMEMBERED, model, own)
    assert unfamiliar(model, other) is None  # the same passages
    (other.path / "manifest.json").write_text((own.path / "manifest.json").read_text() + "\n")
    assert unfamiliar(model, own) is None
    note = unfamiliar(model, other)
    assert str(own.path) in note and f"train questions.jsonl --kb {other.path}" in note
    (model / MARK).write_text("")
    assert "name articles of Wikipedia" in unfamiliar(model, other)
    other.manifest.sources.append({"sha256": PASSAGES_SHA256})
    assert unfamiliar(model, other) is None
