"""An answer as HTML: figure 2 of the paper as a table, and the passages with their probabilities.

It needs no script, loads nothing, and has one block of style, so that a strict policy of contents
can name it by its hash. Letters: N passages, T tokens.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_core.display.marks import answer_spans, escaped, marked, percent

_LEVELS = 20  # steps of the colour map in page.css


def document(answers: Sequence[Mapping[str, Any]], credit: str) -> str:
    """A page of answers that a file can hold."""
    title = " · ".join(dict.fromkeys(answer["question"] for answer in answers))
    return (
        '<!DOCTYPE html>\n<html lang="en" class="dualrag-page">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        f"content=\"default-src 'none'; style-src '{style_hash()}'; base-uri 'none'; "
        "form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n</head>\n<body>\n"
        f"<main>{fragment(answers, credit)}</main>\n</body>\n</html>\n"
    )


@functools.cache
def _style() -> str:
    return Path(__file__).with_name("page.css").read_text("utf-8")


@functools.cache
def style_hash() -> str:
    """The source expression by which a Content-Security-Policy allows the style of the pages."""
    digest = hashlib.sha256(_style().encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def fragment(answers: Sequence[Mapping[str, Any]], credit: str) -> str:
    """The answers as a part of a page, such as a notebook."""
    parts = [f"<style>{_style()}</style>", *map(_answer, answers)]
    if credit:
        parts.append(f'<p class="dim">{escaped(credit)}</p>')
    return '<div class="dualrag">' + "\n".join(parts) + "</div>"


def _answer(answer: Mapping[str, Any]) -> str:
    # places in the page are called so that several answers in one notebook have their own
    identity = f"{answer['question']}\0{answer['text']}"
    name = f"dualrag-{zlib.crc32(identity.encode('utf-8', 'replace')):08x}"
    passages = answer["passages"]
    likely = percent(math.exp(min(0.0, answer["log_probability"])))
    sure = f"probability of this exact wording: {likely}"
    if answer.get("confidence") is not None:
        sure = f"probability that it is right: {percent(answer['confidence'])}; {sure}"
    parts = [
        f'<h1 dir="auto">{escaped(answer["question"])}</h1>',
        f'<p class="said" dir="auto">{_said(answer, name)}</p>',
        f'<p class="dim">{escaped(sure)}</p>',
    ]
    if answer.get("token_posteriors") and passages:
        parts += ["<h2>Which passage each token comes from</h2>", _heat_map(answer, name)]
    elif answer["tokens"] and passages:
        parts.append(_WHOLE)
    if passages:
        items = (_passage(name, place, answer) for place in range(len(passages)))
        parts += ["<h2>Passages</h2>", _LEGEND, "<ol>", *items, "</ol>"]
    return "<article>" + "\n".join(parts) + "</article>"


_LEGEND = (
    '<p class="dim">“Before answering” is the probability of the passage given the question, from '
    "the search alone; “given the answer” is that the answer comes from it.</p>"
)

_WHOLE = (
    '<p class="dim">RAG-Sequence takes the whole answer from one passage: all its tokens have the '
    "probabilities of the passages below. RAG-Token has some for each token.</p>"
)


def _said(answer: Mapping[str, Any], name: str) -> str:
    """The answer, with a reference behind each part that a passage carries."""
    text = answer["text"]
    if not text:
        return "(no answer)"
    parts = []
    done = 0
    for citation in sorted(answer.get("citations", ()), key=lambda citation: citation["end"]):
        place = citation["passage"]
        share = percent(citation["probability"])
        tooltip = f"“{citation['text']}”: {share} from {called(answer, place)}"
        parts.append(escaped(text[done : citation["end"]]))
        parts.append(
            f'<sup><a href="#{name}-{place + 1}" title="{escaped(tooltip)}">[{place + 1}]</a></sup>'
        )
        done = citation["end"]
    return "".join(parts) + escaped(text[done:])


def called(answer: Mapping[str, Any], place: int) -> str:
    """What a passage is called: its title, or where it comes from."""
    passage = answer["passages"][place]
    return passage["title"] or passage.get("origin") or f"row {passage['id']}"


def token_labels(answer: Mapping[str, Any]) -> list[str]:
    """What is written over the columns of the T tokens."""
    labels = []
    spans = answer.get("token_spans") or [(0, 0)] * len(answer["tokens"])
    for token, (start, end) in zip(answer["tokens"], spans, strict=True):
        # of a character in several tokens the tokenizer shows none
        label = answer["text"][start:end] or token
        labels.append(label.strip() or "␣")
    return labels


def _heat_map(answer: Mapping[str, Any], name: str) -> str:
    labels = token_labels(answer)
    head = "".join(f'<th scope="col" dir="auto">{escaped(label)}</th>' for label in labels)
    rows = []
    for place in range(len(answer["passages"])):
        title = escaped(called(answer, place))
        cells = "".join(
            _cell(shares[place], label, title)
            for shares, label in zip(answer["token_posteriors"], labels, strict=True)
        )
        rows.append(
            f'<tr><th scope="row" title="{title}"><a href="#{name}-{place + 1}">[{place + 1}]</a> '
            f"<bdi>{title}</bdi></th>{cells}</tr>"
        )
    return (
        '<p class="dim">p(passage given question and answer so far), in %</p>'
        '<div class="scroll" tabindex="0" role="region" '
        'aria-label="Probability of each passage, token by token"><table>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(share: float, label: str, title: str) -> str:
    level = round(_LEVELS * share)
    tooltip = escaped(f"“{label}”: {percent(share)} from ")
    return f'<td class="c{level}" title="{tooltip}{title}">{100 * share:.0f}</td>'


def _passage(name: str, place: int, answer: Mapping[str, Any]) -> str:
    passage = answer["passages"][place]
    title = escaped(passage["title"] or "(untitled)")
    origin = escaped(passage.get("origin") or f"row {passage['id']}")
    source = passage.get("source") or ""
    if source.startswith(("https://", "http://")):
        origin = f'<a href="{escaped(source)}" rel="noopener noreferrer">{origin}</a>'
    text = passage["text"]
    return (
        f'<li id="{name}-{place + 1}"><h3>[{place + 1}] <bdi>{title}</bdi></h3>'
        f'<p class="dim" dir="auto">{origin}</p><div class="bars">'
        f"{_bar('before answering', 'prior', passage['prior'])}"
        f"{_bar('given the answer', 'posterior', passage['posterior'])}</div>"
        f'<div class="text" dir="auto" tabindex="0">'
        f"{marked(text, answer_spans(text, answer['text']))}</div></li>"
    )


def _bar(words: str, kind: str, share: float) -> str:
    return (
        f'<span>{words} <svg viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="{kind}" width="{100 * share:.1f}" height="1"/></svg>'
        f"{escaped(percent(share))}</span>"
    )
