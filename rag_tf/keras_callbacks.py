"""A callback of Keras: passages embedded anew while `fit` trains the encoder of passages."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import tensorflow as tf

from rag_core.backends import load_backend
from rag_core.hub import atomic_folder
from rag_core.knowledge import KnowledgeBase
from rag_core.training import (
    ALONE,
    REINDEXING,
    LiveEncoder,
    TrainingConfig,
    encoder_source,
    open_passage_encoder,
)

# Of a `fit` whose steps Keras doesn't know before it has made them.
_ENDLESS = 10**12


class ReindexCallback(keras.callbacks.Callback):
    """Lets the encoder of passages learn along in `fit`, as `rag_tf.train` does: documents are
    weighed by what it gives now, every `every` steps a process of its own begins to embed all
    passages anew, and so many steps later the retriever searches what it made.

    When training ends, however it does, passages are embedded with the weights as they are:
    `out/knowledge_base` and `out/context_encoder` are made, and the retriever searches the former.
    The knowledge base that was given stays as it was.

    Args:
        kb: the knowledge base that the model's retriever searches, or its folder.
        out: folder for what is made.
        every: steps between starts; 0 = at the end only.
        overretrieve: so many times `n_docs` are found by vectors that are some steps old, and the
            best `n_docs` by fresh ones are read.
        encoder: what embedded the passages, as `rag_tf.load_encoder` opens it; None = what the
            knowledge base names.

    Attributes:
        kb: the knowledge base; after training that of the trained weights.
        waited: seconds that training has waited for an index.

    Raises:
        OSError: knowledge base or encoder are not to be found.
        ValueError: the encoder gives other vectors, or a setting can't be.
    """

    backend = "tf"
    encoder_device = None
    processes = ALONE

    def __init__(
        self,
        kb: KnowledgeBase | str | Path,
        out: str | Path,
        *,
        every: int = 0,
        overretrieve: int = 2,
        encoder: Any = None,
    ) -> None:
        super().__init__()
        if not isinstance(kb, KnowledgeBase):
            kb = KnowledgeBase.open(kb)
        self.kb = kb
        self.out = Path(out)
        self.config = TrainingConfig(
            context_encoder="all", reindex_every=every, overretrieve=overretrieve, save_every=0
        )
        if encoder is None:
            engine, source = load_backend(self.backend), encoder_source(self.kb, None)
            encoder = open_passage_encoder(engine, self.kb, source, "all", None)
        else:
            self.kb.check_encoder(encoder.embed)
        self.encoder = encoder
        self.report = SimpleNamespace(reindex_seconds=0.0)
        self.total = _ENDLESS
        self._live: LiveEncoder | None = None
        self._step = 0
        self._in_epoch = 0

    @property
    def retriever(self) -> Any:
        """The model's."""
        return self.model.rag.retriever

    @property
    def waited(self) -> float:
        """Seconds that training has waited for an index."""
        return self.report.reindex_seconds

    def say(self, text: str) -> None:
        """Nobody is told; Keras draws a bar."""

    def apart(self) -> contextlib.AbstractContextManager[Any]:
        """Within it no tape records."""
        return tf.init_scope()

    def on_train_begin(self, logs: Any = None) -> None:
        """Attach the encoder to the model, and its tokenizer to the retriever."""
        if self.model.distribute_strategy.num_replicas_in_sync > 1:
            raise ValueError(
                "ReindexCallback must be used on one device, got a strategy with "
                f"{self.model.distribute_strategy.num_replicas_in_sync} replicas. Leave it out: "
                "the vectors of passages then stay as they are"
            )
        if self.params.get("steps"):
            self.total = self.params["steps"] * self.params["epochs"]
        self._step = 0
        self._live = LiveEncoder(self, self.encoder, self.kb)  # has what is asked of a run
        self._live.attach()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Count from the epoch's first step."""
        self._in_epoch = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Take a new index into use where one is due."""
        # With steps_per_execution several steps have been made.
        for _ in range(batch + 1 - self._in_epoch):
            self._step += 1
            # The last index is made when training ends, wherever that is.
            if self._live is not None and self._step < self.total:
                self._live.after(self._step)
        self._in_epoch = batch + 1

    def on_train_end(self, logs: Any = None) -> None:
        """Embed all passages with the weights as they are, and search the result."""
        live, self._live = self._live, None
        if live is None or live.reindexing is None or not self._step:
            return
        live.finish(self._step)
        with atomic_folder(self.out, stale=[f"{REINDEXING}/**/*"]) as draft:
            base = live.settle(draft)
        shutil.rmtree(self.out / REINDEXING, ignore_errors=True)
        live.search_finished()
        if base is not None:
            self.kb = KnowledgeBase.open(self.out / base.path.name)
