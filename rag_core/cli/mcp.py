"""`dualrag mcp`: answers and passages as tools of assistants."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from rag_core.cli.common import clean, pasteable, say, taking, without_none
from rag_core.cli.serve import served_model


@clean
@taking(served_model)
def mcp(
    timeout: Annotated[float | None, typer.Option(help="Seconds that a call may take; 60.")] = None,
    **options: Any,
) -> None:
    """Offer the tools ask and search over stdin and stdout (Model Context Protocol).

    An assistant or editor starts this command; its configuration names it.
    """
    from rag_core.cli.process import give_memory_back
    from rag_core.integrations import check_mcp, run_mcp_server
    from rag_core.serving import ServerSettings

    check_mcp()
    opened = served_model(**options)
    settings = ServerSettings(**without_none(timeout=timeout))
    if sys.stdin is not None and sys.stdin.isatty():
        say(
            "An assistant is to start this command, and speaks to it over stdin and stdout: name "
            f"{pasteable('mcp')!r} in its configuration. Ctrl-C ends"
        )
    give_memory_back()
    run_mcp_server(opened, settings, say=say)
