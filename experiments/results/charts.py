"""The plots of docs/results.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.scaling_report import INK, chart_style
from experiments.results.collect import Figures
from experiments.results.plan import REAL

COLOURS = {"nq": "#0072b2", "trivia": "#d55e00"}
TITLES = {"nq": "NQ", "trivia": "TriviaQA"}
LINES = {"torch": "-", "tf": "--"}
NAMES = {"torch": "rag_torch", "tf": "rag_tf"}


def draw(found: dict[str, Figures], folder: Path) -> None:
    """Write those whose figures are there.

    Args:
        found: figures by backend.
        folder: of results-*.svg.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plots: dict[str, tuple[str, Callable[[Any, dict[str, Figures]], None]]] = {
        "n-docs": ("n_docs", _n_docs),
        "systems": ("systems", _systems),
        "reliability": ("calibration", _reliability),
    }
    for name, (part, plot) in plots.items():
        having = {backend: figures for backend, figures in found.items() if figures.get(part)}
        if not having:
            continue
        with plt.rc_context(chart_style("results")):
            figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
            plot(axis, having)
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
            handles, _ = axis.get_legend_handles_labels()
            if handles:
                axis.legend(frameon=False, fontsize=8)
            figure.savefig(folder / f"results-{name}.svg", metadata={"Date": None})
            plt.close(figure)


def _n_docs(axis: Any, found: dict[str, Figures]) -> None:
    for backend, figures in found.items():
        for name, entry in figures["n_docs"].items():
            counts = [point["n_docs"] for point in entry["points"]]
            for key, title, marker in (
                ("exact_match", "exact match", "o"),
                ("recall", "recall", "^"),
            ):
                values = [100 * point[key]["mean"] for point in entry["points"]]
                axis.plot(
                    counts,
                    values,
                    color=COLOURS[name],
                    linestyle=LINES[backend],
                    marker=marker,
                    label=f"{TITLES[name]}, {title}, {NAMES[backend]}",
                )
    axis.set_xscale("log")
    ticks = [1, 2, 5, 10, 20, 50]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("passages that are read")
    axis.set_ylabel("% of answerable questions")
    axis.set_ylim(bottom=0)


def _systems(axis: Any, found: dict[str, Figures]) -> None:
    titles = {
        name: entry["title"] for each in found.values() for name, entry in each["systems"].items()
    }
    bars = [(backend, name) for backend in found for name in REAL]
    height = 0.8 / len(bars)
    for number, (backend, name) in enumerate(bars):
        systems = found[backend]["systems"]
        for place, system in enumerate(titles):
            figure = systems.get(system, {}).get("sets", {}).get(name, {}).get("exact_match")
            if figure is None:
                continue
            mean, low, high = (100 * figure[key] for key in ("mean", "low", "high"))
            label = None
            if place == 0:
                label = f"{TITLES[name]}, {NAMES[backend]}"
            axis.barh(
                place + (number - (len(bars) - 1) / 2) * height,
                mean,
                height=0.9 * height,
                xerr=[[mean - low], [high - mean]],
                error_kw={"elinewidth": 0.8, "ecolor": INK},
                color=COLOURS[name],
                alpha=1.0 if backend == "torch" else 0.55,
                label=label,
            )
    axis.set_yticks(range(len(titles)), list(titles.values()))
    axis.invert_yaxis()
    axis.set_xlabel("exact match, % of answerable questions, with 95 % intervals")


def _reliability(axis: Any, found: dict[str, Figures]) -> None:
    axis.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=":")
    for backend, figures in found.items():
        for system, trusted in figures["calibration"].items():
            head, _, drawn = system.partition(", ")
            axis.plot(
                [100 * each["mean"] for each in trusted["bins"]],
                [100 * each["right"] for each in trusted["bins"]],
                color=COLOURS["nq" if head == "joint" else "trivia"],
                linestyle=LINES[backend],
                marker="o" if drawn == "all questions" else "^",
                label=f"{system}, {NAMES[backend]}",
            )
    axis.set_xlabel("probability of the answer, % (tenths of all answers)")
    axis.set_ylabel("exact match, %")
