"""What the model classes of both frameworks have in common and no tensor is needed for: names,
sizes, files.

A backend's `PretrainedModel` adds its tensors: `parameters()`, `modules()`, loading and the arrays
that are written.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rag_core import checks
from rag_core.arguments import checked_switch
from rag_core.backends import to_numpy, to_tensor
from rag_core.config import MOST, PretrainedConfig
from rag_core.hub import Pushable, Saving, split_hub_kwargs


class PretrainedBase(Pushable):
    """A mixin for models with a `config`.

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
    modules: Any
    parameters: Any
    _generation_config: Any = None

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
    def generation_config(self) -> Any:
        """How to generate unless a call says otherwise.

        Generation_config.json's, else made from the config.
        """
        if self._generation_config is None:
            from rag_core.generation import GenerationConfig

            # Not self.generation_config = ...: TensorFlow's trackers would read it first, to
            # compare.
            object.__setattr__(
                self, "_generation_config", GenerationConfig.from_model_config(self.config)
            )
        return self._generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        object.__setattr__(self, "_generation_config", value)

    @property
    def name_or_path(self) -> str:
        """Where the config was read from; empty for a config made by hand."""
        return getattr(self.config, "name_or_path", "")

    @property
    def base_model(self) -> Any:
        """The network without its head, or this model if it has none."""
        return getattr(self, self.base_model_prefix, self) if self.base_model_prefix else self

    @classmethod
    def can_generate(cls) -> bool:
        """Whether there is a `generate`."""
        return callable(getattr(cls, "generate", None))

    def compute_transition_scores(
        self, sequences: Any, scores: Any, beam_indices: Any = None, normalize_logits: bool = False
    ) -> Any:
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

        arrays = (to_numpy(each) for each in scores or ())
        beams = None if beam_indices is None else to_numpy(beam_indices)
        found = to_tensor(
            transition_scores(to_numpy(sequences), arrays, beams, normalize_logits), self.framework
        )
        return found.to(sequences.device) if self.framework == "pt" else found

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

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the weights are, tied ones once.

        Args:
            only_trainable: count those that learn.
            exclude_embeddings: leave out tables of vectors (tokens, positions), and what is tied to
                them.
        """
        wanted = self._learning() if only_trainable else self.parameters()
        tables: set[int] = set()
        if exclude_embeddings:
            tables = {
                id(module.weight) for module in self.modules() if hasattr(module, "num_embeddings")
            }
        return sum(math.prod(each.shape) for each in wanted if id(each) not in tables)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the weights, tied ones once.

        Args:
            return_buffers: count saved and unsaved buffers, too.
        """
        buffers = self.buffers() if return_buffers and hasattr(self, "buffers") else ()
        every = itertools.chain(self.parameters(), buffers)
        return sum(math.prod(each.shape) * _item_size(each.dtype) for each in every)

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
        given = dict(gradient_checkpointing_kwargs or {})
        unknown = sorted(set(given) - set(self.checkpoint_keywords))
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
            self._checkpoint(
                {name: value for name, value in given.items() if name != "use_reentrant"}
            )

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
        others = [part for part in self._networks() if part is not self]
        own = any(getattr(module, "checkpointing", None) is not None for module in self.modules())
        # transformers 5 warns of the second
        names = ("is_activation_checkpointing", "is_gradient_checkpointing")
        asked = [next((name for name in names if hasattr(type(part), name)), "") for part in others]
        return own or any(
            bool(name) and getattr(part, name) for part, name in zip(others, asked, strict=True)
        )

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

    def _learning(self) -> Any:
        """The weights that learn, tied ones once."""
        raise NotImplementedError

    # files

    @classmethod
    def read_config(
        cls, name_or_path: str | Path, hub: dict[str, Any], overrides: dict[str, Any]
    ) -> Any:
        """The config of a folder or repository."""
        return cls.config_class.from_pretrained(name_or_path, **hub, **overrides)

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

    def _write(
        self,
        folder: str | Path,
        saving: Saving,
        arrays: Any,
        max_shard_size: int | str,
        safe_serialization: bool,
    ) -> None:
        """`save_pretrained`, its keywords read; `arrays()` makes what is written."""
        from rag_core.checkpoint.folder import write_checkpoint

        if not _SWITCH("safe_serialization", safe_serialization):
            raise ValueError(
                "safe_serialization must be True: weights are written as safetensors, never as a "
                "pickle"
            )
        if not saving.here:
            return
        write_checkpoint(
            folder,
            arrays(),
            self._saved_config(),
            generation_config=self._saved_generation_config(),
            max_shard_size=max_shard_size,
        )
        saving.finish(folder, self)

    def _saved_config(self) -> Any:
        """The config as it is written: a copy that names this class and the type of the weights."""
        names = {
            "architectures": [self.architecture or type(self).__name__],
            "torch_dtype": self.dtype,
        }  # type: ignore[attr-defined]
        return type(self.config).from_dict(self.config.to_dict(), **names)

    def _saved_generation_config(self) -> Any:
        return self._generation_config


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
    wanted = rows if new_num_tokens is None else new_num_tokens
    return (
        wanted
        if pad_to_multiple_of is None
        else -(-wanted // pad_to_multiple_of) * pad_to_multiple_of
    )


def check_table(name: str, value: Any, old: Any) -> Any:
    """The layer that is to take another's place, if its weight has the same shape.

    Raises:
        ValueError: it has not.
    """
    found = tuple(getattr(getattr(value, "weight", None), "shape", ()))
    needed = tuple(old.weight.shape)
    if found != needed:
        raise ValueError(
            f"{name} must be a layer whose weight has the shape {needed} of the one it replaces, "
            f"got {found or type(value).__name__}. resize_token_embeddings(n) changes the number "
            "of tokens"
        )
    return value


def with_ties(given: Mapping[str, Any], ties: Mapping[str, str]) -> dict[str, Any]:
    """A state dict with each tied weight that it holds under all of its names, as files hold it
    under one.

    Args:
        given: weights by name.
        ties: each further name of a tied weight -> its first name.
    """
    groups: dict[str, list[str]] = {}
    for name, first in ties.items():
        groups.setdefault(first, [first]).append(name)
    whole = dict(given)
    for names in groups.values():
        held = next((name for name in names if name in given), None)
        if held is not None:
            whole.update({name: given[held] for name in names if name not in given})
    return whole


def chosen_weights(
    own: Mapping[str, Any], ties: Mapping[str, str], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Of a state dict those entries that are written: each weight of a model once.

    Args:
        own: the model's weights by name, tied ones under their first name.
        ties: each further name of a tied weight -> its first name.
        given: the state dict; tied weights under any of their names.

    Raises:
        TypeError: no mapping.
        ValueError: names or shapes are not the model's; all of them are listed.
    """
    from rag_core.checkpoint.weights import check_weights

    if not isinstance(given, Mapping):
        raise TypeError(f"state_dict must map names to tensors, got {type(given).__name__}.")

    found = {ties.get(name, name): value for name, value in given.items()}
    found |= {name: value for name, value in given.items() if name in own}
    shapes = {name: tuple(each.shape) for name, each in own.items()}
    check_weights(
        shapes, {name: tuple(value.shape) for name, value in found.items()}, source="state_dict"
    )
    return {name: found[name] for name in own}


def _item_size(dtype: Any) -> int:
    size = getattr(dtype, "itemsize", None)
    return dtype.size if size is None else size
