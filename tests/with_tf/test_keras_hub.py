"""Encoder-decoders of KerasHub as generators of both heads: what docs/tensorflow.md shows runs, and
is the same function as KerasHub's own.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import rag_tf
from rag_core import DPRConfig
from rag_core.checkpoint import bart_from_keras_hub
from rag_tf import (
    BartForConditionalGeneration,
    DPRQuestionEncoder,
    RagSequenceForGeneration,
    RagTokenForGeneration,
)
from tests.support.demo_cache import write_demo_cache

pytestmark = pytest.mark.beyond
PAGE = Path(__file__).parents[2] / "docs/tensorflow.md"
V = 23
SIZES = {
    "vocabulary_size": V,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 16,
    "intermediate_dim": 24,
}
BERT = {
    "vocab_size": 19,
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
# TensorFlow's gelu rounds the root of two to float32.
TOLERANCE = 1e-6
LABELS = np.array([[4, 9, 12, 7, 2], [5, 8, 2, 1, 1]])
TOKENS = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
ENDING = {"forced_eos_token_id": 2}  # which BART's config has


@pytest.fixture(scope="module")
def keras_hub():
    return pytest.importorskip("keras_hub", reason="needs Python 3.11")


@pytest.fixture(scope="module")
def page(keras_hub, tmp_path_factory):
    """The names that the page's section leaves behind."""
    section = re.search(
        r"^## KerasHub\n(.*?)^## ", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    blocks = re.findall(r"^```python\n(.*?)^```$", section[1], re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("reader"))
        patch.setenv("DUALRAG_HOME", str(write_demo_cache(tmp_path_factory.mktemp("demo"), rag_tf)))
        for block in blocks:
            exec(block, names)
    return names


@pytest.fixture(scope="module")
def bart(keras_hub):
    """In float64, with strong weights."""
    backbone = keras_hub.models.BartBackbone(**SIZES, max_sequence_length=24, dtype="float64")
    return keras_hub.models.BartSeq2SeqLM(strong(backbone))


def strong(backbone):
    draw = np.random.default_rng(0)
    for weight in backbone.weights:
        centre = float(np.mean(weight))  # norms are around one
        weight.assign(centre + 0.5 * draw.normal(size=weight.shape))
    return backbone


def contexts():
    """Three contexts for each of two questions, of other lengths."""
    draw = np.random.default_rng(0)
    ids = draw.integers(3, V, (6, 7))
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    return {
        "context_input_ids": ids,
        "context_attention_mask": mask,
        "doc_scores": draw.normal(size=(2, 3)),
    }


def taken_over(bart):
    config, weights = bart_from_keras_hub(bart)
    return BartForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=weights, dtype="float64"
    )


def test_what_the_page_makes_is_saved_whole_and_loads(page, tmp_path):
    model = page["model"]
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == len(set(names))
    strong(page["t5"])
    given = {**contexts(), "labels": LABELS}
    want = model(**given, n_docs=3).loss
    model.save_pretrained(tmp_path / "saved")
    drawn = page["keras_hub"].models.T5Backbone(
        vocabulary_size=page["t5"].vocabulary_size, **page["sizes"]
    )
    fresh = page["KerasHubGenerator"](
        drawn, lambda hidden: drawn.token_embedding(hidden * 32**-0.5, reverse=True), **TOKENS
    )
    again = RagTokenForGeneration.from_pretrained(tmp_path / "saved", generator=fresh)
    np.testing.assert_allclose(again(**given, n_docs=3).loss, want, rtol=1e-6)


def test_logits_are_those_of_keras_hub(page, bart):
    t5 = page["keras_hub"].models.T5Seq2SeqLM(strong(page["t5"]))
    given = contexts()
    ids, mask = given["context_input_ids"], given["context_attention_mask"]
    fed = np.resize(LABELS, (len(ids), 5))
    inputs = {
        "encoder_token_ids": ids,
        "encoder_padding_mask": mask,
        "decoder_token_ids": fed,
        "decoder_padding_mask": np.ones_like(fed),
    }
    ids, mask, fed = map(tf.constant, (ids, mask, fed))
    for ours, theirs in ((taken_over(bart), bart), (page["generator"], t5)):
        got = ours(input_ids=ids, attention_mask=mask, decoder_input_ids=fed).logits
        np.testing.assert_allclose(got, theirs(inputs), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("head", [RagTokenForGeneration, RagSequenceForGeneration])
def test_taken_over_or_behind_the_adapter(page, bart, head):
    """KerasHub's own network gives the same losses and answers."""
    backbone = bart.backbone
    adapter = page["KerasHubGenerator"](
        backbone, lambda hidden: backbone.token_embedding(hidden, reverse=True), **TOKENS
    )
    encoder = DPRQuestionEncoder(DPRConfig(**BERT))
    ours, theirs = (
        head(question_encoder=encoder, generator=each, n_docs=3)
        for each in (taken_over(bart), adapter)
    )
    given = contexts()
    with tf.GradientTape() as tape:
        loss = theirs(**given, labels=LABELS).loss
    np.testing.assert_allclose(loss, ours(**given, labels=LABELS).loss, rtol=TOLERANCE)
    weights = list(theirs.generator.trainable_variables)
    assert len(weights) == len(backbone.weights)
    assert all(each is not None for each in tape.gradient(loss, weights))
    options = {"num_beams": 2, "max_length": 7, "n_docs": 3, "no_repeat_ngram_size": 1, **ENDING}
    np.testing.assert_array_equal(
        theirs.generate(**given, **options), ours.generate(**given, **options)
    )


def test_what_is_no_plain_bart_is_refused(keras_hub, page):
    with pytest.raises(TypeError, match="BartBackbone of KerasHub, got T5Backbone"):
        bart_from_keras_hub(page["t5"])
    adapted = keras_hub.models.BartBackbone(**SIZES)
    adapted.enable_lora(2)
    config, weights = bart_from_keras_hub(adapted)
    with pytest.raises(ValueError, match="lora_kernel_a"):
        BartForConditionalGeneration.from_pretrained(None, config=config, state_dict=weights)
