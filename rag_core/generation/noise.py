"""Sampling noise that is the same in every framework: counter-based, keyed by (seed, row, step).

Adding Gumbel noise to log-probabilities and taking the largest draws from the distribution; taking
the k largest draws k without replacement (Kool et al. 2019, https://arxiv.org/abs/1903.06059).
"""

from __future__ import annotations

import numpy as np


def gumbel_noise(seed: int, rows: int, step: int, vocab_size: int) -> np.ndarray:
    """Standard Gumbel noise for one step of sampling.

    Args:
        seed: any whole number; 64 bits of it count.
        rows: number of sequences drawn for.
        step: index of the step, from 0.
        vocab_size: V.

    Returns:
        (rows, V) float32; a row depends on its index, the seed and the step alone.
    """
    noise = np.empty((rows, vocab_size), dtype=np.float64)
    for row in range(rows):
        key = np.array([seed & 0xFFFFFFFFFFFFFFFF, row], dtype=np.uint64)
        counter = np.array([0, step, 0, 0], dtype=np.uint64)
        bits = np.random.Philox(key=key, counter=counter).random_raw(vocab_size)
        # 52 bits and a half lie strictly inside (0, 1): no infinite noise
        noise[row] = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return (-np.log(-np.log(noise))).astype(np.float32)
