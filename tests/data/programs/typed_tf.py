"""What a user of rag_tf writes, with the type of each thing as checkers must see it."""

from typing import Any

import tensorflow as tf
from typing_extensions import assert_type

from rag_core.training import Example
from rag_tf import (
    Answer,
    BatchEncoding,
    GenerateOutput,
    GenerationConfig,
    Hit,
    KnowledgeBase,
    RagRetriever,
    RagSequenceForGeneration,
    RagTokenForGeneration,
    RagTokenizer,
    RetrievAugLMMarginOutput,
    TrainingConfig,
    build_knowledge_base,
    load_encoder,
    train,
)

CONTEXT_ENCODER, MODEL = "facebook/dpr-ctx_encoder-single-nq-base", "facebook/rag-token-nq"
QUESTIONS = ["Who wrote War and Peace?", "What is Saturn known for?"]


def knowledge_base() -> KnowledgeBase:
    encoder = load_encoder(CONTEXT_ENCODER)
    kb = build_knowledge_base("wiki.tsv", "kb", encoder.embed, encoder_name=encoder.name)
    assert_type(len(kb), int)
    assert_type(kb.manifest.rows, int)
    return KnowledgeBase.open("kb")


kb = knowledge_base()
retriever = RagRetriever.from_pretrained(MODEL, index=kb.index())
model = RagTokenForGeneration.from_pretrained(MODEL, retriever=retriever)
assert_type(retriever, RagRetriever)
assert_type(model, RagTokenForGeneration)
assert_type(model.retriever, RagRetriever | None)
assert_type(model.num_parameters(), int)

tokenizer = RagTokenizer.from_pretrained(MODEL)
inputs = tokenizer(QUESTIONS, padding=True, return_tensors="tf")
assert_type(inputs, BatchEncoding)
assert_type(tokenizer.encode_questions(QUESTIONS), BatchEncoding)

ids = model.generate(**inputs, num_beams=2, max_new_tokens=5)
assert_type(ids, tf.Tensor)
assert_type(tokenizer.batch_decode(ids, skip_special_tokens=True), list[str])
config = GenerationConfig(num_beams=2, max_new_tokens=5)
record = model.generate(inputs["input_ids"], generation_config=config, return_dict_in_generate=True)
assert_type(record, GenerateOutput[tf.Tensor])
assert_type(record.sequences, tf.Tensor)
assert_type(record.sequences_scores, tf.Tensor | None)

answers = model.answer(QUESTIONS, n_docs=2, num_beams=2)
assert_type(answers, list[Answer])
for answer in answers:
    for passage in answer.passages:
        assert_type(passage.posterior, float)
        print(f"{passage.posterior:.2f} {passage.title}: {passage.text}")

vectors = model.question_encoder(**inputs).pooler_output
assert_type(vectors, tf.Tensor)
_, rows, documents = retriever.retrieve(vectors, n_docs=2)
assert_type(documents, list[dict[str, Any]])
contexts = retriever(inputs["input_ids"], vectors, return_tensors="tf")
assert_type(contexts, BatchEncoding)

labels = tokenizer.encode_targets(["Leo Tolstoy", "rings"], padding=True, return_tensors="tf")
optimizer = tf.keras.optimizers.Adam(1e-5)
for _step in range(2):
    with tf.GradientTape() as tape:
        outputs = model(inputs, labels=labels["input_ids"], reduce_loss=True, training=True)
        assert_type(outputs, RetrievAugLMMarginOutput[tf.Tensor])
        assert_type(outputs.doc_scores, tf.Tensor)
        assert_type(outputs.loss, tf.Tensor | None)
    assert outputs.loss is not None
    gradients = tape.gradient(outputs.loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
assert_type(model.eval(), RagTokenForGeneration)
model.save_pretrained("tuned")

sequence = RagSequenceForGeneration.from_pretrained("tuned", retriever=retriever)
assert_type(sequence.generate(**inputs, num_beams=2, decoding="fast"), tf.Tensor)
assert_type(sequence.generator.generate(contexts["context_input_ids"]), tf.Tensor)

examples = [Example("Who wrote War and Peace?", ("Leo Tolstoy",))]
report = train(model, retriever, examples, TrainingConfig(steps=1), progress=False)
assert_type(report.exact_match, float | None)
hits = kb.search("Who wrote it?", k=2, encoder="facebook/dpr-question_encoder-single-nq-base")
assert_type(hits, list[Hit])
