"""What every model class here has in common: a config, tied weights, loading and saving."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from rag_core.checkpoint import PretrainedBase, check_sizes, given_weights, rows_wanted, with_ties
from rag_core.hub import Saving, loading_info, locating, resolve_file, whole_device
from rag_torch import weights as tensors
from rag_torch.pytree import register_outputs

register_outputs()

Model = TypeVar("Model", bound="PretrainedModel")

_LAYERS = {"BartDecoderLayer", "BartEncoderLayer", "BertLayer", "T5Block"}
_HELD = 1 << 26  # bytes of a checkpoint's file that stay in memory while it is read


class PretrainedModel(nn.Module, PretrainedBase):
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

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def post_init(self) -> None:
        """Call at the end of a constructor.

        Fresh weights (unless on the meta device), then ties.
        """
        if not any(parameter.is_meta for parameter in self.parameters()):
            self.init_weights()
        self.tie_weights()

    def init_weights(self) -> None:
        """Fresh weights in place."""

    def tie_weights(self) -> None:
        """Make parameters that the config ties one parameter."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.parameters()).dtype

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Embedding:
        """Cut or lengthen the token table (and head) to `new_num_tokens` rows; new rows are drawn
        like fresh weights.

        Args:
            new_num_tokens: how many rows; None leaves the number.
            pad_to_multiple_of: round the number up to a multiple of this, e.g. 64.

        Returns:
            The token table.
        """
        table = self.get_input_embeddings()
        rows = rows_wanted(new_num_tokens, pad_to_multiple_of, table.num_embeddings)
        if rows == table.num_embeddings:
            return table
        std = (
            getattr(self.config, "init_std", None)
            or getattr(self.config, "initializer_range", None)
            or 1.0
        )
        old = table.weight

        def grown(weight: nn.Parameter) -> nn.Parameter:
            return nn.Parameter(
                tensors.resized(weight, rows, std), requires_grad=weight.requires_grad
            )

        fresh = grown(old)
        for module in self.modules():
            if isinstance(module, nn.Embedding) and module.weight is old:
                module.weight, module.num_embeddings = fresh, rows
        output = self.get_output_embeddings()
        if output is not None:
            output.weight, output.out_features = (
                fresh if output.weight is old else grown(output.weight),
                rows,
            )
        bias = getattr(self, "final_logits_bias", None)
        if bias is not None:
            self.final_logits_bias = tensors.resized(bias.T, rows, 0.0).T.contiguous()
        self.config = type(self.config).from_dict(self.config.to_dict(), vocab_size=rows)
        return table

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
        return sorted({type(module).__name__ for module in self.modules()} & _LAYERS)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | Path | None,
        *,
        config: Any = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: Any = None,
        device_map: Any = None,
        state_dict: Mapping[str, Any] | None = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Model:
        """A model from a folder or a repository of the hub, in eval mode.

        Args:
            pretrained_model_name_or_path: folder, or repository id; None where `config` and
                `state_dict` are given.
            config: instead of the stored one: a config, which is copied, or another folder or
                repository.
            dtype: of the weights; None is float32, "auto" what the checkpoint has.
            torch_dtype: another name for `dtype`.
            device: where to put the weights; None is the CPU.
            device_map: another name for `device`: a device, {"": device}, or "auto" for a GPU where
                there is one.
            state_dict: weights by name in place of the stored ones.
            output_loading_info: return a pair, the model and a dictionary of `missing_keys`,
                `unexpected_keys`, `mismatched_keys` and `error_msgs`, all empty: weights that do
                not fit are an error.
            **kwargs: hub options (`cache_dir`, `token`, `revision`, `local_files_only`,
                `force_download`, `subfolder`), fields of the config to override, and what
                transformers takes besides (see `rag_core.hub.keywords`).

        Raises:
            OSError: files are missing.
            TypeError: an unknown keyword.
            ValueError: the weights do not fit; the message lists every missing, unexpected and
                misshapen name. Or a keyword asks for something that is not done here.
        """
        config, hub = cls._resolved_config(pretrained_model_name_or_path, config, kwargs)
        device = resolve_device_map(device, device_map)
        found, source = cls._found(pretrained_model_name_or_path, hub, state_dict)
        check_sizes(config, found, source)
        with tensors.Hollow(), locating(f"the config of {source!r}"):
            model = cls(config)
        dtype = resolve_dtype(dtype or torch_dtype, config)
        model._load(pretrained_model_name_or_path, hub, dtype, device, found, source)
        model.eval()
        return (model, loading_info()) if output_loading_info else model  # type: ignore[return-value]

    @staticmethod
    def _found(
        name_or_path: str | Path | None, hub: dict[str, Any], state_dict: Mapping[str, Any] | None
    ) -> tuple[Any, str]:
        """The weights that are stored or given, not read yet, and what to call them."""
        from rag_core.checkpoint import read_weights

        if state_dict is not None:
            return given_weights(state_dict, tensors.to_array), "state_dict"
        return read_weights(name_or_path, **hub), str(name_or_path)  # type: ignore[arg-type]

    def _load(
        self,
        name_or_path: str | Path | None,
        hub: dict[str, Any],
        dtype: torch.dtype | None,
        device: Any,
        found: Any,
        source: str,
    ) -> None:
        """Fill this model (built on the meta device) with the weights found, all or an error."""
        from rag_core.generation import GenerationConfig, own_options

        device = tensors.resolve_device(device)
        arrays = self._fit(found, source)
        ties = tensors.tied_names(self)
        read = 0
        for name in arrays:
            if name not in ties:
                array = arrays[name]
                tensors.assign(self, {name: array}, dtype, device)
                read += array.nbytes
                # the file's pages count as memory of this process, beside the copies
                if read > _HELD:
                    found.free()
                    read = 0
        self.tie_weights()
        left = sorted(name for name, tensor in self.state_dict().items() if tensor.is_meta)
        if left:
            raise ValueError(f"{source} left weights without values: {', '.join(left)}")
        if name_or_path is None:
            return
        if resolve_file(name_or_path, "generation_config.json", required=False, **hub) is not None:
            said = GenerationConfig.from_pretrained(name_or_path, **hub)
            self._generation_config = own_options(said, self.config, self.head)

    def _fit(self, found: Any, source: str) -> Any:
        """The checkpoint's arrays under this model's names, checked."""
        from rag_core.checkpoint import fit_weights

        return fit_weights(self.config, found, self.head, source=source)

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Any] | None = None,
        save_function: Any = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write config.json, generation_config.json and model.safetensors, all or nothing.

        Args:
            save_directory: the folder, made if missing.
            is_main_process: False writes nothing: another process does.
            state_dict: weights of this model by name, in place of those it has.
            save_function: not used: weights are written as safetensors.
            push_to_hub: also push the folder; `kwargs` are those of `push_to_hub`.
            max_shard_size: larger checkpoints are split.
            safe_serialization: must be True: nothing here writes pickles.
            **kwargs: see `push_to_hub` and `rag_core.hub.Saving`.

        Raises:
            OSError: nothing could be written; what was there before is unchanged.
            ValueError: `state_dict` holds other names or shapes than this model.
        """
        saving = Saving.of(is_main_process, push_to_hub, **kwargs)
        self._write(
            save_directory,
            saving,
            lambda: tensors.to_arrays(self, state_dict),
            max_shard_size,
            safe_serialization,
        )


def resolve_device_map(device: Any, device_map: Any) -> Any:
    """The device that `device` or `device_map` names; "auto" is a GPU where there is one, else
    None.

    Raises:
        ValueError: several devices, or both arguments.
    """
    found = whole_device(device, device_map)
    if isinstance(found, str) and found == "auto":
        return "cuda" if torch.cuda.is_available() else None
    return found


def _require_grad(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
    output.requires_grad_(True)


def resolve_dtype(dtype: torch.dtype | str | None, config: Any) -> torch.dtype | None:
    """None is float32; "auto" the config's, or None (as stored) without one; a name or a dtype is
    itself.

    Raises:
        ValueError: not a floating-point type.
    """
    if dtype is None:
        return torch.float32
    if dtype == "auto":
        dtype = config.torch_dtype
        if dtype is None:
            return None
    found = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype must be a floating-point torch dtype, its name or 'auto', got {dtype!r}"
        )
    return found
