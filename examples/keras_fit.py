"""Keras: `compile` and `fit` train a RAG model, with Keras' own optimizer and callbacks.

python examples/keras_fit.py [--epochs 20] [--out keras-reader]

Each step of `fit` searches the knowledge base and minimises the loss of RAG. Some minutes of a CPU on the
handbook's 40 questions; what is saved loads in rag_torch, too.
"""

import argparse
from pathlib import Path

import keras
import tensorflow as tf

from rag_core.training import read_examples
from rag_tf import (
    AutoTokenizer,
    RagRetriever,
    RagSequenceForGeneration,
    build_knowledge_base,
    load_encoder,
)

HERE = Path(__file__).parent
MODEL = "dualrag/demo"
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


def dataset(tokenizer, examples, batch_size):
    """Questions and answers as the model takes them: ids, masks, labels."""
    inputs = tokenizer(
        [example.question for example in examples],
        text_target=[example.answers[0] for example in examples],
        padding=True,
        return_tensors="tf",
    )
    return tf.data.Dataset.from_tensor_slices(dict(inputs)).batch(batch_size)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", default="keras-reader")
    options = parser.parse_args(arguments)

    encoder = load_encoder(ENCODER)
    kb = build_knowledge_base(
        HERE / "handbook", "handbook-kb", encoder.embed, encoder_name=encoder.name
    )
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    retriever = RagRetriever.from_pretrained(MODEL, index=kb.index())
    model = RagSequenceForGeneration.from_pretrained(MODEL, retriever=retriever)

    data, held_out = (
        dataset(tokenizer, read_examples(HERE / name), options.batch_size)
        for name in ("questions.jsonl", "reworded.jsonl")  # ten of the questions in other words
    )
    model.question_encoder.trainable = False
    model.compile(keras.optimizers.AdamW(5e-4, clipnorm=1.0))
    stop = keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    history = model.fit(
        data,
        validation_data=held_out,
        epochs=options.epochs,
        callbacks=[stop],
        verbose=2,
    ).history
    print(f"loss {history['loss'][-1]:.2f}, held out {min(history['val_loss']):.2f} nats a token")

    [answer] = model.answer("Where do we gather when the fire alarm rings?", num_beams=4)
    best = max(answer.passages, key=lambda passage: passage.posterior)
    print(f"{answer.question}\n  -> {answer.text}   [{best.origin}]")
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    print(f"saved in {options.out}")


if __name__ == "__main__":
    main()
