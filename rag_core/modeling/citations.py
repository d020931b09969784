"""Which passage carries which part of an answer, read from the model's own probabilities; nothing
is prompted for.

Letters: N documents, T tokens of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from rag_core.checks import number
from rag_core.outputs import Answer, Citation
from rag_core.tokenization import words_of

_THRESHOLD = number(0, 1, above=True)


def citations_of(answer: Answer, threshold: float) -> list[Citation]:
    """The body of `Answer.citations`, whose arguments these are."""
    _THRESHOLD("threshold", threshold)
    if not answer.text:
        return []
    if answer.token_posteriors is None or not answer.token_spans:
        units = [_Unit(0, len(answer.text), 0, 1)]
        shares = np.array([[passage.posterior for passage in answer.passages]])  # (1, N)
    else:
        units = _words(answer.text, answer.token_spans)
        shares = np.array(answer.token_posteriors)  # (T, N)
    cited = []
    for place, passage in enumerate(answer.passages):
        of_tokens = shares[:, place]
        is_carried = [of_tokens[u.first : u.last].mean() >= threshold for u in units]
        for run in _runs(units, is_carried):
            cited.append(
                Citation(
                    passage=place,
                    id=passage.id,
                    probability=float(of_tokens[run.first : run.last].mean()),
                    start=run.start,
                    end=run.end,
                    text=answer.text[run.start : run.end],
                )
            )
    return sorted(cited, key=lambda citation: (citation.start, -citation.probability))


def token_spans(
    decode: Callable[..., str], row: Sequence[int], places: Sequence[int], text: str
) -> list[tuple[int, int]]:
    """Which characters of an answer each token wrote.

    Each beginning of the row is decoded, and where it stops agreeing with the whole a token ends.
    So it holds for any tokenizer; bytes of a character that is not finished yet are replaced in
    what is decoded, and count as that character.

    Args:
        decode: a tokenizer's method.
        row: ids as generated, start token and special tokens included.
        places: T places in the row, of those tokens that are asked for.
        text: the row decoded, without special tokens and the blanks around it.

    Returns:
        T pairs (start, end); (n, n) for tokens that write nothing, such as special ones.
    """
    whole = decode(list(row), skip_special_tokens=True)
    blanks = len(whole) - len(whole.lstrip())
    spans = []
    agreed = 0
    for place in places:
        start = agreed
        beginning = decode(list(row[: place + 1]), skip_special_tokens=True)
        while agreed < min(len(beginning), len(whole)) and beginning[agreed] == whole[agreed]:
            agreed += 1
        end = agreed + (len(beginning) > agreed)
        spans.append((_within(start - blanks, text), _within(end - blanks, text)))
    return spans


def _within(place: int, text: str) -> int:
    return min(max(0, place), len(text))


class _Unit(NamedTuple):
    """Characters of an answer that are cited together, and the tokens that wrote them."""

    start: int
    end: int
    first: int
    last: int


def _words(text: str, spans: Sequence[tuple[int, int]]) -> list[_Unit]:
    """The words of an answer; those that share a token are one."""
    units: list[_Unit] = []
    for start, end, _ in words_of(text, None):
        writers = [t for t, span in enumerate(spans) if span[0] < end and start < span[1]]
        if not writers:
            continue
        first = writers[0]
        if units and first < units[-1].last:
            start, first = units[-1].start, units[-1].first
            units.pop()
        units.append(_Unit(start, end, first, writers[-1] + 1))
    return units


def _runs(units: Sequence[_Unit], is_carried: Sequence[bool]) -> list[_Unit]:
    """Neighbours that are carried, joined."""
    runs = []
    for carried, group in groupby(zip(units, is_carried, strict=True), key=itemgetter(1)):
        if carried:
            members = [unit for unit, _ in group]
            runs.append(
                _Unit(members[0].start, members[-1].end, members[0].first, members[-1].last)
            )
    return runs
