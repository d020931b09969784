"""RagModel and its heads: contexts, outputs, switches, bad input.

Losses and files have tests of their own.
"""

import itertools

import numpy as np
import pytest
import torch

from rag_torch.rag import RagModel, RagTokenForGeneration
from tests.support.rag_models import (
    HEADS,
    LABELS,
    QUESTIONS,
    B,
    N,
    Retriever,
    S,
    V,
    build,
    close,
    config,
    given_contexts,
)


@torch.no_grad()
def test_outputs_of_retrieval():
    retriever = Retriever()
    model = build(RagTokenForGeneration, retriever=retriever)
    mask = QUESTIONS != 0
    out = model(QUESTIONS, mask, decoder_input_ids=LABELS, output_retrieved=True, output_attentions=True,
                output_hidden_states=True)  # fmt: skip
    vectors = model.question_encoder(QUESTIONS, mask)[0]
    close(out.question_encoder_last_hidden_state, vectors)
    close(out.doc_scores, torch.einsum("bd,bnd->bn", vectors, retriever.embeds.double()))
    assert retriever.asked[1].dtype == np.float32
    assert retriever.asked[2:] == (None, N, "pt")
    present = set(out.keys())
    assert present == set(vars(out)) - {"loss"}
    plain = model(QUESTIONS, mask, decoder_input_ids=LABELS)
    gone = [
        "retrieved_doc_embeds",
        "retrieved_doc_ids",
        "context_input_ids",
        "context_attention_mask",
    ]
    assert not set(gone) & set(plain.keys())
    assert [len(out.question_enc_hidden_states), len(out.generator_enc_hidden_states)] == [2, 2]
    assert len(out.generator_dec_hidden_states) == 3


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_switches_of_config_and_call(kind):
    model = build(
        kind, return_dict=False, output_attentions=True, output_hidden_states=True, use_cache=False
    )
    found = model(**given_contexts(), decoder_input_ids=LABELS)
    assert isinstance(found, tuple)
    out = model(**given_contexts(), decoder_input_ids=LABELS, return_dict=True)
    assert len(found) == len(out)
    assert out.generator_cross_attentions is not None
    assert out.generator_dec_hidden_states is not None
    assert out.past_key_values is None
    off = model(
        **given_contexts(),
        decoder_input_ids=LABELS,
        return_dict=True,
        output_attentions=False,
        use_cache=True,
    )
    assert off.generator_cross_attentions is None
    assert len(off.past_key_values) == 2


@pytest.mark.parametrize("generator", ["bart", "t5"])
@torch.no_grad()
def test_stepwise_forward(generator):
    model = build(RagTokenForGeneration, generator)
    contexts = given_contexts()
    whole = model(**contexts, decoder_input_ids=LABELS, do_marginalize=True).logits
    past, states, steps = None, None, []
    for column in range(5):
        inputs = (
            contexts
            if states is None
            else {k: v for k, v in contexts.items() if k != "context_input_ids"}
        )
        out = model(
            **inputs, encoder_outputs=states, past_key_values=past, decoder_input_ids=LABELS[:, column : column + 1],
            do_marginalize=True,
        )  # fmt: skip
        past, states = out.past_key_values, (out.generator_enc_last_hidden_state,)
        steps.append(out.logits)
    close(torch.cat(steps, 1), whole)


def test_contexts_are_all_or_none():
    contexts = given_contexts()
    for model in (build(), build(retriever=Retriever())):
        for count in (1, 2):
            for names in itertools.combinations(contexts, count):
                with pytest.raises(ValueError, match="together or not at all"):
                    model(QUESTIONS, labels=LABELS, **{name: contexts[name] for name in names})
    with pytest.raises(
        ValueError,
        match="context_input_ids, context_attention_mask and doc_scores must all be given",
    ):
        build()(QUESTIONS, labels=LABELS)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"doc_scores": torch.zeros(B, 2 * N)}, r"must be \(B, n_docs\) with n_docs = 3, got shape \(2, 6\)"),
        ({"context_input_ids": torch.ones(4, S, dtype=torch.long)}, r"2 \* 3 = 6 rows .* got shape \(4, 7\)"),
        ({"context_attention_mask": torch.ones(6, 3)}, r"shape of context_input_ids, \(6, 7\), got \(6, 3\)"),
        ({"labels": LABELS[:1]}, r"decoder_input_ids must be \(B, T\) with B = 2"),
        ({"n_docs": 2}, "n_docs = 2, got shape"),
        ({"n_docs": 0}, "n_docs must be a positive integer, got 0"),
        ({"encoder_outputs": (torch.zeros(6, S, 12),), "doc_scores": None}, "doc_scores must be given with enc"),
    ],
)  # fmt: skip
def test_wrong_shapes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        build()(**{**given_contexts(), "labels": LABELS, **change})


def test_wrong_questions_are_named():
    model = build(retriever=Retriever())
    for ids, message in (
        (None, "input_ids must be given"),
        (torch.zeros(2, 0, dtype=torch.long), "at least one token"),
    ):
        with pytest.raises(ValueError, match=message):
            model(ids, labels=LABELS)
    with pytest.raises(ValueError, match="attention_mask must have the shape"):
        model(QUESTIONS, torch.ones(2, 3), labels=LABELS)
    with pytest.raises(TypeError, match="unknown arguments: surprise"):
        model(QUESTIONS, labels=LABELS, surprise=1)
    with pytest.raises(TypeError, match="retriever must be callable"):
        model.set_retriever("facebook/rag-token-nq")


@torch.no_grad()
def test_autocast_and_state_dict_and_resizing():
    model = build(dtype=torch.float32, retriever=Retriever())
    want = model(QUESTIONS, labels=LABELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model(QUESTIONS, labels=LABELS)
    assert got.loss.dtype == got.doc_scores.dtype == torch.float32
    close(got.loss, want.loss, 0.1)
    other = RagTokenForGeneration(config(), retriever=Retriever()).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(QUESTIONS, labels=LABELS).loss, want.loss)
    before = model.config
    model.resize_token_embeddings(V + 2)
    assert (model.config.generator.vocab_size, before.generator.vocab_size) == (V + 2, V)
    assert model(QUESTIONS, labels=LABELS).logits.shape[-1] == V + 2
    assert model.shift_tokens_right(LABELS, 2)[0].tolist() == [2, 4, 9, 12, 7]


@torch.no_grad()
def test_trimmed_contexts_change_nothing():
    model = build(RagModel)
    contexts = given_contexts()
    contexts["context_attention_mask"][:, 5:] = 0
    trimmed = model._contexts(**contexts).trimmed()
    assert trimmed.context_input_ids.shape == trimmed.context_attention_mask.shape == (B * N, 5)
    shorter = {
        **contexts,
        **{k: getattr(trimmed, k) for k in ("context_input_ids", "context_attention_mask")},
    }
    full, short = (model(**each, decoder_input_ids=LABELS).logits for each in (contexts, shorter))
    close(full, short)


def test_compiled_forward():
    """BART over given contexts is one graph.

    T5's bucket tables stay outside, so they are NumPy's there too.
    """
    torch._dynamo.reset()
    for generator, whole in (("bart", True), ("t5", False)):
        model = build(RagTokenForGeneration, generator)
        compiled = torch.compile(model, backend="eager", fullgraph=whole)
        got, want = (each(**given_contexts(), labels=LABELS) for each in (compiled, model))
        close(got.loss, want.loss)
        got.loss.sum().backward()
        assert model.generator.lm_head.weight.grad.abs().max() > 0
