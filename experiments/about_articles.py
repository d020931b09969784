"""Real questions that an article answers: the rule by which they are chosen, examples of them.

Of Natural Questions and TriviaQA, as pyserini's wheel has them, those count whose accepted answers
include the title of an article, both normalised as SQuAD's metric does. No retriever and no model
has a say in that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rag_core.demo import Article
from rag_core.evaluation import Question
from rag_core.metrics import normalize_answer
from rag_core.training import Example

# Of the dev files' questions and of the clues, so many that no stage is trained on and no figure is
# of: how sure an answer is, is learned from them.
KEPT_APART = 200
# "Mercury (planet)" is asked for as "Mercury".
_QUALIFIER = re.compile(r" \(.*\)$")


class Titles:
    """The articles of a corpus by what people call them.

    Args:
        titles: of all articles.
    """

    def __init__(self, titles: Iterable[str]) -> None:
        self._titles: dict[str, list[str]] = {}
        for title in titles:
            self._titles.setdefault(normalize_answer(short_title(title)), []).append(title)

    def answering(self, question: Question) -> list[str]:
        """The titles that are an accepted answer, in the order of the answers."""
        if question.patterns:
            return []
        names = [normalize_answer(answer) for answer in question.answers]
        found = [title for name in names for title in self._titles.get(name, [])]
        return list(dict.fromkeys(found))


def short_title(title: str) -> str:
    """A title without what tells namesakes apart."""
    return _QUALIFIER.sub("", title)


def questions_about(
    titles: Iterable[str], questions: Iterable[Question]
) -> list[tuple[Question, list[str]]]:
    """Those of the questions that articles with these titles answer, each with the titles."""
    articles = Titles(titles)
    pairs = ((question, articles.answering(question)) for question in questions)
    return [(question, answering) for question, answering in pairs if answering]


def asked_about(articles: Sequence[Article], questions: Iterable[Question]) -> list[Example]:
    """An example for each of these questions that one of these articles answers; the answer is the
    first one's title, the positive its passage.
    """
    texts = {article.title: article.text for article in articles}
    return [
        Example(question.question, (short_title(title),), positive=(title, texts[title]))
        for question, (title, *_) in questions_about(texts, questions)
    ]
