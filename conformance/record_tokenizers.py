"""Records what transformers 4.37.2's fast tokenizers answer: the golden file of the tests, or a
whole corpus.

Run with the interpreter of requirements-oracle.txt, from the repository root:

    python conformance/record_tokenizers.py tests/data/tokenizers      # writes golden.json beside
    the vocabularies python conformance/record_tokenizers.py FOLDER --texts texts.json  # the same
    of a corpus and of real vocabularies python conformance/record_tokenizers.py FOLDER --methods
    # golden_methods.json: the other methods

FOLDER holds the tokenizer folders bert, bart and t5. A case is a call's keyword arguments and its
answer.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

TEXTS = [
    "",
    " ",
    "  leading and trailing  ",
    "Hello, world!",
    "don't can't I'm he's they've we're ' quoted ' n't",
    "  multiple   spaces\tand\ttabs\n\nnewlines\r\n here",
    "Café Ångström naïve façade Zürich Łódź Škoda",
    "Cafe\u0301 e\u0301\u0323 combining",
    "北京大学 is in 中国。日本語テキスト、한국어 텍스트",
    "😀 emoji 👩‍👩‍👧‍👦 family 🇫🇷 flag 👍🏽",
    "Привет, мир! Ελληνικά العربية עברית हिन्दी ไทย",
    "[CLS] [SEP] [MASK] [PAD] [UNK] literal",
    "<s> </s> <mask> <pad> <unk> literal<mask>glued <mask> spaced",
    "<extra_id_0> is <extra_id_99>here",
    "a" * 150 + " b",
    "1,234.56 $5.00 50% 3/4 1990s 20th-century",
    "C++ & C# / F# @user #tag https://example.com/a?b=c&d=e_f",
    "\u200bzero\u200bwidth\ufeffbom\u00a0nbsp\u3000ideographic\u2028line",
    "control\x00\x01\x1fchars\x7f\ufffd",
    "ﬁ ligature ½ ² Ⅷ ① ℃ ＦＵＬＬ",  # noqa: RUF001
    "“smart” ‘quotes’ — en – dash … ellipsis",  # noqa: RUF001
    "İstanbul ı ß ẞ ſ",  # noqa: RUF001
    "what is it ? yes , no . he 's n't ! they 've we 're i 'm",
    "Which epic novel did Leo Tolstoy set during Napoleon's invasion of Russia?",
    'Tolstoy\'s "War and Peace" (1869)',
    "who won ?!?! U.S.A. e.g. Dr. O'Neil",
    "▁underscore▁ _ __ Ġbyte Ċ level ##wordpiece ##s",
    "\u0e33\u0f77 \U0001d15e 𠀀𠀁 㐀",
    "\u202ertl\u202c x\u0300\u0301\u0302\u0303",
    "[UNK]unk[UNK] </s></s> <pad><pad>a",
]
PAIRS = [
    (TEXTS[i], TEXTS[j])
    for i, j in ((3, 4), (4, 3), (0, 5), (6, 0), (24, 23), (23, 24), (14, 15), (11, 12))
]


def calls() -> list[dict[str, Any]]:
    """Keyword arguments of the recorded calls, besides one text at a time."""
    first, second = [list(side) for side in zip(*PAIRS, strict=True)]
    listed: list[dict[str, Any]] = [
        {"text": TEXTS},
        {"text": TEXTS, "add_special_tokens": False},
        {"text": TEXTS[:8], "padding": True},
        {"text": TEXTS[3:8], "padding": "max_length", "truncation": True, "max_length": 12},
        {"text": TEXTS[3:8], "padding": True, "pad_to_multiple_of": 8},
        {"text": TEXTS[3:8], "max_length": 9},
        {"text": TEXTS[3:8], "padding": True, "max_length": 9},
        {"text": TEXTS[3:5], "text_target": TEXTS[6:8], "return_token_type_ids": False},
        {"text_target": TEXTS[6:8], "return_attention_mask": False},
        {"text": first, "text_pair": second, "return_token_type_ids": True},
    ]
    for length in (9, 16, 17):
        listed.append(
            {"text": first, "text_pair": second, "truncation": True, "max_length": length}
        )
    listed.append(
        {"text": first[4:6], "text_pair": second[4:6], "truncation": "only_first", "max_length": 60}
    )
    listed.append(
        {
            "text": first[4:6],
            "text_pair": second[4:6],
            "truncation": "only_second",
            "max_length": 60,
        }
    )
    return listed


LONG = "who wrote the book about the war, and when?"
FAST = [
    ("__call__", [[["who wrote", "it"], ["a", "b c"]]], {"return_length": True}),
    ("__call__", ["who wrote"], {"return_length": True}),
    ("__call__", ["who"], {"max_length": 9, "pad_to_max_length": True}),
    ("__call__", ["who"], {"return_overflowing_tokens": True}),
    ("batch_encode_plus", [["who wrote", ["a", "b"]]], {}),
    ("encode_plus", ["who wrote", "it"], {"max_length": 5, "truncation": True}),
    ("encode", [LONG], {"max_length": 6, "truncation": True, "stride": 2}),
    ("tokenize", ["who wrote it"], {}),
    ("tokenize", ["who wrote", "it"], {"add_special_tokens": True}),
    ("build_inputs_with_special_tokens", [[5, 6]], {}),
    ("build_inputs_with_special_tokens", [[5, 6], [7]], {}),
    ("create_token_type_ids_from_sequences", [[5, 6]], {}),
    ("create_token_type_ids_from_sequences", [[5, 6], [7]], {}),
    ("get_special_tokens_mask", [[0, 5, 6, 2, 1]], {"already_has_special_tokens": True}),
    ("truncate_sequences", [[5, 6, 7], [8, 9, 10]], {"num_tokens_to_remove": 3, "stride": 1}),
    ("pad", [[{"input_ids": [5, 6], "labels": [1]}, {"input_ids": [7], "labels": [2]}]], {}),
    ("pad", [{"input_ids": [5, 6], "labels": 3}], {"padding": "max_length", "max_length": 4}),
    (
        "pad",
        [{"input_ids": [[5, 6], [7]]}],
        {"return_attention_mask": False, "pad_to_multiple_of": 4},
    ),
    ("pad", [{"input_ids": [[5, 6], [7]]}], {"padding": False}),
    (
        "pad",
        [
            {
                "input_ids": [[5, 6], [7]],
                "offset_mapping": [[[0, 1], [1, 2]], [[0, 1]]],
                "token_type_ids": [[0, 0], [0]],
                "special_tokens_mask": [[0, 1], [1]],
            }
        ],
        {},
    ),
    ("pad", [{"input_ids": []}], {}),
    ("get_added_vocab", [], {}),
    ("decode", [[5, 6, 7]], {"spaces_between_special_tokens": False, "use_source_tokenizer": True}),
]
WINDOWS = {"return_overflowing_tokens": True, "stride": 1}
PADDED = {
    "padding": True,
    "return_offsets_mapping": True,
    "return_special_tokens_mask": True,
    "return_length": True,
}
BOTH_SIDES = [
    ("__call__", [[LONG, "a"]], {"truncation": True, "max_length": 6, **WINDOWS, **PADDED}),
    (
        "__call__",
        ["who", LONG],
        {"truncation": "only_second", "max_length": 9, **WINDOWS, **PADDED},
    ),
    (
        "__call__",
        ["who wrote it", LONG],
        {"truncation": True, "max_length": 12, **WINDOWS, **PADDED},
    ),
    (
        "__call__",
        [[LONG], [" a b"]],
        {"truncation": True, "max_length": 9, "return_offsets_mapping": True},
    ),
]
SPLIT = [
    ("__call__", [["who", "wrote it", ""]], {"is_split_into_words": True}),
    (
        "__call__",
        [[["who", "wrote it"], ["a"]], [["b", "c"], ["d"]]],
        {"is_split_into_words": True, "padding": True},
    ),
    ("tokenize", [["who", "wrote it"]], {"is_split_into_words": True}),
]
SLOW = [
    ("encode", [["Ġw", "ro", "te", "##wordpiece", "▁it", "it"]], {}),
    ("encode", [[5, 6], [7]], {"max_length": 9, "padding": "max_length"}),
    ("get_special_tokens_mask", [[5, 6]], {}),
    ("get_special_tokens_mask", [[5, 6], [7]], {}),
    (
        "prepare_for_model",
        [[5, 6, 7]],
        {
            "return_length": True,
            "return_special_tokens_mask": True,
            "padding": "max_length",
            "max_length": 8,
        },
    ),
    ("prepare_for_model", [[5, 6, 7, 8, 9, 10]], {"truncation": True, "max_length": 4, **WINDOWS}),
    (
        "prepare_for_model",
        [[5, 6, 7, 8], [9]],
        {"truncation": "only_first", "max_length": 7, **WINDOWS},
    ),
    (
        "prepare_for_model",
        [[9], [5, 6, 7, 8]],
        {"truncation": "only_second", "max_length": 7, **WINDOWS},
    ),
    (
        "prepare_for_model",
        [[9, 10], [5, 6]],
        {"truncation": True, "max_length": 6, "add_special_tokens": False},
    ),
    ("prepare_for_model", [[9, 10, 11], [5, 6]], {"truncation": True, "max_length": 7}),
]
SPANS = [
    *(("tokens", [row]) for row in (0, 1)),
    *(("word_ids", [row]) for row in (0, 1)),
    *(("sequence_ids", [row]) for row in (0, 1)),
    *(("char_to_token", place) for place in ([4], [0, 4], [1, 0, 1], [0, 400], [0, 3])),
    *(("token_to_chars", place) for place in ([1], [0, 2])),
    *(("token_to_word", place) for place in ([1], [0, 3])),
    *(("token_to_sequence", place) for place in ([1], [0, 3])),
    *(("word_to_tokens", place) for place in ([1], [0, 0, 1], [0, 9])),
    *(("word_to_chars", place) for place in ([1], [0, 0])),
    *(("char_to_word", place) for place in ([4], [0, 99])),
]


def answers(tokenizer: Any, cases: Any) -> list[dict[str, Any]]:
    """Cases of methods with what they return.

    Of windows over long texts also whose tokens they are.
    """
    found = []
    for method, args, kwargs in cases:
        answer = getattr(tokenizer, method)(*args, **kwargs)
        case = {"method": method, "args": args, "kwargs": kwargs, "answer": answer}
        if kwargs.get("return_offsets_mapping"):
            case["words"] = [answer.word_ids(row) for row in range(len(answer["input_ids"]))]
            case["texts"] = [answer.sequence_ids(row) for row in range(len(answer["input_ids"]))]
        found.append(case)
    return found


def record_methods(folder: Path) -> dict[str, Any]:
    """What the methods return, by family and by how the tokenizer was loaded."""
    import transformers

    left = {"truncation_side": "left", "padding_side": "left"}
    settings = [({}, [*FAST, *BOTH_SIDES]), (left, BOTH_SIDES), ({"add_prefix_space": True}, SPLIT)]
    golden = {}
    for name, kind in (("bert", "BertTokenizer"), ("bart", "BartTokenizer"), ("t5", "T5Tokenizer")):
        fast, slow = getattr(transformers, kind + "Fast"), getattr(transformers, kind)
        path = str(folder / name)
        encoding = fast.from_pretrained(path)([["who wrote", "it"], ["a", " b c"]], padding=True)
        golden[name] = {
            "settings": [
                {"settings": chosen, "cases": answers(fast.from_pretrained(path, **chosen), cases)}
                for chosen, cases in [*settings, ({}, [])]
            ],
            "spans": [
                {"method": name, "args": args, "answer": getattr(encoding, name)(*args)}
                for name, args in SPANS
            ],
        }
        golden[name]["settings"][-1]["cases"] = answers(slow.from_pretrained(path), SLOW)
    return golden


def record(tokenizer: Any, texts: list[str] | None) -> dict[str, Any]:
    """The answers of one tokenizer, to the cases above or to a corpus."""
    if texts is not None:
        ids = tokenizer(texts)["input_ids"]
        cut = {"truncation": True, "max_length": 64}
        return {
            "ids": ids,
            "cut": [row for row in tokenizer(texts, [*texts[1:], texts[0]], **cut)["input_ids"]],  # noqa: C416
            "decoded": tokenizer.batch_decode(ids, skip_special_tokens=True),
            "raw": tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False),
        }
    cases = []
    for arguments in calls():
        sides = ["right"]
        if "max_length" in arguments or "padding" in arguments:
            sides.append("left")
        for side in sides:
            tokenizer.truncation_side = tokenizer.padding_side = side
            cases.append({"side": side, "call": arguments, "answer": dict(tokenizer(**arguments))})
    tokenizer.truncation_side = tokenizer.padding_side = "right"
    rows = tokenizer(TEXTS)["input_ids"]
    options = [
        {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
        for skip in (True, False)
        for clean in (True, False)
    ]
    return {
        "cases": cases,
        "decoded": [
            {"options": one, "answer": tokenizer.batch_decode(rows, **one)}
            for one in [{}, *options]
        ],
        "length": len(tokenizer),
        "special": {
            name: getattr(tokenizer, name + "_token_id")
            for name in ("pad", "eos", "unk", "cls", "mask")
        },
    }


def main() -> None:
    """Writes golden.json into the folder."""
    from transformers import BartTokenizerFast, BertTokenizerFast, T5TokenizerFast

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--texts", type=Path, help="JSON list of strings to record instead of the cases"
    )
    parser.add_argument("--methods", action="store_true", help="record the other methods")
    options = parser.parse_args()
    if options.methods:
        content = json.dumps(
            record_methods(options.folder), ensure_ascii=False, separators=(",", ":"), default=dict
        )
        (options.folder / "golden_methods.json").write_text(content + "\n", "utf-8")
        return
    texts = None
    if options.texts:
        texts = json.loads(options.texts.read_text("utf-8"))
    kinds = {"bert": BertTokenizerFast, "bart": BartTokenizerFast, "t5": T5TokenizerFast}
    golden = {
        name: record(kind.from_pretrained(str(options.folder / name)), texts)
        for name, kind in kinds.items()
    }
    content = json.dumps(golden, ensure_ascii=False, separators=(",", ":"))
    (options.folder / "golden.json").write_text(content + "\n", "utf-8")


if __name__ == "__main__":
    main()
