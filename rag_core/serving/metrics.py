"""Numbers for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rag_core.serving.service import Service

# From a small model's answer to the longest that a server waits for.
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one app, in a registry of its own.

    Args:
        service: whose queues are looked at when somebody asks.
    """

    def __init__(self, service: Service) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "dualrag_requests",
            "Requests, by route and status.",
            ["route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "dualrag_request_seconds",
            "Seconds until a request was answered.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_sizes = Histogram(
            "dualrag_batch_questions", "Questions of a batch.", buckets=_SIZES, registry=registry
        )
        self._batch_seconds = Histogram(
            "dualrag_batch_seconds", "Seconds of a batch.", buckets=_SECONDS, registry=registry
        )
        looks = {
            "dualrag_queue_questions": (
                "Questions that wait for a batch.", lambda: service.answers.waiting
            ),
            "dualrag_cancelled_questions": (
                "Questions whose asker went away or whose time was over.",
                lambda: service.answers.counts.cancelled,
            ),
            "dualrag_refused_questions": (
                "Questions for which there was no room in the queue.",
                lambda: service.answers.counts.refused,
            ),
            "dualrag_ready": ("1 once the model is loaded.", lambda: service.is_ready),
        }  # fmt: skip
        for name, (words, look) in looks.items():
            Gauge(name, words, registry=registry).set_function(look)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Note an answered request."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, size: int, seconds: float) -> None:
        """Note a batch."""
        self._batch_sizes.observe(size)
        self._batch_seconds.observe(seconds)

    def page(self) -> tuple[bytes, str]:
        """What Prometheus reads, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def route(self, scope: Any) -> str:
        """The path of a route with names for its parameters, so that there are few."""
        return getattr(scope.get("route"), "path", "other")
