"""Losses of the two heads by hand, and scores of documents.

Missing ones, half precision, gradients.
"""

import pytest
import torch

from rag_core.config.rag import DPRConfig
from rag_torch import marginalize as marginal
from rag_torch.bert import DPRContextEncoder
from rag_torch.rag import RagModel, RagSequenceForGeneration, RagTokenForGeneration
from tests.support.rag_models import (
    BERT,
    GENERATING,
    LABELS,
    QUESTIONS,
    B,
    D,
    N,
    Retriever,
    V,
    build,
    close,
    given_contexts,
)


def by_hand(logits, scores, labels, pad, kind):
    """The losses in loops over probabilities (paper, section 2.1), with the reference's place of
    p(z|x).
    """
    priors = torch.softmax(scores, 1)
    probs = torch.softmax(logits.view(B, N, *logits.shape[1:]), -1)
    losses = []
    for b in range(B):
        target = [*labels[b, 1:].tolist(), pad]
        scored = [(t, token) for t, token in enumerate(target) if token not in (pad, -100)]
        if kind is RagTokenForGeneration:
            steps = [
                sum(priors[b, d] * probs[b, d, t, token] for d in range(N)) for t, token in scored
            ]
            losses.append(-sum(torch.log(step) for step in steps))
        else:
            whole = [
                torch.stack([probs[b, d, t, token] for t, token in scored]).prod() for d in range(N)
            ]
            seconds = any(t == 1 for t, _ in scored)
            losses.append(
                -torch.log(sum((priors[b, d] if seconds else 1) * whole[d] for d in range(N)))
            )
    return torch.stack(losses)


@pytest.mark.parametrize("kind", GENERATING)
@pytest.mark.parametrize("generator", ["bart", "t5"])
@torch.no_grad()
def test_loss_is_the_papers(kind, generator):
    model = build(kind, generator)
    pad = model.config.generator.pad_token_id
    labels = LABELS.masked_fill(LABELS == 1, pad)
    out = model(**given_contexts(), labels=labels)
    assert out.past_key_values is None
    close(out.loss, by_hand(out.logits, out.doc_scores, labels, pad, kind))
    close(model(**given_contexts(), labels=labels, reduce_loss=True).loss, out.loss.sum())


@pytest.mark.parametrize("kind", GENERATING)
@torch.no_grad()
def test_minus_100_counts_as_pad(kind):
    model = build(kind)
    want = model(**given_contexts(), labels=LABELS)
    got = model(**given_contexts(), labels=LABELS.masked_fill(LABELS == 1, -100))
    assert torch.equal(got.loss, want.loss)
    direct = model.get_nll(want.logits, want.doc_scores, LABELS.masked_fill(LABELS == 1, -100))
    assert torch.equal(direct, want.loss)


@torch.no_grad()
def test_target_of_one_token_leaves_the_documents_out():
    """Kept from the reference (Q12).

    Without a second scored token RAG-Sequence's loss ignores p(z|x).
    """
    model = build(RagSequenceForGeneration)
    contexts = given_contexts()
    losses = [
        model(**{**contexts, "doc_scores": contexts["doc_scores"] * f}, labels=LABELS[:, :2]).loss
        for f in (1, 9)
    ]
    close(losses[0], losses[1])
    longer = [
        model(**{**contexts, "doc_scores": contexts["doc_scores"] * f}, labels=LABELS).loss
        for f in (1, 9)
    ]
    assert (longer[0] - longer[1]).abs().min() > 1e-3


@torch.no_grad()
def test_bos_is_excluded_only_if_every_row_starts_with_it():
    model = build(RagSequenceForGeneration)
    starts, mixed = LABELS.clone(), LABELS.clone()
    starts[:, 1] = mixed[0, 1] = 0
    for labels, changes in ((starts, True), (mixed, False)):
        plain = model(**given_contexts(), labels=labels).loss
        without = model(**given_contexts(), labels=labels, exclude_bos_score=True).loss
        assert torch.equal(plain, without) != changes


@pytest.mark.parametrize("kind", GENERATING)
@torch.no_grad()
def test_label_smoothing(kind):
    model = build(kind, label_smoothing=0.1)
    out = model(**given_contexts(), labels=LABELS)
    log_probs = out.logits.log_softmax(-1).view(B, N, 5, V)
    priors = out.doc_scores.log_softmax(1)
    mask = torch.cat([LABELS[:, 1:], torch.ones(B, 1, dtype=torch.long)], 1) == 1
    if kind is RagTokenForGeneration:
        total = (
            (log_probs + priors[:, :, None, None]).logsumexp(1).sum(-1).masked_fill(mask, 0).sum(1)
        )
    else:
        log_probs[:, :, 1] += priors[:, :, None]
        total = log_probs.sum(-1).masked_fill(mask[:, None], 0).sum(2).logsumexp(1)
    nll = by_hand(out.logits, out.doc_scores, LABELS, 1, kind)
    close(out.loss, 0.9 * nll - 0.1 / V * total)


@torch.no_grad()
def test_marginalised_logits_are_a_distribution():
    model = build()
    out = model(**given_contexts(), decoder_input_ids=LABELS, do_marginalize=True)
    assert out.logits.shape == (B, 5, V)
    close(out.logits.exp().sum(-1), torch.ones(B, 5))
    close(model(**given_contexts(), labels=LABELS, do_marginalize=True).logits, out.logits)


@pytest.mark.parametrize("kind", GENERATING)
def test_a_missing_document_counts_for_nothing(kind):
    model = build(kind)
    contexts = given_contexts()
    contexts["doc_scores"][:, 2] = -torch.inf
    loss = model(**contexts, labels=LABELS).loss
    rows = [0, 1, 3, 4]
    fewer = {k: v[rows] if k != "doc_scores" else v[:, :2] for k, v in contexts.items()}
    close(loss, model(**fewer, labels=LABELS, n_docs=2).loss)
    short = model(**contexts, labels=LABELS[:, :2]).loss
    close(short, model(**fewer, labels=LABELS[:, :2], n_docs=2).loss)
    loss.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_doc_mask_of_the_retriever_reaches_the_scores():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    model = build(RagModel, retriever=Retriever(doc_mask=mask))
    scores = model(QUESTIONS, decoder_input_ids=LABELS).doc_scores
    assert torch.equal(scores.isneginf(), ~mask)
    assert torch.equal(scores.softmax(1) == 0, ~mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_are_float32(dtype):
    """Scores near 75 that half precision cannot tell apart (D6)."""
    question = torch.full((1, 768), 0.3125, dtype=dtype)
    docs = torch.full((1, 2, 768), 0.3125, dtype=dtype)
    docs[0, 1, 0] += 0.25
    scores = marginal.doc_scores(question, docs)
    assert scores.dtype == torch.float32
    assert scores.tolist() == [[75.0, 75.078125]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert marginal.doc_scores(question.float(), docs.float()).tolist() == [[75.0, 75.078125]]
    assert (
        marginal.token_log_probs(torch.zeros(1, 2, 3, 5, dtype=dtype), scores).dtype
        == torch.float32
    )


@pytest.mark.parametrize("kind", GENERATING)
def test_gradients_reach_question_encoder_and_generator(kind):
    model = build(kind, retriever=Retriever()).train()
    model(QUESTIONS, labels=LABELS, reduce_loss=True).loss.backward()
    without = {
        name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0
    }
    # A key bias moves all scores of a query alike.
    assert all(name.endswith(("k_proj.bias", "key.bias")) for name in without), without


def test_a_live_document_encoder_scores_and_learns(tmp_path):
    documents = torch.randint(1, 19, (B * N, 5), generator=torch.Generator().manual_seed(2))
    retriever = Retriever()
    model = build(RagTokenForGeneration, retriever=retriever)
    encoder = DPRContextEncoder(DPRConfig(**BERT)).double().eval()
    model.set_context_encoder_for_training(encoder)
    with pytest.raises(ValueError, match="returned no tokenized_doc_ids"):
        model(QUESTIONS, labels=LABELS)
    tokenized = {
        "tokenized_doc_ids": documents,
        "tokenized_doc_attention_mask": torch.ones_like(documents),
    }
    retriever.extra = tokenized
    out = model(QUESTIONS, labels=LABELS)
    vectors = encoder(documents)[0].view(B, N, D)
    close(
        out.doc_scores, torch.einsum("bd,bnd->bn", out.question_encoder_last_hidden_state, vectors)
    )
    close(model._contexts(QUESTIONS).doc_scores, out.doc_scores)
    out.loss.sum().backward()
    assert encoder.ctx_encoder.bert_model.embeddings.word_embeddings.weight.grad.abs().max() > 0
    model.save_pretrained(tmp_path)
    again = RagSequenceForGeneration.from_pretrained(
        tmp_path, dtype=torch.float64, retriever=retriever
    )
    close(again(QUESTIONS, labels=LABELS).doc_scores, out.doc_scores)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_log_probs_in_pieces_have_the_gradients_of_the_plain_formula(dtype, monkeypatch):
    monkeypatch.setattr(marginal, "_PIECE_CPU", 40)  # two rows of logits at a time
    draw = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 3, 4, 17, dtype=dtype, generator=draw, requires_grad=True)
    target = torch.randint(0, 17, (2, 4), generator=draw)
    found = marginal.target_log_probs(logits, target)
    index = target[:, None, :, None].expand(2, 3, 4, 1)
    wanted = marginal.widen(logits).log_softmax(-1).gather(-1, index)[..., 0]
    tolerance = {
        "atol": 1e-12 if dtype == torch.float64 else 1e-6 if dtype == torch.float32 else 1e-2,
        "rtol": 1e-6,
    }
    torch.testing.assert_close(found, wanted, **tolerance)
    gradients = [
        torch.autograd.grad(each.sin().sum(), logits, create_graph=twice)[0]
        for each, twice in (
            (wanted, False),
            (marginal.target_log_probs(logits, target), False),
            (found, True),
        )
    ]
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], **tolerance)
    if dtype == torch.float64:
        assert torch.autograd.gradgradcheck(lambda x: marginal.target_log_probs(x, target), logits)


def test_what_hardly_anything_is_learned_of_has_no_gradient() -> None:
    """A CPU is many times slower over numbers below the normal range."""
    far = torch.tensor([0.0, -1.0, -40.0, -80.0], dtype=torch.float64)
    logits = torch.stack([far, far.roll(1)]).reshape(1, 2, 1, -1)  # (B, N, T, V)
    weights = torch.tensor([[[1.0], [1e-25]]], dtype=torch.float64)  # posteriors

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        given = logits.to(dtype).requires_grad_()
        log_probs = marginal.target_log_probs(given, torch.tensor([[1]]))
        (log_probs * weights.to(dtype)).sum().backward()
        return given.grad

    single = gradient(torch.float32)
    size = single[single != 0].abs()
    assert len(size) == 3 and size.min() > 1e-19
    torch.testing.assert_close(single.double(), gradient(torch.float64), rtol=1e-6, atol=1e-19)
