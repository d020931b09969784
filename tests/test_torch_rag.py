"""RagModel and its heads: contexts, losses, scores, gradients, files. Golden values of the reference are elsewhere."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from rag_core.config import BartConfig, BertConfig, DPRConfig, RagConfig, T5Config
from rag_core.parity import seeded_weights
from rag_torch import marginalize as marginal
from rag_torch.bart import BartForConditionalGeneration
from rag_torch.bert import BertEncoder, DPRContextEncoder, DPRQuestionEncoder
from rag_torch.foreign import ForeignEncoder, ForeignGenerator
from rag_torch.rag import RagModel, RagSequenceForGeneration, RagTokenForGeneration

V, N, B, S, D = 23, 3, 2, 7, 12
BART = {
    "vocab_size": V, "d_model": 12, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 24,
    "dropout": 0.0,
}  # fmt: skip
T5 = {
    "vocab_size": V, "d_model": 12, "d_kv": 5, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0,
    "relative_attention_num_buckets": 8, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
}  # fmt: skip
BERT = {
    "vocab_size": 19, "hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
HEADS = [RagModel, RagTokenForGeneration, RagSequenceForGeneration]
GENERATING = HEADS[1:]


def config(generator="bart", **fields):
    part = BartConfig(**BART) if generator == "bart" else T5Config(**T5)
    fields = {"n_docs": N, "max_combined_length": S, "retrieval_vector_size": D} | fields
    return RagConfig.from_question_encoder_generator_configs(DPRConfig(**BERT), part, **fields)


def build(kind=RagTokenForGeneration, generator="bart", dtype=torch.float64, retriever=None, **fields):
    """A model with strong seeded weights, in eval mode."""
    model = kind(config(generator, **fields), retriever=retriever).to(dtype)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = model.config.generator.tie_word_embeddings
    weights = seeded_weights({n: s for n, s in shapes.items() if not (tied and n.endswith("lm_head.weight"))}, 5)
    model.load_state_dict({name: torch.tensor(w) for name, w in weights.items()}, strict=False)
    return model.eval()


def given_contexts(dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, V, (B * N, S), generator=draw)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    scores = torch.randn(B, N, generator=draw, dtype=torch.float64).to(dtype)
    return {"context_input_ids": ids, "context_attention_mask": mask, "doc_scores": scores}


LABELS = torch.tensor([[4, 9, 12, 7, 2], [5, 8, 2, 1, 1]])
QUESTIONS = torch.tensor([[5, 6, 7, 8], [9, 4, 0, 0]])


class Retriever:
    """Gives fixed documents and remembers what it was asked."""

    def __init__(self, **extra):
        self.extra = extra
        self.embeds = torch.randn(B, N, D, generator=torch.Generator().manual_seed(4))

    def __call__(self, question_input_ids, question_hidden_states, prefix=None, n_docs=None, return_tensors=None):
        self.asked = (question_input_ids, question_hidden_states, prefix, n_docs, return_tensors)
        found = {k: v for k, v in given_contexts().items() if k != "doc_scores"}
        ids = torch.arange(B * N).view(B, N)
        return {**found, "retrieved_doc_embeds": self.embeds, "doc_ids": ids, **self.extra}


def close(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, check_dtype=False)


def by_hand(logits, scores, labels, pad, kind):
    """The losses in loops over probabilities (paper, section 2.1), with the reference's place of p(z|x)."""
    priors = torch.softmax(scores, 1)
    probs = torch.softmax(logits.view(B, N, *logits.shape[1:]), -1)
    losses = []
    for b in range(B):
        target = [*labels[b, 1:].tolist(), pad]
        scored = [(t, token) for t, token in enumerate(target) if token not in (pad, -100)]
        if kind is RagTokenForGeneration:
            steps = [sum(priors[b, d] * probs[b, d, t, token] for d in range(N)) for t, token in scored]
            losses.append(-sum(torch.log(step) for step in steps))
        else:
            whole = [torch.stack([probs[b, d, t, token] for t, token in scored]).prod() for d in range(N)]
            seconds = any(t == 1 for t, _ in scored)
            losses.append(-torch.log(sum((priors[b, d] if seconds else 1) * whole[d] for d in range(N))))
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
    """Kept from the reference (Q12): without a second scored token RAG-Sequence's loss ignores p(z|x)."""
    model = build(RagSequenceForGeneration)
    contexts = given_contexts()
    losses = [
        model(**{**contexts, "doc_scores": contexts["doc_scores"] * f}, labels=LABELS[:, :2]).loss for f in (1, 9)
    ]
    close(losses[0], losses[1])
    longer = [model(**{**contexts, "doc_scores": contexts["doc_scores"] * f}, labels=LABELS).loss for f in (1, 9)]
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
        total = (log_probs + priors[:, :, None, None]).logsumexp(1).sum(-1).masked_fill(mask, 0).sum(1)
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
    assert marginal.token_log_probs(torch.zeros(1, 2, 3, 5, dtype=dtype), scores).dtype == torch.float32


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
    gone = ["retrieved_doc_embeds", "retrieved_doc_ids", "context_input_ids", "context_attention_mask"]
    assert not set(gone) & set(plain.keys())
    assert [len(out.question_enc_hidden_states), len(out.generator_enc_hidden_states)] == [2, 2]
    assert len(out.generator_dec_hidden_states) == 3


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_switches_of_config_and_call(kind):
    model = build(kind, return_dict=False, output_attentions=True, output_hidden_states=True, use_cache=False)
    found = model(**given_contexts(), decoder_input_ids=LABELS)
    assert isinstance(found, tuple)
    out = model(**given_contexts(), decoder_input_ids=LABELS, return_dict=True)
    assert len(found) == len(out)
    assert out.generator_cross_attentions is not None
    assert out.generator_dec_hidden_states is not None
    assert out.past_key_values is None
    off = model(**given_contexts(), decoder_input_ids=LABELS, return_dict=True, output_attentions=False, use_cache=True)
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
        inputs = contexts if states is None else {k: v for k, v in contexts.items() if k != "context_input_ids"}
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
    with pytest.raises(ValueError, match="context_input_ids, context_attention_mask and doc_scores must all be given"):
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


@pytest.mark.parametrize("kind", GENERATING)
def test_gradients_reach_question_encoder_and_generator(kind):
    model = build(kind, retriever=Retriever()).train()
    model(QUESTIONS, labels=LABELS, reduce_loss=True).loss.backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0}
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
    tokenized = {"tokenized_doc_ids": documents, "tokenized_doc_attention_mask": torch.ones_like(documents)}
    retriever.extra = tokenized
    out = model(QUESTIONS, labels=LABELS)
    vectors = encoder(documents)[0].view(B, N, D)
    close(out.doc_scores, torch.einsum("bd,bnd->bn", out.question_encoder_last_hidden_state, vectors))
    close(model._contexts(QUESTIONS).doc_scores, out.doc_scores)
    out.loss.sum().backward()
    assert encoder.ctx_encoder.bert_model.embeddings.word_embeddings.weight.grad.abs().max() > 0
    model.save_pretrained(tmp_path)
    again = RagSequenceForGeneration.from_pretrained(tmp_path, dtype=torch.float64, retriever=retriever)
    close(again(QUESTIONS, labels=LABELS).doc_scores, out.doc_scores)


@pytest.mark.parametrize("generator", ["bart", "t5"])
@pytest.mark.parametrize("saved", HEADS)
@torch.no_grad()
def test_any_head_loads_any_heads_checkpoint(tmp_path, saved, generator):
    model = build(saved, generator)
    want = model(**given_contexts(), decoder_input_ids=LABELS).logits
    model.save_pretrained(tmp_path)
    for kind in HEADS:
        again = kind.from_pretrained(tmp_path, dtype="auto")
        assert again.dtype == torch.float64
        assert not again.training
        assert torch.equal(again(**given_contexts(), decoder_input_ids=LABELS).logits, want)
        tied = again.generator.lm_head.weight is again.generator.get_input_embeddings().weight
        assert tied == (generator == "bart")
    assert kind.from_pretrained(tmp_path).dtype == torch.float32
    assert kind.from_pretrained(tmp_path, n_docs=1).config.n_docs == 1
    with pytest.raises(TypeError, match="unknown keywords n_dcos"):
        kind.from_pretrained(tmp_path, n_dcos=1)


def test_a_checkpoint_that_does_not_fit_lists_every_name(tmp_path):
    from safetensors.numpy import load_file, save_file

    build(RagTokenForGeneration, dtype=torch.float32).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["rag.generator.model.decoder.layers.1.fc1.weight"]
    weights["rag.surplus"] = np.zeros(3, np.float32)
    weights["rag.generator.model.encoder.layers.0.fc1.bias"] = np.zeros(5, np.float32)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        RagTokenForGeneration.from_pretrained(tmp_path)
    for part in ("decoder.layers.1.fc1.weight", "rag.surplus", "encoder.layers.0.fc1.bias (5,)"):
        assert part in str(error.value)


def test_from_parts(tmp_path):
    question, generator = tmp_path / "q", tmp_path / "g"
    DPRQuestionEncoder(DPRConfig(**BERT)).save_pretrained(question)
    BartForConditionalGeneration(BartConfig(**BART)).save_pretrained(generator)
    model = RagTokenForGeneration.from_pretrained_question_encoder_generator(
        question, generator, generator_max_length=200, n_docs=2
    )
    assert not model.training
    assert model.config.n_docs == 2
    assert model.generator.config.max_length == model.config.generator.max_length == 200
    given = RagTokenForGeneration.from_pretrained_question_encoder_generator(
        question_encoder_model=model.question_encoder, generator_model=model.generator
    )
    assert given.generator is model.generator
    with pytest.raises(ValueError, match="generator_pretrained_model_name_or_path must be given"):
        RagModel.from_pretrained_question_encoder_generator(question)
    with pytest.raises(ValueError, match="no generator is known for model_type 'dpr'"):
        RagModel.from_pretrained_question_encoder_generator(question, question)
    with pytest.raises(ValueError, match="either config or both"):
        RagModel()


@torch.no_grad()
def test_pooled_bert_as_question_encoder(tmp_path):
    encoder = BertEncoder(BertConfig(**BERT, pooling="mean", normalize=True, scale=4.0, projection_dim=D))
    model = RagTokenForGeneration(
        question_encoder=encoder, generator=BartForConditionalGeneration(BartConfig(**BART)), n_docs=N
    ).eval()
    model.save_pretrained(tmp_path)
    again = RagTokenForGeneration.from_pretrained(tmp_path, retriever=Retriever())
    out = again(QUESTIONS, labels=LABELS)
    close(out.question_encoder_last_hidden_state.norm(dim=1), torch.full((B,), 4.0), 1e-6)
    close(out.question_encoder_last_hidden_state, encoder(QUESTIONS)[0], 1e-6)


class States(torch.nn.Module):
    """A user's encoder: plain states (B, S, d), no config."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(19, D)

    def forward(self, input_ids):
        return self.table(input_ids)


@torch.no_grad()
def test_modules_of_ones_own():
    class Foreign(torch.nn.Module):
        """A generator of another library: only forward."""

        def __init__(self, inner):
            super().__init__()
            self.inner, self.config = inner, inner.config

        def forward(self, input_ids=None, attention_mask=None, decoder_input_ids=None, encoder_outputs=None):
            return self.inner(input_ids, attention_mask, decoder_input_ids, encoder_outputs=encoder_outputs)

    inner = build().generator
    own, foreign = (
        RagTokenForGeneration(
            question_encoder=ForeignEncoder(States(), "mean"), generator=each, n_docs=N, retriever=Retriever()
        ).eval()
        for each in (inner, Foreign(inner))
    )
    assert own.generator is inner
    assert isinstance(foreign.generator, ForeignGenerator)
    assert "rag.generator.inner.model.shared.weight" in foreign.state_dict()
    close(foreign(**given_contexts(), labels=LABELS).loss, own(**given_contexts(), labels=LABELS).loss)
    hidden = foreign.generator.encode(*list(given_contexts().values())[:2])
    close(hidden, inner.encode(*list(given_contexts().values())[:2]))
    assert foreign(QUESTIONS, labels=LABELS).loss.isfinite().all()
    unpooled = RagTokenForGeneration(question_encoder=States(), generator=inner, retriever=Retriever(), n_docs=N)
    with pytest.raises(ValueError, match=r"ForeignEncoder\(module, pooling='mean'\)"):
        unpooled(QUESTIONS, labels=LABELS)


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
    shorter = {**contexts, **{k: getattr(trimmed, k) for k in ("context_input_ids", "context_attention_mask")}}
    full, short = (model(**each, decoder_input_ids=LABELS).logits for each in (contexts, shorter))
    close(full, short)


def test_saved_config_names_class_type_and_document_encoder(tmp_path):
    model = build(RagSequenceForGeneration, "t5", torch.float16)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == ["RagSequenceForGeneration"]
    assert saved["torch_dtype"] == "float16"
    assert saved["tie_word_embeddings"] is False
    assert "architectures" not in model.config.extra and model.config.architectures is None
    with pytest.raises(ValueError, match="never as a pickle"):
        model.save_pretrained(tmp_path, safe_serialization=False)


def test_compiled_forward():
    """BART over given contexts is one graph; T5's bucket tables stay outside, so they are NumPy's there too."""
    torch._dynamo.reset()
    for generator, whole in (("bart", True), ("t5", False)):
        model = build(RagTokenForGeneration, generator)
        compiled = torch.compile(model, backend="eager", fullgraph=whole)
        got, want = (each(**given_contexts(), labels=LABELS) for each in (compiled, model))
        close(got.loss, want.loss)
        got.loss.sum().backward()
        assert model.generator.lm_head.weight.grad.abs().max() > 0
