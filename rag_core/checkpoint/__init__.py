"""Weights on disk: every layout read, one written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.checkpoint.convert import convert_checkpoint as convert_checkpoint
    from rag_core.checkpoint.convert import fitted_weights as fitted_weights
    from rag_core.checkpoint.file_checks import check_arrow as check_arrow
    from rag_core.checkpoint.file_checks import open_arrow as open_arrow
    from rag_core.checkpoint.file_checks import vouch as vouch
    from rag_core.checkpoint.folder import CHECKPOINT_PATTERNS as CHECKPOINT_PATTERNS
    from rag_core.checkpoint.folder import read_weights as read_weights
    from rag_core.checkpoint.folder import weight_files as weight_files
    from rag_core.checkpoint.folder import write_checkpoint as write_checkpoint
    from rag_core.checkpoint.h5 import H5File as H5File
    from rag_core.checkpoint.keras_hub import bart_from_keras_hub as bart_from_keras_hub
    from rag_core.checkpoint.lazy import LazyWeights as LazyWeights
    from rag_core.checkpoint.lazy import given_weights as given_weights
    from rag_core.checkpoint.other_berts import with_projection as with_projection
    from rag_core.checkpoint.shapes import RAG_HEADS as RAG_HEADS
    from rag_core.checkpoint.weights import check_sizes as check_sizes
    from rag_core.checkpoint.weights import check_weights as check_weights
    from rag_core.checkpoint.weights import chosen_weights as chosen_weights
    from rag_core.checkpoint.weights import fit_names as fit_names
    from rag_core.checkpoint.weights import fit_weights as fit_weights
    from rag_core.checkpoint.weights import needs_float32 as needs_float32
    from rag_core.checkpoint.weights import tied_names as tied_names
    from rag_core.checkpoint.weights import with_ties as with_ties

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "convert": ["convert_checkpoint", "fitted_weights"],
        "file_checks": ["check_arrow", "open_arrow", "vouch"],
        "folder": ["CHECKPOINT_PATTERNS", "read_weights", "weight_files", "write_checkpoint"],
        "h5": ["H5File"],
        "keras_hub": ["bart_from_keras_hub"],
        "lazy": ["LazyWeights", "given_weights"],
        "other_berts": ["with_projection"],
        "shapes": ["RAG_HEADS"],
        "weights": [
            "check_sizes",
            "check_weights",
            "chosen_weights",
            "fit_names",
            "fit_weights",
            "needs_float32",
            "tied_names",
            "with_ties",
        ],
    },
)
