"""The BART of KerasHub as ours: its weights under Hugging Face's names, matrices as (out, in).

KerasHub names a weight by its path, such as "transformer_decoder_layer_0/cross_attention/query/
kernel", and keeps the heads of an attention as an axis of their own.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from rag_core.config import BartConfig

# BART's position table starts with two rows that no position uses; KerasHub's does not.
_UNUSED_POSITIONS = 2

_NAMES = (
    (r"^token_embedding/", "model.shared/"),
    (r"^((?:en|de)coder)_position_embedding/", r"model.\1.embed_positions/"),
    (r"^((?:en|de)coder)_embeddings_layer_norm/", r"model.\1.layernorm_embedding/"),
    (r"^transformer_((?:en|de)coder)_layer_(\d+)/", r"model.\1.layers.\2/"),
    (r"/self_attention_layer_norm/", "/self_attn_layer_norm/"),
    (r"/cross_attention_layer_norm/", "/encoder_attn_layer_norm/"),
    (r"/feedforward_layer_norm/", "/final_layer_norm/"),
    (r"/self_attention(_layer)?/", "/self_attn/"),
    (r"/cross_attention/", "/encoder_attn/"),
    (r"/(q)uery/|/(k)ey/|/(v)alue/", r"/\1\2\3_proj/"),
    (r"/attention_output/", "/out_proj/"),
    (r"/feedforward_intermediate_dense/", "/fc1/"),
    (r"/feedforward_output_dense/", "/fc2/"),
    (r"/(kernel|embeddings|gamma)$", "/weight"),
    (r"/beta$", "/bias"),
)


def bart_from_keras_hub(model: Any) -> tuple[BartConfig, dict[str, np.ndarray]]:
    """A config and weights of which `from_pretrained(None, config=config, state_dict=weights)` of
    either backend makes the same network.

    Args:
        model: `BartSeq2SeqLM` or `BartBackbone` of KerasHub. Ids of special tokens are those of its
            preprocessor's tokenizer, else BART's own: 0, 1 and 2.

    Returns:
        The config, and the weights by name. What LoRA or quantisation added keeps its name, which
        `from_pretrained` refuses.

    Raises:
        TypeError: another model.
    """
    backbone = getattr(model, "backbone", model)
    if "BartBackbone" not in {kind.__name__ for kind in type(backbone).__mro__}:
        raise TypeError(
            "model must be a BartSeq2SeqLM or BartBackbone of KerasHub, got "
            f"{type(model).__name__}. Put another encoder-decoder behind an adapter: KerasHub in "
            "docs/tensorflow.md"
        )
    weights = {}
    for weight in backbone.weights:
        name = _renamed(weight.path)
        weights[name] = _as_ours(name, np.asarray(weight))
    return _config(model, backbone), weights


def _config(model: Any, backbone: Any) -> BartConfig:
    sizes: dict[str, Any] = {}
    for part in ("encoder", "decoder"):
        sizes[f"{part}_layers"] = backbone.num_layers
        sizes[f"{part}_attention_heads"] = backbone.num_heads
        sizes[f"{part}_ffn_dim"] = backbone.intermediate_dim
    tokens: dict[str, int] = {}
    tokenizer = getattr(getattr(model, "preprocessor", None), "tokenizer", None)
    if tokenizer is not None:
        tokens = {
            "bos_token_id": tokenizer.start_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.end_token_id,
            "decoder_start_token_id": tokenizer.end_token_id,
            "forced_eos_token_id": tokenizer.end_token_id,
        }
    return BartConfig(
        vocab_size=backbone.vocabulary_size,
        d_model=backbone.hidden_dim,
        max_position_embeddings=backbone.max_sequence_length,
        dropout=backbone.dropout,
        attention_dropout=backbone.dropout,
        **sizes,
        **tokens,
    )


def _renamed(path: str) -> str:
    for pattern, replacement in _NAMES:
        path = re.sub(pattern, replacement, path)
    return path.replace("/", ".")


def _as_ours(name: str, array: np.ndarray) -> np.ndarray:
    """Keras' matrix (in, out), of an attention (in, H, h) or (H, h, out), as (out, in)."""
    if name.endswith(".embed_positions.weight"):
        return np.pad(array, ((_UNUSED_POSITIONS, 0), (0, 0)))
    if name.endswith("_proj.bias"):
        return array.reshape(-1)
    if name.endswith(".out_proj.weight"):
        return array.reshape(-1, array.shape[-1]).T
    if name.endswith((".q_proj.weight", ".k_proj.weight", ".v_proj.weight")):
        return array.reshape(len(array), -1).T
    if name.endswith((".fc1.weight", ".fc2.weight")):
        return array.T
    return array
