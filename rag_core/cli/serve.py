"""`dualrag serve`: answers over HTTP."""

from __future__ import annotations

import gc
import ipaddress
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from rag_core.cli.common import (
    DTYPES,
    HEADS,
    Backend,
    ClusterIndex,
    Device,
    Dtype,
    Head,
    Int8,
    KnowledgeBaseFolder,
    ModelName,
    Where,
    check_choice,
    clean,
    say,
    without_none,
)

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def served_model(
    *,
    model: ModelName = None,
    kb: KnowledgeBaseFolder = None,
    where: Where = None,
    index: ClusterIndex = None,
    head: Head = None,
    dtype: Dtype = None,
    device: Device = None,
    int8: Int8 = False,
    backend: Backend = None,
) -> Callable[[], Any]:
    """What opens a model and its knowledge base for a server, by the options that servers share.

    They are checked before anything is loaded.

    Args:
        **options: as their help says.
    """
    from rag_core.cli.demo import DEMO_QUESTIONS
    from rag_core.cli.models import open_model
    from rag_core.cli.process import load_backend_for_command
    from rag_core.hub import DEMO
    from rag_core.serving import ServedModel

    check_choice("--head", head, *HEADS)
    check_choice("--dtype", dtype, *DTYPES)

    def opened() -> ServedModel:
        engine = load_backend_for_command(backend)
        network, base = open_model(
            engine,
            kb,
            model,
            head,
            say,
            int8,
            where=where,
            index=index,
            dtype=dtype,
            device=device,
        )
        # else the model before, which `open_model` has exempted from the search for garbage, stays
        gc.unfreeze()
        examples = DEMO_QUESTIONS if model is None and kb is None and index is None else ()
        return ServedModel(network, base, model or DEMO, examples)

    return opened


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _hosts(host: str, address: str, allowed: Sequence[str]) -> tuple[str, ...] | None:
    """The names that requests may call the server by; None is any.

    Args:
        host: what it was told to listen at.
        address: what that is in numbers.
        allowed: names that were given beside it.
    """
    if not allowed and not _is_loopback(address):
        return None
    return (*_LOOPBACK, host, address, *allowed)


@clean
def serve(
    model: ModelName = None,
    kb: KnowledgeBaseFolder = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 for other machines, too.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes one that is free.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="DUALRAG_API_KEY",
            help="Requests must bring it; better in the environment, where nobody sees it.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Another name that requests may call the server by, such as a proxy's; can be "
            "repeated. With it, and at a loopback address, no others are taken.",
        ),
    ] = None,
    rate_limit: Annotated[
        int | None, typer.Option(help="Requests a minute from one address; by default any number.")
    ] = None,
    queue: Annotated[
        int | None,
        typer.Option(help="Questions that may wait, beyond which the answer is 429; 256."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Questions the model sees at once, at most; 8.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds that a request may take; 60.")
    ] = None,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="A line a request, on stderr.")
    ] = False,
    where: Where = None,
    index: ClusterIndex = None,
    head: Head = None,
    dtype: Dtype = None,
    device: Device = None,
    int8: Int8 = False,
    backend: Backend = None,
) -> None:
    """Answer questions over HTTP: an API, OpenAI's, and a page at /."""
    from rag_core.cli.process import give_memory_back
    from rag_core.serving import ServerSettings, bind, check_libraries, run_server

    check_libraries()
    opened = served_model(
        model=model,
        kb=kb,
        where=where,
        index=index,
        head=head,
        dtype=dtype,
        device=device,
        int8=int8,
        backend=backend,
    )
    listening = bind(host, port)
    settings = ServerSettings(
        hosts=_hosts(host, listening.getsockname()[0], allow_host or ()),
        **without_none(
            api_key=api_key,
            rate_limit=rate_limit,
            queue=queue,
            batch_size=batch_size,
            timeout=timeout,
        ),
    )
    if not _is_loopback(listening.getsockname()[0]) and api_key is None:
        say(f"note: whoever reaches {host} can ask; --api-key lets in those alone who know it")
    give_memory_back()
    run_server(opened, settings, listening, say=say, access_log=access_log)
