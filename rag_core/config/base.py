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
        # The plain types first: asking Integral of a type that it has not met walks through all
        # numbers of a framework.
        if option == "int" and isinstance(value, int | Integral) and not isinstance(value, bool):
            return True, int(value)
        if (
            option == "float"
            and isinstance(value, int | float | Real)
            and not isinstance(value, bool)
        ):
            return True, value if isinstance(value, int) else float(value)
        if option == "str" and isinstance(value, str):
            return True, value
        if option.startswith("list") and isinstance(value, list | tuple):
            return True, list(value)
        if option.startswith("dict") and isinstance(value, Mapping):
            return True, dict(value)
    return False, value


def _dtype_name(value: Any) -> str | None:
    """A dtype of any framework, or its name, as the plain name that `config.json` holds."""
    if value is None or isinstance(value, str):
        return value.removeprefix("torch.") if value else None
    name = getattr(value, "name", None) or getattr(value, "__name__", None) or str(value)
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
    pruned_heads: dict | None = field(default_factory=dict)
    tie_word_embeddings: bool = True
    chunk_size_feed_forward: int = 0
    is_encoder_decoder: bool = False
    is_decoder: bool = False
    cross_attention_hidden_size: int | None = None
    add_cross_attention: bool = False
    tie_encoder_decoder: bool = False
    architectures: list | None = None
    finetuning_task: str | None = None
    tokenizer_class: str | None = None
    prefix: str | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_id: int | list | None = None
    sep_token_id: int | None = None
    decoder_start_token_id: int | None = None
    task_specific_params: dict | None = None
    problem_type: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.attribute_map = {alias: name for alias, name in cls.aliases.items() if alias != "dtype"}
        if cls.model_type:
            KNOWN[cls.model_type] = cls

    def __init__(self, *args: Any, **values: Any) -> None:
        values = self._named(args, values)
        object.__setattr__(self, "extra", {})
        object.__setattr__(self, "name_or_path", "")
        given = copy.deepcopy(values)
        for name in ("_name_or_path", "name_or_path"):
            object.__setattr__(self, "name_or_path", given.pop(name, None) or self.name_or_path)
        self._take_type(given.pop("model_type", None))
        # A file may hold both (transformers writes some twice); the field's own name then counts.
        for alias, name in self.aliases.items():
            if alias in given:
                value = given.pop(alias)
                given.setdefault(name, value)
        for each in fields(self):
            setattr(self, each.name, _said(each, given.get(each.name), each.name in given))
            given.pop(each.name, None)
        labels = given.pop("num_labels", None)
        self.extra.update(given)
        if labels is not None and "id2label" not in given:
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
        for each in fields(self):
            value = _said(each, getattr(self, each.name))
            if each.name == "torch_dtype":
                value = _dtype_name(value)
            fits, plain = _typed(value, str(each.type))
            if not fits:
                raise TypeError(
                    f"{type(self).__name__}.{each.name} must be {each.type}, got {value!r}."
                )
            if isinstance(plain, float) and not math.isfinite(plain):
                raise ValueError(
                    f"{type(self).__name__}.{each.name} must be a finite number, got {plain!r}."
                )
            low = self.minimum.get(each.name)
            if low is not None and plain is not None and plain < low:
                raise ValueError(
                    f"{type(self).__name__}.{each.name} must be at least {low}, got {plain!r}."
                )
            high = self.maximum.get(each.name, None if low is None else MOST)
            if high is not None and plain is not None and plain > high:
                raise ValueError(
                    f"{type(self).__name__}.{each.name} must be at most {high:,}, got {plain:,}."
                )
            allowed = self.choices.get(each.name)
            if allowed and plain not in allowed:
                raise ValueError(
                    f"{type(self).__name__}.{each.name} must be one of {allowed}, got {plain!r}."
                )
            object.__setattr__(self, each.name, plain)

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

    @property
    def id2label(self) -> dict[int, str] | None:
        """Names of classes, for networks that classify; kept for what else reads the file."""
        found = self.extra.get("id2label", {i: f"LABEL_{i}" for i in range(self.labels)})
        return None if found is None else {int(i): name for i, name in found.items()}

    @id2label.setter
    def id2label(self, value: Mapping[Any, str] | None) -> None:
        self.extra["id2label"] = value if value is None else dict(value)

    @property
    def label2id(self) -> dict[str, int] | None:
        """The inverse of `id2label`."""
        if "label2id" in self.extra:
            return self.extra["label2id"]
        return {name: i for i, name in (self.id2label or {}).items()}

    @label2id.setter
    def label2id(self, value: Mapping[str, int] | None) -> None:
        self.extra["label2id"] = value if value is None else dict(value)

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
        values = config_dict
        if not isinstance(values, Mapping):
            raise TypeError(
                f"{cls.__name__}.from_dict needs a mapping, got {type(values).__name__}."
            )
        merged = dict(values)
        if overrides.pop("return_unused_kwargs", False):
            unused = {
                name: value for name, value in overrides.items() if not cls._hears(name, values)
            }
            used = {name: value for name, value in overrides.items() if name not in unused}
            return cls.from_dict(values, **used), unused  # type: ignore[return-value]
        for name in overrides:
            near = (
                None if cls._hears(name, values) else checks.nearest(name, cls.__dataclass_fields__)
            )
            if near is not None:
                raise TypeError(f"{cls.__name__} has no field {name!r}: did you mean {near!r}?")
        if "num_labels" in overrides:
            merged = {
                name: value
                for name, value in merged.items()
                if name not in ("id2label", "label2id")
            }
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
        found = {}
        for pair in update_str.split(","):
            name, _, text = pair.strip().partition("=")
            try:
                old = getattr(self, name)
                found[name] = text if isinstance(old, str) else json.loads(text.lower())
            except (AttributeError, ValueError) as error:
                raise ValueError(
                    "update_str must hold pairs name=value of numbers, true, false or texts, got "
                    f"{pair!r}: {error}"
                ) from error
            if type(found[name]) is not type(old) and not (
                isinstance(old, float) and isinstance(found[name], int)
            ):
                raise ValueError(
                    f"update_str must give {name} a value like {old!r}, got {text!r}. Set the "
                    "attribute"
                )
        changed = type(self).from_dict({**self.to_dict(), **found})
        self.update({name: getattr(changed, name) for name in found})

    def to_dict(self) -> dict[str, Any]:
        """All fields and foreign keys as plain Python, nothing shared with this object.

        Fields that transformers does not know are left out at their defaults.
        """
        defaults = {
            each.name: _said(each, None, given=False)
            for each in fields(self)
            if each.name in self.own
        }
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values = {
            name: value
            for name, value in values.items()
            if name not in defaults or value != defaults[name]
        }
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
        usual = {} if self.is_composition else type(self)().to_dict()
        return {
            name: value
            for name, value in self.to_dict().items()
            if name not in common
            or value != common[name]
            or (name in usual and value != usual[name])
        }

    def to_json_string(self, use_diff: bool = False) -> str:
        """The text of `config.json`, keys sorted.

        Args:
            use_diff: of `to_diff_dict` only. Files hold everything, as defaults are not those of
                every version.

        Raises:
            TypeError: a foreign key holds something that json has no form for.
        """
        values = self.to_diff_dict() if use_diff else self.to_dict()
        try:
            return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        except TypeError as error:
            raise TypeError(f"{type(self).__name__} can't be written as json: {error}.") from error

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


def _said(each: Any, value: Any, given: bool = True) -> Any:
    """A field's value; None is its default where None is no value of it."""
    if value is not None or (given and "None" in str(each.type)):
        return value
    return each.default_factory() if each.default_factory is not MISSING else each.default


def read_as(build: Callable[..., Any], name_or_path: str | Path, **kwargs: Any) -> Any:
    """What `build(values, **overrides)` makes of a `config.json`, with errors that say where it
    lies.
    """
    values, rest = read_config(name_or_path, **kwargs)
    with locating(f"config.json of {str(name_or_path)!r}"):
        built = build(values, **rest)
    config = built[0] if isinstance(built, tuple) else built
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
