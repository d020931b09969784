"""What the model classes of both frameworks have in common: names, switches, sizes, loading and
saving.

A backend's `PretrainedModel` adds what only its tensors can tell or do; `PretrainedBase` lists it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from rag_core import checks
from rag_core.arguments import checked_switch
from rag_core.backends import to_numpy, to_tensor
from rag_core.checkpoint import check_sizes, given_weights
from rag_core.config import MOST, PretrainedConfig
from rag_core.hub import (
    Pushable,
    Saving,
    loading_info,
    locating,
    resolve_file,
    split_hub_kwargs,
    whole_device,
)
from rag_core.outputs import Tensor

if TYPE_CHECKING:
    from rag_core.generation import GenerationConfig

Model = TypeVar("Model", bound="PretrainedBase")

# Bytes of a mapped checkpoint that stay in memory while it is read. Its pages count as memory of
# this process, beside the copies; giving them back after each tensor costs a call of the system each.
_HELD = 1 << 26


class PretrainedBase(Pushable, Generic[Tensor]):
    """A mixin for models with a `config`, which load and save themselves under Hugging Face's names.

    A backend joins it with the framework's module class, whose call runs `forward`, and which has
    `parameters()` and `modules()`, each once, `eval()` and `dtype`; and it writes what needs its
    tensors: `_placeholders()`, `_assign()`, `_unfilled()`, `_ties()`, `_to_arrays()`,
    `_to_array()`, `_resized()`, `_learning()`, `_resolved_dtype()` and `_automatic_device()`,
    `init_weights()`, and what `_weights_replaced()` has to do. Its tables of vectors have `weight`,
    `num_embeddings` and `embedding_dim`, its linear layers `weight` (out, in).

    Args:
        config: the config object the network is built from.

    Attributes:
        config_class: class of the config.
        architecture: class name in config.json; None is the class's own.
        head: which weights the class has, as `rag_core.checkpoint.weights` calls them.
        base_model_prefix: attribute that holds the network without its head, as in transformers.
        main_input_name: what a model is mainly asked with.
        framework: "pt" or "tf", as in transformers.
        accepts_loss_kwargs: False tells transformers' Trainer that a loss is not to be divided by
            it.
        supports_gradient_checkpointing: True, as in transformers' generators and BERT.
        checkpoint_keywords: what `gradient_checkpointing_enable` takes.
    """

    config_class: Any = None
    architecture: str | None = None
    head: str | None = None
    base_model_prefix = ""
    main_input_name = "input_ids"
    framework = ""
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    checkpoint_keywords: tuple[str, ...] = ("use_reentrant",)
    config: Any
    dtype: Any
    # What somebody wrote, in a file or by setting it; else what was made of the config.
    _generation_config: Any = None
    _made_options: GenerationConfig | None = None

    if TYPE_CHECKING:  # of the framework's module class

        def modules(self) -> Iterator[Any]: ...

        def parameters(self) -> Iterator[Any]: ...

        def eval(self: Model) -> Model: ...

    def __init__(self, config: Any) -> None:
        super().__init__()
        # Past TensorFlow's and Keras' trackers, which wrap what they find.
        object.__setattr__(self, "config", config)

    # what a backend writes

    @staticmethod
    def _placeholders() -> Any:
        """A context within which networks are built without memory for their weights and without
        drawing fresh ones.
        """
        raise NotImplementedError

    @staticmethod
    def _automatic_device() -> Any:
        """The device that `device_map="auto"` means."""
        raise NotImplementedError

    @staticmethod
    def _resolved_dtype(dtype: Any, config: Any) -> Any:
        """The framework's type of the weights: float32 for None, the config's for "auto" (None, as
        stored, where it says nothing).

        Raises:
            ValueError: not a floating-point type.
        """
        raise NotImplementedError

    @staticmethod
    def _to_array(tensor: Any) -> Any:
        """A tensor's numbers as a NumPy array."""
        raise NotImplementedError

    def _to_arrays(self, state_dict: Mapping[str, Any] | None) -> dict[str, Any]:
        """All weights as NumPy arrays by name, tied ones once.

        Args:
            state_dict: values in place of the model's own.

        Raises:
            ValueError: `state_dict` has other names or shapes.
        """
        raise NotImplementedError

    def _assign(self, pairs: Iterator[tuple[str, Any]], dtype: Any, device: Any) -> None:
        """Put (name, array) pairs in the place of the weights of these names, one at a time."""
        raise NotImplementedError

    def _unfilled(self) -> list[str]:
        """Names of weights without numbers yet, sorted."""
        raise NotImplementedError

    def _ties(self) -> dict[str, str]:
        """Each further name of a tied weight -> its first name."""
        raise NotImplementedError

    def _resized(self, weight: Any, rows: int, std: float, axis: int = 0) -> Any:
        """A weight of the same kind with `rows` rows along `axis`: cut, or lengthened by normal(0,
        std).
        """
        raise NotImplementedError

    def _learning(self) -> Any:
        """The weights that learn, tied ones once."""
        raise NotImplementedError

    def _weights_replaced(self) -> None:
        """Called after other tensors took the place of weights."""

    # construction

    def post_init(self) -> None:
        """Call at the end of a constructor.

        Fresh weights (unless a checkpoint will be loaded), then ties.
        """
        if not self._unfilled():
            self.init_weights()
        self.tie_weights()

    def init_weights(self) -> None:
        """Fresh weights in place."""

    def tie_weights(self) -> None:
        """Make weights that the config ties one weight."""

    def switches(
        self, use_cache: bool | None, *others: bool | None
    ) -> tuple[bool, bool, bool, bool]:
        """Resolve (use_cache, output_attentions, output_hidden_states, return_dict).

        None means the config's value.
        """
        names = ("output_attentions", "output_hidden_states", "use_return_dict")
        attentions, hidden, return_dict = (
            checked_switch(name.removeprefix("use_"), value, getattr(self.config, name))
            for name, value in zip(names, others, strict=True)
        )
        use_cache = checked_switch("use_cache", use_cache, getattr(self.config, "use_cache", False))
        return use_cache, attentions, hidden, return_dict

    @property
    def generation_config(self) -> GenerationConfig:
        """How to generate unless a call says otherwise.

        What generation_config.json or somebody says, else what the config says, now: an option set
        there later counts. An option that is set here is somebody's wish, and the config no longer
        counts.
        """
        written = self._written_options()
        if written is not None:
            return written
        made = self._made_options
        if made is not None:
            made.follow(self.config)
            return made
        from rag_core.generation import GenerationConfig

        made = GenerationConfig.from_model_config(self.config)
        # Past TensorFlow's trackers, which would read it first, to compare.
        object.__setattr__(self, "_made_options", made)
        return made

    @generation_config.setter
    def generation_config(self, value: GenerationConfig | None) -> None:
        if value is not self._made_options:
            object.__setattr__(self, "_generation_config", value)
            object.__setattr__(self, "_made_options", None)

    def _written_options(self) -> Any:
        """The options if somebody wrote them, None where they are made of the config."""
        if self._made_options is not None:
            # Setting an option clears the mark.
            if not self._made_options._from_model_config:
                return self._made_options
        return self._generation_config

    @property
    def name_or_path(self) -> str:
        """Where the config was read from; empty for a config made by hand."""
        return getattr(self.config, "name_or_path", "")

    @property
    def base_model(self) -> Any:
        """The network without its head, or this model if it has none."""
        if not self.base_model_prefix:
            return self
        return getattr(self, self.base_model_prefix, self)

    @classmethod
    def can_generate(cls) -> bool:
        """Whether there is a `generate`."""
        return callable(getattr(cls, "generate", None))

    def compute_transition_scores(
        self,
        sequences: Tensor,
        scores: Sequence[Tensor] | None,
        beam_indices: Tensor | None = None,
        normalize_logits: bool = False,
    ) -> Tensor:
        """The score of each token that `generate(..., return_dict_in_generate=True,
        output_scores=True)` wrote.

        Args:
            sequences: (R, T), the output's.
            scores: the output's: of each step (B*K, V).
            beam_indices: (R, L), the output's; None without beams.
            normalize_logits: whether to take the log-softmax of each step's scores first.

        Returns:
            (R, L), as many as the longest row has generated tokens; 0 after a beam's end.

        Raises:
            ValueError: the output has no `scores`, or these are of another call, or the model
                scores whole answers.
        """
        if self.head == "sequence":
            raise ValueError(
                f"{type(self).__name__} scores whole answers, not tokens: see sequences_scores"
            )
        from rag_core.generation import transition_scores

        step_scores = (to_numpy(step) for step in scores or ())
        beams = None
        if beam_indices is not None:
            beams = to_numpy(beam_indices)
        token_scores: Any = to_tensor(
            transition_scores(to_numpy(sequences), step_scores, beams, normalize_logits),
            self.framework,
        )
        # TensorFlow finds the place by itself
        if self.framework != "pt":
            return token_scores
        placed: Any = sequences
        return token_scores.to(placed.device)

    def get_input_embeddings(self) -> Any:
        """The token table."""
        raise NotImplementedError(f"{type(self).__name__} has no token table")

    def set_input_embeddings(self, value: Any) -> None:
        """Put another token table in place, wherever the old one is used; its size must be the old
        one's.

        Args:
            value: a layer whose `weight` is (V, d).

        Raises:
            ValueError: another shape; `resize_token_embeddings` changes V.
        """
        raise NotImplementedError(f"{type(self).__name__} has no token table")

    def get_output_embeddings(self) -> Any:
        """The language-model head, or None."""
        return None

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Put another language-model head in place; its size must be the old one's.

        Args:
            new_embeddings: a linear layer whose `weight` is (V, d).

        Raises:
            ValueError: another shape; `resize_token_embeddings` changes V.
        """
        raise NotImplementedError(f"{type(self).__name__} has no language-model head")

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> Any:
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
        resized = self._resized(old, rows, std)
        for module in self.modules():
            if hasattr(module, "num_embeddings") and module.weight is old:
                module.weight = resized
                module.num_embeddings = rows
        head = self.get_output_embeddings()
        if head is not None:
            if head.weight is not old:
                resized = self._resized(head.weight, rows, std)
            head.weight = resized
            head.out_features = rows
        bias = getattr(self, "final_logits_bias", None)
        if bias is not None:
            self.final_logits_bias = self._resized(bias, rows, 0.0, axis=1)
        config = type(self.config).from_dict(self.config.to_dict(), vocab_size=rows)
        object.__setattr__(self, "config", config)
        self._weights_replaced()
        return table

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the weights are, tied ones once.

        Args:
            only_trainable: count those that learn.
            exclude_embeddings: leave out tables of vectors (tokens, positions), and what is tied to
                them.
        """
        weights = self._learning() if only_trainable else self.parameters()
        left_out: set[int] = set()
        if exclude_embeddings:
            tables = (module for module in self.modules() if hasattr(module, "num_embeddings"))
            left_out = {id(table.weight) for table in tables}
        return sum(math.prod(weight.shape) for weight in weights if id(weight) not in left_out)

    def _facts(self) -> dict[str, Any]:
        """What a notebook shows of the model."""
        from rag_core.display import byte_size, how_many

        size = byte_size(self.get_memory_footprint(return_buffers=False))
        dtype = getattr(self.dtype, "name", str(self.dtype).removeprefix("torch."))
        return {
            "weights": f"{how_many(self.num_parameters())} numbers, {dtype}, {size}",
            "device": getattr(self, "device", None),
            "from": self.name_or_path,
        }

    def _repr_html_(self) -> str:
        from rag_core.display import facts_html

        return facts_html(type(self).__name__, self._facts(), repr(self))

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the weights, tied ones once.

        Args:
            return_buffers: count saved and unsaved buffers, too.
        """
        tensors = self.parameters()
        if return_buffers and hasattr(self, "buffers"):
            tensors = itertools.chain(tensors, self.buffers())
        return sum(math.prod(tensor.shape) * _item_size(tensor.dtype) for tensor in tensors)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Train with less memory and more time: of each layer its input is kept, and the rest
        computed once more.

        At work in training mode only. Results and gradients stay what they are, dropout's noise
        included. In rag_tf the decoder keeps everything in calls that return or continue
        `past_key_values`.

        Args:
            gradient_checkpointing_kwargs: `use_reentrant` is taken and makes no difference, as
                nothing here is re-entrant; rag_torch hands `preserve_rng_state`,
                `determinism_check`, `context_fn` and `debug` to
                `torch.utils.checkpoint.checkpoint`.

        Raises:
            TypeError: an unknown keyword.
            ValueError: no part of the model can do this.
        """
        options = dict(gradient_checkpointing_kwargs or {})
        unknown = sorted(set(options) - set(self.checkpoint_keywords))
        if unknown:
            known = ", ".join(self.checkpoint_keywords)
            raise TypeError(
                f"gradient_checkpointing_kwargs must hold nothing but {known}, got "
                f"{', '.join(unknown)}"
            )
        parts = self._networks()
        able = [part for part in parts if hasattr(part, "gradient_checkpointing_enable")]
        unable = [type(part).__name__ for part in parts if part not in able]
        if unable:
            message = (
                "modules without gradient_checkpointing_enable() keep all activations: "
                f"{', '.join(unable)}"
            )
            if not able:
                raise ValueError(f"{message}. Leave it out, or give these modules such a method")
            checks.warn(message)
        for part in able:
            if part is not self:
                enable = getattr(
                    part, "activation_checkpointing_enable", part.gradient_checkpointing_enable
                )
                enable(gradient_checkpointing_kwargs)
        if self in able:
            options.pop("use_reentrant", None)
            self._checkpoint(options)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """The name that transformers 5 has for `gradient_checkpointing_enable`.

        Args:
            activation_checkpointing_kwargs: as `gradient_checkpointing_kwargs` there.
            every_n_layers: must be 1.
            offload: must be False.

        Raises:
            TypeError, ValueError: as there, or another value of these two.
        """
        for name, value, needed in (
            ("every_n_layers", every_n_layers, 1),
            ("offload", offload, False),
        ):
            if value != needed:
                raise ValueError(
                    f"{name} must be {needed}, got {value!r}. Leave it out: all layers keep their "
                    "inputs"
                )
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs)

    def activation_checkpointing_disable(self) -> None:
        """The name that transformers 5 has for `gradient_checkpointing_disable`."""
        self.gradient_checkpointing_disable()

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations again."""
        for part in self._networks():
            if part is not self and hasattr(part, "gradient_checkpointing_disable"):
                getattr(
                    part, "activation_checkpointing_disable", part.gradient_checkpointing_disable
                )()
        self._checkpoint(None)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether some layers keep their input alone; see `gradient_checkpointing_enable`."""
        if any(getattr(module, "checkpointing", None) is not None for module in self.modules()):
            return True
        return any(_is_checkpointing(part) for part in self._networks() if part is not self)

    @property
    def is_activation_checkpointing(self) -> bool:
        """`is_gradient_checkpointing` under the name of transformers 5."""
        return self.is_gradient_checkpointing

    def _networks(self) -> list[Any]:
        """What switches checkpointing on and off for itself.

        This model, or the parts it is put together from.
        """
        return [self]

    def _checkpoint(self, options: dict[str, Any] | None) -> None:
        """Set the options of the stacks of layers below; None = keep all activations."""
        if hasattr(self, "reset_graphs"):
            self.reset_graphs()
        for module in self.modules():
            if hasattr(type(module), "checkpointing"):
                # past trackers, which wrap dictionaries
                object.__setattr__(module, "checkpointing", options)

    # files

    @classmethod
    def read_config(
        cls, name_or_path: str | Path, hub: dict[str, Any], overrides: dict[str, Any]
    ) -> Any:
        """The config of a folder or repository."""
        return cls.config_class.from_pretrained(name_or_path, **hub, **overrides)

    @overload
    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | Path | None,
        *,
        config: PretrainedConfig | str | Path | None = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        device: Any = None,
        device_map: Any = None,
        state_dict: Mapping[str, Any] | None = None,
        output_loading_info: Literal[False] = False,
        **kwargs: Any,
    ) -> Model: ...

    @overload
    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | Path | None,
        *,
        output_loading_info: Literal[True],
        **kwargs: Any,
    ) -> tuple[Model, dict[str, list[Any]]]: ...

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | Path | None,
        *,
        config: PretrainedConfig | str | Path | None = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        device: Any = None,
        device_map: Any = None,
        state_dict: Mapping[str, Any] | None = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Read a model from a folder or a repository of the hub, in eval mode.

        Args:
            pretrained_model_name_or_path: folder, or repository id; None where `config` and
                `state_dict` are given.
            config: instead of the stored one: a config, which is copied, or another folder or
                repository.
            dtype: of the weights; None is float32, "auto" what the checkpoint has.
            torch_dtype: another name for `dtype`.
            device: where to put the weights; None is the CPU in rag_torch, and in rag_tf
                TensorFlow's choice (a GPU where there is one).
            device_map: another name for `device`: a device, {"": device}, or "auto" for a GPU where
                there is one.
            state_dict: weights by name in place of the stored ones.
            output_loading_info: return a pair, the model and a dictionary of `missing_keys`,
                `unexpected_keys`, `mismatched_keys` and `error_msgs`, all empty: weights that do
                not fit are an error.
            **kwargs: hub options (`cache_dir`, `token`, `revision`, `local_files_only`,
                `force_download`, `subfolder`), fields of the config to override, and what
                transformers takes besides (see `rag_core.hub.keywords`); rag_tf takes `from_pt` and
                `load_weight_prefix`, and needs neither.

        Raises:
            OSError: files are missing.
            TypeError: an unknown keyword.
            ValueError: the weights do not fit; the message lists every missing, unexpected and
                misshapen name. Or a keyword asks for something that is not done here.
        """
        return cls._read(
            cls,
            pretrained_model_name_or_path,
            kwargs,
            config=config,
            dtype=dtype or torch_dtype,
            device=device,
            device_map=device_map,
            state_dict=state_dict,
            output_loading_info=output_loading_info,
        )

    @classmethod
    def _read(
        cls,
        build: Callable[[Any], Any],
        name_or_path: str | Path | None,
        keywords: Mapping[str, Any],
        *,
        config: Any,
        dtype: Any,
        device: Any,
        device_map: Any,
        state_dict: Mapping[str, Any] | None,
        output_loading_info: bool,
    ) -> Any:
        """`from_pretrained` with its keywords sorted; `build(config)` makes the network.

        The order is part of it: what is refused is refused before files are read, and a config that
        its file cannot fill before anything is built.
        """
        config, hub = cls._resolved_config(name_or_path, config, keywords)
        _, overrides = split_hub_kwargs(keywords)
        device = cls._resolved_device(device, device_map)
        weights, source = cls._weights_of(name_or_path, hub, state_dict)
        check_sizes(config, weights, source)
        with cls._placeholders(), locating(f"the config of {source!r}"):
            model = build(config)
        model._load(name_or_path, hub, cls._resolved_dtype(dtype, config), device, weights, source)
        model._take_options(name_or_path, hub, overrides)
        model.eval()
        if output_loading_info:
            return model, loading_info()
        return model

    @classmethod
    def _resolved_device(cls, device: Any, device_map: Any) -> Any:
        """The device that `device` or `device_map` names.

        Raises:
            ValueError: several devices, or both arguments.
        """
        chosen = whole_device(device, device_map)
        # another framework's device object may not compare with a name
        if isinstance(chosen, str) and chosen == "auto":
            return cls._automatic_device()
        return chosen

    @classmethod
    def _weights_of(
        cls,
        name_or_path: str | Path | None,
        hub: dict[str, Any],
        state_dict: Mapping[str, Any] | None,
    ) -> tuple[Any, str]:
        """The weights that are stored or given, not read yet, and what to call them."""
        if state_dict is not None:
            return given_weights(state_dict, cls._to_array), "state_dict"
        from rag_core.checkpoint import read_weights

        return read_weights(name_or_path, **hub), str(name_or_path)  # type: ignore[arg-type]

    def _load(
        self,
        name_or_path: str | Path | None,
        hub: dict[str, Any],
        dtype: Any,
        device: Any,
        weights: Any,
        source: str,
    ) -> None:
        """Fill this model, built of placeholders, with the weights, all or an error.

        `name_or_path` and `hub` are for classes whose weights lie in several folders.
        """
        arrays = self._fit(weights, source)
        self._assign(_once(arrays, self._ties(), weights.free), dtype, device)
        self.tie_weights()
        left = self._unfilled()
        if left:
            raise ValueError(f"{source} left weights without values: {', '.join(left)}")

    def _take_options(
        self, name_or_path: str | Path | None, hub: dict[str, Any], overrides: Mapping[str, Any]
    ) -> None:
        """How to generate: options among the overrides, before those of generation_config.json."""
        from rag_core.generation import GenerationConfig, loaded_options

        known = GenerationConfig.__dataclass_fields__
        given = {name: value for name, value in overrides.items() if name in known}
        name, stored = "generation_config.json", None
        if name_or_path is not None and resolve_file(name_or_path, name, required=False, **hub):
            stored = GenerationConfig.from_pretrained(name_or_path, **hub, **given)
        if given or stored is not None:
            self.generation_config = loaded_options(stored, given, self.config, self.head)

    def _fit(self, weights: Any, source: str) -> Any:
        """The checkpoint's arrays under this model's names, checked."""
        from rag_core.checkpoint import fit_weights

        return fit_weights(self.config, weights, self.head, source=source)

    @classmethod
    def _resolved_config(
        cls, name_or_path: str | Path | None, config: Any, kwargs: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """The config that `from_pretrained` builds the network from, and the hub options among its
        keywords.

        Args:
            name_or_path: of the model; None where config and weights are given.
            config: None for that of `name_or_path`, a folder or repository, or a config, which is
                copied.
            kwargs: hub options, fields of the config, and what changes nothing.

        Raises:
            TypeError: an unknown keyword, or no config.
            ValueError: a keyword asks for something that is not done here.
        """
        hub, overrides = split_hub_kwargs(kwargs)
        cls._refuse_unknown(overrides)
        if config is None and name_or_path is None:
            raise ValueError(
                "config must be given where pretrained_model_name_or_path is None, got None. Name "
                "a folder, or give config= and state_dict="
            )
        if config is None or config == name_or_path:
            return cls.read_config(name_or_path, hub, overrides), hub  # type: ignore[arg-type]
        if isinstance(config, str | Path):
            elsewhere = {
                name: value for name, value in hub.items() if name not in ("subfolder", "revision")
            }
            return cls.read_config(config, elsewhere, overrides), hub
        if not hasattr(config, "to_dict"):
            raise TypeError(
                f"config must be a {cls.config_class.__name__} or the name of a folder or "
                f"repository, got {type(config).__name__}. {cls.config_class.__name__}.from_dict "
                "makes one out of a dictionary"
            )
        kind = type(config) if isinstance(config, PretrainedConfig) else cls.config_class
        return kind.from_dict(config.to_dict(), **overrides), hub

    @classmethod
    def _refuse_unknown(cls, overrides: dict[str, Any]) -> None:
        from rag_core.generation import GenerationConfig

        known = GenerationConfig.__dataclass_fields__
        unknown = sorted(
            name for name in overrides if not cls.config_class.knows(name) and name not in known
        )
        if unknown:
            raise TypeError(
                f"{cls.__name__}.from_pretrained got unknown keywords {', '.join(unknown)}: "
                f"neither an option of loading nor a field of {cls.config_class.__name__}"
            )

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
        """Write config.json, generation_config.json where somebody has set options that the config
        does not have, and model.safetensors, all or nothing; both backends and transformers read
        them.

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
        from rag_core.checkpoint import write_checkpoint

        saving = Saving.of(is_main_process, push_to_hub, **kwargs)
        if not _SWITCH("safe_serialization", safe_serialization):
            raise ValueError(
                "safe_serialization must be True: weights are written as safetensors, never as a "
                "pickle"
            )
        if not saving.here:
            return
        write_checkpoint(
            save_directory,
            self._to_arrays(state_dict),
            self._saved_config(),
            generation_config=self._saved_generation_config(),
            max_shard_size=max_shard_size,
        )
        saving.finish(save_directory, self)

    def _saved_config(self) -> Any:
        """The config as it is written: a copy that names this class and the type of the weights."""
        names = {
            "architectures": [self.architecture or type(self).__name__],
            "torch_dtype": self.dtype,
        }
        return type(self.config).from_dict(self.config.to_dict(), **names)

    def _saved_generation_config(self) -> GenerationConfig | None:
        """The options as they are written; None where they are made of the config, which says them."""
        from rag_core.generation import as_generation_config

        written = self._written_options()
        if written is None:
            return None
        options = as_generation_config(written)
        # Even those made of another model's config are a wish here.
        options._from_model_config = False
        return options


_COUNT = checks.whole(1, MOST, optional=True)
_SWITCH = checks.switch()


def rows_wanted(new_num_tokens: int | None, pad_to_multiple_of: int | None, rows: int) -> int:
    """How many rows a token table of `rows` is to have.

    Args:
        new_num_tokens: None for as many as there are.
        pad_to_multiple_of: round up to a multiple of this; None leaves the number.
        rows: of the table.

    Raises:
        TypeError, ValueError: no number, or one that is not positive or larger than any table.
    """
    new_num_tokens = _COUNT("new_num_tokens", new_num_tokens)
    pad_to_multiple_of = _COUNT("pad_to_multiple_of", pad_to_multiple_of)
    if new_num_tokens is not None:
        rows = new_num_tokens
    if pad_to_multiple_of is None:
        return rows
    return math.ceil(rows / pad_to_multiple_of) * pad_to_multiple_of


def check_table(name: str, value: Any, old: Any) -> Any:
    """The layer that is to take another's place, if its weight has the same shape.

    Raises:
        ValueError: it has not.
    """
    shape = tuple(getattr(getattr(value, "weight", None), "shape", ()))
    old_shape = tuple(old.weight.shape)
    if shape != old_shape:
        raise ValueError(
            f"{name} must be a layer whose weight has the shape {old_shape} of the one it replaces, "
            f"got {shape or type(value).__name__}. resize_token_embeddings(n) changes the number "
            "of tokens"
        )
    return value


def _once(
    arrays: Mapping[str, Any], ties: Mapping[str, str], free: Callable[[], None]
) -> Iterator[tuple[str, Any]]:
    """(name, array) of all weights, tied ones under their first name, each read when it is its turn;
    `free` gives back a file's memory.
    """
    held = 0
    for name in arrays:
        if name in ties:
            continue
        array = arrays[name]
        yield name, array
        held += array.nbytes
        if held > _HELD:
            free()
            held = 0


def _is_checkpointing(part: Any) -> bool:
    """Whether a network, perhaps another library's, keeps its layers' inputs alone."""
    # transformers 5 warns of the second name
    for name in ("is_activation_checkpointing", "is_gradient_checkpointing"):
        if hasattr(type(part), name):
            return bool(getattr(part, name))
    return False


def _item_size(dtype: Any) -> int:
    # TensorFlow calls it by the second name
    return dtype.itemsize if hasattr(dtype, "itemsize") else dtype.size
