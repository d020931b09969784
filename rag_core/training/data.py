"""What is trained on, and in which order.

The order is a pure function of the seed and the step number, which is what makes a resumed run
equal an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from rag_core.hub import check_text, parse_object, read_lines


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
    """

    question: str
    answers: tuple[str, ...]
    passage: tuple[str, str] | None = None
    answerable: bool = True


def read_examples(path: str | PathLike[str]) -> list[Example]:
    """Read a qa.jsonl: one `{"question": ..., "answer": ...}` a line; "answer" may be a list,
    "answers" is a synonym.

    A line may bring its own `"passage": {"title": ..., "text": ...}`, which is then read in place
    of retrieved ones, and say with `"answerable": false` that the answer is not in it (see
    `Example`).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a bad line (the message starts with file:line), or no line at all.
        OSError: it cannot be read.
    """
    examples: list[Example] = []
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file; name a jsonl of questions and answers")
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
    for name, texts in (("question", [question]), ("answer", answers), ("passage", passage or ())):
        for text in texts:
            check_text(text, place, f'"{name}"')
    return Example(question.strip(), tuple(a.strip() for a in answers), passage, answerable)


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


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """At most `count` of the examples, evenly chosen."""
    total = len(examples)
    if total <= count:
        return list(examples)
    return [examples[number * total // count] for number in range(count)]
