"""Parity in CI: the model that you ship answers alike in PyTorch and in TensorFlow.

pip install '.[torch,tf]' pytest      # in a checkout
MODEL=path/or/name pytest examples/parity

Without MODEL it takes the demo's (`dualrag demo` builds it). Copy this file into the tests of your
repository, and parity.yml into .github/workflows; that also runs `dualrag parity`, which compares every
layer, loss and gradient in float64 and says where two frameworks part first.
"""

import os

import pytest

import rag_tf
import rag_torch
from rag_core import RagRetriever

MODEL = os.environ.get("MODEL", "dualrag/demo")
QUESTIONS = [
    "Which epic novel did Leo Tolstoy set during Napoleon's invasion of Russia?",
    "Which planet is known for its rings?",
]


@pytest.mark.parametrize("head", ["RagTokenForGeneration", "RagSequenceForGeneration"])
def test_both_frameworks_give_the_same_answers(head):
    retriever = RagRetriever.from_pretrained(MODEL)
    ours, theirs = (
        getattr(rag, head)
        .from_pretrained(MODEL, retriever=retriever)
        .answer(QUESTIONS, num_beams=4)
        for rag in (rag_torch, rag_tf)  # in this order: torch has to be loaded first
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one.text == other.text
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-3)
        assert [passage.id for passage in one.passages] == [each.id for each in other.passages]
        posteriors = [passage.posterior for passage in other.passages]
        assert [passage.posterior for passage in one.passages] == pytest.approx(
            posteriors, abs=1e-3
        )
