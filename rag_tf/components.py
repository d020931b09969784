"""How a RAG model is put together: its config, its two parts, and loading and saving it whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rag_core.arguments import check_parts
from rag_core.checkpoint import RAG_HEADS
from rag_core.config import AutoConfig, RagConfig, config_from_dict
from rag_core.hub import locating, split_hub_kwargs
from rag_core.modeling import module_config, rows_wanted
from rag_tf import weights as tensors
from rag_tf.bart import BartForConditionalGeneration
from rag_tf.bert import BertEncoder, DPRContextEncoder, DPRQuestionEncoder
from rag_tf.foreign import ForeignGenerator
from rag_tf.modules import Module
from rag_tf.pretrained import PretrainedModel, warn_of_prefix
from rag_tf.t5 import T5ForConditionalGeneration

QUESTION_ENCODERS: dict[str, Any] = {"dpr": DPRQuestionEncoder, "bert": BertEncoder}
CONTEXT_ENCODERS: dict[str, Any] = {"dpr": DPRContextEncoder, "bert": BertEncoder}
GENERATORS: dict[str, Any] = {
    "bart": BartForConditionalGeneration,
    "t5": T5ForConditionalGeneration,
}
_PARTS = ("question_encoder", "generator")

Rag = TypeVar("Rag", bound="RagPretrained")


def _class(table: dict[str, Any], config: Any, role: str) -> Any:
    kind = getattr(config, "model_type", None)
    if kind not in table:
        raise ValueError(
            f"no {role} is known for model_type {kind!r}, only for {', '.join(table)}: build the "
            f"module yourself and pass it as {role}= (see rag_tf.foreign)"
        )
    return table[kind]


def build_question_encoder(config: Any) -> PretrainedModel:
    """A question encoder with fresh weights."""
    return _class(QUESTION_ENCODERS, config, "question_encoder")(config)


def build_context_encoder(config: Any) -> PretrainedModel:
    """A document encoder with fresh weights."""
    return _class(CONTEXT_ENCODERS, config, "ctx_encoder")(config)


def build_generator(config: Any) -> PretrainedModel:
    """A generator with fresh weights."""
    return _class(GENERATORS, config, "generator")(config)


def rag_config(
    config: Any, question_encoder: Any, generator: Any, fields: dict[str, Any]
) -> RagConfig:
    """The config of a RAG model from what its constructor was given.

    Raises:
        ValueError: neither a config nor both modules.
        TypeError: not a `RagConfig`.
    """
    if config is None:
        if question_encoder is None or generator is None:
            raise ValueError("either config or both question_encoder and generator must be given")
        parts = (module_config(question_encoder), module_config(generator))
        return RagConfig.from_question_encoder_generator_configs(*parts, **fields)
    if not isinstance(config, RagConfig):
        raise TypeError(f"config must be a RagConfig, got {type(config).__name__}")
    return RagConfig.from_dict(config.to_dict(), **fields) if fields else config


class RagPretrained(PretrainedModel):
    """Loading, saving and putting together, the same for RagModel and both heads."""

    base_model_prefix = "rag"
    rag: Any
    config: RagConfig

    @property
    def ctx_component(self) -> Any:
        """The document encoder trained along, if one is set."""
        return self.rag.ctx_encoder

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """(name, variable) of the parts' weights under Hugging Face's names, tied ones under
        each of theirs.
        """
        for name, part in self._parts().items():
            yield from tensors.named_variables(
                part, f"{prefix}{RAG_HEADS[self.head or 'model']}{name}."
            )

    def get_submodule(self, path: str) -> Any:
        """The module at a dotted path of weight names, e.g.

        "rag.generator.model.encoder.layers.0".
        """
        name, _, rest = path.removeprefix(RAG_HEADS[self.head or "model"]).partition(".")
        part = self._parts()[name]
        return part.get_submodule(rest) if rest else part

    def _parts(self) -> dict[str, Any]:
        """The modules that hold weights; those of other libraries without their adapters."""
        parts = {name: getattr(self.rag, name, None) for name in (*_PARTS, "ctx_encoder")}
        bare = {name: _without_adapter(part) for name, part in parts.items()}
        return {name: part for name, part in bare.items() if part is not None}

    def _networks(self) -> list[Any]:
        return list(self._parts().values())

    def modules(self) -> Iterator[Any]:
        """All our modules below, each once; of other libraries' modules nothing."""
        for part in self._parts().values():
            if isinstance(part, Module):
                yield from part.modules()

    def weights_version(self) -> Any:
        """As `WeightHolder.weights_version`: that of the parts."""
        versions = (
            part.weights_version() if isinstance(part, PretrainedModel) else id(part)
            for part in self._parts().values()
        )
        return (self._version, *versions)

    @classmethod
    def from_pretrained(
        cls: type[Rag],
        pretrained_model_name_or_path: str | Path | None,
        *,
        retriever: Any = None,
        config: Any = None,
        question_encoder: Any = None,
        generator: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        device: Any = None,
        device_map: Any = None,
        state_dict: Mapping[str, Any] | None = None,
        output_loading_info: bool = False,
        from_pt: bool = False,
        load_weight_prefix: str | None = None,
        **kwargs: Any,
    ) -> Rag:
        """A RAG model from a folder or a repository of the hub, in eval mode; any head's checkpoint
        fits any class.

        Args:
            pretrained_model_name_or_path: folder, or repository id.
            retriever: as in the constructor.
            config: instead of the stored one: a `RagConfig`, which is copied, or another folder or
                repository.
            question_encoder: a module of one's own, to be filled from the checkpoint.
            generator: the same.
            dtype: of the weights; None is float32, "auto" what the checkpoint has.
            torch_dtype: another name for `dtype`.
            device: where to put the weights; None leaves it to TensorFlow (a GPU where there is
                one).
            device_map, state_dict, output_loading_info: see `PretrainedModel.from_pretrained`.
            from_pt: nothing to do: the files are PyTorch's and TensorFlow's alike.
            load_weight_prefix: not needed any more.
            **kwargs: hub options, and fields of the config to override; see there.

        Raises:
            OSError, TypeError, ValueError: as `PretrainedModel.from_pretrained`.
        """
        warn_of_prefix(load_weight_prefix)
        check_parts(question_encoder, generator, retriever)

        def build(config: RagConfig) -> Any:
            model = cls(config, question_encoder, generator, retriever)  # type: ignore[call-arg]
            if config.extra.get("ctx_encoder"):
                with locating(f"ctx_encoder in config.json of {pretrained_model_name_or_path}"):
                    context_config = config_from_dict(config.extra["ctx_encoder"])
                model.rag.set_context_encoder_for_training(build_context_encoder(context_config))
            return model

        return cls._read(
            build,
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
    def from_pretrained_question_encoder_generator(
        cls: type[Rag],
        question_encoder_pretrained_model_name_or_path: str | Path | None = None,
        generator_pretrained_model_name_or_path: str | Path | None = None,
        retriever: Any = None,
        **kwargs: Any,
    ) -> Rag:
        """Put a RAG model together from a pretrained question encoder and a pretrained generator,
        in eval mode.

        Args:
            question_encoder_pretrained_model_name_or_path: folder or repository of a DPR question
                encoder, a BERT or a sentence encoder; not needed with `question_encoder_model=`.
            generator_pretrained_model_name_or_path: the same for BART or T5, and
                `generator_model=`.
            retriever: as in the constructor.
            **kwargs: `question_encoder_<name>` and `generator_<name>` go to that part's loading
                (hub options, `config`, fields of its config); hub options, `dtype`, `torch_dtype`,
                `device` and `device_map` to both; `config` is a `RagConfig`, or where to read one,
                of which all counts but its descriptions of the two parts; all others are fields of
                the `RagConfig`.
                `from_pt` and `load_weight_prefix` are taken, and not needed, for each part and for
                both.

        Raises:
            ValueError: a part is neither named nor given.
        """
        for old in ("load_weight_prefix", *(f"{part}_load_weight_prefix" for part in _PARTS)):
            warn_of_prefix(kwargs.pop(old, None))
        shared = ("dtype", "torch_dtype", "device", "device_map", "from_pt")
        common: dict[str, Any] = {name: kwargs.pop(name) for name in shared if name in kwargs}
        hub, kwargs = split_hub_kwargs(kwargs)
        common |= hub
        options: dict[str, dict[str, Any]] = {}
        for part in _PARTS:
            names = [name for name in kwargs if name.startswith(f"{part}_")]
            options[part] = {name.removeprefix(f"{part}_"): kwargs.pop(name) for name in names}
        names_or_paths = (
            question_encoder_pretrained_model_name_or_path,
            generator_pretrained_model_name_or_path,
        )
        modules = []
        for part, table, name in zip(
            _PARTS, (QUESTION_ENCODERS, GENERATORS), names_or_paths, strict=True
        ):
            module = options[part].pop("model", None)
            modules.append(
                _load_part(part, table, name, {**common, **options[part]})
                if module is None
                else module
            )
        config = RagConfig.from_question_encoder_generator_configs(
            *(module_config(each) for each in modules), **kwargs
        )
        return cls(config, *modules, retriever).eval()  # type: ignore[call-arg]

    def tie_weights(self) -> None:
        """Tie what the generator's own config ties (not the RAG config's: compatibility D7)."""
        tie = getattr(self.rag.generator, "tie_weights", None)
        if tie is not None:
            tie()

    def get_input_embeddings(self) -> Any:
        """The generator's token table."""
        return self.rag.generator.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The generator's language-model head."""
        return self.rag.generator.get_output_embeddings()

    def get_bias(self) -> dict[str, Any] | None:
        """What the generator adds to its logits; see `PretrainedModel.get_bias`."""
        bias = getattr(self.rag.generator, "get_bias", None)
        return None if bias is None else bias()

    def set_input_embeddings(self, value: Any) -> None:
        """Put another token table into the generator.

        See `PretrainedModel.set_input_embeddings`.
        """
        self.rag.generator.set_input_embeddings(value)

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Put another language-model head into the generator.

        See `PretrainedModel.set_output_embeddings`.
        """
        self.rag.generator.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> Any:
        """Cut or lengthen the generator's token table and head.

        See `PretrainedModel.resize_token_embeddings`.
        """
        generator_model = self.rag.generator
        rows = rows_wanted(
            new_num_tokens,
            pad_to_multiple_of,
            generator_model.get_input_embeddings().weight.shape[0],
        )
        table = generator_model.resize_token_embeddings(rows)
        if (new_num_tokens, pad_to_multiple_of) != (None, None):
            generator = {**self.config.generator.to_dict(), "vocab_size": rows}
            values = {**self.config.to_dict(), "vocab_size": rows, "generator": generator}
            for model in (self, self.rag):
                object.__setattr__(model, "config", RagConfig.from_dict(values))
        return table

    def _fit(self, found: Any, source: str) -> Any:
        from rag_core.checkpoint import check_weights, fit_names, fit_weights

        context = self.ctx_component
        ours = all(isinstance(getattr(self.rag, part), PretrainedModel) for part in _PARTS)
        if ours:
            context_config = None if context is None else module_config(context)
            return fit_weights(
                self.config, found, self.head, context_encoder=context_config, source=source
            )
        shapes = {name: tuple(variable.shape) for name, variable in self.named_parameters()}
        fitted = fit_names(found, shapes)
        ties = tensors.tied_names(self)
        fitted |= {
            name: fitted[first]
            for name, first in ties.items()
            if first in fitted and name not in fitted
        }
        have = {name: found[old].shape for name, old in fitted.items()}
        have |= {name: found[name].shape for name in set(found) - set(fitted.values())}
        check_weights(shapes, have, source=source)
        return {name: found[old] for name, old in fitted.items()}

    def _saved_config(self) -> Any:
        config = super()._saved_config()
        context = self.ctx_component
        if context is not None:
            config.extra["ctx_encoder"] = module_config(context).to_dict()
        return config


def _without_adapter(part: Any) -> Any:
    return part.module if isinstance(part, ForeignGenerator) else part


def _load_part(
    part: str, table: dict[str, Any], name: str | Path | None, options: dict[str, Any]
) -> PretrainedModel:
    """One part from its own folder or repository."""
    if name is None:
        raise ValueError(
            f"{part}_pretrained_model_name_or_path must be given, or {part}_model= with a module "
            "that is already built"
        )
    hub, _ = split_hub_kwargs(options)
    config = options.get("config") or AutoConfig.from_pretrained(name, **hub)
    return _class(table, config, part).from_pretrained(name, **options)
