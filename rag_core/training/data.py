"""The decisions of joint fine-tuning: what is trained on, in which order, how fast, and what a run
leaves on disk.

Everything here is a pure function of the settings and the step number, which is what makes a
resumed run equal an uninterrupted one. Lewis et al. 2020, section 2.4.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from rag_core import checks
from rag_core.hub import DamagedFileError, atomic_write, check_text, parse_object, read_lines

QUESTION_ENCODER_PARTS = ("all", "projection", "frozen")
MIXED_PRECISION = (None, "bf16", "fp16")
CHECKPOINT = "checkpoint"
REPORT = "training.json"


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a run.

    Attributes:
        steps: optimizer steps; None means `epochs` over the examples.
        epochs: passes over the examples where `steps` is None.
        batch_size: questions a forward pass.
        accumulation: forward passes an optimizer step.
        learning_rate: peak, for the generator.
        question_encoder_learning_rate: peak, for the question encoder; None = `learning_rate`.
        warmup_steps: steps of linear rise, then linear decay to 0 at the last step; None = a tenth
            of all steps, 100 at most.
        weight_decay: AdamW's, on matrices (not on biases and norms).
        beta2: AdamW's second moment decay.
        max_grad_norm: gradients are clipped to this norm over all parameters.
        question_encoder: "all", "projection" (its `encode_proj` only) or "frozen". Document vectors
            never change.
        on_collapse: "stop" ends the run with an error where the question encoder has come to ask
            for the same few documents whatever the question, "warn" goes on and says so in the
            report (`TrainingReport.notes`).
        mixed_precision: None (float32), "bf16" or "fp16" (a GPU only; with loss scaling).
        n_docs: documents a question; None = the model's.
        label_smoothing: None = the model's.
        max_question_length: tokens of a question.
        max_target_length: tokens of an answer.
        seed: of the order of examples and of dropout.
        validation_size: at most so many validation questions are answered.
        evaluate_every: steps between validations; 0 = at the end only.
        save_every: steps between checkpoints; 0 = none.
        log_every: steps between log lines.

    Raises:
        TypeError, ValueError: naming the setting, the rule and what came. None is a setting's
            default.
    """

    steps: int | None = None
    epochs: float = 3.0
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 3e-5
    question_encoder_learning_rate: float | None = None
    warmup_steps: int | None = None
    weight_decay: float = 0.01
    beta2: float = 0.98
    max_grad_norm: float = 1.0
    question_encoder: str = "all"
    on_collapse: str = "stop"
    mixed_precision: str | None = None
    n_docs: int | None = None
    label_smoothing: float | None = None
    max_question_length: int = 64
    max_target_length: int = 48
    seed: int = 0
    validation_size: int = 200
    evaluate_every: int = 0
    save_every: int = 200
    log_every: int = 10

    def __post_init__(self) -> None:
        for each in fields(self):
            value = checks.option(
                _RULES[each.name], each.name, getattr(self, each.name), each.default
            )
            object.__setattr__(self, each.name, value)

    def total_steps(self, examples: int) -> int:
        """Optimizer steps of the whole run over so many examples."""
        return self.steps or max(
            1, round(self.epochs * examples / (self.batch_size * self.accumulation))
        )

    def warmup(self, total_steps: int) -> int:
        """Steps of rising learning rate in a run of so many steps."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return min(100, total_steps // 10)


# Room for a batch and for a row of tokens is made at once, and no run has more steps.
_LARGEST, _STEPS = 2**16, 10**8
_RULES: dict[str, checks.Rule] = {
    "steps": checks.whole(1, _STEPS, optional=True),
    "epochs": checks.number(0, _STEPS, above=True),
    "batch_size": checks.whole(1, _LARGEST),
    "accumulation": checks.whole(1, _LARGEST),
    "learning_rate": checks.number(0, above=True),
    "question_encoder_learning_rate": checks.number(0, optional=True),
    "warmup_steps": checks.whole(0, _STEPS, optional=True),
    "weight_decay": checks.number(0),
    "beta2": checks.number(0, 1, below=True),
    "max_grad_norm": checks.number(0, above=True),
    "question_encoder": checks.one_of(QUESTION_ENCODER_PARTS),
    "on_collapse": checks.one_of(("stop", "warn")),
    "mixed_precision": checks.one_of(MIXED_PRECISION),
    "n_docs": checks.whole(1, _LARGEST, optional=True),
    "label_smoothing": checks.number(0, 1, optional=True),
    "max_question_length": checks.whole(1, _LARGEST),
    "max_target_length": checks.whole(1, _LARGEST),
    "seed": checks.whole(0, 2**63 - 1),
    "validation_size": checks.whole(0),
    "evaluate_every": checks.whole(0),
    "save_every": checks.whole(0),
    "log_every": checks.whole(1),
}


@dataclass(frozen=True)
class Example:
    """A question with its accepted answers, the first of which is trained on.

    Attributes:
        question: as typed.
        answers: at least one.
        passage: (title, text) to answer from; None = the documents that are retrieved.
        answerable: False says that the passage does not hold the answer: the generator is then to
            predict its mask token in place of every token of the answer, so that with RAG the
            passage leaves the word to others.
    """

    question: str
    answers: tuple[str, ...]
    passage: tuple[str, str] | None = None
    answerable: bool = True


def read_examples(path: str | PathLike[str]) -> list[Example]:
    """Read a qa.jsonl: one `{"question": ..., "answer": ...}` a line; "answer" may be a list,
    "answers" is a synonym.

    A line may bring its own `"passage": {"title": ..., "text": ...}`, which is then read in place
    of retrieved ones, and say with `"answerable": false` that the answer is not in it (see
    `Example`).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a bad line (the message starts with file:line), or no line at all.
        OSError: it cannot be read.
    """
    examples: list[Example] = []
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file; name a jsonl of questions and answers")
    for number, line in read_lines(path):
        if line.strip():
            place = f"{path}:{number}"
            examples.append(_example(parse_object(line, place, first=not examples), place))
    if not examples:
        raise ValueError(
            f"{path}: no question in it; expected lines like "
            + '{"question": "...", "answer": "..."}'
        )
    return examples


def _example(record: dict[str, Any], place: str) -> Example:
    question, answers = record.get("question"), record.get("answer", record.get("answers"))
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(question, str) or not question.strip():
        raise ValueError(
            f'{place}: "question" must be a text that is not empty, got {_came(record, "question")}'
        )
    if (
        not isinstance(answers, list)
        or not answers
        or not all(isinstance(a, str) and a.strip() for a in answers)
    ):
        came = _came(record, "answer", "answers")
        raise ValueError(
            f'{place}: "answer" must be a text or a list of texts, none of them empty, got {came}'
        )
    passage = record.get("passage")
    if passage is not None:
        if not isinstance(passage, dict) or not isinstance(passage.get("text"), str):
            raise ValueError(
                f'{place}: "passage" must be an object with title and text, got {passage!r}'
            )
        title = passage.get("title")
        if not isinstance(title, str | None):
            raise ValueError(f'{place}: "title" of "passage" must be a text, got {title!r}')
        passage = (title or "", passage["text"])
    answerable = record.get("answerable", True)
    if not isinstance(answerable, bool) or (passage is None and not answerable):
        raise ValueError(
            f'{place}: "answerable" must be true, or false beside a "passage", got {answerable!r}'
        )
    for name, texts in (("question", [question]), ("answer", answers), ("passage", passage or ())):
        for text in texts:
            check_text(text, place, f'"{name}"')
    return Example(question.strip(), tuple(a.strip() for a in answers), passage, answerable)


def _came(record: dict[str, Any], *names: str) -> str:
    """What came under the first of the names that is there; the keys where none is."""
    for name in names:
        if name in record:
            return f"{record[name]!r:.80}"
    return f"an object with the keys {sorted(record)!r:.120}. Rename one"


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """Share of the peak learning rate at `step` (from 0).

    Linear rise, then linear decay that ends at 0.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


class DataOrder:
    """Which examples each forward pass sees: a fresh permutation every epoch, known from the seed
    alone.

    Args:
        size: number of examples.
        seed: of the permutations.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def rows(self, start: int, count: int) -> list[int]:
        """Examples number `start` to `start + count` of the endless sequence."""
        return [self._row(position) for position in range(start, start + count)]

    def _row(self, position: int) -> int:
        epoch, offset = divmod(position, self.size)
        if epoch != self._epoch:
            self._epoch, self._permutation = (
                epoch,
                np.random.default_rng((self.seed, epoch)).permutation(self.size),
            )
        return int(self._permutation[offset])


def fingerprint(examples: Sequence[Example], config: TrainingConfig) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued.

    The settings that shape the run, and the examples.
    """
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr(example).encode())
    outward = ("evaluate_every", "save_every", "log_every", "validation_size", "on_collapse")
    settings = {name: value for name, value in asdict(config).items() if name not in outward}
    return {**settings, "examples": len(examples), "examples_sha256": digest.hexdigest()}


def run_of(found: Mapping[str, Any], validation: Sequence[Example]) -> dict[str, Any]:
    """What a finished run says it was: its fingerprint, and which questions it was validated on."""
    digest = hashlib.sha256("".join(map(repr, validation)).encode()).hexdigest()
    return {**found, "validation_sha256": digest}


def checked_state(state: dict[str, Any], path: str | PathLike[str]) -> dict[str, Any]:
    """The notes in a checkpoint of a training run, as they are.

    Raises:
        DamagedFileError: what a run needs to go on is missing or of another kind.
    """
    wanted = {"fingerprint": dict, "report": dict, "sums": dict, "scaler": dict | None}
    wrong = [
        name
        for name, kind in wanted.items()
        if name not in state or not isinstance(state[name], kind)
    ]
    numbers = [
        value for value in (state.get("scaler") or {}).values() if type(value) not in (int, float)
    ]
    if wrong or numbers or not _is_report(state["report"]):
        what = ", ".join(wrong) or ("scaler" if numbers else "report")
        raise DamagedFileError(
            f"{path} is no checkpoint of a training run, or damaged ({what}). Remove it."
        )
    return state


def _is_report(values: dict[str, Any]) -> bool:
    """Whether numbers are where `TrainingReport` has numbers."""
    apart = ("history", "run")
    numbers = {
        name: value for name, value in values.items() if name not in apart and value is not None
    }
    history = values.get("history", [])
    if (
        not isinstance(values.get("run"), dict | None)
        or not isinstance(history, list)
        or not all(isinstance(line, dict) for line in history)
    ):
        return False
    counts = [numbers[name] for name in ("steps", "collapsed_at") if name in numbers]
    given = [
        *numbers.values(),
        *(value for line in history for value in line.values() if value is not None),
    ]
    return all(type(each) is int for each in counts) and all(
        type(each) in (int, float) for each in given
    )


def check_fingerprint(
    found: dict[str, Any], wanted: dict[str, Any], folder: str | PathLike[str]
) -> None:
    """Refuse to continue another run.

    Raises:
        ValueError: names each setting that differs, with both values.
    """
    names = sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))
    if names:
        rows = "; ".join(
            f"{name}: {found.get(name)!r} there, {wanted.get(name)!r} now" for name in names
        )
        raise ValueError(
            f"{folder} belongs to another run ({rows}). Remove it, or choose another output folder."
        )


# A loss that fell by less than this share says that next to nothing was learned.
_LEARNED = 0.05


@dataclass
class TrainingReport:
    """What a run did.

    Attributes:
        steps: optimizer steps done.
        history: the log lines, in order: step, loss (nats a token), learning_rate,
            distinct_documents (share of documents retrieved in the batch that differ),
            posterior_entropy and prior_entropy (nats), and where validated exact_match.
        exact_match: of the last validation; None without validation questions.
        seconds: wall time, summed over resumed parts.
        first_loss: of the first step, nats a token.
        distinct_at_start: share of different documents among those that the run's first questions
            found.
        collapsed_at: the step at which retrieval was seen to have collapsed; None if it was not.
        run: of a finished run, the settings and examples that it was, by which the same run is
            known again.
    """

    steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    exact_match: float | None = None
    seconds: float = 0.0
    first_loss: float | None = None
    distinct_at_start: float | None = None
    collapsed_at: int | None = None
    run: dict[str, Any] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """What a person should know before using the model.

        That it hardly learned, that retrieval collapsed.
        """
        notes = [] if self.collapsed_at is None else [self.collapse()]
        last = self.history[-1]["loss"] if self.history else None
        if (
            last is not None
            and self.first_loss is not None
            and last > (1 - _LEARNED) * self.first_loss
        ):
            notes.append(
                f"The loss went from {self.first_loss:.2f} to {last:.2f} nats a token in "
                f"{self.steps} steps: the model has hardly learned. Train longer (steps, epochs) "
                "or faster (learning_rate)."
            )
        return notes

    def collapse(self) -> str:
        """What a collapse of retrieval is, and what to do."""
        return (
            f"Retrieval collapsed by step {self.collapsed_at}: whatever the question, the same "
            f"few documents are found ({self.distinct_at_start:.0%} of them differed at the "
            "start). Leave the question encoder as it is (question_encoder 'frozen'), or let it "
            "learn slower (question_encoder_learning_rate, a tenth or less of learning_rate), and "
            "start again in another folder. on_collapse 'warn' goes on all the same."
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingReport:
        """The inverse of `dataclasses.asdict`.

        Raises:
            TypeError: numbers are missing where they belong.
        """
        if not _is_report(values):
            raise TypeError("its report holds no numbers")
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    def write(self, path: str | PathLike[str]) -> None:
        """Write it as JSON, whole or not at all."""
        with atomic_write(Path(path)) as draft:
            draft.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive pieces of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
