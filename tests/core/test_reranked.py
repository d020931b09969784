"""Candidates ranked anew by a function of question and passage, and the cross-encoders that are one."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rag_core import BertConfig, Tokenizer
from rag_core.backends import load_backend, to_numpy
from rag_core.retrieval.bm25 import Bm25Index
from rag_core.retrieval.fresh import FreshIndex
from rag_core.retrieval.hybrid import HybridIndex
from rag_core.retrieval.reranked import RerankedIndex
from rag_core.retrieval.search import search
from tests.support.evaluations import Countable
from tests.support.frameworks import INSTALLED
from tests.support.training_models import VECTORS

TITLES = ["River", "King", "", "Moon", "Song"]
TEXTS = ["a river city", "king war", "king war", "the moon", "king king fish"]
WORDS = "[PAD] [UNK] [CLS] [SEP] river city king war moon fish song who ?".split()
QUERIES = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)


def letters(questions, passages):
    """A score for the tests: how often the question's first letter stands in the passage."""
    pairs = zip(questions, passages, strict=True)
    return [float(passage.lower().count(question[0])) for question, passage in pairs]


def index():
    return Countable(TITLES, TEXTS, VECTORS[: len(TITLES)])


def test_candidates_are_ranked_by_the_score_and_carry_it() -> None:
    dense = index()
    reranked = RerankedIndex(dense, letters, factor=2)
    found, vectors = search(reranked, QUERIES, 2, 8, ["r", "k"])
    candidates, _ = search(dense, QUERIES, 4, 8)
    passages = [f"{title} {text}".strip() for title, text in zip(TITLES, TEXTS, strict=True)]
    for number, question in enumerate(("r", "k")):
        scores = letters([question] * 4, [passages[row] for row in candidates[number]])
        order = np.argsort(-np.array(scores), kind="stable")[:2]  # ties as the index had them
        assert found[number].tolist() == candidates[number][order].tolist()
        carried = vectors[number] @ QUERIES[number]
        np.testing.assert_allclose(carried, np.array(scores)[order], rtol=1e-5, atol=1e-6)
    whole, vectors = search(reranked, QUERIES, 7, 8, ["k", "m"])  # more than there are
    assert sorted(whole[0]) == [-1, -1, 0, 1, 2, 3, 4] and not vectors[0, 5:].any()


def test_it_wraps_any_index_and_says_what_score_must_be() -> None:
    both = HybridIndex(index(), Bm25Index(index()))
    reranked = RerankedIndex(both, letters)
    assert reranked.needs_vectors and len(reranked) == 5 and reranked.own_scores
    assert not RerankedIndex(Bm25Index(index()), letters).needs_vectors
    assert search(reranked, QUERIES[:1], 1, 8, ["moon"])[0].tolist() == [[3]]
    for bad in (lambda questions, passages: [1.0], lambda q, p: [np.nan] * len(p)):
        with pytest.raises(ValueError, match=r"score must return 5 finite numbers"):
            search(RerankedIndex(index(), bad), QUERIES[:1], 1, 8, ["moon"])
    with pytest.raises(TypeError, match=r"score must be a function .*load_cross_encoder"):
        RerankedIndex(index(), "cross-encoder/ms-marco-MiniLM-L6-v2")
    with pytest.raises(ValueError, match=r"question_text must be 2 texts"):
        search(reranked, QUERIES, 1, 8)
    # its folder would come back as BM25 alone
    assert not hasattr(RerankedIndex(Bm25Index(index()), letters), "save")


def within(inner):
    """Indexes that ask an index."""
    yield RerankedIndex(inner, letters)
    yield HybridIndex(inner, Bm25Index(index()))
    yield HybridIndex(Bm25Index(index()), inner)
    yield FreshIndex(inner, None, 1)


def test_an_index_within_another_may_return_what_one_alone_may() -> None:
    class Lists(Countable):
        def get_top_docs(self, *asked):
            return [part.tolist() for part in super().get_top_docs(*asked)]

    expected = list(within(index()))
    for number, outer in enumerate(within(Lists(TITLES, TEXTS, VECTORS[: len(TITLES)]))):
        found = search(outer, QUERIES, 2, 8, ["moon", "king"])
        wanted = search(expected[number], QUERIES, 2, 8, ["moon", "king"])
        for array, of_arrays in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(array, of_arrays)
    for outer in expected[:3]:
        ids, vectors = outer.get_top_docs(QUERIES[:0], 2, question_text=[])
        assert ids.shape == (0, 2) and vectors.shape == (0, 2, 16)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda ids, vectors: (ids + 9, vectors),
            r"get_top_docs must return row numbers below its",
        ),
        (lambda ids, vectors: (ids, vectors * np.nan), r"get_top_docs must return finite vectors"),
        (lambda ids, vectors: None, r"get_top_docs must return doc_ids and vectors, got NoneType"),
    ],
)
def test_an_index_within_another_is_checked_and_named(change, says) -> None:
    class Faulty(Countable):
        def get_top_docs(self, *asked):
            return change(*super().get_top_docs(*asked))

    faulty = Faulty(TITLES, TEXTS, VECTORS[: len(TITLES)])
    for outer in (faulty, *within(faulty)):
        with pytest.raises(ValueError, match=f"Faulty.{says}"):
            search(outer, QUERIES, 2, 8, ["moon", "king"])


def test_texts_of_an_index_within_another_are_checked() -> None:
    class Silent(Countable):
        def get_doc_dicts(self, doc_ids):
            return []

    silent = RerankedIndex(Silent(TITLES, TEXTS, VECTORS[: len(TITLES)]), letters)
    with pytest.raises(ValueError, match=r"Silent.get_doc_dicts must return 1 dictionaries"):
        search(silent, QUERIES[:1], 2, 8, ["moon"])


@pytest.fixture(params=sorted(INSTALLED))
def rag(request):
    return load_backend(request.param)


def write_cross_encoder(rag, folder, **labels):
    """A folder as sentence-transformers writes a cross-encoder, around small weights; in `body` the
    BERT alone.
    """
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(
        **sizes, intermediate_size=8, vocab_size=len(WORDS), pooling="pooler", initializer_range=0.5
    )
    body = folder / "body"
    rag.BertEncoder(config).save_pretrained(body)
    weights = {f"bert.{name}": array for name, array in load_file(body / FILE).items()}
    draw = np.random.default_rng(3)
    for name, shape in (("weight", (1, 8)), ("bias", (1,))):
        weights[f"classifier.{name}"] = draw.normal(size=shape).astype(np.float32)
    save_file(weights, folder / FILE, metadata={"format": "pt"})
    values = json.loads((body / "config.json").read_text())
    for name in ("pooling", "normalize", "scale", "projection_dim"):
        values.pop(name, None)
    values["architectures"] = ["BertForSequenceClassification"]
    values["sentence_transformers"] = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    values |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}} | labels
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Transformer"}]')
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return weights


FILE = "model.safetensors"


def test_a_cross_encoder_gives_the_classifiers_logit_of_each_pair(rag, tmp_path) -> None:
    weights = write_cross_encoder(rag, tmp_path)
    cross = rag.load_cross_encoder(tmp_path)
    questions = ["who king ?", "moon", "river city ?"]
    passages = ["king war fish king", "Moon song", "city"]
    found = cross(questions, passages, batch_size=2)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    kind = {"rag_torch": "pt", "rag_tf": "tf"}[rag.__name__]
    pairs = tokenizer(questions, passages, padding=True, return_tensors=kind)
    first = to_numpy(
        rag.BertEncoder.from_pretrained(tmp_path / "body", pooling="cls").eval()(**pairs)[0]
    )
    dense = weights["bert.pooler.dense.weight"], weights["bert.pooler.dense.bias"]
    pooled = np.tanh(first @ dense[0].T + dense[1])
    expected = (pooled @ weights["classifier.weight"].T + weights["classifier.bias"])[:, 0]
    assert found.shape == (3,) and np.ptp(expected) > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(cross(questions[:1], passages[:1]), found[:1], atol=1e-5)
    ranked = RerankedIndex(index(), cross, factor=5)
    ids, vectors = search(ranked, QUERIES[:1], 5, 8, ["who king ?"])
    scores = vectors[0] @ QUERIES[0]
    assert sorted(ids[0]) == [0, 1, 2, 3, 4] and (np.diff(scores) <= 1e-6).all()


def test_what_is_no_cross_encoder_is_told(rag, tmp_path) -> None:
    write_cross_encoder(rag, tmp_path, id2label={"0": "no", "1": "yes"})
    with pytest.raises(ValueError, match=r"must have one label, a score, got 2"):
        rag.load_cross_encoder(tmp_path)
    write_cross_encoder(rag, tmp_path)
    notes = tmp_path / "config_sentence_transformers.json"
    notes.write_text('{"default_prompt_name": "query", "prompts": {"query": "find: "}}')
    with pytest.raises(ValueError, match=r"must be a Transformer without a prompt"):
        rag.load_cross_encoder(tmp_path)
    write_cross_encoder(rag, tmp_path, architectures=["BertModel"])
    with pytest.raises(ValueError, match=r"must be a BERT for sequence classification"):
        rag.load_cross_encoder(tmp_path)
    with pytest.raises(ValueError, match=r"max_length must be a whole number of at least 1, got 0"):
        rag.load_cross_encoder(tmp_path, max_length=0)
