"""A Ray of this machine's own, small: what tests of clusters run in."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

OBJECT_STORE = 100 << 20  # bytes


@contextmanager
def small_cluster() -> Iterator[None]:
    """Two processors, little memory; gone afterwards. `DUALRAG_RAY` names one that runs already."""
    import ray

    options = {
        "address": "local",  # never one that somebody else has started, or left a trace of
        "num_cpus": 2,
        "object_store_memory": OBJECT_STORE,
        "include_dashboard": False,
    }
    if address := os.environ.get("DUALRAG_RAY"):
        options = {"address": address}
    ray.init(log_to_driver=False, **options)
    try:
        yield
    finally:
        ray.shutdown()
