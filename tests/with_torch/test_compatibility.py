"""Entries of docs/compatibility.md that no other test shows.

What 4.37.2 does was seen by running it.
"""

import inspect
import warnings

import pytest
import torch

from conformance.cases import contexts, questions, targets
from rag_core import (
    BartConfig,
    BertConfig,
    DPRConfig,
    GenerationConfig,
    RagConfig,
    RagRetriever,
    RagTokenizer,
)
from rag_core.tokenization.rag import Tokenizer
from rag_torch import BertEncoder, RagModel, RagSequenceForGeneration, RagTokenForGeneration
from tests.support.golden_models import build, tensors, toy_retriever

HEADS = ["token", "sequence"]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def bart(head, n_docs=3, **config):
    return build("bart", head, 1, torch.float32, n_docs, **config)


def given(n_docs=3, batch=2):
    return tensors(contexts("bart", "given", batch, n_docs), torch.float32)


def asked():
    return dict(
        zip(
            ("input_ids", "attention_mask"),
            map(torch.tensor, questions("bart", "x", 2)),
            strict=True,
        )
    )


def labels(kind="plain"):
    return torch.tensor(targets("bart", kind))


def test_q13_a_rag_level_bos_of_0_falls_through_to_the_generators():
    model = bart("sequence")
    model.config.bos_token_id, model.config.generator.bos_token_id = 0, 7
    for second, excluded in ((7, True), (0, False)):
        target = labels()
        target[:, 1] = second
        kept, dropped = (
            model(**given(), labels=target, exclude_bos_score=x).loss for x in (False, True)
        )
        assert torch.equal(kept, dropped) != excluded


def test_q16_which_of_labels_and_decoder_ids_the_loss_is_of():
    other = labels("padded")
    for head, of_decoder_ids in (("sequence", True), ("token", False)):
        model = bart(head)
        both = model(**given(), labels=other, decoder_input_ids=labels())
        same = model(**given(), labels=labels())
        assert torch.equal(both.loss, same.loss) == of_decoder_ids
        assert torch.equal(both.logits, same.logits)


def test_q17_who_marginalises_logits():
    assert bart("sequence")(**given(), labels=labels()).logits.shape == (6, 6, 96)
    token = bart("token")
    assert token(**given(), labels=labels()).logits.shape == (6, 6, 96)
    assert token(**given(), labels=labels(), do_marginalize=True).logits.shape == (2, 6, 96)


def test_q18_training_starts_with_bos_and_decoding_with_the_start_token(world):
    tokenizer = RagTokenizer.from_pretrained(world / "facebook/rag-token-nq")
    config = RagConfig.from_pretrained(world / "facebook/rag-token-nq")
    ids = tokenizer(text_target="Paris")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.generator.bos_token_id, tokenizer.generator.eos_token_id)
    model = RagTokenForGeneration.from_pretrained(world / "facebook/rag-token-nq")
    filled = {
        "context_input_ids": torch.tensor([ids, ids]),
        "context_attention_mask": torch.ones(2, len(ids)),
    }
    made = model.generate(**filled, doc_scores=torch.zeros(1, 2), max_length=4)
    assert made[0, 0] == config.generator.decoder_start_token_id == tokenizer.generator.eos_token_id


@pytest.mark.parametrize("given_beams", [None, 3])
def test_q20_beams_asked_for_in_a_generation_config_are_heard(given_beams):
    """4.37.2 searches with config.num_beams (1) whatever the generation_config says."""
    model = bart("sequence")
    chosen = GenerationConfig(num_beams=3 if given_beams is None else 2, max_length=9)
    found = model.generate(**given(), generation_config=chosen, num_beams=given_beams)
    assert torch.equal(found, model.generate(**given(), num_beams=3, max_length=9))


def test_q23_rag_sequence_searches_by_pads_and_not_by_the_mask_given():
    model, contexts = bart("sequence", 1), given(1, 4)
    assert (contexts["context_attention_mask"] == 0).any()
    full = {
        **contexts,
        "context_attention_mask": torch.ones_like(contexts["context_attention_mask"]),
    }
    by_pads, by_mask = (model.generate(**each, max_length=9) for each in (contexts, full))
    assert torch.equal(by_pads, by_mask), (
        "one document and one beam leave nothing for rescoring to choose"
    )
    ids = labels().repeat(2, 1)
    assert not torch.equal(
        *(model(**each, decoder_input_ids=ids).logits for each in (contexts, full))
    )


def test_d3_rag_sequence_rescores_with_the_contexts_it_was_given():
    model = bart("sequence")
    options = {"num_beams": 3, "num_return_sequences": 3, "max_length": 9}
    want = model.generate(**given(), **options)
    assert torch.equal(model.generate(**asked(), **given(), **options), want)
    model.set_retriever(toy_retriever("bart", torch.float32))
    assert torch.equal(model.generate(**asked(), **given(), **options), want)


@pytest.mark.parametrize("head", HEADS)
def test_d4_n_docs_of_the_call_counts_to_the_end(head):
    as_configured, other = bart(head, 2), bart(head, 3)
    want = as_configured.generate(**given(2), num_beams=2, max_length=9)
    assert torch.equal(other.generate(**given(2), n_docs=2, num_beams=2, max_length=9), want)


def test_d4_padded_questions_are_answered_as_alone():
    """A mean-pooled encoder does not guess its mask as DPR does."""
    size = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    torch.manual_seed(0)
    encoder = BertEncoder(BertConfig(**size, vocab_size=80, pooling="mean", scale=3.0))
    model = RagSequenceForGeneration(
        question_encoder=encoder,
        generator=bart("sequence").generator,
        retriever=toy_retriever("bart", torch.float32),
        n_docs=3,
    ).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 0, 0, 0]])
    together = model.generate(
        ids, (ids != 0).long(), num_beams=2, max_length=9, return_dict_in_generate=True
    )
    for row, length in enumerate((7, 4)):
        alone = model.generate(
            ids[row : row + 1, :length], num_beams=2, max_length=9, return_dict_in_generate=True
        )
        ours, other = (
            [t for t in ids if t != 1]
            for ids in (together.sequences[row].tolist(), *alone.sequences.tolist())
        )
        assert ours == other
        torch.testing.assert_close(together.sequences_scores[row], alone.sequences_scores[0])


def test_d9_options_that_rag_token_used_to_ignore_act():
    model = bart("token")
    plain = model.generate(**given(), max_length=12)
    assert model.generate(**given(), max_new_tokens=3).shape == (2, 4)
    assert torch.equal(model.generate(**given(), max_length=12, use_cache=False), plain)
    assert not torch.equal(
        model.generate(**given(), max_length=12, do_sample=True, temperature=5.0, seed=1), plain
    )
    stopped = model.generate(
        **given(), max_length=12, stopping_criteria=[lambda ids, scores: ids.shape[1] >= 3]
    )
    assert torch.equal(stopped, plain[:, :3])
    begun = model.generate(
        **given(), max_length=12, decoder_input_ids=torch.tensor([[2, 9], [2, 9]])
    )
    assert begun[:, :2].tolist() == [[2, 9], [2, 9]] and begun.shape[1] <= 12
    out = model.generate(**given(), max_length=12, output_scores=True, return_dict_in_generate=True)
    assert torch.equal(out.sequences, plain) and len(out.scores) == plain.shape[1] - 1
    for refused in (
        {"max_time": 1.0},
        {"penalty_alpha": 0.6},
        {"num_beams": 4, "num_beam_groups": 2},
    ):
        with pytest.raises(ValueError, match="not supported"):
            model.generate(**given(), **refused)


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_d10_no_repeat_over_all_documents_of_a_question(beams):
    """4.37.2 divides by zero with fewer beams than documents, and its encoder penalty has the
    wrong number of rows.
    """
    model, found = bart("token"), given()
    rows = model.generate(**found, encoder_no_repeat_ngram_size=1, num_beams=beams, max_length=9)
    read = found["context_input_ids"].view(2, -1)
    for row, ids in zip(rows.tolist(), read.tolist(), strict=True):
        assert not (set(row[1:]) - {1, 2}) & set(ids)
    assert (
        model.generate(
            **found, encoder_repetition_penalty=1.5, num_beams=beams, max_length=5
        ).shape[0]
        == 2
    )


@pytest.mark.parametrize("head", HEADS)
def test_d12_generate_without_contexts_names_all_three(head):
    some = given()
    some.pop("doc_scores")
    with pytest.raises(
        ValueError,
        match="context_input_ids, context_attention_mask and doc_scores must all be given",
    ):
        bart(head).generate(**asked())
    with pytest.raises(ValueError, match="without doc_scores"):
        bart(head).generate(**some)


def test_d17_rag_tokenizer_hands_its_keywords_to_both(world, monkeypatch):
    seen, load = [], Tokenizer.from_pretrained.__func__

    def spy(cls, name, **kwargs):
        seen.append(kwargs)
        return load(cls, name, **kwargs)

    monkeypatch.setattr(Tokenizer, "from_pretrained", classmethod(spy))
    RagTokenizer.from_pretrained(
        world / "facebook/rag-token-nq", revision="main", local_files_only=True
    )
    assert [call.pop("subfolder") for call in seen] == [
        "question_encoder_tokenizer",
        "generator_tokenizer",
    ]
    assert seen == [{"revision": "main", "local_files_only": True}] * 2


def test_d21_contexts_are_none_where_nothing_was_retrieved():
    out = bart("model")(**given(), decoder_input_ids=labels())
    assert out.context_input_ids is None and "context_input_ids" not in out.keys()


@pytest.mark.parametrize("kind", [RagSequenceForGeneration, RagTokenForGeneration])
def test_d23_the_callers_lists_stay_as_they_are_and_none_is_the_default(kind):
    head = "token" if kind is RagTokenForGeneration else "sequence"
    mine = [lambda ids, scores: scores]
    bart(head).generate(**given(), logits_processor=mine, min_length=4, max_length=6)
    assert len(mine) == 1
    defaults = {p.default for p in inspect.signature(kind.generate).parameters.values()}
    assert defaults == {None, inspect.Parameter.empty}


def test_d24_an_index_that_holds_nothing_is_still_the_index():
    class Empty:
        def __len__(self):
            return 0

        def is_initialized(self):
            return True

        init_index = get_top_docs = get_doc_dicts = lambda self, *args: None

    own, tokenizer = Empty(), object()
    config = RagConfig(
        question_encoder=DPRConfig(),
        generator=BartConfig(),
        index_name="custom",
        index_path="nowhere",
    )
    assert RagRetriever(config, tokenizer, tokenizer, index=own).index is own


def test_d25_rag_model_takes_a_retriever_and_a_context_encoder():
    model = bart("model")
    model.set_retriever(toy_retriever("bart", torch.float32))
    assert model(**asked(), decoder_input_ids=labels()).doc_scores.shape == (2, 3)
    assert callable(RagModel.set_context_encoder_for_training)


@pytest.mark.parametrize("head", ["model", *HEADS])
def test_d27_saving_warns_of_nothing_and_stores_tied_weights_once(head, tmp_path, caplog):
    from safetensors import safe_open

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bart(head).save_pretrained(tmp_path)
    assert not caplog.records
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        tables = [name for name in file.keys() if file.get_slice(name).get_shape() == [96, 32]]
    assert len(tables) == 1


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["clean_up_tokenization", "print_docs", "max_lenght"])
def test_d30_unknown_options_are_named_by_both_heads(head, name):
    """RAG-Token of 4.37.2 passes over them in silence."""
    with pytest.raises(TypeError, match=name):
        bart(head).generate(**given(), max_length=5, **{name: True})


def test_return_dict_false_gives_a_tuple():
    """4.37.2's RAG classes return the record whatever is asked."""
    model = bart("token")
    assert isinstance(model(**given(), labels=labels(), return_dict=False), tuple)
    record = model(**given(), labels=labels())
    model.config.return_dict = False
    assert torch.equal(model(**given(), labels=labels())[0], record.loss)


def test_a_part_of_unknown_type_can_be_described_but_not_built():
    config = RagConfig(
        question_encoder=DPRConfig(), generator={"model_type": "pegasus", "d_model": 8}
    )
    assert RagConfig.from_dict(config.to_dict()).generator.d_model == 8
    with pytest.raises(ValueError, match="no generator is known for model_type 'pegasus'"):
        RagModel(config)
