"""Draws which passage each token of an answer comes from, and p(passage) before and after answering.

python examples/plot_the_posteriors.py ["a question"] [--out posteriors.png] [--backend tf]

A name that ends in .html gives a page, .svg a drawing. A drawing needs matplotlib: pip install matplotlib
"""

import argparse

from rag_core import RagRetriever
from rag_core.backends import load_backend

QUESTION = "Which mission first put people on the Moon?"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--out", default="posteriors.png")
    parser.add_argument("--backend", choices=["torch", "tf"], help="default: what is installed")
    options = parser.parse_args(arguments)

    rag = load_backend(options.backend)  # rag_torch or rag_tf
    retriever = RagRetriever.from_pretrained("dualrag/demo")
    model = rag.RagTokenForGeneration.from_pretrained("dualrag/demo", retriever=retriever)
    [answer] = model.answer(options.question, num_beams=4)
    answer.explain().save(options.out)
    print(f"{answer.text}; drawn in {options.out}")


if __name__ == "__main__":
    main()
