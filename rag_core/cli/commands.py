"""The commands of `dualrag`, in the order of its help. Each is a file beside this one."""

from __future__ import annotations

from rag_core.cli.ask import ask
from rag_core.cli.common import app
from rag_core.cli.convert import convert
from rag_core.cli.demo import demo
from rag_core.cli.index import index
from rag_core.cli.parity import parity
from rag_core.cli.train import train

app.command()(index)
app.command(short_help="Answer questions from a knowledge base, with the passages used.")(ask)
app.command(short_help="Answer a few questions with the demo's text and model.")(demo)
app.command()(train)
app.command(short_help="Write a model of any readable layout as safetensors.")(convert)
app.command(short_help="Is a checkpoint the same function in PyTorch and TensorFlow?")(parity)


def main() -> None:
    """Entry point of the `dualrag` script."""
    app()
