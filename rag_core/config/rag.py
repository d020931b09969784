"""Configurations: RAG's own, and the one place that knows them all.

RAG: Lewis et al., "Retrieval-Augmented Generation for Knowledge-Intensive NLP Tasks" (2020),
sections 2 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rag_core.config.base import KNOWN, PretrainedConfig, read_as
from rag_core.config.models import BartConfig, BertConfig, DPRConfig, T5Config
from rag_core.hub import located

__all__ = [
    "AutoConfig",
    "BartConfig",
    "BertConfig",
    "DPRConfig",
    "PretrainedConfig",
    "RagConfig",
    "T5Config",
    "config_from_dict",
]


@dataclass(init=False, repr=False, eq=False)
class RagConfig(PretrainedConfig):
    """A RAG model: a question encoder, a generator, and how documents are found and weighed.

    `question_encoder` and `generator` are required: configurations of this library, dictionaries
    with a `model_type`, or any object with `to_dict()` (transformers' configurations). They are
    copied.

    Attributes:
        tie_word_embeddings: always the generator's, whatever was given.
        title_sep: text between a document's title and its text.
        doc_sep: text between a document and the question.
        n_docs: documents per question.
        max_combined_length: tokens of a context, document and question together.
        retrieval_vector_size: width of document vectors.
        retrieval_batch_size: questions searched at once.
        dataset: dataset of passages; "wiki_dpr" means `facebook/wiki_dpr`.
        dataset_split: split of `dataset`.
        dataset_revision: revision of `dataset` on the hub; None for the newest.
        index_name: "exact", "compressed", "custom", "bm25" or "legacy" (refused by the retriever: its files
            are pickles).
        index_path: faiss file, for "custom"; folder, for "bm25".
        passages_path: folder of passages, for both.
        use_dummy_dataset: take the small stand-in of `dataset`.
        reduce_loss: sum the loss over the batch.
        label_smoothing: epsilon of label smoothing, within [0, 1].
        do_deduplication: drop repeated candidates of different documents (RAG-Sequence).
        exclude_bos_score: leave the first token out of the loss if it is BOS (RAG-Sequence).
        do_marginalize: return log-probabilities marginalised over documents (RAG-Token).
        output_retrieved: return documents and contexts.
        use_cache: keep keys and values while decoding.
        forced_eos_token_id: last token at `max_length`; the generator's when None.
        answer_calibration: how sure an answer is, by head ("token", "sequence"): factor of log
            p(y|x), factor of the best document's score, and intercept of a logistic function. None
            or no entry = answers have no confidence. `dualrag calibrate` fits it.

    Raises:
        TypeError, ValueError: a missing sub-configuration, an unknown `model_type`, a value of the
            wrong type or range.
    """

    model_type: ClassVar[str] = "rag"
    is_composition: ClassVar[bool] = True
    positional: ClassVar[tuple[str, ...]] = tuple(
        "vocab_size is_encoder_decoder prefix bos_token_id pad_token_id eos_token_id "
        "decoder_start_token_id title_sep doc_sep n_docs max_combined_length "
        "retrieval_vector_size retrieval_batch_size dataset dataset_split index_name index_path "
        "passages_path use_dummy_dataset reduce_loss label_smoothing do_deduplication "
        "exclude_bos_score do_marginalize output_retrieved use_cache forced_eos_token_id "
        "dataset_revision".split()
    )
    own: ClassVar[tuple[str, ...]] = ("dataset_revision", "answer_calibration")
    minimum: ClassVar[Mapping[str, float]] = {
        "vocab_size": 1,
        "n_docs": 1,
        "max_combined_length": 1,
        "retrieval_vector_size": 1,
        "retrieval_batch_size": 1,
        "label_smoothing": 0.0,
    }

    vocab_size: int | None = None
    is_encoder_decoder: bool = True
    title_sep: str = " / "
    doc_sep: str = " // "
    n_docs: int = 5
    max_combined_length: int = 300
    retrieval_vector_size: int = 768
    retrieval_batch_size: int = 8
    dataset: str = "wiki_dpr"
    dataset_split: str = "train"
    dataset_revision: str | None = None
    index_name: str = "compressed"
    index_path: str | None = None
    passages_path: str | None = None
    use_dummy_dataset: bool = False
    reduce_loss: bool = False
    label_smoothing: float = 0.0
    do_deduplication: bool = True
    exclude_bos_score: bool = False
    do_marginalize: bool = False
    output_retrieved: bool = False
    use_cache: bool = True
    forced_eos_token_id: int | list[int] | None = None
    answer_calibration: dict[str, list[float]] | None = None

    def __init__(self, *args: Any, **values: Any) -> None:
        values = self._named(args, values)
        self._take_type(values.get("model_type"))
        missing = [name for name in ("question_encoder", "generator") if values.get(name) is None]
        if missing:
            raise ValueError(
                f"{' and '.join(missing)} must be given to RagConfig, got None. Pass "
                "question_encoder and generator as keywords, or use "
                "RagConfig.from_question_encoder_generator_configs."
            )
        parts = {name: _component(name, values[name]) for name in ("question_encoder", "generator")}
        for name in ("index_path", "passages_path"):
            if isinstance(values.get(name), Path):
                values[name] = str(values[name])
        super().__init__(**{name: value for name, value in values.items() if name not in parts})
        self.__dict__.update(parts)
        # transformers writes True here by default even where the generator isn't tied.
        self.tie_word_embeddings = self.generator.tie_word_embeddings
        if self.forced_eos_token_id is None:
            self.forced_eos_token_id = getattr(self.generator, "forced_eos_token_id", None)

    def _chosen(self) -> dict[str, Any]:
        parts = {"question_encoder": self.question_encoder, "generator": self.generator}
        lines = {
            name: ", ".join(f"{key} {value}" for key, value in part._chosen().items())
            for name, part in parts.items()
        }
        return super()._chosen() | lines

    @property
    def question_encoder(self) -> PretrainedConfig:
        """Configuration of the question encoder."""
        return self.__dict__["question_encoder"]

    @question_encoder.setter
    def question_encoder(self, value: Any) -> None:
        self.__dict__["question_encoder"] = _component("question_encoder", value)

    @property
    def generator(self) -> PretrainedConfig:
        """Configuration of the generator."""
        return self.__dict__["generator"]

    @generator.setter
    def generator(self, value: Any) -> None:
        self.__dict__["generator"] = _component("generator", value)

    @property
    def saved_head(self) -> str:
        """The head that the checkpoint was saved with.

        "sequence", or "token", also where it does not say.
        """
        if "Sequence" in "".join(self.architectures or []):
            return "sequence"
        return "token"

    @classmethod
    def knows(cls, name: str) -> bool:
        """Whether `name` is a field, `question_encoder` and `generator` included."""
        return name in ("question_encoder", "generator") or super().knows(name)

    @classmethod
    def from_question_encoder_generator_configs(
        cls, question_encoder_config: Any, generator_config: Any, config: Any = None, **kwargs: Any
    ) -> RagConfig:
        """A RAG configuration out of those of its two parts, which are copied.

        Args:
            question_encoder_config: configuration of the question encoder.
            generator_config: configuration of the generator.
            config: a RAG configuration, or where to read one, for all but the two parts.
            **kwargs: fields of the RAG configuration.

        Raises:
            TypeError: `config` is neither.
        """
        if isinstance(config, str | Path):
            config = cls.from_pretrained(config)
        if not isinstance(config, RagConfig | None):
            raise TypeError(
                f"config must be a RagConfig or where to read one, got {type(config).__name__}."
            )
        values = {}
        if config is not None:
            values = config.to_dict()
        values["question_encoder"] = question_encoder_config
        values["generator"] = generator_config
        return cls.from_dict(values, **kwargs)

    def validate(self) -> None:
        """Checks every field (see `PretrainedConfig.validate`)."""
        super().validate()
        if self.label_smoothing > 1:
            raise ValueError(
                f"RagConfig.label_smoothing must be within [0, 1], got {self.label_smoothing!r}."
            )
        for head, line in (self.answer_calibration or {}).items():
            if head not in ("token", "sequence") or not _is_line(line):
                raise ValueError(
                    'RagConfig.answer_calibration must hold, for "token" or "sequence", three '
                    f"finite numbers, got {self.answer_calibration!r}. dualrag calibrate fits it."
                )

    def confidence(self, head: str, log_probability: float, doc_score: float) -> float | None:
        """The probability that an answer is right; None where `answer_calibration` does not say.

        Args:
            head: "token" or "sequence".
            log_probability: log p(y|x) of the answer.
            doc_score: of the best document.
        """
        line = (self.answer_calibration or {}).get(head)
        if line is None:
            return None
        of_answer, of_document, intercept = line
        logit = of_answer * log_probability + of_document * doc_score + intercept
        return (1 + math.tanh(logit / 2)) / 2

    def to_dict(self) -> dict[str, Any]:
        """All fields and foreign keys, the two parts as dictionaries.

        `tie_word_embeddings` is the generator's: transformers 4.37.2 ties by the outer value and
        would replace the output layer of an untied T5.
        """
        values = super().to_dict()
        values["tie_word_embeddings"] = self.generator.tie_word_embeddings
        return values | {
            "question_encoder": self.question_encoder.to_dict(),
            "generator": self.generator.to_dict(),
        }


class AutoConfig:
    """Reads any known `config.json`, choosing the class by its `model_type`."""

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> PretrainedConfig:
        """The configuration of a folder or repository.

        Arguments and errors as `PretrainedConfig.from_pretrained`.
        """
        return read_as(config_from_dict, pretrained_model_name_or_path, **kwargs)

    @staticmethod
    def for_model(model_type: str, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """A configuration of the class that `model_type` names, with these arguments.

        Raises:
            TypeError, ValueError: an unknown `model_type`, or what the class refuses.
        """
        return _class_of(model_type)(*args, **kwargs)


def _is_line(values: Any) -> bool:
    """Whether these are two factors and an intercept."""
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(type(value) in (int, float) and math.isfinite(value) for value in values)
    )


def config_from_dict(values: Mapping[str, Any], **overrides: Any) -> PretrainedConfig:
    """The configuration whose class is named by `values["model_type"]`.

    Args:
        values: contents of a `config.json`, left untouched.
        **overrides: fields that replace those of `values`.

    Raises:
        TypeError, ValueError: no or an unknown `model_type`, or what the class refuses.
    """
    if not isinstance(values, Mapping):
        raise TypeError(
            f"A configuration must be a mapping with a model_type, got {type(values).__name__}."
        )
    return _class_of(values.get("model_type")).from_dict(values, **overrides)


def _class_of(kind: Any) -> type[PretrainedConfig]:
    if not isinstance(kind, str) or kind not in KNOWN:
        raise ValueError(f"model_type must be one of {', '.join(sorted(KNOWN))}; got {kind!r}.")
    return KNOWN[kind]


def _component(name: str, value: Any) -> PretrainedConfig:
    """A copy of a sub-configuration, whatever form it came in."""
    if isinstance(value, PretrainedConfig):
        return type(value).from_dict(value.to_dict())  # a copy: the caller's stays the caller's
    if isinstance(value, Mapping):
        if isinstance(value.get("model_type"), str) and value["model_type"] not in KNOWN:
            # a network of the user's own; building it refuses other types
            return PretrainedConfig.from_dict(value)
        try:
            return config_from_dict(value)
        except (TypeError, ValueError) as error:
            raise located(error, f"RagConfig.{name}") from error
    if callable(getattr(value, "to_dict", None)):
        # transformers' own configurations; types unknown here belong to networks of the user's own.
        values = dict(value.to_dict())
        return KNOWN.get(values.get("model_type", ""), PretrainedConfig).from_dict(values)
    raise TypeError(
        f"RagConfig.{name} must be a configuration or a dictionary with a model_type, got "
        f"{type(value).__name__}."
    )
