"""The generators as models of their own.

Loss, embeddings, `generate`, what other libraries ask of them, training.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import rag_torch
from conformance import record_generators as recorded
from conformance.cases import contexts, integers
from rag_torch.trainer import RagTrainerMixin
from tests.support.golden_torch import build, tensors

GOLDEN = json.loads(
    (Path(recorded.__file__).parent / "golden" / "generators.json").read_text("utf-8")
)


def generator(name, precision="float64"):
    return build(name, "token", recorded.SEED, precision, 1).generator


def inputs_of(name, model):
    """Contexts, the same as embeddings, labels, decoder ids."""
    given = tensors(recorded.given(name), "float64")
    target = torch.tensor(recorded.labels(model.config.pad_token_id))
    return given, target, torch.tensor(integers("fed", 5, 90, (recorded.BATCH, 5)))


@pytest.mark.parametrize("name", recorded.MODELS)
def test_losses_are_the_references(name):
    model = generator(name)
    given, target, fed = inputs_of(name, model)
    embed, mask = model.get_input_embeddings(), {"attention_mask": given["attention_mask"]}
    embedded = {"inputs_embeds": embed(given["input_ids"]), "decoder_inputs_embeds": embed(fed)}
    outputs = [
        model(**given, labels=target),
        model(**given, labels=target, decoder_input_ids=fed),
        model(**mask, **embedded, labels=target),
    ]
    np.testing.assert_allclose(
        [each.loss.item() for each in outputs], GOLDEN[f"{name}/losses"], rtol=1e-10
    )
    np.testing.assert_allclose(
        outputs[2].logits.abs().sum().item(), GOLDEN[f"{name}/logits"], rtol=1e-10
    )
    assert (
        model.prepare_decoder_input_ids_from_labels(labels=target).tolist()
        == GOLDEN[f"{name}/shifted"]
    )
    assert [*outputs[0]][:2] == ["loss", "logits"] and "past_key_values" not in outputs[0]
    wanted = torch.nn.functional.cross_entropy(outputs[0].logits.flatten(0, 1), target.flatten())
    ours, theirs = (
        torch.autograd.grad(loss, embed.weight, retain_graph=True)[0]
        for loss in (outputs[0].loss, wanted)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_what_does_not_fit_is_named():
    model = generator("bart_scaled")
    given, target, fed = inputs_of("bart_scaled", model)
    embeds = model.get_input_embeddings()(given["input_ids"]).detach()
    wrong = [
        ({**given, "labels": target, "head_mask": fed}, ValueError, "head_mask must be None"),
        (
            {**given, "inputs_embeds": embeds, "labels": target},
            ValueError,
            "input_ids and inputs_embeds .* got both",
        ),
        ({"labels": target}, ValueError, "input_ids and inputs_embeds must be given, got neither"),
        (
            {"inputs_embeds": embeds},
            ValueError,
            "decoder_input_ids must be given when input_ids is None",
        ),
        (
            {**given, "decoder_input_ids": fed, "decoder_inputs_embeds": embeds},
            ValueError,
            "decoder_input_ids and decoder_inputs_embeds must be given, got both",
        ),
        (
            {"inputs_embeds": embeds[..., 1:], "labels": target},
            ValueError,
            r"inputs_embeds must be .* d = 32",
        ),
        (
            {**given, "labels": target[:, 1:], "decoder_input_ids": fed},
            ValueError,
            r"labels must be .* = \(3, 5\)",
        ),
        (
            {**given, "labels": target.clamp(max=-1)},
            ValueError,
            r"labels \(but for -100\) must lie in",
        ),
        ({**given, "labels": target.double()}, TypeError, "labels must hold integer ids"),
        (
            {**given, "decoder_input_ids": fed, "past_key_values": 5},
            TypeError,
            "past_key_values must be what an earlier",
        ),
        (
            {**given, "decoder_input_ids": fed, "past_key_values": (5,)},
            TypeError,
            "past_key_values must be what an",
        ),
    ]
    for inputs, kind, message in wrong:
        with pytest.raises(kind, match=message):
            model(**inputs)
    refused = [
        ({}, "input_ids and inputs_embeds must be given, got neither"),
        (
            {"inputs": given["input_ids"], "input_ids": given["input_ids"]},
            "inputs and input_ids must be given, got both",
        ),
        (
            {"inputs_embeds": embeds, "encoder_no_repeat_ngram_size": 2},
            "need the contexts' token ids",
        ),
        (
            {"inputs_embeds": embeds, "attention_mask": given["attention_mask"][:, 1:]},
            "attention_mask must be",
        ),
        (
            {"input_ids": given["input_ids"], "attention_mask": fed},
            "attention_mask must have the shape of input_ids",
        ),
    ]
    for inputs, message in refused:
        with pytest.raises(ValueError, match=message):
            model.generate(**inputs)
    with pytest.raises(TypeError, match="unknown keyword"):
        model.generate(given["input_ids"], num_beems=3)


@pytest.mark.parametrize("name", ["bart_scaled", "t5"])
@torch.no_grad()
def test_parts_by_themselves_and_a_loop_of_another_library(name):
    """Encoder and decoder called alone, and a loop by `prepare_inputs_for_generation`, say what
    the whole says.
    """
    model = generator(name)
    given, _, fed = inputs_of(name, model)
    mask = {"attention_mask": given["attention_mask"]}
    whole = model(
        **given,
        decoder_input_ids=fed,
        output_hidden_states=True,
        output_attentions=True,
        use_cache=True,
    )
    encoder, decoder = model.get_encoder(), model.get_decoder()
    states = encoder(**given, return_dict=True).last_hidden_state
    assert torch.equal(encoder(**given, return_dict=False)[0], states)
    context = {"encoder_hidden_states": states, "encoder_attention_mask": given["attention_mask"]}
    asked = {"output_hidden_states": True, "output_attentions": True, "use_cache": True}
    alone = decoder(fed, **context, **asked, return_dict=True)
    for ours, theirs in (
        (alone.hidden_states, whole.decoder_hidden_states),
        (alone.cross_attentions, whole.cross_attentions),
        (alone.past_key_values[0], whole.past_key_values[0]),
    ):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)
    first = decoder(fed[:, :2], **context, use_cache=True)
    rest = decoder(
        fed[:, 2:],
        past_key_values=first.past_key_values,
        encoder_attention_mask=given["attention_mask"],
    )
    torch.testing.assert_close(torch.cat([first[0], rest[0]], 1), alone.last_hidden_state)
    with pytest.raises(ValueError, match="encoder_hidden_states must be given"):
        decoder(fed)

    tokens, past = torch.full((recorded.BATCH, 1), model.config.decoder_start_token_id), None
    shared = {**mask, "encoder_outputs": (states,), "use_cache": True}
    for _ in range(5):
        step = model(**model.prepare_inputs_for_generation(tokens, past_key_values=past, **shared))
        tokens, past = torch.cat([tokens, step.logits[:, -1:].argmax(-1)], 1), step.past_key_values
    for row, wanted in zip(
        tokens, model.generate(encoder_outputs=(states,), **mask, max_length=6), strict=True
    ):
        ends = (row[1:] == model.config.eos_token_id).nonzero().flatten().tolist()
        written = 2 + ends[0] if ends else 6
        assert torch.equal(row[:written], wanted[:written])


def test_embeddings_of_the_context_generate_what_its_ids_do():
    model = generator("t5")
    given, _, _ = inputs_of("t5", model)
    embeds, mask = (
        model.get_input_embeddings()(given["input_ids"]),
        {"attention_mask": given["attention_mask"]},
    )
    options = {
        "num_beams": 3,
        "max_length": 8,
        "return_dict_in_generate": True,
        "output_attentions": True,
    }
    one, other = (
        model.generate(**given, **options),
        model.generate(inputs_embeds=embeds, **mask, **options),
    )
    assert torch.equal(one.sequences, other.sequences)
    torch.testing.assert_close(one.encoder_attentions, other.encoder_attentions)


def test_a_batch_for_training_goes_into_generate_and_rag_token_passes_over_exclude_bos_score():
    for kind in ("token", "sequence"):
        model = build("bart_scaled", kind, recorded.SEED, "float64", 2)
        given = tensors(contexts("bart_scaled", "given", 1, 2), "float64")
        labels = torch.tensor([[5, 6, 2]])
        assert torch.equal(
            model.generate(**given, labels=labels, max_length=6),
            model.generate(**given, max_length=6),
        )
        if kind == "token":
            losses = {
                model(**given, labels=labels, exclude_bos_score=flag).loss.item()
                for flag in (None, True, False)
            }
            assert len(losses) == 1
    # as Seq2SeqTrainer of transformers 5 completes a generation config
    options = model.generator.generation_config
    before = options.to_dict()
    options.update(**options._get_default_generation_params(), defaults_only=True)
    assert options.to_dict() == before


def test_auto_classes_choose_by_the_config(world, monkeypatch):
    monkeypatch.chdir(world)
    found = {
        rag_torch.BartForConditionalGeneration: (
            rag_torch.AutoModelForSeq2SeqLM,
            "facebook/bart-large",
        ),
        rag_torch.RagSequenceForGeneration: (
            rag_torch.AutoModelForSeq2SeqLM,
            "facebook/rag-sequence-nq",
        ),
        rag_torch.DPRContextEncoder: (
            rag_torch.AutoModel,
            "facebook/dpr-ctx_encoder-single-nq-base",
        ),
        rag_torch.DPRQuestionEncoder: (
            rag_torch.AutoModel,
            "facebook/dpr-question_encoder-single-nq-base",
        ),
        rag_torch.RagTokenForGeneration: (rag_torch.AutoModel, "facebook/rag-token-nq"),
    }
    for kind, (auto, name) in found.items():
        assert type(auto.from_pretrained(name)) is kind
    assert type(
        rag_torch.AutoModelForSeq2SeqLM.from_config(rag_torch.T5Config(d_model=8, d_ff=8))
    ) is (rag_torch.T5ForConditionalGeneration)
    changed = rag_torch.AutoModelForSeq2SeqLM.from_pretrained("facebook/bart-large", num_beams=3)
    assert changed.generation_config.num_beams == 3
    with pytest.raises(
        ValueError,
        match="AutoModel needs a config of model_type bert, dpr, rag, got 'bart': use Auto",
    ):
        rag_torch.AutoModel.from_pretrained("facebook/bart-large")
    with pytest.raises(TypeError, match="from_pretrained"):
        rag_torch.AutoModel()


def test_a_checkpoint_of_trainer_keeps_options_set_to_their_defaults(tmp_path):
    class Base:
        def _save(self, output_dir, state_dict):
            """Trainer's, which writes the weights."""

    class Trainer(RagTrainerMixin, Base):
        model, args = build("bart", "sequence", 1, "float32", 2), SimpleNamespace(should_save=True)
        accelerator = SimpleNamespace(unwrap_model=lambda model, keep_torch_compile: model)

    model = Trainer.model
    model.config.generator.min_length = 9
    model.save_pretrained(tmp_path)
    model.generation_config = rag_torch.GenerationConfig(min_length=0, sequence_bias={(5, 6): -2.0})
    Trainer()._save(tmp_path)
    loaded = rag_torch.RagSequenceForGeneration.from_pretrained(tmp_path)
    assert loaded.generation_config.min_length == 0
    assert loaded.generation_config.sequence_bias == {(5, 6): -2.0}


def test_a_generator_learns_first_and_goes_into_a_rag_model(tmp_path):
    """Fine-tuned with labels, generating, saved, and then the generator of a RAG model."""
    torch.manual_seed(0)
    model = rag_torch.BartForConditionalGeneration(generator("bart").config)
    ids = torch.tensor([[0, 11, 12, 2], [0, 21, 22, 2]])
    labels = torch.tensor([[12, 13, 2], [22, 23, 2]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = model(input_ids=ids, labels=labels).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.1 * losses[0]
    written = model.eval().generate(ids, max_length=5)
    assert torch.equal(written[:, 1:4], labels)
    model.save_pretrained(tmp_path / "generator")
    question_encoder = rag_torch.DPRQuestionEncoder(
        build("bart", "model", 1, "float32", 2).question_encoder.config
    )
    question_encoder.save_pretrained(tmp_path / "question")
    rag = rag_torch.RagTokenForGeneration.from_pretrained_question_encoder_generator(
        str(tmp_path / "question"), str(tmp_path / "generator"), n_docs=1
    )
    given = {
        "context_input_ids": ids,
        "context_attention_mask": torch.ones_like(ids),
        "doc_scores": torch.ones(2, 1),
    }
    assert torch.equal(rag.generate(**given, max_length=5), written)
