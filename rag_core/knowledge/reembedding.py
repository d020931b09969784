"""The passages of a knowledge base embedded anew, by other weights: a new base of the same rows."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from rag_core.hub import clear
from rag_core.knowledge.assembly import assemble, discard_work, keep_shards_of, workplace
from rag_core.knowledge.embedding import Encode, embed_shards, read_batches, text_rows
from rag_core.knowledge.manifest import FILE, Manifest

# Of bases that do not say how they were built.
BATCH, SHARD_ROWS = 32, 1024


def reembed(
    files: list[Path], out: Path, encode: Encode, plan: Manifest, progress: bool = True
) -> None:
    """Writes the base of `KnowledgeBase.reembed`.

    Args:
        files: the Arrow files of the passages.
        out: folder to create.
        encode: the encoder.
        plan: the manifest but for what is known only at the end.
        progress: draws a progress bar on stderr.
    """
    from tqdm.auto import tqdm

    clear(out)
    if _is_done(out, plan):
        discard_work(out)
        return
    request = plan.request
    with workplace(out) as work:
        # Another process may have made it meanwhile.
        if _is_done(out, plan):
            return
        keep_shards_of(plan, work)
        hide = not progress or None  # None: at a terminal alone
        with tqdm(desc="embedding", unit=" passages", disable=hide) as bar:
            shards = embed_shards(
                text_rows(read_batches(files)),
                work,
                encode,
                batch_size=request.get("batch_size", BATCH),
                shard_rows=request.get("shard_rows", SHARD_ROWS),
                dimension=plan.dimension,
                advance=lambda count, found: bar.update(count),
            )
        assemble(work, out, read_batches(shards), plan)


def _is_done(out: Path, plan: Manifest) -> bool:
    """Whether `out` holds what is planned.

    Raises:
        FileExistsError: it holds something else.
    """
    if not out.exists():
        return False
    if (out / FILE).is_file():
        there = Manifest.read(out)
        there.check_files(out)
        finished = replace(plan, rows=there.rows, index=there.index, files=there.files)
        finished.libraries = there.libraries
        if asdict(there) == asdict(finished):
            return True
    raise FileExistsError(f"{out} holds something else already. Choose another folder to write to.")
