"""The scaling curves for readers: a table in Markdown and a chart of small multiples."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.growth import too_fast
from benchmarks.scaling_curves import CURVES, Curve

CHART = Path("docs") / "charts" / "scaling.svg"
PAGE = Path("docs") / "performance.md"
NAMES = {
    "dualrag-torch": "dualrag, torch",
    "dualrag-tf": "dualrag, TensorFlow",
    "transformers4-torch": "transformers 4.37.2, torch",
}
SHORT = {"dualrag-torch": "torch", "dualrag-tf": "TensorFlow", "transformers4-torch": "4.37.2"}
# middling tones and no ground of their own: readable on white and on near-black
INK, COLOURS = (
    "#7d7d7d",
    {"dualrag-torch": "#e0602a", "dualrag-tf": "#3f83e8", "transformers4-torch": "#8a8a8a"},
)
INDEXES = {"flat": ("flat", "#c2499a"), "ivfpq": ("IVF-PQ", "#2f9e73"), "hnsw": ("HNSW", "#b0801c")}


def chart_style(salt: str) -> Any:
    """Settings of matplotlib that all charts share; `salt` makes their ids the same every time."""
    colours = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return dict.fromkeys(colours, INK) | {"font.size": 9, "svg.hashsalt": salt}


def duration(seconds: float) -> str:
    """Two digits in a unit that suits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * size or unit == "µs":
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 9.95 else f"{value:.1f} {unit}"
    return ""


def flagged(entry: dict[str, Any]) -> bool:
    """Whether a curve grows by a higher power than its operation count, with or without its
    constant part.
    """
    beyond = "beyond" in entry and too_fast(entry["beyond"], entry["expected_beyond"])
    return beyond or too_fast(entry["growth"], entry["expected"])


def stated(entry: dict[str, Any], which: str = "growth") -> str:
    """A growth, measured or expected, and in brackets that of what comes on top of the first
    point.
    """
    beyond = entry.get({"growth": "beyond", "expected": "expected_beyond"}[which])
    return f"n^{entry[which]:.2f}" + ("" if beyond is None else f" ({beyond:.2f})")


def lines(curve: Curve, found: dict[str, Any]) -> str:
    """A curve for the terminal."""
    head = f"{curve.what}, against {curve.title}"
    rows = [
        f"  {name:16}"
        + "".join(f"{duration(s):>9}" for s in entry["seconds"])
        + f"   {stated(entry)}, expected {stated(entry, 'expected')}"
        for name, entry in found["contestants"].items()
    ]
    return "\n".join([head, "  " + " " * 16 + "".join(f"{n:>9,}" for n in found["values"]), *rows])


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    flag = " **faster than expected**" if flagged(entry) else ""
    return (
        f"{duration(entry['seconds'][0])} to {duration(entry['seconds'][-1])}, "
        f"{stated(entry)}{flag}"
    )


def table(results: dict[str, Any]) -> str:
    """A row for each curve.

    Time at the smallest and the largest n, and the growth of the upper half.
    """
    out = [
        "| time of | against n | " + " | ".join(NAMES.values()) + " | by operation count |",
        "|---|---|" + "---|" * len(NAMES) + "---|",
    ]
    for curve in CURVES:
        found = results["curves"].get(curve.name)
        if found is None or not found["contestants"]:
            continue
        entries, values = found["contestants"], found["values"]
        cells = [_cell(entries.get(name)) for name in NAMES]
        for at, name in enumerate(NAMES):
            limit = curve.slowest.get(name)
            if limit and cells[at]:
                cells[at] += f" (to {limit})"
        if "faiss" in entries:  # one search serves both frameworks
            cells = [_cell(entries["faiss"])] * 2 + [""]
        expected = stated(
            max(entries.values(), key=lambda entry: len(entry["seconds"])), "expected"
        )
        span = f"{curve.title}, {values[0]:,} to {values[-1]:,}"
        out.append(f"| {curve.what} | {span} | " + " | ".join(cells) + f" | {expected} |")
    return "\n".join(out)


def inserted(page: str, name: str, body: str) -> str:
    """A page with what is between the markers `<!-- name -->` and `<!-- /name -->` replaced.

    Unchanged without them.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in page or end not in page:
        return page
    return page[: page.index(begin) + len(begin)] + f"\n\n{body}\n\n" + page[page.index(end) :]


def write(results: dict[str, Any], root: Path) -> None:
    """The chart, where matplotlib is installed, and the table where the page has its markers."""
    page = root / PAGE
    if page.is_file():
        page.write_text(inserted(page.read_text("utf-8"), "scaling", table(results)), "utf-8")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("no chart: it needs matplotlib (pip install dualrag[bench])")
        return
    chart(results, root / CHART)


def chart(results: dict[str, Any], file: Path, ground: str = "none") -> None:
    """Small multiples, time against n, both axes logarithmic, each line named and its growth stated
    at its end.

    Args:
        results: as the results file holds them.
        file: .svg or .png.
        ground: a colour behind it all, to look at the chart on one; none by default.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(chart_style("scaling")):
        figure, axes = plt.subplots(2, 4, figsize=(13.5, 6.4), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.16)
        searched = []
        for curve in CURVES:
            found = results["curves"].get(curve.name, {"contestants": {}})
            if "faiss" in curve.contestants:
                searched += [
                    (*INDEXES[curve.name], found["values"], e)
                    for e in found["contestants"].values()
                ]
        panels = [curve for curve in CURVES if "faiss" not in curve.contestants]
        for axis, curve in zip(axes.flat, panels, strict=False):
            entries = results["curves"].get(curve.name, {"contestants": {}})["contestants"]
            series = [(SHORT[n], COLOURS[n], list(curve.values), e) for n, e in entries.items()]
            expected = max((e["expected"] for e in entries.values()), default=0.0)
            if curve.name == "embedding":
                _panel(axis, curve.title, "MiniLM, passages a second", series, rate=True)
            else:
                _panel(axis, curve.title, f"{curve.what}; by count $n^{{{expected:.2f}}}$", series)
        _panel(axes.flat[-1], "vectors in the index", "one search for 5", searched)
        file.parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = (
            {"metadata": {"Date": None}} if file.suffix == ".svg" else {"dpi": 110}
        )
        figure.savefig(file, facecolor=ground, **options)
        plt.close(figure)


def _panel(axis: Any, varied: str, what: str, series: list[Any], rate: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis.set_xscale("log")
    axis.set_title(varied, loc="left", fontsize=10.5, fontweight="bold", pad=20)
    axis.text(0, 1.035, what, transform=axis.transAxes, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.patch.set_visible(False)
    if not series:
        axis.set_axis_off()
        return
    ends, values = [], max((entry[2] for entry in series), key=len)
    for name, colour, at, entry in series:
        y = [1 / s if rate else s for s in entry["seconds"]]
        axis.plot(at[: len(y)], y, color=colour, linewidth=1.8, marker="o", markersize=3.2)
        power = "" if rate else f" $n^{{{entry['growth']:.2f}}}$"
        ends.append([y[-1], at[len(y) - 1], f"{name}{power}", colour])
    axis.set_xticks(values, [_short(n) for n in values])
    axis.xaxis.set_minor_locator(NullLocator())
    # room for the names
    axis.set_xlim(values[0] * 0.9, values[-1] * (values[-1] / values[0]) ** 0.52)
    axis.spines["bottom"].set_bounds(values[0] * 0.9, values[-1])
    everything = [1 / s if rate else s for *_, entry in series for s in entry["seconds"]]
    if rate:
        axis.set_ylim(0, max(everything) * 1.15)
        axis.yaxis.set_major_locator(MaxNLocator(4))
    else:
        axis.set_yscale("log")
        narrow = max(everything) / min(everything) < 40
        axis.set_ylim(min(everything) / 1.4, max(everything) * 1.4)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: duration(v).replace(".0 ", " ")))
    axis.grid(axis="y", color=INK, alpha=0.18, linewidth=0.6)
    axis.tick_params(length=3)
    _label(axis, ends)


def _label(axis: Any, ends: list[list[Any]]) -> None:
    """Names at the lines' ends, pushed apart where lines end close together.

    Axes' heights from 0 to 1.
    """
    to_axes = axis.transData + axis.transAxes.inverted()
    rows = sorted(
        ([*to_axes.transform((x, y)), text, colour] for y, x, text, colour in ends),
        key=lambda row: row[1],
    )
    right = max(row[0] for row in rows)
    # ends before others do: above it
    for x, y, text, colour in (row for row in rows if row[0] < right - 0.05):
        axis.text(x, y + 0.06, text, color=colour, transform=axis.transAxes, ha="right", fontsize=9)
    rows = [row for row in rows if row[0] >= right - 0.05]
    for below, above in pairwise(rows):
        above[1] = max(above[1], below[1] + 0.085)
    rows[-1][1] = min(rows[-1][1], 0.97)
    for above, below in pairwise(rows[::-1]):
        below[1] = min(below[1], above[1] - 0.085)
    for x, y, text, colour in rows:
        axis.text(
            x + 0.025, y, text, color=colour, transform=axis.transAxes, va="center", fontsize=9
        )


def _short(n: int) -> str:
    if n < 10_000:
        return str(n)
    return f"{n / 1e6:.2g}M" if n >= 1_000_000 else f"{n / 1e3:.0f}k"
