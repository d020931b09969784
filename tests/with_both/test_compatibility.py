"""Entries of docs/compatibility.md that no other test shows, in both backends.

What 4.37.2 does was seen by running it. Rows Q and D are about its PyTorch classes, rows T about
where its TensorFlow classes were another function; here both are the same.
"""

import inspect
import warnings

import numpy as np
import pytest

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
from rag_core.backends import load_backend, to_numpy
from rag_core.tokenization.batch import BatchEncoding
from rag_core.tokenization.rag import Tokenizer

HEADS = ["token", "sequence"]


@pytest.fixture(autouse=True)
def no_grad(golden):
    with golden.without_gradients():
        yield


@pytest.fixture
def bart(golden):
    """Makes a model of the catalogue."""

    def build(head, n_docs=3, precision="float32", **config):
        return golden.build("bart", head, 1, precision, n_docs, **config)

    return build


@pytest.fixture
def given(golden):
    """Makes contexts for it."""

    def build(n_docs=3, batch=2, precision="float32"):
        return golden.tensors(contexts("bart", "given", batch, n_docs), precision)

    return build


@pytest.fixture
def loaded(golden, bart, tmp_path):
    """Makes a model whose parts are its own, as a test needs that changes them."""

    def load(head):
        bart(head).save_pretrained(tmp_path / head)
        return golden.CLASSES[head].from_pretrained(tmp_path / head)

    return load


@pytest.fixture
def asked(golden):
    """Two questions and their mask."""
    ids, mask = questions("bart", "x", 2)
    return {"input_ids": golden.integers(ids), "attention_mask": golden.integers(mask)}


@pytest.fixture
def labels(golden):
    return lambda kind="plain": golden.integers(targets("bart", kind, 2))


def equal(one, other):
    return np.array_equal(to_numpy(one), to_numpy(other))


def test_q13_a_rag_level_bos_of_0_falls_through_to_the_generators(golden, bart, given):
    model = bart("sequence")
    model.config.bos_token_id, model.config.generator.bos_token_id = 0, 7
    for second, excluded in ((7, True), (0, False)):
        target = targets("bart", "plain", 2)
        target[:, 1] = second
        kept, dropped = (
            model(**given(), labels=golden.integers(target), exclude_bos_score=switch).loss
            for switch in (False, True)
        )
        assert equal(kept, dropped) != excluded


def test_q16_which_of_labels_and_decoder_ids_the_loss_is_of(bart, given, labels):
    other = labels("padded")
    for head, of_decoder_ids in (("sequence", True), ("token", False)):
        model = bart(head)
        both = model(**given(), labels=other, decoder_input_ids=labels())
        same = model(**given(), labels=labels())
        assert equal(both.loss, same.loss) == of_decoder_ids
        assert equal(both.logits, same.logits)


def test_q17_who_marginalises_logits(bart, given, labels):
    assert bart("sequence")(**given(), labels=labels()).logits.shape == (6, 6, 96)
    token = bart("token")
    assert token(**given(), labels=labels()).logits.shape == (6, 6, 96)
    assert token(**given(), labels=labels(), do_marginalize=True).logits.shape == (2, 6, 96)


def test_q18_training_starts_with_bos_and_decoding_with_the_start_token(world, golden):
    tokenizer = RagTokenizer.from_pretrained(world / "facebook/rag-token-nq")
    config = RagConfig.from_pretrained(world / "facebook/rag-token-nq")
    ids = tokenizer(text_target="Paris")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.generator.bos_token_id, tokenizer.generator.eos_token_id)
    model = golden.CLASSES["token"].from_pretrained(world / "facebook/rag-token-nq")
    filled = {
        "context_input_ids": golden.integers([ids, ids]),
        "context_attention_mask": golden.integers(np.ones((2, len(ids)), np.int64)),
        "doc_scores": golden.integers([[0.0, 0.0]]),
    }
    made = model.generate(**filled, max_length=4)
    assert (
        int(made[0, 0])
        == config.generator.decoder_start_token_id
        == tokenizer.generator.eos_token_id
    )


@pytest.mark.parametrize("given_beams", [None, 3])
def test_q20_beams_asked_for_in_a_generation_config_are_heard(given_beams, bart, given):
    """4.37.2 searches with config.num_beams (1) whatever the generation_config says."""
    model = bart("sequence")
    chosen = GenerationConfig(num_beams=3 if given_beams is None else 2, max_length=9)
    found = model.generate(**given(), generation_config=chosen, num_beams=given_beams)
    assert equal(found, model.generate(**given(), num_beams=3, max_length=9))


# What a folder says beside its config: nothing, what was made of the config, as 4.37.2 writes it, or
# what somebody wrote, defaults on purpose among it.
WRITTEN = {
    "no file": None,
    "made of the config": None,
    "somebody's": {"length_penalty": 0.5, "min_length": 0, "forced_eos_token_id": None},
}


@pytest.mark.parametrize("file", list(WRITTEN))
@pytest.mark.parametrize("head", HEADS)
def test_q19_q20_a_loaded_model_answers_as_it_was_saved_and_as_was_asked_at_loading(
    head, file, golden, bart, given, tmp_path
):
    """4.37.2's RAG-Token hears options of from_pretrained where a file is, RAG-Sequence beams."""
    model = bart(head)
    model.config.generator.min_length, model.config.generator.forced_eos_token_id = 5, 2
    model.config.num_beams = 2
    written = WRITTEN[file]
    if written is not None:
        model.generation_config = GenerationConfig(max_length=9, **written)
    # A graph would be made at the second call, which takes seconds.
    steps = {}
    if golden.__name__.endswith("tf"):
        steps = {"graph": False}
    plain = model.generate(**given(), **steps)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "generation_config.json").exists() is (written is not None)
    if file == "made of the config":
        GenerationConfig.from_model_config(model.config).save_pretrained(tmp_path)
    load = golden.CLASSES[head].from_pretrained
    assert equal(load(tmp_path).generate(**given(), **steps), plain)
    asked = {"num_beams": 1, "max_length": 6}
    found = load(tmp_path, **asked).generate(**given(), **steps)
    assert equal(found, model.generate(**given(), **steps, **asked))
    assert not equal(found, plain)


def test_q20_a_generators_own_options_are_saved_with_rag_sequence(golden, loaded, given, tmp_path):
    model = loaded("sequence")
    model.generator.generation_config = GenerationConfig(max_length=7)
    model.save_pretrained(tmp_path)
    again = golden.CLASSES["sequence"].from_pretrained(tmp_path)
    assert again.generate(**given()).shape[1] == model.generate(**given()).shape[1] == 7


def test_options_of_a_generator_are_heard_at_loading(backend, golden, loaded, given, tmp_path):
    rag = load_backend(backend)
    model = loaded("sequence")
    ids = given()["context_input_ids"]
    for name, part in (("made", None), ("written", GenerationConfig(num_beams=2))):
        model.generator.generation_config = part
        model.generator.generate(ids)
        model.generator.save_pretrained(tmp_path / name)
        for auto in (rag.BartForConditionalGeneration, rag.AutoModelForSeq2SeqLM):
            alone = auto.from_pretrained(tmp_path / name, min_length=7, max_length=7)
            assert alone.generate(ids).shape[1] == 7
        assert alone.generation_config.num_beams == (part or GenerationConfig()).num_beams
        for head in HEADS:
            joined = golden.CLASSES[head].from_pretrained_question_encoder_generator(
                question_encoder_model=model.question_encoder,
                generator_pretrained_model_name_or_path=tmp_path / name,
                generator_min_length=7,
                generator_max_length=7,
                n_docs=3,
            )
            assert joined.generate(**given()).shape[1] == 7


def test_q19_options_set_in_a_config_count_before_and_after_a_generate(loaded, given):
    """As in 4.37.2's generators; its RAG-Token keeps what it was built with."""
    token, sequence = loaded("token"), loaded("sequence")
    ids = given()["context_input_ids"]
    for length in (5, 6):
        token.config.max_length = length
        assert token.generate(**given()).shape[1] == length
        sequence.config.generator.max_length = length
        assert sequence.generate(**given()).shape[1] == length
        sequence.generator.config.max_length = length
        assert sequence.generator.generate(ids).shape[1] == length
    options = token.generation_config
    token.config.num_beams = 3
    assert options is token.generation_config and options.num_beams == 3
    options.max_length = 4
    token.config.max_length = 8
    assert token.generate(**given()).shape[1] == 4


def test_biases_of_sequences_are_saved(golden, bart, given, tmp_path):
    model = bart("token")
    first = int(model.generate(**given())[0, 1])
    model.generation_config.sequence_bias = {(first,): -9.0, (5, 6): -2.0}
    model.save_pretrained(tmp_path)
    loaded = golden.CLASSES["token"].from_pretrained(tmp_path)
    assert loaded.generation_config.sequence_bias == {(first,): -9.0, (5, 6): -2.0}
    assert int(loaded.generate(**given())[0, 1]) != first


def test_q23_rag_sequence_searches_by_pads_and_not_by_the_mask_given(golden, bart, given):
    model, contexts = bart("sequence", 1), given(1, 4)
    mask = to_numpy(contexts["context_attention_mask"])
    assert (mask == 0).any()
    full = {**contexts, "context_attention_mask": golden.integers(np.ones_like(mask))}
    by_pads, by_mask = (model.generate(**each, max_length=9) for each in (contexts, full))
    assert equal(by_pads, by_mask), (
        "one document and one beam leave nothing for rescoring to choose"
    )
    ids = golden.integers(np.tile(targets("bart", "plain", 2), (2, 1)))
    assert not equal(*(model(**each, decoder_input_ids=ids).logits for each in (contexts, full)))


def test_d3_rag_sequence_rescores_with_the_contexts_it_was_given(golden, bart, given, asked):
    model = bart("sequence")
    options = {"num_beams": 3, "num_return_sequences": 3, "max_length": 9}
    want = model.generate(**given(), **options)
    assert equal(model.generate(**asked, **given(), **options), want)
    model.set_retriever(golden.toy_retriever("bart", "float32"))
    assert equal(model.generate(**asked, **given(), **options), want)


@pytest.mark.parametrize("head", HEADS)
def test_d4_n_docs_of_the_call_counts_to_the_end(head, bart, given):
    as_configured, other = bart(head, 2), bart(head, 3)
    want = as_configured.generate(**given(2), num_beams=2, max_length=9)
    assert equal(other.generate(**given(2), n_docs=2, num_beams=2, max_length=9), want)


def test_d4_padded_questions_are_answered_as_alone(backend, golden, bart):
    """A mean-pooled encoder does not guess its mask as DPR does."""
    size = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    golden.set_seed(0)
    encoder = load_backend(backend).BertEncoder(
        BertConfig(**size, vocab_size=80, pooling="mean", scale=3.0)
    )
    model = golden.CLASSES["sequence"](
        question_encoder=encoder,
        generator=bart("sequence").generator,
        retriever=golden.toy_retriever("bart", "float32"),
        n_docs=3,
    ).eval()
    ids = np.array([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 0, 0, 0]])
    mask = golden.integers((ids != 0).astype(np.int64))
    options = {"num_beams": 2, "max_length": 9, "return_dict_in_generate": True}
    together = model.generate(golden.integers(ids), mask, **options)
    for row, length in enumerate((7, 4)):
        alone = model.generate(golden.integers(ids[row : row + 1, :length]), **options)
        row_together, row_alone = (
            [token for token in to_numpy(made.sequences)[place].tolist() if token != 1]
            for made, place in ((together, row), (alone, 0))
        )
        assert row_together == row_alone
        score, score_alone = together.sequences_scores[row], alone.sequences_scores[0]
        np.testing.assert_allclose(float(score), float(score_alone), rtol=1.3e-6, atol=1e-5)


def test_d9_options_that_rag_token_used_to_ignore_act(golden, bart, given):
    model = bart("token")
    plain = model.generate(**given(), max_length=12)
    assert model.generate(**given(), max_new_tokens=3).shape == (2, 4)
    assert equal(model.generate(**given(), max_length=12, use_cache=False), plain)
    assert not equal(
        model.generate(**given(), max_length=12, do_sample=True, temperature=5.0, seed=1), plain
    )
    stopped = model.generate(
        **given(), max_length=12, stopping_criteria=[lambda ids, scores: ids.shape[1] >= 3]
    )
    assert equal(stopped, plain[:, :3])
    begun = model.generate(
        **given(), max_length=12, decoder_input_ids=golden.integers([[2, 9], [2, 9]])
    )
    assert to_numpy(begun)[:, :2].tolist() == [[2, 9], [2, 9]] and begun.shape[1] <= 12
    out = model.generate(**given(), max_length=12, output_scores=True, return_dict_in_generate=True)
    assert equal(out.sequences, plain) and len(out.scores) == plain.shape[1] - 1
    for refused in (
        {"max_time": 1.0},
        {"penalty_alpha": 0.6},
        {"num_beams": 4, "num_beam_groups": 2},
    ):
        with pytest.raises(ValueError, match="not supported"):
            model.generate(**given(), **refused)


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_d10_no_repeat_over_all_documents_of_a_question(beams, bart, given):
    """4.37.2 divides by zero with fewer beams than documents, and its encoder penalty has the
    wrong number of rows.
    """
    model, contexts = bart("token"), given()
    options = {"num_beams": beams, "max_length": 9}
    rows = to_numpy(model.generate(**contexts, **options, encoder_no_repeat_ngram_size=1))
    read = to_numpy(contexts["context_input_ids"]).reshape(2, -1)
    for row, ids in zip(rows.tolist(), read.tolist(), strict=True):
        assert not (set(row[1:]) - {1, 2}) & set(ids)
    options["max_length"] = 5
    assert model.generate(**contexts, **options, encoder_repetition_penalty=1.5).shape[0] == 2


@pytest.mark.parametrize("head", HEADS)
def test_d12_generate_without_contexts_names_all_three(head, bart, given, asked):
    some = given()
    some.pop("doc_scores")
    with pytest.raises(
        ValueError,
        match="context_input_ids, context_attention_mask and doc_scores must all be given",
    ):
        bart(head).generate(**asked)
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


def test_d21_contexts_are_none_where_nothing_was_retrieved(bart, given, labels):
    out = bart("model")(**given(), decoder_input_ids=labels())
    assert out.context_input_ids is None and "context_input_ids" not in out.keys()


@pytest.mark.parametrize("head", HEADS)
def test_d23_the_callers_lists_stay_as_they_are_and_none_is_the_default(head, golden, bart, given):
    mine = [lambda ids, scores: scores]
    bart(head).generate(**given(), logits_processor=mine, min_length=4, max_length=6)
    assert len(mine) == 1
    defaults = {
        p.default for p in inspect.signature(golden.CLASSES[head].generate).parameters.values()
    }
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


def test_d25_rag_model_takes_a_retriever_and_a_context_encoder(golden, bart, asked, labels):
    model = bart("model")
    model.set_retriever(golden.toy_retriever("bart", "float32"))
    assert model(**asked, decoder_input_ids=labels()).doc_scores.shape == (2, 3)
    assert callable(model.set_context_encoder_for_training)


@pytest.mark.parametrize("head", ["model", *HEADS])
def test_d27_saving_warns_of_nothing_and_stores_tied_weights_once(head, tmp_path, caplog, bart):
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
def test_d30_unknown_options_are_named_by_both_heads(head, name, bart, given):
    """RAG-Token of 4.37.2 passes over them in silence."""
    with pytest.raises(TypeError, match=name):
        bart(head).generate(**given(), max_length=5, **{name: True})


@pytest.mark.parametrize("head", HEADS)
def test_d31_a_prefix_function_is_told_the_questions_number(head, bart, given):
    """4.37.2's RAG-Sequence tells 0, 1 and 2, the numbers of the documents."""
    told = set()

    def any_token(number, ids):
        told.add(int(number))
        return range(96)

    bart(head).generate(**given(), prefix_allowed_tokens_fn=any_token, max_length=4)
    assert told == {0, 1}


def test_d32_encoder_repetition_acts_on_every_beam_by_its_own_context(bart, given):
    """4.37.2's BART writes 23 and 86 for the second context, which has neither."""
    model, contexts = bart("sequence", 1), given(1)
    ids = contexts["context_input_ids"]
    options = {"num_beams": 3, "encoder_repetition_penalty": 50.0, "max_length": 8}
    for found in (model.generator.generate(ids, **options), model.generate(**contexts, **options)):
        for written, read in zip(to_numpy(found)[:, 1:], to_numpy(ids), strict=True):
            assert set(written) <= set(read)


@pytest.mark.parametrize("head", HEADS)
def test_d33_a_forbidden_end_stays_forbidden_while_its_score_grows(head, bart, given):
    """4.37.2 ends after one token, and its RAG-Sequence with 2 where 5 is forced."""
    options = {"exponential_decay_length_penalty": (0, 1.2), "max_length": 9}
    found = to_numpy(bart(head).generate(**given(), **options, min_length=5))
    assert found.shape[1] >= 6 and (found[:, 1:5] != 2).all()
    found = to_numpy(bart(head).generate(**given(), **options, forced_eos_token_id=5))
    assert [row[row != 1][-1] for row in found] == {"token": [2, 2], "sequence": [2, 5]}[head]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "option",
    [
        {"num_beam_groups": 2, "num_beams": 2},
        {"force_words_ids": [[7]], "num_beams": 2},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"max_time": 5.0},
    ],
)
def test_d34_other_searches_are_refused_by_name(head, option, bart, given):
    with pytest.raises(ValueError, match=rf"^{next(iter(option))}=.* is not supported"):
        bart(head).generate(**given(), max_length=5, **option)


@pytest.mark.parametrize("head", HEADS)
def test_whether_a_graph_is_made_is_an_option_of_rag_tf_alone(head, backend, bart, given):
    model, options = bart(head), {**given(), "max_length": 5}
    if backend == "torch":
        with pytest.raises(TypeError, match="graph"):
            model.generate(**options, graph=False)
    else:
        steps = model.generate(**options, graph=False)
        assert steps.numpy().tolist() == model.generate(**options, graph=True).numpy().tolist()


def test_return_dict_false_gives_a_tuple(bart, given, asked, labels):
    """4.37.2's RAG classes return the record whatever is asked."""
    model = bart("token")
    assert isinstance(model(**given(), labels=labels(), return_dict=False), tuple)
    record = model(**given(), labels=labels())
    model.config.return_dict = False
    assert equal(model(**given(), labels=labels())[0], record.loss)


def test_a_part_of_unknown_type_can_be_described_but_not_built(golden):
    config = RagConfig(
        question_encoder=DPRConfig(), generator={"model_type": "pegasus", "d_model": 8}
    )
    assert RagConfig.from_dict(config.to_dict()).generator.d_model == 8
    with pytest.raises(ValueError, match="no generator is known for model_type 'pegasus'"):
        golden.CLASSES["model"](config)


def test_t2_the_loss_is_of_the_decoders_input(bart, given, labels):
    model = bart("sequence", precision="float64")
    contexts, fed, others = given(precision="float64"), labels("plain"), labels("padded")
    both = model(**contexts, decoder_input_ids=fed, labels=others).loss
    assert equal(both, model(**contexts, labels=fed).loss)
    assert not np.allclose(both, model(**contexts, labels=others).loss)


@pytest.mark.parametrize("head", HEADS)
def test_t3_losses_are_smoothed_and_summed_where_asked_only(head, bart, given, labels):
    contexts = given(precision="float64")
    plain, smooth = (
        bart(head, precision="float64", label_smoothing=epsilon) for epsilon in (0.0, 0.1)
    )
    each = to_numpy(plain(**contexts, labels=labels()).loss)
    assert each.shape == (2,)
    reduced = plain(**contexts, labels=labels(), reduce_loss=True).loss
    np.testing.assert_allclose(to_numpy(reduced), each.sum(), rtol=1e-12)
    assert not np.allclose(each, to_numpy(smooth(**contexts, labels=labels()).loss))


def test_t4_switches_of_the_config_count_and_false_overrides_them(golden, bart, asked, labels):
    switches = {"output_retrieved": True, "do_marginalize": True, "reduce_loss": True}
    model = bart("token", precision="float64", **switches)
    model.set_retriever(golden.toy_retriever("bart", "float64"))
    on = model(**asked, labels=labels())
    assert on.retrieved_doc_ids.shape == (2, 3) and on.loss.shape == () and on.logits.shape[0] == 2
    off = model(**asked, labels=labels(), **dict.fromkeys(switches, False))
    assert off.retrieved_doc_ids is None and off.loss.shape == (2,) and off.logits.shape[0] == 6


def test_t6_options_of_the_call_count(golden):
    model = golden.build("t5", "token", 1, "float32", 3)
    given = golden.tensors(contexts("t5", "loss", 2, 3), "float32")
    options = {**given, "num_beams": 4, "max_length": 16, "length_penalty": -9.0}
    usual = model.generate(**options)
    assert model.generate(**options, num_return_sequences=3).shape[0] == 6
    for option in (
        {"length_penalty": 9.0},
        {"prefix_allowed_tokens_fn": lambda batch, ids: [5, 6, 7]},
    ):
        changed = model.generate(**{**options, **option})
        assert changed.shape != usual.shape or not equal(changed, usual), option


def test_t8_cross_attentions_argument_order_and_a_live_document_encoder(
    golden, bart, asked, labels
):
    model = bart("model", precision="float64")
    model.set_retriever(golden.toy_retriever("bart", "float64"))
    # encoder_outputs third
    outputs = model(*asked.values(), None, labels(), output_attentions=True)
    assert len(outputs.generator_cross_attentions) == 2
    width = outputs.generator_enc_attentions[0].shape[-1]
    assert outputs.generator_cross_attentions[0].shape == (6, 4, 6, width)
    model.set_context_encoder_for_training(golden.context_encoder("bart", "float64"))
    live = model(*asked.values(), None, labels())
    assert not np.allclose(live.doc_scores, outputs.doc_scores)


def test_t9_parts_from_folders_or_at_hand_and_their_overrides(backend, golden, tmp_path):
    rag = load_backend(backend)
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    sizes = {"vocab_size": 20, "d_model": 8, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    generator = rag.BartForConditionalGeneration(
        BartConfig(**layers, **sizes, decoder_attention_heads=2)
    )
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = rag.DPRQuestionEncoder(DPRConfig(**small, vocab_size=20, intermediate_size=8))
    encoder.save_pretrained(tmp_path / "encoder")
    generator.save_pretrained(tmp_path / "generator")
    join = golden.CLASSES["token"].from_pretrained_question_encoder_generator
    assert join(str(tmp_path / "encoder"), generator_model=generator).generator is generator
    loaded = join(str(tmp_path / "encoder"), str(tmp_path / "generator"), generator_max_length=17)
    assert loaded.config.generator.max_length == 17


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_t10_the_index_is_asked_in_float32_whatever_the_weights(
    precision, golden, bart, asked, labels
):
    types = []
    retrieve = golden.toy_retriever("bart", "float32")

    def watched(ids, vectors, **options):
        types.append(vectors.dtype)
        return retrieve(ids, vectors, **options)

    model = bart("token", precision=precision)
    model.set_retriever(watched)
    outputs = model(**asked, labels=labels())
    model.generate(**asked, max_length=4)
    assert types == [np.float32] * 2
    assert str(outputs.doc_scores.dtype).endswith(("torch.float32", "'float32'>"))


@pytest.mark.parametrize(
    "backend", [pytest.param("tf", marks=pytest.mark.backend("tf"))], scope="module"
)
def test_ids_are_64_bits_wide_and_32_are_taken(backend, bart, given):
    import tensorflow as tf

    ids = BatchEncoding({"input_ids": [[5, 6]]}, tensor_type=backend).input_ids
    assert ids.dtype == tf.int64
    assert tf.concat([tf.cast(ids, tf.int32), tf.constant([[2]])], 1).dtype == tf.int32
    narrow = {
        name: tf.cast(value, tf.int32) if value.dtype == tf.int64 else value
        for name, value in given().items()
    }
    assert bart("token").generate(**narrow, n_docs=3, max_length=3).dtype == tf.int64
