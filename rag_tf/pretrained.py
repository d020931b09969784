"""What every model here has in common: a config, tied weights, loading and saving."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import tensorflow as tf

from rag_core.checks import warn
from rag_core.hub import Pushable, push_folder, resolve_file, split_hub_kwargs
from rag_tf import weights as tensors
from rag_tf.holder import WeightHolder, resolve_dtype
from rag_tf.modules import Embedding, hollow

Model = TypeVar("Model", bound="PretrainedModel")

_HELD = 1 << 26  # bytes of a checkpoint's file that stay in memory while it is read


class PretrainedModel(WeightHolder, Pushable):
    """A config, and weights that load and save themselves under Hugging Face's names; a mixin, see `WeightHolder`.

    Args:
        config: the config object the network is built from.
    """

    config_class: Any = None
    architecture: str | None = None
    head: str | None = None
    _generation_config: Any = None

    def __init__(self, config: Any) -> None:
        super().__init__()
        # Past TensorFlow's and Keras' trackers, which wrap what they find.
        object.__setattr__(self, "config", config)

    def post_init(self) -> None:
        """Call at the end of a constructor: fresh weights (unless a checkpoint will be loaded), then ties."""
        if not tensors.hollow_names(self):
            self.init_weights()
        self.tie_weights()

    def init_weights(self) -> None:
        """Fresh weights in place."""

    def tie_weights(self) -> None:
        """Make variables that the config ties one variable."""

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
    def generation_config(self) -> Any:
        """How to generate unless a call says otherwise: generation_config.json's, else made from the config."""
        if self._generation_config is None:
            from rag_core.generation import GenerationConfig

            # Not self.generation_config = ...: TensorFlow's trackers would read it first, to compare.
            object.__setattr__(self, "_generation_config", GenerationConfig.from_model_config(self.config))
        return self._generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        object.__setattr__(self, "_generation_config", value)

    def get_input_embeddings(self) -> Any:
        """The token table."""
        raise NotImplementedError(f"{type(self).__name__} has no token table")

    def get_output_embeddings(self) -> Any:
        """The language-model head, or None."""
        return None

    def resize_token_embeddings(self, new_num_tokens: int | None = None) -> Embedding:
        """Cut or lengthen the token table (and head) to `new_num_tokens` rows; new rows are drawn like fresh weights.

        Returns:
            The token table.
        """
        table = self.get_input_embeddings()
        if new_num_tokens is None or new_num_tokens == table.num_embeddings:
            return table
        if new_num_tokens < 1:
            raise ValueError(f"new_num_tokens must be positive, got {new_num_tokens}")
        std = getattr(self.config, "init_std", None) or getattr(self.config, "initializer_range", None) or 1.0
        old = table.weight

        def grown(weight: Any, std: float) -> tf.Variable:
            return tf.Variable(tensors.resized(weight, new_num_tokens, std), trainable=weight.trainable)

        with self.placed():
            fresh = grown(old, std)
            for module in self.modules():
                if isinstance(module, Embedding) and module.weight is old:
                    module.weight, module.num_embeddings = fresh, new_num_tokens
            output = self.get_output_embeddings()
            if output is not None:
                if output.weight is not old:
                    fresh = grown(output.weight, std)
                output.weight, output.out_features = fresh, new_num_tokens
            bias = getattr(self, "final_logits_bias", None)
            if bias is not None:
                turned = tf.transpose(tensors.resized(tf.transpose(bias), new_num_tokens, 0.0))
                self.final_logits_bias = tf.Variable(turned, trainable=bias.trainable)
        config = type(self.config).from_dict(self.config.to_dict(), vocab_size=new_num_tokens)
        object.__setattr__(self, "config", config)
        self.reset_graphs()
        return table

    @classmethod
    def read_config(cls, name_or_path: str | Path, hub: dict[str, Any], overrides: dict[str, Any]) -> Any:
        """The config of a folder or repository."""
        return cls.config_class.from_pretrained(name_or_path, **hub, **overrides)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | Path,
        *,
        config: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        device: Any = None,
        from_pt: bool = False,
        load_weight_prefix: str | None = None,
        **kwargs: Any,
    ) -> Model:
        """A model from a folder or a repository of the hub, in eval mode.

        Args:
            pretrained_model_name_or_path: folder, or repository id.
            config: instead of the stored one; copied.
            dtype: of the weights; None is float32, "auto" what the checkpoint has.
            torch_dtype: another name for `dtype`.
            device: where to put the weights; None leaves it to TensorFlow (a GPU where there is one).
            from_pt: nothing to do: the files are PyTorch's and TensorFlow's alike.
            load_weight_prefix: not needed any more.
            **kwargs: hub options (`cache_dir`, `token`, `revision`, `local_files_only`, `force_download`, `subfolder`),
                and fields of the config to override.

        Raises:
            OSError: files are missing.
            TypeError: an unknown keyword.
            ValueError: the weights do not fit; the message lists every missing, unexpected and misshapen name.
        """
        warn_of_prefix(load_weight_prefix)
        hub, overrides = split_hub_kwargs(kwargs)
        cls._refuse_unknown(overrides)
        if config is None:
            config = cls.read_config(pretrained_model_name_or_path, hub, overrides)
        else:
            config = type(config).from_dict(config.to_dict(), **overrides)
        with hollow():
            model = cls(config)
        model._load(pretrained_model_name_or_path, hub, resolve_dtype(dtype or torch_dtype, config), device)
        return model.eval()

    @classmethod
    def _refuse_unknown(cls, overrides: dict[str, Any]) -> None:
        from rag_core.generation import GenerationConfig

        known = GenerationConfig.__dataclass_fields__
        unknown = sorted(name for name in overrides if not cls.config_class.knows(name) and name not in known)
        if unknown:
            raise TypeError(
                f"{cls.__name__}.from_pretrained got unknown keywords {', '.join(unknown)}: neither an option of "
                f"loading nor a field of {cls.config_class.__name__}"
            )

    def _load(self, name_or_path: str | Path, hub: dict[str, Any], dtype: Any, device: Any) -> None:
        """Fill this model (built hollow) with a checkpoint's weights, all or an error."""
        from rag_core.checkpoint import read_weights
        from rag_core.generation import GenerationConfig, own_options

        found = read_weights(name_or_path, **hub)
        arrays = self._fit(found, str(name_or_path))
        ties = tensors.tied_names(self)

        def read() -> Iterator[tuple[str, Any]]:
            held = 0
            for name in arrays:
                if name not in ties:
                    array = arrays[name]
                    yield name, array
                    held += array.nbytes
                    if held > _HELD:  # the file's pages count as memory of this process, beside the copies
                        found.free()
                        held = 0

        tensors.assign_each(self, read(), dtype, device)
        self.tie_weights()
        left = tensors.hollow_names(self)
        if left:
            raise ValueError(f"{name_or_path} left weights without values: {', '.join(left)}")
        if resolve_file(name_or_path, "generation_config.json", required=False, **hub) is not None:
            said = GenerationConfig.from_pretrained(name_or_path, **hub)
            self.generation_config = own_options(said, self.config, self.head)

    def _fit(self, found: Any, source: str) -> Any:
        """The checkpoint's arrays under this model's names, checked."""
        from rag_core.weights import fit_weights

        return fit_weights(self.config, found, self.head, source=source)

    def _saved_config(self) -> Any:
        """The config as it is written: a copy that names this class and the type of the weights."""
        names = {"architectures": [self.architecture or type(self).__name__], "torch_dtype": self.dtype}
        return type(self.config).from_dict(self.config.to_dict(), **names)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write config.json, generation_config.json and model.safetensors, all or nothing; PyTorch reads them too.

        Args:
            save_directory: the folder, made if missing.
            max_shard_size: larger checkpoints are split.
            safe_serialization: must be True: nothing here writes pickles.
            push_to_hub: also push the folder; `kwargs` are those of `push_to_hub`.
            **kwargs: see `push_to_hub`.

        Raises:
            OSError: nothing could be written; what was there before is unchanged.
        """
        from rag_core.checkpoint import write_checkpoint

        if not safe_serialization:
            raise ValueError("safe_serialization must be True: weights are written as safetensors, never as a pickle")
        if kwargs and not push_to_hub:
            raise TypeError(f"save_pretrained got unknown arguments: {', '.join(sorted(kwargs))}")
        write_checkpoint(
            save_directory,
            tensors.to_arrays(self),
            self._saved_config(),
            generation_config=self._saved_generation_config(),
            max_shard_size=max_shard_size,
        )
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", None) or Path(save_directory).name
            push_folder(save_directory, repo_id, **kwargs)

    def _saved_generation_config(self) -> Any:
        return self._generation_config


def warn_of_prefix(load_weight_prefix: Any) -> None:
    """Tells once more what to leave out."""
    if load_weight_prefix is not None:
        warn(
            "load_weight_prefix is ignored: weights are found by their names. Leave it out.",
            DeprecationWarning,
        )
