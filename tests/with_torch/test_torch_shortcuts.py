"""Work that is left out changes no number.

Contexts by their length, candidates by their shared beginnings.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from rag_core.config.rag import BertConfig
from rag_core.generation import rescoring
from rag_core.generation.candidates import prefix_tree
from rag_torch import engine, packing, seq2seq, step_scores
from rag_torch.attention import key_mask
from rag_torch.bert import BertEncoder
from rag_torch.marginalize import token_log_probs
from rag_torch.rag import RagSequenceForGeneration
from rag_torch.step_scores import best_candidates, marginal_scores
from tests.support.rag_models import BERT, GENERATING, LABELS, build, close, given_contexts

RAGGED = [
    [1] * 7,
    [1, 1, 0, 0, 0, 0, 0],
    [0, 0, 1, 1, 1, 0, 0],
    [0] * 7,
    [1, 0, 1, 1, 0, 1, 0],
    [1] * 4 + [0] * 3,
]


@pytest.mark.parametrize("generator", ["bart", "t5"])
@pytest.mark.parametrize("kind", GENERATING)
def test_contexts_by_length_give_the_same_loss_gradients_and_answers(monkeypatch, kind, generator):
    model, given = build(kind, generator), given_contexts()
    given["context_attention_mask"] = torch.tensor(RAGGED)
    seen = []
    for size in (2**18, 1):
        monkeypatch.setattr(seq2seq, "_BUCKET_CPU", size)
        model.zero_grad()
        out = model(**given, labels=LABELS, reduce_loss=True)
        out.loss.backward()
        grads = [p.grad.clone() for p in model.generator.parameters() if p.grad is not None]
        answers = model.generate(**given, num_beams=2, max_length=6)
        again = model.generator(
            given["context_input_ids"], torch.tensor(RAGGED), LABELS.repeat(3, 1), use_cache=True
        )
        seen.append(
            (out.loss, out.logits, grads, answers, again.logits, again.past_key_values[0][2].shape)
        )
        assert out.generator_enc_last_hidden_state.shape == (6, 7, 12)
    close(*[each[:3] for each in seen])
    assert torch.equal(*[each[3] for each in seen])
    close(*[each[4] for each in seen])
    assert seen[0][5] == seen[1][5]


@pytest.fixture
def packed(monkeypatch):
    """Has an entry for each time that an encoder computed without padding."""
    times, mask = [], packing.Packing.mask
    monkeypatch.setattr(
        packing.Packing, "mask", lambda self, *bias: times.append(1) or mask(self, *bias)
    )
    return times


@pytest.mark.parametrize("generator", ["bart", "t5"])
@pytest.mark.parametrize("kind", GENERATING)
def test_contexts_without_padding_give_the_same_loss_gradients_and_answers(
    monkeypatch, packed, kind, generator
):
    model, given, seen = build(kind, generator), given_contexts(), []
    given["context_attention_mask"] = (
        torch.arange(7) < torch.tensor([7, 2, 5, 1, 6, 4])[:, None]
    ).long()
    for call in (2**17, 0):
        monkeypatch.setattr(packing, "_CALL", call)
        model.zero_grad()
        out = model(**given, labels=LABELS, reduce_loss=True)
        out.loss.backward()
        grads = [p.grad.clone() for p in model.generator.parameters() if p.grad is not None]
        seen.append(
            (out.loss, out.logits, grads, model.generate(**given, num_beams=2, max_length=6))
        )
        assert bool(packed) == (call == 0)
    close(*[each[:3] for each in seen])
    assert torch.equal(*[each[3] for each in seen])


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
def test_texts_without_padding_give_the_same_vectors_and_gradients(monkeypatch, packed, pooling):
    model, seen = BertEncoder(BertConfig(**BERT, pooling=pooling)).double(), []
    ids = torch.arange(1, 16).reshape(3, 5)
    mask = (torch.arange(5) < torch.tensor([2, 5, 1])[:, None]).long()
    for call in (2**17, 0):
        monkeypatch.setattr(packing, "_CALL", call)
        model.zero_grad()
        vectors = model(ids, mask)[0]
        vectors[:, :3].sum().backward()
        seen.append((vectors, [p.grad.clone() for p in model.parameters()]))
        assert bool(packed) == (call == 0)
    close(*seen)


@torch.no_grad()
@pytest.mark.parametrize("generator", ["bart", "t5"])
def test_bfloat16_and_autocast_pack_contexts_too(monkeypatch, generator):
    monkeypatch.setattr(packing, "_CALL", 0)
    given, options = given_contexts(), {"num_beams": 2, "max_length": 6}
    given["context_attention_mask"] = (
        torch.arange(7) < torch.tensor([7, 2, 5, 1, 6, 4])[:, None]
    ).long()
    given["doc_scores"] = given["doc_scores"].float()
    for kind in GENERATING:
        model = build(kind, generator, dtype=torch.float32)
        want = model(**given, labels=LABELS).loss
        with torch.autocast("cpu", torch.bfloat16):
            got, answers = model(**given, labels=LABELS).loss, model.generate(**given, **options)
        half = model.to(torch.bfloat16)
        close((got, half(**given, labels=LABELS).loss), (want, want), 0.2)
        assert len(answers) == len(half.generate(**given, **options)) == len(given["doc_scores"])


def test_each_row_goes_with_rows_of_like_length():
    calls = []

    def function(ids, mask):
        calls.append(tuple(ids.shape))
        return ids[..., None] * mask[..., None]

    mask = torch.tensor([[1] * length + [0] * (9 - length) for length in (9, 2, 8, 1, 3, 9)])
    ids = torch.arange(6 * 9).reshape(6, 9)
    assert torch.equal(seq2seq.by_length(function, ids, mask, 10)[..., 0], ids * mask)
    assert calls == [(4, 8), (1, 9), (1, 9)]
    calls.clear()
    seq2seq.by_length(function, ids, mask, 54)
    assert calls == [(6, 9)]


@pytest.mark.parametrize("generator", ["bart", "t5"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_shared_beginnings_are_scored_as_whole_candidates(monkeypatch, generator, smoothing):
    model = build(RagSequenceForGeneration, generator, label_smoothing=smoothing)
    options = {
        "num_beams": 4,
        "num_return_sequences": 6,
        "max_length": 7,
        "return_dict_in_generate": True,
    }
    by_prefix = model.generate(**given_contexts(), **options)
    monkeypatch.setattr(engine, "_BLOCK", 1)
    monkeypatch.setattr(rescoring, "_PREFIXES", 1)
    one_by_one = model.generate(**given_contexts(), **options)
    monkeypatch.setattr(type(model.generator), "native", False)
    whole = model.generate(**given_contexts(), **options)
    for each in (by_prefix, one_by_one):
        assert torch.equal(each.sequences, whole.sequences)
        close(each.sequences_scores, whole.sequences_scores)


def test_a_tree_holds_each_beginning_once():
    tokens = np.array([[2, 5, 6, 7], [2, 5, 8, 0], [2, 5, 6, 9], [3, 0, 0, 0]])
    tree = prefix_tree(tokens, np.array([4, 3, 4, 1]))
    assert tree.tokens.tolist() == [2, 3, 5, 6, 8, 7, 9]
    assert tree.positions.tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert tree.nodes.tolist() == [[0, 2, 3, 5], [0, 2, 4, 0], [0, 2, 3, 6], [1, 0, 0, 0]]
    assert [np.flatnonzero(row).tolist() for row in tree.continues] == [
        [0], [1], [0, 2], [0, 2, 3], [0, 2, 4], [0, 2, 3, 5], [0, 2, 3, 6]
    ]  # fmt: skip


def test_marginal_scores_by_probabilities_are_those_by_logarithms():
    draw = torch.Generator().manual_seed(3)
    logits, priors = (
        torch.randn(2, 3, 4, 50, generator=draw) * 4,
        torch.randn(2, 3, generator=draw).log_softmax(1),
    )
    priors[0, 1] = -torch.inf
    close(marginal_scores(logits, priors), token_log_probs(logits, priors), 1e-5)
    # too unlikely for a float32 probability; impossible
    logits[..., 7], logits[0, :, 1, 8] = -200.0, -torch.inf
    close(marginal_scores(logits, priors), token_log_probs(logits, priors), 1e-5)
    assert marginal_scores(logits, priors)[0, 1, 8].isneginf()


@pytest.mark.parametrize("levels", [3, 10**6])
def test_the_best_of_each_run_hold_the_best_of_all(monkeypatch, levels):
    scores = torch.randint(levels, (5, 1003), generator=torch.Generator().manual_seed(2)).float()
    want = best_candidates(scores, 6)
    monkeypatch.setattr(step_scores, "_RUN", 16)
    got = best_candidates(scores, 6)
    for mine, other in zip(got, want, strict=True):
        assert torch.equal(mine.sort().values, other.sort().values)


@torch.no_grad()
def test_rows_read_by_themselves_attend_to_the_same():
    draw = torch.Generator().manual_seed(5)
    query, key, value = (torch.randn(3, 2, length, 4, generator=draw) for length in (5, 9, 9))
    for lengths, alone in (([9, 2, 4], True), ([9, 0, 4], False), ([9, 9, 9], False)):
        mask = key_mask(torch.arange(9) < torch.tensor(lengths)[:, None])
        want = mask.attend(query, key, value)[0]
        by_row = mask.by_row(2**17)
        assert getattr(by_row, "lengths", None) == (tuple(lengths) if alone else None)
        close(by_row.attend(query, key, value)[0], want, 1e-6)
        seen, weights = by_row.attend(query, key, value, need_weights=True)
        close(seen, want, 1e-6)
        close(weights @ value, want, 1e-6)
    for mask in (key_mask(torch.tensor([[0, 1], [1, 0]])), key_mask(None)):
        assert mask.by_row(2**17) is mask


@pytest.mark.parametrize("prompt", [None, [[2, 9, 4], [2, 5, 6]]])
@pytest.mark.parametrize("generator", ["bart", "t5"])
@pytest.mark.parametrize("kind", GENERATING)
def test_a_shared_cache_gives_what_whole_prefixes_give(kind, generator, prompt):
    model, options = (
        build(kind, generator),
        {"num_beams": 3, "max_length": 9, "eos_token_id": [3, 7, 11, 15, 19, 2]},
    )
    options |= {"pad_token_id": 1, "early_stopping": True, "length_penalty": 0.0}
    if prompt is not None:
        options["decoder_input_ids"] = torch.tensor(prompt)
    seen = [model.generate(**given_contexts(), **options, use_cache=use) for use in (True, False)]
    assert torch.equal(*seen)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("kind", GENERATING)
def test_a_step_waits_for_its_candidates_and_for_nothing_else(monkeypatch, kind, num_beams):
    """P7: values and places of the best, one read each.

    Any other read would be another wait for a GPU.
    """
    model, given = build(kind, "bart"), given_contexts()
    reads = []

    def watched(name):
        real = getattr(torch.Tensor, name)

        def read(self, *args, **kwargs):
            reads.append(name)
            return real(self, *args, **kwargs)

        return read

    for name in (
        "cpu",
        "item",
        "tolist",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "nonzero",
        "__array__",
    ):
        monkeypatch.setattr(torch.Tensor, name, watched(name))

    def read_in(tokens):
        reads.clear()
        model.generate(**given, num_beams=num_beams, min_length=tokens, max_length=tokens)
        return Counter(reads)

    short = read_in(5)
    more = read_in(11) - short
    # yes or no: is there a tie; and on a CPU alone, where it is free, whether shortcuts hold
    assert more.pop("__bool__", 0) <= 6 * 3
    assert more == {"cpu": 6 * 2}
