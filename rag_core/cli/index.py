"""`dualrag index`: text to a knowledge base."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from rag_core.cli.common import (
    Backend,
    Exclude,
    SkipBad,
    TextColumn,
    TitleColumn,
    choice,
    clean,
    is_quiet,
    pasteable,
    say,
    without_none,
)

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@clean
def index(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Folders, or files: txt, md, csv, tsv, jsonl, parquet, arrow, ipynb; with "
            "'dualrag[files]' pdf, docx, pptx, html, epub, rst, eml."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the knowledge base to create.")],
    encoder: Annotated[
        str, typer.Option(help="Folder or hub name of the encoder of passages.")
    ] = MINILM,
    query_prompt: Annotated[
        str | None,
        typer.Option(help='What the encoder reads in front of questions, "query: "; else its own.'),
    ] = None,
    passage_prompt: Annotated[str | None, typer.Option(help="The same of passages.")] = None,
    kind: Annotated[
        str,
        choice(
            "--index",
            "flat",
            "hnsw",
            "ivfpq",
            "auto",
            "bm25",
            "hybrid",
            help="flat is exact; bm25 finds words, hybrid both.",
        ),
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
    exclude: Exclude = None,
    skip_bad: SkipBad = False,
    text_column: TextColumn = None,
    title_column: TitleColumn = None,
    tsv_quotes: Annotated[
        bool,
        typer.Option(
            "--tsv-quotes/--no-tsv-quotes", help="Quotes in .tsv enclose fields, or are letters."
        ),
    ] = True,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Embed on a Ray cluster: its address, auto for this machine's, local for one of "
            "this command's own.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that embed, a GPU each if there are; 2.")
    ] = None,
    backend: Backend = None,
) -> None:
    """Split text into passages, embed and index them.

    Stopped or killed, the same command goes on.
    """
    from rag_core.cli.process import load_backend_for_command
    from rag_core.knowledge import find_files

    engine = load_backend_for_command(backend)
    # a wrong path should not wait for an encoder to load; its notes are said once, at the end
    find_files(paths, exclude=exclude or ())
    from rag_core.cli.models import open_encoder
    from rag_core.knowledge import build_knowledge_base, check_settings

    settings = check_settings(kind, without_none(nlist=nlist, nprobe=nprobe, m=m, rerank=rerank))
    prompts = without_none(query=query_prompt, passage=passage_prompt)
    loaded, name, fingerprint = open_encoder(engine, encoder, say, prompts=prompts)
    with _embedding(engine, loaded, batch_size, prompts, ray, workers) as encode:
        kb = build_knowledge_base(
            paths,
            out,
            encode,
            encoder_name=name,
            encoder_fingerprint=fingerprint,
            encoder_prompts=loaded.prompts,
            index=kind,
            settings=settings,
            words=words or None,
            tsv_quotes=tsv_quotes,
            text_column=text_column,
            title_column=title_column,
            exclude=exclude or (),
            skip_bad=skip_bad,
            batch_size=batch_size,
            overwrite=overwrite,
            progress=not is_quiet(),
        )
    manifest = kb.manifest
    kind = f"{manifest.index['kind']} index"
    if manifest.search != "vectors":
        kind = f"searched by {manifest.search}; for vectors a {kind}"
    say(
        f"{out}: {len(kb):,} passages of {len(manifest.sources)} file(s), {manifest.dimension} "
        f"numbers each, {kind}, recall@5 {manifest.index['recall_at_5']:.3f}.\n"
        f'Search it:  {pasteable("search", out)} "..."\n'
        f'Ask it:     {pasteable("ask", "--kb", out)} "..."'
    )


def _embedding(
    engine: Any,
    encoder: Any,
    batch_size: int,
    prompts: dict[str, str],
    ray: str | None,
    workers: int | None,
) -> AbstractContextManager[Any]:
    """What embeds passages: this process' encoder, or the same one in processes of a cluster."""
    if ray is None and workers is None:
        return nullcontext(functools.partial(encoder.embed, batch_size=batch_size))
    from rag_core.cluster import RayEncoder, load_embed

    backend = engine.__name__.removeprefix("rag_")
    load = functools.partial(load_embed, backend, encoder.name, batch_size, prompts)
    if workers is None:
        workers = 2
    return RayEncoder(load, workers, ray or "local")
