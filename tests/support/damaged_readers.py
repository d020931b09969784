"""Readers of files, what makes good files for them, and a campaign of damaged ones.

    python -m tests.support.damaged_readers READER COUNT [SEED]

tries COUNT mutants in processes of their own, and prints each that ends in anything but a result or
an OSError, ValueError or TypeError that names a file of the folder.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.support.mutations import damaged_bytes, damaged_json

SIZE = 4


class Reader(NamedTuple):
    """How good files are written into a folder, and how they are read."""

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]


def write_tokenizer(name: str, *lacking: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        from rag_core import Tokenizer
        from tests.support.golden_prompts import write_tokenizers

        with tempfile.TemporaryDirectory() as other:
            write_tokenizers(Path(other))
            Tokenizer.from_pretrained(Path(other) / name).save_pretrained(folder)
        for each in lacking:
            (folder / each).unlink(missing_ok=True)
        (folder / "added_tokens.json").write_text("{}")
        special = {
            "unk_token": {"content": "<unk>" if name != "question" else "[UNK]", "lstrip": False}
        }
        (folder / "special_tokens_map.json").write_text(json.dumps(special))

    return write


def read_tokenizer(folder: Path) -> None:
    from rag_core import Tokenizer

    tokenizer = Tokenizer.from_pretrained(folder)
    len(tokenizer)


def write_config(folder: Path) -> None:
    from tests.support.golden_prompts import config

    config(id2label={0: "a"}, forced_eos_token_id=2).save_pretrained(folder)


def read_config(folder: Path) -> None:
    from rag_core import AutoConfig
    from rag_core.generation.config import GenerationConfig

    config = AutoConfig.from_pretrained(folder)
    config.to_json_string()
    GenerationConfig.from_model_config(config)


def write_options(folder: Path) -> None:
    from rag_core.generation.config import GenerationConfig

    options = GenerationConfig(
        bad_words_ids=[[5, 6]], num_beams=4, num_beam_groups=2, eos_token_id=[1, 2]
    )
    options.sequence_bias = {(3,): 1.0}
    options.save_pretrained(folder)


def read_options(folder: Path) -> None:
    from rag_core.generation.config import GenerationConfig

    GenerationConfig.from_pretrained(folder).to_json_string()


def write_sentence_folder(folder: Path) -> None:
    (folder / "1_Pooling").mkdir(parents=True)
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, (kind, path) in enumerate(kinds)
    ]
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": 4, "pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": "q: ", "passage": "p: "},
            "default_prompt_name": "query",
            "similarity_fn_name": "cosine",
        },
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values))


def read_sentence_folder(folder: Path) -> None:
    from rag_core.config.sentence_transformers import sentence_settings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sentence_settings(folder)


def passages(rows: int = 12) -> Any:
    import datasets

    vectors = np.random.default_rng(0).standard_normal((rows, SIZE)).astype(np.float32)
    texts = [f"Text {row}, é." for row in range(rows)]
    return datasets.Dataset.from_dict({"title": texts, "text": texts, "embeddings": list(vectors)})


def write_knowledge_base(folder: Path) -> None:
    from rag_core.knowledge.base import build_knowledge_base
    from rag_core.retrieval.rerank import write_notes

    def encode(titles: list[str], texts: list[str]) -> np.ndarray:
        return np.stack([np.full(SIZE, len(text), np.float32) for text in texts])

    with tempfile.TemporaryDirectory() as other:
        (Path(other) / "a.tsv").write_text("title\ttext\nParis\tA city.\nRome\tAnother city.\n")
        build_knowledge_base(Path(other) / "a.tsv", folder, encode, progress=False)
    write_notes(
        folder / "x.faiss",
        {"kind": "hnsw", "settings": {"efSearch": 3, "rerank": 2}, "recall_at_5": 0.5},
    )
    plan = {"keys": {"name": "x", "words": 100}, "probe": [0.5, 1.0]}
    (folder / "plan.json").write_text(json.dumps(plan))


def read_knowledge_base(folder: Path) -> None:
    from rag_core.knowledge.assembly import _earlier_plan
    from rag_core.knowledge.base import KnowledgeBase
    from rag_core.knowledge.embedding import same_probe
    from rag_core.retrieval.index import FaissIndex

    KnowledgeBase.open(folder, verify=False)
    FaissIndex.from_files(folder / "passages", folder / "index.faiss")
    FaissIndex.from_files(folder / "passages", folder / "x.faiss")
    plan = _earlier_plan(folder / "plan.json")
    if plan:
        same_probe(plan["probe"], [0.5, 1.0])


def write_index(folder: Path) -> None:
    from rag_core.retrieval.faiss_files import build_faiss, write_faiss
    from rag_core.retrieval.passage_files import write_passages

    found = passages()
    write_passages(found, folder / "hf_dataset")
    write_faiss(
        build_faiss([np.array(found["embeddings"][:], np.float32)], 12, SIZE, "hnsw"),
        folder / "x.faiss",
    )


def read_index(folder: Path) -> None:
    """Opens an index of files, searches it, reads the documents."""
    from rag_core.retrieval.index import FaissIndex

    index = FaissIndex.from_files(folder / "hf_dataset", folder / "x.faiss")
    index.init_index()
    ids, _ = index.get_top_docs(np.ones((1, index.vector_size), np.float32), 3)
    index.get_doc_dicts(np.maximum(ids, 0))


def write_saved(folder: Path) -> None:
    passages().shuffle(seed=1).save_to_disk(folder / "data")


def read_saved(folder: Path) -> None:
    from rag_core.retrieval.passage_files import read_passages

    len(read_passages(folder / "data"))


FACTORIES = ("Flat", "HNSW4,Flat", "IVF2,PQ2x4np", "HNSW4_SQ8", "PCA2,Flat", "IDMap,Flat")


def write_faiss_files(folder: Path) -> None:
    import faiss

    vectors = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    for number, factory in enumerate(FACTORIES):
        index = faiss.index_factory(8, factory, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add_with_ids(vectors, np.arange(64)) if "IDMap" in factory else index.add(vectors)
        faiss.write_index(index, str(folder / f"{number}.faiss"))


def read_faiss_files(folder: Path) -> None:
    from rag_core.retrieval.faiss_files import by_row, read_faiss

    for number in range(len(FACTORIES)):
        path = folder / f"{number}.faiss"
        for mapped in (False, True):
            index = read_faiss(path, memory_map=mapped)
            try:
                by_row(index).search(np.ones((2, index.d), np.float32), 3)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error


def write_trace(folder: Path) -> None:
    from rag_core.parity.trace_files import TraceWriter

    path = folder / "trace.npz"
    with TraceWriter(
        path, backend="x", framework="x", dtype="float64", seed=0, about={"a": 1}
    ) as writer:
        writer.add("case", {"weights": "w"}, {"logits": np.ones((2, 3)), "tokens": np.arange(4)})


def read_trace(folder: Path) -> None:
    from rag_core.parity.trace_files import TraceFile, refusals

    trace = TraceFile(folder / "trace.npz")
    for case in trace.cases:
        for stage in trace.stages(case):
            trace.shape(case, stage)
    refusals(trace.header, trace.header)


def write_weights(folder: Path) -> None:
    from rag_core.checkpoint.folder import write_checkpoint
    from rag_core.config.rag import DPRConfig

    weights = {f"layer.{number}": np.ones((3, 4), np.float32) for number in range(4)}
    write_checkpoint(folder, weights, DPRConfig(), max_shard_size=100)


def read_weights(folder: Path) -> None:
    from rag_core.checkpoint.folder import read_weights as read

    for array in read(folder).values():
        array.sum()


def write_h5(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "tf_model.h5", "w") as file:
        file["rag/tf_x/a/kernel:0"] = np.ones((3, 4), np.float32)
        file["rag/tf_x/a/bias:0"] = np.ones(4, np.float16)
        file["rag/b"] = np.ones(4, ">f8")
        file.attrs["names"] = [b"kernel", b"bias"]


def write_parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = pa.array([[1.0, 2.0]] * 5, pa.list_(pa.float32()))
    texts = [f"text {row}" for row in range(5)]
    pq.write_table(
        pa.table({"id": texts, "title": texts, "text": texts, "embeddings": vectors}),
        folder / "a.parquet",
    )


def read_parquet(folder: Path) -> None:
    from rag_core.knowledge.documents import read_documents
    from rag_core.retrieval.passage_store import _batches

    path = folder / "a.parquet"
    for batch in _batches(str(path), f"passage file {path}", ["id", "title", "text", "embeddings"]):
        batch.to_pylist()
    list(read_documents([path]))


def write_questions(folder: Path) -> None:
    lines = [
        {"question": "Who?", "answer": ["Paris", "Rome"], "passage": {"title": "a", "text": "b"}}
    ] * 2
    (folder / "qa.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_questions(folder: Path) -> None:
    from rag_core.training.data import read_examples

    read_examples(folder / "qa.jsonl")


def write_model(folder: Path) -> None:
    from rag_core import RagConfig, RagTokenizer, Tokenizer
    from rag_torch import RagTokenForGeneration
    from tests.support.golden_prompts import write_tokenizers

    with tempfile.TemporaryDirectory() as other:
        write_tokenizers(Path(other))
        parts = [Tokenizer.from_pretrained(Path(other) / name) for name in ("question", "bart")]
    small = {
        "d_model": 8,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "vocab_size": 300,
    }
    layers = dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
    wide = dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 8)
    bert = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    config = RagConfig(
        question_encoder={"model_type": "dpr", "vocab_size": 300, **bert},
        generator={"model_type": "bart", "max_position_embeddings": 64, **small, **layers, **wide},
    )
    RagTokenForGeneration(config).save_pretrained(folder)
    RagTokenizer(*parts).save_pretrained(folder)


def read_model(folder: Path) -> None:
    from rag_core import RagTokenizer
    from rag_torch import RagTokenForGeneration

    RagTokenForGeneration.from_pretrained(folder)
    RagTokenizer.from_pretrained(folder)


READERS = {
    "bert": Reader(write_tokenizer("question"), read_tokenizer),
    "bert vocabulary": Reader(write_tokenizer("question", "tokenizer.json"), read_tokenizer),
    "bart": Reader(write_tokenizer("bart"), read_tokenizer),
    "bart vocabulary": Reader(write_tokenizer("bart", "tokenizer.json"), read_tokenizer),
    "t5": Reader(write_tokenizer("t5"), read_tokenizer),
    "config": Reader(write_config, read_config),
    "options": Reader(write_options, read_options),
    "sentence folder": Reader(write_sentence_folder, read_sentence_folder),
    "knowledge base": Reader(write_knowledge_base, read_knowledge_base),
    "trace": Reader(write_trace, read_trace),
    "weights": Reader(write_weights, read_weights),
    "questions": Reader(write_questions, read_questions),
    "parquet": Reader(write_parquet, read_parquet),
    "faiss": Reader(write_faiss_files, read_faiss_files),
    "model": Reader(write_model, read_model),
    # each mutant of these costs a process
    "index": Reader(write_index, read_index),
    "saved data set": Reader(write_saved, read_saved),
    "h5": Reader(write_h5, read_weights),
}


class Damage:
    """Good files of a reader, and mutants of them in the same folder."""

    def __init__(self, reader: Reader, folder: Path) -> None:
        self._read, self.folder = reader.read, folder
        folder.mkdir(parents=True, exist_ok=True)
        reader.write(folder)
        self.read(folder)
        names = sorted(
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        )
        self._good = {name: (folder / name).read_bytes() for name in names}

    def read(self, folder: Path) -> None:
        self._read(folder)

    def mutant(self, seed: int) -> Path:
        """Damages one file; the others are good."""
        chance = random.Random(seed)
        name = chance.choice(sorted(self._good))
        damage = damaged_json if name.endswith(".json") else damaged_bytes
        path = self.folder / name
        path.unlink()  # a new file, not one that was looked at before
        path.write_bytes(damage(self._good[name], chance))
        return path

    def mend(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(self._good[path.relative_to(self.folder).as_posix()])

    def verdict(self, seed: int) -> str:
        """ "read", "refused", or what is wrong with how a mutant ends."""
        path = self.mutant(seed)
        try:
            self.read(self.folder)
        except (OSError, ValueError, TypeError) as error:
            named = str(self.folder) in str(error) or path.name in str(error)
            wild = isinstance(error, UnicodeError) or not named
            return f"{type(error).__name__} at {path.name}: {error!s:.200}" if wild else "refused"
        except BaseException as error:
            return f"{type(error).__name__} at {path.name}: {error!s:.200}"
        finally:
            self.mend(path)
        return "read"


def worker(name: str, start: int, stop: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        damage = Damage(READERS[name], Path(folder) / "files")
        for seed in range(start, stop):
            print(f"at {seed}", flush=True)
            print(damage.verdict(seed).replace("\n", " "), flush=True)


def campaign(name: str, count: int, start: int = 0) -> Counter[str]:
    found: Counter[str] = Counter()
    seed, stop = start, start + count
    while seed < stop:
        command = [
            sys.executable,
            "-m",
            "tests.support.damaged_readers",
            "--worker",
            name,
            str(seed),
            str(min(stop, seed + 2000)),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, errors="replace"
        )
        lines = [line for line in done.stdout.splitlines() if line]
        if not lines:
            raise RuntimeError(f"the good files are not read: {done.stderr[-500:]}")
        last = seed
        for line in lines:
            if line.startswith("at "):
                last = int(line[3:])
            else:
                found[line.split(":")[0] if line not in ("read", "refused") else line] += 1
                if line not in ("read", "refused"):
                    print(f"  seed {last}: {line}")
        if done.returncode:
            print(f"  seed {last}: ended with {done.returncode}: {done.stderr[-300:]}")
            found[f"ended with {done.returncode}"] += 1
        seed = last + 1
    return found


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        worker(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        print(
            sys.argv[1],
            dict(campaign(sys.argv[1], int(sys.argv[2]), int((sys.argv[3:] or ["0"])[0]))),
        )
