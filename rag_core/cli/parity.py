"""`dualrag parity`: is a checkpoint the same function in both frameworks?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rag_core.cli.common import Backend, Head, choice, clean


@clean
def parity(
    model: Annotated[str | None, typer.Option(help="Folder or hub name of a RAG model.")] = None,
    kb: Annotated[
        Path | None, typer.Option(help="Knowledge base; by default drawn passages.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="One question a line; by default drawn ids.")
    ] = None,
    against: Annotated[Path | None, typer.Option(help="A trace recorded elsewhere.")] = None,
    record: Annotated[
        Path | None, typer.Option(help="Where to keep what is recorded here, .npz.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Compared with --against; no model, no framework.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Report, written as .json and .md, too; by default shown alone."),
    ] = None,
    dtype: Annotated[
        str, choice("--dtype", "float64", "float32", help="float64 decides.")
    ] = "float64",
    head: Head = None,
    n_docs: Annotated[
        int | None, typer.Option(help="Passages a question; by default the model's, at most 5.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    tolerance: Annotated[
        float | None, typer.Option(help="Largest relative difference; by default measured.")
    ] = None,
    backend: Backend = None,
) -> None:
    """Is a checkpoint the same function in PyTorch and TensorFlow? Exit status 0 yes, 1 no, 2 it
    could not be told.
    """
    from rag_core.parity import Request, check_parity, compare_traces

    if trace is not None and against is not None:
        status = compare_traces([(against, trace)], out, tolerance, print)
    elif trace is not None:
        raise ValueError(
            "--against must be given with --trace: the recorded file that it is compared with"
        )
    elif model is None:
        raise ValueError(
            "--model must be given, or --trace and --against to compare two recorded files"
        )
    else:
        request = Request(
            model,
            kb=_text(kb),
            questions=_text(questions),
            dtype=dtype,
            head=head,
            seed=seed,
            n_docs=n_docs,
        )
        status = check_parity(
            request, against=against, keep=record, out=out, backend=backend, tolerance=tolerance
        )
    if status:
        raise typer.Exit(status)


def _text(path: Path | None) -> str | None:
    if path is None:
        return None
    return str(path)
