"""Citations: what each token wrote of an answer, and which passage carries which words."""

import json

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from rag_core.modeling.answers import _posterior
from rag_core.modeling.citations import token_spans
from rag_core.outputs import Answer, Passage
from rag_core.tokenization import words_of

END, START = b"", None
TEXTS = st.text(st.sampled_from("ab ,.é✓漢字🙂e\u0301\n"), max_size=14)


def decode(tokens, skip_special_tokens):
    """What a byte-level tokenizer makes of tokens that are bytes; a special one has none."""
    assert skip_special_tokens
    return b"".join(token or b"" for token in tokens).decode("utf-8", "replace")


def cut(text, cuts):
    letters = text.encode()
    ends = sorted({cut % (len(letters) + 1) for cut in cuts} | {len(letters)})
    starts = [0, *ends]
    return [letters[first:last] for first, last in zip(starts, ends, strict=False) if first < last]


@given(TEXTS, st.lists(st.integers(0, 60), max_size=8))
@example("a漢字 b", [2, 5])  # the middle token holds bytes of both
@example("🙂", [1, 2, 3])
@settings(max_examples=60, deadline=None)
def test_a_token_wrote_the_characters_of_which_it_wrote_a_byte(text, cuts):
    pieces = cut(text, cuts)
    row = [START, *pieces, END]
    said = text.strip()
    spans = token_spans(decode, row, range(1, len(row)), said)
    owner = [n for n, letter in enumerate(text) for _ in letter.encode()]
    blanks = len(text) - len(text.lstrip())
    at = 0
    for piece, span in zip(pieces, spans, strict=False):
        touched = owner[at : at + len(piece)]
        at += len(piece)
        wanted = touched[0] - blanks, touched[-1] + 1 - blanks
        assert span == tuple(np.clip(wanted, 0, len(said)))
    assert spans[-1] == (len(said), len(said))


@st.composite
def answers(draw):
    text = draw(TEXTS).strip()
    row = [START, *cut(text, draw(st.lists(st.integers(0, 60), max_size=8))), END]
    n_docs = draw(st.integers(1, 3))
    weights = st.lists(st.floats(0.01, 1), min_size=n_docs, max_size=n_docs)
    shares = [np.array(draw(weights)) for _ in row[1:]]
    posteriors = [(share / share.sum()).tolist() for share in shares]
    means = np.mean(posteriors, axis=0).tolist()
    passages = [Passage(7 + n, f"t{n}", "", 0.0, 0.5, mean) for n, mean in enumerate(means)]
    spans = token_spans(decode, row, range(1, len(row)), text)
    return Answer("q", text, -1.0, passages, [""] * len(spans), posteriors, spans)


@given(answers(), st.floats(0.05, 1))
@settings(max_examples=60, deadline=None)
def test_parts_are_whole_words_and_their_probability_the_mean_of_their_tokens(answer, threshold):
    words = [answer.text[word.start : word.end] for word in words_of(answer.text, None)]
    for citation in answer.citations(threshold):
        start, end = citation.start, citation.end
        assert 0 <= start < end <= len(answer.text)
        assert citation.text == answer.text[start:end] == citation.text.strip()
        assert [w for w in words if w in citation.text]
        assert {start, end} <= {at for word in words_of(answer.text, None) for at in word[:2]}
        assert citation.id == answer.passages[citation.passage].id
        writers = [n for n, (a, b) in enumerate(answer.token_spans) if a < end and start < b]
        shares = [answer.token_posteriors[n][citation.passage] for n in writers]
        assert citation.probability == pytest.approx(np.mean(shares))
        assert citation.probability >= threshold - 1e-9


@given(answers(), st.floats(0.05, 1))
@settings(max_examples=40, deadline=None)
def test_every_word_that_a_passage_carries_is_cited_once(answer, threshold):
    """Seen character by character, where no two words share a token."""
    spans = answer.token_spans
    words = words_of(answer.text, None)
    writers = [{n for n, (a, b) in enumerate(spans) if a < w.end and w.start < b} for w in words]
    assume(sum(map(len, writers)) == len(set().union(*writers)))
    cited = answer.citations(threshold)
    for place in range(len(answer.passages)):
        for word, tokens in zip(words, writers, strict=True):
            share = np.mean([answer.token_posteriors[n][place] for n in tokens])
            covering = [c for c in cited if c.passage == place and c.start <= word.start < c.end]
            assert len(covering) == (share >= threshold)


def said(text, spans, posteriors):
    passages = [Passage(n, "", "", 0.0, 0.5, p) for n, p in enumerate(np.mean(posteriors, 0))]
    return Answer("q", text, -1.0, passages, [""] * len(spans), posteriors, spans)


def test_neighbours_are_joined_and_a_word_is_not_parted():
    spans = [(0, 1), (1, 3), (3, 7), (7, 11), (11, 11)]  # W|ar| and| Sun|</s>
    posteriors = [[1.0, 0.0], [0.5, 0.5], [0.9, 0.1], [0.0, 1.0], [0.0, 1.0]]
    answer = said("War and Sun", spans, posteriors)
    cited = answer.citations()
    assert [(c.passage, c.text) for c in cited] == [(0, "War and"), (1, "War"), (1, "Sun")]
    assert [c.probability for c in cited] == pytest.approx([0.8, 0.25, 1.0])
    assert [c.text for c in answer.citations(0.5)] == ["War and", "Sun"]
    told = json.loads(json.dumps(answer.to_dict()))
    assert told["citations"][2] == {
        "passage": 1,
        "id": 1,
        "probability": 1.0,
        "start": 8,
        "end": 11,
        "text": "Sun",
    }


def test_an_answer_of_one_passage_is_one_part():
    passages = [Passage(4, "", "", 0.0, 0.5, 0.7), Passage(5, "", "", 0.0, 0.5, 0.3)]
    answer = Answer("q", "War and Peace", -1.0, passages)
    assert [(c.id, c.start, c.end, c.probability) for c in answer.citations()] == [
        (4, 0, 13, 0.7),
        (5, 0, 13, 0.3),
    ]
    assert [c.id for c in answer.citations(0.5)] == [4]
    assert Answer("q", "", -1.0, passages).citations() == []
    assert Answer("q", "text", -1.0).citations() == []


@pytest.mark.parametrize("wrong", [0, -0.1, 1.1, float("nan")])
def test_a_threshold_is_a_probability(wrong):
    with pytest.raises(ValueError, match=r"^threshold must be a number above 0 and at most 1, got"):
        Answer("q", "text", -1.0).citations(wrong)
    with pytest.raises(TypeError, match=r"^threshold must be"):
        Answer("q", "text", -1.0).citations("high")


@pytest.mark.parametrize("in_sequence", [True, False])
def test_log_probs_of_tokens_add_up_at_every_length(in_sequence):
    draw = np.random.default_rng(0)
    joint = -draw.exponential(1.0, (3, 4))
    log_priors = np.array([np.log(0.7), np.log(0.3), -np.inf])
    total, *_, of_tokens = _posterior(in_sequence, joint, log_priors)
    np.testing.assert_allclose(np.sum(of_tokens), total)
    for length in range(1, 5):
        shorter, *_ = _posterior(in_sequence, joint[:, :length], log_priors)
        np.testing.assert_allclose(np.sum(of_tokens[:length]), shorter)
