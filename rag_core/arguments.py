"""What the models refuse of a caller's tensors, in one wording for both backends, which tell what
they see of them.

Letters: B questions, N documents a question, Q question length, S context length, T target length,
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from numbers import Integral
from os import PathLike
from typing import Any

from rag_core import checks

Shape = tuple[int | None, ...] | None

# Room for all documents of a batch is made before any is found; no index is asked for as many, and a
# slip of the pen shouldn't take all memory.
_MOST_DOCS = 2**16


@dataclass(frozen=True)
class TensorFacts:
    """What a backend tells of a tensor without looking at its numbers.

    Attributes:
        name: of the argument.
        shape: None in place of sizes that are not known, or of all of them.
        kind: NumPy's letter for its type: "i" integers, "f" floating point, "b" truth values, "c"
            complex.
        dtype: the name of its type, without the framework's.
    """

    name: str
    shape: Shape
    kind: str
    dtype: str

    def size(self, axis: int) -> int | None:
        """How long an axis is; None if that is not known."""
        if self.shape is None or not -len(self.shape) <= axis < len(self.shape):
            return None
        return self.shape[axis]

    def is_empty(self) -> bool:
        """Whether an axis is known to have no places."""
        return self.shape is not None and 0 in self.shape


def _context_rows(scores: TensorFacts, n_docs: int) -> int | None:
    """B * n_docs; None if B is not known."""
    questions = scores.size(0)
    return None if questions is None else questions * n_docs


def differs(shape: Shape, expected: Shape) -> bool:
    """Whether a shape is known not to be the expected one; None = any size, or not known."""
    if shape is None or expected is None:
        return False
    if len(shape) != len(expected):
        return True
    sizes = zip(shape, expected, strict=True)
    return any(None not in pair and pair[0] != pair[1] for pair in sizes)


def check_contexts(parts: Mapping[str, Any], has_retriever: bool) -> bool:
    """Whether contexts are given; they are given all or not at all.

    Raises:
        ValueError: some are, or none is and there is no retriever.
    """
    missing = [name for name, value in parts.items() if value is None]
    if len(missing) == len(parts):
        if has_retriever:
            return False
        raise ValueError(
            "this model has no retriever, so context_input_ids, context_attention_mask and "
            "doc_scores must all be given (a retriever's call returns the first two), or a "
            "retriever set with set_retriever(...)"
        )
    if missing:
        present = [name for name in parts if name not in missing]
        raise ValueError(
            "context_input_ids, context_attention_mask and doc_scores must be given together or "
            f"not at all, got {' and '.join(present)} without {' and '.join(missing)}"
        )
    return True


def check_parts(question_encoder: Any = None, generator: Any = None, retriever: Any = None) -> None:
    """Refuses names where a RAG model wants networks, and retrievers that cannot be called; None =
    not given.

    Raises:
        TypeError: naming the argument.
    """
    for name, part in (("question_encoder", question_encoder), ("generator", generator)):
        if isinstance(part, str | PathLike):
            raise TypeError(
                f"{name} must be a network, got {str(part)!r}. Load it, or name both parts in "
                "from_pretrained_question_encoder_generator"
            )
    if retriever is not None and not callable(retriever):
        raise TypeError(
            f"retriever must be callable like RagRetriever, got {type(retriever).__name__}. "
            "Load one with RagRetriever.from_pretrained"
        )


def check_places(**places: str | None) -> None:
    """Refuses tensors without numbers among those that have some.

    Args:
        **places: the kind of device of each argument ("meta" holds none); None = not given.

    Raises:
        ValueError: naming one of them, and one of the others.
    """
    hollow = [name for name, place in places.items() if place == "meta"]
    real = [name for name, place in places.items() if place not in (None, "meta")]
    if hollow and real:
        raise ValueError(
            f"{hollow[0]} must be on the device of {real[0]}, {places[real[0]]}, got the meta "
            "device, where tensors hold no numbers. Load or move it there"
        )


def check_integers(ids: TensorFacts) -> None:
    """Refuses what cannot be looked up.

    Raises:
        TypeError: it does not hold integers of 32 or 64 bits.
    """
    if ids.dtype not in ("int64", "int32"):
        raise TypeError(f"{ids.name} must hold integer ids (int64), got {ids.dtype}")


def check_vocabulary(name: str, low: float, high: float, size: int) -> None:
    """Refuses ids that a table of `size` rows does not have.

    Raises:
        ValueError: naming the lowest and the highest.
    """
    if low < 0 or high >= size:
        raise ValueError(
            f"{name} must lie in the model's vocabulary, 0 to {size - 1}; got ids from {int(low)} "
            f"to {int(high)}. The tokenizer must belong to the model (or resize_token_embeddings "
            "must follow tokens added to it). If a text spells a special token that the model "
            "lacks, load the tokenizer with split_special_tokens=True"
        )


def check_mask(mask: TensorFacts, shape: Shape, of: str) -> None:
    """Refuses a mask of another shape than what it masks, or of another kind of numbers.

    Raises:
        TypeError: it holds neither whole nor real numbers nor truth values.
        ValueError: naming both shapes.
    """
    if mask.kind not in ("b", "i", "f"):
        raise TypeError(
            f"{mask.name} must hold 1 for tokens that are read and 0 for others, got {mask.dtype}"
        )
    if differs(mask.shape, shape):
        raise ValueError(f"{mask.name} must have the shape of {of}, {shape}, got {mask.shape}")


def check_mask_values(name: str, low: float, high: float) -> None:
    """Refuses a mask with other numbers than 0 and 1.

    Args:
        name: of the mask.
        low: the lowest of its numbers (NaN where any is); of real ones, those that are 1 taken for
            0.
        high: the highest.

    Raises:
        ValueError: naming a number.
    """
    wrong = [value for value in (low, high) if value not in (0, 1)]
    if wrong:
        raise ValueError(
            f"{name} must hold 1 for tokens that are read and 0 for others, got {wrong[0]:g}. "
            "Pass the mask that the tokenizer or the retriever returns"
        )


def check_questions(ids: TensorFacts) -> None:
    """Refuses ids that are not (B, Q) with a token or more."""
    if differs(ids.shape, (None, None)) or ids.is_empty():
        raise ValueError(
            f"{ids.name} must be (B, Q) with at least one token, got shape {ids.shape}"
        )


def check_context_rows(ids: TensorFacts, scores: TensorFacts, n_docs: int) -> None:
    """Refuses context ids that are not (B * n_docs, S) with a token or more."""
    rows = _context_rows(scores, n_docs)
    if differs(ids.shape, (rows, None)) or ids.size(1) == 0:
        raise ValueError(
            f"{ids.name} must have B * n_docs = {scores.size(0)} * {n_docs} = {rows} rows "
            f"(doc_scores are {scores.shape}) of one token or more, got shape {ids.shape}"
        )


def check_scores(scores: TensorFacts, n_docs: int) -> None:
    """Refuses document scores that are not (B, n_docs) real numbers.

    Raises:
        TypeError: they are truth values or complex.
        ValueError: naming the shape.
    """
    if scores.kind not in ("i", "f"):
        raise TypeError(f"{scores.name} must hold real numbers (float32), got {scores.dtype}")
    if differs(scores.shape, (None, n_docs)):
        raise ValueError(
            f"{scores.name} must be (B, n_docs) with n_docs = {n_docs}, got shape {scores.shape}; "
            "pass n_docs= if the contexts hold another number of documents than the config"
        )
    if scores.size(0) == 0:
        raise ValueError(
            f"{scores.name} must be (B, n_docs) with one question or more, got shape "
            f"{scores.shape}. Leave out a batch that holds none"
        )


def refuse_scores(values: Any) -> None:
    """Says which document scores can not be.

    NaN, infinity, or -inf for all documents of a question.
    """
    raise ValueError(
        "doc_scores must be numbers, or -inf for a missing document, with one number or more for "
        f"each question; got {values!s:.200}"
    )


def check_loss(
    logits: TensorFacts, scores: TensorFacts, n_docs: int, target: TensorFacts | None = None
) -> None:
    """Refuses tensors of a loss, or of a marginal without `target`, that do not fit each other.

    Raises:
        TypeError: logits that are no floating-point numbers, ids that are no integers, scores that
            are not real.
        ValueError: naming the shapes.
    """
    if logits.kind != "f":
        raise TypeError(f"{logits.name} must hold floating-point numbers, got {logits.dtype}")
    check_scores(scores, n_docs)
    questions, rows = scores.size(0), _context_rows(scores, n_docs)
    if differs(logits.shape, (rows, None, None)):
        raise ValueError(
            f"{logits.name} must be (B * n_docs, T, V) with B * n_docs = {questions} * {n_docs} = "
            f"{rows} (doc_scores are {scores.shape}), got shape {logits.shape}"
        )
    if target is None:
        return
    check_integers(target)
    length = logits.size(1)
    if differs(target.shape, (questions, length)) or target.size(1) == 0:
        raise ValueError(
            f"{target.name} must be (B, T) = ({questions}, {length}) as doc_scores {scores.shape} "
            f"and {logits.name} {logits.shape} are, with one token or more, got shape "
            f"{target.shape}"
        )


def checked_epsilon(epsilon: Any) -> float:
    """The strength of label smoothing; None is 0.

    Raises:
        TypeError, ValueError: not a number from 0 to 1.
    """
    return float(checks.option(_EPSILON, "epsilon", epsilon, 0.0))


def checked_switch(name: str, value: Any, default: Any) -> bool:
    """True or False; None is the default.

    Raises:
        TypeError: something else.
    """
    if value is True or value is False:  # most calls; the rules of checks take longer
        return value
    if value is None:
        return bool(default)
    return _ON(name, value)


_ON = checks.switch()
_EPSILON = checks.number(0, 1)
_START = checks.token_id(optional=False)


def as_list(texts: Any) -> Any:
    """What an array, a column of a table, a generator or anything else of one dimension holds, as a
    list; all else as it is.
    """
    if isinstance(texts, str | bytes | Mapping | Set | list | tuple):
        return texts
    if not isinstance(texts, Iterable) or getattr(texts, "ndim", 1) != 1:
        return texts
    return list(texts)


def checked_questions(questions: Any) -> list[str]:
    """What is asked: one question, or those of a list, an array, a column of a table or a
    generator, as a list.

    Raises:
        TypeError: neither a string nor an ordered row of strings.
        ValueError: no question, or one without a word.
    """
    texts = [questions] if isinstance(questions, str) else as_list(questions)
    if not isinstance(texts, list | tuple):
        raise TypeError(
            f"questions must be a string or a list of strings; got {type(questions).__name__}. Of "
            "a table or a dictionary give the column that holds them"
        )
    texts = list(texts)
    if not texts:
        raise ValueError("questions must hold one question or more; got an empty list")
    for i, question in enumerate(texts):
        if not isinstance(question, str):
            raise TypeError(f"questions must be strings; number {i} is a {type(question).__name__}")
        if not question.strip():
            raise ValueError(f"question number {i} is empty; write at least one word")
    return texts


def checked_n_docs(n_docs: Any, default: int) -> int:
    """How many documents a question reads: `n_docs`, or the config's.

    Raises:
        ValueError: not a positive integer, or more than any index gives.
    """
    if n_docs is None:
        n_docs = default
    number = isinstance(n_docs, Integral | float) and not isinstance(n_docs, bool)
    if not number or not 1 <= n_docs < math.inf or int(n_docs) != n_docs:
        raise ValueError(f"n_docs must be a positive integer, got {n_docs!r}")
    if n_docs > _MOST_DOCS:
        raise ValueError(
            f"n_docs must be at most {_MOST_DOCS}, got {n_docs!r}. Room for as many is made "
            "beforehand"
        )
    return int(n_docs)


def checked_start(start_token_id: Any, default: int | None) -> int:
    """The token that decoding starts from: the one given, or the config's.

    Raises:
        TypeError, ValueError: none, or no token id.
    """
    if start_token_id is None:
        start_token_id = default
    if start_token_id is None:
        raise ValueError("start_token_id must be given: config.decoder_start_token_id is None")
    return _START("start_token_id", start_token_id)


def check_states(states: TensorFacts, scores: TensorFacts, n_docs: int, width: int | None) -> None:
    """Refuses encoder states that are not (B * n_docs, S, d) floating-point numbers."""
    rows = _context_rows(scores, n_docs)
    if differs(states.shape, (rows, None, width)) or states.kind != "f":
        dtype = "" if states.kind == "f" else f" of {states.dtype}"
        raise ValueError(
            f"encoder_outputs must hold (B * n_docs, S, d) states with B * n_docs = {rows} "
            f"(doc_scores are {scores.shape}) and d = {width or 'any'} as element 0, got shape "
            f"{states.shape}{dtype}"
        )


def check_fed(fed: TensorFacts) -> None:
    """Refuses ids that are not (B, S), or embeddings that are not (B, S, d), with a row and a token
    or more.

    Raises:
        TypeError: embeddings that are no floating-point numbers.
        ValueError: naming the shape.
    """
    shape: Shape = (None, None)
    letters = "(B, S)"
    if fed.name.endswith("embeds"):
        shape = (None, None, None)
        letters = "(B, S, d)"
        if fed.kind != "f":
            raise TypeError(f"{fed.name} must hold floating-point numbers, got {fed.dtype}")
    if differs(fed.shape, shape) or fed.is_empty():
        raise ValueError(
            f"{fed.name} must be {letters} with at least one token, got shape {fed.shape}"
        )


def check_text(
    ids: TensorFacts, mask: TensorFacts | None = None, types: TensorFacts | None = None
) -> None:
    """Refuses what an encoder cannot read: ids or embeddings with no rows or columns, masks and
    types beside them.

    Raises:
        TypeError, ValueError: naming the argument and its shape.
    """
    check_fed(ids)
    places = None if ids.shape is None else ids.shape[:2]
    if mask is not None:
        check_mask(mask, places, ids.name)
    if types is not None:
        check_integers(types)
        if differs(types.shape, places):
            raise ValueError(
                f"{types.name} must have the shape of {ids.name}, {places}, got {types.shape}"
            )


def check_processed(scores: TensorFacts, shape: Shape) -> None:
    """Refuses what a logits processor returned, if it is no (R, V) floating-point scores."""
    if scores.kind != "f" or differs(scores.shape, shape):
        raise ValueError(
            f"{scores.name} must return floating-point scores of shape {shape}, got "
            f"{scores.dtype} {scores.shape}"
        )


def refuse_nan(name: str) -> None:
    """Says that scores which are no numbers choose no token."""
    raise ValueError(f"{name} must return numbers (-inf to forbid a token), got NaN")


def check_target(target: TensorFacts, scores: TensorFacts) -> None:
    """Refuses a decoder's input that is not (B, T) with a token or more.

    Raises:
        ValueError: naming the shapes.
    """
    questions = scores.size(0)
    if differs(target.shape, (questions, None)) or target.size(-1) == 0:
        raise ValueError(
            f"{target.name} must be (B, T) with B = {questions} (doc_scores are {scores.shape}) "
            f"and one token or more, got shape {target.shape}; labels take their place where they "
            "are not given"
        )


def check_rows(target: TensorFacts, context: TensorFacts) -> None:
    """Refuses a decoder's input with another number of rows than the contexts have.

    Several may stand beside each.
    """
    rows, texts = target.size(0), context.size(0)
    if rows is None or texts is None:
        return
    if not texts or rows % texts:
        raise ValueError(
            f"{target.name} must have as many rows as {context.name}, {texts}, or a multiple, got "
            f"{rows}"
        )
