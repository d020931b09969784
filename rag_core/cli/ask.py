"""`dualrag ask`: questions from the command line, a file, a pipe or a terminal, and their
answers.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rag_core.cli.common import (
    DTYPES,
    HEADS,
    Backend,
    ClusterIndex,
    Device,
    Dtype,
    Full,
    Head,
    Int8,
    KnowledgeBaseFolder,
    ModelName,
    QuestionsFile,
    Where,
    check_choice,
    clean,
    is_quiet,
    say,
    say_error,
    taking,
    without_none,
)
from rag_core.cli.lines import json_line
from rag_core.hub import Line

if TYPE_CHECKING:
    from rich.console import Console


# Answers are shown as they come: of a larger batch the first one would be waited for longer.
_FILE_BATCH = 8
DEMO_ANSWERS = (
    "The demo's model names Wikipedia articles: describe a person, work, place or thing, and ask "
    "which it is."
)


class Page:
    """Where answers are shown: to people, or to machines as lines of JSON.

    As a context it ends with what holds of all of them: `notes`, and that sources are unknown.
    """

    def __init__(self, as_json: bool, full: bool = False) -> None:
        self.as_json = as_json
        self.full = full
        self.notes: list[str] = []
        self.without_source = False
        self.renewal = ""
        self._console: Console | None = None

    def show(self, answer: Any) -> None:
        """Shows an answer, or what else `print` knows."""
        if self.as_json:
            print(json_line(answer.to_dict()), flush=True)
        else:
            self.print(answer)

    def console(self) -> Console:
        """Where people read."""
        if self._console is None:
            from rag_core.cli.lines import stdout_console

            self._console = stdout_console()
        return self._console

    def print(self, answer: Any) -> None:
        """Shows an answer to people."""
        from rag_core.cli.show import show_answer

        show_answer(answer, self.console(), full=self.full)
        if not all(passage.source for passage in answer.passages):
            self.without_source = True

    def __enter__(self) -> Page:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # to a closed pipe nothing can be said
        if self._console is None or kind not in (None, KeyboardInterrupt):
            return
        from rag_core.cli.show import show_notes

        if self.without_source:
            self.notes.insert(0, f"Passages with a row alone: source unknown.{self.renewal}")
        show_notes(self._console, *self.notes)


class Answerer:
    """A model that answers questions onto a page."""

    def __init__(self, engine: Any, network: Any, page: Page, options: dict[str, Any]) -> None:
        self.engine = engine
        self.network = network
        self.page = page
        self.options = options
        self.answered = 0
        self.refused = False

    @classmethod
    def open(
        cls,
        page: Page,
        options: dict[str, Any],
        *,
        kb: Path | None = None,
        model: str | None = None,
        head: str | None = None,
        backend: str | None = None,
        int8: bool = False,
        where: list[str] | None = None,
        index: str | None = None,
        **placing: str | None,
    ) -> Answerer:
        """Loads a model and its knowledge base.

        Args:
            page: for its answers.
            options: of its method `answer`.
            kb, model, head, int8, where, index, **placing: see `rag_core.cli.models.open_model`.
            backend: the framework's short name.
        """
        from rag_core.cli.process import load_backend_for_command

        engine = load_backend_for_command(backend)
        from rag_core.cli.models import open_model

        network, base = open_model(
            engine, kb, model, head, say, int8, where=where, index=index, **placing
        )
        if base is not None and base.manifest.credit:
            page.notes.append(base.manifest.credit)
        if base is not None and kb is None and model is None and index is None:
            page.renewal = f" Remove {base.path} to have the demo's cite their pages."
        return cls(engine, network, page, options)

    def answer(self, questions: list[str], last: bool = False) -> None:
        """Answers and shows some questions at once.

        Args:
            questions: texts.
            last: nothing is asked after them.

        Raises:
            ValueError, TypeError: one of them is refused; none is answered.
        """
        from rag_core.cli.models import single_use

        with single_use(self.engine, last):
            answers = self.network.answer(questions, **self.options)
        for answer in answers:
            self.page.show(answer)
        self.answered += len(questions)

    def answer_line(self, line: Line) -> None:
        """Answers one line; where it is refused, says why."""
        try:
            if line.fault:
                raise ValueError(line.fault)
            self.answer([line.text.strip()])
        except (ValueError, TypeError) as error:  # one refused question does not end the session
            say_error(error)
            self.refused = True

    def answer_all(self, lines: Generator[Line, None, None], batch_size: int) -> None:
        """Answers line by line, in their order, some at once.

        Raises:
            KeyboardInterrupt: with what was done until then.
        """
        from tqdm import tqdm

        # where answers are seen at the terminal themselves, a bar would run through them
        hidden = is_quiet() or sys.stdout.isatty() or None
        try:
            with closing(lines), tqdm(desc="answering", unit=" questions", disable=hidden) as bar:
                for batch in _batches(lines, batch_size):
                    self._answer_batch(batch)
                    bar.update(len(batch))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f" {self.answered} question(s) were answered.") from None

    def _answer_batch(self, batch: list[Line]) -> None:
        """All at once; one by one where one of them is refused."""
        if len(batch) > 1 and not any(line.fault for line in batch):
            try:
                self.answer([line.text.strip() for line in batch])
            except (ValueError, TypeError):
                pass
            else:
                return
        for line in batch:
            self.answer_line(line)


def _batches(lines: Iterable[Line], size: int) -> Iterator[list[Line]]:
    remaining = iter(lines)
    while batch := list(islice(remaining, size)):
        yield batch


def open_answerer(
    page: Page,
    *,
    kb: KnowledgeBaseFolder = None,
    model: ModelName = None,
    n_docs: Annotated[
        int | None, typer.Option(help="Passages a question; by default the model's.")
    ] = None,
    where: Where = None,
    index: ClusterIndex = None,
    head: Head = None,
    num_beams: Annotated[int | None, typer.Option(help="Beams; 1 is greedy.")] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Most tokens of an answer, with the start token.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer, without it.")
    ] = None,
    min_length: Annotated[int | None, typer.Option(help="Fewest tokens of an answer.")] = None,
    num_return_sequences: Annotated[int | None, typer.Option(help="Answers a question.")] = None,
    no_repeat_ngram_size: Annotated[
        int | None, typer.Option(help="No run of as many tokens comes twice.")
    ] = None,
    do_sample: Annotated[
        bool | None, typer.Option("--do-sample", help="Draw the answer instead of the best one.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling: above 1 wilder.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sampling: of as many tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sampling: of the likeliest with this share.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Sampling: the same draws again.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Any other option of generation, in JSON."),
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    int8: Int8 = False,
    backend: Backend = None,
) -> Answerer:
    """A model with its knowledge base, by the options that `ask` and `explain` share.

    They are checked before anything is loaded.

    Args:
        page: for its answers.
        **options: as their help says.
    """
    from rag_core.cli.generation_options import generation_options

    if n_docs is not None and n_docs < 1:
        raise ValueError(f"--n-docs must be at least 1, got {n_docs}")
    check_choice("--head", head, *HEADS)
    check_choice("--dtype", dtype, *DTYPES)
    options = generation_options(
        option or [],
        {
            "num_beams": num_beams,
            "max_length": max_length,
            "max_new_tokens": max_new_tokens,
            "min_length": min_length,
            "num_return_sequences": num_return_sequences,
            "no_repeat_ngram_size": no_repeat_ngram_size,
            "do_sample": do_sample,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
        },
    )
    return Answerer.open(
        page,
        without_none(n_docs=n_docs) | options,
        kb=kb,
        model=model,
        head=head,
        backend=backend,
        int8=int8,
        where=where,
        index=index,
        dtype=dtype,
        device=device,
    )


@clean
@taking(open_answerer)
def ask(
    question: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUESTION", help="Leave it out to ask one after another."),
    ] = None,
    questions: QuestionsFile = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object an answer, on stdout.")
    ] = False,
    full: Full = False,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Questions the model sees at once; 8 of a file, 1 of a pipe."),
    ] = None,
    **options: Any,
) -> None:
    """Answer a question from a knowledge base, with the passages used and their probabilities.

    A line that can't be answered does not end a file, a pipe or a conversation.
    """
    from rag_core.cli import questions as source

    if question and questions:
        raise ValueError("QUESTION or --questions must be given, got both. Leave one out")
    asked = None
    if question:
        asked = source.one_argument(question, "ask")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    if questions is not None:
        lines = source.of_file(questions)
    page = Page(as_json, full)
    answerer = open_answerer(page, **options)
    is_typed = asked is None and questions is None and source.at_terminal()
    if options["model"] is None and options["kb"] is None:
        if is_typed:
            say(DEMO_ANSWERS)
        else:
            page.notes.append(DEMO_ANSWERS)
    with page:
        if asked is not None:
            answerer.answer([asked], last=True)
        elif questions is not None:
            answerer.answer_all(lines, batch_size or _FILE_BATCH)
        elif is_typed:
            converse(answerer)
        else:
            answerer.answer_all(source.piped(), batch_size or 1)
    if answerer.refused:
        raise typer.Exit(2)


def converse(answerer: Answerer) -> None:
    """Answers what a person types; Ctrl-C stops an answer that takes too long."""
    from rag_core.cli.questions import typed
    from rag_core.demo import home

    for line in typed(home() / "history"):
        try:
            answerer.answer_line(line)
        except KeyboardInterrupt:
            say("\nstopped; Ctrl-D ends")
