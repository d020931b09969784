"""Asks documents of your own: indexes a folder, searches it, answers from it and shows the sources.

python examples/index_a_folder.py [FOLDER] [--out KB] [--model MODEL] [--backend tf]

Without FOLDER it takes the handbook of a made-up company, without MODEL the demo's, which was trained to
name articles of Wikipedia and nothing else: it finds the right passages and answers with a title.
`dualrag train examples/questions.jsonl --kb handbook-kb --out reader` makes a reader of it: --model reader.
"""

import argparse
from pathlib import Path

from rag_core import RagRetriever, build_knowledge_base
from rag_core.backends import load_backend

HANDBOOK = Path(__file__).parent / "handbook"
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"  # the demo's; it gave its model's passages


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=HANDBOOK)
    parser.add_argument("--out", default="handbook-kb")
    parser.add_argument("--question", default="Where do we gather when the fire alarm rings?")
    parser.add_argument("--model", default="dualrag/demo")
    parser.add_argument("--backend", choices=["torch", "tf"], help="default: what is installed")
    options = parser.parse_args(arguments)

    rag = load_backend(options.backend)  # rag_torch or rag_tf
    encoder = rag.load_encoder(ENCODER)
    kb = build_knowledge_base(options.folder, options.out, encoder.embed, encoder_name=encoder.name)
    print(f"{len(kb)} passages in {options.out}\n")

    print(options.question)
    for hit in kb.search(options.question, k=3, encoder=encoder):
        print(f"  {hit.score:.2f}  {hit.origin}\n        {hit.text[:90]}")

    retriever = RagRetriever.from_pretrained(options.model, index=kb.index())
    model = rag.RagSequenceForGeneration.from_pretrained(options.model, retriever=retriever)
    [answer] = model.answer(options.question, num_beams=4)
    print(f"\n-> {answer.text}")
    for citation in answer.citations():
        source = answer.passages[citation.passage].origin
        print(f"   {citation.text!r} is from {source} ({citation.probability:.0%})")


if __name__ == "__main__":
    main()
