"""The canonical `wiki_dpr` index: 21,015,300 Wikipedia passages of 100 words, found as data files,
without scripts.

`facebook/wiki_dpr` (or a local folder of the same layout) holds parquet shards of passages, with
their vectors and without, and faiss files: "exact" (HNSW over 8-bit vectors) and "compressed"
(inverted lists with product quantisation). There is none for its dummy data set, the first 10,000
passages: a flat index, which searches exactly, is made of their vectors. Files are matched by
pattern. Row i of the data is row i of the index; the column `id` counts from 1.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from rag_core.checks import warn
from rag_core.retrieval.faiss_files import PICKLE_HELP, build_faiss, read_faiss, refuse_pickle
from rag_core.retrieval.index import LazyIndex, Parts
from rag_core.retrieval.passage_store import listing_record, open_passages
from rag_core.retrieval.vectors import ArrowVectors

REPOSITORY = "facebook/wiki_dpr"
INDEX_NAMES = ("exact", "compressed")
EMBEDDINGS_NAMES = ("nq", "multiset")
NO_EMBEDDINGS = "no_embeddings"
# The rows of 4.37.2's dummy dataset.
DUMMY_ROWS = 10_000
# The names that `datasets` and the hub's converter give: the older ones end in a hash.
_SHARD = re.compile(r"-(\d+)-of-(\d+)(?:-[0-9a-f]+)?\.parquet$")


class WikiDprIndex(LazyIndex):
    """The faiss index of `wiki_dpr`, opened at the first use.

    Args:
        dataset: "wiki_dpr" (meaning `facebook/wiki_dpr`), another repository, or a local folder, of
            the same layout.
        split: the split in the file names.
        index_name: "exact" or "compressed"; a full name such as "psgs_w100.multiset.exact" also
            says which vectors, and "dummy.psgs_w100.nq.exact" that the dummy data set is meant.
        embeddings_name: "nq" (the released RAG models) or "multiset": the DPR encoder the vectors
            come from.
        use_dummy_dataset: the first 10,000 passages, searched exactly (or by a dummy faiss file,
            where there is one).
        revision: of the repository.
        vectors: "index" takes document vectors back out of the faiss index (decoded from 8 bits or
            from product codes), so that the 73 GB of vectors are not read; "stored" reads them, as
            transformers does.
        index_path: a faiss file of one's own over the same passages.
        memory_map: map the faiss file instead of reading it; None if it has more than 1 GB.
        rerank: with stored vectors: candidates for each document wanted, ranked again exactly.
        **hub: cache_dir, token, local_files_only, force_download.

    Raises:
        ValueError: an unknown name. OSError when opened: files are missing or damaged; the message
            lists what is there.
    """

    def __init__(
        self,
        dataset: str = "wiki_dpr",
        *,
        split: str = "train",
        index_name: str = "compressed",
        embeddings_name: str = "nq",
        use_dummy_dataset: bool = False,
        revision: str | None = None,
        vectors: str = "index",
        index_path: str | None = None,
        memory_map: bool | None = None,
        rerank: int = 1,
        **hub: Any,
    ) -> None:
        self.index_name, self.embeddings_name = _parse_name(index_name, embeddings_name)
        use_dummy_dataset = use_dummy_dataset or "dummy" in index_name.split(".")
        if vectors not in ("index", "stored"):
            raise ValueError(
                f"vectors (config.doc_vectors) must be 'index' or 'stored', got {vectors!r}."
            )
        if not isinstance(use_dummy_dataset, bool):
            raise ValueError(f"use_dummy_dataset must be True or False, got {use_dummy_dataset!r}.")
        if index_path is not None:
            refuse_pickle(index_path, "index_path")
        super().__init__(self._open, rerank=rerank)
        if self._rerank > 1 and vectors != "stored":
            raise ValueError(
                f"index_rerank must be 1 without stored vectors, by which it ranks, got "
                f"{self._rerank}. Set doc_vectors='stored'."
            )
        self.use_dummy_dataset = use_dummy_dataset
        self.source = dataset
        if dataset == "wiki_dpr" and not Path(dataset).is_dir():
            self.source = REPOSITORY
        self._split = split
        self._revision = revision
        self._doc_vectors = vectors
        self._index_path = index_path
        self._memory_map = memory_map
        # These two belong to the model's repository.
        self._hub = {key: hub[key] for key in hub.keys() - {"revision", "subfolder"}}

    def __repr__(self) -> str:
        named = f"{self.source!r}, {self.index_name!r}, {self.embeddings_name!r}"
        if not self.is_initialized():
            return f"WikiDprIndex({named}, not loaded)"
        return super().__repr__().replace("(", f"({named}, ", 1)

    @classmethod
    def from_config(
        cls, config: Any, *, memory_map: bool | None = None, **hub: Any
    ) -> WikiDprIndex:
        """Return the index that a `RagConfig` names.

        Args:
            config: its dataset, dataset_split, dataset_revision, index_name, index_path and
                use_dummy_dataset are read, and the foreign keys ``embeddings_name`` ("nq"),
                ``doc_vectors`` ("index") and ``index_rerank`` (1), if there.
            memory_map: map the faiss file.
            **hub: hub options; `revision` and `subfolder` belong to the model and are left out.
        """
        return cls(
            config.dataset,
            split=config.dataset_split,
            index_name=config.index_name,
            embeddings_name=getattr(config, "embeddings_name", "nq"),
            use_dummy_dataset=config.use_dummy_dataset,
            revision=config.dataset_revision,
            vectors=getattr(config, "doc_vectors", "index"),
            index_path=config.index_path,
            memory_map=memory_map,
            rerank=getattr(config, "index_rerank", 1),
            **hub,
        )

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Copy nothing: the config entries name the index."""
        return {
            "index_name": self.index_name,
            "embeddings_name": self.embeddings_name,
            "dataset": self.source,
            "dataset_split": self._split,
            "dataset_revision": self._revision,
            "use_dummy_dataset": self.use_dummy_dataset,
            "index_path": self._index_path,
            "doc_vectors": self._doc_vectors,
            "index_rerank": self._rerank,
        }

    def _open(self) -> Parts:
        from rag_core.hub import list_commit, resolve_file

        record = listing_record(self.source, self._revision, self._hub)
        where = self._hub | {"repo_type": "dataset"}
        # All files of one commit: a push between two of them would put texts beside the vectors of
        # others.
        commit, names = list_commit(self.source, record=record, revision=self._revision, **where)
        place = f"{self.source!r}"
        if commit:
            place += f" (revision {self._revision or 'main'}, commit {commit})"
        kind, encoder, dummy = self.index_name, self.embeddings_name, self.use_dummy_dataset
        file: str | Path | None = self._index_path or None
        if file is None:
            name = find_faiss_file(names, kind, encoder, dummy, place)
            if name is not None:
                file = resolve_file(self.source, name, revision=commit, **where)
        faiss_index = None
        rows = DUMMY_ROWS
        if file is not None:
            faiss_index = read_faiss(file, memory_map=self._memory_map)
            rows = int(faiss_index.ntotal)
        if kind == "compressed":
            self._warn_of_compression(faiss_index)
        with_vectors = self._doc_vectors == "stored" or faiss_index is None
        columns = ["id", "title", "text"]
        if with_vectors:
            columns.append("embeddings")
        passages = open_passages(
            self.source,
            find_shards(names, encoder, self._split, dummy, place, vectors=with_vectors),
            columns,
            rows,
            commit,
            self._hub,
            first_rows=dummy,
            fewer=faiss_index is None,
        )
        if faiss_index is None:
            stored = ArrowVectors(passages)
            faiss_index = build_faiss(stored.blocks(), len(passages), stored.vector_size, "flat")
        return passages, faiss_index, self._doc_vectors

    def _warn_of_compression(self, faiss_index: Any) -> None:
        import faiss

        if self.use_dummy_dataset:
            warn(
                "index_name='compressed': the dummy data set has no compressed index; it is "
                "searched as with index_name='exact'.",
            )
        elif self._rerank == 1 and faiss.try_extract_index_ivf(faiss_index) is not None:
            warn(
                "the 'compressed' index of wiki_dpr misses some of the best passages, and answers "
                "suffer: users lost 17 points of exact match to it. Search wider "
                "(retriever.index.faiss_index.nprobe), rank again by the stored vectors "
                "(doc_vectors='stored', index_rerank=16), or take index_name='exact'.",
            )


def _parse_name(index_name: str, embeddings_name: str) -> tuple[str, str]:
    parts = [part for part in index_name.split(".") if part not in ("psgs_w100", "dummy")]
    if parts == ["legacy"]:
        raise ValueError(f"index_name='legacy' is not supported. {PICKLE_HELP}")
    if len(parts) == 2 and parts[0] in EMBEDDINGS_NAMES:
        embeddings_name = parts.pop(0)
    if len(parts) != 1 or parts[0] not in INDEX_NAMES:
        message = (
            "index_name must be 'exact', 'compressed' or 'custom' (with passages_path and "
            f"index_path), got {index_name!r}."
        )
        if index_name == "embeddings":
            message += " Checkpoints of September 2020 say so: pass index_name='exact'."
        raise ValueError(message)
    if embeddings_name not in EMBEDDINGS_NAMES:
        raise ValueError(
            f"embeddings_name must be one of {EMBEDDINGS_NAMES}, got {embeddings_name!r}."
        )
    return parts[0], embeddings_name


def find_faiss_file(
    names: list[str], index_name: str, embeddings_name: str, dummy: bool, place: str
) -> str | None:
    """Pick the faiss file of a build out of a listing.

    Args:
        names: all files.
        index_name: "exact" or "compressed"; the dummy data set has one file at most, whichever is
            asked for.
        embeddings_name: "nq" or "multiset".
        dummy: the one of the dummy data set.
        place: where the listing is from, for the message.

    Returns:
        The name; None if the dummy data set has no file, as in the public repository: its index is
        built.

    Raises:
        OSError: none fits, or several do; the message lists the faiss files that are there.
    """
    faiss_files = [name for name in names if name.endswith((".faiss", ".index"))]
    fitting = []
    for name in faiss_files:
        base = name.rsplit("/", 1)[-1]
        is_compressed = "IVF" in base or "compressed" in base
        is_of_kind = dummy or is_compressed == (index_name == "compressed")
        is_of_encoder = embeddings_name in re.split(r"[./_-]", name)
        if is_of_kind and is_of_encoder and ("dummy" in name) == dummy:
            fitting.append(name)
    if len(fitting) == 1:
        return fitting[0]
    if dummy and not fitting:
        return None
    pattern = f"psgs_w100.{embeddings_name}.HNSW*.faiss"
    if dummy:
        pattern = f"dummy.psgs_w100.{embeddings_name}.*.faiss"
    elif index_name == "compressed":
        pattern = f"psgs_w100.{embeddings_name}.IVF*.faiss"
    raise OSError(
        f"{'more than one' if fitting else 'no'} faiss file for {embeddings_name!r}, "
        f"index_name={index_name!r} in {place}: looked for index/{pattern}, found "
        f"{fitting or faiss_files or _held(names)}. index_path= names a file directly."
    )


def find_shards(
    names: list[str],
    embeddings_name: str,
    split: str,
    dummy: bool,
    place: str,
    *,
    vectors: bool = True,
) -> list[str]:
    """Pick the parquet shards of the passages out of a listing, in row order.

    Args:
        names: all files.
        embeddings_name: "nq" or "multiset".
        split: the beginning of the file names.
        dummy: prefer a folder of dummy passages, if there is one.
        place: where the listing is from, for the message.
        vectors: whether the vectors are wanted; otherwise folders of texts alone come first.

    Raises:
        OSError: there are none, or none of which all are there; the message lists what is there.
    """
    kinds = [embeddings_name]
    if not vectors:
        kinds.insert(0, NO_EMBEDDINGS)
    choices = [(kind, False) for kind in kinds]
    if dummy:
        choices = [(kind, True) for kind in kinds] + choices
    sets = _shard_sets(names, split)
    missing = {}
    for kind, of_dummy in choices:
        fitting = [key for key in sets if kind in key.parts and ("dummy" in key.parts) == of_dummy]
        for key in sorted(fitting, key=lambda key: (len(key.folder), key)):
            shards = sets[key]
            gaps = sorted(set(range(key.total)) - shards.keys())
            if not gaps:
                return [shards[number] for number in sorted(shards)]
            missing[key] = gaps
    if missing:
        key, gaps = next(iter(missing.items()))
        raise OSError(
            f"{place} lacks {len(gaps)} of {key.total:05d} passage files like "
            f"{next(iter(sets[key].values()))!r}: numbers {gaps[:10]}; download them again."
        )
    folder = f"dummy.{embeddings_name}" if dummy else embeddings_name
    raise OSError(
        f"no passages in {place}: looked for data/psgs_w100/{folder}/{split}-*-of-*.parquet, "
        f"found {_held(names)}."
    )


class _ShardSet(NamedTuple):
    """Shards that belong together.

    One folder, one number of shards (0 where the names do not say).
    """

    folder: str
    total: int

    @property
    def parts(self) -> list[str]:
        return re.split(r"[./]", self.folder)


def _shard_sets(names: list[str], split: str) -> dict[_ShardSet, dict[int, str]]:
    sets: dict[_ShardSet, dict[int, str]] = defaultdict(dict)
    for name in sorted(names):
        folder, _, base = name.rpartition("/")
        if not name.endswith(".parquet") or not re.match(rf"{re.escape(split)}\b", base):
            continue
        numbered = _SHARD.search(base)
        if numbered:
            sets[_ShardSet(folder, int(numbered[2]))][int(numbered[1])] = name
        else:
            unnumbered = sets[_ShardSet(folder, 0)]
            unnumbered[len(unnumbered)] = name
    return sets


def _held(names: list[str]) -> str:
    """What a listing holds, in a few words."""
    parquet = [name for name in names if name.endswith(".parquet")]
    if not parquet:
        held = f"no parquet or faiss file among {names[:20]}"
        if "wiki_dpr.py" in names:
            held += (
                " (revisions of March 2024 and later hold parquet files, earlier ones a script "
                "alone)"
            )
        return held
    folders = sorted({name.rpartition("/")[0] or "." for name in parquet})
    return f"{len(parquet)} parquet files, in folders {folders[:20]}"
