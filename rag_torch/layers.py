"""Parts that every network here shares, beside masks and attention.

Letters: R rows (contexts), K beams of a row, T target positions now, S context length, H heads, d
width of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rag_core.outputs import StateRecorder
from rag_torch.attention import AttentionMask

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "linear": lambda x: x,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
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
        options: of `torch.utils.checkpoint.checkpoint`; None = keep everything.
        run: a layer, as a function of tensors and masks.
        *arguments: what it takes.
    """
    if options is None or not torch.is_grad_enabled():
        return run(*arguments)
    from torch.utils.checkpoint import checkpoint

    def rerun(*arguments: Any) -> Any:
        fresh = []
        for argument in arguments:
            if isinstance(argument, AttentionMask):
                argument = argument.unused()
            fresh.append(argument)
        return run(*fresh)

    return checkpoint(rerun, *arguments, use_reentrant=False, **options)


class Trace(StateRecorder):
    """See `StateRecorder`."""

    def unfold_beams(self, beams: int) -> None:
        """Cross-attention weights (R, H, K*T, S) of beams folded into the query axis -> (R*K, H,
        T, S).
        """
        for index, weights in enumerate(self._cross):
            by_beam = weights.unflatten(2, (beams, -1))  # (R, H, K, T, S)
            by_beam = by_beam.transpose(1, 2)  # (R, K, H, T, S)
            self._cross[index] = by_beam.flatten(0, 1)


def outside_graph(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function that torch.compile must not trace.

    NumPy tables whose last bit counts, searches of an index.
    """
    if torch.compiler.is_compiling():
        # As a decorator it would import all of torch.compile with this module: seconds.
        return torch.compiler.disable(function)(*args, **kwargs)
    return function(*args, **kwargs)


def shift_tokens_right(input_ids: Tensor, pad_token_id: int, decoder_start_token_id: int) -> Tensor:
    """Labels (R, T) -> decoder inputs.

    A start token in front, the last column gone, -100 as pad.
    """
    start = input_ids.new_full((input_ids.shape[0], 1), decoder_start_token_id)
    shifted = torch.cat([start, input_ids[:, :-1]], 1)
    return shifted.masked_fill(shifted == -100, pad_token_id)


def cross_without_layers(encoder_hidden: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What a decoder without layers has in place of cross-attention keys and values.

    (R, S, d) -> (R, 1, S, d).
    """
    states = encoder_hidden[:, None]
    return [(states, states)]


def init_normal(model: nn.Module, std: float) -> None:
    """Fresh weights in place: normal(0, std) matrices, zero biases and padding rows, unit norms."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, 0.0, std)
            if module.padding_idx is not None:
                with torch.no_grad():
                    module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def embedding_scale(config: Any) -> float:
    """sqrt(d) when the config scales its embeddings, else 1."""
    if not getattr(config, "scale_embedding", False):
        return 1.0
    return math.sqrt(config.d_model)
