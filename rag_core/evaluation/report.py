"""The results of an evaluation: figures with intervals, tables for people, files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rag_core.evaluation.intervals import figure
from rag_core.hub import DamagedFileError, atomic_folder, parse_object, read_json, read_lines

REPORT = "report.json"
TABLE = "report.md"
RETRIEVED = "retrieved.jsonl"
PASSAGES = "passages.jsonl"
FORMAT = "dualrag evaluation 1"
# What a killed run goes on from.
UNFINISHED = "unfinished"
WORK_SETTINGS = "settings.json"
_PREFIX = "answers-"

Rows = list[dict[str, Any]]

# name -> title in tables, in their order; "@" stands for the depths.
TITLES = {
    "exact_match": "exact match",
    "f1": "F1",
    "contains": "contains",
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
    "in_passages": "in passages",
    "wrong_not_found": "wrong, not found",
    "wrong_though_found": "wrong, though found",
    "log_likelihood": "log p(gold)",
    "answer_recall@": "recall@{} by answer",
    "answer_mrr": "MRR by answer",
    "gold_hit@": "hit@{} by gold",
    "gold_recall@": "recall@{} by gold",
    "gold_precision@": "precision@{} by gold",
    "gold_mrr": "MRR by gold",
    "gold_r_precision": "R-precision",
}
CALIBRATION = {
    "expected_calibration_error": "calibration error",
    "brier_score": "Brier score",
    "risk_coverage_area": "area under risk-coverage",
}
# Of more variants the bins are in report.json alone.
_MOST_TABLES = 4
_NATS = "log_likelihood"
# A question that was not asked can have scored nothing less.
_AT_LEAST = ("exact_match", "f1", "contains")


@dataclass(repr=False)
class Evaluation:
    """What an evaluation found.

    Attributes:
        report: settings, figures, versions and sums, as report.json holds them.
        retrieved: a row a question: its passages, and the scores of retrieval.
        answers: for each variant a row a question: the answer, its passages' prior and posterior,
            and scores.
        passages: every passage that was retrieved, once.
    """

    report: dict[str, Any]
    retrieved: Rows = field(default_factory=list)
    answers: dict[str, Rows] = field(default_factory=dict)
    passages: Rows = field(default_factory=list)

    def __repr__(self) -> str:
        asked = self.report["questions"]
        parts = [f"{asked['asked']:,} questions"]
        if asked["answerable"] is not None:
            parts.append(f"{asked['answerable']:,} answerable")
        for name, variant in self.report["variants"].items():
            found = variant["figures"]["all"].get("exact_match")
            if found:
                parts.append(f"{name}: exact match {shown('exact_match', found)}")
        if not self.answers:
            for name, found in self.report["retrieval"]["figures"]["all"].items():
                if "recall@" in name:
                    parts.append(f"{title_of(name)} {shown(name, found)}")
        return f"Evaluation({', '.join(parts)})"

    def figures(self, variant: str | None = None, *, of: str = "all") -> dict[str, Any]:
        """The figures of a variant, each with "mean", "low", "high" (a 95 % interval) and "n".

        Args:
            variant: its name; None where there is one only.
            of: "all" questions, or the "answerable" ones.

        Raises:
            ValueError: no such variant.
        """
        return self._variant(variant)["figures"].get(of, {})

    def calibration(self, variant: str | None = None, *, of: str = "all") -> dict[str, Any]:
        """How far the probabilities of a variant's answers can be trusted.

        Arguments and errors as of `figures`.

        Returns:
            "expected_calibration_error", "brier_score" and "risk_coverage_area", figures; and
            "bins" of answers, the most probable first. docs/evaluation.md says what they are.
        """
        return self._variant(variant).get("calibration", {}).get(of, {})

    def confidence(self, variant: str | None = None, *, of: str = "all") -> dict[str, Any]:
        """As `calibration`, of the confidence in a variant's answers; empty where the model has
        none.
        """
        return self._variant(variant).get("confidence", {}).get(of, {})

    def _variant(self, variant: str | None) -> dict[str, Any]:
        names = list(self.report["variants"])
        if variant is None and len(names) == 1:
            variant = names[0]
        if variant not in names:
            raise ValueError(f"variant must be one of {names}, got {variant!r}")
        return self.report["variants"][variant]

    def retrieval(self, *, of: str = "all") -> dict[str, Any]:
        """The figures of retrieval, as `figures`."""
        return self.report["retrieval"]["figures"].get(of, {})

    def markdown(self) -> str:
        """The report for people."""
        return as_markdown(self.report)

    def save(self, folder: str | Path) -> None:
        """Write report.md, report.json and a jsonl a variant, all or none.

        Raises:
            FileExistsError: the folder holds other files of these names, of no evaluation.
        """
        folder = Path(folder)
        check_place(folder, self.answers)
        stale = [_answers_file(name) for name in _held_variants(folder) or ()]
        if _has_own_work(folder):
            stale.append(f"{UNFINISHED}/*")
        with atomic_folder(folder, stale=stale) as draft:
            (draft / TABLE).write_text(self.markdown(), encoding="utf-8")
            text = json.dumps(self.report, indent=1, ensure_ascii=False)
            (draft / REPORT).write_text(text + "\n", encoding="utf-8")
            _write_rows(draft / RETRIEVED, self.retrieved)
            _write_rows(draft / PASSAGES, self.passages)
            for name, rows in self.answers.items():
                _write_rows(draft / _answers_file(name), rows)

    @classmethod
    def open(cls, folder: str | Path) -> Evaluation:
        """What `save` wrote.

        Raises:
            FileNotFoundError: no evaluation there.
            DamagedFileError: a file is damaged.
        """
        folder = Path(folder)
        report = read_report(folder)
        answers = {name: _read_rows(folder / _answers_file(name)) for name in report["variants"]}
        return cls(report, _read_rows(folder / RETRIEVED), answers, _read_rows(folder / PASSAGES))


def read_report(folder: Path) -> dict[str, Any]:
    """The report.json of a folder.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it is damaged.
    """
    path = folder / REPORT
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: no finished evaluation here (there is no {REPORT}). Make one:  dualrag "
            f"eval QUESTIONS --out {folder}"
        )
    report = read_json(path)
    kinds = {"questions": dict, "retrieval": dict, "variants": dict, "settings": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(report.get(name), kind)]
    if report.get("format") != FORMAT or wrong:
        raise DamagedFileError(f"{path} is no report of an evaluation. Make it anew.")
    return report


def check_place(folder: Path, variants: Iterable[str]) -> None:
    """Refuse to write an evaluation over files that are none's.

    Args:
        folder: where it is to be written.
        variants: the names of its ways of answering.

    Raises:
        FileExistsError: names these files.
    """
    if _held_variants(folder) is not None:
        return
    names = [REPORT, TABLE, RETRIEVED, PASSAGES, *map(_answers_file, variants)]
    if not _has_own_work(folder):
        names.append(UNFINISHED)
    held = [name for name in names if os.path.lexists(folder / name)]
    if held:
        raise FileExistsError(
            f"{folder} must be a folder in which an evaluation overwrites nothing, got one that "
            f"holds {', '.join(held)}, not of an evaluation. Name another folder."
        )


def forget_work(folder: Path) -> None:
    """Remove what an evaluation that was stopped would go on from, and nothing else."""
    if _has_own_work(folder):
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def _has_own_work(folder: Path) -> bool:
    """Whether the work folder in a folder is an evaluation's, or holds nothing."""
    work = folder / UNFINISHED
    if work.is_dir() and not any(work.iterdir()):
        return True
    try:
        return "questions_sha256" in read_json(work / WORK_SETTINGS)
    except (OSError, ValueError):
        return False


def _held_variants(folder: Path) -> list[str] | None:
    """The ways of answering of the finished evaluation in a folder; None where there is none."""
    try:
        return list(read_report(folder)["variants"])
    except (OSError, ValueError):
        return None


def _answers_file(variant: str) -> str:
    return f"{_PREFIX}{variant}.jsonl"


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _read_rows(path: Path) -> Rows:
    if not path.is_file():
        raise DamagedFileError(f"{path} is missing from the evaluation. Make it anew.")
    return [
        parse_object(line, f"{path}:{number}") for number, line in read_lines(path) if line.strip()
    ]


# -- figures ------------------------------------------------------------------------------------


def figures_of(
    rows: Sequence[Mapping[str, Any]], answerable: Sequence[bool] | None, seed: int
) -> dict[str, Any]:
    """The figures of all questions and, where that is known, of the answerable ones.

    Args:
        rows: with "scores", one a question; `answerable` likewise.
        answerable: whether the knowledge base has an answer.
        seed: of the intervals.
    """
    figures = {"all": _figures([row["scores"] for row in rows], seed)}
    if answerable is not None:
        chosen = [row["scores"] for row, has in zip(rows, answerable, strict=True) if has]
        figures["answerable"] = _figures(chosen, seed)
    return figures


def _figures(scores: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    names = dict.fromkeys(name for row in scores for name in row)
    return {
        name: figure(name, [row[name] for row in scores if name in row], seed)
        for name in sorted(names, key=rank)
    }


def rank(name: str) -> tuple[int, int]:
    """The place of a figure in tables."""
    metric, _, depth = name.partition("@")
    known = list(TITLES)
    return known.index(f"{metric}@" if depth else metric), int(depth or 0)


def title_of(name: str) -> str:
    """What a figure is called in tables."""
    metric, at, depth = name.partition("@")
    return TITLES[metric + at].format(depth)


def shown(name: str, figure: Mapping[str, Any]) -> str:
    """A figure with its interval: in percent, or in nats."""
    scale = 100
    if name == _NATS:
        scale = 1
    mean, low, high = (scale * figure[key] for key in ("mean", "low", "high"))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def at_least(report: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, float]:
    """What the figures of answerable questions say of all: the others, which were not asked, count
    as wrong.
    """
    share = report["questions"]["answerable_share"]
    return {name: share * figures[name]["mean"] for name in _AT_LEAST if name in figures}


# -- for people ---------------------------------------------------------------------------------


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    asked = report["questions"]
    lines = ["# Evaluation", ""]
    counted = f"{asked['asked']:,} of {asked['read']:,} questions"
    if asked.get("path"):
        counted += f" of {asked['path']}"
    if asked["answerable"] is not None:
        counted += f", {asked['answerable']:,} of them answerable"
    lines += [f"{counted}. Percent with 95 % intervals (log p(gold) in nats).", ""]
    only = report["settings"].get("answerable_only")
    for of, title in (("all", "All questions"), ("answerable", "Answerable questions")):
        if of == "all" and only:
            continue
        tables = _tables(report, of)
        if tables:
            lines += [f"## {title}", "", *tables]
    if only:
        for name, variant in report["variants"].items():
            bounds = at_least(report, variant["figures"]["answerable"])
            text = ", ".join(f"{title_of(key)} {100 * value:.1f}" for key, value in bounds.items())
            lines += [
                f"On all questions, {name}: at least {text} (those that are not answerable count 0).",
                "",
            ]
    lines += _details(report)
    return "\n".join(lines).rstrip() + "\n"


def _tables(report: Mapping[str, Any], of: str) -> list[str]:
    lines = []
    variants = {name: each["figures"].get(of, {}) for name, each in report["variants"].items()}
    names = sorted({name for figures in variants.values() for name in figures}, key=rank)
    if names:
        rows = [
            [variant, *(_cell(name, figures) for name in names)]
            for variant, figures in variants.items()
        ]
        lines += [*table(["answers", *map(title_of, names)], rows), ""]
    retrieval = report["retrieval"]["figures"].get(of, {})
    if retrieval:
        rows = [
            [title_of(name), shown(name, found), f"{found['n']:,}"]
            for name, found in retrieval.items()
        ]
        lines += [*table(["retrieval", "", "questions"], rows), ""]
    return lines + _reliability(report, of)


def _reliability(report: Mapping[str, Any], of: str) -> list[str]:
    """How far the probabilities of answers can be trusted; of each variant in full what was made
    for that, its confidence, where there is one.
    """
    rows = []
    variants = {}
    for variant, each in report["variants"].items():
        for kind, title in (("calibration", variant), ("confidence", f"{variant}, confidence")):
            found = each.get(kind, {}).get(of)
            if found:
                rows.append([title, *(shown(name, found[name]) for name in CALIBRATION)])
                variants[variant] = found
    if not rows:
        return []
    lines = [*table(["probability of answers", *CALIBRATION.values()], rows), ""]
    is_second = of == "answerable" and not report["settings"].get("answerable_only")
    if is_second or len(variants) > _MOST_TABLES:
        return lines
    columns = ["probability", "on average", "exact match", "questions"]
    columns += ["answered from here up", "of these exact match"]
    for variant, found in variants.items():
        rows = [
            [
                f"{100 * each['low']:.1f} to {100 * each['high']:.1f}",
                f"{100 * each['mean']:.1f}",
                f"{100 * each['right']:.1f}",
                f"{each['n']:,}",
                f"{100 * each['coverage']:.0f}",
                f"{100 * each['right_above']:.1f}",
            ]
            for each in found["bins"]
        ]
        lines += [f"{variant}:", "", *table(columns, rows), ""]
    return lines


def _cell(name: str, figures: Mapping[str, Any]) -> str:
    if name not in figures:
        return "-"
    return shown(name, figures[name])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
    filled = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [head, *rows]
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [filled[0], rule, *filled[1:]]


def _details(report: Mapping[str, Any]) -> list[str]:
    lines = ["## How", ""]
    if report.get("command"):
        lines += ["Again:", "", f"    {report['command']}", ""]
    seconds = [("retrieval", report["retrieval"])]
    seconds += list(report["variants"].items())
    times = ", ".join(f"{name} {each['seconds']:.0f} s" for name, each in seconds)
    lines.append(f"- time: {times}")
    settings = report["settings"]
    lines.append(f"- seed {settings['seed']}, batches of {settings['batch_size']} questions")
    for part in ("model", "knowledge_base", "questions"):
        values = report.get(part) or {}
        name = values.get("name") or values.get("path") or "in memory"
        lines.append(f"- {part.replace('_', ' ')}: {name}, sha256 {values.get('sha256')}")
    index = (report.get("knowledge_base") or {}).get("index", {})
    recall = index.get("recall_at_5")
    if "search" in index:
        lines.append(f"- index: {index['search']}")
    elif recall is not None:
        lines.append(f"- index: recall@5 against exact search {recall:.3f}")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines.append(f"- versions: {versions}")
    lines += [f"- note: {note}" for note in report["notes"]]
    return lines
