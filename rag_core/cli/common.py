"""What all commands share: the application, options, notes and errors in one line.

Nothing heavy is imported before a command runs, so that --help answers at once.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from rag_core.hub import text_fault
from rag_core.knowledge import BadFilesError, PassedByWarning

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help needs no rich: half the time
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Backend = Annotated[
    str | None, typer.Option(help="torch or tf; by default the one installed, torch first.")
]
# of these a second run of the same command does what is left
_RESUMABLE = ("index", "train", "demo")


def say(text: str) -> None:
    """A note for people, on stderr, so that stdout holds answers only."""
    print(text, file=sys.stderr, flush=True)


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
        except KeyboardInterrupt:
            say(f"\ndualrag: stopped.{stopped}")
            raise typer.Exit(130) from None
        except BrokenPipeError:  # `| head -1` has seen enough
            _write_nowhere()
            raise typer.Exit(1) from None
        except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
            if os.environ.get("DUALRAG_DEBUG"):
                raise
            say(error_line(error))
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
    if isinstance(error, BadFilesError):
        faults = [" ".join(fault.split()) for fault in error.faults]
        return "\n  ".join(["dualrag: error:", *faults])
    return f"dualrag: error: {' '.join(str(error).split()) or type(error).__name__}"


def clean(command: Callable[..., None]) -> Callable[..., None]:
    """Wraps a command: known errors become one line on stderr and exit code 2 (DUALRAG_DEBUG=1
    shows tracebacks).
    """
    stopped = ""
    if command.__name__ in _RESUMABLE:
        stopped = " What was finished is kept; the same command goes on from there."

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        with _one_line_errors(stopped):
            _check_names(kwargs)
            command(*args, **kwargs)

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


def _show_version(wanted: bool) -> None:
    if wanted:
        from rag_core import __version__

        print(f"dualrag {__version__}")
        raise typer.Exit


@app.callback()
def dualrag(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Retrieval-augmented generation.

    Index your text, ask it questions, see the passages behind each answer.
    """


def without_none(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}
