"""What scripts written for transformers ask of a model besides calling it.

The same of both frameworks.
"""

import numpy as np
import pytest

from rag_core import BartConfig, DPRConfig, RagConfig
from rag_core.backends import load_backend, to_numpy
from tests.support.hub_keywords import HARMLESS, REFUSED

DPR = DPRConfig(vocab_size=13, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                max_position_embeddings=20)  # fmt: skip
BART = BartConfig(
    vocab_size=11, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=20,
)  # fmt: skip


@pytest.fixture(scope="module")
def rag(backend):
    return load_backend(backend)


@pytest.fixture(scope="module")
def folder(rag, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "rag"
    model = rag.RagTokenForGeneration(
        RagConfig.from_question_encoder_generator_configs(DPR, BART, n_docs=2)
    )
    model.save_pretrained(folder)
    return folder


def arrays(model):
    return {name: np.asarray(value) for name, value in model.state_dict().items()}


def same(one, other):
    one, other = arrays(one), arrays(other)
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name]) for name in one
    )


def test_loading_keywords_change_nothing_or_are_refused(rag, folder):
    plain = rag.RagTokenForGeneration.from_pretrained(folder)
    loaded, info = rag.RagTokenForGeneration.from_pretrained(
        folder, **HARMLESS, device_map={"": "cpu"}, output_loading_info=True
    )
    assert same(loaded, plain)
    assert info == {
        "missing_keys": [],
        "unexpected_keys": [],
        "mismatched_keys": [],
        "error_msgs": [],
    }
    assert not loaded.config.extra.keys() & HARMLESS.keys()
    for name, value in REFUSED.items():
        with pytest.raises(ValueError, match=f"^{name} must be"):
            rag.RagTokenForGeneration.from_pretrained(folder, **{name: value})
    with pytest.raises(TypeError, match="low_cpu_mem_usagee"):
        rag.RagTokenForGeneration.from_pretrained(folder, low_cpu_mem_usagee=True)
    with pytest.raises(ValueError, match="device_map must name one device"):
        rag.RagTokenForGeneration.from_pretrained(
            folder, device_map={"rag.generator": 0, "rag.question_encoder": 1}
        )


def test_a_notebook_shows_a_model(rag, folder):
    model = rag.RagTokenForGeneration.from_pretrained(folder)
    shown = model._repr_html_()
    for part in ("DPRQuestionEncoder", "BartForConditionalGeneration", "numbers, float32", "kB<"):
        assert part in shown
    assert str(folder) in shown and "retriever" not in shown.partition("<details>")[0]
    assert shown.count("<td ") == shown.count("</td>") >= 4
    line = repr(model.generator)
    if rag.__name__ == "rag_torch":  # torch's own, which people know
        assert line.startswith("BartForConditionalGeneration(\n  (model): BartModel(")
    else:
        assert line.startswith("BartForConditionalGeneration(weights: ")
        assert repr(model).startswith("RagTokenForGeneration(question encoder: DPRQuestionEncoder")


def test_config_and_weights_come_from_elsewhere(rag, folder, tmp_path):
    plain = rag.RagTokenForGeneration.from_pretrained(folder)
    assert same(rag.RagTokenForGeneration.from_pretrained(folder, config=str(folder)), plain)
    other = rag.RagTokenForGeneration(plain.config)
    given = other.state_dict()
    assert not same(plain, other)
    assert same(rag.RagTokenForGeneration.from_pretrained(folder, state_dict=given), other)
    assert same(
        rag.RagTokenForGeneration.from_pretrained(None, config=plain.config, state_dict=given),
        other,
    )
    with pytest.raises(
        ValueError, match="config must be given where pretrained_model_name_or_path is None"
    ):
        rag.RagTokenForGeneration.from_pretrained(None, state_dict=given)
    with pytest.raises(
        TypeError,
        match="config must be a RagConfig or the name of a folder or repository, got dict",
    ):
        rag.RagTokenForGeneration.from_pretrained(folder, config={})
    del (
        given["rag.generator.final_logits_bias"],
        given["rag.generator.model.encoder.layers.0.fc1.bias"],
    )
    with pytest.raises(
        ValueError, match=r"state_dict doesn't fit(.|\n)*1 missing: .*layers\.0\.fc1\.bias"
    ):
        rag.RagTokenForGeneration.from_pretrained(folder, state_dict=given)


def test_saving_heeds_the_process_and_the_weights_given(rag, folder, tmp_path):
    plain = rag.RagTokenForGeneration.from_pretrained(folder)
    other = rag.RagTokenForGeneration(plain.config)
    plain.save_pretrained(tmp_path / "none", is_main_process=False, state_dict={})
    assert not (tmp_path / "none").exists()
    given = other.state_dict()
    for name in ("rag.generator.model.shared.weight", "rag.generator.lm_head.weight"):
        del given[name]  # tied: one name is enough
    plain.save_pretrained(
        tmp_path / "x", is_main_process=True, save_function=print, state_dict=given
    )
    assert same(rag.RagTokenForGeneration.from_pretrained(tmp_path / "x"), other)
    with pytest.raises(ValueError, match=r"state_dict doesn't fit(.|\n)*1 unexpected: nonsense"):
        plain.save_pretrained(
            tmp_path / "y",
            state_dict={**given, "nonsense": given["rag.generator.final_logits_bias"]},
        )
    for name, value in {
        "state_dict": 5,
        "safe_serialization": "yes",
        "push_to_hub": "me/model",
    }.items():
        with pytest.raises(TypeError, match=rf"^{name} must "):
            plain.save_pretrained(tmp_path / "y", **{name: value})
    assert not (tmp_path / "y").exists()


def test_a_state_dict_is_loaded_that_holds_tied_weights_once(rag, folder):
    plain = rag.RagTokenForGeneration.from_pretrained(folder)
    other = rag.RagTokenForGeneration(plain.config)
    given = {
        name: value
        for name, value in plain.state_dict().items()
        if not name.endswith(("shared.weight", "lm_head.weight"))
    }
    other.load_state_dict(given)
    assert same(other, plain)
    assert other.get_output_embeddings().weight is other.get_input_embeddings().weight
    del given["rag.generator.final_logits_bias"]
    with pytest.raises((RuntimeError, ValueError), match="final_logits_bias"):
        other.load_state_dict(given)


def test_hub_options_reach_both_parts_and_not_the_config(rag, folder, tmp_path):
    rag.DPRQuestionEncoder(DPR).save_pretrained(tmp_path / "encoder")
    rag.BartForConditionalGeneration(BART).save_pretrained(tmp_path / "generator")
    parts = tmp_path / "encoder", tmp_path / "generator"
    model = rag.RagModel.from_pretrained_question_encoder_generator(
        *parts, token="secret", low_cpu_mem_usage=True, generator_use_safetensors=True, n_docs=3
    )
    assert model.config.n_docs == 3
    if rag.__name__ == "rag_torch":
        assert not any(module.training for module in model.modules())
    assert "secret" not in str(model.config.to_dict())
    assert not {"token", "low_cpu_mem_usage"} & model.config.extra.keys()
    whole = RagConfig.from_question_encoder_generator_configs(DPR, BART, n_docs=7, title_sep=" | ")
    whole.generator.dropout = 0.9
    whole.save_pretrained(tmp_path / "whole")
    for config in (whole, tmp_path / "whole"):
        model = rag.RagModel.from_pretrained_question_encoder_generator(
            *parts, config=config, n_docs=3
        )
        assert (model.config.n_docs, model.config.title_sep, whole.n_docs) == (3, " | ", 7)
        assert model.config.generator.dropout == BART.dropout and "config" not in model.config
    with pytest.raises(
        TypeError, match="config must be a RagConfig or where to read one, got dict"
    ):
        rag.RagModel.from_pretrained_question_encoder_generator(*parts, config={})


def test_names_and_sizes(rag, folder):
    model = rag.RagTokenForGeneration.from_pretrained(folder)
    generator = model.generator
    assert model.name_or_path == str(folder)
    assert model.framework == {"rag_torch": "pt", "rag_tf": "tf"}[rag.__name__]
    assert (model.base_model, generator.base_model) == (model.rag, generator.model)
    assert model.question_encoder.base_model is model.question_encoder.question_encoder
    assert (model.main_input_name, model.base_model_prefix) == ("input_ids", "rag")
    assert (model.can_generate(), rag.RagModel.can_generate()) == (True, False)
    tables = 11 * 8 + 2 * 22 * 8 + (13 + 20 + 2) * 8  # tokens, positions; tokens, positions, kinds
    assert model.num_parameters() - model.num_parameters(exclude_embeddings=True) == tables
    assert model.get_memory_footprint() == 4 * sum(
        array.size
        for name, array in arrays(model).items()
        if not name.endswith(("embed_tokens.weight", "lm_head.weight"))
    )
    assert model.num_parameters(only_trainable=True) == sum(
        array.size
        for name, array in arrays(model).items()
        if not name.endswith(("embed_tokens.weight", "lm_head.weight", "final_logits_bias"))
    )


def test_token_tables_are_replaced_and_resized(rag, folder):
    model = rag.RagTokenForGeneration.from_pretrained(folder)
    other = rag.RagTokenForGeneration(model.config)
    table = other.get_input_embeddings()
    model.set_input_embeddings(table)
    assert model.get_input_embeddings() is table
    generator = model.generator
    weights = (
        generator.model.encoder.embed_tokens.weight,
        generator.model.decoder.embed_tokens.weight,
    )
    assert all(each is table.weight for each in (*weights, model.get_output_embeddings().weight))
    model.set_output_embeddings(other.get_output_embeddings())
    assert model.get_output_embeddings() is other.get_output_embeddings()
    encoder = model.question_encoder
    with pytest.raises(
        ValueError, match=r"value must be a layer whose weight has the shape \(13, 8\)"
    ):
        encoder.set_input_embeddings(table)
    assert model.resize_token_embeddings(pad_to_multiple_of=8).num_embeddings == 16
    assert model.resize_token_embeddings(17, pad_to_multiple_of=8).num_embeddings == 24
    assert (model.config.vocab_size, model.config.generator.vocab_size) == (24, 24)
    with pytest.raises(
        ValueError, match="pad_to_multiple_of must be a whole number from 1 to 2147483647, got 0"
    ):
        model.resize_token_embeddings(pad_to_multiple_of=0)
    for wrong in (0, 1.5, "many", True, 10**12):
        with pytest.raises(
            (TypeError, ValueError), match=r"^new_num_tokens must be a whole number from 1 to"
        ):
            model.resize_token_embeddings(wrong)


@pytest.mark.parametrize("part", ["generator", "question_encoder", "rag"])
def test_a_part_that_was_resized_alone_is_saved_as_it_is(part, rag, folder, tmp_path):
    model = rag.RagSequenceForGeneration.from_pretrained(folder, label_smoothing=0.2)
    getattr(model.rag, part).resize_token_embeddings(19)
    model.save_pretrained(tmp_path)
    loaded = rag.RagSequenceForGeneration.from_pretrained(tmp_path)
    assert same(loaded, model)
    sizes = {"question_encoder": (19, None, 11)}.get(part, (13, 19, 19))
    config = loaded.config
    vocabularies = (
        config.question_encoder.vocab_size,
        config.vocab_size,
        config.generator.vocab_size,
    )
    assert vocabularies == sizes
    ids = rag.as_tensor(np.array([[4, 5, 6], [7, 8, 9]]))
    given = {
        "context_input_ids": ids,
        "context_attention_mask": rag.as_tensor(np.ones((2, 3), np.int64)),
        "doc_scores": rag.as_tensor(np.array([[0.5, -0.5]], np.float32)),
        "return_dict_in_generate": True,
    }
    # Smoothing is over the whole vocabulary.
    scores = [to_numpy(each.generate(**given).sequences_scores) for each in (model, loaded)]
    np.testing.assert_array_equal(*scores)


def test_a_context_encoder_that_was_taken_out_is_not_saved(rag, folder, tmp_path):
    model = rag.RagTokenForGeneration.from_pretrained(folder)
    model.set_context_encoder_for_training(rag.DPRContextEncoder(DPR))
    model.rag.context_encoder_training = False
    model.save_pretrained(tmp_path)
    loaded = rag.RagTokenForGeneration.from_pretrained(tmp_path)
    assert loaded.ctx_component is not None and not loaded.rag.context_encoder_training
    built = rag.RagTokenForGeneration(loaded.config)
    loaded.set_context_encoder_for_training(None)
    assert not loaded.rag.context_encoder_training
    for each in (loaded, built):
        each.save_pretrained(tmp_path)
        again = rag.RagTokenForGeneration.from_pretrained(tmp_path)
        assert again.ctx_component is None
        assert not again.config.extra.keys() & {"ctx_encoder", "context_encoder_training"}


def test_inputs_for_a_loop_of_ones_own_give_the_whole_passs_scores(rag, folder):
    model = rag.RagTokenForGeneration.from_pretrained(folder)
    ids, scores = np.array([[4, 5, 6], [7, 8, 1]]), np.array([[0.5, -0.5]], np.float32)
    contexts = {
        "context_attention_mask": rag.as_tensor((ids != 1).astype(int)),
        "doc_scores": rag.as_tensor(scores),
    }
    answer = np.array([[2, 5, 7, 9]])
    whole = model(context_input_ids=rag.as_tensor(ids), decoder_input_ids=rag.as_tensor(answer), do_marginalize=True,
                  **contexts)  # fmt: skip
    states, past = (whole.generator_enc_last_hidden_state,), None
    for length in range(1, 5):
        inputs = model.prepare_inputs_for_generation(
            rag.as_tensor(answer[:, :length]), past, attention_mask=contexts["context_attention_mask"], use_cache=True,
            encoder_outputs=states, doc_scores=contexts["doc_scores"],
        )  # fmt: skip
        assert inputs["decoder_input_ids"].shape == (1, 1)
        step = model(**inputs)
        past = step.past_key_values
        got, want = to_numpy(step.logits[:, -1]), to_numpy(whole.logits[:, length - 1])
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    with pytest.raises(NotImplementedError, match="RagSequenceForGeneration has no next token"):
        rag.RagSequenceForGeneration(model.config).prepare_inputs_for_generation(None)


@pytest.mark.parametrize("beams", [1, 3])
def test_scores_of_the_tokens_written_add_up_to_the_sequences(rag, folder, beams):
    generator = rag.RagTokenForGeneration.from_pretrained(folder).generator
    ids = rag.as_tensor(np.array([[4, 5, 6], [7, 8, 1]]))
    asked = {
        "num_beams": beams,
        "num_return_sequences": beams,
        "max_length": 7,
        "length_penalty": 0.5,
    }
    out = generator.generate(ids, **asked, return_dict_in_generate=True, output_scores=True)
    found = generator.compute_transition_scores(
        out.sequences, out.scores, out.beam_indices, normalize_logits=True
    )
    found, tokens = to_numpy(found), to_numpy(out.sequences)
    assert found.shape == (2 * beams, tokens.shape[1] - 1)
    if beams == 1:
        logits = to_numpy(out.scores[0])
        want = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        np.testing.assert_allclose(found[:, 0], want[np.arange(2), tokens[:, 1]], rtol=1e-5)
        return
    lengths = (to_numpy(out.beam_indices) >= 0).sum(1)
    np.testing.assert_allclose(
        found.sum(1) / lengths**0.5, to_numpy(out.sequences_scores), rtol=1e-4
    )
    with pytest.raises(ValueError, match="scores must hold an array for each step, got none"):
        generator.compute_transition_scores(out.sequences, None, out.beam_indices)
    with pytest.raises(ValueError, match="scores must be of the call that wrote the sequences"):
        generator.compute_transition_scores(out.sequences, out.scores[:1], out.beam_indices)
    with pytest.raises(ValueError, match="Hand over beam_indices where there are beams"):
        generator.compute_transition_scores(out.sequences[:2], out.scores)
    with pytest.raises(ValueError, match="RagSequenceForGeneration scores whole answers"):
        rag.RagSequenceForGeneration.from_pretrained(folder).compute_transition_scores(
            out.sequences, out.scores
        )


def test_rag_token_passes_over_do_deduplication_as_scripts_for_both_heads_say_it(rag, folder):
    model = rag.RagTokenForGeneration.from_pretrained(folder)
    ids = rag.as_tensor(np.array([[4, 5, 6], [7, 8, 9]]))
    given = {"context_input_ids": ids, "context_attention_mask": rag.as_tensor(np.ones((2, 3), int)),
             "doc_scores": rag.as_tensor(np.zeros((1, 2), np.float32)), "max_length": 5}  # fmt: skip
    want = to_numpy(model.generate(**given))
    for flag in (True, False, None):
        assert (to_numpy(model.generate(**given, do_deduplication=flag)) == want).all()
    with pytest.raises(TypeError, match="do_deduplication must be"):
        model.generate(**given, do_deduplication="no")
    with pytest.raises(TypeError, match="do_deduplication"):
        model.generator.generate(ids, do_deduplication=False)
