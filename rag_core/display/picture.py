"""An answer as a picture: figure 2 of the paper beside the prior and the posterior of each passage.

matplotlib draws it. Letters: N passages, T tokens.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from rag_core.display.page import called, token_labels
from rag_core.outputs import shortened

_SETTINGS: Any = {
    "text.parse_math": False,  # a "$" is a dollar
    "svg.fonttype": "none",  # letters stay text, in a font that the reader has
    "svg.hashsalt": "dualrag",  # the same picture is the same file
    "font.size": 9,
}
_TITLE = 34  # characters of a passage's title
_QUESTION = 90  # characters of a line of the question
_TOKEN = 0.42  # inches of a column
# Sharp on paper; a picture that would be too large for matplotlib gets less.
_DPI = 150
_PIXELS = 60_000  # of a side; matplotlib can do 65,536


def picture(answers: Sequence[Mapping[str, Any]], credit: str, kind: str) -> bytes:
    """The answers as the bytes of a file, one under the other.

    Args:
        kind: "svg" or "png".

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            f"a picture as {kind} needs matplotlib. Run: pip install 'dualrag[plots]'"
        ) from None
    file = io.BytesIO()
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        heights = [0.36 * len(answer["passages"]) + 1.7 for answer in answers]
        if credit:
            heights.append(0.25)
        widest = max(len(answer.get("token_posteriors") or ()) for answer in answers)
        size = 7.5 + _TOKEN * widest, sum(heights)
        figure = Figure(figsize=size, layout="constrained")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, answer in zip(parts, answers, strict=False):
            _draw(part, answer)
        if credit:
            parts[-1].text(0.99, 0.5, _shown(credit), ha="right", va="center", fontsize=6)
        metadata: dict[str, Any] = {}
        if kind == "svg":
            metadata["Date"] = None
        figure.savefig(file, format=kind, dpi=min(_DPI, _PIXELS / max(size)), metadata=metadata)
    return file.getvalue()


def _draw(part: Any, answer: Mapping[str, Any]) -> None:
    question = textwrap.fill(_shown(answer["question"]), _QUESTION)
    part.suptitle(f"{question}\n→ {_shown(answer['text']) or '(no answer)'}", fontsize=10)
    passages = answer["passages"]
    if not passages:
        return
    shares = answer.get("token_posteriors")
    if shares:
        heat, bars = part.subplots(1, 2, sharey=True, width_ratios=[_TOKEN * len(shares), 3])
        _heat_map(heat, answer, shares)
    else:
        bars = heat = part.subplots()
    heat.set_yticks(
        range(len(passages)),
        [
            f"{shortened(_shown(called(answer, place)), _TITLE)} [{place + 1}]"
            for place in range(len(passages))
        ],
    )
    heat.set_ylim(len(passages) - 0.5, -0.5)
    _bars(bars, passages)


def _heat_map(axes: Any, answer: Mapping[str, Any], shares: Sequence[Sequence[float]]) -> None:
    """Figure 2: a column a token, a row a passage."""
    columns = list(zip(*shares, strict=True))  # (N, T)
    axes.imshow(columns, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    labels = [_shown(label) for label in token_labels(answer)]
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xlabel("p(passage given question and answer so far), in %", fontsize=8)
    axes.spines[:].set_visible(False)
    for row, of_passage in enumerate(columns):
        for column, share in enumerate(of_passage):
            if share < 0.005:
                continue  # a nought in most of thousands of cells would hide the others
            colour = "black"
            if share > 0.6:
                colour = "white"
            figure = axes.text(
                column,
                row,
                f"{100 * share:.0f}",
                ha="center",
                va="center",
                color=colour,
                fontsize=7,
            )
            figure.set_in_layout(False)  # measuring them takes longer than drawing


def _bars(axes: Any, passages: Sequence[Mapping[str, Any]]) -> None:
    for offset, key, words, colour in (
        (-0.19, "prior", "before answering", "#b3681a"),
        (0.19, "posterior", "given the answer", "#08306b"),
    ):
        places = [place + offset for place in range(len(passages))]
        values = [passage[key] for passage in passages]
        drawn = axes.barh(places, values, 0.36, label=words, color=colour)
        axes.bar_label(drawn, [f"{100 * value:.0f} %" for value in values], padding=2, fontsize=7)
    axes.set_xlim(0, 1.18)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, frameon=False, fontsize=8)


def _shown(text: str) -> str:
    """In one line, without what XML cannot hold."""
    printable = "".join(letter for letter in text if letter.isprintable() or letter.isspace())
    return " ".join(printable.split())
