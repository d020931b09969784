"""Parts that every network here shares: activations, masks, attention.

Letters: R rows (contexts), K beams riding on a row, T target positions now, L key positions, S
context length, H heads, h width of a head, d width of the model.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rag_core.outputs import EncoderOutput

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


class AttentionMask:
    """Which keys a query may attend to, and an optional learned bias on top.

    Args:
        allowed: bool, True = attend, broadcastable to (R, H, T, L); None allows everything.
        position_bias: (1, H, T, L) added to the scores (T5), or None.

    A query that may attend to nothing gets a zero vector, never NaN.
    """

    def __init__(self, allowed: Tensor | None, position_bias: Tensor | None = None) -> None:
        self.allowed = allowed
        self.position_bias = position_bias
        self.alive = None if allowed is None else allowed.any(-1, keepdim=True)
        if (
            allowed is not None
            and allowed.device.type == "cpu"
            and not torch.compiler.is_compiling()
        ):
            # most often every query sees some key: known here at no cost, on a GPU only by waiting
            # for it
            self.alive = None if bool(self.alive.all()) else self.alive  # type: ignore[union-attr]
        self.lengths: list[int] | None = None
        self.packed: list[int] | None = None
        self._bias: dict[torch.dtype, Tensor] = {}

    def by_row(self, numbers: int) -> AttentionMask:
        """Have each row's keys read alone, and no padding, where a CPU gains by it; this mask.

        Args:
            numbers: how many there are in a key and its value, over all heads.
        """
        if (
            self.allowed is not None
            and self.allowed.device.type == "cpu"
            and not torch.compiler.is_compiling()
        ):
            seen = self.allowed[:, 0, 0]  # (R, S)
            lengths = seen.sum(-1)
            trailing = bool((seen == (torch.arange(seen.shape[1]) < lengths[:, None])).all())
            spared = int((seen.shape[1] - lengths).sum()) * numbers
            # a call more costs what it takes to read some ten thousand numbers
            if trailing and int(lengths.min()) > 0 and spared > 2**15 * len(seen):
                self.lengths = lengths.tolist()
        return self

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """The mask as finite numbers to add to the scores.

        Made once per dtype, None when nothing is to be added.
        """
        if dtype in self._bias:
            return self._bias[dtype]
        bias = None if self.position_bias is None else self.position_bias.to(dtype)
        if self.allowed is not None:
            # Half of the lowest number: adding a score to it cannot overflow to -inf.
            low = torch.finfo(dtype).min / 2
            start = torch.zeros_like(self.allowed, dtype=dtype) if bias is None else bias
            bias = start.masked_fill(~self.allowed, low)
        if bias is not None:
            self._bias[dtype] = bias
        return bias

    def unused(self) -> AttentionMask:
        """The same mask without the numbers that an earlier use has left.

        A layer computed twice makes them twice.
        """
        mask = copy.copy(self)
        mask._bias = {}
        return mask

    def rows(self, rows: Tensor) -> AttentionMask:
        """The mask of these rows only (no position bias: cross-attention)."""
        return AttentionMask(None if self.allowed is None else self.allowed[rows])


def key_mask(attention_mask: Tensor | None) -> AttentionMask:
    """(R, S) of 0/1 or bool, 1 = a real token -> a mask over keys, (R, 1, 1, S)."""
    return AttentionMask(
        None if attention_mask is None else attention_mask.bool()[:, None, None, :]
    )


def causal_allowed(
    length: int, past: int, device: torch.device, attention_mask: Tensor | None = None
) -> Tensor | None:
    """Which keys each of `length` new positions sees after `past` earlier ones.

    Args:
        length: T, the number of new positions.
        past: number of positions already cached.
        device: where the mask is made.
        attention_mask: (R, past + T), 1 = a real token, or None.

    Returns:
        bool (1 or R, 1, T, past + T); None where everything is visible (one new position, no
        padding).
    """
    if length == 1 and attention_mask is None:
        return None
    query = torch.arange(past, past + length, device=device)
    # (1, 1, T, L)
    allowed = (torch.arange(past + length, device=device) <= query[:, None])[None, None]
    if attention_mask is not None:
        allowed = allowed & attention_mask.bool()[:, None, None, :]  # (R, 1, T, L)
    return allowed


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(R, T, H*h) -> (R, H, T, h)."""
    return x.view(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(R, H, T, h) -> (R, T, H*h)."""
    return x.transpose(1, 2).flatten(2)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask,
    *,
    dropout: float = 0.0,
    scale: float | None = None,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention; the same numbers with and without the weights returned.

    Args:
        query: (R, H, T, h).
        key: (R, H, L, h).
        value: (R, H, L, h).
        mask: which keys each query sees.
        dropout: probability of dropping an attention weight.
        scale: factor on the scores; None means h ** -0.5.
        need_weights: whether the attention weights are wanted too.

    Returns:
        (R, H, T, h), and the weights before dropout (R, H, T, L) or None.
    """
    if mask.packed is not None:
        return _attend_packed(
            query, key, value, mask.packed, mask.position_bias, dropout, scale
        ), None
    if mask.lengths is not None and not (need_weights or dropout):
        parts = [x.split(1) for x in (query, key, value)]
        rows = [
            F.scaled_dot_product_attention(q, k[:, :, :length], v[:, :, :length], scale=scale)
            for q, k, v, length in zip(*parts, mask.lengths, strict=True)
        ]
        return torch.cat(rows), None
    bias = mask.bias(query.dtype)
    weights = None
    if need_weights:
        # (R, H, T, L)
        scores = (
            query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
        )
        scores = scores if bias is None else scores + bias
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.softmax(-1, dtype=wide).to(value.dtype)
        if mask.alive is not None:
            # before they are used: those returned then have the gradient
            weights = weights * mask.alive
        out = F.dropout(weights, dropout) @ value if dropout else weights @ value
    else:
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=dropout, scale=scale
        )
    return (out if mask.alive is None else out * mask.alive), weights


def _attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    position_bias: Tensor | None,
    dropout: float,
    scale: float | None,
) -> Tensor:
    """Self-attention of rows that lie side by side, (1, H, P, h) -> (1, H, P, h), each on its
    own.
    """
    rows = []
    for q, k, v in zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True):
        length = q.shape[2]
        bias = None if position_bias is None else position_bias[:, :, :length, :length].to(q.dtype)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale
        )
        rows.append(out.transpose(1, 2))  # (1, n, H, h), as `merge_heads` wants it
    return torch.cat(rows, dim=1).transpose(1, 2)


def checkpointed(options: dict[str, Any] | None, run: Callable[..., Any], *given: Any) -> Any:
    """run(*given), of which only what is given is kept for the gradient; what lies between is
    computed once more then.

    Args:
        options: of `torch.utils.checkpoint.checkpoint`; None = keep everything.
        run: a layer, as a function of tensors and masks.
        given: what it takes.
    """
    if options is None or not torch.is_grad_enabled():
        return run(*given)
    from torch.utils.checkpoint import checkpoint

    def again(*given: Any) -> Any:
        return run(*(each.unused() if isinstance(each, AttentionMask) else each for each in given))

    return checkpoint(again, *given, use_reentrant=False, **options)


class Trace:
    """Hidden states and attentions gathered on the way, as tuples at the end.

    None for what nobody asked.
    """

    def __init__(self, hidden: bool, attentions: bool) -> None:
        self.want_attentions, self.want_hidden = attentions, hidden
        self._hidden: list[Tensor] | None = [] if hidden else None
        self._attentions: list[Tensor] | None = [] if attentions else None
        self._cross: list[Tensor] | None = [] if attentions else None

    def hidden(self, x: Tensor) -> None:
        """Note a hidden state."""
        if self._hidden is not None:
            self._hidden.append(x)

    def attentions(self, weights: Tensor | None, cross: Tensor | None = None) -> None:
        """Note a layer's attention weights."""
        if self._attentions is not None and weights is not None:
            self._attentions.append(weights)
        if self._cross is not None and cross is not None:
            self._cross.append(cross)

    def separate(self, beams: int) -> None:
        """Cross-attention weights (R, H, K*T, S) of beams that rode on the query axis -> (R*K,
        H, T, S).
        """
        apart = (
            each.unflatten(2, (beams, -1)).transpose(1, 2).flatten(0, 1)
            for each in self._cross or ()
        )
        self._cross = None if self._cross is None else list(apart)

    def result(self) -> list[tuple[Tensor, ...] | None]:
        """[hidden_states, attentions, cross_attentions]."""
        return [
            None if part is None else tuple(part)
            for part in (self._hidden, self._attentions, self._cross)
        ]


def outside_graph(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function that torch.compile must not trace.

    NumPy tables whose last bit counts, searches of an index.
    """
    if torch.compiler.is_compiling():
        # As a decorator it would import all of torch.compile with this module: seconds.
        return torch.compiler.disable(function)(*args, **kwargs)
    return function(*args, **kwargs)


def as_encoder_output(value: Any) -> EncoderOutput:
    """An earlier call's encoder output in any shape users keep it.

    Our record, another library's, a tuple, a tensor.
    """
    if isinstance(value, EncoderOutput):
        return value
    if isinstance(value, Tensor):
        return EncoderOutput(last_hidden_state=value)
    if isinstance(value, tuple | list):
        hidden, attentions = (*value[1:3], None, None)[:2]
        return EncoderOutput(
            last_hidden_state=value[0], hidden_states=hidden, attentions=attentions
        )
    if not hasattr(value, "last_hidden_state"):
        raise TypeError(
            "encoder_outputs must be an encoder's output, a tuple or a tensor, got "
            f"{type(value).__name__}"
        )
    return EncoderOutput(
        last_hidden_state=value.last_hidden_state,
        hidden_states=getattr(value, "hidden_states", None),
        attentions=getattr(value, "attentions", None),
    )


def shift_tokens_right(input_ids: Tensor, pad_token_id: int, decoder_start_token_id: int) -> Tensor:
    """Labels (R, T) -> decoder inputs.

    A start token in front, the last column gone, -100 as pad.
    """
    start = input_ids.new_full((input_ids.shape[0], 1), decoder_start_token_id)
    shifted = torch.cat([start, input_ids[:, :-1]], 1)
    return shifted.masked_fill(shifted == -100, pad_token_id)


def unasked(encoder_hidden: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What a decoder without layers has in place of cross-attention keys and values.

    (R, S, d) -> (R, 1, S, d).
    """
    return [(encoder_hidden[:, None], encoder_hidden[:, None])]


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
    return math.sqrt(config.d_model) if getattr(config, "scale_embedding", False) else 1.0
