"""The steps of a run without a framework: what is watched, said and stopped."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_core.training.config import TrainingConfig
from rag_core.training.data import Example
from rag_core.training.loop import RetrievalCollapse, run_steps
from rag_core.training.processes import ALONE
from rag_core.training.report import TrainingReport
from rag_core.training.window import CollapseWatch, MetricsWindow

APART = np.arange(20).reshape(4, 5)  # four questions, documents of their own each
SAME = np.tile(np.arange(5), (4, 1))  # the same five for all


class Run:
    """A run that learns as told: documents and loss of each step."""

    measured = callbacks = ()
    model = None
    out = None

    def __init__(self, steps, **settings):
        self.steps = steps
        self.config = TrainingConfig(steps=len(steps), batch_size=4, **settings)
        self.total = len(steps)
        self.examples = [Example("q", ("a",))] * 8
        self.report = TrainingReport()
        self.window = MetricsWindow()
        self.watch = CollapseWatch(self.report)
        self.rates = []
        self.optimizer = SimpleNamespace(param_groups=[{"peak": 1.0}])
        self.processes = ALONE
        self.times = []
        self.tell_time = self.times.append
        self.said = []
        self.tell = self.said.append

    def refresh(self):
        pass

    def index_facts(self):
        return {}

    def step(self, examples, logs):
        ids, loss = self.steps[self.report.steps]
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        self.window.tokens += 1
        self.window.add(loss, np.zeros((1, 1)), ids)


def go(steps, kind=Run, **settings):
    run = kind(steps, **settings)
    bar = SimpleNamespace(update=lambda: None, set_postfix_str=lambda text: None, disable=True)
    run_steps(run, bar, lambda: 0.0)
    return run


def test_a_collapse_stops_the_run_or_is_said_at_its_end():
    steps = [(APART, 9.0)] * 4 + [(SAME, 1.0)] * 12
    with pytest.raises(
        RetrievalCollapse,
        match=r"collapsed by step 10: .*50% of them differed.* 12% do now.*0\.0000 nats.*'frozen'"
        r".*another folder",
    ):
        go(steps)
    run = go(steps, on_collapse="warn")
    assert (run.report.steps, run.report.collapsed_at) == (16, 10)
    assert run.report.notes() == [run.report.collapse()]
    assert (
        go([(APART, 9.0)] * 8 + [(SAME, 9.0)] * 4 + [(APART, 1.0)] * 4).report.collapsed_at is None
    )


class Saving(Run):
    """A run that goes on from each checkpoint as another process would."""

    out = Path("out")

    def save(self):
        kept = json.loads(json.dumps([self.watch.state(), self.window.sums()]))
        self.watch = CollapseWatch(self.report)
        self.watch.load_state(kept[0])
        self.window = MetricsWindow.from_sums(kept[1])


@pytest.mark.parametrize("every", [0, 1, 2, 3])
def test_a_collapse_is_seen_at_the_same_step_however_often_the_run_is_saved_and_killed(every):
    steps = [(APART, 9.0)] * 4 + [(SAME, 1.0)] * 12
    run = go(steps, Saving, on_collapse="warn", save_every=every, log_every=8)
    assert run.report.collapsed_at == 10
    assert [line["distinct_documents"] for line in run.report.history] == [0.625, 0.25]


def test_a_window_holds_no_ids_but_those_of_its_last_step_and_old_checkpoints_are_read():
    run = go([(APART, 9.0)] * 3 + [(SAME, 9.0)], log_every=100)
    assert run.report.history[-1]["distinct_documents"] == (3 + 0.25) / 4
    window = MetricsWindow()
    window.add(1.0, np.zeros((1, 1)), SAME)
    assert "ids" not in window.sums() and "ids" in window.shared()
    window.tokens = 1
    old = {**window.sums(), "ids": [SAME.tolist()]}
    del old["distinct"]
    assert MetricsWindow.from_sums(old).line() == window.line()
    assert MetricsWindow.from_sums(old).sums() == window.sums()


@given(st.lists(st.integers(1, 7), min_size=30, max_size=40), st.integers(2, 5))
def test_a_small_knowledge_base_is_no_collapse_and_batches_of_any_size_are_judged_alike(
    sizes, n_docs
):
    few = np.arange(n_docs)  # all passages there are
    watch = CollapseWatch(TrainingReport())
    assert not any(watch.see([np.tile(few, (size, 1))]) for size in sizes)
    report = TrainingReport(distinct_at_start=0.9)
    watch = CollapseWatch(report)
    assert any(watch.see([np.tile(few, (size, 1))]) for size in sizes)


@pytest.mark.parametrize(("total", "warmup"), [(5, 0), (15, 1), (400, 40), (5000, 100)])
def test_warm_up_is_a_share_of_the_run(total, warmup):
    config = TrainingConfig(steps=total)
    assert config.warmup(total) == warmup
    assert TrainingConfig(warmup_steps=7).warmup(total) == 7


def test_every_step_of_a_short_run_counts_and_one_that_learns_nothing_says_so():
    run = go([(APART, 11.72)] * 14 + [(APART, 11.66)])
    assert max(run.rates) == 1.0
    [note] = run.report.notes()
    assert "from 11.72 to 11.7" in note
    assert "hardly learned" in note
    learned = go([(APART, 9.0)] * 10 + [(APART, 8.0)] * 10).report
    assert learned.notes() == []
    learned.exact_match = 0.0
    [note] = learned.notes()
    assert "Not one question is answered right after 20 steps" in note


def test_the_time_that_is_left_is_told_once_where_much_is_left():
    assert len(go([(APART, 1.0)] * 20).times) == 1
    assert go([(APART, 1.0)] * 9).times == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generator": "frozen", "question_encoder": "frozen"}, "generator, .*'frozen' for all"),
        ({"answer_loss_weight": 0.0}, "answer_loss_weight must be above 0 without"),
        ({"retriever_loss": "emdr2", "question_encoder": "frozen"}, "context_encoder must learn"),
        ({"retriever_loss": "emdr"}, "retriever_loss must be"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**settings)


def test_without_a_loss_of_the_answers_the_generator_stays():
    config = TrainingConfig(retriever_loss="emdr2", answer_loss_weight=0)
    assert config.generator == "frozen"


def test_the_log_is_a_table_of_some_ten_lines():
    history = [
        {"step": step, "loss": 9 - step / 100, "distinct_documents": 0.5, "prior_entropy": 0.2}
        for step in range(10, 510, 10)
    ]
    history[30]["exact_match"] = 0.5
    report = TrainingReport(500, history, 0.5, 0.25, first_loss=9.0, distinct_at_start=0.75)
    lines = report.table().splitlines()
    assert lines[0].split("  ")[0] == "step" and lines[0].endswith("prior entropy")
    assert lines[1].split() == ["0", "9.000", "0.250", "0.75"]
    assert lines[-1].split() == ["500", "4.000", "0.50", "0.200"]
    assert "310 5.900 0.500 0.50 0.200" in [" ".join(line.split()) for line in lines]
    assert 11 <= len(lines) <= 14 and max(map(len, lines)) < 80
    history[-1]["retriever_loss"] = 1.5
    table = TrainingReport(500, history).table().splitlines()
    assert "retriever loss" in table[0] and table[-1].split()[2] == "1.500"
    assert TrainingReport().table().splitlines()[1:] == ["   0"]
