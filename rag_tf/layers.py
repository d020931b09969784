"""Parts that every network here shares, beside masks and attention.

Letters: R rows (contexts), K beams of a row, T target positions now, S context length, H heads, d
width of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from rag_core.outputs import StateRecorder
from rag_tf.attention import AttentionMask
from rag_tf.modules import Embedding, LayerNorm, Linear, Module, Replay, widen

Activation = Callable[[Tensor], Tensor]


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution function (tf.nn.gelu's constants have float32's precision
    even in float64).
    """
    wide = widen(x)
    share = 1.0 + tf.math.erf(wide * math.sqrt(0.5))
    return tf.cast(0.5 * wide * share, x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    """The customary approximation of `gelu` by a tanh."""
    wide = widen(x)
    inner = math.sqrt(2.0 / math.pi) * (wide + 0.044715 * wide * wide * wide)
    share = 1.0 + tf.tanh(inner)
    return tf.cast(0.5 * wide * share, x.dtype)


def silu(x: Tensor) -> Tensor:
    """x times its sigmoid."""
    return x * tf.sigmoid(x)


ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "quick_gelu": lambda x: x * tf.sigmoid(1.702 * x),
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "silu": silu,
    "swish": silu,
    "mish": lambda x: x * tf.tanh(tf.math.softplus(x)),
    "tanh": tf.tanh,
    "sigmoid": tf.sigmoid,
    "linear": lambda x: x,
}


def activation(name: str) -> Activation:
    """The elementwise function a config names, e.g. `"gelu"`.

    Raises:
        ValueError: for a name that is not in `ACTIVATIONS`.
    """
    try:
        return ACTIVATIONS[name]
    except KeyError:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {name!r}") from None


def checkpointed(options: dict[str, Any] | None, run: Callable[..., Any], *arguments: Any) -> Any:
    """run(*arguments), of which only the arguments are kept for the gradient; what lies between is
    computed once more then.

    Args:
        options: None = keep everything.
        run: a layer, as a function of tensors and masks, which returns a tuple of tensors and None.
            Whatever else it reads of floating point must be variables, or it has no gradient.
        *arguments: what it takes; None stays None.
    """
    if options is None:
        return run(*arguments)
    # The second run has to draw what the first drew, or dropout's gradient would be another's.
    replay = Replay()
    leaves = []
    for argument in arguments:
        if isinstance(argument, AttentionMask):
            leaves.append(argument.position_bias)  # the one part of a mask that learns
        else:
            leaves.append(argument)
    # which of the results are not None; AutoGraph cannot read an annotated name here
    is_there = list[bool]()

    def rerun(*tensors: Tensor) -> tuple[Tensor, ...]:
        values = _with_nones(tensors, [leaf is not None for leaf in leaves])
        for place, argument in enumerate(arguments):
            if isinstance(argument, AttentionMask):
                values[place] = replace(argument, position_bias=values[place])
        with replay():
            results = run(*values)
        is_there[:] = [result is not None for result in results]
        return tuple(result for result in results if result is not None)

    # TensorFlow takes and returns tensors only, so each None is left out and put back.
    tensors = [leaf for leaf in leaves if leaf is not None]
    results = tf.recompute_grad(rerun)(*tensors)
    return tuple(_with_nones(results, is_there))


def _with_nones(tensors: Iterable[Tensor], is_there: list[bool]) -> list[Any]:
    """The tensors at the places that are True, None at the others."""
    remaining = iter(tensors)
    values: list[Any] = []
    for there in is_there:
        if there:
            values.append(next(remaining))
        else:
            values.append(None)
    return values


class Trace(StateRecorder):
    """See `StateRecorder`."""

    def unfold_beams(self, beams: Any) -> None:
        """Cross-attention weights (R, H, K*T, S) of beams folded into the query axis -> (R*K, H,
        T, S).
        """
        for index, weights in enumerate(self._cross):
            shape = tf.shape(weights)
            rows = shape[0]
            keys = shape[3]
            heads = weights.shape[1]
            by_beam = tf.reshape(weights, (rows, heads, beams, -1, keys))  # (R, H, K, T, S)
            by_beam = tf.transpose(by_beam, (0, 2, 1, 3, 4))
            self._cross[index] = tf.reshape(by_beam, (rows * beams, heads, -1, keys))


def shift_tokens_right(input_ids: Tensor, pad_token_id: int, decoder_start_token_id: int) -> Tensor:
    """Labels (R, T) -> decoder inputs.

    A start token in front, the last column gone, -100 as pad.
    """
    rows = tf.shape(input_ids)[0]
    start = tf.fill((rows, 1), tf.cast(decoder_start_token_id, input_ids.dtype))
    shifted = tf.concat([start, input_ids[:, :-1]], 1)
    pad = tf.cast(pad_token_id, shifted.dtype)
    return tf.where(shifted == -100, pad, shifted)


def cross_without_layers(encoder_hidden: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What a decoder without layers has in place of cross-attention keys and values.

    (R, S, d) -> (R, 1, S, d).
    """
    one_head = encoder_hidden[:, None]
    return [(one_head, one_head)]


def init_normal(model: Module, std: float) -> None:
    """Fresh weights in place: normal(0, std) matrices, zero biases and padding rows, unit norms."""
    for module in model.modules():
        if isinstance(module, Linear | Embedding):
            fresh = tf.random.normal(module.weight.shape, 0.0, std, module.weight.dtype)
            if getattr(module, "padding_idx", None) is not None:
                rows = tf.range(module.weight.shape[0])
                is_other = rows[:, None] != module.padding_idx
                fresh = tf.where(is_other, fresh, tf.zeros((), fresh.dtype))
            module.weight.assign(fresh)
        elif isinstance(module, LayerNorm):
            module.weight.assign(tf.ones_like(module.weight))
        if isinstance(module, Linear | LayerNorm) and module.bias is not None:
            module.bias.assign(tf.zeros_like(module.bias))


def embedding_scale(config: Any) -> float:
    """sqrt(d) when the config scales its embeddings, else 1."""
    if not getattr(config, "scale_embedding", False):
        return 1.0
    return math.sqrt(config.d_model)
