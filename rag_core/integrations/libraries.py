"""The libraries of the extras, and what to install where one is missing."""

from __future__ import annotations


def lacking(library: str, extra: str) -> ImportError:
    """The error of a library that is not installed.

    Args:
        library: its name.
        extra: of this package, which installs it.
    """
    return ImportError(
        f"rag_core.integrations needs {library}. Run  pip install 'dualrag[{extra}]'."
    )
