"""Fine-tuning: settings, examples, losses, and the run but for a framework's share of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.training.batch import Batch as Batch
    from rag_core.training.batch_passages import PassageRows as PassageRows
    from rag_core.training.batch_passages import passage_rows as passage_rows
    from rag_core.training.callbacks import Callback as Callback
    from rag_core.training.callbacks import TrainingProgress as TrainingProgress
    from rag_core.training.choices import chosen_config as chosen_config
    from rag_core.training.config import TrainingConfig as TrainingConfig
    from rag_core.training.context_encoder import LiveEncoder as LiveEncoder
    from rag_core.training.context_encoder import encoder_source as encoder_source
    from rag_core.training.context_encoder import open_passage_encoder as open_passage_encoder
    from rag_core.training.data import Example as Example
    from rag_core.training.data import batches as batches
    from rag_core.training.data import read_examples as read_examples
    from rag_core.training.losses import ForwardPass as ForwardPass
    from rag_core.training.losses import retriever_losses as retriever_losses
    from rag_core.training.parameters import parameter_groups as parameter_groups
    from rag_core.training.processes import ALONE as ALONE
    from rag_core.training.processes import Processes as Processes
    from rag_core.training.processes import ProcessLost as ProcessLost
    from rag_core.training.processes import started_processes as started_processes
    from rag_core.training.report import TrainingReport as TrainingReport
    from rag_core.training.run import TrainingRun as TrainingRun
    from rag_core.training.state import REINDEXING as REINDEXING
    from rag_core.training.tensorboard import TensorBoard as TensorBoard

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "batch": ["Batch"],
        "batch_passages": ["PassageRows", "passage_rows"],
        "callbacks": ["Callback", "TrainingProgress"],
        "choices": ["chosen_config"],
        "config": ["TrainingConfig"],
        "context_encoder": ["LiveEncoder", "encoder_source", "open_passage_encoder"],
        "data": ["Example", "batches", "read_examples"],
        "losses": ["ForwardPass", "retriever_losses"],
        "parameters": ["parameter_groups"],
        "processes": ["ALONE", "ProcessLost", "Processes", "started_processes"],
        "report": ["TrainingReport"],
        "run": ["TrainingRun"],
        "state": ["REINDEXING"],
        "tensorboard": ["TensorBoard"],
    },
)
