"""The step loop and both heads over a toy generator whose numbers depend on the context and all
earlier tokens.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rag_core.generation import (
    rag_sequence_generate,
    rag_token_generate,
    returned_sequences,
    sequence_options,
)
from rag_core.generation.logits_rules import LogitsWarper
from rag_core.modeling import answer
from rag_torch import engine
from rag_torch.contexts import Contexts
from rag_torch.engine import ENGINE
from rag_torch.marginalize import sequence_nll
from rag_torch.step_scores import apply_warpers, best_candidates

V, D, PAD, EOS, START = 12, 6, 1, 2, 0


class ToyState:
    def __init__(self, context, h, cached):
        self.context, self.h, self.cached = context, h, cached

    def reorder(self, source):
        if self.cached:
            self.h = self.h.gather(1, source[..., None].expand(-1, -1, D))

    def select(self, rows):
        return ToyState(self.context[rows], self.h[rows], self.cached)


class Toy(torch.nn.Module):
    def __init__(self, seed=2):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.tables = torch.nn.ParameterList(
            torch.randn(n, D, generator=draw) for n in (V, V, D, V)
        )
        self.config = SimpleNamespace(
            vocab_size=V, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None
        )
        self.config.to_dict = lambda: {
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "decoder_start_token_id": START,
        }
        self.encoded = 0

    def encode(self, input_ids, attention_mask):
        self.encoded += len(input_ids)
        return self.tables[0][input_ids]

    def start(self, hidden, mask, beams=1, max_length=None):
        context = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return ToyState(context, torch.zeros(len(hidden), beams, D), max_length is not None)

    def decode(self, tokens, state):
        h = state.h if state.cached else torch.zeros(*tokens.shape[:2], D)
        steps = []
        for t in range(tokens.shape[2]):
            h = torch.tanh(
                self.tables[1][tokens[..., t]] + h @ self.tables[2] + state.context[:, None]
            )
            steps.append(h)
        if state.cached:
            state.h = h
        logits = torch.stack(steps, 2) @ self.tables[3].T
        # never the pad token, so that tests can strip pads
        return logits.masked_fill(torch.arange(V) == PAD, -1e4)


class Head(torch.nn.Module):
    def __init__(self, n_docs=3, **config):
        super().__init__()
        self.question_encoder, self.generator, self.retriever = Toy(), Toy(), None
        defaults = {
            "n_docs": n_docs,
            "bos_token_id": None,
            "label_smoothing": 0.0,
            "do_deduplication": True,
        }
        self.config = SimpleNamespace(generator=self.generator.config, **{**defaults, **config})
        self.config.to_dict = lambda: {"generator": self.generator.config.to_dict()}
        self.config.confidence = lambda head, log_probability, doc_score: None

    def _contexts(self, ids, mask, context_ids, context_mask, scores, n_docs, question_text=None):
        return Contexts(
            context_ids,
            context_mask,
            scores,
            n_docs or self.config.n_docs,
            retrieved=self.__dict__.get("found"),
        )

    def token(self, inputs, **kwargs):
        return rag_token_generate(ENGINE, self, **inputs, **kwargs)

    def sequence(self, inputs, **kwargs):
        return rag_sequence_generate(ENGINE, self, **inputs, **kwargs)


def contexts(questions=3, n_docs=3, seed=0, length=5):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, V, (questions * n_docs, length), generator=draw)
    ids[::2, -2:] = PAD
    scores = torch.randn(questions, n_docs, generator=draw)
    return {
        "context_input_ids": ids,
        "context_attention_mask": (ids != PAD).long(),
        "doc_scores": scores,
    }


def only(inputs, b, n_docs=3):
    rows = slice(b * n_docs, (b + 1) * n_docs)
    return {
        "context_input_ids": inputs["context_input_ids"][rows],
        "context_attention_mask": inputs["context_attention_mask"][rows],
        "doc_scores": inputs["doc_scores"][b : b + 1],
    }


def unpadded(sequences):
    return [[t for t in row if t != PAD] for row in sequences.tolist()]


BEAMS = [{"num_beams": 1}, {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5}]


@pytest.mark.parametrize("kwargs", BEAMS)
@pytest.mark.parametrize("head", ["token", "sequence"])
def test_questions_of_a_batch_are_alone_with_and_without_cache(head, kwargs):
    model, inputs = Head(), contexts(5)
    generate = getattr(model, head)
    together = generate(inputs, max_length=9, **kwargs)
    assert len({len(row) for row in unpadded(together)}) > 2
    apart = [
        row for b in range(5) for row in unpadded(generate(only(inputs, b), max_length=9, **kwargs))
    ]
    assert unpadded(together) == apart
    assert torch.equal(generate(inputs, max_length=9, use_cache=False, **kwargs), together)


def test_rag_token_greedy_takes_the_largest_marginal():
    model, inputs = Head(), contexts(1)
    ids, mask = inputs["context_input_ids"], inputs["context_attention_mask"].bool()
    state = model.generator.start(model.generator.encode(ids, mask), mask)
    written = [START]
    while written[-1] != EOS and len(written) < 9:
        logits = model.generator.decode(torch.tensor(written).expand(3, 1, -1), state)[:, 0, -1]
        marginal = (inputs["doc_scores"][0].softmax(0)[:, None] * logits.softmax(-1)).sum(0)
        written.append(int(marginal.argmax()))
    assert model.token(inputs, max_length=9).tolist() == [written]


def test_beam_scores_are_the_marginal_log_probability():
    model, inputs = Head(), contexts(2)
    out = model.token(
        inputs,
        max_length=7,
        num_beams=3,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert out.beam_indices.shape == out.sequences.shape and out.scores[0].shape == (6, V)
    for b, row in enumerate(unpadded(out.sequences)):
        part = only(inputs, b)
        mask = part["context_attention_mask"].bool()
        state = model.generator.start(model.generator.encode(part["context_input_ids"], mask), mask)
        logits = model.generator.decode(torch.tensor(row[:-1]).expand(3, 1, -1), state)[:, 0]
        marginal = (
            (part["doc_scores"][0].softmax(0)[:, None, None] * logits.softmax(-1)).sum(0).log()
        )
        total = marginal[torch.arange(len(row) - 1), row[1:]].sum()
        torch.testing.assert_close(out.sequences_scores[b], total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [2**26, 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_thorough_decoding_ranks_by_the_loss_and_encodes_once(monkeypatch, block, smoothing):
    monkeypatch.setattr(engine, "_BLOCK", block)
    model, inputs = Head(label_smoothing=smoothing), contexts(2)
    out = model.sequence(
        inputs, num_beams=3, num_return_sequences=4, max_length=7, return_dict_in_generate=True
    )
    assert model.generator.encoded == 6
    for b in range(2):
        part, rows = only(inputs, b), out.sequences[4 * b : 4 * b + 4]
        assert len({tuple(row) for row in rows.tolist()}) == 4
        mask = part["context_attention_mask"].bool()
        state = model.generator.start(model.generator.encode(part["context_input_ids"], mask), mask)
        # (4, N, L, V)
        logits = model.generator.decode(rows.expand(3, -1, -1), state).transpose(0, 1)
        scores = part["doc_scores"].expand(4, -1)
        loss = sequence_nll(logits, scores, rows, PAD, exclude_bos_score=True, epsilon=smoothing)
        torch.testing.assert_close(
            -loss, out.sequences_scores[4 * b : 4 * b + 4], rtol=1e-5, atol=1e-5
        )
        assert (loss.diff() >= 0).all()


def test_fast_decoding_counts_a_document_where_its_search_found_the_answer():
    model, inputs = Head(), contexts(2)
    options = {"num_beams": 2, "num_return_sequences": 3, "max_length": 6, "length_penalty": 0.3}
    out = model.sequence(inputs, decoding="fast", return_dict_in_generate=True, **options)
    for b in range(2):
        part, sums = only(inputs, b), {}
        for d in range(3):
            one = {
                "context_input_ids": part["context_input_ids"][d : d + 1],
                "context_attention_mask": part["context_attention_mask"][d : d + 1],
                "doc_scores": torch.zeros(1, 1),
            }
            found = model.token(
                one,
                n_docs=1,
                return_dict_in_generate=True,
                **{**options, "num_return_sequences": 2},
            )
            for row, score in zip(
                unpadded(found.sequences), found.sequences_scores.tolist(), strict=True
            ):
                weight = np.exp(score * (len(row) - 1) ** 0.3) * float(
                    part["doc_scores"][0].softmax(0)[d]
                )
                sums[tuple(row)] = sums.get(tuple(row), 0.0) + weight
        best = sorted(sums.items(), key=lambda item: -item[1])[:3]
        assert unpadded(out.sequences[3 * b : 3 * b + 3]) == [list(row) for row, _ in best]
        np.testing.assert_allclose(
            out.sequences_scores[3 * b : 3 * b + 3].exp(), [w for _, w in best], rtol=1e-4
        )


def test_fewer_candidates_than_wanted_leave_rows_of_pads():
    model, inputs = Head(n_docs=2), contexts(1, n_docs=2)
    out = model.sequence(inputs, num_return_sequences=4, max_length=6, return_dict_in_generate=True)
    real = out.sequences_scores.isfinite()
    assert 1 <= int(real.sum()) <= 2 and (out.sequences[~real] == PAD).all()
    twice = {
        k: v.repeat_interleave(2, 0) if k != "doc_scores" else v
        for k, v in only(inputs, 0, 2).items()
    }
    twice["context_input_ids"], twice["context_attention_mask"] = (
        twice[k][:2] for k in ("context_input_ids", "context_attention_mask")
    )
    kept = model.sequence(twice, num_return_sequences=2, max_length=6, do_deduplication=False)
    assert kept[0].tolist() == kept[1].tolist()


@pytest.mark.parametrize("head", ["token", "sequence"])
def test_a_missing_document_changes_nothing(head):
    model, inputs = Head(), contexts(2)
    inputs["doc_scores"][:, 2] = -torch.inf
    rows = [0, 1, 3, 4]
    short = {
        "context_input_ids": inputs["context_input_ids"][rows],
        "context_attention_mask": inputs["context_attention_mask"][rows],
        "doc_scores": inputs["doc_scores"][:, :2],
    }
    if head == "token":
        full = model.token(inputs, num_beams=3, max_length=7)
        assert torch.equal(full, model.token(short, n_docs=2, num_beams=3, max_length=7))
    else:
        out = model.sequence(
            inputs, num_return_sequences=1, max_length=7, return_dict_in_generate=True
        )
        assert out.sequences_scores.isfinite().all()


def test_the_same_seed_draws_the_same_text():
    model, inputs = Head(), contexts(2)
    options = {"do_sample": True, "max_length": 8, "num_return_sequences": 3, "top_k": 8}
    first = model.token(inputs, seed=5, **options)
    assert torch.equal(first, model.token(inputs, seed=5, **options))
    assert not torch.equal(first, model.token(inputs, seed=6, **options))
    assert len({tuple(row) for row in first.tolist()}) > 2
    # a row's noise depends on its place: the first question's is that of the question alone, the
    # second's is not
    assert unpadded(model.token(only(inputs, 0), seed=5, **options)) == unpadded(first[:3])
    assert unpadded(model.token(only(inputs, 1), seed=5, **options)) != unpadded(first[3:])


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("head", ["token", "sequence"])
def test_torchs_seed_repeats_a_draw(head, num_beams):
    model, inputs = Head(), contexts(4)
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(
            getattr(model, head)(inputs, num_beams=num_beams, do_sample=True, max_length=8).tolist()
        )
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("head", ["token", "sequence"])
def test_the_callers_functions_are_heard(head):
    model, inputs = Head(), contexts(2)
    generate = getattr(model, head)
    asked = set()

    def allowed(batch_id, ids):
        asked.add(batch_id)
        return [3 + batch_id] if len(ids) < 4 else [EOS]

    assert unpadded(generate(inputs, prefix_allowed_tokens_fn=allowed)) == [
        [0, 3, 3, 3, 2],
        [0, 4, 4, 4, 2],
    ]
    assert asked == {0, 1}

    def only_five(ids, scores):
        return torch.where(torch.arange(V) == 5, 0.0, -torch.inf).expand_as(scores)

    stopped = generate(
        inputs,
        logits_processor=[only_five],
        stopping_criteria=lambda ids, scores: ids.shape[1] == 4,
    )
    assert stopped.tolist() == [[0, 5, 5, 5]] * 2
    with pytest.raises(ValueError, match="shape"):
        generate(inputs, logits_processor=[lambda ids, scores: scores[:1, :3]])
    with pytest.raises(TypeError, match="max_lenght"):
        generate(inputs, max_lenght=5)
    with pytest.raises(TypeError, match="callable"):
        generate(inputs, stopping_criteria=["soon"])


TRIE = {(0,): [3, 4], (0, 3): [2], (0, 4): [5], (0, 4, 5): [2]}


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("head", ["token", "sequence"])
def test_a_beam_without_hope_is_asked_for_nothing(head, num_beams):
    def allowed(batch_id, ids):  # a KeyError where it is asked about what it never allowed
        return TRIE[tuple(ids.tolist())]

    options = {"num_beams": num_beams, "max_length": 8, "renormalize_logits": True}
    answers = unpadded(
        getattr(Head(), head)(contexts(3), prefix_allowed_tokens_fn=allowed, **options)
    )
    assert len(answers) == 3 and all(each in ([0, 3, 2], [0, 4, 5, 2]) for each in answers)


def test_unknown_decoding_is_refused():
    with pytest.raises(ValueError, match="thorough"):
        Head().sequence(contexts(1), decoding="quick")


def test_options_of_rag_sequence_come_from_the_rag_config_and_the_generator():
    model = Head(num_beams=3)
    assert sequence_options(model, None).num_beams == 3
    assert sequence_options(model, 2).num_return_sequences == 2
    own = SimpleNamespace(
        num_beams=4, to_dict=lambda: {"num_beams": 4, "decoder_start_token_id": 0}
    )
    assert sequence_options(model, None, own).num_beams == 4
    assert (
        sequence_options(
            model, None, {"length_penalty": 2.0, "decoder_start_token_id": 0}
        ).num_beams
        == 3
    )
    assert returned_sequences(model, None, {"num_return_sequences": 2}) == 2


def test_ties_go_to_the_lowest_index():
    scores = torch.tensor([[1.0, 5.0, 1.0, 1.0, 4.0, 1.0], [0.0] * 6])
    values, indices = best_candidates(scores, 3)
    assert [sorted(row) for row in indices.tolist()] == [[0, 1, 4], [0, 1, 2]]
    assert values.sum(1).tolist() == [10.0, 0.0]


def test_narrowings_keep_what_they_should():
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    def kept(kind, value, least=1):
        return apply_warpers(scores, [LogitsWarper(kind, value)], least).isfinite()[0].tolist()

    assert kept("top_k", 2) == [True, True, False, False]
    assert kept("top_k", 1, least=3) == [True, True, True, False]
    assert kept("top_p", 0.7) == [True, True, False, False]
    assert kept("epsilon_cutoff", 0.2) == [True, True, False, False]
    assert kept("epsilon_cutoff", 0.9, least=2) == [True, True, False, False]
    assert kept("typical_p", 0.2) == [False, True, False, False]
    assert kept("eta_cutoff", 0.1) == [True, True, True, False]


class Words:
    """A tokenizer of numbers."""

    def __call__(self, texts, **kwargs):
        ids = torch.tensor([[len(text) % V] for text in texts])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def decode(self, ids, skip_special_tokens=False):
        return " ".join(str(i) for i in ids if not (skip_special_tokens and i in (START, PAD, EOS)))

    def batch_decode(self, rows, **kwargs):
        return [self.decode(row, **kwargs) for row in rows]


class ManyTexts:
    def get_doc_dicts(self, doc_ids):
        return [
            {"title": [f"t{i}" for i in row], "text": [f"x{i}" for i in row]} for row in doc_ids
        ]


class SequenceHead(Head):
    head = "sequence"


@pytest.mark.parametrize("kind", [Head, SequenceHead])
def test_answers_carry_passages_and_probabilities(kind):
    model, inputs = kind(), contexts(2)
    inputs["doc_scores"][1, 2] = -torch.inf
    model.retriever = SimpleNamespace(
        index=ManyTexts(), question_encoder_tokenizer=Words(), generator_tokenizer=Words()
    )
    ids = torch.tensor([[7, 3, 5], [2, 9, -1]])
    found = {"doc_ids": ids, "retrieved_doc_embeds": torch.zeros(2, 3, 4)}
    made = Contexts(*inputs.values(), 3, retrieved=found)
    model._contexts = lambda *args, **kwargs: made
    answers = answer(ENGINE, model, ["a question", "and more"], num_beams=2, max_length=7)
    assert [[p.title for p in a.passages] for a in answers] == [["t7", "t3", "t5"], ["t2", "t9"]]
    for b, a in enumerate(answers):
        np.testing.assert_allclose(sum(p.posterior for p in a.passages), 1.0, rtol=1e-5)
        np.testing.assert_allclose(
            [p.prior for p in a.passages], inputs["doc_scores"][b].softmax(0)[: len(a.passages)]
        )
        assert a.log_probability < 0 and a.text == " ".join(t for t in a.tokens if t != "2")
        assert len(a.token_log_probs) == len(a.tokens) and max(a.token_log_probs) < 0
        np.testing.assert_allclose(sum(a.token_log_probs), a.log_probability, rtol=1e-5)
        if kind is Head:
            shares = np.array(a.token_posteriors)
            assert shares.shape == (len(a.tokens), len(a.passages))
            np.testing.assert_allclose(shares.sum(1), 1.0, rtol=1e-5)
        else:
            assert a.token_posteriors is None
    assert model.generator.encoded == 6
    for wrong in ("", ["good", "  "], []):
        with pytest.raises(ValueError, match="question"):
            answer(ENGINE, model, wrong)
    with pytest.raises(TypeError, match="number 1"):
        answer(ENGINE, model, ["good", 5])
