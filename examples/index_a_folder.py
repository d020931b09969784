"""Makes a folder of files a knowledge base, searches it, and asks the demo's model about it.

python examples/index_a_folder.py [FOLDER] [--out KB] [--backend tf]
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
    parser.add_argument("--backend", choices=["torch", "tf"], help="default: what is installed")
    options = parser.parse_args(arguments)

    rag = load_backend(options.backend)  # rag_torch or rag_tf
    encoder = rag.load_encoder(ENCODER)
    kb = build_knowledge_base(options.folder, options.out, encoder.embed, encoder_name=encoder.name)
    print(f"{len(kb)} passages in {options.out}\n")

    print(options.question)
    for hit in kb.search(options.question, k=3, encoder=encoder):
        print(f"  {hit.score:.2f}  {hit.origin}\n        {hit.text[:90]}")

    # The demo's model knows how to name an article and nothing else; what it is asked of another
    # text it answers with a title. `dualrag train` makes a reader of one's own text of it.
    retriever = RagRetriever.from_pretrained("dualrag/demo", index=kb.index())
    model = rag.RagSequenceForGeneration.from_pretrained("dualrag/demo", retriever=retriever)
    [answer] = model.answer(options.question, num_beams=4)
    print(f"\nThe demo's model says: {answer.text}")


if __name__ == "__main__":
    main()
