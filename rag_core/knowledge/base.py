"""A knowledge base on disk: passages, their vectors, a faiss index and a manifest, built so that a
kill loses little.

    kb/passages/      a `datasets` folder: title, text, source, metadata_json, embeddings (D
                      float32)
    kb/index.faiss    row i is passage i; scores are inner products
    kb/bm25/          the words of passages, where they are searched by these
    kb/manifest.json  see `rag_core.knowledge.manifest`

The first two are transformers' custom index (`passages_path`, `index_path`). While it is built,
finished shards wait in `kb.work` beside it (and `kb.done` says what was changed, until the change
has been answered for); then all files take their places together (`rag_core.hub.atomic`). Row
numbers are the `doc_ids` of a retriever.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from rag_core.checkpoint import check_arrow
from rag_core.checks import whole
from rag_core.hub import clear, local_knowledge, numbered, recover
from rag_core.knowledge import manifest as layout
from rag_core.knowledge.assembly import (
    INDEX_KINDS,
    WAYS,
    assemble,
    check_settings,
    discard_work,
    done_before,
    embed,
    passages_of,
    without,
    workplace,
)
from rag_core.knowledge.embedding import (
    Encode,
    passage_schema,
    probe_vector,
    read_batches,
    same_probe,
)
from rag_core.knowledge.files import Paths
from rag_core.knowledge.manifest import Manifest, index_text
from rag_core.knowledge.passages import WORDS, WORDS_HINT
from rag_core.retrieval import matching_rows, needs_vectors, passage_parts

if TYPE_CHECKING:
    from datasets import Dataset

    from rag_core.knowledge.encoders import PassageEncoderBase
    from rag_core.knowledge.search import EmbedQuestions
    from rag_core.knowledge.update import Update
    from rag_core.outputs import Hit
    from rag_core.retrieval import Where

    Encoder = str | Path | PassageEncoderBase | Callable[[list[str]], Any]


@dataclass
class _Loaded:
    """What searches of a knowledge base keep: the index of a manifest, the rows of the latest
    conditions, and what embeds questions.
    """

    lock: Lock = field(default_factory=Lock)
    manifest: Manifest | None = None
    index: Any = None
    where: Where | None = None
    filtered: Any = None
    key: tuple[Any, ...] = ()
    embed: EmbedQuestions | None = None

    def __reduce__(self) -> Any:
        return _Loaded, ()


def build_knowledge_base(
    paths: Paths | Any,
    out: str | Path,
    encode: Encode,
    *,
    encoder_name: str = "unnamed",
    encoder_fingerprint: str | None = None,
    encoder_prompts: Mapping[str, str] | None = None,
    index: str | None = None,
    settings: Mapping[str, int] | None = None,
    words: int | None = 100,
    tsv_quotes: bool = True,
    text_column: str | None = None,
    title_column: str | None = None,
    embeddings: str | None = None,
    exclude: str | Iterable[str] = (),
    skip_bad: bool = False,
    batch_size: int = 32,
    shard_rows: int = 1024,
    overwrite: bool = False,
    credit: str | None = None,
    progress: bool = True,
) -> KnowledgeBase:
    """Read files, split them into passages, embed these and index them; asked again after a kill,
    it goes on.

    Args:
        paths: files of the kinds that `rag_core.knowledge.read_documents` reads, or folders. Or one
            table in memory, whose rows are read like a file's: a pandas or polars DataFrame, an
            Arrow table, a `datasets.Dataset`.
        out: folder to create.
        encode: called with lists of titles and texts of equal length n, returns (n, D) float32.
        encoder_name: name or folder of the encoder, kept in the manifest.
        encoder_fingerprint: e.g. the sha256 of its weights.
        encoder_prompts: texts that it has in front of a "query" and a "passage" (the `prompts` of
            an encoder), kept in the manifest: whoever loads it by its name loads it with these.
        index: "flat" (exact), "hnsw", "ivfpq", or None / "auto": flat up to 50,000 passages, hnsw
            up to 500,000, then ivfpq. An ivfpq index finds candidates by compressed vectors and
            ranks them by the stored ones. "bm25" finds passages by words (see
            `rag_core.retrieval.Bm25Index`), and keeps their vectors and an index of these, too;
            "hybrid" finds them by both (`rag_core.retrieval.HybridIndex`).
        settings: of the index, instead of chosen by the number of passages and tuned: "nlist",
            "nprobe", "m" (bytes a vector) and "rerank" (candidates a passage) of ivfpq, "efSearch"
            of hnsw.
        words: words a passage; None keeps each document whole.
        tsv_quotes: whether double quotes in .tsv files enclose fields; False: they are letters.
        text_column: the column of text of tables without a column `text`.
        title_column: the column of titles of tables without a column `title`.
        embeddings: of a table in memory: the column of vectors that `encode` made of its rows,
            which are taken as they are, a passage a row, whatever `words` says.
        exclude: patterns as in a .gitignore file, of what folders hold and is not read.
        skip_bad: whether files that cannot be read are passed by, with a `PassedByWarning` that
            names them, instead of being an error.
        batch_size: passages a call of `encode`; a batch holds passages of like length.
        shard_rows: passages a shard, the most that a kill can cost.
        overwrite: replaces another knowledge base at `out`.
        credit: authors and licence of the text.
        progress: draws progress bars on stderr.

    Raises:
        TypeError: neither paths nor a table that can be read.
        FileNotFoundError, ValueError: bad input, see `read_documents`; an encoder that returns
            wrong shapes or NaN; vectors of another one.
        FileExistsError: `out` holds something else already.
        OSError: another build of `out` is running, or the disk is full; nothing is left at `out`.
    """
    from rag_core.knowledge.documents import ReadingOptions, readable
    from rag_core.knowledge.files import find_files, find_roots
    from rag_core.knowledge.frames import as_frame

    out = _named(out)
    frame = as_frame(paths)
    if embeddings is not None:
        _check_embeddings(frame, embeddings)
        words = None
    exclude = _patterns(exclude)
    options = ReadingOptions(tsv_quotes, text_column, title_column)
    _check_kind(index)
    batch_size = whole(1)("batch_size", batch_size)
    shard_rows = whole(1)("shard_rows", shard_rows)
    words = WORDS("words", words, WORDS_HINT)
    clear(out)
    files: list[tuple[Any, str]]
    if frame is None:
        files = find_files(paths, exclude=exclude)
        roots = layout.root_entries(find_roots(paths), out)
    else:
        files = [(frame, frame.name)]
        roots = []
    request: dict[str, Any] = {
        "index": index or "auto",
        "batch_size": batch_size,
        "shard_rows": shard_rows,
        "words": words,
    }
    # Only where something is asked for: bases built before there were these are found done.
    request |= options.asked()
    if embeddings is not None:
        request["embeddings"] = embeddings
    if exclude:
        request["exclude"] = exclude
    if skip_bad:
        request["skip_bad"] = True
        files = readable(files, options)
    if settings := check_settings(index, settings):
        request["settings"] = settings
    probe = probe_vector(encode)
    encoder: dict[str, Any] = {
        "name": encoder_name,
        "fingerprint": encoder_fingerprint,
        "probe": layout.probe_entry(probe),
    }
    if encoder_prompts:
        encoder["prompts"] = dict(encoder_prompts)
    plan = Manifest(
        encoder,
        len(probe),
        0,
        words,
        {},
        layout.described_files(files),
        roots,
        credit=credit,
        request=request,
    )
    existing = _existing(out, plan, overwrite)
    if existing:
        return existing
    with workplace(out) as work:
        # Another process may have built it meanwhile.
        existing = _existing(out, plan, overwrite)
        if existing:
            return existing
        if frame is not None and embeddings is not None:
            batches = frame.passages_with(embeddings, encode, options)
        else:
            batches = read_batches(embed(files, work, encode, plan, progress))
        assemble(work, out, batches, plan)
    return KnowledgeBase.open(out)


class KnowledgeBase:
    """An opened knowledge base; `open` makes one.

    Attributes:
        path: its folder.
        manifest: what it holds and what made it.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._loaded = _Loaded()

    def __getstate__(self) -> dict[str, Any]:
        """Without what searches loaded: the base opens anew wherever it is sent or copied to."""
        return {**self.__dict__, "_loaded": _Loaded()}

    @classmethod
    def open(cls, path: str | Path, *, verify: bool | None = None) -> KnowledgeBase:
        """Opens a knowledge base after comparing its files with the manifest.

        Args:
            path: the folder; "dualrag/demo" is the demo's.
            verify: whether checksums are computed; None does so up to 256 MB in all; beyond, sizes
                and a few spots of each file are compared. True also validates every passage in a
                process of its own: for knowledge bases from elsewhere, whose manifest may agree
                with files that are made to do harm.

        Raises:
            FileNotFoundError: there is none.
            ValueError: a file is missing, truncated or altered.
        """
        path = _named(local_knowledge(path) or path)
        recover(path)
        manifest = Manifest.read(path)
        manifest.check_files(path, verify)
        if verify:
            passage_parts(path / layout.PASSAGES, full=True)
        return cls(path, manifest)

    def __len__(self) -> int:
        return self.manifest.rows

    def __repr__(self) -> str:
        return f"KnowledgeBase({str(self.path)!r}, {self.manifest.summary()})"

    def _repr_html_(self) -> str:
        from rag_core.display import facts_html

        manifest = self.manifest
        words = "whole documents"
        if manifest.words:
            words = f"of about {manifest.words:,} words"
        facts = {
            "folder": self.path,
            "passages": f"{len(self):,}, {words}",
            "files": f"{len(manifest.sources):,}",
            "encoder": f"{manifest.encoder['name']}, {manifest.dimension:,} numbers a vector",
            "index": index_text(manifest.index),
            "credit": manifest.credit,
        }
        return facts_html(type(self).__name__, facts)

    def dataset(self) -> Dataset:
        """The passages as a memory-mapped `datasets.Dataset`: title, text, source, metadata_json (a
        JSON object, null where unknown), embeddings.
        """
        from rag_core.retrieval import read_passages

        return read_passages(self.path / layout.PASSAGES)

    def to_dataset(self, *, embeddings: bool = True) -> Dataset:
        """The passages as a `datasets.Dataset` for other libraries; row i is passage i.

        Columns: id (the passage's own, where its table had a column `id`, which several passages of
        one row share, else its row number; a text), title, text, source, metadata (all else that
        is known of it, a JSON object as text), embeddings. Title, text, source and embeddings stay
        on disk; `from_dataset` builds the same passages of it.

        Args:
            embeddings: whether the vectors are among the columns.
        """
        from rag_core.knowledge.exchange import as_dataset

        return as_dataset(self.dataset(), embeddings)

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        out: str | Path,
        encode: Encode,
        *,
        embeddings: str | None = "embeddings",
        words: int | None = None,
        **options: Any,
    ) -> KnowledgeBase:
        """Builds a knowledge base of a data set (or another table in memory), a passage a row.

        Args:
            dataset: with a column `text`, and optionally `title`, `id`, `source`, `metadata` (an
                object or the JSON of one) and `embeddings`; all further ones are metadata.
            out: folder to create.
            encode: the encoder of the passages.
            embeddings: the column of vectors that `encode` made; where there is none by this name,
                or with None, the passages are embedded.
            words: words a passage, where rows are to be cut into passages; that embeds them.
            **options: as of `build_knowledge_base`.

        Raises:
            TypeError, ValueError, FileExistsError, OSError: as `build_knowledge_base`.
        """
        from rag_core.knowledge.frames import as_frame

        frame = as_frame(dataset)
        if frame is None:
            raise TypeError(
                f"dataset must be a table in memory, got {type(dataset).__name__}. Files and "
                "folders go to build_knowledge_base."
            )
        if words is not None or embeddings not in frame.columns:
            embeddings = None
        return build_knowledge_base(
            dataset, out, encode, words=words, embeddings=embeddings, **options
        )

    def info(self) -> dict[str, Any]:
        """What the knowledge base holds and what made it, in plain values for JSON.

        Passages, words a passage, files by kind, keys that conditions can name with a few of their
        values, encoder and where it lies on this machine (None where it doesn't), index, size.
        """
        from rag_core.knowledge.info import base_info

        return base_info(self)

    def index(self, *, memory_map: bool | None = None, search: str | None = None) -> Any:
        """The index for a `RagRetriever`; a knowledge base changed later gives a new one, this one
        stays as it is.

        Args:
            memory_map: maps the faiss file instead of reading it into memory; None maps more than 1
                GB.
            search: "vectors" (a `FaissIndex`), "bm25" (a `Bm25Index`, memory-mapped) or "hybrid" (a
                `HybridIndex` of both); None as it was built. A base built for one of the latter two
                has all three.

        Raises:
            ValueError: it was not built to be searched like that.
        """
        from rag_core.retrieval import BM25_FOLDER, Bm25Index, FaissIndex, HybridIndex

        search = search or self.manifest.search
        if search not in ("vectors", *WAYS):
            raise ValueError(f"search must be one of vectors, {', '.join(WAYS)}, got {search!r}")
        if search != "vectors" and self.manifest.search == "vectors":
            raise ValueError(
                f"search must be 'vectors' for {self.path}, got {search!r}: it was built without an "
                "index of words. Build it with  --index bm25  or  --index hybrid"
            )
        words = None
        if search != "vectors":
            words = Bm25Index.from_files(self.path / layout.PASSAGES, self.path / BM25_FOLDER)
        if search == "bm25":
            return words
        index = FaissIndex.from_files(
            self.path / layout.PASSAGES, self.path / layout.INDEX_FILE, memory_map=memory_map
        )
        index.init_index()
        if search == "hybrid":
            return HybridIndex(index, words)
        return index

    @overload
    def search(  # type: ignore[overload-overlap]  # a string is no list of questions
        self,
        questions: str,
        k: int = 5,
        where: Where | None = None,
        *,
        encoder: Encoder | None = None,
        backend: str | None = None,
    ) -> list[Hit]: ...

    @overload
    def search(
        self,
        questions: Iterable[str],
        k: int = 5,
        where: Where | None = None,
        *,
        encoder: Encoder | None = None,
        backend: str | None = None,
    ) -> list[list[Hit]]: ...

    def search(
        self,
        questions: str | Iterable[str],
        k: int = 5,
        where: Where | None = None,
        *,
        encoder: Encoder | None = None,
        backend: str | None = None,
    ) -> list[Hit] | list[list[Hit]]:
        """The passages nearest to a question, or to each of several: text in, passages out.

        Index and encoder are loaded at the first search and kept. Several threads may search at
        once.

        Args:
            questions: one question, or a list of them.
            k: passages a question.
            where: conditions on passages, as `FaissIndex.where` takes them: "source=handbook/*",
                "page>=3", a list of which all must hold, or a function of a passage. Those that
                match are searched exactly.
            encoder: of the questions: a folder or name, an encoder that `load_encoder` gave, or a
                function (n texts -> vectors (n, D)). By default the one that embedded the passages;
                passages by DPR's context encoder need its partner, a question encoder, named here.
            backend: "torch" or "tf"; by default the one in use or installed.

        Returns:
            At most k hits, best first; for several questions a list of such lists.

        Raises:
            TypeError, ValueError: no question; an encoder that does not belong to the passages;
                conditions that cannot be read or match nothing.
            OSError, ImportError: the encoder or the backend cannot be loaded.
        """
        from rag_core.knowledge.search import checked_request, search_index

        texts, k = checked_request(questions, k)
        with self._loaded.lock:  # else a thread could search what another's conditions leave
            index, embed = self._load(where, encoder, backend)
        found = search_index(index, embed, texts, k)
        if isinstance(questions, str):
            return found[0]
        return found

    def _load(
        self, where: Where | None, encoder: Encoder | None, backend: str | None
    ) -> tuple[Any, EmbedQuestions | None]:
        """What a search needs: the index, or what conditions leave of it, and what embeds
        questions.
        """
        from rag_core.knowledge.search import question_encoder

        loaded = self._loaded
        if loaded.manifest is not self.manifest:
            loaded.manifest, loaded.index = self.manifest, self.index()
            loaded.filtered = None
        index: Any = loaded.index
        if where is not None:
            if not isinstance(where, str) and not callable(where):
                where = list(where)
            if loaded.filtered is None or loaded.where != where:
                loaded.where, loaded.filtered = where, index.where(where)
            index = loaded.filtered
        key = (encoder, backend)
        if needs_vectors(index) and (loaded.key != key or loaded.embed is None):
            loaded.embed = question_encoder(self, encoder, backend)
            loaded.key = key
        return index, loaded.embed

    @property
    def encoder_options(self) -> dict[str, Any]:
        """What the passages' encoder is loaded with beside its name: its prompts, where the
        manifest has some.
        """
        prompts = self.manifest.encoder.get("prompts")
        if not prompts:
            return {}
        return {"prompts": prompts}

    @property
    def encoder_source(self) -> str:
        """What to load the passages' encoder from: its folder beside the knowledge base, where it
        lies there, else its name.
        """
        encoder = self.manifest.encoder
        if "path" in encoder:
            folder = Path(os.path.normpath(self.path / encoder["path"]))
            if (folder / "config.json").is_file():
                return str(folder)
        return encoder["name"]

    def check_encoder(self, encode: Encode, name: str = "encode") -> None:
        """Refuses an encoder other than the one that embedded the passages, by its vector of a
        fixed sentence.

        Raises:
            ValueError: another vector; names both encoders.
        """
        manifest = self.manifest
        vector = probe_vector(encode)
        is_same = same_probe(manifest.encoder["probe"], layout.probe_entry(vector))
        if len(vector) != manifest.dimension or not is_same:
            raise ValueError(
                f"{self.path} was embedded by {manifest.encoder['name']!r} "
                f"(D={manifest.dimension}); {name!r} (D={len(vector)}) gives other vectors. "
                "Use the same encoder, or build the base anew."
            )

    def check_model(self, config: Any) -> None:
        """Refuses a model whose question vectors do not fit these passages.

        Args:
            config: a RagConfig or a question encoder's config. Where it has a `context_encoder`
                (name of the encoder that its passages are embedded with), that is compared, too.

        Raises:
            ValueError: another vector size or encoder; names both sides. Any model fits passages
                that are searched by words.
        """
        if self.manifest.search == "bm25":
            return
        encoder = getattr(config, "question_encoder", None) or config
        size = getattr(encoder, "projection_dim", 0) or getattr(encoder, "hidden_size", None)
        if size is not None and size != self.manifest.dimension:
            raise ValueError(
                f"the model's question encoder ({getattr(encoder, 'model_type', '?')}) gives "
                f"vectors of D={size}, the knowledge base {self.path} holds "
                f"D={self.manifest.dimension} by {self.manifest.encoder['name']!r}. Index the "
                "passages with the encoder that belongs to the model, or take another model."
            )
        expected = getattr(config, "context_encoder", None)
        name = self.manifest.encoder["name"]
        # The same encoder may lie in a folder here and in a repository there.
        if isinstance(expected, str) and Path(expected).name != Path(name).name:
            raise ValueError(
                f"the model expects passages embedded by {expected!r}, the knowledge base "
                f"{self.path} was embedded by {name!r}. Build it with  --encoder {expected}"
            )

    def add(
        self,
        paths: Paths | Any,
        encode: Encode | None = None,
        *,
        words: int | None = -1,
        text_column: str | None = None,
        title_column: str | None = None,
        exclude: str | Iterable[str] = (),
        skip_bad: bool = False,
        backend: str | None = None,
        progress: bool = True,
    ) -> int:
        """Appends the passages of more files; rows keep their numbers. Resumable and atomic as a
        build is.

        Asked again after a kill, it adds nothing twice.

        Args:
            paths: files or folders, or one table in memory, as of `build_knowledge_base`.
            encode: the encoder that embedded the others; None loads it by the manifest's name.
            words: words a passage; by default as the knowledge base was built.
            text_column, title_column, exclude, skip_bad: as in `build_knowledge_base`; they add to
                what the knowledge base was built with, and hold for its updates, too.
            backend: that loads the encoder, "torch" or "tf"; None as in `search`.
            progress: draws progress bars on stderr.

        Returns:
            The number of passages added.

        Raises:
            ValueError: a file that is in the knowledge base already (`update` reads it again), a
                column other than that of the build, or as `build_knowledge_base`.
        """
        from rag_core.knowledge.documents import ReadingOptions, readable
        from rag_core.knowledge.frames import as_frame
        from rag_core.retrieval import read_faiss

        self._check_columns()
        old = self.manifest
        reading = _reading(
            old.request,
            text_column=text_column,
            title_column=title_column,
            exclude=exclude,
            skip_bad=skip_bad,
        )
        frame = as_frame(paths)
        files: list[tuple[Any, str]]
        if frame is None:
            files, roots = self._files_to_add(paths, reading.get("exclude", ()))
        else:
            files, roots = [(frame, frame.name)], []
        if reading.get("skip_bad"):
            files = readable(files, ReadingOptions.of(reading))
        sources = layout.described_files(files)
        if words == -1:
            words = old.words
        plan = replace(
            old,
            words=words,
            sources=old.sources + sources,
            roots=[*old.roots, *roots],
            request=reading,
        )
        request = {"add": sources, "words": plan.words}
        if done_before(self.path, request) is None:
            self._check_new(sources)
        # Before anything is embedded, which may take hours.
        encode = self._encoder(encode, backend)
        with workplace(self.path) as work:
            added = done_before(self.path, request)
            if type(added) is int:
                return added
            self._check_current()
            shards = embed(files, work, encode, plan, progress)
            kept = read_faiss(self.path / layout.INDEX_FILE)
            batches = chain(read_batches(self._arrow_files()), read_batches(shards))
            self.manifest = assemble(
                work, self.path, batches, replace(plan, words=old.words), kept, request
            )
        return self.manifest.rows - old.rows

    def _files_to_add(
        self, paths: Paths, exclude: Iterable[str]
    ) -> tuple[list[tuple[Path, str]], list[dict[str, str]]]:
        """The files behind paths, and the roots that the knowledge base does not have yet."""
        from rag_core.knowledge.files import find_files, find_roots
        from rag_core.knowledge.update import listed, places_inside

        paths = listed(paths)
        roots = self.manifest.root_paths(self.path)
        inside = places_inside(paths, roots)
        names_inside = {path: place.name for path, place in inside.items()}
        known = {**roots, **names_inside}
        files = find_files(
            paths,
            known,
            exclude=exclude,
            inherited=self.manifest.request.get("exclude", ()),
            below={path: place.below for path, place in inside.items()},
        )
        outside = [
            root for root in find_roots(paths, known) if root[1] not in names_inside.values()
        ]
        return files, layout.root_entries(outside, self.path)

    def update(
        self,
        paths: Paths | None = None,
        encode: Encode | None = None,
        *,
        backend: str | None = None,
        dry_run: bool = False,
        progress: bool = True,
    ) -> Update:
        """Compares the files that were indexed with what they are now, and reads again what changed.

        Files are told by their sha256. Those that are as they were keep their passages and vectors;
        what is new is added, what is gone is removed, and rows are numbered as a build would number
        them. Settings are those of the build. Resumable and atomic as a build is. Passages of an
        unchanged file that were removed stay removed.

        Args:
            paths: files or folders to compare, which may have been moved since, or be new; None
                compares all that were indexed.
            encode: the encoder that embedded the passages; None loads it by the manifest's name,
                if there is something to embed.
            backend: that loads the encoder, "torch" or "tf"; None as in `search`.
            dry_run: say what would be done, and do nothing.
            progress: draws progress bars on stderr.

        Returns:
            What was done; it is false where there was nothing to do.

        Raises:
            FileNotFoundError: a folder that was indexed is not where it was.
            ValueError: bad files; another encoder; a knowledge base of a release that did not note
                which file a passage is of, or of which nothing would be left.
        """
        from rag_core.knowledge.update import Update, UpdatePlan, arranged
        from rag_core.retrieval import read_faiss

        self._check_columns()
        plan = UpdatePlan(self.manifest, self.path, paths)
        if dry_run:
            embedded = sum(1 for _ in passages_of(plan.files, plan.manifest))
            _, removed, _ = arranged(self._arrow_files(), [], plan)
            return plan.outcome(embedded, removed)
        request = {"update": plan.manifest.sources, "roots": plan.manifest.roots}
        done = Update.from_note(done_before(self.path, request))
        if done is None and plan.is_done:
            arranged(self._arrow_files(), [], plan)
            discard_work(self.path)
            return plan.outcome(0, 0)
        if done is None and plan.files:
            encode = self._encoder(encode, backend)
        with workplace(self.path) as work:
            if done is not None:
                return done
            self._check_current()
            shards = []
            if encode is not None and plan.files:
                shards = embed(plan.files, work, encode, plan.manifest, progress)
            batches, removed, in_place = arranged(self._arrow_files(), shards, plan)
            kept = None
            if in_place:
                kept = read_faiss(self.path / layout.INDEX_FILE)
            embedded = sum(map(len, read_batches(shards)))
            outcome = plan.outcome(embedded, removed)
            self.manifest = assemble(
                work, self.path, batches, plan.manifest, kept, request, outcome.to_dict()
            )
        return outcome

    def reembed(
        self,
        out: str | Path,
        encode: Encode,
        *,
        encoder_name: str,
        encoder_fingerprint: str,
        encoder_path: str | None = None,
        place: str | Path | None = None,
        progress: bool = True,
    ) -> KnowledgeBase:
        """A new knowledge base: the same passages in the same rows, with vectors by another encoder.

        Resumable and atomic as a build is; this one stays as it is.

        Args:
            out: folder to create; one that holds what is asked for is found done.
            encode: the encoder.
            encoder_name: what the manifest calls it.
            encoder_fingerprint: tells its weights from all others.
            encoder_path: its folder, relative to the new knowledge base; None = not beside it.
            place: where the new knowledge base will lie in the end, if it is moved from `out`.
            progress: draws progress bars on stderr.

        Raises:
            FileExistsError: `out` holds something else already.
            ValueError: an encoder that returns wrong shapes or NaN.
            OSError: another process writes `out`, or the disk is full.
        """
        from rag_core.knowledge.reembedding import reembed

        self._check_columns()
        probe = probe_vector(encode)
        encoder: dict[str, Any] = {
            "name": encoder_name,
            "fingerprint": encoder_fingerprint,
            "probe": layout.probe_entry(probe),
        }
        if encoder_path is not None:
            encoder["path"] = encoder_path
        out = _named(out)
        roots = self.manifest.root_paths(self.path)
        plan = replace(
            self.manifest,
            encoder=encoder,
            dimension=len(probe),
            roots=layout.root_entries(roots.items(), Path(place or out)),
            rows=0,
            index={},
        )
        reembed(self._arrow_files(), out, encode, plan, progress)
        return KnowledgeBase.open(out)

    def matching(self, where: Where) -> np.ndarray:
        """The row numbers of the passages that conditions hold for, (n,) int64 in order.

        Args:
            where: as of `search`.

        Raises:
            TypeError, ValueError: conditions that cannot be read or match nothing.
        """
        return matching_rows(self.dataset(), where)

    def remove(
        self,
        ids: Iterable[int] | None = None,
        *,
        title: str | Callable[[str], bool] | None = None,
        where: Where | None = None,
        dry_run: bool = False,
    ) -> int:
        """Removes passages and rebuilds the index; the rows after them move up. Atomic.

        Asked again after a kill, it removes nothing twice.

        Args:
            ids: row numbers, or
            title: an exact title, or a function of a title that is true for those to remove, or
            where: conditions on passages, as of `search`: "file=handbook/old.md".
            dry_run: count them, and remove nothing.

        Returns:
            The number of passages removed.

        Raises:
            ValueError: several or none given, a row that does not exist, nothing or everything
                selected, or as of `search`.
        """
        from rag_core.knowledge.update import files_of, without_lost

        if sum(each is not None for each in (ids, title, where)) != 1:
            raise ValueError(
                "give either ids= (row numbers) or title= (a title or a function of it) or where= "
                "(conditions)"
            )
        self._check_columns()
        rows = digest = None
        if ids is not None:
            rows = np.asarray(list(ids), np.int64)
            digest = hashlib.sha256(np.unique(rows).tobytes()).hexdigest()
        request: dict[str, Any] = {
            "remove": digest,
            "title": _comparable(title),
            "where": _comparable(where),
        }
        if dry_run:
            return int(self._to_remove(rows, title, where).sum())
        with workplace(self.path) as work:
            removed = done_before(self.path, request)
            # A function can't be compared, what it selects can: if that is there, it is another
            # one.
            is_function = callable(title) or callable(where)
            if type(removed) is int and not (
                is_function and self._selected(rows, title, where).any()
            ):
                return removed
            self._check_current()
            drop = self._to_remove(rows, title, where)
            arrow_files = self._arrow_files()
            names = np.array([*files_of(read_batches(arrow_files))], object)
            plan = without_lost(self.manifest, self.path, {*names[~drop]})
            batches = without(read_batches(arrow_files), drop)
            self.manifest = assemble(work, self.path, batches, plan, request=request)
        return int(drop.sum())

    def _to_remove(
        self,
        rows: np.ndarray | None,
        title: str | Callable[[str], bool] | None,
        where: Where | None,
    ) -> np.ndarray:
        """As `_selected`, where something and not everything is."""
        drop = self._selected(rows, title, where)
        if not drop.any() or drop.all():
            raise ValueError(
                f"{'all' if drop.all() else 'none'} of the {len(self)} passages match; "
                "nothing was removed."
            )
        return drop

    def _selected(
        self,
        rows: np.ndarray | None,
        title: str | Callable[[str], bool] | None,
        where: Where | None,
    ) -> np.ndarray:
        """Which passages `remove` means, (R,) booleans."""
        if where is not None:
            rows = self.matching(where)
        if rows is not None:
            if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
                raise ValueError(
                    f"ids must be rows 0 to {len(self) - 1}, got {rows.min()} to {rows.max()}"
                )
            drop = np.zeros(len(self), bool)
            drop[rows] = True
            return drop
        names: list[str] = []
        for batch in read_batches(self._arrow_files()):
            names += batch.column("title").to_pylist()
        if callable(title):
            return np.array([bool(title(name)) for name in names], bool)
        return np.array([name == title for name in names], bool)

    def _encoder(self, encode: Encode | None, backend: str | None) -> Encode:
        """The encoder given, or that of the manifest, checked."""
        from rag_core.knowledge.search import load_encoder

        if encode is None:
            name = self.manifest.encoder["name"]
            encode = load_encoder(self, name, backend).embed
        self.check_encoder(encode)
        return encode

    def _check_current(self) -> None:
        """Refuses to change what another process has changed since it was opened."""
        if Manifest.read(self.path) != self.manifest:
            raise OSError(
                f"{self.path} has been changed since it was opened, by another process or another "
                "KnowledgeBase. Open it again, and repeat the change."
            )

    def _check_new(self, sources: list[dict[str, Any]]) -> None:
        """Refuses files that are in the knowledge base already."""
        from rag_core.knowledge.update import is_table

        known = {entry.get("path") for entry in self.manifest.sources}
        names = [entry["path"] for entry in sources if entry["path"] in known]
        # Bases of before have files of several folders under one name; tables have one of their own.
        if names and (self.manifest.roots or all(map(is_table, names))):
            raise ValueError(
                f"paths must be new to {self.path}, got {numbered(names)}, which it holds already. "
                f"Bring it up to its files:  dualrag update {self.path}  (KnowledgeBase.update)"
            )

    def _check_columns(self) -> None:
        columns = self.dataset().column_names
        if missing := [name for name in ("title", "text", "embeddings") if name not in columns]:
            raise ValueError(
                f"the passages of {self.path} must have columns title, text and embeddings, "
                f"{missing} are missing: it can be asked, but not changed. Build it anew."
            )
        if further := [name for name in columns if name not in passage_schema().names]:
            raise ValueError(
                f"the passages of {self.path} have columns {further} of somebody else's: it can be "
                "asked, but not changed. Build it anew."
            )

    def _arrow_files(self) -> list[Path]:
        names = [name for name in sorted(self.manifest.files) if name.endswith(".arrow")]
        files = [self.path / name for name in names]
        check_arrow(files)
        return files


def _named(path: str | Path) -> Path:
    """The path; "." and ".." in full, as folders beside it are named after it."""
    path = Path(path)
    if path.name in ("", ".."):
        return path.resolve()
    return path


def _check_embeddings(frame: Any, column: str) -> None:
    if frame is None:
        raise ValueError(
            f"embeddings must name a column of a table in memory, got {column!r} with files. Leave "
            "it out, or read the file into a frame."
        )
    if column not in frame.columns:
        raise ValueError(
            f"embeddings must be one of the table's columns, {frame.columns!r:.200}, got "
            f"{column!r}. Name another one, or leave it out: passages are embedded then."
        )


def _comparable(selection: Any) -> Any:
    """What a note can hold of a selection of passages."""
    if callable(selection):
        return "a function"
    return selection


def _same_sources(old: Manifest, plan: Manifest) -> bool:
    if old.roots:
        return old.sources == plan.sources
    # Before there were roots, files of the same name in several of them were told alike.
    found = [
        [{**entry, "path": Path(str(entry.get("path"))).name} for entry in sources]
        for sources in (old.sources, plan.sources)
    ]
    return found[0] == found[1]


def _reading(request: Mapping[str, Any], **asked: Any) -> dict[str, Any]:
    """The request of a build with the options of an `add`."""
    reading = dict(request)
    for name in ("text_column", "title_column"):
        if asked[name] is None:
            continue
        before = reading.setdefault(name, asked[name])
        if before != asked[name]:
            raise ValueError(
                f"{name} must be that of the knowledge base, {before!r}, got {asked[name]!r}. Rename "
                "the column, or build the base anew."
            )
    patterns = reading.get("exclude", [])
    patterns = [*patterns, *(one for one in _patterns(asked["exclude"]) if one not in patterns)]
    if patterns:
        reading["exclude"] = patterns
    if asked["skip_bad"]:
        reading["skip_bad"] = True
    return reading


def _patterns(exclude: str | Iterable[str]) -> list[str]:
    if isinstance(exclude, str):
        return [exclude]
    return list(exclude)


def _check_kind(kind: str | None) -> None:
    kinds = (*INDEX_KINDS, *WAYS)
    if kind not in (None, "auto", *kinds):
        raise ValueError(f"index must be one of {', '.join(kinds)} or auto, got {kind!r}")
    if kind in WAYS:
        from rag_core.retrieval import bm25_library

        bm25_library()  # now rather than after hours of embedding


def _existing(out: Path, plan: Manifest, overwrite: bool) -> KnowledgeBase | None:
    """The knowledge base that a build of `plan` would make, if it is there already."""
    if not out.exists():
        return None
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
        return None
    if not (out / layout.FILE).is_file():
        raise FileExistsError(
            f"{out} exists and is no knowledge base. Choose another folder to write to."
        )
    if overwrite:
        return None
    existing = KnowledgeBase.open(out)
    old = existing.manifest
    has_same_sources = _same_sources(old, plan)
    # bases of before have the folder's own prompts, and do not say so
    prompts = [each.encoder.get("prompts") for each in (old, plan)]
    has_same_prompts = None in prompts or prompts[0] == prompts[1]
    prints = [each.encoder.get("fingerprint") for each in (old, plan)]
    has_same_weights = None in prints or prints[0] == prints[1]
    is_same_encoder = (
        old.encoder["name"] == plan.encoder["name"] and has_same_prompts and has_same_weights
    )
    if (
        has_same_sources
        and old.request == plan.request
        and is_same_encoder
        and same_probe(old.encoder["probe"], plan.encoder["probe"])
    ):
        discard_work(out)
        return existing
    differences = _differences(old.request, plan.request, has_same_sources)
    if not has_same_weights:
        differences += "; the encoder's weights are others"
    raise FileExistsError(
        f"{out} holds another knowledge base ({old.rows} passages by {old.encoder['name']!r})"
        f"{differences}. Choose another folder, replace it (overwrite=True, --overwrite), bring it "
        f"up to its files (dualrag update {out}) or add to it (dualrag add {out} PATHS)."
    )


def _differences(
    stored: Mapping[str, Any], asked: Mapping[str, Any], has_same_sources: bool
) -> str:
    """What a build asks for that a finished one was not made with, for people."""
    rows = [
        f"{name}: {stored.get(name)!r} there, {asked.get(name)!r} now"
        for name in sorted({*stored, *asked})
        if stored.get(name) != asked.get(name)
    ]
    if not has_same_sources:
        rows.append("its files are others or have changed")
    return "".join(f"; {row}" for row in rows)
