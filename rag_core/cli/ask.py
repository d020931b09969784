"""`dualrag ask`: questions from the command line, a terminal or a pipe, and their answers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rag_core.cli.common import Backend, choice, clean, say, say_error, without_none
from rag_core.hub import Line, scan_lines, text_fault

if TYPE_CHECKING:
    from rag_core.outputs import Answer


@clean
def ask(
    question: Annotated[
        str | None,
        typer.Argument(metavar="QUESTION", help="Leave it out to ask one after another."),
    ] = None,
    kb: Annotated[
        Path | None, typer.Option(help="Knowledge base; by default the model's own or the demo's.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or hub name of a RAG model; by default the demo's.")
    ] = None,
    n_docs: Annotated[
        int | None, typer.Option(help="Passages a question; by default the model's.")
    ] = None,
    head: Annotated[
        str | None, choice("--head", "token", "sequence", help="By default the model's own.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a question, on stdout.")
    ] = False,
    dtype: Annotated[
        str | None,
        choice("--dtype", "float32", "float16", "bfloat16", help="Of weights; by default float32."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default the backend's own.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Linear maps in int8: torch, on a CPU.")
    ] = False,
    backend: Backend = None,
) -> None:
    """Answer a question from a knowledge base, with the passages used and their probabilities."""
    if question is not None and not question.strip():
        raise ValueError(
            "QUESTION is empty. Write a question, or leave it out to ask one after another."
        )
    question = question and _utf8(question)
    if n_docs is not None and n_docs < 1:
        raise ValueError(f"--n-docs must be at least 1, got {n_docs}")
    if dtype not in (None, "float32", "float16", "bfloat16"):
        raise ValueError(f"--dtype must be float32, float16 or bfloat16, got {dtype!r}")
    answer = answerer(kb, model, n_docs, head, as_json, backend, int8, dtype=dtype, device=device)
    if question is not None:
        answer([question], last=True)
        return
    if sys.stdin is None:
        raise ValueError("QUESTION must be given where standard input is closed")
    refused = False
    for line in _questions():
        try:
            if line.fault:
                raise ValueError(line.fault)
            answer([line.text.strip()])
        except (ValueError, TypeError) as error:  # one refused question does not end the session
            say_error(error)
            refused = True
    if refused:
        raise typer.Exit(2)


def answerer(
    kb: Path | None,
    model: str | None,
    n_docs: int | None,
    head: str | None,
    as_json: bool,
    backend: str | None,
    int8: bool = False,
    **placing: str | None,
) -> Callable[..., None]:
    from rag_core.cli.process import load_backend_for_command

    if head not in (None, "token", "sequence"):
        raise ValueError(f"--head must be token or sequence, got {head!r}")
    engine = load_backend_for_command(backend)
    from rag_core.cli.models import open_model, single_use

    network, base = open_model(engine, kb, model, head, say, int8, **placing)
    options = without_none(n_docs=n_docs)
    credit = None
    if base is not None:
        credit = base.manifest.credit

    def show(answer: Answer) -> None:
        if as_json:
            print(_json_line(answer.to_dict()), flush=True)
            return
        from rich.console import Console

        from rag_core.cli.show import show_answer

        show_answer(answer, Console(), credit)

    def answer(questions: list[str], last: bool = False) -> None:
        with single_use(engine, last):
            answers = network.answer(questions, **options)
        for result in answers:
            show(result)

    return answer


def _json_line(row: dict[str, Any]) -> str:
    """JSON in the letters it is about; as ASCII escapes where stdout cannot write them."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(row)
    return line


def _utf8(argument: str) -> str:
    """An argument whose bytes the locale did not know, read as UTF-8."""
    if text_fault(argument):
        try:
            return os.fsencode(argument).decode()
        except (UnicodeDecodeError, UnicodeEncodeError) as error:
            raise ValueError(
                f"QUESTION must be UTF-8 text, but is not at byte {error.start + 1}"
            ) from None
    return argument


def _at_terminal() -> bool:
    return sys.stdin.isatty()


def _questions() -> Iterator[Line]:
    if _at_terminal():
        return _typed()
    return _piped()


def _typed() -> Iterator[Line]:
    """What a person types, to the first empty line."""
    say("Ask away; an empty line ends.")
    with suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and history in input()
    prompt = "question> "
    if not sys.stdout.isatty():  # else answers and prompts would go to one file
        prompt = ""
    for number in count(1):
        try:
            if not prompt:
                print("question> ", end="", file=sys.stderr, flush=True)
            text = input(prompt)
        except EOFError:
            return
        except UnicodeDecodeError as error:
            yield Line(number, "", f"QUESTION must be {error.encoding} text ({error.reason})")
            continue
        if not text.strip():
            return
        fault = text_fault(text)
        yield Line(number, text, fault and f"QUESTION must be text, but holds {fault}")


def _piped() -> Iterator[Line]:
    """The lines of a pipe or a file that hold something, to its end."""
    for line in scan_lines(sys.stdin.buffer, "standard input"):
        if line.fault or line.text.strip():
            yield line
