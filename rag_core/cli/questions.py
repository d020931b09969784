"""Where questions come from: a file, a pipe, a person at a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_core.cli.common import say
from rag_core.hub import Line, check_text, parse_object, scan_lines, text_fault

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

PROMPT = "question> "


def one_argument(words: list[str], *command: object) -> str:
    """The question of a command line.

    Args:
        words: the arguments.
        command: whose they are, with its arguments before them.

    Raises:
        ValueError: it is empty, no text, or several arguments.
    """
    if len(words) > 1:
        from rag_core.cli.common import pasteable

        raise ValueError(
            f"QUESTION must be one argument, got {len(words)}. Put it in quotes:  "
            + pasteable(*command, " ".join(words))
        )
    question = words[0]
    if not question.strip():
        raise ValueError(
            "QUESTION is empty. Write a question, or leave it out to ask one after another."
        )
    if not text_fault(question):
        return question
    try:  # its bytes are UTF-8, which the locale did not know
        return os.fsencode(question).decode()
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ValueError(
            f"QUESTION must be UTF-8 text, but is not at byte {error.start + 1}"
        ) from None


def piped() -> Generator[Line, None, None]:
    """The lines of a pipe that hold something, to its end."""
    if sys.stdin is None:
        raise ValueError("QUESTION must be given where standard input is closed")
    with closing(scan_lines(sys.stdin.buffer, "standard input")) as lines:
        for line in lines:
            if line.fault or line.text.strip():
                yield line


def of_file(path: Path) -> Generator[Line, None, None]:
    """The questions of a file, one a line: plain, or in a .jsonl as "question" of an object.

    Raises:
        OSError: it cannot be read; told at once, before a first line is asked for.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; name a text of one question a line, or a jsonl with "
            '{"question": ...} lines'
        )
    with path.open("rb"):
        return _lines_of(path)


def _lines_of(path: Path) -> Generator[Line, None, None]:
    is_jsonl = path.suffix.lower() in (".jsonl", ".ndjson")
    with path.open("rb") as stream, closing(scan_lines(stream, path)) as lines:
        for line in lines:
            if not line.fault and not line.text.strip():
                continue
            if is_jsonl and not line.fault:
                line = _of_object(line, path)
            yield line


def _of_object(line: Line, path: Path) -> Line:
    place = f"{path}:{line.number}"
    try:
        question = parse_object(line.text, place).get("question")
        if not isinstance(question, str) or not question.strip():
            raise ValueError(
                f'{place}: "question" must be a text that is not empty, got {question!r:.80}'
            )
        check_text(question, place, '"question"')
    except ValueError as error:
        return Line(line.number, "", str(error))
    return line._replace(text=question)


def at_terminal() -> bool:
    """Whether a person types the questions."""
    return sys.stdin is not None and sys.stdin.isatty()


def typed(history: Path) -> Iterator[Line]:
    """What a person types, line by line, to Ctrl-D, with editing and a history.

    Ctrl-C clears what stands there; on an empty line it is a KeyboardInterrupt.

    Args:
        history: file of earlier questions.
    """
    session = _session(history)
    say("Ask away; Ctrl-D ends.")
    number = 0
    while True:
        try:
            text = session.prompt(PROMPT)
        except EOFError:
            return
        except KeyboardInterrupt:
            if session.default_buffer.text:
                continue
            raise
        number += 1
        if text.strip():
            fault = text_fault(text)
            yield Line(number, text, fault and f"QUESTION must be text, but holds {fault}")


def _session(history: Path) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.output import create_output

    kept: History = InMemoryHistory()
    if _can_write(history):
        kept = FileHistory(history)
    output: Any = None
    if not sys.stdout.isatty():  # else answers and prompts would go to one file
        output = create_output(sys.stderr)
    return PromptSession(history=kept, output=output)


def _can_write(history: Path) -> bool:
    """Whether the file is there for this user's eyes, or could be made."""
    try:
        history.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(history, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600))
    except OSError:
        return False
    return True
