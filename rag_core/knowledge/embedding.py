"""Passages -> shards of (title, text, embedding) on disk, so that a kill at any moment costs one
shard at most.

A shard is written to a temporary name, synced and renamed: it exists whole or not at all. It is the
unit of work, sorted and batched by itself, so a resumed run sends the encoder the very batches an
uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from rag_core.hub import atomic_write, reading
from rag_core.knowledge.passages import PassageRow
from rag_core.retrieval import METADATA_COLUMN, encode_metadata

if TYPE_CHECKING:
    import pyarrow as pa

Encode = Callable[[list[str], list[str]], np.ndarray]  # (titles, texts) -> (n, D) float32
Advance = Callable[[int, bool], None]  # (passages done, whether they were found done)
TextRow = tuple[str | None, ...]  # values of TEXT_COLUMNS
TEXT_COLUMNS = ("title", "text", "source", METADATA_COLUMN)
# Never to be changed: knowledge bases hold its vector.
PROBE = ("Probe", "A fixed sentence by whose vector an encoder is recognised.")


class Block(NamedTuple):
    """The passages of a shard that is to be made.

    Attributes:
        path: of its file.
        rows: n rows of text.
        titles: their titles, "" where there is none.
        texts: their texts, likewise.
    """

    path: Path
    rows: list[TextRow]
    titles: list[str]
    texts: list[str]


@runtime_checkable
class BlockEncoder(Protocol):
    """An encoder that embeds several shards at a time, with the batches of `block_vectors`."""

    def __call__(self, titles: list[str], texts: list[str]) -> np.ndarray:
        """As any encoder."""
        ...

    def embed_blocks(
        self, blocks: Iterable[Block], batch_size: int, dimension: int, advance: Advance
    ) -> Iterator[tuple[Block, np.ndarray]]:
        """Each block with its vectors (n, D), as they are ready."""
        ...


def call_encoder(
    encode: Encode, titles: list[str], texts: list[str], dimension: int | None = None
) -> np.ndarray:
    """The encoder's vectors, checked.

    Raises:
        TypeError: `encode` cannot be called.
        ValueError: not (n, D), another D than before, or NaN or infinity.
    """
    if not callable(encode):
        raise TypeError(
            f"encode must be a function of titles and texts, got {encode!r}. Give e.g. "
            "load_encoder(NAME).embed"
        )
    vectors = np.asarray(encode(titles, texts))
    if vectors.ndim != 2 or len(vectors) != len(texts) or not vectors.shape[1]:
        raise ValueError(
            f"encode must return one vector a passage, ({len(texts)}, D), got shape {vectors.shape}"
        )
    if dimension not in (None, vectors.shape[1]):
        raise ValueError(
            f"encode must return vectors of one size, got D={vectors.shape[1]} after D={dimension}"
        )
    if not np.isfinite(vectors).all():
        row = int(np.argwhere(~np.isfinite(vectors))[0, 0])
        raise ValueError(
            f"encode returned NaN or infinity, first for the passage {texts[row][:60]!r}. Use "
            "float32."
        )
    return np.ascontiguousarray(vectors, np.float32)


def probe_vector(encode: Encode) -> np.ndarray:
    """The vector (D,) of a fixed sentence; two encoders are the same when it nearly is."""
    return call_encoder(encode, [PROBE[0]], [PROBE[1]])[0]


def same_probe(left: Iterable[float], right: Iterable[float]) -> bool:
    """Whether two (beginnings of) probe vectors differ by rounding only.

    At most a tenth of their length.
    """
    first = np.asarray(left, np.float64)
    second = np.asarray(right, np.float64)
    size = min(len(first), len(second))
    distance = np.linalg.norm(first[:size] - second[:size])
    return bool(distance <= 0.1 * np.linalg.norm(first[:size]))


def embed_shards(
    rows: Iterable[TextRow],
    folder: Path,
    encode: Encode,
    *,
    batch_size: int,
    shard_rows: int,
    dimension: int,
    advance: Advance,
) -> list[Path]:
    """Embeds `rows` into numbered shard files; vectors of shards with the same texts are kept.

    Args:
        rows: streamed (see `text_row`).
        folder: where the shards go.
        encode: called with `batch_size` passages of like length; a `BlockEncoder` with all shards
            that are missing.
        batch_size: passages a call.
        shard_rows: passages a shard.
        dimension: D.
        advance: told (number of passages done, whether they were found done) as it goes.

    Returns:
        The shard files, in order.
    """
    stream = iter(rows)
    shards: list[Path] = []

    def missing() -> Iterator[Block]:
        while block := list(islice(stream, shard_rows)):
            path = folder / f"shard-{len(shards):06d}.arrow"
            shards.append(path)
            earlier = _earlier_shard(path)
            # What is embedded is title and text, so a file may have got another name meanwhile.
            if [row[:2] for row in earlier.rows] == [row[:2] for row in block]:
                if earlier.rows != block:
                    _write_shard(path, block, earlier.vectors)
                advance(len(block), True)
                continue
            titles = [row[0] or "" for row in block]
            texts = [row[1] or "" for row in block]
            yield Block(path, block, titles, texts)

    def one_by_one(blocks: Iterable[Block]) -> Iterator[tuple[Block, np.ndarray]]:
        for block in blocks:
            texts = block.titles, block.texts
            yield block, block_vectors(encode, *texts, batch_size, dimension, advance)

    embedded = one_by_one(missing())
    if isinstance(encode, BlockEncoder):
        embedded = encode.embed_blocks(missing(), batch_size, dimension, advance)
    for block, vectors in embedded:
        _write_shard(block.path, block.rows, vectors)
    return shards


def block_vectors(
    encode: Encode,
    titles: list[str],
    texts: list[str],
    batch_size: int,
    dimension: int,
    advance: Advance = lambda count, found: None,
) -> np.ndarray:
    """The vectors (n, D) of the passages of a shard, in batches of like length, so that little of a
    batch is padding.
    """
    vectors = np.empty((len(texts), dimension), np.float32)
    lengths = [len(title) + len(text) for title, text in zip(titles, texts, strict=True)]
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        ids = order[start : start + batch_size]
        parts = [titles[i] for i in ids], [texts[i] for i in ids]
        vectors[ids] = call_encoder(encode, *parts, dimension)
        advance(len(ids), False)
    return vectors


def passage_schema() -> pa.Schema:
    """The columns of transformers' custom index (title, text, embeddings), and where passages come
    from.
    """
    import pyarrow as pa

    texts = [(name, pa.string()) for name in TEXT_COLUMNS]
    return pa.schema([*texts, ("embeddings", pa.list_(pa.float32()))])


def write_batches(path: Path, batches: Iterable[Any]) -> None:
    """Writes record batches as an Arrow stream, the format of `datasets`."""
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, passage_schema()) as writer:
        for batch in batches:
            writer.write_batch(batch)


def read_batches(files: Iterable[Path]) -> Iterator[pa.RecordBatch]:
    """Streams the record batches of Arrow files, memory-mapped.

    Raises:
        ValueError: a file is truncated or is no Arrow stream.
    """
    import pyarrow as pa

    for path in files:
        with reading(path, "is damaged", "Build it anew."):
            with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
                batches = list(reader)  # views of the mapped file
            for batch in batches:
                batch.validate()
        yield from map(_with_origins, batches)


def _with_origins(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch of today's columns: knowledge bases of before do not say where passages come from."""
    import pyarrow as pa

    names = batch.schema.names
    if "source" in names and METADATA_COLUMN in names:
        return batch
    columns = dict.fromkeys(passage_schema().names, pa.nulls(len(batch), pa.string()))
    columns.update(zip(names, batch.columns, strict=True))
    return pa.record_batch(list(columns.values()), names=list(columns))


def text_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[TextRow]:
    """The values of `TEXT_COLUMNS` of each row."""
    for batch in batches:
        columns = [batch.column(name).to_pylist() for name in TEXT_COLUMNS]
        yield from zip(*columns, strict=True)


def batch_vectors(batch: pa.RecordBatch) -> np.ndarray:
    """The (m, D) float32 vectors of a record batch."""
    column = batch.column(batch.schema.get_field_index("embeddings"))
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(batch), -1)


def _write_shard(path: Path, rows: Sequence[TextRow], vectors: np.ndarray) -> None:
    import pyarrow as pa

    # By offsets into one array: of lists every number would be made a Python object first.
    offsets = pa.array(np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int32))
    embeddings = pa.ListArray.from_arrays(offsets, pa.array(vectors.reshape(-1)))
    columns = [pa.array(texts, pa.string()) for texts in zip(*rows, strict=True)]
    batch = pa.record_batch([*columns, embeddings], schema=passage_schema())
    with atomic_write(path) as draft:
        write_batches(draft, [batch])


def text_row(row: PassageRow) -> TextRow:
    """The values of `TEXT_COLUMNS`."""
    metadata = encode_metadata(row["metadata"], row["source"] or row["title"])
    return row["title"], row["text"], row["source"], metadata


class _Shard(NamedTuple):
    rows: list[TextRow]
    vectors: np.ndarray


def _earlier_shard(path: Path) -> _Shard:
    """What a shard holds; a damaged one, which is made anew, holds nothing."""
    rows: list[TextRow] = []
    vectors: list[np.ndarray] = []
    nothing = _Shard([], np.empty(0))
    if not path.exists():
        return nothing
    try:
        for batch in read_batches([path]):
            rows += text_rows([batch])
            vectors.append(batch_vectors(batch))
        return _Shard(rows, np.concatenate(vectors))
    except ValueError:
        return nothing
