"""What a run leaves on disk: a checkpoint to go on from, and how the same run is known again.

A checkpoint is one safetensors file, exact to the bit: of each parameter `model.NAME`, the moments
`exp_avg.NAME` and `exp_avg_sq.NAME`, and `step.NAME`, how often it was updated; of a backend that
draws random numbers from a state, `rng.KIND`. `notes` is the rest as JSON: the report, the sums of the
log line to come, what the watch for a collapse has seen, the loss scale, and the run's fingerprint.
It was once in the metadata, of which a file can have 100 MB only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from rag_core.backends import to_numpy
from rag_core.checkpoint import CHECKPOINT_PATTERNS, weight_files
from rag_core.hub import (
    DamagedFileError,
    atomic_write,
    check_writable,
    clear,
    numbered,
    parse_json,
    read_json,
    reading,
    resolve_file,
)
from rag_core.knowledge import FILE as MANIFEST
from rag_core.knowledge import REMEMBERED, describe, spots
from rag_core.tokenization import TOKENIZER_PATTERNS
from rag_core.training.config import TrainingConfig
from rag_core.training.data import Example, measured_questions
from rag_core.training.report import REPORT, TrainingReport, is_report

CHECKPOINT = "checkpoint"
# The folder of encoders and indexes that a run makes on its way, see `reindexing`.
REINDEXING = "reindexing"
# What is in it: a folder a step.
STEP_FOLDERS = "[0-9]" * 8
# What a checkpoint holds of each parameter, in its shape.
MOMENTS = ("exp_avg", "exp_avg_sq")
_RANDOM = "rng."
_NOTES = "notes"
# How safetensors names a fault of the disk, and none of what is written.
_DISK = "I/O error"
# Numbers of a weight that tell a model: all weights move in a training.
_TOLD_BY = 1024
# Only TensorFlow's checkpoints say who wrote them.
_TF_WRITER = "rag_tf"
# Settings that leave the tuned weights as they are.
_OUTWARD = (
    "evaluate_every",
    "evaluate_first",
    "save_every",
    "log_every",
    "validation_size",
    "sample_size",
    "on_collapse",
    "on_nan",
    "gradient_checkpointing",
    "tensorboard",
)
# What differs where a hash does.
_DATA = {
    "examples_sha256": "other questions or answers, or in another order",
    "measured_sha256": "other questions to find the best step on",
    "model_sha256": "another model to start from",
    "kb_sha256": "another knowledge base, or changed since",
    "still_sha256": "other weights frozen (requires_grad, trainable)",
}
_DAMAGED = "is no checkpoint of a training run, or damaged"


def save_state(
    path: Path, backend: str, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any]
) -> None:
    """Write what is needed to go on, whole or not at all.

    Args:
        path: the file.
        backend: "torch" or "tf".
        arrays: all that the file is to hold, by name.
        notes: what else to keep, as JSON.

    Raises:
        OSError: it can't be written; an earlier checkpoint there is as it was.
    """
    if backend == "tf":
        notes = {**notes, "writer": _TF_WRITER}
    text = np.frombuffer(json.dumps(notes).encode(), np.uint8)
    save_arrays(path, {**arrays, _NOTES: text})


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as safetensors, whole or not at all.

    Raises:
        OSError: they can't be written; an earlier file there is as it was.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with atomic_write(path) as draft:
        try:
            save_file(dict(arrays), draft)
        except SafetensorError as error:
            advice = ""
            if _DISK in str(error):
                advice = " Make room and run it again."
            raise OSError(f"the checkpoint {path} can't be written ({error}).{advice}") from error


def load_state(
    path: Path,
    backend: str,
    shapes: Mapping[str, tuple[int, ...]],
    random_states: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `save_state` was given, checked against the run that is to go on.

    Args:
        path: the file.
        backend: "torch" or "tf".
        shapes: of the trained parameters, by name.
        random_states: the states of the random number generators here, by name.

    Raises:
        DamagedFileError: the file is damaged.
        ValueError: it is another framework's or holds other weights.
    """
    from safetensors import safe_open

    with reading(path, _DAMAGED, "Remove it."):
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        if _NOTES in arrays:
            text: bytes | str = arrays.pop(_NOTES).tobytes()
        else:
            text = metadata["state"]
        notes = _checked_notes(parse_json(text, path, advice="Remove it."), path)
    writer = "tf" if notes.pop("writer", None) == _TF_WRITER else "torch"
    if writer != backend:
        raise ValueError(
            f"{path} belongs to a run of the {writer} backend. Go on with that one, or remove it."
        )
    wrong = _misfits(arrays, shapes, random_states)
    if wrong:
        raise ValueError(
            f"{path} does not fit the model: {', '.join(wrong)} missing or of another shape. "
            "Remove it."
        )
    return arrays, notes


def _misfits(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    random_states: Mapping[str, np.ndarray],
) -> list[str]:
    """The names of arrays that are missing or of another shape or kind."""
    wrong = []
    for name, shape in shapes.items():
        for kind in ("model", *MOMENTS):
            array = arrays.get(f"{kind}.{name}")
            if array is None or array.shape != shape:
                wrong.append(f"{kind}.{name}")
        steps = arrays.get(f"step.{name}")
        if steps is None or steps.shape != () or not float(steps).is_integer():
            wrong.append(f"step.{name}")
    for name, array in arrays.items():
        if name.startswith(_RANDOM) and (array.dtype != np.uint8 or array.ndim != 1):
            wrong.append(name)
    # A GPU's state has no place to go where there is none, and the other way round.
    here = random_states.get("rng.cpu")
    if here is not None and getattr(arrays.get("rng.cpu"), "shape", None) != here.shape:
        wrong.append("rng.cpu")
    return sorted(set(wrong))


def _checked_notes(notes: dict[str, Any], path: Path) -> dict[str, Any]:
    """The notes in a checkpoint, as they are; refuses what a run could not go on from."""
    kinds = {"fingerprint": dict, "report": dict, "sums": dict, "scaler": dict | None}
    wrong = [
        name
        for name, kind in kinds.items()
        if name not in notes or not isinstance(notes[name], kind)
    ]
    if not wrong:
        scale = (notes["scaler"] or {}).values()
        if any(type(number) not in (int, float) for number in scale):
            wrong.append("scaler")
        elif not is_report(notes["report"]):
            wrong.append("report")
    if wrong:
        raise DamagedFileError(f"{path} {_DAMAGED} ({', '.join(wrong)}). Remove it.")
    return notes


def fingerprint(
    examples: Sequence[Example],
    config: TrainingConfig,
    measured: Sequence[Example] = (),
    processes: int = 1,
) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued.

    The settings that shape the run, how many processes make it, and the examples; where the best
    model is looked for, also when it is and on which questions.
    """
    settings = _settings(config)
    if config.best_metric is not None:
        settings["evaluate_every"] = config.evaluate_every
        settings["measured_sha256"] = _digest(measured)
    return {
        **settings,
        "processes": processes,
        "examples": len(examples),
        "examples_sha256": _digest(examples),
    }


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr(example).encode())
        if example.passages():
            digest.update(repr((example.positive, example.negatives)).encode())
    return digest.hexdigest()


def _settings(config: TrainingConfig) -> dict[str, Any]:
    """The settings that shape a run."""
    return {name: value for name, value in asdict(config).items() if name not in _OUTWARD}


def _as_of_today(run: Mapping[str, Any]) -> dict[str, Any]:
    """A stored fingerprint; settings that came after it have their defaults, as nothing else was
    done then.
    """
    return {**_settings(TrainingConfig()), "processes": 1, **run}


def source_fingerprint(
    model: str | Path, kb: str | Path, encoder: str | Path | None = None
) -> dict[str, str]:
    """What tells a model and a knowledge base from others, without reading all of them.

    Args:
        model: folder or repository.
        kb: folder.
        encoder: folder or repository of the passages' encoder, where that learns.

    Raises:
        OSError: a file is missing.
    """
    sources = {
        "model_sha256": _weights_sha256(model),
        "kb_sha256": describe(Path(kb) / MANIFEST)["sha256"],
    }
    if encoder is not None:
        sources["context_encoder_sha256"] = _weights_sha256(encoder)
    return sources


def _weights_sha256(model: str | Path) -> str:
    digest = hashlib.sha256(resolve_file(model, "config.json").read_bytes())
    for path in weight_files(model):
        digest.update(f"{path.stat().st_size} {spots(path)}".encode())
    return digest.hexdigest()


def check_same_base(kb: str | Path, manifest_sha256: str) -> None:
    """Refuse a knowledge base that is not the one that a run began with.

    Args:
        kb: its folder.
        manifest_sha256: of its manifest then.

    Raises:
        OSError: it is not there.
        ValueError: it has changed.
    """
    if describe(Path(kb) / MANIFEST)["sha256"] != manifest_sha256:
        raise ValueError(
            f"the knowledge base {kb} must be the one that the run began with, got another (its "
            f"{MANIFEST} has changed since). Put it back, or train into another folder."
        )


def start_fingerprint(*models: Any) -> dict[str, str]:
    """What tells models in memory from others, by the beginnings of their weights."""
    digest = hashlib.sha256()
    for model in models:
        for name, value in sorted(model.state_dict().items()):
            if hasattr(value, "shape"):
                array = to_numpy(value)
                digest.update(f"{name} {array.dtype} {array.shape}".encode())
                digest.update(array.reshape(-1)[:_TOLD_BY].tobytes())
    return {"start_sha256": digest.hexdigest()}


def names_sha256(names: Iterable[str]) -> str:
    """What tells weights from others by their names."""
    return hashlib.sha256(" ".join(sorted(names)).encode()).hexdigest()


def run_of(
    found: Mapping[str, Any], validation: Sequence[Example], start: Mapping[str, str]
) -> dict[str, Any]:
    """What a finished run says it was: its fingerprint, which questions it was validated on, and
    the model in memory that it started from; nothing of that where it started from files.
    """
    return {**found, "validation_sha256": _digest(validation), **start}


def check_fingerprint(
    stored: Mapping[str, Any], current: Mapping[str, Any], path: str | PathLike[str]
) -> None:
    """Refuse to continue another run.

    A setting that `stored` does not have counts as its default.

    Raises:
        ValueError: names each setting that differs, with both values.
    """
    stored = _as_of_today(stored)
    names = sorted(name for name in {*stored, *current} if stored.get(name) != current.get(name))
    if names:
        rows = "; ".join(
            _DATA.get(name, f"{name}: {stored.get(name)!r} there, {current.get(name)!r} now")
            for name in names
        )
        raise ValueError(
            f"{path} belongs to another run ({rows}). Give the settings and the data of that run "
            "to go on with it, choose another output folder, or remove it to begin anew."
        )


def check_out(out: Path) -> None:
    """Refuse a place for a tuned model before hours of training; finishes what a killed writer left
    there.

    Raises:
        FileExistsError: `out` is a file or a knowledge base, or holds files that would be
            overwritten and no model that they are of.
        OSError: nothing can be written to it.
    """
    if out.is_file():
        raise FileExistsError(f"{out} is a file: name a folder for the tuned model")
    if (out / MANIFEST).is_file():
        raise FileExistsError(f"{out} is a knowledge base: name another folder for the tuned model")
    check_writable(out)
    clear(out)
    if (out / "config.json").exists() or (out / CHECKPOINT).exists():
        return
    patterns = (REPORT, REMEMBERED, *CHECKPOINT_PATTERNS, *TOKENIZER_PATTERNS)
    held = [path.relative_to(out) for pattern in patterns for path in sorted(out.glob(pattern))]
    if held:
        raise FileExistsError(
            f"{out} holds {numbered(held)}, which a model would overwrite: name another folder for "
            "the tuned one"
        )


def finished_run(out: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """The report of a run, as a dictionary, where `out` holds its model already; None where there is
    something left to do.

    Args:
        out: the folder of the run.
        run: what it is, see `run_of`.

    Raises:
        FileExistsError: `out` holds another model.
    """
    if not (out / "config.json").exists() or (out / CHECKPOINT).exists():
        return None
    try:
        report = TrainingReport.from_dict(read_json(out / REPORT))
    except (OSError, TypeError, ValueError):
        report = TrainingReport()
    if _as_of_today(report.run or {}) != run:
        raise FileExistsError(
            f"{out} holds a model already: choose another folder for the tuned one"
        )
    forget_reindexing(out)  # left by one that was killed at its end
    return asdict(report)


def finished_before(
    out: str | Path,
    examples: Sequence[Example],
    config: TrainingConfig,
    validation: Sequence[Example],
    source: Mapping[str, Any],
    processes: int = 1,
) -> dict[str, Any] | None:
    """As `finished_run`, of a run from files, before any of these is opened.

    Raises:
        FileExistsError, OSError: as of `check_out` and `finished_run`.
    """
    out = Path(out)
    check_out(out)
    measured = measured_questions(examples, validation, config.validation_size, config.sample_size)
    this_run = {**fingerprint(examples, config, measured, processes), **source}
    return finished_run(out, run_of(this_run, validation[: config.validation_size], {}))


def forget_reindexing(out: Path) -> None:
    """Remove the encoders and indexes that a run made on its way, and nothing of somebody else's."""
    for folder in (out / REINDEXING).glob(STEP_FOLDERS):
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # it is not there, or holds more
        (out / REINDEXING).rmdir()
