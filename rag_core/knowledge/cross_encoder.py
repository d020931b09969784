"""Cross-encoders: a question and a passage in, how well they fit out.

Nogueira and Cho 2019, arXiv 1901.04085. The network is a BERT whose pooled state a linear layer maps
to one number, which is what a pooled encoder with a projection of one number computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from rag_core.checks import whole
from rag_core.config import AutoConfig, BertConfig
from rag_core.hub import read_json, resolve_file
from rag_core.knowledge.encoders import PassageEncoderBase

Cross = TypeVar("Cross", bound="CrossEncoderBase")


class CrossEncoderBase:
    """A cross-encoder with its tokenizer; a backend names how its network is run.

    Args:
        encoder: gives pairs of texts a vector of one number, as `from_pretrained` makes it.

    Attributes:
        encoder_class: the backend's encoder of passages.
    """

    encoder_class: ClassVar[type[PassageEncoderBase]]

    def __init__(self, encoder: PassageEncoderBase) -> None:
        self.encoder = encoder

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.encoder.name!r}, max_length={self.encoder.max_length})"

    def __call__(
        self, questions: Sequence[str], passages: Sequence[str], batch_size: int = 32
    ) -> np.ndarray:
        """How well each passage fits its question.

        Args:
            questions: n texts.
            passages: n texts.
            batch_size: pairs at a time.

        Returns:
            (n,) float32, the logits: without the sigmoid that sentence-transformers puts behind
            some of these networks.

        Raises:
            TypeError: a string in place of a list.
            ValueError: not as many questions as passages.
        """
        return self.encoder.embed(questions, passages, batch_size)[:, 0]

    @classmethod
    def from_pretrained(
        cls: type[Cross],
        name_or_path: str | Path,
        *,
        max_length: int | None = None,
        dtype: Any = None,
        device: Any = None,
        **hub: Any,
    ) -> Cross:
        """The cross-encoder of a folder or repository of sentence-transformers, or any BERT for
        sequence classification with one label.

        Args:
            name_or_path: e.g. "cross-encoder/ms-marco-MiniLM-L6-v2".
            max_length: tokens a pair is cut to, the longer text first; None is the model's limit.
            dtype: of the weights; None is float32.
            device: where to compute; None leaves it to the backend.
            **hub: hub options, as of `load_encoder`.

        Raises:
            OSError: files are missing.
            ValueError: another network, other than one label, or no such length.
        """
        from rag_core.tokenization import Tokenizer

        if max_length is not None:
            max_length = whole(1)("max_length", max_length)
        config = AutoConfig.from_pretrained(name_or_path, **hub)
        names = [str(name) for name in config.architectures or []]
        is_classifier = any("ForSequenceClassification" in name for name in names)
        if not isinstance(config, BertConfig) or not is_classifier:
            kind = names or repr(getattr(config, "converted_from", None) or config.model_type)
            raise ValueError(
                f"{name_or_path} must be a BERT for sequence classification, got {kind}. Give "
                "RerankedIndex a function (questions, passages) -> scores of another library"
            )
        if config.num_labels != 1:
            raise ValueError(
                f"{name_or_path} must have one label, a score, got {config.num_labels}. Take a "
                "model that was trained to rank"
            )
        _refuse_further_steps(name_or_path, hub)
        config.update({"pooling": "pooler", "projection_dim": 1, "normalize": False, "scale": 1.0})
        model = cls.encoder_class.bert_class.from_pretrained(
            name_or_path, config=config, dtype=dtype, device=device, **hub
        )
        tokenizer = Tokenizer.from_pretrained(str(name_or_path), **hub)
        longest = min(tokenizer.model_max_length, model.config.max_position_embeddings)
        encoder = cls.encoder_class(
            model,
            tokenizer,
            str(name_or_path),
            max_length=min(max_length or longest, longest),
            pairs=True,
        )
        return cls(encoder)


def _refuse_further_steps(name_or_path: str | Path, hub: dict[str, Any]) -> None:
    """Refuses what sentence-transformers would do besides running the network.

    Raises:
        ValueError: further modules, or a prompt.
    """
    steps = resolve_file(name_or_path, "modules.json", required=False, **hub)
    kinds = []
    if steps is not None:
        kinds = [str(step.get("type")).split(".")[-1] for step in read_json(steps, list)]
    notes = resolve_file(name_or_path, "config_sentence_transformers.json", required=False, **hub)
    prompt = None
    if notes is not None:
        prompt = read_json(notes).get("default_prompt_name")
    if kinds not in ([], ["Transformer"]) or prompt is not None:
        raise ValueError(
            f"{name_or_path} must be a Transformer without a prompt, got {kinds} and the prompt "
            f"{prompt!r}. Give RerankedIndex a function of its own library"
        )
