"""How to generate: the options of a `generate` call, where each comes from, and which are refused.

Options resolve as keyword > `generation_config=` > from_pretrained's > generation_config.json > the
model's config (docs/compatibility.md Q19, Q20). Nothing that a caller writes is ignored: an unknown name is an
error (D9).
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rag_core import checks
from rag_core.backends import process_count
from rag_core.hub import Pushable, locating, read_json

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from rag_core.generation.keywords import GenerationOptions

Method = TypeVar("Method", bound=Callable[..., Any])

CONFIG_NAME = "generation_config.json"
_SAMPLING = ("temperature", "top_k", "top_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_RETURNED = ("output_scores", "output_attentions", "output_hidden_states")
_NESTED = ("decoder", "generator", "text_config")
_SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
# Room for as many is made beforehand.
_MOST = {"max_length": 2**16, "num_beams": 2**16, "num_return_sequences": 2**16}
# Factors beyond it make scores in float32 infinite, which are no order of tokens any more.
MOST_FACTOR = 1e30
# With powers of a length beyond it a score may be no float any more, or be divided by 0.
_MOST_POWER = 32
# What a call takes beside its options.
_OF_THE_CALL = frozenset(
    "logits_processor stopping_criteria prefix_allowed_tokens_fn streamer assistant_model "
    "synced_gpus seed negative_prompt_ids negative_prompt_attention_mask".split()
)
# option -> the value at which it asks for nothing, and what it would ask for
_UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "num_beam_groups": (1, "group beam search"),
    "diversity_penalty": (0.0, "group beam search"),
    "constraints": (None, "constrained beam search"),
    "force_words_ids": (None, "constrained beam search"),
    "penalty_alpha": (None, "contrastive search"),
    "low_memory": (None, "contrastive search"),
    "prompt_lookup_num_tokens": (None, "assisted decoding"),
    "max_time": (None, "a time limit"),
    # of later versions of transformers, kept where a file or an object holds them
    "min_p": (None, "min-p sampling"),
    "top_h": (None, "top-H sampling"),
    "dola_layers": (None, "DoLa decoding"),
    "stop_strings": (None, "stopping at texts"),
    "token_healing": (None, "token healing"),
    "watermarking_config": (None, "watermarks"),
    "output_logits": (None, "scores before the rules"),
}
# Without an assistant model they say nothing, and their defaults changed; asked for in a call, they
# are refused.
_OF_ASSISTANTS = {"num_assistant_tokens": 5, "num_assistant_tokens_schedule": "heuristic"}
# Names of later versions that change no token here. Listed, as some look like misspelt options.
_LATER = frozenset(_UNSUPPORTED) | frozenset(
    "assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight "
    "assistant_lookbehind cache_config cache_implementation compile_config "
    "continuous_batching_config custom_generate disable_compile is_assistant max_cache_len "
    "max_matching_ngram_size prefill_chunk_size return_legacy_cache speculation_type "
    "target_lookbehind transformers_version use_model_defaults use_mtp".split()
)


@dataclass(init=False, eq=False, repr=False)
class GenerationConfig(Pushable):
    """Every option of transformers 4.37.2's `GenerationConfig`, with its default; other keys are
    kept and written back.

    None stands for the default. What is marked (refused) is kept in files, and refused by `generate`.

    Attributes:
        max_length: tokens of a sequence at most, the decoder's start token included.
        max_new_tokens: the same without the start token or a given beginning; goes before it.
        min_length: no end token before so many tokens, the start token included.
        min_new_tokens: the same without the start token or a given beginning.
        early_stopping: end a beam search with K finished beams: True, False (by scores) or "never".
        max_time: seconds (refused).
        do_sample: draw tokens by their probabilities instead of taking the best.
        num_beams: K, beams of a search; 1 is greedy, or plain sampling.
        num_beam_groups: group beam search (refused).
        penalty_alpha: contrastive search (refused).
        use_cache: keep keys and values of the tokens so far; False computes them again.
        temperature: of sampling: above 0; below 1 sharpens, above 1 flattens.
        top_k: of sampling: the k likeliest tokens only; 0 is all.
        top_p: of sampling: the likeliest tokens that add up to this probability.
        typical_p: of sampling: tokens about as surprising as expected, up to this probability.
        epsilon_cutoff: of sampling: no token less likely than this; 0 is none.
        eta_cutoff: of sampling: the same, relaxed where the entropy is high; 0 is none.
        diversity_penalty: group beam search (refused).
        repetition_penalty: above 1 makes tokens that were written less likely.
        encoder_repetition_penalty: above 1 makes tokens of the contexts likelier.
        length_penalty: of beams: above 0 favours long sequences, below 0 short ones.
        no_repeat_ngram_size: no n tokens in a row twice; 0 is off.
        bad_words_ids: sequences of token ids that are never written.
        force_words_ids: constrained beam search (refused).
        renormalize_logits: make scores log-probabilities again after the rules.
        constraints: constrained beam search (refused).
        forced_bos_token_id: the first token after the start token.
        forced_eos_token_id: the last token, one id or several, where `max_length` ends a sequence.
        remove_invalid_values: replace NaN and infinite scores, which are an error otherwise.
        exponential_decay_length_penalty: (start, factor): from there on the end grows likelier.
        suppress_tokens: token ids that are never written.
        begin_suppress_tokens: token ids that are not written first.
        forced_decoder_ids: pairs (place, token id) of tokens that must stand there.
        sequence_bias: tuples of token ids -> what is added to the score of their last token.
        guidance_scale: above 1: away from what the generator says without the documents.
        low_memory: contrastive search (refused).
        num_return_sequences: sequences for each question.
        output_attentions: return them, with `return_dict_in_generate`.
        output_hidden_states: return them, with `return_dict_in_generate`.
        output_scores: return each step's scores, with `return_dict_in_generate`.
        return_dict_in_generate: return a `GenerateOutput` instead of the ids alone.
        pad_token_id: what fills short sequences up; by default the first end token.
        bos_token_id: the start token where `decoder_start_token_id` is None.
        eos_token_id: the end token, one id or several.
        encoder_no_repeat_ngram_size: no n tokens in a row that a context has; 0 is off.
        decoder_start_token_id: the token that every sequence starts with.
        num_assistant_tokens: assisted decoding (refused).
        num_assistant_tokens_schedule: assisted decoding (refused).
        prompt_lookup_num_tokens: assisted decoding (refused).
        generation_kwargs: kept, and not read.

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
    force_words_ids: list[Any] | None = None
    renormalize_logits: bool = False
    constraints: list[Any] | None = None
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

    def __init__(self, **options: Unpack[GenerationOptions]) -> None:
        for name in options:
            _refuse_misspelt(name, "GenerationConfig got an unknown option {0}{1}", TypeError)
        self._fill(options)
        self.validate()
        _warn_of_idle(self, options)

    @classmethod
    def _read(cls, options: Mapping[str, Any]) -> GenerationConfig:
        """A config of what a file or another library's object says, whose other keys are theirs."""
        config = cls.__new__(cls)
        config._fill(options)
        return config

    def _fill(self, options: Mapping[str, Any]) -> None:
        options = dict(options)
        derived = bool(options.pop("_from_model_config", False))
        options.pop("_original_object_hash", None)
        object.__setattr__(self, "extra", {})
        object.__setattr__(self, "_said", frozenset(options))
        for name, default in _DEFAULTS.items():
            setattr(self, name, options.pop(name, default))
        for name in options:
            _refuse_of_the_call(name)
        self.extra.update(copy.deepcopy(options))
        object.__setattr__(self, "_from_model_config", derived)

    def __setattr__(self, name: str, value: Any) -> None:
        # From here on the options are somebody's wish, no longer a copy of the model's config.
        object.__setattr__(self, "_from_model_config", False)
        if name in _FIELDS:
            object.__setattr__(self, name, _checked_option(name, value))
        elif name in ("extra", "_from_model_config"):
            object.__setattr__(self, name, value)
        else:
            _refuse_misspelt(name, "GenerationConfig has no option {0}{1}", AttributeError)
            self.extra[name] = value

    def __getattr__(self, name: str) -> Any:
        extra = self.__dict__.get("extra", {})
        if name in extra:
            return extra[name]
        raise AttributeError(f"GenerationConfig has no option {name!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string(ignore_metadata=True)}"

    def _repr_html_(self) -> str:
        from rag_core.display import facts_html

        return facts_html(type(self).__name__, self.to_diff_dict(), self.to_json_string())

    def validate(self, is_init: bool = False) -> None:
        """Refuses options that cannot go together; each alone is checked when it is set.

        Args:
            is_init: changes nothing, and is taken as transformers takes it.

        Raises:
            ValueError: naming the options, the rule and what came.
        """
        wanted, beams = self.num_return_sequences, self.num_beams
        if beams > 1 and wanted > beams:
            raise ValueError(
                f"num_return_sequences ({wanted}) must not be above num_beams ({beams}) in a beam "
                "search"
            )
        if beams == 1 and wanted > 1 and not self.do_sample:
            raise ValueError(
                f"num_return_sequences={wanted} needs num_beams>={wanted} or do_sample=True"
            )

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The end tokens as a tuple; empty where there is none."""
        return as_ids(self.eos_token_id)

    @staticmethod
    def _get_default_generation_params() -> dict[str, Any]:
        """Each option's default; Seq2SeqTrainer of transformers 5 asks for it by this name."""
        return copy.deepcopy(_DEFAULTS)

    def update(self, *, defaults_only: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Sets the options named, with `defaults_only` those that are None.

        Returns what it does not know.
        """
        unused = {}
        for name, value in kwargs.items():
            if defaults_only and getattr(self, name, None) is not None:
                continue
            if name in _FIELDS or name in self.extra:
                setattr(self, name, value)
            else:
                unused[name] = value
        self.validate()
        return unused

    def follow(self, model_config: Any) -> None:
        """Takes all options from a model's config, as `from_model_config` does.

        A model asks for it while its options are those of its config and nobody has set one.
        """
        made = type(self).from_model_config(model_config)
        for name in _FIELDS:
            object.__setattr__(self, name, getattr(made, name))

    def to_dict(self) -> dict[str, Any]:
        """All options and the foreign keys, as a copy."""
        return copy.deepcopy({f.name: getattr(self, f.name) for f in fields(self)} | self.extra)

    def to_diff_dict(self) -> dict[str, Any]:
        """The options off their defaults and the foreign keys, as a copy."""
        return {
            name: value
            for name, value in self.to_dict().items()
            if name not in _FIELDS or value != _DEFAULTS[name]
        }

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **overrides: Any
    ) -> Any:
        """A config from a dict as `to_dict` or generation_config.json gives it; nothing of the
        caller is changed.

        Args:
            config_dict: options; None stands for the default, unknown keys are kept.
            return_unused_kwargs: return a pair with the overrides that were not used: none, as
                unknown ones are kept.
            **overrides: options that replace those of `config_dict`.
        """
        for name in overrides:
            _refuse_misspelt(name, "GenerationConfig got an unknown option {0}{1}", TypeError)
        config = cls._read({**config_dict, **overrides})
        return (config, {}) if return_unused_kwargs else config

    @classmethod
    def from_model_config(cls, model_config: Any) -> GenerationConfig:
        """The options written in a model's config.

        An option still at its default is taken from the nested `generator` config (compatibility
        Q19), so a RAG model over bart-large-cnn has that model's beams, lengths and forced tokens.
        """
        values = _as_dict(model_config)
        chosen = {name: checks.plain(values[name]) for name in _FIELDS if name in values}
        for part in _NESTED:
            nested = values.get(part)
            if nested is None:
                continue
            nested = _as_dict(nested)
            for name, default in _DEFAULTS.items():
                if nested.get(name) is not None and chosen.get(name, default) in (None, default):
                    chosen[name] = nested[name]
        place = getattr(model_config, "name_or_path", "")
        with locating(f"config.json of {place!r}") if place else nullcontext():
            return cls._read({**chosen, "_from_model_config": True})

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str | os.PathLike[str],
        config_file_name: str | os.PathLike[str] | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Reads generation_config.json of a folder or a repository of the hub; other keywords
        override its options.

        Args:
            pretrained_model_name: folder, or repository id.
            config_file_name: another name of the file.
            return_unused_kwargs: see `from_dict`.
            **kwargs: hub options, and options that replace those of the file.

        Raises:
            OSError: there is no such file, or it is not JSON.
            TypeError, ValueError: an option has a value that can never work; the message starts
                with the file.
        """
        from rag_core.hub import resolve_file, split_hub_kwargs

        where, overrides = split_hub_kwargs(kwargs)
        name = _file_name(config_file_name)
        path = resolve_file(os.fspath(pretrained_model_name), name, **where)
        values = read_json(path)
        with locating(f"{name} of {os.fspath(pretrained_model_name)!r}"):
            cls.from_dict(values)
        if meant := {each: near for each in values if (near := _meant(each)) is not None}:
            hints = ", ".join(f"{each!r} (did you mean {near!r}?)" for each, near in meant.items())
            checks.warn(f"{path}: {hints}: no option, kept and passed over")
        return cls.from_dict(values, return_unused_kwargs, **overrides)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        config_file_name: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Path:
        """Writes generation_config.json (the options off their defaults) into the folder; returns
        its path.

        Args:
            save_directory: the folder, made if missing.
            config_file_name: another name of the file.
            **kwargs: `push_to_hub`, and then arguments of `rag_core.hub.push_folder`; see
                `rag_core.hub.Saving`.

        Raises:
            OSError: nothing could be written; what was there before is unchanged.
            ValueError: options that cannot go together.
        """
        from rag_core.hub import Saving, atomic_write

        saving = Saving.of(**kwargs)
        path = Path(save_directory) / _file_name(config_file_name)
        if saving.here:
            self.validate()
            with atomic_write(path) as draft:
                draft.write_text(self.to_json_string(), encoding="utf-8")
            saving.finish(Path(save_directory), self)
        return path

    def to_json_string(self, use_diff: bool = True, ignore_metadata: bool = False) -> str:
        """The options and the foreign keys, as transformers reads them back.

        Args:
            use_diff: leave out the options at their defaults.
            ignore_metadata: leave out what says where the options come from.
        """
        values = self.to_dict()
        if use_diff:
            values = self.to_diff_dict()
        if values.get("sequence_bias"):
            values["sequence_bias"] = [
                [list(ids), bias] for ids, bias in values["sequence_bias"].items()
            ]
        if self._from_model_config:
            values["_from_model_config"] = True
        if ignore_metadata:
            metadata = [name for name in values if name.startswith("_")]
            for name in (*metadata, "transformers_version"):
                values.pop(name, None)
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Writes `to_json_string` into a file, whole or not at all."""
        from rag_core.hub import atomic_write

        with atomic_write(Path(json_file_path)) as draft:
            draft.write_text(self.to_json_string(use_diff), encoding="utf-8")


_FIELDS = frozenset(f.name for f in fields(GenerationConfig))
_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(GenerationConfig)} | {
    "generation_kwargs": {}
}


def with_options(method: Method) -> Method:
    """Add to a method's docstring what each option does, as `GenerationConfig` describes it."""
    _, _, after = (GenerationConfig.__doc__ or "").partition("Attributes:\n")
    described = after.partition("\n\n")[0]
    # without docstrings (python -OO) there is nothing to add to
    if method.__doc__ and described:
        method.__doc__ = (
            f"{inspect.cleandoc(method.__doc__)}\n\nOptions, as keywords or together in "
            "generation_config=GenerationConfig(...), with the defaults of what neither call nor "
            f"model says:\n{_with_defaults(described)}\n"
        )
    return method


def _with_defaults(described: str) -> str:
    lines = []
    for line in inspect.cleandoc(described).splitlines():
        name, _, meaning = line.partition(": ")
        lines.append(f"    {name} = {_DEFAULTS[name]!r}: {meaning}")
    return "\n".join(lines)


def _biases(value: Any) -> dict[tuple[int, ...], float]:
    """`sequence_bias` from a mapping, or from pairs as JSON has them."""
    if not isinstance(value, Mapping | list | tuple):
        raise TypeError
    pairs = _pairs(value)
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError
    biases = {}
    for ids, bias in pairs:
        if isinstance(ids, str) or isinstance(bias, bool) or not isinstance(bias, int | float):
            raise TypeError
        biases[tuple(ids)] = bias
    # An id may be looked at by its rule, an empty sequence says nothing.
    checks.sequences().convert(list(biases))
    if any(math.isnan(bias) for bias in biases.values()):
        raise ValueError
    return biases


def _pairs(value: Any) -> list[tuple[Any, ...]]:
    if isinstance(value, Mapping):
        return list(value.items())
    return [tuple(each) for each in value]


def _decay(value: Any) -> tuple[int, float]:
    if not isinstance(value, list | tuple):
        raise TypeError
    start, factor = value
    return _COUNT.convert(start), _FACTOR.convert(factor)


def _forced(value: Any) -> Any:
    if not isinstance(value, Mapping | list | tuple):
        raise TypeError
    place, token = _COUNT, checks.token_id()
    pairs = []
    for at, id_ in _pairs(value):
        # None forces nothing, and is kept.
        pairs.append([place.convert(at), id_ if id_ is None else token.convert(id_)])
    return pairs


_ANYTHING = checks.Rule("", copy.deepcopy, optional=True)
_ON = checks.switch()
_COUNT = checks.whole(0, checks.MOST_TOKENS)
_FACTOR = checks.number(0, MOST_FACTOR, above=True)
_RULES: dict[str, checks.Rule] = {
    "max_length": checks.whole(1),
    "max_new_tokens": checks.whole(1, optional=True),
    "min_length": _COUNT,
    "min_new_tokens": replace(_COUNT, optional=True),
    "early_stopping": checks.switch("never"),
    "max_time": checks.number(optional=True),
    "num_beams": checks.whole(1),
    "num_beam_groups": checks.whole(1),
    "penalty_alpha": checks.number(optional=True),
    "temperature": _FACTOR,
    "top_k": _COUNT,
    "top_p": checks.number(0, 1),
    "typical_p": checks.number(0, 1),
    "epsilon_cutoff": checks.number(0, 1, below=True),
    "eta_cutoff": checks.number(0, 1, below=True),
    "diversity_penalty": checks.number(),
    "repetition_penalty": _FACTOR,
    "encoder_repetition_penalty": _FACTOR,
    "length_penalty": checks.number(-_MOST_POWER, _MOST_POWER),
    "no_repeat_ngram_size": _COUNT,
    "encoder_no_repeat_ngram_size": _COUNT,
    "bad_words_ids": checks.sequences(),
    "forced_bos_token_id": checks.token_id(),
    "forced_eos_token_id": checks.token_ids(),
    "exponential_decay_length_penalty": checks.Rule(
        f"a pair (start, factor) of {_COUNT.what} and {_FACTOR.what}",
        _decay,
        optional=True,
    ),
    "suppress_tokens": checks.id_list(),
    "begin_suppress_tokens": checks.id_list(),
    "forced_decoder_ids": checks.Rule(
        "pairs of a place and a token id, as in [[1, 5]]", _forced, True, "hold "
    ),
    "sequence_bias": checks.Rule(
        "non-empty sequences of token ids with a number each, as in {(4, 5): -1.0}",
        _biases,
        True,
        "hold ",
    ),
    "guidance_scale": replace(_FACTOR, optional=True),
    "num_return_sequences": checks.whole(1),
    **{name: checks.token_id() for name in _SPECIAL_TOKENS if name != "eos_token_id"},
    "eos_token_id": checks.token_ids(),
    **{f.name: _ON for f in fields(GenerationConfig) if f.default is False or f.default is True},
}
_RULES |= {"early_stopping": checks.switch("never"), "low_memory": checks.switch(optional=True)}


def _checked_option(name: str, value: Any) -> Any:
    """An option's value as it is kept: None is the default, arrays are lists.

    Raises:
        TypeError, ValueError: naming the option, the rule and what came.
    """
    return checks.option(_RULES.get(name, _ANYTHING), name, value, _DEFAULTS[name])


def _refuse_of_the_call(name: str) -> None:
    if name in _OF_THE_CALL:
        raise ValueError(f"{name} is no option of GenerationConfig. Pass it to generate() itself.")


def _refuse_misspelt(name: str, message: str, kind: type[Exception]) -> None:
    """Refuses a name that looks like an option; others are foreign keys, which are kept."""
    _refuse_of_the_call(name)
    near = _meant(name)
    if near is not None:
        raise kind(message.format(repr(name), f": did you mean {near!r}?"))


def _meant(name: str) -> str | None:
    """The option that a name which is none looks like."""
    if name in _FIELDS or name in _LATER or name in _OF_ASSISTANTS or name.startswith("_"):
        return None
    return checks.nearest(name, _FIELDS)


def _warn_of_idle(options: GenerationConfig, given: Mapping[str, Any]) -> None:
    """One warning of options that were given and have no effect as the others are."""
    if options.do_sample:
        return
    idle = [
        name
        for name in _SAMPLING
        if given.get(name) is not None and getattr(options, name) != _DEFAULTS[name]
    ]
    if idle:
        checks.warn(f"{', '.join(idle)} need(s) do_sample=True to have an effect")


def _as_dict(config: Any) -> dict[str, Any]:
    return dict(config) if isinstance(config, Mapping) else config.to_dict()


def _file_name(name: str | os.PathLike[str] | None) -> str:
    return CONFIG_NAME if name is None else os.fspath(name)


def default_of(name: str) -> Any:
    """An option's default."""
    return copy.copy(_DEFAULTS[name])


def as_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """One id, a list of ids or None, as a tuple."""
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        value = [value]
    return tuple(int(i) for i in value)


def as_generation_config(config: Any) -> GenerationConfig:
    """A copy of a GenerationConfig, transformers' included, or one made from a dict.

    Raises:
        TypeError: it is neither, or a key of the dict is a misspelt option.
    """
    if isinstance(config, GenerationConfig):
        return copy.deepcopy(config)
    if isinstance(config, Mapping):
        return GenerationConfig.from_dict({}, **config)
    if hasattr(config, "to_dict"):
        return GenerationConfig.from_dict(config.to_dict())
    raise TypeError(
        f"generation_config must be a GenerationConfig or a dict, got {type(config).__name__}"
    )


def own_options(options: Any, model_config: Any, head: str | None = None) -> GenerationConfig:
    """A model's own options, where a generation_config.json or somebody says only some of them.

    Special tokens that are left open, or None, are the model's. With the head "sequence" all options
    that the file does not name are the generator's, as 4.37.2's RAG-Sequence asks its generator
    alone (compatibility Q20).

    Args:
        options: what is said.
        model_config: the model's config, which says the rest.
        head: of the model, where the options come from its file; None where they are somebody's
            wish.
    """
    options = as_generation_config(options)
    derived = options._from_model_config
    source, left_open = model_config, list(_SPECIAL_TOKENS)
    if head == "sequence":
        source, left_open = getattr(model_config, "generator", model_config), sorted(_FIELDS)
    rest = GenerationConfig.from_model_config(source)
    for name in left_open:
        is_open = name in _SPECIAL_TOKENS or name not in options._said
        if is_open and getattr(options, name) == _DEFAULTS[name]:
            setattr(options, name, getattr(rest, name))
    object.__setattr__(options, "_from_model_config", derived)
    return options


def resolve_options(base: Any, generation_config: Any = None, **keywords: Any) -> GenerationConfig:
    """The options of one call: keywords over `generation_config` over `base`.

    A `generation_config` stands for all options, as in 4.37.2, except that special tokens it leaves
    open come from `base`. `max_new_tokens` wins over `max_length`. Without a pad token the first
    end token pads. None is an option's default, wherever it comes from.

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
    options = base
    if generation_config is not None:
        options = as_generation_config(generation_config)
    for name in _SPECIAL_TOKENS:
        if getattr(options, name) is None:
            setattr(options, name, getattr(base, name))
    if keywords.pop("assistant_model", None):
        raise ValueError(
            "assistant_model (assisted decoding) is not supported by generate(); leave it out"
        )
    # No walrus: AutoGraph, which reads a caller's tf.function down to here, can't.
    if keywords.pop("synced_gpus", None) and process_count() > 1:
        raise ValueError(
            f"synced_gpus among {process_count()} processes (weights in parts, as with ZeRO stage 3) is "
            "not supported by generate(): gather the weights, so that each process has all of "
            "them, and leave it out"
        )
    unknown = sorted(set(keywords) - _FIELDS)
    if unknown:
        hints = []
        for name in unknown:
            near = checks.nearest(name, _FIELDS)
            hints.append(f"{name} (did you mean {near}?)" if near else name)
        raise TypeError(
            f"generate() got unknown keyword(s) {', '.join(hints)}; see GenerationConfig"
        )
    for name, nothing in _OF_ASSISTANTS.items():
        if keywords.get(name) is not None and keywords[name] != nothing:
            raise ValueError(
                f"{name}={keywords[name]!r} (assisted decoding) is not supported by generate(); "
                "leave it out"
            )
    if keywords.get("max_length") is not None and "max_new_tokens" not in keywords:
        options.max_new_tokens = None
    options.update(**keywords)
    # An object of this class has said so when it was made.
    made_here = generation_config is None or isinstance(generation_config, GenerationConfig)
    _warn_of_idle(options, keywords if made_here else options.to_dict())
    idle = [name for name in _RETURNED if keywords.get(name)]
    if idle and not options.return_dict_in_generate:
        checks.warn(f"{', '.join(idle)} need(s) return_dict_in_generate=True to be returned")
    return _checked(options)


def asked_rows(name: str, value: Any) -> int:
    """`num_beams` or `num_return_sequences`, each of which is a row of the search.

    Raises:
        TypeError, ValueError: naming the option, the rule and what came.
    """
    return _ROWS(name, value)


_ROWS = checks.whole(1, _MOST["num_beams"])


def _checked(options: GenerationConfig) -> GenerationConfig:
    for name, (nothing, what) in _UNSUPPORTED.items():
        value = getattr(options, name) if name in _FIELDS else options.extra.get(name)
        if value is not None and value is not False and value != nothing:
            raise ValueError(
                f"{name}={value!r} ({what}) is not supported by generate(); leave it out"
            )
    if options.decoder_start_token_id is None:
        options.decoder_start_token_id = options.bos_token_id
    if options.decoder_start_token_id is None:
        raise ValueError(
            "decoder_start_token_id (or bos_token_id) must be set in the config or passed to "
            "generate()"
        )
    if options.pad_token_id is None and options.eos_token_ids:
        options.pad_token_id = options.eos_token_ids[0]
    if options.max_new_tokens is not None:
        options.max_length = options.max_new_tokens + 1
    if options.max_length < 2:
        raise ValueError(
            f"max_length must be at least 2, as it counts the start token; got {options.max_length}"
        )
    for name, most in _MOST.items():
        if getattr(options, name) > most:
            raise ValueError(
                f"{name} must be at most {most}, got {getattr(options, name)}. Room for as many "
                "is made beforehand."
            )
    return options
