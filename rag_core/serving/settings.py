"""What a server is told: its limits and its key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rag_core.checks import number, whole

_COUNT = whole(1)
_SECONDS = number(0, above=True)
_SECONDS_OR_NONE = number(0)
_RULES = {
    "batch_size": _COUNT,
    "batch_wait": _SECONDS_OR_NONE,
    "queue": _COUNT,
    "timeout": _SECONDS,
    "max_body": _COUNT,
    "max_questions": _COUNT,
    "max_question_chars": _COUNT,
    "max_new_tokens": _COUNT,
    "max_beams": _COUNT,
    "max_docs": _COUNT,
    "rate_limit": whole(1, optional=True),
    "body_seconds": _SECONDS,
    "shutdown_seconds": _SECONDS_OR_NONE,
}


def _names(hosts: Any) -> tuple[str, ...]:
    """Names as requests are compared with them.

    Raises:
        TypeError: one name alone, each letter of which would be one, or something else.
    """
    if not isinstance(hosts, list | tuple) or not all(isinstance(name, str) for name in hosts):
        raise TypeError(
            f"hosts must be a tuple of names, got {hosts!r:.200}. Write ('example.com',)"
        )
    return tuple(name.strip("[]").lower() for name in hosts)


@dataclass(frozen=True)
class ServerSettings:
    """Limits of a server; the most common have a flag of `dualrag serve`.

    Attributes:
        api_key: what requests have to bring; None lets everybody in.
        batch_size: questions the model sees at once, at most.
        batch_wait: seconds that a question waits for others to join it, at most.
        queue: questions that may wait; beyond them the answer is 429.
        timeout: seconds a request may take; it can ask for fewer.
        max_body: bytes of a request.
        max_questions: questions of a request.
        max_question_chars: characters of a question.
        max_new_tokens: tokens of an answer, whatever is asked for.
        max_beams: beams of a search, and answers a question.
        max_docs: passages a question.
        rate_limit: requests a minute and client; None is any number.
        hosts: names by which requests may call the server, without a port; None is any.
        body_seconds: seconds that a client may take to send a request.
        shutdown_seconds: seconds that answers in flight get to finish.
    """

    api_key: str | None = field(default=None, repr=False)
    batch_size: int = 8
    batch_wait: float = 0.01
    queue: int = 256
    timeout: float = 60.0
    max_body: int = 1_000_000
    max_questions: int = 64
    max_question_chars: int = 4_000
    max_new_tokens: int = 256
    max_beams: int = 16
    max_docs: int = 50
    rate_limit: int | None = None
    hosts: tuple[str, ...] | None = None
    body_seconds: float = 10.0
    shutdown_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            rule(name, getattr(self, name))
        if self.hosts is not None:
            object.__setattr__(self, "hosts", _names(self.hosts))
        key = self.api_key
        if key is not None and not (
            key.isascii() and key.isprintable() and key.strip() == key != ""
        ):
            raise ValueError(
                "api_key must be printable ASCII characters without spaces around them, got "
                "something else. Choose a long random one"
            )
