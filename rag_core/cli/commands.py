"""The `dualrag` command.

Nothing heavy is imported before a command runs, so that --help answers at once.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rag_core.hub import Line, scan_lines, text_fault
from rag_core.knowledge import BadFilesError, PassedByWarning

if TYPE_CHECKING:
    from rag_core.outputs import Answer

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
DEMO_QUESTIONS = (
    "Which epic novel did Leo Tolstoy set during Napoleon's invasion of Russia?",
    "Which expensive spice comes from the stigmas of a crocus flower?",
    "What is the process by which plants turn sunlight into chemical energy?",
    "Which Dutch painter from Delft is known for quiet scenes inside middle-class homes?",
)

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
            say(_error_line(error))
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


def _error_line(error: Exception) -> str:
    if isinstance(error, BadFilesError):
        faults = [" ".join(fault.split()) for fault in error.faults]
        return "\n  ".join(["dualrag: error:", *faults])
    return f"dualrag: error: {' '.join(str(error).split()) or type(error).__name__}"


def clean(command: Callable[..., None]) -> Callable[..., None]:
    """Wraps a command: known errors become one line on stderr and exit code 2 (DUALRAG_DEBUG=1
    shows tracebacks).
    """
    stopped = ""
    if command.__name__ in ("index", "train", "demo"):
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


@app.command()
@clean
def index(
    paths: Annotated[
        list[Path], typer.Argument(help="txt, md, csv, tsv, jsonl or parquet files, or folders.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the knowledge base to create.")],
    encoder: Annotated[
        str, typer.Option(help="Folder or hub name of the encoder of passages.")
    ] = MINILM,
    kind: Annotated[
        str, typer.Option("--index", help="flat (exact), hnsw, ivfpq or auto.")
    ] = "auto",
    nlist: Annotated[
        int | None, typer.Option(help="ivfpq: inverted lists; by default by number of passages.")
    ] = None,
    nprobe: Annotated[
        int | None, typer.Option(help="ivfpq: lists searched; by default tuned to 95 % recall.")
    ] = None,
    m: Annotated[
        int | None, typer.Option("--m", help="ivfpq: bytes a vector; by default D / 8.")
    ] = None,
    rerank: Annotated[
        int | None, typer.Option(help="ivfpq: candidates a passage, ranked exactly; 16.")
    ] = None,
    words: Annotated[int, typer.Option(help="Words a passage; 0 keeps documents whole.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Passages the encoder sees at once.")] = 32,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another knowledge base there.")
    ] = False,
    tsv_quotes: Annotated[
        bool,
        typer.Option(
            "--tsv-quotes/--no-tsv-quotes", help="Quotes in .tsv enclose fields, or are letters."
        ),
    ] = True,
    backend: Backend = None,
) -> None:
    """Split text into passages, embed and index them.

    Stopped or killed, the same command goes on.
    """
    from rag_core.cli.process import load_backend_for_command
    from rag_core.knowledge import find_files

    engine = load_backend_for_command(backend)
    # a wrong path should not wait for an encoder to load; its notes are said once, at the end
    find_files(paths)
    from rag_core.cli.models import open_encoder
    from rag_core.knowledge import build_knowledge_base, check_settings

    settings = check_settings(kind, _without_none(nlist=nlist, nprobe=nprobe, m=m, rerank=rerank))
    loaded, name, fingerprint = open_encoder(engine, encoder, say)
    kb = build_knowledge_base(
        paths,
        out,
        functools.partial(loaded.embed, batch_size=batch_size),
        encoder_name=name,
        encoder_fingerprint=fingerprint,
        index=kind,
        settings=settings,
        words=words or None,
        tsv_quotes=tsv_quotes,
        batch_size=batch_size,
        overwrite=overwrite,
    )
    manifest = kb.manifest
    say(
        f"{out}: {len(kb):,} passages of {len(manifest.sources)} file(s), {manifest.dimension} "
        f"numbers each, {manifest.index['kind']} index, recall@5 "
        f"{manifest.index['recall_at_5']:.3f}.\n"
        f'Ask it:  dualrag ask --kb {out} "..."'
    )


@app.command(short_help="Answer questions from a knowledge base, with the passages used.")
@clean
def ask(
    question: Annotated[
        str | None, typer.Argument(help="Leave it out to ask one after another.")
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
        str | None, typer.Option(help="token or sequence; by default the model's own.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a question, on stdout.")
    ] = False,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16 or float16 weights; by default float32.")
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
    answer = _answerer(kb, model, n_docs, head, as_json, backend, int8, dtype=dtype, device=device)
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
            say(_error_line(error))
            refused = True
    if refused:
        raise typer.Exit(2)


@app.command(short_help="Answer a few questions with the demo's text and model.")
@clean
def demo(backend: Backend = None) -> None:
    """Fetch the demo's encoder and text, build its knowledge base, and answer a few questions."""
    _answerer(None, None, None, None, False, backend)(list(DEMO_QUESTIONS), last=True)
    say('Your own:  dualrag ask "..."')


@app.command()
@clean
def train(
    questions: Annotated[
        Path, typer.Argument(help='jsonl with one {"question": ..., "answer": ...} a line.')
    ],
    model: Annotated[str, typer.Option(help="Folder or hub name of the RAG model to start from.")],
    kb: Annotated[
        Path, typer.Option(help="Knowledge base to retrieve from; its vectors stay as they are.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the tuned model to create.")],
    validation: Annotated[
        Path | None, typer.Option(help="jsonl of questions to measure exact match on.")
    ] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the questions.")] = 3.0,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of --epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Questions a forward pass.")] = 8,
    accumulation: Annotated[int, typer.Option(help="Forward passes an optimizer step.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-5,
    question_encoder_learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak learning rate of the question encoder; by default the same."),
    ] = None,
    warmup_steps: Annotated[
        int | None,
        typer.Option(help="Steps of rising learning rate; by default a tenth of all, 100 at most."),
    ] = None,
    question_encoder: Annotated[
        str, typer.Option(help="What of it learns: all, projection or frozen.")
    ] = "all",
    on_collapse: Annotated[
        str,
        typer.Option(
            help="stop or warn where every question has come to find the same few passages."
        ),
    ] = "stop",
    mixed_precision: Annotated[
        str | None, typer.Option(help="bf16, or fp16 on a GPU; by default float32.")
    ] = None,
    n_docs: Annotated[
        int | None, typer.Option(help="Passages a question; by default the model's.")
    ] = None,
    evaluate_every: Annotated[
        int, typer.Option(help="Steps between validations; 0 = at the end only.")
    ] = 0,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints; 0 = none.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the order of questions and of dropout.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU if there is one.")
    ] = None,
    backend: Backend = None,
) -> None:
    """Fine-tune question encoder and generator together.

    Stopped or killed, the same command goes on.
    """
    from rag_core.cli.process import load_backend_for_command
    from rag_core.training import TrainingConfig

    config = TrainingConfig(
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        accumulation=accumulation,
        learning_rate=learning_rate,
        question_encoder_learning_rate=question_encoder_learning_rate,
        warmup_steps=warmup_steps,
        question_encoder=question_encoder,
        on_collapse=on_collapse,
        mixed_precision=mixed_precision,
        n_docs=n_docs,
        evaluate_every=evaluate_every,
        save_every=save_every,
        seed=seed,
    )
    report = load_backend_for_command(backend).train_files(
        questions, model, kb, out, config, validation=validation, device=device
    )
    outcome = "nothing left to train"
    if report.history:
        outcome = f"loss {report.history[-1]['loss']:.3f} nats a token"
    if report.exact_match is not None:
        outcome += f", exact match {report.exact_match:.3f}"
    for note in report.notes():
        say(f"note: {note}")
    say(
        f"{out}: {report.steps} steps, {outcome}.\n"
        f'Ask it:  dualrag ask --model {out} --kb {kb} "..."'
    )


@app.command(short_help="Write a model of any readable layout as safetensors.")
@clean
def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="Folder or hub name of a RAG model, or a part of one."),
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to create.")],
    max_shard_size: Annotated[
        str, typer.Option(help="Larger checkpoints are split; e.g. 500MB.")
    ] = "5GB",
    dtype: Annotated[str, typer.Option(help="keep, float32, float16 or bfloat16.")] = "keep",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
) -> None:
    """Write a model of any readable layout (tf_model.h5, pytorch_model.bin, safetensors) as
    safetensors, checked.
    """
    from rag_core.checkpoint import convert_checkpoint

    converted = convert_checkpoint(
        source, target, max_shard_size=max_shard_size, dtype=dtype, progress=True, revision=revision
    )
    say(f"{target}: {converted}.")


@app.command(short_help="Is a checkpoint the same function in PyTorch and TensorFlow?")
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
    dtype: Annotated[str, typer.Option(help="float64 (decides) or float32.")] = "float64",
    head: Annotated[
        str | None, typer.Option(help="token or sequence; by default the model's own.")
    ] = None,
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


def _without_none(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


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


def _answerer(
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
    options = _without_none(n_docs=n_docs)
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


def main() -> None:
    """Entry point of the `dualrag` script."""
    app()
