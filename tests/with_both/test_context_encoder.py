"""The encoder of passages trained along, in both backends: what learns, what is searched, what the
finished folder holds.
"""

import json
from importlib import import_module

import numpy as np
import pytest

from rag_core.backends import to_numpy, to_tensor
from rag_core.checkpoint.folder import read_weights
from rag_core.config.rag import BertConfig
from rag_core.knowledge.base import KnowledgeBase, build_knowledge_base
from rag_core.knowledge.remembered import remembered_base
from rag_core.retrieval.retriever import RagRetriever
from rag_core.training import reindexing
from rag_core.training.config import TrainingConfig
from rag_core.training.context_encoder import LiveEncoder, open_passage_encoder
from rag_core.training.data import Example
from rag_core.training.state import REINDEXING
from tests.support.killing import contents
from tests.support.reindexing import Inline
from tests.support.training_models import (
    EXAMPLES,
    WORDS,
    Killed,
    live_files,
    small_tokenizers,
    timeless,
)

SETTINGS = {
    "batch_size": 2,
    "learning_rate": 1e-2,
    "on_collapse": "warn",
    "log_every": 1,
    "context_encoder": "all",
}


@pytest.fixture(scope="module")
def rag(backend):
    return import_module(f"rag_{backend}")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return small_tokenizers(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="module")
def files(rag, golden, tokenizers, tmp_path_factory):
    golden.set_seed(3)
    return live_files(tmp_path_factory.mktemp("bert"), rag, tokenizers)


def passages(encoder):
    return encoder.embed(WORDS, [f"{word} {word}" for word in WORDS])


def embeddings(base):
    return np.asarray(base.dataset()["embeddings"], np.float32)


class World:
    """A model, its encoder of passages and a spare one to embed with, which begin anew as often as
    is asked: TensorFlow's graphs are compiled once.
    """

    def __init__(self, rag, files):
        self.rag, self.files = rag, files
        self.encoder = rag.load_encoder(files[2].parent / "encoder")
        self.spare = rag.load_encoder(files[2].parent / "encoder")
        self.model = rag.RagTokenForGeneration.from_pretrained(files[1])
        self.starts = [
            {name: to_numpy(value).copy() for name, value in network.state_dict().items()}
            for network in (self.model, self.encoder.model)
        ]

    def load_encoder(self, folder, **options):
        """The spare encoder with the weights in a folder."""
        self.fill(self.spare.model, read_weights(folder))
        return self.spare

    def fill(self, network, arrays):
        kinds = {"rag_torch": "pt", "rag_tf": "tf"}
        kind = kinds[self.rag.__name__]
        network.load_state_dict({name: to_tensor(value, kind) for name, value in arrays.items()})

    def train(self, out, config, examples=EXAMPLES, **options):
        self.model.rag.ctx_encoder = None
        for network, start in zip((self.model, self.encoder.model), self.starts, strict=True):
            self.fill(network, start)
        base = KnowledgeBase.open(self.files[2])
        retriever = RagRetriever.from_pretrained(self.files[1], index=base.index())
        self.model.set_retriever(retriever)
        options = {"out": out, "passage_encoder": self.encoder, "kb": base, "progress": False}
        return self.rag.train(self.model, retriever, examples, config, **options)


def test_a_run_with_new_indexes_that_was_killed_ends_bit_for_bit_as_one_that_was_not(
    rag, files, tmp_path, monkeypatch
):
    world = World(rag, files)
    monkeypatch.setattr(reindexing, "start_process", Inline)
    monkeypatch.setattr(rag, "load_encoder", world.load_encoder)
    config = TrainingConfig(steps=5, reindex_every=2, overretrieve=2, save_every=3, **SETTINGS)
    before = contents(files[2])
    report = world.train(tmp_path / "whole", config)
    assert [line["index_age"] for line in report.history] == [1, 2, 3, 2, 0]
    final = {name: to_numpy(value).copy() for name, value in world.model.state_dict().items()}

    after = LiveEncoder.after

    def dies(self, step):
        after(self, step)
        if step == 4:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(LiveEncoder, "after", dies)
        world.train(tmp_path / "tuned", config)
    assert (tmp_path / "tuned" / REINDEXING).is_dir()
    again = world.train(tmp_path / "tuned", config)
    assert timeless(again) == timeless(report)
    assert not (tmp_path / "tuned" / REINDEXING).exists()
    for name, value in world.model.state_dict().items():
        assert np.array_equal(to_numpy(value), final[name]), name

    with monkeypatch.context() as patch:
        patch.setattr(LiveEncoder, "after", None)  # found done, with its weights and its vectors
        assert timeless(world.train(tmp_path / "tuned", config)) == timeless(report)
    for name, value in world.model.state_dict().items():
        assert np.array_equal(to_numpy(value), final[name]), name
    found = world.model.retriever.index.vectors_of([0, 1])
    np.testing.assert_allclose(found, passages(world.encoder)[:2], atol=1e-6)

    # the folder is all there is: new vectors by the encoder in the model, beside it to be loaded
    base = KnowledgeBase.open(tmp_path / "tuned" / "knowledge_base")
    assert contents(files[2]) == before
    encoder = read_weights(tmp_path / "tuned" / "context_encoder")
    saved = read_weights(tmp_path / "tuned")
    for name, value in encoder.items():
        assert np.array_equal(value, final[f"rag.ctx_encoder.{name}"]), name
        assert np.array_equal(value, saved[f"rag.ctx_encoder.{name}"]), name
    new = passages(world.load_encoder(tmp_path / "tuned" / "context_encoder"))
    np.testing.assert_allclose(embeddings(base), new, atol=1e-6)
    assert np.abs(embeddings(KnowledgeBase.open(files[2])) - new).max() > 1e-2
    assert len(base.search(EXAMPLES[0].question, 3)) == 3
    assert np.array_equal(world.model.rag.retriever.index.dataset["embeddings"], embeddings(base))
    # none of the two bases goes with the other one's model
    config = rag.RagConfig.from_pretrained(tmp_path / "tuned")
    base.check_model(config)
    with pytest.raises(ValueError, match="expects passages embedded by 'tuned-context-encoder-"):
        KnowledgeBase.open(files[2]).check_model(config)


def test_the_last_index_is_of_the_last_weights_also_where_questions_are_left_out(
    rag, files, tmp_path, monkeypatch
):
    world = World(rag, files)
    monkeypatch.setattr(reindexing, "start_process", Inline)
    monkeypatch.setattr(rag, "load_encoder", world.load_encoder)
    unanswerable = [Example(f"{word} ?", ("xyzzy",)) for word in WORDS[:4]]
    config = TrainingConfig(
        epochs=0.5, retriever_loss="contrastive", answer_loss_weight=0, **SETTINGS
    )
    report = world.train(tmp_path / "tuned", config, [*unanswerable, *EXAMPLES])
    assert (report.left_out, report.steps) == (4, 2)
    assert [line["index_age"] for line in report.history] == [1, 0]


def test_a_run_that_goes_back_to_its_best_step_has_the_vectors_of_that_step(
    rag, files, tmp_path, monkeypatch
):
    world = World(rag, files)
    monkeypatch.setattr(reindexing, "start_process", Inline)
    monkeypatch.setattr(rag, "load_encoder", world.load_encoder)
    config = TrainingConfig(
        steps=3, reindex_every=1, best_metric="f1", evaluate_every=1, sample_size=1, **SETTINGS
    )
    measured = iter((0.2, 0.9, 0.1))
    run = import_module(f"{rag.__name__}.training")._Run
    monkeypatch.setattr(run, "validate", lambda run: {"exact_match": 0.0, "f1": next(measured)})
    assert world.train(tmp_path / "tuned", config).best_step == 2
    new = passages(world.load_encoder(tmp_path / "tuned" / "context_encoder"))
    base = KnowledgeBase.open(tmp_path / "tuned" / "knowledge_base")
    np.testing.assert_allclose(embeddings(base), new, atol=1e-6)
    saved = read_weights(tmp_path / "tuned")
    for name, value in read_weights(tmp_path / "tuned" / "context_encoder").items():
        assert np.array_equal(value, saved[f"rag.ctx_encoder.{name}"]), name


@pytest.mark.parametrize("kind", ["bert", "dpr"])
def test_documents_weigh_as_their_vectors_in_the_index_while_nothing_has_learned(
    rag, golden, tokenizers, tmp_path, kind
):
    golden.set_seed(4)
    _, model, kb = live_files(tmp_path, rag, tokenizers, kind)
    base = KnowledgeBase.open(kb)
    network = rag.RagTokenForGeneration.from_pretrained(model)
    retriever = RagRetriever.from_pretrained(model, index=base.index())
    network.set_retriever(retriever)
    kinds = {"rag_torch": "pt", "rag_tf": "tf"}
    asked = retriever.tokenizer.encode_questions(
        [example.question for example in EXAMPLES[:3]],
        padding=True,
        return_tensors=kinds[rag.__name__],
    )
    asked = [asked["input_ids"], asked["attention_mask"]]
    stale = to_numpy(network._contexts(*asked).doc_scores)
    encoder = rag.load_encoder(tmp_path / "encoder")
    network.set_context_encoder_for_training(encoder.model)
    retriever.set_ctx_encoder_tokenizer(encoder.passage_tokenizer)
    live = to_numpy(network._contexts(*asked).doc_scores)
    np.testing.assert_allclose(live, stale, rtol=1e-5, atol=1e-5)


def test_what_is_saved_of_an_encoder_makes_the_same_vectors(rag, files, tmp_path):
    encoder = rag.load_encoder(files[2].parent / "encoder")
    encoder.prompt, encoder.lower_case, encoder.max_length = "river ", True, 5
    encoder.save_pretrained(tmp_path / "saved")
    again = rag.load_encoder(tmp_path / "saved")
    titles = [word.upper() for word in WORDS]
    texts = [" ".join(WORDS[row:]) for row in range(len(WORDS))]
    assert np.array_equal(again.embed(titles, texts), encoder.embed(titles, texts))
    encoder.max_length = 6
    assert not np.allclose(again.embed(titles, texts), encoder.embed(titles, texts), atol=1e-4)


def test_an_encoder_without_a_projection_gets_one_that_changes_nothing(rag, files, tmp_path):
    encoder = rag.load_encoder(files[2].parent / "encoder")
    config = BertConfig.from_dict({**encoder.model.config.to_dict(), "projection_dim": 0})
    rag.BertEncoder(config).save_pretrained(tmp_path / "bare")
    encoder.tokenizer.save_pretrained(tmp_path / "bare")
    bare = rag.load_encoder(tmp_path / "bare")
    options = {"encoder_name": "bare", "progress": False}
    base = build_knowledge_base(
        files[2].parent / "wiki.jsonl", tmp_path / "kb", bare.embed, **options
    )
    opened = open_passage_encoder(rag, base, tmp_path / "bare", "projection", None)
    assert opened.model.config.projection_dim == 16
    np.testing.assert_allclose(passages(opened), passages(bare), atol=1e-6)


def test_the_projection_alone_learns_and_the_tuned_folder_answers(
    rag, backend, files, tmp_path, monkeypatch
):
    processes = []

    def killed_once(request):
        if backend == "tf":  # of a process of its own the other one is example enough
            return Inline(request)
        processes.append(start_process(request))
        if len(processes) == 1:
            processes[0].kill()
        return processes[-1]

    start_process = reindexing.start_process
    monkeypatch.setattr(reindexing, "start_process", killed_once)
    config = TrainingConfig(
        steps=1, question_encoder="frozen", **{**SETTINGS, "context_encoder": "projection"}
    )
    rag.train_files(*files, tmp_path / "tuned", config, progress=False)
    assert backend == "tf" or len(processes) == 2
    old = rag.load_encoder(files[2].parent / "encoder")
    new = rag.load_encoder(tmp_path / "tuned" / "context_encoder")
    moved = {
        name
        for name, value in new.model.state_dict().items()
        if not np.array_equal(to_numpy(value), to_numpy(old.model.state_dict()[name]))
    }
    assert moved == {"encode_proj.weight", "encode_proj.bias"}
    own = remembered_base(tmp_path / "tuned")
    base = KnowledgeBase.open(own.path)
    assert own.path == (tmp_path / "tuned" / "knowledge_base").resolve() and own.is_of(base)
    np.testing.assert_allclose(embeddings(base), passages(new), atol=1e-6)
    tuned = rag.RagTokenForGeneration.from_pretrained(tmp_path / "tuned")
    tuned.set_retriever(RagRetriever.from_pretrained(tmp_path / "tuned", index=base.index()))
    assert tuned.ctx_component is not None
    assert len(tuned.answer(EXAMPLES[0].question)[0].passages) == 2
    rag.train_files(*files, tmp_path / "tuned", config, progress=False)  # found finished


def test_an_encoder_that_does_not_belong_is_refused(rag, golden, files, tmp_path):
    config = TrainingConfig(steps=1, **SETTINGS)
    options = {"out": tmp_path / "tuned", "config": config, "progress": False}
    golden.set_seed(9)
    fields = json.loads((files[2].parent / "encoder" / "config.json").read_text())
    other = rag.BertEncoder.config_class.from_dict({**fields, "pooling": "cls"})
    rag.BertEncoder(other).save_pretrained(tmp_path / "other")
    tokenizer = rag.load_encoder(files[2].parent / "encoder").tokenizer
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"was embedded by .*encoder.* gives other vectors"):
        rag.train_files(*files, context_encoder_model=tmp_path / "other", **options)
    with pytest.raises(OSError, match=r"cannot be loaded.*--context-encoder-model"):
        rag.train_files(*files, context_encoder_model=tmp_path / "none", **options)
    network = rag.RagTokenForGeneration.from_pretrained(files[1])
    retriever = RagRetriever.from_pretrained(files[1], index=KnowledgeBase.open(files[2]).index())
    encoder = rag.load_encoder(files[2].parent / "encoder")
    with pytest.raises(ValueError, match=r"reindex_every must be 0 without a knowledge base"):
        rag.train(
            network,
            retriever,
            EXAMPLES,
            TrainingConfig(reindex_every=2, **SETTINGS),
            passage_encoder=encoder,
        )
    with pytest.raises(ValueError, match=r"context_encoder must be 'frozen' where the model has"):
        rag.train(network, retriever, EXAMPLES, config)
