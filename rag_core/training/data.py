"""What is trained on, and in which order.

The order is a pure function of the seed and the step number, which is what makes a resumed run
equal an uninterrupted one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from rag_core.hub import check_text, parse_object, read_lines

# (title, text), or of a passage of the knowledge base its row, or the id that it carries.
PassageName = tuple[str, str] | int | str
# Keys of lines that other readers know.
_FOREIGN = ({"positive_ctxs"}, {"golden_answers"}, {"input", "output"}, {"data"}, {"Data"})


@dataclass(frozen=True)
class Example:
    """A question with its accepted answers, the first of which is trained on.

    Attributes:
        question: as typed.
        answers: at least one.
        passage: (title, text) to answer from; None = the documents that are retrieved.
        answerable: False says that the passage does not hold the answer: the generator is then to
            predict its mask token in place of every token of the answer, so that with RAG the
            passage leaves the word to others.
        positive: for contrastive training a passage that answers the question: (title, text), its
            row in the knowledge base, or the id that it carries there. None = the best that is
            retrieved and holds an answer.
        negatives: passages that do not, but look like it; as many as `hard_negatives` asks for are
            taken, the first ones.
    """

    question: str
    answers: tuple[str, ...]
    passage: tuple[str, str] | None = None
    answerable: bool = True
    # Runs that began before are known by what is shown of an example.
    positive: PassageName | None = field(default=None, repr=False)
    negatives: tuple[PassageName, ...] = field(default=(), repr=False)

    def passages(self) -> tuple[PassageName, ...]:
        """The positive and the negatives that are named."""
        if self.positive is None:
            return self.negatives
        return (self.positive, *self.negatives)


def read_examples(path: str | PathLike[str]) -> list[Example]:
    """Read a qa.jsonl: one `{"question": ..., "answer": ...}` a line; "answer" may be a list,
    "answers" is a synonym.

    A line may bring its own `"passage": {"title": ..., "text": ...}`, which is then read in place
    of retrieved ones, and say with `"answerable": false` that the answer is not in it; a
    `"positive"` passage and a list of `"negatives"` for contrastive training, each with title and
    text or as `{"id": ...}` (see `Example`).

    Files of other formats are read, too (docs/evaluation.md has the table): of DPR's json the
    first of `positive_ctxs` is the positive, `hard_negative_ctxs` and then `negative_ctxs` are the
    negatives.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a bad line (the message starts with file:line), or no line at all.
        OSError: it cannot be read.
    """
    examples: list[Example] = []
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file; name a jsonl of questions and answers")
    if _is_foreign(Path(path)):
        return _foreign_examples(Path(path))
    for number, line in read_lines(path):
        if line.strip():
            place = f"{path}:{number}"
            examples.append(_example(parse_object(line, place, first=not examples), place))
    if not examples:
        raise ValueError(
            f"{path}: no question in it; expected lines like "
            + '{"question": "...", "answer": "..."}'
        )
    return examples


def _is_foreign(path: Path) -> bool:
    """Whether a file is of another format than ours."""
    if path.is_dir():
        return True
    line = next((line.strip() for _, line in read_lines(path) if line.strip()), "")
    if line.startswith("{"):
        try:
            keys = set(json.loads(line))
        except (ValueError, RecursionError):
            return line == "{" or any(f'"{key}":' in line for key in ("data", "Data"))
        return any(layout <= keys for layout in _FOREIGN)
    return path.suffix != ".jsonl" and bool(line)


def _foreign_examples(path: Path) -> list[Example]:
    from rag_core.evaluation import read_questions

    examples = []
    for question in read_questions(path):
        if not question.answers or question.patterns:
            kind = "regular expressions" if question.patterns else "none"
            raise ValueError(
                f"{path}: answers must be texts to learn, got {kind} for question "
                f"{question.id}, {question.question!r:.80}. Leave such questions out"
            )
        contexts = question.contexts
        positives = [(c.title, c.text) for c in contexts if c.kind == "positive"]
        negatives = [
            (context.title, context.text)
            for kind in ("hard_negative", "negative")
            for context in contexts
            if context.kind == kind
        ]
        examples.append(
            Example(
                question.question,
                question.answers,
                positive=next(iter(positives), None),
                negatives=tuple(negatives),
            )
        )
    return examples


def _example(record: dict[str, Any], place: str) -> Example:
    question, answers = record.get("question"), record.get("answer", record.get("answers"))
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(question, str) or not question.strip():
        raise ValueError(
            f'{place}: "question" must be a text that is not empty, got {_came(record, "question")}'
        )
    if (
        not isinstance(answers, list)
        or not answers
        or not all(isinstance(a, str) and a.strip() for a in answers)
    ):
        came = _came(record, "answer", "answers")
        raise ValueError(
            f'{place}: "answer" must be a text or a list of texts, none of them empty, got {came}'
        )
    passage = record.get("passage")
    if passage is not None:
        if not isinstance(passage, dict) or not isinstance(passage.get("text"), str):
            raise ValueError(
                f'{place}: "passage" must be an object with title and text, got {passage!r}'
            )
        title = passage.get("title")
        if not isinstance(title, str | None):
            raise ValueError(f'{place}: "title" of "passage" must be a text, got {title!r}')
        passage = (title or "", passage["text"])
    answerable = record.get("answerable", True)
    if not isinstance(answerable, bool) or (passage is None and not answerable):
        raise ValueError(
            f'{place}: "answerable" must be true, or false beside a "passage", got {answerable!r}'
        )
    positive = record.get("positive")
    if positive is not None:
        positive = _passage_name(positive, place, '"positive"')
    negatives = record.get("negatives", [])
    if not isinstance(negatives, list):
        raise ValueError(f'{place}: "negatives" must be a list of passages, got {negatives!r:.80}')
    negatives = tuple(_passage_name(value, place, 'each of "negatives"') for value in negatives)
    for name, texts in (("question", [question]), ("answer", answers), ("passage", passage or ())):
        for text in texts:
            check_text(text, place, f'"{name}"')
    return Example(
        question.strip(),
        tuple(a.strip() for a in answers),
        passage,
        answerable,
        positive,
        negatives,
    )


def _passage_name(value: Any, place: str, name: str) -> PassageName:
    """A passage that a line names."""
    if isinstance(value, dict):
        id, title, text = value.get("id"), value.get("title"), value.get("text")
        if isinstance(text, str) and text.strip() and isinstance(title, str | None):
            return (check_text(title or "", place, name), check_text(text, place, name))
        if isinstance(id, int | str) and not isinstance(id, bool) and "text" not in value:
            return id
    raise ValueError(
        f'{place}: {name} must be an object with title and text, or with the "id" of a passage of the knowledge '
        f"base, got {value!r:.80}"
    )


def _came(record: dict[str, Any], *names: str) -> str:
    """What came under the first of the names that is there; the keys where none is."""
    for name in names:
        if name in record:
            return f"{record[name]!r:.80}"
    return f"an object with the keys {sorted(record)!r:.120}. Rename one"


class DataOrder:
    """Which examples each forward pass sees: a fresh permutation every epoch, known from the seed
    alone.

    Args:
        size: number of examples.
        seed: of the permutations.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def rows(self, start: int, count: int) -> list[int]:
        """Examples number `start` to `start + count` of the endless sequence."""
        return [self._row(position) for position in range(start, start + count)]

    def _row(self, position: int) -> int:
        epoch, offset = divmod(position, self.size)
        if epoch != self._epoch:
            self._epoch, self._permutation = (
                epoch,
                np.random.default_rng((self.seed, epoch)).permutation(self.size),
            )
        return int(self._permutation[offset])


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive pieces of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def measured_questions(
    examples: Sequence[Example], validation: Sequence[Example], size: int, sample: int
) -> list[Example]:
    """What a run is measured on: `size` of the validation questions at most, or where there are none
    `sample` of those trained on.
    """
    return list(validation[:size]) or spread(examples, sample)


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """At most `count` of the examples, evenly chosen."""
    total = len(examples)
    if total <= count:
        return list(examples)
    return [examples[number * total // count] for number in range(count)]
