"""Draws p(passage given question) and p(passage given question and answer) side by side.

python examples/plot_the_posteriors.py ["a question"] [--out posteriors.png] [--backend tf]

Needs matplotlib: pip install matplotlib
"""

import argparse

from rag_core import RagRetriever
from rag_core.backends import load_backend

QUESTION = "Which epic novel did Leo Tolstoy set during Napoleon's invasion of Russia?"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--out", default="posteriors.png")
    parser.add_argument("--backend", choices=["torch", "tf"], help="default: what is installed")
    options = parser.parse_args(arguments)

    rag = load_backend(options.backend)  # rag_torch or rag_tf
    retriever = RagRetriever.from_pretrained("dualrag/demo")
    model = rag.RagSequenceForGeneration.from_pretrained("dualrag/demo", retriever=retriever)
    [answer] = model.answer(options.question, num_beams=4)
    draw(answer).savefig(options.out, dpi=150)
    print(f"{answer.text}; drawn in {options.out}")


def draw(answer):
    """The figure: a pair of bars for each passage, the first one found on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.6 * len(answer.passages) + 1.4), layout="constrained")
    axes = figure.subplots()
    places = range(len(answer.passages))
    before = [passage.prior for passage in answer.passages]
    after = [passage.posterior for passage in answer.passages]
    axes.barh([place - 0.2 for place in places], before, 0.38, label="before answering")
    axes.barh([place + 0.2 for place in places], after, 0.38, label="given the answer")
    axes.set_yticks(places, [passage.title for passage in answer.passages])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("probability of the passage")
    axes.set_title(f"{answer.question}\n{answer.text}")
    axes.legend(loc="lower right")
    return figure


if __name__ == "__main__":
    main()
