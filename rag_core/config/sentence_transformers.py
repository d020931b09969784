"""What the files of a sentence-transformers folder say about an encoder, all that changes its
vectors.

A setting is carried out, or refused by name. One that this version has never heard of is named in a
warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rag_core.checks import warn
from rag_core.hub import read_json, resolve_file

# As each kind is called where every one has a key, and as ours are.
_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_PACKAGE = "sentence_transformers."
_MODULES = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")
_TORCH_ACTIVATIONS = {
    "Identity": None,
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "Sigmoid": "sigmoid",
    "SiLU": "silu",
}
# Prompts of passages go by several names; sentence-transformers takes the first of these.
_PASSAGE_PROMPTS = ("document", "passage", "corpus")
_INNER_PRODUCT = ("dot", "dot_product")
_ORDERS = [
    ["Transformer", "Pooling", *dense, *normalize]
    for dense in ([], ["Dense"])
    for normalize in ([], ["Normalize"])
]
_DENSE_DEFAULTS = {
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
}

# Keys of each file that leave the vectors alone, whatever they hold.
_TRANSFORMER_IDLE = {"unpad_inputs", "transformer_task", "module_output_name"}
_POOLING_IDLE = {"word_embedding_dimension", "embedding_dimension"}
_MODEL_IDLE = {"__version__", "requirements"}
# Keys that would change the vectors in a way that nothing here computes; empty or null they ask for
# nothing.
_TRANSFORMER_REFUSED = tuple(
    "model_args config_args tokenizer_args model_kwargs config_kwargs processor_kwargs "
    "tokenizer_kwargs processing_kwargs query_length document_length query_expansion".split()
)
_TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


@dataclass(frozen=True)
class SentenceSettings:
    """What a sentence encoder does with a text before and after its BERT.

    Attributes:
        pooling: a field of `BertConfig`.
        projection_dim: width of a Dense module after pooling, 0 for none; a field of `BertConfig`.
        projection_activation: its activation, a field of `BertConfig`.
        projection: the folder of its weights, in that of the encoder.
        normalize: whether vectors are divided by their L2 norm, a field of `BertConfig`.
        max_seq_length: tokens a text is cut to; None if unsaid.
        do_lower_case: whether texts are lower-cased, whatever the tokenizer does.
        query_prompt: text in front of every question.
        passage_prompt: text in front of every passage.
    """

    pooling: str = "mean"
    projection_dim: int = 0
    projection_activation: str | None = None
    projection: str = ""
    normalize: bool = False
    max_seq_length: int | None = None
    do_lower_case: bool = False
    query_prompt: str = ""
    passage_prompt: str = ""

    def config_fields(self) -> dict[str, Any]:
        """The fields of a `BertConfig` that asks questions like this encoder."""
        fields: dict[str, Any] = {
            "pooling": self.pooling,
            "normalize": self.normalize,
            "query_prompt": self.query_prompt,
            "query_lower_case": self.do_lower_case,
            "query_max_length": self.max_seq_length,
        }
        if self.projection_dim:
            fields["projection_dim"] = self.projection_dim
            fields["projection_activation"] = self.projection_activation
        return fields


def prepared_texts(texts: Iterable[str], prompt: str, lower: bool) -> list[str]:
    """Texts as a sentence encoder's tokenizer is to see them.

    The prompt in front, lower case if asked.
    """
    prepared = [f"{prompt}{text}".strip() for text in texts]
    return [text.lower() for text in prepared] if lower else prepared


def sentence_settings(name_or_path: str | Path, **hub: Any) -> SentenceSettings | None:
    """The settings of a sentence-transformers folder or repository; None for any other.

    Args:
        name_or_path: folder or repository id.
        **hub: hub options.

    Raises:
        OSError: a file that modules.json names is missing or unreadable.
        ValueError: a module or a setting that changes the vectors and that nothing here computes.
    """
    path = resolve_file(name_or_path, "modules.json", required=False, **hub)
    if path is None:
        return None
    settings, include_prompt = _modules(name_or_path, read_json(path, list), hub)
    place = resolve_file(name_or_path, "sentence_bert_config.json", required=False, **hub)
    if place is not None:
        settings = _with_transformer(settings, read_json(place), place)
    place = resolve_file(name_or_path, "config_sentence_transformers.json", required=False, **hub)
    if place is not None:
        settings = _with_model(settings, read_json(place), place)
    if not include_prompt and (settings.query_prompt or settings.passage_prompt):
        raise ValueError(
            f"{name_or_path} pools without its prompt's tokens (include_prompt: false), which "
            "nothing here computes. Name another encoder."
        )
    return settings


def _modules(
    name_or_path: str | Path, modules: list[Any], hub: dict[str, Any]
) -> tuple[SentenceSettings, bool]:
    """Pooling and normalisation, and whether pooling counts the prompt's tokens."""
    settings = SentenceSettings()
    include_prompt = True
    kinds: list[str] = []
    for module in modules:
        if not isinstance(module, dict):
            raise ValueError(
                f"{name_or_path}/modules.json: a module must be an object, got {module!r:.60}. "
                "Mend it."
            )
        full_name = str(module.get("type", ""))
        kind = full_name.rpartition(".")[2]
        place = str(module.get("path", ""))
        # Code of the repository's own is never run, so its modules count as unknown whatever they
        # are called.
        known = full_name.startswith(_PACKAGE) and kind in _MODULES
        if not known or (kind == "Transformer" and place):
            raise ValueError(
                f"{name_or_path} is a sentence encoder with a module {full_name!r} in {place!r}; "
                "only a Transformer at the top of the folder, then Pooling, Dense, Normalize and "
                "Dropout of sentence-transformers are known. Name another encoder."
            )
        if Path(place).is_absolute() or ".." in Path(place).parts or "\0" in place:
            raise ValueError(
                f"{name_or_path}/modules.json: a path must stay inside the folder, got {place!r}. "
                "Mend it."
            )
        if kind == "Pooling":
            file = resolve_file(name_or_path, f"{place}/config.json", **hub)
            values = read_json(file)
            settings = replace(settings, pooling=_pooling(values, file))
            include_prompt = values.get("include_prompt", True) is not False
        elif kind == "Dense":
            file = resolve_file(name_or_path, f"{place}/config.json", **hub)
            settings = _with_projection(settings, read_json(file), file, place)
        kinds.append(kind)
    # dropout changes nothing outside of training
    order = [kind for kind in kinds if kind != "Dropout"]
    if order not in _ORDERS:
        raise ValueError(
            f"{name_or_path}/modules.json must name a Transformer, one Pooling and possibly one "
            f"Dense and Normalize, in this order, got {', '.join(kinds) or 'nothing'}. Name "
            "another encoder."
        )
    return replace(settings, normalize="Normalize" in order), include_prompt


def _with_projection(
    settings: SentenceSettings, values: dict[str, Any], file: Path, place: str
) -> SentenceSettings:
    """The settings with those of a Dense module."""
    known = {"in_features", "out_features", "bias", "activation_function", *_DENSE_DEFAULTS}
    _warn_of_unknown(values, known, file)
    for name, usual in _DENSE_DEFAULTS.items():
        if values.get(name) not in (None, usual):
            _refuse(values, name, file)
    size = values.get("out_features")
    if type(size) is not int or size < 1:
        raise ValueError(
            f"{file}: out_features must be a positive whole number, got {size!r}. Mend it."
        )
    # named by its class: torch.nn.modules.activation.Tanh
    activation = str(values.get("activation_function") or "Tanh").rpartition(".")[2]
    if activation not in _TORCH_ACTIVATIONS:
        raise ValueError(
            f"{file}: activation_function must be one of {', '.join(_TORCH_ACTIVATIONS)}, got "
            f"{values['activation_function']!r:.80}. Name another encoder."
        )
    return replace(
        settings,
        projection_dim=size,
        projection_activation=_TORCH_ACTIVATIONS[activation],
        projection=place,
    )


def _pooling(values: dict[str, Any], place: Path) -> str:
    modes = [
        _POOLING.get(name, name)
        for name, value in values.items()
        if name.startswith("pooling_mode_") and value
    ]
    named = values.get("pooling_mode")
    if not modes and isinstance(named, list):
        modes = named
    elif not modes and named is not None:
        modes = [str(named)]
    known = {*_POOLING_IDLE, "include_prompt", "pooling_mode"}
    _warn_of_unknown(values, known, place, ignored=("pooling_mode_",))
    if len(modes) == 1 and modes[0] in _POOLING.values():
        return modes[0]
    raise ValueError(
        f"{place}: pooling must be {', '.join(_POOLING.values())} alone, got "
        f"{', '.join(map(str, modes)) or 'none'}. Name another encoder."
    )


def _with_transformer(
    settings: SentenceSettings, values: dict[str, Any], place: Path
) -> SentenceSettings:
    """The settings of sentence_bert_config.json on top of `settings`."""
    for name in _TRANSFORMER_REFUSED:
        _refuse(values, name, place)
    if values.get("modality_config") not in (None, {}, _TEXT_ONLY):
        _refuse(values, "modality_config", place)
    max_length = values.get("max_seq_length")
    if max_length is not None and (type(max_length) is not int or not 1 <= max_length < 2**31):
        raise ValueError(
            f"{place}: max_seq_length must be a positive whole number or null, got {max_length!r}. "
            "Mend it."
        )
    lower = values.get("do_lower_case") or False
    if not isinstance(lower, bool):
        raise ValueError(f"{place}: do_lower_case must be true or false, got {lower!r}. Mend it.")
    known = {
        "max_seq_length",
        "do_lower_case",
        "modality_config",
        *_TRANSFORMER_IDLE,
        *_TRANSFORMER_REFUSED,
    }
    _warn_of_unknown(values, known, place)
    return replace(settings, max_seq_length=max_length, do_lower_case=lower)


def _with_model(
    settings: SentenceSettings, values: dict[str, Any], place: Path
) -> SentenceSettings:
    """The settings of config_sentence_transformers.json on top of `settings`."""
    if values.get("model_type") not in (None, "SentenceTransformer"):
        _refuse(values, "model_type", place)
    _refuse(values, "truncate_dim", place)
    # Documents are weighed by inner products: those of unit vectors are cosines, other measures are
    # none.
    similarity = values.get("similarity_fn_name")
    if similarity not in (None, "cosine", *_INNER_PRODUCT):
        _refuse(values, "similarity_fn_name", place)
    prompts = _prompts(values, place)
    known = {
        "model_type",
        "truncate_dim",
        "similarity_fn_name",
        "prompts",
        "default_prompt_name",
        *_MODEL_IDLE,
    }
    _warn_of_unknown(values, known, place)
    default = values.get("default_prompt_name")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise ValueError(
            f"{place}: default_prompt_name must be one of {sorted(prompts)}, got {default!r}. "
            "Mend it."
        )
    fallback = prompts.get(default, "")
    passage = next((prompts[name] for name in _PASSAGE_PROMPTS if name in prompts), fallback)
    return replace(
        settings,
        normalize=settings.normalize or similarity == "cosine",
        query_prompt=prompts.get("query", fallback),
        passage_prompt=passage,
    )


def _prompts(values: dict[str, Any], place: Path) -> dict[Any, str]:
    prompts = values.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(
        isinstance(text, str | None) for text in prompts.values()
    ):
        raise ValueError(
            f"{place}: prompts must be an object of strings, got {prompts!r:.80}. Mend it."
        )
    return {name: text or "" for name, text in prompts.items()}


def _refuse(values: Mapping[str, Any], name: str, place: Path) -> None:
    """Raises where a setting that nothing here computes asks for something."""
    if values.get(name):
        raise ValueError(
            f"{place}: {name} must be empty, as nothing here computes it; got "
            f"{values[name]!r:.80}. Name another encoder, or remove the setting if it is not "
            "needed."
        )


def _warn_of_unknown(
    values: Mapping[str, Any], known: set[str], place: Path, ignored: tuple[str, ...] = ()
) -> None:
    """Warns of settings that say something; `ignored` are beginnings of names."""
    saying = [name for name, value in values.items() if value]
    unknown = [name for name in saying if name not in known and not name.startswith(ignored)]
    if unknown:
        warn(f"{place}: {', '.join(sorted(unknown))}: not known to this version, passed over.")
