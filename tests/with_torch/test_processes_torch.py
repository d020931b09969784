"""Training in several processes of PyTorch: real ones, over gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import rag_torch
from rag_core import KnowledgeBase
from rag_core.cli import app
from rag_core.training.state import CHECKPOINT
from tests.support.torch_processes import CASES, ROOT, asked, ends, made, models
from tests.support.training_models import (
    EXAMPLES,
    Fresh,
    live_files,
    small_tokenizers,
    train_command,
    weights,
)

pytestmark = pytest.mark.beyond


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes made of all cases."""
    folder = tmp_path_factory.mktemp("two")
    for status, text in ends("same", folder):
        assert status == 0, text
    return [
        (np.load(folder / f"{rank}.npz"), json.loads((folder / f"{rank}.json").read_text()))
        for rank in range(2)
    ]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return models(tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("case", CASES)
def test_gradients_losses_and_weights_are_those_of_one_process_with_the_same_batch(
    two, fresh, case
):
    report, gradients, final = made(case, fresh[CASES[case][1]], 4)
    for arrays, logs in two:
        names = {name.split("/", 2)[2] for name in arrays if name.startswith(f"{case}/gradient/")}
        assert names == set(gradients)
        assert max(np.abs(gradient).max() for gradient in gradients.values()) > 1e-3
        for name, value in gradients.items():
            got = arrays[f"{case}/gradient/{name}"]
            np.testing.assert_allclose(got, value, rtol=1e-6, atol=1e-10, err_msg=name)
        for name, value in final.items():
            got = arrays[f"{case}/weight/{name}"]
            np.testing.assert_allclose(got, value, rtol=1e-6, atol=1e-8, err_msg=name)
        assert len(logs[case]) == len(report.history) == 3
        for line, wanted in zip(logs[case], report.history, strict=True):
            left_out = {"tokens_per_second": 0.0}
            if "retriever_loss" in line:  # in a validation it weighs as in batches of this size
                left_out["validation_loss"] = 0.0
            line, wanted = ({**each, **left_out} for each in (line, wanted))
            assert line == pytest.approx(wanted, rel=1e-6)


def test_the_comparison_notices_half_of_the_questions(two, fresh):
    _, gradients, _ = made("token", fresh[0], 2)
    ratios = [
        np.abs(two[0][0][f"token/gradient/{name}"] - value).max() / np.abs(value).max()
        for name, value in gradients.items()
        if np.abs(value).max() > 1e-6
    ]
    assert min(ratios) > 1e-3


def test_a_loop_with_accelerate_learns_what_one_process_does(fresh, tmp_path):
    for status, text in ends("loop", tmp_path):
        assert status == 0, text
    plain = fresh[0]
    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.zero_grad()  # of the runs before
    parts = plain.retriever.question_encoder_tokenizer, plain.retriever.generator_tokenizer
    for _ in range(2):
        halves = (asked(EXAMPLES[start : start + 5], parts) for start in (0, 5))
        sum(model(**half, reduce_loss=True).loss / 2 for half in halves).backward()
        optimizer.step()
        optimizer.zero_grad()
    for rank in range(2):
        with np.load(tmp_path / f"{rank}.npz") as arrays:
            for name, value in weights(model).items():
                np.testing.assert_allclose(arrays[name], value, rtol=1e-6, atol=1e-10, err_msg=name)


def test_the_first_process_writes_and_embeds_anew_and_all_search_what_it_made(tmp_path):
    tokenizers = small_tokenizers(tmp_path)
    live_files(tmp_path, rag_torch, tokenizers)
    for status, text in ends("anew", tmp_path):
        assert status == 0, text
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["written"] and second["written"] == []
    assert first["ages"] == second["ages"] and max(first["ages"]) >= 2
    tuned = tmp_path / "tuned"
    assert len(KnowledgeBase.open(tuned / "knowledge_base")) == len(
        KnowledgeBase.open(tmp_path / "kb")
    )
    assert not (tuned / CHECKPOINT).exists() and list((tuned / "tensorboard").iterdir())
    rag_torch.RagTokenForGeneration.from_pretrained(tuned)


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip


def into(out, words):
    """The words of a command that writes to another folder."""
    return [str(out) if word.endswith("/tuned") else word for word in words]


def launched(launcher, words, out):
    """A launcher's process that trains into `out`."""
    command = [*launcher, "-m", "rag_torch.train", *into(out, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def worker(launcher, rank):
    """The process number of one of a launcher's processes."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if parent == launcher.pid and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise AssertionError("no such process")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Of a `dualrag train` of forty steps, with dropout, and where it writes."""
    from tests.support import golden_torch

    folder = tmp_path_factory.mktemp("command")
    tokenizers = small_tokenizers(folder)
    words = train_command(folder, Fresh(golden_torch, tokenizers, 0.1)(), tokenizers)[1:]
    words[words.index("--steps") + 1] = "40"
    settings = {"batch-size": 2, "save-every": 4, "log-every": 10, "evaluate-every": 20}
    return words + [text for name, value in settings.items() for text in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """The folder of the run that nobody ends, by accelerate's launcher."""
    out = tmp_path_factory.mktemp("accelerate") / "out"
    launcher = launched(ACCELERATE, words, out)
    text = "".join(launcher.communicate(timeout=900))
    assert launcher.returncode == 0, text
    assert text.count("Ask it:") == 1  # one of the two speaks
    assert "40 steps of 4 questions" in text and "on 2 processes with torch and the CPU" in text
    return out


def test_a_process_whose_other_was_killed_says_so(tmp_path):
    (first, _), (second, text) = ends("end", tmp_path)
    assert first == -signal.SIGKILL and second == 1
    assert "ProcessLost: process 1 of 2 can't reach another one, which has ended or hangs" in text
    assert "the same command goes on from the last checkpoint" in text


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
def test_a_killed_process_ends_the_others_and_the_same_command_goes_on(words, whole, tmp_path):
    out = tmp_path / "out"
    launcher = launched(TORCHRUN, words, out)
    while not (out / CHECKPOINT).exists():
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.02)
    os.kill(worker(launcher, 1), signal.SIGKILL)
    text = "".join(launcher.communicate(timeout=900))
    assert launcher.returncode == 1
    assert "Signal 9 (SIGKILL)" in text
    # torchrun may have been first to end the other
    assert "process 0 of 2 can't reach another one" in text or "SIGTERM" in text, text
    assert (out / CHECKPOINT).is_file() and not (out / "config.json").exists()
    alone = CliRunner().invoke(app, ["train", "--backend", "torch", *into(out, words)])
    assert alone.exit_code == 2 and "processes: 2 there, 1 now" in alone.output
    again = launched(TORCHRUN, words, out)
    text = "".join(again.communicate(timeout=900))
    assert again.returncode == 0, text
    assert "Goes on from step" in text
    for name in ("model.safetensors", "config.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
