"""Records of answers compared."""

from typing import Any

import pytest


def same(record: Any, other: Any) -> bool:
    """Whether two records agree: numbers to what two processes, or two batches, may differ by."""
    if isinstance(record, dict):
        return record.keys() == other.keys() and all(same(record[k], other[k]) for k in record)
    if isinstance(record, list):
        return len(record) == len(other) and all(map(same, record, other))
    if isinstance(record, float):
        return record == pytest.approx(other, rel=1e-4, abs=1e-6)
    return record == other
