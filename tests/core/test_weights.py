"""Names of weights: shapes from configurations, foreign layouts fitted, one error for all that
does not fit.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_core.checkpoint.folder import read_weights, write_checkpoint
from rag_core.checkpoint.weights import (
    check_weights,
    expected_shapes,
    fit_names,
    fit_weights,
    tied_names,
)
from rag_core.config.rag import BertConfig, DPRConfig, T5Config
from tests.support.small_weights import BART, BERT, DPR, T5, T5_GATED, rag, same, some_weights


# Counts, and shapes of the names that are easy to get wrong, as transformers 4.37.2's state_dict
# lists them.
@pytest.mark.parametrize(
    ("config", "head", "count", "facts"),
    [
        (
            DPR,
            "question",
            39,
            {
                "question_encoder.encode_proj.weight": (3, 4),
                "question_encoder.bert_model.embeddings.LayerNorm.bias": (4,),
            },
        ),
        (
            DPR,
            "context",
            39,
            {"ctx_encoder.bert_model.encoder.layer.1.output.dense.weight": (4, 6)},
        ),
        (BertConfig(**BERT), None, 37, {"encoder.layer.0.intermediate.dense.weight": (6, 4)}),
        (BertConfig(**BERT, pooling="pooler"), None, 39, {"pooler.dense.weight": (4, 4)}),
        (
            BART,
            None,
            79,
            {
                "model.encoder.embed_positions.weight": (10, 4),
                "final_logits_bias": (1, 13),
                "model.decoder.layers.1.encoder_attn_layer_norm.bias": (4,),
                "model.decoder.layers.0.fc1.weight": (6, 4),
                "lm_head.weight": (13, 4),
            },
        ),
        (
            T5,
            None,
            50,
            {
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 2),
                "decoder.block.1.layer.1.EncDecAttention.o.weight": (4, 6),
                "decoder.block.0.layer.2.DenseReluDense.wi.weight": (5, 4),
            },
        ),
        (T5_GATED, None, 54, {"decoder.block.1.layer.2.DenseReluDense.wi_1.weight": (5, 4)}),
        (rag(), "token", 118, {"rag.question_encoder.question_encoder.encode_proj.bias": (3,)}),
        (rag(T5), "model", 89, {"generator.decoder.final_layer_norm.weight": (4,)}),
    ],
)
def test_shapes_are_those_of_transformers(config, head, count, facts):
    shapes = expected_shapes(config, head)
    assert len(shapes) == count
    assert {name: shapes[name] for name in facts} == facts
    assert all(name in shapes for group in tied_names(config, head) for name in group)


def test_what_no_network_computes_is_refused():
    with pytest.raises(ValueError, match="position_embedding_type must be 'absolute'"):
        expected_shapes(BertConfig(position_embedding_type="relative_key"))
    with pytest.raises(ValueError, match="pruned_heads"):
        expected_shapes(DPRConfig(pruned_heads={"0": [1]}))
    with pytest.raises(ValueError, match="head must be one of"):
        expected_shapes(rag(), "tokens")


@pytest.mark.parametrize("generator", [BART, T5, T5_GATED], ids=["bart", "t5", "t5-gated"])
@pytest.mark.parametrize(
    ("saved", "wanted"), [("model", "token"), ("token", "model"), ("sequence", "token")]
)
def test_heads_load_into_one_another(generator, saved, wanted, tmp_path):
    config = rag(generator)
    write_checkpoint(tmp_path, some_weights(config, saved), config)
    fitted = fit_weights(config, read_weights(tmp_path), wanted)
    same(fitted, some_weights(config, wanted))


def test_foreign_layouts_fit():
    bert = BertConfig(**BERT, max_position_embeddings=8)
    plain = DPRConfig(**BERT, max_position_embeddings=8)
    bare = some_weights(bert)
    pretraining = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma"): value
        for name, value in bare.items()
    }
    pretraining |= {"cls.predictions.bias": np.zeros(11), "bert.pooler.dense.bias": np.zeros(4)}
    pretraining["bert.embeddings.position_ids"] = np.zeros((1, 8))
    for found in (bare, pretraining):
        same(fit_weights(bert, found), bare)
        same(
            fit_weights(plain, found, "context"),
            {f"ctx_encoder.bert_model.{name}": bare[name] for name in bare},
        )
    same(fit_weights(bert, some_weights(plain)), bare)
    headless = {name.removeprefix("model."): value for name, value in some_weights(BART).items()}
    del headless["final_logits_bias"], headless["lm_head.weight"]
    assert not fit_weights(BART, headless)["final_logits_bias"].any()
    same(
        {**fit_weights(BART, headless), "final_logits_bias": 0},
        {**some_weights(BART), "final_logits_bias": 0},
    )


def test_context_encoder_is_a_component_of_its_own():
    config, prefix = rag(), "rag.ctx_encoder.ctx_encoder.bert_model."
    shapes = expected_shapes(config, "token", context_encoder=DPR)
    assert shapes[f"{prefix}embeddings.word_embeddings.weight"] == (11, 4)
    weights = {name: np.zeros(size, np.float32) for name, size in shapes.items()}
    assert len(fit_weights(config, weights, "token", context_encoder=DPR)) == len(shapes)
    assert not any("ctx_encoder" in name for name in fit_weights(config, weights, "token"))


def test_every_name_is_accounted_for_in_one_error():
    weights = some_weights(rag(), "token")
    for name in ("final_layer_norm.bias", "fc1.weight"):
        del weights[f"rag.generator.model.decoder.layers.1.{name}"]
    weights |= {"zzz": np.zeros(1), "aaa.weight": np.zeros(1)}
    weights["rag.question_encoder.question_encoder.encode_proj.weight"] = np.zeros((4, 4))
    with pytest.raises(ValueError, match="doesn't fit") as caught:
        fit_weights(rag(), weights, "model", source="FILE")
    text = str(caught.value)
    assert text.startswith("FILE") and text.index("aaa.weight") < text.index("zzz")
    assert (
        "2 missing: generator.model.decoder.layers.1.fc1.weight, "
        "generator.model.decoder.layers.1.final_" in text
    )
    assert "question_encoder.question_encoder.encode_proj.weight (4, 4), needed (3, 4)" in text


@given(st.sets(st.sampled_from("abcdefg")), st.sets(st.sampled_from("abcdefg")))
def test_check_weights_tells_exactly_the_differences(expected, found):
    needed, held = dict.fromkeys(expected, (1,)), dict.fromkeys(found, (1,))
    assert fit_names(found, expected) == {name: name for name in expected & found}
    if expected == found:
        check_weights(needed, held)
    else:
        with pytest.raises(ValueError) as caught:
            check_weights(needed, held)
        lines = str(caught.value).splitlines()[1:]
        told = {
            line.split(":")[0].split()[1]: set(line.split(": ")[1].split(", ")) for line in lines
        }
        wanted = {"missing": expected - found, "unexpected": found - expected}
        assert told == {name: names for name, names in wanted.items() if names}


def test_tied_copies_must_agree_and_may_be_missing():
    weights = some_weights(BART)
    only_copy = {
        name: value for name, value in weights.items() if name not in tied_names(BART)[0][:3]
    }
    same(fit_weights(BART, only_copy), weights)
    with pytest.raises(
        ValueError, match=r"different values for model\.shared.weight and lm_head.weight"
    ):
        fit_weights(BART, weights | {"lm_head.weight": weights["lm_head.weight"] + 1})
    untied = some_weights(T5_GATED)
    assert "lm_head.weight" not in tied_names(T5_GATED)[0]
    del untied["lm_head.weight"]
    with pytest.raises(ValueError, match=r"1 missing: lm_head\.weight"):
        fit_weights(T5_GATED, untied)
    of_transformers_5 = T5Config.from_dict({**T5_GATED.to_dict(), "scale_decoder_outputs": False})
    fitted = fit_weights(of_transformers_5, untied)
    np.testing.assert_array_equal(fitted["lm_head.weight"], untied["shared.weight"])
