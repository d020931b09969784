"""The passages of contrastive training: named by the examples or mined from the index, each once.

Letters: B questions, C passages of a batch, P passages of a run, N documents a question, D vector
size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rag_core.training.batch_passages import check_comparable
from rag_core.training.config import TrainingConfig
from rag_core.training.data import Example, PassageName, batches

Search = Callable[[Sequence[Example], int], tuple[np.ndarray, Any, np.ndarray]]
Embed = Callable[[list[str], list[str]], np.ndarray]
# Title, text, row of the index (-1: nothing was found) and vector.
Hit = tuple[str, str, int, np.ndarray]
_SNIPPET = 80


@dataclass
class Pool:
    """Passages, each of which has a number; the same title and text are one passage.

    Attributes:
        titles, texts: P each.
        rows: their numbers in the index; None where it is not known.
        found: vectors (D,) that a search gave along, by the passage's number.
    """

    titles: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    rows: list[int | None] = field(default_factory=list)
    found: dict[int, np.ndarray] = field(default_factory=dict)
    _numbers: dict[tuple[str, str], int] = field(default_factory=dict)

    def number(
        self, title: str, text: str, row: int | None = None, vector: np.ndarray | None = None
    ) -> int:
        """The number of a passage, which is added where it is new."""
        number = self._numbers.setdefault((title, text), len(self.texts))
        if number == len(self.texts):
            self.titles.append(title)
            self.texts.append(text)
            self.rows.append(row)
        if self.rows[number] is None:
            self.rows[number] = row
        if vector is not None:
            self.found[number] = vector
        return number


@dataclass(frozen=True)
class Lesson:
    """What an example is compared with, as numbers of passages.

    Attributes:
        positive: the passage that answers it.
        negatives: hard ones.
    """

    positive: int
    negatives: tuple[int, ...] = ()


@dataclass
class Comparison:
    """The passages of a batch, each once, and what each question is to find among them.

    Attributes:
        passages: C numbers of passages.
        positive: (B,), the column of each question's own passage.
        masked: (B, C) bool, True = no negative for that question: other passages that answer it.
    """

    passages: list[int]
    positive: np.ndarray
    masked: np.ndarray


class Lessons:
    """The examples of a run with their passages.

    Args:
        examples: those without any passage that answers them are left out.
        config: how many hard negatives, and from which ranks they are mined.
        index: an `Index`.
        search: examples and N -> ids (B, N), documents and vectors (B, N, D), by the model as it
            is.
        at_once: questions of a forward pass, of all processes; None = the config's `batch_size`.

    Attributes:
        examples: those that are left.
        left_out: how many are not.
        mined: hard negatives that the index gave.
        pool: their passages.

    Raises:
        ValueError: a passage that the index lacks, no example left, or no negatives in any batch.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        config: TrainingConfig,
        index: Any,
        search: Search,
        at_once: int | None = None,
    ) -> None:
        self.pool = Pool()
        self._at_once = at_once or config.batch_size
        self.mined = 0
        self._config = config
        named = _named_passages(examples, index, self.pool)
        self._of: dict[Example, Lesson] = {}
        poor = [
            example
            for example in dict.fromkeys(examples)
            if named[example][0] is None or len(named[example][1]) < config.hard_negatives
        ]
        for example, (positive, negatives) in named.items():
            if positive is not None:
                self._of[example] = Lesson(positive, negatives[: config.hard_negatives])
        for part in batches(poor, config.batch_size):
            ids, docs, vectors = search(part, config.mine_to)
            for row, example in enumerate(part):
                columns = (docs[row]["title"], docs[row]["text"], ids[row].tolist(), vectors[row])
                self._mine(example, *named[example], zip(*columns, strict=True))
        self.examples = [example for example in examples if example in self._of]
        self.left_out = len(examples) - len(self.examples)
        self._check()
        self._positives: dict[str, set[int]] = {}
        for example, lesson in self._of.items():
            self._positives.setdefault(example.question, set()).add(lesson.positive)

    def _mine(
        self,
        example: Example,
        positive: int | None,
        negatives: tuple[int, ...],
        hits: Iterable[Hit],
    ) -> None:
        """Take what an example does not name from what was found for it, best first."""
        from rag_core.evaluation import stands_in

        pool, config = self.pool, self._config
        known = {(pool.titles[number], pool.texts[number]) for number in negatives}
        if positive is not None:
            known.add((pool.titles[positive], pool.texts[positive]))
        missing = config.hard_negatives - len(negatives)
        wrong: list[Hit] = []
        for rank, hit in enumerate(hits, 1):
            if positive is not None and len(wrong) >= missing:
                break
            title, text, row, _ = hit
            if row < 0 or (title, text) in known:
                continue
            if stands_in(example.answers, text):
                if positive is None:
                    positive = pool.number(*hit)
            elif rank >= config.mine_from and len(wrong) < missing:
                wrong.append(hit)
        if positive is not None:
            mined = [pool.number(*hit) for hit in wrong]
            self.mined += len(mined)
            hard = (*negatives[: config.hard_negatives], *mined)
            self._of[example] = Lesson(positive, tuple(hard))

    def _check(self) -> None:
        config = self._config
        if not self.examples:
            raise ValueError(
                "examples must have a passage that answers them with retriever_loss="
                f"'contrastive', got none among {self.left_out}: they name none, and no answer "
                f"stands in the {config.mine_to} passages found for each. Name them (positive), or "
                "search deeper (mine_to)"
            )
        lonely = [example for example in self.examples if not self._of[example].negatives]
        if self._at_once == 1 and lonely:
            raise ValueError(
                "batch_size must be at least 2 where examples have no hard negatives, got 1 with "
                f"{len(lonely)} such examples, the first {lonely[0].question!r:.{_SNIPPET}}. The "
                "passages of the other questions are what a question is compared with; or set "
                "hard_negatives"
            )

    def compare(self, examples: Sequence[Example]) -> Comparison:
        """The passages of a batch of B examples.

        Raises:
            ValueError: no question has a passage to be told from its own.
        """
        lessons = [self._of[example] for example in examples]
        columns: dict[int, int] = {}
        for lesson in lessons:
            for number in (lesson.positive, *lesson.negatives):
                columns.setdefault(number, len(columns))
        masked = np.zeros((len(examples), len(columns)), bool)
        for row, (example, lesson) in enumerate(zip(examples, lessons, strict=True)):
            for number in self._positives[example.question] - {lesson.positive}:
                if number in columns:
                    masked[row, columns[number]] = True
        check_comparable(
            masked,
            f"{len(examples)} questions, the first {examples[0].question!r:.{_SNIPPET}}",
            "Set a larger batch_size, or hard_negatives",
        )
        positive = np.array([columns[lesson.positive] for lesson in lessons])
        return Comparison(list(columns), positive, masked)

    def facts(self) -> dict[str, Any]:
        """What tells them from others: their number and a digest."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(repr(self._of[example]).encode())
        for passage in zip(self.pool.titles, self.pool.texts, strict=True):
            digest.update(repr(passage).encode())
        return {"passages": len(self.pool.texts), "passages_sha256": digest.hexdigest()}

    def texts(self, passages: Iterable[int]) -> tuple[list[str], list[str]]:
        """Titles and texts of passages by their numbers."""
        numbers = list(passages)
        titles = [self.pool.titles[number] for number in numbers]
        return titles, [self.pool.texts[number] for number in numbers]

    def vectors(self, index: Any, embed: Embed) -> np.ndarray:
        """The vectors (P, D) of all passages, as the index has them or embedded once.

        Args:
            index: an `Index`.
            embed: titles and texts -> vectors; asked for those that the index does not give.
        """
        pool = self.pool
        vectors = dict(pool.found)
        if len(vectors) < len(pool.texts):
            _find_rows(index, pool)
        if hasattr(index, "vectors_of"):
            wanted = [n for n, row in enumerate(pool.rows) if row is not None and n not in vectors]
            rows = np.array([pool.rows[number] for number in wanted], np.int64)
            if wanted:
                vectors.update(zip(wanted, index.vectors_of(rows), strict=True))
        missing = [number for number in range(len(pool.texts)) if number not in vectors]
        if missing:
            vectors.update(zip(missing, embed(*self.texts(missing)), strict=True))
        return np.stack([vectors[number] for number in range(len(pool.texts))])


def _find_rows(index: Any, pool: Pool) -> None:
    """Looks for passages of which only the text is known."""
    from rag_core.evaluation import scan_passages

    unknown = {
        (title, text): number
        for number, (title, text) in enumerate(zip(pool.titles, pool.texts, strict=True))
        if pool.rows[number] is None
    }
    if not unknown or not isinstance(index, Sized):
        return
    for row, (title, text, _) in enumerate(scan_passages(index)):
        number = unknown.get((title, text))
        if number is not None:
            pool.rows[number] = row


def _named_passages(
    examples: Sequence[Example], index: Any, pool: Pool
) -> dict[Example, tuple[int | None, tuple[int, ...]]]:
    """The positive and the negatives that examples name, as numbers of passages."""
    names = [name for example in examples for name in example.passages()]
    texts = _texts_of([name for name in names if not isinstance(name, tuple)], index)

    def number(name: PassageName) -> int:
        if isinstance(name, tuple):
            return pool.number(*name)
        return pool.number(*texts[name])

    named: dict[Example, tuple[int | None, tuple[int, ...]]] = {}
    for example in examples:
        positive = None
        if example.positive is not None:
            positive = number(example.positive)
        elif example.passage is not None and example.answerable:
            positive = number(example.passage)
        negatives = dict.fromkeys(map(number, example.negatives))
        named[example] = (positive, tuple(n for n in negatives if n != positive))
    return named


def _texts_of(names: Sequence[int | str], index: Any) -> dict[int | str, tuple[str, str, int]]:
    """Title, text and row of passages that are named by their row or id.

    Raises:
        ValueError: the index has no such passage.
    """
    from rag_core.evaluation import scan_passages

    found: dict[int | str, tuple[str, str, int]] = {}
    if any(isinstance(name, str) for name in names):
        wanted = set(names)
        for row, (title, text, id) in enumerate(scan_passages(index)):
            if id in wanted:
                found[id] = (title, text, row)
    size = len(index) if isinstance(index, Sized) else None
    rows = [name for name in dict.fromkeys(names) if isinstance(name, int)]
    rows = [row for row in rows if size is None or 0 <= row < size]
    if rows:
        [columns] = index.get_doc_dicts(np.array([rows], np.int64))
        for place, row in enumerate(rows):
            found[row] = (columns["title"][place], columns["text"][place], row)
    missing = [name for name in dict.fromkeys(names) if name not in found]
    if missing:
        raise ValueError(
            f"positive and negatives must name passages of the knowledge base, got {len(missing)} "
            f"that it lacks, the first {missing[0]!r}. A whole number is a row, a text the id that "
            "a passage carries; or give title and text"
        )
    return found
