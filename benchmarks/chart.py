"""The chart of the table.

How many times faster than transformers 4.37.2 each job runs, in either framework.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.report import base_of, ratio, seconds_of
from benchmarks.scaling_report import COLOURS, INK, chart_style

matplotlib.use("Agg")

SERIES = {
    name: (label, COLOURS[name])
    for name, label in (("dualrag-torch", "rag_torch"), ("dualrag-tf", "rag_tf"))
}
SHORT = {
    "token_loss": "RAG-Token, forward and loss",
    "token_greedy": "RAG-Token, greedy",
    "token_beam4": "RAG-Token, 4 beams",
    "sequence_thorough": "RAG-Sequence, thorough,\nall candidates distinct",
    "demo_thorough": "RAG-Sequence, thorough,\nthe demo's short answers",
    "training": "training step",
    "retrieve": "retrieve",
    "retriever_call": "retriever call",
    "tiny_greedy": "tiny model, greedy",
    "plain_beam4": "generator alone, 4 beams",
}


def bars(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Times faster by job and contestant; jobs without any are left out."""
    found: dict[str, dict[str, float]] = {}
    for job in results["jobs"]:
        for one in SERIES:
            times = ratio(
                seconds_of(results, job, base_of(one) or ""), seconds_of(results, job, one)
            )
            if times:
                found.setdefault(job, {})[one] = times
    return found


def draw(results: dict[str, Any], file: Path) -> None:
    """Horizontal bars on a logarithmic axis; 1 is transformers 4.37.2 in the same framework."""
    import matplotlib.pyplot as plt

    found = bars(results)
    if not found:
        return
    with plt.rc_context(chart_style("speed")):
        figure, axis = plt.subplots(figsize=(8, 0.9 + 0.52 * len(found)), layout="constrained")
        for place, job in enumerate(found):
            for at, (one, (label, colour)) in enumerate(SERIES.items()):
                if one not in found[job]:
                    continue
                times, y = found[job][one], place + 0.38 * (at - 0.5)
                axis.barh(
                    y,
                    times - 1,
                    left=1,
                    height=0.34,
                    color=colour,
                    label=label if place == 0 else None,
                )
                axis.annotate(
                    f"{times:.1f} x",
                    (max(times, 1.0), y),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                )
        axis.set_xscale("log")
        axis.axvline(1, color=INK, linewidth=0.8)
        axis.set_yticks(range(len(found)), [SHORT.get(job, job) for job in found])
        axis.tick_params(axis="y", length=0)
        axis.invert_yaxis()
        most = max(max(some.values()) for some in found.values())
        axis.set_xlim(min(0.9, *(min(some.values()) for some in found.values())), most * 1.4)
        ticks = [1, 2, 5, 10, 20, 50, 100]
        axis.set_xticks([tick for tick in ticks if tick <= most * 1.4], minor=False)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g} x")
        axis.minorticks_off()
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.set_xlabel("times faster than transformers 4.37.2 in the same framework")
        handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for _, colour in SERIES.values()]
        axis.legend(
            handles, [label for label, _ in SERIES.values()], frameon=False, loc="lower right"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(
            file, transparent=True, metadata={"Date": None} if file.suffix == ".svg" else None
        )
        plt.close(figure)
