"""What every configuration shares: known fields, foreign keys, Hugging Face's `config.json`.

A configuration is a dataclass whose fields are the names that this library acts on. Every other key
of a `config.json` (labels, generation options of transformers 4.x, whatever a later version
invents) is foreign: kept as it came, reachable as an attribute and written back.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from rag_core import checks
from rag_core.hub import Pushable, locating, read_json

MOST = 2**31 - 1  # of a size: what tensors and tables of both frameworks are numbered by

Config = TypeVar("Config", bound="PretrainedConfig")

KNOWN: dict[str, type[PretrainedConfig]] = {}
# Options of generation that every config of 4.37.2 has as attributes, at their defaults where they
# are not set.
_GENERATION = frozenset(
    "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty "
    "temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size "
    "encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores "
    "return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values "
    "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens".split()
)

_LABELS = ("num_labels", "id2label", "label2id")


def _typed(value: Any, kind: str) -> tuple[bool, Any]:
    """Whether `value` is of the written type (`"int | None"`), and the value as plain Python."""
    for option in kind.split(" | "):
        if option == "None" and value is None:
            return True, None
        if option == "bool" and isinstance(checks.plain(value), bool):
            return True, bool(value)
        # In Python True is an integer, in a configuration it is a mistake.
        if option in ("int", "float") and isinstance(value, bool):
            continue
        # The plain types first: asking Integral of a type that it has not met walks through all
        # numbers of a framework.
        if option == "int" and isinstance(value, int | Integral):
            return True, int(value)
        if option == "float" and isinstance(value, int):
            return True, value
        if option == "float" and isinstance(value, float | Real):
            return True, float(value)
        if option == "str" and isinstance(value, str):
            return True, value
        if option.startswith("list") and isinstance(value, list | tuple):
            return True, list(value)
        if option.startswith("dict") and isinstance(value, Mapping):
            return True, dict(value)
    return False, value


def _dtype_name(value: Any) -> str | None:
    """A dtype of any framework, or its name, as the plain name that `config.json` holds."""
    if isinstance(value, str | None) and not value:
        return None
    name = getattr(value, "name", None) or getattr(value, "__name__", None) or value
    return str(name).removeprefix("torch.")


@dataclass(init=False, repr=False, eq=False)
class PretrainedConfig(Pushable):
    """Base of all configurations; names and defaults are those of transformers 4.37.2.

    Attributes:
        return_dict: models return output objects rather than tuples.
        output_hidden_states: models return the hidden states of all layers.
        output_attentions: models return all attention probabilities.
        torch_dtype: name of the dtype of the stored weights (`dtype` in files of transformers 5).
        tie_word_embeddings: the output layer shares the input embeddings.
        prefix: text put in front of every generator input.
        name_or_path: where the configuration was read from; never written.
        extra: foreign keys, also reachable as attributes.

    Raises:
        TypeError: a field of the wrong type.
        ValueError: a field outside its range, or the `model_type` of another class.
    """

    model_type: ClassVar[str] = ""
    aliases: ClassVar[dict[str, str]] = {"dtype": "torch_dtype"}
    # other names of fields as transformers lists them; whether configs are parts of this one
    attribute_map: ClassVar[dict[str, str]] = {}
    is_composition: ClassVar[bool] = False
    # outputs that transformers' Trainer doesn't gather when it evaluates
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    # the order in which 4.37.2 takes arguments without their names
    positional: ClassVar[tuple[str, ...]] = ()
    # fields of this library's own, which are written where they are off their defaults
    own: ClassVar[tuple[str, ...]] = ()
    labels: ClassVar[int] = 2
    minimum: ClassVar[Mapping[str, float]] = {}
    maximum: ClassVar[Mapping[str, float]] = {}  # sizes that are not named end at `MOST`
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}
    readable: ClassVar[tuple[str, ...]] = ()

    return_dict: bool = True
    output_hidden_states: bool = False
    output_attentions: bool = False
    torchscript: bool = False
    torch_dtype: str | None = None
    use_bfloat16: bool = False
    tf_legacy_loss: bool = False
    pruned_heads: dict[Any, Any] | None = field(default_factory=dict)
    tie_word_embeddings: bool = True
    chunk_size_feed_forward: int = 0
    is_encoder_decoder: bool = False
    is_decoder: bool = False
    cross_attention_hidden_size: int | None = None
    add_cross_attention: bool = False
    tie_encoder_decoder: bool = False
    architectures: list[str] | None = None
    finetuning_task: str | None = None
    tokenizer_class: str | None = None
    prefix: str | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    sep_token_id: int | None = None
    decoder_start_token_id: int | None = None
    task_specific_params: dict[str, Any] | None = None
    problem_type: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.attribute_map = {alias: name for alias, name in cls.aliases.items() if alias != "dtype"}
        if cls.model_type:
            KNOWN[cls.model_type] = cls

    def __init__(self, *args: Any, **values: Any) -> None:
        values = copy.deepcopy(self._named(args, values))
        object.__setattr__(self, "extra", {})
        hidden_name = values.pop("_name_or_path", None)
        place = values.pop("name_or_path", None) or hidden_name or ""
        object.__setattr__(self, "name_or_path", place)
        self._take_type(values.pop("model_type", None))
        # A file may hold both (transformers writes some twice); the field's own name then counts.
        for alias, name in self.aliases.items():
            if alias in values:
                value = values.pop(alias)
                values.setdefault(name, value)
        for declared in fields(self):
            value = _default_of(declared)
            if declared.name in values:
                value = _or_default(declared, values.pop(declared.name))
            setattr(self, declared.name, value)
        labels = values.pop("num_labels", None)
        self.extra.update(values)
        if labels is not None and "id2label" not in values:
            self.num_labels = labels
        self._complete()
        self.validate()

    @classmethod
    def _named(cls, args: tuple[Any, ...], values: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments by name."""
        if len(args) > len(cls.positional):
            raise TypeError(
                f"{cls.__name__} takes {len(cls.positional)} arguments without names, got "
                f"{len(args)}."
            )
        twice = [name for name, _ in zip(cls.positional, args, strict=False) if name in values]
        if twice:
            raise TypeError(
                f"{cls.__name__} got several values for {', '.join(twice)}. Give each once."
            )
        return {**dict(zip(cls.positional, args, strict=False)), **values}

    def _take_type(self, kind: str | None) -> None:
        """Refuses the `model_type` of another class.

        The base class takes any (networks of the user's own).
        """
        if not self.model_type:
            object.__setattr__(self, "model_type", kind or "")
        elif kind not in (None, self.model_type, *self.readable):
            raise ValueError(
                f"{type(self).__name__} needs model_type {self.model_type!r}, got a configuration "
                f"of type {kind!r}; AutoConfig chooses the class by type."
            )

    def _complete(self) -> None:
        """Fills fields whose default depends on other fields."""

    def validate(self) -> None:
        """Checks every field; setting an attribute later is checked when the configuration is
        written.

        Raises:
            TypeError: a field of the wrong type.
            ValueError: a field outside its range or choices.
        """
        for declared in fields(self):
            name = declared.name
            place = f"{type(self).__name__}.{name}"
            value = _or_default(declared, getattr(self, name))
            if name == "torch_dtype":
                value = _dtype_name(value)
            fits, plain = _typed(value, str(declared.type))
            if not fits:
                raise TypeError(f"{place} must be {declared.type}, got {value!r}.")
            if isinstance(plain, float) and not math.isfinite(plain):
                raise ValueError(f"{place} must be a finite number, got {plain!r}.")
            if name in self.minimum and plain is not None:
                low = self.minimum[name]
                high = self.maximum.get(name, MOST)
                if plain < low:
                    raise ValueError(f"{place} must be at least {low}, got {plain!r}.")
                if plain > high:
                    raise ValueError(f"{place} must be at most {high:,}, got {plain:,}.")
            if name in self.choices and plain not in self.choices[name]:
                raise ValueError(f"{place} must be one of {self.choices[name]}, got {plain!r}.")
            object.__setattr__(self, name, plain)

    def __getattr__(self, name: str) -> Any:
        state = object.__getattribute__(self, "__dict__")
        if name in type(self).aliases:
            return getattr(self, type(self).aliases[name])
        if name == "_name_or_path":
            return state.get("name_or_path", "")
        if name in state.get("extra", {}):
            return state["extra"][name]
        if name in _GENERATION:
            from rag_core.generation import default_of

            return default_of(name)
        raise AttributeError(
            f"{type(self).__name__} has no attribute {name!r}: neither a field nor a key of its "
            "config.json."
        )

    def __setattr__(self, name: str, value: Any) -> None:
        name = type(self).aliases.get(name, name)
        if (
            hasattr(type(self), name)
            or name in type(self).__dataclass_fields__
            or name in ("name_or_path", "extra")
        ):
            object.__setattr__(self, name, value)
        else:
            self.extra[name] = value

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.to_dict() == other.to_dict()

    def __contains__(self, name: object) -> bool:
        """Whether it is a field or a foreign key, as PEFT asks for prompts before it tunes them."""
        return name in self.extra or name in type(self).__dataclass_fields__

    # Mutable, so never a key.
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def _repr_html_(self) -> str:
        from rag_core.display import facts_html

        return facts_html(type(self).__name__, self._chosen(), self.to_json_string())

    def _chosen(self) -> dict[str, Any]:
        """What is not as by default."""
        values = {declared.name: getattr(self, declared.name) for declared in fields(self)}
        usual = {declared.name: _default_of(declared) for declared in fields(self)}
        chosen = {name: value for name, value in values.items() if value != usual[name]}
        return {"model_type": self.model_type} | chosen

    @property
    def id2label(self) -> dict[int, str] | None:
        """Names of classes, for networks that classify; kept for what else reads the file."""
        if "id2label" not in self.extra:
            return {i: f"LABEL_{i}" for i in range(self.labels)}
        names = self.extra["id2label"]
        if names is None:
            return None
        return {int(i): name for i, name in names.items()}

    @id2label.setter
    def id2label(self, value: Mapping[Any, str] | None) -> None:
        if value is not None:
            value = dict(value)
        self.extra["id2label"] = value

    @property
    def label2id(self) -> dict[str, int] | None:
        """The inverse of `id2label`."""
        if "label2id" in self.extra:
            return self.extra["label2id"]
        return {name: i for i, name in (self.id2label or {}).items()}

    @label2id.setter
    def label2id(self, value: Mapping[str, int] | None) -> None:
        if value is not None:
            value = dict(value)
        self.extra["label2id"] = value

    @property
    def num_labels(self) -> int:
        """How many classes `id2label` names."""
        return len(self.id2label or {})

    @num_labels.setter
    def num_labels(self, value: int) -> None:
        value = checks.whole(0, 2**20)("num_labels", value)
        self.id2label = {i: f"LABEL_{i}" for i in range(value)}
        self.label2id = {f"LABEL_{i}": i for i in range(value)}

    @property
    def use_return_dict(self) -> bool:
        """Whether models return output objects (False under `torchscript`, as in transformers)."""
        return self.return_dict and not self.torchscript

    @classmethod
    def knows(cls, name: str) -> bool:
        """Whether `name` is a field of this class or another name for one."""
        return name in cls.__dataclass_fields__ or name in cls.aliases or name in _LABELS

    @classmethod
    def from_dict(cls: type[Config], config_dict: Mapping[str, Any], **overrides: Any) -> Config:
        """A configuration out of the contents of a `config.json`.

        Args:
            config_dict: keys and values, left untouched.
            **overrides: fields that replace those of `config_dict`; unknown names are kept as
                foreign keys, unless they look like a misspelt field. `return_unused_kwargs=True`
                returns a pair, with the unknown ones in place of keeping them.

        Raises:
            TypeError, ValueError: as the class itself.
        """
        if not isinstance(config_dict, Mapping):
            raise TypeError(
                f"config_dict must be a mapping, got {type(config_dict).__name__}. Read a file with "
                f"{cls.__name__}.from_pretrained."
            )
        returns_unused = overrides.pop("return_unused_kwargs", False)
        unknown = [name for name in overrides if not cls._hears(name, config_dict)]
        if returns_unused:
            unused = {name: overrides.pop(name) for name in unknown}
            return cls.from_dict(config_dict, **overrides), unused  # type: ignore[return-value]
        for name in unknown:
            near = checks.nearest(name, cls.__dataclass_fields__)
            if near is not None:
                raise TypeError(f"{cls.__name__} has no field {name!r}: did you mean {near!r}?")
        merged = dict(config_dict)
        if "num_labels" in overrides:
            merged.pop("id2label", None)
            merged.pop("label2id", None)
        for name, value in overrides.items():
            merged[cls.aliases.get(name, name)] = value
        return cls(**merged)

    @classmethod
    def _hears(cls, name: str, values: Mapping[str, Any]) -> bool:
        """Whether an override replaces something of these `values`, or is a field or an option
        of generation.
        """
        return cls.knows(name) or name in values or name in _GENERATION or name.startswith("_")

    @classmethod
    def from_pretrained(
        cls: type[Config], pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> Config:
        """Reads `config.json` of a folder or a repository of the hub.

        Args:
            pretrained_model_name_or_path: folder, path of a json file, or repository id.
            **kwargs: hub options (`cache_dir`, `token`, `revision`, `local_files_only`,
                `force_download`, `subfolder`); all others override fields (see `from_dict`).
                `trust_remote_code` says nothing: none is run.

        Raises:
            OSError: nothing there, or no readable json in it.
            TypeError, ValueError: as the class itself.
        """
        return read_as(cls.from_dict, pretrained_model_name_or_path, **kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `from_pretrained` would read, and the keywords that are no hub options."""
        return read_config(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_json_file(cls: type[Config], json_file: str | Path) -> Config:
        """A configuration out of a json file; errors as `from_pretrained`."""
        return read_as(cls.from_dict, Path(json_file))

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Sets each attribute named; checked when the configuration is written."""
        for name, value in config_dict.items():
            setattr(self, name, value)

    def update_from_string(self, update_str: str) -> None:
        """Sets fields from a text such as "dropout=0.2,scale_embedding=true"; checked at once.

        Args:
            update_str: pairs of a name and a value of the type that it has now.

        Raises:
            ValueError: a name that is not there, or a value of another type; nothing is changed.
        """
        updates: dict[str, Any] = {}
        for pair in update_str.split(","):
            name, _, text = pair.strip().partition("=")
            try:
                old = getattr(self, name)
                new = text
                if not isinstance(old, str):
                    new = json.loads(text.lower())
            except (AttributeError, ValueError) as error:
                raise ValueError(
                    "update_str must hold pairs name=value of numbers, true, false or texts, got "
                    f"{pair!r}: {error}"
                ) from error
            widens = isinstance(old, float) and isinstance(new, int)
            if type(new) is not type(old) and not widens:
                raise ValueError(
                    f"update_str must give {name} a value like {old!r}, got {text!r}. Set the "
                    "attribute"
                )
            updates[name] = new
        changed = type(self).from_dict({**self.to_dict(), **updates})
        self.update({name: getattr(changed, name) for name in updates})

    def to_dict(self) -> dict[str, Any]:
        """All fields and foreign keys as plain Python, nothing shared with this object.

        Fields that transformers does not know are left out at their defaults.
        """
        values: dict[str, Any] = {}
        for declared in fields(self):
            value = getattr(self, declared.name)
            if declared.name not in self.own or value != _default_of(declared):
                values[declared.name] = value
        values |= self.extra
        if self.model_type:
            values["model_type"] = self.model_type
        values["torch_dtype"] = _dtype_name(values.get("torch_dtype"))
        return copy.deepcopy(values)

    def to_diff_dict(self) -> dict[str, Any]:
        """`to_dict` without what is as in a bare `PretrainedConfig`.

        The class's own fields are all in it.
        """
        common = PretrainedConfig().to_dict()
        usual = common
        if not self.is_composition:
            usual = type(self)().to_dict()
        values = self.to_dict()
        for name in common.keys() & values.keys():
            if values[name] == common[name] == usual.get(name, common[name]):
                del values[name]
        return values

    def to_json_string(self, use_diff: bool = False) -> str:
        """The text of `config.json`, keys sorted.

        Args:
            use_diff: of `to_diff_dict` only. Files hold everything, as defaults are not those of
                every version.

        Raises:
            TypeError: a foreign key holds something that json has no form for.
        """
        write = self.to_dict
        if use_diff:
            write = self.to_diff_dict
        values = write()
        try:
            return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        except TypeError as error:
            raise TypeError(
                f"{type(self).__name__} must hold values that json has a form for, got: {error}. "
                "Remove or replace them."
            ) from error

    def to_json_file(self, json_file_path: str | Path, use_diff: bool = False) -> None:
        """Writes `to_json_string` into a file, whole or not at all."""
        from rag_core.hub import atomic_write

        with atomic_write(Path(json_file_path)) as path:
            path.write_text(self.to_json_string(use_diff), encoding="utf-8")

    def save_pretrained(
        self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Writes `config.json` into the folder, made if missing; transformers 4.x and 5.x read it.

        Args:
            save_directory: the folder.
            push_to_hub: whether to push the folder then.
            **kwargs: arguments of `rag_core.hub.push_folder`; see `rag_core.hub.Saving`.

        Raises:
            OSError: the folder or file can't be written.
            TypeError, ValueError: a field was set to something it can't be.
        """
        from rag_core.hub import Saving, atomic_write

        saving = Saving.of(push_to_hub=push_to_hub, **kwargs)
        if not saving.here:
            return
        self.validate()
        with atomic_write(Path(save_directory) / "config.json") as path:
            path.write_text(self.to_json_string(), encoding="utf-8")
        saving.finish(save_directory, self)


def _default_of(declared: Any) -> Any:
    if declared.default_factory is MISSING:
        return declared.default
    return declared.default_factory()


def _or_default(declared: Any, value: Any) -> Any:
    """A field's value; None is its default where None is no value of it."""
    if value is None and "None" not in str(declared.type):
        return _default_of(declared)
    return value


def read_as(build: Callable[..., Any], name_or_path: str | Path, **kwargs: Any) -> Any:
    """What `build(values, **overrides)` makes of a `config.json`, with errors that say where it
    lies.
    """
    values, rest = read_config(name_or_path, **kwargs)
    with locating(f"config.json of {str(name_or_path)!r}"):
        built = build(values, **rest)
    config = built
    if isinstance(built, tuple):  # return_unused_kwargs: the config, and what it took no part of
        config = built[0]
    object.__setattr__(config, "name_or_path", str(name_or_path))
    return built


def read_config(name_or_path: str | Path, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The raw contents of a `config.json`, and the keyword arguments that are no hub options.

    Raises:
        OSError: nothing there, or no json object in it.
    """
    from rag_core.hub import checked_name, resolve_file, split_hub_kwargs

    kwargs.pop("trust_remote_code", None)  # nothing of a configuration could be run
    hub, rest = split_hub_kwargs(kwargs)
    path = Path(checked_name(name_or_path))
    if path.suffix != ".json" or not path.is_file():
        path = resolve_file(name_or_path, "config.json", **hub)
    return read_json(path), rest
