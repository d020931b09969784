"""What every model here has in common: a config, tied weights, loading and saving."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from rag_core.checkpoint import with_ties
from rag_core.modeling import PretrainedBase
from rag_torch import weights as tensors
from rag_torch.pytree import register_outputs

register_outputs()

Model = TypeVar("Model", bound="PretrainedModel")

_LAYERS = {"BartDecoderLayer", "BartEncoderLayer", "BertLayer", "T5Block"}


def resolve_dtype(dtype: torch.dtype | str | None, config: Any) -> torch.dtype | None:
    """See `PretrainedBase._resolved_dtype`."""
    if dtype is None:
        return torch.float32
    if dtype == "auto":
        dtype = config.torch_dtype
        if dtype is None:
            return None
    resolved = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        raise ValueError(
            f"dtype must be a floating-point torch dtype, its name or 'auto', got {dtype!r}"
        )
    return resolved


class PretrainedModel(PretrainedBase[Tensor], nn.Module):
    """An `nn.Module` with a config, which loads and saves itself under Hugging Face's names.

    Args:
        config: the config object the network is built from.
    """

    framework = "pt"
    checkpoint_keywords = (
        "use_reentrant",
        "preserve_rng_state",
        "determinism_check",
        "context_fn",
        "debug",
    )
    if TYPE_CHECKING:  # nn.Module's, of which PretrainedBase says less

        def modules(self, remove_duplicate: bool = True) -> Iterator[nn.Module]: ...

        def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

        def eval(self: Model) -> Model: ...

    _placeholders = tensors.MetaDevice
    _resolved_dtype = staticmethod(resolve_dtype)
    _to_array = staticmethod(tensors.to_array)

    @staticmethod
    def _automatic_device() -> Any:
        if torch.cuda.is_available():
            return "cuda"
        return None

    def _to_arrays(self, state_dict: Mapping[str, Any] | None) -> dict[str, Any]:
        return tensors.to_arrays(self, state_dict)

    def _assign(self, pairs: Iterator[tuple[str, Any]], dtype: Any, device: Any) -> None:
        tensors.assign_each(self, pairs, dtype, tensors.resolve_device(device))

    def _unfilled(self) -> list[str]:
        state = self.state_dict()
        return sorted(name for name, tensor in state.items() if tensor.is_meta)

    def _ties(self) -> dict[str, str]:
        return tensors.tied_names(self)

    def _resized(self, weight: Tensor, rows: int, std: float, axis: int = 0) -> Tensor:
        fresh = tensors.resized(weight.transpose(0, axis), rows, std)
        fresh = fresh.transpose(0, axis).contiguous()
        if not isinstance(weight, nn.Parameter):
            return fresh
        return nn.Parameter(fresh, requires_grad=weight.requires_grad)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.parameters()).dtype

    def enable_input_require_grads(self) -> None:
        """Let token vectors have gradients though their table is frozen, as adapters under
        checkpointing need it.
        """
        self.disable_input_require_grads()
        self._input_hook = self.get_input_embeddings().register_forward_hook(_require_grad)

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        hook = self.__dict__.pop("_input_hook", None)
        if hook is not None:
            hook.remove()

    def _learning(self) -> Any:
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As `torch.nn.Module.load_state_dict`; tied weights may be there once, as in files, and
        stay tied.

        Args:
            state_dict: tensors by name.
            strict: whether every name must be there, tied ones under one of theirs, and no other.
            assign: take the tensors themselves instead of their values.
        """
        if strict:
            whole = OrderedDict(with_ties(state_dict, tensors.tied_names(self)))
            metadata = getattr(state_dict, "_metadata", None)
            if metadata is not None:
                whole._metadata = metadata  # type: ignore[attr-defined]
            state_dict = whole
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        if assign:
            self.tie_weights()
        return result

    @property
    def _keys_to_ignore_on_save(self) -> list[str]:
        """What transformers' Trainer may miss in a checkpoint.

        Names of tied weights but their first.
        """
        return sorted(tensors.tied_names(self))

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of layers that stay on one device or in one shard, as accelerate asks for
        them.
        """
        classes = {type(module).__name__ for module in self.modules()}
        return sorted(classes & _LAYERS)


def _require_grad(module: nn.Module, inputs: Any, output: Tensor) -> None:
    output.requires_grad_(True)
