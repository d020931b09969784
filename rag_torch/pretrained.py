"""What every model class here has in common: a config, tied weights, loading and saving."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class PretrainedModel(nn.Module):
    """An `nn.Module` with a config.

    Args:
        config: the config object the network is built from.
    """

    config_class: Any = None

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def post_init(self) -> None:
        """Call at the end of a constructor: fresh weights (unless on the meta device), then ties."""
        if not any(parameter.is_meta for parameter in self.parameters()):
            self.init_weights()
        self.tie_weights()

    def init_weights(self) -> None:
        """Fresh weights in place."""

    def tie_weights(self) -> None:
        """Make parameters that the config ties one parameter."""

    def switches(self, use_cache: bool | None, *others: bool | None) -> tuple[bool, bool, bool, bool]:
        """Resolve (use_cache, output_attentions, output_hidden_states, return_dict): None means the config's value."""
        names = ("output_attentions", "output_hidden_states", "use_return_dict")
        attentions, hidden, return_dict = (
            bool(getattr(self.config, name)) if value is None else value
            for name, value in zip(names, others, strict=True)
        )
        if use_cache is None:
            use_cache = bool(getattr(self.config, "use_cache", False))
        return use_cache, attentions, hidden, return_dict

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.parameters()).dtype
