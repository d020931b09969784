"""The options of a model's `generate` call.

What the call says, and what the model's config and files say for it.
"""

from __future__ import annotations

from typing import Any

from rag_core.generation.config import (
    GenerationConfig,
    as_generation_config,
    asked_rows,
    own_options,
    resolve_options,
)


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
    everything else from keywords > generation_config > a generation_config.json somebody wrote >
    the generator's own (compatibility Q20).
    """
    generator = model.config.generator
    configs = (
        getattr(model, "generation_config", None),
        getattr(model.generator, "generation_config", None),
    )
    # What somebody wrote, not what was made of the model's config.
    written = [c for c in configs if c is not None and not getattr(c, "_from_model_config", True)]
    if written:
        base = own_options(written[0], generator)
    else:
        base = GenerationConfig.from_model_config(generator)
    beams = _asked(model, "num_beams", num_beams, generation_config)
    return resolve_options(
        base, generation_config, **keywords, num_beams=beams, num_return_sequences=beams
    )


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
