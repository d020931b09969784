"""`dualrag train`: a model tuned on questions and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rag_core.cli.common import Backend, choice, clean, is_quiet, pasteable, say


@clean
def train(
    questions: Annotated[
        Path, typer.Argument(help='jsonl with one {"question": ..., "answer": ...} a line.')
    ],
    model: Annotated[str, typer.Option(help="Folder or hub name of the RAG model to start from.")],
    kb: Annotated[
        Path, typer.Option(help="Knowledge base to retrieve from; its vectors stay as they are.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the tuned model to create.")],
    validation: Annotated[
        Path | None, typer.Option(help="jsonl of questions to measure exact match on.")
    ] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the questions.")] = 3.0,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of --epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Questions a forward pass.")] = 8,
    accumulation: Annotated[int, typer.Option(help="Forward passes an optimizer step.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-5,
    question_encoder_learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak learning rate of the question encoder; by default the same."),
    ] = None,
    warmup_steps: Annotated[
        int | None,
        typer.Option(help="Steps of rising learning rate; by default a tenth of all, 100 at most."),
    ] = None,
    question_encoder: Annotated[
        str, choice("--question-encoder", "all", "projection", "frozen", help="What of it learns.")
    ] = "all",
    on_collapse: Annotated[
        str,
        choice(
            "--on-collapse",
            "stop",
            "warn",
            help="Where every question has come to find the same few passages.",
        ),
    ] = "stop",
    mixed_precision: Annotated[
        str | None,
        choice("--mixed-precision", "bf16", "fp16", help="fp16 on a GPU; by default float32."),
    ] = None,
    n_docs: Annotated[
        int | None, typer.Option(help="Passages a question; by default the model's.")
    ] = None,
    evaluate_every: Annotated[
        int, typer.Option(help="Steps between validations; 0 = at the end only.")
    ] = 0,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints; 0 = none.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the order of questions and of dropout.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU if there is one.")
    ] = None,
    backend: Backend = None,
) -> None:
    """Fine-tune question encoder and generator together.

    Stopped or killed, the same command goes on.
    """
    from rag_core.cli.process import load_backend_for_command
    from rag_core.training import TrainingConfig

    config = TrainingConfig(
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        accumulation=accumulation,
        learning_rate=learning_rate,
        question_encoder_learning_rate=question_encoder_learning_rate,
        warmup_steps=warmup_steps,
        question_encoder=question_encoder,
        on_collapse=on_collapse,
        mixed_precision=mixed_precision,
        n_docs=n_docs,
        evaluate_every=evaluate_every,
        save_every=save_every,
        seed=seed,
    )
    report = load_backend_for_command(backend).train_files(
        questions,
        model,
        kb,
        out,
        config,
        validation=validation,
        device=device,
        progress=not is_quiet(),
    )
    outcome = "nothing left to train"
    if report.history:
        outcome = f"loss {report.history[-1]['loss']:.3f} nats a token"
    if report.exact_match is not None:
        outcome += f", exact match {report.exact_match:.3f}"
    for note in report.notes():
        say(f"note: {note}")
    say(
        f"{out}: {report.steps} steps, {outcome}.\n"
        f'Ask it:  {pasteable("ask", "--model", out, "--kb", kb)} "..."'
    )
