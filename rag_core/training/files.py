"""The files of a training run: its checkpoint, read and written, and the folder of its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.backends import to_numpy
from rag_core.checkpoint import CHECKPOINT_PATTERNS
from rag_core.hub import DamagedFileError, atomic_folder, clear
from rag_core.knowledge import REMEMBERED, KnowledgeBase, remember_base
from rag_core.tokenization import TOKENIZER_PATTERNS
from rag_core.training.best import BEST_PATTERN
from rag_core.training.card import CARD, tuned_card
from rag_core.training.report import REPORT, TrainingReport
from rag_core.training.state import (
    CHECKPOINT,
    REINDEXING,
    STEP_FOLDERS,
    check_fingerprint,
    forget_reindexing,
    load_state,
    run_of,
    save_state,
)
from rag_core.training.window import CollapseWatch, MetricsWindow
from rag_core.training.words import measured_on

if TYPE_CHECKING:
    from rag_core.training.run import TrainingRun


@dataclass(frozen=True)
class Origin:
    """What a run from files started from.

    Attributes:
        model: folder or hub name of the model.
        base: the knowledge base.
        fingerprints: what tells both from others.
    """

    model: str | Path
    base: KnowledgeBase
    fingerprints: Mapping[str, Any]


def read_checkpoint(run: TrainingRun) -> None:
    """Go on from the checkpoint in `out`, if there is one.

    Raises:
        DamagedFileError: it is damaged.
        ValueError: it is another run's.
    """
    if run.out is None:
        return
    out, processes = run.out, run.processes
    path = out / CHECKPOINT
    processes.lead(lambda: clear(out))
    if not processes.lead(path.exists):
        processes.lead(lambda: run.best.resume(None))
        return
    shapes = {name: tuple(value.shape) for name, value in run.parameters.items()}
    here = {name: to_numpy(state) for name, state in run.random_states().items()}
    arrays, notes = load_state(path, run.backend, shapes, here)
    try:
        report = TrainingReport.from_dict(notes["report"])
        window = MetricsWindow.from_sums(notes["sums"])
        watch = CollapseWatch(report)
        watch.load_state(notes.get("watch"))
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise DamagedFileError(
            f"{path} is no checkpoint of a training run, or damaged ({error}). Remove it."
        ) from None
    check_fingerprint(notes["fingerprint"], run.fingerprint, path)
    for name in run.parameters:
        kinds = ("model", "exp_avg", "exp_avg_sq", "step")
        run.set_parameter_state(name, {kind: arrays[f"{kind}.{name}"] for kind in kinds})
    own = {name: arrays[_of_process(name, processes.rank)] for name in here}
    run.set_random_states({**arrays, **own})
    run.scaler.load_state_dict(notes["scaler"] or {})
    processes.lead(lambda: run.best.resume(report.best_step))
    run.report = report
    run.window = window
    run.watch = watch


def write_checkpoint(run: TrainingRun) -> None:
    """Write a checkpoint, with the random states of all processes."""
    if run.out is None:
        return
    path = run.out / CHECKPOINT
    states = {name: to_numpy(state).tolist() for name, state in run.random_states().items()}
    everyone = run.processes.exchange(states)
    run.processes.lead(lambda: _write_checkpoint(run, path, everyone))


def _of_process(name: str, rank: int) -> str:
    """The name in a checkpoint of a random state of one of its processes."""
    if rank == 0:
        return name
    return f"{name}.{rank}"


def _write_checkpoint(
    run: TrainingRun, path: Path, random_states: Sequence[Mapping[str, list[int]]]
) -> None:
    arrays = {
        _of_process(name, rank): np.asarray(state, np.uint8)
        for rank, states in enumerate(random_states)
        for name, state in states.items()
    }
    for name in run.parameters:
        for kind, tensor in run.parameter_state(name).items():
            arrays[f"{kind}.{name}"] = to_numpy(tensor)
    notes = {
        "report": asdict(run.report),
        "fingerprint": run.fingerprint,
        "sums": run.window.sums(),
        "watch": run.watch.state(),
        "scaler": run.scaler.state_dict(),
    }
    save_state(path, run.backend, arrays, notes)
    run.best.resume(run.report.best_step)


def write_model(run: TrainingRun) -> None:
    """Put the tuned model in the checkpoint's place, all of it at once.

    A part would be no end and no middle.
    """
    if run.out is None:
        return
    run.report.run = run_of(run.fingerprint, run.validation, run.start)
    out = run.out
    run.processes.lead(lambda: _write_model(run, out))
    if run.live is not None:
        run.live.search_finished()


def _write_model(run: TrainingRun, out: Path) -> None:
    stale = [CHECKPOINT, BEST_PATTERN, f"{REINDEXING}/{STEP_FOLDERS}/**/*"]
    stale += [*CHECKPOINT_PATTERNS, *TOKENIZER_PATTERNS]
    with atomic_folder(out, stale=stale) as draft:
        base = None
        if run.origin is not None:
            base = run.origin.base
        if run.live is not None:
            base = run.live.settle(draft) or base
        run.model.save_pretrained(draft)
        run.tokenizer.save_pretrained(draft)
        run.report.write(draft / REPORT)
        if base is not None:
            remember_base(draft / REMEMBERED, out, base)
            if run.origin is not None and not (out / CARD).exists():  # else somebody's own
                _write_card(run, draft, run.origin, base, out.resolve().name)
    forget_reindexing(out)  # empty folders


def _write_card(
    run: TrainingRun, folder: Path, origin: Origin, base: KnowledgeBase, name: str
) -> None:
    place = base.path.name
    if base.path.parent == folder:
        place = f"{name}/{place}"
    measured = measured_on(len(run.measured), bool(run.validation))
    text = tuned_card(
        name,
        type(run.model).__name__,
        origin.model,
        base,
        place,
        run.config,
        run.report,
        len(run.examples),
        measured,
    )
    (folder / CARD).write_text(text, encoding="utf-8")
