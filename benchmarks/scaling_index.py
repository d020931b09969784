"""Search time against index size, on drawn vectors that lie in clusters as real ones do.

Letters: R rows, D vector size.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rag_core.retrieval.faiss_files import build_faiss, read_faiss, write_faiss

D, _CENTRES, _BLOCK, _QUERIES = 384, 64, 10_000, 32


def blocks(rows: int, seed: int = 0) -> Iterator[np.ndarray]:
    """R unit vectors around a few dozen centres, (r, D) float32 at a time.

    A larger R begins with the smaller's.
    """
    centres = np.random.default_rng(7).standard_normal((_CENTRES, D), dtype=np.float32)
    for number, start in enumerate(range(0, rows, _BLOCK)):
        rng = np.random.default_rng([seed, number])
        some = rng.standard_normal((min(_BLOCK, rows - start), D), dtype=np.float32)
        some += centres[rng.integers(_CENTRES, size=len(some))]
        yield some / np.linalg.norm(some, axis=1, keepdims=True)


class Searches:
    """Builds each index at its first use; what takes long to build is kept in `cache`.

    Args:
        cache: a folder.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.indexes: dict[tuple[str, int], Any] = {}
        self.queries = next(blocks(_QUERIES, seed=1))  # (32, D)

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Seconds of one search for 5 neighbours of one query, over 32 queries one after
        another.
        """
        index = self.index(job["index"], job["rows"])
        start = time.perf_counter()
        found = [index.search(query[None], 5)[1] for query in self.queries]
        seconds = (time.perf_counter() - start) / _QUERIES
        return {"seconds": seconds, "tokens": str(int(np.sum(found)))}

    def index(self, kind: str, rows: int) -> Any:
        """The index, as `build_faiss` makes it but for how broadly graphs are built, which no
        search sees.
        """
        if (kind, rows) not in self.indexes:
            file = self.cache / f"{kind}-{rows}.faiss"
            if kind != "flat" and file.is_file():
                index = read_faiss(file)
            else:
                index = build_faiss(blocks(rows), rows, D, kind, ef_construction=40)
                if kind != "flat":
                    self.cache.mkdir(parents=True, exist_ok=True)
                    write_faiss(index, file)
            self.indexes[kind, rows] = index
        return self.indexes[kind, rows]
