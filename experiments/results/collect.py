"""The figures of finished runs, drawn together: over seeds, over sets, one system against another."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from experiments.results.jobs import ROOT, Job
from experiments.results.plan import INDEXES, N_DOCS, REAL, SETS, Plan, System
from rag_core.demo import home
from rag_core.evaluation import Evaluation
from rag_core.evaluation.calibration import calibration, probability
from rag_core.evaluation.intervals import figure, paired

SEED = 0
RECALL = f"answer_recall@{N_DOCS}"
# Of the answer, then of retrieval.
ANSWERS = ("exact_match", "f1", "wrong_not_found", "wrong_though_found")
PAIRS = (
    ("joint", "frozen"),
    ("context", "joint"),
    ("sequence", "joint"),
    ("emdr2", "joint"),
    ("pdist", "joint"),
    ("contrastive", "joint"),
    ("retriever", "start"),
    ("joint", "bm25"),
    ("joint", "extractive"),
    ("joint", "closed-book"),
)
TITLES = {
    "bm25": "RAG-Token, BM25 in place of dense retrieval",
    "extractive": "first passage, extracted",
}
KEEPS = 0.9
Figures = dict[str, Any]


class Runs:
    """The finished evaluations of a plan, by name.

    Args:
        plan: whose jobs were run.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.jobs: dict[str, Job] = {job.name: job for job in plan.jobs()}
        self._open: dict[str, Evaluation] = {}

    def has(self, *names: str) -> bool:
        """Whether all of them were run to their end."""
        return all(name in self.jobs and self.jobs[name].outcome() for name in names)

    def evaluation(self, name: str) -> Evaluation:
        """A finished one."""
        if name not in self._open:
            self._open[name] = Evaluation.open(ROOT / self.plan.runs / name)
        return self._open[name]

    def rows(self, name: str, variant: str | None = None) -> list[Figures]:
        """The scores of answer and retrieval, question by question."""
        found = self.evaluation(name)
        variant = variant or next(iter(found.answers))
        pairs = zip(found.answers[variant], found.retrieved, strict=True)
        return [
            {**passages["scores"], **answer["scores"], "p": probability(answer)}
            for answer, passages in pairs
        ]


def collected(plan: Plan) -> Figures:
    """All figures of the runs that are finished."""
    runs = Runs(plan)
    found: Figures = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "backend": plan.asked.backend,
        "machine": {"processor": platform.machine(), "python": platform.python_version()},
        "sizes": asdict(plan.asked.sizes),
        "cost": _cost(runs),
        "systems": _systems(runs),
    }
    counts = ROOT / plan.questions / "counts.json"
    if counts.is_file():
        found["questions"] = json.loads(counts.read_text("utf-8"))
    found["differences"] = _differences(runs, found["systems"])
    parts = {
        "every": _every(runs),
        "n_docs": _n_docs(runs),
        "decoding": _decoding(runs),
        "indexes": _indexes(runs),
        "swap": _swap(runs),
        "silence": _silence(runs),
        "calibration": _calibration(runs),
    }
    return found | {name: part for name, part in parts.items() if part}


def _cost(runs: Runs) -> Figures:
    ended = [outcome for job in runs.jobs.values() if (outcome := job.outcome())]
    return {
        "commands": len(ended),
        "of": len(runs.jobs),
        "processor_seconds": round(sum(each["processor_seconds"] for each in ended)),
        "peak_bytes": max((each["peak_bytes"] for each in ended), default=0),
    }


# -- systems ------------------------------------------------------------------------------------


def _systems(runs: Runs) -> Figures:
    found = {}
    others = (System("bm25", TITLES["bm25"], {}), System("extractive", TITLES["extractive"]))
    for system in (*runs.plan.systems(), *others):
        seeds = runs.plan.seeds(system)
        sets = {}
        for name in SETS:
            names = [f"{system.name}-{seed}-{name}" for seed in seeds]
            if runs.has(*names):
                sets[name] = _over_seeds(runs, names)
        if not sets:
            continue
        entry: Figures = {"title": system.title, "seeds": len(seeds), "sets": sets}
        trained = f"{system.name}-0"
        if runs.has(trained):
            outcome = runs.jobs[trained].outcome()
            entry["train"] = outcome
        found[system.name] = entry
    return found


def _over_seeds(runs: Runs, names: Sequence[str]) -> Figures:
    """Figures of one system on one set: means over seeds, intervals over questions."""
    tables = [runs.rows(name) for name in names]
    report = runs.evaluation(names[0]).report
    figures = {
        name: figure(name, _means(tables, name), SEED)
        for name in (*ANSWERS, RECALL)
        if name in tables[0][0]
    }
    share = report["questions"]["answerable_share"]
    return {
        **figures,
        "seeds": [float(np.mean([row["exact_match"] for row in rows])) for rows in tables],
        "at_least": share * figures["exact_match"]["mean"],
        "command": runs.jobs[names[0]].command,
    }


def _means(tables: Sequence[Sequence[Figures]], name: str) -> list[float]:
    """A score of each question, averaged over seeds."""
    return np.mean([[row[name] for row in rows] for rows in tables], axis=0).tolist()


def _differences(runs: Runs, systems: Figures) -> Figures:
    """Exact match and recall of one system less those of another, on all real questions together."""
    found: Figures = {}
    for pair in PAIRS:
        names = [
            [f"{name}-{seed}-{each}" for seed in range(systems.get(name, {}).get("seeds", 0))]
            for name in pair
            for each in REAL
        ]
        if not all(runs.has(*of_set) and of_set for of_set in names):
            continue
        tables = [[runs.rows(one) for one in of_set] for of_set in names]
        differences = {}
        for key in ("exact_match", RECALL):
            if not all(key in of_set[0][0] for of_set in tables):
                continue  # closed book reads no five passages
            means = [_means(of_set, key) for of_set in tables]
            first = [value for of_set in means[: len(REAL)] for value in of_set]
            second = [value for of_set in means[len(REAL) :] for value in of_set]
            differences[key] = paired(key, first, second, SEED)
        found[" against ".join(pair)] = differences
    return found


def _every(runs: Runs) -> Figures:
    """Questions drawn from all of a file, answerable or not."""
    found: Figures = {}
    for system in ("joint", "sequence"):
        for name in REAL:
            run = f"{system}-every-{name}"
            if runs.has(run):
                rows = runs.rows(run)
                figures = {
                    key: figure(key, [row[key] for row in rows], SEED) for key in (*ANSWERS, RECALL)
                }
                found.setdefault(system, {})[name] = {**figures, "command": runs.jobs[run].command}
    return found


# -- what is asked of one system ----------------------------------------------------------------


def _n_docs(runs: Runs) -> Figures:
    found = _sweep(runs, "n-docs", ("n_docs",))
    for name, entry in found.items():
        evaluation = runs.evaluation(f"n-docs-{name}")
        for point in entry["points"]:
            point["recall"] = _recall(evaluation, point["n_docs"])
    return found


def _sweep(runs: Runs, kind: str, settings: Sequence[str]) -> Figures:
    """Exact match and seconds a question of each variant, with what it was told by."""
    found: Figures = {}
    for name in REAL:
        run = f"{kind}-{name}"
        if not runs.has(run):
            continue
        evaluation = runs.evaluation(run)
        asked = evaluation.report["questions"]["asked"]
        found[name] = {"command": runs.jobs[run].command, "points": []}
        for variant, entry in evaluation.report["variants"].items():
            point = {key: entry["settings"][key] for key in settings}
            point["exact_match"] = evaluation.figures(variant)["exact_match"]
            point["seconds"] = entry["seconds"] / asked
            found[name]["points"].append(point)
    return found


def _recall(evaluation: Evaluation, count: int) -> Figures:
    """Recall by answer among the first passages, at any depth."""
    holds = [
        float(any(passage["holds_answer"] for passage in row["passages"][:count]))
        for row in evaluation.retrieved
    ]
    return figure("recall", holds, SEED)


def _decoding(runs: Runs) -> Figures:
    return _sweep(runs, "decoding", ("decoding", "num_beams"))


def _indexes(runs: Runs) -> Figures:
    found: Figures = {}
    for index in INDEXES:
        names = [f"index-{index}-{name}" for name in REAL]
        if not runs.has(*names):
            continue
        evaluations = [runs.evaluation(name) for name in names]
        folder = ROOT / runs.plan.runs / f"index-{index}" / "kb"
        found[index] = {
            "bytes": (folder / "index.faiss").stat().st_size,
            "exact": evaluations[0].report["knowledge_base"]["index"]["recall_at_5"],
            "commands": [runs.jobs[name].command for name in names],
        }
        rows = [row for name in names for row in runs.rows(name)]
        for key in ("exact_match", RECALL):
            found[index][key] = figure(key, [row[key] for row in rows], SEED)
    return found


def _swap(runs: Runs) -> Figures:
    names = [f"swap-{index}-{facts}" for index in ("old", "new") for facts in ("before", "after")]
    if not runs.has(*names):
        return {}
    found: Figures = {"commands": [runs.jobs[name].command for name in names]}
    for name in names:
        rows = runs.rows(name)
        found[name.removeprefix("swap-")] = figure(
            "exact_match", [row["exact_match"] for row in rows], SEED
        )
    return found


def _silence(runs: Runs) -> Figures:
    """Answers below a probability are withheld. It is chosen on questions of the dev files, so that
    nine of ten right answers are given.
    """
    answerable = [f"joint-0-{name}" for name in REAL]
    if not runs.has("joint-dev", "joint-unanswerable", *answerable):
        return {}
    dev = runs.rows("joint-dev")
    right = [row["p"] for row in dev if row["exact_match"]]
    if not right:
        return {}
    threshold = float(np.quantile(right, 1 - KEEPS))
    rows = [row for name in answerable for row in runs.rows(name)]
    groups = {
        "right": [row["p"] for row in rows if row["exact_match"]],
        "wrong_though_found": [row["p"] for row in rows if row["wrong_though_found"]],
        "wrong_not_found": [row["p"] for row in rows if row["wrong_not_found"]],
        "unanswerable": [row["p"] for row in runs.rows("joint-unanswerable")],
    }
    found: Figures = {
        "threshold": threshold,
        "command": runs.jobs["joint-unanswerable"].command,
        "area": _area(groups["right"], groups["unanswerable"]),
    }
    for name, values in groups.items():
        if values:
            withheld = [float(value < threshold) for value in values]
            found[name] = figure("withheld", withheld, SEED)
    return found


def _area(high: Sequence[float], low: Sequence[float]) -> float:
    """How often one of the first is above one of the second: the area under the ROC curve."""
    above = np.subtract.outer(np.asarray(high), np.asarray(low))
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


def _calibration(runs: Runs) -> Figures:
    """Of questions drawn from all and from the answerable ones, both files together."""
    found: Figures = {}
    for system, title, drawn in (
        ("joint", "joint, all questions", "every"),
        ("joint", "joint, answerable ones", "0"),
        ("sequence", "sequence, all questions", "every"),
        ("sequence", "sequence, answerable ones", "0"),
    ):
        names = [f"{system}-{drawn}-{name}" for name in REAL]
        if runs.has(*names):
            rows = [row for name in names for row in runs.rows(name)]
            found[title] = calibration(
                [row["p"] for row in rows], [row["exact_match"] for row in rows], SEED
            )
    return found


def write(figures: Figures, path: Path) -> None:
    """Keep the figures of a backend, with commands that read the cache where it is by default."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figures, indent=1).replace(str(home()), "~/.cache/dualrag")
    path.write_text(f"{text}\n", encoding="utf-8")
