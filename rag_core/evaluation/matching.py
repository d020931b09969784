"""Does an answer stand in a passage?

The rule of Karpukhin et al. 2020 (DPR): both are cut into words and signs, in lower case and with
accents taken apart, and the answer's must follow each other among the passage's. Regular
expressions are searched for instead, regardless of case.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import regex

from rag_core.checks import warn
from rag_core.evaluation.questions import Question

# Runs of letters, digits and their marks; else every sign by itself.
_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
_FLAGS = regex.IGNORECASE | regex.MULTILINE
# Seconds for one expression on one text: some take for ever.
_PATIENCE = 2.0
# Shorter answers stand somewhere in every corpus.
SHORTEST = 3
_END = ""


def match_tokens(text: str) -> list[str]:
    """The words and signs by which answers are found."""
    return _TOKEN.findall(unicodedata.normalize("NFD", text).lower())


def stands_in(answers: Iterable[str], text: str, *, patterns: bool = False) -> bool:
    """Whether one of the answers stands in the text.

    Args:
        answers: texts, or regular expressions.
        text: of a passage.
        patterns: whether `answers` are regular expressions.
    """
    if patterns:
        return any(pattern_found(answer, text) for answer in answers)
    joined = _joined(text)
    return any(
        len(wanted) > 2 and wanted in joined for wanted in (_joined(answer) for answer in answers)
    )


def pattern_found(pattern: str, text: str, whole: bool = False) -> bool:
    """Whether a regular expression matches a part of the text, or with `whole` all of it.

    One that takes too long does not, which a warning says.
    """
    compiled = _compiled(pattern)
    look = compiled.search
    if whole:
        look = compiled.fullmatch
    try:
        return look(unicodedata.normalize("NFC", text), timeout=_PATIENCE) is not None
    except TimeoutError:
        warn(
            f"the regular expression {pattern!r:.60} takes more than {_PATIENCE:.0f} s on a text "
            "and counts as not found there"
        )
        return False


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> Any:
    return regex.compile(unicodedata.normalize("NFC", pattern), _FLAGS)


@lru_cache(maxsize=16384)
def _joined(text: str) -> str:
    """Words between blanks: an answer's are then a part of a text's where they stand there."""
    return f" {' '.join(match_tokens(text))} "


class AnswerFinder:
    """Which of many questions have an answer of at least `SHORTEST` characters in some passage.

    Args:
        questions: those without answers are never found.
    """

    def __init__(self, questions: Sequence[Question]) -> None:
        self.found = [False] * len(questions)
        self._words: dict[str, Any] = {}
        self._patterns: list[tuple[int, tuple[str, ...]]] = []
        for number, question in enumerate(questions):
            long_enough = tuple(text for text in question.answers if len(text) >= SHORTEST)
            if question.patterns:
                self._patterns.append((number, long_enough))
                continue
            for answer in long_enough:
                self._add(match_tokens(answer), number)

    def _add(self, tokens: list[str], number: int) -> None:
        if not tokens:
            return
        node = self._words
        for token in tokens:
            node = node.setdefault(token, {})
        node.setdefault(_END, set()).add(number)

    def look_at(self, text: str) -> None:
        """Look for all answers in one more passage."""
        tokens = match_tokens(text)
        for start in range(len(tokens)):
            for numbers in self._endings(tokens, start):
                for number in numbers:
                    self.found[number] = True
                # Once found is enough.
                numbers.clear()
        open_patterns = [entry for entry in self._patterns if not self.found[entry[0]]]
        for number, answers in open_patterns:
            if stands_in(answers, text, patterns=True):
                self.found[number] = True

    def _endings(self, tokens: list[str], start: int) -> Iterator[set[int]]:
        node: Any = self._words
        for place in range(start, len(tokens)):
            node = node.get(tokens[place])
            if node is None:
                return
            if node.get(_END):
                yield node[_END]
