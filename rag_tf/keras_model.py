"""An adapter: the three public classes as a keras.Model.

Keras sees a model without layers of its own: the networks are tf.Modules that keep Hugging Face's
names, and Keras' trackers, autocasts and rules about inputs stay out of their way. So of
keras.Model's public members some are answered by the networks (defined here, in `KerasFit` and in
the models), some are `REFUSED` by name, and all others are Keras' own, which ask only the former.
`test_tf_keras.py` has the table.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from rag_tf import replicas, weight_files
from rag_tf.call_arguments import spread
from rag_tf.keras_fit import KerasFit
from rag_tf.modules import Module, compute_dtype, computing_in, variable_id
from rag_tf.weights import name_variable, named_variables

# Attributes that are no business of Keras' trackers, which wrap dicts and lists and refuse layers
# late.
_UNTRACKED = {
    "config",
    "retriever",
    "rag",
    "question_encoder",
    "generator",
    "ctx_encoder",
    "context_encoder_training",
}
_NO_VARIABLES = (
    "the networks have the weights of checkpoints and no others. A tf.Module of your own can hold "
    "a variable"
)
_NO_STATELESS_CALLS = "weights are variables. Use tf.function around a call"
# Members that need layers of Keras': what each would do, done otherwise.
REFUSED = {
    "add_variable": _NO_VARIABLES,
    "add_weight": _NO_VARIABLES,
    "compute_loss": "the loss is its own, of a call with labels: model(**batch).loss; compile names "
    "one for the retriever besides",
    "export": "rag_tf.export_saved_model(model, folder) writes generation as a SavedModel",
    "get_layer": "question_encoder and generator are its networks, named_parameters() their "
    "weights",
    "load_own_variables": "load_weights(file) reads what save_weights(file) wrote",
    "quantize": "its networks have no Keras layers. from_pretrained(folder, dtype='bfloat16') "
    "halves them",
    "save": "no .keras archive can hold its networks. save_pretrained(folder) writes config and "
    "weights, save_weights(file) the weights; with ModelCheckpoint set save_weights_only=True",
    "save_own_variables": "save_weights(file) writes all weights",
    "stateless_call": _NO_STATELESS_CALLS,
    "stateless_compute_loss": _NO_STATELESS_CALLS,
    "to_json": "config.to_json_string() is its config, which save_pretrained(folder) writes",
}


def _refusal(name: str, instead: str) -> Callable[..., Any]:
    def refused(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(f"{type(self).__name__} has no {name}: {instead}")

    refused.__name__ = name
    refused.__doc__ = f"Refused: {instead}.\n\nRaises:\n    ValueError: always."
    return refused


class KerasModel(KerasFit, keras.Model):
    """A keras.Model around networks that are not Keras layers."""

    def __init__(self) -> None:
        super().__init__(autocast=False)
        self.built = True
        self.supports_jit = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _UNTRACKED:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `call`."""
        args, kwargs = spread(args, kwargs)
        with self.precision():
            return self.call(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See `call`."""
        return self(*args, **kwargs)

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """Within it activations have the type of this model's Keras policy: bfloat16 with
        "mixed_bfloat16".
        """
        policy = self.dtype_policy
        # Whoever has chosen a type before, as a training run, has the say.
        if policy.compute_dtype == policy.variable_dtype or compute_dtype() is not None:
            yield
            return
        with computing_in(policy.compute_dtype):
            yield

    @property
    def trainable(self) -> bool:
        """Whether the weights learn.

        Setting it sets it for the networks, as Keras does for layers.
        """
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = bool(value)
        for part in self._parts().values():
            if hasattr(part, "trainable"):
                part.trainable = bool(value)

    def __reduce__(self) -> tuple[Any, ...]:
        """For copy.deepcopy and pickle: networks, config, retriever, precision policy, name and
        modes.

        What `compile` was told is left out.
        """
        attributes = {
            "_generation_config": self._generation_config,
            "_made_options": self._made_options,
            "_train_mode": self._train_mode,
            "_trainable": self._trainable,
            "name": self.name,
        }
        return _rebuilt, (
            type(self),
            self.config,
            self._parts(),
            self.rag.retriever,
            self.rag.context_encoder_training,
            self.dtype_policy.name,
            attributes,
        )

    @property
    def losses(self) -> list[Any]:
        """What `add_loss` was given; weights have no regularizers here."""
        return list(self._losses)

    @property
    def trainable_variables(self) -> list[Any]:
        """The weights that learn, tied ones once.

        `path` and `name` of each are its name in checkpoints.
        """
        if not self.trainable:
            return []
        learning: set[int] = set()
        for part in self._parts().values():
            learning |= set(map(variable_id, part.trainable_variables))
        return [variable for variable in self.variables if id(variable) in learning]

    @property
    def variables(self) -> list[Any]:
        """All weights, tied ones once; `path` and `name` of each are its name in checkpoints."""
        # Another library's networks have named their variables themselves.
        foreign: set[int] = set()
        for part in self._parts().values():
            if not isinstance(part, Module):
                foreign |= {id(variable) for _, variable in named_variables(part)}
        named = self._named()
        for name, variable in named:
            if id(variable) not in foreign:
                name_variable(variable, name)
        return [variable for _, variable in named]

    @property
    def weights(self) -> list[Any]:
        """All weights, tied ones once."""
        return self.variables

    @property
    def trainable_weights(self) -> list[Any]:
        """The weights that learn."""
        return self.trainable_variables

    @property
    def non_trainable_variables(self) -> list[Any]:
        """The weights that do not learn."""
        learning = set(map(id, self.trainable_variables))
        return [variable for variable in self.variables if id(variable) not in learning]

    @property
    def non_trainable_weights(self) -> list[Any]:
        """The weights that do not learn."""
        return self.non_trainable_variables

    def set_weights(self, weights: list[Any]) -> None:
        """Write values in the order of `weights`.

        Raises:
            ValueError: another number of arrays, or other shapes.
        """
        variables = self.variables
        if len(weights) != len(variables):
            raise ValueError(
                f"weights must be {len(variables)} arrays in the order of model.weights, got "
                f"{len(weights)}"
            )
        for (name, variable), array in zip(self._named(), weights, strict=True):
            if tuple(np.shape(array)) != tuple(variable.shape):
                raise ValueError(
                    f"weights: {name} must have shape {tuple(variable.shape)}, got "
                    f"{np.shape(array)}"
                )
        for variable, array in zip(variables, weights, strict=True):
            variable.assign(array)

    def save_weights(
        self, filepath: str | Path, overwrite: bool = True, max_shard_size: Any = None
    ) -> None:
        """Write all weights to one file under Hugging Face's names; see `save_pretrained` for a
        folder with the config. Of several processes the first one writes.

        As with Keras, .h5 files hold the optimizer's state, too, once it has made a step.

        Args:
            filepath: ends with ".safetensors", ".weights.h5" or ".h5".
            overwrite: whether a file may be replaced.
            max_shard_size: must be None: `save_pretrained` writes shards.

        Raises:
            ValueError: another ending, or `max_shard_size`.
            FileExistsError: the file is there and may not be replaced.
        """
        if max_shard_size is not None:
            raise ValueError(
                "max_shard_size: save_weights writes one file; save_pretrained(folder) writes "
                "shards"
            )
        if replicas.writes(self.distribute_strategy):
            optimizer = getattr(self, "optimizer", None)
            weight_files.write(filepath, dict(self._named()), overwrite, optimizer)

    def load_weights(
        self, filepath: str | Path, skip_mismatch: bool = False, **kwargs: Any
    ) -> None:
        """Read what `save_weights` wrote into the weights; their types stay.

        An optimizer that is built gets its state from an .h5 file that holds it; a warning says
        where it does not.

        Args:
            filepath: the file.
            skip_mismatch: pass over names and shapes that are not this model's, with a warning that
                counts them.
            **kwargs: none.

        Raises:
            OSError: no such file.
            TypeError: an unknown keyword.
            ValueError: names or shapes do not fit; all of them are listed, and nothing is written.
                With `skip_mismatch`: none fits.
        """
        if kwargs:
            raise TypeError(f"load_weights got unknown arguments: {', '.join(sorted(kwargs))}")
        optimizer = getattr(self, "optimizer", None)
        weight_files.read_into(filepath, dict(self._named()), skip_mismatch, optimizer)

    def _named(self) -> list[tuple[str, Any]]:
        """(name, variable) of all weights, tied ones under their first name."""
        first_names: dict[int, tuple[str, Any]] = {}
        for name, variable in self.named_parameters():
            first_names.setdefault(id(variable), (name, variable))
        return list(first_names.values())

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict[str, Any]:
        # tf.train.Checkpoint(model) would hold nothing otherwise.
        children = super()._trackable_children(save_type, **kwargs)
        parts = self._parts() if save_type == "checkpoint" else {}
        return children | {
            name: part
            for name, part in parts.items()
            if isinstance(part, tf.Module | keras.layers.Layer)
        }

    def summary(
        self,
        line_length: int | None = None,
        positions: Any = None,
        print_fn: Callable[[str], Any] | None = None,
        expand_nested: bool = False,
        show_trainable: bool = False,
        layer_range: Any = None,
    ) -> None:
        """Print the networks with their sizes.

        Args:
            line_length: width of the table.
            positions, layer_range: not used.
            print_fn: what is called with each line; None prints.
            expand_nested: list every weight with its shape, too.
            show_trainable: say which of them learn.
        """
        width = line_length or 98
        say = print_fn or print
        rule = "-" * width

        def row(name: str, shape: str, count: str) -> str:
            return f"{name:<{width - 36}}{shape:>20}{count:>16}"

        say(f"Model: {type(self).__name__}")
        say(rule)
        say(row("Network or weight", "Shape", "Parameters"))
        say(rule)
        learning = set(map(id, self.trainable_variables))
        totals = {True: 0, False: 0}
        seen: set[int] = set()
        for name, part in self._parts().items():
            rows = []
            size = 0
            for weight, variable in named_variables(part):
                if id(variable) in seen:
                    continue
                seen.add(id(variable))
                learns = id(variable) in learning
                count = int(np.prod(variable.shape))
                totals[learns] += count
                size += count
                label = f"  {weight}"
                if show_trainable:
                    label += " [learns]" if learns else " [fixed]"
                rows.append(row(label, str(tuple(variable.shape)), f"{count:,}"))
            say(row(f"{name} ({type(part).__name__})", "", f"{size:,}"))
            if expand_nested:
                for line in rows:
                    say(line)
        say(rule)
        say(
            f"Parameters: {sum(totals.values()):,}; trainable: {totals[True]:,}; not trainable: "
            f"{totals[False]:,}"
        )


for _name, _instead in REFUSED.items():
    setattr(KerasModel, _name, _refusal(_name, _instead))


def _rebuilt(
    kind: Any,
    config: Any,
    parts: dict[str, Any],
    retriever: Any,
    train_context_encoder: bool,
    policy: str,
    attributes: dict[str, Any],
) -> KerasModel:
    """A model out of what `KerasModel.__reduce__` took apart."""
    model = kind(config, parts["question_encoder"], parts["generator"], retriever)
    if "ctx_encoder" in parts:
        model.rag.set_context_encoder_for_training(parts["ctx_encoder"])
        model.rag.context_encoder_training = train_context_encoder
    # A new model has the policy of the moment.
    model.dtype_policy = policy
    for name, value in attributes.items():
        object.__setattr__(model, name, value)
    return model
