"""Folders with the files and configurations of the public checkpoints: they load, retrieve and
answer.

The tokens were recorded from transformers 4.37.2 on the same folders.
"""

import shutil

import numpy as np
import pytest

from rag_core import RagRetriever, RagTokenizer
from tests.support.hub_folders import RAG_2020, write_parts, write_rag_base, write_wiki_dpr

pytestmark = pytest.mark.backend("torch")  # torch writes the pytorch_model.bin

CONTEXTS = ["Paris / is // where", "a b // c d", "Rome // e", "x / y z // w"]
SCORES = [[1.0, 0.5], [0.2, 0.9]]
TOKENS = {
    # num_beams, max_length, min_length and bad_words_ids of the RAG config count in RAG-Token ...
    "token": [
        [2, *[594] * 10, 29, 200, 29, 594, 42, *[594] * 4],
        [2, *[594] * 9, 29, 29, *[594] * 8],
    ],
    # ... in RAG-Sequence the beams alone; the generator's own max_length is 20
    "sequence": [
        [2, *[200] * 16, 29, 200, 2],
        [2, *[594] * 9, 29, 29, *[594] * 7, 2],
    ],
}


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    root = tmp_path_factory.mktemp("public")
    write_rag_base(root / "facebook" / "rag-token-base")
    write_parts(root / "facebook")
    write_wiki_dpr(root / "facebook" / "wiki_dpr")
    return root


@pytest.fixture
def here(public, monkeypatch):
    monkeypatch.chdir(public)
    return public


def generated(head, framework, array, **options):
    tokenizer = RagTokenizer.from_pretrained("facebook/rag-token-base")
    model = head.from_pretrained("facebook/rag-token-base", n_docs=2)
    contexts = tokenizer.generator(CONTEXTS, return_tensors=framework, padding=True)
    found = model.generate(
        context_input_ids=contexts["input_ids"],
        context_attention_mask=contexts["attention_mask"],
        doc_scores=array(SCORES),
        **options,
    )
    return np.asarray(found)


def test_the_base_checkpoint_gives_the_references_tokens(here):
    import torch

    from rag_torch import RagSequenceForGeneration, RagTokenForGeneration

    token = generated(RagTokenForGeneration, "pt", torch.tensor)
    assert token.shape == (2, 50) and token[:, :20].tolist() == TOKENS["token"]
    assert generated(RagSequenceForGeneration, "pt", torch.tensor).tolist() == TOKENS["sequence"]


@pytest.mark.backend("tf")
def test_in_tensorflow_too(here):
    import tensorflow as tf

    from rag_tf import RagTokenForGeneration

    assert generated(RagTokenForGeneration, "tf", tf.constant)[:, :20].tolist() == TOKENS["token"]


def test_the_first_example_of_the_readme_runs_on_the_public_files(here, monkeypatch):
    from rag_torch import AutoTokenizer, RagTokenForGeneration

    monkeypatch.setenv("HF_HOME", str(here / "cache"))
    tokenizer = AutoTokenizer.from_pretrained("facebook/rag-token-base")
    retriever = RagRetriever.from_pretrained(
        "facebook/rag-token-base", index_name="exact", use_dummy_dataset=True
    )
    model = RagTokenForGeneration.from_pretrained("facebook/rag-token-base", retriever=retriever)
    inputs = tokenizer("how many people live in paris?", return_tensors="pt")
    assert model.generate(**inputs).shape == (1, 50)
    [answer] = model.answer("how many people live in paris?")
    assert len(answer.passages) == 5 and all(
        passage.text.startswith("text ") for passage in answer.passages
    )
    # The bases name the index that loses most; a word of it comes with the first use.
    with pytest.warns(UserWarning, match="'compressed' index of wiki_dpr misses"):
        RagRetriever.from_pretrained("facebook/rag-token-base", cache_dir=here / "cache")


def test_revisions_of_2020_load_and_say_which_index_to_name(here):
    from rag_torch import RagTokenForGeneration

    write_rag_base(here / "of-2020", **RAG_2020)
    model = RagTokenForGeneration.from_pretrained("of-2020")
    assert (model.config.index_name, model.config.retriever_type) == ("embeddings", "hf_retriever")
    with pytest.raises(
        ValueError, match=r"index_name must be.*got 'embeddings'.*2020.*index_name='exact'"
    ):
        RagRetriever.from_pretrained("of-2020")
    retriever = RagRetriever.from_pretrained(
        "of-2020", index_name="exact", use_dummy_dataset=True, cache_dir=here / "cache"
    )
    assert len(retriever.index) == 40
    shutil.rmtree(here / "of-2020")


@pytest.mark.backend("tf")
def test_bart_in_half_precision_and_dpr_with_its_pooler_become_a_model(here):
    import tensorflow as tf
    import torch

    import rag_tf
    import rag_torch

    stored = torch.load("facebook/bart-large/pytorch_model.bin")["model.shared.weight"]
    assert stored.dtype == torch.float16
    parts = "facebook/dpr-question_encoder-single-nq-base", "facebook/bart-large"
    ids, states = np.array([[0, 9, 8, 2]]), []
    for package, array in ((rag_torch, torch.tensor), (rag_tf, tf.constant)):
        model = package.RagSequenceForGeneration.from_pretrained_question_encoder_generator(
            *parts, retrieval_vector_size=16
        )
        vector = model.question_encoder(array(ids))[0]
        hidden = model.generator.get_encoder()(array(ids), array(np.ones_like(ids)))[0]
        states.append(
            [
                np.asarray(each.detach() if package is rag_torch else each)
                for each in (vector, hidden)
            ]
        )
        if package is rag_torch:
            shared = model.generator.get_input_embeddings().weight
            assert shared.dtype == torch.float32 and torch.equal(shared, stored.float())
    for ours, theirs in zip(*states, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    tokenizer = rag_torch.AutoTokenizer.from_pretrained("facebook/bart-large")
    assert tokenizer.model_max_length == 1024 and tokenizer.pad_token_id == 1
