"""What a process does of the tests of several: `python -m tests.support.torch_processes JOB FOLDER`,
with a launcher's environment.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from rag_core.tokenization.rag import RagTokenizer
from rag_torch import BertEncoder, TrainingConfig, train, train_files
from rag_torch.training import _Run
from tests.support import golden_torch
from tests.support.training_models import EXAMPLES, SETTINGS, Fresh, small_tokenizers, weights

ROOT = Path(__file__).parents[2]
CONTRASTIVE = {"retriever_loss": "contrastive", "hard_negatives": 1}
BOTH = {"context_encoder": "all", "answer_loss_weight": 0.0}
# name -> head, whether the model has a context encoder, settings
CASES = {
    "token": ("token", False, {}),
    "sequence": ("sequence", False, {}),
    "emdr2": ("token", False, {"retriever_loss": "emdr2", "retriever_loss_weight": 0.5}),
    "pdist": ("token", False, {"retriever_loss": "pdist", "answer_loss_weight": 0.0}),
    "contrastive": ("token", False, CONTRASTIVE),
    "contrastive, both encoders": ("token", True, {**CONTRASTIVE, **BOTH}),
    "context encoder": ("token", True, {"context_encoder": "all"}),
    "checkpointing": ("token", False, {"gradient_checkpointing": True}),
}


def models(folder, dropout=0.0):
    """Two models that start anew each time, the second with a context encoder, in float64."""
    folder.mkdir(exist_ok=True)
    tokenizers = small_tokenizers(folder)
    plain, twin = (Fresh(golden_torch, tokenizers, dropout, "float64") for _ in range(2))
    encoder = BertEncoder(twin.model.config.question_encoder).double()
    twin.model.set_context_encoder_for_training(encoder)
    twin.retriever.set_ctx_encoder_tokenizer(tokenizers[0])
    twin.start = weights(twin.model)
    return plain, twin


def made(case, fresh, batch_size, **options):
    """Gradients of the first step, and the log and weights of a run of three."""
    head, _, settings = CASES[case]
    config = TrainingConfig(
        steps=3,
        accumulation=2,
        **{**SETTINGS, "log_every": 1, "evaluate_every": 2, "batch_size": batch_size, **settings},
    )
    gradients = {}
    end_step = _Run.end_step

    def seen(run):
        for name, parameter in run.parameters.items():
            if not run.report.steps and parameter.grad is not None:
                gradients[name] = parameter.grad.numpy().copy()
        return end_step(run)

    _Run.end_step = seen
    try:
        model = fresh(head)
        report = _Run.train(model, fresh.retriever, EXAMPLES, config, validation=EXAMPLES[:5],
                            progress=False, **options)  # fmt: skip
    finally:
        _Run.end_step = end_step
    return report, gradients, weights(model)


def job_same(folder, rank):
    """All cases; the first process writes what came out."""
    plain, twin = models(folder / str(rank))
    arrays, logs = {}, {}
    for case, (_, has_encoder, _) in CASES.items():
        report, gradients, final = made(case, twin if has_encoder else plain, 2)
        logs[case] = report.history
        arrays |= {f"{case}/gradient/{name}": value for name, value in gradients.items()}
        arrays |= {f"{case}/weight/{name}": value for name, value in final.items()}
    np.savez(folder / f"{rank}.npz", **arrays)
    (folder / f"{rank}.json").write_text(json.dumps(logs))


def job_anew(folder, rank):
    """A run that embeds passages anew; which files of its folder each process opened to write."""
    written = []

    def hook(event, arguments):
        if event == "open" and str(arguments[0]).startswith(str(folder / "tuned")):
            flags = arguments[2]
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                written.append(str(arguments[0]))
        if event in ("os.rename", "os.remove", "os.mkdir", "os.link"):
            if str(folder / "tuned") in " ".join(map(str, arguments)):
                written.append(event)

    sys.addaudithook(hook)
    config = TrainingConfig(steps=8, context_encoder="projection", reindex_every=2, overretrieve=2,
                            best_metric="exact_match", evaluate_every=4, tensorboard=True,
                            **SETTINGS)  # fmt: skip
    files = [folder / name for name in ("qa.jsonl", "model", "kb", "tuned")]
    report = train_files(*files, config, validation=files[0], progress=False)
    ages = [line["index_age"] for line in report.history]
    (folder / f"{rank}.json").write_text(json.dumps({"ages": ages, "written": written}))


def asked(examples, tokenizers):
    """Questions and answers as a model's inputs."""
    return RagTokenizer(*tokenizers)(
        [example.question for example in examples],
        text_target=[example.answers[0] for example in examples],
        padding=True,
        return_tensors="pt",
    )


def job_loop(folder, rank):
    """Two steps of a loop as accelerate's pages show it, each process with half of the questions."""
    from accelerate import Accelerator, DistributedDataParallelKwargs

    plain, _ = models(folder / str(rank))
    fitted = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[fitted])
    optimizer = torch.optim.SGD(plain().parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(plain.model, optimizer)
    assert type(model).__name__ == "DistributedDataParallel"
    parts = plain.retriever.question_encoder_tokenizer, plain.retriever.generator_tokenizer
    inputs = asked(EXAMPLES[5 * rank : 5 * rank + 5], parts)
    for _ in range(2):
        accelerator.backward(model(**inputs, reduce_loss=True).loss)
        optimizer.step()
        optimizer.zero_grad()
    np.savez(folder / f"{rank}.npz", **weights(accelerator.unwrap_model(model)))
    accelerator.end_training()


def job_end(folder, rank):
    """A run of which one process is killed at its third step: the first one where there are two."""
    plain, _ = models(folder / str(rank))
    plain()

    def end(progress):
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    config = TrainingConfig(steps=1000, **SETTINGS)
    train(plain.model, plain.retriever, EXAMPLES, config, callbacks=[end], progress=False)


@contextmanager
def started(job, folder, count=2):
    """Starts the processes of a job without a launcher."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                   "WORLD_SIZE": str(count), "PYTHONPATH": str(ROOT)}  # fmt: skip
    command = [sys.executable, "-m", "tests.support.torch_processes", job, str(folder)]
    processes = [
        subprocess.Popen(command, env={**environment, "RANK": str(rank)}, cwd=ROOT,
                         stderr=subprocess.PIPE, text=True)
        for rank in range(count)
    ]  # fmt: skip
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def ends(job, folder, count=2):
    """Exit status and stderr of each process of a job."""
    with started(job, folder, count) as processes:
        texts = [process.communicate(timeout=900)[1] for process in processes]
        return [(process.returncode, text) for process, text in zip(processes, texts, strict=True)]


if __name__ == "__main__":
    globals()[f"job_{sys.argv[1]}"](Path(sys.argv[2]), int(os.environ["RANK"]))
