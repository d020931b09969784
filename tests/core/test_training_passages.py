"""The passages that questions are told apart by: named, mined, masked, and refused."""

import numpy as np
import pytest

from rag_core.training.config import TrainingConfig
from rag_core.training.data import Example
from rag_core.training.passages import Lessons

TEXTS = ["a war", "the king", "a song", "the moon", "war and moon", "a fish"]


class Index:
    def __len__(self):
        return len(TEXTS)

    def get_doc_dicts(self, ids):
        return [
            {
                "title": ["t"] * len(row),
                "text": [TEXTS[i] for i in row],
                "id": [f"d{i}" for i in row],
            }
            for row in ids
        ]

    def vectors_of(self, rows):
        return np.eye(len(TEXTS), dtype=np.float32)[rows]


class Search:
    """Finds the passages from the first to the last, whatever is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, examples, n_docs):
        self.asked += [example.question for example in examples]
        ids = np.tile(np.arange(n_docs), (len(examples), 1))
        ids[ids >= len(TEXTS)] = -1
        docs = Index().get_doc_dicts(np.maximum(ids, 0))
        return ids, docs, np.eye(len(TEXTS), dtype=np.float32)[ids]


def lessons(examples, search=None, **settings):
    settings = {"retriever_loss": "contrastive", "mine_to": 6, "batch_size": 2, **settings}
    return Lessons(examples, TrainingConfig(**settings), Index(), search or Search())


def texts_of(found, example):
    lesson = found._of[example]
    numbers = (lesson.positive, *lesson.negatives)
    return [found.pool.texts[number] for number in numbers]


def test_the_best_passage_that_holds_an_answer_is_the_positive_and_others_are_mined():
    asked = Example("which?", ("moon",))
    assert texts_of(lessons([asked]), asked) == ["the moon"]
    found = lessons([asked], hard_negatives=3)
    # "war and moon" holds the answer
    assert texts_of(found, asked) == ["the moon", "a war", "the king", "a song"]
    assert found.mined == 3
    assert texts_of(lessons([asked], hard_negatives=9, mine_from=3), asked) == [
        "the moon", "a song", "a fish",
    ]  # fmt: skip
    few = lessons([asked, Example("none", ("war",))], hard_negatives=1, mine_to=2)
    assert [example.question for example in few.examples] == ["none"] and few.left_out == 1
    assert (few.mined, few.pool.texts) == (1, ["a war", "the king"])


def test_named_passages_come_first_and_nothing_is_searched_that_is_named():
    search = Search()
    asked = Example("q", ("x",), positive=3, negatives=("d2", ("new", "own text"), 3))
    found = lessons([asked], search, hard_negatives=2)
    assert texts_of(found, asked) == ["the moon", "a song", "own text"] and search.asked == []
    embedded = []

    def embed(titles, texts):
        embedded.append((titles, texts))
        return np.ones((len(texts), 6), np.float32)

    vectors = found.vectors(Index(), embed)
    assert embedded == [(["new"], ["own text"])]
    assert [int(row.argmax()) for row in vectors[:2]] == [3, 2] and vectors[2].all()
    found = lessons([asked], search, hard_negatives=3)
    assert texts_of(found, asked)[-1] == "a war" and search.asked == ["q"]
    own = Example("p", ("x",), passage=("t", "a fish"))
    assert texts_of(lessons([own], search), own) == ["a fish"]


def test_a_passage_stands_once_in_a_batch_and_what_answers_a_question_is_no_negative():
    first = Example("q", ("a",), positive=0, negatives=(1,))
    same = Example("q", ("a",), positive=2)  # the same question, another passage
    other = Example("p", ("b",), positive=1, negatives=(("t", "a war"),))
    found = lessons([first, same, other], hard_negatives=1, mine_to=1)
    compared = found.compare([first, same, other])
    texts = [found.pool.texts[number] for number in compared.passages]
    assert texts == ["a war", "the king", "a song"]
    assert compared.positive.tolist() == [0, 2, 1]
    assert compared.masked.tolist() == [
        [False, False, True], [True, False, False], [False, False, False],
    ]  # fmt: skip
    with pytest.raises(ValueError, match="one passage alone for 2 questions, the first 'q'"):
        lessons([first, same]).compare([first, same])


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example("q", ("a",), positive=6), "got 1 that it lacks, the first 6"),
        (Example("q", ("a",), positive=0, negatives=("d9", -1)), "got 2 .* the first 'd9'"),
    ],
)
def test_a_passage_that_the_index_lacks_is_named(example, message):
    with pytest.raises(ValueError, match=message):
        lessons([example])
