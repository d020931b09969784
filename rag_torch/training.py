"""PyTorch's share of joint fine-tuning; the run itself is `rag_core.training.TrainingRun`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rag_core.backends import to_tensor
from rag_core.training import (
    Batch,
    ForwardPass,
    Processes,
    TrainingConfig,
    TrainingRun,
    parameter_groups,
)
from rag_torch.contexts import Contexts, table_size
from rag_torch.processes import Gathered, Group, joined

# Devices whose kernels torch 2.4 has.
_FUSED = ("cpu", "cuda")
_MOMENTS = ("exp_avg", "exp_avg_sq")
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class _Run(TrainingRun):
    backend = "torch"
    return_tensors = "pt"
    contexts_class = Contexts
    table_size = staticmethod(table_size)
    optimizer: torch.optim.AdamW
    # the forward pass under DistributedDataParallel, with other processes
    _shared: DistributedDataParallel | None = None

    @classmethod
    def joined(cls) -> contextlib.AbstractContextManager[Processes]:
        return joined()

    @staticmethod
    def default_device() -> str:
        if not torch.cuda.is_available():
            return "cpu"
        if "LOCAL_RANK" in os.environ:  # a launcher's: a GPU for each process
            return f"cuda:{os.environ['LOCAL_RANK']}"
        return "cuda"

    @property
    def on_gpu(self) -> bool:
        return self.model.device.type == "cuda"

    def tensor(self, array: np.ndarray) -> Tensor:
        return super().tensor(array).to(self.model.device)

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return self.model.named_parameters()

    def still(self) -> set[str]:
        return {name for name, value in self.model.named_parameters() if not value.requires_grad}

    @contextlib.contextmanager
    def prepared(self) -> Iterator[None]:
        devices = []
        if self.on_gpu:
            devices.append(self.model.device)
        with torch.random.fork_rng(devices=devices), _learning(self.model, self.parameters):
            torch.manual_seed(self.processes.seed(self.config.seed))
            self.optimizer = make_optimizer(self.parameters, self.config)
            in_fp16 = self.config.mixed_precision == "fp16"
            self.scaler = torch.amp.GradScaler("cuda", enabled=in_fp16)
            self._dropout_on()
            if self.processes.count > 1:
                self._shared = _shared(self)
            yield
        self._shared = None

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        self.model.eval()
        with torch.no_grad():
            yield
        self._dropout_on()

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        encoder = self.model.rag.ctx_encoder
        modes = [(part, part.training) for part in encoder.modules()]
        encoder.eval()
        try:
            yield
        finally:
            for part, mode in modes:
                part.training = mode

    def _dropout_on(self) -> None:
        """Dropout where something is trained: a part that does not learn is not shaken."""
        self.model.train()
        parts = {
            self.model.rag.generator: self.config.generator,
            self.model.question_encoder: self.config.question_encoder,
            self.model.rag.ctx_encoder: self.config.context_encoder,
        }
        for module, share in parts.items():
            if module is not None and share != "all":
                module.eval()

    def start_step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def learn(self, batch: Batch, tokens: int, seed: tuple[int, ...]) -> ForwardPass:
        if self._shared is None:
            with self._precision():
                forward = self.forward(batch)
            self.scaler.scale(forward.loss / tokens).backward()
            return forward
        with self._reachable(), contextlib.ExitStack() as stack:
            if not batch.ends_step:
                stack.enter_context(self._shared.no_sync())
            with self._precision():
                loss = self._shared(batch)
            # The mean of all processes' gradients is taken; the step's gradient is their sum.
            share = loss * (self.processes.count / tokens)
            self.scaler.scale(share).backward()
        return self._shared.module.made

    def _reachable(self) -> contextlib.AbstractContextManager[None]:
        if isinstance(self.processes, Group):
            return self.processes.reachable()
        return contextlib.nullcontext()

    def gather(self, vectors: Tensor) -> Tensor:
        if self.processes.count == 1:
            return vectors
        gathered: Tensor = Gathered.apply(vectors)
        return gathered

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.mixed_precision is None:
            return contextlib.nullcontext()
        half = _HALF[self.config.mixed_precision]
        return torch.autocast(self.model.device.type, half)

    def end_step(self) -> bool:
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        finite = bool(norm.isfinite())
        if finite or self.scaler.is_enabled():  # a loss scale passes over such steps by itself
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return finite

    def contexts(self, batch: Batch, learns: bool) -> Contexts:
        # Without gradients frozen encoders keep no activations, whoever wrote them.
        frozen = self.config.question_encoder == self.config.context_encoder == "frozen"
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            return super().contexts(batch, learns)

    def parameter_state(self, name: str) -> dict[str, Tensor]:
        parameter = self.parameters[name]
        state = self.optimizer.state[parameter]
        if not state:  # all steps so far were passed over
            state = {kind: torch.zeros_like(parameter) for kind in _MOMENTS}
            state["step"] = torch.zeros((), dtype=torch.float32)
        moments = {kind: state[kind] for kind in _MOMENTS}
        return {"model": parameter, **moments, "step": state["step"]}

    def set_parameter_state(self, name: str, state: dict[str, np.ndarray]) -> None:
        parameter = self.parameters[name]
        tensors = {kind: to_tensor(array, "pt") for kind, array in state.items()}
        with torch.no_grad():
            parameter.copy_(tensors.pop("model"))
        steps = tensors.pop("step")
        moments = {kind: tensor.to(parameter.device) for kind, tensor in tensors.items()}
        # The fused kernel reads the step count where the weights are, the others on the CPU.
        if self.optimizer.defaults["fused"]:
            steps = steps.to(parameter.device)
        self.optimizer.state[parameter] = {"step": steps, **moments}

    def random_states(self) -> dict[str, Tensor]:
        states = {"rng.cpu": torch.get_rng_state()}
        if self.on_gpu:
            states["rng.cuda"] = torch.cuda.get_rng_state(self.model.device)
        return states

    def set_random_states(self, arrays: dict[str, np.ndarray]) -> None:
        torch.set_rng_state(torch.from_numpy(arrays["rng.cpu"]))
        if "rng.cuda" in arrays and torch.cuda.is_available():
            state = torch.from_numpy(arrays["rng.cuda"])
            torch.cuda.set_rng_state(state, self.model.device)


train = _Run.train
train_files = _Run.train_files
measure_files = _Run.measure_files


def make_optimizer(
    parameters: dict[str, nn.Parameter], config: TrainingConfig
) -> torch.optim.AdamW:
    """AdamW over the groups of `rag_core.training.parameter_groups`.

    Fused where the device has that kernel: one pass over weights, gradients and moments instead of
    seven.
    """
    groups = [
        {**group, "params": list(group["params"].values())}
        for group in parameter_groups(parameters, config)
    ]
    fused = all(parameter.device.type in _FUSED for parameter in parameters.values())
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=fused
    )


class _Pass(nn.Module):
    """A run's forward pass as a module, which is what DistributedDataParallel takes."""

    made: ForwardPass

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self.model = run.model
        self._forward = run.forward

    def forward(self, batch: Batch) -> Tensor:
        self.made = self._forward(batch)
        return self.made.loss


def _shared(run: _Run) -> DistributedDataParallel:
    """All processes begin with the first one's weights; some of which, such as those of a pooling
    that nobody asks for, have no part in the loss.
    """
    return DistributedDataParallel(
        _Pass(run),
        find_unused_parameters=True,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )


@contextlib.contextmanager
def _learning(model: Any, parameters: dict[str, nn.Parameter]) -> Iterator[None]:
    """Only these of a model's parameters have gradients; every flag as before at the end."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in parameters)
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
