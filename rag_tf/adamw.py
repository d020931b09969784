"""AdamW in PyTorch's arithmetic, and the loss scale of float16."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

# torch.optim.AdamW's.
_EPSILON = 1e-8
# As torch's GradScaler: where it starts, and how many good steps it waits before it doubles.
_FIRST_SCALE = 65536.0
_PATIENCE = 2000


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101), in PyTorch's
    arithmetic.

    Args:
        groups: `{"params": {name: variable}, "peak": ..., "weight_decay": ...}` each; `group["lr"]`
            is set before each step, from `peak`.
        lr: learning rate of groups without one.
        betas: decay of the first and second moments.

    Attributes:
        steps: how often each parameter was updated, by name.
        exp_avg: first moments by name.
        exp_avg_sq: second moments by name.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        self.param_groups = [{"lr": lr, **group} for group in groups]
        self.betas = betas
        self.parameters: dict[str, tf.Variable] = {}
        self._decaying: set[str] = set()
        for group in groups:
            self.parameters |= group["params"]
            if group["weight_decay"]:
                self._decaying |= set(group["params"])
        self.steps = dict.fromkeys(self.parameters, 0)
        self.exp_avg = self._zeros()
        self.exp_avg_sq = self._zeros()
        self._update = tf.function(self._updated, autograph=False)
        self._square = tf.function(_square_sum, autograph=False)

    def clip_factor(
        self, gradients: dict[str, tf.Tensor], max_norm: float, scale: float = 1.0
    ) -> float | None:
        """What `step` is to multiply by: 1 / `scale`, and less where the gradients' norm is then
        above `max_norm`.

        Returns:
            The factor, or None where a gradient is infinite or NaN.
        """
        norm = math.sqrt(float(self._square(list(gradients.values())))) / scale
        if not math.isfinite(norm):
            return None
        return min(1.0, max_norm / (norm + 1e-6)) / scale

    def step(self, gradients: dict[str, tf.Tensor], factor: float = 1.0) -> None:
        """Move each parameter that has a (dense) gradient, by name.

        Args:
            gradients: name -> gradient.
            factor: what all of them are multiplied by.
        """
        numbers = {}
        for group in self.param_groups:
            for name in gradients.keys() & group["params"].keys():
                self.steps[name] += 1
                first, second = (1.0 - beta ** self.steps[name] for beta in self.betas)
                kept = 1.0 - group["lr"] * group["weight_decay"]
                # The second moment's correction, on both sides of the quotient instead of under its
                # root.
                root = math.sqrt(second)
                pace = group["lr"] / first * root
                numbers[name] = (kept, pace, _EPSILON * root, factor)
        if numbers:
            # one small tensor for all parameters: each would be a copy to the device of its own
            rows = tf.constant([numbers[name] for name in sorted(gradients)], tf.float64)
            self._update(gradients, rows)

    def _zeros(self) -> dict[str, tf.Variable]:
        return {
            name: tf.Variable(tf.zeros_like(parameter), trainable=False)
            for name, parameter in self.parameters.items()
        }

    def _updated(self, gradients: dict[str, tf.Tensor], numbers: tf.Tensor) -> None:
        """In one graph: `numbers` (parameters, 4) are what decay leaves, the pace, epsilon, the
        gradient's factor.
        """
        # A graph is traced operation by operation: as few a parameter as there can be.
        shared = {
            dtype: (
                tf.unstack(tf.reshape(tf.cast(numbers, dtype), [-1]), 4 * len(gradients)),
                tf.zeros((), dtype),
                *(tf.constant(beta, dtype) for beta in self.betas),
            )
            for dtype in {self.parameters[name].dtype for name in gradients}
        }
        for row, name in enumerate(sorted(gradients)):
            parameter = self.parameters[name]
            scalars, zero, beta1, beta2 = shared[parameter.dtype]
            kept, pace, epsilon, factor = scalars[4 * row : 4 * row + 4]
            if name in self._decaying:
                # By its handle, as all below: a replica's own, whatever strategy it belongs to.
                decayed = tf.raw_ops.Mul(x=parameter.read_value(), y=kept)
                tf.raw_ops.AssignVariableOp(resource=parameter.handle, value=decayed)
            # One pass over the four arrays; operation by operation it would be a dozen.
            tf.raw_ops.ResourceApplyAdam(
                var=parameter.handle,
                m=self.exp_avg[name].handle,
                v=self.exp_avg_sq[name].handle,
                beta1_power=zero,
                beta2_power=zero,
                lr=pace,
                beta1=beta1,
                beta2=beta2,
                epsilon=epsilon,
                grad=tf.raw_ops.Mul(x=gradients[name], y=factor),
            )


def _square_sum(gradients: list[tf.Tensor]) -> tf.Tensor:
    halves = [
        tf.raw_ops.Cast(x=tf.raw_ops.L2Loss(t=gradient), DstT=tf.float64) for gradient in gradients
    ]
    return 2.0 * tf.add_n(halves)


class LossScale:
    """Keeps float16's gradients in range: the loss is multiplied by a number that adapts (as
    torch's GradScaler).

    Args:
        enabled: False leaves the loss alone.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.value = _FIRST_SCALE if enabled else 1.0
        self.good_steps = 0

    def update(self, finite: bool) -> None:
        """After a step: halve after an overflow, double after 2000 steps without one."""
        if not self.enabled:
            return
        if not finite:
            self.value *= 0.5
            self.good_steps = 0
            return
        self.good_steps += 1
        if self.good_steps == _PATIENCE:
            self.value *= 2.0
            self.good_steps = 0

    def state_dict(self) -> dict[str, float]:
        """What must be kept to go on."""
        if not self.enabled:
            return {}
        return {"scale": self.value, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """The inverse of `state_dict`."""
        if self.enabled and state:
            self.value = float(state["scale"])
            self.good_steps = int(state["good_steps"])
