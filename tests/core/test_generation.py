import ast
import json
import warnings
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rag_core.config import RagConfig
from rag_core.generation.config import GenerationConfig, own_options, resolve_options
from rag_core.generation.logits_rules import StepRules, logits_warpers, min_tokens_to_keep
from rag_core.generation.model_options import loaded_options
from rag_core.generation.noise import gumbel_noise

V = 10
ROOT = Path(__file__).parents[2]
RULES_FILE = ROOT / "rag_core" / "generation" / "logits_rules.py"
GRAPH_FILE = ROOT / "rag_tf" / "graph" / "rules.py"


def options(**kwargs) -> GenerationConfig:
    base = GenerationConfig(eos_token_id=2, pad_token_id=1, decoder_start_token_id=0)
    return resolve_options(base, **{"max_length": 8, **kwargs})


def edited(
    tokens: list[list[int]], scores: np.ndarray | None = None, beams: int = 1, **kwargs
) -> np.ndarray:
    """The rules applied by a plain numpy backend: what rag_torch and rag_tf must each do."""
    named = {
        k: kwargs.pop(k)
        for k in ("encoder_ids", "prefix_allowed_tokens_fn", "batch_ids")
        if k in kwargs
    }
    rules = StepRules(options(**kwargs), beams=beams, vocab_size=V, **named)
    scores = np.full((len(tokens), V), -2.0) if scores is None else scores.copy()
    everyone = np.arange(len(tokens))[:, None]
    for processor in rules.processors(np.array(tokens)):
        at = (everyone if processor.rows is None else processor.rows, processor.ids)
        if processor.kind == "ban":
            scores[at] = -np.inf
        elif processor.kind == "add":
            scores[at] += processor.value
        elif processor.kind == "penalise":
            scores[at] = np.where(
                scores[at] < 0, scores[at] * processor.value, scores[at] / processor.value
            )
        elif processor.kind == "decay":
            scores[at] += np.abs(scores[at]) * processor.value
        elif processor.kind in ("keep", "force"):
            kept = np.zeros_like(scores) if processor.kind == "force" else scores.copy()
            scores = np.full_like(scores, -np.inf)
            scores[at] = kept[at]
        else:
            raise AssertionError(processor.kind)
    return scores


def banned(row: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.isneginf(row)).tolist())


def test_options_still_at_their_default_come_from_the_nested_generator():
    generator = {
        "num_beams": 4,
        "min_length": 5,
        "length_penalty": 0.5,
        "eos_token_id": 2,
        "forced_eos_token_id": 2,
    }
    rag = {"num_beams": 2, "min_length": 0, "eos_token_id": 77, "n_docs": 3, "generator": generator}
    config = GenerationConfig.from_model_config(rag)
    assert (config.num_beams, config.min_length, config.eos_token_id) == (2, 5, 77)
    assert (config.length_penalty, config.forced_eos_token_id) == (0.5, 2)
    assert "n_docs" not in config.to_dict()


def test_json_keeps_foreign_keys_and_writes_what_is_off_its_default(tmp_path):
    config = GenerationConfig(
        num_beams=3, sequence_bias={(4, 5): 1.5}, transformers_version="4.37.2"
    )
    path = config.save_pretrained(tmp_path)
    written = json.loads(path.read_text())
    assert written == {
        "num_beams": 3,
        "sequence_bias": [[[4, 5], 1.5]],
        "transformers_version": "4.37.2",
    }
    assert GenerationConfig.from_pretrained(tmp_path) == config
    assert GenerationConfig.from_pretrained(tmp_path, num_beams=1).num_beams == 1
    path.write_text("{")
    with pytest.raises(OSError, match="not valid json"):
        GenerationConfig.from_pretrained(tmp_path)


def test_keyword_beats_generation_config_beats_the_models_own():
    own = GenerationConfig(
        num_beams=4, max_length=9, eos_token_id=2, pad_token_id=1, decoder_start_token_id=0
    )
    given = GenerationConfig(num_beams=3, length_penalty=2.0)
    assert resolve_options(own).num_beams == 4
    both = resolve_options(own, given, num_beams=2, max_new_tokens=6)
    assert (both.num_beams, both.length_penalty, both.max_length, both.eos_token_id) == (
        2,
        2.0,
        7,
        2,
    )
    assert (given.num_beams, given.eos_token_id, own.max_length) == (3, None, 9)
    assert resolve_options(own, num_beams=None).num_beams == 1


def test_a_config_is_somebodys_wish_once_it_is_changed():
    config = GenerationConfig.from_model_config({"num_beams": 2})
    assert config._from_model_config
    config.max_length = 30
    assert not config._from_model_config


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"num_beam": 3}, TypeError, "num_beam"),
        ({"penalty_alpha": 0.6}, ValueError, "contrastive"),
        ({"num_beam_groups": 2, "num_beams": 2}, ValueError, "group"),
        ({"diversity_penalty": 0.5}, ValueError, "group"),
        ({"constraints": [object()]}, ValueError, "constrained"),
        ({"force_words_ids": [[3]], "num_beams": 2}, ValueError, "constrained"),
        ({"low_memory": True}, ValueError, "contrastive"),
        ({"prompt_lookup_num_tokens": 2}, ValueError, "assisted"),
        ({"num_assistant_tokens": 3}, ValueError, "assisted"),
        ({"num_assistant_tokens_schedule": "constant"}, ValueError, "assisted"),
        ({"guidance_scale": -1.0}, ValueError, "guidance_scale"),
        ({"max_time": 1.0}, ValueError, "max_time"),
        ({"assistant_model": object()}, ValueError, "assisted"),
        ({"early_stopping": "soon"}, ValueError, "never"),
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"num_beams": 2, "num_return_sequences": 3}, ValueError, "num_beams"),
        ({"num_return_sequences": 2}, ValueError, "do_sample"),
        ({"max_length": 1}, ValueError, "start token"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(kwargs, error, words):
    with pytest.raises(error, match=words):
        options(**kwargs)


SETS = [
    (
        {"num_beams": None, "early_stopping": None, "length_penalty": None, "max_length": None},
        GenerationConfig(),
    ),
    (
        {"num_beams": np.int64(2), "length_penalty": np.float32(0.5)},
        GenerationConfig(num_beams=2, length_penalty=0.5),
    ),
    ({"bad_words_ids": np.array([[4, 5]])}, GenerationConfig(bad_words_ids=[[4, 5]])),
    ({"eos_token_id": np.array([2, 3])}, GenerationConfig(eos_token_id=[2, 3])),
    (
        {"sequence_bias": {(np.int64(4),): np.float64(1.0)}},
        GenerationConfig(sequence_bias={(4,): 1.0}),
    ),
    (
        {"max_length": 9.0, "do_sample": np.bool_(True)},
        GenerationConfig(max_length=9, do_sample=True),
    ),
]


@pytest.mark.parametrize(("said", "meant"), SETS)
def test_none_is_the_default_and_arrays_are_plain_wherever_they_come_from(said, meant, tmp_path):
    class Foreign:
        def to_dict(self):
            return dict(said, min_p=None, cache_config=None)

    ends = {"eos_token_id": meant.eos_token_id or 2, "decoder_start_token_id": 0}
    base, wanted = GenerationConfig(**ends), resolve_options(meant, **ends)
    assert GenerationConfig(**said) == GenerationConfig.from_dict(said) == meant
    assert resolve_options(base, **said) == resolve_options(base, said) == wanted
    foreign = resolve_options(base, Foreign())
    assert {**foreign.to_dict(), **wanted.to_dict()} == foreign.to_dict()
    assert set(foreign.extra) == {"min_p", "cache_config"}
    assert GenerationConfig.from_model_config({**said, "generator": said}) == meant
    config = GenerationConfig()
    for name, value in said.items():
        setattr(config, name, value)
    assert (
        config == meant and GenerationConfig.from_dict(json.loads(config.to_json_string())) == meant
    )
    nulls = {name: None for name, value in said.items() if value is None}
    (tmp_path / "generation_config.json").write_text(json.dumps(nulls))
    assert GenerationConfig.from_pretrained(tmp_path) == GenerationConfig()


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ({"num_beam": 3}, TypeError, "'num_beam': did you mean 'num_beams'"),
        ({"temprature": 0.5}, TypeError, "did you mean 'temperature'"),
        (
            {"logits_processor": "x"},
            ValueError,
            r"logits_processor is no option .* Pass it to generate\(\) itself",
        ),
        ({"num_return_sequences": 2}, ValueError, "do_sample=True"),
        ({"num_beams": 2, "num_return_sequences": 3}, ValueError, "must not be above num_beams"),
        (
            {"length_penalty": float("nan")},
            ValueError,
            "length_penalty must be a number from -32 to 32, got nan",
        ),
        ({"length_penalty": 10**9}, ValueError, "length_penalty must be a number from -32 to 32"),
        ({"length_penalty": -1000.0}, ValueError, "length_penalty must be a number from -32"),
        (
            {"repetition_penalty": 10**300},
            ValueError,
            r"repetition_penalty must be a number above 0 and at most 1e\+30, got 1000",
        ),
        ({"encoder_repetition_penalty": 10**400}, ValueError, "encoder_repetition_penalty must be"),
        ({"guidance_scale": 10**300}, ValueError, "guidance_scale must be a number above 0 and"),
        ({"temperature": 1e300}, ValueError, "temperature must be a number above 0 and at most"),
        (
            {"exponential_decay_length_penalty": [0, 1e300]},
            ValueError,
            r"exponential_decay_length_penalty must be a pair .* at most 1e\+30, got \[0, 1e\+300\]",
        ),
        ({"num_beams": 1.5}, ValueError, "num_beams must be a whole number of at least 1, got 1.5"),
        (
            {"num_beams": True},
            TypeError,
            "num_beams must be a whole number of at least 1, got True",
        ),
        (
            {"max_length": float("inf")},
            ValueError,
            "max_length must be a whole number of at least 1, got inf",
        ),
        ({"top_k": -1}, ValueError, "top_k must be a whole number from 0 to 2147483647, got -1"),
        (
            {"min_length": 2**31},
            ValueError,
            "min_length must be a whole number from 0 to 2147483647",
        ),
        (
            {"eos_token_id": [2, 10**20]},
            ValueError,
            "eos_token_id must be a token id .*, got .2, 100",
        ),
        ({"forced_decoder_ids": [[10**20, 4]]}, ValueError, "forced_decoder_ids must hold pairs"),
        (
            {"epsilon_cutoff": 1},
            ValueError,
            "epsilon_cutoff must be a number of at least 0 and below 1, got 1",
        ),
        ({"do_sample": "yes"}, TypeError, "do_sample must be True or False, got 'yes'"),
        (
            {"eos_token_id": 2.0},
            TypeError,
            "eos_token_id must be a token id .* or a list of token ids, got 2.0",
        ),
        (
            {"decoder_start_token_id": [0]},
            TypeError,
            r"decoder_start_token_id must be a token id .*, got \[0\]",
        ),
        (
            {"bad_words_ids": [4, 5]},
            TypeError,
            r"bad_words_ids must hold non-empty sequences of token ids, .* got \[",
        ),
        ({"bad_words_ids": [[]]}, ValueError, "bad_words_ids must hold non-empty sequences"),
        ({"sequence_bias": {(4,): float("nan")}}, ValueError, "sequence_bias must hold"),
        (
            {"exponential_decay_length_penalty": (1, 2, 3)},
            ValueError,
            r"must be a pair \(start, factor\)",
        ),
        ({"forced_decoder_ids": [[1, "a"]]}, TypeError, "forced_decoder_ids must hold pairs"),
    ],
)
def test_a_config_is_refused_where_it_is_made(said, error, words):
    with pytest.raises(error, match=words):
        GenerationConfig(**said)
    with pytest.raises(error, match=words):
        resolve_options(GenerationConfig(eos_token_id=2, decoder_start_token_id=0), said)


def test_numbers_are_kept_as_they_are_written_unless_no_framework_takes_them():
    config = GenerationConfig(length_penalty=1, repetition_penalty=2**63)
    assert json.loads(config.to_json_string(use_diff=False))["length_penalty"] == 1
    assert type(config.length_penalty) is int and type(config.repetition_penalty) is float


def test_files_keep_what_looks_misspelt_and_later_options_are_refused_by_generate(tmp_path):
    (tmp_path / "g.json").write_text(
        '{"num_beam": 3, "min_p": 0.1, "top_h": null, "num_assistant_tokens": 20}'
    )
    with pytest.warns(
        UserWarning, match=r"g\.json: 'num_beam' \(did you mean 'num_beams'\?\): no option, kept"
    ):
        config = GenerationConfig.from_pretrained(
            tmp_path, "g.json", eos_token_id=2, decoder_start_token_id=0
        )
    assert (config.num_beam, config.min_p, config.num_assistant_tokens) == (3, 0.1, 20)
    with pytest.raises(ValueError, match=r"min_p=0.1 \(min-p sampling\) is not supported"):
        resolve_options(config)
    config.min_p = None
    assert resolve_options(config).max_length == 20
    with pytest.raises(AttributeError, match="did you mean 'num_beams'"):
        GenerationConfig().num_beam = 3
    (tmp_path / "g.json").write_text('{"top_p": 2}')
    with pytest.raises(
        ValueError, match=r"g.json of .*: top_p must be a number from 0 to 1, got 2"
    ):
        GenerationConfig.from_pretrained(tmp_path, config_file_name="g.json")
    with pytest.raises(ValueError, match="max_length must be at most 65536, got 1000000000"):
        options(max_length=10**9)


def test_what_generate_would_refuse_is_not_saved(tmp_path):
    config = GenerationConfig(num_beams=3, foo=4)
    config.num_return_sequences = 4
    with pytest.raises(ValueError, match="num_return_sequences"):
        config.save_pretrained(tmp_path, config_file_name="g.json")
    assert not list(tmp_path.iterdir())
    config.num_return_sequences = 1
    assert config.to_diff_dict() == {"num_beams": 3, "foo": 4}
    config.save_pretrained(tmp_path, config_file_name="g.json")
    config.to_json_file(tmp_path / "whole.json", use_diff=False)
    assert json.loads((tmp_path / "whole.json").read_text())["top_k"] == 50
    pair = GenerationConfig.from_pretrained(
        tmp_path, "g.json", return_unused_kwargs=True, num_beams=2
    )
    assert pair == (GenerationConfig(num_beams=2, foo=4), {})


def test_a_short_file_leaves_the_rest_to_the_model():
    generator = {
        "max_length": 9,
        "min_length": 4,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    }
    model = SimpleNamespace(
        generator=generator, to_dict=lambda: {"eos_token_id": 2, "generator": generator}
    )
    short = GenerationConfig.from_dict({"num_beams": 2, "min_length": 0})
    token, sequence = (own_options(short, model, head) for head in ("token", "sequence"))
    assert (
        token.eos_token_id,
        token.decoder_start_token_id,
        token.max_length,
        token.num_beams,
    ) == (2, 2, 20, 2)
    assert (
        sequence.max_length,
        sequence.min_length,
        sequence.forced_eos_token_id,
        sequence.num_beams,
    ) == (9, 0, 2, 2)
    assert short.eos_token_id is None


def test_a_file_made_of_a_config_yields_to_it_but_in_rag_token():
    """4.37.2's RAG-Token reads such a file; its generators and RAG-Sequence make it anew."""
    config = RagConfig(
        question_encoder={"model_type": "dpr"}, generator={"model_type": "bart", "num_beams": 4}
    )
    same = GenerationConfig.from_model_config(config)
    other = GenerationConfig.from_dict({"_from_model_config": True, "num_beams": 2})
    assert loaded_options(same, {}, config, "token") is None
    assert loaded_options(other, {}, config, "token").num_beams == 2
    assert loaded_options(other, {}, config, "sequence") is None
    assert loaded_options(other, {}, config.generator, None) is None


@pytest.mark.parametrize(("head", "asks"), [("token", "num_beams"), ("sequence", "max_length")])
def test_what_a_config_cannot_say_is_a_wish(head, asks):
    """A default where the nested generator has another value, and what RAG-Sequence asks of it."""
    generator = {"model_type": "bart", "num_beams": 4, "max_length": 50, "min_length": 3}
    config = RagConfig(question_encoder={"model_type": "dpr"}, generator=generator, max_length=20)
    default = getattr(GenerationConfig(), asks)
    options = loaded_options(None, {asks: default, "use_cache": False}, config, head)
    assert (getattr(options, asks), options.min_length) == (default, 3)
    assert loaded_options(None, {"use_cache": False}, config, head) is None


def test_a_warning_points_to_the_callers_line():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        GenerationConfig(temperature=0.5)
        resolve_options(GenerationConfig(decoder_start_token_id=0), top_p=0.5)
        resolve_options(GenerationConfig(decoder_start_token_id=0), {"top_k": 5})
    assert [each.filename for each in caught] == [__file__] * 3
    assert len({each.lineno for each in caught}) == 3


def test_synced_gpus_means_nothing_to_one_process_and_is_refused_among_several(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert options(synced_gpus=True) == options(synced_gpus=False) == options()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert options(synced_gpus=True) == options()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert options(synced_gpus=False) == options()
    with pytest.raises(ValueError, match=r"synced_gpus among 4 processes .* gather the weights"):
        options(synced_gpus=True)


def test_sampling_options_without_sampling_warn():
    with pytest.warns(UserWarning, match="do_sample=True"):
        options(temperature=0.5)


def test_lengths_and_forced_tokens():
    assert banned(edited([[0, 5]], min_length=3)[0]) == {2}
    assert banned(edited([[0, 5, 5]], min_length=3)[0]) == set()
    assert banned(edited([[0, 5, 5]], min_new_tokens=3)[0]) == {2}
    assert edited([[0]], forced_bos_token_id=4)[0].argmax() == 4
    last = edited([[0] + [5] * 6], forced_eos_token_id=[2, 3])[0]
    assert banned(last) == set(range(V)) - {2, 3} and (last[[2, 3]] == 0).all()
    assert edited([[0, 9]], forced_decoder_ids=[[1, 4], [2, 6]])[0].argmax() == 6
    np.testing.assert_allclose(
        edited([[0, 5, 5, 5]], exponential_decay_length_penalty=(1, 1.5))[0, 2], 0.5
    )


def test_an_end_that_grows_likelier_stays_in_the_range_of_float32():
    rules = StepRules(options(exponential_decay_length_penalty=(2, 3)), beams=1, vocab_size=V)
    assert [rules.growth_of_the_end(new) for new in range(6)] == [0, 0, 0, 2, 8, 26]
    # as a whole number it has 1,000 digits and is no factor of a framework, as a float none at all
    assert rules.growth_of_the_end(2000) == rules.growth_of_the_end(102) == np.float32(1e30)


def test_repetition():
    assert banned(edited([[0, 5, 6, 5]], no_repeat_ngram_size=2)[0]) == {6}
    assert banned(edited([[0, 5, 6]], no_repeat_ngram_size=1)[0]) == {0, 5, 6}
    scores = np.array([[4.0] * 5 + [-4.0] * 5])
    np.testing.assert_allclose(
        edited([[0, 7]], scores, repetition_penalty=2.0)[0, [0, 1, 7, 8]], [2, 4, -8, -4]
    )
    assert banned(edited([[0, 5, 6]], bad_words_ids=[[6, 7], [8], [2], [5, 9]])[0]) == {7, 8}
    biased = edited([[0, 5, 6]], sequence_bias={(7,): 1.0, (6, 7): 2.0, (3, 6, 7): 4.0})
    np.testing.assert_allclose(biased[0, 7], 1.0)


def test_encoder_rules_join_the_documents_of_a_search():
    docs = [[np.array([5, 6, 7]), np.array([5, 8, 9])], [np.array([5, 3, 3]), np.array([4, 4, 4])]]
    scores = edited([[0, 5]] * 4, beams=2, encoder_no_repeat_ngram_size=2, encoder_ids=docs)
    assert [banned(row) for row in scores] == [{6, 8}, {6, 8}, {3}, {3}]
    scores = edited([[0, 5]] * 2, encoder_repetition_penalty=2.0, encoder_ids=docs)
    np.testing.assert_allclose(scores[:, [3, 4, 7]], [[-2, -2, -1], [-1, -1, -2]])


def test_suppression_begins_where_it_should():
    assert banned(edited([[0]], suppress_tokens=[7], begin_suppress_tokens=[5])[0]) == {5, 7}
    assert banned(edited([[0, 4]], suppress_tokens=[7], begin_suppress_tokens=[5])[0]) == {7}
    assert banned(edited([[0, 4]], begin_suppress_tokens=[5], forced_bos_token_id=4)[0]) == {5}


def test_prefix_function_is_told_the_question_and_must_allow_something():
    calls = []

    def allowed(batch_id, ids):
        calls.append((batch_id, ids.tolist()))
        return [3, batch_id]

    scores = edited([[0, 5]] * 4, beams=2, prefix_allowed_tokens_fn=allowed, batch_ids=[7, 8])
    assert [set(range(V)) - banned(row) for row in scores] == [{3, 7}, {3, 7}, {3, 8}, {3, 8}]
    assert calls[2] == (8, [0, 5])
    with pytest.raises(ValueError, match="prefix_allowed_tokens_fn"):
        edited([[0]], prefix_allowed_tokens_fn=lambda b, ids: [])
    with pytest.raises(ValueError, match=r"\[11\] outside"):
        edited([[0]], suppress_tokens=[11])


def test_narrowings_are_listed_in_order():
    wanted = options(
        do_sample=True, num_beams=2, temperature=0.5, top_p=0.9, eta_cutoff=0.1, eos_token_id=[2, 3]
    )
    assert [(w.kind, w.value) for w in logits_warpers(wanted)] == [
        ("temperature", 0.5),
        ("top_k", 50),
        ("top_p", 0.9),
        ("eta_cutoff", 0.1),
    ]
    assert min_tokens_to_keep(wanted) == 3
    assert logits_warpers(options()) == []


def test_noise_depends_on_seed_row_and_step_alone():
    noise = gumbel_noise(3, rows=4, step=5, vocab_size=V)
    np.testing.assert_array_equal(gumbel_noise(3, rows=2, step=5, vocab_size=V), noise[:2])
    for other in (gumbel_noise(4, 4, 5, V), gumbel_noise(3, 4, 6, V)):
        assert not np.isclose(noise, other).any()
    assert len(np.unique(noise)) == noise.size
    draws = np.stack([gumbel_noise(0, 1, step, 3)[0] for step in range(4000)]) + np.log(
        [0.6, 0.3, 0.1]
    )
    share = np.bincount(draws.argmax(axis=1), minlength=3) / 4000
    np.testing.assert_allclose(share, [0.6, 0.3, 0.1], atol=0.03)
    # pinned: both backends, on every machine, must draw the same
    np.testing.assert_allclose(
        gumbel_noise(1, 1, 0, 3)[0], [-0.1757580, 1.8076499, -0.6189815], rtol=1e-6
    )


def options_read(code: ast.AST) -> set[str]:
    """The options that a piece of code names, as `options.NAME` or in words for `getattr`."""
    names = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("options"):
            names.add({"eos_token_ids": "eos_token_id"}.get(node.attr, node.attr))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return names & {field.name for field in fields(GenerationConfig)}


def options_behind(init: ast.FunctionDef) -> dict[str, set[str]]:
    """Attribute or local name that a constructor assigns -> the options it was made from."""
    behind: dict[str, set[str]] = {}
    for node in ast.walk(init):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value:
            made_from = options_read(node.value)
            for part in ast.walk(node.value):
                if isinstance(part, ast.Name):
                    made_from |= behind.get(part.id, set())
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                name = ast.unparse(target).removeprefix("self.")
                behind.setdefault(name, set()).update(made_from)
    return behind


def definition(module: ast.AST, name: str) -> ast.AST:
    return next(node for node in ast.walk(module) if getattr(node, "name", None) == name)


def options_left_out(rules: ast.Module, graph: ast.Module) -> set[str]:
    """The options that decide a step in Python, and that the graph neither reads nor refuses."""
    in_graph = definition(graph, "GraphRules")
    known = options_read(in_graph)
    behind = options_behind(definition(definition(rules, "StepRules"), "__init__"))
    for node in ast.walk(in_graph):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("rules"):
            known |= behind.get(node.attr, set())
    refused = next(
        node.value
        for node in graph.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "_REFUSED"
    )
    known |= {key.value for key in refused.keys}
    # Its ids are checked and no rule; and beams stand in for each other where a function of the
    # caller chooses, which has no graph.
    known |= {"pad_token_id", "num_beams"}
    return options_read(definition(rules, "StepRules")) - known


def test_a_graph_reads_or_refuses_each_option_of_a_step():
    rules, graph = RULES_FILE.read_text(), GRAPH_FILE.read_text()
    assert not options_left_out(ast.parse(rules), ast.parse(graph))
    # what a rule added in Python alone looks like, and one that the constructor prepares
    beside = "        if options.suppress_tokens:\n"
    planted = rules.replace(beside, "        if options.top_k == 3:\n            pass\n" + beside)
    assert options_left_out(ast.parse(planted), ast.parse(graph)) == {"top_k"}
    for line in ("if options.suppress_tokens:", "if rules.bias:"):
        assert line in graph
    without = graph.replace("rules.bias", "rules.eos").replace("options.suppress_tokens", "[]")
    left_out = options_left_out(ast.parse(rules), ast.parse(without))
    assert left_out == {"sequence_bias", "suppress_tokens"}
    without = graph.replace(
        '"encoder_repetition_penalty": (1.0, "it reads the contexts outside"),', ""
    )
    left_out = options_left_out(ast.parse(rules), ast.parse(without))
    assert left_out == {"encoder_repetition_penalty"}


@pytest.mark.filterwarnings("ignore:.*do_sample=True")
def test_a_graph_samples_nothing_so_it_needs_no_warper():
    sampling = {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "typical_p": 0.5}
    cutoffs = {"epsilon_cutoff": 0.1, "eta_cutoff": 0.1}
    assert logits_warpers(options(renormalize_logits=True, **sampling, **cutoffs)) == []
    refused = GRAPH_FILE.read_text().partition("_REFUSED")[2].partition("}")[0]
    assert '"do_sample": (False' in refused


def test_a_graph_reads_or_refuses_each_option_of_the_loop():
    in_loop = set()
    for name in ("loop", "beam"):
        module = ast.parse((ROOT / "rag_core" / "generation" / f"{name}.py").read_text())
        in_loop |= options_read(module)
    in_graph = set()
    for path in GRAPH_FILE.parent.glob("*.py"):
        in_graph |= options_read(ast.parse(path.read_text()))
    assert in_loop and in_loop <= in_graph
