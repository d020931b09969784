"""How `generate` runs in TensorFlow, and what it takes beside options.

Functions, streams, generators of one's own.
"""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from conformance.cases import contexts
from rag_core.generation import decode as generation
from rag_tf import engine, once
from tests.support.golden_tf import tensors, with_contexts

NEGATIVE = {
    "negative_prompt_ids": np.array([[5, 6, 7, 1], [8, 9, 2, 2]]),
    "negative_prompt_attention_mask": np.array([[1, 1, 1, 0], [1, 1, 1, 1]]),
}


def test_blocks_of_candidates_weigh_the_same(monkeypatch):
    model, given = with_contexts("sequence")
    options = {
        "num_beams": 3,
        "num_return_sequences": 4,
        "max_length": 6,
        "return_dict_in_generate": True,
    }
    whole = model.generate(**given, **options)
    monkeypatch.setattr(engine, "_BLOCK", 1)
    pieces = model.generate(**given, **options)
    assert whole.sequences.numpy().tolist() == pieces.sequences.numpy().tolist()
    np.testing.assert_allclose(pieces.sequences_scores, whole.sequences_scores, rtol=1e-5)


def test_questions_of_other_lengths_trace_nothing_anew():
    model, _ = with_contexts("token")
    sequence, _ = with_contexts("sequence")
    options = {"num_beams": 2, "max_length": 6}

    def answered(*sizes):
        for batch, n_docs, width, length in sizes:
            given = tensors(contexts("bart_scaled", f"sizes{width}", batch, n_docs), "float32")
            given = {k: v[:, :width] if k != "doc_scores" else v for k, v in given.items()}
            for each in (model, sequence):
                each.generate(**given, n_docs=n_docs, **{**options, "max_length": length})
        graphs = model.generator._graphs
        return {name: len(graph.traces) for name, graph in graphs.items()}

    first = answered((2, 3, 18, 6), (2, 3, 18, 6))
    assert first["search"] >= 2 and first["rescoring"] >= 1
    assert answered((1, 2, 9, 5), (3, 1, 5, 8), (1, 5, 12, 40)) == first


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_a_single_use_traces_nothing_and_says_the_same(kind, num_beams):
    model, given = with_contexts(kind)
    options = {"num_beams": num_beams, "max_length": 8}
    wanted = model.generate(**given, **options).numpy().tolist()
    model.generator._graphs.clear()
    with once():
        assert model.generate(**given, **options).numpy().tolist() == wanted
    assert not any(graph.traces for graph in model.generator._graphs.values())


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_tensorflows_seed_repeats_a_draw(kind, num_beams):
    model, given = with_contexts(kind)
    drawn = []
    for seed in (3, 3, 4):
        tf.random.set_seed(seed)
        options = {"num_beams": num_beams, "do_sample": True, "max_length": 8}
        drawn.append(model.generate(**given, **options).numpy().tolist())
    assert drawn[0] == drawn[1] != drawn[2]


# What callers plug in.

EOS = 2


@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_a_beam_without_hope_is_asked_for_nothing(kind):
    answers = {(2,): [5, 6], (2, 5): [EOS], (2, 6): [7], (2, 6, 7): [EOS]}
    model, given = with_contexts(kind)
    asked = {"prefix_allowed_tokens_fn": lambda batch_id, ids: answers[tuple(ids.numpy().tolist())]}
    made = (
        model.generate(**given, **asked, num_beams=4, max_length=7, renormalize_logits=True)
        .numpy()
        .tolist()
    )
    assert all(row[:3] == [2, 5, 2] or row[:4] == [2, 6, 7, 2] for row in made)


@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_the_callers_functions_are_heard(kind):
    model, given = with_contexts(kind)
    asked = set()

    def allowed(batch_id, ids):
        assert isinstance(ids, tf.Tensor)
        asked.add(batch_id)
        return tf.constant([5 + batch_id]) if len(ids) < 4 else [EOS]

    made = model.generate(**given, prefix_allowed_tokens_fn=allowed)
    assert made.numpy().tolist() == [[2, 5, 5, 5, 2], [2, 6, 6, 6, 2]] and asked == {0, 1}

    def only_five(ids, scores):
        assert (
            isinstance(ids, tf.Tensor)
            and isinstance(scores, tf.Tensor)
            and ids.shape[0] == scores.shape[0]
        )
        return tf.broadcast_to(tf.where(tf.range(scores.shape[1]) == 5, 0.0, -np.inf), scores.shape)

    stop = {"stopping_criteria": lambda ids, scores: ids.shape[1] == 4}
    made = model.generate(**given, logits_processor=[only_five], **stop)
    assert made.numpy().tolist() == [[2, 5, 5, 5]] * 2
    rows = {"stopping_criteria": lambda ids, scores: tf.range(ids.shape[0]) >= 0}
    assert model.generate(**given, **rows).shape[1] == 2
    for wrong, error, words in (
        ({"logits_processor": [lambda ids, scores: scores[:1, :3]]}, ValueError, "shape"),
        ({"max_lenght": 5}, TypeError, "max_lenght"),
        ({"stopping_criteria": ["soon"]}, TypeError, "callable"),
        ({"assistant_model": model}, ValueError, "assisted decoding"),
        ({"seed": 1.5}, ValueError, "whole number"),
        (
            {"negative_prompt_ids": NEGATIVE["negative_prompt_ids"]},
            ValueError,
            "guidance_scale other than 1",
        ),
        (
            {**NEGATIVE, "negative_prompt_ids": [[5, 6]], "guidance_scale": 2.0},
            ValueError,
            r"must be \(2, S\)",
        ),
        (
            {"decoder_input_ids": [[2, 4]]},
            ValueError,
            r"decoder_input_ids must be whole numbers of shape \(2, P\)",
        ),
        ({"decoder_input_ids": [[2, 400]] * 2}, ValueError, "vocabulary"),
    ):
        with pytest.raises(error, match=words):
            model.generate(**given, **wrong)


def test_unknown_decoding_is_refused():
    model, given = with_contexts("sequence")
    with pytest.raises(ValueError, match="thorough"):
        model.generate(**given, decoding="quick")


def test_generation_is_no_part_of_a_graph_and_is_told_so():
    model, given = with_contexts("token")
    with pytest.raises(RuntimeError, match="export_saved_model"):
        tf.function(lambda: model.generate(**given), autograph=False)()


# A generator that is no graph of ours: numbers that depend on the context and all earlier tokens.

V, D, PAD = 12, 6, 1


def times(x, matrix):
    # Not x @ matrix: TensorFlow 2.21's broadcast product of a batch and one matrix writes out of
    # bounds on some CPUs.
    return tf.tensordot(x, matrix, 1)


class ToyState:
    def __init__(self, context, h, cached):
        self.context, self.h, self.cached = context, h, cached

    def reorder(self, source):
        if self.cached:
            self.h = tf.gather(self.h, source, batch_dims=1)

    def select(self, rows):
        return ToyState(tf.gather(self.context, rows), tf.gather(self.h, rows), self.cached)


class Toy:
    def __init__(self):
        draw = np.random.default_rng(2)
        self.tables = [
            tf.constant(draw.normal(size=(n, D)).astype(np.float32)) for n in (V, V, D, V)
        ]
        self.config = SimpleNamespace(
            vocab_size=V, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None
        )
        self.config.to_dict = lambda: {
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "decoder_start_token_id": 0,
        }

    def encode(self, input_ids, attention_mask):
        return tf.gather(self.tables[0], input_ids)

    def start(self, hidden, mask, beams=1, max_length=None):
        real = tf.cast(mask, tf.float32)[..., None]
        context = tf.reduce_sum(hidden * real, 1) / tf.maximum(tf.reduce_sum(real, 1), 1)
        return ToyState(context, tf.zeros((len(hidden), beams, D)), max_length is not None)

    def decode(self, tokens, state):
        h = state.h if state.cached else tf.zeros((*tokens.shape[:2], D))
        steps = []
        for t in range(tokens.shape[2]):
            h = tf.tanh(
                tf.gather(self.tables[1], tokens[..., t])
                + times(h, self.tables[2])
                + state.context[:, None]
            )
            steps.append(h)
        if state.cached:
            state.h = h
        return tf.where(
            tf.range(V) == PAD, -1e4, times(tf.stack(steps, 2), tf.transpose(self.tables[3]))
        )


class ToyHead:
    def __init__(self):
        self.generator, self.retriever = Toy(), None
        self.config = SimpleNamespace(
            generator=self.generator.config,
            n_docs=3,
            bos_token_id=None,
            label_smoothing=0.1,
            do_deduplication=True,
        )
        self.config.to_dict = lambda: {"generator": self.generator.config.to_dict()}

    def _contexts(self, ids, mask, context_ids, context_mask, scores, n_docs, question_text=None):
        from rag_tf.contexts import Contexts

        return Contexts(context_ids, context_mask, scores, 3)


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5}]
)
@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_anothers_generator_decodes_questions_apart_and_without_cache(kind, options):
    generate = partial(getattr(generation, f"rag_{kind}_generate"), engine.ENGINE)
    draw, model = np.random.default_rng(0), ToyHead()
    ids = draw.integers(3, V, (15, 5))
    ids[::2, -2:] = PAD
    scores = tf.constant(draw.normal(size=(5, 3)).astype(np.float32))

    def given(questions):
        rows = slice(questions.start * 3, questions.stop * 3)
        part = tf.constant(ids[rows])
        mask = tf.cast(part != PAD, tf.int64)
        return {
            "context_input_ids": part,
            "context_attention_mask": mask,
            "doc_scores": scores[questions],
        }

    def unpadded(made):
        return [[t for t in row if t != PAD] for row in made.numpy().tolist()]

    together = generate(model, **given(slice(0, 5)), max_length=9, **options)
    assert len({len(row) for row in unpadded(together)}) > 1
    apart = [
        row
        for b in range(5)
        for row in unpadded(generate(model, **given(slice(b, b + 1)), max_length=9, **options))
    ]
    assert unpadded(together) == apart
    whole = generate(model, **given(slice(0, 5)), max_length=9, use_cache=False, **options)
    assert whole.numpy().tolist() == together.numpy().tolist()
