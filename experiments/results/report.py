"""docs/results.md: tables of the figures that were collected, and what they say of the goals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.results import collect
from experiments.results.collect import RECALL, Figures
from experiments.results.plan import REAL, SETS, Asked
from rag_core.evaluation.report import table

BACKENDS = {"torch": "PyTorch", "tf": "TensorFlow"}
KEPT = Path("experiments") / "results" / "kept"
PAGE = Path("docs") / "results.md"
CHARTS = Path("docs") / "charts"
NAMES = {"nq": "NQ", "trivia": "TriviaQA", "clues": "clues"}
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
PLOTS = {
    "systems": "Systems",
    "n-docs": "Number of passages",
    "reliability": "Probabilities of answers",
}


def keep(figures: Figures, root: Path, asked: Asked, quick: bool) -> str:
    """Write what was found, and the page unless it was a quick run; says where."""
    if quick:
        out = root / asked.work / asked.backend
        collect.write(figures, out / "figures.json")
        (out / "results.md").write_text(page({asked.backend: figures}) + "\n", encoding="utf-8")
        return f"{out.relative_to(root)}/results.md: of a quick run, so no page was written"
    collect.write(figures, root / KEPT / f"{asked.backend}.json")
    publish(root)
    return f"written: {PAGE}, {CHARTS}/results-*.svg"


def publish(root: Path) -> None:
    """Write the figures that are kept into the page, and the charts."""
    from experiments.results import charts

    found = {
        backend: json.loads(path.read_text("utf-8"))
        for backend in BACKENDS
        if (path := root / KEPT / f"{backend}.json").is_file()
    }
    old = (root / PAGE).read_text("utf-8")
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    charts.draw(found, root / CHARTS)
    text = page(found)
    for name, title in PLOTS.items():
        if (root / CHARTS / f"results-{name}.svg").is_file():
            plot = f"![{title}]({CHARTS.name}/results-{name}.svg)"
            text = text.replace(f"### {title}\n", f"### {title}\n\n{plot}\n")
    (root / PAGE).write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def page(found: dict[str, Figures]) -> str:
    """The part of the page that holds figures.

    Args:
        found: figures by backend.
    """
    parts = [
        _questions(found),
        _systems(found),
        _differences(found),
        _every(found),
        _n_docs(found),
        _decoding(found),
        _swap(found),
        _indexes(found),
        _silence(found),
        _calibration(found),
        _goals(found),
        _cost(found),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _section(title: str, rows: Sequence[Sequence[str]], head: Sequence[str]) -> list[str]:
    if not rows:
        return []
    return [f"### {title}", "", *table(head, rows)]


def _each(found: dict[str, Figures], part: str) -> Iterator[tuple[str, Any]]:
    """The backends that have such figures."""
    for backend, figures in found.items():
        if part in figures:
            yield BACKENDS[backend], figures[part]


def percent(figure: Figures) -> str:
    """A share with its interval."""
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * figure[key] for key in ("mean", "low", "high")))


def _questions(found: dict[str, Figures]) -> list[str]:
    counts: Figures = next((entry for _, entry in _each(found, "questions")), {})
    rows = [
        [name, *(f"{entry[key]:,}" for key in ("questions", "answerable", "about an article"))]
        for name, entry in counts.items()
    ]
    return _section("Questions", rows, ["file", "questions", "answerable", "about an article"])


def _systems(found: dict[str, Figures]) -> list[str]:
    head = ["system", "backend", "seeds"]
    head += [
        f"{NAMES[name]}: {key}" for name in SETS for key in ("exact match", "by seed", "recall@5")
    ]
    rows = []
    titles = {
        name: entry["title"]
        for _, systems in _each(found, "systems")
        for name, entry in systems.items()
    }
    for name, title in titles.items():
        for backend, systems in _each(found, "systems"):
            if name not in systems:
                continue
            row = [title, backend, str(systems[name]["seeds"])]
            for each in SETS:
                row += _cells(systems[name]["sets"].get(each))
            rows.append(row)
    return _section("Systems", rows, head)


def _cells(figures: Figures | None) -> list[str]:
    if figures is None:
        return ["-"] * 3
    seeds = " ".join(f"{100 * each:.1f}" for each in figures["seeds"])
    recall = "-"
    if RECALL in figures:
        recall = f"{100 * figures[RECALL]['mean']:.1f}"
    return [percent(figures["exact_match"]), seeds, recall]


def _differences(found: dict[str, Figures]) -> list[str]:
    rows = []
    for backend, pairs in _each(found, "differences"):
        for pair, figures in pairs.items():
            row = [pair, backend]
            for key in ("exact_match", RECALL):
                cells = ["-", "-"]
                if key in figures:
                    cells = [_signed(figures[key]), f"{figures[key]['p']:.3f}"]
                row += cells
            rows.append(row)
    head = ["on NQ and TriviaQA", "backend", "exact match", "p", "recall@5", "p"]
    return _section("One system against another", rows, head)


def _signed(figures: Figures) -> str:
    values = (100 * figures[key] for key in ("difference", "low", "high"))
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*values)


def _every(found: dict[str, Figures]) -> list[str]:
    rows = []
    for backend, systems in _each(found, "every"):
        for system, sets in systems.items():
            for name, figures in sets.items():
                keys = ("exact_match", "f1", RECALL, "wrong_not_found", "wrong_though_found")
                row = [system, backend, NAMES[name], *(percent(figures[key]) for key in keys)]
                rows.append([*row, f"{figures['exact_match']['n']:,}"])
    head = ["system", "backend", "file", "exact match", "F1", "recall@5", "wrong, not found"]
    head += ["wrong, though found", "questions"]
    return _section("All test questions, answerable or not (drawn at random)", rows, head)


def _n_docs(found: dict[str, Figures]) -> list[str]:
    rows = [
        [
            str(point["n_docs"]),
            backend,
            NAMES[name],
            percent(point["exact_match"]),
            percent(point["recall"]),
            f"{point['seconds']:.2f}",
        ]
        for backend, sets in _each(found, "n_docs")
        for name, entry in sets.items()
        for point in entry["points"]
    ]
    head = ["passages", "backend", "file", "exact match", "recall", "seconds a question"]
    return _section("Number of passages", rows, head)


def _decoding(found: dict[str, Figures]) -> list[str]:
    rows = [
        [
            point["decoding"],
            str(point["num_beams"]),
            backend,
            NAMES[name],
            percent(point["exact_match"]),
            f"{point['seconds']:.2f}",
        ]
        for backend, sets in _each(found, "decoding")
        for name, entry in sets.items()
        for point in entry["points"]
    ]
    head = ["decoding", "beams", "backend", "file", "exact match", "seconds a question"]
    return _section("RAG-Sequence, thorough and fast", rows, head)


def _swap(found: dict[str, Figures]) -> list[str]:
    rows = [
        [
            backend,
            *(
                percent(figures[key])
                for key in ("old-before", "new-after", "old-after", "new-before")
            ),
            f"{figures['old-before']['n']:,}",
        ]
        for backend, figures in _each(found, "swap")
    ]
    head = ["backend", "old index, old facts", "new index, new facts", "old index, new facts"]
    head += ["new index, old facts", "questions"]
    return _section("Facts exchanged in the passages", rows, head)


def _indexes(found: dict[str, Figures]) -> list[str]:
    rows = [
        [
            index,
            backend,
            f"{figures['bytes'] / 1e6:.1f}",
            f"{100 * figures['exact']:.1f}",
            percent(figures[RECALL]),
            percent(figures["exact_match"]),
        ]
        for backend, indexes in _each(found, "indexes")
        for index, figures in indexes.items()
    ]
    head = [
        "index",
        "backend",
        "MB",
        "of the exact search's 5",
        "recall@5 by answer",
        "exact match",
    ]
    return _section("Compressed indexes", rows, head)


def _silence(found: dict[str, Figures]) -> list[str]:
    names = {
        "right": "right",
        "wrong_though_found": "wrong, though found",
        "wrong_not_found": "wrong, not found",
        "unanswerable": "no passage of the knowledge base has an answer",
    }
    rows = [
        [
            title,
            backend,
            percent(figures[name]),
            f"{figures[name]['n']:,}",
            f"{100 * figures['threshold']:.1f}",
        ]
        for backend, figures in _each(found, "silence")
        for name, title in names.items()
        if name in figures
    ]
    head = ["answers that are", "backend", "withheld", "answers", "below a probability of"]
    return _section("Passages without the answer", rows, head)


def _calibration(found: dict[str, Figures]) -> list[str]:
    keys = ("expected_calibration_error", "brier_score", "risk_coverage_area")
    rows = [
        [system, backend, *(percent(figures[key]) for key in keys)]
        for backend, systems in _each(found, "calibration")
        for system, figures in systems.items()
    ]
    head = ["system", "backend", "calibration error", "Brier score", "area under risk-coverage"]
    return _section("Probabilities of answers", rows, head)


def _cost(found: dict[str, Figures]) -> list[str]:
    rows = []
    for backend, figures in found.items():
        cost = figures["cost"]
        train = figures["systems"].get("joint", {}).get("train")
        step = "-"
        if train:
            step = f"{train['processor_seconds']:.0f}"
        rows.append(
            [
                BACKENDS[backend],
                figures["date"],
                f"{cost['commands']} of {cost['of']}",
                f"{cost['processor_seconds'] / 60:.0f}",
                step,
                f"{cost['peak_bytes'] / 1e9:.2f}",
            ]
        )
    head = ["backend", "date", "commands", "processor minutes", "processor seconds of a training"]
    return _section("What it took", rows, [*head, "GB at most"])


# -- the goals ----------------------------------------------------------------------------------


def _goals(found: dict[str, Figures]) -> list[str]:
    rows = [
        [goal, BACKENDS[backend], said, "met" if is_met else "missed"]
        for backend, figures in found.items()
        for goal, said, is_met in goals(figures)
    ]
    rows += [
        [goal, "both", said, "met" if is_met else "missed"] for goal, said, is_met in alike(found)
    ]
    return _section("The goals", rows, ["goal", "backend", "found", ""])


def goals(figures: Figures) -> Iterator[tuple[str, str, bool]]:
    """Each goal whose figures are there, what was found, and whether it is met."""
    systems, differences = figures["systems"], figures["differences"]
    joint = _real(systems, "joint", "exact_match")
    recall = _real(systems, "joint", RECALL)
    if joint is not None and recall is not None:
        said = f"{100 * joint:.1f} and {100 * recall:.1f}"
        yield "exact match at least half of recall@5", said, joint >= recall / 2
    closed = _real(systems, "closed-book", "exact_match")
    if joint is not None and closed is not None:
        said = f"{100 * joint:.1f} and {100 * closed:.1f}"
        yield "exact match at least five times closed book", said, joint >= 5 * closed and joint > 0
    for pair in ("joint against frozen", "context against joint"):
        if pair in differences:
            found = differences[pair]["exact_match"]
            yield f"{pair}: exact match is higher", _signed(found), found["low"] > 0
    for system, trusted in figures.get("calibration", {}).items():
        error = trusted["expected_calibration_error"]
        yield f"{system}: calibration error below 10", percent(error), error["mean"] < 0.1


def _real(systems: Figures, name: str, key: str) -> float | None:
    """A figure on NQ and TriviaQA together, each counting by its questions."""
    sets = systems.get(name, {}).get("sets", {})
    if not all(key in sets.get(each, {}) for each in REAL):
        return None
    counts = [sets[each][key]["n"] for each in REAL]
    total = sum(n * sets[each][key]["mean"] for n, each in zip(counts, REAL, strict=True))
    return float(total / sum(counts))


def alike(found: dict[str, Figures]) -> Iterator[tuple[str, str, bool]]:
    """Whether the backends lie inside each other's spread, system by system."""
    if len(found) < 2:
        return
    first, second = (figures["systems"] for figures in found.values())
    for name in first:
        if name not in second or first[name]["seeds"] < 2:
            continue
        for each in REAL:
            pair = [systems[name]["sets"].get(each) for systems in (first, second)]
            if None in pair:
                continue
            low, high = (bound(pair[0]["seeds"]) for bound in (min, max))
            other_low, other_high = (bound(pair[1]["seeds"]) for bound in (min, max))
            said = f"{100 * low:.1f} to {100 * high:.1f}, {100 * other_low:.1f} to {100 * other_high:.1f}"
            title = f"{first[name]['title']}, {NAMES[each]}: spreads overlap"
            yield title, said, low <= other_high and other_low <= high
