"""What a request that fails is answered with."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from rag_core.serving.errors import ApiError
from rag_core.serving.headers import SECURITY_HEADERS

_WORDS = {  # of errors that come from the framework
    400: "The request can't be read: its body must be JSON in UTF-8.",
    404: "There is nothing at this address. /docs lists what there is.",
}


def add_error_handlers(app: FastAPI) -> None:
    """Have every error of an app answered in the form of `ApiError`."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _fault)


def error_response(error: ApiError) -> JSONResponse:
    """An error as it is sent."""
    # those of faults go out past the middleware
    return JSONResponse(error.body(), error.status, headers=SECURITY_HEADERS | error.headers)


async def _api_error(request: Request, error: Any) -> JSONResponse:
    return error_response(error)


async def _http_error(request: Request, error: Any) -> JSONResponse:
    message = _WORDS.get(error.status_code, f"{error.detail}.")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        message = f"{request.method} is not what this address takes, but {allowed}."
    return error_response(ApiError(error.status_code, message, headers=error.headers))


async def _validation_error(request: Request, error: Any) -> JSONResponse:
    return error_response(as_api_error(request, error))


def as_api_error(request: Request, error: RequestValidationError) -> ApiError:
    """What a body is refused with that is not what a route takes."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(
            400, f"The body must be JSON: {first['ctx']['error']} at {first['loc'][-1]}."
        )
    kind = request.headers.get("content-type", "")
    if first["loc"] == ("body",) and "json" not in kind:
        return ApiError(415, f"Content-Type must be application/json, got {kind[:80]!r}.")
    place = ".".join(str(part) for part in first["loc"][1:])
    if not place:
        return ApiError(422, f"The body: {first['msg']}.")
    return ApiError(422, f"{place[:80]}: {first['msg']}.", param=place[:80])


async def _fault(request: Request, error: Exception) -> JSONResponse:
    # the server's log has the traceback
    return error_response(ApiError(500, "Something went wrong in the server; its log says what."))
