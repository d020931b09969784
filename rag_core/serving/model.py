"""A model and its knowledge base as a server asks them."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rag_core import __version__
from rag_core.backends import BACKENDS
from rag_core.generation import GenerationConfig, sequence_options, token_options
from rag_core.knowledge import hits_of
from rag_core.modeling import Reading, find_passages
from rag_core.outputs import Answer, Hit
from rag_core.serving.options import check_of_the_call, check_sampling
from rag_core.serving.words import WordStreamer
from rag_core.tokenization import RagTokenizer

OpenModel = Callable[[], "ServedModel"]
# Tokens that no letter of a question makes: special ones, an encoder's prompt.
_BESIDE_LETTERS = 64
_NOT_OF_GENERATE = ("n_docs", "head", "seed", "do_deduplication", "decoding", "on_text")


def _shown(name: str) -> str:
    """A name; of a folder of this machine without those above it."""
    path = Path(name)
    if not path.is_absolute() and not path.is_dir():
        return name
    return path.resolve().name or "model"


class ServedModel:
    """A RagTokenForGeneration or RagSequenceForGeneration with its retriever.

    Args:
        network: the model.
        base: its KnowledgeBase; None where its index is another.
        name: what people call it; of a folder only the last part is shown.
        examples: questions that the page offers.
    """

    def __init__(
        self,
        network: Any,
        base: Any = None,
        name: str = "dualrag",
        examples: Sequence[str] = (),
    ) -> None:
        if getattr(network, "retriever", None) is None:
            raise ValueError(
                "the model must have a retriever, got none: pass retriever= to from_pretrained or "
                "call set_retriever(...)"
            )
        self.network = network
        self.base = base
        self.name = _shown(name)
        self.examples = list(examples)
        self._engine = network._engine
        retriever = network.retriever
        self._tokenizer = RagTokenizer(
            retriever.question_encoder_tokenizer, retriever.generator_tokenizer, network.config
        )

    @property
    def in_sequence(self) -> bool:
        """Whether its own head is RAG-Sequence's."""
        return "Sequence" in type(self.network).__name__

    @property
    def n_docs(self) -> int:
        """Passages that it reads for a question."""
        n_docs: int = self.network.config.n_docs
        return n_docs

    def check_question(self, question: str) -> None:
        """See that the question encoder reads the whole of it.

        Raises:
            ValueError: it has more tokens.
        """
        tokenizer = self._tokenizer
        most = tokenizer.query_max_length or tokenizer.question_encoder.model_max_length
        if len(question) + _BESIDE_LETTERS <= most:  # a token has a letter at least
            return
        (ids,) = tokenizer.encode_questions([question], verbose=False)["input_ids"]
        if len(ids) > most:
            raise ValueError(f"a question must have at most {most} tokens, got {len(ids)}")

    def check(self, options: Mapping[str, Any]) -> Hashable:
        """What has to be equal of requests that are answered together; None: it goes alone.

        Raises:
            ValueError, TypeError: options that this model cannot have.
        """
        check_of_the_call(options)
        check_sampling(options, self.samples)
        if "decoding" in options and not self._is_sequence(options):
            raise ValueError(
                "decoding must go with the head 'sequence', got it with 'token'. Leave it out"
            )
        if self._resolved(options).do_sample:
            return None  # the noise depends on the row: among others it would be another one
        return json.dumps(options, sort_keys=True)

    @property
    def samples(self) -> bool:
        """Whether it draws its answers where a request says nothing of it."""
        return token_options(self.network).do_sample

    def writes_in_order(self, options: Mapping[str, Any]) -> bool:
        """Whether the answer's words are known one after another, before its end."""
        if self._is_sequence(options):
            return False
        resolved = self._resolved(options)
        return resolved.num_beams == resolved.num_return_sequences == 1

    def is_cut(self, answer: Answer, options: Mapping[str, Any]) -> bool:
        """Whether an answer stops where it had as many tokens as it may, and not at its end."""
        resolved = self._resolved(options)
        decode = self.network.retriever.generator_tokenizer.decode
        ends = {decode([token]) for token in resolved.eos_token_ids}
        if not answer.tokens or answer.tokens[-1] not in ends:
            return True
        # There an end token says nothing.
        most = resolved.max_new_tokens or resolved.max_length - 1
        is_forced = resolved.forced_eos_token_id is not None
        return is_forced and len(answer.tokens) + (resolved.forced_bos_token_id is not None) >= most

    def prompt_tokens(self, answer: Answer) -> int:
        """Tokens that the generator read for an answer: each passage with the question."""
        retriever = self.network.retriever
        ids = self._tokenizer.encode_questions([answer.question], truncation=True)["input_ids"]
        passages = answer.passages
        docs = {"title": [p.title for p in passages], "text": [p.text for p in passages]}
        prefix = getattr(self.network.generator.config, "prefix", None)
        _, mask = retriever.postprocess_docs(
            [docs], retriever.decode_questions(ids), prefix, len(passages), "np"
        )
        return int(mask.sum())

    def _is_sequence(self, options: Mapping[str, Any]) -> bool:
        if "head" in options:
            return bool(options["head"] == "sequence")
        return self.in_sequence

    def _resolved(self, options: Mapping[str, Any]) -> GenerationConfig:
        of_generate = {k: v for k, v in options.items() if k not in _NOT_OF_GENERATE}
        if not self._is_sequence(options):
            return token_options(self.network, **of_generate)
        beams = of_generate.pop("num_beams", None)
        of_generate.pop("num_return_sequences", None)
        return sequence_options(self.network, beams, **of_generate)

    def answer(
        self,
        questions: Sequence[str],
        options: Mapping[str, Any],
        cancelled: Callable[[], Sequence[bool]] | None = None,
    ) -> list[list[Answer]]:
        """For each question its answers, best first.

        Args:
            questions: texts.
            options: those of `OPTIONS`, and "on_text" as of `Service.answer`.
            cancelled: see `Hooks.cancelled`.

        Raises:
            SearchCancelledError: nobody waits for any of them.
            ValueError, TypeError: options that this model cannot have.
        """
        options = dict(options)
        n_docs = options.pop("n_docs", None)
        if on_text := options.pop("on_text", None):
            options["streamer"] = WordStreamer(
                self.network.retriever.generator_tokenizer.decode, on_text
            )
        reading = Reading(self._engine, self.network, list(questions), n_docs=n_docs)
        return reading.answers(cancelled=cancelled, **options)

    def retrieve(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """For each question the k nearest passages, nearest first."""
        found = find_passages(self._engine, self.network, list(questions), k)
        return [
            hits_of(ids, docs, scores)
            for ids, docs, scores in zip(found.ids, found.docs, found.scores, strict=True)
        ]

    def passage(self, row: int) -> dict[str, Any] | None:
        """One passage: "id", "title", "text", "source", "metadata", "origin"; None where there is
        no such row among those that are searched.
        """
        index = self.network.retriever.index
        # Each thread's view of a cluster is its own.
        if not index.is_initialized():
            index.init_index()
        searched = getattr(index, "rows", None)
        if isinstance(searched, np.ndarray) and row not in searched:
            return None
        try:
            size = len(index)
        except TypeError:  # an index of somebody's own
            size = row + 1
        if not 0 <= row < size:
            return None
        try:
            docs = index.get_doc_dicts(np.array([[row]]))
        except LookupError:
            return None
        (hit,) = hits_of([row], docs[0], [0.0])
        values = hit.to_dict()
        return {name: value for name, value in values.items() if name not in ("rank", "score")}

    def info(self) -> dict[str, Any]:
        """What it is: "model", "knowledge_base", "versions" and "examples"."""
        config = self.network.config
        package = type(self._engine).__module__.partition(".")[0]
        backends = [name for name, (its_package, *_) in BACKENDS.items() if its_package == package]
        head = "token"
        if self.in_sequence:
            head = "sequence"
        info: dict[str, Any] = {
            "model": {
                "name": self.name,
                "head": head,
                "generator": config.generator.model_type,
                "question_encoder": config.question_encoder.model_type,
                "n_docs": self.n_docs,
                "backend": backends[0] if backends else None,
            },
            "knowledge_base": None,
            "versions": {"dualrag": __version__},
            "examples": self.examples,
        }
        if self.base is not None:
            manifest = self.base.manifest
            info["knowledge_base"] = {
                "name": self.base.path.name,
                "passages": len(self.base),
                "encoder": _shown(manifest.encoder["name"]),
                "index": manifest.index.get("search") or manifest.index.get("kind"),
                "recall_at_5": manifest.index.get("recall_at_5"),
                "credit": manifest.credit,
                "cluster": getattr(self.network.retriever.index, "place", None),
            }
        return info
