"""The networks by themselves: two ways to the same numbers, masks, caches, types, files.

No reference is needed.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_core.checkpoint.weights import expected_shapes
from rag_core.config.rag import BartConfig, BertConfig, DPRConfig
from rag_core.positions import t5_buckets, t5_distance_buckets
from rag_torch.attention import AttentionMask
from rag_torch.bart import BartForConditionalGeneration
from rag_torch.bert import BertEncoder, DPRContextEncoder, DPRQuestionEncoder
from rag_torch.encoders import PassageEncoder
from rag_torch.foreign import ForeignGenerator
from rag_torch.t5 import T5ForConditionalGeneration
from tests.support.networks import (
    BART,
    BERT,
    DROPPING,
    GENERATORS,
    NO_LAYERS,
    seeded,
)


def generator(kind, dtype=torch.float64):
    config = GENERATORS[kind]
    return seeded(
        (BartForConditionalGeneration if kind == "bart" else T5ForConditionalGeneration)(config),
        dtype,
    )


def contexts(rows=3, length=7):
    ids = torch.randint(3, 23, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return ids, mask


def close(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", GENERATORS)
def test_weights_are_named_as_the_table_says(kind):
    config = GENERATORS[kind]
    found = {name: tuple(t.shape) for name, t in generator(kind).state_dict().items()}
    assert found == {name: tuple(shape) for name, shape in expected_shapes(config).items()}


def test_encoder_weights_are_named_as_the_table_says():
    for model, head in (
        (DPRQuestionEncoder(DPRConfig(**BERT, projection_dim=5)), "question"),
        (DPRContextEncoder(DPRConfig(**BERT)), "context"),
        (BertEncoder(BertConfig(**BERT, pooling="pooler", projection_dim=5)), None),
    ):
        found = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        assert found == {
            name: tuple(shape) for name, shape in expected_shapes(model.config, head).items()
        }


@pytest.mark.parametrize("kind", GENERATORS)
@torch.no_grad()
def test_fused_and_explicit_attention_agree(kind):
    model = generator(kind)
    ids, mask = contexts()
    target = torch.randint(3, 23, (3, 5))
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": target}
    fused, explicit = model(**inputs), model(**inputs, output_attentions=True)
    close(fused.logits, explicit.logits)
    assert len(explicit.cross_attentions) == len(explicit.decoder_attentions) == 2
    close(
        explicit.cross_attentions[0].sum(-1), torch.ones_like(explicit.cross_attentions[0][..., 0])
    )
    assert explicit.encoder_attentions[0][1, :, :, 4:].abs().max() == 0
    assert explicit.decoder_attentions[0].triu(1).abs().max() == 0


@pytest.mark.parametrize("kind", ["bart", "t5v11", "dpr"])
def test_every_returned_state_lies_on_the_way_to_the_result(kind):
    """What gradients of saliency maps are taken by, also where a row has no key at all."""
    ids, mask = contexts()
    mask[2] = 0
    wanted = {"output_attentions": True, "output_hidden_states": True}
    if kind == "dpr":
        output = seeded(DPRQuestionEncoder(DPRConfig(**BERT)))(ids % 19, mask, **wanted)
    else:
        output = generator(kind)(ids, mask, ids[:, :5], use_cache=True, **wanted)
    result, *states = output.to_tuple()
    states, pending = [], states
    for each in pending:
        (pending if isinstance(each, tuple) else states).extend(
            each if isinstance(each, tuple) else [each]
        )
    gradients = torch.autograd.grad(
        result.tanh().sum(), states, allow_unused=True, retain_graph=True
    )
    assert len(states) == (5 if kind == "dpr" else 21)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    if kind != "dpr":
        first = output.decoder_hidden_states[0]
        slope = torch.autograd.grad(output.logits[0, 4, 3], first)[0]
        # all positions up to the fifth, of one row
        assert slope[0].abs().min() > 0 and slope[1:].abs().max() == 0


def forgetful(kind):
    """A network in training mode with every kind of noise, and arguments for it."""
    ids, mask = contexts()
    if kind == "dpr":
        return seeded(DPRQuestionEncoder(DPRConfig(**BERT))).train(), (ids % 19, mask)
    rates = DROPPING if kind == "bart" else {"dropout_rate": 0.2}
    config = type(GENERATORS[kind]).from_dict(GENERATORS[kind].to_dict(), **rates)
    network = BartForConditionalGeneration if kind == "bart" else T5ForConditionalGeneration
    return seeded(network(config)).train(), (ids, mask, ids[:, :5])


@pytest.mark.parametrize("kind", ["bart", "t5v11", "dpr"])
@pytest.mark.parametrize(
    "switches", [{}, {"output_attentions": True, "output_hidden_states": True}]
)
def test_checkpointing_changes_memory_alone(kind, switches):
    model, args = forgetful(kind)
    others = [{}, {"use_cache": True}] if kind != "dpr" else [{}]
    for more in others:
        runs, kept = [], []
        for on in (False, True):
            if on:
                model.gradient_checkpointing_enable({"use_reentrant": True})
            assert model.is_gradient_checkpointing is on
            held = []
            torch.manual_seed(4)
            with torch.autograd.graph.saved_tensors_hooks(
                lambda x, held=held: held.append(x.numel()) or x, lambda x: x
            ):
                output = model(*args, **switches, **more)
            results = [output[0]]
            if more:  # keys and values that are handed back lie on the graph, too
                results += [part for layer in output.past_key_values for part in layer]
            model.zero_grad()
            sum(result.tanh().sum() for result in results).backward()
            runs.append({name: parameter.grad for name, parameter in model.named_parameters()})
            kept.append(sum(held))
        model.gradient_checkpointing_disable()
        for name, gradient in runs[0].items():
            assert (gradient is None) == (runs[1][name] is None)
            if gradient is not None:
                close(runs[1][name], gradient)
        assert kept[1] < 0.6 * kept[0]


def test_checkpointing_is_for_training():
    model, args = forgetful("t5v11")
    model.gradient_checkpointing_enable()
    held = [[], []]
    for mode, into in zip((False, True), held, strict=True):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, into=into: into.append(x) or x, lambda x: x
        ):
            model.train(mode)(*args, use_cache=False)
    assert len(held[0]) > 2 * len(held[1])
    with pytest.raises(TypeError, match=r"use_reentrant, preserve_rng_state, .* got reentrant"):
        model.gradient_checkpointing_enable({"reentrant": False})


@pytest.mark.parametrize("kind", NO_LAYERS)
@torch.no_grad()
def test_networks_without_layers(kind):
    model = seeded(
        (BartForConditionalGeneration if kind == "bart" else T5ForConditionalGeneration)(
            NO_LAYERS[kind]
        )
    )
    ids, mask = contexts()
    output = model(
        ids, mask, ids[:, :4], use_cache=True, output_attentions=True, output_hidden_states=True
    )
    assert output.past_key_values == output.decoder_attentions == output.cross_attentions == ()
    assert len(output.decoder_hidden_states) == 1
    state = model.start(model.encode(ids, mask), mask.bool(), beams=2, max_length=4)
    for step in range(4):
        logits = model.decode(ids[:, step].repeat(2, 1).T[..., None], state)
        state.reorder(torch.tensor([[1, 0]] * 3))
        close(logits[:, 1, 0], output.logits[:, step])
    chosen = torch.tensor([2, 0])
    logits = model.decode(
        ids[chosen, None, :3], model.start(model.encode(ids, mask), mask.bool()).select(chosen)
    )
    close(logits[:, 0], output.logits[chosen, :3])


@pytest.mark.parametrize("kind", GENERATORS)
@torch.no_grad()
def test_stepping_equals_the_whole_forward(kind):
    model = generator(kind)
    ids, mask = contexts()
    target = torch.randint(3, 23, (3, 6))
    whole = model(ids, mask, target)
    first = model(ids, mask, target[:, :2], use_cache=True)
    states = (first.encoder_last_hidden_state,)
    second = model(
        None, mask, target[:, 2:], encoder_outputs=states, past_key_values=first.past_key_values
    )
    close(torch.cat([first.logits, second.logits], 1), whole.logits)


@pytest.mark.parametrize("kind", GENERATORS)
@torch.no_grad()
def test_decoding_contract_equals_forward(kind):
    """Beams on the query axis, reordered, narrowed to some contexts.

    Always what forward says of the same prefix.
    """
    model = generator(kind)
    ids, mask = contexts()
    hidden = model.encode(ids, mask)
    state = model.start(hidden, mask.bool(), beams=3, max_length=6)
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, 23, (3, 3, 2), generator=draw)
    model.decode(tokens, state)
    source = torch.tensor([[2, 0, 0], [1, 1, 0], [0, 1, 2]])
    state.reorder(source)
    tokens = tokens.gather(1, source[:, :, None].expand(-1, -1, 2))
    rows = torch.tensor([2, 1])
    state, tokens = state.select(rows), tokens[rows]
    for _ in range(2):
        new = torch.randint(3, 23, (2, 3, 1), generator=draw)
        tokens = torch.cat([tokens, new], 2)
        step = model.decode(new, state)
    assert step.shape == (2, 3, 1, 23)
    for beam in range(3):
        want = model(ids[rows], mask[rows], tokens[:, beam]).logits[:, -1]
        close(step[:, beam, 0], want)
    whole = model.decode(tokens, model.start(hidden[rows], mask[rows].bool()))
    close(whole[:, :, -1:], step)


@pytest.mark.parametrize("kind", GENERATORS)
@torch.no_grad()
def test_foreign_adapter_decodes_like_the_contract(kind):
    """The same network behind the adapter for other libraries, which has no cache it could
    reorder.
    """
    model = generator(kind)
    ids, mask = contexts()
    ours, foreign = model, ForeignGenerator(model)
    states = [
        each.start(each.encode(ids, mask), mask.bool(), beams=2, max_length=5)
        for each in (ours, foreign)
    ]
    source = torch.tensor([[1, 0], [0, 0], [1, 1]])
    for step in range(3):
        tokens = torch.randint(3, 23, (3, 2, 1), generator=torch.Generator().manual_seed(step))
        close(foreign.decode(tokens, states[1]), ours.decode(tokens, states[0]))
        for state in states:
            state.reorder(source)


def test_a_cache_too_short_says_so():
    model = generator("bart")
    ids, mask = contexts()
    state = model.start(model.encode(ids, mask), mask.bool(), beams=1, max_length=2)
    with pytest.raises(ValueError, match="holds 2 positions, 3 are needed"):
        model.decode(torch.full((3, 1, 3), 5), state)
    with pytest.raises(ValueError, match="24 positions"):
        model.encode(torch.full((1, 25), 5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("need_weights", [False, True])
def test_a_query_without_keys_gets_zeros(dtype, need_weights):
    query, key, value = torch.randn(3, 2, 2, 4, 8, dtype=torch.float64).to(dtype) * 30
    allowed = torch.tensor([True, True, False, False])[None, None, None].repeat(2, 1, 1, 1)
    allowed[1] = False
    out, weights = AttentionMask(allowed).attend(query, key, value, need_weights=need_weights)
    assert out.isfinite().all()
    assert out[1].abs().max() == 0
    assert out[0].abs().min() > 0
    assert weights is None or (weights[1].abs().max() == 0 and weights[..., 2:].abs().max() == 0)


@pytest.mark.parametrize("kind", GENERATORS)
@torch.no_grad()
def test_padding_changes_nothing(kind):
    model = generator(kind)
    ids, mask = contexts()
    target = torch.randint(3, 23, (3, 4))
    longer = (
        torch.cat([ids, torch.full((3, 3), 9)], 1),
        torch.cat([mask, torch.zeros(3, 3, dtype=mask.dtype)], 1),
    )
    close(model(*longer, target).logits, model(ids, mask, target).logits)


def test_half_precision_stays_finite_and_near():
    ids, mask = contexts()
    target = torch.randint(3, 23, (3, 4))
    for kind in GENERATORS:
        wide = generator(kind, torch.float32)(ids, mask, target).logits
        for dtype, tolerance in ((torch.float16, 0.02), (torch.bfloat16, 0.15)):
            half = generator(kind, dtype)(ids, mask, target).logits
            assert half.dtype == dtype
            assert (half.float() - wide).abs().max() < tolerance * wide.abs().max()


@pytest.mark.parametrize("kind", GENERATORS)
def test_ties_follow_the_config(kind):
    model = generator(kind)
    table = model.get_input_embeddings().weight
    assert model.get_encoder().embed_tokens.weight is table
    assert model.get_decoder().embed_tokens.weight is table
    assert (model.lm_head.weight is table) == (kind != "t5v11")


@pytest.mark.parametrize("kind", GENERATORS)
@torch.no_grad()
def test_resizing_keeps_what_was_there(kind):
    model = generator(kind)
    ids, mask = contexts()
    target = torch.randint(3, 23, (3, 4))
    before = model(ids, mask, target).logits
    assert model.resize_token_embeddings(26) is model.get_input_embeddings()
    after = model(ids, mask, target).logits
    assert after.shape[-1] == model.config.vocab_size == 26
    close(after[..., :23], before)
    model(torch.full((1, 2), 25), None, torch.full((1, 2), 25))
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings
    assert GENERATORS[kind].vocab_size == 23


def test_dropout_and_layerdrop_act_in_training_only():
    model = generator("bart", torch.float32)
    ids, mask = contexts()
    close(model.encode(ids, mask), model.encode(ids, mask))
    model.train()
    assert not torch.equal(model.encode(ids, mask), model.encode(ids, mask))
    config = BartConfig.from_dict(
        BART.to_dict(), dropout=0.0, encoder_layerdrop=0.999, decoder_layerdrop=0.999
    )
    dropped = BartForConditionalGeneration(config).train()
    assert dropped(ids, mask, ids[:, :3]).logits.shape == (3, 3, 23)


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
@torch.no_grad()
def test_pooled_encoder_by_hand(pooling):
    config = BertConfig(**BERT, pooling=pooling, projection_dim=5, normalize=True, scale=3.0)
    model = seeded(BertEncoder(config))
    ids = torch.tensor([[5, 6, 7, 8], [9, 4, 0, 0]])
    out = model(ids, output_hidden_states=True)
    states = out.hidden_states[-1]
    want = {
        "cls": states[:, 0],
        "mean": torch.stack([states[0].mean(0), states[1, :2].mean(0)]),
        "pooler": None if pooling != "pooler" else torch.tanh(model.pooler.dense(states[:, 0])),
    }[pooling]
    want = want @ model.encode_proj.weight.T + model.encode_proj.bias
    close(out[0], 3.0 * want / want.norm(dim=1, keepdim=True))
    assert out[0].shape == (2, model.dimension) == (2, 5)


@torch.no_grad()
def test_dpr_masks_pads_when_no_mask_is_given():
    model = seeded(DPRQuestionEncoder(DPRConfig(**BERT)))
    ids = torch.tensor([[5, 6, 7, 8], [9, 4, 0, 0]])
    close(model(ids)[0], model(ids, attention_mask=ids != 0)[0])
    close(model(ids)[0][1:], model(ids[1:, :2])[0])
    vector, hidden, attentions = model(
        ids, output_hidden_states=True, output_attentions=True, return_dict=False
    )
    assert (vector.shape, len(hidden), len(attentions)) == ((2, 12), 3, 2)
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        model()


def test_passage_encoder_batches_without_a_trace():
    model = seeded(BertEncoder(BertConfig(**BERT, pooling="mean")), torch.float32)

    def tokenizer(texts, **options):
        rows = [[3 + ord(c) % 16 for c in text][: options["max_length"]] for text in texts]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}

    encoder = PassageEncoder(model, tokenizer, "tiny", max_length=16)
    titles, texts = ["a", "", "long title", "b"], ["words", "x", "text", "some more words here"]
    together = encoder.embed(titles, texts, batch_size=3)
    alone = np.concatenate([encoder.embed([a], [b]) for a, b in zip(titles, texts, strict=True)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together.dtype == np.float32
    assert together.shape == (4, encoder.dimension)
    with pytest.raises(ValueError, match="one length, got 1 and 2"):
        encoder.embed(["a"], ["b", "c"])


@given(
    st.sampled_from([4, 8, 32]), st.integers(20, 300), st.booleans(), st.integers(1, 20), st.integers(0, 30)
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_t5_buckets_are_the_rows_of_one_table(buckets, distance, bidirectional, queries, first):
    keys = first + queries
    table = t5_buckets(queries, keys, buckets, distance, bidirectional, first)
    assert table.shape == (queries, keys)
    assert table.min() >= 0
    assert table.max() < buckets
    whole = t5_buckets(keys, keys, buckets, distance, bidirectional)
    assert (whole[first:] == table).all()
    line = t5_distance_buckets(keys, buckets, distance, bidirectional)
    past = line[:keys][::-1]
    assert (np.diff(past) >= 0).all()
    assert past[0] == 0
    assert bidirectional or (line[keys:] == 0).all()


def test_t5_buckets_on_the_border():
    """Recorded from transformers 4.37.2.

    The default table at the distances where arithmetic decides.
    """
    line = t5_distance_buckets(200, 32, 128, True)
    assert [int(line[199 - d]) for d in (7, 8, 11, 12, 15, 16, 22, 23, 31, 32, 45, 46, 63, 64, 90, 91, 127, 128)] == [
        7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15, 15
    ]  # fmt: skip
    with pytest.raises(ValueError, match="at least 4"):
        t5_distance_buckets(5, 2, 128, True)
