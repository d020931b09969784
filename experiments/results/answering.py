"""Where an answer stands in passages, and what stands there instead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rag_core.evaluation import match_tokens
from rag_core.metrics import normalize_answer

SHORTEST = 3
_NAME = re.compile(r"[A-Z][\w'\u2019-]*(?: (?:(?:of|the|de|von|van) )?[A-Z][\w'\u2019-]*)*")
_NUMBER = re.compile(r"\d[\d,.]*\d|\d")
_ASKS_NUMBER = re.compile(
    r"(?:when|how (?:many|much|old|long|far|tall)|(?:in )?wh(?:at|ich) year)\b"
)


@dataclass(frozen=True)
class RightAnswer:
    """An accepted answer as it stands in retrieved passages.

    Attributes:
        question: asked.
        answers: accepted.
        text: the one that stands in the first of the passages, as it stands there.
        passages: ids of those that hold it.
    """

    question: str
    answers: tuple[str, ...]
    text: str
    passages: tuple[int, ...]

    def replaced(self, text: str, other: str) -> str:
        """A text with another answer in this one's place."""
        return _places(self.text).sub(lambda _: other, text)

    @property
    def kind(self) -> tuple[bool, bool]:
        """What it may be exchanged for: something alike."""
        return any(sign.isdigit() for sign in self.text), self.text[0].isupper()


def _places(answer: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)", re.IGNORECASE)


def right_answer(row: dict[str, Any], texts: dict[int, str]) -> RightAnswer | None:
    """The answer of a row of retrieved.jsonl, letter by letter in a passage; None where no passage
    that was found has one of `SHORTEST` letters or more.

    Args:
        row: with "question", "answers" and "passages".
        texts: of passages, by id.
    """
    ids = [passage["id"] for passage in row["passages"]]
    for id in ids:
        for answer in row["answers"]:
            match = _places(answer).search(texts[id])
            if match and len(answer) >= SHORTEST:
                holding = tuple(other for other in ids if _places(answer).search(texts[other]))
                return RightAnswer(row["question"], tuple(row["answers"]), match[0], holding)
    return None


def swapped(
    candidates: Sequence[RightAnswer], pairs: int
) -> Iterator[tuple[RightAnswer, RightAnswer]]:
    """Pairs that may exchange their answers: alike, different, and without a passage in common with
    any other pair.
    """
    waiting: dict[Any, RightAnswer] = {}
    touched: set[int] = set()
    made = 0
    for one in candidates:
        if touched.intersection(one.passages):
            continue
        other = waiting.get(one.kind)
        if other is None:
            waiting[one.kind] = one
            touched.update(one.passages)
            continue
        known = {normalize_answer(answer) for answer in other.answers}
        if known.intersection(map(normalize_answer, one.answers)):
            continue
        touched.update(one.passages)
        del waiting[one.kind]
        yield other, one
        made += 1
        if made == pairs:
            return


def extracted(question: str, title: str, text: str) -> str:
    """An answer without a model: the first thing of a passage that the question does not name.

    Where a number is asked for, the first number of the text; else the title, or the first run of
    capitalised words.
    """
    asked = set(match_tokens(question))
    candidates = [title, *_NAME.findall(text)]
    if _ASKS_NUMBER.match(question.lower()):
        candidates = _NUMBER.findall(text)
    for candidate in candidates:
        if not asked.intersection(match_tokens(candidate)):
            return candidate
    return title
