"""`dualrag ask` in the hands of a person: a pseudo-terminal, keys, signals."""

import os
import re
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHILD = """
import signal, sys, time
# Whoever runs the tests in the background may have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from types import SimpleNamespace
from rag_core.cli.ask import Answerer
from rag_core.cli.commands import main
from rag_core.outputs import Answer

class Network:
    def answer(self, questions, **options):
        if questions == ["slow?"]:
            print("thinking", file=sys.stderr, flush=True)
            time.sleep(60)
        return [Answer(question, f"an answer to {question}", -0.1) for question in questions]

def opened(cls, page, options, **places):
    return cls(SimpleNamespace(), Network(), page, options)

Answerer.open = classmethod(opened)
sys.argv = ["dualrag", "ask", "--kb", "kb"]
main()
"""
pty = pytest.importorskip("pty")


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, home: Path, **variables: str) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "DUALRAG_HOME": str(home),
            "PROMPT_TOOLKIT_NO_CPR": "1",
            **variables,
        }
        self.process, self.keys = pty.fork()
        if not self.process:
            os.execve(sys.executable, [sys.executable, "-c", CHILD], environment)
        self.text = ""

    def type(self, keys: str) -> None:
        os.write(self.keys, keys.encode())

    def wait_for(self, text: str) -> None:
        """Reads on until a text comes."""
        end = time.monotonic() + 30
        while text not in self.text:
            ready, _, _ = select.select([self.keys], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no {text!r} in {self.text!r}"
            try:
                self.text += re.sub(
                    r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(self.keys, 4096).decode()
                )
            except OSError:  # it has ended
                assert text in self.text, self.text
        self.text = self.text.partition(text)[2]

    def end(self) -> int:
        """Ctrl-D, until it is heard; the exit status."""
        for _ in range(150):
            with suppress(OSError):  # its end of the terminal is closed
                self.type("\x04")
            time.sleep(0.2)
            ended, status = os.waitpid(self.process, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        return -1


@pytest.mark.parametrize(
    ("kind", "keys"), [("xterm", "Twwo\x1b[D\x1b[D\x7f\x1b[F?\r"), ("dumb", "Two?\r")]
)
def test_keys_are_edited_and_ctrl_c_stops_the_answer(tmp_path, kind: str, keys: str) -> None:
    terminal = Terminal(tmp_path, TERM=kind)
    terminal.wait_for("Ask away; Ctrl-D ends.")
    terminal.wait_for("question>")
    terminal.type("slow?\r")
    terminal.wait_for("thinking")
    terminal.type("\x03")
    terminal.wait_for("stopped; Ctrl-D ends")
    terminal.wait_for("question>")
    terminal.type(keys)
    terminal.wait_for("an answer to Two?")
    terminal.wait_for("question>")
    assert terminal.end() == 0
    assert "Two?" in (tmp_path / "history").read_text()
