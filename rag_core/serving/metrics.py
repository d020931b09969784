"""Numbers for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rag_core.serving.batching import Batcher
    from rag_core.serving.service import Service

# From a small model's answer to the longest that a server waits for.
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


def _looked(service: Service, queue: str, look: Callable[[Batcher], int]) -> int:
    return look(getattr(service, queue))


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
        ready = Gauge("dualrag_ready", "1 once the model is loaded.", registry=registry)
        ready.set_function(lambda: service.is_ready)
        looks: dict[str, tuple[str, Callable[[Batcher], int]]] = {
            "dualrag_queue_questions": (
                "Questions that wait for a batch.", lambda batcher: batcher.waiting
            ),
            "dualrag_cancelled_questions": (
                "Questions whose asker went away or whose time was over.",
                lambda batcher: batcher.counts.cancelled,
            ),
            "dualrag_refused_questions": (
                "Questions for which there was no room in the queue.",
                lambda batcher: batcher.counts.refused,
            ),
        }  # fmt: skip
        for name, (words, look) in looks.items():
            gauge = Gauge(name, words, ["queue"], registry=registry)
            for queue in ("answers", "searches"):  # the service has them when it is there itself
                gauge.labels(queue).set_function(partial(_looked, service, queue, look))

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
