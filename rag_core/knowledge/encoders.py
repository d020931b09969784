"""Passage encoders as indexing uses them: titles and texts in, vectors out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from rag_core.checkpoint import CHECKPOINT_PATTERNS
from rag_core.checks import whole
from rag_core.config import (
    AutoConfig,
    BertConfig,
    DPRConfig,
    SentenceSettings,
    prepared_texts,
    sentence_settings,
)
from rag_core.hub import atomic_folder
from rag_core.tokenization import encoded_within

Encoder = TypeVar("Encoder", bound="PassageEncoderBase")


class PassageEncoderBase(ABC):
    """A document encoder with its tokenizer; a backend adds how its network is run.

    Args:
        model: returns vectors (B, D) as element 0.
        tokenizer: ours or transformers'.
        name: what the manifest of a knowledge base calls it.
        max_length: tokens a passage is cut to.
        pairs: encode (title, text) as two segments, as DPR was trained; otherwise as one text
            "title text".
        prompt: text that the encoder was trained to see in front of a passage.
        lower_case: lower-case texts, whatever the tokenizer does.
        query_prompt: text that the encoder was trained to see in front of a question.
        only_questions: it is DPR's question encoder, which embeds no passages.

    Attributes:
        return_tensors: what the tokenizer returns: "pt" or "tf".
        dpr_class: the backend's network of DPR's context encoder.
        question_class: the backend's network of DPR's question encoder.
        bert_class: the backend's pooled BERT.
    """

    return_tensors: ClassVar[str]
    dpr_class: Any
    question_class: Any
    bert_class: Any

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        max_length: int = 256,
        pairs: bool = False,
        prompt: str = "",
        lower_case: bool = False,
        query_prompt: str = "",
        only_questions: bool = False,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.max_length = max_length
        self.pairs = pairs
        self.prompt = prompt
        self.lower_case = lower_case
        self.query_prompt = query_prompt
        self.only_questions = only_questions

    def __repr__(self) -> str:
        network = type(self.model).__name__
        size = getattr(self.model, "dimension", "unknown")
        return (
            f"{type(self).__name__}({self.name!r}, {network}, D={size}, "
            f"max_length={self.max_length})"
        )

    @abstractmethod
    def vectors(self, inputs: Mapping[str, Any]) -> np.ndarray:
        """The network's vectors (B, D) of a tokenized batch, as float32."""

    @property
    def dimension(self) -> int:
        """D, the size of the vectors."""
        return self.model.dimension

    @property
    def prompts(self) -> dict[str, str]:
        """What stands in front of a "query" and a "passage"; {} where nothing does."""
        if self.pairs or not (self.query_prompt or self.prompt):
            return {}
        return {"query": self.query_prompt, "passage": self.prompt}

    def embed(
        self,
        titles: Sequence[str],
        texts: Sequence[str],
        batch_size: int = 32,
        progress: bool = False,
    ) -> np.ndarray:
        """The vectors of passages, in batches of like length.

        Args:
            titles: n titles, possibly empty.
            texts: n texts.
            batch_size: passages at a time.
            progress: draw a progress bar on stderr.

        Returns:
            (n, D) float32, in the order given.

        Raises:
            TypeError: a string in place of a list.
            ValueError: not as many titles as texts, or no batch size.
        """
        if self.only_questions:
            raise ValueError(_not_for_passages(self.name))
        _check_strings("titles", titles)
        _check_strings("texts", texts)
        if len(titles) != len(texts):
            raise ValueError(
                f"titles and texts must be of one length, got {len(titles)} and {len(texts)}"
            )
        sizes = [len(title) + len(text) for title, text in zip(titles, texts, strict=True)]

        def tokenize(rows: list[int]) -> Any:
            return self.tokenize([titles[row] for row in rows], [texts[row] for row in rows])

        return self._in_batches(sizes, tokenize, batch_size, progress)

    def _in_batches(
        self,
        sizes: Sequence[int],
        tokenize: Callable[[list[int]], Any],
        batch_size: int,
        progress: bool,
    ) -> np.ndarray:
        """The vectors (n, D) of texts of n sizes; `tokenize` makes a batch of some of them."""
        batch_size = whole(1)("batch_size", batch_size)
        # Texts of like length together, so that little of a batch is padding.
        order = sorted(range(len(sizes)), key=sizes.__getitem__)
        vectors = np.zeros((len(sizes), self.dimension), np.float32)
        starts: Any = range(0, len(order), batch_size)
        if progress:
            from tqdm import tqdm

            starts = tqdm(starts, desc="Embedding", unit="batch")
        for start in starts:
            rows = order[start : start + batch_size]
            vectors[rows] = self.vectors(tokenize(rows))
        return vectors

    def embed_texts(
        self, texts: Sequence[str], batch_size: int = 32, progress: bool = False
    ) -> np.ndarray:
        """The vectors of texts without titles; see `embed`."""
        return self.embed([""] * len(texts), texts, batch_size, progress)

    def embed_questions(
        self, questions: Sequence[str], batch_size: int = 32, progress: bool = False
    ) -> np.ndarray:
        """The vectors of questions, to be compared with those of passages.

        Args:
            questions: n texts.
            batch_size: questions at a time.
            progress: draw a progress bar on stderr.

        Returns:
            (n, D) float32, in the order given.

        Raises:
            TypeError: a string in place of a list.
            ValueError: DPR's context encoder, which embeds no questions.
        """
        if self.pairs:
            partner = self.name.replace("ctx_encoder", "question_encoder")
            if partner == self.name:
                partner = "the question encoder that it was trained with"
            raise ValueError(
                f"{self.name} is a DPR context encoder, it embeds passages only. Questions need "
                f"its partner: {partner}"
            )
        _check_strings("questions", questions)
        prepared = prepared_texts(questions, self.query_prompt, self.lower_case)

        def tokenize(rows: list[int]) -> Any:
            return self._encoded([prepared[row] for row in rows])

        return self._in_batches([*map(len, prepared)], tokenize, batch_size, progress)

    def tokenize(
        self, titles: list[str], texts: list[str], return_tensors: str | None = None
    ) -> Any:
        """What the network reads of n passages.

        Args:
            titles: n titles, possibly empty.
            texts: n texts.
            return_tensors: "pt", "tf" or "np"; None is the backend's.

        Returns:
            A mapping of (n, S) tensors: ids, mask and, of some tokenizers, segments.
        """
        if self.pairs:
            return self._encoded(titles, texts, return_tensors=return_tensors)
        joined = [f"{title} {text}".strip() for title, text in zip(titles, texts, strict=True)]
        prepared = prepared_texts(joined, self.prompt, self.lower_case)
        return self._encoded(prepared, return_tensors=return_tensors)

    def _encoded(self, *texts: list[str], return_tensors: str | None = None) -> Any:
        kind = return_tensors or self.return_tensors
        encoded = self.tokenizer(
            *texts, padding=True, truncation=True, max_length=self.max_length, return_tensors=kind
        )
        table = getattr(getattr(self.model, "config", None), "vocab_size", None)
        return encoded_within(encoded, table, self.tokenizer, kind)

    @property
    def passage_tokenizer(self) -> PassageTokenizer:
        """What `RagRetriever.set_ctx_encoder_tokenizer` takes, where this encoder learns."""
        return PassageTokenizer(self)

    @classmethod
    def from_pretrained(
        cls: type[Encoder],
        name_or_path: str | Path,
        *,
        for_questions: bool = False,
        prompts: Mapping[str, str] | None = None,
        dtype: Any = None,
        device: Any = None,
        **hub: Any,
    ) -> Encoder:
        """The document encoder of a folder or repository: DPR's context encoder, a sentence
        encoder of sentence-transformers (BERT, RoBERTa, XLM-R, CamemBERT, DistilBERT, MPNet), or
        such a network by itself.

        Args:
            name_or_path: folder or repository id.
            for_questions: take DPR's question encoder, too, whose `embed_questions` alone works.
            prompts: texts in front of a "query" and a "passage", in place of those that the folder
                names.
            dtype: of the weights; None is float32.
            device: where to compute; None leaves it to the backend.
            **hub: hub options (`cache_dir`, `token`, `revision`, `local_files_only`,
                `force_download`, `subfolder`).

        Raises:
            OSError: files are missing.
            ValueError: not an encoder of documents, or prompts for DPR's.
        """
        from rag_core.tokenization import Tokenizer

        config = AutoConfig.from_pretrained(name_or_path, **hub)
        if not isinstance(config, DPRConfig | BertConfig):
            raise ValueError(
                f"{name_or_path} is a {config.model_type!r} model, not an encoder of documents: "
                "name a DPR context encoder, a sentence-transformers folder or a BERT"
            )
        is_dpr = isinstance(config, DPRConfig)
        names = config.architectures or []
        only_questions = is_dpr and any("QuestionEncoder" in str(name) for name in names)
        if only_questions and not for_questions:
            raise ValueError(_not_for_passages(name_or_path))
        if is_dpr and not only_questions and any((prompts or {}).values()):
            raise ValueError(
                f"prompts must be left out for {name_or_path}, DPR's encoder of passages, which "
                f"reads none, got {prompts!r:.80}."
            )
        network = cls.bert_class
        if only_questions:
            network = cls.question_class
        elif is_dpr:
            network = cls.dpr_class
        model = network.from_pretrained(name_or_path, dtype=dtype, device=device, **hub)
        settings = sentence_settings(name_or_path, **hub) or _settings_of(model.config)
        prompt, query_prompt = _prompts(prompts, settings)
        tokenizer = Tokenizer.from_pretrained(str(name_or_path), **hub)
        # Sentence-transformers, too, takes the tokenizer's limit where the folder names none
        longest = settings.max_seq_length or tokenizer.model_max_length
        return cls(
            model,
            tokenizer,
            str(name_or_path),
            max_length=min(longest, model.config.max_position_embeddings),
            pairs=is_dpr and not only_questions,
            prompt=prompt,
            lower_case=settings.do_lower_case,
            query_prompt=query_prompt,
            only_questions=only_questions,
        )

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write network and tokenizer with all that changes the vectors, for `from_pretrained`.

        Args:
            save_directory: the folder, created if need be.

        Raises:
            OSError: nothing could be written; what was there before is unchanged.
        """
        # files of sentence-transformers would count for more than the config
        stale = (*CHECKPOINT_PATTERNS, "modules.json")
        with atomic_folder(save_directory, stale=stale) as draft:
            self.model.save_pretrained(draft)
            self.tokenizer.save_pretrained(draft)
            if isinstance(self.model.config, BertConfig):  # DPR's tokenizer says it all
                config = AutoConfig.from_pretrained(draft)
                config.update(self._text_settings())
                config.save_pretrained(draft)

    def _text_settings(self) -> dict[str, Any]:
        """What `_settings_of` reads."""
        settings = {
            "query_prompt": self.query_prompt,
            "query_lower_case": self.lower_case,
            "query_max_length": self.max_length,
        }
        if self.prompt:
            settings["passage_prompt"] = self.prompt
        return settings


class PassageTokenizer:
    """Tokens of retrieved documents as an encoder read them when their index was made.

    Args:
        encoder: the encoder.
    """

    # which of a pair's two texts a token is of: a tokenizer alone would leave it out
    keeps_segments = True

    def __init__(self, encoder: PassageEncoderBase) -> None:
        self.encoder = encoder

    def __call__(self, titles: list[str], texts: list[str], **options: Any) -> Any:
        """A mapping of (n, S) arrays; options of a tokenizer are the encoder's own."""
        return self.encoder.tokenize(titles, texts, "np")


def _settings_of(config: Any) -> SentenceSettings:
    """What an encoder's own config says of texts, where no files of sentence-transformers do."""
    return SentenceSettings(
        max_seq_length=getattr(config, "query_max_length", None),
        do_lower_case=getattr(config, "query_lower_case", False),
        query_prompt=getattr(config, "query_prompt", ""),
        passage_prompt=getattr(config, "passage_prompt", ""),
    )


def _prompts(given: Mapping[str, str] | None, settings: SentenceSettings) -> tuple[str, str]:
    """The prompts of passages and questions: those given, else the folder's."""
    given = given or {}
    if unknown := sorted(given.keys() - {"query", "passage"}):
        raise ValueError(f"prompts must be of 'query' and 'passage', got {unknown}. Rename them.")
    return (
        given.get("passage", settings.passage_prompt),
        given.get("query", settings.query_prompt),
    )


def _not_for_passages(name: str | Path) -> str:
    return (
        f"{name} is a DPR question encoder; documents need its partner, a context "
        "encoder (facebook/dpr-ctx_encoder-single-nq-base for "
        "facebook/dpr-question_encoder-single-nq-base)"
    )


def _check_strings(name: str, strings: Sequence[str]) -> None:
    """Refuses a string, whose letters would be embedded."""
    if isinstance(strings, str | bytes):
        raise TypeError(f"{name} must be a list of strings, got {strings!r:.60}. Put it into one.")
