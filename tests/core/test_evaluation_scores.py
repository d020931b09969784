"""Scores against hand-counted values and those of the field's libraries, intervals, and what a
fault in each would change.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_core import metrics
from rag_core.evaluation import AnswerFinder, Gold, Question, match_tokens, stands_in
from rag_core.evaluation.intervals import figure, paired
from rag_core.evaluation.scores import (
    answer_scores,
    bleu_counts,
    depths,
    gold_keys,
    gold_scores,
    mistakes,
    rouge_l,
    text_scores,
)


def test_an_answer_stands_in_a_passage_by_words_and_signs() -> None:
    assert match_tokens("J. K. Rowling's caf\u00e9, 1,000") == [
        "j", ".", "k", ".", "rowling", "'", "s", "cafe\u0301", ",", "1", ",", "000",
    ]  # fmt: skip
    text = "The Nobel Prize went to Wilhelm Conrad R\u00f6ntgen in 1901."
    assert stands_in(["Wilhelm Conrad Ro\u0308ntgen"], text)  # another way to write the same
    assert stands_in(["no", "NOBEL prize"], text)
    assert not stands_in(["90"], text)  # a part of a word
    assert not stands_in(["Nobel went"], text) and not stands_in(["Nobel-Prize"], text)
    assert not stands_in(["", " \t"], text) and not stands_in([], text)
    assert stands_in(["1901."], text) and not stands_in(["1901!"], text)


def test_regular_expressions_are_searched_for_with_patience() -> None:
    assert stands_in([r"20\s?,?\s?(32|40)0\s?f(ee|oo)t"], "It is 20,320 Feet high", patterns=True)
    assert not stands_in(["feet$"], "feet high", patterns=True)
    assert stands_in(["^high"], "feet\nhigh", patterns=True)
    with pytest.warns(UserWarning, match="takes more than"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("rag_core.evaluation.matching._PATIENCE", 0.05)
        assert not stands_in([r"(a+)+(b|c)+d$"], "a" * 4000 + "b" * 30 + "x", patterns=True)


WORDS = st.sampled_from(["an", "old", "war", "\u00e9t\u00e9", "1,5", "x", "-"])
TEXTS = st.lists(WORDS, max_size=6).map(" ".join)


@given(answers=st.lists(st.lists(TEXTS, max_size=3), max_size=4), texts=st.lists(TEXTS, max_size=4))
def test_all_answers_are_found_in_one_go(answers, texts) -> None:
    questions = [Question(str(n), "?", tuple(each)) for n, each in enumerate(answers)]
    finder = AnswerFinder(questions)
    for text in texts:
        finder.look_at(text)
    long_enough = [[a for a in each if len(a) >= 3] for each in answers]
    assert finder.found == [any(stands_in(each, text) for text in texts) for each in long_enough]


def test_patterns_are_found_in_one_go() -> None:
    questions = [Question(str(n), "?", (a,), patterns=True) for n, a in enumerate(["ol+d", "new"])]
    finder = AnswerFinder(questions)
    finder.look_at("An OLLD war")
    assert finder.found == [True, False]


# What ir-measures 0.4.3 (trec_eval) gives for these three queries.
QRELS = {"a": {"x", "y"}, "b": {"z"}, "c": {"p", "q", "r"}}
RUNS = {"a": "mxnyo", "b": "mnost", "c": "qmpnr"}
EXPECTED = {
    "gold_recall@1": 0.1111111111111111,
    "gold_precision@1": 0.3333333333333333,
    "gold_hit@1": 0.3333333333333333,
    "gold_recall@5": 0.6666666666666666,
    "gold_precision@5": 0.3333333333333333,
    "gold_mrr": 0.5,
    "gold_r_precision": 0.38888888888888884,
}


def test_retrieval_is_scored_as_trec_eval_does() -> None:
    rows = [gold_scores(list(RUNS[name]), [sorted(gold)], 5) for name, gold in QRELS.items()]
    for name, value in EXPECTED.items():
        assert np.mean([row[name] for row in rows]) == pytest.approx(value), name
    runs, gold = [list(run) for run in RUNS.values()], list(QRELS.values())
    assert metrics.mean_reciprocal_rank(runs, gold) == pytest.approx(0.5)
    assert metrics.r_precision(runs, gold) == pytest.approx(EXPECTED["gold_r_precision"])
    with pytest.raises(ValueError, match="at least one document"):
        metrics.r_precision([["a"]], [[]])


def test_r_precision_counts_pages_once_and_takes_the_best_set() -> None:
    """As KILT (Petroni et al. 2021, section 4.3) describes it."""
    retrieved = ["A", "A", "B"]
    assert gold_scores(retrieved, [["A", "B"]], 3)["gold_r_precision"] == 1.0
    assert gold_scores(retrieved, [["B"], ["A", "C"]], 3)["gold_r_precision"] == 0.5
    assert gold_scores(["C", "A"], [["B"]], 5)["gold_r_precision"] == 0.0
    assert gold_scores([], [["B"]], 5)["gold_recall@5"] == 0.0


def test_recall_by_answer_counts_the_first_passage_that_holds_one() -> None:
    scores = answer_scores([False, False, True, True, False, False])
    assert scores == {
        "answer_recall@1": 0.0,
        "answer_recall@5": 1.0,
        "answer_recall@6": 1.0,
        "answer_mrr": pytest.approx(1 / 3),
    }
    assert answer_scores([False] * 2)["answer_mrr"] == 0.0
    assert depths(5) == [1, 5] and depths(50) == [1, 5, 10, 20, 50]


def test_mistakes_are_of_retrieval_or_of_reading() -> None:
    wrong, right = {"exact_match": 0.0}, {"exact_match": 1.0}
    assert list(mistakes(wrong, [False, False]).values()) == [1.0, 0.0]
    assert list(mistakes(wrong, [False, True]).values()) == [0.0, 1.0]
    assert list(mistakes(right, [False]).values()) == [0.0, 0.0] and mistakes({}, []) == {}


def test_gold_documents_are_told_by_id_or_title() -> None:
    question = Question("1", "?", (), ((Gold("1", "A "), Gold(None, "B")), (Gold("2", None),)))
    assert gold_keys(question, "id") == [["1"], ["2"]]
    assert gold_keys(question, "title") == [["A", "B"]] and gold_keys(question, None) == []


def test_texts_are_scored_as_squad_does() -> None:
    question = Question("1", "?", ("The Eiffel Tower", "Tour Eiffel"))
    scores = text_scores("eiffel tower!", question)
    assert (scores["exact_match"], scores["f1"], scores["contains"]) == (1.0, 1.0, 1.0)
    scores = text_scores("It is the Eiffel Tower, in Paris", question)
    assert (scores["exact_match"], scores["contains"]) == (0.0, 1.0)
    assert scores["f1"] == pytest.approx(2 * 2 / (6 + 2))
    assert text_scores("Eiffel", question)["contains"] == 0.0
    assert metrics.substring_match("anything", ["the"]) == 0.0
    assert text_scores("x", Question("1", "?")) == {}
    pattern = Question("1", "?", (r"19\d\d", "ab|cd"), patterns=True)
    assert text_scores("1984", pattern) == {"exact_match": 1.0, "contains": 1.0}
    assert text_scores("in CD", pattern) == {"exact_match": 0.0, "contains": 1.0}


HYPOTHESES = ["the river flows north", "Leo Tolstoy", "a large city in France", "1969"]
REFERENCES = [
    ["the river runs north", "river flowing north"],
    ["Leo Tolstoy", "Tolstoy"],
    ["a big city in France"],
    ["in 1969"],
]


def test_rouge_and_bleu_are_those_of_their_libraries() -> None:
    from sacrebleu.metrics import BLEU

    pairs = list(zip(HYPOTHESES, REFERENCES, strict=True))
    assert [rouge_l(*pair) for pair in pairs] == pytest.approx([0.75, 1.0, 0.8, 2 / 3])
    counts = [bleu_counts(*pair) for pair in pairs]
    streams = [[row[0] for row in REFERENCES], [row[1] if row[1:] else None for row in REFERENCES]]
    of_library = BLEU().corpus_score(HYPOTHESES, streams).score
    found = figure("bleu", counts, 0)
    assert of_library == pytest.approx(31.584620936478963)
    assert found["mean"] == pytest.approx(of_library / 100)
    assert found["low"] <= found["mean"] <= found["high"]
    assert text_scores("Tolstoy", Question("1", "?", ("Tolstoy",)))["rouge_l"] == 1.0


def test_intervals_are_the_percentile_bootstrap() -> None:
    values = [1, 0, 0, 1, 1, 0, 1, 0, 0, 0] * 5
    found = figure("exact_match", values, 0)
    assert found["mean"] == 0.4 and found["n"] == 50
    # scipy.stats.bootstrap(method="percentile", n_resamples=9999) gives 0.26 and 0.54
    assert found["low"] == pytest.approx(0.26, abs=0.021)
    assert found["high"] == pytest.approx(0.54, abs=0.021)
    assert figure("f1", values, 0) == found
    skewed = [0.9**n for n in range(50)]
    assert figure("f1", skewed, 0) != figure("f1", skewed, 1)
    assert figure("f1", [0.5], 0) == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 1}


def test_a_paired_difference_is_surer_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(400)
    values = (hard < 0.5).astype(float)
    others = (hard < 0.45).astype(float)  # right where the first is, but for a twentieth
    found = paired("exact_match", values, others, 0)
    assert found["difference"] == pytest.approx(values.mean() - others.mean())
    assert 0 < found["low"] < found["difference"] < found["high"] and found["p"] < 0.01
    assert figure("f1", others, 0)["high"] > figure("f1", values, 0)["low"]
    same = paired("exact_match", values, values, 0)
    assert (same["difference"], same["low"], same["high"], same["p"]) == (0.0, 0.0, 0.0, 1.0)
    for count, least in ((1, 1.0), (2, 0.5), (5, 1 / 16)):  # whatever is drawn, all are on one side
        assert paired("exact_match", [1.0] * count, [0.0] * count, 0)["p"] == least
    swapped = paired("exact_match", others, values, 0)
    assert swapped["difference"] == -found["difference"] and swapped["p"] == found["p"]
