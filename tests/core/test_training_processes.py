"""What several processes of a run agree on, with threads in their place: no framework, no socket."""

import json
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_core.training import TrainingConfig, reindexing
from rag_core.training.data import Example
from rag_core.training.faults import NotFinite
from rag_core.training.loop import run_steps
from rag_core.training.processes import ALONE, FirstFailed, ProcessLost, started_processes
from rag_core.training.reindexing import Reindexing
from rag_core.training.report import TrainingReport
from rag_core.training.state import check_fingerprint, fingerprint
from rag_core.training.window import CollapseWatch, MetricsWindow
from tests.support.knowledge_bases import build
from tests.support.processes import Threads, together
from tests.support.reindexing import TURNING, Inline, TurningEncoder

COUNTS = st.integers(1, 5)


def ranks(count):
    return [Threads(rank, count) for rank in range(count)]


@given(COUNTS, st.integers(1, 4), st.integers(1, 30))
def test_every_question_and_passage_belongs_to_one_process_in_the_order_of_one(count, size, many):
    questions = list(range(count * size))
    parts = [list(each.own(questions)) for each in ranks(count)]
    assert list(chain(*parts)) == questions
    assert {len(part) for part in parts} == {size}
    passages = list(range(many))
    shares = [each.equally(passages) for each in ranks(count)]
    joined = list(chain(*shares))
    assert joined[:many] == passages and set(joined[many:]) <= {many - 1}
    assert {len(share) for share in shares} == {-(-many // count)}
    assert sorted(chain(*(each.dealt(passages) for each in ranks(count)))) == passages


@given(COUNTS, st.integers(0, 9))
def test_work_that_is_dealt_out_comes_back_in_order(count, many):
    def work(processes):
        return processes.collect([f"{item}?" for item in processes.dealt(range(many))])

    assert together(count, work) == [[f"{item}?" for item in range(many)]] * count


def test_the_first_does_it_for_all_and_its_failure_is_everybodys():
    def lead(processes):
        return processes.lead(lambda: [processes.rank, "done"])

    assert together(3, lead) == [[0, "done"]] * 3
    assert ALONE.lead(lambda: 7) == 7

    def fail(processes):
        return processes.lead(lambda: json.loads("{"))

    first, *others = together(3, fail)
    assert type(first) is json.JSONDecodeError
    assert [type(error) for error in others] == [FirstFailed] * 2
    assert "process 0 of 3 failed: Expecting property name" in str(others[0])

    def leave(processes):
        if processes.rank == 1:
            raise KeyError("gone")
        return processes.exchange(1)

    assert [type(error) for error in together(3, leave)] == [ProcessLost, KeyError, ProcessLost]


def test_processes_that_were_given_different_things_are_refused_by_all():
    def check(processes):
        processes.check_alike({"seed": min(processes.rank, 1), "steps": 3, "same": [1, "a"]})

    for error in together(3, check):
        assert isinstance(error, ValueError)
        assert "got another seed in process 1 than in process 0" in str(error)
    assert together(2, lambda processes: processes.check_alike({"a": 1})) == [None, None]


def test_dropout_differs_by_process_and_the_first_has_the_runs_own():
    seeds = [each.seed(5) for each in ranks(4)]
    assert seeds[0] == 5 and len(set(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [each.seed(5) for each in ranks(4)]


def counted(rows, ids):
    """A forward pass as a window: losses, scores and ids of its questions."""
    window = MetricsWindow()
    scores = np.array([[0.0, row] for row in rows])
    window.add(sum(rows), scores, ids)
    window.add_retriever(np.array(rows))
    window.add_comparison(scores, np.ones(len(rows), int), np.zeros(scores.shape, bool))
    window.posteriors.append(float(np.mean(rows)))
    return window


@given(COUNTS, st.integers(1, 3), st.lists(st.floats(0.1, 9), min_size=15, max_size=15))
def test_what_all_counted_of_a_forward_pass_is_what_one_would_have(count, size, numbers):
    rows = numbers[: count * size]
    ids = np.arange(2 * len(rows)).reshape(-1, 2) % 5
    whole, joined, alone = MetricsWindow(), MetricsWindow(), MetricsWindow()
    whole.add(sum(rows), np.array([[0.0, row] for row in rows]), ids)
    one = counted(rows, ids)
    alone.join([one])
    assert alone.sums() == one.sums()
    parts = [counted(each.own(rows), each.own(ids)) for each in ranks(count)]
    sent = json.loads(json.dumps([part.shared() for part in parts]))
    joined.join([MetricsWindow.from_sums(sums) for sums in sent])
    joined.tokens = alone.tokens = 7
    assert joined.line() == pytest.approx(alone.line(), rel=1e-12)
    assert [each.tolist() for each in joined.ids] == [ids.tolist()]
    assert whole.prior == pytest.approx(joined.prior)


def test_a_loss_that_is_no_number_is_told_by_its_process_and_changes_nothing():
    parts = [counted([1.0], np.zeros((1, 2), int)) for _ in range(4)]
    parts[2].nll = float("nan")
    window = MetricsWindow()
    with pytest.raises(NotFinite, match="the loss became nan") as caught:
        window.join(parts)
    assert caught.value.part == slice(2, 3)
    assert window.sums() == MetricsWindow().sums()


class Run:
    """A run of six steps whose loss is the step's number; what a process did is in `did`."""

    out = None

    def __init__(self, processes, callbacks=(), losses=(), **settings):
        self.config = TrainingConfig(steps=6, batch_size=1, log_every=2, **settings)
        self.processes, self.callbacks = processes, list(callbacks)
        self.losses = dict(losses)
        self.report, self.window = TrainingReport(), MetricsWindow()
        self.watch = CollapseWatch(self.report)
        self.examples = self.measured = [Example(str(n), ("a",)) for n in range(8)]
        self.optimizer = SimpleNamespace(param_groups=[{"peak": 1.0}])
        self.model, self.total, self.did = None, 6, []

    def step(self, examples, logs):
        self.did.append([example.question for example in examples])
        loss = self.losses.get(self.report.steps, 1.0)
        parts = self.processes.exchange(loss if self.processes.rank == 1 else 1.0)
        self.window.tokens += 1
        self.window.join([SimpleNamespace(nll=part, **EMPTY) for part in parts])

    def validate(self):
        return {"exact_match": 1 / self.report.steps, "f1": 0.0}

    def go(self):
        bar = SimpleNamespace(update=lambda: None, set_postfix_str=lambda text: None, disable=True)
        run_steps(self, bar, lambda: float(self.processes.rank))
        return self

    def is_sound(self):
        return True

    def nothing(self, *_):
        return {}

    refresh = index_facts = keep_best = save = tell = tell_time = nothing


EMPTY = {"retriever_nats": 0, "questions": 0, "found": 0, "compared": 0, "prior": [], "posteriors": [],
         "ids": []}  # fmt: skip


def test_a_step_sees_a_batch_of_each_process_and_all_stop_where_a_callback_asks():
    def watch(progress):
        seen.append(progress.step)
        if progress.step == 3:
            progress.stop("enough")

    seen = []
    runs = together(2, lambda processes: Run(processes, [watch]).go())
    assert seen == [1, 2, 3]  # the first process' alone
    assert [run.report.stopped_at for run in runs] == [3, 3]
    assert [run.report.stop_reason for run in runs] == ["enough", "enough"]
    assert runs[0].did == runs[1].did and {len(step) for step in runs[0].did} == {2}
    assert len(set(chain(*runs[0].did))) == 6  # of eight, none twice


def test_early_stops_and_steps_that_are_no_number_are_everybodys():
    settings = {"evaluate_every": 1, "best_metric": "exact_match", "early_stopping": 2}
    runs = together(2, lambda processes: Run(processes, **settings).go())
    assert [(run.report.stopped_at, run.report.best_step) for run in runs] == [(3, 1)] * 2
    nan = {2: float("nan")}
    runs = together(2, lambda processes: Run(processes, losses=nan, on_nan="skip").go())
    assert [(run.report.skipped, run.report.steps) for run in runs] == [(1, 6)] * 2
    lines = [[line["loss"] for line in run.report.history] for run in runs]
    assert lines[0] == lines[1]
    errors = together(2, lambda processes: Run(processes, losses=nan).go())
    assert [type(error) for error in errors] == [FloatingPointError] * 2
    assert str(errors[0]) == str(errors[1])


def test_a_callback_that_fails_ends_all():
    def fail(progress):
        raise LookupError("mine")

    first, second = together(2, lambda processes: Run(processes, [fail]).go())
    assert type(first) is LookupError and type(second) is FirstFailed


def test_a_checkpoint_of_another_number_of_processes_is_refused(tmp_path):
    examples, config = [Example("a", ("b",))], TrainingConfig()
    two = fingerprint(examples, config, processes=2)
    before = {name: value for name, value in two.items() if name != "processes"}
    check_fingerprint(two, fingerprint(examples, config, processes=2), tmp_path)
    check_fingerprint(before, fingerprint(examples, config), tmp_path)  # there was one only
    for stored in (before, fingerprint(examples, config, processes=3)):
        with pytest.raises(ValueError, match=r"processes: [13] there, 2 now"):
            check_fingerprint(stored, two, tmp_path)
    assert config.total_steps(80, 2) == 15 and config.total_steps(80) == 30


def test_the_first_embeds_and_all_search_what_it_made(tmp_path, monkeypatch):
    monkeypatch.setattr("rag_core.backends.load_backend", lambda name: TURNING)
    starts = []

    def start(request):
        starts.append(request)
        return Inline(request)

    monkeypatch.setattr(reindexing, "start_process", start)
    base = build(tmp_path, rows=40)
    encoder = TurningEncoder()

    def run(processes):
        making = Reindexing(base, encoder, tmp_path / "out", every=2, total=5, backend="turning",
                            say=lambda text: None, processes=processes)  # fmt: skip
        fresh = [making.after(step) is not None for step in range(1, 6)]
        return fresh, making.made_at, making.base.path

    ends = together(2, run)
    assert ends[0] == ends[1]
    assert ends[0][:2] == ([False, False, False, True, True], 5)
    assert len(starts) == 2

    def broken(request):
        return Inline(request, ends=[-9, -9, -9])

    monkeypatch.setattr(reindexing, "start_process", broken)
    first, second = together(2, lambda processes: Reindexing(
        base, encoder, tmp_path / "more", every=0, total=1, backend="turning", say=lambda text: None,
        processes=processes).after(1))  # fmt: skip
    assert "was ended 3 times" in str(first)
    assert type(second) is FirstFailed and "was ended 3 times" in str(second)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, (0, 1)),
        ({"RANK": "1"}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "4"}, (1, 4)),
        ({"TF_CONFIG": '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}'}, (1, 2)),
        ({"TF_CONFIG": '{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "worker", "index": 0}}'},
         (1, 2)),
    ],
)  # fmt: skip
def test_launchers_say_which_process_this_is(environment, wanted):
    assert started_processes(environment) == wanted


@pytest.mark.parametrize("environment", [{"RANK": "a", "WORLD_SIZE": "2"}, {"TF_CONFIG": "[]"}])
def test_a_launchers_variable_that_makes_no_sense_is_one_error(environment):
    with pytest.raises(ValueError, match="must be"):
        started_processes(environment)
