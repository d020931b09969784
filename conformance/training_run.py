"""Trains on one backend and hands back what every step gave, and the weights at the end."""

import importlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from conformance.seeded import seeded_weights
from conformance.training_cases import WORDS, DrawnIndex, examples
from rag_core.backends import load_backend, to_numpy
from rag_core.config.rag import RagConfig
from rag_core.retrieval.retriever import RagRetriever
from rag_core.tokenization.rag import Tokenizer
from rag_core.training.config import TrainingConfig

_SPECIAL = {
    "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "bart": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "t5": ["<pad>", "</s>", "<unk>"],
}
_KEY_BIASES = ("k_proj.bias", "key.bias")
_NOT_OF_A_STEP = ("step", "learning_rate", "loss", "tokens_per_second")


def train_case(backend: str, model: Any, case: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every stage of a run: `trained_loss.STEP` in nats, the log's other figures, and
    `trained.NAME`, the weights at the end.

    Args:
        backend: "torch" or "tf".
        model: the head with the case's weights; it is trained.
        case: the case.
    """
    train = importlib.import_module(f"rag_{backend}.training").train
    key = f"{case['structure']}:{case['seed']}"
    settings = TrainingConfig(
        n_docs=case["n_docs"],
        log_every=1,
        save_every=0,
        on_collapse="warn",
        **case["training"],
    )
    retriever = drawn_retriever(model.config, key)
    model.set_retriever(retriever)
    # The networks are shared with other cases.
    model.rag.ctx_encoder, model.rag.context_encoder_training = None, False
    if settings.context_encoder != "frozen":
        model.set_context_encoder_for_training(drawn_encoder(backend, model, key))
        retriever.set_ctx_encoder_tokenizer(retriever.question_encoder_tokenizer)
    report = train(model, retriever, examples(key), settings, progress=False)
    stages = {f"trained_loss.{line['step']}": np.float64(line["loss"]) for line in report.history}
    for name in report.history[0]:
        if name not in _NOT_OF_A_STEP:
            stages[f"trained_log.{name}"] = np.array([line[name] for line in report.history])
    for name, value in model.state_dict().items():
        array = to_numpy(value).copy()
        # The gradient of a key's bias is 0 but for rounding, of which Adam makes whole steps.
        if array.dtype == np.float64 or not name.endswith(_KEY_BIASES):
            stages[f"trained.{name}"] = array
    model.rag.ctx_encoder, model.rag.context_encoder_training = None, False
    return stages


def drawn_encoder(backend: str, model: Any, key: str) -> Any:
    """An encoder of passages as large as the one of questions, with weights of its own."""
    network = load_backend(backend).DPRContextEncoder(model.config.question_encoder)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    arrays = seeded_weights(shapes, seed=len(key))
    convert = load_backend(backend).as_tensor
    network.load_state_dict({name: convert(array) for name, array in arrays.items()})
    return network.to(model.dtype)


def drawn_retriever(config: RagConfig, key: str) -> RagRetriever:
    """A retriever over drawn passages."""
    question = word_tokenizer("bert", config.question_encoder.vocab_size)
    target = word_tokenizer(config.generator.model_type, config.generator.vocab_size)
    return RagRetriever(config, question, target, index=DrawnIndex(config, key))


@cache
def word_tokenizer(kind: str, size: int) -> Tokenizer:
    """A tokenizer that knows `WORDS` and as many more as a vocabulary of that size holds.

    Args:
        kind: "bert", "bart" or "t5", whose special tokens it has at their usual places.
        size: of the vocabulary.
    """
    special = _SPECIAL[kind]
    words = [*special, "/", "//", *WORDS]
    words += [f"more{number}" for number in range(size - len(words))]
    with TemporaryDirectory() as name:
        folder = Path(name)
        if kind == "bert":
            folder.joinpath("vocab.txt").write_text("\n".join(words))
        else:
            _write_pipeline(folder, words, special)
        about = {"tokenizer_class": f"{kind.capitalize()}Tokenizer", "model_max_length": 40}
        folder.joinpath("tokenizer_config.json").write_text(json.dumps(about))
        return Tokenizer.from_pretrained(folder)


def _write_pipeline(folder: Path, words: Sequence[str], special: Sequence[str]) -> None:
    """A tokenizer.json of whole words."""
    places = {word: place for place, word in enumerate(words)}
    pipeline = tokenizers.Tokenizer(models.WordLevel(places, unk_token="<unk>"))
    pipeline.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    around = [token for token in ("<s>", "</s>") if token in special]
    single = " ".join([*around[:-1], "$A", around[-1]])
    pipeline.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(token, places[token]) for token in around]
    )
    pipeline.add_special_tokens(list(special))
    pipeline.save(str(folder / "tokenizer.json"))
