"""What is asked of checkpoints that TensorFlow classes of transformers 4.37.2 saved; numpy only."""

from typing import Any

import numpy as np

from conformance.cases import contexts, rag_config, targets

# name: class that saves it, whether as safetensors marked "format: tf" (else tf_model.h5)
TF_CHECKPOINTS = {
    "tf_token_bart": ("TFRagTokenForGeneration", False),
    "tf_sequence_bart": ("TFRagSequenceForGeneration", True),
}
MODEL = "bart_scaled"  # of the catalogue
SEED = 3
BATCH, N_DOCS = 2, 3


def config() -> dict[str, Any]:
    """Keyword arguments of a RagConfig.

    The catalogue's, without DPR's projection, which 4.37.2 can't build in TF.
    """
    values = rag_config(MODEL, N_DOCS)
    values["question_encoder"]["projection_dim"] = 0
    values["generator"]["encoder_layers"] = 2
    return values


def given() -> dict[str, np.ndarray]:
    """Contexts (B*N, S) with masks, doc_scores (B, N) in float32, labels (B, T)."""
    inputs = contexts(MODEL, "tf_exchange", BATCH, N_DOCS)
    inputs["doc_scores"] = inputs["doc_scores"].astype(np.float32)
    inputs["labels"] = targets(MODEL, "padded", BATCH)
    return inputs
