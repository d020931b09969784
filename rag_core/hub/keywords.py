"""Keywords that scripts hand to `from_pretrained` and `save_pretrained` of models, configs,
tokenizers, retrievers.

One table of those that transformers takes and that are no options of their own here. What changes
nothing is passed over in silence; what would change something is refused, saying what to write
instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _Refused:
    """A keyword that may only have values which ask for nothing.

    Attributes:
        harmless: those values.
        rule: what it must be, after "must".
        instead: what to do.
    """

    harmless: tuple[Any, ...]
    rule: str
    instead: str

    def check(self, name: str, value: Any) -> None:
        # Asked of plain values only: comparing an array would give an array.
        if isinstance(value, str | bool | int | dict | None) and value in self.harmless:
            return
        raise ValueError(f"{name} must {self.rule}, got {value!r}. {self.instead}")


_OFF = (None, False)
_WHOLE = "A model is placed whole: leave it out, and say device_map='cpu' or device='cuda:0'."
_QUANTIZED = (
    "Leave it out and load the weights in dtype='bfloat16'; rag_torch.quantized(model) rounds "
    "linear maps to int8 on a CPU."
)
_ATTENTION = (
    "Leave it out: the networks take the fastest attention that PyTorch or TensorFlow has for "
    "their inputs."
)

# Hints about memory, speed and the format of files, of which no result depends here.
_NOTHING_TO_LOAD = frozenset({
    "low_cpu_mem_usage", "_fast_init", "use_safetensors", "weights_only", "from_tf", "from_flax", "from_pt",
    "resume_download", "proxies", "mirror", "offload_folder", "offload_state_dict", "offload_buffers", "user_agent",
    "code_revision", "adapter_name", "_commit_hash", "_from_auto", "_from_pipeline",
})  # fmt: skip
_NOTHING_TO_TOKENIZE = frozenset(
    {"use_fast", "from_slow", "legacy", "verbose", "tokenizer_type", "errors"}
)
_RENAMED = {"use_auth_token": "token"}
_RENAMED_TO_TOKENIZE = {
    "max_len": "model_max_length",
    "extra_special_tokens": "additional_special_tokens",
}
_LOADING = {
    "trust_remote_code": _Refused(
        _OFF, "be False", "No code of a checkpoint is ever run: leave it out."
    ),
    "attn_implementation": _Refused(
        (None, "eager", "sdpa"), "be 'eager', 'sdpa' or None", _ATTENTION
    ),
    "use_flash_attention_2": _Refused(_OFF, "be False", _ATTENTION),
    "load_in_8bit": _Refused(_OFF, "be False", _QUANTIZED),
    "load_in_4bit": _Refused(_OFF, "be False", _QUANTIZED),
    "quantization_config": _Refused((None,), "be None", _QUANTIZED),
    "max_memory": _Refused((None,), "be None", _WHOLE),
    "tp_plan": _Refused((None,), "be None", _WHOLE),
    "ignore_mismatched_sizes": _Refused(
        _OFF,
        "be False",
        "Weights must fit: load the model with its own sizes and call resize_token_embeddings(n), "
        "or build the class from its config for fresh weights.",
    ),
    "variant": _Refused(
        (None,),
        "be None",
        "Files must have their plain names (model.safetensors): leave it out, and say "
        "dtype='float16' for half precision.",
    ),
    "gguf_file": _Refused(
        (None,), "be None", "Weights are read from .safetensors, .bin and .h5 files."
    ),
    "key_mapping": _Refused(
        (None,), "be None", "Rename the weights and hand them over as state_dict=."
    ),
    "generation_config": _Refused((None,), "be None", "Set model.generation_config after loading."),
    "adapter_kwargs": _Refused(
        (None, {}), "be None", "Load an adapter with peft.PeftModel.from_pretrained."
    ),
}
_PIPELINE = (
    "It is part of what tokenizer.json describes: change that file with the tokenizers library."
)
_LOADING_TO_TOKENIZE = {
    "sp_model_kwargs": _Refused(
        (None, {}), "be None", "Texts are cut in the one way that is most likely."
    ),
    "trim_offsets": _Refused((True,), "be True", _PIPELINE),
    "do_basic_tokenize": _Refused((True,), "be True", _PIPELINE),
    "never_split": _Refused((None,), "be None", "Call add_tokens with these words."),
    "wordpieces_prefix": _Refused(("##",), "be '##'", _PIPELINE),
}

# Models have the last two among their own arguments; to configs and tokenizers they say nothing.
_NOTHING_TO_SAVE = frozenset({
    "save_function", "save_peft_format", "save_original_format", "version", "signatures", "legacy_format",
    "safe_serialization", "max_shard_size",
})  # fmt: skip
_RENAMED_TO_SAVE = {"use_auth_token": "token", "save_config": "is_main_process"}
_PUSHING = frozenset({"repo_id", "token", "private", "revision", "commit_message", "card"})
# What transformers takes for pushing, or has taken.
_NOTHING_TO_PUSH = frozenset(
    {"use_temp_dir", "repo_url", "repo_path_or_name", "commit_description", "tags"}
)
_SAVING = {
    "variant": _Refused(
        (None,),
        "be None",
        "Files have their plain names (model.safetensors): save each variant to its own folder.",
    ),
    "saved_model": _Refused(
        _OFF,
        "be False",
        "Call rag_tf.export_saved_model(model, folder), which writes generation as a SavedModel.",
    ),
    "filename_prefix": _Refused(
        (None, ""), "be None", "Tokenizers are found by their files' plain names."
    ),
    "create_pr": _Refused(
        _OFF, "be False", "Push to a branch with revision= and open the pull request there."
    ),
}


def loading_keywords(kwargs: Mapping[str, Any], kind: str | None = None) -> dict[str, Any]:
    """The keywords of a `from_pretrained` that say something here, under the names they have here.

    Args:
        kwargs: as given by the caller; left untouched.
        kind: "tokenizer" adds what tokenizers take besides.

    Returns:
        A new dictionary without the keywords that change nothing.

    Raises:
        ValueError: a keyword asks for something that is not done here; the message says what to
            write instead.
    """
    idle = _NOTHING_TO_LOAD
    renamed = _RENAMED
    refused = _LOADING
    if kind == "tokenizer":
        idle = idle | _NOTHING_TO_TOKENIZE
        renamed = renamed | _RENAMED_TO_TOKENIZE
        refused = refused | _LOADING_TO_TOKENIZE
    heeded: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name in refused:
            refused[name].check(name, value)
        elif name not in idle and name not in renamed:
            heeded[name] = value
    _rename(renamed, kwargs, heeded)
    return heeded


def _rename(renamed: Mapping[str, str], kwargs: Mapping[str, Any], target: dict[str, Any]) -> None:
    """Puts what `kwargs` says under an older name into `target`, under the name of today."""
    for old, new in renamed.items():
        value = kwargs.get(old)
        if value is None:
            continue
        if target.get(new) not in (None, value):
            raise ValueError(
                f"{old} must be left out where {new} is given, got both. They are one option: say "
                f"{new}=."
            )
        target[new] = value


def saving_keywords(
    is_main_process: Any = True, push_to_hub: Any = False, **kwargs: Any
) -> tuple[bool, dict[str, Any] | None, str | None]:
    """What the keywords of a `save_pretrained` ask for, besides writing files.

    Args:
        is_main_process: False writes nothing.
        push_to_hub: whether to push what was written.
        **kwargs: all others; those for pushing count if `push_to_hub`.

    Returns:
        Whether this process writes; arguments of `push_folder` besides folder and repository, None
        not to push; the repository, None if unsaid.

    Raises:
        TypeError: an unknown keyword, or one of the switches is not true or false.
        ValueError: a keyword asks for something that is not done here.
    """
    known = {name: value for name, value in kwargs.items() if name not in _RENAMED_TO_SAVE}
    _rename(_RENAMED_TO_SAVE, kwargs, known)
    is_main_process = known.pop("is_main_process", is_main_process)
    for name, value in (("is_main_process", is_main_process), ("push_to_hub", push_to_hub)):
        if not isinstance(value, bool):
            raise TypeError(
                f"{name} must be True or False, got {value!r}. Give the other arguments by name."
            )
    unknown = sorted(set(known) - _NOTHING_TO_SAVE - _PUSHING - _NOTHING_TO_PUSH - set(_SAVING))
    if unknown:
        raise TypeError(
            f"save_pretrained (or push_to_hub) got unknown arguments: {', '.join(unknown)}"
        )
    for name, value in known.items():
        if name in _SAVING:
            _SAVING[name].check(name, value)
    push = {name: value for name, value in known.items() if name in _PUSHING and value is not None}
    repo_id = push.pop("repo_id", None)
    if not push_to_hub:
        return is_main_process, None, repo_id
    return is_main_process, push, repo_id


def whole_device(device: Any, device_map: Any) -> Any:
    """The one device that `device` or `device_map` names.

    Args:
        device: a device, or None.
        device_map: a device or its number, "auto" (also "balanced", "balanced_low_0",
            "sequential"), or a dictionary whose values are one device; None says nothing.

    Returns:
        A device as it was named (a number n as "cuda:n"), "auto" for the backend's choice, or None.

    Raises:
        ValueError: both are given, or parts would be on several devices or on disk.
    """
    if device_map is None:
        return device
    if device is not None:
        raise ValueError(
            f"device must be left out where device_map is given, got {device!r}. They are one "
            "option."
        )
    places = [device_map]
    if isinstance(device_map, Mapping):
        places = list(device_map.values())
    devices = []
    for place in places:
        # transformers numbers accelerators; frameworks want their names
        if isinstance(place, int):
            place = f"cuda:{place}"
        devices.append(place)
    names = {str(device) for device in devices}
    if len(names) != 1 or "disk" in names:
        raise ValueError(
            f"device_map must name one device, got {device_map!r}. A model is placed whole: say "
            "device_map='auto', 'cpu' or 'cuda:0'."
        )
    if names & {"auto", "balanced", "balanced_low_0", "sequential"}:
        return "auto"
    return devices[0]


def loading_info() -> dict[str, list[Any]]:
    """What `output_loading_info=True` hands back beside a model.

    Empty lists, as weights that do not fit are errors.
    """
    return {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
