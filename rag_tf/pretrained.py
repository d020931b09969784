"""What every model here has in common: a config, tied weights, loading and saving."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tensorflow as tf

from rag_core.checkpoint import PretrainedBase, check_sizes, given_weights, rows_wanted
from rag_core.checks import warn
from rag_core.hub import Saving, loading_info, locating, resolve_file, whole_device
from rag_tf import weights as tensors
from rag_tf.holder import WeightHolder, resolve_dtype
from rag_tf.modules import Embedding, hollow

Model = TypeVar("Model", bound="PretrainedModel")

_HELD = 1 << 26  # bytes of a checkpoint's file that stay in memory while it is read


class PretrainedModel(WeightHolder, PretrainedBase):
    """A config, and weights that load and save themselves under Hugging Face's names; a mixin, see
    `WeightHolder`.

    Args:
        config: the config object the network is built from.
    """

    framework = "tf"

    def __init__(self, config: Any) -> None:
        super().__init__()
        # Past TensorFlow's and Keras' trackers, which wrap what they find.
        object.__setattr__(self, "config", config)

    def post_init(self) -> None:
        """Call at the end of a constructor.

        Fresh weights (unless a checkpoint will be loaded), then ties.
        """
        if not tensors.hollow_names(self):
            self.init_weights()
        self.tie_weights()
        tensors.name_new_variables(self)

    def init_weights(self) -> None:
        """Fresh weights in place."""

    def tie_weights(self) -> None:
        """Make variables that the config ties one variable."""

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> Embedding:
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

        def grown(weight: Any, std: float) -> tf.Variable:
            return tf.Variable(tensors.resized(weight, rows, std), trainable=weight.trainable)

        with self.placed():
            fresh = grown(old, std)
            for module in self.modules():
                if isinstance(module, Embedding) and module.weight is old:
                    module.weight, module.num_embeddings = fresh, rows
            output = self.get_output_embeddings()
            if output is not None:
                if output.weight is not old:
                    fresh = grown(output.weight, std)
                output.weight, output.out_features = fresh, rows
            bias = getattr(self, "final_logits_bias", None)
            if bias is not None:
                turned = tf.transpose(tensors.resized(tf.transpose(bias), rows, 0.0))
                self.final_logits_bias = tf.Variable(turned, trainable=bias.trainable)
        config = type(self.config).from_dict(self.config.to_dict(), vocab_size=rows)
        object.__setattr__(self, "config", config)
        tensors.name_new_variables(self)
        self.reset_graphs()
        return table

    def get_lm_head(self) -> Any:
        """The language-model head, or None; the same as `get_output_embeddings`."""
        return self.get_output_embeddings()

    def get_bias(self) -> dict[str, tf.Variable] | None:
        """What is added to the logits, by name: {"final_logits_bias".

        (1, V)} of BART, None where nothing is.
        """
        bias = getattr(self, "final_logits_bias", None)
        return None if bias is None else {"final_logits_bias": bias}

    def set_bias(self, value: Mapping[str, Any]) -> None:
        """Write what is added to the logits.

        Args:
            value: as `get_bias` returns it.

        Raises:
            ValueError: another name, or another shape.
        """
        bias = self.get_bias() or {}
        if set(value) != set(bias):
            names = ", ".join(bias) or "nothing"
            raise ValueError(
                f"value must hold {names} for {type(self).__name__}, got "
                f"{', '.join(value) or 'nothing'}"
            )
        for name, variable in bias.items():
            given = tf.convert_to_tensor(value[name])
            if given.shape != variable.shape:
                raise ValueError(
                    f"value: {name} must have the shape {tuple(variable.shape)}, got "
                    f"{tuple(given.shape)}. resize_token_embeddings(n) changes the number of "
                    "tokens"
                )
            variable.assign(tf.cast(given, variable.dtype))

    def _learning(self) -> Any:
        return self.trainable_variables

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | Path | None,
        *,
        config: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        device: Any = None,
        device_map: Any = None,
        state_dict: Mapping[str, Any] | None = None,
        output_loading_info: bool = False,
        from_pt: bool = False,
        load_weight_prefix: str | None = None,
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
            device: where to put the weights; None leaves it to TensorFlow (a GPU where there is
                one).
            device_map: another name for `device`: a device, {"": device}, or "auto" to leave it to
                TensorFlow.
            state_dict: weights by name in place of the stored ones.
            output_loading_info: return a pair, the model and a dictionary of `missing_keys`,
                `unexpected_keys`, `mismatched_keys` and `error_msgs`, all empty: weights that do
                not fit are an error.
            from_pt: nothing to do: the files are PyTorch's and TensorFlow's alike.
            load_weight_prefix: not needed any more.
            **kwargs: hub options (`cache_dir`, `token`, `revision`, `local_files_only`,
                `force_download`, `subfolder`), fields of the config to override, and what
                transformers takes besides (see `rag_core.hub.keywords`).

        Raises:
            OSError: files are missing.
            TypeError: an unknown keyword.
            ValueError: the weights do not fit; the message lists every missing, unexpected and
                misshapen name. Or a keyword asks for something that is not done here.
        """
        warn_of_prefix(load_weight_prefix)
        config, hub = cls._resolved_config(pretrained_model_name_or_path, config, kwargs)
        device = resolve_device_map(device, device_map)
        found, source = cls._found(pretrained_model_name_or_path, hub, state_dict)
        check_sizes(config, found, source)
        with hollow(), locating(f"the config of {source!r}"):
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
        dtype: Any,
        device: Any,
        found: Any,
        source: str,
    ) -> None:
        """Fill this model (built hollow) with the weights found, all or an error."""
        from rag_core.generation import GenerationConfig, own_options

        arrays = self._fit(found, source)
        ties = tensors.tied_names(self)

        def read() -> Iterator[tuple[str, Any]]:
            held = 0
            for name in arrays:
                if name not in ties:
                    array = arrays[name]
                    yield name, array
                    held += array.nbytes
                    # the file's pages count as memory of this process, beside the copies
                    if held > _HELD:
                        found.free()
                        held = 0

        tensors.assign_each(self, read(), dtype, device)
        self.tie_weights()
        left = tensors.hollow_names(self)
        if left:
            raise ValueError(f"{source} left weights without values: {', '.join(left)}")
        if name_or_path is None:
            return
        if resolve_file(name_or_path, "generation_config.json", required=False, **hub) is not None:
            said = GenerationConfig.from_pretrained(name_or_path, **hub)
            self.generation_config = own_options(said, self.config, self.head)

    def _fit(self, found: Any, source: str) -> Any:
        """The checkpoint's arrays under this model's names, checked."""
        from rag_core.checkpoint import fit_weights

        return fit_weights(self.config, found, self.head, source=source)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,  # transformers' TensorFlow classes have another second argument
        is_main_process: bool = True,
        state_dict: Mapping[str, Any] | None = None,
        save_function: Any = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write config.json, generation_config.json and model.safetensors, all or nothing; PyTorch
        reads them too.

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
    """The device that `device` or `device_map` names; "auto" is None: TensorFlow takes a GPU where
    there is one.

    Raises:
        ValueError: several devices, or both arguments.
    """
    found = whole_device(device, device_map)
    return None if isinstance(found, str) and found == "auto" else found


def warn_of_prefix(load_weight_prefix: Any) -> None:
    """Tells once more what to leave out."""
    if load_weight_prefix is not None:
        warn(
            "load_weight_prefix is ignored: weights are found by their names. Leave it out.",
            DeprecationWarning,
        )
