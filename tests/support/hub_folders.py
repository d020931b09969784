"""Folders laid out as repositories of the public hub are.

Their file names and configurations, small contents.
"""

import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KINDS = {"exact": "HNSW128_SQ8", "compressed": "IVF4096_HNSW128_PQ128"}
FACTORIES = {"exact": "HNSW16,SQ8", "compressed": "IVF4_HNSW8,PQ8np"}


def write_wiki_dpr(
    folder: Path, rows: int = 628, dummy_rows: int = 40, size: int = 16
) -> dict[str, np.ndarray]:
    """Write `facebook/wiki_dpr` as of March 2024: 345 parquet files and four faiss files, none of
    them a dummy.

    Returns:
        The vectors of "nq" and "multiset", (rows, size); the dummy data set is their first
        `dummy_rows` rows.
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
            vectors[name],
            FACTORIES[kind],
            folder / "index" / f"psgs_w100.{name}.{KINDS[kind]}-IP-train.faiss",
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


# What config.json of facebook/rag-token-base and rag-sequence-base holds beside its two parts.
RAG_BASE = {
    "bad_words_ids": [[0, 0]],
    "dataset": "wiki_dpr",
    "dataset_split": "train",
    "do_deduplication": True,
    "do_marginalize": False,
    "doc_sep": " // ",
    "early_stopping": False,
    "exclude_bos_score": False,
    "index_name": "compressed",
    "index_path": None,
    "is_encoder_decoder": True,
    "label_smoothing": 0.0,
    "max_combined_length": 300,
    "max_length": 50,
    "min_length": 1,
    "model_type": "rag",
    "n_docs": 5,
    "num_beams": 4,
    "num_return_sequences": 1,
    "output_retrieved": False,
    "passages_path": None,
    "reduce_loss": False,
    "retrieval_batch_size": 8,
    "retrieval_vector_size": 768,
    "title_sep": " / ",
    "use_dummy_dataset": False,
}
# and what its revisions of September 2020 hold instead
RAG_2020 = {"index_name": "embeddings", "retriever_type": "hf_retriever"}


TOKENIZERS = Path(__file__).parents[1] / "data" / "tokenizers"
ENCODER = {
    "model_type": "dpr",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
BART = {
    "model_type": "bart",
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 400,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}


def write_rag_base(folder: Path, **changes) -> None:
    """Write `facebook/rag-token-base`.

    Config.json, pytorch_model.bin and both tokenizers' vocabularies.
    """
    import torch

    from rag_core import RagConfig
    from rag_torch import RagTokenForGeneration

    question, target = folder / "question_encoder_tokenizer", folder / "generator_tokenizer"
    shutil.copytree(TOKENIZERS / "bert", question)
    shutil.copytree(TOKENIZERS / "bart", target)
    write_json(question / "tokenizer_config.json", {"model_max_length": 512, "do_lower_case": True})
    write_json(target / "tokenizer_config.json", {"model_max_length": 1024})
    special = {
        f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")
    }
    write_json(question / "special_tokens_map.json", special)
    special = {
        "bos": "<s>",
        "eos": "</s>",
        "unk": "<unk>",
        "sep": "</s>",
        "pad": "<pad>",
        "cls": "<s>",
        "mask": "<mask>",
    }
    write_json(
        target / "special_tokens_map.json",
        {f"{name}_token": token for name, token in special.items()},
    )
    words = len((question / "vocab.txt").read_text("utf-8").splitlines())
    pieces = len(json.loads((target / "vocab.json").read_text("utf-8")))
    parts = {
        "question_encoder": ENCODER | {"vocab_size": words},
        "generator": BART | {"vocab_size": pieces},
    }
    write_json(folder / "config.json", RAG_BASE | {"retrieval_vector_size": 16} | parts | changes)
    weights = random_weights(RagTokenForGeneration(RagConfig.from_pretrained(folder)))
    bert = "rag.question_encoder.question_encoder.bert_model"
    weights[f"{bert}.embeddings.position_ids"] = torch.arange(64)[None]
    torch.save(weights, folder / "pytorch_model.bin")


def write_parts(folder: Path) -> None:
    """Write `dpr-question_encoder-single-nq-base` with its pooler and `bart-large` in half
    precision into `folder`.
    """
    import torch

    from rag_core.config.rag import BartConfig, DPRConfig
    from rag_torch import BartForConditionalGeneration, DPRQuestionEncoder

    encoder, bart = folder / "dpr-question_encoder-single-nq-base", folder / "bart-large"
    shutil.copytree(TOKENIZERS / "bert", encoder)
    shutil.copytree(TOKENIZERS / "bart", bart)
    words = len((encoder / "vocab.txt").read_text("utf-8").splitlines())
    pieces = len(json.loads((bart / "vocab.json").read_text("utf-8")))
    write_json(encoder / "tokenizer_config.json", {"do_lower_case": True})
    write_json(bart / "tokenizer_config.json", {"model_max_length": 1024})
    write_json(encoder / "config.json", ENCODER | {"vocab_size": words})
    write_json(bart / "config.json", BART | {"vocab_size": pieces})
    weights = random_weights(DPRQuestionEncoder(DPRConfig.from_pretrained(encoder)))
    pooler = {"weight": torch.ones(16, 16), "bias": torch.ones(16)}
    weights |= {
        f"question_encoder.bert_model.pooler.dense.{name}": value for name, value in pooler.items()
    }
    torch.save(weights, encoder / "pytorch_model.bin")
    weights = random_weights(BartForConditionalGeneration(BartConfig.from_pretrained(bart)))
    torch.save(
        {name: tensor.half() for name, tensor in weights.items()}, bart / "pytorch_model.bin"
    )


def random_weights(model) -> dict:
    """Its state dictionary, filled so that no rounding decides a token and no release of torch
    another.
    """
    import torch

    rng = np.random.default_rng(0)
    weights = dict(model.state_dict())
    for name, tensor in weights.items():
        if tensor.dim() > 1:
            weights[name] = torch.from_numpy(rng.normal(0, 0.5, tensor.shape).astype(np.float32))
    ties = ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
    for name in weights:
        if name.endswith(tuple(f"{tied}.weight" for tied in ties)):
            weights[name] = next(
                value for other, value in weights.items() if other.endswith("shared.weight")
            )
    return weights


def write_json(path: Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
