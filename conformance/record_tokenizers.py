"""Records what transformers 4.37.2's fast tokenizers answer: the golden file of the tests, or a whole corpus.

Run with the interpreter of requirements-oracle.txt, from the repository root:

    python conformance/record_tokenizers.py tests/data/tokenizers      # writes golden.json beside the vocabularies
    python conformance/record_tokenizers.py FOLDER --texts texts.json  # the same of a corpus and of real vocabularies

FOLDER holds the tokenizer folders bert, bart and t5. A case is a call's keyword arguments and its answer.
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
PAIRS = [(TEXTS[i], TEXTS[j]) for i, j in ((3, 4), (4, 3), (0, 5), (6, 0), (24, 23), (23, 24), (14, 15), (11, 12))]


def calls() -> list[dict[str, Any]]:
    """Keyword arguments of the recorded calls, besides one text at a time."""
    first, second = [list(side) for side in zip(*PAIRS)]  # noqa: B905 - the oracle runs on Python 3.9 too
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
        listed.append({"text": first, "text_pair": second, "truncation": True, "max_length": length})
    listed.append({"text": first[4:6], "text_pair": second[4:6], "truncation": "only_first", "max_length": 60})
    listed.append({"text": first[4:6], "text_pair": second[4:6], "truncation": "only_second", "max_length": 60})
    return listed


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
        for side in ("right", "left") if "max_length" in arguments or "padding" in arguments else ("right",):
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
        "decoded": [{"options": one, "answer": tokenizer.batch_decode(rows, **one)} for one in [{}, *options]],
        "length": len(tokenizer),
        "special": {name: getattr(tokenizer, name + "_token_id") for name in ("pad", "eos", "unk", "cls", "mask")},
    }


def main() -> None:
    """Writes golden.json into the folder."""
    from transformers import BartTokenizerFast, BertTokenizerFast, T5TokenizerFast

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=Path, help="JSON list of strings to record instead of the cases")
    options = parser.parse_args()
    texts = json.loads(options.texts.read_text("utf-8")) if options.texts else None
    kinds = {"bert": BertTokenizerFast, "bart": BartTokenizerFast, "t5": T5TokenizerFast}
    golden = {name: record(kind.from_pretrained(str(options.folder / name)), texts) for name, kind in kinds.items()}
    content = json.dumps(golden, ensure_ascii=False, separators=(",", ":"))
    (options.folder / "golden.json").write_text(content + "\n", "utf-8")


if __name__ == "__main__":
    main()
