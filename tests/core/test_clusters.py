"""Work on a Ray cluster."""

import os

import pytest

from tests.support.clusters import small_cluster

pytestmark = pytest.mark.beyond


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with small_cluster():
        yield


def test_an_actor_is_a_process_of_its_own():
    import ray

    @ray.remote
    class Worker:
        def pid(self):
            return os.getpid()

    workers = [Worker.remote() for _ in range(2)]
    assert len({os.getpid(), *ray.get([worker.pid.remote() for worker in workers])}) == 3
