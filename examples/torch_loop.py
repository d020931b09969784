"""A training loop of one's own in PyTorch: the generator learns to read a knowledge base, the encoder stays.

python examples/torch_loop.py [--steps 60] [--out torch-reader]

Nothing but torch.optim and the model's own loss: -log p(answer given question), marginalised over the
passages that each step retrieves. `dualrag train` has schedules, checkpoints and validation besides.
A minute or two of a CPU on the handbook's 40 questions; loads afterwards in rag_tf, too.
"""

import argparse
import random
from pathlib import Path

import torch

from rag_core.training import read_examples
from rag_torch import (
    AutoTokenizer,
    RagRetriever,
    RagSequenceForGeneration,
    build_knowledge_base,
    load_encoder,
)

HERE = Path(__file__).parent
MODEL = "dualrag/demo"
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", default="torch-reader")
    options = parser.parse_args(arguments)

    encoder = load_encoder(ENCODER)
    kb = build_knowledge_base(
        HERE / "handbook", "handbook-kb", encoder.embed, encoder_name=encoder.name
    )
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    retriever = RagRetriever.from_pretrained(MODEL, index=kb.index())
    model = RagSequenceForGeneration.from_pretrained(MODEL, retriever=retriever)
    model.question_encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.generator.parameters(), lr=5e-4)

    examples = read_examples(HERE / "questions.jsonl")
    draw = random.Random(0)
    model.train()
    for step in range(1, options.steps + 1):
        batch = draw.sample(examples, options.batch_size)
        inputs = tokenizer(
            [example.question for example in batch],
            text_target=[example.answers[0] for example in batch],
            padding=True,
            return_tensors="pt",
        )
        loss = model(**inputs, reduce_loss=True).loss  # summed over the batch, in nats
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.generator.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == options.steps:
            print(f"step {step:3d}  loss {loss.item() / options.batch_size:.2f} nats a question")

    model.eval()
    for answer in model.answer([example.question for example in examples[:3]], num_beams=4):
        best = max(answer.passages, key=lambda passage: passage.posterior)
        print(f"{answer.question}\n  -> {answer.text}   [{best.origin}]")
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    print(f"saved in {options.out}")


if __name__ == "__main__":
    main()
