"""Folders laid out as repositories of the public hub are: their file names and configurations, small contents."""

from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KINDS = {"exact": "HNSW128_SQ8", "compressed": "IVF4096_HNSW128_PQ128"}
FACTORIES = {"exact": "HNSW16,SQ8", "compressed": "IVF4_HNSW8,PQ8np"}


def write_wiki_dpr(folder: Path, rows: int = 628, dummy_rows: int = 40, size: int = 16) -> dict[str, np.ndarray]:
    """Write `facebook/wiki_dpr` as of March 2024: 345 parquet files and four faiss files, none of them a dummy.

    Returns:
        The vectors of "nq" and "multiset", (rows, size); the dummy data set is their first `dummy_rows` rows.
    """
    folder.mkdir(parents=True)
    for name in ("README.md", "wiki_dpr.py"):
        (folder / name).touch()
    vectors = {
        name: np.random.default_rng(seed).standard_normal((rows, size)).astype(np.float32)
        for seed, name in enumerate(("nq", "multiset"))
    }
    vectors["no_embeddings"] = None
    for name, shards in (("nq", 157), ("multiset", 157), ("no_embeddings", 28)):
        write_shards(folder / "data" / "psgs_w100" / name, shards, rows, vectors[name])
        write_shards(folder / "data" / "psgs_w100" / f"dummy.{name}", 1, dummy_rows, vectors[name])
    del vectors["no_embeddings"]
    for name, kind in ((name, kind) for name in vectors for kind in KINDS):
        write_faiss_file(
            vectors[name], FACTORIES[kind], folder / "index" / f"psgs_w100.{name}.{KINDS[kind]}-IP-train.faiss"
        )
    return vectors


def write_shards(folder: Path, shards: int, rows: int, vectors: np.ndarray | None) -> None:
    folder.mkdir(parents=True)
    for shard, part in enumerate(np.array_split(np.arange(rows), shards)):
        columns = {
            "id": [str(row + 1) for row in part],
            "text": [f"text {row}: Paris has {row} people." for row in part],
            "title": [f'"Title {row}"' for row in part],
        }
        if vectors is not None:
            columns["embeddings"] = pa.array(list(vectors[part]), pa.list_(pa.float32()))
        pq.write_table(pa.table(columns), folder / f"train-{shard:05d}-of-{shards:05d}.parquet")


def write_faiss_file(vectors: np.ndarray, factory: str, path: Path) -> None:
    faiss.omp_set_num_threads(1)
    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    if "IVF" in factory:
        index.nprobe, index.cp.niter, index.pq.cp.niter = 4, 2, 2
    index.train(vectors)
    index.add(vectors)
    path.parent.mkdir(exist_ok=True)
    faiss.write_index(index, str(path))
