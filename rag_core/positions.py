"""Integer tables that both backends look up: T5's relative-position buckets, built once, in NumPy.

Both frameworks read the same table, because the order of arithmetic decides which bucket a distance
on a border falls into (Raffel et al. 2019, arXiv 1910.10683, section 2.1).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

# MPNet (arXiv 2004.09297) has T5's buckets, and this fixed distance.
MPNET_DISTANCE = 128


@lru_cache(maxsize=64)
def t5_distance_buckets(
    length: int, num_buckets: int, max_distance: int, bidirectional: bool
) -> np.ndarray:
    """The bucket of every relative position key - query from -(length - 1) to length - 1.

    Half of the (remaining) buckets hold one distance each, the other half grow logarithmically up
    to `max_distance`; everything beyond shares the last. With `bidirectional` (the encoder) keys to
    the right have buckets of their own, without (the decoder) they share bucket 0 with the query's
    own position.

    Args:
        length: number of positions.
        num_buckets: buckets in all.
        max_distance: distance from which all share the last bucket.
        bidirectional: whether keys to the right are told apart.

    Returns:
        int64 (2 * length - 1,), read-only; entry i belongs to the relative position i - (length -
        1).

    Raises:
        ValueError: too few buckets, or a `max_distance` that leaves none to grow into.
    """
    needed = 2
    if bidirectional:  # as many for each side
        needed = 4
    if num_buckets < needed or max_distance <= num_buckets // needed:
        raise ValueError(
            f"relative_attention_num_buckets must be at least {needed} and "
            f"relative_attention_max_distance above {max(num_buckets, needed) // needed}, got "
            f"{num_buckets} and {max_distance}"
        )
    relative = np.arange(-(length - 1), length, dtype=np.int64)
    if bidirectional:
        num_buckets //= 2
        start = np.where(relative > 0, num_buckets, 0)
        distance = np.abs(relative)
    else:
        start = np.zeros_like(relative)
        distance = np.maximum(-relative, 0)
    exact = num_buckets // 2
    # float32, in this order: distance 64 of 128 lies on a border and flips with another order of
    # arithmetic.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    steps = ratio / np.float32(np.log(max_distance / exact)) * np.float32(num_buckets - exact)
    far = np.minimum(exact + steps.astype(np.int64), num_buckets - 1)
    buckets = start + np.where(distance < exact, distance, far)
    buckets.flags.writeable = False
    return buckets


def t5_buckets(
    query_length: int,
    key_length: int,
    num_buckets: int,
    max_distance: int,
    bidirectional: bool,
    first: int = 0,
) -> np.ndarray:
    """The bucket of each pair of a query and a key position.

    Args:
        query_length: T, number of queries.
        key_length: L, number of keys, from position 0.
        num_buckets: see `t5_distance_buckets`.
        max_distance: see `t5_distance_buckets`.
        bidirectional: see `t5_distance_buckets`.
        first: position of the first query.

    Returns:
        int64 (T, L).
    """
    length = max(first + query_length, key_length)
    table = t5_distance_buckets(length, num_buckets, max_distance, bidirectional)
    relative = np.arange(key_length)[None, :] - np.arange(first, first + query_length)[:, None]
    return table[relative + length - 1]
