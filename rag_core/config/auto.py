"""The class of a model by its config.

What `AutoModel` and `AutoModelForSeq2SeqLM` of both backends decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from rag_core.config.rag import AutoConfig
from rag_core.hub import split_hub_kwargs

_GENERATORS = (
    "use AutoModelForSeq2SeqLM, whose models have their language-model head (and get_encoder())"
)
_ENCODERS = "use AutoModel"
_ELSEWHERE = {
    "AutoModel": {"bart": _GENERATORS, "t5": _GENERATORS},
    "AutoModelForSeq2SeqLM": {"bert": _ENCODERS, "dpr": _ENCODERS},
}


Model = TypeVar("Model")


class AutoClass(Generic[Model]):
    """Loads or builds a model of the class that a config names; there are no objects of this class
    itself.

    Attributes:
        classes: model_type -> its classes; of several the one that the config's `architectures`
            name, else the first.
    """

    classes: ClassVar[Mapping[str, Sequence[Any]]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(
            f"{type(self).__name__} is not built itself: "
            f"{type(self).__name__}.from_pretrained(name) or .from_config(config) gives a model "
            "of the class that its config names"
        )

    @classmethod
    def class_of(cls, config: Any) -> Any:
        """The class for a config.

        Raises:
            ValueError: no class here is for its `model_type`.
        """
        kind = str(getattr(config, "model_type", None))
        if kind not in cls.classes:
            types = ", ".join(sorted(cls.classes))
            hint = _ELSEWHERE.get(cls.__name__, {}).get(kind, "name a model of one of these types")
            raise ValueError(
                f"{cls.__name__} needs a config of model_type {types}, got {kind!r}: {hint}"
            )
        architectures = getattr(config, "architectures", None) or []
        names = [str(name).removeprefix("TF") for name in architectures]
        candidates = cls.classes[kind]
        named = [candidate for candidate in candidates if candidate.__name__ in names]
        return (named or candidates)[0]

    @classmethod
    def from_config(cls, config: Any) -> Model:
        """A model with fresh weights."""
        return cls.class_of(config)(config)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *model_args: Any,
        config: Any = None,
        **kwargs: Any,
    ) -> Model:
        """A model from a folder or a repository of the hub.

        Arguments and errors as its class's `from_pretrained`.
        """
        hub, _ = split_hub_kwargs(kwargs)
        chosen = config
        if config is None:
            chosen = pretrained_model_name_or_path
        else:
            kwargs["config"] = config
        if isinstance(chosen, PathLike):
            chosen = Path(chosen)
        if config is None or isinstance(chosen, str | Path):
            chosen = AutoConfig.from_pretrained(chosen, **hub)
        return cls.class_of(chosen).from_pretrained(
            pretrained_model_name_or_path, *model_args, **kwargs
        )
