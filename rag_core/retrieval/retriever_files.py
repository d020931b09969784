"""A retriever's files.

Which index a configuration means, loading from and saving to a RAG folder.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_core.hub import is_local, list_commit, list_files, local_knowledge, resolve_file
from rag_core.retrieval.faiss_files import PICKLE_HELP, refuse_pickle
from rag_core.retrieval.index import (
    BM25_FOLDER,
    INDEX_FILE,
    INDEX_PATTERNS,
    PASSAGES_FOLDER,
    FaissIndex,
    Index,
)
from rag_core.retrieval.rerank import notes_path

if TYPE_CHECKING:
    from rag_core.retrieval.retriever import RagRetriever

logger = logging.getLogger(__name__)

INDEX_FIELDS = (
    "index_name",
    "index_path",
    "passages_path",
    "dataset",
    "dataset_split",
    "use_dummy_dataset",
)


def open_index(
    config: Any, base: str | Path | None = None, *, memory_map: bool | None = None, **hub: Any
) -> Index:
    """Return the index that a configuration describes, not loaded yet.

    Args:
        config: a `RagConfig`. ``index_name="custom"`` opens `index_path` and `passages_path`, "bm25"
            likewise a folder of BM25; other names mean a build of `dataset` (see `rag_core.retrieval.wiki_dpr`).
        base: the folder or repository that relative paths start from; by default where `config` was
            read.
        memory_map: map the faiss file instead of reading it; None if it has more than 1 GB.
        **hub: hub options, for files of a repository.

    Raises:
        ValueError: the legacy index or another pickle is asked for, or a path is missing.
    """
    for name in ("index_path", "passages_path"):
        if getattr(config, name) is not None:
            refuse_pickle(getattr(config, name), name)
    if config.index_name == "legacy":
        raise ValueError(f"index_name='legacy' is not supported. {PICKLE_HELP}")
    base = base or getattr(config, "name_or_path", None) or None
    if config.index_name in ("custom", "bm25"):
        knowledge = None
        if base is not None and not (config.passages_path or config.index_path):
            knowledge = local_knowledge(base)
        if knowledge is not None:
            # as rag_core.knowledge writes them
            files = (knowledge / "passages", knowledge / "index.faiss")
            return FaissIndex.from_files(*files, memory_map=memory_map)
        missing = [name for name in ("passages_path", "index_path") if not getattr(config, name)]
        if missing:
            raise ValueError(
                f"index_name={config.index_name!r} needs {' and '.join(missing)}: passages_path is "
                "a folder saved by dataset.save_to_disk, index_path a faiss file (or a folder of "
                "BM25). Or give indexed_dataset= or index=."
            )
        # One listing for both: passages and faiss file are of one build, so of one commit of a
        # repository.
        listing = cache(lambda: list_commit(str(base), **hub))
        passages = _located(config.passages_path, base, hub, listing)
        index_file = _located(config.index_path, base, hub, listing)
        if config.index_name == "bm25":
            from rag_core.retrieval.bm25 import Bm25Index

            return Bm25Index.from_files(passages, index_file)
        rerank = getattr(config, "index_rerank", None)
        return FaissIndex.from_files(passages, index_file, memory_map=memory_map, rerank=rerank)
    from rag_core.retrieval.wiki_dpr import WikiDprIndex

    return WikiDprIndex.from_config(config, memory_map=memory_map, **hub)


def _located(
    path: str,
    base: str | Path | None,
    hub: dict[str, Any],
    listing: Callable[[], tuple[str | None, list[str]]],
) -> Path:
    """Resolve a configured path.

    Absolute, or relative to the config's folder or repository or the working folder.
    """
    if base is not None and is_local(base) and Path(base).expanduser().is_dir():
        folder = Path(base).expanduser() / (hub.get("subfolder") or "")
        places = [folder / path, Path(path)]
        # transformers writes paths as it was given them; a folder that was moved since still holds
        # its own files.
        if Path(path).name in (INDEX_FILE, PASSAGES_FOLDER, BM25_FOLDER):
            places.append(folder / Path(path).name)
        return next((place for place in places if place.exists()), places[0])
    if base is None or Path(path).is_absolute() or Path(base).suffix == ".json":
        return Path(path)
    # The repository's own first: a file of that name in the working folder is another one.
    commit, listed = listing()
    hub = hub | {"revision": commit}
    names = [name for name in listed if name == path or name.startswith(f"{path}/")]
    if not names:
        return Path(path)
    # How the index was built, where that was kept.
    if (notes := notes_path(path).as_posix()) in listed:
        resolve_file(base, notes, **hub)
    files = [resolve_file(base, name, **hub) for name in names]
    if names == [path]:
        return files[0]
    levels = names[0].count("/") - path.count("/")
    return files[0].parents[levels - 1]


def load_parts(
    name_or_path: str | Path,
    *,
    config: Any,
    indexed_dataset: Any,
    index: Index | str | None,
    tokenizers: tuple[Any, Any],
    memory_map: bool | None,
    kwargs: dict[str, Any],
) -> tuple[Any, tuple[Any, Any], Index | str]:
    """Load config, tokenizers and index for `RagRetriever.from_pretrained`.

    See there for arguments and errors.
    """
    from rag_core.config import RagConfig, read_config
    from rag_core.hub import split_hub_kwargs
    from rag_core.tokenization import RagTokenizer

    if indexed_dataset is not None and index is not None:
        raise ValueError("give indexed_dataset= or index=, not both.")
    hub, overrides = split_hub_kwargs(kwargs)
    if config is None:
        values, _ = read_config(name_or_path, **hub)
        if values.get("model_type") != "rag":
            raise ValueError(_not_rag(name_or_path, values.get("model_type")))
        config = RagConfig.from_pretrained(name_or_path, **hub, **overrides)
    elif isinstance(config, str | Path):
        config = RagConfig.from_pretrained(config, **hub, **overrides)
    else:
        config = _overridden(copy.deepcopy(config), overrides)
    if overrides.keys().isdisjoint(INDEX_FIELDS):
        find_own_index(config, name_or_path, **hub)
    if None in tokenizers:
        saved = RagTokenizer.from_pretrained(name_or_path, **hub)
        tokenizers = (tokenizers[0] or saved.question_encoder, tokenizers[1] or saved.generator)
    if indexed_dataset is not None:
        config.index_name = "custom"
        config.index_path = config.passages_path = None
        index = FaissIndex(indexed_dataset)
    elif index is None:
        index = open_index(config, name_or_path, memory_map=memory_map, **hub)
    return config, tokenizers, index


def find_own_index(config: Any, name_or_path: str | Path, **hub: Any) -> None:
    """Names in a configuration the index that lies beside it.

    A model, saved after its retriever into one folder, writes a config.json without the paths.

    Args:
        config: a `RagConfig`; one that names paths is left as it is.
        name_or_path: its folder or repository.
        **hub: hub options.
    """
    if config.index_path or config.passages_path:
        return
    try:
        files = list_files(name_or_path, **hub)
    except OSError:  # a config.json by itself, or no network
        return
    folders = {name.partition("/")[0] for name in files if "/" in name}
    if PASSAGES_FOLDER not in folders:
        return
    for name, file in (("custom", INDEX_FILE), ("bm25", BM25_FOLDER)):
        if file in folders or file in files:
            config.index_name = name
            config.index_path = file
            config.passages_path = PASSAGES_FOLDER


def _overridden(config: Any, overrides: dict[str, Any]) -> Any:
    for name, value in overrides.items():
        if isinstance(value, Path):
            value = str(value)
        setattr(config, name, value)
    config.validate()
    return config


def _not_rag(name: str | Path, kind: Any) -> str:
    return (
        f"{str(name)!r} is a checkpoint of type {kind!r}, not a RAG folder with a RAG config.json "
        "and both tokenizers. Write  RagRetriever.from_pretrained('facebook/rag-token-nq', "
        "indexed_dataset=dataset)  with any RAG folder or repository, or build it from its "
        "parts:  RagRetriever(RagConfig.from_question_encoder_generator_configs(encoder_config, "
        "generator_config), encoder_tokenizer, generator_tokenizer, index=FaissIndex(dataset))."
    )


def save_parts(retriever: RagRetriever, folder: Path) -> None:
    """Write a retriever's folder, all or nothing; see `RagRetriever.save_pretrained`."""
    from rag_core.hub import atomic_folder
    from rag_core.tokenization import TOKENIZER_PATTERNS

    config = copy.deepcopy(retriever.config)
    save = getattr(retriever.index, "save", None)
    kind = type(retriever.index).__name__
    if not callable(save) and (there := _index_files(folder)):
        raise ValueError(
            f"save_directory must hold no index where the retriever's own, a {kind}, has no "
            f"save(folder), got {str(folder)!r} with {', '.join(there)}. Name another folder."
        )
    entries: dict[str, Any] = {"index_name": "custom", "index_path": None, "passages_path": None}
    with atomic_folder(folder, stale=(*TOKENIZER_PATTERNS, *INDEX_PATTERNS)) as draft:
        if callable(save):
            entries.update(save(draft) or {})
        else:
            logger.warning(
                "%s has no save(folder); the folder will hold no index: pass index= to "
                "RagRetriever.from_pretrained.",
                kind,
            )
        for name, value in entries.items():
            setattr(config, name, value)
        config.save_pretrained(draft)
        retriever.tokenizer.save_pretrained(draft)


def _index_files(folder: Path) -> list[str]:
    """The files and folders of a saved index that are there."""
    names = dict.fromkeys(pattern.removesuffix("/*") for pattern in INDEX_PATTERNS)
    return [name for name in names if (Path(folder) / name).exists()]
