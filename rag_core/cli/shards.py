"""`dualrag shards`: a knowledge base cut into shards, and shards on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rag_core.cli.common import clean, pasteable, say


@clean
def shards(
    folder: Annotated[
        Path | None, typer.Argument(help="A knowledge base to cut, or a folder of shards.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the shards to create.")] = None,
    n: Annotated[int | None, typer.Option("--n", help="How many shards.")] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Bring the shards onto a cluster under this name; those of an older build go, all "
            "at once."
        ),
    ] = None,
    ray: Annotated[
        str, typer.Option(metavar="ADDRESS", help="The cluster's; auto is this machine's.")
    ] = "auto",
    stop: Annotated[
        bool, typer.Option("--stop", help="Take the shards of that name off the cluster.")
    ] = False,
) -> None:
    """Cut a knowledge base into shards, and hold them on a Ray cluster.

    Row numbers stay those of the whole. The folder has to lie at the same path on all nodes.
    """
    if stop:
        if name is None or folder is not None:
            raise ValueError("--stop must go with --name alone")
        from rag_core.cluster import stop_shards

        say(f"{name}: {stop_shards(name, ray)} actors have ended.")
        return
    if folder is None:
        raise ValueError("FOLDER must be given: a knowledge base to cut, or a folder of shards")
    if (out is None) != (n is None):
        raise ValueError("--out and --n must go together: where to, and how many")
    if out is None and name is None:
        raise ValueError("--out and --n must be given to cut shards, or --name to hold them")
    if out is not None and n is not None:
        from rag_core.knowledge import KnowledgeBase, cut_shards

        cut = cut_shards(KnowledgeBase.open(folder), out, n)
        sizes = [shard["stop"] - shard["start"] for shard in cut.shards]
        say(f"{out}: {cut.rows:,} passages in {n} shards of {min(sizes):,} to {max(sizes):,}.")
        folder = out
        if name is None:
            say(f"Hold them:  {pasteable('shards', out, '--name', 'NAME')}")
    if name is None:
        return
    from rag_core.cluster import start_shards

    serial = start_shards(folder, name, ray)
    place = f"ray://{ray}/{name}"
    say(f'{place}: build {serial} is in use.\nAsk it:  {pasteable("ask", "--index", place)} "..."')
