"""The results for readers: lines for the terminal, tables in Markdown, the pages and the chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import floor
from benchmarks.jobs import CONTESTANTS, GOALS, JOBS, Goal
from benchmarks.scaling_report import duration, inserted

CHART = Path("docs") / "charts" / "speed.svg"
PAGES = {Path("docs") / "performance.md": "speed", Path("README.md"): "speed"}
REPOSITORIES = {"transformers4": "4.37.2", "transformers5": "5", "ctranslate2": ""}


def base_of(name: str) -> str | None:
    """transformers 4.37.2 in the contestant's framework, what ratios are to."""
    framework = next(
        (one.framework for one in CONTESTANTS if one.name == name.partition("@")[0]), ""
    )
    return {
        "torch": "transformers4-torch",
        "ct2": "transformers4-torch",
        "tf": "transformers4-tf",
    }.get(framework)


def seconds_of(results: dict[str, Any], job: str, contestant: str) -> float | None:
    """A median, or None where nothing was measured or it did not agree."""
    return (
        results["jobs"]
        .get(job, {"contestants": {}})["contestants"]
        .get(contestant, {})
        .get("seconds")
    )


def ratio(slow: float | None, fast: float | None) -> float | None:
    """How many times `fast` goes into `slow`."""
    return None if slow is None or not fast else slow / fast


def floor_multiple(results: dict[str, Any], job: str, contestant: str) -> float | None:
    """Seconds over those of the operation count at the rate measured in the same run."""
    found = results["jobs"].get(job, {})
    taken = seconds_of(results, job, contestant)
    if taken is None or not found.get("operations"):
        return None
    return taken / floor.seconds(found["operations"], found["gflops"])


def inference_peak(results: dict[str, Any], contestant: str) -> float | None:
    """The largest peak memory of a fresh process over the inference jobs, in GB."""
    peaks = [
        results["jobs"]
        .get(job.name, {"contestants": {}})["contestants"]
        .get(contestant, {})
        .get("peak_bytes")
        for job in JOBS
        if job.inference
    ]
    known = [peak for peak in peaks if peak]
    return max(known) / 1e9 if known else None


def beyond(results: dict[str, Any], job: str, slow: str, fast: str) -> float | None:
    """How much faster, faiss' own search left out of both."""
    entries = results["jobs"].get(job, {"contestants": {}})["contestants"]
    left = [
        entries[name]["seconds"] - entries[name]["beside"]
        for name in (slow, fast)
        if "beside" in entries.get(name, {})
    ]
    return left[0] / left[1] if len(left) == 2 and left[1] > 0 else None


def reached(results: dict[str, Any], goal: Goal) -> float | None:
    """What a goal's measure comes to; None where it was not measured."""
    ours, theirs = (
        seconds_of(results, goal.job, name) for name in (goal.contestant, goal.other or "")
    )
    if goal.measure == "faster":
        return ratio(theirs, ours)
    if goal.measure == "within":
        return ratio(ours, theirs)
    if goal.measure == "floor":
        return floor_multiple(results, goal.job, goal.contestant)
    if goal.measure == "beyond":
        return beyond(results, goal.job, goal.other or "", goal.contestant)
    return inference_peak(results, goal.contestant)


def met(goal: Goal, value: float) -> bool:
    """Whether a value reaches a goal."""
    return value >= goal.bound if goal.at_least else value <= goal.bound


def lines(name: str, found: dict[str, Any]) -> str:
    """A job for the terminal."""
    out = [f"{name}: {found['title']}"]
    results = {"jobs": {name: found}}
    for one, entry in found["contestants"].items():
        cells = [f"  {one:24}"]
        if "seconds" in entry:
            cells.append(f"{duration(entry['seconds']):>8}")
            if times := ratio(seconds_of(results, name, base_of(one) or ""), entry["seconds"]):
                cells.append(f"{times:6.2f} x")
            if multiple := floor_multiple(results, name, one):
                cells.append(f"{multiple:5.2f} x floor")
        if "peak_bytes" in entry:
            cells.append(f"peak {entry['peak_bytes'] / 1e9:.2f} GB")
        if not entry.get("agrees"):
            cells.append(entry.get("error") or entry.get("difference") or "")
        out.append("  ".join(cells))
    return "\n".join(out)


def _cell(results: dict[str, Any], job: str, name: str) -> str:
    entry = results["jobs"][job]["contestants"].get(name)
    if entry is None:
        return ""
    if "seconds" not in entry:
        return "failed" if "error" in entry else "other tokens"
    text = duration(entry["seconds"]) + ("" if entry.get("agrees") else "\N{DAGGER}")
    if times := ratio(seconds_of(results, job, base_of(name) or ""), entry["seconds"]):
        text += "" if name == base_of(name) else f" ({times:.1f} x)"
    return text


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def names(results: dict[str, Any]) -> list[str]:
    """Contestants that took part, in their usual order."""
    seen = [name for job in results["jobs"].values() for name in job["contestants"]]
    usual = [one.name for one in CONTESTANTS]
    return sorted(
        dict.fromkeys(seen), key=lambda name: (usual.index(name) if name in usual else 99, name)
    )


def seconds_table(results: dict[str, Any]) -> str:
    """Medians, and how many times faster than 4.37.2 in the same framework."""
    some = names(results)
    rows = [
        [job["title"], *(_cell(results, name, one) for one in some)]
        for name, job in results["jobs"].items()
    ]
    return _table(["job", *some], rows)


def more_table(results: dict[str, Any]) -> str:
    """Peak memory of a fresh process, and tokens a second."""
    some, rows = names(results), []
    for job in results["jobs"].values():
        cells = []
        for one in some:
            entry = job["contestants"].get(one, {})
            memory = f"{entry['peak_bytes'] / 1e9:.2f} GB" if "peak_bytes" in entry else ""
            rate = f"{entry['tokens_per_second']:,.0f}/s" if "tokens_per_second" in entry else ""
            cells.append(", ".join(filter(None, [memory, rate])))
        rows.append([job["title"], *cells])
    return _table(["peak memory; tokens a second", *some], rows)


def goals_table(results: dict[str, Any]) -> str:
    """Each goal, what was reached, and whether that is enough."""
    titles = {job.name: job.title for job in JOBS} | {"inference": "peak memory, inference"}
    rows = []
    for goal in GOALS:
        if (value := reached(results, goal)) is None:
            continue
        wanted = {
            "faster": f"{goal.bound:g} x faster than {goal.other}",
            "within": f"within {goal.bound:g} x of {goal.other}",
            "floor": f"within {goal.bound:g} x of the floor",
            "beyond": f"{goal.bound:g} x faster than {goal.other}, beyond faiss' own search",
            "memory": f"{goal.bound:.1f} GB",
        }[goal.measure]
        got = f"{value:.2f} GB" if goal.measure == "memory" else f"{value:.2f} x"
        rows.append(
            [
                titles[goal.job],
                goal.contestant,
                wanted,
                got,
                "yes" if met(goal, value) else "**no**",
            ]
        )
    return _table(["job", "contestant", "goal", "reached", "met"], rows)


def versions(results: dict[str, Any]) -> list[str]:
    """A line for each contestant: the packages it ran on."""
    found: dict[str, dict[str, str]] = {}
    for job in results["jobs"].values():
        for name, entry in job["contestants"].items():
            found.setdefault(name, {}).update(entry.get("versions", {}))
    shown = {}
    for name in names(results):
        framework = next(
            (one.framework for one in CONTESTANTS if one.name == name.partition("@")[0]), ""
        )
        other = {"torch": "tensorflow", "tf": "torch"}.get(framework)
        shown[name] = ", ".join(f"{k} {v}" for k, v in found.get(name, {}).items() if k != other)
    return [f"- {name}: {text}" for name, text in shown.items()]


def machine_line(results: dict[str, Any]) -> str:
    """The machine in words."""
    found = results["machine"]
    rates = ", ".join(f"{rate:.0f} GFLOP/s ({name})" for name, rate in found["gflops"].items())
    return (
        f"{found['processor']}, {found['cores']} cores, {found['threads']} threads, "
        f"{found['memory_gb']} GB, {found['system']}; float32 matrix products: {rates}. Python "
        f"{found['python']}. {results['date']}."
    )


def markdown(results: dict[str, Any]) -> str:
    """All tables."""
    missing = [f"- absent: {name}: {reason}" for name, reason in results.get("absent", {}).items()]
    other = [
        f"- \N{DAGGER} {name}, {job['title']}: other tokens; {entry['difference']}"
        for job in results["jobs"].values()
        for name, entry in job["contestants"].items()
        if "difference" in entry
    ]
    parts = [
        f"Measured on: {machine_line(results)}",
        seconds_table(results),
        goals_table(results),
        more_table(results),
        "\n".join([*other, *versions(results), *missing]),
    ]
    return "\n\n".join(parts)


def summary(results: dict[str, Any]) -> str:
    """The table for the README: how many times faster than 4.37.2 in the same framework."""
    rows = []
    for name, job in results["jobs"].items():
        cells = []
        for one in ("dualrag-torch", "dualrag-tf"):
            times = ratio(
                seconds_of(results, name, base_of(one) or ""), seconds_of(results, name, one)
            )
            taken = seconds_of(results, name, one)
            cells.append(
                "" if taken is None else duration(taken) + (f", **{times:.1f} x**" if times else "")
            )
        if any(cells):
            rows.append([job["title"], *cells])
    return _table(
        ["seconds, and times faster than transformers 4.37.2", "rag_torch", "rag_tf"], rows
    )


def publish(results: dict[str, Any], root: Path) -> None:
    """Write the tables between the pages' markers, and the chart where matplotlib is installed."""
    for page, marker in PAGES.items():
        if (root / page).is_file():
            body = summary(results) if page.name == "README.md" else markdown(results)
            (root / page).write_text(
                inserted((root / page).read_text("utf-8"), marker, body), "utf-8"
            )
    try:
        from benchmarks.chart import draw
    except ImportError:
        print("no chart: it needs matplotlib (pip install dualrag[bench])")
        return
    draw(results, root / CHART)
