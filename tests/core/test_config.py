"""Configurations: what is read, kept, refused and written."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_core.checkpoint import convert
from rag_core.config.rag import (
    AutoConfig,
    BartConfig,
    BertConfig,
    DPRConfig,
    PretrainedConfig,
    RagConfig,
    T5Config,
    config_from_dict,
)
from rag_core.modeling import RagComponents, auto

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
FOREIGN = st.dictionaries(
    st.text("abcxyz", min_size=1).map(lambda name: f"foreign_{name}"), JSON, max_size=4
)


def rag(**values):
    return RagConfig(
        question_encoder={"model_type": "dpr"}, generator={"model_type": "bart"}, **values
    )


def test_defaults_are_those_of_transformers_4_37_2():
    config = rag()
    assert (config.n_docs, config.max_combined_length, config.title_sep, config.doc_sep) == (
        5,
        300,
        " / ",
        " // ",
    )
    assert (config.dataset, config.index_name, config.do_deduplication, config.use_cache) == (
        "wiki_dpr",
        "compressed",
        True,
        True,
    )
    assert config.is_encoder_decoder and config.dataset_revision is None
    assert (
        config.generator.d_model,
        config.generator.hidden_size,
        config.generator.num_attention_heads,
    ) == (1024,) * 2 + (16,)
    assert config.forced_eos_token_id == 2
    assert T5Config().num_decoder_layers == T5Config().num_hidden_layers == 6
    assert T5Config(feed_forward_proj="gated-gelu").dense_act_fn == "gelu_new"
    assert T5Config(feed_forward_proj="gated-silu").dense_act_fn == "silu"
    assert DPRConfig().layer_norm_eps == 1e-12 and BertConfig().pooling == "cls"


@given(outer=FOREIGN, inner=FOREIGN)
def test_foreign_keys_survive_and_the_caller_keeps_its_dictionaries(outer, inner):
    values = {
        "model_type": "rag",
        "n_docs": 2,
        "question_encoder": {"model_type": "dpr", **inner},
        **outer,
    }
    values["generator"] = {"model_type": "t5", "num_beams": 4, **inner}
    before = copy.deepcopy(values)
    config = RagConfig.from_dict(values)
    again = RagConfig.from_dict(json.loads(config.to_json_string()))
    assert values == before and again == config and config.generator.num_beams == 4
    for name, value in outer.items():
        assert getattr(again, name) == value
    for name, value in inner.items():
        assert (
            getattr(again.generator, name) == value
            and getattr(again.question_encoder, name) == value
        )
    config.to_dict()["generator"]["foreign_x"] = config.generator.foreign_y = 1
    assert RagConfig.from_dict(values) == again


def test_attributes_set_later_are_written_and_names_have_their_aliases(tmp_path):
    config = BartConfig(hidden_size=32, num_attention_heads=4, dtype="float16")
    assert (config.d_model, config.encoder_attention_heads, config.torch_dtype) == (
        32,
        4,
        "float16",
    )
    config.hidden_size, config.num_beams = 64, 3
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is BartConfig and (again.d_model, again.num_beams) == (64, 3)
    assert again.name_or_path == str(tmp_path) and "name_or_path" not in again.to_dict()
    with pytest.raises(AttributeError, match="num_return_sequence'"):
        again.num_return_sequence  # noqa: B018
    assert copy.deepcopy(again) == again and again != BartConfig()


def test_from_pretrained_takes_overrides(tmp_path):
    rag(n_docs=7).save_pretrained(tmp_path)
    config = RagConfig.from_pretrained(
        tmp_path, n_docs=2, zip_code="x", index_path=tmp_path / "a", dtype="float32"
    )
    assert (config.n_docs, config.zip_code, config.index_path, config.torch_dtype) == (
        2,
        "x",
        str(tmp_path / "a"),
        "float32",
    )
    T5Config(feed_forward_proj="gated-gelu").save_pretrained(tmp_path)
    assert T5Config.from_pretrained(tmp_path, feed_forward_proj="relu").is_gated_act is False


def test_tying_is_the_generators_and_written_where_transformers_looks():
    config = RagConfig(question_encoder=BertConfig(), generator=T5Config(tie_word_embeddings=False))
    assert config.tie_word_embeddings is False and config.to_dict()["tie_word_embeddings"] is False
    assert (
        RagConfig.from_dict(config.to_dict() | {"tie_word_embeddings": True}).tie_word_embeddings
        is False
    )
    of_transformers_5 = {
        "model_type": "t5",
        "tie_word_embeddings": True,
        "scale_decoder_outputs": False,
    }
    assert config_from_dict(of_transformers_5).tie_word_embeddings is False


def test_none_is_a_fields_default_where_it_is_no_value_of_it(tmp_path):
    values = rag(n_docs=3).to_dict()
    nulls = (
        "label_smoothing",
        "n_docs",
        "title_sep",
        "reduce_loss",
        "index_name",
        "retrieval_batch_size",
    )
    config = RagConfig.from_dict({**values, **dict.fromkeys(nulls)})
    assert config == rag() and RagConfig.from_dict(values, n_docs=None) == rag()
    assert BartConfig(pad_token_id=None).pad_token_id is None
    config.label_smoothing = None
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["label_smoothing"] == 0.0


def test_options_of_generation_and_labels_are_attributes_as_in_4_37_2():
    config = BartConfig(50265, 512, num_beams=4)
    assert (config.vocab_size, config.max_position_embeddings, config.num_beams) == (50265, 512, 4)
    assert (config.max_length, config.top_k, config.early_stopping, config.bad_words_ids) == (
        20,
        50,
        False,
        None,
    )
    assert "max_length" not in config.to_dict()
    assert (config.num_labels, DPRConfig().num_labels, config.id2label[2]) == (3, 2, "LABEL_2")
    assert BartConfig(num_labels=5).to_dict()["id2label"][4] == "LABEL_4"
    named = BartConfig.from_dict({"id2label": {"0": "no", "1": "yes"}})
    assert (named.num_labels, named.id2label, named.label2id) == (
        2,
        {0: "no", 1: "yes"},
        {"no": 0, "yes": 1},
    )
    assert BartConfig.from_dict(named.to_dict(), num_labels=1).id2label == {0: "LABEL_0"}
    assert BartConfig.attribute_map == {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
    }
    assert RagConfig.is_composition and not T5Config.is_composition
    assert AutoConfig.for_model("t5", 99, d_model=8).vocab_size == 99
    assert (
        RagConfig(99, True, question_encoder=DPRConfig(), generator=BartConfig()).vocab_size == 99
    )
    with pytest.raises(TypeError, match="several values for vocab_size"):
        BartConfig(5, vocab_size=5)
    with pytest.raises(TypeError, match="takes 18 arguments without names, got 19"):
        T5Config(*range(19))


def test_a_config_goes_to_a_file_and_back(tmp_path):
    config = BartConfig(d_model=32, foo=3)
    config.update({"dropout": 0.3, "bar": 1})
    changed = config.to_diff_dict()
    assert {
        "d_model": 32,
        "foo": 3,
        "bar": 1,
        "dropout": 0.3,
        "model_type": "bart",
    }.items() <= changed.items()
    assert (
        "torchscript" not in changed and json.loads(config.to_json_string(use_diff=True)) == changed
    )
    config.to_json_file(tmp_path / "a.json", use_diff=True)
    assert BartConfig.from_json_file(tmp_path / "a.json") == config
    config.save_pretrained(save_directory=tmp_path)
    assert BartConfig.get_config_dict(tmp_path, x=3) == (config.to_dict(), {"x": 3})
    asked = {
        "return_unused_kwargs": True,
        "trust_remote_code": True,
        "dropout": 0.5,
        "foo": 4,
        "num_beams": 2,
        "zz": 3,
    }
    for kind in (BartConfig, AutoConfig):
        again, unused = kind.from_pretrained(tmp_path, **asked)
        assert unused == {"zz": 3} and (again.dropout, again.foo, again.num_beams) == (0.5, 4, 2)
        assert not {"zz", "return_unused_kwargs", "trust_remote_code"} & set(again.extra)
    with pytest.raises(TypeError, match="no field 'dropuot': did you mean 'dropout'"):
        BartConfig.from_pretrained(tmp_path, dropuot=0.1)
    with pytest.raises(TypeError, match="did you mean 'n_docs'"):
        RagConfig.from_question_encoder_generator_configs(DPRConfig(), BartConfig(), n_doc=3)


def test_keys_of_our_own_are_written_where_they_say_something():
    for name in ("pooling", "projection_dim", "normalize", "scale"):
        assert name not in BertConfig().to_dict()
    assert DPRConfig(projection_dim=8, **BertConfig(hidden_size=24).to_dict()).hidden_size == 24
    assert DPRConfig().to_dict()["projection_dim"] == 0  # transformers' own there
    assert (
        BertConfig(pooling="mean", scale=2.0).to_dict().items()
        >= {"pooling": "mean", "scale": 2.0}.items()
    )


# What transformers 5.23 writes for a RAG of DPR and T5, shortened to what differs from 4.37.2.
OF_TRANSFORMERS_5 = """{"bos_token_id": null, "model_type": "rag", "n_docs": 3, "transformers_version": "5.23.0",
 "generator": {"_name_or_path": "", "dtype": "bfloat16", "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new",
  "id2label": {"0": "LABEL_0"}, "is_gated_act": true, "model_type": "t5", "num_layers": 4, "tie_word_embeddings": true,
  "scale_decoder_outputs": false, "rope_parameters": {"rope_theta": 1e4}},
 "question_encoder": {"dtype": null, "model_type": "dpr", "projection_dim": 8, "is_decoder": false}}"""


def test_files_of_transformers_5_are_read():
    config = config_from_dict(json.loads(OF_TRANSFORMERS_5))
    generator = config.generator
    assert (
        config.n_docs,
        generator.torch_dtype,
        generator.dtype,
        generator.num_decoder_layers,
    ) == (
        3,
        *["bfloat16"] * 2,
        4,
    )
    assert generator.dense_act_fn == "gelu_new" and not generator.tie_word_embeddings
    written = json.loads(config.to_json_string())
    assert (
        written["generator"]["rope_parameters"] == {"rope_theta": 1e4}
        and "dtype" not in written["generator"]
    )
    assert (
        written["question_encoder"]["projection_dim"] == 8
        and RagConfig.from_dict(written) == config
    )


def test_sub_configurations_come_in_any_form_and_are_copied():
    class Foreign:
        def to_dict(self):
            return {"model_type": "pegasus", "d_model": 8}

    generator = BartConfig(forced_eos_token_id=None)
    config = RagConfig.from_question_encoder_generator_configs(
        DPRConfig().to_dict(), generator, n_docs=1
    )
    generator.d_model = 4
    assert (config.n_docs, config.generator.d_model, config.forced_eos_token_id) == (1, 1024, None)
    config.generator = Foreign()
    assert type(config.generator) is PretrainedConfig
    assert (config.generator.model_type, config.generator.d_model) == ("pegasus", 8)


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: RagConfig(generator=BartConfig()), ValueError, "question_encoder"),
        (lambda: RagConfig.from_dict({"model_type": "dpr"}), ValueError, "needs model_type 'rag'"),
        (lambda: rag(n_docs=0), ValueError, "n_docs must be at least 1, got 0"),
        (lambda: rag(max_combined_length=-3), ValueError, "max_combined_length"),
        (lambda: rag(index_name=3), TypeError, "index_name must be str, got 3"),
        (lambda: rag(n_docs=True), TypeError, "n_docs"),
        (lambda: rag(label_smoothing=1.5), ValueError, "label_smoothing"),
        (
            lambda: rag(label_smoothing=float("nan")),
            ValueError,
            "label_smoothing must be a finite number, got nan",
        ),
        (
            lambda: BertConfig(layer_norm_eps=float("inf")),
            ValueError,
            "layer_norm_eps must be a finite number",
        ),
        (
            lambda: RagConfig(question_encoder=3, generator=BartConfig()),
            TypeError,
            "question_encoder",
        ),
        (lambda: BertConfig(pooling="median"), ValueError, "pooling must be one of"),
        (lambda: DPRConfig(hidden_size=10), ValueError, "multiple of num_attention_heads"),
        (lambda: T5Config(feed_forward_proj="silu-gated"), ValueError, "feed_forward_proj"),
        (lambda: BartConfig.from_dict({"model_type": "t5"}), ValueError, "needs model_type 'bart'"),
        (
            lambda: config_from_dict({"model_type": "gpt2"}),
            ValueError,
            "bart, bert, camembert, distilbert, dpr, mpnet, rag, roberta, t5, xlm-roberta; got 'gpt2'",
        ),
        (lambda: config_from_dict({}), ValueError, "got None"),
        (lambda: BartConfig(odd={1, 2}).to_json_string(), TypeError, "json"),
    ],
)
def test_refusals_name_what_and_why(build, error, words):
    with pytest.raises(error, match=words):
        build()


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(OSError, match=r"config\.json"):
        RagConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "rag"')
    with pytest.raises(OSError, match="not valid json"):
        AutoConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bart", "d_model": "big"}')
    with pytest.raises(TypeError, match=r"config\.json of .*d_model must be int"):
        AutoConfig.from_pretrained(tmp_path)


def test_fields_are_set_from_a_text_or_not_at_all():
    config = BartConfig()
    config.update_from_string(
        "dropout=0.5,d_model=32, scale_embedding=true,activation_function=relu,init_std=1"
    )
    assert (config.dropout, config.d_model, config.scale_embedding) == (0.5, 32, True)
    assert (config.activation_function, config.init_std) == ("relu", 1)
    before = config.to_dict()
    for wrong in (
        "dropout=0.1,dmodel=3",
        "dropout=0.1,d_model=x",
        "d_model=2.5",
        "d_model",
        "use_cache=1",
    ):
        with pytest.raises(ValueError, match=r"^update_str must (hold pairs|give)"):
            config.update_from_string(wrong)
    with pytest.raises(ValueError, match="d_model must be at least 1"):
        config.update_from_string("dropout=0.1,d_model=0")
    assert config.to_dict() == before


def test_where_a_config_comes_from_is_told_and_not_written():
    assert (
        BartConfig(name_or_path="there").name_or_path
        == BartConfig(_name_or_path="there")._name_or_path
        == "there"
    )
    assert "there" not in BartConfig(name_or_path="there", _name_or_path=None).to_json_string()


def test_what_other_libraries_look_for_in_a_config():
    config = BartConfig(foo=1)
    assert "d_model" in config and "foo" in config and "text_config" not in config
    # Trainer adds it to a list of its own.
    assert (
        RagConfig.keys_to_ignore_at_inference
        == T5Config().keys_to_ignore_at_inference
        == ["past_key_values"]
    )


def test_numpys_numbers_are_numbers_in_a_config():
    config = BartConfig(d_model=np.int64(32), dropout=np.float32(0.5), use_cache=np.bool_(False))
    assert (config.d_model, config.dropout, config.use_cache) == (32, 0.5, False)
    assert type(config.use_cache) is bool and json.loads(config.to_json_string())["d_model"] == 32


def test_a_model_type_without_a_network_is_refused_in_words(monkeypatch):
    unwritten = SimpleNamespace(model_type="pegasus")
    name = "BartForConditionalGeneration"
    monkeypatch.setitem(auto.NETWORKS["generator"], "pegasus", "PegasusForConditionalGeneration")
    classes = auto.networks_of(SimpleNamespace(__all__=[name], **{name: object}))
    assert classes == {name: object}

    class Parts(RagComponents):
        _part_classes = classes

    with pytest.raises(ValueError, match="for model_type 'pegasus', only for bart: build the mod"):
        Parts._class_of("generator", unwritten)
    table = auto.named_classes({"bart": (name,), "pegasus": ("Pegasus",)}, classes)
    assert table == {"bart": [object]}
    known = "must be one of bart, bert, dpr, rag, t5 to be converted, got 'pegasus'"
    with pytest.raises(ValueError, match=known):
        convert._architecture(unwritten, None)
