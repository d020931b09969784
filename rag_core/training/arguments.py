"""Names of transformers' `TrainingArguments` as settings of a run here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from typing import Any

# Theirs -> ours, where the value means the same.
SAME = {
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulation",
    "num_train_epochs": "epochs",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "adam_beta2": "beta2",
    "max_grad_norm": "max_grad_norm",
    "eval_steps": "evaluate_every",
    "save_steps": "save_every",
    "logging_steps": "log_every",
    "seed": "seed",
    "label_smoothing_factor": "label_smoothing",
    "gradient_checkpointing": "gradient_checkpointing",
    "eval_on_start": "evaluate_first",
    "early_stopping_patience": "early_stopping",  # EarlyStoppingCallback's
}
# Where train or another argument of it says the same, or nothing depends on it.
_ELSEWHERE = (
    "output_dir",
    "overwrite_output_dir",
    "do_train",
    "do_eval",
    "run_name",
    "logging_dir",
    "disable_tqdm",
    "log_level",
    "per_device_eval_batch_size",
    "dataloader_num_workers",
    "remove_unused_columns",
    "save_total_limit",
)
# The values that say what a run here does anyway.
_ANYWAY: dict[str, tuple[Any, ...]] = {
    "adam_beta1": (0.9,),
    "adam_epsilon": (1e-8,),
    "lr_scheduler_type": ("linear",),
    "optim": ("adamw_torch", "adamw_torch_fused"),
    "logging_strategy": ("steps",),
    "save_safetensors": (True,),
}
_METRICS = {"exact_match": True, "f1": True, "loss": False}  # whether more is better
_WHOLE = "every process of a run holds the whole model, see docs/training.md"
# Their steps between log lines, and between validations, where nobody says.
_LOGGING_STEPS = 500
_REASONS = {
    "adam_beta1": "AdamW's first moment decays by 0.9",
    "adam_epsilon": "AdamW's epsilon is 1e-8",
    "lr_scheduler_type": "the rate rises and falls linearly",
    "optim": "the optimizer is AdamW",
    "logging_strategy": "log lines are logging_steps apart",
    "resume_from_checkpoint": "the same call goes on by itself from what it left in `out`",
    "push_to_hub": "push the finished model with its push_to_hub()",
    "deepspeed": _WHOLE,
    "fsdp": _WHOLE,
    "torch_compile": "compile the model yourself before you train it",
}


def settings_from_arguments(arguments: Any) -> dict[str, Any]:
    """Settings of `TrainingConfig` from those of transformers' `TrainingArguments`.

    Args:
        arguments: a mapping of names, or an object, of which what is off its default counts.

    Raises:
        TypeError: it is neither.
        ValueError: what cannot be honoured, and why.
    """
    if isinstance(arguments, Mapping):
        given = dict(arguments)
    else:
        given = _off_default(arguments)
    given = {name: getattr(value, "value", value) for name, value in given.items()}  # of enums
    settings: dict[str, Any] = {}
    for name in [*SAME, *_ELSEWHERE, *_ANYWAY]:
        if name not in given:
            continue
        value = given.pop(name)
        if name in SAME:
            settings[SAME[name]] = value
        elif value not in _ANYWAY.get(name, (value,)):
            raise _refusal(name, value)
    settings |= _steps(given) | _warmup(given) | _precision(given) | _evaluation(given, settings)
    settings |= _reports(given)
    for name, value in given.items():
        if name not in _REASONS or value:  # what is off asks for nothing
            raise _refusal(name, value)
    return settings


def _off_default(arguments: Any) -> dict[str, Any]:
    """What an object says that it would not say by itself."""
    if not is_dataclass(arguments) or isinstance(arguments, type):
        raise TypeError(
            "arguments must be a mapping or an object of TrainingArguments, got "
            f"{type(arguments).__name__}"
        )
    given = {}
    for each in fields(arguments):
        value = getattr(arguments, each.name)
        default = each.default
        if default is MISSING and each.default_factory is not MISSING:
            default = each.default_factory()
        if each.init and value != default and not each.name.startswith("_"):
            given[each.name] = value
    # It names what is installed where nobody said anything.
    if "tensorboard" not in given.pop("report_to", ()):
        return given
    return {**given, "report_to": "tensorboard"}


def _steps(given: dict[str, Any]) -> dict[str, Any]:
    steps = given.pop("max_steps", -1)
    if steps is None or steps <= 0:
        return {}
    return {"steps": steps}


def _warmup(given: dict[str, Any]) -> dict[str, Any]:
    """Steps of warm-up go before their share of all steps, but for 0; a part of 1 is a share."""
    steps, share = given.pop("warmup_steps", None), given.pop("warmup_ratio", None)
    if isinstance(steps, float) and 0 < steps < 1:
        share = share or steps
        steps = None
    if share is not None and not steps:
        return {"warmup_ratio": share}
    if steps is None:
        return {}
    return {"warmup_steps": steps}


def _precision(given: dict[str, Any]) -> dict[str, Any]:
    chosen = [name for name in ("bf16", "fp16") if given.pop(name, False)]
    if len(chosen) == 2:
        raise ValueError("bf16 and fp16 exclude each other, got both. Choose one")
    return dict.fromkeys(["mixed_precision"] * len(chosen), "".join(chosen))


def _evaluation(given: dict[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """When there are validations and checkpoints, and what the best model is.

    Args:
        given: what is not read yet.
        said: the settings that are.
    """
    settings: dict[str, Any] = {}
    for name, setting, every in (
        ("eval_strategy", "evaluate_every", "eval_steps"),
        ("evaluation_strategy", "evaluate_every", "eval_steps"),
        ("save_strategy", "save_every", "save_steps"),
    ):
        if name not in given:
            continue
        strategy = given.pop(name)
        if strategy == "no":
            settings[setting] = 0
        elif strategy == "steps" and said.get(setting) is None and setting == "evaluate_every":
            settings[setting] = said.get("log_every") or _LOGGING_STEPS
        elif strategy != "steps":
            raise ValueError(f"{name} must be 'steps' or 'no', got {strategy!r}. Name {every}")
    keeps_best = given.pop("load_best_model_at_end", False)
    metric = given.pop("metric_for_best_model", None)
    greater = given.pop("greater_is_better", None)
    if metric is not None and not keeps_best:
        raise ValueError(
            f"load_best_model_at_end must be True with metric_for_best_model={metric!r}, got False. "
            "The finished model is then the best one"
        )
    if not keeps_best:
        return settings
    best = (metric or "loss").removeprefix("eval_")
    if best not in _METRICS:
        raise ValueError(
            f"metric_for_best_model must be one of {', '.join(_METRICS)}, got {metric!r}. These are "
            "measured on validation questions"
        )
    if greater not in (None, _METRICS[best]):
        raise ValueError(
            f"greater_is_better must be {_METRICS[best]} for {best}, got {greater}. Leave it out"
        )
    return {**settings, "best_metric": best}


def _reports(given: dict[str, Any]) -> dict[str, Any]:
    places = given.pop("report_to", None) or []
    if isinstance(places, str):
        places = [places]
    if places == ["tensorboard"]:
        return {"tensorboard": True}
    if places in ([], ["none"]):
        return {}
    raise ValueError(
        f"report_to must be 'tensorboard' or 'none', got {places!r}. A callback can write anywhere: "
        "see rag_core.training.Callback"
    )


def _refusal(name: str, value: Any) -> ValueError:
    known = [*SAME, *_ELSEWHERE, *_ANYWAY, *_REASONS, "max_steps", "bf16", "fp16", "report_to"]
    known += ["warmup_steps", "warmup_ratio"]
    reason = _REASONS.get(name, "a run here has nothing like it")
    near = get_close_matches(name, known, 1)
    if name not in known and near:
        reason = f"did you mean {near[0]}?"
    return ValueError(f"{name} must be left out, got {value!r:.80}: {reason}")
