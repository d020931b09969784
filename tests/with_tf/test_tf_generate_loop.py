"""`generate` with its whole loop in one graph.

What the loop in Python finds, at any size, and only where it may be.
"""

import gc
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from conformance.seeded import seeded_weights
from rag_core.config.rag import BartConfig, DPRConfig, RagConfig
from rag_core.generation import GenerationConfig, Hooks
from rag_tf import clear_graphs, graph_memory, once, set_graph_memory
from rag_tf.engine import ENGINE
from rag_tf.graph import Graph, function, why_not
from rag_tf.rag import RagSequenceForGeneration, RagTokenForGeneration

BART = {
    "vocab_size": 23, "d_model": 12, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 40,
    "forced_eos_token_id": None,
}  # fmt: skip
BERT = {
    "vocab_size": 19,
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
HEADS = {"token": RagTokenForGeneration, "sequence": RagSequenceForGeneration}
# the sizes below are asked for with each of these
OPTIONS = {
    "greedy": {"num_beams": 1, "eos_token_id": [2, 7, 9]},
    "rules": {
        "num_beams": 1,
        "repetition_penalty": 1.4,
        "no_repeat_ngram_size": 3,
        "forced_eos_token_id": 2,
    },
    "beams": {
        "num_beams": 3,
        "eos_token_id": [2, 5],
        "length_penalty": 0.4,
        "early_stopping": "never",
    },
    "more": {
        "num_beams": 4,
        "num_return_sequences": 2,
        "early_stopping": True,
        "eos_token_id": [2, 4, 8, 11, 17],
    },
}
# questions, documents, length of a context, most tokens; ends come early or late, and the cache
# grows once
SIZES = [(2, 2, 6, 21), (1, 3, 4, 5), (8, 1, 9, 38), (6, 2, 5, 12)]


@pytest.fixture(scope="module")
def models():
    question, generator = DPRConfig(**BERT, max_position_embeddings=16), BartConfig(**BART)
    config = RagConfig.from_question_encoder_generator_configs(question, generator)
    token = RagTokenForGeneration(config)
    fill(token.generator, 5)
    parts = {"question_encoder": token.rag.question_encoder, "generator": token.generator}
    return {"token": token, "sequence": RagSequenceForGeneration(config, **parts)}


def fill(generator, seed):
    weights = dict(generator.named_parameters())
    for name, values in seeded_weights(
        {name: tuple(each.shape) for name, each in weights.items()}, seed
    ).items():
        # loud, so that texts differ and some end
        weights[name].assign(values * (3.0 if name.endswith("shared.weight") else 1.0))


def contexts(questions, docs, length, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, 23, size=(questions * docs, length))
    mask = np.arange(length) < rng.integers(length // 2, length + 1, size=(len(ids), 1))
    return {
        "context_input_ids": np.where(mask, ids, 1),
        "context_attention_mask": mask.astype(np.int64),
        "doc_scores": rng.normal(size=(questions, docs)).astype(np.float32),
        "n_docs": docs,
    }


def both(model, monkeypatch, **options):
    """What the graph finds and what Python finds; whether the graph did."""
    ran = []

    def noted(*args):
        ran.append(real(*args))
        return ran[-1]

    real = ENGINE.search_in_graph
    with monkeypatch.context() as patch:
        patch.setattr(ENGINE, "search_in_graph", noted)
        found = model.generate(**options, return_dict_in_generate=True)
        patch.setattr(ENGINE, "search_in_graph", lambda *args: None)
        wanted = model.generate(**options, return_dict_in_generate=True)
    return found, wanted, ran[-1] is not None if ran else False


def traces(model):
    graph = model.generator._graphs.get("search")
    return 0 if graph is None else len(graph.traces)


def assert_same(found, wanted):
    assert list(found.keys()) == list(wanted.keys())
    for key, value in wanted.items():
        assert (found[key] is None) == (value is None)
        if value is None:
            continue
        assert found[key].dtype == value.dtype and found[key].shape == value.shape
        if value.dtype.is_floating:
            np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("head", HEADS)
def test_the_graph_finds_what_python_finds_at_all_sizes_without_another_trace(
    head, name, models, monkeypatch
):
    model, lengths, made = models[head], set(), []
    both(model, monkeypatch, **contexts(1, 1, 4), **OPTIONS[name], max_length=4)
    for seed, (questions, docs, length, most) in enumerate(SIZES):
        given = contexts(questions, docs, length, seed)
        found, wanted, ran = both(model, monkeypatch, **given, **OPTIONS[name], max_length=most)
        assert ran
        assert_same(found, wanted)
        made.append(traces(model))
        lengths |= set((found.sequences.numpy() != 1).sum(axis=1))
    assert made == made[:1] * len(made) and len(lengths) > 2


def test_new_weights_are_seen_and_new_variables(models, monkeypatch):
    model, given = models["token"], contexts(3, 2, 6)
    options = {**given, **OPTIONS["beams"], "max_length": 9}
    before = [model.generate(**options).numpy().tolist() for _ in range(2)]
    assert before[0] == before[1]
    fill(model.generator, 6)
    try:
        found, wanted, ran = both(model, monkeypatch, **options)
        assert ran and found.sequences.numpy().tolist() != before[0]
        assert_same(found, wanted)
        # other variables: their graph, too, comes with the second call
        model.generator.to("float64")
        model.generate(**options)
        found, wanted, ran = both(model, monkeypatch, **options)
        assert ran and found.sequences_scores.dtype == tf.float64
        assert_same(found, wanted)
    finally:
        model.generator.to("float32")
        fill(model.generator, 5)


def test_scores_that_are_no_numbers_are_left_to_python(models, monkeypatch):
    model, table = models["token"], models["token"].generator.final_logits_bias
    old = table.numpy()
    for num_beams in (1, 1, 3, 3):
        table.assign(np.where(np.arange(old.shape[-1]) == 6, np.nan, old))
        try:
            found, wanted, ran = both(
                model, monkeypatch, **contexts(2, 2, 6), num_beams=num_beams, max_length=5
            )
        finally:
            table.assign(old)
        assert not ran
        assert found.sequences.numpy().tolist() == wanted.sequences.numpy().tolist()
    table.assign(np.where(np.arange(old.shape[-1]) == 6, np.nan, old))
    try:
        with pytest.raises(ValueError, match="graph can't be: some score is NaN"):
            model.generate(**contexts(2, 2, 6), num_beams=3, max_length=5, graph=True)
    finally:
        table.assign(old)


@pytest.mark.parametrize("name", ["greedy", "more"])
@pytest.mark.parametrize("kind", ["token", "sequence", "generator"])
def test_whether_a_graph_is_made_can_be_said(kind, name, models, monkeypatch, caplog):
    caplog.set_level("DEBUG", "rag_tf")
    if kind == "generator":
        given = contexts(3, 1, 6)
        model = models["token"].generator
        given = {
            "input_ids": given["context_input_ids"],
            "attention_mask": given["context_attention_mask"],
        }
        graphs = model
    else:
        model, given = models[kind], contexts(3, 2, 6)
        graphs = model.generator
    options = {**given, **OPTIONS[name], "max_length": 9}
    graphs._graphs.pop("search", None)
    for _ in range(3):
        found, never, ran = both(model, monkeypatch, **options, graph=False)
        assert not ran and "search" not in graphs._graphs
    assert [each.getMessage() for each in caplog.records] == [
        "generate runs step by step: graph=False"
    ] * 3
    caplog.clear()
    found, wanted, ran = both(model, monkeypatch, **options, graph=True)
    assert ran and len(graphs._graphs["search"].traces) == 1 and not caplog.records
    assert_same(found, wanted)
    assert_same(found, never)
    graphs._graphs.pop("search")
    for ran_before in (False, True):
        found, wanted, ran = both(model, monkeypatch, **options)
        assert ran is ran_before
        assert_same(found, wanted)
    assert [each.getMessage() for each in caplog.records] == [
        "generate runs step by step: these options are asked for the first time, and their graph "
        "takes seconds"
    ]
    with pytest.raises(TypeError, match="graph"):
        model.generate(**options, graph="always")


REASONS = {
    "logits_processor is called in each step": {"logits_processor": lambda ids, scores: scores},
    "stopping_criteria is called in each step": {
        "stopping_criteria": lambda ids, scores: np.zeros(len(ids), dtype=bool)
    },
    "prefix_allowed_tokens_fn is called in each step": {
        "prefix_allowed_tokens_fn": lambda batch, ids: range(23)
    },
    "do_sample=True is not offered in a graph (its noise is drawn outside)": {
        "do_sample": True,
        "seed": 1,
    },
    "guidance_scale=2.0 is not offered in a graph (it reads a second context)": {
        "guidance_scale": 2.0
    },
    "encoder_repetition_penalty=1.2 is not offered in a graph (it reads the contexts outside)": {
        "encoder_repetition_penalty": 1.2
    },
    "encoder_no_repeat_ngram_size=2 is not offered in a graph (it reads the contexts outside)": {
        "encoder_no_repeat_ngram_size": 2
    },
    "use_cache=False decodes all tokens anew in each step": {"use_cache": False},
    "output_scores=True hands out the scores of each step": {"output_scores": True},
    "attentions and hidden states are handed out step by step": {"output_attentions": True},
    "decoder_input_ids: answers begin with more than the start token": {
        "decoder_input_ids": np.array([[2, 5], [2, 6]])
    },
    "a vocabulary of 23 leaves nothing but the end tokens": {"eos_token_id": list(range(23))},
}


def logged(caplog, generate):
    caplog.clear()
    output = generate()
    return output, [each.getMessage() for each in caplog.records]


@pytest.mark.parametrize("reason", REASONS)
def test_why_there_is_no_graph_is_said(reason, models, caplog):
    caplog.set_level("DEBUG", "rag_tf")
    model, given = models["token"], contexts(2, 2, 6)
    options = {**given, "max_length": 5, **REASONS[reason], "return_dict_in_generate": True}
    if "vocabulary" not in reason:
        _, said = logged(caplog, lambda: model.generate(**options))
        assert said == [f"generate runs step by step: {reason}"]
    with pytest.raises(ValueError, match=re.escape(f"where a graph can't be: {reason}")):
        model.generate(**options, graph=True)


def test_why_a_model_has_no_graph_is_said(models, caplog):
    caplog.set_level("DEBUG", "rag_tf")
    model = models["token"]
    options = {**contexts(1, 2, 6), "max_length": 5}
    streamer = SimpleNamespace(put=lambda ids: None, end=lambda: None)
    _, said = logged(caplog, lambda: model.generate(**options, streamer=streamer))
    assert said == ["generate runs step by step: streamer is called in each step"]
    with once():
        _, said = logged(caplog, lambda: model.generate(**options))
        assert said == ["generate runs step by step: within once() no graphs are made"]
        with pytest.raises(ValueError, match="within once\\(\\) no graphs are made"):
            model.generate(**options, graph=True)
    model.generator.train()
    try:
        _, said = logged(caplog, lambda: model.generate(**options))
    finally:
        model.generator.eval()
    assert said == [
        "generate runs step by step: the generator is in training mode, in which each step draws "
        "its dropout"
    ]
    # without a state or a generator of rag_tf's own, and samples drawn side by side
    hooks, starts = Hooks(), np.array([[2]])
    plain = GenerationConfig(num_beams=1, max_length=5)
    decoder = SimpleNamespace(generator=streamer, state=None, traced=None, beams=1)
    said = why_not(decoder, plain, hooks, starts)
    assert said == "SimpleNamespace is not a generator of rag_tf's own"
    decoder = SimpleNamespace(generator=model.generator, state=None, traced=None, beams=3)
    assert why_not(decoder, plain, hooks, starts) == "num_return_sequences=3 without beams"


def test_a_state_comes_back_whole_from_a_graph(models):
    generator = models["token"].generator
    given = contexts(2, 1, 6)
    hidden = generator.encode(given["context_input_ids"], given["context_attention_mask"])
    state = generator.start(hidden, given["context_attention_mask"], beams=3, max_length=7)
    alone = generator.start(hidden, given["context_attention_mask"], beams=1, max_length=7)
    tokens = np.full((2, 3, 1), 5)
    generator.decode(tokens, state)
    state.reorder(np.array([[0, 0, 1], [2, 1, 0]]))
    assert set(state.tensors()) == {"position", "cache", "source"}
    assert set(alone.tensors()) == {"position", "cache"}
    stepped = Graph(lambda state: (state.reorder(tf.zeros((2, 3), tf.int32)), state.tensors())[1])
    after = state.with_tensors(stepped(state))
    assert (after.max_length, after.beams, after.position) == (7, 3, 1)
    assert isinstance(after.position, int) and after.cross is state.cross
    np.testing.assert_array_equal(after.source, [0, 0, 0, 5, 5, 5])
    np.testing.assert_array_equal(after.cache[0][0], state.cache[0][0])
    fresh = generator.start(hidden, given["context_attention_mask"], beams=3, max_length=7)
    assert set(replace(fresh, cache=None).tensors()) == {"position"}


def test_what_asks_for_python_gets_it(models, monkeypatch):
    model, given = models["token"], contexts(2, 2, 6)
    model.generator._graphs.pop("search", None)
    for asked in (
        {"logits_processor": lambda ids, scores: scores},
        {"stopping_criteria": lambda ids, scores: np.zeros(len(ids), dtype=bool)},
        {"prefix_allowed_tokens_fn": lambda batch, ids: range(23)},
        {"do_sample": True, "seed": 1},
        {"guidance_scale": 2.0},
        {"encoder_repetition_penalty": 1.2},
        {"use_cache": False},
        {"output_scores": True},
        {"output_attentions": True},
        {"decoder_input_ids": np.array([[2, 5], [2, 6]])},
    ):
        for _ in range(2):
            assert not both(model, monkeypatch, **given, **asked, max_length=5)[2], asked
    with once():
        assert not both(model, monkeypatch, **given, max_length=5)[2]
    assert traces(model) == 0


def test_graphs_take_no_more_memory_than_allowed_and_none_is_made_for_more_options_in_rotation(
    models, monkeypatch
):
    model, given = models["token"], contexts(1, 1, 4)
    clear_graphs()
    monkeypatch.setattr(function._STORE, "limit", math.inf)

    def kept(*bans):
        for ban in bans:
            model.generate(**given, num_beams=1, max_length=3, suppress_tokens=[ban])
        graph = model.generator._graphs["search"]
        assert sum(trace.size for trace in function._STORE.traces) == function._STORE.size
        return {
            plan.options.suppress_tokens[0]
            for key in graph.traces
            for plan in key
            if hasattr(plan, "prompt_length")
        }

    assert kept(3, 3) == {3}
    one = graph_memory()
    assert kept(4, 4) == {3, 4}
    two = graph_memory()
    assert one < two
    [*_, search] = model.generator._graphs["search"].traces.values()
    set_graph_memory(2.5 * search.size / 2**20)
    assert graph_memory() <= 2.5 * search.size / 2**20
    found = kept(3, 4, 5, 3, 4, 5, 3, 4, 5)  # three sets in rotation where there is room for two
    assert 5 not in found
    assert kept(6, 6) >= {6}
    clear_graphs()
    assert graph_memory() == 0
    assert kept(6) == {6}  # asked for before, so it is made again
    for wrong in (-1, float("nan"), True, "1"):
        with pytest.raises(ValueError, match="megabytes must be"):
            set_graph_memory(wrong)


def test_graphs_of_a_model_that_is_gone_count_no_more():
    before = graph_memory()
    graph = Graph(lambda x: x + 1)
    assert graph(tf.constant(1)) == 2
    assert graph_memory() > before
    del graph
    gc.collect()
    assert graph_memory() == before
