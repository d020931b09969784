"""What a folder or file holds, told by its own files: models, knowledge bases, indexes, passages,
questions, reports.

No framework is loaded, and no weight is read.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rag_core.checkpoint import LazyWeights
    from rag_core.config import PretrainedConfig, RagConfig

_NAMED = 6  # files of an unknown folder that an error names
_PART = re.compile(r"(?:^|[./])(question_encoder|generator|ctx_encoder)[./]")
_KINDS = {
    "dpr": "DPR encoder",
    "bert": "BERT encoder",
    "bart": "BART generator",
    "t5": "T5 generator",
}


def contents(place: Path) -> dict[str, Any]:
    """What is there, in plain values for JSON: `kind`, `path`, and what belongs to the kind.

    Args:
        place: folder or file.

    Raises:
        FileNotFoundError: there is nothing, or nothing that is known.
        DamagedFileError, OSError, ValueError: what is there is damaged.
    """
    if not place.exists():
        raise FileNotFoundError(f"{place}: no such folder or file. Name one that is there")
    if place.is_file():
        return _file(place)
    readers: dict[str, Callable[[Path], dict[str, Any]]] = {
        "manifest.json": _knowledge_base,
        "config.json": _model,
        "report.json": _evaluation,
        "dataset_info.json": _passages,
        "queries.jsonl": _questions,
        "saved_model.pb": _saved_model,
    }
    for name, read in readers.items():
        if (place / name).is_file():
            return {**read(place), "path": str(place)}
    for index in sorted(place.glob("*.faiss")):
        return _index(index)
    held = sorted(path.name for path in place.iterdir())
    names = ", ".join(held[:_NAMED]) or "nothing"
    if len(held) > _NAMED:
        names += ", ..."
    raise FileNotFoundError(
        f"{place}: no model and no knowledge base here; it holds {names}. Name a folder that "
        "dualrag or transformers wrote, a faiss index, or a file of questions"
    )


def _file(place: Path) -> dict[str, Any]:
    if place.suffix in (".faiss", ".index"):
        return _index(place)
    if place.suffix in (".safetensors", ".bin", ".h5"):
        from rag_core.checkpoint import read_weights

        weights = _numbers(read_weights(place))
        return {"kind": "file of weights", "path": str(place), "weights": weights, **_size(place)}
    return {**_questions(place), "path": str(place)}


def _knowledge_base(place: Path) -> dict[str, Any]:
    from rag_core.knowledge import KnowledgeBase

    return {"kind": "knowledge base", **KnowledgeBase.open(place).info()}


def _model(place: Path) -> dict[str, Any]:
    from rag_core.config import AutoConfig, RagConfig, sentence_settings

    config = AutoConfig.from_pretrained(place)
    summary: dict[str, Any] = {
        "kind": _KINDS.get(config.model_type, f"model {config.model_type!r}")
    }
    if isinstance(config, RagConfig):
        summary |= _rag(place, config)
        parts = {"question_encoder": config.question_encoder, "generator": config.generator}
    else:
        parts = {"network": config}
        if sentence := sentence_settings(place):
            summary |= {"kind": "sentence encoder", "sentence": vars(sentence)}
    summary |= _weights(place, config, parts)
    return summary | {"tokenizers": _tokenizers(place), "licence": _licence(place)} | _size(place)


def _rag(place: Path, config: RagConfig) -> dict[str, Any]:
    from rag_core.knowledge import remembered_base
    from rag_core.retrieval import find_own_index

    find_own_index(config, place)
    base = remembered_base(place)
    remembered = None
    if base is not None and base.path is not None:
        remembered = {"path": str(base.path), "is_here": base.is_here()}
    index = {
        name: getattr(config, name)
        for name in ("index_name", "dataset", "passages_path", "index_path")
    }
    return {
        "kind": "RAG model",
        "head": config.saved_head,
        "n_docs": config.n_docs,
        "calibrated": sorted(config.answer_calibration or {}),
        "index": index,
        "knowledge_base": remembered,
    }


def _weights(
    place: Path, config: PretrainedConfig, parts: Mapping[str, PretrainedConfig]
) -> dict[str, Any]:
    """Parts with their sizes, the files that hold them, and whether these fit the config; without
    files the parts alone.
    """
    from rag_core.checkpoint import check_sizes, fitted_weights, read_weights, weight_files

    networks: dict[str, Any] = {name: _shape(config) for name, config in parts.items()}
    try:
        files = weight_files(place)
    except OSError:
        if any(place.glob("*.index.json")):  # a shard is missing
            raise
        return {"parts": networks, "weights": None}
    weights = read_weights(place)
    check_sizes(config, weights, str(place))
    fault = None
    try:
        fitted_weights(config, weights, "it")
    except ValueError as error:
        fault = " ".join(str(error).split())
    if "network" in networks:
        networks["network"] |= _numbers(weights)
    else:
        names_of = defaultdict(list)
        for weight in weights:
            names_of[_part(weight)].append(weight)
        for name, own in names_of.items():
            if name:
                networks[name] = networks.get(name, {}) | _numbers(weights, own)
    names = [file.name for file in files]
    return {"parts": networks, "weights": {"files": names, **_numbers(weights), "fault": fault}}


def _part(weight: str) -> str | None:
    found = _PART.search(weight)
    if found is None:
        return None
    return found[1]


def _numbers(weights: LazyWeights, names: Iterable[str] | None = None) -> dict[str, Any]:
    """How many numbers are stored, by type, and their bytes.

    Args:
        names: of the weights that count; None = all.
    """
    if names is None:
        names = weights
    dtypes: Counter[str] = Counter()
    size = 0
    for name in names:
        count = math.prod(weights.shapes[name])
        dtypes[weights.dtypes[name].name] += count
        size += count * weights.dtypes[name].itemsize
    return {"numbers": sum(dtypes.values()), "dtypes": dict(dtypes.most_common()), "bytes": size}


def _shape(config: PretrainedConfig) -> dict[str, Any]:
    """What makes the size of a network."""
    names = {
        "layers": ("num_hidden_layers", "encoder_layers", "num_layers"),
        "decoder_layers": ("decoder_layers", "num_decoder_layers"),
        "width": ("hidden_size", "d_model"),
        "vocabulary": ("vocab_size",),
    }
    sizes: dict[str, Any] = {"model_type": config.model_type}
    for title, fields in names.items():
        values = (
            getattr(config, name) for name in fields if name in type(config).__dataclass_fields__
        )
        sizes[title] = next(values, None)
    return sizes


def _tokenizers(place: Path) -> dict[str, Any]:
    from rag_core.tokenization import GENERATOR_FOLDER, QUESTION_FOLDER, Tokenizer

    files = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")
    tokenizers = {}
    for folder in (place, place / QUESTION_FOLDER, place / GENERATOR_FOLDER):
        if any((folder / name).is_file() for name in files):
            tokenizer = Tokenizer.from_pretrained(folder)
            name = str(folder.relative_to(place))
            tokenizers[name] = {"class": type(tokenizer).__name__, "tokens": len(tokenizer)}
    return tokenizers


def _licence(place: Path) -> dict[str, str]:
    """What files say of the licence: the card's field, the first line of a LICENSE."""
    import yaml
    from huggingface_hub import metadata_load

    from rag_core.demo import SHIPPED, is_demo_model

    licences = {}
    cards = {"README.md": place / "README.md"}
    if is_demo_model(place):
        cards["the demo's card"] = SHIPPED / "README.md"
    for name, card in cards.items():
        try:
            field = (metadata_load(card) or {}).get("license")
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if field:
            licences[name] = str(field)
    for path in sorted(place.iterdir()):
        if re.match(r"(licen[cs]e|copying)", path.name, re.IGNORECASE) and path.is_file():
            lines = path.read_text("utf-8", "replace").split("\n")
            licences[path.name] = next((line.strip() for line in lines if line.strip()), "empty")
    return licences


def _evaluation(place: Path) -> dict[str, Any]:
    from rag_core.evaluation import read_report

    report = read_report(place)
    figures = {name: each["figures"]["all"] for name, each in report["variants"].items()}
    return {
        "kind": "evaluation",
        "asked": report["questions"]["asked"],
        "model": report["model"].get("name"),
        "passages_of": report["knowledge_base"].get("path"),
        "exact_match": {name: each["exact_match"]["mean"] for name, each in figures.items()},
        **_size(place),
    }


def _passages(place: Path) -> dict[str, Any]:
    from rag_core.retrieval import read_passages

    passages = read_passages(place)
    return {
        "kind": "passages",
        "passages": len(passages),
        "columns": {name: str(feature) for name, feature in passages.features.items()},
        **_size(place),
    }


def _index(place: Path) -> dict[str, Any]:
    from rag_core.retrieval import read_faiss

    index = read_faiss(place, memory_map=True)
    return {
        "kind": "faiss index",
        "path": str(place),
        "index": type(index).__name__,
        "rows": index.ntotal,
        "dimension": index.d,
        "metric": {0: "inner product", 1: "L2"}.get(index.metric_type, index.metric_type),
        **_size(place),
    }


def _questions(place: Path) -> dict[str, Any]:
    from rag_core.evaluation import Question, scan_questions
    from rag_core.hub import read_lines

    read = scan_questions(place)
    if place.suffix == ".txt":
        lines = [text.strip() for _, text in read_lines(place) if text.strip()]
        if not any("\t" in line for line in lines):  # as `dualrag ask` takes them
            read = (Question(str(number), line) for number, line in enumerate(lines))
    counts: Counter[str] = Counter()
    first = None
    for question in read:
        first = first or question.question
        counts["questions"] += 1
        counts["with_answers"] += bool(question.answers)
        counts["with_gold"] += bool(question.gold)
        counts["with_contexts"] += bool(question.contexts)
    return {"kind": "questions", **counts, "first": first, **_size(place)}


def _saved_model(place: Path) -> dict[str, Any]:
    return {"kind": "SavedModel of TensorFlow", "licence": _licence(place), **_size(place)}


def _size(place: Path) -> dict[str, int]:
    files = [place]
    if place.is_dir():
        files = [path for path in place.rglob("*") if path.is_file()]
    return {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}
