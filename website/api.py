"""Pages of the API: what each module offers, for mkdocstrings to take from the docstrings."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import griffe

DOCSTRING_ALONE = """\
::: {module}
    options:
      members: []
      show_root_heading: false
      show_root_toc_entry: false
"""

CLASS_ALONE = """\
---
title: {name}
---

::: {name}
    options:
      heading_level: 1
"""
MANY = 12


class Reference:
    """Where every public name is documented: on one page, the first that offers it.

    Args:
        modules: those that have a page, in the order in which they are asked for a name.
        root: the folder that the packages lie in.
    """

    def __init__(self, modules: list[str], root: Path) -> None:
        loader = griffe.GriffeLoader(search_paths=[root])
        for package in sorted({module.partition(".")[0] for module in modules}):
            loader.load(package)
        loader.resolve_aliases()
        self._collection = loader.modules_collection
        self._homes: dict[str, str] = {}
        for module in sorted(modules, key=lambda module: module != "rag_core"):
            for name in self.names(module):
                self._homes.setdefault(self._defined(module, name), module)

    def names(self, module: str) -> list[str]:
        """What a package offers; nothing of a module, which is documented as a whole."""
        if not self._collection[module].is_init_module:
            return []
        return [name for name in importlib.import_module(module).__all__ if name != "__version__"]

    def _defined(self, module: str, name: str) -> str:
        found = self._collection[f"{module}.{name}"]
        return str(found.final_target.path if found.is_alias else found.path)

    def home(self, module: str, name: str) -> str:
        """The module on whose page that name of `module` is documented."""
        return self._homes[self._defined(module, name)]

    def pages(self, module: str) -> dict[str, str]:
        """The Markdown of a module's page and of those of its large classes, for mkdocstrings."""
        names = self.names(module)
        if not names:
            text = f"# `{module}`\n\n::: {module}\n    options:\n      show_root_heading: false\n"
            return {module: text}
        own = [name for name in names if self.home(module, name) == module]
        others = [self.link(module, name) for name in names if name not in own]
        alone = [name for name in own if self._is_large(module, name)]
        parts = [f"# `{module}`\n", DOCSTRING_ALONE.format(module=module)]
        parts += [f"- {self.link(module, name)}: {self._sentence(module, name)}" for name in alone]
        if others:
            parts.append(f"\nHere, too, and described where they are at home: {', '.join(others)}.")
        parts += [f"\n::: {module}.{name}" for name in own if name not in alone]
        return {module: "\n".join(parts)} | {
            f"{module}.{name}": CLASS_ALONE.format(name=f"{module}.{name}") for name in alone
        }

    def _is_large(self, module: str, name: str) -> bool:
        """Is it a class whose members would make the page too long for a browser?"""
        found = self._collection[f"{module}.{name}"]
        return found.is_class and len(_public(found)) > MANY

    def _sentence(self, module: str, name: str) -> str:
        found = self._collection[f"{module}.{name}"]
        with_docstring = [each for each in (found, *found.mro()) if each.docstring is not None]
        if not with_docstring:
            return ""
        first = with_docstring[0].docstring.value.partition("\n\n")[0]
        return " ".join(first.split())

    def link(self, module: str, name: str, folder: str = "") -> str:
        home = self.home(module, name)
        page = home
        if self._is_large(home, name):
            page = f"{home}.{name}"
        return f"[`{name}`]({folder}{page}.md#{home}.{name})"

    def linked(self, text: str) -> str:
        """A page whose tables name public names, with links to where they are documented."""
        names = {
            name: self.link(module, name, "api/")
            for module in ("rag_tf", "rag_torch", "rag_core")
            for name in self.names(module)
        }
        first_cells = re.compile(r"^\|[^|]*\|", re.MULTILINE)
        return first_cells.sub(
            lambda cell: re.sub(r"`(\w+)`", lambda code: names.get(code[1], code[0]), cell[0]), text
        )


def _public(found: griffe.Object | griffe.Alias) -> list[str]:
    return [name for name in found.all_members if not name.startswith("_")]
