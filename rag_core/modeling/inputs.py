"""What a RAG model reads: documents joined with questions and their scores, given or retrieved; and
the checks of all that a caller hands a model.

A backend tells what it sees of a tensor; what is refused and in which words is decided once.

Letters: B questions, N documents a question, Q question length, S context length, T target length,
D vector size, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from rag_core import arguments
from rag_core.arguments import Shape, TensorFacts
from rag_core.backends import to_numpy

Tensor = Any  # the framework's own

# (tensor, how many ids its table has) of what was looked at in this call
_LOOKED_AT: ContextVar[list[tuple[Tensor, int]] | None] = ContextVar("looked_at", default=None)
# A mask's numbers are 0 and 1, as ids of a table of two rows would be.
_MASK = 2
_SCORES = 0  # no ids: no table is as small


Batch = TypeVar("Batch", bound="ContextsBase")


@dataclass
class ContextsBase:
    """Contexts and document scores of a batch of questions.

    Attributes:
        context_input_ids: (B*N, S), row b * N + d; None where only encoder outputs were given.
        context_attention_mask: (B*N, S), 1 = a real token.
        doc_scores: (B, N) float32 or wider, -inf for a missing document.
        n_docs: N.
        question_hidden_states: question vectors (B, D) if the question was encoded.
        retrieved: what the retriever returned, if it was asked.
        question_outputs: the question encoder's whole output, if it ran.
    """

    context_input_ids: Tensor | None
    context_attention_mask: Tensor | None
    doc_scores: Tensor
    n_docs: int
    question_hidden_states: Tensor | None = None
    retrieved: Any = None
    question_outputs: Any = None

    @staticmethod
    def used_length(mask: Tensor) -> Any:
        """How many columns of a mask (R, S) are left without those on the right that are padding in
        every row; 1 or more.
        """
        raise NotImplementedError

    def trimmed(self: Batch) -> Batch:
        """The same without the columns on the right that are padding in every row (they change
        no result).
        """
        mask = self.context_attention_mask
        if mask is None:
            return self
        length = self.used_length(mask)
        ids = self.context_input_ids
        if ids is not None:
            ids = ids[:, :length]
        return replace(self, context_input_ids=ids, context_attention_mask=mask[:, :length])


class InputChecks(ABC):
    """Refuses what a model can't read; a backend adds how its tensors are looked at.

    Shapes are compared as far as they are known. Numbers are looked at where that is possible, and
    on a device only where a wait for it is worth while: ids that a table lacks would end the
    process there.

    Attributes:
        contexts: the backend's `ContextsBase`.
    """

    contexts: ClassVar[type[ContextsBase]]

    # what a backend tells

    @abstractmethod
    def tensor(self, name: str, value: Any) -> Tensor:
        """The argument as a tensor.

        Raises:
            TypeError: it is none, and is not taken for one.
        """

    @abstractmethod
    def to_device(self, value: Any, like: Tensor | None = None) -> Tensor:
        """A tensor or array as a tensor, where `like` is."""

    @abstractmethod
    def facts(self, name: str, value: Tensor) -> TensorFacts:
        """What can be told of a tensor without looking at its numbers."""

    @abstractmethod
    def can_look(self) -> bool:
        """Whether tensors hold numbers now; not in a graph or while one is compiled."""

    @abstractmethod
    def looking_is_free(self, value: Tensor) -> bool:
        """Whether no device has to be waited for."""

    @abstractmethod
    def bounds(self, tensors: Sequence[Tensor]) -> list[tuple[float, float]]:
        """The lowest and the highest number of each (NaN where any is), in one wait for the device;
        [] if one has no numbers.
        """

    @abstractmethod
    def has_finite_rows(self, scores: Tensor) -> bool:
        """Whether the highest number of each row (B, N) is finite (NaN where any is); True of
        tensors without numbers.
        """

    @abstractmethod
    def masked_fill(self, x: Tensor, mask: Tensor, value: int) -> Tensor:
        """`value` where `mask` is True, x elsewhere."""

    @abstractmethod
    def widen(self, x: Tensor) -> Tensor:
        """The tensor in float32, or as it is if wider."""

    @abstractmethod
    def table_rows(self, table: Any) -> int:
        """How many vectors a token table holds."""

    def check_places(self, **tensors: Any) -> None:  # noqa: B027, as TensorFlow has no such tensors
        """Refuse tensors without numbers among others; see `rag_core.arguments.check_places`."""

    # once a call

    def looking_once(self) -> AbstractContextManager[None]:
        """Within it no tensor's numbers are looked at twice; nobody may write to one."""
        if self.can_look() and _LOOKED_AT.get() is None:
            return _looking_once()
        return nullcontext()

    def note_repeated(self, repeated: Tensor, value: Tensor, size: int | None) -> None:
        """Remember that a tensor holds the ids of another one, if that was looked at in this call
        and a table of `size` rows has its ids.
        """
        if size is not None and self.can_look() and _is_known(value, size):
            _note(repeated, size)

    # ids and masks

    def check_values(
        self,
        name: str,
        ids: Tensor | None,
        size: int | None,
        mask_name: str = "attention_mask",
        mask: Tensor | None = None,
    ) -> None:
        """Look at ids, which a table of `size` rows must have, and at their mask, in one wait for
        the device.

        Raises:
            ValueError: an id outside 0 to `size` - 1, or a mask with other numbers than 0 and 1.
        """
        if not self.can_look():
            return
        if ids is None or size is None or _is_known(ids, size):
            ids = None
        numbers = None
        if mask is not None and not _is_known(mask, _MASK):
            numbers = self._mask_numbers(mask_name, mask)
        looks = [tensor for tensor in (ids, numbers) if tensor is not None]
        if not looks:
            return
        bounds = self.bounds(looks)
        if not bounds:
            return
        if ids is not None and size is not None:
            arguments.check_vocabulary(name, *bounds[0], size)
            _note(ids, size)
        if numbers is not None:
            arguments.check_mask_values(mask_name, *bounds[-1])
            _note(mask, _MASK)

    def _mask_numbers(self, name: str, mask: Tensor) -> Tensor | None:
        """What the bounds of a mask are taken of; None of truth values."""
        kind = self.facts(name, mask).kind
        if kind == "b":
            return None
        if kind == "f":  # bounds of 0 and 1 would not tell a fraction
            return self.masked_fill(mask, (mask == 0) | (mask == 1), 0)
        return mask

    def checked_ids(self, name: str, ids: Any, size: int | None = None) -> Tensor:
        """Token ids that a table of `size` rows can look up.

        Raises:
            TypeError: no integers.
            ValueError: an id outside 0 to `size` - 1.
        """
        ids = self.tensor(name, ids)
        arguments.check_integers(self.facts(name, ids))
        self.check_values(name, ids, size)
        return ids

    def checked_mask(self, name: str, mask: Any, shape: Shape, of: str) -> Tensor | None:
        """A mask as a tensor, refused if it is not of the shape of the argument `of`, or where
        looking is free holds other numbers than 0 and 1.

        Raises:
            TypeError: no tensor of numbers.
            ValueError: naming both shapes, or a number.
        """
        if mask is None:
            return None
        mask = self.tensor(name, mask)
        if shape is not None:
            shape = tuple(shape)
        arguments.check_mask(self.facts(name, mask), shape, of)
        if self.looking_is_free(mask):
            self.check_values(name, None, None, name, mask)
        return mask

    def check_text(self, ids: Any, embeds: Any, mask: Any = None, types: Any = None) -> None:
        """Refuse what an encoder can't read; see `rag_core.arguments.check_text`."""
        name, read = "input_ids", ids
        if embeds is not None:
            name, read = "inputs_embeds", embeds
        mask_facts = types_facts = None
        if mask is not None:
            mask = self.tensor("attention_mask", mask)
            mask_facts = self.facts("attention_mask", mask)
        if types is not None:
            types_facts = self.facts("token_type_ids", self.tensor("token_type_ids", types))
        arguments.check_text(self.facts(name, self.tensor(name, read)), mask_facts, types_facts)
        if mask is not None and self.looking_is_free(mask):
            self.check_values(name, None, None, "attention_mask", mask)

    def table_size(self, module: Any) -> int | None:
        """How many ids a module's token table holds; None if it doesn't say."""
        try:
            return int(self.table_rows(module.get_input_embeddings()))
        except (AttributeError, NotImplementedError):
            return None

    # a RAG model's arguments

    def given_contexts(
        self,
        context_input_ids: Any,
        context_attention_mask: Any,
        doc_scores: Any,
        n_docs: int,
        has_retriever: bool,
        vocabulary: int | None = None,
    ) -> ContextsBase | None:
        """The caller's contexts, checked; None if there are none and a retriever can find some.

        Raises:
            TypeError: something other than tensors, or ids that are no integers.
            ValueError: only some of the three are given, none and there is no retriever, their
                shapes disagree, an id is outside the generator's `vocabulary`, or the mask holds
                other numbers than 0 and 1.
        """
        parts = {
            "context_input_ids": context_input_ids,
            "context_attention_mask": context_attention_mask,
            "doc_scores": doc_scores,
        }
        if not arguments.check_contexts(parts, has_retriever):
            return None
        scores = self.given_scores(doc_scores, n_docs)
        ids = self.tensor("context_input_ids", context_input_ids)
        ids_facts = self.facts("context_input_ids", ids)
        arguments.check_integers(ids_facts)
        arguments.check_context_rows(ids_facts, self.facts("doc_scores", scores), n_docs)
        mask = self.tensor("context_attention_mask", context_attention_mask)
        mask_facts = self.facts("context_attention_mask", mask)
        arguments.check_mask(mask_facts, ids_facts.shape, ids_facts.name)
        self.check_values(ids_facts.name, ids, vocabulary, mask_facts.name, mask)
        return self.contexts(ids, mask, scores, n_docs)

    def given_scores(self, doc_scores: Any, n_docs: int) -> Tensor:
        """The caller's document scores (B, N), checked, in float32 or wider.

        Raises:
            TypeError: no tensor of real numbers.
            ValueError: missing, not (B, n_docs), NaN or plus infinity, or a question without a
                single document.
        """
        if doc_scores is None:
            raise ValueError(
                "doc_scores must be given with encoder_outputs: pass the (B, n_docs) scores of "
                "those contexts"
            )
        doc_scores = self.tensor("doc_scores", doc_scores)
        arguments.check_scores(self.facts("doc_scores", doc_scores), n_docs)
        scores = self.widen(doc_scores)
        if self.can_look() and not _is_known(scores, _SCORES):
            if not self.has_finite_rows(scores):
                arguments.refuse_scores(to_numpy(doc_scores).tolist())
            _note(scores, _SCORES)
        return scores

    def checked_questions(
        self, input_ids: Any, attention_mask: Any, vocabulary: int | None = None
    ) -> Tensor:
        """The questions' ids (B, Q), if they can be encoded.

        Raises:
            TypeError: something other than tensors, or ids that are no integers.
            ValueError: no ids, not (B, Q), empty, outside the encoder's `vocabulary`, or a mask of
                another shape or with other numbers than 0 and 1.
        """
        if input_ids is None:
            raise ValueError(
                "input_ids must be given to retrieve documents (or pass the three context "
                "arguments)"
            )
        ids = self.tensor("input_ids", input_ids)
        ids_facts = self.facts("input_ids", ids)
        arguments.check_integers(ids_facts)
        arguments.check_questions(ids_facts)
        mask = attention_mask
        if mask is not None:
            mask = self.tensor("attention_mask", mask)
            arguments.check_mask(
                self.facts("attention_mask", mask), ids_facts.shape, ids_facts.name
            )
            self.check_places(input_ids=ids, attention_mask=mask)
        self.check_values(ids_facts.name, ids, vocabulary, "attention_mask", mask)
        return ids

    def check_states(
        self, states: Any, mask: Any, scores: Tensor, n_docs: int, width: int | None
    ) -> None:
        """Refuse encoder states that are not (B*N, S, d), and a mask of contexts that is not
        theirs.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        facts = self.facts("encoder_outputs", self.tensor("encoder_outputs", states))
        arguments.check_states(facts, self.facts("doc_scores", scores), n_docs, width)
        places = (facts.size(0), facts.size(1))
        of = "encoder_outputs, (B * n_docs, S)"
        self.checked_mask("context_attention_mask", mask, places, of)

    def checked_target(
        self, name: str, target: Any, scores: Tensor, vocabulary: int | None = None
    ) -> Tensor:
        """What the decoder is fed, or a mask of it: (B, T), as many rows as questions.

        Args:
            name: of the argument; the numbers of "decoder_input_ids" are looked at.
            target: the argument.
            scores: document scores (B, N).
            vocabulary: how many ids the generator has.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        if name == "decoder_input_ids":
            target = self.checked_ids(f"{name} (or labels)", target, vocabulary)
        target = self.tensor(name, target)
        self.check_places(**{"doc_scores": scores, name: target})
        arguments.check_target(self.facts(name, target), self.facts("doc_scores", scores))
        return target

    def checked_labels(
        self, labels: Any, decoder_input_ids: Any, pad_token_id: int, vocabulary: int | None
    ) -> Tensor:
        """Labels (B, T) with pads for -100.

        Raises:
            TypeError: no tensor of integers.
            ValueError: an id that is neither in the vocabulary nor -100, or another shape than that
                of the decoder's input.
        """
        labels = self.checked_ids("labels", labels)
        labels = self.masked_fill(labels, labels == -100, pad_token_id)
        self.check_values("labels (but for -100)", labels, vocabulary)
        if decoder_input_ids is not None:
            fed = self.tensor("decoder_input_ids", decoder_input_ids)
            shape, fed_shape = (self.facts("", each).shape for each in (labels, fed))
            if arguments.differs(shape, fed_shape):
                raise ValueError(
                    f"labels must have the shape of decoder_input_ids, {fed_shape}, got {shape}"
                )
        return labels

    def check_loss(
        self, logits: Any, scores: Any, n_docs: int, target: Any = None
    ) -> tuple[Tensor, Tensor, Any]:
        """The tensors of a loss, or of a marginal without `target`, refused if they do not fit;
        numbers are looked at where that is free.

        Raises:
            TypeError, ValueError: see `rag_core.arguments.check_loss`.
        """
        logits = self.tensor("seq_logits", logits)
        scores = self.tensor("doc_scores", scores)
        target_facts = None
        if target is not None:
            target = self.tensor("target", target)
            target_facts = self.facts("target", target)
        logits_facts = self.facts("seq_logits", logits)
        arguments.check_loss(logits_facts, self.facts("doc_scores", scores), n_docs, target_facts)
        if self.looking_is_free(scores):
            self.given_scores(scores, n_docs)
        if target is not None and self.looking_is_free(target):
            self._check_scored(target, logits.shape[-1])
        return logits, scores, target

    def _check_scored(self, target: Tensor, vocabulary: int | None) -> None:
        if vocabulary is None or not self.can_look() or _is_known(target, vocabulary):
            return
        scored = self.masked_fill(target, target == -100, 0)
        self.check_values("target (but for -100)", scored, vocabulary)


# torch.compile can't trace the three below: `can_look` is asked before.


def _is_known(value: Tensor, size: int) -> bool:
    """Whether a tensor was looked at before in this call, and a table of `size` rows has its ids."""
    for seen, rows in _LOOKED_AT.get() or ():
        if value is seen and rows <= size:
            return True
    return False


def _note(value: Tensor, size: int) -> None:
    """Remember for the rest of this call that a table of `size` rows has a tensor's ids."""
    looked_at = _LOOKED_AT.get()
    if looked_at is not None:
        looked_at.append((value, size))


@contextmanager
def _looking_once() -> Iterator[None]:
    before = _LOOKED_AT.set([])
    try:
        yield
    finally:
        _LOOKED_AT.reset(before)
