"""`dualrag convert`: a model of any readable layout as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rag_core.cli.common import DTYPES, choice, clean, is_quiet, say


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
    dtype: Annotated[str, choice("--dtype", "keep", *DTYPES, help="Of the weights.")] = "keep",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
) -> None:
    """Write a model of any readable layout (tf_model.h5, pytorch_model.bin, safetensors) as
    safetensors, checked.
    """
    from rag_core.checkpoint import convert_checkpoint

    converted = convert_checkpoint(
        source,
        target,
        max_shard_size=max_shard_size,
        dtype=dtype,
        progress=not is_quiet(),
        revision=revision,
    )
    say(f"{target}: {converted}.")
