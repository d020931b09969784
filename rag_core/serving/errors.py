"""Errors over HTTP in one form, that of OpenAI's API: `{"error": {"message", "type", "param",
"code"}}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# What a status says in one word, for programs.
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    421: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    499: "cancelled_error",
    500: "server_error",
    503: "unavailable_error",
    504: "timeout_error",
}
# Of a file: "/a/b", "C:\\a"; not of an address, whose "//" stands after a colon.
_PATH = re.compile(r"(?<![\w/:.])(?:[A-Za-z]:\\|~?/)[^\s'\",;:()]*[^\s'\",;:().]")


class ApiError(Exception):
    """What a request is refused with.

    Args:
        status: HTTP's.
        message: one sentence.
        param: the field of the request that it is about.
        code: for programs, where `status` alone does not say it.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON that is sent."""
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, "server_error"),
                "param": self.param,
                "code": self.code,
            }
        }


def without_paths(text: str) -> str:
    """A text in which places on this machine are not named."""
    return _PATH.sub("(a path)", text)
