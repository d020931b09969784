"""Keywords that scripts written for transformers hand to from_pretrained and save_pretrained."""

import re

import pytest

from rag_core import AutoConfig, AutoTokenizer, GenerationConfig, RagTokenizer, T5Config
from rag_core.hub.files import split_hub_kwargs
from rag_core.hub.keywords import loading_keywords, whole_device
from rag_core.hub.push import Saving
from tests.support.hub_keywords import HARMLESS, REFUSED


def test_what_changes_nothing_is_passed_over_and_other_names_stay():
    given = {**HARMLESS, "revision": "v1", "n_docs": 3}
    assert split_hub_kwargs(given) == ({"revision": "v1"}, {"n_docs": 3})
    assert split_hub_kwargs({"legacy": False}) == ({}, {"legacy": False})  # tokenizers' alone
    assert loading_keywords(
        {"legacy": False, "from_slow": True, "verbose": 0, "max_len": 9}, "tokenizer"
    ) == {"model_max_length": 9}


def test_tokenizers_take_what_their_files_say_anyway():
    usual = {"tokenizer_type": "bart", "errors": "replace", "sp_model_kwargs": {}, "trim_offsets": True,
             "do_basic_tokenize": True, "never_split": None, "wordpieces_prefix": "##"}  # fmt: skip
    assert loading_keywords(usual, "tokenizer") == {}
    assert loading_keywords({"extra_special_tokens": ["<q>"]}, "tokenizer") == {
        "additional_special_tokens": ["<q>"]
    }
    others = {"sp_model_kwargs": {"alpha": 0.1}, "trim_offsets": False, "do_basic_tokenize": False,
              "never_split": ["x"], "wordpieces_prefix": "__"}  # fmt: skip
    for name, value in others.items():
        with pytest.raises(
            ValueError, match=rf"^{name} must be .*, got {re.escape(repr(value))}\. [A-Z].*\.$"
        ):
            loading_keywords({name: value}, "tokenizer")


def test_an_older_name_is_the_option_of_today():
    assert loading_keywords({"use_auth_token": "hf_1"}) == {"token": "hf_1"}
    assert loading_keywords({"use_auth_token": "hf_1", "token": None}) == {"token": "hf_1"}
    with pytest.raises(ValueError, match="use_auth_token must be left out where token is given"):
        loading_keywords({"use_auth_token": "hf_1", "token": "hf_2"})


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_something_is_refused_with_the_way_out(name):
    with pytest.raises(
        ValueError, match=rf"^{name} must be .*, got {re.escape(repr(REFUSED[name]))}\. [A-Z].*\.$"
    ):
        loading_keywords({name: REFUSED[name]})


def test_saving_keywords_that_would_change_something_are_refused():
    for name, value in {"saved_model": True, "variant": "fp16", "create_pr": True}.items():
        with pytest.raises(ValueError, match=rf"^{name} must be .*, got {value!r}\. [A-Z].*\.$"):
            Saving.of(**{name: value})


def test_a_device_map_is_one_device():
    assert whole_device("cpu", None) == "cpu"
    assert (
        whole_device(None, {"": 0})
        == whole_device(None, {"encoder": 0, "decoder": "cuda:0"})
        == "cuda:0"
    )
    assert whole_device(None, "balanced") == "auto"
    for wrong in ({"a": 0, "b": 1}, {"": "disk"}, {}):
        with pytest.raises(ValueError, match="device_map must name one device, got"):
            whole_device(None, wrong)
    with pytest.raises(ValueError, match="device must be left out where device_map is given"):
        whole_device("cpu", "auto")


def test_parts_of_every_kind_take_them(tmp_path, tokenizers):
    tokenizer = RagTokenizer(tokenizers["question"], tokenizers["bart"])
    other = tmp_path / "other"
    for part in (tokenizer, tokenizers["t5"], T5Config()):
        part.save_pretrained(other, is_main_process=False)
        assert not other.exists()
        with pytest.raises(TypeError, match="unknown arguments: pusch_to_hub"):
            part.save_pretrained(other, pusch_to_hub=False)
        with pytest.raises(ValueError, match="filename_prefix must be None, got 'my'"):
            part.save_pretrained(other, filename_prefix="my")
        part.save_pretrained(other, save_config=False)
        assert not other.exists()
        part.save_pretrained(tmp_path / type(part).__name__, push_to_hub=False, token="hf_1", legacy_format=None,
                             safe_serialization=True, max_shard_size="1GB")  # fmt: skip
    loaded = AutoTokenizer.from_pretrained(
        tmp_path / "RagTokenizer", **HARMLESS, legacy=False, max_len=7
    )
    assert loaded.generator.model_max_length == 7
    config = AutoConfig.from_pretrained(tmp_path / "T5Config", **HARMLESS)
    assert not config.extra.keys() & HARMLESS.keys()


def test_switches_of_saving_are_switches():
    with pytest.raises(TypeError, match=r"push_to_hub must be True or False, got 'me/model'"):
        Saving.of(push_to_hub="me/model")
    assert Saving.of(push_to_hub=True, repo_id="me/model", private=True, create_pr=False).push == {
        "private": True
    }
    assert Saving.of(push_to_hub=True, use_auth_token="hf_1").push == {"token": "hf_1"}
    assert not Saving.of(save_config=False).here
    assert Saving.of(repo_id="me/model", save_function=print, save_peft_format=True).push is None


def test_arguments_have_the_names_that_transformers_gives_them(tmp_path, tokenizers):
    tokenizer = RagTokenizer(tokenizers["question"], tokenizers["bart"])
    tokenizer.save_pretrained(save_directory=tmp_path)
    assert RagTokenizer.from_pretrained(pretrained_model_name_or_path=tmp_path).generator.is_fast
    part = {"pretrained_model_name_or_path": tmp_path, "subfolder": "generator_tokenizer"}
    bart = AutoTokenizer.from_pretrained(**part)
    assert type(bart).from_pretrained(**part).add_tokens(new_tokens=["<doc>"]) == 1
    assert T5Config.from_dict(config_dict={"d_model": 8}).d_model == 8
    GenerationConfig().validate(is_init=True)
    T5Config().save_pretrained(tmp_path / "config", False)
    assert (
        AutoConfig.from_pretrained(pretrained_model_name_or_path=tmp_path / "config") == T5Config()
    )
