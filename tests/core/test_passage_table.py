"""Passages read straight from Arrow files, without `datasets`, are those that `datasets` reads."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rag_core.retrieval.index import FaissIndex
from rag_core.retrieval.passage_files import read_passages, write_passages
from rag_core.retrieval.passage_table import PassageTable, map_passages

datasets = pytest.importorskip("datasets")
ROOT = Path(__file__).parents[2]


def columns(rows: int) -> dict:
    return {
        "id": list(range(rows)),
        "title": [f"Title {row}" for row in range(rows)],
        "text": [f"Text of {row}, ünicode" for row in range(rows)],
        "embeddings": np.eye(rows, 8, dtype=np.float32).tolist(),
    }


@pytest.fixture(params=["ours", "save_to_disk"])
def folder(request, tmp_path):
    data = datasets.Dataset.from_dict(columns(7))
    if request.param == "ours":
        write_passages(data, tmp_path / "passages", max_shard_rows=3)
    else:
        data.save_to_disk(str(tmp_path / "passages"), num_shards=2)
    return tmp_path / "passages"


def test_rows_and_vectors_are_those_of_datasets(folder) -> None:
    import faiss

    table, data = map_passages(folder), read_passages(folder)
    assert isinstance(table, PassageTable) and len(table) == len(data) == 7
    assert table.column_names == data.column_names and table.list_indexes() == []
    flat = faiss.IndexFlatIP(8)
    flat.add(np.eye(7, 8, dtype=np.float32))
    one, other = FaissIndex(table, flat), FaissIndex(data, flat)
    queries = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    ids, vectors = one.get_top_docs(queries, 4)
    expected, same = other.get_top_docs(queries, 4)
    assert np.array_equal(ids, expected) and np.array_equal(vectors, same)
    assert one.get_doc_dicts(ids) == other.get_doc_dicts(ids)
    assert len(one) == 7 and isinstance(one.dataset, datasets.Dataset) and one.dataset[2] == data[2]


def test_what_arrow_alone_does_not_say_is_left_to_datasets(tmp_path) -> None:
    values = columns(3) | {"when": [{"year": 1869}, {"year": 1877}, {"year": 1899}]}
    datasets.Dataset.from_dict(values).save_to_disk(str(tmp_path / "nested"))
    assert isinstance(map_passages(tmp_path / "nested"), datasets.Dataset)
    datasets.DatasetDict({"a": datasets.Dataset.from_dict(columns(3))}).save_to_disk(
        str(tmp_path / "splits")
    )
    with pytest.raises(OSError, match="several splits"):
        map_passages(tmp_path / "splits")
    with pytest.raises(OSError, match="there is no such folder"):
        map_passages(tmp_path / "absent")


def test_a_damaged_file_is_the_same_error(folder) -> None:
    for file in folder.glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(OSError, match="can't be opened as a saved data set"):
        map_passages(folder)


def test_an_index_opens_and_answers_without_importing_datasets(folder) -> None:
    import faiss

    flat = faiss.IndexFlatIP(8)
    flat.add(np.eye(7, 8, dtype=np.float32))
    faiss.write_index(flat, str(folder.parent / "index.faiss"))
    code = (
        "import sys, numpy as np\nfrom rag_core.retrieval.index import FaissIndex\n"
        f"index = FaissIndex.from_files({str(folder)!r}, {str(folder.parent / 'index.faiss')!r})\n"
        "ids, _ = index.get_top_docs(np.eye(1, 8, dtype=np.float32), 2)\n"
        "heavy = sorted({'datasets', 'pandas', 'huggingface_hub'} & set(sys.modules))\n"
        "print(index.get_doc_dicts(ids)[0]['title'][0], heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "Title 0 []\n", done.stderr
