"""Fitting the weights that a file holds to those that a network needs.

Renamed, tied, every name accounted for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rag_core.checkpoint.lazy import LazyWeights, dtype_of, same_numbers, shape_of
from rag_core.checkpoint.other_berts import under_bert_names
from rag_core.checkpoint.shapes import DPR_HEADS, RAG_HEADS, Shapes, expected_shapes, tied_names
from rag_core.checkpoint.tf_names import under_needed_names
from rag_core.config import BartConfig, BertConfig, DPRConfig, PretrainedConfig, RagConfig, T5Config

__all__ = [
    "DPR_HEADS",
    "FLOATS",
    "RAG_HEADS",
    "RENAMES",
    "UNUSED",
    "LazyWeights",
    "Shapes",
    "check_sizes",
    "check_weights",
    "expected_shapes",
    "fit_names",
    "fit_weights",
    "same_numbers",
    "tied_names",
]

# fewer are built and then compared weight by weight, so that all that is wrong is said
MANY_LAYERS = 200
# No weight of a BERT, BART or T5 has so many; fewer are built and then compared.
MANY_NUMBERS = 2**31
FLOATS = ("float16", "bfloat16", "float32", "float64")

# (prefix of the needed name, prefix of the name in the file): the first row that fits is taken.
RENAMES: tuple[tuple[str, str], ...] = (
    ("", ""),
    ("", "rag."),  # a RAG-Token or RAG-Sequence file into RagModel
    ("rag.", ""),  # and back
    ("question_encoder.bert_model.", ""),  # a bare BERT into DPR
    ("question_encoder.bert_model.", "bert."),  # a BERT with a pretraining head into DPR
    ("ctx_encoder.bert_model.", ""),
    ("ctx_encoder.bert_model.", "bert."),
    ("", "bert."),
    ("", "question_encoder.bert_model."),  # DPR into a bare BERT
    ("", "ctx_encoder.bert_model."),
    ("", "question_encoder."),  # its projection
    ("", "ctx_encoder."),
    ("encode_proj.", "classifier."),  # a cross-encoder's score as a projection
    ("model.", ""),  # BartModel, saved without its language-model head
)

# Suffixes of files converted from TensorFlow 1, as the first BERT releases.
_OLD_SUFFIXES = ((".weight", ".gamma"), (".bias", ".beta"))

# What public checkpoints carry and no network here needs.
UNUSED: tuple[str, ...] = (
    r"(^|\.)embeddings\.position_ids$",  # BERT of transformers before 4.31
    r"(^|\.)pooler\.dense\.(weight|bias)$",  # DPR and sentence encoders that don't pool with it
    r"^cls\.(predictions|seq_relationship)\.",  # BERT's pretraining heads
    r"^classification_head\.",  # BART fine-tuned on MNLI
    r"(^|\.)(encoder|decoder)\.version$",  # BART converted from fairseq
    r"(^|\.)embed_positions\._float_tensor$",
    # T5 before 4.0
    r"(^|\.)decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",
    r"^(rag\.)?ctx_encoder\.",  # a context encoder trained along, when none is asked for
)

# Missing ones are zeros: a buffer of transformers that BartModel lacks.
_ZEROS = re.compile(r"(^|\.)final_logits_bias$")


def fit_names(names: Iterable[str], expected: Iterable[str]) -> dict[str, str]:
    """Which name of a file serves each needed name, by `RENAMES`; needed names without one are left
    out.

    Args:
        names: those in the file.
        expected: names needed.

    Returns:
        Needed name -> name in the file; no name of the file serves twice.
    """
    unused = set(names)
    fitted: dict[str, str] = {}
    needed = list(expected)
    for inside, outside in RENAMES:
        for name in needed:
            if name in fitted or not name.startswith(inside):
                continue
            renamed = outside + name[len(inside) :]
            candidates = [renamed]
            for new, old in _OLD_SUFFIXES:
                if renamed.endswith(new):
                    candidates.append(renamed.removesuffix(new) + old)
            for candidate in candidates:
                if candidate in unused:
                    fitted[name] = candidate
                    unused.remove(candidate)
                    break
    return fitted


def check_weights(
    expected: Mapping[str, tuple[int, ...]],
    actual: Mapping[str, tuple[int, ...]],
    *,
    source: str = "The checkpoint",
) -> None:
    """Holds names and shapes against those needed.

    Args:
        expected: needed name -> shape.
        actual: name -> shape as they are, under the needed names where they have one.
        source: what to call the file in the error.

    Raises:
        ValueError: listing all missing, all unexpected and all misshapen names, sorted.
    """
    missing = sorted(set(expected) - set(actual))
    unexpected = sorted(name for name in set(actual) - set(expected) if not _unused(name))
    misshapen = []
    for name in sorted(set(expected) & set(actual)):
        shape = tuple(actual[name])
        needed = tuple(expected[name])
        if shape != needed:
            misshapen.append(f"{name} {shape}, needed {needed}")
    lines = []
    for kind, names in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", misshapen),
    ):
        if names:
            lines.append(f"  {len(names)} {kind}: {', '.join(names)}")
    if lines:
        raise ValueError(f"{source} doesn't fit the configuration:\n" + "\n".join(lines))


def check_sizes(config: PretrainedConfig, weights: LazyWeights, source: str) -> None:
    """Refuses a configuration far beyond what its file holds, before anything is built;
    `check_weights` does the rest.

    Args:
        config: what the network is to be; parts of types unknown here are passed over.
        weights: of the file.
        source: what to call the file in errors.

    Raises:
        ValueError: it names the number of layers or the weight that is too large.
    """
    parts = [config]
    if isinstance(config, RagConfig):
        parts = [config.question_encoder, config.generator]
    known = (BartConfig, BertConfig, DPRConfig, T5Config)
    parts = [part for part in parts if isinstance(part, known)]
    for part in parts:
        for name in part.maximum:
            if (getattr(part, name) or 0) > max(len(weights), MANY_LAYERS):
                raise ValueError(
                    f"{source} doesn't fit the configuration: {type(part).__name__}.{name} must "
                    f"be at most the number of weights, {len(weights):,}, got "
                    f"{getattr(part, name):,}."
                )
    numbers = sum(math.prod(shape) for shape in weights.shapes.values())
    for part in parts:
        try:
            shapes = expected_shapes(part)
        except ValueError:  # a network that is not computed here: building it says so
            continue
        for name, shape in shapes.items():
            if math.prod(shape) > max(numbers, MANY_NUMBERS):
                raise ValueError(
                    f"{source} doesn't fit the configuration: {name} would have the shape {shape}, "
                    f"{math.prod(shape):,} numbers, and the file holds {numbers:,} in all."
                )


def fit_weights(
    config: PretrainedConfig,
    weights: Mapping[str, Any],
    head: str | None = None,
    *,
    context_encoder: PretrainedConfig | None = None,
    source: str = "The checkpoint",
) -> LazyWeights:
    """The weights of a file under the names that `config` needs, each read when it is asked for.

    Args:
        config: what the network is.
        weights: name -> array, as `read_weights` gives it or a plain dictionary.
        head: as in `expected_shapes`.
        context_encoder: as in `expected_shapes`.
        source: what to call the file in errors.

    Returns:
        A mapping with exactly the names of `expected_shapes`; tied names give the same array.

    Raises:
        ValueError: missing, unexpected or misshapen names (all of them listed), or tied copies that
            differ.
    """
    expected = expected_shapes(config, head, context_encoder=context_encoder)
    if isinstance(config, BertConfig):
        weights = under_bert_names(config, weights)
    if isinstance(weights, LazyWeights) and weights.scoped:
        weights = under_needed_names(weights, expected, source)
    fitted = fit_names(weights, expected)
    shapes = {name: shape_of(weights, old) for name, old in fitted.items()}
    shapes |= {name: shape_of(weights, name) for name in set(weights) - set(fitted.values())}
    sources = dict(fitted)
    for group in tied_names(config, head):
        copies = [name for name in group if name in fitted]
        _check_equal(weights, {name: fitted[name] for name in copies}, source)
        if copies:
            for name in group:
                sources[name] = fitted[copies[0]]
                shapes.setdefault(name, shapes[copies[0]])
    generator = config
    if isinstance(config, RagConfig):
        generator = config.generator
    if isinstance(generator, T5Config) and generator.extra.get("scale_decoder_outputs") is False:
        # transformers 5 drops the output layer of an unscaled T5 whenever it equals the embeddings.
        output = next(name for name in expected if name.endswith("lm_head.weight"))
        shared = output.removesuffix("lm_head.weight") + "shared.weight"
        if output not in sources and shared in sources:
            sources[output] = sources[shared]
            shapes[output] = shapes[shared]
    zeros = {name for name in expected if _ZEROS.search(name) and name not in shapes}
    shapes |= {name: expected[name] for name in zeros}
    check_weights(expected, shapes, source=source)

    dtypes = {name: dtype_of(weights, sources[name]) for name in expected if name not in zeros}
    usual = next((dtype for dtype in dtypes.values() if dtype.name in FLOATS), np.dtype(np.float32))
    dtypes |= dict.fromkeys(zeros, usual)

    def read(name: str) -> np.ndarray:
        if name in zeros:
            return np.zeros(expected[name], usual)
        return weights[sources[name]]

    free = getattr(weights, "free", lambda: None)
    return LazyWeights(
        expected, read, dtypes=dtypes, free=free, left_out=sorted(set(shapes) - set(expected))
    )


def with_ties(state_dict: Mapping[str, Any], ties: Mapping[str, str]) -> dict[str, Any]:
    """A state dict with each tied weight that it holds under all of its names, as files hold it
    under one.

    Args:
        state_dict: weights by name.
        ties: each further name of a tied weight -> its first name.
    """
    groups: dict[str, list[str]] = {}
    for name, first in ties.items():
        groups.setdefault(first, [first]).append(name)
    whole = dict(state_dict)
    for names in groups.values():
        present = [name for name in names if name in state_dict]
        for name in names:
            if present and name not in state_dict:
                whole[name] = state_dict[present[0]]
    return whole


def chosen_weights(
    own: Mapping[str, Any], ties: Mapping[str, str], state_dict: Mapping[str, Any]
) -> dict[str, Any]:
    """Of a state dict those entries that are written: each weight of a model once.

    Args:
        own: the model's weights by name, tied ones under their first name.
        ties: each further name of a tied weight -> its first name.
        state_dict: tied weights under any of their names.

    Raises:
        TypeError: no mapping.
        ValueError: names or shapes are not the model's; all of them are listed.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must map names to tensors, got {type(state_dict).__name__}.")
    entries = {ties.get(name, name): value for name, value in state_dict.items()}
    # the first name counts where an entry has it
    entries |= {name: value for name, value in state_dict.items() if name in own}
    needed = {name: tuple(weight.shape) for name, weight in own.items()}
    shapes = {name: tuple(value.shape) for name, value in entries.items()}
    check_weights(needed, shapes, source="state_dict")
    return {name: entries[name] for name in own}


def needs_float32(name: str) -> bool:
    """Whether a weight is float32 in a model in float16: T5's second feed-forward map, whose sums
    pass 65,504.

    transformers' T5 keeps the same one. In bfloat16, whose range is float32's, nothing is kept.
    """
    return name.endswith("DenseReluDense.wo.weight")


def _unused(name: str) -> bool:
    return any(re.search(pattern, name) for pattern in UNUSED)


def _check_equal(weights: Mapping[str, Any], copies: Mapping[str, str], source: str) -> None:
    """Refuses copies of one tied weight that differ."""
    if len(copies) < 2:
        return
    names = list(copies)
    first = np.asarray(weights[copies[names[0]]])
    free = getattr(weights, "free", None)
    for name in names[1:]:
        other = np.asarray(weights[copies[name]])
        # most copies are the same memory: nothing is read to see that
        is_equal = other.shape == first.shape
        if other.ctypes.data != first.ctypes.data or other.strides != first.strides:
            is_equal = is_equal and same_numbers(first, other, free)
        if not is_equal:
            raise ValueError(
                f"{source} holds different values for {names[0]} and {name}, which the "
                "configuration ties; set tie_word_embeddings=False in the generator's "
                "configuration if they are meant to differ."
            )
