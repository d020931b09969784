"""What the extra `[serve]` installs."""

from __future__ import annotations

from importlib.util import find_spec

_LIBRARIES = ("fastapi", "fastapi_swagger", "prometheus_client", "uvicorn")


def check_libraries() -> None:
    """See that a server's libraries are installed.

    Raises:
        ImportError: one isn't; the message has the pip line.
    """
    for name in _LIBRARIES:
        if find_spec(name) is None:
            raise ImportError(f"A server needs {name}. Run  pip install 'dualrag[serve]'.")
