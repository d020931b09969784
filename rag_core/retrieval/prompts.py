"""The text a generator reads: one document and the question, and how it is cut to length.

Letters: B questions, N documents a question.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rag_core.tokenization import words_of

TRUNCATE = ("compatible", "document")
UNCUT = 50  # characters; a longer word (an address, base64) is cut where it would not fit


def strip_title(title: str) -> str:
    """Take one double quote off either end of a title, as the Wikipedia dump of DPR has them."""
    return title.removeprefix('"').removesuffix('"')


def document_of(title: str, text: str, title_sep: str) -> str:
    """A passage as it stands in a prompt."""
    return f"{strip_title(title)}{title_sep}{text}"


def document_cuts(head: str, keep_first: int) -> list[int]:
    """Where a prompt up to the end of its document may end instead, in characters.

    Args:
        head: the prompt's beginning, prefix and document.
        keep_first: characters of it (the prefix) that stay.
    """
    ends = [end for _, end, _ in words_of(head, UNCUT) if end > keep_first]
    return [keep_first, *ends]


def contextualize(document: str, question: str, prefix: str, doc_sep: str) -> str:
    """Join one prompt; two blanks become one, once and not recursively (as transformers does)."""
    return f"{prefix}{document}{doc_sep}{question}".replace("  ", " ")


def build_prompts(
    docs: Sequence[dict[str, Any]],
    questions: Sequence[str],
    prefix: str,
    n_docs: int,
    title_sep: str,
    doc_sep: str,
) -> list[str]:
    """Build the prompts of all questions and documents.

    Args:
        docs: B dictionaries with lists "title" and "text" of N entries.
        questions: B strings.
        prefix: text before everything else.
        n_docs: N.
        title_sep: text between title and text.
        doc_sep: text between document and question.

    Returns:
        B*N strings; document d of question b is at ``b * n_docs + d``.
    """
    prompts = []
    for doc, question in zip(docs, questions, strict=True):
        for title, text in zip(doc["title"][:n_docs], doc["text"][:n_docs], strict=True):
            document = document_of(title or "", text or "", title_sep)
            prompts.append(contextualize(document, question, prefix, doc_sep))
    return prompts


@dataclass
class _Search:
    """The search for how much of a prompt's document fits.

    Attributes:
        number: of the prompt.
        head, tail: the prompt up to the end of its document, and the rest, which stays.
        cuts: where the head may end, in characters.
        excess: tokens that must go.
        low, high: the cut with number `low` fits, the one with number `high` does not, or is none.
    """

    number: int
    head: str
    tail: str
    cuts: list[int]
    excess: int
    low: int = 0
    high: int = 0

    def text(self, cut: int) -> str:
        return self.head[: self.cuts[cut]] + self.tail

    def guess(self, token_starts: list[int]) -> None:
        """Set `high` to the last cut before the first token that must go."""
        inside = [start for start in token_starts if start < len(self.head)]
        self.high = 0
        if self.excess <= len(inside):
            self.high = bisect_right(self.cuts, inside[-self.excess]) - 1


def shorten_documents(
    prompts: Sequence[str],
    keep_last: Sequence[int],
    keep_first: int,
    max_length: int,
    count_tokens: Callable[[list[str]], list[int]],
    token_starts: Callable[[list[str]], list[list[int]]] | None = None,
) -> list[str]:
    """Cut words off the document in each prompt until prompt and question fit together.

    Args:
        prompts: whole prompts.
        keep_last: for each prompt, the characters at its end (separator and question) that stay.
        keep_first: characters at the start (the prefix) that stay.
        max_length: tokens a prompt may have, special tokens included.
        count_tokens: tokens of each of a list of texts, special tokens included.
        token_starts: where each token of a text begins, special tokens left out, in characters; it
            spares most of the search, as tokens end where words end.

    Returns:
        The prompts; those that fit are unchanged. If the question alone is too long, the document
        is dropped.
    """
    shortened = list(prompts)
    lengths = count_tokens(shortened)
    too_long: list[_Search] = []
    for number, length in enumerate(lengths):
        if length > max_length:
            prompt = shortened[number]
            head = prompt[: len(prompt) - keep_last[number]]
            cuts = document_cuts(head, keep_first)
            tail = prompt[len(head) :]
            too_long.append(_Search(number, head, tail, cuts, length - max_length, high=len(cuts)))

    def try_cuts(searches: list[_Search], cuts: list[int]) -> Iterator[tuple[_Search, int, bool]]:
        texts = [one.text(cut) for one, cut in zip(searches, cuts, strict=True)]
        for one, cut, length in zip(searches, cuts, count_tokens(texts), strict=True):
            yield one, cut, length <= max_length

    # A blank before the separator may be a token of its own, which goes with the last word: left to
    # the search.
    known = [one for one in too_long if not one.head[-1:].isspace()]
    if token_starts and known:
        starts = token_starts([shortened[one.number] for one in known])
        for one, first_characters in zip(known, starts, strict=True):
            one.guess(first_characters)
        for one, cut, fits in try_cuts(known, [one.high for one in known]):
            if fits:
                one.low = cut
    # Binary search for the most words that fit, all prompts abreast so that the tokenizer sees
    # batches.
    while active := [one for one in too_long if one.high - one.low > 1]:
        for one, cut, fits in try_cuts(active, [(one.low + one.high) // 2 for one in active]):
            if fits:
                one.low = cut
            else:
                one.high = cut
    for one in too_long:
        shortened[one.number] = one.text(one.low)
    return shortened
