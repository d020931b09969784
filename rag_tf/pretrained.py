"""What every model here has in common: a config, tied weights, loading and saving."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tensorflow as tf

from rag_core.checks import warn
from rag_core.display import facts_line
from rag_core.modeling import PretrainedBase
from rag_tf import replicas
from rag_tf import weights as tensors
from rag_tf.holder import WeightHolder, resolve_dtype
from rag_tf.modules import placeholders

Model = TypeVar("Model", bound="PretrainedModel")


class PretrainedModel(WeightHolder, PretrainedBase[tf.Tensor]):
    """A config, and weights that load and save themselves under Hugging Face's names; a mixin, see
    `WeightHolder`.

    Args:
        config: the config object the network is built from.
    """

    framework = "tf"
    _placeholders = staticmethod(placeholders)
    _resolved_dtype = staticmethod(resolve_dtype)
    _to_array = staticmethod(tensors.to_array)

    def __repr__(self) -> str:
        return facts_line(type(self).__name__, self._facts())

    @staticmethod
    def _automatic_device() -> Any:
        return None  # TensorFlow takes a GPU where there is one

    def _to_arrays(self, state_dict: Mapping[str, Any] | None) -> dict[str, Any]:
        return tensors.to_arrays(self, state_dict)

    def _assign(self, pairs: Iterator[tuple[str, Any]], dtype: Any, device: Any) -> None:
        tensors.assign_each(self, pairs, dtype, device)

    def _unfilled(self) -> list[str]:
        return tensors.placeholder_names(self)

    def _ties(self) -> dict[str, str]:
        return tensors.tied_names(self)

    def _resized(self, weight: Any, rows: int, std: float, axis: int = 0) -> tf.Variable:
        with self.on_device():
            if axis == 0:
                table = tensors.resized(weight, rows, std)
            else:
                # A bias is (1, V): its tokens are columns.
                table = tensors.resized(tf.transpose(weight), rows, std)
                table = tf.transpose(table)
            return tf.Variable(table, trainable=weight.trainable)

    def _weights_replaced(self) -> None:
        self.reset_graphs()

    def _learning(self) -> Any:
        return self.trainable_variables

    def post_init(self) -> None:
        super().post_init()
        tensors.name_new_variables(self)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> Any:
        table = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of)
        tensors.name_new_variables(self)
        return table

    def get_lm_head(self) -> Any:
        """The language-model head, or None; the same as `get_output_embeddings`."""
        return self.get_output_embeddings()

    def get_bias(self) -> dict[str, tf.Variable] | None:
        """What is added to the logits, by name: {"final_logits_bias": (1, V)} of BART, None where
        nothing is.
        """
        bias = getattr(self, "final_logits_bias", None)
        if bias is None:
            return None
        return {"final_logits_bias": bias}

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
            new = tf.convert_to_tensor(value[name])
            if new.shape != variable.shape:
                raise ValueError(
                    f"value: {name} must have the shape {tuple(variable.shape)}, got "
                    f"{tuple(new.shape)}. resize_token_embeddings(n) changes the number of "
                    "tokens"
                )
            variable.assign(tf.cast(new, variable.dtype))

    if not TYPE_CHECKING:  # what it adds are keywords to leave out

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
            warn_of_prefix(load_weight_prefix)
            return super().from_pretrained(
                pretrained_model_name_or_path,
                config=config,
                dtype=dtype,
                torch_dtype=torch_dtype,
                device=device,
                device_map=device_map,
                state_dict=state_dict,
                output_loading_info=output_loading_info,
                **kwargs,
            )

    def save_pretrained(  # type: ignore[override]
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
        strategy = getattr(self, "distribute_strategy", None) or tf.distribute.get_strategy()
        super().save_pretrained(
            save_directory,
            is_main_process and replicas.writes(strategy),
            state_dict,
            save_function,
            push_to_hub,
            max_shard_size,
            safe_serialization,
            **kwargs,
        )


def warn_of_prefix(load_weight_prefix: Any) -> None:
    """Tell once more what to leave out."""
    if load_weight_prefix is not None:
        warn(
            "load_weight_prefix is ignored: weights are found by their names. Leave it out.",
            DeprecationWarning,
        )
