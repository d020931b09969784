"""The text a generator reads: one document and the question, and how it is cut to length.

Letters: B questions, N documents a question.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from rag_core.tokenization import words_of

TRUNCATE = ("compatible", "document")
UNCUT = 50  # characters; a longer word (an address, base64) is cut where it would not fit


def strip_title(title: str) -> str:
    """Take one double quote off either end of a title, as the Wikipedia dump of DPR has them."""
    return title.removeprefix('"').removesuffix('"')


def contextualize(document: str, question: str, prefix: str, doc_sep: str) -> str:
    """Join one prompt; two blanks become one, once and not recursively (as transformers does)."""
    return f"{prefix}{document}{doc_sep}{question}".replace("  ", " ")


def build_prompts(
    docs: Sequence[dict],
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
    return [
        contextualize(
            f"{strip_title(title or '')}{title_sep}{text or ''}", question, prefix, doc_sep
        )
        for doc, question in zip(docs, questions, strict=True)
        for title, text in zip(doc["title"][:n_docs], doc["text"][:n_docs], strict=True)
    ]


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
    result = list(prompts)
    lengths = count_tokens(result)
    todo = [number for number, length in enumerate(lengths) if length > max_length]
    heads, tails, cuts = {}, {}, {}
    for number in todo:
        split = len(result[number]) - keep_last[number]
        heads[number], tails[number] = result[number][:split], result[number][split:]
        cuts[number] = [
            keep_first,
            *(end for _, end, _ in words_of(heads[number], UNCUT) if end > keep_first),
        ]
    low, high = dict.fromkeys(todo, 0), {number: len(cuts[number]) for number in todo}
    # A blank before the separator may be a token of its own, which goes with the last word: left to
    # the search.
    known = [number for number in todo if token_starts and not heads[number][-1:].isspace()]
    if token_starts and known:
        for number, starts in zip(
            known, token_starts([result[number] for number in known]), strict=True
        ):
            inside = [start for start in starts if start < len(heads[number])]
            gone = lengths[number] - max_length
            # the first token to go begins here; words that end before it stay
            high[number] = (
                bisect_right(cuts[number], inside[-gone]) - 1 if gone <= len(inside) else 0
            )
        texts = [heads[number][: cuts[number][high[number]]] + tails[number] for number in known]
        for number, length in zip(known, count_tokens(texts), strict=True):
            low[number] = high[number] if length <= max_length else 0
    # Binary search for the most words that fit, all prompts abreast so that the tokenizer sees
    # batches.
    while active := [number for number in todo if high[number] - low[number] > 1]:
        middle = {number: (low[number] + high[number]) // 2 for number in active}
        texts = [heads[number][: cuts[number][middle[number]]] + tails[number] for number in active]
        for number, length in zip(active, count_tokens(texts), strict=True):
            (low if length <= max_length else high)[number] = middle[number]
    for number in todo:
        result[number] = heads[number][: cuts[number][low[number]]] + tails[number]
    return result
