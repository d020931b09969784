"""Record the prompts that transformers 4.37.2 builds, with small tokenizers, into
tests/data/prompts.json.

Run with the environment of conformance/requirements-oracle.txt:  python
conformance/record_prompts.py
The texts are out of copyright (before 1900) or written for this file.
"""

import json
import tempfile
from pathlib import Path

import faiss
import numpy as np
from datasets import Dataset
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer, SentencePieceUnigramTokenizer
from transformers import (
    BartConfig,
    BartTokenizerFast,
    DPRConfig,
    DPRQuestionEncoderTokenizerFast,
    RagConfig,
    RagRetriever,
    T5Config,
    T5TokenizerFast,
)
from transformers.models.rag.retrieval_rag import CustomHFIndex

TARGET = Path(__file__).parent.parent / "tests" / "data" / "prompts.json"
SIZE = 8

PASSAGES = [
    (
        '"The Gettysburg Address"',
        "Four score and seven years ago our fathers brought forth on this continent, a new "
        "nation, conceived in Liberty, and dedicated to the proposition that all men are created "
        "equal.",
    ),
    (
        "Alice's Adventures in Wonderland",
        "Alice was beginning to get very tired of sitting by her sister on the bank, and of "
        "having nothing to do:  once or twice she had peeped into the book her sister was "
        "reading, but it had no pictures or conversations in it, “and what is the use of a book,” "
        "thought Alice “without pictures or conversations?”",
    ),
    (
        '"Moby-Dick',
        "Call me Ishmael. Some years ago—never mind how long precisely—having little or no money "
        "in my purse, and nothing particular to interest me on shore, I thought I would sail "
        "about a little and see the watery part of the world. It is a way I have of driving off "
        "the spleen and regulating the circulation.",
    ),
    (
        'Pride and Prejudice"',
        "It is a truth universally acknowledged, that a single man in possession of a good "
        "fortune, must be in want of a wife.    However little known the feelings or views of "
        "such a man may be",
    ),
    (
        '""Origin of Species""',
        "When on board H.M.S. 'Beagle,' as naturalist, I was much struck with certain facts in "
        "the distribution of the inhabitants of South America, and in the geological relations of "
        "the present to the past inhabitants of that continent.",
    ),
    (
        "Constitution",
        "We the People of the United States, in Order to form a more perfect Union, establish "
        "Justice, insure domestic Tranquility, provide for the common defence, promote the "
        "general Welfare, and secure the Blessings of Liberty to ourselves and our Posterity, do "
        "ordain and establish this Constitution.",
    ),
    (
        '"',
        "A title that is one quote .",
    ),
    (
        "",
        "",
    ),
    (
        "São Paulo / 東京",
        "Café naïve ﬁ … \xa0no-break\u200bzero 🐋 ½ Ωμέγα\ttab\nline // separator / inside",
    ),
    (
        "  Two  blanks  ",
        " lead   three    four ",
    ),
    (
        "Frankenstein",
        "You will rejoice to hear that no disaster has accompanied the commencement of an "
        "enterprise which you have regarded with such evil forebodings. I arrived here yesterday, "
        "and my first task is to assure my dear sister of my welfare and increasing confidence in "
        "the success of my undertaking.",
    ),
    (
        "A <s>special</s> title",
        "Marks <pad> such </s> as [SEP] these are in the text.",
    ),
]
QUESTIONS = [
    "Who was Alice's sister?",
    "What do we the people establish?  And why isn't it justice ?",
    'Call me — who, in 1851 (or 3.5 % later), is "Ishmael"?',
    "東京 São Paulo 🐋 xyzzyq?",
    "It doesn't matter: they've, I'm, you're, he'll, she'd n't do not .",
    "A single man in possession of a good fortune must be in want of what, when, where, and for "
    "how long, o reader?",
]
CASES = [
    {"generator": "bart", "n_docs": 5, "max_length": 300},
    {"generator": "bart", "n_docs": 12, "max_length": 40},
    {"generator": "bart", "n_docs": 1, "max_length": 96, "prefix": ""},
    {"generator": "bart", "n_docs": 3, "max_length": 96, "prefix": "answer  the question: "},
    {"generator": "bart", "n_docs": 2, "max_length": 64, "title_sep": " | ", "doc_sep": "  ## "},
    {"generator": "t5", "n_docs": 3, "max_length": 128},
    {"generator": "t5", "n_docs": 12, "max_length": 48, "generator_prefix": "question: "},
    {
        "generator": "t5",
        "n_docs": 2,
        "max_length": 128,
        "generator_prefix": "question: ",
        "prefix": "trivia: ",
    },
]


def main() -> None:
    """Build the tokenizers and the index, run every case, write the file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        question, generators = tokenizers(folder)
        rng = np.random.default_rng(0)
        vectors = rng.standard_normal((len(PASSAGES), SIZE)).astype(np.float32)
        queries = rng.standard_normal((len(QUESTIONS), SIZE)).astype(np.float32)
        titles, texts = zip(*PASSAGES, strict=True)
        data = Dataset.from_dict({"title": titles, "text": texts, "embeddings": list(vectors)})
        data.add_faiss_index(
            "embeddings", string_factory="Flat", metric_type=faiss.METRIC_INNER_PRODUCT
        )
        question_ids = question(QUESTIONS, padding=True)["input_ids"]
        record = {
            "passages": PASSAGES,
            "questions": QUESTIONS,
            "vectors": vectors.round(6).tolist(),
            "queries": queries.round(6).tolist(),
            "question_ids": question_ids,
            "question_texts": question.batch_decode(question_ids, skip_special_tokens=True),
            "files": {
                str(p.relative_to(folder)): p.read_text("utf-8")
                for p in sorted(folder.rglob("*.*"))
                if p.is_file()
            },
            "cases": [],
        }
        for case in CASES:
            kinds = {"t5": T5Config, "bart": BartConfig}
            generator = kinds[case["generator"]](prefix=case.get("generator_prefix"))
            config = RagConfig(
                question_encoder=DPRConfig().to_dict(),
                generator=generator.to_dict(),
                max_combined_length=case["max_length"],
                index_name="custom",
                **{key: case[key] for key in ("title_sep", "doc_sep") if key in case},
            )
            tokenizer = generators[case["generator"]]
            retriever = RagRetriever(config, question, tokenizer, index=CustomHFIndex(SIZE, data))
            out = retriever(question_ids, queries, prefix=case.get("prefix"), n_docs=case["n_docs"])
            rows = [sum(mask) for mask in out["context_attention_mask"]]
            ids = [row[:length] for row, length in zip(out["context_input_ids"], rows, strict=True)]
            if any(
                set(row[n:]) - {tokenizer.pad_token_id}
                for row, n in zip(out["context_input_ids"], rows, strict=True)
            ):
                raise ValueError("padding is expected on the right")
            record["cases"].append(case | {"doc_ids": out["doc_ids"].tolist(), "input_ids": ids})
        retriever.set_ctx_encoder_tokenizer(question)
        out = retriever(question_ids, queries, n_docs=2)
        record["tokenized_doc_ids"] = out["tokenized_doc_ids"]
        record["tokenized_doc_attention_mask"] = out["tokenized_doc_attention_mask"]
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")
    print(TARGET, TARGET.stat().st_size, "bytes")


def tokenizers(folder: Path) -> tuple:
    """Train small tokenizers on the passages and save them as transformers does."""
    lines = [text for passage in PASSAGES for text in passage] + QUESTIONS[:1]
    words = BertWordPieceTokenizer(lowercase=True)
    words.train_from_iterator(lines, vocab_size=400, show_progress=False)
    words.save_model(str(folder))
    question = DPRQuestionEncoderTokenizerFast(
        str(folder / "vocab.txt"), do_lower_case=True, model_max_length=512
    )
    (folder / "vocab.txt").unlink()
    pieces = ByteLevelBPETokenizer()
    marks = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces.train_from_iterator(lines, vocab_size=600, special_tokens=marks, show_progress=False)
    pieces.save_model(str(folder))
    bart = BartTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    unigram = SentencePieceUnigramTokenizer()
    marks = ["<pad>", "</s>", "<unk>"]
    unigram.train_from_iterator(
        lines, vocab_size=400, special_tokens=marks, unk_token="<unk>", show_progress=False
    )
    unigram.save(str(folder / "unigram.json"))
    t5 = T5TokenizerFast(tokenizer_file=str(folder / "unigram.json"), extra_ids=0)
    (folder / "unigram.json").unlink()
    question.save_pretrained(folder / "question")
    bart.save_pretrained(folder / "bart")
    t5.save_pretrained(folder / "t5")
    for path in folder.rglob("*.*"):
        if path.name in ("vocab.json", "merges.txt", "vocab.txt") and path.is_file():
            path.unlink()
    return question, {"bart": bart, "t5": t5}


if __name__ == "__main__":
    main()
