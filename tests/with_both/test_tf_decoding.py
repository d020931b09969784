"""Decoding in TensorFlow.

The rules of a step, every option of `generate` and the answers are rag_torch's.
"""

import json

import numpy as np
import pytest
import torch

import rag_tf
import rag_torch
from rag_core import RagRetriever
from rag_core.generation import rescoring
from rag_core.generation.logits_rules import LogitsProcessor, LogitsWarper
from rag_tf import engine
from rag_tf.marginalize import token_log_probs
from rag_tf.step_scores import apply_processors, apply_warpers, best_candidates, marginal_scores
from rag_torch import step_scores as their_scores
from tests.support.golden_tf import with_contexts
from tests.support.golden_torch import build
from tests.support.rag_models_tf import pair, twin

import tensorflow as tf  # isort: skip  (torch first where both are loaded)

# Warps and processors, equal to PyTorch's in float64 with ties, -inf and NaN.


def some_scores(draw, trial):
    scores = np.round(draw.normal(size=(4, 17)) * 4) / 2
    scores[draw.random(scores.shape) < 0.2] = -np.inf
    scores[:, 0] = 0.5
    if trial % 3 == 0:
        scores[0, draw.integers(1, 17)] = np.nan
    return scores


WARPS = [
    *(
        ("temperature", 0.5),
        ("normalise", 1.0),
        ("top_k", 3),
        ("top_k", 50),
        ("top_p", 0.0),
        ("top_p", 0.9),
    ),
    *(
        ("typical_p", 0.1),
        ("typical_p", 0.95),
        ("epsilon_cutoff", 0.2),
        ("eta_cutoff", 0.1),
        ("eta_cutoff", 0.01),
    ),
]


def test_the_rules_of_a_step_are_pytorchs_with_ties_and_what_is_no_number():
    draw = np.random.default_rng(0)
    for trial in range(9):
        scores = some_scores(draw, trial)
        for kind, value in WARPS:
            for least in (1, 3):
                found = apply_warpers(tf.constant(scores), [LogitsWarper(kind, value)], least)
                wanted = their_scores.apply_warpers(
                    torch.tensor(scores), [LogitsWarper(kind, value)], least
                )
                np.testing.assert_allclose(
                    found, wanted, rtol=1e-12, atol=1e-12, err_msg=f"{kind} {value} {least}"
                )
        rows, ids = np.unique(draw.integers(0, 4, (2, 6)), axis=1)
        values = {
            "add": draw.normal(size=len(ids)).astype(np.float32),
            "penalise": 1.7,
            "decay": 3.3,
        }
        kinds = ("add", "ban", "keep", "force", "penalise", "decay", "finite")
        processors = [LogitsProcessor(kind, ids, rows, values.get(kind)) for kind in kinds]
        processors += [
            LogitsProcessor(kind, np.unique(ids), None, values.get(kind)) for kind in kinds[1:]
        ]
        for processor in processors:
            found = apply_processors(tf.constant(scores), [processor])
            np.testing.assert_array_equal(
                found,
                their_scores.apply_processors(torch.tensor(scores), [processor]),
                err_msg=str(processor),
            )
    with pytest.raises(ValueError, match="logits warper 'cold'"):
        apply_warpers(tf.constant(scores), [LogitsWarper("cold", 1.0)], 1)


def test_ties_go_to_the_lowest_index():
    scores = tf.constant([[1.0, 5.0, 1.0, 1.0, 4.0, 1.0], [0.0] * 6])
    values, indices = best_candidates(scores, 3)
    assert indices.numpy().tolist() == [[1, 4, 0], [0, 1, 2]]
    assert values.numpy().sum(1).tolist() == [10.0, 0.0] and indices.dtype == tf.int64


def test_marginal_scores_by_probabilities_are_those_by_logarithms():
    draw = np.random.default_rng(3)
    logits, priors = draw.normal(size=(2, 3, 4, 50)) * 4, np.log(draw.dirichlet(np.ones(3), 2))
    priors[0, 1] = -np.inf
    few = logits.copy()  # too unlikely for a float32 probability; impossible; no number
    few[..., 7], few[0, :, 1, 8], few[1, 2, 3, 9] = -200.0, -np.inf, np.nan
    for each in (logits, few):
        given = tf.constant(each, tf.float32), tf.constant(priors, tf.float32)
        np.testing.assert_allclose(
            marginal_scores(*given), token_log_probs(*given), rtol=1e-5, atol=1e-5
        )


# The whole of `generate`, held against rag_torch on the same weights.

NEGATIVE = {
    "negative_prompt_ids": np.array([[5, 6, 7, 1], [8, 9, 2, 2]]),
    "negative_prompt_attention_mask": np.array([[1, 1, 1, 0], [1, 1, 1, 1]]),
}
SAMPLED = {"do_sample": True, "seed": 5, "max_length": 8}
OPTIONS = {
    "sampling": {**SAMPLED, "num_return_sequences": 3, "temperature": 1.5, "top_k": 20},
    "nucleus": {**SAMPLED, "top_p": 0.8, "typical_p": 0.9, "renormalize_logits": True},
    "cutoffs": {**SAMPLED, "epsilon_cutoff": 0.02, "eta_cutoff": 0.02, "top_k": 0},
    "beams drawn": {**SAMPLED, "num_beams": 3, "num_return_sequences": 2, "top_p": 0.9},
    "guidance": {**NEGATIVE, "guidance_scale": 3.0, "max_length": 7},
    "guided beams": {"guidance_scale": 2.0, "num_beams": 3, "max_length": 7},
    "encoder": {
        "encoder_repetition_penalty": 1.7,
        "encoder_no_repeat_ngram_size": 2,
        "num_beams": 2,
    },
    "finite": {
        "remove_invalid_values": True,
        "num_beams": 2,
        "renormalize_logits": True,
        "max_length": 6,
    },
    "two ends": {"eos_token_id": [2, 47, 86], "num_beams": 3, "length_penalty": 0.3},
    "whole prefixes": {"use_cache": False, "num_beams": 3, "num_return_sequences": 2},
    "fast": {"decoding": "fast", "num_beams": 3, "num_return_sequences": 4, "length_penalty": 0.3},
    "kept": {"do_deduplication": False, "num_beams": 2, "num_return_sequences": 4, "max_length": 5},
    "many": {"num_return_sequences": 4, "max_length": 6},
    "seen": {
        "num_beams": 2,
        "output_attentions": True,
        "output_hidden_states": True,
        "max_length": 6,
    },
    "seen anew": {
        "use_cache": False,
        "output_attentions": True,
        "output_hidden_states": True,
        "max_length": 5,
    },
}
ONLY = {"fast": "sequence", "kept": "sequence", "many": "sequence"}
CASES = [
    (kind, name)
    for name in OPTIONS
    for kind in ("token", "sequence")
    if ONLY.get(name, kind) == kind
]


@pytest.fixture(scope="module")
def theirs():
    """rag_torch's heads with the same weights, and a smoothing that a score shows."""
    torch.set_num_threads(1)
    return {kind: build("bart_scaled", kind, 3, "float32", 3) for kind in ("token", "sequence")}


def same(found, wanted):
    if isinstance(wanted, tuple):
        assert len(found) == len(wanted)
        for mine, other in zip(found, wanted, strict=True):
            same(mine, other)
    else:
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_option_gives_what_rag_torch_gives(kind, name, theirs):
    model, given = with_contexts(kind)
    options = {**OPTIONS[name], "return_dict_in_generate": True, "output_scores": True}
    smoothing = 0.1 if name == "kept" else 0.0
    model.config.label_smoothing = theirs[kind].config.label_smoothing = smoothing
    found = model.generate(**given, **options)
    inputs = {key: torch.tensor(value.numpy()) for key, value in given.items()}
    numbers = {
        key: torch.tensor(value) for key, value in options.items() if isinstance(value, np.ndarray)
    }
    wanted = theirs[kind].generate(**inputs, **{**options, **numbers})
    assert found.sequences.dtype == tf.int64
    assert found.sequences.numpy().tolist() == wanted.sequences.tolist()
    assert list(found.keys()) == list(wanted.keys())
    for key, value in wanted.items():
        # drawn beams are alike at first: which of them a token was drawn for is a matter of
        # rounding
        if (name, key) != ("beams drawn", "beam_indices"):
            same(found[key], value)


@pytest.mark.parametrize("generator", ["bart", "t5"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_shared_beginnings_are_scored_as_whole_candidates(monkeypatch, generator, dtype, tolerance):
    model, draw = (
        twin(pair("RagSequenceForGeneration", generator)[0]).generator,
        np.random.default_rng(3),
    )
    model.to(dtype)
    mask = tf.constant(np.arange(7) < draw.integers(1, 8, (6, 1)))
    hidden = model.encode(tf.constant(draw.integers(3, 12, (6, 7))), mask)
    tokens, target = draw.integers(3, 5, (2, 9, 8)), draw.integers(3, 12, (2, 9, 8))
    pad_mask = np.arange(8) >= draw.integers(0, 9, (2, 9, 1))
    given = tokens, target, pad_mask, 3, True
    whole = rescoring.scores_of_wholes(engine.ENGINE, model, hidden, mask, *given)
    for block, prefixes in ((2**23, 1024), (500, 1024), (1, 20)):
        monkeypatch.setattr(engine, "_BLOCK", block)
        monkeypatch.setattr(rescoring, "_PREFIXES", prefixes)
        state = model.start(hidden, mask)
        found = rescoring.scores_by_prefix(engine.ENGINE, model, state, mask, *given)
        for mine, other in zip(found, whole, strict=True):
            scored = np.broadcast_to(~pad_mask[:, None], mine.shape)
            np.testing.assert_allclose(mine[scored], other[scored], rtol=tolerance, atol=tolerance)


# Questions to answers.


@pytest.mark.parametrize("name", ["rag-token-nq", "rag-sequence-nq"])
def test_answers_are_rag_torchs_with_their_passages_and_probabilities(name, world, monkeypatch):
    monkeypatch.chdir(world)
    questions = ["who lives in paris?", "how many people does paris have in all of its parts?"]
    found = []
    for package in (rag_tf, rag_torch):
        kind = (
            package.RagTokenForGeneration if "token" in name else package.RagSequenceForGeneration
        )
        retriever = RagRetriever.from_pretrained(f"facebook/{name}")
        model = kind.from_pretrained(f"facebook/{name}", retriever=retriever)
        answers = model.answer(
            questions, num_beams=2, num_return_sequences=2, max_length=9, question_text=True
        )
        found.append([each.to_dict() for each in answers])
    mine, wanted = found
    assert len(mine) == len(wanted) >= 2
    for one, other in zip(mine, wanted, strict=True):
        assert (one["question"], one["text"], one["tokens"]) == (
            other["question"],
            other["text"],
            other["tokens"],
        )
        np.testing.assert_allclose(
            one["log_probability"], other["log_probability"], rtol=1e-6, atol=1e-5
        )
        for a, b in zip(one["passages"], other["passages"], strict=True):
            assert [a[k] for k in ("id", "title", "text")] == [
                b[k] for k in ("id", "title", "text")
            ]
            np.testing.assert_allclose(
                [a["prior"], a["posterior"]], [b["prior"], b["posterior"]], rtol=2e-6, atol=1e-6
            )
        shares = [each["token_posteriors"] for each in (one, other)]
        assert (shares[0] is None) == (shares[1] is None) == ("sequence" in name)
        np.testing.assert_allclose(
            *(np.array(each or 0.0) for each in shares), rtol=2e-6, atol=1e-6
        )
        assert one["token_spans"] == other["token_spans"]
        cited = [
            [(c["id"], c["start"], c["end"]) for c in each["citations"]] for each in (one, other)
        ]
        assert cited[0] == cited[1]
        np.testing.assert_allclose(
            *([c["probability"] for c in each["citations"]] for each in (one, other)), rtol=2e-6
        )
    assert any(each["citations"] for each in mine)
    json.dumps(mine)
    with pytest.raises(TypeError, match="number 1"):
        model.answer(["good", 5])
