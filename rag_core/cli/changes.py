"""`dualrag add`, `remove` and `update`: a knowledge base and its files, changed in one step each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rag_core.checks import warn
from rag_core.cli.common import (
    Backend,
    Exclude,
    SkipBad,
    TextColumn,
    TitleColumn,
    Where,
    clean,
    is_quiet,
    say,
)
from rag_core.cli.lines import counted

if TYPE_CHECKING:
    import numpy as np

    from rag_core.knowledge import KnowledgeBase

Base = Annotated[Path, typer.Argument(metavar="KB", help="Folder of the knowledge base.")]
Encoder = Annotated[
    str | None,
    typer.Option(help="Folder or name of the encoder; by default the one that KB names."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would change; change nothing.")]
NAMES_SHOWN = 5


class LateEncoder:
    """The encoder of passages, loaded when the first is to be embedded.

    Args:
        kb: the knowledge base.
        name: folder or name; None takes the manifest's.
        backend: the framework's short name.
    """

    def __init__(self, kb: KnowledgeBase, name: str | None, backend: str | None) -> None:
        self.kb = kb
        self.name = name or kb.encoder_source
        self.backend = backend
        self._embed: Any = None

    def __call__(self, titles: list[str], texts: list[str]) -> np.ndarray:
        if self._embed is None:
            self._embed = self._loaded().embed
        return self._embed(titles, texts)

    def _loaded(self) -> Any:
        from rag_core.cli.models import open_encoder
        from rag_core.cli.process import load_backend_for_command

        engine = load_backend_for_command(self.backend)
        try:
            encoder, _, found = open_encoder(engine, self.name, say, **self.kb.encoder_options)
        except OSError as error:
            raise OSError(
                f"{self.kb.path} was embedded by {self.kb.manifest.encoder['name']!r}, and "
                f"{self.name!r} cannot be loaded ({error}). Say where it is with --encoder."
            ) from error
        before = self.kb.manifest.encoder.get("fingerprint")
        if None not in (before, found) and found != before:
            warn(
                f"{self.name!r} holds other weights than those that embedded {self.kb.path}: its "
                "new passages are embedded otherwise than the rest. If the encoder was trained "
                f"further, build anew:  dualrag index PATHS --out {self.kb.path} --overwrite"
            )
        return encoder


@clean
def add(
    kb: Base,
    paths: Annotated[list[Path], typer.Argument(help="Files or folders to add.")],
    words: Annotated[
        int | None,
        typer.Option(help="Words a passage; 0 keeps documents whole; by default as KB has them."),
    ] = None,
    exclude: Exclude = None,
    skip_bad: SkipBad = False,
    text_column: TextColumn = None,
    title_column: TitleColumn = None,
    encoder: Encoder = None,
    backend: Backend = None,
) -> None:
    """Add the passages of more files to a knowledge base.

    Stopped or killed, the same command goes on.
    """
    from rag_core.knowledge import KnowledgeBase

    base = KnowledgeBase.open(kb)
    length: int | None = -1  # as the knowledge base has them
    if words is not None:
        length = words or None
    encode = LateEncoder(base, encoder, backend)
    added = base.add(
        paths,
        encode,
        words=length,
        text_column=text_column,
        title_column=title_column,
        exclude=exclude or (),
        skip_bad=skip_bad,
        progress=not is_quiet(),
    )
    say(f"{kb}: {counted(added, 'passage')} added, {len(base):,} in all.")


@clean
def update(
    kb: Base,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Compare these alone; by default all that was indexed."),
    ] = None,
    dry_run: DryRun = False,
    encoder: Encoder = None,
    backend: Backend = None,
) -> None:
    """Bring a knowledge base up to its files: read again what changed, add what is new, remove what
    is gone.

    Stopped or killed, the same command goes on.
    """
    from rag_core.knowledge import KnowledgeBase

    base = KnowledgeBase.open(kb)
    encode = LateEncoder(base, encoder, backend)
    progress = not is_quiet()
    done = base.update(paths, encode, dry_run=dry_run, progress=progress)
    for kind in ("changed", "new", "gone"):
        if names := getattr(done, kind):
            say(f"  {kind:8}{_listed(names)}")
    if not done:
        say(f"{kb}: nothing to do, all files are as they were ({done.unchanged:,}).")
    elif dry_run:
        print(f"{kb}, if it were updated: {done}.")
    else:
        say(f"{kb}: {done}, {len(base):,} in all.")


@clean
def remove(
    kb: Base,
    source: Annotated[
        str | None,
        typer.Option(metavar="GLOB", help="Passages of these files, e.g. 'handbook/old/*'."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Passages with this very title.")] = None,
    rows: Annotated[
        str | None, typer.Option(metavar="ROWS", help="Passages by row number, e.g. 3,17.")
    ] = None,
    where: Where = None,
    dry_run: DryRun = False,
) -> None:
    """Remove passages from a knowledge base; those after them move up.

    What is asked for must all hold.
    """
    from rag_core.knowledge import KnowledgeBase

    base = KnowledgeBase.open(kb)
    chosen = _chosen(base, source, title, rows, where or [])
    count = base.remove(chosen, dry_run=True)
    found = f"{count:,} of {len(base):,} passages match: {_by_file(base, chosen)}"
    if dry_run:
        print(f"{found}. Nothing was removed.")
        return
    say(f"{found}.")
    removed = base.remove(chosen)
    say(f"{kb}: {counted(removed, 'passage')} removed, {len(base):,} are left.")


def _chosen(
    base: KnowledgeBase, source: str | None, title: str | None, rows: str | None, where: list[str]
) -> list[int]:
    """The row numbers that all options together mean."""
    conditions = list(where)
    if source is not None:
        conditions.append(f"file={source}")
    if title is not None:
        conditions.append(f"title={_literal(title)}")
    if not conditions and rows is None:
        raise ValueError("--source, --title, --rows or --where must be given. Name the passages.")
    chosen = set(range(len(base)))
    if conditions:
        chosen &= set(base.matching(conditions).tolist())
    if rows is not None:
        chosen &= _row_numbers(rows, len(base))
    return sorted(chosen)


def _row_numbers(text: str, count: int) -> set[int]:
    numbers = set()
    for part in text.split(","):
        if not part.strip().isdecimal() or int(part) >= count:
            raise ValueError(
                f"--rows must be row numbers from 0 to {count - 1} with commas between them, got "
                f"{text!r:.60}"
            )
        numbers.add(int(part))
    return numbers


def _literal(text: str) -> str:
    """A pattern that this text alone fulfils."""
    return re.sub(r"([*?[])", r"[\1]", text)


def _by_file(base: KnowledgeBase, rows: list[int]) -> str:
    """How many passages of which files."""
    from collections import Counter

    import numpy as np

    docs = base.index().get_doc_dicts(np.array([rows]))[0]
    unknown: list[Any] = [None] * len(rows)
    pairs = zip(docs.get("source", unknown), docs.get("metadata", [{}] * len(rows)), strict=True)
    counts = Counter(entries.get("file", source) for source, entries in pairs)
    return _listed([f"{count:,} of {name or 'unknown files'}" for name, count in counts.items()])


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    if len(names) > NAMES_SHOWN:
        shown += f", and {len(names) - NAMES_SHOWN:,} more"
    return shown
