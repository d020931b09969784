"""What a run does besides learning, without a framework: the best model, stopping early, callbacks,
what people see.
"""

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from rag_core.training.best import BestWeights
from rag_core.training.config import TrainingConfig
from rag_core.training.data import Example
from rag_core.training.loop import run_steps
from rag_core.training.processes import ALONE
from rag_core.training.report import TrainingReport
from rag_core.training.tensorboard import TensorBoard
from rag_core.training.window import CollapseWatch, MetricsWindow
from rag_core.training.words import progress_line


class Run:
    """A run that is measured as told, one figure a step."""

    total = 8
    model = "the model"

    def __init__(self, out=None, scores=(0.0,) * 8, callbacks=(), **settings):
        self.config = TrainingConfig(steps=8, evaluate_every=1, save_every=3, **settings)
        self.out = out
        self.scores = scores
        self.callbacks = callbacks
        self.examples = self.measured = [Example("q", ("a",))] * 8
        self.report = TrainingReport()
        self.window = MetricsWindow()
        self.watch = CollapseWatch(self.report)
        self.best = BestWeights(None)
        self.optimizer = SimpleNamespace(param_groups=[{"peak": 1.0}])
        self.processes = ALONE
        self.events = []
        self.said = []
        self.tell = self.said.append
        self.tell_time = lambda seconds: None

    def step(self, examples, logs):
        self.window.tokens += 2
        self.window.add(10.0 - self.report.steps, np.zeros((1, 1)), None)

    def validate(self):
        score = self.scores[self.report.steps - 1]
        return {"exact_match": score, "f1": score, "validation_loss": -score}

    def refresh(self):
        pass

    def index_facts(self):
        return {}

    def keep_best(self):
        self.best.keep(self.report.steps, {"w": np.full(2, self.report.steps)})

    def save(self):
        self.events.append(f"checkpoint {self.report.steps}")

    def go(self):
        bar = SimpleNamespace(update=int, set_postfix_str=str, disable=True)
        clock = iter(range(10_000))
        run_steps(self, bar, lambda: float(next(clock)))
        return self.report


@pytest.mark.parametrize("metric", ["exact_match", "f1", "loss"])
def test_a_run_ends_when_nothing_got_better_and_knows_the_best_step(metric):
    run = Run(scores=[0.1, 0.3, 0.3, 0.2, 0.9, 0, 0, 0], best_metric=metric, early_stopping=2)
    report = run.go()
    assert (report.steps, report.stopped_at, report.best_step) == (4, 4, 2)
    assert run.best.read(2)["w"].tolist() == [2, 2]
    word = {"loss": "below -0.3"}.get(metric, "above 0.3")
    notes = report.notes()
    assert notes[0] == (
        f"Stopped early, after step 4: {metric} was not {word}, that of step 2, in 2 validations."
    )
    assert notes[1] == "The model is that of step 2, where it was best."
    patient = Run(scores=[0.1, 0.3, 0.3, 0.2, 0.9, 0, 0, 0], best_metric=metric, early_stopping=3)
    assert patient.go().steps == 8 and patient.report.best_step == 5


def test_settings_that_do_not_go_together():
    with pytest.raises(ValueError, match="best_metric must be named with early_stopping"):
        TrainingConfig(early_stopping=2)


def test_what_the_best_step_needs_is_there_whenever_a_run_is_killed(tmp_path):
    def files():
        return sorted(path.name for path in tmp_path.iterdir())

    best = BestWeights(tmp_path)
    best.keep(1, {"w": np.ones(2)})
    best.resume(1)  # a checkpoint that knows step 1 was written
    best.keep(2, {"w": np.full(2, 2.0)})
    best.keep(3, {"w": np.full(2, 3.0)})
    assert files() == ["checkpoint.best-1", "checkpoint.best-3"]
    after_a_kill = BestWeights(tmp_path)
    after_a_kill.resume(1)
    assert files() == ["checkpoint.best-1"] and after_a_kill.read(1)["w"].tolist() == [1, 1]
    (tmp_path / "checkpoint.best-1").write_bytes(b"torn")
    with pytest.raises(OSError, match=r"best-1 does not hold the weights of the best step.*Remove"):
        after_a_kill.read(1)
    with pytest.raises(OSError, match=r"best-7 is missing, which .*checkpoint needs"):
        after_a_kill.resume(7)
    BestWeights(tmp_path).resume(None)
    assert files() == []


class Watcher:
    def __init__(self, run_at=None):
        self.seen = []
        self.stop_at = run_at

    def on_step(self, progress):
        self.seen.append(("step", progress.step, progress.metrics["loss"], progress.logged))
        if progress.step == self.stop_at:
            progress.stop("enough")

    def on_save(self, progress):
        self.seen.append(("save", progress.step, progress.path.name))


def test_callbacks_see_steps_validations_and_saves_and_may_stop(tmp_path):
    watcher, events = Watcher(run_at=4), []

    def everything(progress):
        assert progress.model == "the model" and progress.total == 8
        events.append((progress.event, progress.step, dict(progress.metrics)))
        with pytest.raises(TypeError):
            progress.metrics["loss"] = 0.0
        with pytest.raises(AttributeError):
            progress.step = 0

    run = Run(tmp_path, [0.5] * 8, [watcher, everything], log_every=2)
    report = run.go()
    assert (report.steps, report.stopped_at) == (4, 4)
    assert report.notes()[0] == "Stopped early, after step 4: enough."
    assert [each[:3] for each in watcher.seen] == [
        ("step", 1, 5.0),
        ("step", 2, 4.5),
        ("step", 3, 4.0),
        ("save", 3, "checkpoint"),
        ("step", 4, 3.5),
        ("save", 4, "checkpoint"),
    ]
    assert [event for event, *_ in events] == [
        *("step", "evaluate") * 3, "save", "step", "evaluate", "save",
    ]  # fmt: skip
    assert events[1][2] == {"exact_match": 0.5, "f1": 0.5, "loss": -0.5}
    assert events[0][2]["tokens_per_second"] > 0 and events[0][2]["learning_rate"] > 0


def test_a_callback_that_fails_ends_the_run_with_a_checkpoint(tmp_path):
    def fails(progress):
        if progress.step == 5:
            raise KeyError("mine")

    run = Run(tmp_path, callbacks=[fails])
    with pytest.raises(KeyError, match="mine"):
        run.go()
    assert run.events == ["checkpoint 3", "checkpoint 5"]
    assert run.said[-1].endswith("checkpoint holds step 5.")


def test_a_log_line_for_people_fits_into_a_terminal():
    line = {
        "step": 9999.0,
        "loss": 12.3456,
        "exact_match": 1.0,
        "in_batch_accuracy": 0.5,
        "distinct_documents": 1.0,
        "prior_entropy": 0.324,
        "tokens_per_second": 123456.7,
    }
    text = progress_line(line, 10000, 3600.0)
    figures = " 9999/10000  loss 12.346  right 100%  in batch 50%  distinct 100%"
    assert text == f"{figures}  60 min left"  # no figure in part
    assert progress_line({"step": 5, "loss": 1.0}, 10, None) == " 5/10  loss 1.000"
    run = Run()
    run.go()
    assert [text.split()[0] for text in run.said] == [f"{step}/8" for step in range(1, 9)]


def test_tensorboard_reads_what_was_logged_also_after_a_kill(tmp_path, monkeypatch):
    # its reader prefers TensorFlow's files where that is installed
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", ModuleType("notf"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def dies(progress):
        if progress.step == 4:
            raise KeyboardInterrupt

    folder = tmp_path / "tensorboard"
    with pytest.raises(KeyboardInterrupt):
        Run(callbacks=[TensorBoard(folder), dies], scores=[0.25] * 8).go()
    resumed = Run(callbacks=[TensorBoard(folder)], scores=[0.75] * 8)
    resumed.report.steps = 2  # of the last checkpoint
    resumed.go()
    read = EventAccumulator(str(folder)).Reload()
    assert set(read.Tags()["scalars"]) == {
        *("train/loss", "train/prior_entropy", "train/learning_rate", "train/tokens_per_second"),
        *("validation/exact_match", "validation/f1", "validation/loss"),
    }
    points = {point.step: point.value for point in read.Scalars("validation/exact_match")}
    assert points == {step: 0.25 if step < 3 else 0.75 for step in range(1, 9)}
    assert len(read.Scalars("train/loss")) == 8


def test_tensorboard_that_is_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    with pytest.raises(ImportError, match=r"pip install 'dualrag\[tensorboard\]'"):
        TensorBoard(tmp_path)


THEIRS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 5,
    "max_steps": 70,
    "learning_rate": 1e-4,
    "warmup_ratio": 0.1,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "max_grad_norm": 0.5,
    "eval_strategy": "steps",
    "eval_steps": 10,
    "save_steps": 20,
    "logging_steps": 5,
    "seed": 42,
    "bf16": True,
    "fp16": False,
    "label_smoothing_factor": 0.1,
    "gradient_checkpointing": True,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_f1",
    "greater_is_better": True,
    "early_stopping_patience": 3,
    "report_to": ["tensorboard"],
    "output_dir": "tuned",
}


def test_names_of_training_arguments_are_settings():
    config = TrainingConfig.from_training_arguments(THEIRS)
    assert config == TrainingConfig(
        batch_size=4, accumulation=2, epochs=5, steps=70, learning_rate=1e-4, warmup_ratio=0.1,
        weight_decay=0.0, beta2=0.999, max_grad_norm=0.5, evaluate_every=10, save_every=20,
        log_every=5, seed=42, mixed_precision="bf16", label_smoothing=0.1,
        gradient_checkpointing=True, best_metric="f1", early_stopping=3, tensorboard=True,
    )  # fmt: skip
    assert config.warmup(70) == 7

    @dataclass
    class Arguments:
        output_dir: str
        learning_rate: float = 5e-5
        warmup_steps: int = 0
        deepspeed: str | None = None
        report_to: list = field(default_factory=list)

    found = TrainingConfig.from_training_arguments(Arguments("out", 1e-3, report_to=["wandb"]))
    assert found == TrainingConfig(learning_rate=1e-3)  # what is installed is named by itself
    with pytest.raises(ValueError, match=r"deepspeed must be left out.*whole model"):
        TrainingConfig.from_training_arguments(Arguments("out", deepspeed="ds.json"))


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({"eval_strategy": "steps", "logging_steps": 50}, {"evaluate_every": 50, "log_every": 50}),
        ({"eval_strategy": "steps"}, {"evaluate_every": 500}),
        ({"eval_strategy": "steps", "eval_steps": 7}, {"evaluate_every": 7}),
        ({"eval_strategy": "no", "eval_steps": 7}, {"evaluate_every": 0}),
        ({"save_strategy": "steps"}, {}),
        ({"warmup_steps": 0, "warmup_ratio": 0.1}, {"warmup_ratio": 0.1}),
        ({"warmup_steps": 5, "warmup_ratio": 0.1}, {"warmup_steps": 5}),
        ({"warmup_steps": 0}, {"warmup_steps": 0}),
        ({"warmup_steps": 0.2}, {"warmup_ratio": 0.2}),
        ({"warmup_ratio": 0.0}, {"warmup_ratio": 0.0}),
        ({"max_steps": 0, "num_train_epochs": 2}, {"epochs": 2}),
        ({"push_to_hub": False, "deepspeed": None, "fsdp": ""}, {}),
    ],
)
def test_training_arguments_mean_what_they_mean_in_transformers(given, settings):
    assert TrainingConfig.from_training_arguments(given) == TrainingConfig(**settings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"adam_beta1": 0.8}, "adam_beta1 must be left out, got 0.8: AdamW's first moment"),
        ({"optim": "adafactor"}, "the optimizer is AdamW"),
        ({"lr_scheduler_type": "cosine"}, "rises and falls linearly"),
        ({"bf16": True, "fp16": True}, "exclude each other"),
        ({"report_to": "wandb"}, r"report_to must be 'tensorboard' or 'none', got \['wandb'\]"),
        ({"eval_strategy": "epoch"}, "eval_strategy must be 'steps' or 'no'.*Name eval_steps"),
        ({"metric_for_best_model": "f1"}, "load_best_model_at_end must be True"),
        (
            {"load_best_model_at_end": True, "metric_for_best_model": "rouge"},
            "metric_for_best_model must be one of exact_match, f1, loss, got 'rouge'",
        ),
        (
            {"load_best_model_at_end": True, "greater_is_better": True},
            "greater_is_better must be False for loss",
        ),
        ({"push_to_hub": True}, r"push the finished model with its push_to_hub\(\)"),
        ({"learing_rate": 1}, "learing_rate must be left out, got 1: did you mean learning_rate"),
        ({"neftune_noise_alpha": 5}, "a run here has nothing like it"),
        ({"learning_rate": -1}, "learning_rate must be a finite number of at least 0|above 0"),
    ],
)
def test_training_arguments_that_cannot_be_honoured_are_refused_with_a_reason(given, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig.from_training_arguments(given)
