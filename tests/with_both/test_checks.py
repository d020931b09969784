"""Settings and arguments that can not be, refused with one text whichever backend was asked."""

import math

import numpy as np
import pytest

from rag_core import BartConfig, DPRConfig, RagConfig
from rag_core.arguments import check_places
from rag_core.backends import load_backend
from rag_core.generation import sequence_options, token_options
from rag_core.training.config import TrainingConfig

WHOLE = ("batch_size", "accumulation", "max_question_length", "max_target_length")


def test_none_is_a_settings_default_and_arrays_are_plain():
    assert (
        TrainingConfig(batch_size=None, epochs=None, question_encoder=None, seed=None)
        == TrainingConfig()
    )
    config = TrainingConfig(steps=np.int64(3), learning_rate=np.float32(0.5), batch_size=4.0)
    assert config == TrainingConfig(steps=3, learning_rate=0.5, batch_size=4)
    assert [type(each) for each in (config.steps, config.learning_rate, config.batch_size)] == [
        int,
        float,
        int,
    ]


@pytest.mark.parametrize(
    ("setting", "bad", "error", "says"),
    [
        *(
            (name, 10**9, ValueError, "a whole number from 1 to 65536, got 1000000000")
            for name in WHOLE
        ),
        *(
            (name, bad, ValueError, f", got {bad}")
            for name in WHOLE
            for bad in (math.nan, math.inf, 1.5, 0)
        ),
        ("batch_size", True, TypeError, "a whole number from 1 to 65536, got True"),
        ("batch_size", "8", TypeError, "a whole number from 1 to 65536, got '8'"),
        ("steps", 1.5, ValueError, "a whole number from 1 to 100000000, got 1.5"),
        ("steps", 10**9, ValueError, "a whole number from 1 to 100000000, got 1000000000"),
        ("epochs", math.inf, ValueError, "a number above 0 and at most 100000000, got inf"),
        ("learning_rate", math.nan, ValueError, "a finite number above 0, got nan"),
        ("learning_rate", "fast", TypeError, "a finite number above 0, got 'fast'"),
        *(
            (f"{part}_learning_rate", bad, ValueError, f"above 0, got {bad}. With {part}='frozen'")
            for part in ("question_encoder", "context_encoder")
            for bad in (-1, 0)  # 0 was once the generator's rate
        ),
        ("warmup_steps", 0.5, ValueError, "a whole number from 0 to 100000000, got 0.5"),
        ("beta2", 1, ValueError, "a number of at least 0 and below 1, got 1"),
        ("label_smoothing", 1.1, ValueError, "a number from 0 to 1, got 1.1"),
        (
            "question_encoder",
            "some",
            ValueError,
            "one of ('all', 'projection', 'frozen'), got 'some'",
        ),
        ("mixed_precision", True, TypeError, "one of (None, 'bf16', 'fp16'), got True"),
        ("seed", -1, ValueError, "a whole number from 0 to 9223372036854775807, got -1"),
    ],
)
def test_settings_of_training_are_refused_where_they_are_made(setting, bad, error, says):
    with pytest.raises(error) as caught:
        TrainingConfig(**{setting: bad})
    assert str(caught.value).startswith(f"{setting} must be ") and says in str(caught.value)


# What models are asked, by one table for both backends: (call, argument, bad value, the error's
# beginning).
V, N, B, S, T, D = 23, 3, 2, 7, 5, 12
IDS = np.random.default_rng(0).integers(3, V, (B * N, S))
LABELS, QUESTIONS = IDS[:B, :T], IDS[:B, :4] % 19
MASK, SCORES = np.ones_like(IDS), np.linspace(-1, 1, B * N, dtype=np.float32).reshape(B, N)
LOGITS = np.zeros((B * N, T, V), np.float32)
CONTEXTS = {"context_input_ids": IDS, "context_attention_mask": MASK, "doc_scores": SCORES}
CALLS = {
    "forward": {**CONTEXTS, "labels": LABELS},
    "generate": {**CONTEXTS, "max_length": 4},
    "ask": {"input_ids": QUESTIONS, "attention_mask": np.ones_like(QUESTIONS)},
    "get_nll": {"seq_logits": LOGITS, "doc_scores": SCORES, "target": LABELS},
    "marginalize": {"seq_logits": LOGITS, "doc_scores": SCORES},
    "shift_tokens_right": {"input_ids": LABELS, "start_token_id": 2},
    "question_encoder": {"input_ids": QUESTIONS, "attention_mask": np.ones_like(QUESTIONS)},
    "generator": {
        "input_ids": IDS,
        "attention_mask": MASK,
        "decoder_input_ids": np.repeat(LABELS, N, 0),
    },
}
HOLDS = "must hold 1 for tokens that are read and 0 for others, got "
SOME_NAN = np.where(np.arange(S) == 2, np.nan, MASK)
BAD = [
    *(
        (call, name, like * bad, f"{name} {HOLDS}{shown}")
        for call, name, like in (
            ("forward", "context_attention_mask", MASK),
            ("generate", "context_attention_mask", MASK),
            ("ask", "attention_mask", np.ones_like(QUESTIONS)),
            ("question_encoder", "attention_mask", np.ones_like(QUESTIONS)),
            ("generator", "attention_mask", MASK),
        )
        for bad, shown in ((-1, "-1"), (2, "2"), (0.5, "0.5"), (np.nan, "nan"))
    ),
    ("generate", "context_attention_mask", SOME_NAN, f"context_attention_mask {HOLDS}nan"),
    ("forward", "context_attention_mask", MASK.astype(np.complex64), f"context_attention_mask {HOLDS}complex64"),
    ("forward", "doc_scores", SCORES.astype(np.complex64), "doc_scores must hold real numbers (float32), got complex6"),
    ("forward", "doc_scores", SCORES > 0, "doc_scores must hold real numbers (float32), got bool"),
    ("generate", "doc_scores", SCORES[..., None], "doc_scores must be (B, n_docs) with n_docs = 3, got shape (2, 3, 1"),
    ("generate", "n_docs", math.nan, "n_docs must be a positive integer, got nan"),
    ("forward", "n_docs", math.inf, "n_docs must be a positive integer, got inf"),
    ("ask", "n_docs", 10**9, "n_docs must be at most 65536, got 1000000000"),
    ("ask", "input_ids", QUESTIONS[:, :0], "input_ids must be (B, Q) with at least one token, got shape (2, 0)"),
    ("ask", "attention_mask", np.ones((2, 3), int), "attention_mask must have the shape of input_ids, (2, 4), got (2,"),
    ("ask", "input_ids", QUESTIONS * 1.0, "input_ids must hold integer ids (int64), got float64"),
    ("forward", "reduce_loss", "x", "reduce_loss must be True or False, got 'x'"),
    ("forward", "output_retrieved", 2, "output_retrieved must be True or False, got 2"),
    ("forward", "return_dict", "x", "return_dict must be True or False, got 'x'"),
    ("forward", "output_attentions", "x", "output_attentions must be True or False, got 'x'"),
    *((("get_nll", "epsilon", bad, f"epsilon must be a number from 0 to 1, got {bad}")) for bad in (2.0, -1, math.nan)),
    ("get_nll", "epsilon", "x", "epsilon must be a number from 0 to 1, got 'x'"),
    ("get_nll", "doc_scores", SCORES[..., None], "doc_scores must be (B, n_docs) with n_docs = 3, got shape (2, 3, 1)"),
    ("get_nll", "doc_scores", SCORES[:0], "doc_scores must be (B, n_docs) with one question or more, got shape (0, 3)"),
    ("get_nll", "doc_scores", SCORES + np.inf, "doc_scores must be numbers, or -inf for a missing document"),
    ("get_nll", "doc_scores", SCORES[:1], "seq_logits must be (B * n_docs, T, V) with B * n_docs = 1 * 3 = 3 (doc_sco"),
    ("get_nll", "seq_logits", LOGITS[:, 0], "seq_logits must be (B * n_docs, T, V) with B * n_docs = 2 * 3 = 6 (doc_s"),
    ("get_nll", "seq_logits", LOGITS.astype(int), "seq_logits must hold floating-point numbers, got int64"),
    ("get_nll", "target", LABELS[:, :4], "target must be (B, T) = (2, 5) as doc_scores (2, 3) and seq_logits (6, 5, 2"),
    ("get_nll", "target", LABELS + 99, "target (but for -100) must lie in the model's vocabulary, 0 to 22; got ids fr"),
    ("get_nll", "target", LABELS * 1.0, "target must hold integer ids (int64), got float64"),
    ("get_nll", "n_docs", 4, "doc_scores must be (B, n_docs) with n_docs = 4, got shape (2, 3)"),
    ("marginalize", "doc_scores", SCORES * np.nan, "doc_scores must be numbers, or -inf for a missing document"),
    ("shift_tokens_right", "start_token_id", [2], "start_token_id must be a token id (a whole number from 0 to"),
    ("shift_tokens_right", "start_token_id", 2.0, "start_token_id must be a token id (a whole number from 0 to"),
    ("question_encoder", "attention_mask", np.ones((2, 3), int), "attention_mask must have the shape of input_ids, (2"),
    ("question_encoder", "input_ids", QUESTIONS[:, :0], "input_ids must be (B, S) with at least one token, got shape"),
    ("question_encoder", "token_type_ids", QUESTIONS[:, :2], "token_type_ids must have the shape of input_ids, (2, 4)"),
    ("question_encoder", "token_type_ids", QUESTIONS * 0 + 9, "token_type_ids must lie in"),
    ("generator", "attention_mask", MASK[:, :6], "attention_mask must have the shape of input_ids, (6, 7), got (6, 6)"),
    ("generator", "input_ids", IDS[0], "input_ids must be (B, S) with at least one token, got shape (7,)"),
    ("generator", "decoder_input_ids", IDS[:, :0], "decoder_input_ids must be (B, S) with at least one token, got sha"),
    ("generator", "decoder_input_ids", LABELS, "the decoder's input must have as many rows as the context, 6, or a mu"),
    ("generate", "logits_processor", lambda ids, scores: scores * math.nan, "a logits_processor must return numbers"),
    ("generate", "logits_processor", lambda ids, scores: scores[:, :3], "a logits_processor must return floating-poin"),
    ("generate", "logits_processor", lambda ids, scores: None, "a logits_processor must return scores, got NoneType"),
    ("generate", "prefix_allowed_tokens_fn", lambda question, ids: [1.5], "prefix_allowed_tokens_fn must return whole"),
    ("generate", "pad_token_id", 999, "pad_token_id holds ids [999] outside the generator's vocabulary of 23"),
    ("generate", "max_length", 10**9, "max_length must be at most 65536, got 1000000000"),
    ("generate", "num_return_sequences", True, "num_return_sequences must be a whole number"),
    ("generate", "length_penalty", math.nan, "length_penalty must be a number from -32 to 32, got nan"),
    ("generate", "seed", True, "seed must be a whole number, got True"),
    ("generate", "seed", "1", "seed must be a whole number, got '1'"),
    ("generate", "decoder_start_token_id", [2], "decoder_start_token_id must be a token id"),
]  # fmt: skip


class Retriever:
    """Finds the same documents for every question."""

    def __call__(self, question_input_ids, question_hidden_states, n_docs=N, **_):
        found = {name: CONTEXTS[name] for name in ("context_input_ids", "context_attention_mask")}
        return {
            **found,
            "retrieved_doc_embeds": np.ones((B, N, D), np.float32),
            "doc_ids": np.ones((B, N), int),
        }


def rag_config(**options):
    """A tiny RAG, with options of its generator."""
    sizes = {
        "vocab_size": V,
        "max_position_embeddings": 24,
        "d_model": D,
        "encoder_layers": 1,
        "decoder_layers": 1,
    }
    sizes |= {
        f"{part}_{name}": 2
        for part in ("encoder", "decoder")
        for name in ("attention_heads", "ffn_dim")
    }
    encoder = DPRConfig(19, D, 1, 2, 8, max_position_embeddings=16)
    generator = BartConfig(**sizes, **options)
    return RagConfig(
        question_encoder=encoder, generator=generator, n_docs=N, retrieval_vector_size=D
    )


@pytest.fixture(scope="module")
def asked(backend, golden):
    """Calls one of CALLS with one argument replaced, by the backend's own tensors."""
    rag, config, tensor = load_backend(backend), rag_config(), golden.integers
    heads = rag.RagTokenForGeneration, rag.RagSequenceForGeneration
    models = [head(config, retriever=Retriever()) for head in heads]

    def tensors(value):
        return tensor(value) if isinstance(value, np.ndarray) else value

    def ask(call, argument, bad):
        given = {name: tensors(value) for name, value in {**CALLS[call], argument: bad}.items()}
        for model in models[:1] if call in ("marginalize", "shift_tokens_right") else models:
            yield {"forward": model, "ask": model.generate}.get(call) or getattr(model, call), given

    return ask


@pytest.mark.parametrize(("call", "argument", "bad", "says"), BAD)
def test_both_backends_refuse_a_bad_argument_with_one_text(asked, call, argument, bad, says):
    for function, given in asked(call, argument, bad):
        with pytest.raises((TypeError, ValueError)) as caught:
            function(**given)
        assert str(caught.value).startswith(says)


@pytest.mark.parametrize("head", ["RagSequenceForGeneration", "RagTokenForGeneration"])
def test_a_call_looks_at_each_of_its_tensors_once(backend, golden, monkeypatch, head):
    model = getattr(load_backend(backend), head)(rag_config())
    checks, shapes = type(model._checks), []
    bounds = checks.bounds

    def noted(self, tensors):
        shapes.extend(tuple(tensor.shape) for tensor in tensors)
        return bounds(self, tensors)

    monkeypatch.setattr(checks, "bounds", noted)
    model(**{name: golden.integers(value) for name, value in CALLS["forward"].items()})
    assert sorted(shapes) == [(B, T), (B * N, S), (B * N, S)]  # labels, contexts and their mask


@pytest.mark.parametrize("part", ["question_encoder", "generator", "retriever"])
def test_a_name_is_no_network_and_no_retriever(backend, part):
    """Nothing is read, and no config is blamed."""
    model = load_backend(backend).RagModel
    for make in (model, lambda **given: model.from_pretrained("nowhere", **given)):
        with pytest.raises(TypeError, match=f"^{part} must be "):
            make(**{part: "facebook/some-part"})


def test_a_short_generation_config_leaves_special_tokens_to_the_model(backend, tmp_path):
    """4.37.2's RAG-Sequence takes all from the generator then; its RAG-Token fails."""
    rag = load_backend(backend)
    rag.RagTokenForGeneration(rag_config(max_length=9, min_length=4)).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(
        '{"num_beams": 2, "early_stopping": null, "min_length": 3}'
    )
    token, sequence = (
        head.from_pretrained(tmp_path)
        for head in (rag.RagTokenForGeneration, rag.RagSequenceForGeneration)
    )
    options = token_options(token)
    assert (
        options.decoder_start_token_id,
        options.eos_token_id,
        options.num_beams,
        options.max_length,
    ) == (
        2,
        2,
        2,
        20,
    )
    options = sequence_options(sequence, None)
    assert (
        options.decoder_start_token_id,
        options.num_beams,
        options.max_length,
        options.min_length,
    ) == (2, 1, 9, 3)
    assert options.forced_eos_token_id == 2
    token.generation_config = {"num_beams": 3}
    assert token_options(token).eos_token_id == 2


def test_tensors_without_numbers_are_named_among_others():
    for parts in ({"a": "cpu", "b": "meta"}, {"a": "meta", "b": "cuda", "c": None}):
        with pytest.raises(
            ValueError, match=r"must be on the device of \w, (cpu|cuda), got the meta device"
        ):
            check_places(**parts)
    check_places(a="meta", b="meta")
    check_places(a="cpu", b=None)
