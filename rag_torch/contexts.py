"""What a RAG model reads: documents joined with questions and their scores, given or retrieved, and
checked.

Letters: B questions, N documents a question, Q question length, S context length, D vector size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rag_core import arguments
from rag_core.arguments import Given
from rag_torch.marginalize import widen


@dataclass
class Contexts:
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

    def trimmed(self) -> Contexts:
        """The same without the columns on the right that are padding in every row (they change
        no result).
        """
        if self.context_attention_mask is None:
            return self
        length = used_length(self.context_attention_mask)
        ids, mask = (
            None if each is None else each[:, :length]
            for each in (self.context_input_ids, self.context_attention_mask)
        )
        return replace(self, context_input_ids=ids, context_attention_mask=mask)


def used_length(mask: Tensor) -> int:
    """How many columns of a mask (R, S) are left without those on the right that are padding in
    every row; 1 or more.

    Where a value can't be read (torch.compile, the meta device), all of them.
    """
    if mask.is_meta or torch.compiler.is_compiling():
        return mask.shape[1]
    used = mask.bool().any(0).nonzero()
    return int(used[-1]) + 1 if len(used) else 1


def facts(name: str, value: Any) -> Given:
    """What can be told of a tensor without looking at its numbers.

    Raises:
        TypeError: not a tensor.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(value).__name__}: use return_tensors='pt'"
        )
    kind = "i"
    if value.is_floating_point():
        kind = "f"
    elif value.is_complex():
        kind = "c"
    elif value.dtype == torch.bool:
        kind = "b"
    return Given(name, tuple(value.shape), kind, str(value.dtype).removeprefix("torch."))


def given_contexts(
    context_input_ids: Tensor | None,
    context_attention_mask: Tensor | None,
    doc_scores: Tensor | None,
    n_docs: int,
    has_retriever: bool,
    vocabulary: int | None = None,
) -> Contexts | None:
    """The caller's contexts, checked; None if there are none and a retriever can find some.

    Raises:
        TypeError: something other than tensors, or ids that are no integers.
        ValueError: only some of the three are given, none and there is no retriever, their shapes
            disagree, an id is outside the generator's `vocabulary`, or the mask holds other numbers
            than 0 and 1.
    """
    parts = {
        "context_input_ids": context_input_ids,
        "context_attention_mask": context_attention_mask,
        "doc_scores": doc_scores,
    }
    if not arguments.check_contexts(parts, has_retriever):
        return None
    check_places(**parts)
    scores = given_scores(doc_scores, n_docs)
    ids = facts("context_input_ids", context_input_ids)
    arguments.check_integers(ids)
    arguments.check_context_rows(ids, facts("doc_scores", scores), n_docs)
    arguments.check_mask(
        facts("context_attention_mask", context_attention_mask), ids.shape, ids.name
    )
    check_values(
        ids.name, context_input_ids, vocabulary, "context_attention_mask", context_attention_mask
    )
    return Contexts(context_input_ids, context_attention_mask, scores, n_docs)


def check_places(**tensors: Any) -> None:
    """Refuses tensors on the meta device among others; see `rag_core.arguments.check_places`."""
    devices = {name: getattr(value, "device", None) for name, value in tensors.items()}
    arguments.check_places(
        **{name: None if at is None else torch.device(at).type for name, at in devices.items()}
    )


def check_values(
    name: str,
    ids: Tensor | None,
    size: int | None,
    mask_name: str = "attention_mask",
    mask: Tensor | None = None,
) -> None:
    """Looks at ids, which a table of `size` rows must have, and at their mask, in one wait for the
    device.

    Not where values can't be read: torch.compile, the meta device.

    Raises:
        ValueError: an id outside 0 to `size` - 1, or a mask with other numbers than 0 and 1.
    """
    looked = [each for each in (ids, mask) if each is not None]
    if torch.compiler.is_compiling() or any(each.is_meta or not each.numel() for each in looked):
        return
    parts: list[Tensor] = []
    masked = mask is not None and mask.dtype != torch.bool
    if ids is not None and size is not None:
        parts += ids.aminmax()
    if mask is not None and masked:
        real = mask.is_floating_point()
        parts += (torch.where((mask == 0) | (mask == 1), 0, mask) if real else mask).aminmax()
    if not parts:
        return
    same = len({part.dtype for part in parts}) == 1
    found = torch.stack(parts if same else [part.double() for part in parts]).tolist()
    if ids is not None and size is not None:
        arguments.check_vocabulary(name, found[0], found[1], size)
    if masked:
        arguments.check_mask_values(mask_name, found[-2], found[-1])


def checked_mask(name: str, mask: Tensor | None, shape: tuple[int, ...], of: str) -> None:
    """Refuses a mask that is not of a shape, or where looking is free (on a CPU) holds other
    numbers than 0 and 1.

    Raises:
        TypeError: not a tensor of numbers.
        ValueError: naming both shapes, or a number.
    """
    if mask is None:
        return
    arguments.check_mask(facts(name, mask), tuple(shape), of)
    if mask.device.type == "cpu":
        check_values(name, None, None, name, mask)


def given_scores(doc_scores: Tensor | None, n_docs: int) -> Tensor:
    """The caller's document scores (B, N), checked, in float32 or wider.

    Raises:
        TypeError: not a tensor of real numbers.
        ValueError: missing, not (B, n_docs), NaN or plus infinity, or a question without a single
            document.
    """
    if doc_scores is None:
        raise ValueError(
            "doc_scores must be given with encoder_outputs: pass the (B, n_docs) scores of those "
            "contexts"
        )
    arguments.check_scores(facts("doc_scores", doc_scores), n_docs)
    scores = widen(doc_scores)
    # torch.compile can't branch on a value. The largest of a row is NaN where any is.
    if scores.is_meta or torch.compiler.is_compiling():
        return scores
    if not bool(scores.amax(1).isfinite().all()):
        arguments.refuse_scores(doc_scores.tolist())
    return scores


def check_loss(logits: Any, scores: Any, n_docs: int, target: Any = None) -> None:
    """Refuses tensors of a loss that do not fit; numbers are looked at where that is free, on a
    CPU.

    Raises:
        TypeError, ValueError: see `rag_core.arguments.check_loss`.
    """
    ids = None if target is None else facts("target", target)
    arguments.check_loss(facts("seq_logits", logits), facts("doc_scores", scores), n_docs, ids)
    if scores.device.type == "cpu":
        given_scores(scores, n_docs)
    if target is not None and target.device.type == "cpu":
        check_values(
            "target (but for -100)", target.masked_fill(target == -100, 0), logits.shape[-1]
        )


def table_size(module: Any) -> int | None:
    """How many ids a module's token table holds; None if it doesn't say."""
    try:
        return int(module.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):
        return None


def checked_ids(name: str, ids: Any, size: int | None = None) -> Tensor:
    """Token ids that a table of `size` rows can look up.

    Raises:
        TypeError: not a tensor of integers.
        ValueError: an id outside 0 to `size` - 1.
    """
    arguments.check_integers(facts(name, ids))
    check_values(name, ids, size)
    return ids


def checked_labels(
    labels: Any, decoder_input_ids: Any, pad_token_id: int, vocabulary: int | None
) -> Tensor:
    """Labels (B, T) with pads for -100.

    Raises:
        TypeError: not a tensor of integers.
        ValueError: an id that is neither in the vocabulary nor -100, or another shape than that of
            the decoder's input.
    """
    labels = checked_ids("labels", labels)
    labels = labels.masked_fill(labels == -100, pad_token_id)
    checked_ids("labels (but for -100)", labels, vocabulary)
    fed = tuple(getattr(decoder_input_ids, "shape", labels.shape))
    if fed != tuple(labels.shape):
        raise ValueError(
            f"labels must have the shape of decoder_input_ids, {fed}, got {tuple(labels.shape)}"
        )
    return labels


def checked_questions(
    input_ids: Tensor | None, attention_mask: Tensor | None, vocabulary: int | None = None
) -> Tensor:
    """The questions' ids (B, Q), if they can be encoded.

    Raises:
        TypeError: something other than tensors, or ids that are no integers.
        ValueError: no ids, not (B, Q), empty, outside the encoder's `vocabulary`, or a mask of
            another shape or with other numbers than 0 and 1.
    """
    if input_ids is None:
        raise ValueError(
            "input_ids must be given to retrieve documents (or pass the three context arguments)"
        )
    ids = facts("input_ids", input_ids)
    arguments.check_integers(ids)
    arguments.check_questions(ids)
    if attention_mask is not None:
        arguments.check_mask(facts("attention_mask", attention_mask), ids.shape, ids.name)
        check_places(input_ids=input_ids, attention_mask=attention_mask)
    check_values(ids.name, input_ids, vocabulary, "attention_mask", attention_mask)
    return input_ids


def check_text(ids: Any, embeds: Any, mask: Any = None, types: Any = None) -> None:
    """Refuses what an encoder cannot read; see `rag_core.arguments.check_text`."""
    read = facts("input_ids", ids) if embeds is None else facts("inputs_embeds", embeds)
    given = [
        None if each is None else facts(name, each)
        for name, each in (("attention_mask", mask), ("token_type_ids", types))
    ]
    arguments.check_text(read, *given)
    if mask is not None and mask.device.type == "cpu":
        check_values(read.name, None, None, "attention_mask", mask)


def to_device(value: Any, device: torch.device) -> Tensor:
    """A tensor or array as a tensor on `device`."""
    return torch.as_tensor(value).to(device)
