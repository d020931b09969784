"""Words of a text where passages and prompts may be cut, for scripts with and without blanks.

A word is a run of non-space characters. Each Chinese or Japanese character counts as one. Thai,
Lao, Khmer, Burmese and their like are written without blanks, and where their words end only a
dictionary knows: `LETTERS` letters (with their marks) count as one, a Tibetan syllable does. A run
with more than `longest` characters (base64, an address) is several.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import regex

LETTERS = 4
LONGEST_WORD = 500  # characters; German compounds, chemical names and most addresses are far below

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_CJK_WORD = rf"[{CJK}][\u3001\u3002\uff01\uff0c\uff1f]*"

ZERO_WIDTH_SPACE = "\u200b"  # marks ends of words in Thai and Khmer
_RUN = re.compile(r"\S+")
# all letters of scripts without blanks are here
_BEYOND = re.compile("[\u0e00-\u1fff\u2e80-\U0010ffff]")


class Word(NamedTuple):
    """A place in a text.

    Attributes:
        start, end: characters.
        splits: whether a cut after it may fall within what is a word to a reader.
    """

    start: int
    end: int
    splits: bool


def words_of(text: str, longest: int | None = LONGEST_WORD) -> list[Word]:
    """The words of a text in order; between them stand blanks or nothing.

    Args:
        text: any length.
        longest: characters a word may have; None = any number.
    """
    words: list[Word] = []
    for run in _RUN.finditer(text):
        start, end = run.span()
        parts = [(start, end, False)]
        if not run[0].isascii() and _BEYOND.search(run[0]):
            parts = [
                (*part.span(), part.lastgroup == "unspaced")
                for part in _parts().finditer(text, start, end)
            ]
        after_unspaced = False
        for start, end, is_unspaced in parts:
            if after_unspaced or (is_unspaced and words and words[-1].end == start):
                words[-1] = words[-1]._replace(splits=text[start - 1] != ZERO_WIDTH_SPACE)
            after_unspaced = is_unspaced
            if longest is not None and end - start > longest:
                words += _pieces(text, start, end, longest)
            else:
                words.append(Word(start, end, False))
    return words


def plain_words(text: str, longest: int) -> list[str] | None:
    """`text.split()` where that gives the words, else None."""
    if not text.isascii() and _BEYOND.search(text) and _scripts().search(text):
        return None
    parts = text.split()
    if max(map(len, parts), default=0) > longest:
        return None
    return parts


def _pieces(text: str, start: int, end: int, longest: int) -> list[Word]:
    """A long run in pieces of `longest` characters or a little less.

    No letter is parted from its marks.
    """
    if text[start:end].isascii():
        cuts = list(range(start, end, longest))
    else:
        cuts = [start]
        letters = _letters()
        while end - cuts[-1] > longest:
            for letter in letters.finditer(text, cuts[-1], cuts[-1] + longest + 1):
                last = letter.start()  # the last one may go on beyond
            if last == cuts[-1]:
                last += longest  # one letter with more marks than a word may have characters
            cuts.append(last)
    ends = [*cuts[1:], end]
    return [Word(first, last, last < end) for first, last in zip(cuts, ends, strict=True)]


# The `regex` package knows Unicode's properties; `re` does not. It is loaded for text beyond ASCII
# alone.


@functools.cache
def _classes() -> dict[str, str]:
    tibetan = r"\p{Tibetan}"
    return {
        # as Chinese and Japanese: half-width kana, ideographs beyond the first plane, Yi, Tangut,
        # Bopomofo
        "single": r"[[\p{Ideographic}\p{Hiragana}\p{Katakana}]&&[\U00010000-\U0010ffff]]"
        r"\p{Bopomofo}\p{Yi}\uff66-\uff9d",
        # "complex context": Thai, Lao, Khmer, Burmese, Tai scripts; Javanese and Balinese have
        # rules of their own
        "unspaced": r"\p{Line_Break=SA}[[\p{Javanese}\p{Balinese}]&&[\p{L}\p{M}]]",
        "tibetan": tibetan,
        "ends": r"\u0f0b-\u0f14",  # of Tibetan syllables and sentences
    }


def _special() -> str:
    """The letters of scripts that are written without blanks, as part of a set."""
    c = _classes()
    return rf"{CJK}{c['single']}{c['unspaced']}{c['tibetan']}"


@functools.cache
def _scripts() -> regex.Pattern[str]:
    import regex

    return regex.compile(rf"(?V1)[{_special()}]")


@functools.cache
def _parts() -> regex.Pattern[str]:
    """The words of a run without blanks."""
    import regex

    c = _classes()
    closing = rf"[\p{{Po}}\p{{Pe}}\p{{Pf}}{ZERO_WIDTH_SPACE}\"']*"
    # The signs of Burmese, Khmer, Balinese and Javanese that stack the next letter; Unicode's
    # clusters end at them.
    stacked = r"(?<=[\u1039\u17d2\u1b44\ua9c0])\X"
    # And vowels of Thai and Lao that stand before their consonant.
    first = rf"\p{{Logical_Order_Exception}}(?=[{c['unspaced']}])"
    letter = rf"(?=[{c['unspaced']}])(?:{first})?\X(?:{stacked})*"
    syllable = rf"(?:(?=[{c['tibetan']}--[{c['ends']}]])\X){{1,8}}[{c['ends']}]*|[{c['ends']}]+"
    return regex.compile(
        rf"(?V1){_CJK_WORD}"
        rf"|(?=[{c['single']}])\X[\u3001\u3002\uff01\uff0c\uff1f\uff61\uff64]*"
        rf"|(?P<unspaced>(?:{letter}){{1,{LETTERS}}}{closing}|{syllable})"
        rf"|[^{_special()}]+"
        r"|."  # a mark without its letter
    )


@functools.cache
def _letters() -> regex.Pattern[str]:
    import regex

    return regex.compile(r"\X")
