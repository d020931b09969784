"""Modules that are not ours as question encoder or generator; see `rag_core.modeling.foreign`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rag_core.modeling import (
    ForeignEncoderBase,
    ForeignGeneratorBase,
    ForeignModule,
    ForeignStateBase,
    accepted,
    checked_vectors,
    offers_decoding,
)
from rag_torch.pretrained import PretrainedModel


def encode_questions(
    module: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    output_attentions: bool = False,
    output_hidden_states: bool = False,
    token_type_ids: Tensor | None = None,
) -> Any:
    """Run a question or document encoder; see `checked_vectors`."""
    kwargs = {
        "attention_mask": attention_mask,
        "output_attentions": output_attentions,
        "output_hidden_states": output_hidden_states,
        "return_dict": True,
    }
    if token_type_ids is not None:
        kwargs["token_type_ids"] = token_type_ids
    if not isinstance(module, PretrainedModel):
        kwargs = accepted(module.forward, kwargs)
    return checked_vectors(module, module(input_ids, **kwargs))


class _ForwardOf(ForeignModule):
    @staticmethod
    def _function_of(module: nn.Module) -> Any:
        return module.forward


class ForeignEncoder(_ForwardOf, ForeignEncoderBase, nn.Module):
    @staticmethod
    def _real_tokens(input_ids: Tensor, pad: int | None) -> Tensor:
        if pad is None:
            return torch.ones_like(input_ids)
        return (input_ids != pad).long()

    @staticmethod
    def _mean(states: Tensor, mask: Tensor) -> Tensor:
        real = mask[:, :, None].to(states.dtype)  # (B, S, 1)
        return (states * real).sum(1) / real.sum(1).clamp(min=1)


class ForeignState(ForeignStateBase):
    @staticmethod
    def _continued(prefix: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        source = source.to(prefix.device)
        index = source[:, :, None].expand(-1, -1, prefix.shape[2])  # (R, K, T)
        continued = prefix.gather(1, index)
        first = torch.arange(len(prefix), device=prefix.device) * prefix.shape[1]  # (R,)
        rows = first[:, None] + source  # (R, K)
        return continued, rows.flatten()

    @staticmethod
    def _take(x: Tensor, rows: Tensor) -> Tensor:
        return x[rows]


class ForeignGenerator(_ForwardOf, ForeignGeneratorBase, nn.Module):
    without_attentions = "; transformers' models do when loaded with attn_implementation='eager'"
    state_class = ForeignState

    def __getattr__(self, name: str) -> Any:
        try:
            return nn.Module.__getattr__(self, name)
        except AttributeError:
            return super().__getattr__(name)

    @staticmethod
    def _start_tokens(input_ids: Tensor, token: int) -> Tensor:
        return input_ids.new_full((input_ids.shape[0], 1), token)

    @staticmethod
    def _no_tokens(hidden: Tensor, beams: int) -> Tensor:
        return torch.zeros(hidden.shape[0], beams, 0, dtype=torch.long, device=hidden.device)

    @staticmethod
    def _as_ids(x: Tensor) -> Tensor:
        return x.long()

    @staticmethod
    def _joined(prefix: Tensor, tokens: Tensor) -> Tensor:
        return torch.cat([prefix, tokens], 2)

    @staticmethod
    def _repeated(x: Tensor, beams: int) -> Tensor:
        return x.repeat_interleave(beams, 0)

    @staticmethod
    def _folded(tokens: Tensor) -> Tensor:
        return tokens.flatten(0, 1)

    @staticmethod
    def _unfolded(logits: Tensor, tokens: Tensor) -> Tensor:
        return logits.unflatten(0, tokens.shape[:2])


def as_generator(module: Any) -> Any:
    """The module itself if it offers the decoding contract, else a `ForeignGenerator` around it."""
    if offers_decoding(module):
        return module
    return ForeignGenerator(module)
