"""Shows which passage each token of an answer comes from: RAG-Token's posteriors, as a table.

python examples/read_the_posteriors.py ["a question"] [--backend tf]
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
    # RAG-Token may take each token from another passage; RAG-Sequence takes all from one.
    model = rag.RagTokenForGeneration.from_pretrained("dualrag/demo", retriever=retriever)
    [answer] = model.answer(options.question, num_beams=4)

    print(f"{answer.question}\n-> {answer.text}\n")
    for number, passage in enumerate(answer.passages, 1):
        print(f"  [{number}] {passage.title}: {passage.text[:60]}")
    print(
        "\ntoken".ljust(14) + "".join(f"[{n}]".rjust(8) for n in range(1, len(answer.passages) + 1))
    )
    for token, posteriors in zip(answer.tokens, answer.token_posteriors, strict=True):
        print(f"{token!r:13}" + "".join(f"{p:8.1%}" for p in posteriors))


if __name__ == "__main__":
    main()
