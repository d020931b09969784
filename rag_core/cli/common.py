"""What all commands share: options, notes, and errors in one line.

Nothing heavy is imported before a command runs, so that --help answers at once.
"""

from __future__ import annotations

import functools
import inspect
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from rag_core.hub import text_fault
from rag_core.knowledge import BadFilesError, PassedByWarning

LOGGERS = ("rag_core", "rag_torch", "rag_tf")
# of these a second run of the same command does what is left
_RESUMABLE = ("index", "add", "update", "train", "eval", "demo")


def choice(flag: str, *names: str, help: str, panel: str | None = None) -> Any:
    """An option that takes one of a few names: help and shell completion show them.

    What it takes is checked where it is used, in words.
    """

    def beginning(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    metavar = f"[{'|'.join(names)}]"
    return typer.Option(
        flag, metavar=metavar, autocompletion=beginning, help=help, rich_help_panel=panel
    )


def check_choice(flag: str, value: str | None, *names: str) -> None:
    """See that what an option of `choice` was given is one of its names, or nothing.

    Raises:
        ValueError: it is another.
    """
    if value is not None and value not in names:
        raise ValueError(f"{flag} must be {', '.join(names[:-1])} or {names[-1]}, got {value!r}")


HEADS = ("token", "sequence")
DTYPES = ("float32", "float16", "bfloat16")

Backend = Annotated[
    str | None,
    choice("--backend", "torch", "tf", help="By default the one installed, torch first."),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say what is decided on the way, too.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No notes and no progress bars; errors all the same.")
]

Exclude = Annotated[
    list[str] | None,
    typer.Option(help="Leave out what matches, as in a .gitignore; can be repeated."),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Go on without files that cannot be read.")
]
TextColumn = Annotated[
    str | None, typer.Option(help="Column of text, of tables without a column 'text'.")
]
TitleColumn = Annotated[
    str | None, typer.Option(help="Column of titles, of tables without a column 'title'.")
]

ModelName = Annotated[
    str | None, typer.Option(help="Folder or hub name of a RAG model; by default the demo's.")
]
KnowledgeBaseFolder = Annotated[
    Path | None, typer.Option(help="Knowledge base; by default the model's own or the demo's.")
]
ClusterIndex = Annotated[
    str | None,
    typer.Option(
        metavar="ray://ADDRESS/NAME",
        help="Search shards on a Ray cluster (dualrag shards) in the knowledge base's place.",
    ),
]
QuestionsFile = Annotated[
    Path | None,
    typer.Option(help='Text with a question a line, or jsonl with {"question": ...} lines.'),
]
Dtype = Annotated[str | None, choice("--dtype", *DTYPES, help="Of weights; by default float32.")]
Head = Annotated[str | None, choice("--head", *HEADS, help="By default the model's own.")]
Int8 = Annotated[bool, typer.Option("--int8", help="Linear maps in int8: torch, on a CPU.")]
Full = Annotated[bool, typer.Option("--full", help="Whole passages, with their line breaks.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default the backend's own.")
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=GLOB",
        help="Passages with this metadata alone: KEY=GLOB, KEY!=GLOB, KEY>=NUMBER; several must "
        "all hold.",
    ),
]


class _Loudness:
    """How much a run of the command says on stderr."""

    quiet = False
    handler: Any = None


def set_loudness(verbose: bool, quiet: bool) -> None:
    """What --verbose and --quiet ask for.

    Raises:
        typer.BadParameter: both are given.
    """
    if verbose and quiet:
        raise typer.BadParameter("--verbose and --quiet exclude each other")
    _Loudness.quiet = quiet
    if quiet:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not (verbose or quiet or _Loudness.handler):
        return
    import logging

    level = logging.WARNING
    if verbose:
        level = logging.DEBUG
    elif quiet:
        level = logging.ERROR
    if _Loudness.handler is None:
        _Loudness.handler = _stderr_handler()
        for name in LOGGERS:
            logging.getLogger(name).addHandler(_Loudness.handler)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(level)


def _stderr_handler() -> Any:
    import logging

    class Stderr(logging.Handler):
        """Writes to what sys.stderr is at that time."""

        def emit(self, record: logging.LogRecord) -> None:
            _print_stderr(f"{record.name}: {self.format(record)}")

    return Stderr()


def is_quiet() -> bool:
    """Whether notes and progress bars are to be left out."""
    return _Loudness.quiet


def say(text: str) -> None:
    """A note for people, on stderr, so that stdout holds answers only; none with --quiet."""
    if not _Loudness.quiet:
        _print_stderr(text)


def say_error(error: Exception) -> None:
    """An error in one line, on stderr."""
    _print_stderr(error_line(error))


def _print_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def pasteable(*words: object) -> str:
    """A command line of this command that can be pasted: with the name that it was started by where
    `dualrag` alone would not be found.
    """
    import shlex

    script = Path(sys.argv[0])
    name = "dualrag"
    if script == Path(__file__).with_name("__main__.py"):
        name = f"{shlex.quote(sys.executable)} -m rag_core.cli"
    elif script.stem == "dualrag":
        found = shutil.which("dualrag")
        if found is None or not script.exists() or not script.samefile(found):
            name = shlex.quote(str(script))
    return " ".join([name, *(shlex.quote(str(word)) for word in words)])


@contextmanager
def _one_line_errors(stopped: str) -> Iterator[None]:
    """Notes once each, those on what was passed by at the end; errors in one line.

    `stopped` is said at Ctrl-C.
    """
    shown: set[str] = set()
    late: list[str] = []

    def note(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        line = f"note: {message}"
        if not issubclass(category, UserWarning) or line in shown:
            return
        shown.add(line)
        if issubclass(category, PassedByWarning):
            late.append(line)
        else:
            say(line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", PassedByWarning)
        warnings.showwarning = note
        try:
            _write_what_can_be_written(sys.stdout)
            yield
            if sys.stdout is not None:  # it was closed before we began
                sys.stdout.flush()
        except KeyboardInterrupt as interrupt:
            _print_stderr(f"\ndualrag: stopped.{str(interrupt) or stopped}")
            raise typer.Exit(130) from None
        except BrokenPipeError:  # `| head -1` has seen enough
            _write_nowhere()
            raise typer.Exit(1) from None
        except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
            if os.environ.get("DUALRAG_DEBUG"):
                raise
            say_error(error)
            raise typer.Exit(2) from None
        finally:
            for line in late:
                say(line)


def _write_what_can_be_written(stream: Any) -> None:
    """Characters that the stream's encoding lacks become "?" instead of an error."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")


def _write_nowhere() -> None:
    """Nobody reads stdout any more: what is still to be written to it goes to the null device."""
    with suppress(OSError, ValueError):  # a stream of its own has no file number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def error_line(error: Exception) -> str:
    """An error as people see it."""
    if isinstance(error, BadFilesError):
        faults = [" ".join(fault.split()) for fault in error.told()]
        return "\n  ".join(["dualrag: error:", *faults])
    return f"dualrag: error: {' '.join(str(error).split()) or type(error).__name__}"


def taking(source: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a command take the keyword options of a function in the place of its `**options`."""

    def taken(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        shared = inspect.signature(source, eval_str=True).parameters.values()
        parameters = own + [each for each in shared if each.kind is each.KEYWORD_ONLY]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return taken


def clean(command: Callable[..., None]) -> Callable[..., None]:
    """Wraps a command: known errors become one line on stderr and exit code 2 (DUALRAG_DEBUG=1
    shows tracebacks), and it takes --verbose and --quiet.
    """
    stopped = ""
    if command.__name__ in _RESUMABLE:
        stopped = " What was finished is kept; the same command goes on from there."

    @functools.wraps(command)
    def run(*args: Any, verbose: bool, quiet: bool, **kwargs: Any) -> None:
        if verbose or quiet:  # else as before the command's name
            set_loudness(verbose, quiet)
        with _one_line_errors(stopped):
            _check_names(kwargs)
            command(*args, **kwargs)

    signature = inspect.signature(command, eval_str=True)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in (("verbose", Verbose), ("quiet", Quiet))
    ]
    parameters = [*signature.parameters.values(), *shared]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    # evaluated above; typer would do so again
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _check_names(arguments: dict[str, Any]) -> None:
    """Refuses names of files and folders that are no text: pyarrow, faiss and tokenizers, which
    open them, take none.

    Questions may be so, and files of text, which are opened here.
    """
    for name, value in arguments.items():
        if name in ("paths", "question") or not isinstance(value, str | Path):
            continue
        if text_fault(str(value)):
            raise ValueError(
                f"{name} must be a name that is text in this locale, got {str(value)!r}. Rename "
                "it, or set another locale, e.g. LC_ALL=C.UTF-8"
            )


def without_none(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}
