"""`dualrag train`: a model tuned on questions and answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rag_core.cli.common import (
    Backend,
    ClusterIndex,
    choice,
    clean,
    is_quiet,
    pasteable,
    say,
    without_none,
)

if TYPE_CHECKING:
    from rag_core.training import TrainingReport

_LEARNS, _LOSSES = "What learns", "Losses"
_MEASURES, _KEEPS, _MEMORY = (
    "Measuring and stopping",
    "Checkpoints and logs",
    "Memory and precision",
)
# transformers' names of these settings, which are taken for ours
_THEIRS = {
    "per-device-train-batch-size": "batch-size",
    "gradient-accumulation-steps": "accumulation",
    "num-train-epochs": "epochs",
    "max-steps": "steps",
    "adam-beta2": "beta2",
    "label-smoothing-factor": "label-smoothing",
    "eval-steps": "evaluate-every",
    "save-steps": "save-every",
    "logging-steps": "log-every",
    "metric-for-best-model": "best-metric",
    "early-stopping-patience": "early-stopping",
}


def flag_of(name: str) -> str:
    """A flag under the name that it has here, without its dashes."""
    name = name.replace("_", "-")
    return _THEIRS.get(name, name)


@clean
def train(
    questions: Annotated[
        Path | None,
        typer.Argument(
            help='jsonl with one {"question": ..., "answer": ...} a line, or another file that '
            "`dualrag eval` reads; without it a model is measured on --validation alone."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the tuned model to create.")] = None,
    kb: Annotated[
        Path | None,
        typer.Option(
            help="Knowledge base to retrieve from, which stays as it is; by default the model's."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub name of the RAG model to start from; by default the demo's."
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            help="jsonl of questions to measure exact match on; by default 40 of QUESTIONS."
        ),
    ] = None,
    index: ClusterIndex = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the questions; by default 3, but 200 steps.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of --epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Questions a forward pass, of each process.")] = 8,
    accumulation: Annotated[int, typer.Option(help="Forward passes an optimizer step.")] = 1,
    warmup_steps: Annotated[
        int | None,
        typer.Option(help="Steps of rising learning rate; by default a tenth of all, 100 at most."),
    ] = None,
    warmup_ratio: Annotated[
        float | None, typer.Option(help="The same as a share of all steps.")
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="AdamW's, of matrices.")] = 0.01,
    beta2: Annotated[float, typer.Option(help="AdamW's decay of second moments.")] = 0.98,
    max_grad_norm: Annotated[float, typer.Option(help="Gradients are clipped to this norm.")] = 1.0,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate; by default by the size of the generator.",
            rich_help_panel=_LEARNS,
        ),
    ] = None,
    question_encoder_learning_rate: Annotated[
        float | None,
        typer.Option(
            help="That of the question encoder; by default a tenth of it.", rich_help_panel=_LEARNS
        ),
    ] = None,
    context_encoder_learning_rate: Annotated[
        float | None,
        typer.Option(
            help="That of the context encoder; by default the question encoder's.",
            rich_help_panel=_LEARNS,
        ),
    ] = None,
    generator: Annotated[
        str | None,
        choice(
            "--generator", "all", "frozen", help="What of it learns; by default all.", panel=_LEARNS
        ),
    ] = None,
    question_encoder: Annotated[
        str | None,
        choice(
            "--question-encoder",
            "all",
            "projection",
            "frozen",
            help="What of it learns; by default nothing from fewer than 500 questions, else all.",
            panel=_LEARNS,
        ),
    ] = None,
    context_encoder: Annotated[
        str | None,
        choice(
            "--context-encoder",
            "all",
            "projection",
            "frozen",
            help="What learns of the encoder of passages, which are then embedded anew; by default "
            "nothing.",
            panel=_LEARNS,
        ),
    ] = None,
    context_encoder_model: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub name of that encoder; by default the knowledge base's.",
            rich_help_panel=_LEARNS,
        ),
    ] = None,
    reindex_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between starts of embedding all passages anew, 0 = at the end only; by "
            "default a quarter.",
            rich_help_panel=_LEARNS,
        ),
    ] = None,
    overretrieve: Annotated[
        int | None,
        typer.Option(
            help="Passages embedded at once for each one that is read, to rank them by vectors of "
            "today; by default 2.",
            rich_help_panel=_LEARNS,
        ),
    ] = None,
    retriever_loss: Annotated[
        str | None,
        choice(
            "--retriever-loss",
            "emdr2",
            "pdist",
            "contrastive",
            help="What teaches the retriever besides the answers' likelihood.",
            panel=_LOSSES,
        ),
    ] = None,
    retriever_loss_weight: Annotated[
        float, typer.Option(help="Its factor.", rich_help_panel=_LOSSES)
    ] = 1.0,
    answer_loss_weight: Annotated[
        float,
        typer.Option(
            help="Factor of the answers' loss; 0 leaves it out, and the generator as it is.",
            rich_help_panel=_LOSSES,
        ),
    ] = 1.0,
    distillation_temperature: Annotated[
        float, typer.Option(help="Of pdist's target.", rich_help_panel=_LOSSES)
    ] = 1.0,
    hard_negatives: Annotated[
        int,
        typer.Option(
            help="Of contrastive: passages a question that look like the right one, of the file or "
            "mined from the knowledge base.",
            rich_help_panel=_LOSSES,
        ),
    ] = 0,
    mine_from: Annotated[
        int,
        typer.Option(help="First rank to mine from, 1 = the best.", rich_help_panel=_LOSSES),
    ] = 1,
    mine_to: Annotated[
        int,
        typer.Option(
            help="Last one; also how deep the right passage is looked for.",
            rich_help_panel=_LOSSES,
        ),
    ] = 50,
    label_smoothing: Annotated[
        float | None, typer.Option(help="By default the model's.", rich_help_panel=_LOSSES)
    ] = None,
    on_collapse: Annotated[
        str,
        choice(
            "--on-collapse",
            "stop",
            "warn",
            help="Where every question has come to find the same few passages.",
            panel=_MEASURES,
        ),
    ] = "stop",
    on_nan: Annotated[
        str,
        choice(
            "--on-nan",
            "stop",
            "skip",
            help="Where a loss or gradient is no number: skip passes over such steps.",
            panel=_MEASURES,
        ),
    ] = "stop",
    mixed_precision: Annotated[
        str | None,
        choice(
            "--mixed-precision",
            "bf16",
            "fp16",
            help="fp16 on a GPU; by default float32.",
            panel=_MEMORY,
        ),
    ] = None,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Less memory, more time: layers are computed twice.",
            rich_help_panel=_MEMORY,
        ),
    ] = False,
    n_docs: Annotated[
        int | None, typer.Option(help="Passages a question; by default the model's.")
    ] = None,
    evaluate_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between measurements of exact match; by default a quarter.",
            rich_help_panel=_MEASURES,
        ),
    ] = None,
    best_metric: Annotated[
        str | None,
        choice(
            "--best-metric",
            "exact_match",
            "f1",
            "loss",
            help="The finished model is the one that was best by this, not the last one.",
            panel=_MEASURES,
        ),
    ] = None,
    early_stopping: Annotated[
        int,
        typer.Option(
            help="Stop after so many measurements without a better one; 0 = never.",
            rich_help_panel=_MEASURES,
        ),
    ] = 0,
    save_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between checkpoints, 0 = none; by default a quarter, 200 at most.",
            rich_help_panel=_KEEPS,
        ),
    ] = None,
    log_every: Annotated[
        int | None,
        typer.Option(help="Steps between log lines; by default an eighth.", rich_help_panel=_KEEPS),
    ] = None,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard",
            help="Write the log for TensorBoard, too, into OUT/tensorboard.",
            rich_help_panel=_KEEPS,
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the order of questions and of dropout.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU if there is one.")
    ] = None,
    backend: Backend = None,
) -> None:
    """Fine-tune a model on questions and answers about a knowledge base.

    What is not said is chosen for the number of questions and the model, and told at the start.
    Stopped or killed, the same command goes on. Flags may have the names of transformers'
    TrainingArguments (--per_device_train_batch_size).
    """
    from rag_core.cli.models import fetch_encoder
    from rag_core.cli.process import load_backend_for_command
    from rag_core.cli.reader_notes import unfamiliar
    from rag_core.hub import DEMO
    from rag_core.knowledge import KnowledgeBase
    from rag_core.training import started_processes

    is_first = started_processes()[0] == 0
    if questions is None and validation is None:
        raise ValueError("QUESTIONS must be given, or --validation to measure a model as it is")
    if questions is not None and out is None:
        raise ValueError("--out must be given: the folder of the tuned model")
    # what is None is chosen for the questions and the model
    settings = without_none(
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        accumulation=accumulation,
        learning_rate=learning_rate,
        question_encoder_learning_rate=question_encoder_learning_rate,
        context_encoder_learning_rate=context_encoder_learning_rate,
        warmup_steps=warmup_steps,
        warmup_ratio=warmup_ratio,
        weight_decay=weight_decay,
        beta2=beta2,
        max_grad_norm=max_grad_norm,
        label_smoothing=label_smoothing,
        generator=generator,
        question_encoder=question_encoder,
        context_encoder=context_encoder,
        reindex_every=reindex_every,
        overretrieve=overretrieve,
        retriever_loss=retriever_loss,
        retriever_loss_weight=retriever_loss_weight,
        answer_loss_weight=answer_loss_weight,
        distillation_temperature=distillation_temperature,
        hard_negatives=hard_negatives,
        mine_from=mine_from,
        mine_to=mine_to,
        on_collapse=on_collapse,
        on_nan=on_nan,
        mixed_precision=mixed_precision,
        gradient_checkpointing=gradient_checkpointing,
        n_docs=n_docs,
        evaluate_every=evaluate_every,
        best_metric=best_metric,
        early_stopping=early_stopping,
        save_every=save_every,
        log_every=log_every,
        tensorboard=tensorboard,
        seed=seed,
    )
    engine = load_backend_for_command(backend)
    if model is None or (model == DEMO and not Path(DEMO).exists()):
        from rag_core.demo import demo_model_folder

        model = str(demo_model_folder(say))
    kb = kb or _own_base(model)
    base = KnowledgeBase.open(kb)
    if is_first and (note := unfamiliar(model, base)):
        say(f"note: {note}")
    if context_encoder not in (None, "frozen"):
        fetch_encoder(context_encoder_model or base.encoder_source, say)
    if questions is None:
        measured = engine.measure_files(
            validation, model, kb, n_docs=n_docs, device=device, say=say, index=index
        )
        if is_first:
            print(f"exact match {measured:.3f}")
        return
    report = engine.train_files(
        questions,
        model,
        kb,
        out,
        settings,
        validation=validation,
        context_encoder_model=context_encoder_model,
        index=index,
        device=device,
        progress=not is_quiet(),
        say=say,
    )
    if not is_first:  # of several processes the first one speaks
        return
    for note in report.notes():
        say(f"note: {note}")
    say(report.table())
    say(
        f"{out}: {_outcome(report, validation is not None)}\n"
        f'Ask it:  {pasteable("ask", "--model", out)} "..."'
    )


def _own_base(model: str) -> Path:
    """The knowledge base that a model remembers."""
    from rag_core.knowledge import remembered_base

    own = remembered_base(model)
    if own is None or own.path is None or not own.is_here():
        raise ValueError("--kb must be given: the knowledge base that the questions are about")
    return own.path


def _outcome(report: TrainingReport, validated: bool) -> str:
    words = f"{report.steps} steps"
    if report.history:
        words += f", loss {report.last_loss():.3f} nats"
        if "retriever_loss" not in report.history[-1]:
            words += " a token"
    if report.exact_match is None:
        return f"{words}."
    figures = f"{report.exact_match:.3f}"
    if report.exact_match_before is not None:
        figures = f"{report.exact_match_before:.3f} -> {figures}"
    words += f",\nexact match {figures} on questions "
    if validated:
        return f"{words}to validate on."
    return f"{words}that it was trained on (--validation measures others)."
