"""Answers and probabilities of `evaluate` in both backends: rows are those of `answer`, figures
those of the rows, and the gold answers' probability is what the heads' losses say.
"""

import numpy as np
import pytest

from rag_core.backends import load_backend, to_numpy
from rag_core.evaluation.calibration import probability
from rag_core.modeling import Reading, find_passages
from tests.support.evaluations import QUESTIONS, small_model, sweep


@pytest.fixture(scope="module")
def model(backend, tmp_path_factory):
    return small_model(backend, tmp_path_factory.mktemp("tokenizers"))


def test_rows_are_what_answer_says_and_figures_are_those_of_rows(model) -> None:
    found = sweep(model, batch_size=16)
    names = list(found.report["variants"])
    assert names == ["token-docs1-beams1", "sequence-thorough-docs1-beams1",
                     "token-docs3-beams1", "sequence-thorough-docs3-beams1"]  # fmt: skip
    rows = found.answers["token-docs3-beams1"]
    answers = model.answer([question.question for question in QUESTIONS[:4]], n_docs=3)
    for row, answer in zip(rows, answers, strict=False):
        assert (row["question"], row["text"]) == (answer.question, answer.text)
        assert row["log_probability"] == pytest.approx(answer.log_probability, rel=1e-4)
        for passage, theirs in zip(row["passages"], answer.passages, strict=True):
            assert passage["id"] == theirs.id and passage["title"] == theirs.title
            assert passage["prior"] == pytest.approx(theirs.prior, rel=1e-4)
            assert passage["posterior"] == pytest.approx(theirs.posterior, rel=1e-3, abs=1e-5)
    figures = found.figures("token-docs3-beams1")
    for name in ("exact_match", "f1", "log_likelihood", "in_passages"):
        mean = np.mean([row["scores"][name] for row in rows])
        assert figures[name]["mean"] == pytest.approx(mean)
        assert figures[name]["low"] <= mean <= figures[name]["high"]
        assert figures[name]["n"] == len(QUESTIONS)
    sure = [np.exp(answer.log_probability) for answer in answers]
    assert [probability(row) for row in rows[: len(sure)]] == pytest.approx(sure, rel=1e-4)
    right = [row["scores"]["exact_match"] for row in rows]
    brier = np.mean((np.array([probability(row) for row in rows]) - right) ** 2)
    trusted = found.calibration("token-docs3-beams1")
    assert trusted["brier_score"]["mean"] == pytest.approx(brier)
    assert "| probability of answers" in found.markdown()
    assert found.report["questions"]["answerable"] == len(QUESTIONS)
    assert found.figures("token-docs3-beams1", of="answerable") == figures
    assert "10 questions, 10 answerable" in repr(found) and "exact match" in repr(found)
    texts = [row["text"] for row in found.passages]
    assert len({row["id"] for row in found.passages}) == len(texts)


def test_a_calibrated_model_says_how_sure_it_is(model, monkeypatch) -> None:
    asked = [question.question for question in QUESTIONS[:3]]
    assert {answer.confidence for answer in model.answer(asked)} == {None}
    line = {"token": [0.25, 1.5, -0.5]}
    monkeypatch.setattr(model.config, "answer_calibration", line)
    found = sweep(model, n_docs=3)
    answers = model.answer(asked, n_docs=3)
    for row, answer in zip(found.answers["token-docs3-beams1"], answers, strict=False):
        logit = 0.25 * answer.log_probability + 1.5 * row["doc_score"] - 0.5
        assert answer.confidence == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-4)
        assert row["confidence"] == pytest.approx(answer.confidence, rel=1e-4)
        best = Reading(model._engine, model, answer.question).contexts.doc_scores
        assert row["doc_score"] == pytest.approx(float(to_numpy(best).max()), rel=1e-4)
    assert found.confidence("token-docs3-beams1")["brier_score"]["n"] == len(QUESTIONS)
    assert found.confidence("sequence-thorough-docs3-beams1") == {}
    assert "| token-docs3-beams1, confidence" in found.markdown()


def test_gold_answers_have_the_probability_that_the_loss_says(model) -> None:
    """The loss of a head is -log p(y|x) of its labels."""
    questions = [question.question for question in QUESTIONS[:3]]
    answers = ["stone river", "moon", "war king"]
    reading = Reading(model._engine, model, questions, n_docs=3)
    tokenizer = model.retriever.tokenizer
    labels = tokenizer.encode_targets(answers, padding=True, return_tensors="np")["input_ids"]
    contexts = reading.contexts
    rag = load_backend("torch" if "torch" in type(model).__module__ else "tf")
    for head, kind in (("token", "Token"), ("sequence", "Sequence")):
        net = getattr(rag, f"Rag{kind}ForGeneration")(
            model.config, model.question_encoder, model.generator
        ).eval()
        loss = net(
            context_input_ids=contexts.context_input_ids,
            context_attention_mask=contexts.context_attention_mask,
            doc_scores=contexts.doc_scores,
            labels=rag.as_tensor(labels),
            n_docs=3,
        ).loss
        found = reading.log_likelihoods([[answer, "fish"] for answer in answers], head)
        wanted = -to_numpy(loss)
        np.testing.assert_allclose([row[0] for row in found], wanted, rtol=2e-5)
        # more tokens are less probable, and nothing depends on the others' lengths
        alone = reading.log_likelihoods([["moon"] for _ in answers], head)
        assert alone[1][0] == pytest.approx(found[1][0], rel=1e-5)


def test_the_nearest_passages_of_many_are_those_of_few(model) -> None:
    questions = [question.question for question in QUESTIONS[:4]]
    many = Reading(model._engine, model, questions, n_docs=5).nearest(2)
    few = Reading(model._engine, model, questions, n_docs=2)
    found = find_passages(model._engine, model, questions, 2)
    np.testing.assert_array_equal(found.ids, few.passages.ids)
    np.testing.assert_allclose(found.scores, few.passages.scores, rtol=1e-5)
    assert [doc["text"] for doc in found.docs] == [doc["text"] for doc in few.passages.docs]
    for head in ("token", "sequence"):
        for one, other in zip(many.answers(head), few.answers(head), strict=True):
            assert one[0].text == other[0].text
            assert one[0].log_probability == pytest.approx(other[0].log_probability, rel=1e-5)
            assert [p.id for p in one[0].passages] == [p.id for p in other[0].passages]
