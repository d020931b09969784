"""Decoding inside a graph decides as rag_core does, and as a SavedModel it needs TensorFlow
alone.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from conformance.seeded import seeded_weights
from rag_core.config.rag import BartConfig, DPRConfig, RagConfig, T5Config
from rag_core.generation.beam import BeamSearch, RowSearch, order_candidates
from rag_core.generation.candidates import collect_candidates
from rag_core.generation.config import GenerationConfig, resolve_options
from rag_core.generation.logits_rules import StepRules
from rag_tf.export import export_saved_model
from rag_tf.foreign import ForeignGenerator
from rag_tf.graph.beam import search
from rag_tf.graph.decoding import _candidates
from rag_tf.graph.state import SearchResult
from rag_tf.rag import RagModel, RagSequenceForGeneration, RagTokenForGeneration

V, HASHES = 9, 13
NEVER = {"early_stopping": "never"}
# 11 x 100 searches: beams, ends, penalties, and every rule that a graph has
CASES = [
    {"num_beams": 1},
    {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 0.5, **NEVER},
    {"num_beams": 3, "early_stopping": True, "eos_token_id": [2, 3], "pad_token_id": 1},
    {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 2.0, "eos_token_id": [2, 4, 1]},
    {"num_beams": 4, "num_return_sequences": 4, "length_penalty": -1.0, **NEVER},
    {"num_beams": 3, "eos_token_id": None, "num_return_sequences": 2},
    {"num_beams": 2, "min_length": 4, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    {
        "num_beams": 3,
        "forced_bos_token_id": 4,
        "forced_eos_token_id": 2,
        "suppress_tokens": [3],
        "min_new_tokens": 2,
    },
    {
        "num_beams": 2,
        "bad_words_ids": [[4], [3, 5]],
        "sequence_bias": {(3,): -1.5, (5, 3): 2.0},
        "early_stopping": True,
    },
    {
        "num_beams": 2,
        "begin_suppress_tokens": [2, 4],
        "forced_decoder_ids": [[2, 3]],
        "renormalize_logits": True,
    },
    {
        "num_beams": 1,
        "no_repeat_ngram_size": 1,
        "exponential_decay_length_penalty": (2, 1.5),
        "eos_token_id": [2, 3],
    },
]


class Table:
    """Scores that depend on the search and on everything written.

    Some are -inf, and of the rounded ones many equal.
    """

    def __init__(self, seed, searches, dtype, ties=True):
        rng = np.random.default_rng(seed)
        scores = rng.normal(size=(searches, HASHES, V)) * 2
        if ties:
            scores[: searches // 2] = np.round(scores[: searches // 2])
        scores[..., 1:][rng.random((searches, HASHES, V - 1)) < 0.1] = -np.inf
        self.scores = scores.astype(dtype)

    def __call__(self, tokens, beams):
        """Scores after tokens (Q*K, t)."""
        place = np.zeros(len(tokens), dtype=np.int64)
        for column in tokens.T:
            place = (place * 7 + column + 1) % HASHES
        return self.scores[np.arange(len(self.scores)).repeat(beams), place]


def edited(scores, processors):
    """rag_core's processors, carried out in numpy."""
    for processor in processors:
        rows = np.arange(len(scores))[:, None] if processor.rows is None else processor.rows
        at, old = (rows, processor.ids), scores
        scores = np.full_like(old, -np.inf) if processor.kind == "force" else old.copy()
        if processor.kind in ("force", "ban"):
            scores[at] = 0.0 if processor.kind == "force" else -np.inf
        elif processor.kind == "penalise":
            scores[at] = np.where(old[at] < 0, old[at] * processor.value, old[at] / processor.value)
        elif processor.kind == "add":
            scores[at] = old[at] + processor.value
        else:
            scores[at] = np.where(
                np.isinf(old[at]), old[at], old[at] + np.abs(old[at]) * processor.value
            )
    return scores


def log_softmax(x):
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def by_rag_core(table, options, starts):
    searches, beams = len(starts), options.num_beams
    limits = {
        "start_tokens": starts,
        "max_length": options.max_length,
        "eos_token_ids": options.eos_token_ids,
        "pad_token_id": options.pad_token_id,
    }
    shape = {
        name: getattr(options, name)
        for name in ("length_penalty", "early_stopping", "num_return_sequences")
    }
    if beams == 1:
        found = RowSearch(rows=searches, **limits)
    else:
        found = BeamSearch(searches=searches, beams=beams, **shape, **limits)
    rules = StepRules(options, beams=beams, vocab_size=V, prompt_length=starts.shape[1])
    while not found.done:
        rows = found.tokens.reshape(-1, found.length)
        scores = edited(table(rows, beams), rules.processors(rows))
        scores = log_softmax(scores) if options.renormalize_logits else scores
        if beams == 1:
            chosen = scores.argmax(axis=1)
            found.step(chosen, log_softmax(scores)[np.arange(len(rows)), chosen])
        else:
            total = (scores + found.scores.astype(scores.dtype).reshape(-1, 1)).reshape(
                searches, -1
            )
            places = np.broadcast_to(np.arange(total.shape[1]), total.shape)
            best, flat = order_candidates(total, places, min(found.candidates, total.shape[1]))
            found.step(best, flat % V, flat // V)
    return found.finish()


def by_graph(scores, starts, options):
    """The same scores; the state is the hash of what was written, so that a beam in another's
    place shows.
    """
    rows = tf.repeat(tf.range(tf.shape(starts, tf.int64)[0])[:, None], options.num_beams, axis=1)

    def after(places, tokens):
        return (places * 7 + tokens + 1) % HASHES

    def scorer(tokens, places):
        places = after(places, tokens[..., 0])
        return tf.gather_nd(scores, tf.stack([rows, places], axis=-1)), places

    places = tf.zeros_like(rows)
    for i in range(starts.shape[1] - 1):
        places = after(places, starts[:, i : i + 1])
    return search(
        scorer,
        lambda places, sources: tf.gather(places, sources, batch_dims=1),
        places,
        starts,
        options,
        V,
        scores.dtype,
    )


def options_of(case, prompt=1, max_length=8):
    given = {
        "eos_token_id": 2,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
        "max_length": max_length,
        **case,
    }
    return resolve_options(
        GenerationConfig(), **{**given, "max_length": given["max_length"] + prompt - 1}
    )


def assert_equal(found, want, tolerance):
    width = int(found.width)
    np.testing.assert_array_equal(found.sequences[:, :width], want.sequences)
    np.testing.assert_array_equal(found.lengths, want.lengths)
    np.testing.assert_allclose(
        found.sum_log_probs, want.sum_log_probs, rtol=tolerance, atol=tolerance
    )
    if want.scores is not None:
        np.testing.assert_allclose(found.scores, want.scores, rtol=tolerance)
        np.testing.assert_array_equal(found.beam_indices[:, :width], want.beam_indices)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_searches_in_a_graph_end_as_those_of_rag_core(number):
    searches, prompt, dtype = 100, 1 + number % 2, ("float32", "float64")[number // 2 % 2]
    # two libraries' log-softmax differ in the last bit, which decides between equals
    options, ties = options_of(CASES[number], prompt), not CASES[number].get("renormalize_logits")
    table = Table(number, searches, dtype, ties)
    starts = np.random.default_rng(number).integers(3, V, size=(searches, prompt))
    starts[:, 0] = 0
    want = by_rag_core(table, options, starts)
    found = by_graph(tf.constant(table.scores), tf.constant(starts), options)
    assert_equal(found, want, 1e-5 if dtype == "float32" else 1e-12)


def test_the_loop_is_one_graph_and_xla_compiles_it():
    options, table, starts = (
        options_of(CASES[3], max_length=5),
        Table(3, 20, "float32"),
        np.zeros((20, 1), np.int64),
    )
    want = by_rag_core(table, options, starts)
    for compiled in (False, True):
        graph = tf.function(
            lambda scores, starts: by_graph(scores, starts, options), jit_compile=compiled
        )
        assert_equal(graph(tf.constant(table.scores), tf.constant(starts)), want, 1e-5)


@pytest.mark.parametrize("deduplicate", [True, False])
def test_candidates_in_a_graph_are_those_of_rag_core(deduplicate):
    rng = np.random.default_rng(0)
    for questions, docs, beams in ((1, 2, 3), (4, 3, 1), (2, 2, 2)):
        searches, longest = questions * docs * beams, 5
        lengths = rng.integers(2, longest + 1, size=searches)
        rows = rng.integers(3, 5, size=(searches, longest)) * (
            np.arange(longest) < lengths[:, None]
        )
        core = SearchResult(
            tf.constant(rows),
            tf.constant(lengths, tf.int32),
            tf.zeros(searches),
            tf.constant(longest),
        )
        tokens, exists = _candidates(core, tf.constant(questions), 1, deduplicate)
        finished = type("Finished", (), {"sequences": rows, "lengths": lengths})()
        want = collect_candidates(
            finished, docs * beams, pad_token_id=1, do_deduplication=deduplicate
        )
        np.testing.assert_array_equal(tokens, want.tokens)
        np.testing.assert_array_equal(exists, want.exists)


BART = {
    "vocab_size": 23, "d_model": 12, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 24,
}  # fmt: skip
T5 = {
    "vocab_size": 23, "d_model": 12, "d_kv": 5, "d_ff": 16, "num_layers": 1, "num_heads": 2,
    "relative_attention_num_buckets": 8, "decoder_start_token_id": 0,
}  # fmt: skip
BERT = {
    "vocab_size": 19,
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
# head, generator, options of the export and of generate alike
MODELS = {
    "token-bart-beams": (
        RagTokenForGeneration,
        BartConfig(**BART),
        {"num_beams": 4, "num_return_sequences": 2},
    ),
    "token-t5-greedy": (
        RagTokenForGeneration,
        T5Config(**T5),
        {"min_length": 4, "no_repeat_ngram_size": 2},
    ),
    "sequence-t5-beams": (
        RagSequenceForGeneration,
        T5Config(**T5),
        {"num_beams": 4, "num_return_sequences": 3},
    ),
}
SHAPES = [(1, 1, 4), (3, 2, 7), (2, 3, 5)]  # questions, documents, length
ALONE = """
import json, sys
import numpy as np, tensorflow as tf
results = {}
for name in json.load(open("names.json")):
    loaded = tf.saved_model.load(name)
    for i in range(3):
        given = np.load("contexts%d.npz" % i)
        for signature, ids in (("serving_default", np.int64), ("serving_int32", np.int32)):
            inputs = {k: tf.constant(v if k == "doc_scores" else v.astype(ids)) for k, v in given.items()}
            for key, value in loaded.signatures[signature](**inputs).items():
                results["%s %d %s %s" % (name, i, signature, key)] = value.numpy()
other = [m for m in sys.modules if m.split(".")[0] in ("rag_tf", "rag_core", "rag_torch", "torch", "transformers")]
assert not other, other
np.savez("results.npz", **results)
"""


def build(kind, generator, **fields):
    question = DPRConfig(**BERT, max_position_embeddings=16)
    model = kind(RagConfig.from_question_encoder_generator_configs(question, generator, **fields))
    weights = dict(model.generator.named_parameters())
    for name, values in seeded_weights(
        {name: tuple(each.shape) for name, each in weights.items()}, 5
    ).items():
        weights[name].assign(values)
    return model


def contexts(number):
    questions, docs, length = SHAPES[number]
    rng = np.random.default_rng(number)
    ids = rng.integers(3, 23, size=(questions * docs, length))
    mask = np.arange(length) < rng.integers(length // 2, length + 1, size=(len(ids), 1))
    # in one batch the mask lets pads through: searches then read another one than the weighing
    ids, mask = np.where(mask, ids, 1), mask if number else np.ones_like(mask)
    scores = rng.normal(size=(questions, docs)).astype(np.float32)
    return {
        "context_input_ids": ids,
        "context_attention_mask": mask.astype(np.int64),
        "doc_scores": scores,
    }


# what a wrapper around `generate` hands on, though nobody asked for anything
UNUSED = {
    "seed": None,
    "streamer": None,
    "decoder_input_ids": None,
    "logits_processor": [],
    "return_dict_in_generate": False,
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The models, and what a process with TensorFlow alone makes of their exports."""
    folder = tmp_path_factory.mktemp("exports")
    models = {}
    for name, (kind, generator, options) in MODELS.items():
        models[name] = build(kind, generator)
        written = export_saved_model(models[name], folder / name, max_length=7, **UNUSED, **options)
        assert written == folder / name
    (folder / "names.json").write_text(json.dumps(list(MODELS)))
    for number in range(len(SHAPES)):
        np.savez(folder / f"contexts{number}.npz", **contexts(number))
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return models, dict(np.load(folder / "results.npz"))


@pytest.mark.parametrize("name", MODELS)
def test_tensorflow_alone_writes_what_generate_writes(exported, name):
    models, results = exported
    for number in range(len(SHAPES)):
        want = models[name].generate(
            **contexts(number),
            n_docs=SHAPES[number][1],
            max_length=7,
            return_dict_in_generate=True,
            **MODELS[name][2],
        )
        for signature in ("serving_default", "serving_int32"):
            got = {
                key: results.get(f"{name} {number} {signature} {key}")
                for key in ("sequences", "sequences_scores")
            }
            np.testing.assert_array_equal(got["sequences"], want.sequences)
            assert got["sequences"].dtype == np.int64
            if want.sequences_scores is None:
                assert got["sequences_scores"] is None
            else:
                np.testing.assert_allclose(
                    got["sequences_scores"], want.sequences_scores, rtol=1e-4
                )


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path):
    token, sequence = (
        build(*MODELS["token-bart-beams"][:2]),
        build(*MODELS["sequence-t5-beams"][:2]),
    )
    for options, error, says in (
        ({"do_sample": True}, ValueError, "do_sample=True is not offered in a graph"),
        ({"guidance_scale": 2.0}, ValueError, "guidance_scale"),
        ({"encoder_no_repeat_ngram_size": 2}, ValueError, "encoder_no_repeat_ngram_size"),
        ({"logits_processor": [len]}, ValueError, "logits_processor can't be exported"),
        ({"output_scores": True}, ValueError, "output_scores can't be exported"),
        ({"seed": 0}, ValueError, "seed can't be exported"),
        ({"decoder_input_ids": np.array([[2, 5]])}, ValueError, "decoder_input_ids can't be exp"),
        ({"do_deduplication": True}, ValueError, "option of RAG-Sequence"),
        ({"max_length": 99}, ValueError, "24 positions"),
        ({"suppress_tokens": [23]}, ValueError, "suppress_tokens holds ids"),
        ({"num_beans": 2}, TypeError, "num_beans"),
    ):
        with pytest.raises(error, match=says):
            export_saved_model(token, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="decoding must be 'thorough'"):
        export_saved_model(sequence, tmp_path / "out", decoding="fast")
    with pytest.raises(
        TypeError, match=r"RagTokenForGeneration or RagSequenceForGeneration; got RagModel"
    ):
        export_saved_model(build(RagModel, BartConfig(**BART)), tmp_path / "out")
    foreign = build(RagTokenForGeneration, BartConfig(**BART))
    foreign.rag.generator = ForeignGenerator(foreign.generator)
    with pytest.raises(TypeError, match="got ForeignGenerator"):
        export_saved_model(foreign, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        export_saved_model(token, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
