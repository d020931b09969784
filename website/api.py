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

    def page(self, module: str) -> str:
        """The Markdown of a module's page, for mkdocstrings."""
        names = self.names(module)
        if not names:
            return f"# `{module}`\n\n::: {module}\n    options:\n      show_root_heading: false\n"
        own = [name for name in names if self.home(module, name) == module]
        others = [self.link(module, name) for name in names if name not in own]
        parts = [f"# `{module}`\n", DOCSTRING_ALONE.format(module=module)]
        if others:
            parts.append(f"Here, too, and described where they are at home: {', '.join(others)}.\n")
        parts += [f"::: {module}.{name}\n" for name in own]
        return "\n".join(parts)

    def link(self, module: str, name: str, folder: str = "") -> str:
        home = self.home(module, name)
        return f"[`{name}`]({folder}{home}.md#{home}.{name})"

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
