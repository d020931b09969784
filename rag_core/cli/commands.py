"""The commands of `dualrag`, in the order of its help, with examples. Each is a file beside this
one.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from rag_core.cli.ask import ask
from rag_core.cli.calibrate import calibrate
from rag_core.cli.changes import add, remove, update
from rag_core.cli.common import Quiet, Verbose, set_loudness
from rag_core.cli.convert import convert
from rag_core.cli.demo import demo
from rag_core.cli.eval import eval as evaluate
from rag_core.cli.explain import explain
from rag_core.cli.index import index
from rag_core.cli.inspect import inspect
from rag_core.cli.mcp import mcp
from rag_core.cli.panels import PanelledCommand
from rag_core.cli.parity import parity
from rag_core.cli.search import search
from rag_core.cli.serve import serve
from rag_core.cli.shards import shards
from rag_core.cli.train import flag_of, train

_WIDEST = 110  # columns of help: longer lines are hard to read


def _examples(*lines: str) -> str:
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def _width() -> int:
    columns = shutil.get_terminal_size().columns
    return min(max(columns, 32), _WIDEST) - 2


app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help needs no rich: half the time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "terminal_width": _width()},
    epilog=_examples(
        "dualrag demo",
        "dualrag index handbook/ --out kb",
        'dualrag ask "How many days of leave do I have?" --kb kb',
    ),
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
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Retrieval-augmented generation.

    Index your text, ask it questions, see the passages behind each answer.
    """
    set_loudness(verbose, quiet)


def _add(
    command: Callable[..., None], summary: str, *examples: str, old_name: str | None = None
) -> None:
    settings = None
    if command is train:
        settings = {"token_normalize_func": flag_of}
    made = app.command(
        old_name,
        hidden=old_name is not None,
        cls=PanelledCommand,
        short_help=summary,
        epilog=_examples(*examples),
        context_settings=settings,
    )
    made(command)


_add(
    index,
    "Split text into passages, embed and index them.",
    "dualrag index handbook/ --out kb",
    "dualrag index notes.md facts.csv --out kb --words 50",
    "dualrag index docs/ --out kb --exclude 'drafts/' --skip-bad",
    "dualrag index wiki.tsv --out kb --encoder ENCODER --index hnsw",
)
_add(
    ask,
    "Answer questions from a knowledge base, with the passages used.",
    'dualrag ask "Which expensive spice comes from a crocus flower?"',
    'dualrag ask "Who is the fire warden?" --kb kb --model tuned --n-docs 3',
    "dualrag ask --kb kb --model tuned",
    "dualrag ask --questions questions.txt --kb kb --json > answers.jsonl",
)
_add(
    serve,
    "Answer questions over HTTP.",
    "dualrag serve",
    "dualrag serve --model tuned --kb kb --port 8080",
    "dualrag serve --host 0.0.0.0 --api-key KEY",
)
_add(
    mcp,
    "Answer questions of assistants (Model Context Protocol).",
    "dualrag mcp",
    "dualrag mcp --model tuned --kb kb",
)
_add(
    explain,
    "Answer a question as a page or picture: which passage each word comes from.",
    'dualrag explain "Which expensive spice comes from a crocus flower?"',
    'dualrag explain "Who is the fire warden?" --kb kb --model tuned --out answer.png',
)
_add(
    search,
    "Find the passages nearest to a question, without a model.",
    'dualrag search kb "Who is the fire warden?"',
    "dualrag search kb \"How many days of leave?\" --k 3 --where 'source=handbook/*'",
    "dualrag search kb --questions questions.txt --json > hits.jsonl",
)
for old_name in (None, "info"):
    _add(
        inspect,
        "Say what a model, a knowledge base or another folder holds.",
        "dualrag inspect kb",
        "dualrag inspect tuned --json",
        old_name=old_name,
    )
_add(
    update,
    "Bring a knowledge base up to its files.",
    "dualrag update kb",
    "dualrag update kb --dry-run",
    "dualrag update kb handbook/leave/",
)
_add(
    add,
    "Add the passages of more files to a knowledge base.",
    "dualrag add kb notes.md reports/",
)
_add(
    remove,
    "Remove passages from a knowledge base.",
    "dualrag remove kb --source 'handbook/old/*' --dry-run",
    'dualrag remove kb --title "Fire drill"',
    "dualrag remove kb --where 'page>=30' --where 'source=report.pdf'",
)
_add(
    demo,
    "Answer a few questions with the demo's text and model.",
    "dualrag demo",
    "dualrag demo --backend tf",
)
_add(
    train,
    "Fine-tune a model on questions and answers about a knowledge base.",
    "dualrag train questions.jsonl --kb kb --out tuned",
    "dualrag train questions.jsonl --kb kb --out tuned --validation held-out.jsonl",
    "dualrag train questions.jsonl --model facebook/rag-token-nq --kb dpr-kb --out tuned",
)
_add(
    evaluate,
    "Measure a model on questions whose answers are known.",
    "dualrag eval questions.jsonl --out report",
    "dualrag eval nq-test.tsv --model tuned --kb kb --out report --limit 300 --n-docs 1,5,10",
    "dualrag eval nq-test.tsv --out report --head token,sequence --decoding thorough,fast",
    "dualrag eval --compare report other-report",
)
_add(
    calibrate,
    "Learn from an evaluation how sure a model's answers are.",
    "dualrag eval dev.jsonl --model tuned --kb kb --out dev-report",
    "dualrag calibrate dev-report",
)
_add(
    shards,
    "Cut a knowledge base into shards, and hold them on a Ray cluster.",
    "dualrag shards kb --out kb-shards --n 4",
    "dualrag shards kb-shards --name wiki --ray 10.0.0.1:6379",
    'dualrag ask "Who is the fire warden?" --index ray://auto/wiki --model tuned',
    "dualrag shards --name wiki --stop",
)
_add(
    convert,
    "Write a model of any readable layout as safetensors.",
    "dualrag convert facebook/rag-token-nq rag-token-nq",
    "dualrag convert old-folder new-folder --dtype bfloat16 --max-shard-size 500MB",
)
_add(
    parity,
    "Is a checkpoint the same function in PyTorch and TensorFlow?",
    "dualrag parity --model tuned --kb kb --out report",
    "dualrag parity --model tuned --backend torch --record torch.npz",
    "dualrag parity --trace tf.npz --against torch.npz",
)


def main() -> None:
    """Entry point of the `dualrag` script."""
    _open_streams()
    app(prog_name="dualrag")


def _open_streams() -> None:
    """Has what is written to a closed stdout or stderr (`2>&-`) go to the null device.

    Python has None there: print() would then write errors among the answers, and progress bars
    fail. The next file that is opened would get the number, too, and with it what libraries write.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8", errors="replace")
            setattr(sys, name, nowhere)
