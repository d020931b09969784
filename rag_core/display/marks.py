"""Text that is shown: where an answer's words stand in it, and what it must not do."""

from __future__ import annotations

import re
from html import escape

# Line breaks and tabs stay; control characters do nothing good in a page.
_CONTROLS = {code: "\ufffd" for code in [*range(0x20), *range(0x7F, 0xA0)] if code not in (9, 10)}


def escaped(text: str) -> str:
    """A text of strangers as HTML that shows it and does nothing else."""
    text = text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be written
    return escape(text.replace("\r\n", "\n").translate(_CONTROLS))


def marked(text: str, spans: list[tuple[int, int]]) -> str:
    """HTML of a text in which some places, in their order, are marked."""
    parts = []
    done = 0
    for start, end in spans:
        start = max(start, done)
        if start < end:
            parts += [escaped(text[done:start]), f"<mark>{escaped(text[start:end])}</mark>"]
            done = end
    return "".join(parts) + escaped(text[done:])


def percent(share: float) -> str:
    """A probability for people."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.1f} %"


def answer_spans(text: str, answer: str) -> list[tuple[int, int]]:
    """Where the words of an answer stand in a text, whatever their case and punctuation.

    Args:
        text: of a passage.
        answer: to look for.

    Returns:
        (start, end) of every place where they follow each other; where they do so nowhere, of each
        of the words that tell something.
    """
    words = list(re.finditer(r"\w+", text))
    said = [word[0].casefold() for word in words]
    wanted = [word.casefold() for word in re.findall(r"\w+", answer)]
    count = len(wanted)
    if not count:
        return []
    runs = [
        (words[first].start(), words[first + count - 1].end())
        for first in range(len(said) - count + 1)
        if said[first : first + count] == wanted
    ]
    if runs:
        return runs
    telling = {word for word in wanted if len(word) > 3 or not word.isalpha()}
    return [word.span() for word in words if word[0].casefold() in telling]
