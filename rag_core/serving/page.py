"""The page at "/", where people ask: plain files of this package, into which nothing is put."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

from rag_core.serving.errors import ApiError

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parent / "static"
_KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_METHODS = ["GET", "HEAD"]
_NAMES = {path.name for path in _FOLDER.iterdir() if path.suffix in _KINDS}


@cache
def _file(name: str) -> tuple[bytes, dict[str, str]]:
    """A file and its headers.

    Raises:
        ApiError: there is none of that name.
    """
    if name not in _NAMES:
        raise ApiError(404, "There is no such file.")
    path = _FOLDER / name
    body = path.read_bytes()
    tag = hashlib.sha256(body).hexdigest()[:20]
    return body, {
        "Content-Type": _KINDS[path.suffix],
        "Cache-Control": "no-cache",  # asked for again each time, and sent only if it is another
        "ETag": f'"{tag}"',
    }


def _send(request: Request, name: str) -> Response:
    body, headers = _file(name)
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers)


@router.api_route("/", methods=_METHODS)
async def page(request: Request) -> Response:
    """The page that asks."""
    return _send(request, "index.html")


@router.api_route("/static/{name}", methods=_METHODS)
async def static(name: str, request: Request) -> Response:
    """What the page is made of."""
    return _send(request, name)
