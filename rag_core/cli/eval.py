"""`dualrag eval`: answers and retrieval measured on questions, and two such runs compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rag_core.cli.common import (
    DTYPES,
    Backend,
    ClusterIndex,
    Device,
    Dtype,
    KnowledgeBaseFolder,
    ModelName,
    check_choice,
    clean,
    is_quiet,
    pasteable,
    say,
    without_none,
)

if TYPE_CHECKING:
    from rag_core.knowledge import KnowledgeBase


@clean
def eval(
    context: typer.Context,
    questions: Annotated[
        Path | None,
        typer.Argument(
            metavar="QUESTIONS", help="File of questions and answers, or a BEIR folder."
        ),
    ] = None,
    model: ModelName = None,
    kb: KnowledgeBaseFolder = None,
    index: ClusterIndex = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the report to create; by default it is shown only."),
    ] = None,
    n_docs: Annotated[
        str | None, typer.Option(help="Passages a question, e.g. 1,5,10; by default the model's.")
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="token, sequence or both; by default the model's own.")
    ] = None,
    decoding: Annotated[
        str | None,
        typer.Option(help="Of RAG-Sequence: thorough, fast or both; by default thorough."),
    ] = None,
    num_beams: Annotated[
        str | None, typer.Option(help="Beams, e.g. 1,4; by default the model's own.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Questions to ask at most, drawn at random; by default all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of that draw and of the intervals.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Questions answered together.")] = 8,
    answerable_only: Annotated[
        bool, typer.Option("--answerable-only", help="Ask those that the knowledge base answers.")
    ] = False,
    retrieval_only: Annotated[
        bool, typer.Option("--retrieval-only", help="Measure retrieval, generate nothing.")
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Compare two finished runs instead, question by question."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON, on stdout.")] = False,
    dtype: Dtype = None,
    device: Device = None,
    backend: Backend = None,
) -> None:
    """Measure a model on questions whose answers are known.

    Exact match, F1 and others, recall of retrieval, each with a 95 % interval. Stopped or killed,
    the same command goes on.
    """
    if compare is not None:
        _compare(questions, compare, _said(context), as_json)
        return
    if questions is None:
        raise ValueError("QUESTIONS must be given (or --compare with two runs)")
    check_choice("--dtype", dtype, *DTYPES)
    options: dict[str, Any] = {
        "n_docs": _numbers("--n-docs", n_docs),
        "head": _names(head),
        "decoding": _names(decoding),
        "num_beams": _numbers("--num-beams", num_beams),
        "limit": limit,
        "seed": seed,
        "batch_size": batch_size,
        "answerable_only": answerable_only,
        "retrieval_only": retrieval_only,
    }
    from rag_core.evaluation import Settings, evaluate, scan_questions

    Settings(**options)  # before anything is loaded
    # Passages that a file brings along may be gigabytes, and are not asked for here.
    asked = [replace(question, contexts=()) for question in scan_questions(questions)]
    from rag_core.cli.process import load_backend_for_command

    engine = load_backend_for_command(backend)
    from rag_core.cli.models import open_model

    network, base = open_model(
        engine,
        kb,
        model,
        None,
        say,
        index=index,
        when_exchanged="fail",
        dtype=dtype,
        device=device,
    )
    given = {
        "--model": model,
        "--kb": kb,
        "--index": index,
        "--n-docs": n_docs,
        "--head": head,
        "--decoding": decoding,
        "--num-beams": num_beams,
        "--limit": limit,
        "--dtype": dtype,
        "--device": device,
        "--backend": backend,
    }
    switches = {"--answerable-only": answerable_only, "--retrieval-only": retrieval_only}
    words = [word for name, value in without_none(**given).items() for word in (name, value)]
    words += ["--seed", seed, "--batch-size", batch_size]
    words += [name for name, is_on in switches.items() if is_on]
    if out is not None:
        words += ["--out", f"{out}-again"]
    about = {
        "command": pasteable("eval", questions, *words),
        "questions": _questions_entry(questions),
        "model": {"name": model or "dualrag/demo"},
        "knowledge_base": _base_entry(base, network.retriever.index),
    }
    evaluation = evaluate(network, asked, out=out, about=about, progress=not is_quiet(), **options)
    if as_json:
        print(json.dumps(evaluation.report, ensure_ascii=False))
    else:
        print(evaluation.markdown(), end="")
    for note in evaluation.report["notes"]:
        say(f"note: {note}")
    if out is not None:
        say(f"{out}: report.md, report.json, and the answers question by question.")


def _said(context: typer.Context) -> list[str]:
    """The options that were written, but for those of a comparison."""
    return [
        f"--{name.replace('_', '-')}"
        for name in context.params
        if name not in ("questions", "compare", "as_json", "verbose", "quiet")
        and getattr(context.get_parameter_source(name), "name", None) == "COMMANDLINE"
    ]


def _compare(
    questions: Path | None, runs: tuple[Path, Path], flags: list[str], as_json: bool
) -> None:
    from rag_core.evaluation import compare

    if flags:
        raise ValueError(
            f"{', '.join(flags)} must be left out with --compare, which shows two finished runs as "
            "they are. Redirect what it prints to keep it"
        )
    if questions is not None:
        raise ValueError(
            f"QUESTIONS and --compare exclude each other, got {str(questions)!r}: finished runs "
            "hold their questions"
        )
    found = compare(*runs)
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        print(found.markdown(), end="")


def _names(text: str | None) -> list[str] | None:
    if text is None:
        return None
    return [name.strip() for name in text.split(",")]


def _numbers(flag: str, text: str | None) -> list[int] | None:
    names = _names(text)
    if names is None:
        return None
    if not all(name.isascii() and name.isdigit() for name in names):
        raise ValueError(f"{flag} must be whole numbers with commas between them, got {text!r}")
    return [int(name) for name in names]


def _questions_entry(path: Path) -> dict[str, Any]:
    from rag_core.knowledge import describe

    entry: dict[str, Any] = {"path": str(path)}
    if path.is_file():
        entry["sha256"] = describe(path)["sha256"]
    return entry


def _base_entry(base: KnowledgeBase | None, index: Any) -> dict[str, Any]:
    """What a report says of a knowledge base, or of its shards on a cluster."""
    if base is None:
        return {}
    from rag_core.knowledge import FILE, describe
    from rag_core.retrieval import RayIndex

    if isinstance(index, RayIndex):
        path, sha256 = index.place, index.manifest["sha256"]
    else:
        path, sha256 = str(base.path), describe(base.path / FILE)["sha256"]
    return {
        "path": path,
        "sha256": sha256,
        "passages": len(base),
        "encoder": base.manifest.encoder["name"],
        "index": base.manifest.index,
    }
