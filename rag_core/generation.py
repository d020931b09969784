"""How to generate: the options of a `generate` call, where each comes from, and which are refused.

Options resolve as keyword > `generation_config=` > generation_config.json > the model's config
(docs/compatibility.md Q19, Q20). Nothing that a caller writes is ignored: an unknown name is an error (D9).
"""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import Any

from rag_core.backends import process_count
from rag_core.json_files import read_json

CONFIG_NAME = "generation_config.json"
_SAMPLING = ("temperature", "top_k", "top_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_RETURNED = ("output_scores", "output_attentions", "output_hidden_states")
_NUMBERS = (
    *("num_beams", "num_return_sequences", "max_length", "max_new_tokens", "min_length", "min_new_tokens"),
    *("temperature", "repetition_penalty", "encoder_repetition_penalty", "guidance_scale", "length_penalty"),
    *("top_k", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", *_SAMPLING[2:]),
)
_NESTED = ("decoder", "generator", "text_config")
_SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
# option -> the value at which it asks for nothing, and what it would ask for
_UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "num_beam_groups": (1, "group beam search"),
    "diversity_penalty": (0.0, "group beam search"),
    "constraints": (None, "constrained beam search"),
    "force_words_ids": (None, "constrained beam search"),
    "penalty_alpha": (None, "contrastive search"),
    "low_memory": (None, "contrastive search"),
    "prompt_lookup_num_tokens": (None, "assisted decoding"),
    "num_assistant_tokens": (5, "assisted decoding"),
    "num_assistant_tokens_schedule": ("heuristic", "assisted decoding"),
    "max_time": (None, "a time limit"),
}


@dataclass(init=False, eq=False)
class GenerationConfig:
    """Every option of transformers 4.37.2's `GenerationConfig`, with its default; other keys are kept and written back.

    Lengths count tokens and include the decoder's start token, except `max_new_tokens` and `min_new_tokens`.
    `eos_token_id` and `forced_eos_token_id` are one id or a list; `sequence_bias` maps tuples of ids to a bias.

    Raises:
        ValueError: an option has a value that can never work.
    """

    max_length: int = 20
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    early_stopping: bool | str = False
    max_time: float | None = None
    do_sample: bool = False
    num_beams: int = 1
    num_beam_groups: int = 1
    penalty_alpha: float | None = None
    use_cache: bool = True
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    diversity_penalty: float = 0.0
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: list[list[int]] | None = None
    force_words_ids: list | None = None
    renormalize_logits: bool = False
    constraints: list | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    remove_invalid_values: bool = False
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    forced_decoder_ids: list[list[int]] | None = None
    sequence_bias: dict[tuple[int, ...], float] | None = None
    guidance_scale: float | None = None
    low_memory: bool | None = None
    num_return_sequences: int = 1
    output_attentions: bool = False
    output_hidden_states: bool = False
    output_scores: bool = False
    return_dict_in_generate: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    encoder_no_repeat_ngram_size: int = 0
    decoder_start_token_id: int | None = None
    num_assistant_tokens: int = 5
    num_assistant_tokens_schedule: str = "heuristic"
    prompt_lookup_num_tokens: int | None = None
    generation_kwargs: dict[str, Any] = field(default_factory=dict)

    def __init__(self, **options: Any) -> None:
        options = copy.deepcopy(options)
        derived = bool(options.pop("_from_model_config", False))
        options.pop("_original_object_hash", None)
        object.__setattr__(self, "extra", {})
        for f in fields(self):
            object.__setattr__(self, f.name, options.pop(f.name, copy.copy(_DEFAULTS[f.name])))
        self.extra.update(options)
        object.__setattr__(self, "_from_model_config", derived)
        self.validate()

    def __setattr__(self, name: str, value: Any) -> None:
        # From here on the options are somebody's wish, no longer a copy of the model's config.
        object.__setattr__(self, "_from_model_config", False)
        if name in _FIELDS or name in ("extra", "_from_model_config"):
            object.__setattr__(self, name, value)
        else:
            self.extra[name] = value

    def __getattr__(self, name: str) -> Any:
        extra = self.__dict__.get("extra", {})
        if name in extra:
            return extra[name]
        raise AttributeError(f"GenerationConfig has no option {name!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def validate(self) -> None:
        """Refuses values that can never work.

        Raises:
            TypeError, ValueError: naming the option, the rule and what came.
        """
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
                raise TypeError(f"{name} must be a number; got {value!r}")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise ValueError(f"early_stopping must be True, False or 'never'; got {self.early_stopping!r}")
        for name in ("num_beams", "num_return_sequences", "max_length", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and (value < 1 or value != int(value)):
                raise ValueError(f"{name} must be a whole number and at least 1; got {value}")
        for name in ("temperature", "repetition_penalty", "encoder_repetition_penalty", "guidance_scale"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0; got {value}")
        for name in ("top_k", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length"):
            value = getattr(self, name)
            if value is not None and (value < 0 or value != int(value)):
                raise ValueError(f"{name} must be a whole number, 0 to switch it off; got {value}")
        for name in ("top_p", "typical_p"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie between 0 and 1; got {value}")
        for name in ("epsilon_cutoff", "eta_cutoff"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1; got {value}")

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The end tokens as a tuple; empty where there is none."""
        return as_ids(self.eos_token_id)

    def update(self, **kwargs: Any) -> dict[str, Any]:
        """Sets the options named; returns what it does not know."""
        unused = {}
        for name, value in kwargs.items():
            if name in _FIELDS or name in self.extra:
                setattr(self, name, value)
            else:
                unused[name] = value
        self.validate()
        return unused

    def to_dict(self) -> dict[str, Any]:
        """All options and the foreign keys, as a copy."""
        return copy.deepcopy({f.name: getattr(self, f.name) for f in fields(self)} | self.extra)

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **overrides: Any) -> GenerationConfig:
        """A config from a dict as `to_dict` or generation_config.json gives it; nothing of the caller is changed."""
        values = {**config_dict, **overrides}
        bias = values.get("sequence_bias")
        if isinstance(bias, list):
            values["sequence_bias"] = {tuple(ids): value for ids, value in bias}
        return cls(**values)

    @classmethod
    def from_model_config(cls, model_config: Any) -> GenerationConfig:
        """The options written in a model's config.

        An option still at its default is taken from the nested `generator` config (compatibility Q19), so a RAG model
        over bart-large-cnn has that model's beams, lengths and forced tokens.
        """
        values = dict(model_config) if isinstance(model_config, Mapping) else model_config.to_dict()
        chosen = {name: values[name] for name in _FIELDS if name in values}
        for part in _NESTED:
            nested = values.get(part)
            if nested is None:
                continue
            nested = nested if isinstance(nested, Mapping) else nested.to_dict()
            for name, default in _DEFAULTS.items():
                if name in nested and chosen.get(name, default) == default:
                    chosen[name] = nested[name]
        return cls(**chosen, _from_model_config=True)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> GenerationConfig:
        """Reads generation_config.json of a folder or a repository of the hub; other keywords override its options.

        Raises:
            OSError: there is no such file, or it is not JSON.
        """
        from rag_core import hub

        where, overrides = hub.split_hub_kwargs(kwargs)
        path = hub.resolve_file(os.fspath(pretrained_model_name_or_path), CONFIG_NAME, **where)
        return cls.from_dict(read_json(path), **overrides)

    def save_pretrained(self, save_directory: str | os.PathLike) -> Path:
        """Writes generation_config.json (the options off their defaults) into the folder; returns its path."""
        from rag_core import hub

        path = Path(save_directory) / CONFIG_NAME
        with hub.atomic_write(path) as draft:
            draft.write_text(self.to_json_string(), encoding="utf-8")
        return path

    def to_json_string(self) -> str:
        """The options off their defaults and the foreign keys, as transformers reads them back."""
        values = {k: v for k, v in self.to_dict().items() if k not in _FIELDS or v != _DEFAULTS[k]}
        if values.get("sequence_bias"):
            values["sequence_bias"] = [[list(ids), bias] for ids, bias in values["sequence_bias"].items()]
        if self._from_model_config:
            values["_from_model_config"] = True
        return json.dumps(values, indent=2, sort_keys=True) + "\n"


_FIELDS = frozenset(f.name for f in fields(GenerationConfig))
_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(GenerationConfig)} | {"generation_kwargs": {}}


def as_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """One id, a list of ids or None, as a tuple."""
    if value is None:
        return ()
    return tuple(int(i) for i in value) if isinstance(value, (list, tuple)) else (int(value),)


def as_generation_config(config: Any) -> GenerationConfig:
    """A copy of a GenerationConfig, transformers' included, or one made from a dict.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(config, GenerationConfig):
        return copy.deepcopy(config)
    if isinstance(config, Mapping):
        return GenerationConfig.from_dict(config)
    if hasattr(config, "to_dict"):
        return GenerationConfig.from_dict(config.to_dict())
    raise TypeError(f"generation_config must be a GenerationConfig or a dict; got {type(config).__name__}")


def resolve_options(base: Any, generation_config: Any = None, **keywords: Any) -> GenerationConfig:
    """The options of one call: keywords over `generation_config` over `base`.

    A `generation_config` stands for all options, as in 4.37.2, except that special tokens it leaves open come from
    `base`. `max_new_tokens` wins over `max_length`. Without a pad token the first end token pads.

    Args:
        base: the model's own options (generation_config.json, or made by `from_model_config`).
        generation_config: options for this call, or None.
        keywords: single options.

    Returns:
        A GenerationConfig of its own, checked, its `max_length` final.

    Raises:
        TypeError: a keyword that is no option.
        ValueError: an option this library does not offer, or values that do not go together.
    """
    base = as_generation_config(base)
    options = base if generation_config is None else as_generation_config(generation_config)
    for name in _SPECIAL_TOKENS:
        if getattr(options, name) is None:
            setattr(options, name, getattr(base, name))
    if keywords.pop("assistant_model", None):
        raise ValueError("assistant_model (assisted decoding) is not supported by generate(); leave it out")
    if keywords.pop("synced_gpus", None) and (processes := process_count()) > 1:
        raise ValueError(
            f"synced_gpus among {processes} processes (weights in parts, as with ZeRO stage 3) is not supported by "
            "generate(): gather the weights, so that each process has all of them, and leave it out"
        )
    unknown = sorted(set(keywords) - _FIELDS)
    if unknown:
        raise TypeError(f"generate() got unknown keyword(s) {', '.join(unknown)}; see GenerationConfig")
    if keywords.get("max_length") is not None and "max_new_tokens" not in keywords:
        options.max_new_tokens = None
    # None asks for the default, as 4.37.2's processors read it
    options.update(**{k: _DEFAULTS[k] if v is None else v for k, v in keywords.items()})
    if not options.do_sample:
        idle = [k for k in _SAMPLING if keywords.get(k) is not None and keywords[k] != _DEFAULTS[k]]
        if idle:
            warnings.warn(f"{', '.join(idle)} need(s) do_sample=True to have an effect", UserWarning, stacklevel=3)
    idle = [] if options.return_dict_in_generate else [name for name in _RETURNED if keywords.get(name)]
    if idle:
        warnings.warn(f"{', '.join(idle)} need(s) return_dict_in_generate=True to be returned", stacklevel=3)
    return _checked(options)


def _checked(options: GenerationConfig) -> GenerationConfig:
    for name, (nothing, what) in _UNSUPPORTED.items():
        value = getattr(options, name)
        if value is not None and value is not False and value != nothing:
            raise ValueError(f"{name}={value!r} ({what}) is not supported by generate(); leave it out")
    if options.decoder_start_token_id is None:
        options.decoder_start_token_id = options.bos_token_id
    if options.decoder_start_token_id is None:
        raise ValueError("decoder_start_token_id (or bos_token_id) must be set in the config or passed to generate()")
    if options.pad_token_id is None and options.eos_token_ids:
        options.pad_token_id = options.eos_token_ids[0]
    if options.max_new_tokens is not None:
        options.max_length = options.max_new_tokens + 1
    if options.max_length < 2:
        raise ValueError(f"max_length must be at least 2, as it counts the start token; got {options.max_length}")
    wanted, beams = options.num_return_sequences, options.num_beams
    if beams > 1 and wanted > beams:
        raise ValueError(f"num_return_sequences ({wanted}) must not be above num_beams ({beams}) in a beam search")
    if beams == 1 and wanted > 1 and not options.do_sample:
        raise ValueError(f"num_return_sequences={wanted} needs num_beams>={wanted} or do_sample=True")
    return options
