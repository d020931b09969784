"""Training under strategies of tf.distribute: what one device would have made of the same batches."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.training_models import small_config, small_tokenizers, train_command

pytestmark = pytest.mark.beyond
ROOT = Path(__file__).parents[2]
# Of losses and weights in float64.
TOLERANCE = 1e-9


def start(*words, **environment):
    """Starts a module with words of its command line."""
    command = [sys.executable, "-m", *map(str, words)]
    paths = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    env = {**os.environ, **paths, **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=env, **pipes)


def finished(processes):
    try:
        said = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text[-4000:]


def together(*words):
    """Starts two processes of a cluster, and waits for them."""
    addresses = free_addresses(2)
    names = [cluster(index, addresses) for index in range(2)]
    finished([start(*words, TF_CONFIG=name) for name in names])


def cluster(index, addresses):
    task = {"type": "worker", "index": index}
    return json.dumps({"cluster": {"worker": addresses}, "task": task})


def free_addresses(count):
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    try:
        return [f"localhost:{each.getsockname()[1]}" for each in sockets]
    finally:
        for each in sockets:
            each.close()


@pytest.fixture(scope="module", params=["mirrored", "workers"])
def found(request, tmp_path_factory):
    """What was compared, by each process."""
    folder = tmp_path_factory.mktemp(request.param)
    words = "tests.support.strategies", request.param, folder
    if request.param == "mirrored":
        finished([start(*words)])
    else:
        together(*words)
    texts = [path.read_text() for path in sorted(folder.glob("?.json"))]
    return folder, [json.loads(text) for text in texts]


def test_steps_are_those_of_one_device(found):
    _, processes = found
    for process in processes:
        for compared in (process["fit"], process["train"]):
            assert compared["losses"] < TOLERANCE and compared["weights"] < TOLERANCE
            assert compared["moved"] > 1e-3
        assert process["apart"] > 1e-3  # what is compared can differ


def test_a_killed_run_goes_on_to_the_bit(found):
    _, processes = found
    for process in processes:
        assert process["train resumed"] == 0.0
        assert process["killed"] in ("killed", "process 0 of 2 failed: killed")
    assert processes[0]["resumed at"] == 4  # a callback that fails leaves a checkpoint
    assert all("resumed at" not in process for process in processes[1:])


def test_one_folder_is_written(found):
    folder, _ = found
    for name in ("trained", "killed"):
        assert (folder / name / "model.safetensors").is_file()
        assert not (folder / name / "checkpoint").exists()


def test_what_cannot_be_is_refused(found):
    _, processes = found
    scope = "model and optimizer must be made within the scope of the strategy"
    for process in processes:
        assert scope in process["refused optimizer"] and scope in process["refused model"]
        assert "must not accumulate gradients" in process["refused accumulation"]


def test_dualrag_train_makes_a_run_of_two_processes(tmp_path):
    import rag_tf

    tokenizers = small_tokenizers(tmp_path)
    model = rag_tf.RagTokenForGeneration(small_config(tokenizers))
    words = train_command(tmp_path, model, tokenizers)
    together("rag_core.cli", *words, "--backend", "tf", "--batch-size", "2")
    tuned = tmp_path / "tuned"
    assert (tuned / "model.safetensors").is_file() and not (tuned / "checkpoint").exists()
    assert json.loads((tuned / "training.json").read_text())["run"]["processes"] == 2
