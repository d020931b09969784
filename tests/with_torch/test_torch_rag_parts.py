"""RAG models put together, saved and loaded.

Checkpoints of other heads, parts from folders, modules of one's own.
"""

import json

import numpy as np
import pytest
import torch

from rag_core.config.rag import BartConfig, BertConfig, DPRConfig
from rag_torch.bart import BartForConditionalGeneration
from rag_torch.bert import BertEncoder, DPRContextEncoder, DPRQuestionEncoder
from rag_torch.foreign import ForeignEncoder, ForeignGenerator
from rag_torch.rag import RagModel, RagSequenceForGeneration, RagTokenForGeneration
from tests.support.rag_models import (
    BART,
    BERT,
    HEADS,
    LABELS,
    QUESTIONS,
    B,
    D,
    N,
    Retriever,
    build,
    close,
    given_contexts,
)


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
    encoder = BertEncoder(
        BertConfig(**BERT, pooling="mean", normalize=True, scale=4.0, projection_dim=D)
    )
    model = RagTokenForGeneration(
        question_encoder=encoder,
        generator=BartForConditionalGeneration(BartConfig(**BART)),
        n_docs=N,
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

        def forward(
            self, input_ids=None, attention_mask=None, decoder_input_ids=None, encoder_outputs=None
        ):
            return self.inner(
                input_ids, attention_mask, decoder_input_ids, encoder_outputs=encoder_outputs
            )

    inner = build().generator
    own, foreign = (
        RagTokenForGeneration(
            question_encoder=ForeignEncoder(States(), "mean"),
            generator=each,
            n_docs=N,
            retriever=Retriever(),
        ).eval()
        for each in (inner, Foreign(inner))
    )
    assert own.generator is inner
    assert isinstance(foreign.generator, ForeignGenerator)
    assert "rag.generator.inner.model.shared.weight" in foreign.state_dict()
    close(
        foreign(**given_contexts(), labels=LABELS).loss, own(**given_contexts(), labels=LABELS).loss
    )
    hidden = foreign.generator.encode(*list(given_contexts().values())[:2])
    close(hidden, inner.encode(*list(given_contexts().values())[:2]))
    assert foreign(QUESTIONS, labels=LABELS).loss.isfinite().all()
    unpooled = RagTokenForGeneration(
        question_encoder=States(), generator=inner, retriever=Retriever(), n_docs=N
    )
    with pytest.raises(ValueError, match=r"ForeignEncoder\(module, pooling='mean'\)"):
        unpooled(QUESTIONS, labels=LABELS)


@pytest.mark.parametrize("kind", HEADS)
def test_checkpointing_reaches_every_part(kind):
    model = build(kind).train()
    model.set_context_encoder_for_training(DPRContextEncoder(DPRConfig(**BERT)))
    assert model.supports_gradient_checkpointing and not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable()
    assert (
        all(part.is_gradient_checkpointing for part in model._networks())
        and len(model._networks()) == 3
    )
    model.gradient_checkpointing_disable()
    assert not any(part.is_gradient_checkpointing for part in (model, *model._networks()))


def test_checkpointing_of_modules_of_ones_own():
    mixed = RagTokenForGeneration(question_encoder=States(), generator=build().generator, n_docs=N)
    with pytest.warns(UserWarning, match="keep all activations: States"):
        mixed.gradient_checkpointing_enable()
    assert mixed.generator.is_gradient_checkpointing
    mixed.rag._modules["generator"] = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="keep all activations: States, Linear"):
        mixed.gradient_checkpointing_enable()


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
