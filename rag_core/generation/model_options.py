"""The options of a model's `generate` call.

What the call says, and what the model's config and files say for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rag_core.generation.config import (
    GenerationConfig,
    as_generation_config,
    asked_rows,
    own_options,
    resolve_options,
)

# What RAG-Sequence reads in the RAG config; all else it asks the generator's (compatibility Q20).
_OF_RAG_SEQUENCE = ("num_beams", "num_return_sequences")


def loaded_options(
    stored: GenerationConfig | None,
    given: Mapping[str, Any],
    model_config: Any,
    head: str | None,
) -> GenerationConfig | None:
    """A loaded model's own options: given to from_pretrained > generation_config.json > the config
    (compatibility Q19, Q20).

    Args:
        stored: generation_config.json with what was given in place of what it says; None without
            the file.
        given: the options that were given. The config has them, too.
        model_config: the model's config.
        head: of the model; None of a generator.

    Returns:
        Somebody's wish; None where it is the config that says everything.
    """
    source = model_config
    if head == "sequence":
        source = model_config.generator
    made = GenerationConfig.from_model_config(source)
    if stored is not None and _is_written(stored, made, head):
        options = own_options(stored, model_config, head)
        options._from_model_config = False
        return options
    asked = GenerationConfig.from_dict(given)
    unheard = [
        name
        for name in given
        # A field of the config has a meaning of its own there.
        if not type(model_config).knows(name)
        and not (head == "sequence" and name in _OF_RAG_SEQUENCE)
        and getattr(asked, name) != getattr(made, name)
    ]
    if not unheard:
        return None
    for name in unheard:
        setattr(made, name, getattr(asked, name))
    return made


def _is_written(stored: GenerationConfig, made: GenerationConfig, head: str | None) -> bool:
    """Whether a file says what somebody wished.

    One that was made of a config is passed over, as generators of 4.37.2 and its RAG-Sequence do;
    its RAG-Token reads it.
    """
    if not stored._from_model_config:
        return True
    return head == "token" and stored.to_dict() != made.to_dict() | stored.extra


def token_options(model: Any, generation_config: Any = None, **keywords: Any) -> GenerationConfig:
    """The options of a RAG-Token call: keywords > generation_config > the model's own
    (compatibility Q19).

    Of a generator's own call too.
    """
    base = getattr(model, "generation_config", None)
    if base is None:
        base = GenerationConfig.from_model_config(model.config)
    return resolve_options(own_options(base, model.config), generation_config, **keywords)


def sequence_options(
    model: Any, num_beams: int | None, generation_config: Any = None, **keywords: Any
) -> GenerationConfig:
    """The options of the searches of a RAG-Sequence call, each of which hands back all its beams.

    Beams come from the keyword, a `generation_config` that asks for some, or the RAG config;
    everything else from keywords > generation_config > what somebody wrote for the model > the
    generator's own (compatibility Q20).
    """
    generator = model.config.generator
    written = written_options(model)
    if written is None:
        base = GenerationConfig.from_model_config(generator)
    else:
        base = own_options(written, generator)
    beams = _asked(model, "num_beams", num_beams, generation_config)
    return resolve_options(
        base, generation_config, **keywords, num_beams=beams, num_return_sequences=beams
    )


def written_options(model: Any) -> Any:
    """A model's own options if somebody wrote them; None where they are made of its config."""
    if hasattr(model, "_written_options"):
        return model._written_options()
    # of another library
    options = getattr(model, "generation_config", None)
    if getattr(options, "_from_model_config", True):
        return None
    return options


def returned_sequences(
    model: Any, num_return_sequences: int | None, generation_config: Any = None
) -> int:
    """How many sequences a RAG-Sequence call hands back for each question (compatibility Q20)."""
    return _asked(model, "num_return_sequences", num_return_sequences, generation_config)


def _asked(model: Any, name: str, keyword: int | None, generation_config: Any) -> int:
    """`num_beams` or `num_return_sequences`.

    Keyword > a generation_config that asks for some > the RAG config.
    """
    if keyword is not None:
        return asked_rows(name, keyword)
    # 1 is what a generation_config says that does not ask for any.
    if generation_config is not None:
        value = getattr(as_generation_config(generation_config), name)
        if value != 1:
            return asked_rows(name, value)
    return asked_rows(name, getattr(model.config, name, None) or 1)
