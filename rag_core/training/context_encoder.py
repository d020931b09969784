"""The encoder of passages, learning along: opened, searched with, saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.backends import to_numpy, to_tensor
from rag_core.config import BertConfig
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
    engine: Any, base: KnowledgeBase, source: str | Path, part: str, device: str | None
) -> PassageEncoderBase:
    """The encoder that embedded a knowledge base, opened to learn.

    Args:
        engine: the backend's package.
        base: the knowledge base.
        source: folder or name.
        part: what is to learn; a sentence encoder without a projection gets one for "projection".
        device: where to compute.

    Raises:
        ValueError: it is of a kind that does not learn here, or gives other vectors.
    """
    options = {}
    if str(source) in (base.encoder_source, base.manifest.encoder["name"]):
        options = base.encoder_options
    encoder = engine.load_encoder(source, device=device, **options)
    base.check_encoder(encoder.embed, str(source))
    config = encoder.model.config
    if part == "projection" and isinstance(config, BertConfig) and not config.projection_dim:
        encoder.model = _with_projection(encoder)
    return encoder


def _with_projection(encoder: PassageEncoderBase) -> Any:
    """A network of the same vectors that has a projection, which leaves them as they are."""
    size = encoder.dimension
    arrays = {name: to_numpy(value) for name, value in encoder.model.state_dict().items()}
    arrays["encode_proj.weight"] = np.eye(size, dtype=np.float32)
    arrays["encode_proj.bias"] = np.zeros(size, np.float32)
    fields = {**encoder.model.config.to_dict(), "projection_dim": size}
    network = type(encoder.model)(BertConfig.from_dict(fields))
    kind = encoder.return_tensors
    network.load_state_dict({name: to_tensor(array, kind) for name, array in arrays.items()})
    return network.to(encoder.model.device).eval()


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
        self._before: Any = None
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
                processes=run.processes,
            )
        elif run.config.reindex_every:
            raise ValueError(
                f"reindex_every must be 0 without a knowledge base (kb=) and a folder (out=), got "
                f"{run.config.reindex_every}. Give both."
            )

    def attach(self) -> None:
        """Let the model weigh documents by the encoder, and search with it."""
        run = self._run
        self._before = run.retriever.index
        run.model.set_context_encoder_for_training(self.encoder.model)
        run.retriever.set_ctx_encoder_tokenizer(self.encoder.passage_tokenizer)
        self._search(run.retriever.index)

    def end_at(self, total: int) -> None:
        """The run has so many steps, as some of its questions were left out."""
        if self.reindexing is not None:
            self.reindexing.total = total

    def resume(self, step: int) -> None:
        """Come to where a run was after `step` steps."""
        if self.reindexing is not None:
            self._search(self.reindexing.resume(step))

    def after(self, step: int) -> None:
        """Take an index into use and start on the next one, where that is due after a step."""
        if self.reindexing is None:
            return
        self._search(self.reindexing.after(step))
        self._count_waiting()
        # without checkpoints nothing needs what is older
        if not self._run.config.save_every and self._run.processes.is_first:
            self.reindexing.keep(step)

    def keep(self, step: int) -> None:
        """Remove what a run that goes on from `step` has no use for."""
        if self.reindexing is not None:
            self.reindexing.keep(step)

    def close(self) -> None:
        """End what runs, and search as before."""
        if self.reindexing is not None:
            self.reindexing.close()
        self._run.retriever.index = self._before

    def log(self, step: int) -> dict[str, float]:
        """What a log line holds of the index."""
        if self.reindexing is None:
            return {}
        return {"index_age": self.reindexing.age(step)}

    def finish(self, step: int) -> None:
        """See that the index in use is of the weights as they are, those after `step` steps: a run
        may have gone back to them, or stopped early.
        """
        if self.reindexing is not None and self.reindexing.made_at != step:
            self.reindexing.made_now(step)
            self._count_waiting()

    def settle(self, draft: Path) -> KnowledgeBase | None:
        """Put the knowledge base of the finished model into its folder's draft; the model weighs
        documents by its vectors from now on.
        """
        if self.reindexing is None:
            return None
        base = self.reindexing.place_into(draft)
        self._weigh_by(base)
        return base

    def _weigh_by(self, base: KnowledgeBase) -> None:
        model = self._run.model
        model.rag.context_encoder_training = False
        model.config.context_encoder = base.manifest.encoder["name"]

    def search_finished(self) -> None:
        """Search the knowledge base in the folder of the finished model."""
        run = self._run
        if self.reindexing is not None and run.out is not None:
            base = KnowledgeBase.open(run.out / BASE)
            self._weigh_by(base)
            run.retriever.index = base.index()
            run.retriever.set_ctx_encoder_tokenizer(None)

    def _count_waiting(self) -> None:
        if self.reindexing is not None:
            self._run.report.reindex_seconds += self.reindexing.waited
            self.reindexing.waited = 0.0

    def _search(self, index: Index | None) -> None:
        if index is not None:
            run = self._run
            run.retriever.index = FreshIndex(index, self._embed, run.config.overretrieve)

    def _embed(self, titles: list[str], texts: list[str]) -> np.ndarray:
        with self._run.apart():
            return self.encoder.embed(titles, texts)
