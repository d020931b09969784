"""A Ray of this machine's own, small: what tests of clusters run in."""

from collections.abc import Iterator
from contextlib import contextmanager

OBJECT_STORE = 100 << 20  # bytes


@contextmanager
def small_cluster(**options) -> Iterator[None]:
    """Two processors, little memory; gone afterwards."""
    import ray

    ray.init(
        num_cpus=2,
        object_store_memory=OBJECT_STORE,
        include_dashboard=False,
        log_to_driver=False,
        **options,
    )
    try:
        yield
    finally:
        ray.shutdown()
