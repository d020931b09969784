"""Encoders as sentence-transformers 6.2.0 saves them, held against the vectors that it recorded
(`conformance/record_sentence_encoders.py`).
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rag_core import AutoConfig, KnowledgeBase, build_knowledge_base
from rag_core.backends import load_backend
from tests.support.frameworks import INSTALLED

FOLDER = Path(__file__).parents[1] / "data" / "sentence_encoders"
KINDS = ("bert", "distilbert", "mpnet", "roberta", "xlm-roberta")
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
RECORDED = np.load(FOLDER / "vectors.npz")
TEXTS = RECORDED["texts"].tolist()


@pytest.fixture(scope="module", params=sorted(INSTALLED))
def rag(request):
    return load_backend(request.param)


def same(found, name):
    np.testing.assert_allclose(found, RECORDED[name], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_sentence_transformers(rag, kind, tmp_path):
    encoder = rag.load_encoder(FOLDER / kind)
    same(encoder.embed_texts(TEXTS), f"{kind}/passages")
    same(encoder.embed_questions(TEXTS), f"{kind}/questions")
    # a model that was trained here is saved as the BERT that it is, and is the same one
    encoder.save_pretrained(tmp_path)
    again = rag.load_encoder(tmp_path)
    same(again.embed_texts(TEXTS), f"{kind}/passages")
    same(again.embed_questions(TEXTS), f"{kind}/questions")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "bert"
    assert config.get("converted_from") == (None if kind == "bert" else kind)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_all_kinds_of_pooling(rag, pooling, tmp_path):
    folder = shutil.copytree(FOLDER / "bert", tmp_path / "bert")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
    # "cosine" would make them unit vectors
    (folder / "config_sentence_transformers.json").unlink()
    same(rag.load_encoder(folder).embed_texts(TEXTS), f"bert/{pooling}")


def test_which_texts_are_long_enough_to_tell(rag):
    encoder = rag.load_encoder(FOLDER / "mpnet")
    ids = encoder.tokenizer(TEXTS[2])["input_ids"]
    # beyond the distance from which all share a bucket
    assert len(ids) > 130


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_is_found(rag, kind):
    """What a wrong reading of a folder would change is far from the tolerance."""
    encoder = rag.load_encoder(FOLDER / kind)
    config = encoder.model.config
    weights = {
        "bert": "encoder.layer.1.output.LayerNorm.bias",
        "distilbert": "embeddings.position_embeddings.weight",
        "mpnet": "encoder.relative_attention_bias.weight",
        "roberta": "embeddings.position_embeddings.weight",
        "xlm-roberta": "embeddings.position_embeddings.weight",
    }
    arrays = encoder.model._to_arrays(None)
    rolled = {**arrays, weights[kind]: np.roll(arrays[weights[kind]], 1, axis=0)}
    network = type(encoder.model).from_pretrained(None, config=config, state_dict=rolled)
    encoder.model = network.eval()
    wrong = np.abs(encoder.embed_texts(TEXTS) - RECORDED[f"{kind}/passages"]).max()
    assert wrong > 1e-3


def test_a_knowledge_base_remembers_prompts(rag, tmp_path):
    prompts = {"query": "query : ", "passage": "who "}
    encoder = rag.load_encoder(FOLDER / "roberta", prompts=prompts)
    (tmp_path / "text.txt").write_text(TEXTS[1])
    kb = build_knowledge_base(
        tmp_path / "text.txt",
        tmp_path / "kb",
        encoder.embed,
        encoder_name=str(FOLDER / "roberta"),
        encoder_prompts=encoder.prompts,
        progress=False,
    )
    assert kb.manifest.encoder["prompts"] == prompts
    # loaded anew by the name in the manifest, it is the same one
    [hit] = KnowledgeBase.open(kb.path).search(
        TEXTS[0], k=1, backend=rag.__name__.removeprefix("rag_")
    )
    [question] = encoder.embed_questions([TEXTS[0]])
    assert hit.score == pytest.approx(float(question @ kb.dataset()[0]["embeddings"]), rel=1e-4)
    with pytest.raises(ValueError, match=r"prompts must be of 'query' and 'passage', got \['q'\]"):
        rag.load_encoder(FOLDER / "roberta", prompts={"q": ""})
    (tmp_path / "config.json").write_text('{"model_type": "dpr"}')
    with pytest.raises(ValueError, match=r"prompts must be left out .* DPR's encoder of passages"):
        rag.load_encoder(tmp_path, prompts=prompts)


@pytest.mark.parametrize("kind", ("albert", "deberta-v2"))
def test_other_architectures_are_refused_by_name(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ValueError, match=f"model_type must be one of .*mpnet.*; got '{kind}'"):
        AutoConfig.from_pretrained(tmp_path)
