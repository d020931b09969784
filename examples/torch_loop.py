"""A training loop of one's own in PyTorch: the generator learns to read a knowledge base, the encoder stays.

python examples/torch_loop.py [--steps 100] [--out torch-reader]

Nothing but torch.optim and the model's own loss: -log p(answer given question), marginalised over the
passages that each step retrieves. `dualrag train` has schedules, checkpoints and validation besides.
Two minutes of a CPU on the handbook's 40 questions; loads afterwards in rag_tf, too.
"""

import argparse
from itertools import chain, islice, repeat
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from rag_core.metrics import exact_match
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
    parser.add_argument("--steps", type=int, default=100)
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
    optimizer = torch.optim.AdamW(model.generator.parameters(), lr=5e-4, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, options.steps, pct_start=0.1)

    examples = read_examples(HERE / "questions.jsonl")
    shuffled = DataLoader(examples, options.batch_size, shuffle=True, collate_fn=list)
    batches = chain.from_iterable(repeat(shuffled))  # epoch after epoch
    model.train()
    for step, batch in enumerate(islice(batches, options.steps), 1):
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
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == options.steps:
            print(f"step {step:3d}  loss {loss.item() / options.batch_size:.2f} nats a question")

    model.eval()
    answers = model.answer([example.question for example in examples], num_beams=4)
    right = sum(
        exact_match(answer.text, example.answers)
        for answer, example in zip(answers, examples, strict=True)
    )
    print(f"{right:g} of {len(examples)} right, among them")
    for answer in answers[:3]:
        best = max(answer.passages, key=lambda passage: passage.posterior)
        print(f"{answer.question}\n  -> {answer.text}   [{best.origin}]")
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    print(f"saved in {options.out}")


if __name__ == "__main__":
    main()
