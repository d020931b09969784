"""`dualrag calibrate`: what the probability of an answer says of its being right, learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rag_core.cli.common import clean, say


@clean
def calibrate(
    evaluations: Annotated[
        list[Path],
        typer.Argument(metavar="EVALUATION...", help="Folders that dualrag eval --out made."),
    ],
    model: Annotated[
        Path | None,
        typer.Option(help="Folder of the model to write to; by default the one that was measured."),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(help="Way of answering to learn from; by default each head's first."),
    ] = None,
) -> None:
    """Learn from evaluations how sure a model's answers are, and note it in the model's config.

    Answers then carry a confidence beside their probability. Measure it on other questions.
    """
    from rag_core.evaluation import Evaluation, calibrate_model

    measured = [Evaluation.open(folder) for folder in evaluations]
    if model is None:
        names = {str(each.report["model"].get("name")) for each in measured}
        if len(names) > 1:
            raise ValueError(
                f"EVALUATION must be of one model, got those of {', '.join(sorted(names))}. Name "
                "the model to write to with --model."
            )
        model = Path(*names)
    for head, line in calibrate_model(measured, model, variant).items():
        of_answer, of_document, intercept = line
        say(
            f"{model}: RAG-{head.capitalize()}'s confidence in an answer is 1 / (1 + exp(-x)), x = "
            f"{of_answer:.4g} log p + {of_document:.4g} score of the best passage + {intercept:.4g}."
        )
