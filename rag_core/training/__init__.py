"""Fine-tuning: settings, examples, the steps of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.training.data import Example as Example
    from rag_core.training.data import TrainingConfig as TrainingConfig
    from rag_core.training.data import TrainingReport as TrainingReport
    from rag_core.training.data import batches as batches
    from rag_core.training.data import checked_state as checked_state
    from rag_core.training.data import read_examples as read_examples
    from rag_core.training.loop import RunFiles as RunFiles
    from rag_core.training.loop import finished_before as finished_before
    from rag_core.training.loop import run_steps as run_steps
    from rag_core.training.loop import source_fingerprint as source_fingerprint

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "data": [
            "Example",
            "TrainingConfig",
            "TrainingReport",
            "batches",
            "checked_state",
            "read_examples",
        ],
        "loop": ["RunFiles", "finished_before", "run_steps", "source_fingerprint"],
    },
)
