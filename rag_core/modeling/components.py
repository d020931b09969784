"""How a RAG model is put together: its config, its parts, and loading and saving it whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, overload

from rag_core.arguments import check_parts, checked_switch
from rag_core.checkpoint import check_weights, fit_names, fit_weights
from rag_core.config import AutoConfig, RagConfig, config_from_dict
from rag_core.generation import Engine, written_options
from rag_core.hub import locating, split_hub_kwargs
from rag_core.modeling.auto import NETWORKS
from rag_core.modeling.foreign import module_config
from rag_core.modeling.inputs import InputChecks
from rag_core.modeling.pretrained import PretrainedBase, rows_wanted
from rag_core.outputs import Tensor

if TYPE_CHECKING:
    from rag_core.retrieval import RagRetriever

_PARTS = ("question_encoder", "generator")

Rag = TypeVar("Rag", bound="RagComponents")


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


class RagComponents(PretrainedBase[Tensor]):
    """What RagModel and both heads share: their parts, and loading and saving them whole.

    A backend's `RagPretrained` adds what only its tensors can tell.

    Attributes:
        rag: the `RagModel`; its own one is itself.
        _part_classes: the backend's classes by name, to build parts from.
        _adapter_class: the class around generators of other libraries; () where none are taken.
        _checks: the backend's checks of arguments.
        _engine: the backend's `Engine`.
        _math: the backend's module `marginalize`; `split_docs` and `doc_scores` are asked of it.
        _shared_options: keywords of loading that go to both parts.
        _passed_on: keywords of a head's call that go on to RagModel's.
    """

    config_class = RagConfig
    base_model_prefix = "rag"
    config: RagConfig
    rag: Any
    _part_classes: ClassVar[Mapping[str, Any]]
    _adapter_class: Any
    _checks: ClassVar[InputChecks]
    _engine: ClassVar[Engine]
    _math: Any
    _shared_options: ClassVar[tuple[str, ...]] = ("dtype", "torch_dtype", "device", "device_map")
    _passed_on: ClassVar[tuple[str, ...]] = ("question_text",)

    # what a backend adds

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all that a checkpoint holds, by name, tied weights under each of theirs."""
        raise NotImplementedError

    def _check_places(self, **tensors: Any) -> None:
        """Refuse tensors that are not where the weights are, if they hold no numbers there."""

    # parts

    @property
    def ctx_component(self) -> Any:
        """The document encoder trained along, if one is set."""
        return self.rag.ctx_encoder

    def _parts(self) -> dict[str, Any]:
        """The modules that hold weights; those of other libraries without their adapters."""
        parts = {}
        for name in (*_PARTS, "ctx_encoder"):
            part = getattr(self.rag, name, None)
            if isinstance(part, self._adapter_class):
                part = part.module
            if part is not None:
                parts[name] = part
        return parts

    def _facts(self) -> dict[str, Any]:
        parts = {
            name.replace("_", " "): type(part).__name__ for name, part in self._parts().items()
        }
        retriever = None
        if self.rag.retriever is not None:
            retriever = repr(self.rag.retriever)
        return parts | super()._facts() | {"retriever": retriever}

    def _networks(self) -> list[Any]:
        return list(self._parts().values())

    @classmethod
    def _class_of(cls, part: str, config: Any) -> Any:
        """The class of a part with this config.

        Raises:
            ValueError: there is none.
        """
        classes = {
            kind: cls._part_classes[name]
            for kind, name in NETWORKS[part].items()
            if name in cls._part_classes
        }
        kind = getattr(config, "model_type", None)
        if kind not in classes:
            raise ValueError(
                f"no {part} is known for model_type {kind!r}, only for {', '.join(classes)}: build "
                f'the module yourself and pass it as {part}= (see "Models of your own" in '
                "docs/quickstart.md)"
            )
        return classes[kind]

    @classmethod
    def _build(cls, part: str, config: Any) -> Any:
        """A part with fresh weights."""
        return cls._class_of(part, config)(config)

    # loading and saving

    @overload  # type: ignore[override]
    @classmethod
    def from_pretrained(
        cls: type[Rag],
        pretrained_model_name_or_path: str | Path | None,
        *,
        retriever: RagRetriever | Callable[..., Any] | None = None,
        config: RagConfig | str | Path | None = None,
        question_encoder: Any = None,
        generator: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        device: Any = None,
        device_map: Any = None,
        state_dict: Mapping[str, Any] | None = None,
        output_loading_info: Literal[False] = False,
        **kwargs: Any,
    ) -> Rag: ...

    @overload
    @classmethod
    def from_pretrained(
        cls: type[Rag],
        pretrained_model_name_or_path: str | Path | None,
        *,
        output_loading_info: Literal[True],
        **kwargs: Any,
    ) -> tuple[Rag, dict[str, list[Any]]]: ...

    @classmethod
    def from_pretrained(
        cls: type[Rag],
        pretrained_model_name_or_path: str | Path | None,
        *,
        retriever: RagRetriever | Callable[..., Any] | None = None,
        config: RagConfig | str | Path | None = None,
        question_encoder: Any = None,
        generator: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        device: Any = None,
        device_map: Any = None,
        state_dict: Mapping[str, Any] | None = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Read a RAG model from a folder or a repository of the hub, in eval mode; any head's
        checkpoint fits any class.

        Args:
            pretrained_model_name_or_path: folder, or repository id.
            retriever: as in the constructor.
            config: instead of the stored one: a `RagConfig`, which is copied, or another folder or
                repository.
            question_encoder: a module of one's own, to be filled from the checkpoint.
            generator: the same.
            dtype: of the weights; None is float32, "auto" what the checkpoint has.
            torch_dtype: another name for `dtype`.
            device: where to put the weights; None is the CPU in rag_torch, and in rag_tf
                TensorFlow's choice (a GPU where there is one).
            device_map, state_dict, output_loading_info: see `PretrainedBase.from_pretrained`.
            **kwargs: hub options, and fields of the config to override; see there.

        Raises:
            OSError, TypeError, ValueError: as `PretrainedBase.from_pretrained`.
        """
        check_parts(question_encoder, generator, retriever)

        def build(config: RagConfig) -> Any:
            model = cls(config, question_encoder, generator, retriever)  # type: ignore[call-arg]
            if config.extra.get("ctx_encoder"):
                with locating(f"ctx_encoder in config.json of {pretrained_model_name_or_path}"):
                    context_config = config_from_dict(config.extra["ctx_encoder"])
                encoder = cls._build("ctx_encoder", context_config)
                model.rag.set_context_encoder_for_training(encoder)
                name = "context_encoder_training"
                live = checked_switch(name, config.extra.get(name), True)
                model.rag.context_encoder_training = live
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
        retriever: RagRetriever | Callable[..., Any] | None = None,
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
                the `RagConfig`. In rag_tf `from_pt` and `load_weight_prefix` are taken, and not
                needed, for each part and for both.

        Raises:
            ValueError: a part is neither named nor given.
        """
        common = {name: kwargs.pop(name) for name in cls._shared_options if name in kwargs}
        hub, kwargs = split_hub_kwargs(kwargs)
        common |= hub
        names_or_paths = (
            question_encoder_pretrained_model_name_or_path,
            generator_pretrained_model_name_or_path,
        )
        options = {part: _options_of(part, kwargs) for part in _PARTS}
        modules = []
        for part, name_or_path in zip(_PARTS, names_or_paths, strict=True):
            module = options[part].pop("model", None)
            if module is None:
                module = cls._load_part(part, name_or_path, {**common, **options[part]})
            modules.append(module)
        configs = [module_config(module) for module in modules]
        config = RagConfig.from_question_encoder_generator_configs(*configs, **kwargs)
        return cls(config, *modules, retriever).eval()  # type: ignore[call-arg]

    @classmethod
    def _load_part(cls, part: str, name_or_path: str | Path | None, options: dict[str, Any]) -> Any:
        """One part from its own folder or repository."""
        if name_or_path is None:
            raise ValueError(
                f"{part}_pretrained_model_name_or_path must be given, or {part}_model= with a "
                "module that is already built"
            )
        hub, _ = split_hub_kwargs(options)
        config = options.get("config") or AutoConfig.from_pretrained(name_or_path, **hub)
        return cls._class_of(part, config).from_pretrained(name_or_path, **options)

    def _fit(self, weights: Any, source: str) -> Any:
        if all(isinstance(getattr(self.rag, part), PretrainedBase) for part in _PARTS):
            context = self.ctx_component
            context_config = None if context is None else module_config(context)
            return fit_weights(
                self.config, weights, self.head, context_encoder=context_config, source=source
            )
        shapes = self._shapes()
        fitted = fit_names(weights, shapes)
        for name, first in self._ties().items():
            if first in fitted and name not in fitted:
                fitted[name] = fitted[first]
        have = {name: weights[stored].shape for name, stored in fitted.items()}
        unused = set(weights) - set(fitted.values())
        have |= {name: weights[name].shape for name in unused}
        check_weights(shapes, have, source=source)
        return {name: weights[stored] for name, stored in fitted.items()}

    def _saved_config(self) -> Any:
        config = super()._saved_config()
        self._count_rows(config)
        # What it was read with may be of an encoder that is no longer there.
        config.extra.pop("ctx_encoder", None)
        config.extra.pop("context_encoder_training", None)
        context = self.ctx_component
        if context is not None:
            config.extra["ctx_encoder"] = module_config(context).to_dict()
            if not self.rag.context_encoder_training:
                config.extra["context_encoder_training"] = False
        return config

    def _count_rows(self, config: RagConfig) -> None:
        """Write the sizes of the parts' token tables, each of which may have been resized alone."""
        for name in _PARTS:
            rows = getattr(module_config(self._parts()[name]), "vocab_size", None)
            part = getattr(config, name)
            if rows is None or rows == getattr(part, "vocab_size", None):
                continue
            part.vocab_size = rows
            if name == "generator":
                config.vocab_size = rows

    def _written_options(self) -> Any:
        written = super()._written_options()
        if written is None and self.head == "sequence":
            # Its searches are the generator's own (compatibility Q20).
            return written_options(self.rag.generator)
        return written

    # tables

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

    def set_input_embeddings(self, value: Any) -> None:
        """Put another token table into the generator.

        See `PretrainedBase.set_input_embeddings`.
        """
        self.rag.generator.set_input_embeddings(value)

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Put another language-model head into the generator.

        See `PretrainedBase.set_output_embeddings`.
        """
        self.rag.generator.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> Any:
        """Cut or lengthen the generator's token table and head.

        See `PretrainedBase.resize_token_embeddings`.
        """
        generator = self.rag.generator
        old_rows = generator.get_input_embeddings().weight.shape[0]
        rows = rows_wanted(new_num_tokens, pad_to_multiple_of, old_rows)
        table = generator.resize_token_embeddings(rows)
        if (new_num_tokens, pad_to_multiple_of) != (None, None):
            generator_fields = {**self.config.generator.to_dict(), "vocab_size": rows}
            fields = {**self.config.to_dict(), "vocab_size": rows, "generator": generator_fields}
            config = RagConfig.from_dict(fields)
            for model in (self, self.rag):
                # past trackers, which wrap what they find
                object.__setattr__(model, "config", config)
        return table


def _options_of(part: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Takes the options out that are for one part, without its name in front."""
    names = [name for name in kwargs if name.startswith(f"{part}_")]
    return {name.removeprefix(f"{part}_"): kwargs.pop(name) for name in names}
