"""Help of commands with many options, which stand under headings of their own."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

_REST = "Options"


class PanelledCommand(TyperCommand):
    """A command whose plain help has a section for each `rich_help_panel`, the others first."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options."""
        sections: dict[str, list[Any]] = {"Arguments": [], _REST: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            title = getattr(parameter, "rich_help_panel", None) or _REST
            if parameter.param_type_name == "argument":
                title = "Arguments"
            sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
