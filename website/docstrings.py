"""Docstrings where mkdocstrings looks for them: a class without one has that of the class it is made of."""

from __future__ import annotations

from typing import Any

import griffe


class ClassDocstrings(griffe.Extension):
    """The docstrings of rag_core's mixins, at the classes of both backends."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for module in _modules(pkg):
            for each in module.classes.values():
                if not each.is_alias and each.docstring is None:
                    each.docstring = next(
                        (base.docstring for base in each.mro() if base.docstring is not None), None
                    )


def _modules(module: griffe.Module) -> list[griffe.Module]:
    inner = [each for each in module.modules.values() if not each.is_alias]
    return [module, *(below for each in inner for below in _modules(each))]
