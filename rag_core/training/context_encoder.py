"""The encoder of passages, learning along: opened, searched with, saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.hub import resolve_file
from rag_core.knowledge import KnowledgeBase, PassageEncoderBase
from rag_core.retrieval import FreshIndex, Index
from rag_core.training.reindexing import BASE, Reindexing

if TYPE_CHECKING:
    from rag_core.training.run import TrainingRun


def encoder_source(base: KnowledgeBase, named: str | Path | None) -> str | Path:
    """Where the encoder lies that embedded a knowledge base.

    Args:
        base: the knowledge base.
        named: folder or name; None is what the knowledge base says.

    Raises:
        OSError: it is not to be found.
    """
    source = named or base.encoder_source
    try:
        resolve_file(source, "config.json")
    except OSError as error:
        raise OSError(
            f"the passages of {base.path} were embedded by {base.manifest.encoder['name']!r}, and "
            f"{str(source)!r} cannot be loaded ({error}). Name the encoder's folder: "
            "context_encoder_model (--context-encoder-model)."
        ) from error
    return source


def open_passage_encoder(
    engine: Any, base: KnowledgeBase, source: str | Path, device: str | None
) -> PassageEncoderBase:
    """The encoder that embedded a knowledge base, opened to learn.

    Args:
        engine: the backend's package.
        base: the knowledge base.
        source: folder or name.
        device: where to compute.

    Raises:
        ValueError: it is of a kind that does not learn here, or gives other vectors.
    """
    encoder = engine.load_encoder(source, device=device)
    base.check_encoder(encoder.embed, str(source))
    return encoder


class LiveEncoder:
    """What a run does besides whose encoder of passages learns along.

    Args:
        run: the run.
        encoder: gives the vectors of the index that the run begins with.
        base: the passages, embedded anew as the run goes; None embeds none.

    Attributes:
        reindexing: the indexes that the run makes, None where it makes none.
    """

    def __init__(
        self, run: TrainingRun, encoder: PassageEncoderBase, base: KnowledgeBase | None
    ) -> None:
        self.encoder = encoder
        self.reindexing: Reindexing | None = None
        self._run = run
        if base is not None and run.out is not None:
            self.reindexing = Reindexing(
                base,
                encoder,
                run.out,
                every=run.config.reindex_every,
                total=run.total,
                backend=run.backend,
                device=run.encoder_device,
                say=run.say,
            )
        elif run.config.reindex_every:
            raise ValueError(
                f"reindex_every must be 0 without a knowledge base (kb=) and a folder (out=), got "
                f"{run.config.reindex_every}. Give both."
            )

    def attach(self) -> None:
        """Let the model weigh documents by the encoder, and search with it."""
        run = self._run
        run.model.set_context_encoder_for_training(self.encoder.model)
        run.retriever.set_ctx_encoder_tokenizer(self.encoder.passage_tokenizer)
        self._search(run.retriever.index)

    def resume(self, step: int) -> None:
        """Come to where a run was after `step` steps."""
        if self.reindexing is not None:
            self._search(self.reindexing.resume(step))

    def after(self, step: int) -> None:
        """Take an index into use and start on the next one, where that is due after a step."""
        if self.reindexing is not None:
            self._search(self.reindexing.after(step))
            self._run.report.reindex_seconds += self.reindexing.waited
            self.reindexing.waited = 0.0

    def keep(self, step: int) -> None:
        """Remove what a run that goes on from `step` has no use for."""
        if self.reindexing is not None:
            self.reindexing.keep(step)

    def close(self) -> None:
        """End what runs, and search as before."""
        if self.reindexing is not None:
            self.reindexing.close()
        index = self._run.retriever.index
        if isinstance(index, FreshIndex):
            self._run.retriever.index = index.index

    def log(self, step: int) -> dict[str, float]:
        """What a log line holds of the index."""
        if self.reindexing is None:
            return {}
        return {"index_age": self.reindexing.age(step)}

    def settle(self, draft: Path) -> KnowledgeBase | None:
        """Put the knowledge base of the finished model into its folder's draft; the model weighs
        documents by its vectors from now on.
        """
        if self.reindexing is None:
            return None
        base = self.reindexing.place_into(draft)
        model = self._run.model
        model.rag.context_encoder_training = False
        model.config.context_encoder = base.manifest.encoder["name"]
        return base

    def search_finished(self) -> None:
        """Search the knowledge base in the folder of the finished model."""
        run = self._run
        if self.reindexing is not None and run.out is not None:
            run.retriever.index = KnowledgeBase.open(run.out / BASE).index()
            run.retriever.set_ctx_encoder_tokenizer(None)

    def _search(self, index: Index | None) -> None:
        if index is not None:
            run = self._run
            run.retriever.index = FreshIndex(index, self._embed, run.config.overretrieve)

    def _embed(self, titles: list[str], texts: list[str]) -> np.ndarray:
        with self._run.apart():
            return self.encoder.embed(titles, texts)
