"""The demo by name: its model, knowledge base and encoder in the cache, with no hub."""

import shutil

import pytest

from rag_core import AutoTokenizer, KnowledgeBase, RagConfig, RagRetriever
from rag_core.backends import load_backend
from rag_core.hub import DEMO, DEMO_ENCODER, is_local, list_files, resolve_file


@pytest.fixture
def cache(demo_cache, tmp_path, monkeypatch, offline):
    """A copy that may be spoilt, with an empty working directory beside it."""
    home = shutil.copytree(demo_cache, tmp_path / "home")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("DUALRAG_HOME", str(home))
    return home


def test_every_part_of_the_demo_is_loaded_by_its_name(cache, backend):
    rag = load_backend(backend)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    retriever = RagRetriever.from_pretrained(DEMO)
    model = rag.RagTokenForGeneration.from_pretrained(DEMO, retriever=retriever)
    assert model.config.index_path is None and RagConfig.from_pretrained(DEMO).n_docs == 5
    assert len(tokenizer.generator) == model.config.generator.vocab_size
    [answer] = model.answer("Who wrote War and Peace?", n_docs=2)
    base = KnowledgeBase.open(DEMO)
    assert base.path == cache / "demo-kb"
    titles = base.dataset()["title"]
    assert [titles[each.id] for each in answer.passages] == [each.title for each in answer.passages]
    encoder = rag.load_encoder(DEMO_ENCODER)
    base.check_encoder(encoder.embed)
    assert encoder.name == DEMO_ENCODER and is_local(DEMO)
    assert "generator_tokenizer/vocab.json" in list_files(DEMO)
    # a config alone knows where it came from
    parts = tokenizer.question_encoder, tokenizer.generator
    again = RagRetriever(RagConfig.from_pretrained(DEMO), *parts)
    assert len(again.index) == len(base)


def test_what_was_not_built_says_how_to_build_it_and_is_not_fetched(cache):
    shutil.rmtree(cache / "demo-kb")
    assert RagConfig.from_pretrained(DEMO).n_docs == 5
    for opened in (KnowledgeBase.open, RagRetriever.from_pretrained):
        with pytest.raises(
            FileNotFoundError, match=r"knowledge base, which is not in .*dualrag demo"
        ):
            opened(DEMO)
    shutil.rmtree(cache / "all-MiniLM-L6-v2")
    with pytest.raises(
        FileNotFoundError, match=r"model, which is not in .* Build it:  dualrag demo"
    ):
        RagConfig.from_pretrained(DEMO)
    with pytest.raises(OSError, match="was not fetched before"):
        resolve_file(DEMO_ENCODER, "config.json", local_files_only=True)


def test_the_model_is_made_where_its_parts_are(cache, monkeypatch):
    shutil.rmtree(cache / "demo-model")
    made = []

    def assemble(encoder, folder):
        made.append((encoder.name, folder.name))
        return cache

    monkeypatch.setattr("rag_core.demo.checkpoint.assemble_model", assemble)
    assert resolve_file(DEMO, "config.json", required=False) is None
    assert made == [("all-MiniLM-L6-v2", "demo-model")]


def test_a_folder_of_that_name_comes_first_and_a_revision_is_the_hubs(cache):
    folder = shutil.copytree(cache / "demo-model", DEMO)
    (cache / "demo-model" / "config.json").unlink()
    assert str(resolve_file(DEMO, "config.json")) == f"{folder}/config.json"
    with pytest.raises(FileNotFoundError, match="no knowledge base here"):
        KnowledgeBase.open(DEMO)
    assert resolve_file(DEMO_ENCODER, "modules.json").parent.parent == cache
    with pytest.raises(OSError, match="revision 'v2'"):
        resolve_file(DEMO_ENCODER, "modules.json", revision="v2")
