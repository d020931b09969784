"""What an evaluation is asked for, and the ways of answering that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from rag_core.generation import sequence_options, token_options

HEADS = ("token", "sequence")
DECODINGS = ("thorough", "fast")


@dataclass(frozen=True)
class Variant:
    """One way of answering: what `generate` is told.

    Attributes:
        n_docs: N, passages read for each question.
        head: "token" or "sequence".
        decoding: "thorough" or "fast"; None for RAG-Token, which has one way.
        num_beams: beams.
    """

    n_docs: int
    head: str
    decoding: str | None
    num_beams: int

    @property
    def name(self) -> str:
        """Its name in reports and of files, for example "sequence-fast-docs5-beams4"."""
        parts = [self.head, self.decoding, f"docs{self.n_docs}", f"beams{self.num_beams}"]
        return "-".join(part for part in parts if part)

    def options(self) -> dict[str, Any]:
        """Keywords for `Reading.answers`."""
        options: dict[str, Any] = {"num_beams": self.num_beams, "num_return_sequences": 1}
        if self.decoding is not None:
            options["decoding"] = self.decoding
        return options


@dataclass(frozen=True)
class Settings:
    """What an evaluation is asked for.

    Attributes:
        n_docs, head, decoding, num_beams: one value each or several, of which all combinations are
            tried; None = the model's own.
        limit: questions asked at most, drawn at random; None = all.
        seed: of that draw and of the intervals.
        batch_size: questions answered together.
        answerable: look through the whole knowledge base for the questions that it can answer.
        answerable_only: ask these alone.
        retrieval_only: measure retrieval, generate nothing.
    """

    n_docs: int | Sequence[int] | None = None
    head: str | Sequence[str] | None = None
    decoding: str | Sequence[str] | None = None
    num_beams: int | Sequence[int] | None = None
    limit: int | None = None
    seed: int = 0
    batch_size: int = 8
    answerable: bool = True
    answerable_only: bool = False
    retrieval_only: bool = False

    def __post_init__(self) -> None:
        for name in ("n_docs", "num_beams"):
            _check_numbers(name, getattr(self, name))
        for name, known in (("head", HEADS), ("decoding", DECODINGS)):
            for value in _listed(getattr(self, name)):
                if value not in known:
                    raise ValueError(f"{name} must be {' or '.join(known)}, got {value!r}")
        for name in ("batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"seed must be a whole number of at least 0, got {self.seed!r}")
        if self.answerable_only and not self.answerable:
            raise ValueError("answerable_only must go with answerable=True, got False")

    def to_dict(self) -> dict[str, Any]:
        """Its values, for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        sweeps = ("n_docs", "head", "decoding", "num_beams")
        return values | {name: _listed(values[name]) or None for name in sweeps}

    def depths(self, model: Any) -> list[int]:
        """The numbers of passages to be read, each once."""
        return sorted(set(_listed(self.n_docs) or [int(model.config.n_docs)]))

    def variants(self, model: Any) -> list[Variant]:
        """All combinations, each once; none where only retrieval is measured."""
        if self.retrieval_only:
            return []
        own = getattr(model, "head", "token")
        variants = []
        for n_docs in self.depths(model):
            for head in _listed(self.head) or [own]:
                # RAG-Token has one way of decoding.
                ways: list[Any] = [None]
                if head == "sequence":
                    ways = _listed(self.decoding) or [DECODINGS[0]]
                for decoding in ways:
                    for beams in _listed(self.num_beams) or [_own_beams(model, head)]:
                        variants.append(Variant(n_docs, head, decoding, beams))
        return list(dict.fromkeys(variants))


def _own_beams(model: Any, head: str) -> int:
    if head == "sequence":
        return int(sequence_options(model, None).num_beams)
    return int(token_options(model).num_beams)


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str | int):
        return [value]
    return list(value)


def _check_numbers(name: str, value: Any) -> None:
    for number in _listed(value):
        if type(number) is not int or number < 1:
            raise ValueError(f"{name} must be whole numbers of at least 1, got {number!r}")
