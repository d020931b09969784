"""What the RAG models add to TensorFlow's pretrained models: the parts they are put together from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import tensorflow as tf

import rag_tf
from rag_core.checkpoint import RAG_HEADS
from rag_core.modeling import RagComponents, networks_of
from rag_tf import marginalize
from rag_tf import weights as tensors
from rag_tf.contexts import CHECKS
from rag_tf.engine import ENGINE
from rag_tf.foreign import ForeignGenerator
from rag_tf.modules import Module
from rag_tf.pretrained import PretrainedModel, warn_of_prefix

NETWORKS = networks_of(rag_tf)
_PREFIXES = (
    "load_weight_prefix",
    "question_encoder_load_weight_prefix",
    "generator_load_weight_prefix",
)

Rag = TypeVar("Rag", bound="RagPretrained")


class RagPretrained(RagComponents[tf.Tensor], PretrainedModel):
    """Loading, saving and putting together, the same for RagModel and both heads."""

    _part_classes: ClassVar = NETWORKS
    _adapter_class = ForeignGenerator
    _checks = CHECKS
    _engine = ENGINE
    _math = marginalize
    _shared_options = (*RagComponents._shared_options, "from_pt")
    _passed_on = (*RagComponents._passed_on, "training")

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
        if not rest:
            return part
        return part.get_submodule(rest)

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

    def get_bias(self) -> dict[str, Any] | None:
        """What the generator adds to its logits; see `PretrainedModel.get_bias`."""
        get_bias = getattr(self.rag.generator, "get_bias", None)
        if get_bias is None:
            return None
        return get_bias()

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(variable.shape) for name, variable in self.named_parameters()}

    if not TYPE_CHECKING:  # what it adds are keywords to leave out

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
            warn_of_prefix(load_weight_prefix)
            return super().from_pretrained(
                pretrained_model_name_or_path,
                retriever=retriever,
                config=config,
                question_encoder=question_encoder,
                generator=generator,
                dtype=dtype,
                torch_dtype=torch_dtype,
                device=device,
                device_map=device_map,
                state_dict=state_dict,
                output_loading_info=output_loading_info,
                **kwargs,
            )

    @classmethod
    def from_pretrained_question_encoder_generator(
        cls: type[Rag],
        question_encoder_pretrained_model_name_or_path: str | Path | None = None,
        generator_pretrained_model_name_or_path: str | Path | None = None,
        retriever: Any = None,
        **kwargs: Any,
    ) -> Rag:
        for name in _PREFIXES:
            warn_of_prefix(kwargs.pop(name, None))
        return super().from_pretrained_question_encoder_generator(
            question_encoder_pretrained_model_name_or_path,
            generator_pretrained_model_name_or_path,
            retriever,
            **kwargs,
        )
