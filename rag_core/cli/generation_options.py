"""Options of generation on the command line, by the names and rules of `GenerationConfig`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

# of an answer, beside those of GenerationConfig
_OF_THE_CALL = ("seed", "do_deduplication", "decoding")


def generation_options(pairs: Iterable[str], named: dict[str, Any]) -> dict[str, Any]:
    """What was asked for, checked before a model is loaded.

    Args:
        pairs: NAME=VALUE of --option; the value is JSON, or else a text.
        named: options with a flag of their own; None where it was not given.

    Raises:
        ValueError, TypeError: an unknown name, or a value that can never work.
    """
    options = {name: value for name, value in named.items() if value is not None}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or not name:
            raise ValueError(f"--option must be NAME=VALUE, got {pair!r:.80}")
        if name in options:
            raise ValueError(f"{name} must be given once, got it twice. Leave one out")
        options[name] = _value(value)
    _check(options)
    return options


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    words = {"true": True, "false": False, "none": None}
    return words.get(text.lower(), text)


def _check(options: dict[str, Any]) -> None:
    ruled = {name: value for name, value in options.items() if name not in _OF_THE_CALL}
    if not ruled:
        return
    from rag_core.generation import GenerationConfig

    config = GenerationConfig()
    known = config.to_dict()
    for name, value in ruled.items():
        try:
            setattr(config, name, value)
        except AttributeError as error:  # a name that looks like another
            raise ValueError(str(error)) from None
        if name not in known:
            raise ValueError(
                f"--option must name an option of GenerationConfig, got {name!r}. "
                "docs/quickstart.md lists them"
            )
    if "num_beams" in ruled:  # else the model's own counts
        config.validate()
