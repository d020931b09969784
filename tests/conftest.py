"""What several test files share: a world of tiny models and data, and the parts of a retriever."""

import os
import re
from importlib import import_module

# One thread each for the workers of pytest-xdist, read by the libraries when they are loaded.
os.environ |= dict.fromkeys(
    ("OMP_NUM_THREADS", "TF_NUM_INTEROP_THREADS", "TF_NUM_INTRAOP_THREADS"), "1"
)

import pytest
from hypothesis import HealthCheck, settings

from tests.support.backends import BACKENDS
from tests.support.browser import why_not
from tests.support.frameworks import INSTALLED, left_out
from tests.support.golden_prompts import GOLDEN, VECTORS, config, write_tokenizers
from tests.support.hub_folders import write_wiki_dpr

# No test survives a loss of power, and syncing costs more than all else that writers do.
os.fsync = lambda handle: None

# A busy machine makes drawing examples slow, which says nothing about the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

collect_ignore = left_out()


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "backend(name): needs torch or tf, and is left out where it is not installed"
    )
    config.addinivalue_line(
        "markers",
        "beyond: run by `make beyond` alone, as it needs a library of the extra `beyond` (imported "
        "within the test), a server or a second process",
    )


def pytest_report_header(config):
    return f"frameworks: {sorted(INSTALLED)}; files left out for want of one: {collect_ignore}"


def pytest_terminal_summary(terminalreporter):
    if reason := why_not():
        terminalreporter.write_line(f"Left out, tests of the page in a browser: {reason}")


def pytest_collection_modifyitems(config, items):
    needs = {
        item: {name for mark in item.iter_markers("backend") for name in mark.args}
        for item in items
    }
    config.hook.pytest_deselected(items=[item for item in items if not needs[item] <= INSTALLED])
    items[:] = [item for item in items if needs[item] <= INSTALLED]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hands out a file as a whole, but its tests of either backend by themselves."""
    from xdist.scheduler import LoadFileScheduling

    class ByFileAndBackend(LoadFileScheduling):
        def _split_scope(self, nodeid):
            backend = re.search(r"[\[-](torch|tf)[\]-]", nodeid)
            return super()._split_scope(nodeid) + (f"@{backend[1]}" if backend else "")

    return ByFileAndBackend(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request):
    """ "torch", and then "tf"."""
    return request.param


@pytest.fixture(scope="module")
def golden(backend):
    """The catalogue's models in that backend: `tests.support.golden_torch` or `golden_tf`."""
    return import_module(f"tests.support.golden_{backend}")


@pytest.fixture
def offline(monkeypatch):
    """No hub, here and in programs that a test starts."""
    # The library reads the environment once: it must not be imported under a test's own.
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


SIZE, ROWS = 16, 12
MODELS = ("facebook/rag-token-base", "facebook/rag-token-nq", "facebook/rag-sequence-nq")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A working directory in which `facebook/...` are folders.

    Tiny models, a tiny wiki_dpr, a DPR repository.
    """
    from rag_core import DPRConfig, RagConfig, RagTokenizer, Tokenizer
    from rag_core.backends import load_backend

    rag = load_backend()
    if rag.__name__ == "rag_torch":
        import torch

        torch.manual_seed(0)
    else:
        import tensorflow as tf

        tf.random.set_seed(0)
    root = tmp_path_factory.mktemp("world")
    write_tokenizers(root / "tokenizers")
    question = Tokenizer.from_pretrained(root / "tokenizers" / "question")
    target = Tokenizer.from_pretrained(root / "tokenizers" / "bart")
    encoder = {
        "model_type": "dpr",
        "vocab_size": len(question),
        "hidden_size": SIZE,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    layers = {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
    }
    generator = {
        "model_type": "bart",
        "vocab_size": len(target),
        "d_model": 16,
        **layers,
        "pad_token_id": target.pad_token_id,
        "bos_token_id": target.bos_token_id,
        "eos_token_id": target.eos_token_id,
        "decoder_start_token_id": target.eos_token_id,
    }
    config = RagConfig(
        question_encoder=encoder,
        generator=generator,
        retrieval_vector_size=SIZE,
        n_docs=2,
        max_combined_length=48,
        index_name="exact",
    )
    for name in MODELS:
        head = rag.RagSequenceForGeneration if "sequence" in name else rag.RagTokenForGeneration
        head(config).save_pretrained(root / name)
        RagTokenizer(question, target).save_pretrained(root / name)
    write_wiki_dpr(root / "facebook" / "wiki_dpr", dummy_rows=ROWS, size=SIZE)
    for name, kind in (
        ("ctx_encoder", rag.DPRContextEncoder),
        ("question_encoder", rag.DPRQuestionEncoder),
    ):
        part = root / "facebook" / f"dpr-{name}-single-nq-base"
        kind(DPRConfig.from_dict(encoder)).save_pretrained(part)
        question.save_pretrained(part)
    rag.BartForConditionalGeneration(config.generator).save_pretrained(
        root / "facebook" / "bart-large"
    )
    target.save_pretrained(root / "facebook" / "bart-large")
    return root


@pytest.fixture(scope="session")
def demo_cache(tmp_path_factory):
    """A cache as `dualrag demo` fills it, of tiny parts; for `DUALRAG_HOME`."""
    from rag_core.backends import load_backend
    from tests.support.demo_cache import write_demo_cache

    return write_demo_cache(tmp_path_factory.mktemp("demo"), load_backend())


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    from rag_core import Tokenizer

    folder = tmp_path_factory.mktemp("tokenizers")
    write_tokenizers(folder)
    return {name: Tokenizer.from_pretrained(folder / name) for name in ("question", "bart", "t5")}


@pytest.fixture(scope="module")
def passages():
    from datasets import Dataset

    titles, texts = zip(*GOLDEN["passages"], strict=True)
    return Dataset.from_dict({"title": titles, "text": texts, "embeddings": list(VECTORS)})


@pytest.fixture(scope="module")
def index(passages):
    from rag_core.retrieval.faiss_files import build_faiss
    from rag_core.retrieval.index import FaissIndex

    return FaissIndex(passages, build_faiss([VECTORS], *VECTORS.shape))


@pytest.fixture
def retriever(tokenizers, index):
    from rag_core import RagRetriever

    parts = tokenizers["question"], tokenizers["bart"]
    return RagRetriever(config(n_docs=2, max_combined_length=80), *parts, index=index)
