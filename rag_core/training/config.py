"""The settings of joint fine-tuning (Lewis et al. 2020, section 2.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from rag_core import checks

GENERATOR_PARTS = ("all", "frozen")
ENCODER_PARTS = ("all", "projection", "frozen")
RETRIEVER_LOSSES = ("emdr2", "pdist", "contrastive")
BEST_METRICS = ("exact_match", "f1", "loss")
MIXED_PRECISION = (None, "bf16", "fp16")


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a run.

    A stored run that lacks a setting, as it came later, counts as one with its default: a new
    setting's default is what was done before.

    Attributes:
        steps: optimizer steps; None means `epochs` over the examples.
        epochs: passes over the examples where `steps` is None.
        batch_size: questions a forward pass, of each process.
        accumulation: forward passes an optimizer step.
        learning_rate: peak, for the generator.
        question_encoder_learning_rate: peak, for the question encoder; None = `learning_rate`.
        context_encoder_learning_rate: peak, for the context encoder; None = the question encoder's.
        warmup_steps: steps of linear rise, then linear decay to 0 at the last step; None =
            `warmup_ratio` of all steps, or else a tenth, 100 at most.
        warmup_ratio: share of all steps, where `warmup_steps` is None.
        weight_decay: AdamW's, on matrices (not on biases and norms).
        beta2: AdamW's second moment decay.
        max_grad_norm: gradients are clipped to this norm over all parameters.
        generator: what of it learns, "all" or "frozen".
        question_encoder: "all", "projection" (its `encode_proj` only) or "frozen".
        context_encoder: the same of the encoder of passages, which then must be given (or be the
            model's, see `set_context_encoder_for_training`). With "frozen" the vectors of passages
            never change.
        reindex_every: steps between starts of embedding all passages anew, where the context
            encoder learns (see `rag_core.training.schedule`); 0 = at the end only.
        overretrieve: so many times `n_docs` documents are found by the vectors of the index, which
            are of earlier weights, and the best of them by those of today are read.
        retriever_loss: what teaches the retriever besides the marginal likelihood of the answers,
            whose gradient it has anyway: None (nothing), "emdr2", "pdist" or "contrastive" (each
            question is to find its own passage among those of the forward pass). See
            docs/training.md.
        retriever_loss_weight: its factor; it is a mean over questions, in nats.
        answer_loss_weight: the factor of the answers' loss, a mean over tokens, in nats; 0 leaves
            it out, and the generator is frozen.
        distillation_temperature: of "pdist": p(y|x, z) is taken to the power of 1 / temperature.
        hard_negatives: of "contrastive": so many passages a question that look like the right one;
            those that an example names, and then such as the index gives.
        mine_from, mine_to: the index gives negatives from these ranks, 1 = the best; passages that
            hold an answer are passed over. An example that names no positive takes the best passage
            up to `mine_to` that holds one.
        on_collapse: "stop" ends the run with an error where the question encoder has come to ask
            for the same few documents whatever the question, "warn" goes on and says so in the
            report (`TrainingReport.notes`).
        on_nan: "stop" ends the run with an error where a loss or gradient is infinite or NaN, and
            keeps the state before that step; "skip" passes over such steps, of which the report
            tells how many there were, and ends the run at the third in a row. A step that float16's
            loss scaling passes over is none of them.
        mixed_precision: None (float32), "bf16" or "fp16" (a GPU only; with loss scaling).
        gradient_checkpointing: keep of each layer its input alone, and compute the rest once more:
            less memory, more time, the same gradients.
        n_docs: documents a question; None = the model's.
        label_smoothing: None = the model's.
        max_question_length: tokens of a question.
        max_target_length: tokens of an answer.
        seed: of the order of examples and of dropout.
        validation_size: at most so many validation questions are answered.
        sample_size: without validation questions, so many of those trained on are answered in
            their place; 0 = none.
        evaluate_first: answer them before the first step, too.
        evaluate_every: steps between validations; 0 = at the end only.
        best_metric: "exact_match", "f1" or "loss" of the validations: the finished model is that of
            the best of them, not the last one.
        early_stopping: end the run after so many validations without a better `best_metric`; 0 =
            never.
        save_every: steps between checkpoints; 0 = none.
        log_every: steps between log lines.
        tensorboard: write them for TensorBoard, too, into the folder `tensorboard` of `out`.

    Raises:
        TypeError, ValueError: naming the setting, the rule and what came. None is a setting's
            default.
        ValueError: nothing learns, or nothing is minimised.
    """

    steps: int | None = None
    epochs: float = 3.0
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 3e-5
    question_encoder_learning_rate: float | None = None
    context_encoder_learning_rate: float | None = None
    warmup_steps: int | None = None
    warmup_ratio: float | None = None
    weight_decay: float = 0.01
    beta2: float = 0.98
    max_grad_norm: float = 1.0
    generator: str = "all"
    question_encoder: str = "all"
    context_encoder: str = "frozen"
    reindex_every: int = 0
    overretrieve: int = 1
    retriever_loss: str | None = None
    retriever_loss_weight: float = 1.0
    answer_loss_weight: float = 1.0
    distillation_temperature: float = 1.0
    hard_negatives: int = 0
    mine_from: int = 1
    mine_to: int = 50
    on_collapse: str = "stop"
    on_nan: str = "stop"
    mixed_precision: str | None = None
    gradient_checkpointing: bool = False
    n_docs: int | None = None
    label_smoothing: float | None = None
    max_question_length: int = 64
    max_target_length: int = 48
    seed: int = 0
    validation_size: int = 200
    sample_size: int = 0
    evaluate_first: bool = False
    evaluate_every: int = 0
    best_metric: str | None = None
    early_stopping: int = 0
    save_every: int = 200
    log_every: int = 10
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for each in fields(self):
            given, hint = getattr(self, each.name), _HINTS.get(each.name, "")
            value = checks.option(_RULES[each.name], each.name, given, each.default, hint)
            object.__setattr__(self, each.name, value)
        self._check_together()

    def _check_together(self) -> None:
        """Refuse settings that are fine by themselves alone."""
        if self.early_stopping and self.best_metric is None:
            raise ValueError(
                "best_metric must be named with early_stopping, got None. Choose one of "
                f"{', '.join(BEST_METRICS)}"
            )
        if not self.answer_loss_weight:
            object.__setattr__(self, "generator", "frozen")
            if self.retriever_loss is None:
                raise ValueError(
                    "answer_loss_weight must be above 0 without a retriever_loss, got 0. Nothing "
                    "would be minimised"
                )
        if self.hard_negatives and self.retriever_loss != "contrastive":
            raise ValueError(
                "hard_negatives must be 0 without retriever_loss='contrastive', got "
                f"{self.hard_negatives}. Name that loss, or leave them out"
            )
        if self.mine_from > self.mine_to:
            raise ValueError(
                f"mine_from must be at most mine_to, {self.mine_to}, got {self.mine_from}"
            )
        if self.question_encoder == self.context_encoder == "frozen":
            if self.generator == "frozen":
                raise ValueError(
                    "generator, question_encoder or context_encoder must learn, got 'frozen' for "
                    "all three. Choose 'all' for one"
                )
            if self.retriever_loss is not None:
                raise ValueError(
                    "question_encoder or context_encoder must learn with retriever_loss="
                    f"{self.retriever_loss!r}, got 'frozen' for both. Choose 'all' for one"
                )
        for name, idle in (("reindex_every", 0), ("overretrieve", 1)):
            value = getattr(self, name)
            if self.context_encoder == "frozen" and value != idle:
                raise ValueError(
                    f"{name} must be {idle} with context_encoder='frozen', whose vectors never "
                    f"change, got {value}. Leave it out, or let the encoder learn"
                )

    @property
    def reads_documents(self) -> bool:
        """Whether documents are searched, and answers predicted from them."""
        return self.answer_loss_weight > 0 or self.retriever_loss != "contrastive"

    @classmethod
    def from_training_arguments(cls, arguments: Any) -> TrainingConfig:
        """The settings that transformers' `TrainingArguments` say.

        Args:
            arguments: a mapping of their names, or an object, of which what is off its default
                counts. All else has the defaults of here.

        Raises:
            TypeError: it is neither.
            ValueError: what cannot be honoured, and why.
        """
        from rag_core.training.arguments import settings_from_arguments

        return cls(**settings_from_arguments(arguments))

    def questions_a_step(self, processes: int = 1) -> int:
        """Questions that an optimizer step sees, of all processes."""
        return self.batch_size * self.accumulation * processes

    def total_steps(self, examples: int, processes: int = 1) -> int:
        """Optimizer steps of the whole run over so many examples."""
        return self.steps or max(
            1, round(self.epochs * examples / self.questions_a_step(processes))
        )

    def warmup(self, total_steps: int) -> int:
        """Steps of rising learning rate in a run of so many steps."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        if self.warmup_ratio is not None:
            return math.ceil(self.warmup_ratio * total_steps)
        return min(100, total_steps // 10)


# Room for a batch and for a row of tokens is made at once, and no run has more steps.
_LARGEST, _STEPS = 2**16, 10**8
_RULES: dict[str, checks.Rule] = {
    "steps": checks.whole(1, _STEPS, optional=True),
    "epochs": checks.number(0, _STEPS, above=True),
    "batch_size": checks.whole(1, _LARGEST),
    "accumulation": checks.whole(1, _LARGEST),
    "learning_rate": checks.number(0, above=True),
    "question_encoder_learning_rate": checks.number(0, above=True, optional=True),
    "context_encoder_learning_rate": checks.number(0, above=True, optional=True),
    "warmup_steps": checks.whole(0, _STEPS, optional=True),
    "warmup_ratio": checks.number(0, 1, optional=True),
    "weight_decay": checks.number(0),
    "beta2": checks.number(0, 1, below=True),
    "max_grad_norm": checks.number(0, above=True),
    "generator": checks.one_of(GENERATOR_PARTS),
    "question_encoder": checks.one_of(ENCODER_PARTS),
    "context_encoder": checks.one_of(ENCODER_PARTS),
    "reindex_every": checks.whole(0, _STEPS),
    "overretrieve": checks.whole(1, _LARGEST),
    "retriever_loss": checks.one_of((None, *RETRIEVER_LOSSES)),
    "retriever_loss_weight": checks.number(0, above=True),
    "answer_loss_weight": checks.number(0),
    "distillation_temperature": checks.number(0, above=True),
    "hard_negatives": checks.whole(0, _LARGEST),
    "mine_from": checks.whole(1, _LARGEST),
    "mine_to": checks.whole(1, _LARGEST),
    "on_collapse": checks.one_of(("stop", "warn")),
    "on_nan": checks.one_of(("stop", "skip")),
    "mixed_precision": checks.one_of(MIXED_PRECISION),
    "gradient_checkpointing": checks.switch(),
    "n_docs": checks.whole(1, _LARGEST, optional=True),
    "label_smoothing": checks.number(0, 1, optional=True),
    "max_question_length": checks.whole(1, _LARGEST),
    "max_target_length": checks.whole(1, _LARGEST),
    "seed": checks.whole(0, 2**63 - 1),
    "validation_size": checks.whole(0),
    "sample_size": checks.whole(0),
    "evaluate_first": checks.switch(),
    "evaluate_every": checks.whole(0),
    "best_metric": checks.one_of((None, *BEST_METRICS)),
    "early_stopping": checks.whole(0),
    "save_every": checks.whole(0),
    "log_every": checks.whole(1),
    "tensorboard": checks.switch(),
}
# What to do about a value that is refused.
_HINTS = {
    f"{part}_learning_rate": f"With {part}='frozen' it stays as it is"
    for part in ("question_encoder", "context_encoder")
}


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """Share of the peak learning rate at `step` (from 0).

    Linear rise, then linear decay that ends at 0.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
