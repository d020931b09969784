"""The examples of the transformers 4.37.2 RAG page, of PyTorch and of TensorFlow, with the import
line changed and nothing else, on local folders of the same names.
"""

import shutil

import datasets
import faiss
import numpy as np
import pytest

SIZE = 16


@pytest.fixture
def here(world, monkeypatch):
    monkeypatch.chdir(world)
    return world


@pytest.mark.backend("torch")
def test_rag_model_example(here):
    from rag_torch import AutoTokenizer, RagModel, RagRetriever

    tokenizer = AutoTokenizer.from_pretrained("facebook/rag-token-base")
    retriever = RagRetriever.from_pretrained(
        "facebook/rag-token-base", index_name="exact", use_dummy_dataset=True
    )
    model = RagModel.from_pretrained("facebook/rag-token-base", retriever=retriever)
    inputs = tokenizer("How many people live in Paris?", return_tensors="pt")
    outputs = model(input_ids=inputs["input_ids"])
    assert outputs.logits.shape[0] == 2 and outputs.doc_scores.shape == (1, 2)


@pytest.mark.backend("torch")
@pytest.mark.parametrize("name", ["RagSequenceForGeneration", "RagTokenForGeneration"])
def test_head_examples(here, name):
    import torch

    import rag_torch
    from rag_torch import AutoTokenizer, RagRetriever

    head = getattr(rag_torch, name)
    folder = "facebook/rag-sequence-nq" if "Sequence" in name else "facebook/rag-token-nq"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    retriever = RagRetriever.from_pretrained(folder, index_name="exact", use_dummy_dataset=True)
    # initialize with RagRetriever to do everything in one forward call; a token checkpoint loads
    # into either head
    model = head.from_pretrained("facebook/rag-token-nq", retriever=retriever)

    inputs = tokenizer("How many people live in Paris?", return_tensors="pt")
    targets = tokenizer(text_target="In Paris, there are 10 million people.", return_tensors="pt")
    input_ids = inputs["input_ids"]
    labels = targets["input_ids"]
    outputs = model(input_ids=input_ids, labels=labels)
    assert torch.isfinite(outputs.loss).all() and outputs.loss.shape == (1,)

    # or use retriever separately
    model = head.from_pretrained(folder, use_dummy_dataset=True)
    assert model.config.use_dummy_dataset
    # 1. Encode
    question_hidden_states = model.question_encoder(input_ids)[0]
    # 2. Retrieve
    docs_dict = retriever(
        input_ids.numpy(), question_hidden_states.detach().numpy(), return_tensors="pt"
    )
    doc_scores = torch.bmm(
        question_hidden_states.unsqueeze(1),
        docs_dict["retrieved_doc_embeds"].float().transpose(1, 2),
    ).squeeze(1)
    # 3. Forward to generator
    separate = model(
        context_input_ids=docs_dict["context_input_ids"],
        context_attention_mask=docs_dict["context_attention_mask"],
        doc_scores=doc_scores,
        decoder_input_ids=labels,
    )
    assert separate.logits.shape == (2, labels.shape[1], model.config.generator.vocab_size)
    # or directly generate
    generated = model.generate(
        context_input_ids=docs_dict["context_input_ids"],
        context_attention_mask=docs_dict["context_attention_mask"],
        doc_scores=doc_scores,
    )
    [generated_string] = tokenizer.batch_decode(generated, skip_special_tokens=True)
    assert isinstance(generated_string, str)
    # the same weights and documents as the one-call forward above
    if folder == "facebook/rag-token-nq":
        torch.testing.assert_close(separate.logits, outputs.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.backend("tf")
@pytest.mark.filterwarnings("ignore:.*prepare_seq2seq_batch.*")
def test_tf_rag_model_example(here):
    from rag_tf import AutoTokenizer, RagRetriever, TFRagModel

    tokenizer = AutoTokenizer.from_pretrained("facebook/rag-token-base")
    retriever = RagRetriever.from_pretrained(
        "facebook/rag-token-base", index_name="exact", use_dummy_dataset=True
    )
    # initialize with RagRetriever to do everything in one forward call
    model = TFRagModel.from_pretrained("facebook/rag-token-base", retriever=retriever, from_pt=True)

    input_dict = tokenizer.prepare_seq2seq_batch(
        "How many people live in Paris?",
        "In Paris, there are 10 million people.",
        return_tensors="tf",
    )
    input_ids = input_dict["input_ids"]
    outputs = model(input_ids)
    assert outputs.logits.shape[0] == 2 and outputs.doc_scores.shape == (1, 2)


@pytest.mark.backend("tf")
@pytest.mark.filterwarnings("ignore:.*prepare_seq2seq_batch.*")
@pytest.mark.parametrize("name", ["TFRagSequenceForGeneration", "TFRagTokenForGeneration"])
def test_tf_head_examples(here, name):
    import tensorflow as tf

    import rag_tf
    from rag_tf import AutoTokenizer, RagRetriever

    head = getattr(rag_tf, name)
    folder = "facebook/rag-sequence-nq" if "Sequence" in name else "facebook/rag-token-nq"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    retriever = RagRetriever.from_pretrained(folder, index_name="exact", use_dummy_dataset=True)
    # initialize with RagRetriever to do everything in one forward call
    model = head.from_pretrained(folder, retriever=retriever, from_pt=True)

    input_dict = tokenizer.prepare_seq2seq_batch(
        "How many people live in Paris?",
        "In Paris, there are 10 million people.",
        return_tensors="tf",
    )
    outputs = model(input_dict, output_retrieved=True)
    assert outputs.loss.shape == (1,) and bool(tf.math.is_finite(outputs.loss)[0])
    assert outputs.retrieved_doc_ids.shape == (1, 2)
    together = outputs.logits

    # or use retriever separately
    # 1. Encode
    input_ids = input_dict["input_ids"]
    question_hidden_states = model.question_encoder(input_ids)[0]
    # 2. Retrieve
    docs_dict = retriever(input_ids.numpy(), question_hidden_states.numpy(), return_tensors="tf")
    doc_scores = tf.squeeze(
        tf.matmul(
            tf.expand_dims(question_hidden_states, axis=1),
            docs_dict["retrieved_doc_embeds"],
            transpose_b=True,
        ),
        axis=1,
    )
    # 3. Forward to generator
    outputs = model(
        inputs=None,
        context_input_ids=docs_dict["context_input_ids"],
        context_attention_mask=docs_dict["context_attention_mask"],
        doc_scores=doc_scores,
        decoder_input_ids=input_dict["labels"],
    )
    tf.debugging.assert_near(outputs.logits, together, rtol=1e-4, atol=1e-5)

    # or directly generate
    generated = model.generate(
        context_input_ids=docs_dict["context_input_ids"],
        context_attention_mask=docs_dict["context_attention_mask"],
        doc_scores=doc_scores,
    )
    [generated_string] = tokenizer.batch_decode(generated, skip_special_tokens=True)
    assert isinstance(generated_string, str)
    [answer] = model.answer("How many people live in Paris?")
    assert len(answer.passages) == 2


def test_own_data_set_in_memory_and_on_disk(here, tmp_path):
    from rag_core import RagRetriever

    vectors = np.random.default_rng(1).standard_normal((5, SIZE)).astype(np.float32)
    dataset = datasets.Dataset.from_dict(
        {"title": list("abcde"), "text": list("ABCDE"), "embeddings": list(vectors)}
    )
    dataset.save_to_disk(tmp_path / "dataset")
    dataset.add_faiss_index("embeddings", metric_type=faiss.METRIC_INNER_PRODUCT)
    dataset.get_index("embeddings").save(str(tmp_path / "index.faiss"))
    in_memory = RagRetriever.from_pretrained("facebook/rag-token-nq", indexed_dataset=dataset)
    on_disk = RagRetriever.from_pretrained(
        "facebook/rag-token-nq",
        index_name="custom",
        passages_path=str(tmp_path / "dataset"),
        index_path=str(tmp_path / "index.faiss"),
    )
    best = np.argsort(-(vectors @ vectors.T), axis=1)[:, :2]
    for retriever in (in_memory, on_disk):
        _, doc_ids, docs = retriever.retrieve(vectors, n_docs=2)
        np.testing.assert_array_equal(doc_ids, best)
        assert docs[0]["text"] == ["ABCDE"[i] for i in best[0]]


def test_examples_that_cannot_work_say_what_to_write(here):
    from rag_core import RagRetriever

    with pytest.raises((ValueError, OSError), match=r"(?s)dpr.*(rag|RAG)"):
        RagRetriever.from_pretrained(
            "facebook/dpr-ctx_encoder-single-nq-base", dataset="wiki_dpr", index_name="exact"
        )
    with pytest.raises(ValueError, match=r"(?s)legacy.*pickle"):
        RagRetriever.from_pretrained("facebook/rag-token-nq", index_name="legacy")
    shutil.copytree("facebook/rag-token-nq", "no-tokenizers", dirs_exist_ok=True)
    shutil.rmtree("no-tokenizers/generator_tokenizer")
    with pytest.raises(OSError, match="generator_tokenizer"):
        RagRetriever.from_pretrained("no-tokenizers", index_name="exact", use_dummy_dataset=True)
