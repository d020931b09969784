"""The TensorFlow examples of transformers' RAG page, with the import line changed and nothing
else.
"""

import pytest
import tensorflow as tf


@pytest.fixture
def here(world, monkeypatch):
    monkeypatch.chdir(world)


@pytest.mark.filterwarnings("ignore:.*prepare_seq2seq_batch.*")
def test_model_example(here):
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


@pytest.mark.filterwarnings("ignore:.*prepare_seq2seq_batch.*")
@pytest.mark.parametrize("name", ["TFRagSequenceForGeneration", "TFRagTokenForGeneration"])
def test_head_examples(here, name):
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
