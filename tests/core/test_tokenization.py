"""Tokenizers against what transformers 4.37.2 answered (conformance/record_tokenizers.py).

Folders and errors.
"""

import builtins
import copy
import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rag_core
from rag_core.tokenization.batch import pad_rows
from rag_core.tokenization.rag import AutoTokenizer, BatchEncoding, RagTokenizer, Tokenizer
from rag_core.tokenization.reading import SPECIAL_NAMES
from rag_core.tokenization.tokenizer import BartTokenizer, BertTokenizer, T5Tokenizer
from rag_core.tokenization.truncation import kept_lengths
from rag_core.tokenization.words import Words

DATA = Path(__file__).parents[1] / "data" / "tokenizers"
GOLDEN = json.loads((DATA / "golden.json").read_text("utf-8"))
METHODS = json.loads((DATA / "golden_methods.json").read_text("utf-8"))
FAMILIES = sorted(GOLDEN)


@pytest.fixture(scope="module")
def tokenizers():
    return {family: Tokenizer.from_pretrained(DATA / family) for family in FAMILIES}


def check_golden(tokenizer, golden):
    for case in golden["cases"]:
        tokenizer.truncation_side = tokenizer.padding_side = case["side"]
        assert tokenizer(**case["call"]) == case["answer"], case
    tokenizer.truncation_side = tokenizer.padding_side = "right"
    rows = golden["cases"][0]["answer"]["input_ids"]
    for decoded in golden["decoded"]:
        assert tokenizer.batch_decode(rows, **decoded["options"]) == decoded["answer"], decoded[
            "options"
        ]
    assert len(tokenizer) == golden["length"]
    assert {name: getattr(tokenizer, f"{name}_token_id") for name in golden["special"]} == golden[
        "special"
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_as_transformers_does_also_after_saving(family, tokenizers, tmp_path):
    check_golden(tokenizers[family], GOLDEN[family])
    tokenizers[family].save_pretrained(tmp_path / "saved")
    check_golden(AutoTokenizer.from_pretrained(tmp_path / "saved"), GOLDEN[family])
    (tmp_path / "saved" / "tokenizer.json").unlink()
    check_golden(Tokenizer.from_pretrained(tmp_path / "saved"), GOLDEN[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_json_keeps_to_the_old_dialect(family, tokenizers, tmp_path):
    tokenizers[family].save_pretrained(tmp_path)
    written = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    assert written["truncation"] is None
    assert all(isinstance(merge, str) for merge in written["model"].get("merges", []))
    assert "ignore_merges" not in written["model"]
    assert "add_prefix_space" in written["pre_tokenizer"] or family == "bert"
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert (
        config["tokenizer_class"]
        == {"bert": "BertTokenizer", "bart": "BartTokenizer", "t5": "T5Tokenizer"}[family]
    )
    assert {token["content"] for token in config["added_tokens_decoder"].values()} >= set(
        tokenizers[family].all_special_tokens
    )


def test_settings_come_from_the_config_and_keywords_overrule_it(tmp_path):
    shutil.copytree(DATA / "bert", tmp_path / "cased")
    settings = {
        "do_lower_case": False,
        "strip_accents": True,
        "model_max_length": 7,
        "padding_side": "left",
        "mine": 1,
    }
    (tmp_path / "cased" / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "cased" / "config.json").write_text('{"model_type": "dpr"}')
    cased = Tokenizer.from_pretrained(tmp_path / "cased")
    assert cased.tokenize("É e") == ["[UNK]", "e"]
    assert cased(["a", "a b"], padding=True).attention_mask == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert len(cased("a " * 20, truncation=True).input_ids) == 7
    cased.save_pretrained(tmp_path / "json")
    assert json.loads((tmp_path / "json" / "tokenizer_config.json").read_text())["mine"] == 1
    lower = Tokenizer.from_pretrained(tmp_path / "json", do_lower_case=True, model_max_length=5)
    assert lower.tokenize("É") == ["e"] and lower.model_max_length == 5
    with pytest.raises(TypeError, match="do_lowercase"):
        Tokenizer.from_pretrained(tmp_path / "json", do_lowercase=True)


def test_rag_tokenizer_sends_targets_to_the_generator(tokenizers, tmp_path):
    question, generator = tokenizers["bert"], tokenizers["bart"]
    rag = RagTokenizer(question, generator)
    both = rag(
        ["who wrote it?", "when?"],
        text_target=["Leo Tolstoy", "in 1869"],
        padding=True,
        return_tensors="np",
    )
    expected = generator(["Leo Tolstoy", "in 1869"], padding=True, return_tensors="np")
    assert both.labels.tolist() == expected.input_ids.tolist() and both.labels.dtype == np.int64
    assert both.input_ids.tolist() == question(["who wrote it?", "when?"], padding=True).input_ids
    assert rag(text_target="Leo Tolstoy").input_ids == generator("Leo Tolstoy").input_ids
    assert rag.batch_decode(both.labels, skip_special_tokens=True) == ["Leo Tolstoy", "in 1869"]
    with pytest.warns(DeprecationWarning, match="text_target"):
        old = rag.prepare_seq2seq_batch("who?", "Tolstoy", max_target_length=4)
    assert old["labels"] == generator("Tolstoy", truncation=True, max_length=4).input_ids
    rag._switch_to_target_mode()
    assert rag("who?").input_ids == generator("who?").input_ids

    rag.save_pretrained(tmp_path / "rag")
    again = AutoTokenizer.from_pretrained(tmp_path / "rag")
    assert isinstance(again, RagTokenizer) and again("who?", text_target="x") == {
        **question("who?"),
        "labels": generator("x").input_ids,
    }
    (tmp_path / "rag" / "config.json").write_text('{"model_type": "rag"}')
    deeper = AutoTokenizer.from_pretrained(tmp_path, subfolder="rag", local_files_only=True)
    assert deeper.generator("x") == generator("x")
    with pytest.raises(TypeError, match="generator must be a tokenizer"):
        RagTokenizer(question, None)


def test_what_questions_go_through_is_saved_with_the_tokenizers(tokenizers, tmp_path):
    prompted = {"query_prompt": "query: ", "query_lower_case": True, "query_max_length": 6}
    rag = RagTokenizer(tokenizers["bert"], tokenizers["bart"], SimpleNamespace(**prompted))
    rag.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    asked = "WHO wrote War and Peace, and when was that?"
    assert again(asked, truncation=True) == rag(asked, truncation=True)
    assert again(asked) != tokenizers["bert"](asked)
    # the model's config has the say
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "rag", "question_encoder": {"query_prompt": "ask: "}}')
    of_model = RagTokenizer.from_pretrained(tmp_path)
    assert (of_model.query_prompt, of_model.query_lower_case) == ("ask: ", False)
    config.unlink()
    plain = RagTokenizer(again.question_encoder, again.generator)
    plain.save_pretrained(tmp_path)
    assert RagTokenizer.from_pretrained(tmp_path)(asked) == tokenizers["bert"](asked)
    settings = tmp_path / "question_encoder_tokenizer" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"query_prompt": 3}))
    with pytest.raises(OSError, match="query_prompt must be a text, got 3"):
        RagTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, TypeError, "text must be a str"),
        ({"text": 3}, TypeError, "text must be a str"),
        ({"text": ["a", None]}, TypeError, r"text\[1\] must be a str, got NoneType"),
        ({"text_target": [b"a"]}, TypeError, r"text_target\[0\]"),
        ({"text": ["a"], "text_pair": ["b", "c"]}, ValueError, "1 texts, its pair 2"),
        ({"text": ["a\0", "a \ud800"]}, ValueError, r"text\[1\] must .*half of a surrogate pair"),
        ({"text": "a", "padding": "all"}, ValueError, "padding must be"),
        ({"text": "a", "truncation": "some"}, ValueError, "truncation must be"),
        (
            {"text": "a b", "truncation": True, "max_length": 1},
            ValueError,
            "no room for the special tokens",
        ),
        ({"text": "a b", "truncation": "only_second", "max_length": 3}, ValueError, "only_second"),
        ({"text": ["a", "b c"], "return_tensors": "np"}, ValueError, "padding=True"),
        ({"text": "a", "return_tensors": "jax"}, ValueError, "return_tensors"),
        (
            {"text": [["a", "b", "c"]]},
            TypeError,
            r"text\[0\] must be a str or a pair of them, got 3",
        ),
        ({"text": "a b", "is_split_into_words": True}, TypeError, "list of words"),
        (
            {"text": "a", "truncation": True, "max_length": 6, "stride": 4},
            ValueError,
            "stride must be below the 4 tokens",
        ),
        ({"text": "a", "stride": -1}, ValueError, "stride must be 0 or more"),
        (
            {
                "text": "a",
                "padding": True,
                "truncation": True,
                "max_length": 9,
                "pad_to_multiple_of": 8,
            },
            ValueError,
            "multiple",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, error, words, tokenizers):
    with pytest.raises(error, match=words):
        tokenizers["bert"](**arguments)


def test_missing_pad_token_and_negative_ids(tokenizers):
    bare = Tokenizer.from_pretrained(DATA / "bart", pad_token=None)
    assert bare("a").input_ids == tokenizers["bart"]("a").input_ids
    with pytest.raises(ValueError, match="no pad token"):
        bare(["a", "b"], padding=True)
    bare.pad_token = "</s>"
    assert bare(["a", "a b"], padding=True).input_ids[0][-1] == bare.eos_token_id
    with pytest.raises(ValueError, match="add_tokens"):
        bare.mask_token = "<nowhere>"
    with pytest.raises(ValueError, match="-100"):
        bare.decode(np.array([5, -100]))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "spiece.model"])
def test_broken_files_are_named(name, tokenizers, tmp_path):
    tokenizers["t5"].save_pretrained(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-40])
    if name == "spiece.model":
        (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=name):
        Tokenizer.from_pretrained(tmp_path)


def test_nothing_to_read(tmp_path):
    with pytest.raises(OSError, match=r"looked for tokenizer\.json and vocab\.txt"):
        AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        AutoTokenizer.from_pretrained(tmp_path / "nowhere")


def test_t5_without_its_packages_gives_the_pip_line(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **named):
        if name.startswith("sentencepiece"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'dualrag\[t5\]'"):
        Tokenizer.from_pretrained(DATA / "t5")


def test_threads_share_one_tokenizer(tokenizers):
    texts = [f"{'word ' * n}end?" for n in range(40)]

    def call(n):
        options = (
            {"truncation": True, "max_length": 5 + n, "padding": "max_length"} if n % 2 else {}
        )
        return tokenizers["bart"](texts, **options)

    alone = [call(n) for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, range(16))) == alone


def test_added_tokens_and_conversions(tokenizers, tmp_path):
    tokenizer = Tokenizer.from_pretrained(DATA / "bart")
    size = len(tokenizer)
    assert tokenizer.add_tokens(["<doc>"], special_tokens=True) == 1 and len(tokenizer) == size + 1
    assert tokenizer.convert_tokens_to_ids(["<doc>", "<pad>", "no such"]) == [
        size,
        1,
        tokenizer.unk_token_id,
    ]
    tokenizer.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    ids = again("a<doc>b").input_ids
    assert ids[2] == size and again.decode(ids, skip_special_tokens=True) == "ab"
    assert again.convert_ids_to_tokens(ids) == ["<s>", "a", "<doc>", "b", "</s>"]
    padded = tokenizers["bert"].pad(
        [tokenizers["bert"]("a"), tokenizers["bert"]("a b")], return_tensors="np"
    )
    assert padded.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_batch_encoding_is_a_dict_with_attributes():
    batch = BatchEncoding(input_ids=[[1, 2]], attention_mask=[[1, 1]])
    assert batch.input_ids is batch["input_ids"] and dict(**batch) == batch.data
    assert batch.convert_to_tensors("np").input_ids.shape == (1, 2)
    with pytest.raises(AttributeError, match="labels"):
        _ = batch.labels


def test_no_framework_and_no_transformers_are_loaded():
    code = (
        "import sys; from rag_core.tokenization.rag import "
        f"AutoTokenizer;AutoTokenizer.from_pretrained({str(DATA / 't5')!r})('a', "
        "return_tensors='np');print([n for n in ('torch', 'tensorflow', 'transformers', 'faiss', "
        "'datasets') if n in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "[]"
    )


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=2),
    st.integers(0, 80),
    st.sampled_from(["longest_first", "only_first", "only_second"]),
)
def test_truncation_keeps_what_fits(lengths, budget, strategy):
    try:
        kept = kept_lengths(lengths, budget, strategy)
    except ValueError:
        assert strategy != "longest_first"
        return
    assert sum(kept) == min(sum(lengths), budget)
    assert all(0 <= new <= old for new, old in zip(kept, lengths, strict=True))
    if strategy == "longest_first" and kept != lengths and len(lengths) == 2:
        assert abs(kept[0] - kept[1]) <= 1 or kept[lengths.index(min(lengths))] == min(lengths)


@given(
    st.lists(st.lists(st.integers(1, 9), max_size=7), max_size=5),
    st.sampled_from(["left", "right"]),
    st.none() | st.integers(1, 8),
    st.none() | st.integers(0, 9),
)
def test_padding_only_adds(rows, side, multiple, length):
    padded = pad_rows({"ids": rows}, {"ids": 0}, length=length, multiple_of=multiple, side=side)[
        "ids"
    ]
    assert [[token for token in row if token] for row in padded] == rows
    target = max(map(len, rows), default=0) if length is None else length
    for row, original in zip(padded, rows, strict=True):
        assert len(row) >= max(target, len(original)) and (
            row[: len(original)] == original or side == "left"
        )
        if multiple and len(original) <= target:
            assert len(row) % multiple == 0 and len(row) < target + multiple


WORDS = st.lists(
    st.text(
        st.sampled_from(
            "  \t\n\v\f\r''stremvldZ09_-.<é\u00d7\u024f\u2013\u201d\u2028\xa0\x1c\u0301²٣中"
        )
    ),
    max_size=4,
)


@given(WORDS, st.integers(0, 12), st.sampled_from(["right", "left"]), st.booleans())
def test_ids_word_by_word_are_those_of_the_library(texts, limit, side, special):
    """Spaces, digits and marks that `re` and the library class differently are left to the
    library.
    """
    tokenizer = bart()
    tokenizer.truncation_side = side
    texts = [*texts, "as <mask> they're"]
    options = {"add_special_tokens": special, "truncation": True, "max_length": limit + 2}
    # asks for more than ids: the library's way
    whole = tokenizer(texts, return_special_tokens_mask=True, **options)
    found = tokenizer(texts, **options)
    assert (
        found["input_ids"] == whole["input_ids"]
        and found["attention_mask"] == whole["attention_mask"]
    )


def test_the_library_splits_only_what_is_not_known(tokenizers, monkeypatch):
    tokenizer, asked = bart(), []
    monkeypatch.setattr(
        Tokenizer, "_encode", lambda self, request: asked.append(request.texts) or []
    )
    assert tokenizer(["Plain words, 10 of them.", ""])["input_ids"][1] == [0, 2] and not asked
    assert isinstance(tokenizers["bart"]._words(), Words) and tokenizers["bert"]._words() is None
    with pytest.raises(ValueError, match="shorter"):
        tokenizer(["a b", "\u4e2d"])
    assert asked == [[("\u4e2d",)]]


@cache
def bart():
    return Tokenizer.from_pretrained(DATA / "bart")


def plain(value):
    return json.loads(json.dumps(value, default=dict))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:pad_to_max_length:FutureWarning")
def test_methods_answer_as_those_of_transformers(family, tokenizers):
    """Recorded from the fast tokenizers.

    Where these refuse (tokens, ids, masks), from the slow ones.
    """
    for group in METHODS[family]["settings"]:
        tokenizer = Tokenizer.from_pretrained(DATA / family, **group["settings"])
        for case in group["cases"]:
            answer = getattr(tokenizer, case["method"])(*case["args"], **case["kwargs"])
            assert plain(answer) == case["answer"], case
            for row, (words, texts) in enumerate(
                zip(case.get("words", []), case.get("texts", []), strict=True)
            ):
                assert (answer.word_ids(row), answer.sequence_ids(row)) == (words, texts), case
    encoding = tokenizers[family]([("who wrote", "it"), ("a", " b c")], padding=True)
    for case in METHODS[family]["spans"]:
        assert plain(getattr(encoding, case["method"])(*case["args"])) == case["answer"], case


@pytest.mark.parametrize("name", [*SPECIAL_NAMES])
@pytest.mark.parametrize("index", [2, None])
def test_a_special_token_set_by_its_id_stays_when_saved(name, index, tmp_path):
    tokenizer = Tokenizer.from_pretrained(DATA / "bart")
    setattr(tokenizer, f"{name}_id", index)
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert (getattr(one, name), getattr(one, f"{name}_id")) == (
            None if index is None else "</s>",
            index,
        )
    for beyond in (900, -1, "2"):
        with pytest.raises(
            ValueError, match=rf"{name}_id must be an id of the vocabulary, 0 to 899"
        ):
            setattr(tokenizer, f"{name}_id", beyond)


def test_special_tokens_are_added_by_name(tokenizers):
    t5 = Tokenizer.from_pretrained(DATA / "t5")
    assert (
        t5.add_special_tokens({"additional_special_tokens": ["<q>", "<r>"], "bos_token": "<b>"})
        == 3
    )
    assert (len(t5), t5.bos_token_id, t5.additional_special_tokens_ids) == (803, 802, [800, 801])
    kept = Tokenizer.from_pretrained(DATA / "t5")
    kept.add_special_tokens(
        {"additional_special_tokens": ["<q>"]}, replace_additional_special_tokens=False
    )
    assert kept.additional_special_tokens[-2:] == ["<extra_id_99>", "<q>"]
    assert t5.tokenize("a<r>b")[1] == "<r>"
    with pytest.raises(ValueError, match="special_tokens_dict must have keys"):
        t5.add_special_tokens({"x_token": "y"})
    own = Tokenizer.from_pretrained(DATA / "t5", additional_special_tokens=["<q>"])
    assert (len(own), own.additional_special_tokens[:2], len(own.get_sentinel_tokens())) == (
        801,
        ["<q>", "<extra_id_0>"],
        100,
    )
    assert (
        own.convert_tokens_to_ids(["<q>", "<extra_id_99>"]) == [800, 700]
        and own.get_sentinel_token_ids()[0] == 799
    )


def test_a_vocabulary_without_special_tokens_gets_them_at_its_end(tmp_path, caplog):
    """The ids that 4.37.2's tokenizers give.

    For BERT its slow one, as its fast one stops at a missing [UNK].
    """
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["want", "##ed", "un", "runn", "##ing", "low"]) + "\n"
    )
    bert = BertTokenizer(tmp_path / "vocab.txt")
    assert (
        bert("wanted running zzz").input_ids == [9, 0, 1, 3, 4, 6, 7] and bert.mask_token_id == 10
    )
    pieces = ["l", "o", "w", "e", "r", "\u0120", "er", "<unk>"]
    (tmp_path / "vocab.json").write_text(
        json.dumps({piece: index for index, piece in enumerate(pieces)})
    )
    (tmp_path / "merges.txt").write_text("#version: 0.2\ne r\n")
    bart = BartTokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert bart("lower low").input_ids == [8, 0, 1, 2, 6, 5, 0, 1, 2, 9]
    assert [bart.pad_token_id, bart.mask_token_id, bart.unk_token_id, len(bart)] == [10, 11, 7, 12]
    assert "'[CLS]': 9" in caplog.text and "'<s>': 8" in caplog.text
    with pytest.raises(TypeError, match=r"vocab\.json and merges\.txt"):
        BartTokenizer(tmp_path / "vocab.json")
    with pytest.raises(TypeError, match="unknown arguments"):
        BertTokenizer(tmp_path / "vocab.txt", lowercase=True)


def test_names_of_transformers_are_classes_by_family(tokenizers, tmp_path):
    assert isinstance(tokenizers["bart"], rag_core.BartTokenizerFast) and isinstance(
        tokenizers["t5"], T5Tokenizer
    )
    assert isinstance(
        rag_core.DPRQuestionEncoderTokenizerFast.from_pretrained(DATA / "bert"), BertTokenizer
    )
    one = T5Tokenizer(DATA / "t5" / "spiece.model", extra_ids=3, legacy=False)
    assert len(one) == 703 and one("who").input_ids == tokenizers["t5"]("who").input_ids
    tokenizers["bart"].save_pretrained(tmp_path)
    assert len(rag_core.BartTokenizer(tokenizer_file=tmp_path / "tokenizer.json")) == 900
    with pytest.raises(
        ValueError,
        match=r"BertTokenizer must read a tokenizer of bert, .* holds one of bart\. Use AutoTok",
    ):
        BertTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="padding_side must be 'right' or 'left', got 'up'"):
        AutoTokenizer.from_pretrained(tmp_path, padding_side="up")


def test_an_added_token_keeps_its_capitals_in_an_uncased_vocabulary():
    bert = Tokenizer.from_pretrained(DATA / "bert")
    bert.add_tokens(["NEWTOK"])
    ids = bert("a NEWTOK b newtok").input_ids
    assert ids == [2, 43, 1558, 44, 1558, 3] and bert.convert_ids_to_tokens(ids)[2] == "NEWTOK"
    assert (
        bert.decode(ids, skip_special_tokens=True)
        == bert.batch_decode([ids], True)[0]
        == "a NEWTOK b NEWTOK"
    )
    assert bert.get_added_vocab()["NEWTOK"] == bert.convert_tokens_to_ids("NEWTOK") == 1558


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_a_text_are_letters_if_wished(family, tokenizers, tmp_path):
    tokenizer = Tokenizer.from_pretrained(DATA / family)
    text = f"a {tokenizer.pad_token} b"
    assert (
        tokenizer(text) == tokenizers[family](text)
        and tokenizer.pad_token_id in tokenizer(text).input_ids
    )
    tokenizer.split_special_tokens = True
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        encoded = one([text, "a"], text_target=[text], truncation=True, max_length=40)
        assert tokenizer.pad_token_id not in encoded.input_ids[0] + encoded.labels[0]
        assert encoded[0].ids == encoded.input_ids[0]
        assert encoded.input_ids[0][-1] == tokenizers[family]("a").input_ids[-1]


def test_a_text_longer_than_the_model_takes_is_noted_once(caplog):
    tokenizer = Tokenizer.from_pretrained(DATA / "bart", model_max_length=4)
    for options in ({"verbose": False}, {"truncation": True}, {"max_length": 9}):
        tokenizer("a b c d e f", **options)
    assert not caplog.records
    for _ in range(2):
        tokenizer(["a", "a b c d e f"])
    assert [r.getMessage()[:61] for r in caplog.records] == [
        "a text of 8 tokens is longer than the 4 that the model takes "
    ]


def test_tokens_and_ids_are_told_from_texts(tokenizers):
    bart = tokenizers["bart"]
    assert bart.encode(bart.tokenize("who wrote it")) == bart.encode("who wrote it")
    assert bart.encode(("who", "it")) == bart.encode("who", "it") and bart.encode(
        "who", ""
    ) == bart.encode("who")
    assert bart.encode_plus([5, 6], return_tensors="np").input_ids.tolist() == [[0, 5, 6, 2]]
    with pytest.raises(ValueError, match="Call the tokenizer itself with a list of texts"):
        bart.encode(["who wrote it", "when"])
    for bad in ([5.5], [[5], [6]], {"a": 1}):
        with pytest.raises(
            TypeError, match="text must be a str, a list of tokens or a list of ids"
        ):
            bart.encode(bad)
    for bad in (None, ["who"]):
        with pytest.raises(TypeError, match="text must be a str, got"):
            bart.tokenize(bad)
    with pytest.raises(ValueError, match="add_prefix_space=True"):
        bart(["who", "it"], is_split_into_words=True)
    with pytest.raises(ValueError, match="pair is cut by"):
        bart.prepare_for_model(
            [5, 6], [7, 8], truncation=True, max_length=6, return_overflowing_tokens=True
        )


def test_pad_takes_tensors_and_names_what_is_missing(tokenizers):
    bert = tokenizers["bert"]
    padded = bert.pad([{"input_ids": np.array([5, 6])}, {"input_ids": np.array([7])}])
    assert isinstance(padded.input_ids, np.ndarray) and padded.attention_mask.tolist() == [
        [1, 1],
        [1, 0],
    ]
    for bad, words in (
        ([{"labels": [1]}], "must hold input_ids"),
        ([{"input_ids": [1]}, {"x": [1]}], "the same keys"),
    ):
        with pytest.raises(ValueError, match=words):
            bert.pad(bad)


def test_an_encoding_is_made_copied_and_pickled_as_one(tokenizers):
    made = BatchEncoding(data={"a": [1, 2], "b": [0.5]}, tensor_type="np", prepend_batch_axis=True)
    assert (made.a.tolist(), made.a.dtype, made.b.tolist()) == ([[1, 2]], np.int64, [[0.5]])
    encoding = tokenizers["bert"](["a b", "c"], padding=True, return_tensors="np")
    for same in (encoding.copy(), copy.copy(encoding), copy.deepcopy(encoding), encoding):
        assert isinstance(same, BatchEncoding) and same.tokens(1) == [
            "[CLS]",
            "c",
            "[SEP]",
            "[PAD]",
        ]
        assert same[1].ids == [2, 45, 3, 0] and [row.ids for row in same[:1]] == [[2, 43, 44, 3]]
        assert same.is_fast and same.n_sequences == 1 and len(same.encodings) == 2
    again = pickle.loads(pickle.dumps(encoding))
    assert type(again) is BatchEncoding and again.input_ids.tolist() == encoding.input_ids.tolist()
    assert not again.is_fast and again.encodings is None
    with pytest.raises(ValueError, match="pickled since"):
        again.tokens()
    for missing in (0, "labels"):
        with pytest.raises(KeyError):
            again[missing]
    with pytest.raises(ValueError, match="a must hold numbers"):
        BatchEncoding({"a": ["x"]}, tensor_type="pt")


def test_spans_are_pairs_with_names(tokenizers):
    encoding = tokenizers["bert"]("a b")
    assert encoding.token_to_chars(2) == (2, 3) and encoding.token_to_chars(2).start == 2
    assert encoding.word_to_chars(1).end == 3 and encoding.word_to_tokens(1).end == 3
    assert encoding.token_to_chars(0) is None


def test_an_encoding_moves_but_its_ids_stay_whole():
    moved = []

    class Tensor:
        def to(self, *args, **kwargs):
            moved.append((args, kwargs))
            return self

    encoding = BatchEncoding({"a": Tensor(), "b": [1]})
    assert encoding.to("cpu") is encoding and encoding.to(0, non_blocking=True) is encoding
    assert moved == [(("cpu",), {}), ((0,), {"non_blocking": True})]
    with pytest.raises(
        TypeError, match="device must be a device, its name or its number, got <class"
    ):
        encoding.to(np.float16)


def test_the_older_calls_of_a_tokenizer(tokenizers, tmp_path):
    t5, bert = tokenizers["t5"], tokenizers["bert"]
    with pytest.warns(DeprecationWarning, match="text_target"):
        old = t5.prepare_seq2seq_batch(["who"], ["it was"], max_target_length=2)
    assert old == t5(["who"], text_target=["it was"], truncation=True) | {"labels": [[133, 1]]}
    with pytest.warns(DeprecationWarning, match="text_target"), bert.as_target_tokenizer():
        assert bert("it").input_ids == [2, 123, 3]
    assert bert.do_lower_case and not hasattr(t5, "do_lower_case")
    assert [bert.max_len_single_sentence, bert.max_len_sentences_pair] == [510, 509]
    assert bert.vocab == bert.get_vocab() and bert.init_kwargs["do_lower_case"] is True
    assert (
        list(bert.added_tokens_decoder)[:2] == [0, 1]
        and bert.added_tokens_decoder[3].content == "[SEP]"
    )
    extended = t5.special_tokens_map_extended
    assert (
        extended["pad_token"].special
        and [token.content for token in t5.all_special_tokens_extended] == t5.all_special_tokens
    )
    assert (
        extended["additional_special_tokens"][0].content == "<extra_id_0>"
        and bert.clean_up_tokenization("a .") == "a."
    )
    assert t5.save_vocabulary(tmp_path, "my") == (str(tmp_path / "my-spiece.model"),)
    assert [Path(path).name for path in tokenizers["bart"].save_vocabulary(tmp_path)] == [
        "vocab.json",
        "merges.txt",
    ]


def test_special_tokens_beyond_a_models_table_become_unknown_once_said(tokenizers, caplog):
    target = Tokenizer.from_pretrained(DATA / "bart")
    target.add_special_tokens({"additional_special_tokens": ["<odd>"]})
    for options in ({}, {"padding": True, "return_tensors": "np"}):
        whole = RagTokenizer(tokenizers["bert"], target)(
            text_target=["a<odd>b", "c"], **options
        ).input_ids
        fitted = RagTokenizer(tokenizers["bert"], target, tables=(1558, 900))(
            text_target=["a<odd>b", "c"], **options
        ).input_ids
        expected = [
            [3 if token == 900 else token for token in row]
            for row in np.asarray(whole, object).tolist()
        ]
        assert whole[0][2] == 900 and np.asarray(fitted, object).tolist() == expected
    one = RagTokenizer(target, target, tables=(900, None))
    assert one("a<odd>b").input_ids == fitted[0].tolist() and one.encode_targets(
        "<odd>"
    ).input_ids == [0, 900, 2]
    assert (
        caplog.text.count("['<odd>']: they are read as '<unk>'. With split_special_tokens=True")
        == 1
    )
    # another model's tokenizer
    assert RagTokenizer(target, target, tables=(60, None))("zebra?") == target("zebra?")


def test_a_new_vocabulary_keeps_pipeline_and_special_tokens(tokenizers, tmp_path):
    """BART's ids are those of 4.37.2.

    The trainers of the other two settle ties at random, in both.
    """
    texts = ["who wrote the book about the war", "the war of the worlds was written by a man"]
    texts = [*texts, "when was it written and where", "the writer wrote it at home"] * 3
    bart = tokenizers["bart"].train_new_from_iterator(
        texts, 290, special_tokens_map={"<pad>": "<PADDING>"}
    )
    assert bart("who wrote it").input_ids == [0, 91, 272, 275, 274, 2] and bart.pad_token_id == 1
    bert = tokenizers["bert"].train_new_from_iterator(iter(texts), 60, new_special_tokens=["<q>"])
    t5 = tokenizers["t5"].train_new_from_iterator([texts], 150)
    assert (len(bart), len(bert)) == (290, 60) and 103 < len(t5) <= 150
    for made in (bart, bert, t5):
        made.save_pretrained(tmp_path / type(made).__name__)
        again = AutoTokenizer.from_pretrained(tmp_path / type(made).__name__)
        assert (
            len(again) == len(made)
            and type(again) is type(made)
            and again("who wrote it") == made("who wrote it")
        )
        assert (
            made.decode(made("who wrote it").input_ids, skip_special_tokens=True) == "who wrote it"
        )
    assert (
        bert("a<q>").input_ids[0] == 2
        and bert.additional_special_tokens_ids == [5] == bert("a<q>").input_ids[2:3]
    )
    assert t5.pad_token_id == 0 and len(t5.get_sentinel_tokens()) == 100
