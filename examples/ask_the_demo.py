"""Asks the demo's model and shows which passages the answer comes from.

python examples/ask_the_demo.py ["a question"] [--backend tf]
"""

import argparse

from rag_core import RagRetriever
from rag_core.backends import load_backend

QUESTION = "Which epic novel did Leo Tolstoy set during Napoleon's invasion of Russia?"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--backend", choices=["torch", "tf"], help="default: what is installed")
    options = parser.parse_args(arguments)

    rag = load_backend(options.backend)  # rag_torch or rag_tf
    retriever = RagRetriever.from_pretrained("dualrag/demo")
    model = rag.RagSequenceForGeneration.from_pretrained("dualrag/demo", retriever=retriever)

    [answer] = model.answer(options.question, num_beams=4)
    print(answer.question)
    print(f"-> {answer.text}\n")
    print("before  after   passage")
    for passage in answer.passages:
        print(
            f"{passage.prior:6.1%}  {passage.posterior:6.1%}  {passage.title}: {passage.text[:60]}"
        )


if __name__ == "__main__":
    main()
