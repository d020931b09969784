"""What `generate` takes and gives beside tokens, in PyTorch: prompts for the decoder, guidance,
attentions, hidden states.
"""

import pytest
import torch

from conformance import record_decoder_prompts as recorded
from conformance.cases import contexts
from rag_torch.foreign import ForeignGenerator
from tests.support.golden_torch import build, tensors


def head(kind, name="bart_scaled", n_docs=3, batch=2):
    given = tensors(contexts(name, "given", batch, n_docs), "float32")
    return build(name, kind, recorded.SEED, "float32", n_docs), given


def test_a_prompt_that_was_written_anyway_changes_nothing():
    for kind in ("token", "sequence"):
        model, given = head(kind)
        plain = model.generate(**given, max_length=9)
        assert torch.equal(
            model.generate(**given, max_length=9, decoder_input_ids=plain[:, :1]), plain
        )
    model, given = head("token")
    plain = model.generate(**given, max_length=9)
    assert torch.equal(model.generate(**given, max_length=9, decoder_input_ids=plain[:, :4]), plain)
    for wrong in (plain[:1, :4], plain[0], plain[:, :4].float(), plain[:, :0]):
        with pytest.raises(
            ValueError, match=r"decoder_input_ids must be whole numbers of shape \(2, P\)"
        ):
            model.generate(**given, decoder_input_ids=wrong)
    with pytest.raises(ValueError, match="above the 4 tokens"):
        model.generate(**given, decoder_input_ids=plain[:, :4], max_length=4)


SEEN = {"return_dict_in_generate": True, "output_attentions": True, "output_hidden_states": True}


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("name", recorded.MODELS)
def test_what_the_networks_saw_is_what_a_forward_pass_sees(name, foreign):
    model, given = head("token", name)
    plain = model.generate(**given, max_length=7)
    whole = model(
        **given, decoder_input_ids=plain[:, :-1], output_attentions=True, output_hidden_states=True
    )
    if foreign:
        model.rag.generator = ForeignGenerator(model.generator)
    out = model.generate(**given, max_length=7, **SEEN)
    assert torch.equal(out.sequences, plain)
    steps, width = plain.shape[1] - 1, out.encoder_hidden_states[0].shape[1]
    for mine, theirs in (
        (out.encoder_hidden_states, whole.generator_enc_hidden_states),
        (out.encoder_attentions, whole.generator_enc_attentions),
    ):
        for a, b in zip(mine, theirs, strict=True):
            real = given["context_attention_mask"][:, :width].bool()
            a, b = (
                x.transpose(1, -2)[real]
                for x in (a, b[..., :width, :] if b.dim() == 3 else b[..., :width, :width])
            )
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for mine, theirs in (
        (out.decoder_hidden_states, whole.generator_dec_hidden_states),
        (out.decoder_attentions, whole.generator_dec_attentions),
        (out.cross_attentions, whole.generator_cross_attentions),
    ):
        assert len(mine) == steps
        for layer, expected in enumerate(theirs):
            for step, each in enumerate(mine):
                last = each[layer][..., -1, :]
                torch.testing.assert_close(
                    last, expected[..., step, : last.shape[-1]], rtol=1e-4, atol=1e-5
                )


@pytest.mark.parametrize("kind", ["token", "sequence"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_traces_of_beams_have_transformers_shapes(kind, use_cache):
    model, given = head(kind)
    prompt = torch.tensor([[2, 5, 6], [2, 7, 8]])
    options = {
        "num_beams": 4,
        "max_new_tokens": 5,
        "decoder_input_ids": prompt,
        "use_cache": use_cache,
    }
    out = model.generate(**given, **options, **SEEN)
    assert torch.equal(out.sequences, model.generate(**given, **options))
    config, rows = model.generator.config, 2 * 3 * 4
    heads, context = config.decoder_attention_heads, out.encoder_hidden_states[0].shape[1]
    assert len(out.encoder_hidden_states) == config.encoder_layers + 1
    assert out.encoder_attentions[0].shape == (6, config.encoder_attention_heads, context, context)
    for step, (own, cross, hidden) in enumerate(
        zip(out.decoder_attentions, out.cross_attentions, out.decoder_hidden_states, strict=True)
    ):
        new = 3 if step == 0 else 1 if use_cache else 3 + step
        assert {x.shape for x in own} == {(rows, heads, new, 3 + step)} and len(
            own
        ) == config.decoder_layers
        assert {x.shape for x in cross} == {(rows, heads, new, context)}
        assert {x.shape for x in hidden} == {(rows, new, config.d_model)} and len(
            hidden
        ) == config.decoder_layers + 1
        torch.testing.assert_close(cross[0].sum(-1), torch.ones(rows, heads, new))


def test_a_generator_that_shows_nothing_is_named():
    model, given = head("token")
    inner = model.generator

    class Blind(torch.nn.Module):
        encode, start, config = inner.encode, inner.start, inner.config

        def decode(self, tokens, state):
            return inner.decode(tokens, state)

    class Shy(Blind):
        get_encoder = inner.get_encoder

        def forward(self, **kwargs):
            return inner(**{**kwargs, "output_attentions": False})

    plain = model.generate(**given, max_length=5)
    for generator, words in (
        (Blind(), "Blind lacks"),
        (ForeignGenerator(Shy()), "Shy hands back no attentions"),
    ):
        model.rag.generator = generator
        assert torch.equal(model.generate(**given, max_length=5), plain)
        with pytest.raises(ValueError, match=words):
            model.generate(**given, max_length=5, **SEEN)


def test_what_is_not_returned_is_said():
    model, given = head("token")
    with pytest.warns(UserWarning, match="output_attentions need.*return_dict_in_generate"):
        model.generate(**given, max_length=3, output_attentions=True)
    out = model.generate(
        **given, max_length=3, return_dict_in_generate=True, output_hidden_states=True
    )
    assert out.decoder_attentions is None and out.decoder_hidden_states is not None


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_guidance_weighs_what_the_documents_add(kind, options):
    model, given = head(kind, n_docs=1)
    ids = torch.tensor([[5, 6, 7, 1], [8, 9, 2, 2]])
    mask = (ids != 1).long()
    negative = {"negative_prompt_ids": ids, "negative_prompt_attention_mask": mask}
    made = model.generate(**given, **options, **negative, guidance_scale=3.0, max_length=8)
    other = {
        "context_input_ids": ids,
        "context_attention_mask": mask,
        "doc_scores": given["doc_scores"],
    }

    def contrast(input_ids, scores):
        k = len(input_ids) // 2
        inputs = {key: value.repeat_interleave(k, 0) for key, value in other.items()}
        without = model(**inputs, decoder_input_ids=input_ids).logits[:, -1].log_softmax(-1)
        return without + 3.0 * (scores.log_softmax(-1) - without)

    plain = model.generate(**given, **options, max_length=8)
    assert torch.equal(
        made, model.generate(**given, **options, logits_processor=[contrast], max_length=8)
    )
    assert not torch.equal(made, plain)
    assert torch.equal(model.generate(**given, **options, guidance_scale=1.0, max_length=8), plain)
    assert not torch.equal(
        model.generate(**given, **options, guidance_scale=3.0, max_length=8), plain
    )
